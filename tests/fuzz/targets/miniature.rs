//! A miniature world without NATs: two real members, a peer who means ill, and the real servers, around one wire. It holds
//! the members to their promises at each input; the steps come from [`super::node`].
//!
//! ```text
//! a 203.0.113.1, 10.77.0.1    b 203.0.113.2, 10.77.0.2    c 203.0.113.3, 10.77.0.3 (hostile, a peer of a's)
//! discovery 198.51.100.7 and .8, ports 4270 and 4271      rendezvous 198.51.100.9:4274
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use p2ptund::proto::config::Config;
use p2ptund::proto::ip::{Header, Upper};
use p2ptund::proto::mss;
use p2ptund::proto::node::Node;
use p2ptund::proto::wire::{Dudp, Kind, WireGuard};
use p2ptund::proto::{Action, Instant, Packet, SocketId, Transmit, Wall, discovery, rendezvous};

use super::hostile::Hostile;

pub const START: Instant = Instant::from_nanos(1_000_000_000);
pub const DISCOVERY: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 8)];
pub const RENDEZVOUS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const RENDEZVOUS_PORT: u16 = 4274;
/// How long a datagram is on its way where nobody touches it.
const DELAY: Duration = Duration::from_millis(10);
/// What the wire holds; more is lost.
const MOST_ON_THE_WIRE: usize = 2048;
/// A member that wakes so often at one instant never comes to rest.
const MOST_WAKES: u32 = 100;
/// What one input may set off besides its punch's sockets and probes: surveys, handshakes, words.
const MOST_BESIDE: usize = 200;
/// Events of a run; then it ends, so that no input takes long.
const FUEL: u32 = 4000;

/// The public address of member `who`.
pub fn public(who: usize) -> IpAddr {
    [203, 0, 113, u8::try_from(who + 1).expect("is small")].into()
}

/// Its address in the mesh.
pub fn inside(who: usize) -> Ipv4Addr {
    [10, 77, 0, u8::try_from(who + 1).expect("is small")].into()
}

pub fn wall(now: Instant) -> Wall {
    Wall(Duration::from_secs(1_790_000_000) + now.since(START))
}

#[derive(Clone)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
}

pub struct Member {
    pub node: Node,
    pub config: Config,
    pub sockets: BTreeMap<SocketId, u16>,
    pub names: VecDeque<String>,
    next_port: u16,
    /// Receiver and counter of each transport datagram sent: none is to come twice.
    nonces: BTreeSet<[u8; 12]>,
    woke: (Instant, u32),
}

impl Member {
    pub fn new(who: usize, config: Config, seed: [u8; 32], now: Instant) -> Self {
        let mut node = Node::new(config.clone(), seed, now, wall(now));
        let own = ipnet::IpNet::new(public(who), 24).expect("is a prefix");
        node.handle_addresses(now, &[own]);
        let sockets = [SocketId::MAIN_V4, SocketId::MAIN_V6].map(|id| (id, config.listen_port)).into();
        let (names, nonces, woke) = (VecDeque::new(), BTreeSet::new(), (now, 0));
        Self { node, config, sockets, names, next_port: 40000, nonces, woke }
    }
}

pub struct World {
    pub now: Instant,
    pub members: Vec<Member>,
    pub hostile: Hostile,
    pub discovery: discovery::server::Server,
    listeners: Vec<SocketAddr>,
    pub rendezvous: rendezvous::server::Server,
    /// By when it arrives, and a number.
    pub wire: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    /// All that was ever sealed or said by a member or server.
    genuine: BTreeSet<Vec<u8>>,
    /// Inner packets on their way from each member (the hostile one last), and how often.
    pub inner: [BTreeMap<Vec<u8>, u32>; 3],
    fuel: u32,
}

impl World {
    pub fn new(configs: [Config; 2], hostile: Hostile, rendezvous: rendezvous::server::Server, seed: u8) -> Self {
        let on = |ip: Ipv4Addr| [4270, 4271].map(|port| SocketAddr::new(ip.into(), port));
        let listeners: Vec<SocketAddr> = DISCOVERY.into_iter().flat_map(on).collect();
        let members = configs.into_iter().enumerate();
        let members = members.map(|(who, config)| Member::new(who, config, [seed.wrapping_add(who as u8); 32], START));
        let mut world = Self {
            now: START,
            members: members.collect(),
            hostile,
            discovery: discovery::server::Server::new(listeners.clone()),
            listeners,
            rendezvous,
            wire: BTreeMap::new(),
            sent: 0,
            genuine: BTreeSet::new(),
            inner: Default::default(),
            fuel: FUEL,
        };
        for who in 0..world.members.len() {
            world.drain(who);
        }
        world
    }

    pub fn is_spent(&self) -> bool {
        self.fuel == 0
    }

    /// Puts a datagram on the wire that somebody had a right to send.
    pub fn send(&mut self, datagram: Datagram) {
        self.genuine.insert(datagram.payload.clone());
        self.post(datagram);
    }

