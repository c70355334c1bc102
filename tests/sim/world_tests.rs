//! The simulator's own tests, with machines so small that it is plain what must happen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::link::Link;
use crate::nat::{Allocation, Profile, Scope};
use crate::world::{Datagram, HostId, INTERNET, Machine, Moment, NatId, START, World};

/// Notes what it gets, answers `ping` with the address that it came from, and may wake in odd ways.
struct Toy {
    address: SocketAddr,
    inbox: Vec<(Instant, Datagram)>,
    wake: Option<Instant>,
    /// How far each wake-up moves the next one.
    every: Option<Duration>,
    ttl: u8,
}

impl Toy {
    fn at(address: &str) -> Self {
        let address = address.parse().expect("is an address");
        Self { address, inbox: Vec::new(), wake: None, every: None, ttl: 64 }
    }

    fn send(&self, moment: &mut Moment<'_>, to: SocketAddr, payload: &[u8]) {
        moment.sent.push(Datagram {
            src: self.address,
            dst: to,
            ttl: self.ttl,
            whole: false,
            payload: payload.to_vec(),
        });
    }
}

impl Machine for Toy {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, datagram: Datagram) {
        if datagram.payload == b"ping" {
            self.send(moment, datagram.src, datagram.src.to_string().as_bytes());
        }
        self.inbox.push((moment.now, datagram));
    }

    fn handle_timeout(&mut self, _: &mut Moment<'_>) {
        self.wake = self.every.and_then(|every| Some(self.wake? + every));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.wake
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("is an address")
}

fn host(world: &mut World<Toy>, network: crate::world::NetId, at: &str, link: Link) -> HostId {
    let toy = Toy::at(at);
    world.add_host(network, &[toy.address.ip()], link, toy)
}

fn send(world: &mut World<Toy>, from: HostId, to: &str, payload: &[u8]) {
    world.act(from, |toy, moment| toy.send(moment, address(to), payload));
}

