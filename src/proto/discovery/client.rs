//! A member's side of discovery: surveys from the main socket and from scouts, and what they say about the NAT.
//!
//! ```text
//! start   main socket  ──► address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2     mapping, step
//!         first scout  ──► address 2 port 1, address 2 port 2                          fresh sockets, where the counter is
//!                      ──► address 2 port 1, "answer from another port", "from another address"       filtering
//! a call  a new scout  ──► the four again                                                             where the counter is now
//!         a watch      ──► one every 25 ms                                                            how fast others move it
//!         a hold       ──► question, shot at the peer, question, …                                    the port of that shot
//! ```
//!
//! A call through a NAT whose ports move needs a fresh look at the counter, or a port that it holds already ([`super::survey`]).
//! Through any other NAT the main socket's tuple serves.
//!
//! IPv4 only: IPv6 members are reached at their own addresses.

mod findings;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Reply;
use super::survey::{Outcome, Protocol, Survey, Target};
use crate::proto::config::{DISCOVERY_PORTS, Discovery, Host};
use crate::proto::counter::{Ahead, Counter, Course, Look, Rate};
use crate::proto::message_control::Hold;
use crate::proto::nat::{self, Allocation, Filtering, Made, Mapping, Nat, Observation};
use crate::proto::{Action, Instant, SocketId, Transmit};

/// Servers asked in one survey: two tell all that the method needs, a third is there for when one of them is away.
const MAX_ADDRESSES: usize = 3;
/// Ports asked at each.
const PORTS_EACH: usize = 2;
/// Addresses that one server's name may stand for.
const MAX_ADDRESSES_A_NAME: usize = 4;
/// Surveys kept at once besides the main one: one a call, and calls that need one are rare.
const MAX_SCOUTS: usize = 16;
/// Local ports for scouts and rows: above the registered services, and below the dynamic range (RFC 6335 from 49152, Linux
/// from 32768), which some firewalls forbid (patent \[0041\]).
pub const SCOUT_PORTS: std::ops::Range<u16> = 16384..32768;
/// Between two mappings that were made in one burst lie less than so many of other users'.
const STALE_STEPS: i32 = 16;
/// A counter that was looked at so short a time ago needs no survey: a watch looks every 25 ms, and its answers take a round trip.
const WATCHED: Duration = Duration::from_millis(250);
/// Where λ was not seen yet, it may be anything.
const UNKNOWN_RATE: Rate = Rate { per_s: 0.0, error: 300.0 };
/// Random ports remembered, to see whether they come from one block.
const MAX_RANDOM_PORTS: usize = 64;
/// Looks of a watch in all: as many as our own discovery servers have sockets.
const WATCH_LOOKS: u32 = 8;
/// A small office's NAT makes some ten new mappings a second; the design counts on 300 without taking it for a busy one.
const BUSY_RATE: f64 = 300.0;
/// Standard deviations that the rate must be above that: where it is 300, it is taken for more once in 200 calls.
const SURELY_BUSY: f64 = 2.6;
/// A hold asks so many questions at most: more are sure to be in one burst no longer.
const HOLD_QUESTIONS: usize = 7;
/// More mappings of others than this between two questions of a hold, and its port is not known well enough to be shot at.
const MOST_BETWEEN: i64 = 8;
/// An answer to the filter's question that is not there so long after the round trip of one from where it was asked is not on its way
/// any more; it is asked for twice.
const FILTERED_AFTER: Duration = Duration::from_millis(30);
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
    counter: Counter,
    /// Every mapping that we made, whoever asked for it.
    made: Made,
    /// Random ports that the NAT gave out.
    random: VecDeque<u16>,
    transmits: VecDeque<Transmit>,
    actions: VecDeque<Action>,
    resolve_again: Option<Instant>,
}

struct Server {
    spec: Discovery,
    addresses: Vec<IpAddr>,
}

/// What a hold made, and how many of the shots of which that can be said took no port: they ended before they came to the NAT whose
/// ports count, or their answers came out of order.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Held {
    pub holds: Vec<Hold>,
    told: u32,
    short: u32,
}

impl Held {
    /// A counter that went around, or packets that came out of order, look short now and then; a way that is too short, always.
    pub fn is_too_short(&self) -> bool {
        self.short > 0 && self.short == self.told
    }

