//! MESSAGE_CONTROL: the call, its answer, an update, and the abort, as two members exchange them through a rendezvous server
//! (patent \[0062\] to \[0067\]).
//!
//! WireGuard's handshake rides along, so that both have keys, and have agreed on a cipher ([`super::cipher`]), before the first hole
//! is punched. What the server passes:
//!
//! ```text
//! CALL    | 1 | WireGuard initiation (148)           | sealed: call id, report         |
//! ANSWER  | 2 | WireGuard response (92)              | sealed: call id, report, plan   |
//! ABORT   | 3 | the caller's index (4), from the call | sealed: call id, reason        |
//! UPDATE  | 4 | sealed as a probe is: call id, the caller's new report           |
//! ```
//!
//! The caller sends an update where it learned its port towards the called member only after the answer had told it where that
//! is: a NAT that maps by address and port gives out no such port before.
//!
//! The sealed parts are ChaCha20-Poly1305 under keys that come out of the handshake itself ([`super::noise`]): the call's and
//! the abort's are known to the two members once the initiation is read, the answer's once the response is. The server, or
//! anyone else, can neither read nor change them, and a call can't be replayed, because its initiation can't.
//!
//! A sealed part is a call id (8) and then fields, `| tag (1) | length (1) | value |`, in any order. Unknown tags are
//! skipped, so that a later version may say more.
//!
//! | tag | field         | value                                                                             |
//! | --- | ------------- | --------------------------------------------------------------------------------- |
//! | 1   | tuple         | address (19): the second tuple, of the mapping that the NAT made last             |
//! | 2   | NAT           | mapping (1), filtering (1), allocation (1), differential (4, signed)              |
//! | 3   | freshness     | age of the tuple (4, ms), cross traffic and its error (4 each, mappings per 1,000 s; all ones: not known) |
//! | 4   | server delay  | round trip to this rendezvous server (4, µs)                                      |
//! | 5   | candidate     | kind (1), address (19); up to [`MAX_CANDIDATES`]                                  |
//! | 6   | fresh port    | port (2) of an unused socket, whose first mapping the NAT is expected to preserve |
//! | 7   | modification  | address (19): the caller's tuple, as the called member will use it               |
//! | 8   | aim           | address (19): where the called member will be, as it expects                      |
//! | 9   | round         | length of a round of the shotgun (4, ms)                                          |
//! | 10  | reason        | why the call is refused (1)                                                       |
//! | 11  | range         | lowest and highest port (2 each) that the NAT was seen to give out                |
//! | 12  | hold          | first and last port (2 each) between which a mapping of ours is, the port (2) of the receiver's that it leads to; up to [`MAX_HOLDS`] |
//! | 13  | budget        | probes, NAT entries that the sender may spend on this call, and its probes a second (4 each) |
//! | 14  | waiting       | (0) payload waits for this call: where both call at once, the call of the one that has some goes first |
//! | 20  | beside        | nothing (0): the caller has a path and looks for a nearer one, by candidates alone |

use std::net::SocketAddr;
use std::time::Duration;

use super::codec::{Reader, Writer};
use super::counter::Rate;
use super::nat::{Allocation, Filtering, Mapping};

/// Most candidates that a report may carry: a host has few addresses, and each costs the other side probes.
pub const MAX_CANDIDATES: usize = 16;

/// Most mappings that a member makes before it knows which of them will meet: four places, each in three classes of a large step.
pub const MAX_HOLDS: usize = 12;

/// A call's identity, random, chosen by the caller.
pub type CallId = u64;

const TUPLE: u8 = 1;
const NAT: u8 = 2;
const FRESHNESS: u8 = 3;
const SERVER_DELAY: u8 = 4;
const CANDIDATE: u8 = 5;
const FRESH_PORT: u8 = 6;
const MODIFICATION: u8 = 7;
const AIM: u8 = 8;
const ROUND: u8 = 9;
const REASON: u8 = 10;
const RANGE: u8 = 11;
const HOLD: u8 = 12;
const BUDGET: u8 = 13;
const WAITING: u8 = 14;
const BESIDE: u8 = 20;

