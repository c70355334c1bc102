//! How long a router says that it has known its mappings, against our own clock: where that does not fit, it has forgotten them.

use tokio::time::Instant;

/// One look at the router's count of seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Epoch {
    pub seconds: u32,
    pub at: Instant,
}

impl Epoch {
    pub fn now(seconds: u32) -> Self {
        Self { seconds, at: Instant::now() }
    }

    /// Whether the router lost its mappings between the two looks: RFC 6887 section 8.5, whose clocks may differ by 1/16 and
    /// 2 s; RFC 6886 section 3.6 is content with 1/8. Half of the slack is taken where the router's count is too low: a router
    /// that restarts twice soon is told so, and where it did not, a superfluous renewal is all it costs.
    pub fn is_lost(self, later: Self) -> bool {
        let ours = i64::try_from(later.at.saturating_duration_since(self.at).as_secs()).unwrap_or(i64::MAX);
        let theirs = i64::from(later.seconds) - i64::from(self.seconds);
        theirs + 1 < ours - ours / 16 || ours + 2 < theirs - theirs / 16
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_count_that_runs_with_our_clock_is_no_loss_and_any_other_is() {
        let start = Epoch { seconds: 1000, at: Instant::now() };
        let after =
            |ours: u64, theirs: u32| start.is_lost(Epoch { seconds: theirs, at: start.at + Duration::from_secs(ours) });
        for (ours, theirs) in [(0, 1000), (0, 999), (1, 1000), (60, 1060), (60, 1057), (3200, 4000), (3600, 4800)] {
            assert!(!after(ours, theirs), "{ours} s, {theirs}");
        }
        for (ours, theirs) in [(0, 998), (1, 999), (60, 0), (2000, 1500), (60, 1050), (60, 1100), (0, u32::MAX)] {
            assert!(after(ours, theirs), "{ours} s, {theirs}");
        }
    }
}
