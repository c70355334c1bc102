//! The plan of a call: who sends from which sockets to which ports, in which round. Pure functions of both sides' reports.
//!
//! What decides is how a side's public port towards the other behaves while it shoots ([`Port`]):
//!
//! - *fixed*: the port is known before (no NAT, a cone, a mapped port, a NAT that preserves ports);
//! - *fresh*: an unused socket's first mapping preserves its port, so it is fixed for one destination (FIG. 4A);
//! - *moving*: each mapping takes the next port of a sequence (FIG. 4B), by address, or by address and port;
//! - *random*: each mapping takes any port of a range, by address, or by address and port.
//!
//! A path needs one pair of mappings in which each side's public port is the other's destination. Draw one side's public port
//! along x and its destination along y: each mapping is a cell, and a path is a cell of the one that is, mirrored, a cell of
//! the other. How each pair of kinds is brought to have one is a strategy, each in a file that opens with its geometry and its
//! chance of success:
//!
//! | pair                                   | strategy     | what it costs                          |
//! | -------------------------------------- | ------------ | -------------------------------------- |
//! | fixed × fixed, fresh                   | [`direct`]   | a probe                                |
//! | fixed, fresh × moving                  | [`hold`]     | a few NAT entries, a few probes        |
//! | moving × moving                        | [`sweep`]    | some 80 NAT entries                    |
//! | fixed, held × random                   | [`scatter`]  | 240 NAT entries, 2,000 probes          |
//! | random by address × the same, moving   | [`grid`]     | 240 to 1,260 NAT entries, 193,000 to 350,000 probes |
//! | random in a block × the same, moving   | [`cells`]    | 500 NAT entries                        |
//! | whatever was misread                   | [`window`]   | the patent's shotgun                   |
//!
//! Classification orders what is tried, it forbids nothing: behind each strategy comes the shotgun, as far as the budget goes.
//! What the budget can't give is said at once ([`Outlook`]).

pub mod cells;
pub mod direct;
pub mod grid;
pub mod hold;
pub mod prospect;
pub mod scatter;
pub mod sweep;
pub mod window;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::config::Punch;
use super::counter;
use super::message_control::{Budget, Candidate, CandidateKind, Hold, Report, Terms, reachable};
use super::nat::{Allocation, Filtering, Mapping};

/// How a side's public port towards the other behaves.
#[derive(Clone, PartialEq, Debug)]
pub enum Port {
    Fixed {
        at: SocketAddr,
        from: Sockets,
        filtering: Filtering,
    },
    /// Fixed for one destination, from a socket that was never used.
    Fresh(SocketAddr),
    Moving(Moving),
    Random(Random),
    Unknown,
}

/// The next port of a sequence for each new mapping.
#[derive(Clone, PartialEq, Debug)]
pub struct Moving {
    /// The one that was given out last, `age` ago.
    pub last: SocketAddr,
    pub step: i32,
    pub by_address: bool,
    pub range: Option<(u16, u16)>,
    pub holds: Vec<Hold>,
}

/// Any port of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Random {
    pub ports: Line,
    pub by_address: bool,
}

/// Ports a step apart: `first`, and `count` in all, around the end of the NAT's range if need be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    pub ip: IpAddr,
    pub first: u16,
    pub step: i32,
    pub count: u32,
    pub range: Option<(u16, u16)>,
}

impl Line {
    /// All ports from `low` to `high`.
    pub fn whole(ip: IpAddr, (low, high): (u16, u16)) -> Self {
        Self { ip, first: low, step: 1, count: u32::from(high.saturating_sub(low)) + 1, range: Some((low, high)) }
    }

    pub fn port(&self, nth: u32) -> u16 {
        counter::after(self.first, self.step, i64::from(nth), self.range)
    }
}

/// From which sockets a side shoots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sockets {
    /// The one on the listen port.
    Main,
    /// The one whose tuple, or holds, the report names.
    Reported,
    /// The unused one whose port the report names.
    Fresh,
    /// One new one.
    New,
    /// So many new ones.
    Row(u32),
}

/// At what a side shoots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Each of these, from each socket.
    Ports { ip: IpAddr, ports: Vec<u16> },
    /// Whichever of the peer's holds our counter has not passed yet: which, and from how many sockets, the shooter's own
    /// newest look at its counter says ([`sweep::aim`]).
    Sweep { ip: IpAddr, holds: Vec<Hold> },
    /// So many different ports of these, drawn for each socket anew.
    Draw { at: Line, each: u32 },
}

