//! Sends pings through a tunnel at a steady pace and notes which were answered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::inner::Echo;

#[derive(Clone, Default)]
pub struct Pinger {
    /// From whom to whom, in turn.
    pairs: Vec<(IpAddr, IpAddr)>,
    every: Duration,
    next: Option<Instant>,
    number: u64,
    waiting: BTreeMap<u64, Instant>,
    /// When the first answer came.
    pub first_answer: Option<Instant>,
    pub last_answer: Option<Instant>,
    pub answers: u64,
    pub longest: Duration,
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

    pub fn due(&mut self, now: Instant) -> Option<Echo> {
        let at = self.next.filter(|at| *at <= now)?;
        self.next = Some(at + self.every);
        self.number += 1;
        let turn = usize::try_from(self.number).expect("fits") % self.pairs.len();
        let (src, dst) = self.pairs[turn];
        self.waiting.insert(self.number, now);
        Some(Echo { src, dst, reply: false, number: self.number })
    }

    pub fn answered(&mut self, now: Instant, number: u64) {
        if let Some(sent) = self.waiting.remove(&number) {
            self.answers += 1;
            self.longest = self.longest.max(now.since(sent));
            self.first_answer.get_or_insert(now);
            self.last_answer = Some(now);
        }
    }

    /// Pings that were sent before `by` and were not answered.
    pub fn unanswered(&self, by: Instant) -> usize {
        self.waiting.values().filter(|sent| **sent < by).count()
    }
}
