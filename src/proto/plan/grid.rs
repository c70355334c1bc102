//! Random by address × random by address, or × moving: a grid of sockets and ports.
//!
//! A NAT that maps by address gives a socket one port for all of the peer's, so each of n sockets may try many ports at one
//! NAT entry. Probes are what it costs.
//!
//! ```text
//! random × random   n sockets each, every one at D ports of the other's range, drawn for each socket anew:
//!                   E = n² (D/W)² pairs meet; n = 240, W = 64,512, D = 807: E = 9, missed once in 8,000 tries
//! random × moving   the moving side makes N mappings in a row, each to another random port; each of the random side's n
//!                   sockets tries every port of that row: E = n N / W; n = 240, N = 4 × 300: E = 4.5, missed once in 87
//! ```
//!
//! The row is made in four tries. A counter that comes to the end of its range within a row is lost from sight there, and each try
//! begins where it was seen last; the random side's sockets keep their ports, so a try costs it probes and no entry.
//!
//! 193,000 and 350,000 probes: more than a call may send unless its owner says so. Where it may not, or where one NAT maps by address and
//! port and its ports are random, so that each probe costs an entry, the plan is what the budget gives ([`super::cells`]), and
//! the outlook says what would do.

use super::scatter::ENTRIES_ASIDE;
use super::{
    Line, Moving, Needs, Outlook, Pair, Plan, Port, Random, Side, Sockets, Strategy, Target, Timing, cells, placed,
};
use crate::proto::config::Punch;
use crate::proto::counter::{self, Ahead};

/// Meetings that a grid is laid out for, and those without which it is not called good: missed once in 1,100.
const ENOUGH: f64 = 9.0;
const FEW: f64 = 7.0;
/// Mappings in a row that a moving side makes, and how often: with a survey before each, as many as a call may make by default.
const ROW: u32 = 300;
const TRIES: u32 = 4;
/// Ports beyond the row that the random side tries, for what others took of it, before and within.
const BEFORE: i64 = 16;
const SLACK: u32 = 64;
/// The row begins so many standard deviations before where others' mappings are expected to have moved the counter to: once in 160 it is
/// not there yet.
const SURE: f64 = 2.5;
/// Fewer meetings than this in one call, and the row is not called good: calling again brings it about.
const LITTLE: f64 = 2.0;

pub fn plan(pair: &Pair<'_>, a: &Port, b: &Port) -> Plan {
    match (a, b) {
        (Port::Random(a), Port::Random(b)) if a.by_address && b.by_address => of_two(pair, *a, *b),
        (Port::Random(a), Port::Moving(b)) if a.by_address => with_row(pair, *a, b, true),
        (Port::Moving(b), Port::Random(a)) if a.by_address => with_row(pair, *a, b, false),
        _ => cells::plan(pair, a, b),
    }
}

fn sockets(pair: &Pair<'_>) -> u32 {
    pair.punch.sockets.min(pair.budget.entries).saturating_sub(ENTRIES_ASIDE).max(1)
}

fn of_two(pair: &Pair<'_>, a: Random, b: Random) -> Plan {
    let n = sockets(pair);
    let side = f64::from(a.ports.count).sqrt() * f64::from(b.ports.count).sqrt();
    let each = |meetings: f64| (meetings.sqrt() * side / f64::from(n)).ceil() as u32;
    let narrow = a.ports.count.min(b.ports.count);
    let affordable = pair.budget.probes / n;
    let shots = each(ENOUGH).min(affordable).clamp(1, narrow);
    let outlook = if shots >= each(FEW).min(narrow) {
        pair.good_in_time(n * shots, 1)
    } else {
        Outlook::Needs(pair.needs(rounded(n * each(ENOUGH)), 1))
    };
    let grid = |at: Line| {
        let target = Target::Draw { at, each: shots };
        Some(Side { sockets: Sockets::Row(n), target, timing: Timing::Paced })
    };
    let length = pair.punch_time(n * shots) + pair.pace.gate();
    let round = placed(Strategy::Grid, length, grid(b.ports), grid(a.ports), true);
    Plan { rounds: vec![round], outlook }
}

