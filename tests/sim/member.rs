//! A member's shell: drives one `Node` exactly as its contract says, and holds it to its promises.
//!
//! ```text
//! handle_… → { poll_action … → poll_transmit … } until both are empty → sleep to poll_timeout
//! ```
//!
//! Checked at every step: sends come from sockets that are open; extra sockets and probes stay within `[punch]`; what comes out
//! to the TUN device is a packet that was sent, for this member, from an address that the peer may have, and comes once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use p2ptund::proto::action::Drops;
use p2ptund::proto::config::Config;
use p2ptund::proto::node::{MappedPort, Node};
use p2ptund::proto::path::Way;
use p2ptund::proto::snapshot::Snapshot;
use p2ptund::proto::wire::Dudp;
use p2ptund::proto::{Action, Event, Instant, Packet, SocketId, Transmit, Wall};

use crate::firewall::Firewall;
use crate::inner::{Echo, too_big};
use crate::lanes::{Lanes, Opened};
use crate::pinger::Pinger;
use crate::world::{Datagram, Machine, Moment, START};

/// The time to live that Linux gives where nobody asks for another.
const TTL: u8 = 64;
/// UDP's share of an Ethernet frame: nothing here is large enough to need more.
const MAX_DATAGRAM: usize = 1472;
/// How WireGuard's transport data begins: type 4 and three zeroes, then the receiver's index and the counter.
const TRANSPORT: [u8; 4] = [4, 0, 0, 0];
/// The wall clock when a run starts: some day in 2026.
const WALL: Duration = Duration::from_secs(1_790_000_000);
/// How long a name takes to resolve.
const RESOLVING: Duration = Duration::from_millis(20);
/// Sockets beside those of a call that discovery may open for itself.
const SOCKETS_BESIDE: u32 = 8;
/// Datagrams to a peer that are no probes: handshakes that go on while a call fails, and what two calls at once add.
const PROBES_BESIDE: u32 = 64;

pub fn wall(now: Instant) -> Wall {
    Wall(WALL + now.since(START))
}

/// What one call used, or all of them at most.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    pub probes: u32,
    pub sockets: u32,
}

impl Usage {
    fn at_most(self, other: Self) -> Self {
        Self { probes: self.probes.max(other.probes), sockets: self.sockets.max(other.sockets) }
    }
}

pub struct Member {
    pub config: Config,
    pub events: Vec<(Instant, Event)>,
    pub pinger: Pinger,
    /// The most that one call used so far.
    pub most: Usage,
    /// Datagrams sent to each address since the last [`Member::start_counting`].
    pub traffic: BTreeMap<IpAddr, u64>,
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Most extra sockets that the system gives.
    pub socket_limit: usize,
    /// Whether its node starts without knowing them.
    pub hides_addresses: bool,
    /// When each inner packet was delivered, where a test asks for it.
    pub deliveries: Option<Vec<Instant>>,
    /// Whether probes are overheard that the firewall keeps out.
    overhears: bool,
    /// A firewall on the same machine.
    pub firewall: Option<Firewall>,
    /// A port that the router maps, and when this member hears of it.
    pub mapping: Option<(Instant, MappedPort)>,
    /// Datagrams to peers that went by no path, in all calls.
    pub probes: u32,
    node: Option<Box<Node>>,
    /// For half of all members, by their seed.
    pub lanes: Option<Lanes>,
    /// Soundings that came in and were not answered yet.
    soundings: u32,
    seed: [u8; 32],
    starts: Instant,
    addresses: Vec<IpNet>,
    servers: BTreeSet<IpAddr>,
    sockets: BTreeMap<SocketId, u16>,
    /// The extra ones by port. The main ones, one a family, share theirs.
    by_port: BTreeMap<u16, SocketId>,
    call: Usage,
    /// Peers that payload can flow to, and where.
    connected: BTreeMap<String, SocketAddr>,
    /// Receiver index and counter of every transport datagram sent: none is to come twice.
    nonces: BTreeSet<[u8; 12]>,
    delivered: BTreeSet<Echo>,
    resolving: VecDeque<(Instant, String)>,
}

