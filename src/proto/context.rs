//! What a peer's machine may use of the member that it belongs to, for the length of one input.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::config;
use super::discovery;
use super::discovery::lifetime::Surroundings;
use super::discovery::survey::Protocol;
use super::message_control::{Candidate, CandidateKind, MAX_CANDIDATES, Report};
use super::nat::{Allocation, Mapping};
use super::noise::Identity;
use super::path::Way;
use super::punch::SocketIds;
use super::rendezvous;
use super::snapshot::PortMapping;
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
    /// Which peer a session index belongs to.
    pub indices: BTreeMap<u32, PeerId>,
    /// What is to be sent and done, in order: a socket is opened before what it sends, and closed after.
    pub out: VecDeque<Output>,
    /// Which peer is in a hard call; there is one at a time.
    pub hard_call: Option<PeerId>,
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

    pub fn send(&mut self, way: Way, payload: Vec<u8>) {
        self.send_with(way, None, payload);
    }

    pub fn send_with(&mut self, way: Way, ttl: Option<u8>, payload: Vec<u8>) {
        self.out.push_back(Output::Transmit(Transmit { socket: way.socket, to: way.remote, ttl, payload }));
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

    /// Goes on measuring how long our NAT remembers.
    pub fn measure_lifetime(&mut self, now: Instant) {
        let around = Surroundings {
            server: self.discovery.any_target(Protocol::Dudp),
            behind_nat: self.discovery.is_behind_nat(now),
            busy: self.hard_call.is_some(),
        };
        self.lifetime.handle_timeout(now, around, &mut self.ids, &mut self.rng);
        self.discovery.note_mappings(self.lifetime.take_mappings());
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

    pub fn close_socket(&mut self, id: SocketId) {
        if id >= SocketId::FIRST_EXTRA {
            self.act(Action::CloseSocket { id });
        }
    }

    /// What we say of ourselves in a call that punches from `socket`, through server number `server`; with an unused socket
    /// where its first mapping can be expected to keep its port.
    pub fn report(&mut self, now: Instant, socket: SocketId, server: usize) -> (Report, Option<SocketId>) {
        let view = self.discovery.view(now, socket);
        let behind_nat = view.mapping != Mapping::None && view.tuple.is_some();
        let preserves = view.allocation == Allocation::Preserving || view.fresh_preserves;
        let fresh = (behind_nat && preserves).then(|| self.open_socket());
        let server = self.servers.get(server);
        let seen = server.and_then(rendezvous::client::Client::public).filter(SocketAddr::is_ipv4);
        let report = Report {
            // Without discovery, the address that the rendezvous server sees us at is the one tuple that there is.
            tuple: view.tuple.or(seen),
            mapping: view.mapping,
            filtering: view.filtering,
            allocation: view.allocation,
            age: view.age,
            cross_traffic: view.cross_traffic,
            server_delay: server.and_then(rendezvous::client::Client::rtt).unwrap_or_default(),
            candidates: self.candidates(),
            fresh_port: fresh.map(|(_, port)| port),
        };
        (report, fresh.map(|(socket, _)| socket))
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
        let has_ipv6 = self.addresses.iter().any(|net| net.addr().is_ipv6());
        let worthwhile = |candidate: &Candidate| {
            let ip = candidate.address.ip();
            match candidate.kind {
                // To a private address elsewhere a probe would only use up a port of our NAT.
                CandidateKind::Host => {
                    !is_own(ip) && (same_site || on_link(ip)) && theirs.tuple != Some(candidate.address)
                }
                CandidateKind::Ipv6 => ip.is_ipv6() && has_ipv6 && !is_own(ip),
                CandidateKind::Mapped => ip.is_ipv4(),
            }
        };
        theirs.candidates.iter().copied().filter(worthwhile).collect()
    }
}