/// An address at which a member may be reached without its NAT's mapping being guessed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Candidate {
    pub kind: CandidateKind,
    pub address: SocketAddr,
}

/// In the order of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum CandidateKind {
    /// An address of the host's own, IPv4.
    Host = 1,
    /// An address of the host's own, IPv6.
    Ipv6 = 2,
    /// A port that a router maps to the host.
    Mapped = 3,
}

impl CandidateKind {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Host,
            2 => Self::Ipv6,
            3 => Self::Mapped,
            _ => return None,
        })
    }
}

/// What a member says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub tuple: Option<SocketAddr>,
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub allocation: Allocation,
    /// How long ago the tuple was observed, when the report was sent.
    pub age: Duration,
    /// New mappings that others make behind the same NAT. `None`: it was looked at once only.
    pub cross_traffic: Option<PerKilosecond>,
    /// Round trip to the server that passes this report.
    pub server_delay: Duration,
    pub candidates: Vec<Candidate>,
    pub fresh_port: Option<u16>,
    /// The ports that the NAT gives out, as far as they were seen to have ends.
    pub range: Option<(u16, u16)>,
    /// Mappings made towards the receiver already.
    pub holds: Vec<Hold>,
    pub budget: Budget,
    /// Payload waits for this call.
    pub waiting: bool,
}

impl Report {
    /// Whether the owner's NAT lets a peer in where its own answers leave by another port, for its filter asks less than its mapping.
    /// `None`: too little is known.
    pub fn may_hear_in_vain(&self) -> Option<bool> {
        match (self.mapping, self.filtering) {
            (Mapping::None | Mapping::EndpointIndependent, _) | (_, Filtering::AddressAndPortDependent) => Some(false),
            (Mapping::Unknown, _) | (_, Filtering::Unknown) => None,
            (_, Filtering::EndpointIndependent) => Some(true),
            (mapping, Filtering::AddressDependent) => Some(mapping == Mapping::AddressAndPortDependent),
        }
    }
}

/// A rate and its standard deviation, in mappings per 1,000 s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerKilosecond {
    pub rate: u32,
    pub error: u32,
}

impl From<Rate> for PerKilosecond {
    fn from(rate: Rate) -> Self {
        // A float's conversion saturates.
        Self { rate: (rate.per_s * 1e3) as u32, error: (rate.error * 1e3) as u32 }
    }
}

impl From<PerKilosecond> for Rate {
    fn from(rate: PerKilosecond) -> Self {
        Self { per_s: f64::from(rate.rate) / 1e3, error: f64::from(rate.error) / 1e3 }
    }
}

/// A mapping of the sender's towards port `to` of the receiver's: its public port is between `first` and `last`, in steps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Hold {
    pub first: u16,
    pub last: u16,
    pub to: u16,
}

impl Hold {
    pub fn is_exact(&self) -> bool {
        self.first == self.last
    }
}

/// What a member may spend on a call: both plan within the smaller of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    pub probes: u32,
    pub entries: u32,
    /// Probes a second: so both know how long a round of the slower one takes.
    pub rate: u32,
}

/// The called member's decisions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// The patent's "desired modifications to the calling client's tuple": where the called member will look for the caller.
    pub modification: Option<SocketAddr>,
    /// Where the caller shall look for the called member.
    pub aim: Option<SocketAddr>,
    /// Length of a round of the shotgun.
    pub round: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    pub id: CallId,
    pub report: Report,
    /// There is a path, and only a nearer one is looked for.
    pub beside: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub id: CallId,
    pub report: Report,
    pub terms: Terms,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    pub id: CallId,
    pub report: Report,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    pub id: CallId,
    pub reason: Reason,
}

/// Why a call was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// The owner of the called member does not let this caller call (`calls` in its config).
    Unwilling = 1,
    /// The called member is in a hard call already; the caller tries again.
    Busy = 2,
}

impl Call {
    pub fn encode(&self) -> Vec<u8> {
        let writer = write_report(Writer::default().u64(self.id), &self.report);
        if self.beside { writer.u8(BESIDE).u8(0).finish() } else { writer.finish() }
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = Fields::parse(bytes)?;
        Some(Self { id: fields.id, report: fields.report, beside: fields.beside })
    }
}

