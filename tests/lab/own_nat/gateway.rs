//! A packet's way through the NAT: pure, so that it is tested without a network.
//!
//! ```text
//! packet ── inside's? ── UDP ─ model.outbound ─┬─ to an own address: model.inbound (hairpin) ─► to the inside
//!              │                               └─► to the outside
//!              │         echo ─ the same, with the model of echoes
//!              │         error ─ the quoted flow is looked up, and put in the words of the other side
//!              └─ else ─ the same, the other way round
//! ```
//!
//! Assumptions:
//! - The kernel takes one off the TTL before a packet comes here and one after; the model takes the router's own. Two are given back,
//!   so the whole is one router. A packet that ends here ends in the kernel, which says so to its sender.
//! - So, unlike in the model, a stray whose TTL ends at this router leaves no entry in a poisonable one.
//! - Echoes have a NAT of their own, a cone that keeps identifiers, as routers do; they count as nothing.
//! - Other protocols end here.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;
use p2ptund::proto::Instant;
use serde_json::{Value, json};

use super::packet::{Kind, Packet};
use crate::datagram::Datagram;
use crate::dice::Dice;
use crate::nat::{Allocation, Loss, Nat, Profile, Scope};

pub struct Gateway {
    inside: Ipv4Net,
    /// The address in use first, then what it may change to.
    addresses: Vec<Ipv4Addr>,
    nat: Nat,
    echoes: Nat,
    dice: Dice,
    hosts: BTreeMap<Ipv4Addr, Sent>,
    packets_in: u64,
    losses: BTreeMap<&'static str, u64>,
}

/// What an inside host has sent out.
#[derive(Clone, Copy, Default)]
struct Sent {
    entries: u64,
    packets: u64,
}

impl Gateway {
    pub fn new(inside: Ipv4Net, addresses: Vec<Ipv4Addr>, profile: Profile, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let nat = Nat::new(addresses[0], profile, &mut dice);
        let echoes = echoes(addresses[0], &mut dice);
        let (hosts, losses) = (BTreeMap::new(), BTreeMap::new());
        Self { inside, addresses, nat, echoes, dice, hosts, packets_in: 0, losses }
    }

    /// Translates a packet; `false` where it ends here.
    pub fn handle_packet(&mut self, now: Instant, bytes: &mut [u8]) -> bool {
        let Some(mut packet) = Packet::parse(bytes) else {
            *self.losses.entry("not_translated").or_default() += 1;
            return false;
        };
        let result = match (self.inside.contains(packet.source().ip()), packet.kind) {
            (true, Kind::Udp | Kind::EchoRequest) => self.leave(now, &mut packet),
            (false, Kind::Udp | Kind::EchoReply) => self.enter(now, &mut packet),
            (true, Kind::Error) => self.report(now, &mut packet),
            (false, Kind::Error) => self.hear(now, &mut packet),
            // Nobody inside is asked by echo, so nobody answers.
            (true, Kind::EchoReply) | (false, Kind::EchoRequest) => Err(Loss::Filtered),
        };
        if let Err(loss) = result {
            let reason = match loss {
                Loss::Ttl => "ttl",
                Loss::Filtered => "filtered",
                Loss::Forbidden => "forbidden",
                Loss::Full => "full",
                Loss::PortTaken => "port_taken",
            };
            *self.losses.entry(reason).or_default() += 1;
        }
        result.is_ok()
    }

    /// Forgets everything and counts from elsewhere; with the next public address, where `renumbered`.
    pub fn reboot(&mut self, renumbered: bool) {
        if renumbered {
            self.addresses.rotate_left(1);
        }
        self.nat.wan = self.addresses[0];
        self.nat.reboot(&mut self.dice);
        self.echoes = echoes(self.addresses[0], &mut self.dice);
    }

    /// From now on, other users make so many new mappings a second.
    pub fn set_cross_traffic(&mut self, rate: f64) {
        self.nat.profile.cross_traffic = rate;
    }

    /// What was counted since the start: mappings made by hosts inside, the most at a time, and packets that left.
    pub fn counts(&self) -> Value {
        let hosts = self
            .hosts
            .iter()
            .map(|(host, sent)| (host.to_string(), json!({ "entries": sent.entries, "packets_out": sent.packets })));
        json!({
            "entries": self.nat.created,
            "peak": self.nat.peak,
            "packets_out": self.hosts.values().map(|sent| sent.packets).sum::<u64>(),
            "packets_in": self.packets_in,
            "public": self.nat.wan.to_string(),
            "losses": self.losses,
            "hosts": hosts.collect::<serde_json::Map<String, Value>>(),
        })
    }

