//! A NAT in a few words: `mapping=apdm,filter=apdf,alloc=seq:2,lambda=300,seed=7`.
//!
//! | word | values | default |
//! | --- | --- | --- |
//! | `mapping` | `eim`, `adm`, `apdm` | `eim` |
//! | `filter` | `eif`, `adf`, `apdf` | `apdf` |
//! | `alloc` | `preserve`, `second[:STEP]`, `seq[:STEP]`, `random`, `block[:SIZE]` (512) | `preserve` |
//! | `range` | `LOW-HIGH`, the ports given out | `1024-65535` |
//! | `turn` | at the end of the range: `around`, by the remainder; `anew`, from its first port | `around` |
//! | `aside` | past a port in use: by `one`, by a whole `step`, or not at all: `shares` it | `one` |
//! | `life`, `unreplied` | seconds; a `life` below `unreplied` holds for both | 120, 30 |
//! | `refresh` | `both`, or `out`: traffic from outside keeps nothing alive | `both` |
//! | `hairpin`, `poison` | `yes`, `no` | `no` |
//! | `limit` | mappings at most | 16384 |
//! | `lambda` | other users' new mappings a second | 0 |
//! | `pool` | public addresses in use, `N[:arbitrary]` | 1 |
//! | `seed` | of all chance | 1 |

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use crate::nat::{Allocation, Aside, Pooling, Profile, Scope, Turn};

pub struct Kind {
    pub profile: Profile,
    pub seed: u64,
}

/// RFC 7422's example, and the issue's.
const BLOCK: u16 = 512;

/// `spare`: what the pool may take besides the first address.
pub fn parse(text: &str, spare: &[Ipv4Addr]) -> Result<Kind, String> {
    let mut profile = Profile::new(Scope::Endpoint, Scope::AddressAndPort, Allocation::Preserving);
    let mut seed = 1;
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("not NAME=VALUE: {word}"))?;
        let fault = || format!("not a value of {name}: {value}");
        match name {
            "mapping" => profile.mapping = scope(value, ["eim", "adm", "apdm"]).ok_or_else(fault)?,
            "filter" => profile.filtering = scope(value, ["eif", "adf", "apdf"]).ok_or_else(fault)?,
            "alloc" => profile.allocation = allocation(value).ok_or_else(fault)?,
            "range" => profile.range = range(value).ok_or_else(fault)?,
            "turn" => {
                let anew = choice(value, "around", "anew").ok_or_else(fault)?;
                profile.turn = if anew { Turn::Anew } else { Turn::Around };
            }
            "aside" => {
                profile.aside = match value {
                    "one" => Aside::One,
                    "step" => Aside::Step,
                    "shares" => Aside::Shares,
                    _ => return Err(fault()),
                }
            }
            "life" => profile.lifetime = seconds(value).ok_or_else(fault)?,
            "unreplied" => profile.unreplied = seconds(value).ok_or_else(fault)?,
            "refresh" => profile.inbound_refresh = choice(value, "both", "out").ok_or_else(fault)?,
            "hairpin" => profile.hairpin = choice(value, "yes", "no").ok_or_else(fault)?,
            "poison" => profile.poisonable = choice(value, "yes", "no").ok_or_else(fault)?,
            "limit" => profile.limit = number(value).ok_or_else(fault)?,
            "lambda" => profile.cross_traffic = rate(value).ok_or_else(fault)?,
            "pool" => (profile.more_addresses, profile.pooling) = pool(value, spare).ok_or_else(fault)?,
            "seed" => seed = number(value).ok_or_else(fault)?,
            _ => return Err(format!("not a word for a NAT: {name}")),
        }
    }
    profile.unreplied = profile.unreplied.min(profile.lifetime);
    if let Allocation::Block { size } = profile.allocation {
        let (low, high) = profile.range;
        if size == 0 || size > high - low {
            return Err(format!("no block of {size} ports in {low}-{high}"));
        }
    }
    Ok(Kind { profile, seed })
}

/// A rate of cross traffic: not endless, not negative.
pub fn rate(value: &str) -> Option<f64> {
    number(value).filter(|rate: &f64| (0.0..=1e6).contains(rate))
}

