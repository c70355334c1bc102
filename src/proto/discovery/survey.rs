//! One survey: questions from one socket to several servers, in an order that tells the kinds of NAT apart.
//!
//! ```text
//! all at once   address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2     the mapping, the step
//! spread        a question every 25 ms                                                     the counter, as others move it on
//! a hold        question, shot, question, shot, question                                   the port that a shot was given
//! ```
//!
//! What is sent at once gives the NAT no time for other users between, so it makes its mappings in that order. A hold is how
//! a member learns the public port of a mapping that no server ever sees: its shot at the peer, with a time to live that
//! ends on the way, lies between two questions, so the port lies between the two that the servers saw.
//!
//! Each question is repeated until it is answered, but for those of a spread one: there the next comes soon enough.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::{PubInfo, Reply, Start};
use crate::proto::nat::{Made, Observation};
use crate::proto::{Instant, SocketId, Transmit, stun};

/// How one asks a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Dudp,
    Stun,
}

/// A server's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub protocol: Protocol,
}

/// One question, and its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    pub target: Target,
    pub reply: Reply,
    transaction: stun::Transaction,
    pub first_sent: Instant,
    last_sent: Instant,
    tries: u32,
    made: Made,
    pub outcome: Outcome,
}

impl Query {
    /// Whether it was asked again, and that long enough ago: one question or its answer may be lost.
    pub fn is_asked_in_vain(&self, now: Instant, round_trip: Duration, grace: Duration) -> bool {
        self.outcome == Outcome::Waiting && self.tries > 1 && now.since(self.last_sent) >= round_trip + grace
    }
}

/// A mapping made towards the peer, between two questions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shot {
    pub to: SocketAddr,
    /// Sent right after the question with this number.
    pub after: usize,
    pub ttl: u8,
    transaction: [u8; 8],
    /// What we had made before it; `None`: not sent yet.
    pub made: Option<Made>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Waiting,
    Answered {
        public: SocketAddr,
        rtt: Duration,
        /// From where the answer came, by the server's word.
        reply: Reply,
    },
    /// Asked as often as it may be, in vain.
    Silent,
}

/// A lost question is asked again after this long, doubled each time: longer than most round trips, so that few are asked
/// twice for nothing, and short against a call's time.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// 250, 500, 1,000 and 2,000 ms: RFC 8489 goes on for 39.5 s, which no call waits for.
const TRIES: u32 = 4;
/// A question whose neighbours are answered is asked again this much later than they were: it was lost, or its server is further
/// away or none at all.
const OVERDUE: Duration = Duration::from_millis(30);
/// Once answers came, others are waited for twice as long again as the first took, and this much, so that what was asked again
/// may come: but a server that is away must not hold up a call.
const PATIENCE: Duration = Duration::from_millis(80);
/// Where no answer came at all, the answer that matters is that there is none.
const GIVE_UP: Duration = Duration::from_millis(1500);

/// Between two questions of a spread survey: at 300 mappings a second of others, seven of them.
const SPREAD: Duration = Duration::from_millis(25);

/// One socket's questions.
#[derive(Clone, Debug)]
pub struct Survey {
    pub socket: SocketId,
    pub local_port: u16,
    pub started: Instant,
    /// Whether its socket had sent to none of the servers before, so that each answer shows a new mapping.
    fresh: bool,
    /// Whether its questions are chosen to tell the mapping; those of a watch or a hold are chosen to show new ports.
    pub tells_mapping: bool,
    tries: u32,
    shots: Vec<Shot>,
    first_answer: Option<Instant>,
    last_answer: Option<Instant>,
    /// Ready because the wait for more was over.
    waited: bool,
    queries: Vec<Query>,
}

impl Survey {
    pub fn new(
        now: Instant,
        socket: SocketId,
        local_port: u16,
        questions: &[(Target, Reply)],
        rng: &mut ChaCha20Rng,
    ) -> Self {
        let queries = questions
            .iter()
            .map(|(target, reply)| {
                let mut transaction = [0; stun::TRANSACTION_LEN];
                rng.fill_bytes(&mut transaction);
                Query {
                    target: *target,
                    reply: *reply,
                    transaction,
                    first_sent: now,
                    last_sent: now,
                    tries: 0,
                    made: Made::default(),
                    outcome: Outcome::Waiting,
                }
            })
            .collect();
        let (fresh, tells_mapping, tries, shots) = (true, true, TRIES, Vec::new());
        Self {
            socket,
            local_port,
            started: now,
            fresh,
            tells_mapping,
            tries,
            shots,
            first_answer: None,
            last_answer: None,
            waited: false,
            queries,
        }
    }

    /// The socket has sent to these servers before: the answers show mappings that were made then.
    pub fn again(mut self) -> Self {
        self.fresh = false;
        self
    }

    /// Its mappings were made before something happened.
    pub fn doubt(&mut self) {
        self.fresh = false;
    }

