//! What a peer's machine may use of the member that it belongs to, for the length of one input.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::config;
use super::discovery;
use super::discovery::lifetime::Surroundings;
use super::discovery::survey::Protocol;
use super::introduction::{Errand, Introducers, Standing, Via};
use super::keys::PublicKey;
use super::lane::Order;
use super::memory::Memory;
use super::message_control::{Budget, Candidate, CandidateKind, MAX_CANDIDATES, Report};
use super::nat::{Allocation, Made, Mapping};
use super::noise::Identity;
use super::path::Way;
use super::plan;
use super::punch::SocketIds;
use super::rendezvous::{self, Wait};
use super::snapshot::{self, PortMapping};
use super::time::{Instant, Wall, WallClock};
use super::{Action, Event, Packet, SocketId, Transmit};

/// A peer's place in its member's list.
pub type PeerId = u32;

/// A port mapping that a router granted, for the main IPv4 socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedPort {
    pub external: SocketAddr,
    pub by: PortMapping,
}

/// One thing for the shell.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    Transmit(Transmit),
    Action(Action),
}

/// All of a member that is not its peers.
pub struct Local {
    pub identity: Identity,
    pub clock: WallClock,
    pub rng: ChaCha20Rng,
    pub listen_port: u16,
    /// As in the config.
    pub aes: bool,
    pub punch: config::Punch,
    /// This machine's own addresses.
    pub addresses: Vec<IpNet>,
    /// The tunnel's own prefixes, which are nowhere to be reached from outside.
    pub inside: Vec<IpNet>,
    pub mapped: Option<MappedPort>,
    pub discovery: discovery::client::Client,
    pub lifetime: discovery::lifetime::Lifetime,
    pub servers: Vec<rendezvous::client::Client>,
    pub ids: SocketIds,
    /// Connected peers, who can introduce us to others, and what they are to pass.
    pub introducers: Introducers,
    pub errands: VecDeque<Errand>,
    /// Which peer a session index belongs to.
    pub indices: BTreeMap<u32, PeerId>,
    /// What is to be sent and done, in order: a socket is opened before what it sends, and closed after.
    pub out: VecDeque<Output>,
    /// For those who carry packets, where somebody does.
    pub orders: Option<VecDeque<Order>>,
    /// The peers that a hard call is going on with; `[punch] hard_calls` at most.
    pub hard_calls: BTreeSet<PeerId>,
    /// The peers that a punch is going on with.
    pub punching: BTreeSet<PeerId>,
    /// So many hops take a packet out of our own site, past all its NATs, as far as was learned.
    pub low_ttl: u8,
    pub low_ttl_is_known: bool,
    pub memory: Memory,
}

impl Local {
    pub fn wall(&self, now: Instant) -> Wall {
        self.clock.at(now)
    }

    /// An unused session index for `peer`. Random, so that none can be guessed.
    pub fn new_index(&mut self, peer: PeerId) -> u32 {
        loop {
            let index = self.rng.next_u32();
            let taken = self.indices.contains_key(&index) || self.servers.iter().any(|server| server.owns(index));
            if !taken {
                self.indices.insert(index, peer);
                return index;
            }
        }
    }

    /// Whether a punch goes on with `peer`; while there is any, probes are overheard.
    pub fn note_punching(&mut self, peer: PeerId, on: bool) {
        let before = self.punching.is_empty();
        if on {
            self.punching.insert(peer);
        } else {
            self.punching.remove(&peer);
        }
        if self.punching.is_empty() != before {
            self.act(Action::Overhear { on: before });
        }
    }

    pub fn send(&mut self, way: Way, payload: Vec<u8>) {
        self.send_with(way, None, payload);
    }

    pub fn send_with(&mut self, way: Way, ttl: Option<u8>, payload: Vec<u8>) {
        let transmit = Transmit { socket: way.socket, to: way.remote, ttl, whole: false, payload };
        self.out.push_back(Output::Transmit(transmit));
    }

    /// Sends what is to be lost rather than cut into fragments.
    pub fn send_whole(&mut self, way: Way, payload: Vec<u8>) {
        let transmit = Transmit { socket: way.socket, to: way.remote, ttl: None, whole: true, payload };
        self.out.push_back(Output::Transmit(transmit));
    }

    pub fn send_packet(&mut self, way: Way, packet: &Packet) {
        self.send(way, packet.bytes().to_vec());
    }

    pub fn tell(&mut self, event: Event) {
        self.act(Action::Event(event));
    }

    pub fn act(&mut self, action: Action) {
        self.out.push_back(Output::Action(action));
    }

