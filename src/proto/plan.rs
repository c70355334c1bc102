//! The plan of a call: who sends from which sockets to which ports, in which round. Pure functions of both reports.
//!
//! What decides is how a side's public port towards the other behaves while it shoots:
//!
//! - *fixed*: the port is known before (no NAT, a cone, a mapped port, a NAT that preserves ports);
//! - *held*: not known before, but one port for all shots at the peer's address (mapping by address);
//! - *moving*: each shot at another port takes the next port of the sequence (mapping by address and port);
//! - *anywhere*: random.
//!
//! A path needs one pair of mappings in which each side's public port is the other's destination. Draw one side's public port
//! along x and its destination along y: a fixed or held side that shoots at a window is a vertical line; a moving side that
//! shoots at a window is a diagonal; a moving side that fires many sockets at one port is a horizontal line (a row). Two
//! diagonals in the same direction never meet, whatever their windows: the literal shotgun, fired by both sides of two NATs
//! that map by address and port, never succeeds. A row and a column always cross, a row and a diagonal always cross, and a
//! vertical and a diagonal always cross, as long as the windows hold the ports.
//!
//! | pair                 | one side            | the other side         |
//! | -------------------- | ------------------- | ---------------------- |
//! | fixed × fixed        | its one port        | its one port; after two rounds, the window |
//! | fixed × held, moving | the window          | one shot               |
//! | held × held, moving  | the window          | the window             |
//! | moving × moving      | a row of sockets    | a row of sockets, or a diagonal where its unused sockets would preserve their ports |
//! | fixed × anywhere     | random ports        | a row of sockets       |
//! | else                 | the window, in vain | the window, in vain    |
//!
//! The window is the patent's, −16 to +32 steps around the port extrapolated from the differential (\[0038\], \[0070\]), and
//! moves with each round. A row is as many sockets as the window is wide, and its one target lies 32 steps beyond the next
//! port: so a row forgives exactly the drift that the window does.
//!
//! A side behind a "second priority" NAT (FIG. 4A) has two faces: a fresh socket's first mapping preserves its port (fixed,
//! for one destination only), and a used socket moves. Its first round uses the one, the next the other.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::config::Punch;
use super::message_control::{Report, Terms};
use super::nat::{Allocation, Mapping};

/// How a side's public port towards the other behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    Fixed(SocketAddr),
    /// Fixed for one destination, from a socket that was never used.
    Fresh(SocketAddr),
    Held {
        next: SocketAddr,
        step: i32,
    },
    Moving {
        next: SocketAddr,
        step: i32,
    },
    Anywhere(IpAddr),
    Unknown,
}

/// From which sockets a side shoots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sockets {
    /// The one whose tuple the report names.
    Reported,
    /// The unused one whose port the report names.
    Fresh,
    /// So many new ones, a shot each.
    Row(u32),
    /// So many new ones, each of which first sends a packet elsewhere, because its first mapping would preserve its port.
    UsedRow(u32),
}

/// At what a side shoots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    One(SocketAddr),
    /// `center + k × step` for k from `low` to `high`, nearest to the center first.
    Window {
        center: SocketAddr,
        step: i32,
        low: i32,
        high: i32,
    },
    /// `first + k × step` for k from 0 to `count` − 1, in this order: a diagonal.
    Series {
        first: SocketAddr,
        step: i32,
        count: u32,
    },
    /// So many different random ports.
    Scatter {
        ip: IpAddr,
        shots: u32,
    },
}

/// What one side does in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side {
    pub sockets: Sockets,
    pub target: Target,
}

/// One round, for both sides; a side that has nothing to shoot at only listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Round {
    pub caller: Option<Side>,
    pub called: Option<Side>,
}

/// Whether the plan can be expected to find a path within the budgets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outlook {
    Good,
    /// Not without help; a sentence part that says why: "… picks random ports for each destination".
    Poor(&'static str),
}

/// Ports that NATs give out in sequences lie here: beyond a wrap, the sequence goes on at the other end.
const LOWEST_PORT: i32 = 1024;
const HIGHEST_PORT: i32 = 65535;

