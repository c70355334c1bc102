//! Fixed × fixed: each shoots at the other's one port.
//!
//! Two points that are each other's mirror: success is certain, where neither was misread and no firewall is on the way. The
//! called member's opening volley ends before the caller's NAT, because a packet that comes there too early may poison its
//! port (`nat-traversal`: Linux conntrack does that); both start when the answer has reached the caller. The second round is
//! from unused sockets where both have some, which no early packet can have poisoned.

use super::{Outlook, Pair, Plan, Port, Round, Side, Sockets, Strategy, Target, Timing};
use crate::proto::message_control::Report;

pub fn plan(pair: &Pair<'_>, a: &Port, b: &Port) -> Plan {
    let mut rounds = vec![round(pair, a, b)];
    let fresh = (fresh(pair.caller), fresh(pair.called));
    if fresh.0.is_some() || fresh.1.is_some() {
        rounds.push(round(pair, fresh.0.as_ref().unwrap_or(a), fresh.1.as_ref().unwrap_or(b)));
    }
    Plan { rounds, outlook: Outlook::Good }
}

/// The port of a side's unused socket, where it can be told.
pub fn fresh(report: &Report) -> Option<Port> {
    let tuple = report.tuple?;
    report.fresh_port.map(|port| Port::Fresh(std::net::SocketAddr::new(tuple.ip(), port)))
}

fn round(pair: &Pair<'_>, a: &Port, b: &Port) -> Round {
    Round {
        strategy: Strategy::Direct,
        length: pair.terms.round,
        caller: side(a, b, Timing::Volleys),
        called: side(b, a, Timing::Opened),
    }
}

/// From `from`'s socket to `to`'s port. Who has a mapped port needs no hole in a NAT, and must make none: what leaves it for the
/// peer leaves a NAT whose ports move by another port, and takes the flow by which the peer was to come in.
pub fn side(from: &Port, to: &Port, timing: Timing) -> Option<Side> {
    let sockets = match from {
        Port::Fixed { from, .. } => *from,
        Port::Fresh(_) => Sockets::Fresh,
        Port::Moving(_) | Port::Random(_) | Port::Unknown => Sockets::Reported,
    };
    let (Port::Fixed { at, .. } | Port::Fresh(at)) = to else { return None };
    Some(Side { sockets, target: Target::one(*at), timing: timing_from(sockets, timing) })
}

/// When to shoot from there: a mapped port is opened from inside, whatever else would be done.
pub fn timing_from(sockets: Sockets, timing: Timing) -> Timing {
    if sockets == Sockets::Main { Timing::Inside } else { timing }
}