    fn leave(&mut self, now: Instant, packet: &mut Packet<'_>) -> Result<(), Loss> {
        let (inside, remote) = (packet.source(), packet.destination());
        let turns_back = self.nat.owns((*remote.ip()).into());
        if turns_back && !(self.nat.profile.hairpin && packet.kind == Kind::Udp) {
            return Err(Loss::Filtered);
        }
        let mut datagram = datagram(packet);
        if packet.kind == Kind::EchoRequest {
            self.echoes.outbound(now, &mut self.dice, &mut datagram)?;
        } else {
            let before = self.nat.created;
            self.nat.outbound(now, &mut self.dice, &mut datagram)?;
            let host = self.hosts.entry(*inside.ip()).or_default();
            host.entries += self.nat.created - before;
            host.packets += u64::from(!turns_back);
        }
        if turns_back {
            self.nat.inbound(now, &mut datagram)?;
            packet.set_destination(v4(datagram.dst));
        }
        packet.set_source(v4(datagram.src));
        packet.set_ttl(datagram.ttl.saturating_add(1));
        Ok(())
    }

    fn enter(&mut self, now: Instant, packet: &mut Packet<'_>) -> Result<(), Loss> {
        let mut datagram = datagram(packet);
        if packet.kind == Kind::EchoReply {
            self.echoes.inbound(now, &mut datagram)?;
        } else {
            self.nat.inbound(now, &mut datagram)?;
            self.packets_in += 1;
        }
        packet.set_destination(v4(datagram.dst));
        packet.set_ttl(datagram.ttl.saturating_add(1));
        Ok(())
    }

    /// A host inside says that a datagram from outside did not arrive.
    fn report(&mut self, now: Instant, packet: &mut Packet<'_>) -> Result<(), Loss> {
        let (remote, inside) = packet.quoted();
        let outside = self.nat.outside_of(now, inside, remote).ok_or(Loss::Filtered)?;
        packet.set_quoted(remote, outside);
        packet.set_source(SocketAddrV4::new(*outside.ip(), 0));
        packet.set_ttl(packet.ttl().saturating_add(1));
        Ok(())
    }

    /// Somebody outside says that a datagram from here did not arrive.
    fn hear(&mut self, now: Instant, packet: &mut Packet<'_>) -> Result<(), Loss> {
        let (outside, remote) = packet.quoted();
        let inside = self.nat.inside_of(now, outside, remote).ok_or(Loss::Filtered)?;
        packet.set_quoted(inside, remote);
        packet.set_destination(SocketAddrV4::new(*inside.ip(), 0));
        packet.set_ttl(packet.ttl().saturating_add(1));
        Ok(())
    }
}

fn echoes(wan: Ipv4Addr, dice: &mut Dice) -> Nat {
    Nat::new(wan, Profile::new(Scope::Endpoint, Scope::Address, Allocation::Preserving), dice)
}

/// As the model takes it, with the TTL that the packet had when it reached the router.
fn datagram(packet: &Packet<'_>) -> Datagram {
    Datagram {
        src: packet.source().into(),
        dst: packet.destination().into(),
        ttl: packet.ttl().saturating_add(1),
        whole: false,
        payload: Vec::new(),
    }
}

