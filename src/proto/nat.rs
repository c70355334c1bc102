//! From observations to what the NAT does, in RFC 4787's words and the patent's.
//!
//! An observation is one request's public address. From one local socket to address 1 port 1, address 1 port 2, address 2
//! port 1, and so on, they separate three kinds of mapping (the patent's FIG. 1 and 2 against FIG. 4B, and what FIG. 4B does
//! not separate: by address, and by address and port); show whether the first mapping of a local port keeps the port and the
//! later ones do not (FIG. 4A, "second priority"); and give the step between two ports that the NAT hands out one after the
//! other: the greatest common divisor of the gaps, because other users take ports in between.
//!
//! All of this orders what is tried; it never forbids anything, because a NAT may be misread.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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

/// One request that was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    pub server: SocketAddr,
    pub local_port: u16,
    pub public: SocketAddr,
    /// When the request that made the mapping was first sent.
    pub sent: Instant,
}

/// What the observations of one socket, in the order in which they were sent, say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Nat {
    pub mapping: Mapping,
    pub allocation: Allocation,
    /// Every public address seen, most recent last; more than one address: a pool.
    pub public: Vec<SocketAddr>,
}

/// Gaps beyond this are not taken for a sequence: a random port lies within it once in 64 tries, and three in a row in the
/// same direction once in a million; other users take at most a few ports in the milliseconds between two requests.
const LARGEST_GAP: i32 = 1024;

impl Nat {
    /// `own`: this machine's own addresses.
    pub fn classify(observations: &[Observation], own: &[IpAddr]) -> Self {
        let mut public = Vec::new();
        for observation in observations {
            public.retain(|known| *known != observation.public);
            public.push(observation.public);
        }
        let mapping = mapping(observations, own);
        Self { mapping, allocation: allocation(observations, mapping), public }
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

fn allocation(observations: &[Observation], mapping: Mapping) -> Allocation {
    let Some(first) = observations.first() else { return Allocation::Unknown };
    let mut ports: Vec<u16> = Vec::new();
    for observation in observations {
        if !ports.contains(&observation.public.port()) {
            ports.push(observation.public.port());
        }
    }
    let preserved = first.public.port() == first.local_port;
    match mapping {
        Mapping::None => return Allocation::Preserving,
        Mapping::Unknown | Mapping::EndpointIndependent => {
            return if preserved { Allocation::Preserving } else { Allocation::Unknown };
        }
        Mapping::AddressDependent | Mapping::AddressAndPortDependent => {}
    }
    let sequence = if preserved { &ports[1..] } else { &ports[..] };
    match (step(sequence), preserved) {
        (Step::Of(step), true) => Allocation::SecondPriority { step },
        (Step::Of(step), false) => Allocation::Sequential { step },
        // One masqueraded port tells no step; a step of one is what almost every such NAT takes.
        (Step::TooFew, true) => Allocation::SecondPriority { step: 1 },
        (Step::TooFew, false) => Allocation::Unknown,
        (Step::Irregular, _) => Allocation::Random,
    }
}

enum Step {
    Of(i32),
    TooFew,
    Irregular,
}

fn step(ports: &[u16]) -> Step {
    let gaps: Vec<i32> = ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
    if gaps.is_empty() {
        return Step::TooFew;
    }
    let regular = |gaps: &[i32]| {
        let near = gaps.iter().all(|gap| gap.abs() <= LARGEST_GAP);
        near && (gaps.iter().all(|gap| *gap > 0) || gaps.iter().all(|gap| *gap < 0))
    };
    let mut gaps = gaps;
    if !regular(&gaps) && gaps.len() > 1 {
        // One gap may be the sequence's wrap to its start: it says nothing, where the others agree.
        let widest = (0..gaps.len()).max_by_key(|i| gaps[*i].abs()).unwrap_or(0);
        gaps.remove(widest);
    }
    if !regular(&gaps) {
        return Step::Irregular;
    }
    let size = gaps.iter().fold(0, |divisor, gap| gcd(divisor, gap.unsigned_abs()));
    let size = i32::try_from(size).unwrap_or(LARGEST_GAP);
    Step::Of(if gaps[0] > 0 { size } else { -size })
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// More than this is no traffic but a jump: a busy carrier's NAT was seen to make some hundreds a second (Klinec and Matyas
/// measured 48 to 265), and a port range is used up in 20 s at this rate.
const LARGEST_RATE: f64 = 3000.0;

/// How many mappings a second other users of the NAT make: from the way that the counter went between two looks at it,
/// less `own` mappings of ours.
pub fn cross_traffic(step: i32, before: (Instant, u16), after: (Instant, u16), own: u32) -> Option<f64> {
    let elapsed = after.0.since(before.0);
    // Over less than this a rate is noise, and over more a counter may have gone around, or its NAT have been restarted.
    if elapsed < Duration::from_millis(100) || elapsed > Duration::from_secs(60) || step == 0 {
        return None;
    }
    let way = i32::from(after.1) - i32::from(before.1);
    let mappings = f64::from(way) / f64::from(step) - f64::from(own);
    let rate = mappings / elapsed.as_secs_f64();
    (0.0..=LARGEST_RATE).contains(&rate).then_some(rate)
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
            .map(|(server, port)| Observation {
                server: server.parse().expect("address"),
                local_port: LOCAL,
                public: SocketAddr::new("203.0.113.5".parse().expect("address"), port),
                sent: Instant::default(),
            })
            .collect();
        Nat::classify(&observations, &["10.0.0.2".parse().expect("address")])
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
        };
        let own = ["203.0.113.5".parse().expect("address")];
        assert_eq!(Nat::classify(&[observation], &own).mapping, Mapping::None);
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
    fn cross_traffic_is_what_moved_the_counter_besides_us() {
        let before = (Instant::default(), 7000);
        let after = (Instant::default() + Duration::from_millis(500), 7014);
        assert_eq!(cross_traffic(2, before, after, 2), Some(10.0));
    }

    proptest! {
        #[test]
        fn a_sequence_with_gaps_is_found_with_a_step_that_divides_every_gap(
            start in 20000u16..30000, step in 1u16..=64, skips in prop::array::uniform3(1u16..=8)
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
