//! A NAT in RFC 4787's words: mapping × filtering × port allocation × lifetime, and what real ones do besides.
//!
//! ```text
//! inside  ── outbound: ttl? → port map? → mapping (old, or a new port) → permit the remote ──► outside
//! inside ◄── inbound:  port map? → a mapping on that port that permits the remote → ttl? ──── outside
//!                      none: dropped; where `poisonable`, it leaves an entry that takes the 5-tuple
//! ```
//!
//! Assumptions, each as Linux does it unless a profile says otherwise:
//! - A datagram whose TTL ends at the router makes no mapping, for it never leaves (an entry is confirmed after forwarding).
//! - A mapping lives `unreplied` until something came back through it, then `lifetime`; both from its last use.
//! - Where mapping is by address and port and ports are preserved, one outside port serves several inside endpoints, as long as
//!   the remotes differ; the 5-tuple is what must be unique.
//! - `poisonable`: a router without a filter on its own WAN side takes an unsolicited datagram to itself for a flow of its own,
//!   and remembers it for 30 s. A mapping that needs that 5-tuple gets another, random port; a sequential allocator that is
//!   bound to its counter has no other, and the datagram is dropped.
//! - Where ports are kept, a flow gets the port that the same inside endpoint's last flow got, if it can: so once a flow was given another
//!   one, all after it are, as netfilter does it (`find_appropriate_src`).
//! - Cross traffic moves a sequential counter, and takes no port for long.
//! - Of several public addresses, a host keeps the one that it got first (paired), or each mapping gets any (RFC 4787, 4.1).
//!   Each has its own ports. Port maps are on the first.
//! - IPv6 is not translated; a stateful filter (by address and port) stands in its way.
//!
//! The lab's own NAT (`tests/lab/own_nat.rs`) is this model, too, with real packets.

mod ports;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::datagram::Datagram;
use crate::dice::Dice;
use ports::Ports;
pub use ports::{Allocation, Aside, Turn};

/// What a mapping, or a permission to come in, depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Endpoint,
    Address,
    AddressAndPort,
}

/// Which of several public addresses a mapping gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pooling {
    Paired,
    Arbitrary,
}

#[derive(Clone, Debug)]
pub struct Profile {
    pub mapping: Scope,
    pub filtering: Scope,
    pub allocation: Allocation,
    /// The outside ports that are given out.
    pub range: (u16, u16),
    /// What a counter does at the end of the range, and at a port in use.
    pub turn: Turn,
    pub aside: Aside,
    pub lifetime: Duration,
    pub unreplied: Duration,
    /// Whether traffic from outside keeps a mapping alive (RFC 4787 REQ-6: it may).
    pub inbound_refresh: bool,
    /// Whether two inside hosts reach each other by their outside addresses (REQ-9).
    pub hairpin: bool,
    pub poisonable: bool,
    /// A firewall's rule: no UDP goes out to this port or a higher one (the patent's [0041]).
    pub forbids_from: Option<u16>,
    /// Most mappings at a time.
    pub limit: usize,
    /// New mappings a second by other users of the same NAT.
    pub cross_traffic: f64,
    /// Public addresses besides the first.
    pub more_addresses: Vec<Ipv4Addr>,
    pub pooling: Pooling,
}

/// Linux: `nf_conntrack_udp_timeout_stream` and `nf_conntrack_udp_timeout`.
const STREAM_LIFETIME: Duration = Duration::from_secs(120);
const UNREPLIED_LIFETIME: Duration = Duration::from_secs(30);
/// How often what has expired is taken out of the tables; whether it counts is asked each time.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

impl Profile {
    pub fn new(mapping: Scope, filtering: Scope, allocation: Allocation) -> Self {
        Self {
            mapping,
            filtering,
            allocation,
            range: (1024, 65535),
            turn: Turn::Around,
            aside: Aside::One,
            lifetime: STREAM_LIFETIME,
            unreplied: UNREPLIED_LIFETIME,
            inbound_refresh: true,
            hairpin: false,
            poisonable: false,
            forbids_from: None,
            limit: 16_384,
            cross_traffic: 0.0,
            more_addresses: Vec::new(),
            pooling: Pooling::Paired,
        }
    }

