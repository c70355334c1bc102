//! A peer's paths: which one is in use, how it is proved, and how its loss is noticed.
//!
//! A path is a local socket and a remote address. Three things bring one up: a probe of the peer's that arrives on it (it is
//! *heard*: payload may go back on it, for it came out of a session that was agreed a moment ago), an answer to a probe of ours
//! (it is *proved*), or a WireGuard handshake that went over it (proved). An address that shows up in any other authentic packet
//! is challenged first.
//!
//! Nothing is sent to keep watch. Only when something is amiss, payload that is not answered, or silence longer than two
//! keepalives, is the path asked; and only when it does not answer four times is it lost.

use std::net::SocketAddr;
use std::time::Duration;

use super::message_control::CandidateKind;
use super::probe::Token;
use super::snapshot::Method;
use super::{Instant, SocketId};

/// How long payload may go unanswered before the path is asked. Longer than any round trip; much shorter than what a user
/// takes for a break-down.
const UNANSWERED: Duration = Duration::from_secs(2);
/// How long the peer may be silent before the path is asked: two keepalives and some.
const SILENCE: Duration = Duration::from_secs(60);
/// A challenge is repeated after this long …
const RETRY: Duration = Duration::from_millis(400);
/// … so many times in all: with 5 % loss each way all are lost once in 10,000.
const TRIES: u32 = 4;
/// Challenges at once: one for the path in use, some for addresses that showed up. More are dropped.
const MAX_CHALLENGES: usize = 8;

/// A local socket and a remote address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    pub socket: SocketId,
    pub remote: SocketAddr,
}

/// The path in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    pub way: Way,
    pub method: Method,
    pub proved: bool,
}

/// Why a way is challenged, so what becomes of it when it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// The path in use: does it still work?
    Check,
    /// Another way, to be used if it works.
    Move(Method),
    /// The caller's choice, to be told to the called member.
    Choose,
    /// The caller's choice, from an address that its call did not name: followed if it works.
    Follow(Method),
    /// Does the peer speak the DUDP family at all? Asked once.
    Greet,
    /// A user wants to know how long it takes. Asked once.
    Ping(u64),
}

#[derive(Clone, Copy, Debug)]
struct Challenge {
    token: Token,
    way: Way,
    goal: Goal,
    sent: Instant,
    tries: u32,
}

impl Challenge {
    /// When it is repeated or given up. A ping is asked once, and may take longer than a repetition would wait: satellites do.
    fn due(&self) -> Instant {
        self.sent + if self.is_asked_once() { RETRY * 5 } else { RETRY }
    }

    fn is_asked_once(&self) -> bool {
        matches!(self.goal, Goal::Ping(_) | Goal::Greet)
    }
}

/// A probe to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    pub way: Way,
    pub token: Token,
    pub chosen: bool,
}

/// All of one peer's.
#[derive(Default, Debug)]
pub struct Paths {
    current: Option<Path>,
    last_heard: Instant,
    /// When the first payload was sent that nothing was heard after.
    unanswered_since: Option<Instant>,
    challenges: Vec<Challenge>,
    rtt: Option<Duration>,
    /// Whether the peer answers probes. Whether stock WireGuard is still there, WireGuard's own timers tell.
    watched: bool,
}

