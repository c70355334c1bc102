//! A mesh member: composes the machines, and tells datagrams apart.
//!
//! ```text
//! data out   TUN ─► handle_tun ─► route by destination ─► peer: tunnel seals ─► path ─► UDP
//! data in    UDP ─► handle_datagram ─► index ─► peer: tunnel opens ─► source allowed? ─► TUN
//! a call     rendezvous client ─► peer: survey, call, answer ─► punch ─► path
//! ```
//!
//! One owner of everything; peers borrow what is not theirs ([`Local`]) for the length of one input. Deadlines stand in one
//! table, so that a member of 1,000 peers looks only at those that are due.

mod introducing;
mod oversize;
mod reload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::action::{Drop, Drops};
use super::allowance::Allowance;
use super::allowed_ips::AllowedIps;
use super::config::{self, Config};
pub use super::context::MappedPort;
use super::context::{Local, Output, PeerId};
use super::cookie::{Gate, Verdict, reply_receiver};
use super::discovery;
use super::discovery::lifetime::Lifetime;
use super::introduction::Via;
use super::ip::Header;
use super::keys::PublicKey;
use super::lane::{DropCounts, Order};
use super::memory::Memory;
use super::mss;
use super::noise::{Identity, Received};
use super::path::Way;
use super::peer::Peer;
use super::peer::recovering::Change;
use super::punch::SocketIds;
use super::rendezvous::{self, client::Word};
use super::session::receiver_of;
use super::snapshot::{self, Behaviour, Snapshot};
use super::time::WallClock;
use super::wire::{Dudp, Kind, WireGuard};
use super::{Action, Event, Instant, Packet, SocketId, Transmit, Wall};

/// More handshake messages a second than this, and proof of address is asked for: a member of 1,000 peers that all restart
/// stays below it, and it is a tenth of what one core can do at about 150 µs each.
const BUSY_PER_S: u32 = 600;

/// A server that sees us move makes us look at the network anew at most this often: a NAT that forgets between two keepalives
/// moves us each time, and a server may lie.
const MOVED_INTERVAL: Duration = Duration::from_secs(60);

/// Past one NAT, and no further, until more is learned: a packet that ends at the next router opens that NAT.
const LOW_TTL: u8 = 2;

/// One mesh member, whole. Single owner, no locks; see [`crate::proto`] for how it is driven.
pub struct Node {
    config: Config,
    local: Local,
    gate: Gate,
    routes: Routes,
    peers: BTreeMap<PeerId, Peer>,
    by_key: BTreeMap<PublicKey, PeerId>,
    next_peer: PeerId,
    /// When which peer is to be looked at.
    deadlines: BTreeSet<(Instant, PeerId)>,
    next_ping: u64,
    /// The NAT's mapping, filtering and allocation, as they were told.
    nat_told: Option<(Behaviour, Behaviour, snapshot::Allocation)>,
    /// Something that calls wait for may have come.
    stirred: bool,
    drops: Drops,
    dropped_beside: Arc<DropCounts>,
    /// What we may still pass for others.
    introductions: Allowance,
    /// How many more errors about packets that are too long our own side is told.
    too_big: Allowance,
    /// How long paths may be silent, as peers and servers were told last.
    keepalive: Option<Duration>,
    /// When a server last said that we are elsewhere than before.
    moved_at: Option<Instant>,
    resolving: BTreeSet<String>,
}

/// Whose each virtual address is.
pub type Routes = AllowedIps<PeerId>;

/// Where a sealed packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    pub socket: SocketId,
    pub to: SocketAddr,
}

