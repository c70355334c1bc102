//! From observations to what the NAT does, in RFC 4787's words and the patent's.
//!
//! An observation is one request's public address. From one local socket to address 1 port 1, address 1 port 2, address 2
//! port 1, and so on, they separate three kinds of mapping (the patent's FIG. 1 and 2 against FIG. 4B, and what FIG. 4B does
//! not separate: by address, and by address and port); show whether the first mapping of a local port keeps the port and the
//! later ones do not (FIG. 4A, "second priority"); and give the step between two ports that the NAT hands out one after the
//! other: the greatest common divisor of the gaps, because other users take ports in between.
//!
//! All of this orders what is tried; it never forbids anything, because a NAT may be misread.

pub mod evidence;

use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::time::Duration;

use super::counter;
use super::time::Instant;

/// How a NAT picks the public port for a new mapping, RFC 4787 section 4.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mapping {
    /// No NAT: the public address is our own.
    None,
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
    #[default]
    Unknown,
}

/// Whose datagrams a mapping lets in, RFC 4787 section 5.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Filtering {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
    #[default]
    Unknown,
}

/// Which public port a new mapping gets, RFC 4787 section 4.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Allocation {
    /// The local port.
    Preserving,
    /// The local port for its first mapping, the next of a sequence for later ones (FIG. 4A).
    SecondPriority {
        step: i32,
    },
    /// The next of a sequence (FIG. 4B).
    Sequential {
        step: i32,
    },
    Random,
    #[default]
    Unknown,
}

impl Allocation {
    pub fn step(self) -> Option<i32> {
        match self {
            Self::SecondPriority { step } | Self::Sequential { step } => Some(step),
            Self::Preserving | Self::Random | Self::Unknown => None,
        }
    }
}

/// How many mappings we made up to some moment, by what makes one. Which of them count, the NAT's kind says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Made {
    /// One for each socket.
    pub sockets: u64,
    /// One for each socket and address that it sent to.
    pub by_address: u64,
    /// One for each socket, address and port.
    pub by_port: u64,
}

impl AddAssign for Made {
    fn add_assign(&mut self, more: Self) {
        self.sockets += more.sockets;
        self.by_address += more.by_address;
        self.by_port += more.by_port;
    }
}

impl Made {
    /// Those that moved the counter of a NAT of this kind.
    pub fn counted(self, mapping: Mapping, allocation: Allocation) -> u64 {
        let all = match mapping {
            Mapping::None | Mapping::EndpointIndependent => self.sockets,
            Mapping::AddressDependent => self.by_address,
            Mapping::AddressAndPortDependent | Mapping::Unknown => self.by_port,
        };
        match allocation {
            // A socket's first mapping keeps its port, and takes none of the sequence.
            Allocation::SecondPriority { .. } => all.saturating_sub(self.sockets),
            Allocation::Preserving | Allocation::Sequential { .. } | Allocation::Random | Allocation::Unknown => all,
        }
    }
}

/// One request that was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    pub server: SocketAddr,
    pub local_port: u16,
    pub public: SocketAddr,
    /// When the request that made the mapping was first sent.
    pub sent: Instant,
    /// What we had made before it.
    pub made: Made,
}

impl Observation {
    /// Whether the NAT kept the local port.
    pub fn is_kept(&self) -> bool {
        self.public.port() == self.local_port
    }
}

/// What the observations say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Nat {
    pub mapping: Mapping,
    pub allocation: Allocation,
    /// Every public address seen, most recent last; more than one address: a pool.
    pub public: Vec<SocketAddr>,
}

impl Nat {
    /// From `main`, what one socket saw, in the order in which it was sent: it tells the mapping. From `all`, what every socket
    /// saw: it tells which ports are given out. `own`: this machine's own addresses.
    pub fn classify(main: &[Observation], all: &[Observation], own: &[IpAddr]) -> Self {
        let mut public = Vec::new();
        for observation in main {
            public.retain(|known| *known != observation.public);
            public.push(observation.public);
        }
        let mapping = mapping(main, own);
        Self { mapping, allocation: allocation(main, all, mapping), public }
    }
}