impl Update {
    pub fn encode(&self) -> Vec<u8> {
        write_report(Writer::default().u64(self.id), &self.report).finish()
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = Fields::parse(bytes)?;
        Some(Self { id: fields.id, report: fields.report })
    }
}

impl Answer {
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = write_report(Writer::default().u64(self.id), &self.report);
        if let Some(address) = self.terms.modification {
            writer = writer.u8(MODIFICATION).u8(19).address(address);
        }
        if let Some(address) = self.terms.aim {
            writer = writer.u8(AIM).u8(19).address(address);
        }
        writer.u8(ROUND).u8(4).u32(millis(self.terms.round)).finish()
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = Fields::parse(bytes)?;
        Some(Self { id: fields.id, report: fields.report, terms: fields.terms })
    }
}

impl Abort {
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.id).u8(REASON).u8(1).u8(self.reason as u8).finish()
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = Fields::parse(bytes)?;
        Some(Self { id: fields.id, reason: fields.reason? })
    }
}

fn write_report(writer: Writer, report: &Report) -> Writer {
    let mut writer = writer;
    if let Some(tuple) = report.tuple {
        writer = writer.u8(TUPLE).u8(19).address(tuple);
    }
    let (allocation, step) = match report.allocation {
        Allocation::Unknown => (0, 0),
        Allocation::Preserving => (1, 0),
        Allocation::SecondPriority { step } => (2, step),
        Allocation::Sequential { step } => (3, step),
        Allocation::Random => (4, 0),
    };
    let mapping = match report.mapping {
        Mapping::Unknown => 0,
        Mapping::None => 1,
        Mapping::EndpointIndependent => 2,
        Mapping::AddressDependent => 3,
        Mapping::AddressAndPortDependent => 4,
    };
    let filtering = match report.filtering {
        Filtering::Unknown => 0,
        Filtering::EndpointIndependent => 2,
        Filtering::AddressDependent => 3,
        Filtering::AddressAndPortDependent => 4,
    };
    writer = writer.u8(NAT).u8(7).u8(mapping).u8(filtering).u8(allocation).i32(step);
    let unknown = PerKilosecond { rate: u32::MAX, error: u32::MAX };
    let PerKilosecond { rate, error } = report.cross_traffic.unwrap_or(unknown);
    writer = writer.u8(FRESHNESS).u8(12).u32(millis(report.age)).u32(rate).u32(error);
    let delay = u32::try_from(report.server_delay.as_micros()).unwrap_or(u32::MAX);
    writer = writer.u8(SERVER_DELAY).u8(4).u32(delay);
    for candidate in report.candidates.iter().take(MAX_CANDIDATES) {
        writer = writer.u8(CANDIDATE).u8(20).u8(candidate.kind as u8).address(candidate.address);
    }
    if let Some(port) = report.fresh_port {
        writer = writer.u8(FRESH_PORT).u8(2).u16(port);
    }
    if let Some((low, high)) = report.range {
        writer = writer.u8(RANGE).u8(4).u16(low).u16(high);
    }
    for hold in report.holds.iter().take(MAX_HOLDS) {
        writer = writer.u8(HOLD).u8(6).u16(hold.first).u16(hold.last).u16(hold.to);
    }
    if report.waiting {
        writer = writer.u8(WAITING).u8(0);
    }
    writer.u8(BUDGET).u8(12).u32(report.budget.probes).u32(report.budget.entries).u32(report.budget.rate)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// All that a sealed part may say.
struct Fields {
    id: CallId,
    report: Report,
    terms: Terms,
    reason: Option<Reason>,
    beside: bool,
}

impl Fields {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let id = reader.u64()?;
        let mut fields = Self { id, report: Report::default(), terms: Terms::default(), reason: None, beside: false };
        while !reader.is_empty() {
            let tag = reader.u8()?;
            let len = usize::from(reader.u8()?);
            fields.set(tag, Reader::new(reader.take(len)?))?;
        }
        Some(fields)
    }

    fn set(&mut self, tag: u8, mut value: Reader<'_>) -> Option<()> {
        match tag {
            TUPLE => self.report.tuple = punchable(value.address()?),
            NAT => {
                self.report.mapping = match value.u8()? {
                    1 => Mapping::None,
                    2 => Mapping::EndpointIndependent,
                    3 => Mapping::AddressDependent,
                    4 => Mapping::AddressAndPortDependent,
                    _ => Mapping::Unknown,
                };
                self.report.filtering = match value.u8()? {
                    2 => Filtering::EndpointIndependent,
                    3 => Filtering::AddressDependent,
                    4 => Filtering::AddressAndPortDependent,
                    _ => Filtering::Unknown,
                };
                let allocation = value.u8()?;
                let step = value.i32()?;
                let moves = step != 0 && step.unsigned_abs() <= u32::from(u16::MAX);
                self.report.allocation = match allocation {
                    1 => Allocation::Preserving,
                    2 if moves => Allocation::SecondPriority { step },
                    3 if moves => Allocation::Sequential { step },
                    4 => Allocation::Random,
                    _ => Allocation::Unknown,
                };
            }
            FRESHNESS => {
                self.report.age = Duration::from_millis(u64::from(value.u32()?));
                let (rate, error) = (value.u32()?, value.u32()?);
                let known = rate != u32::MAX && error != u32::MAX;
                self.report.cross_traffic = known.then_some(PerKilosecond { rate, error });
            }
            SERVER_DELAY => self.report.server_delay = Duration::from_micros(u64::from(value.u32()?)),
            CANDIDATE => {
                let Some(kind) = CandidateKind::from_byte(value.u8()?) else { return Some(()) };
                let Some(address) = reachable(value.address()?) else { return Some(()) };
                if self.report.candidates.len() < MAX_CANDIDATES {
                    self.report.candidates.push(Candidate { kind, address });
                }
            }
            FRESH_PORT => self.report.fresh_port = Some(value.u16()?).filter(|port| *port != 0),
            RANGE => {
                let (low, high) = (value.u16()?, value.u16()?);
                self.report.range = (0 < low && low <= high).then_some((low, high));
            }
            HOLD => {
                let hold = Hold { first: value.u16()?, last: value.u16()?, to: value.u16()? };
                let whole = hold.first != 0 && hold.last != 0 && hold.to != 0;
                if whole && self.report.holds.len() < MAX_HOLDS {
                    self.report.holds.push(hold);
                }
            }
            WAITING => self.report.waiting = true,
            BUDGET => {
                self.report.budget = Budget { probes: value.u32()?, entries: value.u32()?, rate: value.u32()? };
            }
            MODIFICATION => self.terms.modification = punchable(value.address()?),
            AIM => self.terms.aim = punchable(value.address()?),
            ROUND => self.terms.round = Duration::from_millis(u64::from(value.u32()?)),
            REASON => {
                self.reason = Some(match value.u8()? {
                    2 => Reason::Busy,
                    _ => Reason::Unwilling,
                });
            }
            BESIDE => self.beside = true,
            _ => {}
        }
        Some(())
    }
}