    /// As [`Held::is_too_short`], but for what others' mappings may have filled.
    pub fn may_be_too_short(&self) -> bool {
        self.short > 0
    }
}

/// What a call reports of the NAT.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub tuple: Option<SocketAddr>,
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub allocation: Allocation,
    pub age: Duration,
    pub cross_traffic: Option<Rate>,
    /// The ports that the NAT gives out, as far as they were seen to have ends.
    pub range: Option<(u16, u16)>,
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
            counter: Counter::default(),
            made: Made::default(),
            random: VecDeque::new(),
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
        self.counter = Counter::default();
        self.random.clear();
        let targets = self.targets();
        let questions: Vec<_> = targets.iter().map(|target| (*target, Reply::Same)).collect();
        self.main = Some(Survey::new(now, SocketId::MAIN_V4, main_port, &questions, &mut self.rng));
        if let Some(last) = targets.iter().rev().find(|target| target.protocol == Protocol::Dudp) {
            let port = self.scout_port();
            let last = targets.iter().find(|target| target.address.ip() == last.address.ip()).unwrap_or(last);
            let second = targets.iter().find(|target| target.address.ip() == last.address.ip() && *target != last);
            // By address, a second look at the same server shows no other mapping; one at another server does.
            let elsewhere = targets.iter().find(|target| target.address.ip() != last.address.ip());
            let mut questions: Vec<_> =
                [Some(last), second, elsewhere].into_iter().flatten().map(|at| (*at, Reply::Same)).collect();
            questions.extend([(*last, Reply::OtherPort), (*last, Reply::OtherAddress)]);
            self.actions.push_back(Action::OpenSocket { id: scout, port });
            self.filter = Some(Survey::new(now, scout, port, &questions, &mut self.rng));
        }
        self.handle_timeout(now);
    }

    /// Surveys from the main socket again, keeping what is known until there is something newer.
    pub fn again(&mut self, now: Instant) {
        let questions: Vec<_> = self.targets().iter().map(|target| (*target, Reply::Same)).collect();
        let survey = Survey::new(now, SocketId::MAIN_V4, self.main_port, &questions, &mut self.rng);
        self.main = Some(survey.again());
        self.handle_timeout(now);
    }

    /// Surveys from a new socket, if that makes no more than `most` mappings; the caller owns the socket from then on. Gives how
    /// many that may make; 0: there are enough of them.
    pub fn scout(&mut self, now: Instant, socket: SocketId, most: u32) -> u32 {
        let targets = self.targets();
        self.add_scout(now, socket, &targets, most, |survey, _| survey)
    }

    /// From how many sockets one after the other the counter is watched for a fifth of a second: by address, one shows but a mapping for
    /// each server.
    pub fn watches(&self) -> u32 {
        let looks = u32::try_from(self.fresh_targets(usize::MAX).len()).unwrap_or(u32::MAX);
        WATCH_LOOKS.checked_div(looks).map_or(0, |watches| watches.max(1))
    }

    /// The `nth` of those watches, from a new socket: a look every 25 ms, of no more than `most` mappings in all.
    pub fn watch(&mut self, now: Instant, socket: SocketId, nth: u32, most: u32) -> u32 {
        let targets = self.fresh_targets(usize::MAX);
        let before = nth * u32::try_from(targets.len()).unwrap_or(0);
        self.add_scout(now, socket, &targets, most, |survey, _| survey.spread(before))
    }

    /// Whether others take so many ports that a sweep must be long.
    pub fn is_busy(&self) -> bool {
        self.counter.rate().is_some_and(|rate| rate.per_s - SURELY_BUSY * rate.error > BUSY_RATE)
    }

    /// Makes a mapping towards each of `to` (all at one address) from a new socket, with packets that end after `ttl` hops,
    /// if that makes no more than `most` mappings. [`Client::held`] tells the ports, once it is ready.
    pub fn hold(&mut self, now: Instant, socket: SocketId, to: &[SocketAddr], ttl: u8, most: u32) -> u32 {
        let targets = self.fresh_targets(HOLD_QUESTIONS);
        if targets.len() < 2 || to.is_empty() {
            return 0;
        }
        let shots = to.len() as u32;
        let most = most.saturating_sub(shots);
        let share = self.nat.mapping == Mapping::AddressDependent;
        let made = self.add_scout(now, socket, &targets, most, |survey, rng| survey.hold(to, ttl, share, rng));
        if made == 0 { 0 } else { made + shots }
    }

    fn add_scout(
        &mut self,
        now: Instant,
        socket: SocketId,
        targets: &[Target],
        most: u32,
        shape: impl FnOnce(Survey, &mut ChaCha20Rng) -> Survey,
    ) -> u32 {
        if self.scouts.len() >= MAX_SCOUTS || targets.is_empty() || targets.len() as u64 > u64::from(most) {
            return 0;
        }
        let port = self.scout_port();
        let questions: Vec<_> = targets.iter().map(|target| (*target, Reply::Same)).collect();
        self.actions.push_back(Action::OpenSocket { id: socket, port });
        let survey = Survey::new(now, socket, port, &questions, &mut self.rng);
        self.scouts.push(shape(survey, &mut self.rng));
        self.handle_timeout(now);
        questions.len() as u32
    }

    /// Servers' sockets, each of which shows a new socket another mapping of a NAT of this kind, by turns at each address.
    fn fresh_targets(&self, most: usize) -> Vec<Target> {
        let by_address = self.nat.mapping == Mapping::AddressDependent;
        let all = self.all_targets();
        let mut ips: Vec<IpAddr> = Vec::new();
        for target in &all {
            if !ips.contains(&target.address.ip()) {
                ips.push(target.address.ip());
            }
        }
        let at =
            |ip: &IpAddr, nth: usize| all.iter().filter(move |target| target.address.ip() == *ip).nth(nth).copied();
        let rounds = if by_address { 1 } else { DISCOVERY_PORTS.len() };
        let ips = &ips[..ips.len().min(MAX_ADDRESSES)];
        (0..rounds).flat_map(|nth| ips.iter().filter_map(move |ip| at(ip, nth))).take(most).collect()
    }

    /// The mappings that the hold from `socket` made.
    pub fn held(&self, socket: SocketId) -> Held {
        let mut held = Held::default();
        let Some(scout) = self.scouts.iter().find(|scout| scout.socket == socket) else { return held };
        let step = i64::from(self.counter.step());
        let count = |made: Made| made.counted(self.nat.mapping, self.nat.allocation) as i64;
        let looks: Vec<Observation> = scout.looks().filter(|seen| !self.keeps(seen)).collect();
        for shot in scout.shots() {
            let Some(made) = shot.made.map(count) else { continue };
            // By address, all shots but the first share its mapping.
            let made = if self.nat.mapping == Mapping::AddressDependent {
                scout.shots().iter().filter_map(|shot| shot.made).map(count).min().unwrap_or(made)
            } else {
                made
            };
            let before = looks.iter().rfind(|seen| count(seen.made) < made);
            let after = looks.iter().find(|seen| count(seen.made) > made);
            let (Some(before), Some(after)) = (before, after) else { continue };
            if step == 0 {
                continue;
            }
            held.told += 1;
            let own = count(after.made) - count(before.made);
            let steps = self.counter.steps_between(before.public.port(), after.public.port());
            let others = steps - own;
            if !self.counter.is_on_way(before.public.port(), after.public.port()) {
                // It stepped aside for a port that is taken, before the shot or after it.
                continue;
            }
            if (0..own).contains(&steps) {
                held.short += 1;
            } else if (0..=MOST_BETWEEN).contains(&others) {
                let first = self.counter.port_after(before.public.port(), made - count(before.made));
                let last = self.counter.port_after(first, others);
                held.holds.push(Hold { first, last, to: shot.to.port() });
            }
        }
        held
    }

    /// The NAT may have been restarted: where its counter was, and the mappings that were seen, say nothing of where it is.
    pub fn doubt(&mut self) {
        self.counter = Counter::default();
        self.random.clear();
        for survey in self.main.iter_mut().chain(&mut self.filter).chain(&mut self.scouts) {
            survey.doubt();
        }
    }

    /// Whether that is the socket that filtering is looked at from.
    pub fn asks_from(&self, socket: SocketId) -> bool {
        self.filter.as_ref().is_some_and(|survey| survey.socket == socket)
    }

    /// A scout's owner needs no answers any more.
    pub fn forget_scout(&mut self, socket: SocketId) {
        self.transmits.retain(|transmit| transmit.socket != socket);
        self.scouts.retain(|scout| scout.socket != socket);
    }

    /// A local port for a new socket.
    pub fn scout_port(&mut self) -> u16 {
        let width = u32::from(SCOUT_PORTS.end - SCOUT_PORTS.start);
        SCOUT_PORTS.start + (self.rng.next_u32() % width) as u16
    }

    /// We made mappings besides the surveys' own: they are not other users'.
    pub fn note_mappings(&mut self, made: Made) {
        self.made += made;
    }

    /// A sweep's mappings most likely have these ports.
    pub fn note_swept(&mut self, ports: &[u16]) {
        self.counter.note_swept(ports.iter().copied());
    }

    fn counted(&self, made: Made) -> u64 {
        made.counted(self.nat.mapping, self.nat.allocation)
    }

    /// Whether that mapping took no port of the NAT's sequence.
    fn keeps(&self, seen: &Observation) -> bool {
        matches!(self.nat.allocation, Allocation::SecondPriority { .. }) && seen.is_kept()
    }

    /// The counter as it stands now: the port that was given out last, to us or by our own doing, and when it was seen.
    pub fn position(&self) -> Option<(u16, Instant)> {
        let last = self.counter.last()?;
        let own = self.counted(self.made).saturating_sub(last.own + 1);
        Some((self.counter.port_after(last.port, i64::try_from(own).unwrap_or(0)), last.at))
    }

    /// Where the counter is by now: its place when it was seen last, and how far others have moved it since.
    pub fn expect(&self, now: Instant) -> Option<(Course, Ahead)> {
        let (last, at) = self.position()?;
        let ahead = Ahead::after(now.since(at), self.counter.rate().unwrap_or(UNKNOWN_RATE));
        let (step, range, aside) = (self.counter.step(), self.counter.range(), self.counter.aside());
        Some((Course { last, step, range, aside, own: self.counter.own_ports().collect() }, ahead))
    }

    /// Whether the counter was looked at a moment ago, so that a call needs no survey.
    pub fn is_watched(&self, now: Instant) -> bool {
        self.moves() && self.counter.last().is_some_and(|look| now.since(look.at) <= WATCHED)
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
            let seen = survey.as_ref().and_then(|survey| survey.observations().filter(|seen| !seen.is_kept()).last());
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
        let tuple = match (self.moves(), self.position(), own_tuple) {
            (true, Some((port, at)), Some((public, _))) => Some((SocketAddr::new(public.ip(), port), at)),
            _ => own_tuple,
        };
        View {
            tuple: tuple.map(|(public, _)| public),
            mapping: self.nat.mapping,
            filtering: self.filtering(now),
            allocation: self.nat.allocation,
            age: tuple.map_or(Duration::ZERO, |(_, at)| now.since(at)),
            cross_traffic: self.counter.rate(),
            range: self.range(),
            fresh_preserves: self.fresh_preserves(),
        }
    }

    /// The ports that the NAT gives out, as far as they were seen to have ends.
    fn range(&self) -> Option<(u16, u16)> {
        match self.nat.allocation {
            Allocation::Random => nat::block(&self.random.iter().copied().collect::<Vec<_>>()),
            _ => self.counter.range(),
        }
    }

    fn fresh_preserves(&self) -> bool {
        let first = self.filter.as_ref().and_then(|survey| survey.observations().next());
        first.is_some_and(|seen| seen.public.port() == seen.local_port)
    }

    /// What the NAT lets in, as far as it can be told by `now`: silence beside an answer says enough for an order of what is
    /// tried, long before the last repetition is over.
    fn filtering(&self, now: Instant) -> Filtering {
        let Some(filter) = &self.filter else { return Filtering::Unknown };
        let query = |reply| filter.queries().iter().find(|query| query.reply == reply);
        let asked = |reply| query(reply).map(|query| query.outcome);
        let answered = filter.first_answer().is_some();
        let in_vain = query(Reply::OtherPort)
            .is_some_and(|query| query.is_asked_in_vain(now, filter.first_round_trip(), FILTERED_AFTER));
        let silent = |outcome| match outcome {
            Some(Outcome::Silent) => answered,
            Some(Outcome::Waiting) => answered && in_vain,
            Some(Outcome::Answered { .. }) | None => false,
        };
        match (asked(Reply::OtherAddress), asked(Reply::OtherPort)) {
            (Some(Outcome::Answered { reply: Reply::OtherAddress, .. }), _) => Filtering::EndpointIndependent,
            // Where the server has no other address, address-dependent filtering is what is certain.
            (_, Some(Outcome::Answered { reply: Reply::OtherPort, .. })) => Filtering::AddressDependent,
            (_, port) if silent(port) => Filtering::AddressAndPortDependent,
            _ => Filtering::Unknown,
        }
    }

    fn all_targets(&self) -> Vec<Target> {
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
        all
    }

    fn targets(&self) -> Vec<Target> {
        let all = self.all_targets();
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
            if survey.handle_datagram(now, datagram) {
                self.read(now);
                return true;
            }
        }
        false
    }

    /// Reads the NAT anew from all that was observed.
    fn read(&mut self, now: Instant) {
        let surveys = || self.main.iter().chain(&self.filter).chain(&self.scouts);
        let looks: Vec<Observation> = surveys().flat_map(Survey::looks).collect();
        // One socket's whole view tells the mapping: the latest that is complete, and the others' ports with it the step.
        let whole = self.main.iter().chain(&self.scouts).filter(|survey| survey.tells_mapping && survey.is_ready(now));
        let latest = whole.filter(|survey| survey.observations().next().is_some()).max_by_key(|survey| survey.started);
        if let Some(survey) = latest {
            let main: Vec<_> = survey.observations().collect();
            let nat = Nat::classify(&main, if looks.is_empty() { &main } else { &looks }, &self.own);
            let known = nat.mapping != Mapping::Unknown && nat.allocation != Allocation::Unknown;
            if known || self.nat.mapping == Mapping::Unknown {
                let kind = |nat: &Nat| (nat.mapping, std::mem::discriminant(&nat.allocation));
                if kind(&nat) != kind(&self.nat) {
                    // What was seen is told apart by how many mappings of ours came before, and those are counted anew.
                    self.counter = Counter::default();
                }
                self.nat = nat;
            }
        }
        match self.nat.allocation {
            Allocation::Sequential { step } | Allocation::SecondPriority { step } => self.look(step, &looks),
            Allocation::Random => {
                for port in looks.iter().map(|seen| seen.public.port()) {
                    if !self.random.contains(&port) {
                        self.random.push_back(port);
                    }
                }
                self.random.drain(..self.random.len().saturating_sub(MAX_RANDOM_PORTS));
            }
            Allocation::Preserving | Allocation::Unknown => {}
        }
    }

    fn look(&mut self, step: i32, looks: &[Observation]) {
        self.counter.set_step(step);
        let stale = self.main_is_stale();
        let by_address = self.nat.mapping == Mapping::AddressDependent;
        for (nth, seen) in looks.iter().enumerate() {
            // By address, another port of a server shows the mapping that the first one showed.
            let same =
                |other: &Observation| other.local_port == seen.local_port && other.server.ip() == seen.server.ip();
            if by_address && looks[..nth].iter().any(same) {
                continue;
            }
            // An earlier run's mappings tell nothing of where the counter is.
            if self.keeps(seen) || (stale && seen.local_port == self.main_port) {
                continue;
            }
            let own = self.counted(seen.made);
            self.counter.handle_look(Look { at: seen.sent, port: seen.public.port(), own });
        }
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
            let before = survey.is_over();
            self.transmits.extend(survey.handle_timeout(now, &mut self.made));
            became_ready |= !before && survey.is_over();
        }
        if became_ready {
            self.read(now);
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
            self.transmits.retain(|transmit| transmit.socket != survey.socket);
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
}

fn host(spec: &Discovery) -> &Host {
    match spec {
        Discovery::Series(host) => host,
        Discovery::Port(at) | Discovery::Stun(at) => &at.host,
    }
}