    /// Plain `masquerade` without an input filter: it looks like a cone that keeps ports, and is none.
    pub fn masquerade() -> Self {
        Self { poisonable: true, ..Self::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Preserving) }
    }
}

/// Why a datagram did not get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Its time to live ended here.
    Ttl,
    /// No mapping on that port, or none that permits this remote.
    Filtered,
    /// The administrator lets nothing out to that port.
    Forbidden,
    /// The mapping table, or the port range, is full.
    Full,
    /// The one port that the allocator would give is taken by an unsolicited flow.
    PortTaken,
}

/// Inside endpoint, and as much of the remote as the mapping depends on.
type Key = (SocketAddrV4, Option<Ipv4Addr>, Option<u16>);

struct Mapping {
    outside: SocketAddrV4,
    replied: bool,
    expires: Instant,
    /// Remotes that were sent to, until when each may answer.
    permits: Permits,
}

/// By address and port in one number: a large search leaves a thousand on each mapping, and asks for one with each datagram.
#[derive(Default)]
struct Permits(BTreeMap<u64, Instant>);

impl Permits {
    fn number(remote: SocketAddrV4) -> u64 {
        (u64::from(remote.ip().to_bits()) << 16) | u64::from(remote.port())
    }

    fn give(&mut self, remote: SocketAddrV4, until: Instant) {
        self.0.insert(Self::number(remote), until);
    }

    /// Makes one longer that there is.
    fn prolong(&mut self, remote: SocketAddrV4, until: Instant) {
        self.0.entry(Self::number(remote)).and_modify(|had| *had = until);
    }

    fn hold(&self, remote: SocketAddrV4, now: Instant) -> bool {
        self.0.get(&Self::number(remote)).is_some_and(|until| *until > now)
    }

    /// Whether any port of `address` may.
    fn hold_any(&self, address: Ipv4Addr, now: Instant) -> bool {
        let port = |port| Self::number(SocketAddrV4::new(address, port));
        self.0.range(port(0)..=port(u16::MAX)).any(|(_, until)| *until > now)
    }
}

pub struct Nat {
    pub wan: Ipv4Addr,
    pub profile: Profile,
    /// Of each public address, `wan` first.
    ports: Vec<(Ipv4Addr, Ports)>,
    mappings: BTreeMap<Key, Mapping>,
    by_outside: BTreeMap<SocketAddrV4, Vec<Key>>,
    /// What each inside endpoint's last flow got, where ports are kept.
    last: BTreeMap<SocketAddrV4, SocketAddrV4>,
    /// Where a host is paired with one of several public addresses, by its place in `ports`.
    pairs: BTreeMap<Ipv4Addr, usize>,
    /// Unsolicited flows to the router itself: outside endpoint and remote, until when.
    strays: BTreeMap<(SocketAddrV4, SocketAddrV4), Instant>,
    /// Port maps that a host asked for: outside port to inside endpoint.
    forwards: BTreeMap<u16, SocketAddrV4>,
    /// Flows that came in through a port map, and so answer from its port: inside, remote to outside port.
    forwarded: BTreeMap<(SocketAddrV4, SocketAddrV4), (u16, Instant)>,
    /// IPv6: inside, remote, until when.
    pinholes: BTreeMap<(SocketAddr, SocketAddr), Instant>,
    next_sweep: Instant,
    /// Mappings made since the start, and the most at a time.
    pub created: u64,
    pub peak: usize,
    /// Mappings made since the start, by the inside address that they were made for.
    pub created_for: BTreeMap<Ipv4Addr, u64>,
}

impl Nat {
    pub fn new(wan: Ipv4Addr, profile: Profile, dice: &mut Dice) -> Self {
        let addresses = std::iter::once(wan).chain(profile.more_addresses.iter().copied());
        Self {
            wan,
            ports: addresses.map(|address| (address, Ports::new(&profile, dice))).collect(),
            profile,
            mappings: BTreeMap::new(),
            by_outside: BTreeMap::new(),
            last: BTreeMap::new(),
            pairs: BTreeMap::new(),
            strays: BTreeMap::new(),
            forwards: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            pinholes: BTreeMap::new(),
            next_sweep: Instant::default(),
            created: 0,
            peak: 0,
            created_for: BTreeMap::new(),
        }
    }

