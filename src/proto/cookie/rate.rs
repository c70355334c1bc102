//! How many handshakes come at all, and how many from each source.

use std::net::IpAddr;
use std::time::Duration;

use crate::proto::noise::primitive::mac;
use crate::proto::time::Instant;

/// Handshakes a second that one source may start while we are under load (WireGuard's figure).
const PER_SOURCE_PER_S: u32 = 20;
/// How many of them at once (WireGuard's figure).
const BURST: u32 = 5;
/// Sources are told apart as far as this many (32 KiB); two that fall together share one allowance. The table needs no eviction
/// and can't be filled. WireGuard's own table holds 8,192 entries at most.
const SLOTS: usize = 4096;
/// We count as under load for so long after the last second that was too busy (WireGuard's figure).
const CALM: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);

/// Whether handshakes come faster than we care to answer them unasked.
pub struct Load {
    busy_per_s: u32,
    since: Instant,
    count: u32,
    busy_until: Instant,
}

impl Load {
    pub fn new(busy_per_s: u32) -> Self {
        Self { busy_per_s, since: Instant::default(), count: 0, busy_until: Instant::default() }
    }

    /// Counts one; whether we are under load.
    pub fn handle_arrival(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= SECOND {
            self.since = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.busy_per_s {
            self.busy_until = now + CALM;
        }
        now < self.busy_until
    }
}

/// An allowance for each IPv4 address and each IPv6 /64.
pub struct Sources {
    key: [u8; 32],
    /// For each slot, when its allowance is whole again (the generic cell rate algorithm: one number says it all).
    whole_at: Box<[Instant]>,
}

impl Sources {
    /// `key`: random, so that nobody can aim at another's slot.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, whole_at: Box::default() }
    }

    /// Takes one off the source's allowance; `false` where nothing is left.
    pub fn admits(&mut self, now: Instant, source: IpAddr) -> bool {
        let interval = SECOND / PER_SOURCE_PER_S;
        if self.whole_at.is_empty() {
            self.whole_at = vec![Instant::default(); SLOTS].into_boxed_slice();
        }
        let whole_at = &mut self.whole_at[slot(&self.key, source)];
        let next = (*whole_at).max(now) + interval;
        if next.since(now) > interval * BURST {
            return false;
        }
        *whole_at = next;
        true
    }
}

fn slot(key: &[u8; 32], source: IpAddr) -> usize {
    let digest = match source {
        IpAddr::V4(ip) => mac(key, &[&ip.octets()]),
        IpAddr::V6(ip) => mac(key, &[&ip.octets()[..8]]),
    };
    usize::from(u16::from_le_bytes([digest[0], digest[1]])) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_five_at_once_and_then_twenty_a_second() {
        let mut sources = Sources::new([1; 32]);
        let source: IpAddr = "203.0.113.1".parse().expect("parses");
        let start = Instant::from_nanos(1);
        assert_eq!((0..10).filter(|_| sources.admits(start, source)).count(), 5);
        let in_a_second = (1..=1000u64).filter(|ms| sources.admits(start + Duration::from_millis(*ms), source)).count();
        assert_eq!(in_a_second, 20);
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_an_allowance_and_others_have_their_own() {
        let mut sources = Sources::new([1; 32]);
        let now = Instant::from_nanos(1);
        let same =
            (0..10u16).filter(|i| sources.admits(now, format!("2001:db8::{i}").parse().expect("parses"))).count();
        assert_eq!(same, 5);
        assert!(sources.admits(now, "2001:db8:0:1::1".parse().expect("parses")));
    }

    #[test]
    fn load_ends_a_second_after_the_flood() {
        let mut load = Load::new(10);
        let start = Instant::from_nanos(1);
        assert_eq!((0..20).filter(|_| load.handle_arrival(start)).count(), 10);
        assert!(load.handle_arrival(start + Duration::from_millis(900)));
        assert!(!load.handle_arrival(start + Duration::from_millis(2000)));
    }
}
