//! A member's side of discovery: surveys from the main socket and from scouts, and what they say about the NAT.
//!
//! ```text
//! start   main socket  ──► address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2     mapping, step
//!         first scout  ──► address 2 port 1, address 2 port 2                          fresh sockets, where the counter is
//!                      ──► address 2 port 1, "answer from another port", "from another address"       filtering
//! a call  a new scout  ──► the four again                                                             where the counter is now
//! ```
//!
//! A call through a NAT whose ports move needs a fresh look at the counter, from a socket that has used up its first mapping
//! (FIG. 4A): such a call gets a scout of its own and punches with it. Through any other NAT the main socket's tuple serves.
//!
//! IPv4 only: IPv6 members are reached at their own addresses.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Reply;
use super::survey::{Outcome, Protocol, Survey, Target};
use crate::proto::config::{DISCOVERY_PORTS, Discovery, Host};
use crate::proto::nat::{Allocation, Filtering, Mapping, Nat, Observation, cross_traffic};
use crate::proto::{Action, Instant, SocketId, Transmit, snapshot};

/// Servers asked in one survey: two tell all that the method needs, a third is there for when one of them is away.
const MAX_ADDRESSES: usize = 3;
/// Ports asked at each.
const PORTS_EACH: usize = 2;
/// Addresses that one server's name may stand for.
const MAX_ADDRESSES_A_NAME: usize = 4;
/// Surveys kept at once besides the main one: one a call, and calls that need one are rare.
const MAX_SCOUTS: usize = 8;
/// Local ports for scouts and rows: above the registered services, and below the dynamic range (RFC 6335 from 49152, Linux
/// from 32768), which some firewalls forbid (patent \[0041\]).
pub const SCOUT_PORTS: std::ops::Range<u16> = 16384..32768;
/// Between two mappings that were made in one burst lie less than so many of other users'.
const STALE_STEPS: i32 = 16;
/// Names are asked for again after this long where they gave nothing.
const RESOLVE_AGAIN: Duration = Duration::from_secs(5);

/// A member's discovery.
pub struct Client {
    rng: ChaCha20Rng,
    servers: Vec<Server>,
    own: Vec<IpAddr>,
    main_port: u16,
    main: Option<Survey>,
    filter: Option<Survey>,
    scouts: Vec<Survey>,
    /// The latest reading of the NAT from a survey that was complete enough.
    nat: Nat,
    /// The port that the NAT gave out last, when, and how many of our own mappings came since.
    counter: Option<(Instant, u16)>,
    own_mappings: u32,
    cross_traffic: Option<f64>,
    transmits: VecDeque<Transmit>,
    actions: VecDeque<Action>,
    resolve_again: Option<Instant>,
}

struct Server {
    spec: Discovery,
    addresses: Vec<IpAddr>,
}

/// What a call reports of the NAT.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub tuple: Option<SocketAddr>,
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub allocation: Allocation,
    pub age: Duration,
    /// Mappings per 1,000 s.
    pub cross_traffic: u32,
    /// Whether an unused socket's first mapping keeps its port.
    pub fresh_preserves: bool,
}

impl Client {
    pub fn new(servers: Vec<Discovery>, seed: [u8; 32]) -> Self {
        let servers = servers
            .into_iter()
            .map(|spec| {
                let addresses = match host(&spec) {
                    Host::Ip(ip) => vec![*ip],
                    Host::Name(_) => Vec::new(),
                };
                Server { spec, addresses }
            })
            .collect();
        let mut client = Self {
            rng: ChaCha20Rng::from_seed(seed),
            servers,
            own: Vec::new(),
            main_port: 0,
            main: None,
            filter: None,
            scouts: Vec::new(),
            nat: Nat::default(),
            counter: None,
            own_mappings: 0,
            cross_traffic: None,
            transmits: VecDeque::new(),
            actions: VecDeque::new(),
            resolve_again: None,
        };
        client.resolve();
        client
    }

