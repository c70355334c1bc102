//! The sentences that tell a user how a path was found, or why there is none and what would help.

use super::punching::Parties;
use super::{Call, Peer, Punching};
use crate::proto::context::{Local, PeerId};
use crate::proto::introduction::{Passers, Via};
use crate::proto::message_control::{CandidateKind, Report};
use crate::proto::nat::{Allocation, Mapping};
use crate::proto::path::Way;
use crate::proto::plan::{self, Outlook, Plan, Strategy};
use crate::proto::punch::Role;
use crate::proto::snapshot::Method;

/// What a NAT does, for the middle of a sentence.
fn nat(report: &Report) -> String {
    match (report.mapping, report.allocation) {
        (Mapping::None, _) => "no NAT".to_owned(),
        (Mapping::Unknown, _) => "a NAT of unknown kind".to_owned(),
        (_, Allocation::Preserving) => "a NAT that keeps ports".to_owned(),
        (Mapping::EndpointIndependent, _) => "a NAT with one port for all destinations".to_owned(),
        (_, Allocation::SecondPriority { step }) => {
            format!("a NAT that keeps the first port and then counts by {step}")
        }
        (_, Allocation::Sequential { step }) => format!("a NAT that counts ports by {step}"),
        (Mapping::AddressDependent, Allocation::Random) => "a NAT that picks a random port for each address".to_owned(),
        (_, Allocation::Random) => "a NAT that picks random ports for each destination".to_owned(),
        (_, Allocation::Unknown) => "a NAT with another port for each destination".to_owned(),
    }
}

/// Where a member is seen, for a step's line.
pub(super) fn tuple(report: &Report) -> String {
    match report.tuple {
        Some(tuple) => format!("{tuple}, behind {}", nat(report)),
        None => "an address that no server told it".to_owned(),
    }
}

/// What is going to be done, for a step's line.
pub(super) fn plan(plan: &Plan, parties: &Parties) -> String {
    let how = plan.rounds.first().map_or("nothing to try", |round| name(round.strategy));
    let role = match parties.role {
        Role::Caller => "as the caller",
        Role::Called => "as the called member",
    };
    let (ours, theirs) = (nat(&parties.ours), nat(&parties.theirs));
    format!("{how} {role}: here {ours}, there {theirs}; {} other candidates", parties.theirs.candidates.len())
}

fn name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Direct => "probes to known ports",
        Strategy::Wait => "waits for the caller's port",
        Strategy::Hold => "probes to a held port",
        Strategy::Sweep => "a sweep over held ports",
        Strategy::Scatter => "many sockets against many ports",
        Strategy::Grid => "a grid of sockets and ports",
        Strategy::Cells => "a port each for each port of a block",
        Strategy::Window => "shotgun",
    }
}

/// By which strategy a path was found, for the middle of a sentence.
fn by(strategy: Option<Strategy>) -> &'static str {
    match strategy {
        Some(Strategy::Direct | Strategy::Wait) | None => "by probes to known ports",
        Some(Strategy::Hold) => "by a port that one side held open and told the other",
        Some(Strategy::Sweep) => "by a sweep of one NAT's ports over one that the other side held open",
        Some(Strategy::Scatter) => "by many sockets on one side and many ports tried by the other",
        Some(Strategy::Grid) => "by a grid of many sockets and many ports",
        Some(Strategy::Cells) => "by many mappings within the blocks of ports that the NATs use",
        Some(Strategy::Window) => "by a shotgun at predicted ports",
    }
}

/// Why there is no path, and what would help.
pub(super) fn no_path(punching: &Punching) -> String {
    let (ours, theirs) = (punching.ours(), punching.theirs());
    let budget = &punching.punch.budget;
    let tried = if budget.has_shot() {
        format!("{} probes from {} sockets found no path", budget.probes(), punching.punch.sockets_used())
    } else {
        "no probe was worth sending".to_owned()
    };
    let both = format!("here {}, there {}", nat(ours), nat(theirs));
    match punching.punch.outlook() {
        Outlook::Poor(reason) => {
            format!("{tried}: {reason}; map a port on either router, or give both sides IPv6")
        }
        Outlook::Needs(needs) => format!(
            "{tried}: {both}; {needs} in [punch] at both sides would give a path, and so would a port mapped on either router, or IPv6 at both sides"
        ),
        Outlook::Good if punching.parties.share_a_nat() => format!(
            "{tried}: both are behind one NAT, which does not lead back to its own public address, and neither reaches the other's own address; let them reach each other within the site, map a port on their common router, or give both IPv6"
        ),
        Outlook::Good if punching.punch.strategy() == Some(Strategy::Cells) => format!(
            "{tried} this time: both NATs pick random ports within small blocks, and three tries of five succeed; it is tried again. A port mapped on either router, or IPv6 at both sides, would be sure"
        ),
        Outlook::Good if theirs.tuple.is_none() => format!(
            "{tried}: no discovery server told the peer its public address; let UDP out to the discovery servers there"
        ),
        Outlook::Good if ours.tuple.is_none() => format!(
            "{tried}: no discovery server told us our public address; let UDP out to the discovery servers here"
        ),
        Outlook::Good if budget.has_shot() && guesses(ours, theirs) => format!(
            "{tried} this time ({both}): where ports are guessed, a few calls miss, more where a counter comes round its range or a firewall on the way forbids UDP between the two; it is tried again. A port mapped on either router, or IPv6 at both sides, would be sure"
        ),
        Outlook::Good => {
            let peer = theirs.tuple.map_or_else(|| "the peer".to_owned(), |tuple| tuple.ip().to_string());
            format!(
                "{tried} ({both}); a firewall on the way may forbid UDP between the two: let it out to {peer}, or map a port on either router"
            )
        }
    }
}