/// `address` with its port moved by `way`, wrapped into the range of ports that NATs use.
pub fn moved(address: SocketAddr, way: i64) -> SocketAddr {
    let range = i64::from(HIGHEST_PORT - LOWEST_PORT + 1);
    let offset = (i64::from(address.port()) - i64::from(LOWEST_PORT) + way).rem_euclid(range);
    let port = u16::try_from(i64::from(LOWEST_PORT) + offset).unwrap_or(u16::MAX);
    SocketAddr::new(address.ip(), port)
}

/// Where and how `report`'s owner will be, `ahead` after the report was sent.
pub fn port(report: &Report, ahead: Duration) -> Port {
    let Some(tuple) = report.tuple else { return Port::Unknown };
    let next = |step: i32| {
        let age = report.age + ahead;
        let others = f64::from(report.cross_traffic) / 1000.0 * age.as_secs_f64();
        // One for the mapping that the shot itself makes.
        moved(tuple, i64::from(step) * (1 + others.round() as i64))
    };
    match (report.mapping, report.allocation) {
        (Mapping::None | Mapping::EndpointIndependent | Mapping::Unknown, _) => Port::Fixed(tuple),
        (_, Allocation::Preserving) => Port::Fixed(tuple),
        (Mapping::AddressDependent, Allocation::Sequential { step } | Allocation::SecondPriority { step }) => {
            Port::Held { next: next(step), step }
        }
        (_, Allocation::SecondPriority { step } | Allocation::Sequential { step }) => {
            Port::Moving { next: next(step), step }
        }
        (_, Allocation::Unknown) => Port::Moving { next: next(1), step: 1 },
        (_, Allocation::Random) => Port::Anywhere(tuple.ip()),
    }
}

fn fresh(report: &Report) -> Option<SocketAddr> {
    let tuple = report.tuple?;
    report.fresh_port.map(|port| SocketAddr::new(tuple.ip(), port))
}

/// The called member's terms, from both reports: where each will look for the other.
///
/// `until_start`: how long from now until both start; the caller's report left it about as long ago (`since_call`).
pub fn terms(caller: &Report, called: &Report, since_call: Duration, until_start: Duration, round: Duration) -> Terms {
    let aim = |port| match port {
        Port::Fixed(at) | Port::Fresh(at) => Some(at),
        Port::Held { next, .. } | Port::Moving { next, .. } => Some(next),
        Port::Anywhere(_) | Port::Unknown => None,
    };
    Terms {
        modification: aim(port(caller, since_call + until_start)),
        // The called member opens its mappings now, before it sends the answer.
        aim: aim(port(called, Duration::ZERO)),
        round,
    }
}

/// All rounds of a call, the same on both sides because both have both reports and the terms.
pub fn rounds(caller: &Report, called: &Report, terms: &Terms, punch: &Punch) -> Vec<Round> {
    let at = |report: &Report, aim: Option<SocketAddr>| match (port(report, Duration::ZERO), aim) {
        (Port::Fixed(_), Some(at)) => Port::Fixed(at),
        (Port::Held { step, .. }, Some(next)) => Port::Held { next, step },
        (Port::Moving { step, .. }, Some(next)) => Port::Moving { next, step },
        (other, _) => other,
    };
    let a = at(caller, terms.modification);
    let b = at(called, terms.aim);
    let mut rounds = Vec::new();
    let fresh_a = fresh(caller).map(Port::Fresh);
    let fresh_b = fresh(called).map(Port::Fresh);
    let moving = |port: &Port| matches!(port, Port::Held { .. } | Port::Moving { .. });
    let preserving = |report: &Report| matches!(report.allocation, Allocation::SecondPriority { .. });
    // A fresh socket is fixed for one destination only, so it helps where the other side's port is fixed too.
    let first_a = fresh_a.filter(|_| moving(&a) && preserving(caller));
    let first_b = fresh_b.filter(|_| moving(&b) && preserving(called));
    let fixed = |port: &Port| matches!(port, Port::Fixed(_) | Port::Fresh(_));
    let (one, other) = (first_a.unwrap_or(a), first_b.unwrap_or(b));
    if (first_a.is_some() || first_b.is_some()) && fixed(&one) && fixed(&other) {
        rounds.push(round(one, other, false, false, 0, punch));
    }
    let width = (punch.window.1 - punch.window.0 + 1).max(1);
    let mut shift = 0;
    // A row opens as many sockets as the window is wide in each round: two looks at the counter are worth more than four rounds.
    let rows = matches!((a, b), (Port::Moving { .. }, Port::Moving { .. }));
    let most = if rows { MAX_ROUNDS / 2 } else { MAX_ROUNDS };
    while rounds.len() < most {
        // Where both ports were thought to be fixed and nothing came, an early packet may have poisoned one (Linux conntrack
        // gives that flow another port for 30 s): unused sockets are not touched by that.
        let both_fixed = fixed(&a) && fixed(&b);
        if both_fixed && rounds.len() >= DIRECT_ROUNDS {
            rounds.push(misread(a, b, shift, punch));
            shift += width;
            continue;
        }
        let again = rounds.len() % 2 == 1 && both_fixed;
        let (one, other) = if again { (fresh_a.unwrap_or(a), fresh_b.unwrap_or(b)) } else { (a, b) };
        rounds.push(round(one, other, preserving(caller), preserving(called), shift, punch));
        if !both_fixed {
            shift += width;
        }
    }
    rounds
}

