//! The only clock. `CLOCK_BOOTTIME` goes on in suspend, so a session that is too old after a laptop's sleep is seen to be.

use std::time::SystemTime;

use super::sys;
use crate::proto::{Instant, Wall};

/// The time as the core counts it.
pub fn now() -> Instant {
    Instant::from_nanos(sys::boottime_nanos())
}

/// The wall clock; 1970 where the machine believes in an earlier year.
pub fn wall() -> Wall {
    Wall(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// How long to sleep until `deadline`; zero where it has passed.
pub fn until(deadline: Instant) -> std::time::Duration {
    deadline.since(now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_goes_forward_and_a_deadline_comes_nearer() {
        let start = now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(now().since(start) >= Duration::from_millis(2));
        assert_eq!(until(start), Duration::ZERO);
        assert!(until(start + Duration::from_secs(60)) > Duration::from_secs(50));
        assert!(wall().0 > Duration::from_secs(1_600_000_000));
    }
}
