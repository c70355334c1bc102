//! How sure a reading of a NAT is, and what else the same observations show: parity, an offset, a pool.
//!
//! Each function gives what it reads, a chance, and how many observations are behind it. The chance is one less how often a NAT of
//! the likeliest *other* kind would have shown the same: a lower bound, as long as the other kinds are no likelier than this one
//! beforehand. The other kinds are:
//!
//! | property     | read                            | the other kind                                    | it shows the same                |
//! | ------------ | ------------------------------- | ------------------------------------------------- | -------------------------------- |
//! | mapping      | one port at k more addresses    | by address, in a block of 64                      | 64⁻ᵏ                             |
//! | mapping      | one port at k more ports        | by address and port, in a block of 64             | 64⁻ᵏ                             |
//! | mapping      | k second looks that differ      | by address, forgotten between the two             | 1000⁻ᵏ                           |
//! | filtering    | no answer to k requests         | open, and one in ten is lost                      | 10⁻ᵏ                             |
//! | preserving   | k sockets that kept their port  | any port of a block of 512                        | 512⁻ᵏ                            |
//! | step         | k gaps, at most m steps each    | any port of a block of 512                        | 2 × step × (m/512)ᵏ              |
//! | step         | k gaps that share it            | half the step, and others' mappings odd each time | 2⁻ᵏ                              |
//! | random       | k of n gaps fit no one step     | a sequence; one gap in ten is odd                 | 10⁻ᵏ × (n over k)                |
//! | block        | n ports, the furthest s apart   | any port of all                                   | n (s/64,512)ⁿ⁻¹                  |
//! | parity       | n ports as even as the local    | any port                                          | 2⁻ⁿ                              |
//! | offset       | k more sockets as far off       | any port of a block of 512                        | 512⁻ᵏ                            |
//! | pooling      | one address in n mappings       | any of two addresses                              | 2¹⁻ⁿ                             |
//!
//! Second looks that don't differ, among some that do, are ports of a block of 64 that were drawn twice: how often that many come by
//! chance divides the 1000⁻ᵏ.
//!
//! A sequence's step is the smallest that fits, and as many smaller ones, up or down, would have been believed as well: hence
//! 2 × step. 64 and 512 ports are the smallest blocks and the usual ones that carriers give a customer (RFC 7422).
//!
//! What can't be told apart by looking from one machine: Linux's masquerade maps by address and port and keeps the number, and
//! so looks like a cone that keeps ports; one public address may be one of a pool that is paired (RFC 4787 section 4.1).

use std::net::IpAddr;

use super::{Allocation, Filtering, Gap, Mapping, Observation, STEPS_ASIDE, Step};

/// The chance that it is so, and how many observations say so.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sure {
    pub chance: f64,
    pub looks: u32,
}

impl Sure {
    /// From how often another kind of NAT would have shown the same.
    fn unless(other: f64, looks: usize) -> Self {
        Self { chance: (1.0 - other).clamp(0.0, 1.0), looks: u32::try_from(looks).unwrap_or(u32::MAX) }
    }

    fn certain(looks: usize) -> Self {
        Self::unless(0.0, looks)
    }

    /// Read because nothing better is known.
    fn guess(looks: usize) -> Self {
        Self::unless(0.5, looks)
    }
}

/// How often a NAT of another kind shows the same port again.
const SAME_AGAIN: f64 = 1.0 / 64.0;
/// How often it happens to hit one port.
const HIT: f64 = 1.0 / 512.0;
/// How often a NAT forgets a mapping between two questions of a burst.
const FORGOTTEN: f64 = 1e-3;
/// How often a request or its answer is lost: on a bad wireless link.
const LOST: f64 = 0.1;
/// How often a busy sequence shows a gap that fits no step: it went around, or others were quick.
const ODD_GAP: f64 = 0.1;

/// The n-th power, where n is a count.
fn power(base: f64, count: usize) -> f64 {
    base.powi(i32::try_from(count).unwrap_or(i32::MAX))
}