/// An address that a member may be asked to send to: unicast, not this host itself, and with a port. A sealed tuple comes
/// from a peer that the config names, and is believed no further than this.
pub fn reachable(address: SocketAddr) -> Option<SocketAddr> {
    let ip = address.ip();
    let unicast = match ip {
        std::net::IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_link_local() && ip.octets()[0] != 0,
        std::net::IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none() && !ip.is_unicast_link_local(),
    };
    let ok = unicast && !ip.is_multicast() && !ip.is_loopback() && !ip.is_unspecified() && address.port() != 0;
    ok.then_some(address)
}

/// An address that sockets of a call may shoot at: those are IPv4's, as all that discovery sees.
fn punchable(address: SocketAddr) -> Option<SocketAddr> {
    reachable(address).filter(SocketAddr::is_ipv4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report() -> Report {
        Report {
            tuple: Some("203.0.113.101:30004".parse().expect("address")),
            mapping: Mapping::AddressAndPortDependent,
            filtering: Filtering::AddressAndPortDependent,
            allocation: Allocation::SecondPriority { step: -4 },
            age: Duration::from_millis(120),
            cross_traffic: Some(PerKilosecond { rate: 12_000, error: 3000 }),
            server_delay: Duration::from_micros(100_250),
            candidates: vec![
                Candidate { kind: CandidateKind::Host, address: "10.1.0.2:4275".parse().expect("address") },
                Candidate { kind: CandidateKind::Ipv6, address: "[2001:db8::7]:4275".parse().expect("address") },
            ],
            fresh_port: Some(40123),
            range: Some((30_000, 34_095)),
            holds: vec![Hold { first: 30_008, last: 30_012, to: 40_000 }],
            budget: Budget { probes: 2048, entries: 1280, rate: 1000 },
            waiting: true,
        }
    }

    #[test]
    fn every_part_reads_back_as_it_was_written() {
        let call = Call { id: 7, report: report(), beside: true };
        assert_eq!(Call::parse(&call.encode()), Some(call));
        let terms = Terms {
            modification: Some("203.0.113.101:30036".parse().expect("address")),
            aim: Some("203.0.113.102:40000".parse().expect("address")),
            round: Duration::from_millis(800),
        };
        let answer = Answer { id: 8, report: report(), terms };
        assert_eq!(Answer::parse(&answer.encode()), Some(answer));
        let update = Update { id: 10, report: report() };
        assert_eq!(Update::parse(&update.encode()), Some(update));
        let abort = Abort { id: 9, reason: Reason::Busy };
        assert_eq!(Abort::parse(&abort.encode()), Some(abort));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut bytes = Call { id: 7, report: report(), beside: true }.encode();
        bytes.extend([200, 3, 1, 2, 3]);
        assert_eq!(Call::parse(&bytes), Some(Call { id: 7, report: report(), beside: true }));
    }

    #[test]
    fn addresses_that_nobody_may_be_sent_to_are_passed_over() {
        for address in
            ["127.0.0.1:9", "224.0.0.1:9", "255.255.255.255:9", "0.0.0.0:9", "192.0.2.1:0", "[ff02::1]:9", "[::1]:9"]
        {
            assert_eq!(reachable(address.parse().expect("address")), None, "{address}");
        }
        assert_eq!(reachable("[::ffff:192.0.2.1]:9".parse().expect("address")), None);
        let mut bytes = 7u64.to_be_bytes().to_vec();
        bytes.extend(Writer::default().u8(TUPLE).u8(19).address("224.0.0.1:9".parse().expect("address")).finish());
        assert_eq!(Call::parse(&bytes), Some(Call { id: 7, report: Report::default(), beside: false }));
    }

    #[test]
    fn a_tuple_is_an_ipv4_address() {
        let mut report = report();
        report.tuple = Some("[2001:db8::7]:30004".parse().expect("address"));
        let call = Call { id: 7, report, beside: false };
        assert_eq!(Call::parse(&call.encode()).expect("parses").report.tuple, None);
    }

    #[test]
    fn more_candidates_than_the_cap_are_not_kept() {
        let mut report = report();
        report.candidates = vec![report.candidates[0]; MAX_CANDIDATES];
        let mut bytes = Call { id: 7, report, beside: false }.encode();
        let extra = Writer::default().u8(CANDIDATE).u8(20).u8(1).address("10.0.0.1:9".parse().expect("address"));
        bytes.extend(extra.finish());
        assert_eq!(Call::parse(&bytes).expect("parses").report.candidates.len(), MAX_CANDIDATES);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            let _ = Call::parse(&bytes);
            let _ = Answer::parse(&bytes);
            let _ = Update::parse(&bytes);
            let _ = Abort::parse(&bytes);
        }

        #[test]
        fn a_part_cut_short_is_refused_or_says_less(cut in 0usize..100) {
            let bytes = Call { id: 7, report: report(), beside: true }.encode();
            if let Some(call) = Call::parse(&bytes[..bytes.len().saturating_sub(cut)]) {
                prop_assert_eq!(call.id, 7);
            }
        }
    }
}
