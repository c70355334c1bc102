//! TAI64N, WireGuard's guard against a replayed initiation: each initiation carries a timestamp greater than the last one.
//!
//! ```text
//! | seconds since 1970 TAI, plus 2^62: 8, big-endian | nanoseconds: 4, big-endian |
//! ```

use crate::proto::Wall;

/// Bytes on the wire.
pub const TIMESTAMP_LEN: usize = 12;
/// 1970-01-01 00:00:00 TAI by TAI64 (2^62), and the 10 s that TAI was ahead of UTC then. Leap seconds since are left out, as
/// every WireGuard leaves them out: the number only has to grow.
const EPOCH: u64 = (1 << 62) + 10;
/// The low bits of the nanoseconds are cleared (about 17 ms remain), as in WireGuard: a peer need not learn our clock so
/// finely that it can tell machines, or our processor's speed, by it.
const COARSE: u32 = !0x00ff_ffff;

/// A timestamp; its order as bytes is its order in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(pub [u8; TIMESTAMP_LEN]);

impl Timestamp {
    /// The timestamp of an initiation made at `wall`, after one with `last`: greater than it, whatever the clock did.
    pub fn after(last: Timestamp, wall: Wall) -> Timestamp {
        Self::at(wall).max(last.successor())
    }

    fn at(wall: Wall) -> Timestamp {
        Self::from_parts(EPOCH.saturating_add(wall.0.as_secs()), wall.0.subsec_nanos() & COARSE)
    }

    fn successor(self) -> Timestamp {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        Timestamp(bytes)
    }

    fn from_parts(seconds: u64, nanos: u32) -> Timestamp {
        let mut bytes = [0; TIMESTAMP_LEN];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Timestamp(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