impl Target {
    pub fn one(at: SocketAddr) -> Self {
        Self::Ports { ip: at.ip(), ports: vec![at.port()] }
    }
}

/// When a side's shots leave, counted from its start, and whether they are to reach the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timing {
    /// The called member's opening volley at once and with a low TTL; then as `Volleys`.
    Opened,
    /// As `Opened`, and the opening volley is to reach the caller, right behind the answer: it is let in by anybody.
    Prompt,
    /// At the start, and again after an eighth, a third and two thirds of the round, against loss.
    Volleys,
    /// At the start, and again after a third of the round: what is many, and met by the other's shots as well.
    Twice,
    /// As `Volleys`, and whoever shoots, its first with a low TTL.
    LowFirst,
    /// At the start, so that they end at the next router: they open a firewall on our own machine and touch no NAT. Once more after a
    /// third of the round.
    Inside,
    /// At the start with a low TTL, and not before two thirds of the round with a full one: the other's shot comes in by itself.
    Low,
    /// At the start with a low TTL, and so long after with a full one: when the other's shots are all out, for what comes before one of
    /// them may take its port at the other's router, and what comes after it is let in.
    LowThen(Duration),
    /// As the pace allows, from the start on.
    Paced,
}

/// What one side does in a round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    pub sockets: Sockets,
    pub target: Target,
    pub timing: Timing,
}

/// How a pair is brought together; for words, and for what is remembered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Strategy {
    Direct,
    /// Waits for the caller's hold.
    Wait,
    Hold,
    Sweep,
    Scatter,
    Grid,
    Cells,
    Window,
}

impl Strategy {
    /// Whether it does what a network notices: a member does so for few peers at a time.
    pub fn is_hard(self) -> bool {
        match self {
            Self::Direct | Self::Wait | Self::Hold => false,
            Self::Sweep | Self::Scatter | Self::Grid | Self::Cells | Self::Window => true,
        }
    }

    /// Whether each side has hundreds of mappings, and shoots at hundreds of ports of the other's.
    pub fn is_a_crowd(self) -> bool {
        matches!(self, Self::Grid | Self::Cells)
    }
}

/// One round, for both sides; a side that has nothing to shoot at only listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    pub strategy: Strategy,
    pub length: Duration,
    pub caller: Option<Side>,
    pub called: Option<Side>,
}

impl Round {
    /// As its strategy.
    pub fn is_hard(&self) -> bool {
        self.strategy.is_hard()
    }

    /// The same with the two in each other's place.
    fn turned(self) -> Self {
        Self { caller: self.called, called: self.caller, ..self }
    }
}

/// Whether the plan can be expected to find a path within the budgets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outlook {
    Good,
    /// It would, if both sides' `[punch]` said so.
    Needs(Needs),
    /// Not without help; a sentence part that says why: "both NATs pick …".
    Poor(&'static str),
}

/// What `[punch]` would have to say at both sides, where what it says is too little.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    pub probes: Option<u32>,
    pub sockets: Option<u32>,
    pub entries: Option<u32>,
    pub timeout: Option<Duration>,
}

impl Outlook {
    /// Whether another try may find a path: all that is lacking is time, if anything.
    pub fn is_worth_a_try(self) -> bool {
        match self {
            Self::Good => true,
            Self::Needs(needs) => Needs { timeout: None, ..needs } == Needs::default(),
            Self::Poor(_) => false,
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |key, value: Option<u32>| value.map(|value| format!("`{key} = {value}`"));
        let timeout = self.timeout.map(|timeout| format!("`timeout = \"{}s\"`", timeout.as_secs()));
        let all =
            [number("probes", self.probes), number("sockets", self.sockets), number("entries", self.entries), timeout];
        f.write_str(&all.into_iter().flatten().collect::<Vec<_>>().join(" and "))
    }
}

/// All rounds of a call, the same on both sides because both have both reports and the terms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    pub rounds: Vec<Round>,
    pub outlook: Outlook,
}

/// A mapped port or an open filter is worth a round trip before anything hard is begun.
const GATE: u32 = 4;
/// Bounds on the length of a round: long enough for a shot to arrive and its answer to come back, as far as can be known from the
/// way over the server; short enough for several rounds in a call.
pub const SHORTEST_ROUND: Duration = Duration::from_millis(500);
pub const LONGEST_ROUND: Duration = Duration::from_secs(2);
/// Signals in a round.
const SIGNALS: u32 = 8;