    /// Surveys from the main socket, which is bound to `main_port`, and from a first scout, `scout`. Forgets what was known.
    pub fn start(&mut self, now: Instant, main_port: u16, own: &[IpAddr], scout: SocketId) {
        self.close_filter();
        self.main_port = main_port;
        self.own = own.to_vec();
        self.nat = Nat::default();
        self.counter = None;
        self.cross_traffic = None;
        let targets = self.targets();
        let questions: Vec<_> = targets.iter().map(|target| (*target, Reply::Same)).collect();
        self.note_mappings(questions.len());
        self.main = Some(Survey::new(now, SocketId::MAIN_V4, main_port, &questions, &mut self.rng));
        if let Some(last) = targets.iter().rev().find(|target| target.protocol == Protocol::Dudp) {
            let port = self.scout_port();
            let last = targets.iter().find(|target| target.address.ip() == last.address.ip()).unwrap_or(last);
            let second = targets.iter().find(|target| target.address.ip() == last.address.ip() && *target != last);
            let mut questions: Vec<_> =
                [Some(last), second].into_iter().flatten().map(|at| (*at, Reply::Same)).collect();
            self.note_mappings(questions.len());
            questions.extend([(*last, Reply::OtherPort), (*last, Reply::OtherAddress)]);
            self.actions.push_back(Action::OpenSocket { id: scout, port });
            self.filter = Some(Survey::new(now, scout, port, &questions, &mut self.rng));
        }
        self.handle_timeout(now);
    }

    /// Surveys from the main socket again, keeping what is known until there is something newer.
    pub fn again(&mut self, now: Instant) {
        let questions: Vec<_> = self.targets().iter().map(|target| (*target, Reply::Same)).collect();
        self.main = Some(Survey::new(now, SocketId::MAIN_V4, self.main_port, &questions, &mut self.rng));
        self.handle_timeout(now);
    }

    /// Surveys from a new socket; the caller owns the socket from then on. `false`: there are enough of them.
    pub fn scout(&mut self, now: Instant, socket: SocketId) -> bool {
        if self.scouts.len() >= MAX_SCOUTS {
            return false;
        }
        let port = self.scout_port();
        let questions: Vec<_> = self.targets().iter().map(|target| (*target, Reply::Same)).collect();
        self.actions.push_back(Action::OpenSocket { id: socket, port });
        self.note_mappings(questions.len());
        self.scouts.push(Survey::new(now, socket, port, &questions, &mut self.rng));
        self.handle_timeout(now);
        true
    }

    /// A scout's owner needs no answers any more.
    pub fn forget_scout(&mut self, socket: SocketId) {
        self.scouts.retain(|scout| scout.socket != socket);
    }

    /// A local port for a new socket.
    pub fn scout_port(&mut self) -> u16 {
        let width = u32::from(SCOUT_PORTS.end - SCOUT_PORTS.start);
        SCOUT_PORTS.start + (self.rng.next_u32() % width) as u16
    }