/// More rounds would shoot at ports ever further ahead of where the NAT's counter can be, and poison those that the next try
/// will be given. A new look at the counter is worth more: after these, the call surveys again.
const MAX_ROUNDS: usize = 4;

/// Rounds at single ports, where both are thought to be fixed, before the shotgun: the patent's "certain period of time" in which
/// no DUDP_ACK came (\[0070\]). The first is from the reported sockets, the second from unused ones.
const DIRECT_ROUNDS: usize = 2;

/// Both ports were thought to be fixed and nothing came: one NAT at least was misread. What almost every NAT does that is no
/// cone is to take the next port, so that is where both shoot now.
fn misread(a: Port, b: Port, shift: i32, punch: &Punch) -> Round {
    let side = |at| {
        let Port::Fixed(center) = at else { return None };
        let (low, high) = (punch.window.0 + shift, punch.window.1 + shift);
        Some(Side { sockets: Sockets::Reported, target: Target::Window { center, step: 1, low, high } })
    };
    Round { caller: side(b), called: side(a) }
}

/// Whether `rounds` can be expected to work.
pub fn outlook(caller: &Report, called: &Report) -> Outlook {
    let a = port(caller, Duration::ZERO);
    let b = port(called, Duration::ZERO);
    match (a, b) {
        (Port::Anywhere(_), Port::Anywhere(_)) => Outlook::Poor("both NATs pick random ports for each destination"),
        (Port::Anywhere(_), Port::Held { .. } | Port::Moving { .. })
        | (Port::Held { .. } | Port::Moving { .. }, Port::Anywhere(_)) => {
            Outlook::Poor("one NAT picks random ports for each destination and the other takes a new port for each")
        }
        _ => Outlook::Good,
    }
}