/// The length of a round where a message takes so long from member to member over the server.
pub fn round_of(signal: Duration) -> Duration {
    (signal * SIGNALS).clamp(SHORTEST_ROUND, LONGEST_ROUND)
}

/// Times, from the called member's terms.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// An eighth of a round: half of both round trips to the server, and some, so what a signal takes, or half a round trip
    /// from member to member.
    pub lead: Duration,
}

impl Pace {
    pub fn of(terms: &Terms) -> Self {
        Self { lead: terms.round / SIGNALS }
    }

    /// So long that a shot and its answer come through, and an answer to that.
    pub fn gate(self) -> Duration {
        self.lead * GATE
    }
}

/// How `report`'s owner's port towards the other behaves.
pub fn port(report: &Report) -> Port {
    let mapped = report.candidates.iter().find(|candidate| candidate.kind == CandidateKind::Mapped);
    let mapped = mapped.map(|mapped| mapped.address).filter(|at| is_global(at.ip()));
    let Some(tuple) = report.tuple else {
        return mapped.map_or(Port::Unknown, |at| fixed(at, Sockets::Main, Filtering::Unknown));
    };
    let fresh = report.fresh_port.map(|port| SocketAddr::new(tuple.ip(), port));
    let by_address = report.mapping == Mapping::AddressDependent;
    match (report.mapping, report.allocation) {
        (Mapping::None | Mapping::EndpointIndependent | Mapping::Unknown, _) | (_, Allocation::Preserving) => {
            fixed(tuple, Sockets::Reported, report.filtering)
        }
        // Whoever has a mapped port is there, whatever else its NAT does.
        _ if mapped.is_some() => mapped.map_or(Port::Unknown, |at| fixed(at, Sockets::Main, Filtering::Unknown)),
        (_, Allocation::SecondPriority { .. }) if let Some(at) = fresh => {
            if by_address {
                fixed(at, Sockets::Fresh, report.filtering)
            } else {
                Port::Fresh(at)
            }
        }
        (_, Allocation::Sequential { step } | Allocation::SecondPriority { step }) => {
            moving(report, tuple, step, by_address)
        }
        (_, Allocation::Unknown) => moving(report, tuple, 1, by_address),
        (_, Allocation::Random) => {
            let ports = Line::whole(tuple.ip(), report.range.unwrap_or((LOWEST_PORT, u16::MAX)));
            Port::Random(Random { ports, by_address })
        }
    }
}

/// The same, where a side needs many mappings: behind the first one of each socket, a fresh side's are a sequence.
fn many(report: &Report) -> Port {
    match (port(report), report.tuple, report.allocation.step()) {
        (Port::Fresh(_), Some(last), Some(step)) => moving(report, last, step, false),
        (other, _, _) => other,
    }
}

/// Ports that NATs give out at random lie here and above (RFC 6056 section 3.2).
const LOWEST_PORT: u16 = 1024;

fn fixed(at: SocketAddr, from: Sockets, filtering: Filtering) -> Port {
    Port::Fixed { at, from, filtering }
}

fn moving(report: &Report, last: SocketAddr, step: i32, by_address: bool) -> Port {
    Port::Moving(Moving { last, step, by_address, range: report.range, holds: report.holds.clone() })
}

/// Whether an IPv4 address means the same everywhere: not one of RFC 1918's, nor of the carriers' (RFC 6598).
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            !(ip.is_private() || ip.is_link_local() || ip.is_loopback() || (a == 100 && (64..128).contains(&b)))
        }
        IpAddr::V6(_) => false,
    }
}

/// The called member's terms, from both reports: where each will look for the other, were it to shoot at windows.
///
/// `until_start`: how long from now until both start; the caller's report left it about as long ago (`since_call`).
pub fn terms(caller: &Report, called: &Report, since_call: Duration, until_start: Duration, round: Duration) -> Terms {
    Terms {
        modification: window::aim(caller, since_call + until_start),
        // The called member opens its mappings now, before it sends the answer.
        aim: window::aim(called, Duration::ZERO),
        round,
    }
}

