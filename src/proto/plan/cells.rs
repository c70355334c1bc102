//! Random by address and port, on one side or both, within a block: every mapping is one cell.
//!
//! Each side makes n mappings, each towards another port of the other's W, and gets a random port of its own for each. Of the
//! n × n pairs one in W × W meets: E = n²/(W_a W_b), success 1 − e⁻ᴱ. For blocks of 512 and 496 mappings: E = 0.94, 61 % a
//! round; another call is another round. A moving side is a block of as many ports as it makes mappings. For the whole range it
//! is nothing (n = 496: 6 in 100,000), and the outlook says so at once; 53,710 mappings at each side would do for even odds.
//!
//! One socket makes all of them. Its first volley ends on the way: a packet that comes to the other NAT before that has made its own
//! mapping may take the very port that was to meet.

use super::scatter::ENTRIES_ASIDE;
use super::{Line, Outlook, Pair, Plan, Port, Side, Sockets, Strategy, Target, Timing, placed};
use crate::proto::counter;

/// Mappings a side makes in a round: a block of the size that carriers give out most (RFC 7422's example has 512).
const CELLS: u32 = 512;
/// Where the whole range leaves no hope, a small round is enough to have tried.
const TOKEN: u32 = 64;
/// One round in four is worth the next.
const LITTLE: f64 = 0.25;

pub fn plan(pair: &Pair<'_>, a: &Port, b: &Port) -> Plan {
    let most = pair.budget.entries.min(CELLS).saturating_sub(ENTRIES_ASIDE).max(1);
    let (Some(of_a), Some(of_b)) = (line(a, most), line(b, most)) else {
        return Plan { rounds: Vec::new(), outlook: Outlook::Good };
    };
    let most = most.min(pair.budget.probes.saturating_sub(PROBES_ASIDE) / VOLLEYS).max(1);
    let share = |line: Line| f64::from(most.min(line.count)) / f64::from(line.count);
    let hopeful = share(of_a) * share(of_b) >= LITTLE;
    let n = if hopeful { most } else { most.min(TOKEN) };
    let cells = |at: Line| {
        let target = Target::Draw { at, each: n.min(at.count) };
        Some(Side { sockets: Sockets::New, target, timing: Timing::LowFirst })
    };
    let length = pair.pace.lead * 10;
    let round = placed(Strategy::Cells, length, cells(of_b), cells(of_a), true);
    let outlook = match (a, b) {
        _ if hopeful => Outlook::Good,
        (Port::Random(_), Port::Random(_)) => Outlook::Poor("both NATs pick random ports for each destination"),
        _ => Outlook::Poor("one NAT picks random ports for each destination and the other takes a new port for each"),
    };
    Plan { rounds: vec![round], outlook }
}

/// Probes kept for proving what is found.
const PROBES_ASIDE: u32 = 16;
/// A cell's shot leaves four times.
const VOLLEYS: u32 = 4;

/// The ports that a side's next `count` mappings may have.
fn line(port: &Port, count: u32) -> Option<Line> {
    match port {
        Port::Random(random) => Some(random.ports),
        Port::Moving(moving) => {
            let first = counter::after(moving.last.port(), moving.step, 1, moving.range);
            Some(Line { ip: moving.last.ip(), first, step: moving.step, count, range: moving.range })
        }
        Port::Fixed { .. } | Port::Fresh(_) | Port::Unknown => None,
    }
}
