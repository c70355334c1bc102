//! DUDP_ACK and DUDP_ACK2: the probes that find a path and prove it (patent \[0068\] to \[0073\]).
//!
//! Both are sealed with the probe keys of a session ([`super::session`]), which come out of the handshake that rode in the
//! call. Both have 68 bytes: nobody is amplified, and nobody can tell them apart by their length.
//!
//! ```text
//! inside DUDP_ACK    0          8                 9        10     11        32
//!                    | token    | candidate kind  | chosen | shot | zeroes  |
//! inside DUDP_ACK2   0          8                 27                 32
//!                    | token    | seen from (19)  | zeroes           |
//! a sounding         0          8                                   (more than 32)
//!                    | token    | zeroes                              |
//! ```
//!
//! An ACK that arrives shows its receiver the port that the sender is at; the ACK2 goes back to that port with the ACK's
//! token, and shows the sender that this very destination works, both ways. The token is random, so that even a peer can't
//! claim that an ACK arrived where it did not. `candidate kind` is as which of the receiver's candidates the sender knows
//! this address (0: none). `chosen`, in an ACK of the caller's: use this path, and close all other sockets of the call. `shot`: one
//! of a call's many; without it, the sender means to be found at the address that it comes from.
//!
//! A DUDP_ACK with a longer body is a sounding ([`super::mtu`]): it asks whether a datagram of its length arrives, is answered by an
//! ordinary DUDP_ACK2, and says nothing of paths.

use std::net::SocketAddr;

use super::codec::{Reader, Writer};
use super::message_control::CandidateKind;
use super::noise::primitive::TAG_LEN;
use super::session;
use super::wire::HEADER_LEN;

/// Length of either body.
pub const BODY_LEN: usize = 32;

/// Length of either, sealed.
pub const LEN: usize = HEADER_LEN + session::ADDRESS_LEN + BODY_LEN + TAG_LEN;

pub type Token = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    pub token: Token,
    pub via: Option<CandidateKind>,
    pub chosen: bool,
    pub shot: bool,
}

impl Ack {
    pub fn encode(&self) -> Vec<u8> {
        let via = self.via.map_or(0, |kind| kind as u8);
        Writer::default()
            .u64(self.token)
            .u8(via)
            .u8(u8::from(self.chosen))
            .u8(u8::from(self.shot))
            .pad_to(BODY_LEN)
            .finish()
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        if body.len() != BODY_LEN {
            return None;
        }
        let mut reader = Reader::new(body);
        let token = reader.u64()?;
        let via = CandidateKind::from_byte(reader.u8()?);
        Some(Self { token, via, chosen: reader.u8()? == 1, shot: reader.u8()? == 1 })
    }
}

/// The body of a sounding whose datagram (the payload of UDP) has `datagram` bytes.
pub fn encode_sounding(token: Token, datagram: usize) -> Vec<u8> {
    let body = datagram.saturating_sub(HEADER_LEN + session::ADDRESS_LEN + TAG_LEN);
    Writer::default().u64(token).pad_to(body.max(BODY_LEN + 1)).finish()
}

/// The token of a DUDP_ACK that is a sounding.
pub fn parse_sounding(body: &[u8]) -> Option<Token> {
    if body.len() <= BODY_LEN {
        return None;
    }
    Reader::new(body).u64()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack2 {
    pub token: Token,
    pub seen: SocketAddr,
}

impl Ack2 {
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.token).address(self.seen).pad_to(BODY_LEN).finish()
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        if body.len() != BODY_LEN {
            return None;
        }
        let mut reader = Reader::new(body);
        Some(Self { token: reader.u64()?, seen: reader.address()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_read_back_as_they_were_written() {
        let ack = Ack { token: 77, via: Some(CandidateKind::Mapped), chosen: true, shot: true };
        assert_eq!(Ack::parse(&ack.encode()), Some(ack));
        let ack2 = Ack2 { token: 78, seen: "203.0.113.5:40000".parse().expect("address") };
        assert_eq!(Ack2::parse(&ack2.encode()), Some(ack2));
        assert_eq!(Ack::parse(&ack.encode()[..31]), None);
    }

    #[test]
    fn a_sounding_is_as_long_as_asked_and_nothing_else_passes_for_one() {
        let body = encode_sounding(79, 1452);
        assert_eq!(HEADER_LEN + session::ADDRESS_LEN + body.len() + TAG_LEN, 1452);
        assert_eq!((parse_sounding(&body), Ack::parse(&body)), (Some(79), None));
        assert_eq!(parse_sounding(&Ack { token: 77, via: None, chosen: false, shot: false }.encode()), None);
        assert_eq!(parse_sounding(&encode_sounding(80, 0)), Some(80), "one byte longer than an ACK at least");
    }
}