/// All rounds of a call.
pub fn plan(caller: &Report, called: &Report, terms: &Terms, punch: &Punch) -> Plan {
    let pair =
        Pair { caller, called, terms, punch, pace: Pace::of(terms), budget: common(caller.budget, called.budget) };
    let (a, b) = (port(caller), port(called));
    // Where both move, the called member holds.
    let (holder, other) = if matches!(b, Port::Moving(_)) { (&b, &a) } else { (&a, &b) };
    // Towards random ports only one that moves by address has anything to hold.
    let may_hold = |moving: &Moving| moving.by_address || !matches!(other, Port::Random(_));
    let unheld = matches!(holder, Port::Moving(moving) if moving.holds.is_empty() && may_hold(moving));
    if has_nearer(caller, called) && unheld {
        // The next try holds ports, if it comes to that.
        return Plan { rounds: vec![gate_round(&pair)], outlook: Outlook::Good };
    }
    let mut plan = match (&a, &b) {
        (Port::Fixed { .. } | Port::Fresh(_), Port::Fixed { .. } | Port::Fresh(_)) => direct::plan(&pair, &a, &b),
        (Port::Moving(_), Port::Fixed { .. } | Port::Fresh(_))
        | (Port::Fixed { .. } | Port::Fresh(_), Port::Moving(_)) => hold::plan(&pair, &a, &b),
        (Port::Moving(_), Port::Moving(_)) => sweep::plan(&pair, &a, &b),
        (Port::Random(random), Port::Fixed { .. }) => scatter::plan(&pair, *random, &b, true),
        (Port::Fixed { .. }, Port::Random(random)) => scatter::plan(&pair, *random, &a, false),
        (Port::Random(random), Port::Moving(held)) if held.by_address => scatter::held(&pair, *random, held, true),
        (Port::Moving(held), Port::Random(random)) if held.by_address => scatter::held(&pair, *random, held, false),
        (Port::Random(_), Port::Random(_) | Port::Moving(_) | Port::Fresh(_))
        | (Port::Moving(_) | Port::Fresh(_), Port::Random(_)) => grid::plan(&pair, &many(caller), &many(called)),
        (Port::Unknown, _) | (_, Port::Unknown) => Plan { rounds: Vec::new(), outlook: Outlook::Good },
    };
    // Holds are made at a second try only, where there is something nearer.
    let held = !caller.holds.is_empty() || !called.holds.is_empty();
    if plan.rounds.first().is_some_and(Round::is_hard) && has_nearer(caller, called) && !held {
        plan.rounds.insert(0, gate_round(&pair));
    }
    if plan.outlook == Outlook::Good {
        plan.rounds.extend(window::rounds(&pair, &plan.rounds));
    }
    if plan.rounds.is_empty() && has_nearer(caller, called) {
        plan.rounds.push(Round { strategy: Strategy::Direct, length: pair.pace.gate(), caller: None, called: None });
    }
    plan
}

/// Candidates alone. Those of one site are near, or are not the same site's after all: of a carrier's customers, say.
fn gate_round(pair: &Pair<'_>) -> Round {
    let gate = pair.pace.gate();
    let length = if has_mapped_or_ipv6(pair.caller, pair.called) { gate } else { gate / 2 };
    Round { strategy: Strategy::Direct, length, caller: None, called: None }
}

/// Whether there are candidates that may need no punch at all: the same site, IPv6 at both sides, or a mapped port.
fn has_nearer(a: &Report, b: &Report) -> bool {
    let same_site = a.tuple.zip(b.tuple).is_some_and(|(a, b)| a.ip() == b.ip());
    same_site || has_mapped_or_ipv6(a, b)
}

fn has_mapped_or_ipv6(a: &Report, b: &Report) -> bool {
    let of = |theirs: &Report, ours| theirs.candidates.iter().any(|candidate| is_nearer(candidate, ours));
    of(b, a) || of(a, b)
}

/// Whether a peer's candidate, an IPv6 address or a mapped port, is of use to who reports `ours`, wherever that is.
pub fn is_nearer(candidate: &Candidate, ours: &Report) -> bool {
    let ip = candidate.address.ip();
    match candidate.kind {
        CandidateKind::Host => false,
        // A link's own address is in no report that was parsed, so it is none for its owner either.
        CandidateKind::Ipv6 => {
            let has = |own: &Candidate| own.kind == CandidateKind::Ipv6 && reachable(own.address).is_some();
            ip.is_ipv6() && reachable(candidate.address).is_some() && ours.candidates.iter().any(has)
        }
        // A router behind a carrier's NAT maps an address of the carrier's: of use to its other customers alone. A carrier has several
        // public addresses, so only this tells them.
        CandidateKind::Mapped => {
            let is_customer = |own: &Candidate| own.kind == CandidateKind::Mapped && !is_global(own.address.ip());
            is_global(ip) || ours.candidates.iter().any(is_customer)
        }
    }
}

fn common(a: Budget, b: Budget) -> Budget {
    let rate = a.rate.min(b.rate).max(1);
    Budget { probes: a.probes.min(b.probes), entries: a.entries.min(b.entries), rate }
}

