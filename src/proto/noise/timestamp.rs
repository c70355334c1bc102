//! TAI64N, WireGuard's guard against a replayed initiation: each initiation carries a timestamp greater than the last one.
//!
//! ```text
//! | seconds since 1970 TAI, plus 2^62: 8, big-endian | nanoseconds: 4, big-endian |
//! ```
//!
//! The three bytes that WireGuard clears say whether the initiator offers AES-256-GCM ([`crate::proto::cipher`]).

use crate::proto::Wall;

/// Bytes on the wire.
pub const TIMESTAMP_LEN: usize = 12;
/// 1970-01-01 00:00:00 TAI by TAI64 (2^62), and the 10 s that TAI was ahead of UTC then. Leap seconds since are left out, as
/// every WireGuard leaves them out: the number only has to grow.
const EPOCH: u64 = (1 << 62) + 10;
/// The low bits of the nanoseconds are cleared (about 17 ms remain), as in WireGuard: a peer need not learn our clock so
/// finely that it can tell machines, or our processor's speed, by it.
const COARSE: u32 = !0x00ff_ffff;
/// In their place: AES-256-GCM is offered. It keeps the nanoseconds below a second.
const OFFER: [u8; 3] = *b"AES";

/// A timestamp; its order as bytes is its order in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(pub [u8; TIMESTAMP_LEN]);

impl Timestamp {
    /// The timestamp of an initiation made at `wall`, after one with `last`: greater than it, whatever the clock did.
    pub fn after(last: Timestamp, wall: Wall) -> Timestamp {
        let next = Self::at(wall).max(last.successor());
        if next.offers_aes() { next.successor() } else { next }
    }

    /// The same, with an offer of AES-256-GCM.
    pub fn offering_aes(last: Timestamp, wall: Wall) -> Timestamp {
        let next = Self::at(wall).max(last.successor());
        let offer = next.with_offer();
        if offer >= next { offer } else { next.coarse_successor().with_offer() }
    }

    pub fn offers_aes(self) -> bool {
        self.0.ends_with(&OFFER)
    }

    fn at(wall: Wall) -> Timestamp {
        Self::from_parts(EPOCH.saturating_add(wall.0.as_secs()), wall.0.subsec_nanos() & COARSE)
    }

    fn successor(self) -> Timestamp {
        let mut bytes = self.0;
        increment(&mut bytes);
        Timestamp(bytes)
    }

    /// One more in what an offer leaves.
    fn coarse_successor(self) -> Timestamp {
        let mut bytes = self.0;
        increment(&mut bytes[..TIMESTAMP_LEN - OFFER.len()]);
        Timestamp(bytes)
    }

    fn with_offer(self) -> Timestamp {
        let mut bytes = self.0;
        bytes[TIMESTAMP_LEN - OFFER.len()..].copy_from_slice(&OFFER);
        Timestamp(bytes)
    }

    fn from_parts(seconds: u64, nanos: u32) -> Timestamp {
        let mut bytes = [0; TIMESTAMP_LEN];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Timestamp(bytes)
    }
}

fn increment(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn the_epoch_is_where_tai64_puts_it() {
        let at = Timestamp::at(Wall(Duration::new(1, 0x0123_4567)));
        assert_eq!(at.0, [0x40, 0, 0, 0, 0, 0, 0, 0x0b, 0x01, 0, 0, 0]);
    }

    #[test]
    fn two_in_the_same_instant_or_after_a_step_back_still_grow() {
        let wall = Wall(Duration::new(1_790_000_000, 5));
        let first = Timestamp::after(Timestamp::default(), wall);
        let second = Timestamp::after(first, wall);
        let third = Timestamp::after(second, Wall(Duration::from_secs(1)));
        assert!(first < second && second < third);
    }

    #[test]
    fn a_full_byte_carries() {
        assert_eq!(Timestamp([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 255]).successor().0[10..], [1, 0]);
    }

    #[test]
    fn an_offer_stands_in_the_bits_that_are_cleared_without_one_and_stays_below_a_second() {
        let wall = Wall(Duration::new(1, 999_999_999));
        let (plain, offer) = (Timestamp::at(wall), Timestamp::offering_aes(Timestamp::default(), wall));
        assert!(offer.offers_aes() && !plain.offers_aes());
        assert_eq!(offer.0[..9], plain.0[..9]);
        let nanos = u32::from_be_bytes(std::array::from_fn(|i| offer.0[8 + i]));
        assert!(nanos < 1_000_000_000);
    }

    proptest! {
        #[test]
        fn with_and_without_an_offer_each_is_greater_than_the_last(
            start: [u8; 3],
            steps in prop::collection::vec((any::<bool>(), 0u64..3), 1..40),
        ) {
            // As an implementation that does not clear them may have left it.
            let mut last = Timestamp::at(Wall(Duration::from_secs(1_790_000_000)));
            last.0[9..].copy_from_slice(&start);
            for (offers, seconds) in steps {
                let wall = Wall(Duration::from_secs(1_790_000_000 + seconds));
                let next = if offers { Timestamp::offering_aes(last, wall) } else { Timestamp::after(last, wall) };
                prop_assert!(next > last);
                prop_assert_eq!(next.offers_aes(), offers);
                last = next;
            }
        }
    }
}