fn cone() -> Profile {
    Profile::new(Scope::Endpoint, Scope::AddressAndPort, Allocation::Random)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An office behind each of `profiles` (innermost first), and a server.
fn office(profiles: &[Profile]) -> (World<Toy>, HostId, HostId, Vec<NatId>) {
    let mut world = World::new(11);
    let (mut network, mut nats) = (INTERNET, Vec::new());
    for (depth, profile) in profiles.iter().rev().enumerate() {
        let wan = if depth == 0 { Ipv4Addr::new(203, 0, 113, 1) } else { Ipv4Addr::new(100, 64, 0, 2) };
        let link = if depth == 0 { Link::of_delay(ms(30)) } else { Link::of_delay(ms(5)) };
        let (id, inner) = world.add_nat(network, wan, profile.clone(), link);
        network = inner;
        nats.push(id);
    }
    let inside = host(&mut world, network, "192.168.1.2:4275", Link::of_delay(Duration::ZERO));
    let server = host(&mut world, INTERNET, "198.51.100.7:4270", Link::of_delay(ms(10)));
    (world, inside, server, nats)
}

#[test]
fn a_server_answers_through_one_nat_and_through_two() {
    for (profiles, there_and_back) in [(vec![cone()], ms(80)), (vec![cone(), cone()], ms(90))] {
        let (mut world, inside, server, _) = office(&profiles);
        send(&mut world, inside, "198.51.100.7:4270", b"ping");
        world.run(START + ms(1000), |_| false);
        assert_eq!(world.machine(server).inbox[0].1.src.ip(), IpAddr::from([203, 0, 113, 1]));
        let (at, answer) = &world.machine(inside).inbox[0];
        assert_eq!(*at, START + there_and_back);
        assert_eq!(answer.payload, world.machine(server).inbox[0].1.src.to_string().as_bytes());
        assert_eq!(answer.ttl, 64 - 3 - u8::try_from(profiles.len()).expect("is small"));
    }
}

#[test]
fn a_low_ttl_opens_ones_own_nats_and_never_reaches_the_other() {
    for ttl in 1..=5 {
        let (mut world, inside, server, nats) = office(&[cone()]);
        world.host_mut(inside).machine.ttl = ttl;
        send(&mut world, inside, "198.51.100.7:4270", b"hello");
        world.run(START + ms(1000), |_| false);
        let entries = world.router_mut(nats[0]).nat.created;
        assert_eq!(entries, u64::from(ttl >= 2), "ttl {ttl}");
        assert_eq!(world.machine(server).inbox.len(), usize::from(ttl >= 5), "ttl {ttl}");
    }
}

#[test]
fn neighbours_reach_each_other_directly_and_by_hairpin_only_where_there_is_one() {
    for hairpin in [false, true] {
        let mut world = World::new(12);
        let profile = Profile { hairpin, ..Profile::new(Scope::Endpoint, Scope::Endpoint, Allocation::Preserving) };
        let (_, lan) = world.add_nat(INTERNET, Ipv4Addr::new(203, 0, 113, 1), profile, Link::of_delay(ms(30)));
        let here = host(&mut world, lan, "192.168.1.2:4275", Link::of_delay(ms(1)));
        let there = host(&mut world, lan, "192.168.1.3:4276", Link::of_delay(ms(1)));
        host(&mut world, INTERNET, "198.51.100.7:4270", Link::lan());
        send(&mut world, here, "192.168.1.3:4276", b"direct");
        send(&mut world, there, "198.51.100.7:4270", b"opens a mapping");
        world.run(START + ms(100), |_| false);
        send(&mut world, here, "203.0.113.1:4276", b"round the corner");
        world.run(START + ms(200), |_| false);
        let inbox = &world.machine(there).inbox;
        assert_eq!(inbox[0].0, START + ms(2));
        assert_eq!(inbox[0].1.src, address("192.168.1.2:4275"));
        assert_eq!(inbox.len(), if hairpin { 2 } else { 1 });
        assert!(!hairpin || inbox[1].1.src == address("203.0.113.1:4275"));
    }
}

#[test]
fn the_world_sleeps_to_the_deadline_and_to_nothing_else() {
    let (mut world, inside, _, _) = office(&[cone()]);
    world.act(inside, |toy, _| (toy.wake, toy.every) = (Some(START + ms(7)), Some(ms(7))));
    assert!(world.step(START + ms(20)));
    assert_eq!(world.now, START + ms(7));
    assert!(world.step(START + ms(20)));
    assert_eq!(world.now, START + ms(14));
    assert!(!world.step(START + ms(20)));
    assert_eq!(world.now, START + ms(20));
}

#[test]
#[should_panic(expected = "its deadline stays in the past")]
fn a_machine_that_does_not_come_to_rest_is_found_out() {
    let (mut world, inside, _, _) = office(&[cone()]);
    world.act(inside, |toy, _| (toy.wake, toy.every) = (Some(START), Some(Duration::ZERO)));
    world.run(START + ms(20), |_| false);
}

#[test]
#[should_panic(expected = "times within a second")]
fn a_machine_that_creeps_is_found_out() {
    let (mut world, inside, _, _) = office(&[cone()]);
    world.act(inside, |toy, _| (toy.wake, toy.every) = (Some(START), Some(Duration::from_nanos(1))));
    world.run(START + ms(20), |_| false);
}

#[test]
fn a_datagram_to_nobody_and_one_from_a_foreign_address_are_faults() {
    let (mut world, inside, _, _) = office(&[cone()]);
    send(&mut world, inside, "192.0.2.1:1", b"stray");
    assert!(world.faults[0].contains("which is nobody"));
    world.act(inside, |toy, _| toy.address = address("192.168.1.66:1"));
    send(&mut world, inside, "198.51.100.7:4270", b"spoof");
    assert!(world.faults[1].contains("which is not its own"));
}

#[test]
fn one_seed_gives_one_transcript() {
    let run = |seed: u64| {
        let mut world = World::new(seed);
        let link = Link { jitter: ms(5), loss: 0.2, duplicate: 0.1, reorder: 0.1, ..Link::of_delay(ms(9)) };
        let (_, lan) = world.add_nat(INTERNET, Ipv4Addr::new(203, 0, 113, 1), cone(), link.clone());
        let inside = host(&mut world, lan, "192.168.1.2:4275", Link::lan());
        host(&mut world, INTERNET, "198.51.100.7:4270", link);
        for i in 0..100 {
            send(&mut world, inside, "198.51.100.7:4270", b"ping");
            world.run(START + ms(i * 10), |_| false);
        }
        world.transcript.hash()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn ipv6_finds_its_way_behind_a_nat_once_it_was_asked_for() {
    let mut world = World::new(13);
    let (_, lan) = world.add_nat(INTERNET, Ipv4Addr::new(203, 0, 113, 1), cone(), Link::of_delay(ms(30)));
    let inside = host(&mut world, lan, "[2001:db8:1::2]:4275", Link::lan());
    let outside = host(&mut world, INTERNET, "[2001:db8:2::2]:4275", Link::lan());
    send(&mut world, outside, "[2001:db8:1::2]:4275", b"too early");
    world.run(START + ms(100), |_| false);
    send(&mut world, inside, "[2001:db8:2::2]:4275", b"ping");
    world.run(START + ms(300), |_| false);
    assert_eq!(world.machine(inside).inbox.len(), 1);
    assert_eq!(world.machine(inside).inbox[0].1.payload, b"[2001:db8:1::2]:4275");
}
