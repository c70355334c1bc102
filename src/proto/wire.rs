//! The datagrams on the wire, told apart by their first bytes.
//!
//! ```text
//! 01 00 00 00 … 04 00 00 00    WireGuard's initiation, response, cookie reply and transport data
//! 00 or 01 … 21 12 a4 42       STUN (RFC 8489): two zero bits, and the magic cookie at byte 4
//! 44 55 44 50                  "DUDP": the patent's family, ours
//! ```
//!
//! Every message of the DUDP family opens alike, so that a firewall's administrator can see, allow or forbid each:
//!
//! ```text
//! 0        4      5         6          8
//! | "DUDP" | type | version | reserved | body …
//! ```
//!
//! | type | name            | from → to         | body                                                  |
//! | ---- | --------------- | ----------------- | ----------------------------------------------------- |
//! | 1    | DUDP_START      | member → server   | [`crate::proto::discovery`]                           |
//! | 2    | DUDP_PUBINFO    | server → member   | [`crate::proto::discovery`]                           |
//! | 3    | MESSAGE_CONTROL | member ↔ server   | sealed: [`crate::proto::rendezvous`]                  |
//! | 4    | DUDP_ACK        | member ↔ member   | sealed: [`crate::proto::probe`]                       |
//! | 5    | DUDP_ACK2       | member ↔ member   | sealed: [`crate::proto::probe`]                       |
//! | 6    | DUDP_REGISTER   | member ↔ server   | sealed: [`crate::proto::rendezvous`]                  |
//! | 7    | DUDP_RESET      | server → member   | the index and counter of a packet of no known session |
//!
//! A sealed body opens with the receiver's session index and the counter, as WireGuard's transport data does, and all
//! twenty bytes before the ciphertext are authenticated with it ([`crate::proto::session`]):
//!
//! ```text
//! 8                20-byte header ends        20
//! | receiver (4, LE) | counter (8, LE)        | ciphertext and tag …
//! ```
//!
//! Versions differ where the meaning of a body does; a receiver drops what is not its own version. Reserved bytes are sent
//! as zero and not looked at.

/// The first bytes of the family.
pub const MAGIC: [u8; 4] = *b"DUDP";
/// This version of it.
pub const VERSION: u8 = 1;
/// Length of the header that all share.
pub const HEADER_LEN: usize = 8;

/// The types of the DUDP family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Dudp {
    Start = 1,
    PubInfo = 2,
    MessageControl = 3,
    Ack = 4,
    Ack2 = 5,
    Register = 6,
    Reset = 7,
}

impl Dudp {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Start,
            2 => Self::PubInfo,
            3 => Self::MessageControl,
            4 => Self::Ack,
            5 => Self::Ack2,
            6 => Self::Register,
            7 => Self::Reset,
            _ => return None,
        })
    }

    /// The header of this type.
    pub fn header(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = MAGIC;
        [a, b, c, d, self as u8, VERSION, 0, 0]
    }
}

/// What a datagram claims to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    WireGuard(WireGuard),
    Stun,
    Dudp(Dudp),
}

/// WireGuard's message types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireGuard {
    Initiation,
    Response,
    CookieReply,
    Transport,
}

impl Kind {
    /// By the first bytes alone; `None`: none of ours.
    pub fn of(datagram: &[u8]) -> Option<Kind> {
        match datagram {
            [1, 0, 0, 0, ..] => Some(Kind::WireGuard(WireGuard::Initiation)),
            [2, 0, 0, 0, ..] => Some(Kind::WireGuard(WireGuard::Response)),
            [3, 0, 0, 0, ..] => Some(Kind::WireGuard(WireGuard::CookieReply)),
            [4, 0, 0, 0, ..] => Some(Kind::WireGuard(WireGuard::Transport)),
            [b'D', b'U', b'D', b'P', kind, VERSION, _, _, ..] => Dudp::from_byte(*kind).map(Kind::Dudp),
            [first, _, _, _, 0x21, 0x12, 0xa4, 0x42, ..] if first & 0xc0 == 0 => Some(Kind::Stun),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_are_told_apart_by_their_first_bytes() {
        assert_eq!(Kind::of(&[4, 0, 0, 0]), Some(Kind::WireGuard(WireGuard::Transport)));
        assert_eq!(Kind::of(b"\x01\x01\x00\x0c\x21\x12\xa4\x42"), Some(Kind::Stun));
        assert_eq!(Kind::of(&Dudp::Ack2.header()), Some(Kind::Dudp(Dudp::Ack2)));
        assert_eq!(Kind::of(b"DUDP\x08\x01\0\0"), None);
        assert_eq!(Kind::of(b"DUDP\x01\x02\0\0"), None);
        assert_eq!(Kind::of(&[]), None);
    }
}
