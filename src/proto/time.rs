//! Time as the core sees it: a number that the shell, or the simulator, hands in.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on a clock that never steps back and goes on in suspend (`CLOCK_BOOTTIME`), from an arbitrary start.
///
/// A type of our own, because `std`'s can't be made from a number: the simulator starts each run at the same instant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(u64);

impl Instant {
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero where it lies ahead.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The wall clock: how long after 1970-01-01 00:00 UTC. Only WireGuard's TAI64N and `last_handshake` need it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Wall(pub Duration);

/// The wall clock as a fixed distance from the monotonic one, taken once, so that a step of the wall clock moves nothing.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    base: Instant,
    wall: Wall,
}

impl WallClock {
    pub fn new(now: Instant, wall: Wall) -> Self {
        Self { base: now, wall }
    }

    /// The wall clock was set, after the start: a step forward is followed, because a machine without a battery starts in the
    /// past, and peers that know us from before then refuse our handshakes. A step back is not: time only grows.
    pub fn adjust(&mut self, now: Instant, wall: Wall) {
        if wall > self.at(now) {
            *self = Self::new(now, wall);
        }
    }

    /// The wall time at `then`, which may lie before the clock was last set.
    pub fn at(&self, then: Instant) -> Wall {
        Wall((self.wall.0 + then.since(self.base)).saturating_sub(self.base.since(then)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_forward_moves_what_comes_and_not_what_was() {
        let second = |seconds| Instant::default() + Duration::from_secs(seconds);
        let mut clock = WallClock::new(second(10), Wall(Duration::from_secs(1000)));
        assert_eq!(clock.at(second(7)), Wall(Duration::from_secs(997)));
        clock.adjust(second(20), Wall(Duration::from_secs(1010)));
        assert_eq!(clock.at(second(15)), Wall(Duration::from_secs(1005)));
        clock.adjust(second(30), Wall(Duration::from_secs(500)));
        assert_eq!(clock.at(second(30)), Wall(Duration::from_secs(1020)), "a step back is not followed");
        clock.adjust(second(30), Wall(Duration::from_secs(9000)));
        assert_eq!(clock.at(second(31)), Wall(Duration::from_secs(9001)));
    }

    #[test]
    fn arithmetic_saturates_instead_of_panicking() {
        assert_eq!(Instant::from_nanos(5).since(Instant::from_nanos(9)), Duration::ZERO);
        assert_eq!((Instant::from_nanos(5) + Duration::MAX).as_nanos(), u64::MAX);
        assert_eq!((Instant::from_nanos(5) - Duration::MAX).as_nanos(), 0);
    }
}
