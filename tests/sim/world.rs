//! The network, its machines, and the clock.
//!
//! ```text
//!              internet (`hops` routers that only count the TTL down)
//!            link │                │ link           │ link
//!          outer NAT             NAT              machine (server, or a member without NAT)
//!            link │ carrier's net  │ LAN
//!          inner NAT             link
//!                 │ LAN          machine
//!               link
//!             machine
//! ```
//!
//! Time goes straight to the next arrival or the next deadline that a machine gave, whichever is earlier, and to nothing
//! else: a machine that forgot a deadline sleeps on, and one that never comes to rest is found out ([`Busy`]).
//! Everything that happens goes into a hash, so that two runs can be compared.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};

use p2ptund::proto::Instant;

pub use crate::datagram::Datagram;
use crate::dice::Dice;
use crate::link::{Direction, Link};
use crate::nat::{Loss, Nat, Profile};
use crate::watch::{Busy, Transcript};

/// What a machine sees of the world while it acts.
pub struct Moment<'a> {
    pub now: Instant,
    pub dice: &'a mut Dice,
    /// What it sends, in order; `src` is one of its own addresses.
    pub sent: &'a mut Vec<Datagram>,
    /// Things for the transcript.
    pub notes: &'a mut Vec<String>,
    /// Broken invariants.
    pub faults: &'a mut Vec<String>,
}

