//! One survey: the same questions from one socket to several servers, in an order that tells the kinds of NAT apart.
//!
//! Address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2, sent in one go so that the NAT makes its mappings in
//! that order with as little of other users' traffic between them as can be; then each again until it is answered.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::{PubInfo, Reply, Start};
use crate::proto::nat::Observation;
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
    pub outcome: Outcome,
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
/// Once an answer came, others that are not there this much later are not waited for: the first round trip tells what to
/// expect of the others, and a server that is away must not hold up a call.
const PATIENCE: Duration = Duration::from_millis(300);
/// Where no answer came at all, the answer that matters is that there is none.
const GIVE_UP: Duration = Duration::from_millis(1500);

/// One socket's questions.
#[derive(Clone, Debug)]
pub struct Survey {
    pub socket: SocketId,
    pub local_port: u16,
    pub started: Instant,
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
                    outcome: Outcome::Waiting,
                }
            })
            .collect();
        Self { socket, local_port, started: now, last_answer: None, waited: false, queries }
    }

    pub fn queries(&self) -> &[Query] {
        &self.queries
    }

    /// Whether there is nothing left that is worth waiting for.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready_at().is_none_or(|at| now >= at)
    }

    /// When it will be ready even if nothing more comes; `None`: it is.
    pub fn ready_at(&self) -> Option<Instant> {
        // Only the questions about the mapping are waited for; those about the filter may well never be answered.
        let mut about_mapping = self.queries.iter().filter(|query| query.reply == Reply::Same);
        if self.waited || about_mapping.all(|query| query.outcome != Outcome::Waiting) {
            return None;
        }
        Some(match self.last_answer {
            Some(last) => (last + PATIENCE).min(self.started + GIVE_UP),
            None => self.started + GIVE_UP,
        })
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
            }),
            Outcome::Waiting | Outcome::Silent => None,
        })
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
        self.last_answer = Some(now);
        true
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.queries.iter().filter(|query| query.outcome == Outcome::Waiting).map(Query::due);
        due.chain(self.ready_at()).min()
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Transmit> {
        let mut out = Vec::new();
        self.waited |= self.is_ready(now);
        for query in &mut self.queries {
            if query.outcome != Outcome::Waiting || now < query.due() {
                continue;
            }
            if query.tries == TRIES {
                query.outcome = Outcome::Silent;
                continue;
            }
            if query.tries == 0 {
                query.first_sent = now;
            }
            query.tries += 1;
            query.last_sent = now;
            out.push(Transmit { socket: self.socket, to: query.target.address, ttl: None, payload: query.encode() });
        }
        out
    }
}

impl Query {
    fn due(&self) -> Instant {
        match self.tries {
            0 => self.first_sent,
            tries => self.last_sent + FIRST_RETRY * 2u32.pow(tries.min(TRIES) - 1),
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
