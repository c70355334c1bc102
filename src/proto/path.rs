//! A peer's paths: which one is in use, how it is proved, and how its loss is noticed.
//!
//! A path is a local socket and a remote address. Three things bring one up: a probe of the peer's that arrives on it (it is
//! *heard*: payload may go back on it, for it came out of a session that was agreed a moment ago; whether the peer hears us there
//! it is asked, and if not, it is no path), an answer to a probe of ours (it is *proved*), or a WireGuard handshake that went over
//! it (proved). An address that shows up in any other authentic packet is challenged first.
//!
//! Nothing is sent to keep watch. The path is asked where something is amiss: payload that is not answered, a flow that stops
//! coming in, or silence longer than two keepalives.
//!
//! ```text
//! amiss ─► asked ─► asked again: doubted ─► asked a third time ─► no answer: suspect ─► asked on ─► lost
//! ```
//!
//! A doubted path has its member look after its own NAT; beside a suspect one a call is placed. It stays in use, and is as good
//! as ever once anything is heard on it again.

mod challenge;

use std::net::SocketAddr;
use std::time::Duration;

use super::message_control::CandidateKind;
use super::probe::Token;
use super::snapshot::Method;
use super::{Instant, SocketId};
pub use challenge::{Ask, Goal, PROOF_TRIES};
use challenge::{Challenges, Overdue, SUSPECT_TRIES};

/// How long payload may go unanswered before the path is asked: two round trips and some, and no less than a slow answer of
/// the peer's own takes …
const SOONEST_CHECK: Duration = Duration::from_millis(400);
const CHECK_MARGIN: Duration = Duration::from_millis(100);
/// … and no more often than this, whatever is amiss: a stream in one direction has no other answers.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A flow from the peer has stopped when nothing came for five times as long as its packets lie apart, within these bounds: a
/// ping each second is not to be asked about each second.
const FLOW_STOPS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(1200));
/// How long the peer may be silent before the path is asked: two keepalives and some.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a path that was left is still listened on: what is on its way there is not lost, and says nothing of where the peer
/// is. A round trip by satellite, and the choice of the new path repeated a few times.
const LINGER: Duration = Duration::from_secs(3);
/// Paths that were left, so sockets that stay open for them: a call proves one or two on its way to the best.
const MAX_LEFT: usize = 4;
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

/// What is to be done now, and what became of the path in use.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Due {
    pub asks: Vec<Ask>,
    pub news: Option<News>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// It did not answer once.
    Doubted,
    /// It did not answer three times.
    Suspect,
    Lost(Way),
}

/// Payload that comes from the peer.
#[derive(Clone, Copy, Debug)]
struct Flow {
    last: Instant,
    /// How far its packets lie apart, smoothed.
    gap: Duration,
}

impl Flow {
    fn stops(&self) -> Instant {
        self.last + (self.gap * 5).clamp(FLOW_STOPS.0, FLOW_STOPS.1)
    }
}

/// Ways that something became of a moment ago, the latest last, and until when that counts.
#[derive(Default, Debug)]
struct Recent(Vec<(Way, Instant)>);

impl Recent {
    fn note(&mut self, now: Instant, way: Way) {
        self.0.retain(|(noted, _)| *noted != way);
        if self.0.len() == MAX_LEFT {
            self.0.remove(0);
        }
        self.0.push((way, now + LINGER));
    }

    fn holds(&self, now: Instant, way: Way) -> bool {
        self.0.iter().any(|(noted, until)| *noted == way && now < *until)
    }
}