impl Node {
    /// A member that starts at `now`; `seed` is 32 bytes of the system's best randomness.
    pub fn new(config: Config, seed: [u8; 32], now: Instant, wall: Wall) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let identity = Identity::new(config.private_key.clone());
        let gate = Gate::new(identity.public(), BUSY_PER_S, &mut rng);
        let discovery = new_discovery(&config, &mut rng);
        let servers = new_servers(now, &identity, &config);
        let mut node = Self {
            local: Local {
                identity,
                clock: WallClock::new(now, wall),
                rng,
                listen_port: config.listen_port,
                aes: config.aes,
                punch: config.punch,
                addresses: Vec::new(),
                inside: config.addresses.iter().map(ipnet::IpNet::trunc).collect(),
                mapped: None,
                discovery,
                lifetime: Lifetime::default(),
                servers,
                introducers: BTreeMap::new(),
                errands: VecDeque::new(),
                ids: SocketIds::default(),
                indices: BTreeMap::new(),
                out: VecDeque::new(),
                orders: None,
                hard_calls: BTreeSet::new(),
                punching: BTreeSet::new(),
                low_ttl: LOW_TTL,
                low_ttl_is_known: false,
                memory: Memory::default(),
            },
            gate,
            routes: Routes::default(),
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            next_peer: 0,
            deadlines: BTreeSet::new(),
            next_ping: 0,
            nat_told: None,
            stirred: false,
            drops: Drops::default(),
            dropped_beside: Arc::default(),
            introductions: Allowance::default(),
            too_big: Allowance::default(),
            keepalive: None,
            moved_at: None,
            resolving: BTreeSet::new(),
            config,
        };
        for peer in node.config.peers.clone() {
            node.add_peer(now, peer);
        }
        node
    }

    fn add_peer(&mut self, now: Instant, config: config::Peer) {
        let id = self.next_peer;
        self.next_peer += 1;
        self.by_key.insert(config.public_key, id);
        for prefix in &config.allowed_ips {
            self.routes.insert(*prefix, id);
        }
        let peer = Peer::new(now, id, config, &self.local, self.config.mtu);
        if let Some(name) = peer.endpoint_name() {
            self.local.act(Action::Resolve { name: name.to_owned() });
        }
        self.peers.insert(id, peer);
        self.schedule(id);
    }

    /// A datagram came in on `socket`. `true`: `packet` now is an inner IP packet for the TUN device.
    pub fn handle_datagram(&mut self, now: Instant, socket: SocketId, from: SocketAddr, packet: &mut Packet) -> bool {
        let way = Way { socket, remote: from };
        let outcome = self.dispatch(now, way, packet);
        self.settle(now);
        match outcome {
            Ok(for_tun) => for_tun,
            Err(reason) => {
                self.drops.count(reason);
                false
            }
        }
    }

    /// A datagram for the main port reached this machine, while [`Action::Overhear`] says so, and may or may not have come by the
    /// socket as well. It is news only if it is the first copy of a call's probe; anything else is nobody's fault.
    pub fn handle_overheard(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if Kind::of(datagram) != Some(Kind::Dudp(Dudp::Ack)) {
            return;
        }
        let id = rendezvous::receiver(datagram).and_then(|index| self.local.indices.get(&index).copied());
        if let Some(id) = id {
            let way = Way { socket: SocketId::main_for(&from), remote: from };
            let _ = self.with_peer(id, |peer, local| peer.handle_overheard(now, local, way, datagram));
            self.settle(now);
        }
    }

    fn dispatch(&mut self, now: Instant, way: Way, packet: &mut Packet) -> Result<bool, Drop> {
        let kind = Kind::of(packet.bytes()).ok_or(Drop::Malformed)?;
        // Those close when discovery has done with them: no path may go by one, where a NAT lets in whoever guesses its port.
        if self.local.asks_from(way.socket) && !matches!(kind, Kind::Stun | Kind::Dudp(Dudp::PubInfo)) {
            return Err(Drop::Unknown);
        }
        match kind {
            Kind::WireGuard(WireGuard::Transport) => self.handle_transport(now, way, packet),
            Kind::WireGuard(kind) => self.handle_handshake(now, way, kind, packet.bytes()).map(|()| false),
            Kind::Stun => self.handle_discovery(now, way.socket, packet.bytes()).map(|()| false),
            Kind::Dudp(kind) => self.handle_dudp(now, way, kind, packet.bytes()).map(|()| false),
        }
    }

    fn handle_transport(&mut self, now: Instant, way: Way, packet: &mut Packet) -> Result<bool, Drop> {
        let index = receiver_of(packet.bytes(), 4).ok_or(Drop::Malformed)?;
        let id = self.local.indices.get(&index).copied().ok_or(Drop::Unknown)?;
        let peer = self.peers.get_mut(&id).ok_or(Drop::Unknown)?;
        let header = peer.handle_transport(now, &mut self.local, way, packet);
        let limit = peer.inner_limit();
        self.schedule(id);
        let Some(header) = header? else { return Ok(false) };
        if self.routes.lookup(header.source) != Some(id) {
            return Err(Drop::ForeignSource);
        }
        mss::clamp(packet.bytes_mut(), limit);
        Ok(true)
    }

    fn handle_handshake(&mut self, now: Instant, way: Way, kind: WireGuard, message: &[u8]) -> Result<(), Drop> {
        if kind == WireGuard::CookieReply {
            let index = reply_receiver(message).ok_or(Drop::Malformed)?;
            if let Some(server) = self.local.servers.iter_mut().find(|server| server.owns(index)) {
                return server.handle_cookie_reply(now, message);
            }
            let id = self.local.indices.get(&index).copied().ok_or(Drop::Unknown)?;
            let peer = self.peers.get_mut(&id).ok_or(Drop::Unknown)?;
            return peer.tunnel.handle_cookie(now, index, message);
        }
        // A response to an initiation of ours names its index, which nobody can guess: it needs no proof of address, and a
        // flood of initiations must not stand in its way.
        if kind == WireGuard::Response {
            let index = receiver_of(message, 8).ok_or(Drop::Malformed)?;
            if let Some(server) = self.local.servers.iter_mut().find(|server| server.owns(index)) {
                server.handle_response(now, way.remote, message, &mut self.local.rng)?;
                self.stirred = true;
                return Ok(());
            }
            let id = self.local.indices.get(&index).copied().ok_or(Drop::Unknown)?;
            return self.with_peer(id, |peer, local| peer.handle_response(now, local, way, index, message));
        }
        match self.gate.judge(now, &self.local.identity, way.remote, message, &mut self.local.rng) {
            Verdict::Pass => {}
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Reply(reply) => {
                self.local.send(way, reply.to_vec());
                return Ok(());
            }
        }
        let received = Received::open(&self.local.identity, message)?;
        let id = self.by_key.get(&received.peer).copied().ok_or(Drop::Unauthentic)?;
        self.with_peer(id, |peer, local| peer.handle_initiation(now, local, way, received))
    }

    fn with_peer(
        &mut self,
        id: PeerId,
        act: impl FnOnce(&mut Peer, &mut Local) -> Result<(), Drop>,
    ) -> Result<(), Drop> {
        let peer = self.peers.get_mut(&id).ok_or(Drop::Unknown)?;
        let outcome = act(peer, &mut self.local);
        self.schedule(id);
        outcome
    }

    fn handle_discovery(&mut self, now: Instant, socket: SocketId, datagram: &[u8]) -> Result<(), Drop> {
        if self.local.lifetime.handle_datagram(now, socket, datagram) {
            return Ok(());
        }
        if !self.local.discovery.handle_datagram(now, datagram) {
            return Err(Drop::Unknown);
        }
        self.stirred = true;
        Ok(())
    }

    fn handle_dudp(&mut self, now: Instant, way: Way, kind: Dudp, datagram: &[u8]) -> Result<(), Drop> {
        match kind {
            Dudp::PubInfo => self.handle_discovery(now, way.socket, datagram),
            Dudp::Ack | Dudp::Ack2 => {
                let index = rendezvous::receiver(datagram).ok_or(Drop::Malformed)?;
                let id = self.local.indices.get(&index).copied().ok_or(Drop::Unknown)?;
                self.with_peer(id, |peer, local| peer.handle_probe(now, local, way, kind, datagram))
            }
            Dudp::Register | Dudp::MessageControl | Dudp::Reset => self.handle_words(now, way, kind, datagram),
            // Requests are for servers.
            Dudp::Start => Err(Drop::Malformed),
        }
    }

    fn handle_words(&mut self, now: Instant, way: Way, kind: Dudp, datagram: &[u8]) -> Result<(), Drop> {
        let index = rendezvous::receiver(datagram).ok_or(Drop::Malformed)?;
        if kind == Dudp::Reset {
            // It names our packet's receiver, so the server's index and not ours: the address tells whose it is.
            let mut outcome = Err(Drop::Unknown);
            for server in &mut self.local.servers {
                outcome = outcome.or(server.handle_reset(now, way.remote, datagram));
            }
            return outcome;
        }
        let servers = &mut self.local.servers;
        let Some(number) = servers.iter().position(|server| server.owns(index)) else {
            let id = self.local.indices.get(&index).copied().filter(|_| kind == Dudp::MessageControl);
            return self.handle_control(now, way, id.ok_or(Drop::Unknown)?, datagram);
        };
        match servers[number].handle_sealed(now, kind, way.remote, datagram)? {
            Word::Nothing => Ok(()),
            Word::Moved { forgotten_after, .. } => {
                if let Some(silence) = forgotten_after {
                    self.local.lifetime.note_forgotten(silence);
                }
                if self.moved_at.is_none_or(|at| now.since(at) >= MOVED_INTERVAL) {
                    self.moved_at = Some(now);
                    // A NAT that forgot or was renumbered is still the NAT that it was: what is known of it serves until there is news.
                    self.local.discovery.again(now);
                    self.each_peer(|peer, local| peer.hurry(now, local));
                    self.settle(now);
                }
                Ok(())
            }
            Word::Absent { to, held } => {
                let id = self.by_key.get(&to).copied().ok_or(Drop::Unknown)?;
                self.with_peer(id, |peer, local| {
                    peer.handle_absent(now, local, Via::Server(number), held);
                    Ok(())
                })
            }
            Word::Deliver { from, held, passed } => {
                let id = self.by_key.get(&from).copied().ok_or(Drop::Unauthentic)?;
                let via = Via::Server(number);
                self.with_peer(id, |peer, local| match held {
                    Some(held) => peer.handle_held(now, local, via, held, &passed),
                    None => peer.handle_passed(now, local, via, &passed),
                })
            }
        }
    }

    /// From now on somebody carries packets beside the core, and is told how by [`Node::poll_order`]; counts there what is dropped.
    pub fn hand_out(&mut self) -> Arc<DropCounts> {
        self.local.orders = Some(VecDeque::from([Order::Routes(Arc::new(self.routes.clone()))]));
        self.each_peer(|_, _| {});
        self.dropped_beside.clone()
    }

    /// The next change of what they have; [`super::lane`] says when it is to be carried out.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.local.orders.as_mut()?.pop_front()
    }

    /// Looks at what was carried beside the core. To be called within some 50 ms of the first news.
    pub fn handle_traffic(&mut self, now: Instant) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(&id)
                && peer.handle_traffic(now, &mut self.local)
            {
                self.schedule(id);
            }
        }
        self.settle(now);
    }

    /// The TUN device gave an inner packet. `Some`: `packet` now is a datagram to send there.
    /// `None`: it was kept until there is a path, or dropped.
    pub fn handle_tun(&mut self, now: Instant, packet: &mut Packet) -> Option<Route> {
        let id = Header::parse(packet.bytes()).and_then(|header| self.routes.lookup(header.destination));
        let Some((id, peer)) = id.and_then(|id| Some((id, self.peers.get_mut(&id)?))) else {
            self.drops.count(Drop::NoRoute);
            return None;
        };
        mss::clamp(packet.bytes_mut(), peer.inner_limit());
        let way = if peer.is_oversize(packet.bytes().len()) {
            self.handle_oversize(now, id, packet);
            None
        } else {
            peer.handle_packet(now, &mut self.local, packet)
        };
        self.schedule(id);
        self.settle(now);
        way.map(|way| Route { socket: way.socket, to: way.remote })
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let wall = self.local.wall(now);
        let mut servers = std::mem::take(&mut self.local.servers);
        for server in &mut servers {
            server.handle_timeout(now, wall, &self.local.identity, &mut self.local.rng);
        }
        self.local.servers = servers;
        if self.local.discovery.poll_timeout().is_some_and(|due| now >= due) {
            self.local.discovery.handle_timeout(now);
            self.stirred = true;
        }
        if self.local.lifetime.poll_timeout().is_some_and(|due| now >= due) {
            self.local.measure_lifetime(now);
        }
        while let Some((due, id)) = self.deadlines.first().copied().filter(|(due, _)| now >= *due) {
            self.deadlines.remove(&(due, id));
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.scheduled = None;
                peer.handle_timeout(now, &mut self.local);
                self.schedule_after(id, now);
            }
        }
        self.settle(now);
    }

    /// Puts a peer at its place in the table of deadlines.
    fn schedule(&mut self, id: PeerId) {
        self.schedule_after(id, Instant::default());
    }

    /// As [`Node::schedule`], for a peer that was just looked at: it has done all that was due, so what it still calls due is
    /// due a little later.
    fn schedule_after(&mut self, id: PeerId, looked_at: Instant) {
        self.note_standing(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.hand_out(&mut self.local);
        let is_hard = peer.is_in_hard_call();
        if is_hard {
            self.local.hard_calls.insert(id);
        } else {
            self.local.hard_calls.remove(&id);
        }
        self.local.note_punching(id, peer.is_punching());
        let floor = looked_at + Duration::from_nanos(u64::from(looked_at != Instant::default()));
        let due = peer.poll_timeout().map(|due| due.max(floor));
        if peer.scheduled == due {
            return;
        }
        if let Some(old) = peer.scheduled {
            self.deadlines.remove(&(old, id));
        }
        peer.scheduled = due;
        if let Some(due) = due {
            self.deadlines.insert((due, id));
        }
    }

    /// Collects what the machines want done, and lets calls go on that waited for others.
    fn settle(&mut self, now: Instant) {
        self.run_errands(now);
        self.local.collect_discovery();
        self.spread_keepalive(now);
        for number in 0..self.local.servers.len() {
            while let Some(action) = self.local.servers[number].poll_action() {
                self.stirred |= matches!(action, Action::Event(Event::Registered { .. }));
                self.local.act(action);
            }
            while let Some(transmit) = self.local.servers[number].poll_transmit() {
                self.local.out.push_back(Output::Transmit(transmit));
            }
        }
        if std::mem::take(&mut self.stirred) {
            self.tell_nat(now);
            let waiting: Vec<PeerId> =
                self.peers.values().filter(|peer| peer.waits_for_others()).map(|peer| peer.id).collect();
            for id in waiting {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.handle_timeout(now, &mut self.local);
                    self.schedule(id);
                }
            }
            self.settle(now);
        }
    }

    /// Has paths and registrations kept open as often as the NAT was found to need it.
    fn spread_keepalive(&mut self, now: Instant) {
        let interval = self.local.lifetime.keepalive();
        if self.keepalive.replace(interval) == Some(interval) {
            return;
        }
        for server in &mut self.local.servers {
            server.set_keepalive(interval);
        }
        self.each_peer(|peer, _| peer.handle_keepalive(now, interval));
    }

    fn tell_nat(&mut self, now: Instant) {
        if !self.local.discovery.is_ready(now, SocketId::MAIN_V4) {
            return;
        }
        let nat = self.local.discovery.nat(now);
        let summary = format!(
            "mapping {:?}, filtering {:?}, allocation {:?}, step {}",
            nat.mapping,
            nat.filtering,
            nat.allocation,
            nat.delta.map_or_else(|| "unknown".to_owned(), |step| step.to_string()),
        );
        let kind = (nat.mapping, nat.filtering, nat.allocation);
        // A new look at the network asks for the filtering last: that it is not known again is no news.
        let is_news = self.nat_told.is_none_or(|(mapping, filtering, allocation)| {
            (mapping, allocation) != (kind.0, kind.2) || (filtering != kind.1 && kind.1 != Behaviour::Unknown)
        });
        if self.local.discovery.is_configured() && is_news {
            self.nat_told = Some(kind);
            self.local.tell(Event::NatChanged { summary });
        }
    }

    /// This machine's own unicast addresses (no loopback, no link-local, not the tunnel's own) are these. To be called once
    /// at the start and whenever they, or the default route, changed.
    pub fn handle_addresses(&mut self, now: Instant, addresses: &[ipnet::IpNet]) {
        let change = Change::between(&self.local.addresses, addresses);
        self.local.addresses = addresses.to_vec();
        self.on_network_changed(now);
        self.each_peer(|peer, local| peer.handle_network(now, local, &change));
        self.settle(now);
    }

    /// The wall clock reads this. To be told now and then; what it means is [`WallClock::adjust`]'s to say.
    pub fn handle_wall_clock(&mut self, now: Instant, wall: Wall) {
        self.local.clock.adjust(now, wall);
    }

    fn on_network_changed(&mut self, now: Instant) {
        let own: Vec<IpAddr> = self.local.addresses.iter().map(ipnet::IpNet::addr).collect();
        let scout = self.local.ids.next();
        self.local.discovery.start(now, self.config.listen_port, &own, scout);
        self.local.lifetime.start(now);
        // The registrations may be at addresses that are ours no longer.
        for server in &mut self.local.servers {
            server.renew(now);
        }
        self.handle_timeout(now);
    }

    fn each_peer(&mut self, mut act: impl FnMut(&mut Peer, &mut Local)) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(&id) {
                act(peer, &mut self.local);
                self.schedule(id);
            }
        }
    }

    pub fn handle_resolved(&mut self, now: Instant, name: &str, addresses: &[IpAddr]) {
        self.resolving.remove(name);
        for server in &mut self.local.servers {
            server.handle_resolved(now, name, addresses);
        }
        if self.local.discovery.handle_resolved(now, name, addresses) {
            let own: Vec<IpAddr> = self.local.addresses.iter().map(ipnet::IpNet::addr).collect();
            let scout = self.local.ids.next();
            self.local.discovery.start(now, self.config.listen_port, &own, scout);
        }
        let named: Vec<PeerId> =
            self.peers.values().filter(|peer| peer.endpoint_name() == Some(name)).map(|peer| peer.id).collect();
        for id in named {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.handle_resolved(now, addresses);
                self.schedule(id);
            }
        }
        self.handle_timeout(now);
    }

    /// A socket could not be opened. Its shots go nowhere, which the call's own time takes care of.
    pub fn handle_socket_failed(&mut self, now: Instant, id: SocketId) {
        self.local.discovery.forget_scout(id);
        self.local.lifetime.handle_socket_failed(id);
        self.stirred = true;
        self.settle(now);
    }

    /// A router mapped the main port, or (`None`) does no longer.
    pub fn handle_port_mapping(&mut self, now: Instant, mapped: Option<MappedPort>) {
        if self.local.mapped == mapped {
            return;
        }
        self.local.mapped = mapped;
        if mapped.is_some() {
            // A call that fails for want of just this need not wait out its back-off.
            self.each_peer(|peer, local| {
                if !peer.is_connected(now) {
                    peer.handle_mapped(now, local);
                }
            });
        }
        self.settle(now);
    }

    /// Times the path to a peer once; [`super::Event::Pong`] with the token answers, if anything does.
    /// Places a call first where there is no path. `Err`: names no such peer.
    pub fn handle_ping(&mut self, now: Instant, peer: &str) -> Result<u64, String> {
        let found = self
            .peers
            .values()
            .find(|candidate| candidate.config.name == peer || candidate.config.public_key.to_string() == peer);
        let Some(id) = found.map(|peer| peer.id) else {
            let names: Vec<_> = self.peers.values().map(|peer| peer.config.name.as_str()).collect();
            return Err(format!("no peer is called {peer}; there are: {}", names.join(", ")));
        };
        self.next_ping += 1;
        let token = self.next_ping;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handle_ping(now, &mut self.local, token);
            self.schedule(id);
        }
        self.settle(now);
        Ok(token)
    }

    /// Datagrams to send now, in order. `None` where there are none, or where an action comes first: drain this and
    /// [`Node::poll_action`] in turn until both have nothing.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        match self.local.out.pop_front_if(|next| matches!(next, Output::Transmit(_)))? {
            Output::Transmit(transmit) => Some(transmit),
            Output::Action(_) => None,
        }
    }

    /// Things to do now, in order. `None` where there are none, or where a datagram comes first.
    pub fn poll_action(&mut self) -> Option<Action> {
        loop {
            match self.local.out.pop_front_if(|next| matches!(next, Output::Action(_)))? {
                // Several servers may bear one name: it is asked for once at a time.
                Output::Action(Action::Resolve { name }) if !self.resolving.insert(name.clone()) => {}
                Output::Action(action) => return Some(action),
                Output::Transmit(_) => return None,
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let servers = self.local.servers.iter().filter_map(rendezvous::client::Client::poll_timeout);
        let peers = self.deadlines.first().map(|(due, _)| *due);
        let own = [self.local.discovery.poll_timeout(), self.local.lifetime.poll_timeout()];
        servers.chain(own.into_iter().flatten()).chain(peers).min()
    }

    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let mut nat = self.local.discovery.nat(now);
        nat.mapping_lifetime_s = self.local.lifetime.measured().map(|lived| lived.as_secs_f64());
        nat.keepalive_s = Some(self.local.lifetime.keepalive().as_secs_f64());
        nat.low_ttl = Some(self.local.low_ttl);
        if let Some(mapped) = self.local.mapped {
            nat.port_mapping = mapped.by;
        }
        let seen = self.local.servers.iter().filter_map(rendezvous::client::Client::public).filter(SocketAddr::is_ipv4);
        if nat.public.is_empty() {
            nat.public.extend(seen.take(1));
        }
        Snapshot {
            interface: self.config.interface.clone(),
            public_key: self.local.identity.public().to_string(),
            listen_port: self.config.listen_port,
            addresses: self.config.addresses.iter().map(ToString::to_string).collect(),
            mtu: self.config.mtu,
            nat,
            punch: self.local.punch_snapshot(),
            rendezvous: self
                .local
                .servers
                .iter()
                .map(|server| snapshot::Rendezvous {
                    address: server.address(),
                    connected: server.is_connected(),
                    rtt_ms: server.rtt().map(|rtt| rtt.as_secs_f64() * 1e3),
                })
                .collect(),
            peers: self.peers.values().map(|peer| peer.snapshot(now, &self.local)).collect(),
            drops: self.drops().named().map(|(name, count)| (name.to_owned(), count)).collect(),
        }
    }

    pub fn drops(&self) -> Drops {
        let mut drops = self.drops;
        self.dropped_beside.add_to(&mut drops);
        drops
    }
}

fn new_discovery(config: &Config, rng: &mut ChaCha20Rng) -> discovery::client::Client {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    discovery::client::Client::new(config.discovery.clone(), seed)
}

fn new_servers(now: Instant, identity: &Identity, config: &Config) -> Vec<rendezvous::client::Client> {
    let servers = config.rendezvous.iter().cloned();
    servers.map(|server| rendezvous::client::Client::new(now, identity, server)).collect()
}
