//! Where a NAT that gives out its ports one after the other has got to: looks at it, the step, other users' rate, and where
//! it will be.
//!
//! ```text
//! looks    (time, public port, how many mappings of our own came before)       at most 64, oldest first
//! rate     λ = others' mappings between the first and the last look / time      ± √(λ / time)
//! ahead    at time t:  last port + step × (1 + own since + λ × (t − last))      ± √(λΔ + (Δ × error of λ)²)
//! ```
//!
//! Other users' mappings are taken for a Poisson process, as Klinec and Matyas measured it for windows of a second (SIN 2014).
//! Our own are counted exactly, so they are no noise. A counter that runs over the end of its range starts anew at the other
//! end; where both ends are is learned from the first time that it is seen to do so, and until then it is not foretold.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Instant;

/// One look at the counter: a mapping of ours that a server saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    pub at: Instant,
    pub port: u16,
    /// Our own mappings before this one, since any fixed moment.
    pub own: u64,
}

/// A rate and how sure it is, in mappings a second; the error is one standard deviation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    pub per_s: f64,
    pub error: f64,
}

/// A busy carrier's NAT was seen to make some hundreds a second (Klinec and Matyas: 48 to 265); the design goes to 3,000. What
/// looks like more than this is a jump: a restart, or a range that ended.
pub const LARGEST_RATE: f64 = 6000.0;
/// Looks kept: a call makes some twenty.
const MAX_LOOKS: usize = 64;
/// Older looks say nothing of today's traffic, and over longer a counter may have gone around unseen.
const OLDEST: Duration = Duration::from_secs(20);
/// Two looks closer than this are one burst; a rate over less is noise.
const SHORTEST: Duration = Duration::from_millis(15);
/// Looks this close left in one go: what lies between two of them is no traffic, but may be a mapping of an earlier run, whose
/// port says nothing of where the counter is.
const BURST: Duration = Duration::from_millis(2);
/// Steps that a look may be away from an end of the range: at 600 others a second, those of 25 ms.
const NEAR_STEPS: u32 = 16;
/// Ports that NATs give out lie here and above.
const LOWEST_PORT: u16 = 1024;
/// Between two mappings of one burst lie few of other users': at 6,000 a second, 12 in 2 ms.
pub const BURST_SLACK: u64 = 12;

/// What was seen of one NAT's counter.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    step: i32,
    looks: VecDeque<Look>,
    /// Lowest and highest port, once the counter was seen to start anew.
    range: Option<(u16, u16)>,
}

/// A counter's place: the port that it gave out last, its step, and its range as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub last: u16,
    pub step: i32,
    pub range: Option<(u16, u16)>,
}

/// Where the counter is expected to be: so many steps of others beyond the last port, ± one standard deviation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ahead {
    pub steps: f64,
    pub error: f64,
}

impl Ahead {
    /// After `time`, at `rate`.
    pub fn after(time: Duration, rate: Rate) -> Self {
        let seconds = time.as_secs_f64();
        let variance = rate.per_s * seconds + (seconds * rate.error).powi(2);
        Self { steps: rate.per_s * seconds, error: variance.sqrt() }
    }
}

impl Counter {
    /// Counts by `step` from now on. Another step is another NAT: what was seen is forgotten.
    pub fn set_step(&mut self, step: i32) {
        if self.step != step {
            *self = Self { step, ..Self::default() };
        }
    }

    pub fn step(&self) -> i32 {
        self.step
    }

    pub fn last(&self) -> Option<Look> {
        self.looks.back().copied()
    }

    /// Both ends of the range, once the counter was seen to start anew.
    pub fn range(&self) -> Option<(u16, u16)> {
        self.range
    }

    /// A look; they may come in any order, and those known already do no harm.
    pub fn handle_look(&mut self, look: Look) {
        if self.step == 0 || self.looks.iter().any(|known| known.own == look.own) {
            return;
        }
        let place = self.looks.partition_point(|known| (known.at, known.own) <= (look.at, look.own));
        self.looks.insert(place, look);
        let newest = self.looks.back().map_or(look.at, |look| look.at);
        while self.looks.len() > MAX_LOOKS || self.looks.front().is_some_and(|old| newest.since(old.at) > OLDEST) {
            self.looks.pop_front();
        }
        self.learn_range();
    }

