//! How often somebody may have something done: so many times at once, and so many a second after that.

use std::time::Duration;

use super::Instant;

/// What is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    pub burst: u32,
    pub per_s: u32,
}

/// What is left of it, by the generic cell rate algorithm: one number says it all.
#[derive(Clone, Copy, Default, Debug)]
pub struct Allowance {
    whole_at: Instant,
}

impl Allowance {
    /// Takes one off; `false` where nothing is left.
    pub fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let interval = Duration::from_secs(1) / rate.per_s;
        let next = self.whole_at.max(now) + interval;
        if next.since(now) > interval * rate.burst {
            return false;
        }
        self.whole_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_is_had_at_once_and_the_rest_in_time() {
        let (mut allowance, rate) = (Allowance::default(), Rate { burst: 5, per_s: 20 });
        let start = Instant::from_nanos(1);
        assert_eq!((0..10).filter(|_| allowance.take(start, rate)).count(), 5);
        let a_second = (1..=1000).filter(|ms| allowance.take(start + Duration::from_millis(*ms), rate)).count();
        assert_eq!(a_second, 20);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..10).filter(|_| allowance.take(later, rate)).count(), 5, "what was not used does not add up");
    }
}