    /// Puts any datagram on the wire.
    pub fn post(&mut self, datagram: Datagram) {
        self.sent += 1;
        self.wire.insert((self.now + DELAY, self.sent), datagram);
        if self.wire.len() > MOST_ON_THE_WIRE {
            self.wire.pop_first();
        }
    }

    /// Gives member `who` an input, takes what it puts out, and checks that this has a bound.
    pub fn with<T>(&mut self, who: usize, act: impl FnOnce(&mut Node, Instant) -> T) -> T {
        let outcome = act(&mut self.members[who].node, self.now);
        self.drain(who);
        outcome
    }

    /// The bytes sent.
    pub fn drain(&mut self, who: usize) -> usize {
        let (mut count, mut bytes) = (0, 0);
        loop {
            let member = &mut self.members[who];
            if let Some(action) = member.node.poll_action() {
                count += 1;
                self.carry_out(who, action);
            } else if let Some(transmit) = member.node.poll_transmit() {
                count += 1;
                bytes += transmit.payload.len();
                self.transmit(who, transmit);
            } else {
                break;
            }
        }
        let member = &self.members[who];
        let punch = member.config.punch;
        let most = member.config.peers.len() * (punch.probes + 3 * punch.sockets) as usize + MOST_BESIDE;
        assert!(count <= most, "one input set off {count} things");
        let extra = member.sockets.len() - 2;
        let cap = member.config.peers.len() * (punch.sockets as usize + 2) + 16;
        assert!(extra <= cap, "{extra} sockets are open");
        bytes
    }

    fn carry_out(&mut self, who: usize, action: Action) {
        let member = &mut self.members[who];
        match action {
            Action::OpenSocket { id, port } => {
                assert!(id >= SocketId::FIRST_EXTRA);
                member.next_port = member.next_port.checked_add(1).unwrap_or(40000);
                let taken = port == 0 || member.sockets.values().any(|used| *used == port);
                let port = if taken { member.next_port } else { port };
                assert!(member.sockets.insert(id, port).is_none(), "opens {id:?}, which is open");
            }
            Action::CloseSocket { id } => {
                let known = id >= SocketId::FIRST_EXTRA && member.sockets.remove(&id).is_some();
                assert!(known, "closes {id:?}, which is no open extra socket");
            }
            Action::Resolve { name } => member.names.push_back(name),
            Action::Inject { packet } => assert!(Header::parse(&packet).is_some(), "gives the TUN device no packet"),
            Action::Overhear { .. } | Action::Event(_) => {}
        }
    }

    fn transmit(&mut self, who: usize, Transmit { socket, to, ttl, whole: _, payload }: Transmit) {
        let member = &mut self.members[who];
        let port = *member.sockets.get(&socket).unwrap_or_else(|| panic!("sends on {socket:?}, which is not open"));
        assert!(!to.ip().is_multicast() && to.port() != 0, "sends to {to}");
        if Kind::of(&payload) == Some(Kind::WireGuard(WireGuard::Transport)) {
            let nonce = payload[4..16].try_into().expect("transport data has a header");
            assert!(member.nonces.insert(nonce), "seals two datagrams with one nonce");
        }
        let datagram = Datagram { from: SocketAddr::new(public(who), port), to, payload };
        // A low time to live ends on the way, and there is no IPv6 here.
        if ttl.is_none() && to.is_ipv4() {
            self.send(datagram);
        }
    }

    /// Member `who`'s TUN device gives a packet.
    pub fn give_tun(&mut self, who: usize, inner: &[u8]) {
        if let Some(header) = Header::parse(inner) {
            self.note_inner(who, &inner[..header.len]);
        }
        let mut packet = Packet::copy_from(inner);
        if let Some(route) = self.members[who].node.handle_tun(self.now, &mut packet) {
            let payload = packet.bytes().to_vec();
            self.transmit(who, Transmit { socket: route.socket, to: route.to, ttl: None, whole: false, payload });
        }
        self.drain(who);
    }

    /// Lets time pass; what is due on the way happens.
    pub fn pass_time(&mut self, time: Duration) {
        let until = self.now + time;
        while self.fuel > 0 {
            let arrival = self.wire.first_key_value().map(|((due, _), _)| *due);
            let deadlines = self.members.iter().map(|member| member.node.poll_timeout());
            let others = [self.rendezvous.poll_timeout(), self.hostile.poll_timeout()];
            let next = deadlines.chain(others).chain([arrival]).flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.fuel -= 1;
            self.now = self.now.max(next);
            self.happen();
        }
    }

