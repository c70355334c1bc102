//! The calls that a rendezvous server holds for members who are not there yet.
//!
//! Two members that start together register a moment apart, and the first one's call would find nobody. Held, it is
//! delivered with the other's first word. A call is held once and delivered once, so a server sends no more than it was sent.
//! Everything here is bounded, by count and by time: a call that is dropped costs its caller what it cost before there was
//! any holding.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Wait;
use crate::proto::Instant;
use crate::proto::keys::PublicKey;

/// Calls held in all: 6 MB of them at [`super::MAX_PASSED`], the tables included. It takes 2,000 members that start in each
/// second, with nobody to answer them, to come to that.
const MAX_HELD: usize = 4096;
/// Calls held for one member: each is a datagram to it at its start. Those of the next ones' are told ABSENT, as ever.
const MAX_FOR_ONE: usize = 4;

/// What is held; [`Held::default`] holds nothing.
#[derive(Default)]
pub struct Held {
    calls: BTreeMap<u64, Call>,
    /// When each of them has waited for long enough.
    ends: BTreeSet<(Instant, u64)>,
    /// The number of the next call.
    next: u64,
    /// The one call of each caller.
    by_caller: BTreeMap<PublicKey, u64>,
    by_target: BTreeMap<PublicKey, VecDeque<u64>>,
}

struct Call {
    from: PublicKey,
    to: PublicKey,
    passed: Vec<u8>,
    since: Instant,
    wait: Wait,
}

impl Call {
    fn until(&self) -> Instant {
        self.since + self.wait.time()
    }
}

impl Held {
    /// Holds a call for as long as it may wait, in place of the one that the caller has here. `false`: enough others are held for `to`.
    pub fn hold(&mut self, now: Instant, from: PublicKey, to: PublicKey, wait: Wait, passed: Vec<u8>) -> bool {
        if let Some(number) = self.by_caller.get(&from).copied() {
            self.drop(number);
        }
        if self.by_target.get(&to).is_some_and(|calls| calls.len() >= MAX_FOR_ONE) {
            return false;
        }
        if self.calls.len() >= MAX_HELD {
            self.drop_oldest();
        }
        let number = self.next;
        self.next += 1;
        self.calls.insert(number, Call { from, to, passed, since: now, wait });
        self.ends.insert((now + wait.time(), number));
        self.by_caller.insert(from, number);
        self.by_target.entry(to).or_default().push_back(number);
        true
    }

    /// What is held for `to`, from whom and for how long so far, the oldest first; it is held no longer.
    pub fn take(&mut self, now: Instant, to: PublicKey) -> Vec<(PublicKey, Duration, Vec<u8>)> {
        let numbers = self.by_target.remove(&to).unwrap_or_default();
        let mut taken = Vec::new();
        for number in numbers {
            let Some(call) = self.calls.remove(&number) else { continue };
            self.ends.remove(&(call.until(), number));
            self.by_caller.remove(&call.from);
            if now < call.until() {
                taken.push((call.from, now.since(call.since), call.passed));
            }
        }
        taken
    }

    /// Drops what `from` has held for `to`: it says something newer.
    pub fn forget(&mut self, from: PublicKey, to: PublicKey) {
        let number = self.by_caller.get(&from).copied();
        if let Some(number) = number.filter(|number| self.calls.get(number).is_some_and(|call| call.to == to)) {
            self.drop(number);
        }
    }

    /// Drops those that have waited for long enough: from whom they were, to whom, and how they waited.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<(PublicKey, PublicKey, Wait)> {
        let mut ended = Vec::new();
        while let Some((_, number)) = self.ends.first().copied().filter(|(until, _)| now >= *until) {
            if let Some(call) = self.calls.get(&number) {
                ended.push((call.from, call.to, call.wait));
            }
            self.drop(number);
        }
        ended
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    fn drop_oldest(&mut self) {
        if let Some(number) = self.calls.keys().next().copied() {
            self.drop(number);
        }
    }

