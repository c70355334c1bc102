//! Random by address × random by address, or × moving: a grid of sockets and ports.
//!
//! A NAT that maps by address gives a socket one port for all of the peer's, so each of n sockets may try many ports at one
//! NAT entry. Probes are what it costs.
//!
//! ```text
//! random × random   n sockets each, every one at D ports of the other's range, drawn for each socket anew:
//!                   E = n² (D/W)² pairs meet; n = 240, W = 64,512, D = 807: E = 9, missed once in 8,000 tries
//! random × moving   the moving side makes N mappings in a row, each to another random port; each of the random side's n
//!                   sockets tries every port of that row: E = n N / W; n = 240, N = 1,248: E = 4.6, missed once in 104
//! ```
//!
//! 193,000 and 315,000 probes: more than a call may send unless its owner says so. Where it may not, or where one NAT maps by address and
//! port and its ports are random, so that each probe costs an entry, the plan is what the budget gives ([`super::cells`]), and
//! the outlook says what would do.

use super::scatter::ENTRIES_ASIDE;
use super::{
    Line, Moving, Needs, Outlook, Pair, Plan, Port, Random, Side, Sockets, Strategy, Target, Timing, cells, placed,
};
use crate::proto::config::Punch;
use crate::proto::counter;

/// Meetings that a grid is laid out for, and those without which it is not called good: missed once in 1,100.
const ENOUGH: f64 = 9.0;
const FEW: f64 = 7.0;
/// Mappings in a row that a moving side makes.
const ROW: u32 = 1248;
/// Ports beyond the row that the random side tries, for what others took of it, before and within.
const BEFORE: i64 = 16;
const SLACK: u32 = 64;
/// Fewer meetings than this in one call, and the row is not called good: retries bring it about.
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
        pair.good_in_time(n * shots)
    } else {
        Outlook::Needs(pair.needs(rounded(n * each(ENOUGH))))
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
    let row = (pair.budget.probes / n).saturating_sub(SLACK).min(ROW).min(pair.budget.entries);
    let meetings = f64::from(n) * f64::from(row) / f64::from(random.ports.count);
    if row == 0 || meetings < LITTLE {
        let usual = Punch::default();
        let few = |n: u32, row: u32| f64::from(n) * f64::from(row) / f64::from(random.ports.count) < LITTLE;
        let n = usual.sockets.saturating_sub(ENTRIES_ASIDE);
        let needs = Needs {
            sockets: few(pair.punch.sockets.saturating_sub(ENTRIES_ASIDE), ROW).then_some(usual.sockets),
            entries: few(n, pair.budget.entries).then_some(usual.entries),
            ..pair.needs(rounded(n * (ROW + SLACK)))
        };
        return Plan {
            outlook: Outlook::Needs(needs),
            ..cells::plan(pair, &Port::Random(random), &Port::Moving(moving.clone()))
        }
        .placed(random_calls);
    }
    let first = counter::after(moving.last.port(), moving.step, 1 - BEFORE, moving.range);
    let at = Line { ip: moving.last.ip(), first, step: moving.step, count: row + SLACK, range: moving.range };
    let grid = Side { sockets: Sockets::Row(n), target: Target::Draw { at, each: at.count }, timing: Timing::Paced };
    let target = Target::Draw { at: random.ports, each: row };
    let row = Side { sockets: Sockets::New, target, timing: Timing::Paced };
    let length = pair.punch_time(n * at.count) + pair.pace.gate();
    let round = placed(Strategy::Grid, length, Some(grid), Some(row), random_calls);
    Plan { rounds: vec![round], outlook: pair.good_in_time(n * at.count) }
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