impl Paths {
    pub fn current(&self) -> Option<Path> {
        self.current
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub fn is_current(&self, way: Way) -> bool {
        self.current.is_some_and(|path| path.way == way)
    }

    /// The peer answers probes: from now on its silence is asked about.
    pub fn watch(&mut self) {
        self.watched = true;
    }

    /// Takes `way` into use.
    pub fn adopt(&mut self, now: Instant, way: Way, method: Method, proved: bool) {
        if !self.is_current(way) {
            self.rtt = None;
        }
        self.current = Some(Path { way, method, proved });
        self.last_heard = now;
        self.unanswered_since = None;
    }

    /// Whether a path found by `method` is better than the one in use. A nearer one is, another of the same kind is not: a
    /// path that works is not given up for one that only promises to.
    pub fn improves(&self, method: Method) -> bool {
        let rank = |method| match method {
            Method::Lan => 0,
            Method::Ipv6 => 1,
            Method::Endpoint | Method::PortMapping | Method::Punch | Method::Shotgun | Method::Roamed => 2,
        };
        self.current.is_none_or(|path| !path.proved || rank(method) < rank(path.method))
    }

    pub fn lose(&mut self) {
        self.current = None;
        self.unanswered_since = None;
        self.challenges.clear();
    }

    /// That socket is closed: nothing is asked from it any more.
    pub fn forget_socket(&mut self, socket: SocketId) {
        self.challenges.retain(|challenge| challenge.way.socket != socket || socket < SocketId::FIRST_EXTRA);
    }

    /// Payload went out.
    pub fn note_sent(&mut self, now: Instant) {
        self.unanswered_since.get_or_insert(now);
    }

    /// Something authentic came in by `way`.
    pub fn note_heard(&mut self, now: Instant, way: Way) {
        if self.is_current(way) {
            self.last_heard = now;
            self.unanswered_since = None;
        }
    }

    pub fn note_rtt(&mut self, rtt: Duration) {
        // RFC 6298's smoothing.
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
    }

    /// Begins to ask a way; nothing, where it is being asked already.
    pub fn challenge(&mut self, now: Instant, way: Way, goal: Goal, token: Token) -> Option<Ask> {
        let same = |challenge: &Challenge| challenge.way == way && challenge.goal == goal;
        if self.challenges.iter().any(same) || self.challenges.len() >= MAX_CHALLENGES {
            return None;
        }
        self.challenges.push(Challenge { token, way, goal, sent: now, tries: 1 });
        Some(Ask { way, token, chosen: goal == Goal::Choose })
    }

    /// An answer came by `way`: to what, and after how long.
    pub fn handle_answer(&mut self, now: Instant, way: Way, token: Token) -> Option<(Goal, Duration)> {
        let at = self.challenges.iter().position(|challenge| challenge.token == token && challenge.way == way)?;
        let challenge = self.challenges.swap_remove(at);
        if let Some(path) = self.current.as_mut().filter(|path| path.way == way) {
            path.proved = true;
        }
        self.note_heard(now, way);
        let rtt = now.since(challenge.sent);
        if self.is_current(way) && challenge.tries == 1 {
            self.note_rtt(rtt);
        }
        Some((challenge.goal, rtt))
    }

    /// When the path in use is to be asked.
    fn check_due(&self) -> Option<Instant> {
        self.current.filter(|_| self.watched)?;
        if self.challenges.iter().any(|challenge| matches!(challenge.goal, Goal::Check | Goal::Choose)) {
            return None;
        }
        let unanswered = self.unanswered_since.map(|since| since + UNANSWERED);
        Some(unanswered.map_or(self.last_heard + SILENCE, |due| due.min(self.last_heard + SILENCE)))
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let challenges = self.challenges.iter().map(Challenge::due);
        challenges.chain(self.check_due()).min()
    }

    /// What to ask now. `Err`: the path in use did not answer, and is lost.
    pub fn handle_timeout(&mut self, now: Instant, mut token: impl FnMut() -> Token) -> Result<Vec<Ask>, Way> {
        let mut asks = Vec::new();
        if self.check_due().is_some_and(|due| now >= due)
            && let Some(path) = self.current
        {
            asks.extend(self.challenge(now, path.way, Goal::Check, token()));
            if asks.is_empty() {
                // All places are taken by other addresses: they are less important.
                self.challenges.pop();
                asks.extend(self.challenge(now, path.way, Goal::Check, token()));
            }
        }
        let mut lost = None;
        let current = self.current.map(|path| path.way);
        self.challenges.retain_mut(|challenge| {
            if now < challenge.due() {
                return true;
            }
            if challenge.is_asked_once() || challenge.tries >= TRIES {
                if !challenge.is_asked_once() && current == Some(challenge.way) {
                    lost = Some(challenge.way);
                }
                return false;
            }
            challenge.tries += 1;
            challenge.sent = now;
            asks.push(Ask { way: challenge.way, token: challenge.token, chosen: challenge.goal == Goal::Choose });
            true
        });
        match lost {
            Some(way) => Err(way),
            None => Ok(asks),
        }
    }
}

/// How a path was found, from what is known of its remote address.
pub fn method_of(via: Option<CandidateKind>) -> Option<Method> {
    via.map(|kind| match kind {
        CandidateKind::Host => Method::Lan,
        CandidateKind::Ipv6 => Method::Ipv6,
        CandidateKind::Mapped => Method::PortMapping,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(port: u16) -> Way {
        Way { socket: SocketId::MAIN_V4, remote: SocketAddr::new("203.0.113.5".parse().expect("address"), port) }
    }

    fn run(paths: &mut Paths, until: Instant) -> (usize, Option<Way>) {
        let mut asked = 0;
        let mut token = 100;
        while let Some(due) = paths.poll_timeout().filter(|due| *due <= until) {
            let outcome = paths.handle_timeout(due, || {
                token += 1;
                token
            });
            match outcome {
                Ok(asks) => asked += asks.len(),
                Err(way) => return (asked, Some(way)),
            }
        }
        (asked, None)
    }

    #[test]
    fn a_path_on_which_the_peer_is_heard_is_never_asked() {
        let mut paths = Paths { watched: true, ..Paths::default() };
        let mut now = Instant::default();
        paths.adopt(now, way(1), Method::Punch, true);
        for _ in 0..10 {
            now = now + Duration::from_secs(25);
            paths.note_heard(now, way(1));
            assert_eq!(run(&mut paths, now), (0, None));
        }
    }

    #[test]
    fn payload_without_an_answer_makes_the_path_be_asked_and_lost_within_four_seconds() {
        let mut paths = Paths { watched: true, ..Paths::default() };
        let now = Instant::default() + Duration::from_secs(9);
        paths.adopt(now, way(1), Method::Punch, true);
        paths.note_sent(now);
        assert_eq!(run(&mut paths, now + Duration::from_secs(4)), (4, Some(way(1))));
    }

    #[test]
    fn an_answer_counts_only_for_the_way_that_was_asked() {
        let mut paths = Paths { watched: true, ..Paths::default() };
        let now = Instant::default();
        paths.adopt(now, way(1), Method::Punch, false);
        assert!(paths.challenge(now, way(2), Goal::Move(Method::Roamed), 7).is_some());
        assert_eq!(paths.handle_answer(now, way(3), 7), None);
        assert_eq!(paths.handle_answer(now, way(2), 8), None);
        let later = now + Duration::from_millis(30);
        assert_eq!(
            paths.handle_answer(later, way(2), 7),
            Some((Goal::Move(Method::Roamed), Duration::from_millis(30)))
        );
    }

    #[test]
    fn a_nearer_path_improves_a_proved_one_and_another_of_its_kind_does_not() {
        let mut paths = Paths { watched: true, ..Paths::default() };
        assert!(paths.improves(Method::Shotgun));
        paths.adopt(Instant::default(), way(1), Method::Shotgun, true);
        assert!(!paths.improves(Method::Punch));
        assert!(paths.improves(Method::Lan));
    }

    #[test]
    fn challenges_have_a_cap() {
        let mut paths = Paths { watched: true, ..Paths::default() };
        for port in 0..100 {
            paths.challenge(Instant::default(), way(port), Goal::Move(Method::Roamed), u64::from(port));
        }
        assert_eq!(paths.challenges.len(), MAX_CHALLENGES);
    }
}