/// All of one peer's.
#[derive(Default, Debug)]
pub struct Paths {
    current: Option<Path>,
    last_heard: Instant,
    /// When the first payload was sent that nothing was heard after.
    unanswered_since: Option<Instant>,
    silence: Duration,
    /// Since the path was asked last.
    flow: Option<Flow>,
    checked: Option<Instant>,
    suspect: bool,
    /// Paths that were left for others, the latest last, and until when they are listened on.
    left: Recent,
    /// Ways that work and are no better than the path in use, the latest last, and until when they are not asked again.
    declined: Recent,
    /// Ways on which the peer was heard, and did not hear us.
    deaf: Recent,
    challenges: Challenges,
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
            self.left.0.retain(|(left, _)| *left != way);
            if let Some(path) = self.current {
                self.left.note(now, path.way);
            }
        }
        self.current = Some(Path { way, method, proved });
        self.last_heard = now;
        self.unanswered_since = None;
        self.flow = None;
        self.suspect = false;
    }

    /// The path in use works in both directions.
    pub fn prove(&mut self) {
        if let Some(path) = &mut self.current {
            path.proved = true;
        }
    }

    /// Whether `way` was left a moment ago, so that what comes there was sent before.
    pub fn was_left(&self, now: Instant, way: Way) -> bool {
        self.left.holds(now, way)
    }

    /// `way` works, and is not taken. Without this, each side's question about it would be the other's reason to ask back, a
    /// round trip after the other.
    pub fn decline(&mut self, now: Instant, way: Way) {
        self.declined.note(now, way);
    }

    /// Whether `way` was declined a moment ago.
    pub fn was_declined(&self, now: Instant, way: Way) -> bool {
        self.declined.holds(now, way)
    }

    /// Whether the peer was asked a moment ago whether it hears us on `way`, and did not.
    pub fn is_deaf(&self, now: Instant, way: Way) -> bool {
        self.deaf.holds(now, way)
    }

    /// Until when a socket is to stay open for what is on its way there.
    pub fn lingers(&self, socket: SocketId) -> Option<Instant> {
        self.left.0.iter().filter(|(way, _)| way.socket == socket).map(|(_, until)| *until).max()
    }

    /// Whether a path found by another method might be better than the one in use.
    pub fn can_improve(&self) -> bool {
        self.current.is_some_and(|path| rank(path.method) > 0)
    }

    /// Whether the path in use did not answer, and may be dead.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Whether the path in use works, as far as is known.
    pub fn is_proved(&self) -> bool {
        self.current.is_some_and(|path| path.proved) && !self.suspect
    }

    /// The path in use is to be asked, and another to be looked for meanwhile.
    pub fn suspect(&mut self) {
        self.suspect = self.current.is_some();
    }

    /// Whether a path found by `method` is better than the one in use. A nearer one is, another of the same kind is not: a
    /// path that works is not given up for one that only promises to.
    pub fn improves(&self, method: Method) -> bool {
        !self.is_proved() || self.current.is_none_or(|path| rank(method) < rank(path.method))
    }

    pub fn lose(&mut self) {
        self.current = None;
        self.flow = None;
        self.suspect = false;
        self.unanswered_since = None;
        self.challenges.clear();
    }

    /// The path in use was heard of, and never proved: it is none, unless it answers yet.
    pub fn retract(&mut self, now: Instant) -> Option<Way> {
        let path = self.current.take_if(|path| !path.proved)?;
        self.deaf.note(now, path.way);
        self.suspect = false;
        self.flow = None;
        self.unanswered_since = None;
        Some(path.way)
    }

    /// That socket is closed: nothing is asked from it any more.
    pub fn forget_socket(&mut self, socket: SocketId) {
        self.challenges.forget_socket(socket);
    }

    /// Payload went out, after nothing had since `before`.
    pub fn note_sent(&mut self, now: Instant, before: Option<Instant>) {
        if self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
            self.silence = before.map_or(Duration::ZERO, |before| now.since(before));
        }
    }

    /// How long nothing had been sent before the payload that is not answered.
    pub fn silence(&self) -> Duration {
        if self.unanswered_since.is_some() { self.silence } else { Duration::ZERO }
    }

    /// Something authentic came in by `way`.
    pub fn note_heard(&mut self, now: Instant, way: Way) {
        if self.is_current(way) {
            self.last_heard = now;
            self.unanswered_since = None;
            self.suspect = false;
            self.challenges.end_check(way);
        }
    }

    /// Payload came in by `way`.
    pub fn note_payload(&mut self, now: Instant, way: Way) {
        self.note_flow(now, way, 1);
    }

    /// So many packets of payload came in by `way` since the last one that was noted, the last of them at `now`.
    pub fn note_flow(&mut self, now: Instant, way: Way, packets: u64) {
        if !self.is_current(way) {
            return;
        }
        let longest = FLOW_STOPS.1;
        let Some(flow) = &mut self.flow else {
            self.flow = Some(Flow { last: now, gap: longest });
            return;
        };
        let apart = (now.since(flow.last) / u32::try_from(packets.max(1)).unwrap_or(u32::MAX)).min(longest);
        // After so many the gap of before counts for a hundredth.
        for _ in 0..packets.min(32) {
            flow.gap = (flow.gap * 7 + apart) / 8;
        }
        flow.last = now;
    }

    pub fn note_rtt(&mut self, rtt: Duration) {
        // RFC 6298's smoothing.
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
    }

    /// Begins to ask a way; nothing, where it is being asked already.
    pub fn challenge(&mut self, now: Instant, way: Way, goal: Goal, token: Token) -> Option<Ask> {
        self.challenges.begin(now, way, goal, token)
    }

    /// `way` is likelier to work than those that are being asked: it takes the place of the oldest of them, where there is no other.
    pub fn prefer(&mut self, way: Way) {
        if !self.is_proved() {
            self.challenges.prefer(way);
        }
    }

    /// An answer came by `way`: to what, and after how long.
    pub fn handle_answer(&mut self, now: Instant, way: Way, token: Token) -> Option<(Goal, Duration)> {
        let challenge = self.challenges.take_answered(way, token)?;
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
        if self.challenges.tell_of_path_in_use() {
            return None;
        }
        let patience = self.rtt.map_or(CHECK_EVERY, |rtt| (rtt * 2 + CHECK_MARGIN).max(SOONEST_CHECK));
        let unanswered = self.unanswered_since.map(|since| since + patience);
        let stopped = self.flow.map(|flow| flow.stops());
        let amiss = unanswered.into_iter().chain(stopped).min();
        let amiss = amiss.map(|due| self.checked.map_or(due, |at| due.max(at + CHECK_EVERY)));
        Some(amiss.map_or(self.last_heard + SILENCE, |due| due.min(self.last_heard + SILENCE)))
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.challenges.poll_timeout(self.rtt).into_iter().chain(self.check_due()).min()
    }

    /// What to ask now, and what becomes of the path in use.
    pub fn handle_timeout(&mut self, now: Instant, mut token: impl FnMut() -> Token) -> Due {
        let mut asks = Vec::new();
        if self.check_due().is_some_and(|due| now >= due)
            && let Some(path) = self.current
        {
            self.checked = Some(now);
            self.flow = None;
            asks.extend(self.challenge(now, path.way, Goal::Check, token()));
        }
        let mut news = None;
        let current = self.current.map(|path| path.way);
        for overdue in self.challenges.handle_timeout(now, self.rtt) {
            match overdue {
                Overdue::GivenUp(challenge) => {
                    if let Goal::Prove(..) = challenge.goal {
                        self.deaf.note(now, challenge.way);
                    }
                    if !challenge.is_only_asked() && current == Some(challenge.way) {
                        news = Some(News::Lost(challenge.way));
                    }
                }
                Overdue::Repeated(challenge) => {
                    if current == Some(challenge.way) && challenge.goal == Goal::Check {
                        match challenge.tries {
                            1 => news = news.or(Some(News::Doubted)),
                            SUSPECT_TRIES => news = Some(News::Suspect),
                            _ => {}
                        }
                    }
                    asks.push(challenge.ask());
                }
            }
        }
        self.suspect |= news == Some(News::Suspect);
        Due { asks, news }
    }
}

