use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::proto::SocketId;

const RTT: Duration = Duration::from_millis(40);
/// With it, 1,500 bytes are the longest IPv4 packet.
const INNER: u16 = 1440;

fn way(address: &str) -> Way {
    let remote: SocketAddr = address.parse().expect("an address");
    Way { socket: SocketId::main_for(&remote), remote }
}

/// A path that swallows what is longer than `limit`.
struct Wire {
    mtu: Mtu,
    now: Instant,
    limit: u16,
    /// Whether it swallows this sounding all the same.
    loses: Box<dyn FnMut(Sounding) -> bool>,
    way: Way,
    /// What is known of the round trip.
    rtt: Option<Duration>,
    tokens: Token,
    sent: Vec<u16>,
    answers: VecDeque<(Instant, Token)>,
}

impl Wire {
    fn new(address: &str, inner: u16, limit: u16) -> Self {
        let (way, now) = (way(address), Instant::default() + Duration::from_secs(9));
        let mut mtu = Mtu::new(inner);
        mtu.begin(now, way);
        let loses = Box::new(|_| false);
        Self { mtu, now, limit, loses, way, rtt: Some(RTT), tokens: 0, sent: Vec::new(), answers: VecDeque::new() }
    }

    fn v4(limit: u16) -> Self {
        Self::new("203.0.113.5:4275", INNER, limit)
    }

