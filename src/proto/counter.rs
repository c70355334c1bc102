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
//! Our own are counted exactly, so they are no noise.
//!
//! A counter that runs over the end of its range goes on at the other end. Where both ends are is learned from the first time that it
//! is seen to do so; until then it is foretold for large steps alone, as if its range were the whole.
//!
//! ```text
//! small steps    the lowest and the highest port that were seen
//! large steps    one lap takes us from port a to port b, and m mappings:   span = m × step − (b − a)
//!                b − a modulo the step is exact, and so is the span's; m is known to a few steps by λ
//! ```
//!
//! A step of 256 goes around within 252 mappings or fewer, so this is no rare case. Ports are in *classes*, modulo the step. Where the
//! step divides the span, a counter keeps its class, and meets ports that it gave out a lap ago. Some NATs step aside by one then,
//! and so change to the next class; others take the next of the same class, and kernels that look at whole flows give such a port once
//! more ([`Aside`]). A counter that starts anew at its range's first port comes to that port's class with its first lap, and keeps it.

use std::collections::{BTreeSet, VecDeque};
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
/// Ports of sweeps kept: a call's.
const MAX_SWEPT: usize = 768;
/// Older looks say nothing of today's traffic, and over longer a counter may have gone around unseen.
const OLDEST: Duration = Duration::from_secs(20);
/// Two looks closer than this are one burst; a rate over less is noise.
const SHORTEST: Duration = Duration::from_millis(15);
/// Looks this close left in one go: what lies between two of them is no traffic, but may be a mapping of an earlier run, whose
/// port says nothing of where the counter is.
pub const BURST: Duration = Duration::from_millis(2);
/// Steps that a look may be away from an end of the range: at 600 others a second, those of 25 ms.
const NEAR_STEPS: u32 = 16;
/// Ranges that NATs and systems give ports out from: all but the privileged, RFC 6335's dynamic ones, Linux's, and those that some
/// vendors write into their manuals.
const USUAL_RANGES: [(u16, u16); 6] = [
    (LOWEST_PORT, u16::MAX),
    (49_152, u16::MAX),
    (32_768, 60_999),
    (32_768, u16::MAX),
    (10_000, u16::MAX),
    (5000, u16::MAX),
];
/// Standard deviations that a lap may be off from what is expected.
const SURE_LAP: f64 = 3.0;
/// Looks further apart than this tell no lap: it may have been two.
const LONGEST_LAP: Duration = Duration::from_millis(100);
/// By so much a class is changed by stepping aside, between two looks.
const MOST_ASIDE: i64 = 2;
/// Ports that NATs give out lie here and above.
const LOWEST_PORT: u16 = 1024;
/// Between two mappings of one burst lie few of other users': at 6,000 a second, 12 in 2 ms.
pub const BURST_SLACK: u64 = 12;

/// What a counter does where the port whose turn it is is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Aside {
    #[default]
    Unknown,
    /// Takes the next port, and goes on from there.
    Steps,
    /// Gives it once more.
    Shares,
}

/// What was seen of one NAT's counter.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    step: i32,
    looks: VecDeque<Look>,
    /// Lowest and highest port, once the counter was seen to start anew.
    range: Option<(u16, u16)>,
    aside: Aside,
    /// Ports that our sweeps were given, most likely.
    swept: VecDeque<u16>,
}

/// A counter's place: the port that it gave out last, and how it goes on from there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Course {
    pub last: u16,
    pub step: i32,
    pub range: Option<(u16, u16)>,
    pub aside: Aside,
    /// Ports that we have at the NAT: a counter of large steps soon meets them again.
    pub own: BTreeSet<u16>,
}

