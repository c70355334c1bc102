//! What a plan would come to with peers of each kind: for whoever asks beforehand, as `netcheck` does.
//!
//! The plan is the one that a call makes, so this says nothing that a call does not do. What a call learns on its way is taken
//! for learned: holds that were made in time and are exact.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Outlook, Port, Strategy, counter, plan, port, terms, wants_hold};
use crate::proto::config::Punch;
use crate::proto::message_control::{Budget, Hold, Report};
use crate::proto::nat::{Allocation, Filtering, Mapping};

/// A peer's NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Open,
    Cone,
    Counting,
    RandomByAddress,
    Random,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Open, Self::Cone, Self::Counting, Self::RandomByAddress, Self::Random];

    /// A typical peer: the harder filter of two, nothing mapped, no candidates, and the budgets that are the default.
    fn report(self) -> Report {
        let (mapping, allocation) = match self {
            Self::Open => (Mapping::None, Allocation::Preserving),
            Self::Cone => (Mapping::EndpointIndependent, Allocation::Preserving),
            Self::Counting => (Mapping::AddressAndPortDependent, Allocation::Sequential { step: 1 }),
            Self::RandomByAddress => (Mapping::AddressDependent, Allocation::Random),
            Self::Random => (Mapping::AddressAndPortDependent, Allocation::Random),
        };
        let filtering =
            if self == Self::Open { Filtering::EndpointIndependent } else { Filtering::AddressAndPortDependent };
        Report { tuple: Some(THERE.into()), mapping, filtering, allocation, ..Report::default() }
    }
}

/// Where a typical peer is: a documentation address (RFC 5737).
const THERE: ([u8; 4], u16) = ([192, 0, 2, 66], 40_000);
/// Half a second's round, as over a server that is 30 ms away: no outlook depends on it.
const SIGNAL: Duration = Duration::from_millis(60);

/// By what a path to a peer of that kind is found, and whether one can be expected. `None`: the plan is empty, because it is not known
/// where we are.
pub fn prospect(ours: &Report, peer: Kind, punch: &Punch) -> Option<(Strategy, Outlook)> {
    let budget = Budget { probes: punch.probes, entries: punch.entries, rate: punch.pace() };
    let mut ours = Report { budget, holds: Vec::new(), ..ours.clone() };
    let mut theirs = Report { budget, ..peer.report() };
    if port(&ours) == Port::Unknown {
        return None;
    }
    (ours.holds, theirs.holds) = (holds(&ours, &theirs), holds(&theirs, &ours));
    let of = |caller: &Report, called: &Report| {
        let terms = terms(caller, called, Duration::ZERO, Duration::ZERO, super::round_of(SIGNAL));
        let plan = plan(caller, called, &terms, punch);
        Some((
            plan.rounds.iter().map(|round| round.strategy).find(|strategy| *strategy != Strategy::Wait)?,
            plan.outlook,
        ))
    };
    // Either may call; what is said must hold for both.
    let (here, there) = (of(&ours, &theirs)?, of(&theirs, &ours)?);
    Some(if here.1 == Outlook::Good { there } else { here })
}

/// The mappings that a side would have made towards the other's by then.
fn holds(of: &Report, towards: &Report) -> Vec<Hold> {
    let Port::Moving(moving) = port(of) else { return Vec::new() };
    let places: Vec<SocketAddr> = wants_hold(of, towards, true, Duration::ZERO, true);
    let next = |nth: i64| counter::after(moving.last.port(), moving.step, 1 + nth, moving.range);
    let hold = |(nth, place): (i64, &SocketAddr)| Hold { first: next(nth), last: next(nth), to: place.port() };
    (0..).zip(&places).map(hold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::message_control::{Candidate, CandidateKind};

    fn ours(mapping: Mapping, allocation: Allocation) -> Report {
        let filtering = Filtering::AddressAndPortDependent;
        Report { tuple: Some(([203, 0, 113, 5], 30_000).into()), mapping, filtering, allocation, ..Report::default() }
    }

    fn all(report: &Report, probes: u32) -> Vec<Option<(Strategy, Outlook)>> {
        let punch = Punch { probes, ..Punch::default() };
        Kind::ALL.iter().map(|kind| prospect(report, *kind, &punch)).collect()
    }

    #[test]
    fn a_cone_reaches_every_kind() {
        let cone = ours(Mapping::EndpointIndependent, Allocation::Preserving);
        let ways = [Strategy::Direct, Strategy::Direct, Strategy::Hold, Strategy::Scatter, Strategy::Scatter];
        for (found, way) in all(&cone, 2048).into_iter().zip(ways) {
            let (strategy, outlook) = found.expect("is planned");
            assert_eq!(outlook, Outlook::Good);
            // Before anything hard, an open filter is tried.
            assert!(strategy == way || strategy == Strategy::Direct, "{strategy:?}, {way:?}");
        }
    }

    #[test]
    fn random_ports_need_probes_or_help_and_it_is_said_as_a_call_says_it() {
        let outlooks = |report: &Report, probes| -> Vec<Outlook> {
            all(report, probes).into_iter().map(|found| found.expect("is planned").1).collect()
        };
        let random = ours(Mapping::AddressAndPortDependent, Allocation::Random);
        let [.., by_address, by_port] = outlooks(&random, 2048)[..] else { panic!("five kinds") };
        assert!(matches!(by_port, Outlook::Poor(_)) && matches!(by_address, Outlook::Poor(_)));
        let by_address = ours(Mapping::AddressDependent, Allocation::Random);
        let few = outlooks(&by_address, 2048);
        assert!(matches!(few[3], Outlook::Needs(_)), "{few:?}");
        assert_eq!(outlooks(&by_address, 400_000)[3], Outlook::Good);
    }

    #[test]
    fn a_mapped_port_helps_against_every_kind() {
        let mut random = ours(Mapping::AddressAndPortDependent, Allocation::Random);
        random.candidates = vec![Candidate { kind: CandidateKind::Mapped, address: ([203, 0, 113, 5], 4275).into() }];
        assert!(all(&random, 2048).iter().all(|found| found.is_some_and(|(_, outlook)| outlook == Outlook::Good)));
    }

    #[test]
    fn nothing_is_promised_where_nothing_is_known() {
        assert_eq!(all(&Report::default(), 2048), [None; 5]);
    }
}
