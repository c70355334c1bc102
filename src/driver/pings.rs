//! Users who wait for a `p2ptund ping` to come back.

use std::collections::BTreeMap;

/// Most pings under way at once. The control socket takes fewer users than that; a ping that was given up stays until
/// the next one comes.
const MAX_PINGS: usize = 256;

/// Who waits for which token: an `A` is what answers them.
#[derive(Debug)]
pub struct Pings<A>(BTreeMap<u64, A>);

impl<A> Pings<A> {
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// `answer` waits for `token`. Those who have left in the meantime are forgotten; where too many wait, the one that waits
    /// longest is given up.
    pub fn handle_ping(&mut self, token: u64, answer: A, has_left: impl Fn(&A) -> bool) {
        self.0.retain(|_, waiting| !has_left(waiting));
        if self.0.len() >= MAX_PINGS {
            self.0.pop_first();
        }
        self.0.insert(token, answer);
    }

    /// A ping came back: who is to be told, if anybody still waits for it.
    pub fn handle_pong(&mut self, token: u64) -> Option<A> {
        self.0.remove(&token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pong_reaches_the_one_who_asked_and_once() {
        let mut pings = Pings::new();
        pings.handle_ping(1, "first", |_| false);
        pings.handle_ping(2, "second", |_| false);
        assert_eq!(pings.handle_pong(2), Some("second"));
        assert_eq!(pings.handle_pong(2), None);
        assert_eq!(pings.handle_pong(9), None);
        assert_eq!(pings.handle_pong(1), Some("first"));
    }

    #[test]
    fn users_who_left_and_users_beyond_the_cap_hold_no_memory() {
        let mut pings = Pings::new();
        for token in 0..1000 {
            pings.handle_ping(token, "left", |_| true);
        }
        assert_eq!(pings.0.len(), 1);
        for token in 1000..2000 {
            pings.handle_ping(token, "waits", |waiting| *waiting == "left");
        }
        assert_eq!(pings.0.len(), MAX_PINGS);
        assert_eq!(pings.handle_pong(1999), Some("waits"));
    }
}
