//! Timers as good as the kernel has them, for the lab's programs.

/// Asks for timers to the microsecond; the default lets them run 50 µs late.
pub fn precise_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
}