impl Member {
    /// A member with `addresses` of its own that is started at `starts`. `servers`: with whom it may speak besides its peers.
    pub fn new(
        config: Config,
        addresses: Vec<IpNet>,
        servers: BTreeSet<IpAddr>,
        seed: [u8; 32],
        starts: Instant,
    ) -> Self {
        let main = [SocketId::MAIN_V4, SocketId::MAIN_V6].map(|id| (id, config.listen_port));
        Self {
            events: Vec::new(),
            pinger: Pinger::default(),
            most: Usage::default(),
            traffic: BTreeMap::new(),
            names: BTreeMap::new(),
            socket_limit: usize::MAX,
            hides_addresses: false,
            deliveries: None,
            overhears: false,
            firewall: None,
            mapping: None,
            probes: 0,
            node: None,
            lanes: None,
            soundings: 0,
            seed,
            starts,
            addresses,
            servers,
            sockets: BTreeMap::from(main),
            by_port: BTreeMap::new(),
            call: Usage::default(),
            connected: BTreeMap::new(),
            nonces: BTreeSet::new(),
            delivered: BTreeSet::new(),
            resolving: VecDeque::new(),
            config,
        }
    }

    /// The same member as it would be after a restart: only config and addresses are left (and what the test remembers).
    pub fn restarted(&self, seed: [u8; 32], starts: Instant) -> Self {
        let mut fresh = Self::new(self.config.clone(), self.addresses.clone(), self.servers.clone(), seed, starts);
        fresh.names = self.names.clone();
        fresh.pinger = self.pinger.clone();
        fresh.delivered = self.delivered.clone();
        fresh
    }

    pub fn snapshot(&self, now: Instant) -> Option<Snapshot> {
        self.node.as_ref().map(|node| node.snapshot(now))
    }

    pub fn drops(&self) -> Drops {
        self.node.as_ref().map_or(Drops::default(), |node| node.drops())
    }

    /// Whether payload can flow to every peer, as far as events tell.
    pub fn is_connected(&self) -> bool {
        self.connected.len() == self.config.peers.len()
    }

    pub fn first_connected(&self) -> Option<Instant> {
        self.events.iter().find(|(_, event)| matches!(event, Event::Connected { .. })).map(|(at, _)| *at)
    }

    /// The port of a socket that is open.
    pub fn port_of(&self, socket: SocketId) -> Option<u16> {
        self.sockets.get(&socket).copied()
    }

    /// Extra sockets that are open now.
    pub fn open_sockets(&self) -> usize {
        self.by_port.len()
    }

    pub fn start_counting(&mut self) {
        self.traffic.clear();
    }

    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// Its own addresses are these now; the node is told by [`Member::tell_addresses`].
    pub fn set_addresses(&mut self, addresses: Vec<IpNet>) {
        self.addresses = addresses;
    }

    pub fn tell_addresses(&mut self, moment: &mut Moment<'_>) {
        let addresses = self.addresses.clone();
        self.with_node(moment, |node, now| node.handle_addresses(now, &addresses));
    }

    /// Gives the node an input of the test's own.
    pub fn with_node(&mut self, moment: &mut Moment<'_>, act: impl FnOnce(&mut Node, Instant)) {
        if let Some(node) = &mut self.node {
            act(node, moment.now);
            self.drain(moment);
        }
    }

    /// The TUN device gives a packet.
    pub fn give_tun(&mut self, moment: &mut Moment<'_>, inner: &[u8]) {
        let Some(node) = &mut self.node else { return };
        let mut packet = Packet::copy_from(inner);
        if let Some(way) = self.lanes.as_mut().and_then(|lanes| lanes.seal(moment.now, &mut packet)) {
            let payload = packet.bytes().to_vec();
            return self
                .send(moment, Transmit { socket: way.socket, to: way.remote, ttl: None, whole: false, payload });
        }
        if let Some(route) = node.handle_tun(moment.now, &mut packet) {
            let payload = packet.bytes().to_vec();
            self.send(moment, Transmit { socket: route.socket, to: route.to, ttl: None, whole: false, payload });
        }
        self.drain(moment);
    }

    fn drain(&mut self, moment: &mut Moment<'_>) {
        loop {
            let Some(node) = &mut self.node else { return };
            if let Some(lanes) = &mut self.lanes {
                while let Some(order) = node.poll_order() {
                    lanes.take(order);
                }
            }
            if let Some(action) = node.poll_action() {
                moment.notes.push(format!("{action:?}"));
                self.carry_out(moment, action);
            } else if let Some(transmit) = node.poll_transmit() {
                self.send(moment, transmit);
            } else {
                return;
            }
        }
    }

