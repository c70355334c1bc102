//! Introductions: a member passes the sealed call of one of its peers to another, where no rendezvous server does.
//!
//! ```text
//!    a ─────── c ─────── b        a and b have lost each other; both have a path and a session with c
//!    │ FORWARD │ DELIVER │
//!    ├────────►├────────►│        a's call
//!    │◄────────┤◄────────┤        b's answer: DELIVER ◄ FORWARD
//!    │                   │
//!    └═══════════════════┘        the punch, and a path of their own
//! ```
//!
//! A MESSAGE_CONTROL datagram between members goes over the path that they have, sealed in the session that they have
//! ([`super::tunnel::Tunnel::seal_control`]). Its inside is nearly what it is between a member and a server:
//!
//! ```text
//! member → introducer   | 1 FORWARD | to: key (32)                     | what is passed … |
//! introducer → member   | 2 DELIVER | from: key (32) | delay (4, µs)   | what is passed … |
//! introducer → member   | 3 ABSENT  | to: key (32)                     |
//! ```
//!
//! - What is passed is sealed between the two that it is for ([`super::message_control`]): an introducer learns who calls whom
//!   and when, as a server does, and can drop it, delay it or repeat it, no more. Inner packets never go this way.
//! - One hop: what was delivered is for the member itself and is never passed on, so nothing goes in circles.
//! - `delay` is the round trip between introducer and caller. The called member needs it to know when its answer will be
//!   there; the caller can't say it, for the same sealed call goes through several.
//! - An introducer passes on only between its own peers, if it has a path to both, no more than the rates below, and unless its
//!   owner forbids it (`[interface] introduce`). In all other cases it says ABSENT.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::allowance::Rate;
use super::codec::{Reader, Writer};
use super::context::PeerId;
use super::keys::{KEY_LEN, PublicKey};
use super::rendezvous::MAX_PASSED;

/// Introducers that a call goes to at once: two may have lost the peer without having noticed.
const AT_ONCE: usize = 3;
/// Introducers that one call is given to, in all its tries. That the peer is with none of nine means that it is off.
const MAX_ASKED: usize = 9;
/// What one peer may have passed, and may pass to us: a call takes up to five messages and its answer. A member that comes back
/// to a mesh of 1,000 without a server finds all of it within a few minutes.
pub const PER_PEER: Rate = Rate { burst: 50, per_s: 10 };
/// What a member passes for all others: 50 messages a second of 600 bytes, in and out again, are 0.25 Mbit/s of a line.
pub const IN_ALL: Rate = Rate { burst: 200, per_s: 50 };

const FORWARD: u8 = 1;
const DELIVER: u8 = 2;
const ABSENT: u8 = 3;

/// The inside of a MESSAGE_CONTROL datagram between members.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Introduction {
    Forward { to: PublicKey, passed: Vec<u8> },
    Deliver { from: PublicKey, delay: Duration, passed: Vec<u8> },
    Absent { to: PublicKey },
}

impl Introduction {
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Self::Forward { to, passed } => writer.u8(FORWARD).bytes(to.as_bytes()).bytes(passed),
            Self::Deliver { from, delay, passed } => {
                let delay = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
                writer.u8(DELIVER).bytes(from.as_bytes()).u32(delay).bytes(passed)
            }
            Self::Absent { to } => writer.u8(ABSENT).bytes(to.as_bytes()),
        }
        .finish()
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let op = reader.u8()?;
        let key = PublicKey(reader.array::<KEY_LEN>()?);
        let word = match op {
            FORWARD => Self::Forward { to: key, passed: reader.rest().to_vec() },
            DELIVER => {
                let delay = Duration::from_micros(u64::from(reader.u32()?));
                Self::Deliver { from: key, delay, passed: reader.rest().to_vec() }
            }
            ABSENT => Self::Absent { to: key },
            _ => return None,
        };
        match &word {
            Self::Forward { passed, .. } | Self::Deliver { passed, .. } if passed.len() > MAX_PASSED => None,
            _ => Some(word),
        }
    }
}

/// Who passes what two members say to each other in a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// By its place in the list of servers.
    Server(usize),
    /// `delay`: the round trip between it and the other one, as it says.
    Member { id: PeerId, delay: Duration },
}

/// How a peer stands that can introduce us to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    pub rtt: Option<Duration>,
    /// Where it sees our main socket.
    pub seen: Option<SocketAddr>,
}

/// A peer that we have a path to and that speaks the family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introducer {
    pub name: String,
    pub standing: Standing,
}

pub type Introducers = BTreeMap<PeerId, Introducer>;

/// Something that an introducer is to pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Errand {
    pub introducer: PeerId,
    pub to: PublicKey,
    pub passed: Vec<u8>,
}

/// What follows for a call, when somebody does not know the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Somebody else has yet to say so.
    Wait,
    /// There are introducers that were not asked.
    Ask,
    GiveUp,
}

/// To whom one call of ours was given, besides the servers.
#[derive(Default, Debug)]
pub struct Passers {
    /// The only server there is does not know the peer.
    absent_at_server: bool,
    asked: Vec<PeerId>,
    absent: Vec<PeerId>,
}

impl Passers {
    /// Whom to give the call to `peer` now: those that do not have it yet first, the nearest first.
    pub fn ask(&mut self, known: &Introducers, peer: PeerId) -> Vec<PeerId> {
        let room = MAX_ASKED - self.asked.len();
        let mut fresh: Vec<_> = self.unasked(known, peer).collect();
        fresh.sort_unstable();
        let fresh: Vec<PeerId> = fresh.into_iter().map(|(_, id)| id).take(AT_ONCE.min(room)).collect();
        let open = self.asked.iter().copied().filter(|id| !self.absent.contains(id) && known.contains_key(id));
        let again = open.take(AT_ONCE - fresh.len()).collect::<Vec<_>>();
        self.asked.extend(&fresh);
        [fresh, again].concat()
    }

    fn unasked(&self, known: &Introducers, peer: PeerId) -> impl Iterator<Item = (Duration, PeerId)> {
        let others = known.iter().filter(move |(id, _)| **id != peer && !self.asked.contains(id));
        others.map(|(id, introducer)| (introducer.standing.rtt.unwrap_or(Duration::MAX), *id))
    }

    /// `via` does not know the peer; there are `servers` that we are registered with.
    pub fn note_absent(&mut self, via: Via, servers: usize, known: &Introducers, peer: PeerId) -> Next {
        match via {
            // Another server may know it.
            Via::Server(_) => self.absent_at_server |= servers <= 1,
            Via::Member { id, .. } if !self.asked.contains(&id) || self.absent.contains(&id) => return Next::Wait,
            Via::Member { id, .. } => self.absent.push(id),
        }
        if self.asked.len() > self.absent.len() {
            Next::Wait
        } else if self.asked.len() < MAX_ASKED && self.unasked(known, peer).next().is_some() {
            Next::Ask
        } else if servers == 0 || self.absent_at_server {
            Next::GiveUp
        } else {
            Next::Wait
        }
    }

    /// The introducers that have the call.
    pub fn asked(&self) -> &[PeerId] {
        &self.asked
    }
}

#[cfg(test)]
mod tests;