fn v4(endpoint: SocketAddr) -> SocketAddrV4 {
    match endpoint {
        SocketAddr::V4(endpoint) => endpoint,
        SocketAddr::V6(_) => unreachable!("the packet was IPv4"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{HERE, PUBLIC, THERE, check_sums, icmp, udp};
    use super::*;

    const START: Instant = Instant::from_nanos(1_000_000_000);
    const NEIGHBOUR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 11, 3), 9);
    const SPARE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 201);

    fn gateway(change: impl FnOnce(&mut Profile)) -> Gateway {
        let allocation = Allocation::Sequential { step: 2 };
        let mut profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, allocation);
        change(&mut profile);
        let inside = "192.168.11.0/24".parse().expect("a prefix");
        Gateway::new(inside, vec![*PUBLIC.ip(), SPARE], profile, 1)
    }

    /// What becomes of a datagram; `None` where it ends.
    fn pass(
        gateway: &mut Gateway,
        from: SocketAddrV4,
        to: SocketAddrV4,
        ttl: u8,
    ) -> Option<(SocketAddrV4, SocketAddrV4, u8)> {
        let mut bytes = udp(from, to, ttl, b"content");
        gateway.handle_packet(START, &mut bytes).then(|| {
            check_sums(&bytes);
            let packet = Packet::parse(&mut bytes).expect("is a packet still");
            (packet.source(), packet.destination(), packet.ttl())
        })
    }

    #[test]
    fn a_datagram_goes_out_and_its_answer_comes_in_and_the_ttl_is_the_kernels_matter() {
        let mut gateway = gateway(|_| {});
        let (outside, to, ttl) = pass(&mut gateway, HERE, THERE, 63).expect("goes out");
        assert_eq!((*outside.ip(), to), (*PUBLIC.ip(), THERE));
        // It had 64, the kernel took one, and takes one more: 63 go on.
        assert_eq!(ttl, 64);
        assert_eq!(pass(&mut gateway, THERE, outside, 50), Some((THERE, HERE, 51)));
        let stranger = SocketAddrV4::new(*THERE.ip(), 4276);
        assert_eq!(pass(&mut gateway, stranger, outside, 50), None);
        assert_eq!(gateway.counts()["losses"]["filtered"], 1);
    }

    #[test]
    fn it_counts_entries_and_packets_of_each_host() {
        let mut gateway = gateway(|_| {});
        for port in 1..=5 {
            for _ in 0..3 {
                pass(&mut gateway, HERE, SocketAddrV4::new(*THERE.ip(), port), 63);
            }
        }
        pass(&mut gateway, NEIGHBOUR, THERE, 63);
        let counts = gateway.counts();
        assert_eq!((&counts["entries"], &counts["peak"], &counts["packets_out"]), (&json!(6), &json!(6), &json!(16)));
        assert_eq!(counts["hosts"]["192.168.11.2"], json!({ "entries": 5, "packets_out": 15 }));
        assert_eq!(counts["hosts"]["192.168.11.3"], json!({ "entries": 1, "packets_out": 1 }));
    }

    #[test]
    fn two_hosts_meet_at_the_public_address_where_there_is_a_hairpin() {
        for hairpin in [false, true] {
            let mut gateway = gateway(|profile| {
                profile.hairpin = hairpin;
                (profile.mapping, profile.filtering) = (Scope::Endpoint, Scope::Endpoint);
            });
            let (outside, ..) = pass(&mut gateway, NEIGHBOUR, THERE, 63).expect("goes out");
            let met = pass(&mut gateway, HERE, outside, 63);
            assert_eq!(met.map(|(from, to, _)| (*from.ip(), to)), hairpin.then_some((*PUBLIC.ip(), NEIGHBOUR)));
        }
    }

    #[test]
    fn errors_find_the_flow_that_they_are_about() {
        let mut gateway = gateway(|_| {});
        let (outside, ..) = pass(&mut gateway, HERE, THERE, 63).expect("goes out");
        let router = Ipv4Addr::new(192, 0, 2, 1);
        let mut bytes = icmp(router, *outside.ip(), [11, 0], [0; 4], &udp(outside, THERE, 1, b"")[..28]);
        assert!(gateway.handle_packet(START, &mut bytes));
        check_sums(&bytes);
        let packet = Packet::parse(&mut bytes).expect("is a packet");
        assert_eq!((packet.destination().ip(), packet.quoted()), (HERE.ip(), (HERE, THERE)));

        let mut bytes = icmp(*HERE.ip(), *THERE.ip(), [3, 3], [0; 4], &udp(THERE, HERE, 1, b"")[..28]);
        assert!(gateway.handle_packet(START, &mut bytes));
        check_sums(&bytes);
        let packet = Packet::parse(&mut bytes).expect("is a packet");
        assert_eq!((packet.source().ip(), packet.quoted()), (PUBLIC.ip(), (THERE, outside)));

        let mut of_nobody = icmp(router, *outside.ip(), [11, 0], [0; 4], &udp(PUBLIC, HERE, 1, b"")[..28]);
        assert!(!gateway.handle_packet(START, &mut of_nobody));
    }

    #[test]
    fn echoes_pass_and_count_as_nothing() {
        let mut gateway = gateway(|_| {});
        let mut bytes = icmp(*HERE.ip(), *THERE.ip(), [8, 0], [1, 2, 0, 1], b"1234");
        assert!(gateway.handle_packet(START, &mut bytes));
        check_sums(&bytes);
        let mut bytes = icmp(*THERE.ip(), *PUBLIC.ip(), [0, 0], [1, 2, 0, 1], b"1234");
        assert!(gateway.handle_packet(START, &mut bytes));
        check_sums(&bytes);
        assert_eq!(Packet::parse(&mut bytes).expect("is a packet").destination().ip(), HERE.ip());
        assert_eq!(gateway.counts()["entries"], 0);
    }

    #[test]
    fn a_reboot_forgets_and_may_bring_another_address() {
        let mut gateway = gateway(|_| {});
        let (first, ..) = pass(&mut gateway, HERE, THERE, 63).expect("goes out");
        gateway.reboot(false);
        assert_eq!(pass(&mut gateway, THERE, first, 63), None);
        gateway.reboot(true);
        let (moved, ..) = pass(&mut gateway, HERE, THERE, 63).expect("goes out");
        assert_eq!(*moved.ip(), SPARE);
        assert_eq!(gateway.counts()["entries"], 2, "what was counted stays counted");
    }

    #[test]
    fn cross_traffic_can_be_changed_while_it_runs() {
        let mut gateway = gateway(|_| {});
        let (first, ..) = pass(&mut gateway, HERE, THERE, 63).expect("goes out");
        gateway.set_cross_traffic(1000.0);
        let mut bytes = udp(HERE, SocketAddrV4::new(*THERE.ip(), 1), 63, b"");
        gateway.handle_packet(START, &mut bytes);
        let mut bytes = udp(HERE, SocketAddrV4::new(*THERE.ip(), 2), 63, b"");
        gateway.handle_packet(START + std::time::Duration::from_secs(4), &mut bytes);
        let port = Packet::parse(&mut bytes).expect("is a packet").source().port();
        let span = 65_536 - 1024;
        let moved = (i32::from(port) - i32::from(first.port())).rem_euclid(span);
        assert!((7_400..8_600).contains(&moved), "4 s of 1,000 a second in steps of 2: {moved}");
    }
}