/// How sure a mapping is. `seen`: what every socket saw, in order.
pub fn of_mapping(mapping: Mapping, seen: &[Observation]) -> Option<Sure> {
    // The first look at each address beside the socket's first look, and each later look at an address beside that.
    let (mut elsewhere, mut again) = (Tally::default(), Tally::default());
    for (at, look) in seen.iter().enumerate() {
        let of_socket = || seen[..at].iter().filter(|before| before.local_port == look.local_port);
        let here = of_socket().find(|before| before.server.ip() == look.server.ip());
        match (here, of_socket().next()) {
            (Some(before), _) if before.server != look.server => again.count(before.public == look.public),
            (None, Some(before)) => elsewhere.count(before.public == look.public),
            _ => {}
        }
    }
    match mapping {
        Mapping::None => Some(Sure::certain(seen.len())),
        Mapping::EndpointIndependent if elsewhere.same > 0 => {
            let other = power(SAME_AGAIN, elsewhere.same);
            Some(Sure::unless(other.max(elsewhere.against(true)), elsewhere.same))
        }
        Mapping::AddressDependent if again.same > 0 => {
            let other = power(SAME_AGAIN, again.same);
            Some(Sure::unless(other.max(again.against(true)), again.same))
        }
        Mapping::AddressAndPortDependent if again.differ > 0 => {
            // Random ports of a small block are the same again now and then: either that, or so many mappings were forgotten.
            let same_by_chance = at_least(again.same, again.same + again.differ, SAME_AGAIN);
            Some(Sure::unless(power(FORGOTTEN, again.differ) / same_by_chance, again.differ))
        }
        // No server was asked at two ports.
        Mapping::AddressDependent | Mapping::AddressAndPortDependent => Some(Sure::guess(elsewhere.differ)),
        Mapping::EndpointIndependent | Mapping::Unknown => None,
    }
}

/// Looks that showed the same, and those that did not.
#[derive(Default)]
struct Tally {
    same: usize,
    differ: usize,
}

impl Tally {
    fn count(&mut self, same: bool) {
        *(if same { &mut self.same } else { &mut self.differ }) += 1;
    }

    /// The share of those that contradict.
    fn against(&self, same: bool) -> f64 {
        let against = if same { self.differ } else { self.same };
        against as f64 / (self.same + self.differ).max(1) as f64
    }
}

/// How sure a filter is. `silence`: how many requests for an answer from another port, and from another address, were not answered;
/// `None`: the server has no such other socket.
pub fn of_filtering(filtering: Filtering, silence: (Option<u32>, Option<u32>)) -> Option<Sure> {
    let silent = |tries: Option<u32>| match tries {
        Some(tries) if tries > 0 => Sure::unless(power(LOST, tries as usize), tries as usize),
        _ => Sure::guess(0),
    };
    match filtering {
        Filtering::EndpointIndependent => Some(Sure::certain(1)),
        Filtering::AddressDependent => Some(silent(silence.1)),
        Filtering::AddressAndPortDependent => Some(silent(silence.0)),
        Filtering::Unknown => None,
    }
}

/// How sure an allocation is. `looks`: fresh mappings' of every socket.
pub fn of_allocation(allocation: Allocation, mapping: Mapping, looks: &[Observation]) -> Option<Sure> {
    let firsts = firsts(looks);
    let kept = firsts.iter().filter(|first| first.is_kept()).count();
    match allocation {
        Allocation::Unknown => None,
        _ if mapping == Mapping::None => Some(Sure::certain(looks.len())),
        Allocation::Preserving if kept > 0 => {
            let moved = (firsts.len() - kept) as f64 / firsts.len() as f64;
            Some(Sure::unless(power(HIT, kept).max(moved), kept))
        }
        Allocation::Preserving => Some(Sure::guess(firsts.len())),
        Allocation::Sequential { step } => Some(of_step(step, mapping, looks)),
        Allocation::SecondPriority { step } => {
            let counts = of_step(step, mapping, looks);
            let both = counts.chance * (1.0 - power(HIT, kept));
            Some(Sure { chance: both, looks: counts.looks })
        }
        Allocation::Random => {
            let gaps = super::gaps(&super::moved(looks), mapping);
            // The sequence that explains most.
            let sizes = gaps.iter().flat_map(|gap| [1, gap.way.abs(), -1, -gap.way.abs()]);
            let steps = sizes.filter(|step| (1..=super::LARGEST_STEP).contains(&step.unsigned_abs()));
            let fit = steps.map(|step| gaps.iter().filter(|gap| fits(gap, step)).count()).max().unwrap_or(0);
            let odd = gaps.len() - fit;
            Some(if odd == 0 { Sure::guess(0) } else { Sure::unless(power(ODD_GAP, odd) * ways(gaps.len(), odd), odd) })
        }
    }
}

fn of_step(step: i32, mapping: Mapping, looks: &[Observation]) -> Sure {
    let gaps = super::gaps(&super::moved(looks), mapping);
    let (other, fit) = by_chance(&gaps, step);
    if fit == 0 {
        return Sure::guess(0);
    }
    let half = if step.abs() == 1 { 0.0 } else { power(0.5, fit) };
    Sure::unless(other.max(half), fit)
}

/// How often random ports of a block fit a sequence of that step or a smaller one as well as these gaps do, and how many of these do.
pub(super) fn by_chance(gaps: &[Gap], step: i32) -> (f64, usize) {
    let size = step.unsigned_abs().max(1);
    let fitting = || gaps.iter().filter(|gap| fits(gap, step));
    let hits = fitting().map(|gap| (f64::from(gap.most * (aside(size) + 1)) * HIT).min(1.0));
    let other = hits.fold(2.0 * f64::from(size), |other, hit| other * hit);
    let fit = fitting().count();
    // Any of the gaps might have been the ones that don't fit.
    (other * ways(gaps.len(), gaps.len() - fit), fit)
}