/// What a strategy plans from.
pub struct Pair<'a> {
    pub caller: &'a Report,
    pub called: &'a Report,
    pub terms: &'a Terms,
    pub punch: &'a Punch,
    pub pace: Pace,
    /// What both may spend.
    pub budget: Budget,
}

impl Pair<'_> {
    /// How long so many shots take, at the pace of the slower one.
    pub fn punch_time(&self, shots: u32) -> Duration {
        Duration::from_secs_f64(f64::from(shots) / f64::from(self.budget.rate))
    }
}

impl Pair<'_> {
    /// What `[punch]` lacks for so many probes in so many tries.
    fn needs(&self, probes: u32, tries: u32) -> Needs {
        let more = probes > self.budget.probes;
        let rate = if more { self.punch.rate.unwrap_or_else(|| rate(probes)) } else { self.budget.rate };
        Needs { probes: more.then_some(probes), timeout: self.lacks_time(probes, tries, rate), ..Needs::default() }
    }

    /// The `timeout` that it would take, if ours is shorter.
    fn lacks_time(&self, probes: u32, tries: u32, rate: u32) -> Option<Duration> {
        let takes = Duration::from_secs_f64(f64::from(probes) / f64::from(rate.max(1))) + BESIDE * tries;
        let whole = Duration::from_secs(takes.as_secs() + u64::from(takes.subsec_nanos() > 0));
        (takes > self.punch.timeout).then_some(whole)
    }

    /// The outlook of a plan that is good in all but perhaps its length.
    fn good_in_time(&self, probes: u32, tries: u32) -> Outlook {
        match self.lacks_time(probes, tries, self.budget.rate) {
            None => Outlook::Good,
            timeout => Outlook::Needs(Needs { timeout, ..Needs::default() }),
        }
    }
}

/// What a try takes besides its probes: the gate before and the proof behind, a round's time at most.
const BESIDE: Duration = LONGEST_ROUND;

/// Probes a second of a call that may send `probes` in all: what it may send in eight of its ten seconds, but no fewer than 1,000,
/// a voice call's both directions and some, and no more than 25,000 (20 Mbit/s).
pub fn rate(probes: u32) -> u32 {
    (probes / 8).clamp(1000, 25_000)
}

/// Two sides in their places: `a_calls` says that the first is the caller's.
pub fn placed(strategy: Strategy, length: Duration, a: Option<Side>, b: Option<Side>, a_calls: bool) -> Round {
    let (caller, called) = if a_calls { (a, b) } else { (b, a) };
    Round { strategy, length, caller, called }
}

/// Whether a fixed port lets in whoever was not sent to from there, or from any port of an address: then nothing has to be known
/// of the other's port.
fn is_open(filtering: Filtering) -> bool {
    matches!(filtering, Filtering::EndpointIndependent | Filtering::AddressDependent)
}

/// Towards where a side must make mappings before the plan is made, so that it can tell their ports: the places, in order.
/// `ahead`: how long from now until the other side would shoot; `again`: what needs no hold was tried.
pub fn wants_hold(ours: &Report, theirs: &Report, called: bool, ahead: Duration, again: bool) -> Vec<SocketAddr> {
    let Port::Moving(us) = port(ours) else { return Vec::new() };
    if has_nearer(ours, theirs) && !again {
        return Vec::new();
    }
    match port(theirs) {
        Port::Fixed { filtering, .. } if is_open(filtering) && !again => Vec::new(),
        Port::Fixed { at, .. } | Port::Fresh(at) => vec![at],
        Port::Moving(them) if called => sweep::places(&them, theirs, ahead),
        // By address, one mapping serves every port of the other's.
        Port::Random(_) if us.by_address => theirs.tuple.into_iter().collect(),
        Port::Moving(_) | Port::Random(_) | Port::Unknown => Vec::new(),
    }
}

/// The ports of a hold, a step apart: one, where it is exact.
fn ports_of(hold: &Hold, step: i32, range: Option<(u16, u16)>) -> Vec<u16> {
    let mut ports = vec![hold.first];
    while *ports.last().unwrap_or(&hold.last) != hold.last && ports.len() < MOST_PORTS_OF_A_HOLD {
        ports.push(counter::after(hold.first, step, ports.len() as i64, range));
    }
    ports
}

/// A hold whose port is less certain than this is not worth its probes.
const MOST_PORTS_OF_A_HOLD: usize = 16;

#[cfg(test)]
mod tests;