fn with_row(pair: &Pair<'_>, random: Random, moving: &Moving, random_calls: bool) -> Plan {
    let n = sockets(pair);
    let row = row(pair.budget.probes / n).min(pair.budget.entries);
    if met(random, n, row) < LITTLE / f64::from(TRIES) {
        return Plan {
            outlook: Outlook::Needs(needs(pair, random, pair.budget.entries)),
            ..cells::plan(pair, &Port::Random(random), &Port::Moving(moving.clone()))
        }
        .placed(random_calls);
    }
    let others = others(pair, random_calls);
    let first = counter::after(moving.last.port(), moving.step, 1 - BEFORE + others, moving.range);
    let at = Line { ip: moving.last.ip(), first, step: moving.step, count: row + SLACK, range: moving.range };
    let grid = Side { sockets: Sockets::Row(n), target: Target::Draw { at, each: at.count }, timing: Timing::Paced };
    let target = Target::Draw { at: random.ports, each: row };
    let row = Side { sockets: Sockets::New, target, timing: Timing::Paced };
    let length = pair.punch_time(n * at.count) + pair.pace.gate();
    let round = placed(Strategy::Grid, length, Some(grid), Some(row), random_calls);
    // Later tries have less left than the call had: what it had is in our own config.
    let outlook = if meetings(random, n, pair.punch.entries, pair.punch.probes) < LITTLE {
        Outlook::Needs(needs(pair, random, pair.punch.entries))
    } else {
        let tries = tries(n, pair.punch.probes);
        pair.good_in_time(tries * n * at.count, tries)
    };
    Plan { rounds: vec![round], outlook }
}

/// Mappings of a row, where each of the random side's sockets may send so many probes.
fn row(each: u32) -> u32 {
    each.saturating_sub(SLACK).min(ROW)
}

/// Probes of all tries from so many sockets.
fn all(n: u32) -> u32 {
    n * (ROW + SLACK) * TRIES
}

/// Tries that so many probes are enough for.
fn tries(n: u32, probes: u32) -> u32 {
    let each = probes / n;
    (each / (row(each) + SLACK)).min(TRIES)
}

/// How many of so many mappings meet one of n sockets.
fn met(random: Random, n: u32, mappings: u32) -> f64 {
    f64::from(n) * f64::from(mappings) / f64::from(random.ports.count)
}

/// The same of all the tries that there is budget for.
fn meetings(random: Random, n: u32, entries: u32, probes: u32) -> f64 {
    met(random, n, (row(probes / n) * tries(n, probes)).min(entries))
}

/// What all tries take, of what there is too little of.
fn needs(pair: &Pair<'_>, random: Random, entries: u32) -> Needs {
    let usual = Punch::default();
    let few = |n: u32, entries: u32| meetings(random, n, entries, all(n)) < LITTLE;
    let own = pair.punch.sockets.saturating_sub(ENTRIES_ASIDE).max(1);
    let n = usual.sockets.saturating_sub(ENTRIES_ASIDE);
    let (sockets, mappings) = (few(own, usual.entries), few(n, entries));
    // Either might do by itself, and both are little.
    let both = !sockets && !mappings && few(own, entries);
    Needs {
        sockets: (sockets || both).then_some(usual.sockets),
        entries: (mappings || both).then_some(usual.entries),
        ..pair.needs(rounded(all(n)), TRIES)
    }
}

/// So many mappings, at least, have others made when the row begins, since the moving side's counter was seen.
fn others(pair: &Pair<'_>, random_calls: bool) -> i64 {
    // The caller's report was sent a signal earlier; a signal after the answer both begin.
    let (moving, signals) = if random_calls { (pair.called, 1) } else { (pair.caller, 2) };
    let signal = (pair.caller.server_delay + pair.called.server_delay) / 2;
    let ahead = moving.cross_traffic.map(|rate| Ahead::after(moving.age + signal * signals, rate.into()));
    ahead.map_or(0, |ahead| (ahead.steps - SURE * ahead.error).max(0.0) as i64)
}

impl Plan {
    /// A plan that was made as if its first side called.
    fn placed(self, a_calls: bool) -> Self {
        let turn = |round: super::Round| if a_calls { round } else { round.turned() };
        Self { rounds: self.rounds.into_iter().map(turn).collect(), ..self }
    }
}

/// A number that one would write into a config: the next multiple of 10,000, or of 100 where it is small.
pub fn rounded(probes: u32) -> u32 {
    let unit = if probes > 10_000 { 10_000 } else { 100 };
    probes.div_ceil(unit).saturating_mul(unit)
}