fn round(a: Port, b: Port, used_a: bool, used_b: bool, shift: i32, punch: &Punch) -> Round {
    let width = u32::try_from(punch.window.1 - punch.window.0 + 1).unwrap_or(1).clamp(1, punch.sockets.max(1));
    let window =
        |center, step, by: i32| Target::Window { center, step, low: punch.window.0 + by, high: punch.window.1 + by };
    // A row uses up as many ports as it has sockets in each round, so the other's idea of where it is moves along.
    let row_target = |next, step: i32| {
        let way = i64::from(step) * i64::from(punch.window.1 + shift);
        Target::One(moved(next, way))
    };
    let series =
        |next, step: i32| Target::Series { first: moved(next, i64::from(step) * i64::from(shift)), step, count: width };
    let side = |sockets, target| Some(Side { sockets, target });
    let from = |port: Port| if matches!(port, Port::Fresh(_)) { Sockets::Fresh } else { Sockets::Reported };
    use Port::{Anywhere, Fixed, Fresh, Held, Moving, Unknown};
    let (caller, called) = match (a, b) {
        (Fixed(x) | Fresh(x), Fixed(y) | Fresh(y)) => (side(from(a), Target::One(y)), side(from(b), Target::One(x))),
        (Fixed(x) | Fresh(x), Held { next, step } | Moving { next, step }) => {
            (side(from(a), window(next, step, shift)), side(from(b), Target::One(x)))
        }
        (Held { next, step } | Moving { next, step }, Fixed(y) | Fresh(y)) => {
            (side(from(a), Target::One(y)), side(from(b), window(next, step, shift)))
        }
        (Moving { next: x, step: p }, Moving { next: y, step: q }) => match (used_a, used_b) {
            (false, false) => {
                (side(Sockets::Row(width), row_target(y, q)), side(Sockets::Row(width), row_target(x, p)))
            }
            (true, false) => (side(Sockets::Reported, series(y, q)), side(Sockets::Row(width), row_target(x, p))),
            (false, true) => (side(Sockets::Row(width), row_target(y, q)), side(Sockets::Reported, series(x, p))),
            (true, true) => (side(Sockets::UsedRow(width), row_target(y, q)), side(Sockets::Reported, series(x, p))),
        },
        (
            Held { next: x, step: p } | Moving { next: x, step: p },
            Held { next: y, step: q } | Moving { next: y, step: q },
        ) => (side(Sockets::Reported, window(y, q, shift)), side(Sockets::Reported, window(x, p, shift))),
        (Fixed(x) | Fresh(x), Anywhere(ip)) => {
            (side(from(a), scatter(ip, punch)), side(Sockets::Row(punch.sockets), Target::One(x)))
        }
        (Anywhere(ip), Fixed(y) | Fresh(y)) => {
            (side(Sockets::Row(punch.sockets), Target::One(y)), side(from(b), scatter(ip, punch)))
        }
        (Held { next, step } | Moving { next, step }, Anywhere(_)) => {
            (None, side(Sockets::Reported, window(next, step, shift)))
        }
        (Anywhere(_), Held { next, step } | Moving { next, step }) => {
            (side(Sockets::Reported, window(next, step, shift)), None)
        }
        (Anywhere(_), Anywhere(_)) | (Unknown, Unknown) => (None, None),
        (Unknown, Fixed(y) | Fresh(y)) => (side(Sockets::Reported, Target::One(y)), None),
        (Fixed(x) | Fresh(x), Unknown) => (None, side(Sockets::Reported, Target::One(x))),
        (Unknown, Held { next, step } | Moving { next, step }) => {
            (side(Sockets::Reported, window(next, step, shift)), None)
        }
        (Held { next, step } | Moving { next, step }, Unknown) => {
            (None, side(Sockets::Reported, window(next, step, shift)))
        }
        (Unknown, Anywhere(_)) | (Anywhere(_), Unknown) => (None, None),
    };
    Round { caller, called }
}

fn scatter(ip: IpAddr, punch: &Punch) -> Target {
    Target::Scatter { ip, shots: punch.probes }
}