fn mapping(observations: &[Observation], own: &[IpAddr]) -> Mapping {
    let Some(first) = observations.first() else { return Mapping::Unknown };
    let varies = observations.iter().any(|other| other.public != first.public);
    if !varies {
        if own.contains(&first.public.ip()) && first.public.port() == first.local_port {
            return Mapping::None;
        }
        let several = observations.iter().any(|other| other.server.ip() != first.server.ip());
        return if several { Mapping::EndpointIndependent } else { Mapping::Unknown };
    }
    let by_port = observations.iter().enumerate().any(|(i, one)| {
        let later = &observations[i + 1..];
        later.iter().any(|other| other.server.ip() == one.server.ip() && other.public != one.public)
    });
    let port_was_asked = observations
        .iter()
        .enumerate()
        .any(|(i, one)| observations[i + 1..].iter().any(|other| other.server.ip() == one.server.ip()));
    if by_port || !port_was_asked { Mapping::AddressAndPortDependent } else { Mapping::AddressDependent }
}

fn allocation(main: &[Observation], all: &[Observation], mapping: Mapping) -> Allocation {
    let Some(first) = main.first() else { return Allocation::Unknown };
    // Only a NAT that keeps a socket's first port gives out the very number of the local one; a sequence does so once in 64,000.
    let preserved = first.is_kept() || all.iter().any(Observation::is_kept);
    match mapping {
        Mapping::None => return Allocation::Preserving,
        Mapping::Unknown | Mapping::EndpointIndependent => {
            return if first.is_kept() { Allocation::Preserving } else { Allocation::Unknown };
        }
        Mapping::AddressDependent | Mapping::AddressAndPortDependent => {}
    }
    match (step(&moved(all), mapping), preserved) {
        (Step::Of(step), true) => Allocation::SecondPriority { step },
        (Step::Of(step), false) => Allocation::Sequential { step },
        // One masqueraded port tells no step; a step of one is what almost every such NAT takes.
        (Step::TooFew, true) => Allocation::SecondPriority { step: 1 },
        (Step::TooFew, false) => Allocation::Unknown,
        (Step::Irregular, _) => Allocation::Random,
    }
}

/// One look a mapping that did not keep its port, in order: by address, the second port of a server shows the first one's
/// mapping again.
fn moved(all: &[Observation]) -> Vec<&Observation> {
    let mut looks: Vec<&Observation> = all.iter().filter(|seen| !seen.is_kept()).collect();
    looks.sort_by_key(|seen| (seen.made.by_port, seen.sent));
    let mut seen: Vec<u16> = Vec::new();
    looks.retain(|look| {
        let news = !seen.contains(&look.public.port());
        seen.push(look.public.port());
        news
    });
    looks
}

enum Step {
    Of(i32),
    TooFew,
    Irregular,
}

/// The largest step that one gap alone makes believe: two random ports lie as near once in 126 tries.
const LARGEST_STEP_OF_ONE_GAP: u32 = 256;
/// And the largest of all.
const LARGEST_STEP: u32 = 1024;
/// Between looks that leave together nobody comes, mostly; two random gaps have a large divisor once in some thousand tries, but
/// then they are many of it.
const MOST_OF_A_LARGE_STEP: usize = 2;

/// Between two looks that are compared: a watch's are 25 ms apart, a burst's none.
const LONGEST_GAP: Duration = Duration::from_millis(100);

/// Sequential is what takes as many steps between two looks as there were mappings of ours, and a few of others. So a random
/// port within a small block is not taken for a sequence that others use a lot: they would have had to be very quick.
fn step(looks: &[&Observation], mapping: Mapping) -> Step {
    let mut gaps = gaps(looks, mapping);
    if gaps.is_empty() {
        return Step::TooFew;
    }
    // Between two looks of a burst nobody comes; between others, a counter of large steps may have gone around, and looks as if it
    // counted the other way.
    let bursts: Vec<Gap> = gaps.iter().filter(|gap| gap.is_burst).cloned().collect();
    if bursts.len() >= FEWEST_FOR_A_MAJORITY
        && let Some(step) = common_step(&bursts).filter(|step| step.unsigned_abs() >= STEPS_ASIDE)
    {
        return Step::Of(step);
    }
    let few = gaps.len() == 1;
    if let Some(step) = common_step(&gaps) {
        return if few && step.unsigned_abs() > LARGEST_STEP_OF_ONE_GAP { Step::Irregular } else { Step::Of(step) };
    }
    // One gap in eight may be the sequence's start anew at the other end of its range, or follow a mapping of an earlier run: it
    // says nothing, where the others agree.
    for _ in 0..(gaps.len() / 8).max(usize::from(gaps.len() > 2)) {
        let widest = (0..gaps.len()).max_by_key(|i| gaps[*i].way.abs()).unwrap_or(0);
        gaps.remove(widest);
        if let Some(step) = common_step(&gaps) {
            return Step::Of(step);
        }
    }
    Step::Irregular
}

