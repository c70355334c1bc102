//! An inner packet's IP header.

use p2ptund::proto::ip::Header;

pub fn run(data: &[u8]) {
    let Some(header) = Header::parse(data) else { return };
    assert!((20..=data.len()).contains(&header.len), "the packet lies within its bytes");
    assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
    assert_eq!(Header::parse(&data[..header.len]), Some(header), "what lies behind the packet does not matter");
    assert_eq!(Header::parse(&data[..header.len - 1]), None, "a packet that is cut is none");
}
