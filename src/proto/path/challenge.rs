//! Challenges: what a peer is being asked about its ways, and how often that is repeated.
//!
//! ```text
//! asked ─► asked again, as often as its goal is worth ─► answered: taken out, or given up
//! ```
//!
//! There are few at a time. Any goal but [`Goal::Move`] takes the place of the oldest question about another way, where there is no other.

use std::time::Duration;

use super::Way;
use crate::proto::probe::Token;
use crate::proto::snapshot::Method;
use crate::proto::{Instant, SocketId};

/// The path in use is asked again after a round trip and a quarter of one, and no sooner than this …
const SOONEST_RETRY: Duration = Duration::from_millis(150);
/// … where the round trip is not known, after this …
const UNTIMED_RETRY: Duration = Duration::from_millis(500);
/// … and is suspect after so many: with 2 % loss on each of four links all are lost once in 2,000 times.
pub(super) const SUSPECT_TRIES: u32 = 3;
/// From then on it is asked this often, until it is lost: long enough for a call beside it, and for a cut that ends soon.
const SUSPECT_RETRY: Duration = Duration::from_millis(500);
const LOST_TRIES: u32 = 8;
/// Any other challenge is repeated after this long …
const RETRY: Duration = Duration::from_millis(400);
/// … so many times in all: with 5 % loss each way all are lost once in 10,000.
const TRIES: u32 = 4;
/// How often a path on which the peer was heard is asked whether it hears us.
pub const PROOF_TRIES: u32 = 8;
/// Challenges at once: one for the path in use, some for addresses that showed up. More are dropped.
const MAX_CHALLENGES: usize = 8;

/// Why a way is challenged, so what becomes of it when it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// The path in use: does it still work?
    Check,
    /// The path in use, on which the peer was heard in a call: does it hear us? It is asked again after so long.
    Prove(Method, Duration),
    /// Another way, to be used if it works.
    Move(Method),
    /// The caller's choice, to be told to the called member.
    Choose,
    /// The caller's choice, from an address that its call did not name: followed if it works.
    Follow(Method),
    /// Does the peer speak the DUDP family at all? No harm where it does not.
    Greet,
    /// A user wants to know how long it takes. Asked once.
    Ping(u64),
}

/// How often a peer that may be stock WireGuard is greeted: a member that is not known as one can't introduce others.
const GREETINGS: u32 = 3;

/// A question that is being asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Challenge {
    token: Token,
    pub way: Way,
    pub goal: Goal,
    pub sent: Instant,
    pub tries: u32,
}

impl Challenge {
    /// When it is repeated or given up. A ping is asked once, and may take longer than a repetition would wait: satellites do.
    fn due(&self, rtt: Option<Duration>) -> Instant {
        self.sent
            + match self.goal {
                Goal::Check if self.tries > SUSPECT_TRIES => SUSPECT_RETRY,
                Goal::Check => rtt.map_or(UNTIMED_RETRY, |rtt| (rtt * 5 / 4).max(SOONEST_RETRY)),
                Goal::Prove(_, retry) => retry,
                _ if self.is_only_asked() => RETRY * 5,
                _ => RETRY,
            }
    }

    fn most_tries(&self) -> u32 {
        match self.goal {
            Goal::Check => LOST_TRIES,
            Goal::Ping(_) => 1,
            Goal::Greet => GREETINGS,
            Goal::Prove(..) => PROOF_TRIES,
            Goal::Move(_) | Goal::Choose | Goal::Follow(_) => TRIES,
        }
    }

    /// Whether no answer means nothing.
    pub fn is_only_asked(&self) -> bool {
        matches!(self.goal, Goal::Ping(_) | Goal::Greet)
    }

    pub fn ask(&self) -> Ask {
        Ask { way: self.way, token: self.token, chosen: self.goal == Goal::Choose }
    }
}

/// A probe to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    pub way: Way,
    pub token: Token,
    pub chosen: bool,
}

/// What becomes of a question whose answer did not come in time.
pub(super) enum Overdue {
    /// As it was before it was asked once more.
    Repeated(Challenge),
    GivenUp(Challenge),
}

/// All of one peer's, the oldest first.
#[derive(Default, Debug)]
pub(super) struct Challenges(Vec<Challenge>);

impl Challenges {
    /// Begins to ask a way; nothing, where it is being asked already.
    pub fn begin(&mut self, now: Instant, way: Way, goal: Goal, token: Token) -> Option<Ask> {
        if self.0.iter().any(|challenge| challenge.way == way && challenge.goal == goal) {
            return None;
        }
        if !matches!(goal, Goal::Move(_)) {
            self.make_room();
        }
        if self.0.len() >= MAX_CHALLENGES {
            return None;
        }
        let challenge = Challenge { token, way, goal, sent: now, tries: 1 };
        self.0.push(challenge);
        Some(challenge.ask())
    }

    /// `way` is likelier to work than those that are being asked: it takes the place of the oldest of them, where there is no other.
    pub fn prefer(&mut self, way: Way) {
        if self.0.iter().all(|challenge| challenge.way != way) {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        if self.0.len() >= MAX_CHALLENGES
            && let Some(at) = self.0.iter().position(|challenge| matches!(challenge.goal, Goal::Move(_)))
        {
            self.0.remove(at);
        }
    }

    /// An answer came by `way`: to this one.
    pub fn take_answered(&mut self, way: Way, token: Token) -> Option<Challenge> {
        let at = self.0.iter().position(|challenge| challenge.token == token && challenge.way == way)?;
        Some(self.0.remove(at))
    }

    /// Whether it is being asked already what would tell whether the path in use works.
    pub fn tell_of_path_in_use(&self) -> bool {
        self.0.iter().any(|challenge| matches!(challenge.goal, Goal::Check | Goal::Choose | Goal::Prove(..)))
    }

    /// Something was heard on `way`, so it works.
    pub fn end_check(&mut self, way: Way) {
        self.0.retain(|challenge| challenge.goal != Goal::Check || challenge.way != way);
    }

    /// That socket is closed: nothing is asked from it any more.
    pub fn forget_socket(&mut self, socket: SocketId) {
        self.0.retain(|challenge| challenge.way.socket != socket || socket < SocketId::FIRST_EXTRA);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn poll_timeout(&self, rtt: Option<Duration>) -> Option<Instant> {
        self.0.iter().map(|challenge| challenge.due(rtt)).min()
    }

    /// Those that are due, where the path in use takes `rtt`.
    pub fn handle_timeout(&mut self, now: Instant, rtt: Option<Duration>) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        self.0.retain_mut(|challenge| {
            if now < challenge.due(rtt) {
                return true;
            }
            if challenge.tries >= challenge.most_tries() {
                overdue.push(Overdue::GivenUp(*challenge));
                return false;
            }
            overdue.push(Overdue::Repeated(*challenge));
            challenge.tries += 1;
            challenge.sent = now;
            true
        });
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_have_a_cap() {
        let mut challenges = Challenges::default();
        for port in 0..100 {
            let way = Way { socket: SocketId::MAIN_V4, remote: ([203, 0, 113, 5], port).into() };
            challenges.begin(Instant::default(), way, Goal::Move(Method::Roamed), u64::from(port));
        }
        assert_eq!(challenges.0.len(), MAX_CHALLENGES);
    }
}