/// The offsets of a window, nearest to its center (0, or its end next to 0) first: 0, 1, −1, 2, −2 …
pub fn offsets(low: i32, high: i32) -> impl Iterator<Item = i32> {
    let reach = low.unsigned_abs().max(high.unsigned_abs());
    let reach = i32::try_from(reach).unwrap_or(0);
    (0..=reach)
        .flat_map(|way| if way == 0 { [Some(0), None] } else { [Some(way), Some(-way)] })
        .flatten()
        .filter(move |offset| (low..=high).contains(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(mapping: Mapping, allocation: Allocation) -> Report {
        Report { tuple: Some("203.0.113.5:30000".parse().expect("address")), mapping, allocation, ..Report::default() }
    }

    fn plan(caller: &Report, called: &Report) -> Vec<Round> {
        let terms = terms(caller, called, Duration::ZERO, Duration::ZERO, Duration::from_millis(800));
        rounds(caller, called, &terms, &Punch::default())
    }

    /// The public port that a moving side's `n`th mapping gets, `drift` mappings of others later.
    fn taken(next: i32, step: i32, n: i32, drift: i32) -> i32 {
        next + step * (n + drift)
    }

    fn cells(side: &Side, next: i32, step: i32, drift: i32) -> Vec<(i32, i32)> {
        let count = match side.sockets {
            Sockets::Row(count) | Sockets::UsedRow(count) => count as i32,
            Sockets::Reported | Sockets::Fresh => i32::MAX,
        };
        match side.target {
            Target::One(at) => (0..count).map(|n| (taken(next, step, n, drift), i32::from(at.port()))).collect(),
            Target::Series { first, step: way, count } => {
                (0..count as i32).map(|n| (taken(next, step, n, drift), i32::from(first.port()) + way * n)).collect()
            }
            _ => panic!("a moving side shoots a row or a series"),
        }
    }

    proptest! {
        /// The oracle: walk all shots of both sides and look for a pair that meets.
        #[test]
        fn two_moving_sides_meet_as_long_as_the_drift_is_within_the_window(
            p in prop::sample::select(vec![1i32, 2, 4, -1, 16]), q in prop::sample::select(vec![1i32, 3, -1, 64]),
            drift_a in 0i32..=12, drift_b in 0i32..=12, used_a: bool, used_b: bool,
        ) {
            let kind = |step, used| if used { Allocation::SecondPriority { step } } else { Allocation::Sequential { step } };
            let a = report(Mapping::AddressAndPortDependent, kind(p, used_a));
            let b = report(Mapping::AddressAndPortDependent, kind(q, used_b));
            let round = plan(&a, &b)[0];
            let (caller, called) = (round.caller.expect("shoots"), round.called.expect("shoots"));
            let of_a = cells(&caller, 30000 + p, p, drift_a);
            let of_b = cells(&called, 30000 + q, q, drift_b);
            prop_assert!(of_a.iter().any(|(x, y)| of_b.contains(&(*y, *x))));
        }

        #[test]
        fn a_window_holds_each_offset_once(low in -200i32..=0, high in 0i32..=200) {
            let mut all: Vec<i32> = offsets(low, high).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (low..=high).collect::<Vec<_>>());
        }

        #[test]
        fn a_shifted_window_holds_each_offset_once(low in 1i32..=100, width in 0i32..=100) {
            prop_assert_eq!(offsets(low, low + width).count() as i32, width + 1);
        }
    }

    #[test]
    fn ports_wrap_within_the_range_that_nats_use() {
        let at = |port| SocketAddr::new("203.0.113.5".parse().expect("address"), port);
        assert_eq!(moved(at(65535), 1), at(1024));
        assert_eq!(moved(at(1024), -1), at(65535));
    }

    #[test]
    fn the_next_port_is_extrapolated_by_the_differential_and_by_time() {
        let mut report = report(Mapping::AddressAndPortDependent, Allocation::Sequential { step: 2 });
        report.cross_traffic = 100_000;
        report.age = Duration::from_millis(50);
        let Port::Moving { next, .. } = port(&report, Duration::from_millis(50)) else { panic!("moves") };
        assert_eq!(next.port(), 30000 + 2 * (1 + 10));
    }

    #[test]
    fn a_window_is_shot_at_a_moving_side_by_a_fixed_one_and_moves_with_each_round() {
        let fixed = report(Mapping::EndpointIndependent, Allocation::Preserving);
        let moving = report(Mapping::AddressAndPortDependent, Allocation::Sequential { step: 4 });
        let rounds = plan(&fixed, &moving);
        let window =
            |low, high| Target::Window { center: "203.0.113.5:30004".parse().expect("address"), step: 4, low, high };
        assert_eq!(rounds[0].caller.expect("shoots").target, window(-16, 32));
        assert_eq!(rounds[1].caller.expect("shoots").target, window(33, 81));
        assert_eq!(
            rounds[0].called.expect("shoots").target,
            Target::One("203.0.113.5:30000".parse().expect("address"))
        );
    }

    #[test]
    fn two_fixed_sides_that_hear_nothing_for_two_rounds_begin_a_shotgun() {
        let fixed = report(Mapping::EndpointIndependent, Allocation::Preserving);
        let rounds = plan(&fixed, &fixed);
        assert!(rounds[..2].iter().all(|round| matches!(round.caller.expect("shoots").target, Target::One(_))));
        for round in &rounds[2..] {
            assert!(matches!(round.caller.expect("shoots").target, Target::Window { step: 1, .. }));
            assert!(matches!(round.called.expect("shoots").target, Target::Window { step: 1, .. }));
        }
        assert!(rounds.len() > 2);
    }

    #[test]
    fn random_against_sequential_is_said_to_be_out_of_reach() {
        let random = report(Mapping::AddressAndPortDependent, Allocation::Random);
        let moving = report(Mapping::AddressAndPortDependent, Allocation::Sequential { step: 1 });
        let fixed = report(Mapping::EndpointIndependent, Allocation::Preserving);
        assert!(matches!(outlook(&random, &moving), Outlook::Poor(_)));
        assert_eq!(outlook(&random, &fixed), Outlook::Good);
    }
}