/// A machine on the network.
pub trait Machine {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, datagram: Datagram);
    fn handle_timeout(&mut self, moment: &mut Moment<'_>);
    fn poll_timeout(&self) -> Option<Instant>;
    /// Whether it may send to addresses that exist only; an adversary need not care.
    fn is_honest(&self) -> bool {
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NetId(usize);
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NatId(usize);
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostId(pub usize);

pub const INTERNET: NetId = NetId(0);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Owner {
    Nat(NatId),
    Host(HostId),
}

#[derive(Default)]
struct Network {
    gateway: Option<NatId>,
    owners: BTreeMap<IpAddr, Owner>,
}

pub struct Router {
    pub nat: Nat,
    pub link: Link,
    pub inside: NetId,
    outside: NetId,
}

pub struct Host<M> {
    pub machine: M,
    pub link: Link,
    pub network: NetId,
    /// Datagrams that it sent, and that reached it.
    pub sent: u64,
    pub received: u64,
    addresses: Vec<IpAddr>,
    deadline: Option<Instant>,
    busy: Busy,
}

impl<M> Host<M> {
    pub fn address_v4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }
}

/// Where a datagram is when its time comes.
enum At {
    Network(NetId),
    Nat(NatId),
    Host(HostId),
}

struct Flight {
    when: Instant,
    /// Ties go to whom sent first.
    order: u64,
    at: At,
    /// On the heap, so that sorting the flights moves little.
    datagram: Box<Datagram>,
}

pub struct World<M> {
    pub now: Instant,
    pub dice: Dice,
    /// Routers between any two links on the internet, that only count the TTL down.
    pub hops: u8,
    pub faults: Vec<String>,
    pub transcript: Transcript,
    /// The last datagrams that crossed the internet, where somebody listens there.
    pub tap: Option<Vec<Datagram>>,
    /// What NATs dropped, by reason.
    pub losses: BTreeMap<&'static str, u64>,
    networks: Vec<Network>,
    routers: Vec<Router>,
    hosts: Vec<Host<M>>,
    flights: BinaryHeap<Reverse<Flight>>,
    sent: u64,
    known: BTreeSet<IpAddr>,
}

/// What a fresh system's clock might show; any number but zero, so that a subtraction too many shows.
pub const START: Instant = Instant::from_nanos(1_000_000_000_000);
const HOPS: u8 = 3;
const TAP_KEEPS: usize = 512;

impl<M: Machine> World<M> {
    pub fn new(seed: u64) -> Self {
        Self {
            now: START,
            dice: Dice::new(seed),
            hops: HOPS,
            faults: Vec::new(),
            transcript: Transcript::default(),
            tap: None,
            losses: BTreeMap::new(),
            networks: vec![Network::default()],
            routers: Vec::new(),
            hosts: Vec::new(),
            flights: BinaryHeap::new(),
            sent: 0,
            known: BTreeSet::new(),
        }
    }

    /// A NAT on `outside`, and the network behind it.
    pub fn add_nat(&mut self, outside: NetId, wan: Ipv4Addr, profile: Profile, link: Link) -> (NatId, NetId) {
        let id = NatId(self.routers.len());
        let inside = NetId(self.networks.len());
        self.networks.push(Network { gateway: Some(id), owners: BTreeMap::new() });
        let addresses: Vec<Ipv4Addr> = std::iter::once(wan).chain(profile.more_addresses.iter().copied()).collect();
        let nat = Nat::new(wan, profile, &mut self.dice);
        self.routers.push(Router { nat, link, inside, outside });
        for address in addresses {
            self.own(outside, address.into(), Owner::Nat(id));
        }
        (id, inside)
    }

    pub fn add_host(&mut self, network: NetId, addresses: &[IpAddr], link: Link, machine: M) -> HostId {
        let id = HostId(self.hosts.len());
        let deadline = machine.poll_timeout();
        let addresses = addresses.to_vec();
        for address in &addresses {
            self.own(network, *address, Owner::Host(id));
            self.own_further_out(network, *address);
        }
        let (sent, received, busy) = (0, 0, Busy::default());
        self.hosts.push(Host { machine, link, network, addresses, deadline, busy, sent, received });
        id
    }

    /// A machine is plugged in elsewhere, or gets other addresses.
    pub fn move_host(&mut self, id: HostId, network: NetId, addresses: &[IpAddr], link: Link) {
        for owners in self.networks.iter_mut().map(|network| &mut network.owners) {
            owners.retain(|_, owner| *owner != Owner::Host(id));
        }
        for address in addresses {
            self.own(network, *address, Owner::Host(id));
            self.own_further_out(network, *address);
        }
        let host = &mut self.hosts[id.0];
        (host.network, host.link, host.addresses) = (network, link, addresses.to_vec());
        self.transcript.note(self.now, &format!("host {} moves to {addresses:?}", id.0));
    }

    /// IPv6 is not translated: every network further out knows which router the address is behind.
    fn own_further_out(&mut self, network: NetId, address: IpAddr) {
        let mut inner = network;
        while let Some(gateway) = self.networks[inner.0].gateway.filter(|_| address.is_ipv6()) {
            inner = self.routers[gateway.0].outside;
            self.own(inner, address, Owner::Nat(gateway));
        }
    }

    /// A NAT gets another address outside, and forgets everything, as where its provider renews its lease.
    pub fn renumber(&mut self, id: NatId, wan: Ipv4Addr) {
        let (outside, old) = (self.routers[id.0].outside, self.routers[id.0].nat.wan);
        self.networks[outside.0].owners.remove(&IpAddr::V4(old));
        self.own(outside, wan.into(), Owner::Nat(id));
        self.routers[id.0].nat.wan = wan;
        self.reboot(id);
    }

    fn own(&mut self, network: NetId, address: IpAddr, owner: Owner) {
        let before = self.networks[network.0].owners.insert(address, owner);
        assert!(before.is_none_or(|before| before == owner), "{address} is taken in this network");
        self.known.insert(address);
    }

    pub fn machine(&self, id: HostId) -> &M {
        &self.hosts[id.0].machine
    }

    pub fn host(&self, id: HostId) -> &Host<M> {
        &self.hosts[id.0]
    }

    pub fn host_mut(&mut self, id: HostId) -> &mut Host<M> {
        &mut self.hosts[id.0]
    }

    pub fn router_mut(&mut self, id: NatId) -> &mut Router {
        &mut self.routers[id.0]
    }

    pub fn reboot(&mut self, id: NatId) {
        self.routers[id.0].nat.reboot(&mut self.dice);
        self.transcript.note(self.now, &format!("NAT {} reboots", id.0));
    }

    /// Another machine takes the place of one, with its addresses. What was on the way to the old one reaches the new one.
    pub fn replace(&mut self, id: HostId, machine: M) -> M {
        let host = &mut self.hosts[id.0];
        host.deadline = machine.poll_timeout();
        std::mem::replace(&mut host.machine, machine)
    }

    /// Lets a machine act of itself.
    pub fn act<R>(&mut self, id: HostId, act: impl FnOnce(&mut M, &mut Moment<'_>) -> R) -> R {
        let (mut sent, mut notes) = (Vec::new(), Vec::new());
        let host = &mut self.hosts[id.0];
        let mut moment = Moment {
            now: self.now,
            dice: &mut self.dice,
            sent: &mut sent,
            notes: &mut notes,
            faults: &mut self.faults,
        };
        let result = act(&mut host.machine, &mut moment);
        host.deadline = host.machine.poll_timeout();
        notes.iter().for_each(|note| self.transcript.note(self.now, &format!("host {}: {note}", id.0)));
        sent.into_iter().for_each(|datagram| self.launch(id, datagram));
        result
    }

    /// Puts a datagram onto the internet, whoever it claims to be from. The tap does not hear it.
    pub fn inject(&mut self, datagram: Datagram) {
        self.transcript.datagram(self.now, '!', &datagram);
        self.deliver(INTERNET, Box::new(datagram));
    }

    /// Runs until `done`, or until nothing is left to happen before `until`. Whether it was `done`.
    pub fn run(&mut self, until: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            if !self.step(until) {
                return false;
            }
        }
    }

    /// One thing happens: an arrival, or a machine's deadline. `false`, and it is `until`, where nothing does before.
    pub fn step(&mut self, until: Instant) -> bool {
        let arrival = self.flights.peek().map(|Reverse(flight)| flight.when);
        let deadlines = self.hosts.iter().enumerate().filter_map(|(id, host)| Some((host.deadline?, HostId(id))));
        let deadline = deadlines.min();
        match (arrival, deadline) {
            (Some(at), deadline) if at <= until && deadline.is_none_or(|(due, _)| at <= due) => {
                self.now = self.now.max(at);
                let Some(Reverse(flight)) = self.flights.pop() else { return true };
                self.arrive(flight);
                true
            }
            (_, Some((due, id))) if due <= until => {
                self.now = self.now.max(due);
                if let Err(fault) = self.hosts[id.0].busy.woke(self.now) {
                    panic!("host {}: {fault} (deadline {due:?}, now {:?})", id.0, self.now);
                }
                self.act(id, |machine, moment| machine.handle_timeout(moment));
                true
            }
            _ => {
                self.now = self.now.max(until);
                false
            }
        }
    }

    fn launch(&mut self, id: HostId, datagram: Datagram) {
        let host = &mut self.hosts[id.0];
        host.sent += 1;
        self.transcript.datagram(self.now, '>', &datagram);
        if !host.addresses.contains(&datagram.src.ip()) {
            self.faults.push(format!("host {} sends from {}, which is not its own", id.0, datagram.src));
        }
        if host.machine.is_honest() && !self.known.contains(&datagram.dst.ip()) {
            self.faults.push(format!("host {} sends to {}, which is nobody", id.0, datagram.dst));
        }
        let network = host.network;
        let arrivals = host.link.carry(self.now, Direction::Up, &datagram, &mut self.dice);
        self.fly_each(arrivals, || At::Network(network), Box::new(datagram));
    }

    fn fly_each(&mut self, arrivals: [Option<Instant>; 2], at: impl Fn() -> At, datagram: Box<Datagram>) {
        let [first, second] = arrivals;
        if let Some(when) = second {
            self.fly(when, at(), datagram.clone());
        }
        if let Some(when) = first {
            self.fly(when, at(), datagram);
        }
    }

    fn fly(&mut self, when: Instant, at: At, datagram: Box<Datagram>) {
        self.sent += 1;
        self.flights.push(Reverse(Flight { when, order: self.sent, at, datagram }));
    }

    fn arrive(&mut self, flight: Flight) {
        let Flight { at, mut datagram, .. } = flight;
        match at {
            At::Network(network) => self.cross(network, datagram),
            At::Nat(id) => {
                let router = &mut self.routers[id.0];
                match router.nat.inbound(self.now, &mut datagram) {
                    Ok(()) => {
                        let inside = router.inside;
                        self.deliver(inside, datagram);
                    }
                    Err(loss) => self.lose(loss, &datagram),
                }
            }
            At::Host(id) => {
                self.transcript.datagram(self.now, '<', &datagram);
                self.hosts[id.0].received += 1;
                self.act(id, |machine, moment| machine.handle_datagram(moment, *datagram));
            }
        }
    }

    /// A datagram that came up from a machine or an inner NAT is on `network`.
    fn cross(&mut self, network: NetId, mut datagram: Box<Datagram>) {
        if network == INTERNET {
            if let Some(tap) = &mut self.tap {
                tap.push((*datagram).clone());
                if tap.len() > TAP_KEEPS {
                    tap.remove(0);
                }
            }
            if datagram.ttl <= self.hops {
                return self.lose(Loss::Ttl, &datagram);
            }
            datagram.ttl -= self.hops;
        }
        self.deliver(network, datagram);
    }

    /// To whom has the address on `network`, or else out through its gateway.
    fn deliver(&mut self, network: NetId, mut datagram: Box<Datagram>) {
        match self.networks[network.0].owners.get(&datagram.dst.ip()) {
            Some(Owner::Host(id)) => {
                let id = *id;
                let arrivals = self.hosts[id.0].link.carry(self.now, Direction::Down, &datagram, &mut self.dice);
                self.fly_each(arrivals, || At::Host(id), datagram);
            }
            Some(Owner::Nat(id)) => {
                let id = *id;
                let arrivals = self.routers[id.0].link.carry(self.now, Direction::Down, &datagram, &mut self.dice);
                self.fly_each(arrivals, || At::Nat(id), datagram);
            }
            None => {
                let Some(gateway) = self.networks[network.0].gateway else { return };
                let router = &mut self.routers[gateway.0];
                let turns_back = router.nat.owns(datagram.dst.ip());
                if turns_back && !router.nat.profile.hairpin {
                    return;
                }
                if let Err(loss) = router.nat.outbound(self.now, &mut self.dice, &mut datagram) {
                    return self.lose(loss, &datagram);
                }
                let outside = router.outside;
                let (at, arrivals): (fn(NatId, NetId) -> At, _) = if turns_back {
                    (|nat, _| At::Nat(nat), [Some(self.now), None])
                } else {
                    (
                        |_, outside| At::Network(outside),
                        router.link.carry(self.now, Direction::Up, &datagram, &mut self.dice),
                    )
                };
                self.fly_each(arrivals, || at(gateway, outside), datagram);
            }
        }
    }

    fn lose(&mut self, loss: Loss, datagram: &Datagram) {
        let reason = match loss {
            Loss::Ttl => "ttl",
            Loss::Filtered => "filtered",
            Loss::Forbidden => "forbidden",
            Loss::Full => "full",
            Loss::PortTaken => "port taken",
        };
        *self.losses.entry(reason).or_default() += 1;
        self.transcript.datagram(self.now, 'x', datagram);
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.when, self.order).cmp(&(other.when, other.order))
    }
}