    /// Takes over what discovery wants sent and done.
    pub fn collect_discovery(&mut self) {
        while let Some(action) = self.discovery.poll_action().or_else(|| self.lifetime.poll_action()) {
            self.out.push_back(Output::Action(action));
        }
        while let Some(transmit) = self.discovery.poll_transmit().or_else(|| self.lifetime.poll_transmit()) {
            self.out.push_back(Output::Transmit(transmit));
        }
    }

    pub fn step(&mut self, peer: &str, text: String) {
        self.tell(Event::Step { peer: peer.to_owned(), text });
    }

    /// The first rendezvous server that we are registered with.
    pub fn connected_server(&self) -> Option<usize> {
        self.servers.iter().position(rendezvous::client::Client::is_connected)
    }

    /// Who passes a call to `peer` first: a server, or else the nearest introducer.
    pub fn passer(&self, peer: PeerId) -> Option<Via> {
        // Without discovery, a call needs the address that the introducer sees us at, which shows a moment after the path.
        let blind = !self.discovery.is_configured();
        let usable = |standing: &Standing| standing.seen.is_some() || !blind;
        let introducers = self.introducers.iter().filter(|(id, other)| **id != peer && usable(&other.standing));
        let nearest = introducers.min_by_key(|(_, introducer)| introducer.standing.rtt.unwrap_or(Duration::MAX));
        let nearest = nearest.map(|(id, _)| Via::Member { id: *id, delay: Duration::ZERO });
        self.connected_server().map(Via::Server).or(nearest)
    }

    /// Has `via` pass something to another member.
    pub fn pass(&mut self, now: Instant, via: Via, to: PublicKey, passed: Vec<u8>) {
        match via {
            Via::Server(number) => {
                if let Some(server) = self.servers.get_mut(number) {
                    server.forward(now, to, Wait::Never, passed);
                }
            }
            Via::Member { id, .. } => self.errands.push_back(Errand { introducer: id, to, passed }),
        }
    }

    /// Round trip to who passes a call, and the address that it sees us at.
    fn passer_view(&self, via: Via) -> (Option<Duration>, Option<SocketAddr>) {
        match via {
            Via::Server(number) => {
                let server = self.servers.get(number);
                (server.and_then(|server| server.rtt()), server.and_then(|server| server.public()))
            }
            Via::Member { id, .. } => {
                let standing = self.introducers.get(&id).map(|introducer| introducer.standing);
                (standing.and_then(|standing| standing.rtt), standing.and_then(|standing| standing.seen))
            }
        }
    }

    /// Goes on measuring how long our NAT remembers.
    pub fn measure_lifetime(&mut self, now: Instant) {
        let around = Surroundings {
            server: self.discovery.any_target(Protocol::Dudp),
            behind_nat: self.discovery.is_behind_nat(now),
            busy: !self.hard_calls.is_empty(),
        };
        self.lifetime.handle_timeout(now, around, &mut self.ids, &mut self.rng);
        // Each is a socket's of its own, at one server.
        let made = self.lifetime.take_mappings() as u64;
        self.discovery.note_mappings(Made { sockets: made, by_address: made, by_port: made });
    }

    /// Has the servers answer, from where we are now: it opens what our NAT may have forgotten.
    pub fn poke_servers(&mut self, now: Instant) {
        for server in &mut self.servers {
            server.poke(now);
        }
    }

    /// Opens a socket on a port of the core's choice.
    pub fn open_socket(&mut self) -> (SocketId, u16) {
        let id = self.ids.next();
        let port = self.discovery.scout_port();
        self.act(Action::OpenSocket { id, port });
        (id, port)
    }

    /// Whether discovery opened that socket for questions of its own, and will close it.
    pub fn asks_from(&self, socket: SocketId) -> bool {
        socket >= SocketId::FIRST_EXTRA && (self.discovery.asks_from(socket) || self.lifetime.asks_from(socket))
    }

    pub fn close_socket(&mut self, id: SocketId) {
        if id >= SocketId::FIRST_EXTRA {
            self.act(Action::CloseSocket { id });
        }
    }

    /// A hold's packets with that time to live made mappings at the NAT that counts.
    pub fn learn_low_ttl(&mut self, ttl: u8) {
        (self.low_ttl, self.low_ttl_is_known) = (ttl, true);
    }

    /// Whether a hard call with `peer` may go on now; if so, it counts as one.
    pub fn take_hard_turn(&mut self, peer: PeerId) -> bool {
        let most = usize::try_from(self.punch.hard_calls).unwrap_or(usize::MAX);
        let may = self.hard_calls.contains(&peer) || self.hard_calls.len() < most;
        if may {
            self.hard_calls.insert(peer);
        }
        may
    }