    /// We made `count` mappings besides the surveys' own: they are not other users'.
    pub fn note_mappings(&mut self, count: usize) {
        self.own_mappings = self.own_mappings.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub fn is_configured(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Whether the survey from `socket` (the main one, or a scout's) has said what it will.
    pub fn is_ready(&self, now: Instant, socket: SocketId) -> bool {
        if self.servers.is_empty() {
            return true;
        }
        let ready = |survey: &Survey| survey.is_ready(now);
        if socket == SocketId::MAIN_V4 {
            self.main.as_ref().is_some_and(ready) && self.filter.as_ref().is_none_or(ready)
        } else {
            self.scouts.iter().find(|scout| scout.socket == socket).is_none_or(ready)
        }
    }

    /// Whether all questions are answered or given up.
    pub fn is_finished(&self) -> bool {
        let surveys = [&self.main, &self.filter];
        surveys.into_iter().flatten().all(Survey::is_finished) && self.scouts.iter().all(Survey::is_finished)
    }

    /// Since when the main survey's answers are known; `None`: there is none.
    pub fn main_age(&self, now: Instant) -> Option<Duration> {
        self.main.as_ref().map(|survey| now.since(survey.started))
    }

    /// Whether there is a NAT in front of us; `None`: that is not known yet, or will never be.
    pub fn is_behind_nat(&self, now: Instant) -> Option<bool> {
        let known = self.is_ready(now, SocketId::MAIN_V4) && self.nat.mapping != Mapping::Unknown;
        known.then_some(self.nat.mapping != Mapping::None)
    }

    /// Whether there may be a NAT in front of us that a new socket would be seen through.
    pub fn may_be_behind_nat(&self) -> bool {
        self.is_configured() && self.nat.mapping != Mapping::None
    }

    /// Whether ports move, so that each hard call needs a scout.
    pub fn moves(&self) -> bool {
        matches!(self.nat.mapping, Mapping::AddressDependent | Mapping::AddressAndPortDependent)
            && !matches!(self.nat.allocation, Allocation::Preserving | Allocation::Random)
    }

    /// Whether the main socket's mappings are of an earlier run: a NAT whose ports move gave the first scout's, made in the
    /// same moment, ports that are far from theirs.
    pub fn main_is_stale(&self) -> bool {
        let step = self.nat.allocation.step().unwrap_or(1);
        let last = |survey: &Option<Survey>| {
            let seen = survey.as_ref().and_then(|survey| survey.observations().filter(|seen| !is_kept(seen)).last());
            seen.map(|seen| i32::from(seen.public.port()))
        };
        match (last(&self.main), last(&self.filter)) {
            (Some(main), Some(scout)) => self.moves() && (scout - main).abs() > step.abs() * STALE_STEPS,
            _ => false,
        }
    }

    /// What a call from `socket` reports.
    pub fn view(&self, now: Instant, socket: SocketId) -> View {
        let survey = self.scouts.iter().find(|scout| scout.socket == socket).or(self.main.as_ref());
        let own_tuple = survey.and_then(|survey| survey.observations().last()).map(|seen| (seen.public, seen.sent));
        // Where ports move, the next one follows the one that was given out last, to whichever socket.
        let tuple = match (self.moves(), self.counter, own_tuple) {
            (true, Some((at, port)), Some((public, _))) => Some((SocketAddr::new(public.ip(), port), at)),
            _ => own_tuple,
        };
        View {
            tuple: tuple.map(|(public, _)| public),
            mapping: self.nat.mapping,
            filtering: self.filtering(),
            allocation: self.nat.allocation,
            age: tuple.map_or(Duration::ZERO, |(_, at)| now.since(at)),
            cross_traffic: (self.cross_traffic.unwrap_or(0.0) * 1000.0) as u32,
            fresh_preserves: self.fresh_preserves(),
        }
    }

    fn fresh_preserves(&self) -> bool {
        let first = self.filter.as_ref().and_then(|survey| survey.observations().next());
        first.is_some_and(|seen| seen.public.port() == seen.local_port)
    }

    fn filtering(&self) -> Filtering {
        let Some(filter) = &self.filter else { return Filtering::Unknown };
        let asked = |reply| filter.queries().iter().find(|query| query.reply == reply).map(|query| query.outcome);
        let alive = matches!(asked(Reply::Same), Some(Outcome::Answered { .. }));
        match (asked(Reply::OtherAddress), asked(Reply::OtherPort)) {
            (Some(Outcome::Answered { reply: Reply::OtherAddress, .. }), _) => Filtering::EndpointIndependent,
            (Some(Outcome::Silent), Some(Outcome::Answered { reply: Reply::OtherPort, .. })) => {
                Filtering::AddressDependent
            }
            (_, Some(Outcome::Silent)) if alive => Filtering::AddressAndPortDependent,
            _ => Filtering::Unknown,
        }
    }

    fn targets(&self) -> Vec<Target> {
        let mut all: Vec<Target> = Vec::new();
        for server in &self.servers {
            for ip in server.addresses.iter().filter(|ip| ip.is_ipv4()) {
                let (ports, protocol): (&[u16], _) = match &server.spec {
                    Discovery::Series(_) => (&DISCOVERY_PORTS, Protocol::Dudp),
                    Discovery::Port(at) => (std::slice::from_ref(&at.port), Protocol::Dudp),
                    Discovery::Stun(at) => (std::slice::from_ref(&at.port), Protocol::Stun),
                };
                all.extend(ports.iter().map(|port| Target { address: SocketAddr::new(*ip, *port), protocol }));
            }
        }
        let mut ips: Vec<IpAddr> = Vec::new();
        for target in &all {
            if !ips.contains(&target.address.ip()) {
                ips.push(target.address.ip());
            }
        }
        ips.truncate(MAX_ADDRESSES);
        let each = if ips.len() == 1 { DISCOVERY_PORTS.len() } else { PORTS_EACH };
        ips.iter()
            .flat_map(|ip| all.iter().filter(move |target| target.address.ip() == *ip).take(each))
            .copied()
            .collect()
    }

    /// A server's socket.
    pub fn any_target(&self, protocol: Protocol) -> Option<SocketAddr> {
        self.targets().into_iter().find(|target| target.protocol == protocol).map(|target| target.address)
    }

    /// A request whose answer nobody waits for.
    pub fn blank(&mut self) -> Vec<u8> {
        let transaction = self.rng.next_u64().to_be_bytes();
        super::Start { transaction, reply: Reply::Same }.encode()
    }

    /// `true`: the datagram answered one of our questions. `false`: it is none of ours.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let surveys = self.main.iter_mut().chain(&mut self.filter).chain(&mut self.scouts);
        for survey in surveys {
            let before = survey.is_ready(now);
            if survey.handle_datagram(now, datagram) {
                let became_ready = !before && survey.is_ready(now);
                if became_ready {
                    self.read();
                }
                return true;
            }
        }
        false
    }

    /// Reads the NAT anew from all that was observed.
    fn read(&mut self) {
        let surveys = || self.main.iter().chain(&self.scouts);
        let latest =
            surveys().filter(|survey| survey.observations().next().is_some()).max_by_key(|survey| survey.started);
        if let Some(survey) = latest {
            let observations: Vec<_> = survey.observations().collect();
            let nat = Nat::classify(&observations, &self.own);
            if nat.mapping != Mapping::Unknown || self.nat.mapping == Mapping::Unknown {
                self.nat = nat;
            }
        }
        // The main socket's first mapping may have been used up before the survey, by the registration or an earlier run.
        if let Allocation::Sequential { step } = self.nat.allocation
            && self.fresh_preserves()
        {
            self.nat.allocation = Allocation::SecondPriority { step };
        }
        let Some(step) = self.nat.allocation.step() else { return };
        let all = surveys().chain(&self.filter).flat_map(Survey::observations);
        // The last one sent among those that the NAT masqueraded; of equal times the one later in order.
        let last = all.filter(|seen| !is_kept(seen)).max_by_key(|seen| seen.sent);
        let Some(last) = last else { return };
        let reading = (last.sent, last.public.port());
        if let Some(before) = self.counter.filter(|before| before.0 < reading.0) {
            self.cross_traffic = cross_traffic(step, before, reading, self.own_mappings);
            self.own_mappings = 0;
        }
        self.counter = Some(reading);
    }

    /// A name was resolved, or (no addresses) could not be. `true`: there are servers now that were not there before.
    pub fn handle_resolved(&mut self, now: Instant, name: &str, addresses: &[IpAddr]) -> bool {
        let mut news = false;
        for server in &mut self.servers {
            if *host(&server.spec) != Host::Name(name.to_owned()) || addresses.is_empty() {
                continue;
            }
            let addresses: Vec<_> = addresses.iter().copied().take(MAX_ADDRESSES_A_NAME).collect();
            news |= server.addresses != addresses;
            server.addresses = addresses;
        }
        if self.servers.iter().any(|server| server.addresses.is_empty()) {
            self.resolve_again = Some(now + RESOLVE_AGAIN);
        }
        news
    }

    fn resolve(&mut self) {
        for server in &self.servers {
            if let (Host::Name(name), true) = (host(&server.spec), server.addresses.is_empty()) {
                self.actions.push_back(Action::Resolve { name: name.clone() });
            }
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.resolve_again.is_some_and(|at| now >= at) {
            self.resolve_again = None;
            self.resolve();
        }
        let mut became_ready = false;
        for survey in self.main.iter_mut().chain(&mut self.filter).chain(&mut self.scouts) {
            self.transmits.extend(survey.handle_timeout(now));
            became_ready |= survey.is_ready(now);
        }
        if became_ready {
            self.read();
        }
        if self.filter.as_ref().is_some_and(Survey::is_finished) {
            // The answers stay; the socket has served.
            if let Some(id) = self.filter.as_mut().filter(|survey| survey.socket != SocketId::MAIN_V4).map(|survey| {
                let id = survey.socket;
                survey.socket = SocketId::MAIN_V4;
                id
            }) {
                self.actions.push_back(Action::CloseSocket { id });
            }
        }
    }

    /// Closes what is open.
    pub fn close(&mut self) {
        self.close_filter();
    }

    fn close_filter(&mut self) {
        if let Some(survey) = self.filter.take()
            && survey.socket != SocketId::MAIN_V4
        {
            self.actions.push_back(Action::CloseSocket { id: survey.socket });
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let surveys = self.main.iter().chain(&self.filter).chain(&self.scouts);
        surveys.filter_map(Survey::poll_timeout).chain(self.resolve_again).min()
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What is known of the NAT, with the observations behind it.
    pub fn nat(&self) -> snapshot::Nat {
        let surveys = self.main.iter().chain(&self.filter).chain(&self.scouts);
        let observations = surveys.flat_map(|survey| {
            survey.queries().iter().filter(|query| query.outcome != Outcome::Waiting).map(|query| {
                let (public, rtt) = match query.outcome {
                    Outcome::Answered { public, rtt, .. } => (Some(public), Some(rtt)),
                    Outcome::Waiting | Outcome::Silent => (None, None),
                };
                let purpose = match (query.reply, query.outcome) {
                    (Reply::Same, _) => "mapping",
                    (_, Outcome::Answered { reply: Reply::Same, .. }) => {
                        "filtering: this server has no other socket to answer from"
                    }
                    (Reply::ToPort(_), _) => "lifetime: an answer to another of our ports",
                    (Reply::OtherPort, _) => "filtering: an answer from another port",
                    (Reply::OtherAddress, _) => "filtering: an answer from another address",
                };
                snapshot::Observation {
                    server: query.target.address,
                    local_port: survey.local_port,
                    public,
                    rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                    purpose: purpose.to_owned(),
                }
            })
        });
        let no_nat = self.nat.mapping == Mapping::None;
        snapshot::Nat {
            mapping: match self.nat.mapping {
                Mapping::None => snapshot::Behaviour::None,
                Mapping::EndpointIndependent => snapshot::Behaviour::EndpointIndependent,
                Mapping::AddressDependent => snapshot::Behaviour::AddressDependent,
                Mapping::AddressAndPortDependent => snapshot::Behaviour::AddressAndPortDependent,
                Mapping::Unknown => snapshot::Behaviour::Unknown,
            },
            filtering: match self.filtering() {
                Filtering::EndpointIndependent if no_nat => snapshot::Behaviour::None,
                Filtering::EndpointIndependent => snapshot::Behaviour::EndpointIndependent,
                Filtering::AddressDependent => snapshot::Behaviour::AddressDependent,
                Filtering::AddressAndPortDependent => snapshot::Behaviour::AddressAndPortDependent,
                Filtering::Unknown => snapshot::Behaviour::Unknown,
            },
            allocation: match self.nat.allocation {
                Allocation::Preserving => snapshot::Allocation::Preserving,
                Allocation::SecondPriority { .. } | Allocation::Sequential { .. } => snapshot::Allocation::Sequential,
                Allocation::Random => snapshot::Allocation::Random,
                Allocation::Unknown => snapshot::Allocation::Unknown,
            },
            delta: self.nat.allocation.step(),
            cross_traffic_per_s: self.cross_traffic,
            public: self.nat.public.clone(),
            mapping_lifetime_s: None,
            keepalive_s: None,
            port_mapping: snapshot::PortMapping::None,
            second_priority: (self.nat.mapping != Mapping::Unknown)
                .then_some(matches!(self.nat.allocation, Allocation::SecondPriority { .. })),
            observations: observations.collect(),
        }
    }
}

/// Whether the NAT kept the local port.
fn is_kept(seen: &Observation) -> bool {
    seen.public.port() == seen.local_port
}

fn host(spec: &Discovery) -> &Host {
    match spec {
        Discovery::Series(host) => host,
        Discovery::Port(at) | Discovery::Stun(at) => &at.host,
    }
}
