//! Random × fixed: many sockets on the random side, all towards the one fixed port, against many ports shot at by the fixed side.
//!
//! ```text
//! random   n sockets ─► the fixed port     each at some port of the range, with a low TTL: it only opens
//! fixed    s different ports of the range  the first that a socket is at is let in, and found
//! random   n sockets ─► the fixed port     once more, when all s are out: what a low TTL did not open, they have
//! ```
//!
//! In the plane: n points at random places of a column of W ports, and s of its W places looked at: a miss in (1 − s/W)ⁿ. For
//! the whole range, W = 64,512, n = 240 and s = 2,000: 99.95 %, and with 4 % of the probes lost 99.93 %. (Tailscale's article
//! "How NAT traversal works" has the same with 256 and 2,048; no port is drawn twice here.) Where the ports come from a
//! block, fewer do. The random side's packets must not come to the fixed one first: where it is a Linux router
//! without an input filter, they would take the very ports that its shots need.
//!
//! A side that moves by address holds one mapping towards the other, whose port it knows; then it is fixed.

use super::{
    Moving, Outlook, Pair, Plan, Port, Random, Round, Side, Sockets, Strategy, Target, Timing, direct, grid, is_open,
    placed,
};
use crate::proto::nat::{Filtering, Mapping};

/// Misses once in 5,000 tries.
const ENOUGH: f64 = 8.5;
/// With less it is not worth to be called good.
const LITTLE: f64 = 3.0;
/// NAT entries kept for looking around, of those that a call may make.
pub const ENTRIES_ASIDE: u32 = 16;
/// Probes kept for proving what is found.
const PROBES_ASIDE: u32 = 48;
/// The same, where whoever is at the other end is found by many at once, each of which is answered.
const PROBES_ASIDE_INSIDE: u32 = 112;

pub fn plan(pair: &Pair<'_>, random: Random, fixed: &Port, random_calls: bool) -> Plan {
    let Port::Fixed { mut at, mut from, filtering } = *fixed else {
        return Plan { rounds: Vec::new(), outlook: Outlook::Good };
    };
    let width = random.ports.count;
    // A mapped port lets in anybody whom a firewall on the machine itself lets in: that is opened from inside, and the random side comes.
    let inside = from == Sockets::Main;
    let gate = gate(pair, random, fixed, filtering, random_calls);
    let of_fixed = if random_calls { pair.called } else { pair.caller };
    // Which port the random side came from at the gate nobody knows. A Linux router without an input filter has taken it for that tuple:
    // the shot that meets it leaves from another port, and so do all after it.
    if gate.is_some()
        && from == Sockets::Reported
        && let Some(Port::Fresh(unused)) = direct::fresh(of_fixed)
    {
        (at, from) = (unused, Sockets::Fresh);
    }
    let aside = if inside { PROBES_ASIDE_INSIDE } else { PROBES_ASIDE };
    let shots = pair.budget.probes.saturating_sub(aside).clamp(1, width);
    let most = pair.punch.sockets.min(pair.budget.entries).saturating_sub(ENTRIES_ASIDE).max(1);
    let sockets = ((ENOUGH * f64::from(width) / f64::from(shots)).ceil() as u32).clamp(1, most);
    let expected = f64::from(sockets) * f64::from(shots) / f64::from(width);
    let shooting = if inside { pair.terms.round } else { pair.punch_time(shots) };
    let (timing, back) =
        if inside { (Timing::Inside, Timing::Volleys) } else { (Timing::Paced, Timing::LowThen(shooting)) };
    let row = Side { sockets: Sockets::Row(sockets), target: Target::one(at), timing: back };
    let target = Target::Draw { at: random.ports, each: shots };
    let scatter = Side { sockets: from, target, timing };
    let length = shooting + pair.pace.gate();
    let mut rounds: Vec<Round> = gate.into_iter().collect();
    rounds.push(placed(Strategy::Scatter, length, Some(row), Some(scatter), random_calls));
    let needs = (ENOUGH * f64::from(width) / f64::from(most)).ceil() as u32;
    let outlook = if expected >= LITTLE { Outlook::Good } else { Outlook::Needs(pair.needs(grid::rounded(needs), 1)) };
    Plan { rounds, outlook }
}

/// An open filter, or a mapped port, is worth a round trip: one shot each, and nothing hard. So is a machine without a NAT: the
/// firewall may be its own, and it overhears what that keeps out ([`crate::proto::Action::Overhear`]).
fn gate(pair: &Pair<'_>, random: Random, fixed: &Port, filtering: Filtering, random_calls: bool) -> Option<Round> {
    let (of_random, of_fixed) = if random_calls { (pair.caller, pair.called) } else { (pair.called, pair.caller) };
    if filtering == Filtering::AddressAndPortDependent && of_fixed.mapping != Mapping::None {
        return None;
    }
    let open = is_open(filtering);
    let first = if open { Timing::Prompt } else { Timing::Opened };
    let (mine, its) = if random_calls { (Timing::Volleys, Timing::Opened) } else { (first, Timing::Volleys) };
    let anywhere = Port::Fixed { at: of_random.tuple?, from: Sockets::Reported, filtering: Filtering::Unknown };
    let shot = direct::side(&Port::Random(random), fixed, mine);
    // A round long, so that a call whose answer was lost comes again before anything hard is begun.
    Some(placed(Strategy::Direct, pair.terms.round, shot, direct::side(fixed, &anywhere, its), random_calls))
}

/// The same, where the other side moves by address and holds, or will hold, a mapping.
pub fn held(pair: &Pair<'_>, random: Random, moving: &Moving, random_calls: bool) -> Plan {
    if let Some(hold) = moving.holds.iter().find(|hold| hold.is_exact()) {
        let at = std::net::SocketAddr::new(moving.last.ip(), hold.first);
        let filtering = Filtering::AddressAndPortDependent;
        return plan(pair, random, &Port::Fixed { at, from: Sockets::Reported, filtering }, random_calls);
    }
    if random_calls {
        // The called member had its chance, and will have another.
        return Plan { rounds: Vec::new(), outlook: Outlook::Good };
    }
    let length = pair.caller.server_delay + pair.pace.lead * 6;
    Plan { rounds: vec![placed(Strategy::Wait, length, None, None, true)], outlook: Outlook::Good }
}
