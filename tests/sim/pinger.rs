//! Sends pings through a tunnel at a steady pace and notes which were answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::inner::{Echo, PAYLOAD};

#[derive(Clone)]
pub struct Pinger {
    /// From whom to whom, in turn.
    pairs: Vec<(IpAddr, IpAddr)>,
    every: Duration,
    next: Option<Instant>,
    number: u64,
    waiting: BTreeMap<u64, (IpAddr, Instant)>,
    /// Who answered since the start.
    pub answered_by: BTreeSet<IpAddr>,
    /// When the first answer came.
    pub first_answer: Option<Instant>,
    pub answers: u64,
    pub longest: Duration,
    /// Sends what looks like answers, so that nothing comes back: a stream in one direction.
    pub one_way: bool,
    /// How long packets its host sends, once it was told that longer ones do not pass.
    pub payload: usize,
    /// Bytes of payload that came back.
    pub bytes: usize,
}

impl Default for Pinger {
    fn default() -> Self {
        Self {
            pairs: Vec::new(),
            every: Duration::ZERO,
            next: None,
            number: 0,
            waiting: BTreeMap::new(),
            answered_by: BTreeSet::new(),
            first_answer: None,
            answers: 0,
            longest: Duration::ZERO,
            one_way: false,
            payload: PAYLOAD,
            bytes: 0,
        }
    }
}

impl Pinger {
    /// `first_number` must be far from any other pinger's.
    pub fn start(&mut self, pairs: Vec<(IpAddr, IpAddr)>, first_number: u64, every: Duration, from: Instant) {
        *self = Self { pairs, every, next: Some(from), number: first_number, ..Self::default() };
    }

    pub fn stop(&mut self) {
        self.next = None;
    }

    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether everyone answered, on each of its addresses.
    pub fn all_answered(&self) -> bool {
        self.pairs.iter().all(|(_, dst)| self.answered_by.contains(dst))
    }

    pub fn due(&mut self, now: Instant) -> Option<Echo> {
        let at = self.next.filter(|at| *at <= now)?;
        self.next = Some(at + self.every);
        self.number += 1;
        let turn = usize::try_from(self.number).expect("fits") % self.pairs.len();
        let (src, dst) = self.pairs[turn];
        self.waiting.insert(self.number, (dst, now));
        Some(Echo { src, dst, reply: self.one_way, number: self.number, payload: self.payload })
    }

    /// A packet was longer than `mtu`, which is all that passes.
    pub fn too_big(&mut self, mtu: u16) {
        let headers = if self.pairs.first().is_some_and(|(src, _)| src.is_ipv4()) { 28 } else { 48 };
        self.payload = self.payload.min(usize::from(mtu) - headers);
    }

    pub fn answered(&mut self, now: Instant, number: u64, payload: usize) {
        if let Some((by, sent)) = self.waiting.remove(&number) {
            self.bytes += payload;
            self.answered_by.insert(by);
            self.answers += 1;
            self.longest = self.longest.max(now.since(sent));
            self.first_answer.get_or_insert(now);
        }
    }

    /// Pings that were sent before `by` and were not answered.
    pub fn unanswered(&self, by: Instant) -> usize {
        self.waiting.values().filter(|(_, sent)| *sent < by).count()
    }

    /// The longest run of pings, sent one after the other before `by`, of which none was answered: an outage.
    pub fn outage(&self, by: Instant) -> Duration {
        let (mut run, mut longest, mut last) = (0, 0, None);
        for (number, (_, sent)) in &self.waiting {
            if *sent >= by {
                break;
            }
            run = if last.is_some_and(|last: u64| last + 1 == *number) { run + 1 } else { 1 };
            longest = longest.max(run);
            last = Some(*number);
        }
        self.every * longest
    }
}
