//! Fixed × moving: the moving side holds a mapping towards the fixed port, and tells which port it was given.
//!
//! ```text
//! moving   question ─ shot (low TTL) ─ question        the two answers stand around the shot's port: it is between them
//!          answer or update: "my port towards yours is 30007"
//! fixed    one shot at 30007
//! ```
//!
//! The point that the fixed side has to hit is made before it is shot at, so others' traffic can't move it: success does not
//! depend on λ, but for the moment between two questions (20 µs: one other mapping in 17 tries at λ = 3,000, and then there
//! are two ports to shoot at). A fresh socket keeps its port for one destination only, so it can shoot at one: there a hold that
//! leaves two is made once more, if the first one leaves that time ([`is_enough`]). Where the moving side calls, it learns the fixed
//! port from the answer, and an update follows a round trip to its servers later; the called member waits for that. Where no hold
//! comes, the shotgun is left.

use super::{
    Moving, Outlook, Pair, Plan, Port, Round, Side, Sockets, Strategy, Target, Timing, direct, is_open, placed,
    ports_of,
};
use crate::proto::message_control::{Hold, Report};
use crate::proto::nat::Filtering;

pub fn plan(pair: &Pair<'_>, a: &Port, b: &Port) -> Plan {
    let (fixed, mover, moving, moving_calls) = match (a, b) {
        (mover @ Port::Moving(moving), fixed) => (fixed, mover, moving, true),
        (fixed, mover @ Port::Moving(moving)) => (fixed, mover, moving, false),
        _ => return Plan { rounds: Vec::new(), outlook: Outlook::Good },
    };
    let rounds = match hit(fixed, moving) {
        Some(side) => {
            // What is held lets the other side in by itself, but for an outer NAT of ours that keeps ports: that is opened a little later,
            // for a packet that comes before the other side's own may poison its port.
            let back = direct::side(mover, fixed, Timing::LowFirst);
            vec![placed(Strategy::Hold, pair.terms.round, back, Some(side), moving_calls)]
        }
        // Where anybody may come in, the moving side needs no hold.
        None if is_open_port(fixed) => vec![opened(pair, fixed, mover, moving, moving_calls)],
        None if moving_calls => {
            let length = pair.caller.server_delay + pair.pace.lead * 6;
            vec![placed(Strategy::Wait, length, None, open(fixed, moving), true)]
        }
        None => Vec::new(),
    };
    Plan { rounds, outlook: Outlook::Good }
}

/// Whether these holds towards the sender of `theirs` are worth no second try, a round trip later. Others' mappings that came between
/// leave several ports that a hold may have: one socket can shoot at them all, but a fresh one, and a sweep, need the one.
pub fn is_enough(holds: &[Hold], theirs: &Report) -> bool {
    match super::port(theirs) {
        Port::Fixed { at, .. } => holds.iter().any(|hold| hold.to == at.port()),
        Port::Fresh(at) => holds.iter().any(|hold| hold.to == at.port() && hold.is_exact()),
        Port::Moving(_) => holds.iter().any(Hold::is_exact),
        Port::Random(_) | Port::Unknown => !holds.is_empty(),
    }
}

fn is_open_port(fixed: &Port) -> bool {
    matches!(fixed, Port::Fixed { filtering, .. } if is_open(*filtering))
}

/// A shot each: the fixed side's opens a filter that goes by addresses.
fn opened(pair: &Pair<'_>, fixed: &Port, mover: &Port, moving: &Moving, moving_calls: bool) -> Round {
    let (mine, its) = if moving_calls { (Timing::Volleys, Timing::Opened) } else { (Timing::Prompt, Timing::Volleys) };
    let back = Port::Fixed { at: moving.last, from: Sockets::Reported, filtering: Filtering::Unknown };
    let shot = direct::side(mover, fixed, mine);
    placed(Strategy::Direct, pair.terms.round, shot, direct::side(fixed, &back, its), moving_calls)
}

/// The fixed side's shot at the hold that leads to it.
fn hit(fixed: &Port, moving: &Moving) -> Option<Side> {
    let (Port::Fixed { at, .. } | Port::Fresh(at)) = fixed else { return None };
    let hold = moving.holds.iter().find(|hold| hold.to == at.port())?;
    let sockets = if let Port::Fixed { from, .. } = fixed { *from } else { Sockets::Fresh };
    let ports = ports_of(hold, moving.step, moving.range);
    let timing = direct::timing_from(sockets, Timing::Volleys);
    Some(Side { sockets, target: Target::Ports { ip: moving.last.ip(), ports }, timing })
}

/// A packet to the moving side's address, which opens a filter that goes by addresses.
fn open(fixed: &Port, moving: &Moving) -> Option<Side> {
    let Port::Fixed { from, .. } = fixed else { return None };
    Some(Side { sockets: *from, target: Target::one(moving.last), timing: direct::timing_from(*from, Timing::Low) })
}