    fn happen(&mut self) {
        let now = self.now;
        let key = self.wire.first_key_value().map(|(key, _)| *key).filter(|(due, _)| *due <= now);
        if let Some(datagram) = key.and_then(|key| self.wire.remove(&key)) {
            self.arrive(datagram);
            return;
        }
        if self.rendezvous.poll_timeout().is_some_and(|due| due <= now) {
            self.rendezvous.handle_timeout(now);
        }
        if self.hostile.poll_timeout().is_some_and(|due| due <= now) {
            self.hostile.handle_timeout(now);
            self.collect_hostile();
        }
        for who in 0..self.members.len() {
            let member = &mut self.members[who];
            if member.node.poll_timeout().is_some_and(|due| due <= now) {
                member.woke = if member.woke.0 == now { (now, member.woke.1 + 1) } else { (now, 1) };
                assert!(member.woke.1 < MOST_WAKES, "its deadline stays in the past");
                self.with(who, Node::handle_timeout);
            }
        }
    }

    /// A datagram comes to whoever is there.
    pub fn arrive(&mut self, datagram: Datagram) {
        let Datagram { from, to, mut payload } = datagram;
        if let Some(listener) = self.listeners.iter().position(|at| *at == to) {
            if let Some((listener, there, answer)) = self.discovery.handle_datagram(listener, from, &payload) {
                self.send(Datagram { from: self.listeners[listener], to: there, payload: answer });
            }
        } else if to == SocketAddr::new(RENDEZVOUS.into(), RENDEZVOUS_PORT) {
            self.rendezvous.handle_datagram(self.now, 0, from, &mut payload);
            while let Some((_, there, payload)) = self.rendezvous.poll_transmit() {
                self.send(Datagram { from: to, to: there, payload });
            }
        } else if to.ip() == public(2) {
            self.hostile.handle_datagram(self.now, from, &payload);
            self.collect_hostile();
        } else if let Some(who) = (0..self.members.len()).find(|who| public(*who) == to.ip()) {
            let sockets = self.members[who].sockets.iter();
            let at = sockets.filter(|(id, _)| **id != SocketId::MAIN_V6).find(|(_, port)| **port == to.port());
            if let Some(socket) = at.map(|(id, _)| *id) {
                self.give(who, socket, from, &payload);
            }
        }
    }

    pub fn collect_hostile(&mut self) {
        while let Some(datagram) = self.hostile.poll_transmit() {
            self.send(datagram);
        }
    }

    /// A datagram comes to member `who`.
    pub fn give(&mut self, who: usize, socket: SocketId, from: SocketAddr, payload: &[u8]) {
        let node = &mut self.members[who].node;
        let before = node.drops();
        let mut packet = Packet::copy_from(payload);
        let for_tun = node.handle_datagram(self.now, socket, from, &mut packet);
        let dropped = node.drops().total() - before.total();
        let sent = self.drain(who);
        assert!(dropped <= 1 && !(dropped == 1 && for_tun), "a datagram is dropped, or not, once");
        if dropped == 1 && !self.genuine.contains(payload) {
            assert!(sent <= payload.len(), "{} bytes that were dropped set off {sent}", payload.len());
        }
        let node = &mut self.members[who].node;
        let before = node.drops();
        node.handle_overheard(self.now, from, payload);
        assert_eq!(node.drops(), before, "what is overheard is nobody's fault");
        assert_eq!(self.drain(who), 0, "a copy of what came by the socket is no news");
        let sealed = match Kind::of(payload) {
            None => {
                assert_eq!(dropped, 1, "what is of no kind is counted");
                true
            }
            Some(Kind::WireGuard(WireGuard::Transport)) => true,
            Some(Kind::Dudp(Dudp::Ack | Dudp::Ack2 | Dudp::Register | Dudp::MessageControl)) => true,
            Some(Kind::WireGuard(_) | Kind::Dudp(_) | Kind::Stun) => false,
        };
        if sealed && !self.genuine.contains(payload) {
            assert_eq!((dropped, for_tun), (1, false), "what nobody sealed is dropped, and counted");
        }
        if for_tun {
            self.take_inner(who, packet.bytes());
        }
    }

    /// Member `who` sends an inner packet.
    pub fn note_inner(&mut self, who: usize, inner: &[u8]) {
        *self.inner[who].entry(but_for_mss(inner)).or_default() += 1;
    }

    fn take_inner(&mut self, who: usize, inner: &[u8]) {
        let header = Header::parse(inner).expect("what goes to the TUN device is IP");
        assert_eq!(header.len, inner.len(), "padding stays behind");
        let sender = (0..3).find(|sender| IpAddr::from(inside(*sender)) == header.source);
        let sender = sender.filter(|sender| *sender != who).expect("a source is a peer's own");
        let on_its_way = self.inner[sender].get_mut(&but_for_mss(inner)).filter(|count| **count > 0);
        *on_its_way.expect("what is delivered was sent by that peer, as it is, and is delivered once") -= 1;
    }
}

/// An inner packet without what the members may change in it: the MSS of a SYN, and its checksum.
fn but_for_mss(inner: &[u8]) -> Vec<u8> {
    let mut inner = inner.to_vec();
    mss::clamp(&mut inner, 0);
    let checksum = Upper::find(&inner).filter(|upper| upper.protocol == 6).map(|upper| upper.at + 16);
    if let Some(checksum) = checksum.and_then(|at| inner.get_mut(at..at + 2)) {
        checksum.fill(0);
    }
    inner
}