    fn carry_out(&mut self, moment: &mut Moment<'_>, action: Action) {
        match action {
            Action::OpenSocket { id, port } => self.open(moment, id, port),
            Action::CloseSocket { id } => {
                match self.sockets.get(&id).copied().filter(|_| id >= SocketId::FIRST_EXTRA) {
                    Some(port) => {
                        self.sockets.remove(&id);
                        self.by_port.remove(&port);
                    }
                    None => moment.faults.push(format!("closes {id:?}, which is not an open extra socket")),
                }
            }
            Action::Resolve { name } => self.resolving.push_back((moment.now + RESOLVING, name)),
            Action::Overhear { on } => {
                if on == self.overhears {
                    moment.faults.push(format!("asks twice for overhearing to be {on}"));
                }
                self.overhears = on;
            }
            Action::Inject { packet } => match too_big(&packet) {
                Some((to, mtu)) if self.config.addresses.iter().any(|own| own.addr() == to) => self.pinger.too_big(mtu),
                _ => moment.faults.push(format!("gives the TUN device {packet:?}")),
            },
            Action::Event(event) => {
                match &event {
                    Event::Connected { peer, endpoint, .. } => {
                        self.connected.insert(peer.clone(), *endpoint);
                        self.call = Usage::default();
                    }
                    Event::Lost { peer, .. } => {
                        self.connected.remove(peer);
                    }
                    Event::CallFailed { .. } => self.call = Usage::default(),
                    _ => {}
                }
                self.events.push((moment.now, event));
            }
        }
    }

    fn open(&mut self, moment: &mut Moment<'_>, id: SocketId, port: u16) {
        if self.open_sockets() >= self.socket_limit {
            if let Some(node) = &mut self.node {
                node.handle_socket_failed(moment.now, id);
            }
            return;
        }
        let taken = |port: u16| port == self.config.listen_port || self.by_port.contains_key(&port);
        let mut local = port;
        while local == 0 || taken(local) {
            // Linux's `ip_local_port_range`.
            local = moment.dice.port(32768, 60999);
        }
        if id < SocketId::FIRST_EXTRA || self.sockets.insert(id, local).is_some() {
            moment.faults.push(format!("opens {id:?}, which is open"));
        }
        self.by_port.insert(local, id);
        let open = u32::try_from(self.open_sockets()).expect("is a count of sockets");
        self.call.sockets += 1;
        self.most = self.most.at_most(self.call);
        let cap = self.config.punch.sockets + SOCKETS_BESIDE;
        let calls = u32::try_from(self.config.peers.len()).expect("is small");
        if open > cap || (self.call.sockets > calls * cap && !self.is_connected()) {
            moment.faults.push(format!("opened {} sockets in one call, {open} are open", self.call.sockets));
        }
    }

    fn send(&mut self, moment: &mut Moment<'_>, transmit: Transmit) {
        let Transmit { socket, to, ttl, whole, payload } = transmit;
        let Some(port) = self.sockets.get(&socket) else {
            moment.faults.push(format!("sends on {socket:?}, which is not open"));
            return;
        };
        let Some(own) = self.addresses.iter().map(IpNet::addr).find(|own| own.is_ipv4() == to.is_ipv4()) else {
            return;
        };
        if payload.len() > MAX_DATAGRAM {
            moment.faults.push(format!("sends {} bytes in one datagram", payload.len()));
        }
        *self.traffic.entry(to.ip()).or_default() += 1;
        if payload.starts_with(&TRANSPORT) {
            let nonce = payload.get(4..16).and_then(|nonce| nonce.try_into().ok()).unwrap_or_default();
            if !self.nonces.insert(nonce) {
                moment.faults.push("seals two datagrams with one nonce".to_owned());
            }
        }
        let to_an_endpoint = self.connected.values().any(|endpoint| *endpoint == to);
        // Payload is the user's own, wherever it goes; a sounding, and its answer, measure a path that was found.
        let answers_a_sounding = self.soundings > 0 && payload.starts_with(&Dudp::Ack2.header());
        self.soundings -= u32::from(answers_a_sounding);
        let measures = whole || answers_a_sounding;
        let is_probe = !self.servers.contains(&to.ip()) && !payload.starts_with(&TRANSPORT) && !measures;
        self.probes += u32::from(is_probe && !to_an_endpoint);
        if is_probe && !self.is_connected() && !to_an_endpoint {
            self.call.probes += 1;
            self.most = self.most.at_most(self.call);
            // With several peers, calls may follow each other without an end that shows here.
            let calls = u32::try_from(self.config.peers.len()).expect("is small");
            if self.call.probes == calls * (self.config.punch.probes + PROBES_BESIDE) + 1 {
                moment.faults.push(format!("sent {} datagrams to a peer within one call", self.call.probes));
            }
        }
        if let Some(firewall) = &mut self.firewall {
            firewall.note(moment.now, *port, to);
        }
        moment.sent.push(Datagram {
            src: SocketAddr::new(own, *port),
            dst: to,
            ttl: ttl.unwrap_or(TTL),
            whole,
            payload,
        });
    }