    /// Lets everything happen that does within `time`.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let answer = self.answers.front().map(|(at, _)| *at);
            let due = self.mtu.poll_timeout().map(|due| due.max(self.now));
            let Some(next) = answer.into_iter().chain(due).min().filter(|next| *next <= end) else { break };
            self.now = next;
            if answer == Some(next)
                && let Some((_, token)) = self.answers.pop_front()
            {
                assert!(self.mtu.handle_answer(next, self.way, token) || self.mtu.asked.len() < MAX_ASKED);
                continue;
            }
            let tokens = &mut self.tokens;
            let soundings = self.mtu.handle_timeout(next, self.rtt, || {
                *tokens += 1;
                *tokens
            });
            for sounding in soundings {
                self.sent.push(sounding.len);
                if sounding.len <= self.limit && !(self.loses)(sounding) {
                    self.answers.push_back((next + RTT, sounding.token));
                }
            }
        }
        self.now = end;
    }

    /// The same, while long packets are sent.
    fn run_in_use(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.mtu.note_sent(1400);
            self.run(Duration::from_millis(50));
        }
    }

    fn found(&self) -> Option<u16> {
        match self.mtu.phase {
            Phase::Complete { len, .. } => Some(len),
            _ => None,
        }
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_path_that_carries_all_is_known_after_one_round_trip_and_two_soundings() {
    let mut wire = Wire::v4(1500);
    wire.run(RTT);
    assert_eq!((wire.found(), wire.mtu.inner_limit(), &wire.sent[..]), (Some(1500), INNER, &[576, 1500][..]));
    wire.run(secs(3600));
    assert_eq!(wire.sent.len(), 2, "an idle path costs nothing more");
}

#[test]
fn every_length_is_found_to_the_byte_within_a_second_and_a_half() {
    for limit in 576..=1500 {
        let mut wire = Wire::v4(limit);
        wire.run(Duration::from_millis(1500));
        assert_eq!(wire.found(), Some(limit));
        assert_eq!(wire.mtu.inner_limit(), limit - 60);
        assert!(wire.sent.len() <= 60, "{limit}: {} soundings", wire.sent.len());
    }
    for limit in 1280..=1500 {
        let mut wire = Wire::new("[2001:db8::5]:4275", 1420, limit);
        wire.run(Duration::from_millis(1500));
        assert_eq!((wire.found(), wire.mtu.inner_limit()), (Some(limit), limit - 80));
    }
}

#[test]
fn the_longest_that_the_interface_gives_is_the_longest_that_is_looked_for() {
    let mut wire = Wire::new("203.0.113.5:4275", 1420, 1500);
    wire.run(secs(1));
    assert_eq!((wire.found(), wire.mtu.is_narrow()), (Some(1480), false));
    let mut wire = Wire::new("203.0.113.5:4275", 9000, 9000);
    wire.run(secs(2));
    assert_eq!((wire.found(), wire.mtu.inner_limit()), (Some(9000), 8940));
    let mut wire = Wire::new("[2001:db8::5]:4275", 1200, 1280);
    wire.run(secs(1));
    assert_eq!((wire.sent.len(), wire.mtu.inner_limit()), (0, 1200), "any IPv6 path carries that");
}

#[test]
fn a_narrow_path_is_known_to_be_one_after_two_rounds() {
    for (limit, believed) in [(1420, 1420), (1280, 1280), (1124, 1124), (576, 576), (1450, 1440)] {
        let mut wire = Wire::v4(limit);
        wire.run(SHORTEST_ROUND);
        assert_eq!(wire.mtu.inner_limit(), INNER, "one loss is no evidence");
        wire.run(SHORTEST_ROUND);
        assert_eq!(wire.mtu.inner_limit(), believed - 60);
    }
}

/// The called member settles on a path before it knows how long a round trip takes.
#[test]
fn the_first_answer_tells_how_long_a_round_is() {
    let mut wire = Wire { rtt: None, ..Wire::v4(1420) };
    wire.run(SHORTEST_ROUND * 2);
    assert_eq!((wire.mtu.measured(), wire.mtu.inner_limit()), (Some(1420), 1360));
    let mut wire = Wire { rtt: None, ..Wire::v4(0) };
    wire.run(UNTIMED_ROUND * 2);
    assert_eq!(wire.sent.len(), 6, "without an answer each round is as long as it must be");
}

#[test]
fn a_path_that_answers_nothing_changes_nothing_and_is_asked_ever_more_seldom() {
    let mut wire = Wire::v4(0);
    wire.run(secs(3600));
    assert_eq!((wire.sent.len(), wire.mtu.inner_limit()), (6, INNER));
    wire.run_in_use(secs(3600));
    assert!((30..=60).contains(&wire.sent.len()), "{} in an hour of use", wire.sent.len());
    wire.limit = 1280;
    wire.run_in_use(LAST_RAISE + secs(2));
    assert_eq!(wire.found(), Some(1280));
}

#[test]
fn a_path_that_becomes_narrower_in_use_is_found_out_within_seconds() {
    let mut wire = Wire::v4(1500);
    wire.run(secs(1));
    wire.limit = 1280;
    wire.run(secs(600));
    assert_eq!(wire.mtu.inner_limit(), INNER, "nobody uses it");
    wire.run_in_use(CONFIRM_EVERY + secs(1));
    assert_eq!(wire.mtu.inner_limit(), 1220);
    wire.run(secs(1));
    assert_eq!(wire.found(), Some(1280));
}

#[test]
fn where_payload_goes_unanswered_it_is_asked_at_once() {
    let mut wire = Wire::v4(1500);
    wire.run(secs(1));
    wire.limit = 576;
    wire.mtu.note_sent(1400);
    wire.mtu.note_amiss(wire.now);
    wire.run(secs(1));
    assert_eq!(wire.mtu.inner_limit(), 516);
}

#[test]
fn a_path_in_use_rises_again_after_half_a_minute_or_ever_later() {
    let mut wire = Wire::v4(1280);
    wire.run_in_use(secs(20));
    wire.limit = 1400;
    wire.run_in_use(FIRST_RAISE);
    assert_eq!(wire.found(), Some(1400));
    let before = wire.sent.len();
    wire.run_in_use(secs(3600));
    // 720 to confirm; each time that it is tried in vain, three rounds of three.
    let raising = wire.sent.len() - before - 720;
    assert!((50..110).contains(&raising), "{raising}");
    wire.limit = 1500;
    wire.run_in_use(LAST_RAISE + secs(10));
    assert_eq!((wire.found(), wire.mtu.inner_limit()), (Some(1500), INNER));
}

#[test]
fn an_outage_says_nothing_about_lengths() {
    let mut wire = Wire::v4(1500);
    wire.run(secs(1));
    for cut in [100, 300, 700, 2000, 9000] {
        let limit = std::mem::take(&mut wire.limit);
        wire.run_in_use(Duration::from_millis(cut));
        wire.limit = limit;
        for _ in 0..100 {
            wire.run_in_use(Duration::from_millis(500));
            assert_eq!(wire.mtu.inner_limit(), INNER);
        }
        assert_eq!(wire.found(), Some(1500), "after {cut} ms");
    }
}

#[test]
fn another_path_begins_with_what_the_last_one_carried() {
    let mut wire = Wire::v4(1280);
    wire.run(secs(2));
    wire.way = way("198.51.100.5:4275");
    wire.mtu.begin(wire.now, wire.way);
    assert_eq!(wire.mtu.inner_limit(), 1220);
    wire.limit = 1500;
    wire.run(RTT);
    assert_eq!(wire.mtu.inner_limit(), INNER);
}

#[test]
fn an_answer_from_elsewhere_or_to_nothing_is_none() {
    let mut mtu = Mtu::new(1420);
    let (here, now) = (way("203.0.113.5:4275"), Instant::default());
    mtu.begin(now, here);
    assert_eq!(mtu.handle_timeout(now, None, || 7).len(), 2);
    assert!(!mtu.handle_answer(now, way("203.0.113.5:4276"), 7));
    assert!(!mtu.handle_answer(now, here, 8));
    assert!(mtu.handle_answer(now, here, 7));
    mtu.stop();
    assert!(!mtu.handle_answer(now, here, 7));
}

#[test]
fn another_mtu_of_the_interface_is_measured_anew() {
    let mut wire = Wire::v4(1280);
    wire.run(secs(2));
    wire.mtu.set_most(INNER);
    assert_eq!(wire.mtu.inner_limit(), 1220, "it is the same");
    wire.mtu.set_most(1300);
    assert_eq!((wire.mtu.inner_limit(), wire.mtu.is_on(wire.way)), (1300, false));
}

proptest! {
    /// No length is lost more than twice in a row, nor so in three rounds.
    #[test]
    fn the_search_ends_at_exactly_the_paths_length_with_loss(limit in 576u16..=1500, dice in prop::collection::vec(0u8..100, 256)) {
        let mut wire = Wire::v4(limit);
        let mut lost = BTreeMap::<u16, u8>::new();
        let mut turn = 0;
        wire.loses = Box::new(move |sounding| {
            turn += 1;
            let lost = lost.entry(sounding.len).or_default();
            let loses = dice[turn % dice.len()] < 30 && *lost < TRIES - 1;
            *lost = if loses { *lost + 1 } else { 0 };
            loses
        });
        wire.run(secs(5));
        prop_assert_eq!(wire.found().or(wire.mtu.measured()), Some(limit));
    }

    #[test]
    fn it_never_believes_in_more_than_passes_once_it_was_measured(
        steps in prop::collection::vec((500u16..1600, 0u64..20_000, any::<bool>()), 1..12),
    ) {
        let mut wire = Wire::v4(1500);
        for (limit, ms, in_use) in steps {
            wire.limit = limit;
            let time = Duration::from_millis(ms);
            if in_use { wire.run_in_use(time) } else { wire.run(time) }
            prop_assert!(wire.mtu.inner_limit() <= INNER && wire.mtu.asked.len() <= MAX_ASKED);
        }
        wire.limit = 1300;
        wire.run_in_use(LAST_RAISE + secs(10));
        prop_assert_eq!(wire.found(), Some(1300));
    }
}
