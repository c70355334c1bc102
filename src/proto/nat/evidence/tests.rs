use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::super::{Made, Nat, block};
use super::*;
use crate::proto::Instant;

const SEEDS: u64 = 4000;
const MAIN: u16 = 4275;

/// A NAT of some kind, drawn by a seed, and the little of it that a survey sees.
struct Model {
    rng: ChaCha20Rng,
    mapping: Mapping,
    allocation: Allocation,
    range: (u16, u16),
    parity: bool,
    offset: i32,
    pool: u8,
    /// Mappings of others a second.
    others: f64,
    last: u16,
    now: Duration,
    made: Made,
    table: Vec<(u16, SocketAddr, SocketAddr)>,
}

impl Model {
    fn draw(seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut pick = |count: u32| rng.next_u32() % count;
        let mapping = [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent]
            [pick(3) as usize];
        let step = [1, 1, 2, -1, 4, 256][pick(6) as usize];
        let allocation = match pick(4) {
            0 => Allocation::Preserving,
            1 if mapping != Mapping::EndpointIndependent => Allocation::SecondPriority { step },
            1 | 2 => Allocation::Sequential { step },
            _ => Allocation::Random,
        };
        // A NAT that keeps every port, for each destination, looks like a cone and is called one.
        let mapping = if allocation == Allocation::Preserving { Mapping::EndpointIndependent } else { mapping };
        let range = [(1024, 65_535), (1024, 65_535), (20_000, 20_511), (32_768, 65_535)][pick(4) as usize];
        let range = if allocation == Allocation::Random { range } else { (1024, 65_535) };
        let parity = allocation == Allocation::Random && pick(4) == 0;
        let offset = if mapping == Mapping::EndpointIndependent && pick(4) == 0 { 1 + pick(900) as i32 } else { 0 };
        let pool = [1, 1, 2, 4][pick(4) as usize];
        let others = [0.0, 20.0, 300.0, 3000.0][pick(4) as usize];
        let last = 2000 + pick(60_000) as u16;
        let (now, made, table) = (Duration::from_secs(1), Made::default(), Vec::new());
        Self { rng, mapping, allocation, range, parity, offset, pool, others, last, now, made, table }
    }

    fn chance(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }

    /// Time goes by, and others take ports.
    fn wait(&mut self, time: Duration) {
        self.now += time;
        let limit = (-self.others * time.as_secs_f64()).exp();
        let mut product = self.chance();
        while product > limit {
            self.next();
            product *= self.chance();
        }
    }

    fn next(&mut self) -> u16 {
        let step = self.allocation.step().unwrap_or(1);
        let (low, high) = (i32::from(self.range.0), i32::from(self.range.1));
        let next = i32::from(self.last) + step;
        let next = if next > high {
            low
        } else if next < low {
            high
        } else {
            next
        };
        self.last = u16::try_from(next).expect("a port");
        self.last
    }

    fn port(&mut self, local: u16, first: bool) -> u16 {
        if self.offset != 0 {
            return local.wrapping_add(self.offset as u16);
        }
        match self.allocation {
            Allocation::Preserving => local,
            Allocation::SecondPriority { .. } if first => local,
            Allocation::Random => {
                let width = u32::from(self.range.1 - self.range.0) + 1;
                let port = self.range.0 + (self.rng.next_u32() % width) as u16;
                if self.parity { (port & !1 | local & 1).max(self.range.0) } else { port }
            }
            _ => self.next(),
        }
    }