fn gaps(looks: &[&Observation], mapping: Mapping) -> Vec<Gap> {
    // Over longer a counter may have gone around, or its NAT have been restarted.
    let near = looks.windows(2).filter(|pair| pair[1].sent.since(pair[0].sent) <= LONGEST_GAP);
    // Where others of ours came between, as a hold's shot does, some may have made no mapping after all.
    near.filter_map(|pair| Gap::between(pair[0], pair[1], mapping)).collect()
}

/// From one look to the next mapping of ours.
#[derive(Clone)]
struct Gap {
    way: i32,
    /// Both left in one go.
    is_burst: bool,
    /// The most steps that it can have taken: our own, and as many of others as can have come between.
    most: u32,
}

impl Gap {
    fn between(a: &Observation, b: &Observation, mapping: Mapping) -> Option<Self> {
        let count = |seen: &Observation| seen.made.counted(mapping, Allocation::Unknown);
        let time = b.sent.since(a.sent).as_secs_f64();
        let others = counter::BURST_SLACK as u32 + (counter::LARGEST_RATE * time) as u32;
        (count(b) <= count(a) + 1).then(|| Self {
            way: i32::from(b.public.port()) - i32::from(a.public.port()),
            is_burst: b.sent.since(a.sent) < counter::BURST,
            most: others + 1,
        })
    }
}

/// The step that the gaps have in common: their greatest common divisor; or else, where a counter stepped aside here and there for
/// a port that is taken, the largest that at least three of four agree with.
fn common_step(gaps: &[Gap]) -> Option<i32> {
    let forward = gaps.iter().filter(|gap| gap.way > 0).count() * 2 > gaps.len();
    let divisor = gaps.iter().fold(0, |divisor, gap| gcd(divisor, gap.way.unsigned_abs()));
    let agree = |size: u32, aside: u32| {
        let agrees = |gap: &&Gap| {
            let steps = gap.way.unsigned_abs() / size;
            let rest = gap.way.unsigned_abs() % size;
            (gap.way > 0) == forward && steps >= 1 && steps <= gap.most && rest <= aside
        };
        gaps.iter().filter(agrees).count()
    };
    let usable = |size: &u32| (1..=LARGEST_STEP).contains(size);
    let is_near = |size: u32| {
        let bursts = || gaps.iter().filter(|gap| gap.is_burst);
        let steps: u32 = bursts().map(|gap| gap.way.unsigned_abs() / size).sum();
        size <= LARGEST_STEP_OF_ONE_GAP || steps as usize <= bursts().count() * MOST_OF_A_LARGE_STEP
    };
    let size = if usable(&divisor) && agree(divisor, 0) == gaps.len() && is_near(divisor) {
        divisor
    } else {
        let sizes = gaps.iter().map(|gap| gap.way.unsigned_abs()).filter(usable);
        let most = sizes.filter(|size| agree(*size, size / STEPS_ASIDE) * 4 >= gaps.len() * 3);
        let believable = |size: &u32| {
            let step = i32::try_from(*size).map_or(0, |size| if forward { size } else { -size });
            *size >= STEPS_ASIDE || evidence::by_chance(gaps, step).0 <= SEQUENCE_BY_CHANCE
        };
        let most = most.filter(believable);
        most.filter(|_| gaps.len() >= FEWEST_FOR_A_MAJORITY).max_by_key(|size| agree(*size, 0))?
    };
    let step = i32::try_from(size).ok()?;
    Some(if forward { step } else { -step })
}

/// A large step may be so many times as long as the way that a counter steps aside.
const STEPS_ASIDE: u32 = 16;
/// A small step that some gaps don't fit, as where a question was lost and its mapping made later, is believed where random ports
/// would look so less often than this.
const SEQUENCE_BY_CHANCE: f64 = 1e-4;
/// Three of four say more than two of three.
const FEWEST_FOR_A_MAJORITY: usize = 4;

pub fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Fewer random ports than this say nothing of the range that they come from.
const FEWEST_FOR_A_BLOCK: usize = 6;
/// How seldom ports of the whole range may lie together as they were seen to, for a block to be believed.
const BLOCK_BY_CHANCE: f64 = 1e-3;
/// The ports that NATs use in all.
const WHOLE_RANGE: f64 = 64_512.0;

