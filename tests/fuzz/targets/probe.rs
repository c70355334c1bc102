//! The bodies of DUDP_ACK and DUDP_ACK2.

use p2ptund::proto::probe::{Ack, Ack2, BODY_LEN, parse_sounding};

pub fn run(data: &[u8]) {
    assert_eq!(parse_sounding(data).is_some(), data.len() > BODY_LEN);
    if let Some(ack) = Ack::parse(data) {
        let encoded = ack.encode();
        assert_eq!((encoded.len(), Ack::parse(&encoded)), (BODY_LEN, Some(ack)));
    }
    if let Some(ack) = Ack2::parse(data) {
        let encoded = ack.encode();
        assert_eq!((encoded.len(), Ack2::parse(&encoded)), (BODY_LEN, Some(ack)));
    }
}
