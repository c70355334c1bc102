//! When a tunnel must act, though nothing comes in (whitepaper section 6).

use std::time::Duration;

use crate::proto::time::Instant;

/// An initiation without an answer is repeated after so long, and some jitter.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// So long it is repeated, then the handshake has failed.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Who received data and sent nothing for so long, sends a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most jitter that is added to a retry, so that two sides that began at once do not go on at once.
pub const MAX_JITTER_MS: u32 = 334;

/// Why a tunnel wakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// The handshake that is wanted or begun has had no answer.
    Retry,
    /// Data came in and nothing went out since.
    PassiveKeepalive,
    /// Data went out and nothing came in since.
    Silence,
    /// All keys are too old to keep.
    Forget,
    /// The keepalive that keeps a NAT's mapping open.
    PersistentKeepalive,
}

impl Timer {
    const ALL: [Timer; 5] =
        [Timer::Retry, Timer::PassiveKeepalive, Timer::Silence, Timer::Forget, Timer::PersistentKeepalive];
}

/// When each is due.
#[derive(Default)]
pub struct Timers([Option<Instant>; Timer::ALL.len()]);

impl Timers {
    pub fn set(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize] = Some(at);
    }

    /// Sets it unless it is set.
    pub fn begin(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize].get_or_insert(at);
    }

    pub fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    /// The earliest.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// One that is due at `now`, which is then no longer set.
    pub fn pop(&mut self, now: Instant) -> Option<Timer> {
        let due = Timer::ALL.into_iter().find(|timer| self.0[*timer as usize].is_some_and(|at| at <= now))?;
        self.stop(due);
        Some(due)
    }
}
