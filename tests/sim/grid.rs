//! The largest search of the matrix, by machines that do nothing else: what the NATs and the budget allow, whatever the core does.
//!
//! Both NATs pick a random port for each address. 256 sockets a side, so as many ports x and y of 64,512, are held for the
//! peer's address; each socket shoots at ports that it draws for itself, `SHOTS` / 256 of them. A pair (x, y) meets where each
//! drew the other: 256² × (1,171 / 64,512)² = 21.6 pairs are to be expected, and none once in e²¹·⁶ calls.
//! Were all sockets to shoot at the same ports, a side that draws none of the other's would do so for all of them: 1.9 %.
//!
//! It also says how fast the world is: `cargo test --test sim grid -- --nocapture`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::link::Link;
use crate::nat::{Allocation, Profile, Scope};
use crate::world::{Datagram, HostId, INTERNET, Machine, Moment, START, World};

const SOCKETS: u16 = 256;
const SHOTS: usize = 300_000;
const EVERY: Duration = Duration::from_millis(10);
/// 15,000 a second: all within 20 s.
const AT_A_TIME: usize = 150;
const PORTS: (u16, u16) = (1024, 65535);
/// What a DUDP_ACK has.
const PAYLOAD: usize = 68;

struct Shooter {
    own: Ipv4Addr,
    peer: Ipv4Addr,
    fired: usize,
    /// Where each socket is in its own walk through all ports: a start and a stride prime to their number.
    walks: Vec<(u64, u64)>,
    next: Instant,
    heard: bool,
}

impl Machine for Shooter {
    fn handle_datagram(&mut self, _: &mut Moment<'_>, _: Datagram) {
        self.heard = true;
    }

    fn handle_timeout(&mut self, moment: &mut Moment<'_>) {
        let span = u64::from(PORTS.1 - PORTS.0) + 1;
        for _ in 0..AT_A_TIME.min(SHOTS - self.fired) {
            let socket = self.fired % usize::from(SOCKETS);
            if self.walks.len() <= socket {
                // 64,512 = 2¹⁰ × 3² × 7.
                let strides = (0..).map(|_| moment.dice.between(1, span - 1));
                let stride = { strides }.find(|by| by % 2 != 0 && by % 3 != 0 && by % 7 != 0).expect("there are many");
                self.walks.push((moment.dice.between(0, span - 1), stride));
            }
            let (at, stride) = &mut self.walks[socket];
            *at = (*at + *stride) % span;
            let to = PORTS.0 + u16::try_from(*at).expect("is below the number of ports");
            let from = 30_000 + u16::try_from(socket).expect("is small");
            moment.sent.push(Datagram {
                src: SocketAddr::new(self.own.into(), from),
                dst: SocketAddr::new(self.peer.into(), to),
                ttl: 64,
                whole: false,
                payload: vec![7; PAYLOAD],
            });
            self.fired += 1;
        }
        self.next = self.next + EVERY;
    }

    fn poll_timeout(&self) -> Option<Instant> {
        (self.fired < SHOTS).then_some(self.next)
    }
}

/// How long it took, and how many datagrams were sent; on and on where `stops` is not set.
fn search(seed: u64, stops: bool) -> (Option<Duration>, u64) {
    let mut world = World::new(seed);
    let profile = Profile::new(Scope::Address, Scope::AddressAndPort, Allocation::Random);
    let wans = [1, 2].map(|number| Ipv4Addr::new(203, 0, 113, number));
    let hosts: [HostId; 2] = [0, 1].map(|side| {
        let own = Ipv4Addr::new(192, 168, 1 + u8::try_from(side).expect("is small"), 2);
        let link = Link::of_delay(Duration::from_millis(25));
        let (_, lan) = world.add_nat(INTERNET, wans[side], profile.clone(), link);
        let (walks, next) = (Vec::new(), START);
        let shooter = Shooter { own, peer: wans[1 - side], fired: 0, walks, next, heard: false };
        world.add_host(lan, &[IpAddr::V4(own)], Link::lan(), shooter)
    });
    let heard = |world: &World<Shooter>| hosts.iter().any(|id| world.machine(*id).heard);
    let met = world.run(START + Duration::from_secs(25), |world| stops && heard(world)) || heard(&world);
    assert!(world.faults.is_empty(), "{:?}", &world.faults[..1]);
    (met.then(|| world.now.since(START)), hosts.iter().map(|id| world.host(*id).sent).sum())
}

#[test]
fn two_random_nats_by_address_meet_within_the_budget() {
    for seed in 0..10 {
        let (took, _) = search(seed, true);
        assert!(took.is_some(), "seed {seed}");
    }
}

#[test]
fn the_whole_search_is_simulated() {
    let (took, sent) = search(1, false);
    println!("{sent} datagrams");
    assert!(took.is_some());
}
