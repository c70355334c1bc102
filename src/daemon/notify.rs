//! What systemd is told by sd_notify(3): that we are up, what we are doing, and that the loop still turns. Where systemd
//! did not start us, `NOTIFY_SOCKET` is not set and every call here does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

use crate::proto::Instant;

/// The daemon is up: units that wait for it may start.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// A reload begins; [`ready`] ends it, whether it was applied or refused.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        debug!(%error, "systemd could not be told");
    }
}

/// The watchdog's deadline, for the loop that it watches. It is fed from inside that loop and from nowhere else, so a loop
/// that hangs starves it and systemd starts us again.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of what systemd allows, as sd_watchdog_enabled(3) advises. `None`: nobody watches.
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// Reads `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_env(now: Instant) -> Self {
        let mut allowed = 0;
        let watched = sd_notify::watchdog_enabled(false, &mut allowed) && allowed > 0;
        Self::new(watched.then(|| Duration::from_micros(allowed)), now)
    }

    fn new(allowed: Option<Duration>, now: Instant) -> Self {
        Self { every: allowed.map(|allowed| allowed / 2), next: now }
    }

    /// When [`Watchdog::handle_turn`] must be called again at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.every.map(|_| self.next)
    }

    /// The loop has turned: tells systemd, if it is time to.
    pub fn handle_turn(&mut self, now: Instant) {
        if self.is_due(now) {
            notify(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        match self.every {
            Some(every) if now >= self.next => {
                self.next = now + every;
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_at_half_of_what_it_allows() {
        let start = Instant::from_nanos(7);
        let mut watchdog = Watchdog::new(Some(Duration::from_secs(10)), start);
        assert!(watchdog.is_due(start));
        assert_eq!(watchdog.poll_timeout(), Some(start + Duration::from_secs(5)));
        assert!(!watchdog.is_due(start + Duration::from_millis(4999)));
        assert!(watchdog.is_due(start + Duration::from_secs(5)));
    }

    #[test]
    fn without_a_watchdog_the_loop_is_never_woken_for_it() {
        let mut watchdog = Watchdog::new(None, Instant::default());
        assert_eq!(watchdog.poll_timeout(), None);
        assert!(!watchdog.is_due(Instant::from_nanos(u64::MAX)));
    }
}