    /// A question from `local`; what the server sees.
    fn ask(&mut self, local: u16, server: &str) -> Observation {
        let server: SocketAddr = server.parse().expect("an address");
        self.wait(Duration::from_micros(20));
        let made = self.made;
        let of_socket: Vec<_> = self.table.iter().filter(|(socket, ..)| *socket == local).copied().collect();
        let here = of_socket.iter().find(|(_, to, _)| match self.mapping {
            Mapping::AddressDependent => to.ip() == server.ip(),
            Mapping::AddressAndPortDependent => *to == server,
            _ => true,
        });
        let here = here.copied();
        self.made.sockets += u64::from(of_socket.is_empty());
        self.made.by_address += u64::from(of_socket.iter().all(|(_, to, _)| to.ip() != server.ip()));
        self.made.by_port += u64::from(of_socket.iter().all(|(_, to, _)| *to != server));
        let public = if let Some((.., public)) = here {
            public
        } else {
            let port = self.port(local, of_socket.is_empty());
            let address = 10 + (self.rng.next_u32() % u32::from(self.pool)) as u8;
            SocketAddr::from(([203, 0, 113, address], port))
        };
        self.table.push((local, server, public));
        Observation { server, local_port: local, public, sent: Instant::default() + self.now, made }
    }

    /// All that a netcheck sees: the main socket, the filter's and six scouts.
    fn survey(&mut self) -> (Vec<Observation>, Vec<Observation>) {
        const SERVERS: [&str; 4] = ["192.0.2.1:4270", "192.0.2.1:4271", "192.0.2.2:4270", "192.0.2.2:4271"];
        let main: Vec<_> = SERVERS.iter().map(|server| self.ask(MAIN, server)).collect();
        let mut all = main.clone();
        for scout in 0..7u32 {
            let local = 16_384 + (self.rng.next_u32() % 16_384) as u16;
            all.extend(SERVERS.iter().skip(usize::from(scout == 0)).map(|server| self.ask(local, server)));
            if scout % 2 == 0 {
                self.wait(Duration::from_millis(60));
            }
        }
        (main, all)
    }
}

/// How many readings were called sure, and how many of those are wrong.
#[derive(Default, Debug)]
struct Score {
    sure: u32,
    wrong: u32,
    unsure: u32,
}

impl Score {
    fn count(&mut self, sure: Option<Sure>, right: bool) {
        match sure {
            Some(sure) if sure.chance >= 0.99 => {
                self.sure += 1;
                self.wrong += u32::from(!right);
            }
            _ => self.unsure += 1,
        }
    }

    /// Of what is called 99 % sure no more than one in a hundred is wrong, and most is called so at all.
    fn check(&self, name: &str, at_least: f64) {
        assert!(self.wrong * 100 <= self.sure, "{name}: {self:?}");
        assert!(f64::from(self.sure) >= at_least * f64::from(self.sure + self.unsure), "{name}: {self:?}");
    }
}

/// The reading of the first `sockets` sockets.
fn score(sockets: usize, at_least: f64) {
    let [mut mapping, mut allocation, mut range, mut even, mut off, mut pool] = [(); 6].map(|()| Score::default());
    for seed in 0..SEEDS {
        let mut model = Model::draw(seed);
        let (main, mut all) = model.survey();
        let mut locals: Vec<u16> = Vec::new();
        all.retain(|look| {
            if !locals.contains(&look.local_port) {
                locals.push(look.local_port);
            }
            locals.iter().position(|local| *local == look.local_port) < Some(sockets)
        });
        let nat = Nat::classify(&main, &all, &[]);
        mapping.count(of_mapping(nat.mapping, &all), nat.mapping == model.mapping);
        let follows = offset(&all);
        if let Some((found, sure)) = follows {
            off.count(Some(sure), found == model.offset);
        }
        let cone = nat.mapping == Mapping::EndpointIndependent;
        let read = if cone { across(&all) } else { nat.allocation };
        if follows.is_none() {
            allocation.count(of_allocation(read, nat.mapping, &all), read == model.allocation);
            if let Some((kept, sure)) = parity(read, &all) {
                even.count(Some(sure), kept == model.parity);
            }
        }
        if read == Allocation::Random && model.allocation == Allocation::Random {
            let ports: Vec<u16> = super::super::moved(&all).iter().map(|look| look.public.port()).collect();
            if block(&ports).is_some() {
                range.count(of_block(&ports), model.range != (1024, 65_535));
            }
        }
        let (one, sure) = paired(&all).expect("something was seen");
        pool.count(Some(sure), one == (model.pool == 1));
    }
    mapping.check("mapping", at_least);
    allocation.check("allocation", at_least);
    range.check("block", 0.9);
    even.check("parity", at_least);
    off.check("offset", at_least);
    pool.check("pool", at_least);
}

