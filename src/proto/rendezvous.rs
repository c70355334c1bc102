//! Rendezvous: members register with a server by key, and it passes their sealed calls (patent \[0062\], \[0067\]).
//!
//! A member registers by a WireGuard handshake with the server (types 1 and 2, cookies included): after it both have a
//! session, the server knows which key is at which address, and a replayed handshake gets nobody anywhere, because a session
//! counts only once the member has used it. All else travels sealed in that session:
//!
//! ```text
//! DUDP_REGISTER     member → server   19 zeroes; at least once in KEEPALIVE, which also keeps the NAT's mapping open
//! DUDP_REGISTER     server → member   the address (19) that the member is seen at
//! MESSAGE_CONTROL   member → server   | 1 FORWARD | to: key (32)   | what is passed … |
//! MESSAGE_CONTROL   server → member   | 2 DELIVER | from: key (32) | what is passed … |
//! MESSAGE_CONTROL   server → member   | 3 ABSENT  | to: key (32)   |
//! DUDP_RESET        server → member   the index (4) and counter (8) of a packet that belongs to no session
//! ```
//!
//! What is passed is sealed once more between the two members ([`super::message_control`]). DUDP_RESET is not sealed, for a
//! server that was restarted has nothing to seal it with: a member takes it as a hint to shake hands again, no more often
//! than its own timers allow, and goes on with the session that it has until the handshake is done. No answer is longer than
//! what it answers.

pub mod client;
pub mod server;

use std::time::Duration;

use super::codec::{Reader, Writer};
use super::keys::{KEY_LEN, PublicKey};
use super::wire::{Dudp, HEADER_LEN};

/// A member's word to its server at least this often. NATs forget after 30 s at the earliest that are worth reckoning with
/// (Linux' own for a flow without an answer), and one packet in 20 s is what a server may cost. Where the NAT was found to forget
/// sooner ([`super::discovery::lifetime`]), as often as that takes.
pub const KEEPALIVE: Duration = Duration::from_secs(21);
/// Three keepalives missed, and some: the member is gone.
pub const FORGET_AFTER: Duration = Duration::from_secs(75);
/// A member renews its session this often. Such a session carries a packet every few seconds, whose contents are sealed once
/// more: WireGuard's two minutes for payload would double the server's work for nothing.
pub const RENEW_AFTER: Duration = Duration::from_secs(3600);
/// The most that a server passes: a call with all its candidates takes less than 800 bytes, and everything fits into IPv6's
/// smallest MTU.
pub const MAX_PASSED: usize = 1100;

/// Length of DUDP_RESET.
pub const RESET_LEN: usize = HEADER_LEN + 12;

const FORWARD: u8 = 1;
const DELIVER: u8 = 2;
const ABSENT: u8 = 3;

/// The inside of a MESSAGE_CONTROL datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    Forward { to: PublicKey, passed: Vec<u8> },
    Deliver { from: PublicKey, passed: Vec<u8> },
    Absent { to: PublicKey },
}

impl Control {
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Self::Forward { to, passed } => writer.u8(FORWARD).bytes(to.as_bytes()).bytes(passed),
            Self::Deliver { from, passed } => writer.u8(DELIVER).bytes(from.as_bytes()).bytes(passed),
            Self::Absent { to } => writer.u8(ABSENT).bytes(to.as_bytes()),
        }
        .finish()
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let op = reader.u8()?;
        let key = PublicKey(reader.array::<KEY_LEN>()?);
        let passed = reader.rest();
        if passed.len() > MAX_PASSED {
            return None;
        }
        match op {
            FORWARD => Some(Self::Forward { to: key, passed: passed.to_vec() }),
            DELIVER => Some(Self::Deliver { from: key, passed: passed.to_vec() }),
            ABSENT => Some(Self::Absent { to: key }),
            _ => None,
        }
    }
}

/// The index of the session that a sealed message of the family is for.
pub fn receiver(datagram: &[u8]) -> Option<u32> {
    super::session::receiver_of(datagram, HEADER_LEN)
}

/// The DUDP_RESET for a sealed message that belongs to no session.
fn reset(datagram: &[u8]) -> Option<Vec<u8>> {
    let address = datagram.get(HEADER_LEN..RESET_LEN)?;
    Some(Writer::with(&Dudp::Reset.header()).bytes(address).finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_reads_back_as_it_was_written() {
        let key = PublicKey([7; 32]);
        for message in [
            Control::Forward { to: key, passed: vec![1, 2, 3] },
            Control::Deliver { from: key, passed: vec![0; MAX_PASSED] },
            Control::Absent { to: key },
        ] {
            assert_eq!(Control::parse(&message.encode()), Some(message));
        }
    }

    #[test]
    fn a_message_too_long_too_short_or_of_no_kind_is_refused() {
        let key = PublicKey([7; 32]);
        assert_eq!(Control::parse(&Control::Forward { to: key, passed: vec![0; MAX_PASSED + 1] }.encode()), None);
        assert_eq!(Control::parse(&Control::Absent { to: key }.encode()[..32]), None);
        assert_eq!(Control::parse(&[[9].as_slice(), &[7; 32]].concat()), None);
    }
}
