//! STUN requests and responses from anybody.

use p2ptund::proto::stun::{parse_request, parse_response, request, response};

pub fn run(data: &[u8]) {
    let (asked, answered) = (parse_request(data), parse_response(data));
    assert!(asked.is_none() || answered.is_none(), "a datagram is a request or a response, never both");
    if let Some(transaction) = asked {
        assert_eq!(parse_request(&request(&transaction)), Some(transaction));
    }
    if let Some((transaction, address)) = answered {
        assert_eq!(parse_response(&response(&transaction, address)), Some((transaction, address)));
    }
}