/// Whether a path between the two takes a guess at a port that may well be wrong.
fn guesses(ours: &Report, theirs: &Report) -> bool {
    [ours, theirs].iter().all(|report| matches!(plan::port(report), plan::Port::Moving(_) | plan::Port::Random(_)))
}

/// What members are called, for the middle of a sentence.
pub(super) fn names(local: &Local, members: &[PeerId]) -> String {
    let name = |id: &PeerId| local.introducers.get(id).map_or("a peer that is gone", |member| member.name.as_str());
    members.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Who passed a call, where that was no server.
pub(super) fn introduced(local: &Local, via: Via) -> Option<String> {
    let Via::Member { id, .. } = via else { return None };
    let by = format!("called through {}", names(local, &[id]));
    Some(if local.connected_server().is_none() { format!("no rendezvous server answers; {by}") } else { by })
}

/// Why a call is given up that nobody could pass.
pub(super) fn absent(local: &Local, passers: &Passers) -> String {
    let served = local.connected_server().is_some();
    match (served, names(local, passers.asked())) {
        (true, asked) if asked.is_empty() => {
            "the peer is not registered with the rendezvous server: it is off, cut off, or uses another server"
                .to_owned()
        }
        (true, asked) => format!(
            "the peer is not registered with the rendezvous server, nor reached through {asked}: it is off, or cut off"
        ),
        (false, asked) => {
            format!("no rendezvous server answers, and the peer is not reached through {asked}: it is off, or cut off")
        }
    }
}

/// Why a call is given up that was passed.
pub(super) fn unanswered(local: &Local, passers: &Passers) -> String {
    let asked = names(local, passers.asked());
    let through = if asked.is_empty() { String::new() } else { format!(", through {asked} as well,") };
    format!("the call was passed on{through} and not answered: the peer may be starting, or cut off")
}

/// Why the path in use is none any more; `worked`: it was proved.
pub(super) fn lost(way: Way, worked: bool) -> String {
    let remote = way.remote;
    if worked {
        format!("the path to {remote} stopped answering")
    } else {
        format!("the peer is heard at {remote}, and does not hear us there")
    }
}

impl Peer {
    /// How the path in use was found.
    pub(super) fn found_by(&self, method: Method) -> String {
        let behind = match &self.call {
            Call::Punching(punching) => format!(" (here {}, there {})", nat(punching.ours()), nat(punching.theirs())),
            _ => String::new(),
        };
        let found = match method {
            Method::Endpoint => "by the endpoint in the config".to_owned(),
            Method::Lan => "both are on the same network".to_owned(),
            Method::Ipv6 => "both have IPv6".to_owned(),
            Method::PortMapping => "by a port that a router maps".to_owned(),
            Method::Punch | Method::Shotgun => {
                let strategy = match &self.call {
                    Call::Punching(punching) => punching.punch.strategy(),
                    _ => None,
                };
                format!("{}{behind}", by(strategy))
            }
            Method::Roamed => "the peer moved, and answered from its new address".to_owned(),
        };
        match (&self.call, &self.introduced) {
            (Call::Punching(_), Some(introduced)) => format!("{found}; {introduced}"),
            _ => found,
        }
    }

    /// Which kind of punch a way was found by.
    pub(super) fn punch_method(&self, way: Way) -> Method {
        if let Some(method) = self.candidate_method(way) {
            return method;
        }
        match &self.call {
            Call::Punching(punching) if punching.punch.is_hard() => Method::Shotgun,
            Call::Punching(_) => Method::Punch,
            _ if self.is_endpoint(way.remote) => Method::Endpoint,
            _ => Method::Roamed,
        }
    }

    /// As which of the peer's candidates its address is known.
    pub(super) fn candidate_method(&self, way: Way) -> Option<Method> {
        let Call::Punching(punching) = &self.call else { return None };
        let candidate = punching.theirs().candidates.iter().find(|candidate| candidate.address == way.remote)?;
        Some(match candidate.kind {
            // Without a NAT, a host's own address is the one that everybody sees.
            CandidateKind::Host if punching.theirs().tuple == Some(way.remote) => Method::Punch,
            CandidateKind::Host => Method::Lan,
            CandidateKind::Ipv6 => Method::Ipv6,
            CandidateKind::Mapped => Method::PortMapping,
        })
    }
}