    /// Where a look is not where the one before it lets it be, but the counter would be there had it started anew, it did.
    fn learn_range(&mut self) {
        let ports = || self.looks.iter().map(|look| look.port);
        let (Some(low), Some(high)) = (ports().min(), ports().max()) else { return };
        let turned = self.looks.iter().zip(self.looks.iter().skip(1)).any(|(a, b)| {
            // It went against its direction, by more than looks that were sent together may be out of order.
            let way = (i32::from(b.port) - i32::from(a.port)) * self.step.signum();
            way < -self.step.abs() * BURST_SLACK as i32
        });
        if turned {
            let (a, b) = self.range.unwrap_or((low, high));
            let (low, high) = (a.min(low), b.max(high));
            // Looks seldom hit the very ends; where both are near those of the whole range, that is what it is.
            let near = self.step.unsigned_abs().saturating_mul(NEAR_STEPS);
            let whole = u32::from(low.saturating_sub(LOWEST_PORT)) < near && u32::from(u16::MAX - high) < near;
            self.range = Some(if whole { (LOWEST_PORT, u16::MAX) } else { (low, high) });
        }
    }

    /// How many mappings of others came between two looks.
    fn others(&self, a: Look, b: Look) -> Option<f64> {
        let way = (f64::from(b.port) - f64::from(a.port)) / f64::from(self.step);
        let own = b.own.saturating_sub(a.own) as f64;
        let others = way - own;
        if others >= -0.5 {
            return Some(others.max(0.0));
        }
        // Around the end of the range once.
        let (low, high) = self.range?;
        let span = f64::from(i32::from(high) - i32::from(low)) / f64::from(self.step.abs()) + 1.0;
        Some(others + span).filter(|others| *others >= 0.0)
    }

    /// Whether one port is a whole number of steps from the other.
    pub fn is_on_step(&self, a: u16, b: u16) -> bool {
        is_on_step(a, b, self.step)
    }

    /// How fast others take ports. `None`: it was looked at once only, or what was seen is no traffic.
    pub fn rate(&self) -> Option<Rate> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        // Between two looks of one burst nothing is to be learned, and a jump between two others must not spoil the rest.
        let (mut others, mut time) = (0.0, Duration::ZERO);
        let mut from = *first;
        for look in self.looks.iter().skip(1) {
            if look.at.since(from.at) < BURST {
                from = *look;
                continue;
            }
            if look.at.since(from.at) < SHORTEST && look.own != last.own {
                continue;
            }
            let elapsed = look.at.since(from.at);
            if let Some(count) = self.others(from, *look)
                && count <= BURST_SLACK as f64 + LARGEST_RATE * elapsed.as_secs_f64()
            {
                others += count;
                time += elapsed;
            }
            from = *look;
        }
        if time < SHORTEST {
            return None;
        }
        let seconds = time.as_secs_f64();
        let per_s = others / seconds;
        // Where none was counted, a few may still come: as if one had.
        Some(Rate { per_s, error: others.max(1.0).sqrt() / seconds })
    }

    /// How many mappings after `from` the counter gives out `to`; negative where it lies behind.
    pub fn steps_between(&self, from: u16, to: u16) -> i64 {
        steps_between(from, to, self.step, self.range)
    }

    /// The port given out `steps` mappings after `port`, around the end of the range if need be.
    pub fn port_after(&self, port: u16, steps: i64) -> u16 {
        after(port, self.step, steps, self.range)
    }
}

/// The port `steps` mappings after `port`, for a counter of that step and range (all that NATs use where it is not known).
pub fn after(port: u16, step: i32, steps: i64, range: Option<(u16, u16)>) -> u16 {
    let stride = i64::from(step.unsigned_abs().max(1));
    // A counter that passes its end starts anew at the other end's first port, so in the same class of its step.
    let (low, around) = match range.filter(|(low, high)| (*low..=*high).contains(&port)) {
        Some((low, high)) => (low, (i64::from(high - low) / stride + 1) * stride),
        None => (LOWEST_PORT.min(port), i64::from(u16::MAX - LOWEST_PORT.min(port)) + 1),
    };
    let at = (i64::from(port - low) + steps * i64::from(step)).rem_euclid(around);
    u16::try_from(i64::from(low) + at).unwrap_or(u16::MAX)
}

