//! How many answers that are longer than their question one source is sent. A plain STUN request is 20 bytes and its answer
//! 32 or 44; with forged sources that would be a small amplifier (reliability: open STUN servers are abused so).
//!
//! A fixed table of token buckets, by a keyed hash of the source's IPv4 address or IPv6 /64: no memory grows, ports and
//! addresses within a /64 evade nothing, and nobody who doesn't know the key can aim at another source's bucket. Two sources
//! that meet in one bucket share its budget, which costs them a repeated request at most.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::proto::Instant;

/// A power of two well above the sources that ask within [`REFILL`] × [`BURST`]; the table takes 128 KiB.
const BUCKETS: usize = 8192;
/// A client behind a shared address asks 8 requests at a start; eight clients may do so at once.
const BURST: u64 = 64;
/// Ten answers a second and source afterwards: 44 bytes each are 3.5 kbit/s, nothing worth an attack.
const REFILL: Duration = Duration::from_millis(100);

/// The table.
pub struct Limit {
    key: RandomState,
    /// The time at which each bucket is full again (GCRA: one number instead of a level and a time).
    full_at: Box<[Instant]>,
}

impl Limit {
    /// Every source has its whole burst. The key is the system's randomness.
    pub fn new() -> Self {
        Self { key: RandomState::new(), full_at: vec![Instant::default(); BUCKETS].into_boxed_slice() }
    }

    /// Whether `source` may be sent one more.
    pub fn allows(&mut self, now: Instant, source: IpAddr) -> bool {
        let hash = match source.to_canonical() {
            IpAddr::V4(address) => self.key.hash_one(address.octets()),
            IpAddr::V6(address) => self.key.hash_one(&address.octets()[..8]),
        };
        let at = usize::try_from(hash % BUCKETS as u64).unwrap_or(0);
        let Some(full_at) = self.full_at.get_mut(at) else { return false };
        let next = (*full_at).max(now) + REFILL;
        let burst = Duration::from_millis(BURST * REFILL.as_millis() as u64);
        if next.since(now) > burst {
            return false;
        }
        *full_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(limit: &mut Limit, now: Instant, sources: impl Iterator<Item = IpAddr>) -> u64 {
        sources.map(|source| u64::from(limit.allows(now, source))).sum()
    }

    #[test]
    fn a_source_gets_its_burst_and_then_ten_a_second() {
        let mut limit = Limit::new();
        let source: IpAddr = "192.0.2.1".parse().expect("an address");
        let start = Instant::from_nanos(1_000_000_000);
        assert_eq!(allowed(&mut limit, start, std::iter::repeat_n(source, 1000)), BURST);
        let later = start + Duration::from_secs(1);
        assert_eq!(allowed(&mut limit, later, std::iter::repeat_n(source, 1000)), 10);
    }

    #[test]
    fn all_addresses_of_one_ipv6_network_share_one_budget() {
        let mut limit = Limit::new();
        let sources = (0..1000u16).map(|i| IpAddr::from([0x2001, 0xdb8, 0, 1, i, i, 3, 4]));
        assert_eq!(allowed(&mut limit, Instant::default(), sources), BURST);
    }

    #[test]
    fn other_sources_are_not_held_back_by_one_that_floods() {
        let mut limit = Limit::new();
        let now = Instant::default();
        allowed(&mut limit, now, std::iter::repeat_n(IpAddr::from([192, 0, 2, 1]), 1000));
        let others = (0..=255u8).map(|i| IpAddr::from([198, 51, 100, i]));
        // One in 8,192 meets the flooder's bucket; three of 256 would be a fault.
        assert!(allowed(&mut limit, now, others) >= 254);
    }
}
