//! Second copies of the datagrams that a call waits for.
//!
//! A call takes ten datagrams by the servers, one after another: at 2 % loss every sixth would lose one, and wait for a timer of
//! several round trips. So each of them is sent twice, byte for byte, [`AFTER`] apart. Whoever gets both drops the second one
//! unread, for its counter was seen, or answers it as it did the first. Keepalives, renewals, and handshakes and registrations that
//! are tried again go once.

use std::collections::VecDeque;
use std::time::Duration;

use crate::proto::Instant;

/// Long enough that a queue which was full for one may have room for the other, short against a round trip. Chosen, not measured.
const AFTER: Duration = Duration::from_millis(10);
/// Copies that wait at once; what is beyond goes once.
const MAX_WAITING: usize = 1024;

/// What is to be sent again.
pub struct Echoes<T> {
    waiting: VecDeque<(Instant, T)>,
}

impl<T> Default for Echoes<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T> Echoes<T> {
    /// `datagram` was sent just now.
    pub fn push(&mut self, now: Instant, datagram: T) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back((now + AFTER, datagram));
        }
    }

    /// The next one that is due.
    pub fn poll(&mut self, now: Instant) -> Option<T> {
        self.waiting.pop_front_if(|(due, _)| now >= *due).map(|(_, datagram)| datagram)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_due_a_moment_later_and_once() {
        let now = Instant::default();
        let mut echoes = Echoes::default();
        echoes.push(now, 'a');
        echoes.push(now + Duration::from_millis(1), 'b');
        assert_eq!(echoes.poll(now), None);
        assert_eq!(echoes.poll_timeout(), Some(now + AFTER));
        assert_eq!(echoes.poll(now + AFTER), Some('a'));
        assert_eq!(echoes.poll(now + AFTER), None);
        assert_eq!(echoes.poll(now + AFTER * 2), Some('b'));
        assert_eq!(echoes.poll_timeout(), None);
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let now = Instant::default();
        let mut echoes = Echoes::default();
        for number in 0..=MAX_WAITING {
            echoes.push(now, number);
        }
        let sent = std::iter::from_fn(|| echoes.poll(now + AFTER)).count();
        assert_eq!(sent, MAX_WAITING);
    }
}