    /// The limits of calls, and how many hard ones go on.
    pub fn punch_snapshot(&self) -> snapshot::Punch {
        let punch = &self.punch;
        snapshot::Punch {
            window: punch.window,
            sockets: punch.sockets,
            probes: punch.probes,
            entries: punch.entries,
            rate: punch.pace(),
            timeout_s: punch.timeout.as_secs_f64(),
            hard_calls: punch.hard_calls,
            hard_calls_now: u32::try_from(self.hard_calls.len()).unwrap_or(u32::MAX),
        }
    }

    /// What we say of ourselves in a call that punches from `socket`, passed by `via`; with an unused socket where
    /// its first mapping can be expected to keep its port.
    pub fn report(&mut self, now: Instant, socket: SocketId, via: Via) -> (Report, Option<SocketId>) {
        let mut report = self.outline(now, socket, via);
        let fresh = report.fresh_port.map(|_| self.open_socket());
        report.fresh_port = fresh.map(|(_, port)| port);
        (report, fresh.map(|(socket, _)| socket))
    }

    /// The same, as far as it can be said without opening anything: `fresh_port` stands for one that would be opened.
    pub fn outline(&self, now: Instant, socket: SocketId, via: Via) -> Report {
        let view = self.discovery.view(now, socket);
        let keeps = matches!(view.allocation, Allocation::Preserving | Allocation::SecondPriority { .. });
        let preserves = keeps || view.fresh_preserves;
        let (rtt, seen) = self.passer_view(via);
        // Without discovery, or where all its answers to a scout were lost, the address that the one who passes the call sees us at is the
        // only tuple that there is.
        let tuple = view.tuple.or(seen.filter(SocketAddr::is_ipv4));
        // Whoever keeps first ports names one with any tuple: another call's plan would take its first mapping for one of the sequence.
        let behind_nat = view.mapping != Mapping::None && tuple.is_some();
        Report {
            tuple,
            mapping: view.mapping,
            filtering: view.filtering,
            allocation: view.allocation,
            age: view.age,
            cross_traffic: view.cross_traffic.map(Into::into),
            server_delay: rtt.unwrap_or_default(),
            candidates: self.candidates(),
            fresh_port: (behind_nat && preserves).then_some(self.listen_port),
            range: view.range,
            holds: Vec::new(),
            budget: Budget::default(),
            waiting: false,
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for net in &self.addresses {
            let ip = net.addr();
            if self.inside.iter().any(|inside| inside.contains(&ip)) {
                continue;
            }
            let kind = if ip.is_ipv4() { CandidateKind::Host } else { CandidateKind::Ipv6 };
            candidates.push(Candidate { kind, address: SocketAddr::new(ip, self.listen_port) });
        }
        if let Some(mapped) = self.mapped {
            candidates.push(Candidate { kind: CandidateKind::Mapped, address: mapped.external });
        }
        candidates.sort();
        candidates.dedup();
        // A mapped port is worth more than the seventeenth address of one's own.
        if candidates.len() > MAX_CANDIDATES {
            let mapped = candidates.pop();
            candidates.truncate(MAX_CANDIDATES - 1);
            candidates.extend(mapped);
        }
        candidates
    }

    /// The candidates of `theirs` that are worth a probe from here.
    pub fn worthwhile(&self, ours: &Report, theirs: &Report) -> Vec<Candidate> {
        let same_site = match (ours.tuple, theirs.tuple) {
            (Some(ours), Some(theirs)) => ours.ip() == theirs.ip(),
            _ => true,
        };
        let on_link = |ip: IpAddr| self.addresses.iter().any(|net| net.contains(&ip));
        let is_own = |ip: IpAddr| self.addresses.iter().any(|net| net.addr() == ip);
        let worthwhile = |candidate: &Candidate| {
            let ip = candidate.address.ip();
            match candidate.kind {
                // To a private address elsewhere a probe would only use up a port of our NAT.
                CandidateKind::Host => {
                    !is_own(ip) && (same_site || on_link(ip)) && theirs.tuple != Some(candidate.address)
                }
                CandidateKind::Ipv6 => plan::is_nearer(candidate, ours) && !is_own(ip),
                CandidateKind::Mapped => plan::is_nearer(candidate, ours) || same_site || on_link(ip),
            }
        };
        theirs.candidates.iter().copied().filter(worthwhile).collect()
    }
}