#[test]
fn of_what_is_called_99_percent_sure_at_most_one_in_a_hundred_is_wrong() {
    score(8, 0.8);
}

#[test]
fn with_few_looks_less_is_called_sure_and_it_is_as_right() {
    score(2, 0.0);
    score(3, 0.0);
}

fn look(local: u16, server: &str, public: &str, nth: u64) -> Observation {
    let (server, public) = (server.parse().expect("an address"), public.parse().expect("an address"));
    let made = Made { sockets: nth, by_address: nth, by_port: nth };
    Observation { server, local_port: local, public, sent: Instant::default(), made }
}

#[test]
fn more_looks_make_a_mapping_surer() {
    let cone = [look(5, "192.0.2.1:1", "203.0.113.1:7", 0), look(5, "192.0.2.2:1", "203.0.113.1:7", 1)];
    let once = of_mapping(Mapping::EndpointIndependent, &cone).expect("read");
    assert_eq!((once.chance, once.looks), (1.0 - 1.0 / 64.0, 1));
    let more = [look(6, "192.0.2.1:1", "203.0.113.1:8", 2), look(6, "192.0.2.2:1", "203.0.113.1:8", 3)];
    let twice = of_mapping(Mapping::EndpointIndependent, &[cone, more].concat()).expect("read");
    assert!(twice.chance > 0.999 && twice.looks == 2);
    assert_eq!(of_mapping(Mapping::EndpointIndependent, &cone[..1]), None);
}

#[test]
fn a_port_that_is_drawn_twice_is_no_doubt_where_others_differ() {
    let port = |nth: u64| format!("203.0.113.1:{}", 20_000 + nth);
    let looks = |differ: u64| {
        let pair = |nth: u64| {
            let second = if nth == 0 { port(0) } else { port(100 + nth) };
            [
                look(nth as u16, "192.0.2.1:1", &port(nth), 2 * nth),
                look(nth as u16, "192.0.2.1:2", &second, 2 * nth + 1),
            ]
        };
        of_mapping(Mapping::AddressAndPortDependent, &(0..=differ).flat_map(pair).collect::<Vec<_>>()).expect("read")
    };
    assert!(looks(13).chance > 0.999);
    assert!((0.9..0.99).contains(&looks(1).chance), "{:?}", looks(1));
}

#[test]
fn one_gap_makes_a_small_step_likely_and_a_large_one_a_guess() {
    let pair = |step: u16| {
        let second = format!("203.0.113.1:{}", 7000 + step);
        [look(5, "192.0.2.1:1", "203.0.113.1:7000", 0), look(5, "192.0.2.2:1", &second, 1)]
    };
    let sure = |step: u16| of_step(i32::from(step), Mapping::AddressAndPortDependent, &pair(step)).chance;
    assert!(sure(1) > 0.9 && sure(1) < 0.99, "{}", sure(1));
    assert!(sure(64) < 0.01, "{}", sure(64));
}

#[test]
fn a_closed_filter_is_believed_after_the_second_silence() {
    let sure = |tries| of_filtering(Filtering::AddressAndPortDependent, (tries, None)).expect("read").chance;
    assert!(sure(Some(1)) < 0.95 && sure(Some(2)) >= 0.99);
    assert!(sure(None) <= 0.5);
    assert_eq!(of_filtering(Filtering::Unknown, (Some(3), Some(3))), None);
}
