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
//! MESSAGE_CONTROL   member → server   | 4 FORWARD OR HOLD | as FORWARD, for a call that is as good a moment later
//! MESSAGE_CONTROL   server → member   | 5 HELD    | to: key (32)   |
//! MESSAGE_CONTROL   server → member   | 6 DELIVER, HELD | from: key (32) | for so long (2, ms) | what is passed … |
//! MESSAGE_CONTROL   member → server   | 7 FORWARD OR HOLD BRIEFLY | as FORWARD, for a call that says where a counter is
//! DUDP_RESET        server → member   the index (4) and counter (8) of a packet that belongs to no session
//! ```
//!
//! What is passed is sealed once more between the two members ([`super::message_control`]). DUDP_RESET is not sealed, for a
//! server that was restarted has nothing to seal it with: a member takes it as a hint to shake hands again, no more often
//! than its own timers allow, and goes on with the session that it has until the handshake is done.
//!
//! HELD says, as ABSENT does, that the other member is not registered, and that the call is kept for it ([`Wait`]): should it
//! register by then, it gets the call with the answer to its first word ([`holding`]). If not, a caller whose call may wait briefly
//! is told ABSENT: so whatever the peer sends later comes later, and the two never each take the other's call. No other answer is
//! longer than what it answers. A held call, that last word, and second copies ([`echo`]) go only to an address that a handshake
//! went to and fro with: nobody is amplified.

pub mod client;
mod echo;
mod holding;
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

/// How long a call may wait for its member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    Never,
    /// A call from behind a NAT whose ports move, which is out of date soon: long enough for two members that are started at one
    /// moment, whose first words race each other.
    Briefly,
    /// Two offices whose power comes back, or whose daemons one person starts, are up within it.
    Long,
}

impl Wait {
    pub const fn time(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Briefly => Duration::from_millis(150),
            Self::Long => Duration::from_secs(2),
        }
    }
}

/// Length of DUDP_RESET.
pub const RESET_LEN: usize = HEADER_LEN + 12;

const FORWARD: u8 = 1;
const DELIVER: u8 = 2;
const ABSENT: u8 = 3;
const FORWARD_OR_HOLD: u8 = 4;
const HELD: u8 = 5;
const DELIVER_HELD: u8 = 6;
const FORWARD_OR_HOLD_BRIEFLY: u8 = 7;

/// The inside of a MESSAGE_CONTROL datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    Forward {
        to: PublicKey,
        wait: Wait,
        passed: Vec<u8>,
    },
    /// `held`: it waited so long, to the millisecond, for us.
    Deliver {
        from: PublicKey,
        held: Option<Duration>,
        passed: Vec<u8>,
    },
    /// `held`: it does wait.
    Absent {
        to: PublicKey,
        held: bool,
    },
}

impl Control {
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Self::Forward { to, wait, passed } => {
                let op = match wait {
                    Wait::Never => FORWARD,
                    Wait::Briefly => FORWARD_OR_HOLD_BRIEFLY,
                    Wait::Long => FORWARD_OR_HOLD,
                };
                writer.u8(op).bytes(to.as_bytes()).bytes(passed)
            }
            Self::Deliver { from, held: None, passed } => writer.u8(DELIVER).bytes(from.as_bytes()).bytes(passed),
            Self::Deliver { from, held: Some(held), passed } => {
                let held = u16::try_from(held.as_millis()).unwrap_or(u16::MAX);
                writer.u8(DELIVER_HELD).bytes(from.as_bytes()).u16(held).bytes(passed)
            }
            Self::Absent { to, held } => writer.u8(if *held { HELD } else { ABSENT }).bytes(to.as_bytes()),
        }
        .finish()
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let op = reader.u8()?;
        let key = PublicKey(reader.array::<KEY_LEN>()?);
        let held = match op {
            DELIVER_HELD => Some(Duration::from_millis(reader.u16()?.into())),
            _ => None,
        };
        let passed = reader.rest();
        if passed.len() > MAX_PASSED {
            return None;
        }
        let forward = |wait| Self::Forward { to: key, wait, passed: passed.to_vec() };
        match op {
            FORWARD => Some(forward(Wait::Never)),
            FORWARD_OR_HOLD => Some(forward(Wait::Long)),
            FORWARD_OR_HOLD_BRIEFLY => Some(forward(Wait::Briefly)),
            DELIVER | DELIVER_HELD => Some(Self::Deliver { from: key, held, passed: passed.to_vec() }),
            ABSENT | HELD => Some(Self::Absent { to: key, held: op == HELD }),
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
            Control::Forward { to: key, wait: Wait::Never, passed: vec![1, 2, 3] },
            Control::Forward { to: key, wait: Wait::Briefly, passed: vec![1, 2, 3] },
            Control::Forward { to: key, wait: Wait::Long, passed: vec![1, 2, 3] },
            Control::Deliver { from: key, held: None, passed: vec![0; MAX_PASSED] },
            Control::Deliver { from: key, held: Some(Duration::from_millis(1999)), passed: vec![0; MAX_PASSED] },
            Control::Absent { to: key, held: false },
            Control::Absent { to: key, held: true },
        ] {
            assert_eq!(Control::parse(&message.encode()), Some(message));
        }
    }

    #[test]
    fn a_message_too_long_too_short_or_of_no_kind_is_refused() {
        let key = PublicKey([7; 32]);
        let too_long = Control::Forward { to: key, wait: Wait::Long, passed: vec![0; MAX_PASSED + 1] };
        assert_eq!(Control::parse(&too_long.encode()), None);
        assert_eq!(Control::parse(&Control::Absent { to: key, held: false }.encode()[..32]), None);
        assert_eq!(Control::parse(&[[9].as_slice(), &[7; 32]].concat()), None);
    }
}