/// Carriers give a customer so many ports (RFC 7422's example). To take a block for one of these that is smaller costs entries; the
/// other way round, every second call: half of eight ports' block holds them all one time in thirty.
const USUAL_BLOCK: u32 = 512;
/// Smaller ones are given nowhere that is known of.
const SMALLEST_BLOCK: u32 = 64;

/// The block of ports that random ports of a NAT come from, both ends included, where they lie too near each other for the whole
/// range: as long as a power of two (RFC 7422 section 4.1, as carriers give them out) that holds them, but as the usual one where they
/// may well come from that, and at the roundest place.
pub fn block(ports: &[u16]) -> Option<(u16, u16)> {
    let (low, high) = (*ports.iter().min()?, *ports.iter().max()?);
    let spread = u32::from(high - low) + 1;
    if together_by_chance(ports, WHOLE_RANGE)? > BLOCK_BY_CHANCE {
        return None;
    }
    let may_be_usual = together_by_chance(ports, USUAL_BLOCK.into())? > BLOCK_BY_CHANCE;
    let length = spread.next_power_of_two().max(if may_be_usual { USUAL_BLOCK } else { SMALLEST_BLOCK });
    let earliest = (u32::from(high) + 1).saturating_sub(length);
    let middle = earliest.midpoint(u32::from(low));
    let places = earliest..=u32::from(low);
    // What people and machines begin ranges at, the roundest first.
    let round = [length, 1000, 500, 256, 100, 128, 64, 50, 32, 16, 10, 8, 4, 2, 1];
    let start = round.into_iter().find_map(|unit| {
        let before = middle / unit * unit;
        let near = [before, before + unit, before.saturating_sub(unit)];
        near.into_iter().filter(|at| places.contains(at)).min_by_key(|at| at.abs_diff(middle))
    })?;
    Some((u16::try_from(start).ok()?, u16::try_from((start + length - 1).min(u32::from(u16::MAX))).ok()?))
}

fn different(ports: &[u16]) -> Vec<u16> {
    let mut different = ports.to_vec();
    different.sort_unstable();
    different.dedup();
    different
}