    /// A question every [`SPREAD`], each once, after `before` of another survey's.
    pub fn spread(mut self, before: u32) -> Self {
        for (query, nth) in self.queries.iter_mut().zip(before..) {
            query.first_sent = self.started + SPREAD * nth;
        }
        (self.tries, self.tells_mapping) = (1, false);
        self
    }

    /// With shots between the questions, as evenly as can be: before the first shot there is a question that uses up a first
    /// mapping, and one that is looked at. `share`: all shots have the first one's mapping, so the others come behind the last question
    /// and leave others no time between those that tell it.
    pub fn hold(mut self, shots: &[SocketAddr], ttl: u8, share: bool, rng: &mut ChaCha20Rng) -> Self {
        let last = self.queries.len().saturating_sub(1);
        // With two questions only, all shots that make mappings lie between them.
        let first = if self.queries.len() > 2 { 1 } else { 0 };
        let places = last.saturating_sub(first).max(1);
        let shot = |(nth, to): (usize, &SocketAddr)| Shot {
            to: *to,
            after: if share && nth > 0 { last } else { first + nth * places.min(shots.len()) / shots.len() },
            ttl,
            transaction: rng.next_u64().to_be_bytes(),
            made: None,
        };
        self.shots = shots.iter().enumerate().map(shot).collect();
        self.tells_mapping = false;
        self
    }

    /// When the first answer came.
    pub fn first_answer(&self) -> Option<Instant> {
        self.first_answer
    }

    pub fn shots(&self) -> &[Shot] {
        &self.shots
    }

    pub fn queries(&self) -> &[Query] {
        &self.queries
    }