fn scope(value: &str, names: [&str; 3]) -> Option<Scope> {
    let which = names.iter().position(|name| *name == value)?;
    Some([Scope::Endpoint, Scope::Address, Scope::AddressAndPort][which])
}

fn allocation(value: &str) -> Option<Allocation> {
    let (name, argument) = match value.split_once(':') {
        Some((name, argument)) => (name, Some(argument)),
        None => (value, None),
    };
    let step = || argument.map_or(Some(1), number).filter(|step: &i32| (1..=256).contains(&step.abs()));
    match name {
        "preserve" if argument.is_none() => Some(Allocation::Preserving),
        "random" if argument.is_none() => Some(Allocation::Random),
        "second" => Some(Allocation::SecondPriority { step: step()? }),
        "seq" => Some(Allocation::Sequential { step: step()? }),
        "block" => Some(Allocation::Block { size: argument.map_or(Some(BLOCK), number)? }),
        _ => None,
    }
}

fn range(value: &str) -> Option<(u16, u16)> {
    let (low, high) = value.split_once('-')?;
    let range: (u16, u16) = (number(low)?, number(high)?);
    (range.0 > 0 && range.0 < range.1).then_some(range)
}

fn pool(value: &str, spare: &[Ipv4Addr]) -> Option<(Vec<Ipv4Addr>, Pooling)> {
    let (size, pooling) = match value.split_once(':') {
        Some((size, "arbitrary")) => (size, Pooling::Arbitrary),
        Some(_) => return None,
        None => (value, Pooling::Paired),
    };
    let more = number::<usize>(size)?.checked_sub(1)?;
    Some((spare.get(..more)?.to_vec(), pooling))
}

fn seconds(value: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(number(value)?).ok()
}

fn choice(value: &str, yes: &str, no: &str) -> Option<bool> {
    if value == yes { Some(true) } else { (value == no).then_some(false) }
}

fn number<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood() {
        let spare = [Ipv4Addr::new(203, 0, 113, 200), Ipv4Addr::new(203, 0, 113, 201)];
        let text = "mapping=apdm,filter=adf,alloc=seq:-256,range=20000-20511,life=20,refresh=out,hairpin=yes,poison=yes,\
                    limit=99,lambda=3000,pool=3:arbitrary,seed=7";
        let Kind { profile, seed } = parse(text, &spare).expect("is a kind");
        assert_eq!((profile.mapping, profile.filtering), (Scope::AddressAndPort, Scope::Address));
        assert_eq!(profile.allocation, Allocation::Sequential { step: -256 });
        assert_eq!((profile.range, profile.limit, seed), ((20000, 20511), 99, 7));
        assert_eq!((profile.lifetime, profile.unreplied), (Duration::from_secs(20), Duration::from_secs(20)));
        assert!(!profile.inbound_refresh && profile.hairpin && profile.poisonable);
        assert_eq!((profile.cross_traffic, profile.pooling), (3000.0, Pooling::Arbitrary));
        assert_eq!(profile.more_addresses, spare);
        for (text, allocation) in [
            ("", Allocation::Preserving),
            ("alloc=second:2", Allocation::SecondPriority { step: 2 }),
            ("alloc=seq", Allocation::Sequential { step: 1 }),
            ("alloc=block", Allocation::Block { size: 512 }),
            ("alloc=random", Allocation::Random),
        ] {
            assert_eq!(parse(text, &[]).expect("is a kind").profile.allocation, allocation);
        }
    }

    #[test]
    fn what_is_no_kind_is_refused() {
        for text in [
            "mapping",
            "mapping=none",
            "alloc=seq:0",
            "alloc=seq:257",
            "alloc=block:0",
            "alloc=random:1",
            "range=2-1",
            "range=2000-2400,alloc=block",
            "pool=2",
            "pool=0",
            "lambda=-1",
            "lambda=nan",
            "life=-1",
            "colour=red",
        ] {
            assert!(parse(text, &[]).is_err(), "{text}");
        }
    }
}