    /// Forgets everything, and starts to count somewhere else.
    pub fn reboot(&mut self, dice: &mut Dice) {
        let (created, peak, created_for) = (self.created, self.peak, std::mem::take(&mut self.created_for));
        *self = Self { created, peak, created_for, ..Self::new(self.wan, self.profile.clone(), dice) };
    }

    /// What UPnP would do: everybody may reach `inside` at `external`. `false` where that port is in use.
    pub fn forward_port(&mut self, now: Instant, external: u16, inside: SocketAddrV4) -> bool {
        let theirs = |key: &&Key| key.0 != inside && self.mappings.get(*key).is_some_and(|m| m.expires > now);
        let outside = SocketAddrV4::new(self.wan, external);
        if self.by_outside.get(&outside).is_some_and(|keys| keys.iter().any(|key| theirs(&key))) {
            return false;
        }
        *self.forwards.entry(external).or_insert(inside) == inside
    }

    pub fn remove_forward(&mut self, external: u16) {
        self.forwards.remove(&external);
        self.forwarded.retain(|_, (port, _)| *port != external);
    }

    /// A datagram leaves: `src` becomes the outside endpoint.
    pub fn outbound(&mut self, now: Instant, dice: &mut Dice, datagram: &mut Datagram) -> Result<(), Loss> {
        if datagram.ttl <= 1 {
            return Err(Loss::Ttl);
        }
        if self.profile.forbids_from.is_some_and(|port| datagram.dst.port() >= port) {
            return Err(Loss::Forbidden);
        }
        self.sweep(now);
        let (inside, remote) = match (datagram.src, datagram.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => (src, dst),
            (src, dst) => {
                self.pinholes.insert((src, dst), now + self.profile.lifetime);
                datagram.ttl -= 1;
                return Ok(());
            }
        };
        let outside = match self.forwarded.get_mut(&(inside, remote)) {
            Some((port, expires)) if *expires > now => {
                *expires = now + self.profile.lifetime;
                SocketAddrV4::new(self.wan, *port)
            }
            _ => self.map(now, dice, inside, remote)?,
        };
        datagram.src = SocketAddr::V4(outside);
        datagram.ttl -= 1;
        Ok(())
    }

    /// A datagram to a public address (or, IPv6, to a host inside) came: `dst` becomes the inside endpoint.
    pub fn inbound(&mut self, now: Instant, datagram: &mut Datagram) -> Result<(), Loss> {
        self.sweep(now);
        let (remote, outside) = match (datagram.src, datagram.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => (src, dst),
            (src, dst) => {
                let until = self.pinholes.get_mut(&(dst, src)).filter(|until| **until > now).ok_or(Loss::Filtered)?;
                *until = now + self.profile.lifetime;
                return spend_hop(datagram);
            }
        };
        if let Some(inside) = self.forward_at(outside) {
            spend_hop(datagram)?;
            self.forwarded.insert((inside, remote), (outside.port(), now + self.profile.lifetime));
            datagram.dst = SocketAddr::V4(inside);
            return Ok(());
        }
        let Some(key) = self.admitted(now, outside, remote) else {
            if self.profile.poisonable {
                self.strays.insert((outside, remote), now + self.profile.unreplied);
            }
            return Err(Loss::Filtered);
        };
        spend_hop(datagram)?;
        let profile = &self.profile;
        let mapping = self.mappings.get_mut(&key).expect("was just found");
        mapping.replied = true;
        if profile.inbound_refresh {
            mapping.expires = now + profile.lifetime;
            mapping.permits.prolong(remote, now + profile.lifetime);
        }
        datagram.dst = SocketAddr::V4(key.0);
        Ok(())
    }

    /// Whose flow to `remote` has that outside endpoint; for the router that got an ICMP error about it.
    pub fn inside_of(&self, now: Instant, outside: SocketAddrV4, remote: SocketAddrV4) -> Option<SocketAddrV4> {
        let mut own = self.live_on(now, outside).filter(|(_, mapping)| mapping.permits.hold(remote, now));
        own.next().map(|(key, _)| key.0).or_else(|| self.forward_at(outside))
    }