/// How often as many ports of a range so long lie as near together, at most. `None`: they are too few to say anything.
fn together_by_chance(ports: &[u16], range: f64) -> Option<f64> {
    let different = different(ports);
    if different.len() < FEWEST_FOR_A_BLOCK {
        return None;
    }
    let count = i32::try_from(different.len()).ok()?;
    let spread = f64::from(different.last()? - different.first()?) + 1.0;
    Some(f64::from(count) * (spread / range).powi(count - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOCAL: u16 = 4275;

    /// Observations from address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2.
    fn seen(ports: [u16; 4]) -> Nat {
        let servers = ["192.0.2.1:4270", "192.0.2.1:4271", "192.0.2.2:4270", "192.0.2.2:4271"];
        let observations: Vec<_> = servers
            .iter()
            .zip(ports)
            .zip(0..)
            .map(|((server, port), nth)| Observation {
                server: server.parse().expect("address"),
                local_port: LOCAL,
                public: SocketAddr::new("203.0.113.5".parse().expect("address"), port),
                sent: Instant::default(),
                made: Made { sockets: 1, by_address: nth / 2, by_port: nth },
            })
            .collect();
        Nat::classify(&observations, &observations, &["10.0.0.2".parse().expect("address")])
    }

    #[test]
    fn one_port_for_all_is_a_cone_and_our_own_address_is_no_nat() {
        assert_eq!(seen([7000; 4]).mapping, Mapping::EndpointIndependent);
        assert_eq!(seen([LOCAL; 4]).allocation, Allocation::Preserving);
        let observation = Observation {
            server: "192.0.2.1:4270".parse().expect("address"),
            local_port: LOCAL,
            public: "203.0.113.5:4275".parse().expect("address"),
            sent: Instant::default(),
            made: Made::default(),
        };
        let own = ["203.0.113.5".parse().expect("address")];
        assert_eq!(Nat::classify(&[observation], &[observation], &own).mapping, Mapping::None);
    }

    #[test]
    fn a_port_for_each_address_is_told_from_a_port_for_each_address_and_port() {
        assert_eq!(seen([7000, 7000, 7001, 7001]).mapping, Mapping::AddressDependent);
        assert_eq!(seen([7000, 7001, 7002, 7003]).mapping, Mapping::AddressAndPortDependent);
    }

    #[test]
    fn the_step_is_the_greatest_common_divisor_of_the_gaps() {
        assert_eq!(seen([7000, 7004, 7012, 7016]).allocation, Allocation::Sequential { step: 4 });
        assert_eq!(seen([7003, 7002, 7000, 6999]).allocation, Allocation::Sequential { step: -1 });
        assert_eq!(seen([7000, 7256, 7512, 8024]).allocation, Allocation::Sequential { step: 256 });
    }

    #[test]
    fn a_first_mapping_that_keeps_its_port_is_second_priority() {
        assert_eq!(seen([LOCAL, 7001, 7002, 7003]).allocation, Allocation::SecondPriority { step: 1 });
    }

    #[test]
    fn a_sequence_that_wraps_once_is_still_a_sequence() {
        assert_eq!(seen([40998, 40999, 40000, 40001]).allocation, Allocation::Sequential { step: 1 });
    }

    #[test]
    fn ports_all_over_the_range_are_random() {
        assert_eq!(seen([7000, 61000, 33000, 12000]).allocation, Allocation::Random);
    }

    #[test]
    fn random_ports_within_a_block_are_no_sequence() {
        assert_eq!(seen([20_017, 20_160, 20_233, 20_511]).allocation, Allocation::Random);
        assert_eq!(seen([20_500, 20_017, 20_233, 20_111]).allocation, Allocation::Random);
    }

    #[test]
    fn random_gaps_with_a_large_divisor_are_no_sequence() {
        // 9, 10 and 3 times 767.
        assert_eq!(seen([26_336, 19_433, 11_763, 9462]).allocation, Allocation::Random);
        assert_eq!(seen([26_336, 25_569, 24_802, 23_268]).allocation, Allocation::Sequential { step: -767 });
    }

    #[test]
    fn a_block_is_found_where_ports_lie_together_and_begins_at_a_round_number() {
        let ports = [20_017, 20_160, 20_233, 20_488, 20_301, 20_099, 20_420, 20_350];
        assert_eq!(block(&ports), Some((20_000, 20_511)));
        assert_eq!(block(&[40_961, 41_470, 41_022, 41_200, 41_400, 41_111, 41_333, 40_999]), Some((40_960, 41_471)));
        assert_eq!(block(&[2000, 61_000, 33_000, 12_000, 45_000, 20_000, 7000, 58_000]), None);
        assert_eq!(block(&ports[..5]), None);
    }

    #[test]
    fn a_block_is_taken_for_a_small_one_only_where_it_can_hardly_be_a_usual_one() {
        let upper_half = [41_300, 41_470, 41_322, 41_250, 41_400, 41_411, 41_333, 41_222];
        assert_eq!(block(&upper_half), Some((40_960, 41_471)));
        let small = [20_005, 20_060, 20_033, 20_011, 20_044, 20_021, 20_050, 20_039];
        assert_eq!(block(&small), Some((20_000, 20_063)));
    }

    #[test]
    fn a_question_that_was_lost_and_asked_again_hides_no_sequence() {
        // The ninth and the fourth mapping were made later than they were counted.
        let ports = [7000, 7001, 7002, 7012, 7003, 7004, 7005, 7006, 7013, 7007, 7008, 7009, 7010, 7011];
        let looks: Vec<Observation> = (0..)
            .zip(ports)
            .map(|(nth, port)| Observation {
                server: "192.0.2.1:4270".parse().expect("address"),
                local_port: LOCAL,
                public: SocketAddr::new("203.0.113.5".parse().expect("address"), port),
                sent: Instant::default(),
                made: Made { sockets: 1, by_address: nth, by_port: nth },
            })
            .collect();
        let all: Vec<&Observation> = looks.iter().collect();
        assert!(matches!(step(&all, Mapping::AddressAndPortDependent), Step::Of(1)));
    }

    proptest! {
        #[test]
        fn a_sequence_with_gaps_is_found_with_a_step_that_divides_every_gap(
            start in 20000u16..30000, step in 1u16..=64, skips in prop::array::uniform3(1u16..=6)
        ) {
            let mut ports = [start; 4];
            for i in 0..3 {
                ports[i + 1] = ports[i] + step * skips[i];
            }
            let Allocation::Sequential { step: found } = seen(ports).allocation else {
                return Err(TestCaseError::fail("not sequential"));
            };
            prop_assert_eq!(found % i32::from(step), 0);
            for i in 0..3 {
                prop_assert_eq!(i32::from(ports[i + 1] - ports[i]) % found, 0);
            }
        }
    }
}