/// Whether a counter of that step may have gone so far, others' mappings between.
fn fits(gap: &Gap, step: i32) -> bool {
    let (size, way) = (step.unsigned_abs().max(1), gap.way.unsigned_abs());
    gap.way.signum() == step.signum() && (1..=gap.most).contains(&(way / size)) && way % size <= aside(size)
}

/// How far a counter of large steps may step aside for a port that is taken.
fn aside(size: u32) -> u32 {
    if size >= STEPS_ASIDE { size / STEPS_ASIDE } else { 0 }
}

/// How often at least so many of `tries` succeed, each by that chance.
fn at_least(successes: usize, tries: usize, chance: f64) -> f64 {
    let exactly = |count: usize| ways(tries, count) * power(chance, count) * power(1.0 - chance, tries - count);
    (successes..=tries).map(exactly).sum()
}

/// In how many ways so many can be chosen.
fn ways(of: usize, chosen: usize) -> f64 {
    (0..chosen).fold(1.0, |ways, nth| ways * (of - nth) as f64 / (nth + 1) as f64)
}

/// What a NAT that gives each socket one port for everybody allocates, from new sockets' ports in order: [`super::Nat::classify`]
/// looks at one socket and can't tell.
pub fn across(looks: &[Observation]) -> Allocation {
    let firsts: Vec<Observation> = firsts(looks).into_iter().copied().collect();
    if !firsts.is_empty() && firsts.iter().all(Observation::is_kept) {
        return Allocation::Preserving;
    }
    match super::step(&super::moved(&firsts), Mapping::EndpointIndependent) {
        Step::Of(step) => Allocation::Sequential { step },
        Step::Irregular => Allocation::Random,
        Step::TooFew => Allocation::Unknown,
    }
}

/// The first look of each socket, in order.
fn firsts(looks: &[Observation]) -> Vec<&Observation> {
    let mut ordered: Vec<&Observation> = looks.iter().collect();
    ordered.sort_by_key(|look| (look.made.by_port, look.sent));
    let mut firsts: Vec<&Observation> = Vec::new();
    for look in ordered {
        if firsts.iter().all(|first| first.local_port != look.local_port) {
            firsts.push(look);
        }
    }
    firsts
}

/// How sure it is that the NAT's ports come from one block.
pub fn of_block(ports: &[u16]) -> Option<Sure> {
    super::together_by_chance(ports, super::WHOLE_RANGE).map(|other| Sure::unless(other, super::different(ports).len()))
}

/// Whether public ports are even where local ones are, though the number is not kept (RFC 4787 section 4.2.2). `None`: every
/// number is kept.
pub fn parity(allocation: Allocation, looks: &[Observation]) -> Option<(bool, Sure)> {
    let moved = super::moved(looks);
    let parted = moved.iter().filter(|look| (look.public.port() ^ look.local_port) & 1 == 1).count();
    if moved.is_empty() {
        return None;
    }
    if parted > 0 {
        return Some((false, Sure::certain(parted)));
    }
    // A sequence's ports are no independent draws; the sockets' own are.
    let draws = match allocation {
        Allocation::Random => moved.len(),
        _ => firsts(looks).iter().filter(|first| moved.iter().any(|look| look.local_port == first.local_port)).count(),
    };
    Some((true, Sure::unless(power(0.5, draws), draws)))
}

/// How far each new socket's public port is from the local one, where it is as far for all, and not kept.
pub fn offset(looks: &[Observation]) -> Option<(i32, Sure)> {
    let firsts = firsts(looks);
    let far = |look: &Observation| i32::from(look.public.port()) - i32::from(look.local_port);
    let offset = far(firsts.first()?);
    let follows = firsts.len() > 1 && offset != 0 && firsts.iter().all(|look| far(look) == offset);
    follows.then(|| (offset, Sure::unless(power(HIT, firsts.len() - 1), firsts.len())))
}

/// Whether all our mappings have one public address: `false` is a pool that is not paired (RFC 4787 section 4.1).
pub fn paired(seen: &[Observation]) -> Option<(bool, Sure)> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut mappings: Vec<(u16, u16)> = Vec::new();
    for look in seen {
        if !addresses.contains(&look.public.ip()) {
            addresses.push(look.public.ip());
        }
        if !mappings.contains(&(look.local_port, look.public.port())) {
            mappings.push((look.local_port, look.public.port()));
        }
    }
    match addresses.len() {
        0 => None,
        1 => Some((true, Sure::unless(power(0.5, mappings.len() - 1), mappings.len()))),
        _ => Some((false, Sure::certain(mappings.len()))),
    }
}

#[cfg(test)]
mod tests;