    /// Whether there is nothing left that is worth waiting for.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready_at().is_none_or(|at| now >= at)
    }

    /// Whether it was ready when it was last looked at.
    pub fn is_over(&self) -> bool {
        self.waited
    }

    /// When it will be ready even if nothing more comes; `None`: it is.
    pub fn ready_at(&self) -> Option<Instant> {
        // Only the questions about the mapping are waited for; those about the filter may well never be answered.
        let mut about_mapping = self.queries.iter().filter(|query| query.reply == Reply::Same);
        if self.waited || about_mapping.all(|query| query.outcome != Outcome::Waiting) {
            return None;
        }
        let waited = match self.last_answer {
            Some(last) => (last + self.first_round_trip() * 2 + PATIENCE).min(self.started + GIVE_UP),
            None => self.started + GIVE_UP,
        };
        Some(self.told_at().map_or(waited, |told| told.min(waited)))
    }

    /// When enough was seen around the shots of a hold: at once where the question before each of them is answered and the one
    /// behind it, else a moment later, if others are that lie further off. The first question of all may have kept its port.
    fn told_at(&self) -> Option<Instant> {
        let answered = |query: &Query| matches!(query.outcome, Outcome::Answered { .. });
        let around = |shot: &Shot| Some((self.queries.get(..=shot.after)?, self.queries.get(shot.after + 1..)?));
        let mut is_near = true;
        // What comes behind all questions shares a mapping that was made before.
        for shot in self.shots.iter().filter(|shot| shot.after + 1 < self.queries.len()) {
            let (before, behind) = around(shot)?;
            let before = &before[usize::from(shot.after > 0)..];
            if !before.iter().any(answered) || !behind.iter().any(answered) {
                return None;
            }
            is_near &= before.last().is_some_and(answered) && behind.first().is_some_and(answered);
        }
        let first = self.first_answer.filter(|_| !self.shots.is_empty())?;
        Some(if is_near { first } else { first + OVERDUE })
    }

    /// When a question is to be asked, for the first time or again.
    fn due(&self, query: &Query) -> Instant {
        let again = query.last_sent + FIRST_RETRY * 2u32.pow(query.tries.clamp(1, TRIES) - 1);
        match (query.tries, self.first_answer) {
            (0, _) => query.first_sent,
            (1, Some(answered)) if self.tries > 1 => {
                let overdue = answered.max(query.last_sent + self.first_round_trip()) + OVERDUE;
                again.min(overdue.max(query.last_sent))
            }
            _ => again,
        }
    }

    pub fn first_round_trip(&self) -> Duration {
        self.first_answer.map_or(GIVE_UP, |at| at.since(self.started))
    }

    pub fn is_finished(&self) -> bool {
        self.queries.iter().all(|query| query.outcome != Outcome::Waiting)
    }

    /// What was seen, in the order in which the NAT made the mappings.
    pub fn observations(&self) -> impl Iterator<Item = Observation> + '_ {
        self.queries.iter().filter(|query| query.reply == Reply::Same).filter_map(|query| match query.outcome {
            Outcome::Answered { public, .. } => Some(Observation {
                server: query.target.address,
                local_port: self.local_port,
                public,
                sent: query.first_sent,
                made: query.made,
            }),
            Outcome::Waiting | Outcome::Silent => None,
        })
    }

    /// What was seen of mappings that this survey made.
    pub fn looks(&self) -> impl Iterator<Item = Observation> + '_ {
        self.observations().filter(|_| self.fresh)
    }

    /// `true`: the datagram answered one of our questions.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let answer = if let Some((transaction, public)) = stun::parse_response(datagram) {
            Some((transaction.to_vec(), public, Reply::Same))
        } else {
            PubInfo::parse(datagram).map(|info| (info.transaction.to_vec(), info.public, info.reply))
        };
        let Some((transaction, public, reply)) = answer else { return false };
        let Some(query) = self.queries.iter_mut().find(|query| query.transaction.starts_with(&transaction)) else {
            return false;
        };
        if query.outcome != Outcome::Waiting {
            return true;
        }
        // After a second try the round trip is not known: it counts from the last one.
        query.outcome = Outcome::Answered { public, rtt: now.since(query.last_sent), reply };
        self.first_answer.get_or_insert(now);
        self.last_answer = Some(now);
        true
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.queries.iter().filter(|query| query.outcome == Outcome::Waiting);
        waiting.map(|query| self.due(query)).chain(self.ready_at()).min()
    }

    /// What is due. `made` is counted on with each new mapping.
    pub fn handle_timeout(&mut self, now: Instant, made: &mut Made) -> Vec<Transmit> {
        let mut out = Vec::new();
        self.waited |= self.is_ready(now);
        for at in 0..self.queries.len() {
            let query = &self.queries[at];
            if query.outcome != Outcome::Waiting || now < self.due(query) {
                continue;
            }
            if query.tries == self.tries {
                self.queries[at].outcome = Outcome::Silent;
                continue;
            }
            let first = query.tries == 0;
            let before = *made;
            if first {
                self.count(at, made);
            }
            let query = &mut self.queries[at];
            if first {
                (query.first_sent, query.made) = (now, before);
            }
            query.tries += 1;
            query.last_sent = now;
            let (to, payload) = (query.target.address, query.encode());
            out.push(Transmit { socket: self.socket, to, ttl: None, whole: false, payload });
            if first {
                self.shoot(at, made, &mut out);
            }
        }
        out
    }

    /// Whether the question makes a new mapping, by each of the three ways.
    fn count(&self, at: usize, made: &mut Made) {
        let to = self.queries[at].target.address;
        let earlier = || self.queries[..at].iter().filter(|query| query.tries > 0).map(|query| query.target.address);
        if self.fresh {
            made.sockets += u64::from(earlier().next().is_none());
            made.by_address += u64::from(earlier().all(|address| address.ip() != to.ip()));
            made.by_port += u64::from(earlier().all(|address| address != to));
        }
    }

    /// The shots that come after question `at`.
    fn shoot(&mut self, at: usize, made: &mut Made, out: &mut Vec<Transmit>) {
        let mut earlier = self.shots.iter().any(|shot| shot.made.is_some());
        for shot in self.shots.iter_mut().filter(|shot| shot.after == at && shot.made.is_none()) {
            shot.made = Some(*made);
            // All go to one address.
            made.by_address += u64::from(!earlier);
            made.by_port += 1;
            earlier = true;
            // Anything serves: it ends on the way.
            let payload = Start { transaction: shot.transaction, reply: Reply::Same }.encode();
            out.push(Transmit { socket: self.socket, to: shot.to, ttl: Some(shot.ttl), whole: false, payload });
        }
    }
}

impl Query {
    /// How often it was asked in vain, not counting what was asked less than `patience` ago.
    pub fn unanswered(&self, now: Instant, patience: Duration) -> u32 {
        match self.outcome {
            Outcome::Answered { .. } => 0,
            Outcome::Silent => self.tries,
            Outcome::Waiting => self.tries - u32::from(self.tries > 0 && now.since(self.last_sent) < patience),
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self.target.protocol {
            Protocol::Stun => stun::request(&self.transaction),
            Protocol::Dudp => {
                let [a, b, c, d, e, f, g, h, ..] = self.transaction;
                Start { transaction: [a, b, c, d, e, f, g, h], reply: self.reply }.encode()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn shots_that_share_a_mapping_come_behind_the_questions_that_tell_it() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let question = |port| {
            let target = Target { address: SocketAddr::from(([198, 51, 100, 7], port)), protocol: Protocol::Dudp };
            (target, Reply::Same)
        };
        let places = [1, 2, 3].map(|port| SocketAddr::from(([203, 0, 113, 1], port)));
        for (share, order) in [(true, "??!??!!"), (false, "??!!?!?")] {
            let now = Instant::default();
            let survey = Survey::new(now, SocketId(9), 4275, &[1, 2, 3, 4].map(question), &mut rng);
            let sent = survey.hold(&places, 2, share, &mut rng).handle_timeout(now, &mut Made::default());
            let sent: String = sent.iter().map(|sent| if sent.ttl.is_some() { '!' } else { '?' }).collect();
            assert_eq!(sent, order);
        }
    }
}