/// Nearer ones first.
fn rank(method: Method) -> u8 {
    match method {
        Method::Lan => 0,
        Method::Ipv6 => 1,
        Method::Endpoint | Method::PortMapping | Method::Punch | Method::Shotgun | Method::Roamed => 2,
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

    /// How often it was asked, and what became of it, when.
    fn run(paths: &mut Paths, until: Instant) -> (usize, Vec<(Instant, News)>) {
        let (mut asked, mut news) = (0, Vec::new());
        let mut token = 100;
        while let Some(due) = paths.poll_timeout().filter(|due| *due <= until) {
            let outcome = paths.handle_timeout(due, || {
                token += 1;
                token
            });
            asked += outcome.asks.len();
            news.extend(outcome.news.map(|news| (due, news)));
            if let Some(News::Lost(_)) = outcome.news {
                paths.lose();
            }
        }
        (asked, news)
    }

    const RTT: Duration = Duration::from_millis(100);

    /// A path in use since `now`, of which everything is known.
    fn in_use(now: Instant) -> Paths {
        let mut paths = Paths { watched: true, ..Paths::default() };
        paths.adopt(now, way(1), Method::Punch, true);
        paths.note_rtt(RTT);
        paths
    }

    #[test]
    fn a_better_question_takes_the_place_of_the_oldest_about_another_way() {
        let (now, mut paths) = (Instant::default(), Paths::default());
        let ask = |paths: &mut Paths, port| {
            paths.challenge(now, way(port), Goal::Move(Method::Shotgun), port.into()).is_some()
        };
        for port in 1..=8 {
            paths.prefer(way(port));
            assert!(ask(&mut paths, port));
        }
        assert!(!ask(&mut paths, 9));
        paths.prefer(way(3));
        assert!(!ask(&mut paths, 9), "it is being asked");
        paths.prefer(way(9));
        assert!(ask(&mut paths, 9));
        assert!(paths.challenge(now, way(10), Goal::Choose, 10).is_some());
        let answered = [1, 2, 3, 9].map(|port| paths.handle_answer(now, way(port), port.into()).is_some());
        assert_eq!(answered, [false, false, true, true]);
    }

    #[test]
    fn a_path_on_which_the_peer_is_heard_is_never_asked() {
        let mut now = Instant::default();
        let mut paths = in_use(now);
        for _ in 0..10 {
            now = now + Duration::from_secs(25);
            paths.note_heard(now, way(1));
            assert_eq!(run(&mut paths, now), (0, Vec::new()));
        }
    }

    #[test]
    fn payload_without_an_answer_makes_the_path_suspect_within_a_second_and_lost_within_four() {
        let now = Instant::default() + Duration::from_secs(9);
        let mut paths = in_use(now);
        paths.note_sent(now, None);
        let (_, news) = run(&mut paths, now + Duration::from_secs(4));
        let within = |ms: u64| now + Duration::from_millis(ms);
        assert!(matches!(news[..], [(_, News::Doubted), (at, News::Suspect), (_, News::Lost(_))] if at < within(1000)));
    }

    #[test]
    fn a_flow_that_stops_is_asked_about_once() {
        let mut now = Instant::default() + Duration::from_secs(9);
        let mut paths = in_use(now);
        for _ in 0..100 {
            now = now + Duration::from_millis(50);
            paths.note_heard(now, way(1));
            paths.note_payload(now, way(1));
            assert_eq!(run(&mut paths, now), (0, Vec::new()));
        }
        let due = paths.poll_timeout().expect("it watches");
        assert!(due <= now + Duration::from_millis(600), "it waits {:?}", due.since(now));
        let asks = paths.handle_timeout(due, || 7).asks;
        assert_eq!(asks.len(), 1);
        assert!(paths.handle_answer(due + RTT, way(1), 7).is_some());
        assert_eq!(run(&mut paths, due + Duration::from_secs(50)), (0, Vec::new()));
    }

    #[test]
    fn a_stream_that_nobody_answers_costs_one_probe_a_second() {
        let start = Instant::default() + Duration::from_secs(9);
        let mut paths = in_use(start);
        let mut asked = 0;
        for tick in 0..1000 {
            let now = start + Duration::from_millis(10) * tick;
            paths.note_sent(now, None);
            if paths.poll_timeout().is_some_and(|due| due <= now) {
                let due = paths.handle_timeout(now, || u64::from(tick));
                assert_eq!(due.news, None);
                asked += due.asks.len();
                for ask in due.asks {
                    paths.handle_answer(now + RTT, way(1), ask.token);
                }
            }
        }
        assert!((8..=10).contains(&asked), "{asked} in 10 s");
    }

    #[test]
    fn a_ping_a_second_is_not_asked_about() {
        let mut now = Instant::default() + Duration::from_secs(9);
        let mut paths = in_use(now);
        for _ in 0..20 {
            paths.note_sent(now, None);
            paths.note_heard(now + RTT, way(1));
            paths.note_payload(now + RTT, way(1));
            now = now + Duration::from_secs(1);
            assert_eq!(run(&mut paths, now), (0, Vec::new()));
        }
    }

    #[test]
    fn whatever_is_heard_on_a_suspect_path_clears_it() {
        let now = Instant::default() + Duration::from_secs(9);
        let mut paths = in_use(now);
        paths.note_sent(now, None);
        run(&mut paths, now + Duration::from_secs(1));
        assert!(paths.is_suspect() && paths.improves(Method::Punch));
        paths.note_heard(now + Duration::from_secs(1), way(1));
        assert!(!paths.is_suspect() && !paths.improves(Method::Punch));
        assert_eq!(run(&mut paths, now + Duration::from_secs(30)), (0, Vec::new()));
    }

    const RETRY_OF_HEARD: Duration = Duration::from_millis(125);

    /// A path on which the peer was heard in a call, and was asked.
    fn heard(now: Instant) -> Paths {
        let mut paths = Paths { watched: true, ..Paths::default() };
        paths.adopt(now, way(1), Method::Punch, false);
        assert!(paths.challenge(now, way(1), Goal::Prove(Method::Punch, RETRY_OF_HEARD), 1).is_some());
        paths
    }

    #[test]
    fn a_path_that_was_only_heard_is_asked_at_its_calls_pace_and_is_then_none_for_a_while() {
        let now = Instant::default() + Duration::from_secs(9);
        let mut paths = heard(now);
        paths.note_sent(now, None);
        let (asked, news) = run(&mut paths, now + Duration::from_secs(2));
        let lost = now + RETRY_OF_HEARD * PROOF_TRIES;
        assert_eq!((asked, news), (PROOF_TRIES as usize - 1, vec![(lost, News::Lost(way(1)))]));
        assert!(paths.current().is_none());
        assert!(paths.is_deaf(lost + LINGER / 2, way(1)) && !paths.is_deaf(lost + LINGER, way(1)));
        assert!(!paths.is_deaf(lost, way(2)));
    }

    #[test]
    fn a_path_that_was_given_up_unproved_comes_back_by_its_answer_and_a_proved_one_is_not_given_up() {
        let now = Instant::default() + Duration::from_secs(9);
        let mut paths = heard(now);
        assert_eq!(paths.retract(now), Some(way(1)));
        assert!(paths.current().is_none());
        let answer = paths.handle_answer(now + RTT, way(1), 1);
        assert_eq!(answer, Some((Goal::Prove(Method::Punch, RETRY_OF_HEARD), RTT)));
        assert_eq!(in_use(now).retract(now), None);
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
    fn a_path_that_was_left_is_listened_on_for_three_seconds() {
        let now = Instant::default();
        let mut paths = in_use(now);
        paths.adopt(now, way(2), Method::Lan, true);
        assert!(paths.was_left(now + LINGER / 2, way(1)) && !paths.was_left(now + LINGER, way(1)));
        assert!(!paths.was_left(now, way(2)));
        for port in 3..100 {
            paths.adopt(now, way(port), Method::Lan, true);
        }
        assert_eq!(paths.left.0.len(), MAX_LEFT);
    }
}
