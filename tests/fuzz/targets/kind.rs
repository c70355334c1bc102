//! The first bytes of a datagram: what it claims to be.

use p2ptund::proto::wire::{Kind, MAGIC};

pub fn run(data: &[u8]) {
    let kind = Kind::of(data);
    assert_eq!(kind, Kind::of(&data[..data.len().min(8)]), "the first eight bytes alone decide");
    match kind {
        Some(Kind::Dudp(kind)) => {
            assert!(data.starts_with(&MAGIC));
            assert_eq!(data[..6], kind.header()[..6], "the header written is the header read");
        }
        Some(Kind::WireGuard(_)) => assert!(data[0] <= 4 && data[1..4] == [0; 3]),
        Some(Kind::Stun) => assert_eq!(data[4..8], [0x21, 0x12, 0xa4, 0x42]),
        None => {}
    }
}