impl Course {
    /// The ports that mappings of ours are given one after the other, the first of them `steps` after the last port, where the NAT
    /// does with ports in use as `aside` says.
    pub fn ports(&self, steps: i64, aside: Aside) -> impl Iterator<Item = u16> + '_ {
        let mut next = after(self.last, self.step, steps, self.range);
        let aside = if aside == Aside::Steps { self.step.signum() } else { 0 };
        std::iter::from_fn(move || {
            // Where more are in use side by side, it goes on by one.
            for _ in 0..MOST_ASIDE {
                if aside != 0 && self.own.contains(&next) {
                    next = after(next, aside, 1, self.range);
                }
            }
            let given = next;
            next = after(given, self.step, 1, self.range);
            Some(given)
        })
    }
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

    pub fn aside(&self) -> Aside {
        self.aside
    }

    /// Ports that we have at the NAT, as far as is known.
    pub fn own_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.looks.iter().map(|look| look.port).chain(self.swept.iter().copied())
    }

    /// We made mappings that nobody shows us, most likely on these ports.
    pub fn note_swept(&mut self, ports: impl Iterator<Item = u16>) {
        self.swept.extend(ports);
        self.swept.drain(..self.swept.len().saturating_sub(MAX_SWEPT));
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
        if i64::from(self.step.unsigned_abs()) >= LARGE_STEP {
            self.learn_aside();
            self.range = self.lap(low, high).or(self.range.filter(|(a, b)| (*a..=*b).contains(&low) && high <= *b));
            return;
        }
        if self.gaps().any(|(a, b)| self.turns(a, b)) {
            let (a, b) = self.range.unwrap_or((low, high));
            let (low, high) = (a.min(low), b.max(high));
            // Looks seldom hit the very ends; where both are near those of the whole range, that is what it is.
            let near = self.step.unsigned_abs().saturating_mul(NEAR_STEPS);
            let whole = u32::from(low.saturating_sub(LOWEST_PORT)) < near && u32::from(u16::MAX - high) < near;
            self.range = Some(if whole { (LOWEST_PORT, u16::MAX) } else { (low, high) });
        }
    }

    fn gaps(&self) -> impl Iterator<Item = (Look, Look)> + '_ {
        self.looks.iter().copied().zip(self.looks.iter().copied().skip(1))
    }

    /// How far it went, along its direction.
    fn way(&self, a: Look, b: Look) -> i64 {
        (i64::from(b.port) - i64::from(a.port)) * i64::from(self.step.signum())
    }

    /// Whether it went against its direction, by more than looks that were sent together may be out of order.
    fn turns(&self, a: Look, b: Look) -> bool {
        self.way(a, b) < -i64::from(self.step.unsigned_abs()) * BURST_SLACK as i64
    }

    fn learn_aside(&mut self) {
        let stride = i64::from(self.step.unsigned_abs());
        let aside = |(a, b)| (1..=MOST_ASIDE).contains(&self.way(a, b).rem_euclid(stride));
        let again = |(nth, look): (usize, &Look)| self.looks.iter().take(nth).any(|old| old.port == look.port);
        if self.gaps().any(aside) {
            self.aside = Aside::Steps;
        } else if self.looks.iter().enumerate().any(again) {
            self.aside = Aside::Shares;
        }
    }

    /// Both ends of the range of a counter of large steps, from the laps that were seen to end.
    fn lap(&self, low: u16, high: u16) -> Option<(u16, u16)> {
        let stride = i64::from(self.step.unsigned_abs());
        let laps = || self.gaps().filter(|(a, b)| self.turns(*a, *b) && b.at.since(a.at) <= LONGEST_LAP);
        let (a, b) = laps().last()?;
        // What a port gains on its class: by stepping aside it is a little, and no property of the range.
        let shift = Some(self.way(a, b).rem_euclid(stride)).filter(|shift| *shift > MOST_ASIDE).unwrap_or(0);
        let rate = self.straight_rate();
        // Each lap's length, weighed by how well it is known.
        let (mut sum, mut weights) = (0.0, 0.0);
        for (a, b) in laps() {
            let others = rate.map_or(0.0, |rate| rate.per_s) * b.at.since(a.at).as_secs_f64();
            let weight = 1.0 / (1.0 + others);
            let mappings = b.own.saturating_sub(a.own) as f64 + others;
            sum += weight * (mappings * stride as f64 - self.way(a, b) as f64);
            weights += weight;
        }
        let (seen, expected) = (i64::from(high - low) + 1, sum / weights);
        let doubt = stride as f64 * (SURE_LAP / weights.sqrt() + 1.0);
        let near = i64::from(NEAR_STEPS) * stride;
        let usual = USUAL_RANGES.into_iter().filter(|(from, to)| {
            let span = i64::from(*to - *from) + 1;
            (span + shift) % stride == 0
                && *from <= low
                && high <= *to
                && i64::from(low - from) < near
                && i64::from(to - high) < near
                && (span as f64 - expected).abs() <= doubt
        });
        let off = |(from, to): &(u16, u16)| (f64::from(*to - *from) + 1.0 - expected).abs();
        if let Some(range) = usual.min_by(|one, other| off(one).total_cmp(&off(other))) {
            return Some(range);
        }
        let least = (seen + shift + stride - 1) / stride;
        let steps = ((expected + shift as f64) / stride as f64).round() as i64;
        let span = (steps.max(least) * stride - shift).min(i64::from(u16::MAX));
        let from = (i64::from(low) - (span - seen) / 2).clamp(1, i64::from(u16::MAX) + 1 - span);
        Some((u16::try_from(from).ok()?, u16::try_from(from + span - 1).ok()?))
    }

    /// The rate of others by looks between which the counter went straight on.
    fn straight_rate(&self) -> Option<Rate> {
        let stride = f64::from(self.step.unsigned_abs());
        let straight = self.gaps().filter(|(a, b)| {
            let elapsed = b.at.since(a.at);
            !self.turns(*a, *b) && (SHORTEST..=LONGEST_LAP).contains(&elapsed)
        });
        let (others, time) = straight.fold((0.0, 0.0), |(others, time), (a, b)| {
            let count = self.way(a, b) as f64 / stride - b.own.saturating_sub(a.own) as f64;
            (others + count.max(0.0), time + b.at.since(a.at).as_secs_f64())
        });
        (time > 0.0).then(|| Rate { per_s: others / time, error: f64::max(others, 1.0).sqrt() / time })
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
        let span = (f64::from(high - low) + 1.0) / f64::from(self.step.abs());
        Some(others + span).filter(|others| *others >= 0.0)
    }

    /// Whether the counter comes from one port to the other within a lap.
    pub fn is_on_way(&self, a: u16, b: u16) -> bool {
        is_on_way(a, b, self.step, self.range)
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
            if self.may_lap(elapsed) {
                from = *look;
                continue;
            }
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

    /// Whether a counter that goes around soon may have done so more than once.
    fn may_lap(&self, elapsed: Duration) -> bool {
        i64::from(self.step.unsigned_abs()) >= LARGE_STEP && elapsed > LONGEST_LAP
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

/// The range that a counter at `port` goes around in; `true`: it was seen.
fn around(port: u16, range: Option<(u16, u16)>) -> (u16, i64) {
    match range.filter(|(low, high)| (*low..=*high).contains(&port)) {
        Some((low, high)) => (low, i64::from(high - low) + 1),
        None => {
            let low = LOWEST_PORT.min(port);
            (low, i64::from(u16::MAX - low) + 1)
        }
    }
}

/// The port `steps` mappings after `port`, for a counter of that step and range (all that NATs use where it is not known).
pub fn after(port: u16, step: i32, steps: i64, range: Option<(u16, u16)>) -> u16 {
    let (low, span) = around(port, range);
    let at = (i64::from(port - low) + steps * i64::from(step)).rem_euclid(span);
    u16::try_from(i64::from(low) + at).unwrap_or(u16::MAX)
}

/// How many mappings after `from`, but no fewer than `least`, a counter of that step and range gives out `to`. `None`: it does not, or
/// not within `most`.
pub fn way(from: u16, to: u16, step: i32, range: Option<(u16, u16)>, least: i64, most: i64) -> Option<i64> {
    let stride = i64::from(step.unsigned_abs().max(1));
    let straight = (i64::from(to) - i64::from(from)) * i64::from(step.signum());
    let goes_around = range.is_some_and(|(low, high)| (low..=high).contains(&from) && (low..=high).contains(&to));
    if !goes_around && stride < LARGE_STEP {
        return Some(straight / stride).filter(|way| straight % stride == 0 && (least..=most).contains(way));
    }
    let (_, span) = around(from, range);
    // Straight on, or after so many laps: one after the other until it is there.
    let first = (least * stride - straight).max(0).div_euclid(span);
    let laps = (first..).map(|lap| straight + lap * span).take_while(|way| *way <= most * stride);
    laps.filter(|way| *way % stride == 0).map(|way| way / stride).find(|way| *way >= least)
}

/// How many mappings after `from` a counter of that step and range gives out `to`; negative where it lies behind.
pub fn steps_between(from: u16, to: u16, step: i32, range: Option<(u16, u16)>) -> i64 {
    if step == 0 {
        return 0;
    }
    let straight = (i64::from(to) - i64::from(from)) / i64::from(step);
    if straight >= 0 {
        return straight;
    }
    period(step, range).and_then(|period| way(from, to, step, range, 0, period * 2)).unwrap_or(straight)
}

/// Whether a counter of that step and range comes from one port to the other within a lap.
pub fn is_on_way(from: u16, to: u16, step: i32, range: Option<(u16, u16)>) -> bool {
    let whole = i64::from(u16::MAX);
    way(from, to, step, range, 0, period(step, range).unwrap_or(whole)).is_some()
}

/// After how many mappings a counter has gone around, where that is known.
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
pub const LARGE_STEP: i64 = 16;

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
        assert_eq!(after(59_952, 256, 1, Some((30_000, 60_207))), 30_000);
        assert_eq!(after(30_000, -256, 1, Some((30_000, 60_207))), 59_952);
    }

    /// A look every 25 ms at a counter of this step in this range that others move by `others` between two looks.
    fn lapping(step: i64, (low, high): (u16, u16), others: i64, looks: u64) -> Counter {
        let span = i64::from(high - low) + 1;
        let port = |nth: i64| low + u16::try_from((7 + nth * (others + 1) * step).rem_euclid(span)).expect("in range");
        let looks: Vec<_> = (0..looks).map(|nth| (nth * 25, port(nth as i64), nth)).collect();
        counter(step as i32, &looks)
    }

    #[test]
    fn a_lap_of_large_steps_tells_the_span_and_so_the_next_laps_ports() {
        // 28,232 ports are no whole number of steps: each lap comes to other ports.
        let range = (32_768, 60_999);
        for others in [7, 20, 60] {
            let counter = lapping(256, range, others, 20);
            assert_eq!(counter.range(), Some(range), "{others}");
            let rate = counter.rate().expect("is known").per_s;
            assert!((rate - others as f64 * 40.0).abs() < 1.0, "{rate}");
        }
        assert_eq!(lapping(-100, (49_152, 65_535), 10, 30).range(), Some((49_152, 65_535)));
    }

    #[test]
    fn a_range_that_is_not_a_usual_one_is_known_modulo_the_step() {
        let (low, high) = lapping(256, (20_000, 39_999), 7, 30).range().expect("went around");
        assert_eq!((i64::from(high - low) + 1 - 20_000).rem_euclid(256), 0);
        assert!(low.abs_diff(20_000) < 4096 && high.abs_diff(39_999) < 4096, "{low} {high}");
    }

    #[test]
    fn a_counter_that_steps_aside_is_told_from_one_that_gives_a_port_again() {
        assert_eq!(counter(256, &[(0, 7000, 0), (25, 9048, 1)]).aside(), Aside::Unknown);
        assert_eq!(counter(256, &[(0, 7000, 0), (25, 9049, 1)]).aside(), Aside::Steps);
        assert_eq!(counter(256, &[(0, 7000, 0), (25, 9048, 1), (1000, 7000, 2)]).aside(), Aside::Shares);
    }

    #[test]
    fn a_course_walks_past_our_own_ports() {
        let own = [7512, 7513].into();
        let course = Course { last: 7000, step: 256, range: None, aside: Aside::Unknown, own };
        let ports = |aside| course.ports(1, aside).take(3).collect::<Vec<_>>();
        assert_eq!(ports(Aside::Shares), [7256, 7512, 7768]);
        assert_eq!(ports(Aside::Steps), [7256, 7514, 7770]);
    }

    #[test]
    fn a_way_may_lead_around_more_than_once() {
        let range = Some((32_768, 60_999));
        for steps in [0, 5, 130, 260, 700] {
            let to = after(40_000, 256, steps, range);
            assert_eq!(way(40_000, to, 256, range, steps, 1000), Some(steps));
        }
        assert_eq!(way(40_000, 40_001, 256, None, 0, 1000), None);
        assert_eq!(way(40_000, 39_000, 1, None, 0, 100_000), None);
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