    fn drop(&mut self, number: u64) {
        let Some(call) = self.calls.remove(&number) else { return };
        self.ends.remove(&(call.until(), number));
        self.by_caller.remove(&call.from);
        if let Some(calls) = self.by_target.get_mut(&call.to) {
            calls.retain(|other| *other != number);
            if calls.is_empty() {
                self.by_target.remove(&call.to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(1_000_000_000);
    const LONG: Duration = Wait::Long.time();

    fn key(number: usize) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        PublicKey(bytes)
    }

    /// All three tables tell of the same calls.
    fn check(held: &Held) {
        assert_eq!(held.by_caller.len(), held.calls.len());
        assert_eq!(held.ends.len(), held.calls.len());
        assert_eq!(held.by_target.values().map(VecDeque::len).sum::<usize>(), held.calls.len());
        assert!(held.by_target.values().all(|calls| !calls.is_empty()));
    }

    #[test]
    fn what_is_held_for_a_member_is_had_once_and_in_order() {
        let mut held = Held::default();
        assert!(held.hold(START, key(1), key(9), Wait::Long, vec![1]));
        assert!(held.hold(START, key(2), key(9), Wait::Long, vec![2]));
        assert!(held.hold(START, key(3), key(8), Wait::Long, vec![3]));
        assert_eq!(held.take(START, key(9)), [(key(1), Duration::ZERO, vec![1]), (key(2), Duration::ZERO, vec![2])]);
        check(&held);
        assert!(held.take(START, key(9)).is_empty());
        assert_eq!(held.take(START, key(8)), [(key(3), Duration::ZERO, vec![3])]);
        assert_eq!(held.poll_timeout(), None);
    }

    #[test]
    fn a_callers_newer_call_takes_the_place_of_its_older_one() {
        let mut held = Held::default();
        assert!(held.hold(START, key(1), key(9), Wait::Long, vec![1]));
        assert!(held.hold(START, key(1), key(8), Wait::Long, vec![2]));
        check(&held);
        assert!(held.take(START, key(9)).is_empty());
        assert_eq!(held.take(START, key(8)), [(key(1), Duration::ZERO, vec![2])]);
        assert!(held.hold(START, key(1), key(9), Wait::Long, vec![1]));
        held.forget(key(1), key(8));
        assert_eq!(held.calls.len(), 1, "it is not for that one");
        held.forget(key(1), key(9));
        check(&held);
        assert!(held.take(START, key(9)).is_empty());
    }

    #[test]
    fn a_member_has_only_so_many_calls_held_for_it() {
        let mut held = Held::default();
        let taken = (0..10).filter(|from| held.hold(START, key(*from), key(99), Wait::Long, vec![0])).count();
        assert_eq!(taken, MAX_FOR_ONE);
        check(&held);
        assert!(held.hold(START, key(0), key(99), Wait::Long, vec![1]), "who has a place keeps it");
        assert!(!held.hold(START, key(5), key(99), Wait::Long, vec![1]));
        assert_eq!(held.take(START, key(99)).len(), MAX_FOR_ONE);
    }

    #[test]
    fn the_oldest_goes_where_too_many_are_held_in_all() {
        let mut held = Held::default();
        for number in 0..MAX_HELD + 10 {
            assert!(held.hold(START, key(number), key(1_000_000 + number), Wait::Long, vec![0]));
        }
        check(&held);
        assert_eq!(held.calls.len(), MAX_HELD);
        assert!(held.take(START, key(1_000_009)).is_empty());
        assert_eq!(held.take(START, key(1_000_010)).len(), 1);
    }

    #[test]
    fn a_call_is_held_for_as_long_as_it_may_wait() {
        let mut held = Held::default();
        let later = START + Duration::from_millis(500);
        held.hold(START, key(1), key(9), Wait::Long, vec![1]);
        held.hold(later, key(2), key(9), Wait::Long, vec![2]);
        assert_eq!(held.poll_timeout(), Some(START + LONG));
        assert_eq!(held.handle_timeout(START + LONG - Duration::from_nanos(1)), []);
        assert_eq!(held.calls.len(), 2);
        assert_eq!(held.handle_timeout(START + LONG), [(key(1), key(9), Wait::Long)]);
        assert_eq!(held.poll_timeout(), Some(later + LONG));
        check(&held);
        assert_eq!(held.take(later + LONG, key(9)), [], "nor is it delivered late, if nobody looked");
        assert_eq!(held.poll_timeout(), None);
    }

    #[test]
    fn a_call_that_waits_briefly_ends_before_one_that_waits_long() {
        let mut held = Held::default();
        let brief = Wait::Briefly.time();
        held.hold(START, key(1), key(9), Wait::Long, vec![1]);
        held.hold(START, key(2), key(9), Wait::Briefly, vec![2]);
        held.hold(START, key(3), key(8), Wait::Briefly, vec![3]);
        let soon = START + brief / 2;
        assert_eq!(held.take(soon, key(8)), [(key(3), brief / 2, vec![3])]);
        assert_eq!(held.poll_timeout(), Some(START + brief));
        assert_eq!(held.handle_timeout(START + brief), [(key(2), key(9), Wait::Briefly)]);
        assert_eq!(held.take(START + brief, key(9)), [(key(1), brief, vec![1])]);
        check(&held);
    }
}