    /// An inner packet for the TUN device.
    fn take_tun(&mut self, moment: &mut Moment<'_>, bytes: &[u8]) {
        let Some(echo) = Echo::decode(bytes) else {
            moment.faults.push("delivers a packet that nobody sent".to_owned());
            return;
        };
        if !self.config.addresses.iter().any(|own| own.addr() == echo.dst) {
            moment.faults.push(format!("delivers a packet for {}", echo.dst));
        }
        if !self.config.peers.iter().flat_map(|peer| &peer.allowed_ips).any(|net| net.contains(&echo.src)) {
            moment.faults.push(format!("delivers a packet from {}", echo.src));
        }
        if !self.delivered.insert(echo) {
            moment.faults.push(format!("delivers {echo:?} twice"));
        }
        if let Some(deliveries) = &mut self.deliveries {
            deliveries.push(moment.now);
        }
        if echo.reply {
            self.pinger.answered(moment.now, echo.number, echo.payload);
        } else {
            self.give_tun(moment, &echo.answer().encode());
        }
    }
}

impl Machine for Member {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, datagram: Datagram) {
        let Some(node) = &mut self.node else { return };
        // Both families' main sockets share a port number, so the family tells them apart; extra ones are IPv4.
        let port = datagram.dst.port();
        if self.firewall.as_mut().is_some_and(|firewall| !firewall.lets_in(moment.now, port, datagram.src)) {
            if self.overhears && port == self.config.listen_port {
                node.handle_overheard(moment.now, datagram.src, &datagram.payload);
                self.drain(moment);
            }
            return;
        }
        let socket = match port == self.config.listen_port {
            true => Some(SocketId::main_for(&datagram.dst)),
            false => self.by_port.get(&port).copied().filter(|_| datagram.dst.is_ipv4()),
        };
        let Some(socket) = socket else { return };
        self.soundings += u32::from(datagram.whole);
        let mut packet = Packet::copy_from(&datagram.payload);
        let way = Way { socket, remote: datagram.src };
        match self.lanes.as_mut().map(|lanes| lanes.open(moment.now, way, &mut packet)) {
            None | Some(Opened::NotOurs) => {}
            Some(Opened::Done) => return,
            Some(Opened::Inner(packet)) => return self.take_tun(moment, packet.bytes()),
        }
        if node.handle_datagram(moment.now, socket, datagram.src, &mut packet) {
            self.take_tun(moment, packet.bytes());
        }
        self.drain(moment);
    }

    fn handle_timeout(&mut self, moment: &mut Moment<'_>) {
        let now = moment.now;
        let Some(node) = &mut self.node else {
            let mut node = Node::new(self.config.clone(), self.seed, now, wall(now));
            self.overhears = false;
            self.lanes = (self.seed[0] % 2 == 1).then(|| Lanes::of(&mut node));
            node.handle_addresses(now, if self.hides_addresses { &[] } else { &self.addresses });
            self.node = Some(Box::new(node));
            return self.drain(moment);
        };
        if node.poll_timeout().is_some_and(|due| due <= now) {
            node.handle_timeout(now);
            self.drain(moment);
        }
        if self.lanes.as_mut().is_some_and(|lanes| lanes.is_due(now)) {
            self.with_node(moment, |node, now| node.handle_traffic(now));
        }
        if let Some((_, mapped)) = self.mapping.take_if(|(due, _)| *due <= now) {
            self.with_node(moment, |node, now| node.handle_port_mapping(now, Some(mapped)));
        }
        while self.resolving.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, name)) = self.resolving.pop_front() else { break };
            let addresses = self.names.get(&name).cloned().unwrap_or_default();
            self.with_node(moment, |node, now| node.handle_resolved(now, &name, &addresses));
        }
        while let Some(echo) = self.pinger.due(now) {
            self.give_tun(moment, &echo.encode());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let Some(node) = &self.node else { return Some(self.starts) };
        let resolved = self.resolving.front().map(|(due, _)| *due);
        let mapped = self.mapping.map(|(due, _)| due);
        let look = self.lanes.as_ref().and_then(Lanes::look_at);
        [node.poll_timeout(), look, resolved, mapped, self.pinger.next()].into_iter().flatten().min()
    }
}
