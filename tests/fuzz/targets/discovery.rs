//! DUDP_START and DUDP_PUBINFO.

use p2ptund::proto::discovery::{MESSAGE_LEN, PubInfo, Start};

pub fn run(data: &[u8]) {
    if let Some(start) = Start::parse(data) {
        let encoded = start.encode();
        assert_eq!((encoded.len(), Start::parse(&encoded)), (MESSAGE_LEN, Some(start)));
        assert_eq!(encoded[8..17], data[8..17], "there is one way to write it");
    }
    if let Some(info) = PubInfo::parse(data) {
        let encoded = info.encode();
        assert_eq!((encoded.len(), PubInfo::parse(&encoded)), (MESSAGE_LEN, Some(info)));
    }
}
