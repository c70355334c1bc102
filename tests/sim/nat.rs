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
//! - Cross traffic moves a sequential counter, and takes no port for long.
//! - IPv6 is not translated; a stateful filter (by address and port) stands in its way.

mod ports;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::dice::Dice;
use crate::world::Datagram;
pub use ports::Allocation;
use ports::Ports;

/// What a mapping, or a permission to come in, depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Endpoint,
    Address,
    AddressAndPort,
}

#[derive(Clone, Debug)]
pub struct Profile {
    pub mapping: Scope,
    pub filtering: Scope,
    pub allocation: Allocation,
    /// The outside ports that are given out.
    pub range: (u16, u16),
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
            lifetime: STREAM_LIFETIME,
            unreplied: UNREPLIED_LIFETIME,
            inbound_refresh: true,
            hairpin: false,
            poisonable: false,
            forbids_from: None,
            limit: 16_384,
            cross_traffic: 0.0,
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
    port: u16,
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
    ports: Ports,
    mappings: BTreeMap<Key, Mapping>,
    by_port: BTreeMap<u16, Vec<Key>>,
    /// Unsolicited flows to the router itself: outside port and remote, until when.
    strays: BTreeMap<(u16, SocketAddrV4), Instant>,
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
        Self {
            wan,
            ports: Ports::new(&profile, dice),
            profile,
            mappings: BTreeMap::new(),
            by_port: BTreeMap::new(),
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
        if self.by_port.get(&external).is_some_and(|keys| keys.iter().any(|key| theirs(&key))) {
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
        let port = match self.forwarded.get_mut(&(inside, remote)) {
            Some((port, expires)) if *expires > now => {
                *expires = now + self.profile.lifetime;
                *port
            }
            _ => self.map(now, dice, inside, remote)?,
        };
        datagram.src = SocketAddr::V4(SocketAddrV4::new(self.wan, port));
        datagram.ttl -= 1;
        Ok(())
    }

    /// A datagram to `wan` (or, IPv6, to a host inside) came: `dst` becomes the inside endpoint.
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
        let port = outside.port();
        if let Some(inside) = self.forwards.get(&port) {
            spend_hop(datagram)?;
            self.forwarded.insert((*inside, remote), (port, now + self.profile.lifetime));
            datagram.dst = SocketAddr::V4(*inside);
            return Ok(());
        }
        let Some(key) = self.admitted(now, port, remote) else {
            if self.profile.poisonable {
                self.strays.insert((port, remote), now + self.profile.unreplied);
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

    /// The outside port for a flow, and the permission for its remote to answer.
    fn map(&mut self, now: Instant, dice: &mut Dice, inside: SocketAddrV4, remote: SocketAddrV4) -> Result<u16, Loss> {
        self.ports.let_others_pass(now, self.profile.cross_traffic, dice);
        let key = match self.profile.mapping {
            Scope::Endpoint => (inside, None, None),
            Scope::Address => (inside, Some(*remote.ip()), None),
            Scope::AddressAndPort => (inside, Some(*remote.ip()), Some(remote.port())),
        };
        if self.mappings.get(&key).is_none_or(|mapping| mapping.expires <= now) {
            self.forget(&key);
            if self.mappings.len() >= self.profile.limit {
                return Err(Loss::Full);
            }
            let port = self.choose_port(now, dice, inside, remote)?;
            let mapping = Mapping { port, replied: false, expires: now, permits: Permits::default() };
            self.mappings.insert(key, mapping);
            self.by_port.entry(port).or_default().push(key);
            self.created += 1;
            *self.created_for.entry(*inside.ip()).or_default() += 1;
            self.peak = self.peak.max(self.mappings.len());
        }
        let mapping = self.mappings.get_mut(&key).expect("was found or made above");
        let lives = if mapping.replied { self.profile.lifetime } else { self.profile.unreplied };
        mapping.expires = now + lives;
        mapping.permits.give(remote, now + lives);
        Ok(mapping.port)
    }

    fn choose_port(
        &mut self,
        now: Instant,
        dice: &mut Dice,
        inside: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Result<u16, Loss> {
        let wanted = inside.port();
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
        for _ in 0..self.ports.tries() {
            let port = self.ports.next(dice);
            if self.is_stray(now, port, remote) {
                if self.ports.counts() {
                    return Err(Loss::PortTaken);
                }
            } else if !self.held(now, port) {
                return Ok(port);
            } else {
                self.ports.step_aside(port);
            }
        }
        Err(Loss::Full)
    }

    /// Whether `inside` can't have outside `port` towards `remote`, where it would keep its own port.
    fn conflicts(&self, now: Instant, port: u16, inside: SocketAddrV4, remote: SocketAddrV4) -> bool {
        let by_tuple = self.profile.mapping == Scope::AddressAndPort;
        self.is_stray(now, port, remote)
            || self.forwards.get(&port).is_some_and(|owner| *owner != inside)
            || self
                .live_on(now, port)
                .any(|(key, mapping)| key.0 != inside && (!by_tuple || mapping.permits.hold(remote, now)))
    }

    fn held(&self, now: Instant, port: u16) -> bool {
        self.forwards.contains_key(&port) || self.live_on(now, port).next().is_some()
    }

    fn is_stray(&self, now: Instant, port: u16, remote: SocketAddrV4) -> bool {
        self.strays.get(&(port, remote)).is_some_and(|until| *until > now)
    }

    fn live_on(&self, now: Instant, port: u16) -> impl Iterator<Item = (&Key, &Mapping)> {
        let keys = self.by_port.get(&port).map_or(&[][..], Vec::as_slice);
        keys.iter().filter_map(move |key| self.mappings.get(key).filter(|m| m.expires > now).map(|m| (key, m)))
    }

    /// The mapping on `port` by which `remote` may come in: its own first, where several share the port.
    fn admitted(&self, now: Instant, port: u16, remote: SocketAddrV4) -> Option<Key> {
        let own = |mapping: &Mapping| mapping.permits.hold(remote, now);
        let may = |mapping: &Mapping| match self.profile.filtering {
            Scope::Endpoint => true,
            Scope::Address => mapping.permits.hold_any(*remote.ip(), now),
            Scope::AddressAndPort => own(mapping),
        };
        let find =
            |test: &dyn Fn(&Mapping) -> bool| self.live_on(now, port).find(|(_, m)| test(m)).map(|(key, _)| *key);
        find(&own).or_else(|| find(&may))
    }

    fn forget(&mut self, key: &Key) {
        if let Some(mapping) = self.mappings.remove(key) {
            let keys = self.by_port.entry(mapping.port).or_default();
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.by_port.remove(&mapping.port);
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
        address == IpAddr::V4(self.wan)
    }
}

fn spend_hop(datagram: &mut Datagram) -> Result<(), Loss> {
    if datagram.ttl <= 1 {
        return Err(Loss::Ttl);
    }
    datagram.ttl -= 1;
    Ok(())
}