/// How many mappings after `from` a counter of that step and range gives out `to`; negative where it lies behind.
pub fn steps_between(from: u16, to: u16, step: i32, range: Option<(u16, u16)>) -> i64 {
    if step == 0 {
        return 0;
    }
    let way = (i64::from(to) - i64::from(from)) / i64::from(step);
    if way < 0 { period(step, range).map_or(way, |period| way + period) } else { way }
}

/// Whether one port is a whole number of steps from the other.
pub fn is_on_step(a: u16, b: u16, step: i32) -> bool {
    u32::from(a.abs_diff(b)).is_multiple_of(step.unsigned_abs().max(1))
}

/// After how many mappings a counter gives out the same port again, where that is known.
pub fn period(step: i32, range: Option<(u16, u16)>) -> Option<i64> {
    let stride = i64::from(step.unsigned_abs().max(1));
    match range {
        Some((low, high)) => Some(i64::from(high - low) / stride + 1),
        // A large step goes around within a second or so: it is foretold as if its range were the whole.
        None if stride >= LARGE_STEP => Some((i64::from(u16::MAX - LOWEST_PORT) + 1) / stride),
        None => None,
    }
}

/// With this step the whole range is gone through in 4,032 mappings.
const LARGE_STEP: i64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(1000 + ms)
    }

    fn counter(step: i32, looks: &[(u64, u16, u64)]) -> Counter {
        let mut counter = Counter::default();
        counter.set_step(step);
        for (ms, port, own) in looks {
            counter.handle_look(Look { at: at(*ms), port: *port, own: *own });
        }
        counter
    }

    #[test]
    fn others_are_what_moved_the_counter_besides_us() {
        let rate = counter(2, &[(0, 7000, 0), (500, 7014, 2)]).rate().expect("is known");
        assert_eq!(rate.per_s, 10.0);
        assert!((rate.error - 5f64.sqrt() / 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_mapping_of_an_earlier_run_is_no_traffic() {
        let rate = counter(1, &[(0, 7000, 0), (0, 7100, 1), (40, 7101, 2), (80, 7102, 3)]).rate().expect("is known");
        assert_eq!(rate.per_s, 0.0);
    }

    #[test]
    fn one_burst_tells_no_rate() {
        assert_eq!(counter(1, &[(0, 7000, 0), (0, 7001, 1), (1, 7002, 2)]).rate(), None);
    }

    #[test]
    fn a_restart_is_no_traffic() {
        let rate =
            counter(1, &[(0, 7000, 0), (100, 7031, 1), (200, 52000, 2), (300, 52031, 3)]).rate().expect("is known");
        assert_eq!(rate.per_s, 300.0);
    }

    #[test]
    fn a_range_that_ends_is_learned_and_gone_around() {
        let mut counter = counter(1, &[(0, 30_900, 0), (100, 30_991, 1)]);
        assert_eq!(counter.range(), None);
        counter.handle_look(Look { at: at(200), port: 30_001, own: 2 });
        counter.handle_look(Look { at: at(300), port: 30_092, own: 3 });
        assert_eq!(counter.range(), Some((30_001, 30_991)));
        assert_eq!(counter.port_after(30_991, 1), 30_001);
        let rate = counter.rate().expect("is known").per_s;
        assert!((rate - 633.0).abs() < 300.0, "{rate}");
    }

    #[test]
    fn a_range_of_large_steps_goes_around_to_its_first_port() {
        assert_eq!(after(59_952, 256, 1, Some((30_000, 59_952))), 30_000);
        assert_eq!(after(30_000, -256, 1, Some((30_000, 59_952))), 59_952);
    }

    proptest! {
        #[test]
        fn looks_may_come_in_any_order(order in Just(vec![0usize, 1, 2, 3, 4]).prop_shuffle()) {
            let looks = [(0, 7000, 0), (30, 7010, 1), (60, 7019, 2), (90, 7033, 3), (120, 7040, 4)];
            let shuffled: Vec<_> = order.iter().map(|i| looks[*i]).collect();
            prop_assert_eq!(counter(1, &shuffled).rate(), counter(1, &looks).rate());
            prop_assert_eq!(counter(1, &shuffled).last(), counter(1, &looks).last());
        }

        #[test]
        fn steps_there_and_back_end_where_they_began(port in 1024u16.., step in -256i32..=256, steps in 0i64..5000) {
            prop_assume!(step != 0);
            prop_assert_eq!(after(after(port, step, steps, None), -step, steps, None), port);
        }
    }
}