    /// The outside endpoint of a flow that there is; for the router that passes an ICMP error of its own host on.
    pub fn outside_of(&self, now: Instant, inside: SocketAddrV4, remote: SocketAddrV4) -> Option<SocketAddrV4> {
        let mapped = self.mappings.get(&self.key(inside, remote)).filter(|mapping| mapping.expires > now);
        let forwarded = || self.forwarded.get(&(inside, remote)).filter(|(_, expires)| *expires > now);
        mapped
            .map(|mapping| mapping.outside)
            .or_else(|| forwarded().map(|(port, _)| SocketAddrV4::new(self.wan, *port)))
    }

    fn key(&self, inside: SocketAddrV4, remote: SocketAddrV4) -> Key {
        match self.profile.mapping {
            Scope::Endpoint => (inside, None, None),
            Scope::Address => (inside, Some(*remote.ip()), None),
            Scope::AddressAndPort => (inside, Some(*remote.ip()), Some(remote.port())),
        }
    }

    fn forward_at(&self, outside: SocketAddrV4) -> Option<SocketAddrV4> {
        self.forwards.get(&outside.port()).filter(|_| *outside.ip() == self.wan).copied()
    }

    /// The outside endpoint for a flow, and the permission for its remote to answer.
    fn map(
        &mut self,
        now: Instant,
        dice: &mut Dice,
        inside: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Result<SocketAddrV4, Loss> {
        for (_, ports) in &mut self.ports {
            ports.let_others_pass(now, self.profile.cross_traffic, dice);
        }
        let key = self.key(inside, remote);
        if self.mappings.get(&key).is_none_or(|mapping| mapping.expires <= now) {
            self.forget(&key);
            if self.mappings.len() >= self.profile.limit {
                return Err(Loss::Full);
            }
            let outside = self.choose_outside(now, dice, inside, remote)?;
            if self.profile.allocation == Allocation::Preserving {
                self.last.insert(inside, outside);
            }
            let mapping = Mapping { outside, replied: false, expires: now, permits: Permits::default() };
            self.mappings.insert(key, mapping);
            self.by_outside.entry(outside).or_default().push(key);
            self.created += 1;
            *self.created_for.entry(*inside.ip()).or_default() += 1;
            self.peak = self.peak.max(self.mappings.len());
        }
        let mapping = self.mappings.get_mut(&key).expect("was found or made above");
        let lives = if mapping.replied { self.profile.lifetime } else { self.profile.unreplied };
        mapping.expires = now + lives;
        mapping.permits.give(remote, now + lives);
        Ok(mapping.outside)
    }

    fn choose_outside(
        &mut self,
        now: Instant,
        dice: &mut Dice,
        inside: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Result<SocketAddrV4, Loss> {
        let which = self.choose_address(dice, *inside.ip());
        let address = self.ports[which].0;
        let wanted = SocketAddrV4::new(address, inside.port());
        if let Some(last) = self.last.get(&inside).copied()
            && self.live_on(now, last).any(|(key, _)| key.0 == inside)
            && !self.conflicts(now, last, inside, remote)
        {
            return Ok(last);
        }
        match self.profile.allocation {
            Allocation::Preserving if !self.conflicts(now, wanted, inside, remote) => return Ok(wanted),
            Allocation::SecondPriority { .. } => {
                let from = (inside, None, None);
                let first =
                    self.mappings.range(from..).take_while(|(key, _)| key.0 == inside).all(|(_, m)| m.expires <= now);
                if first && !self.held(now, wanted) && !self.is_stray(now, wanted, remote) {
                    return Ok(wanted);
                }
            }
            _ => {}
        }
        for _ in 0..self.ports[which].1.tries() {
            let outside = SocketAddrV4::new(address, self.ports[which].1.next(dice));
            if self.is_stray(now, outside, remote) {
                if self.ports[which].1.counts() {
                    return Err(Loss::PortTaken);
                }
            } else if !self.held(now, outside) || self.shares(now, outside, remote) {
                return Ok(outside);
            } else {
                self.ports[which].1.step_aside(outside.port());
            }
        }
        Err(Loss::Full)
    }

    /// Which public address, by its place in `ports`.
    fn choose_address(&mut self, dice: &mut Dice, host: Ipv4Addr) -> usize {
        let last = self.ports.len() - 1;
        if last == 0 {
            return 0;
        }
        let any = usize::try_from(dice.between(0, last as u64)).expect("is a place in a list");
        match self.profile.pooling {
            Pooling::Paired => *self.pairs.entry(host).or_insert(any),
            Pooling::Arbitrary => any,
        }
    }

    /// Whether `inside` can't have `outside` towards `remote`, where it would keep its own port.
    fn conflicts(&self, now: Instant, outside: SocketAddrV4, inside: SocketAddrV4, remote: SocketAddrV4) -> bool {
        let by_tuple = self.profile.mapping == Scope::AddressAndPort;
        self.is_stray(now, outside, remote)
            || self.forward_at(outside).is_some_and(|owner| owner != inside)
            || self
                .live_on(now, outside)
                .any(|(key, mapping)| key.0 != inside && (!by_tuple || mapping.permits.hold(remote, now)))
    }

    fn held(&self, now: Instant, outside: SocketAddrV4) -> bool {
        self.forward_at(outside).is_some() || self.live_on(now, outside).next().is_some()
    }

    /// Whether a port in use may be given once more, towards `remote`.
    fn shares(&self, now: Instant, outside: SocketAddrV4, remote: SocketAddrV4) -> bool {
        self.profile.aside == Aside::Shares
            && self.profile.mapping == Scope::AddressAndPort
            && self.forward_at(outside).is_none()
            && self.live_on(now, outside).all(|(_, mapping)| !mapping.permits.hold(remote, now))
    }

    fn is_stray(&self, now: Instant, outside: SocketAddrV4, remote: SocketAddrV4) -> bool {
        self.strays.get(&(outside, remote)).is_some_and(|until| *until > now)
    }

    fn live_on(&self, now: Instant, outside: SocketAddrV4) -> impl Iterator<Item = (&Key, &Mapping)> {
        let keys = self.by_outside.get(&outside).map_or(&[][..], Vec::as_slice);
        keys.iter().filter_map(move |key| self.mappings.get(key).filter(|m| m.expires > now).map(|m| (key, m)))
    }

    /// The mapping on `outside` by which `remote` may come in: its own first, where several share it.
    fn admitted(&self, now: Instant, outside: SocketAddrV4, remote: SocketAddrV4) -> Option<Key> {
        let own = |mapping: &Mapping| mapping.permits.hold(remote, now);
        let may = |mapping: &Mapping| match self.profile.filtering {
            Scope::Endpoint => true,
            Scope::Address => mapping.permits.hold_any(*remote.ip(), now),
            Scope::AddressAndPort => own(mapping),
        };
        let find =
            |test: &dyn Fn(&Mapping) -> bool| self.live_on(now, outside).find(|(_, m)| test(m)).map(|(key, _)| *key);
        find(&own).or_else(|| find(&may))
    }

    fn forget(&mut self, key: &Key) {
        if let Some(mapping) = self.mappings.remove(key) {
            let keys = self.by_outside.entry(mapping.outside).or_default();
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.by_outside.remove(&mapping.outside);
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP_EVERY;
        let gone: Vec<Key> = self.mappings.iter().filter(|(_, m)| m.expires <= now).map(|(key, _)| *key).collect();
        gone.iter().for_each(|key| self.forget(key));
        self.strays.retain(|_, until| *until > now);
        self.forwarded.retain(|_, (_, until)| *until > now);
        self.pinholes.retain(|_, until| *until > now);
    }

    pub fn owns(&self, address: IpAddr) -> bool {
        self.ports.iter().any(|(own, _)| address == IpAddr::V4(*own))
    }
}

fn spend_hop(datagram: &mut Datagram) -> Result<(), Loss> {
    if datagram.ttl <= 1 {
        return Err(Loss::Ttl);
    }
    datagram.ttl -= 1;
    Ok(())
}
