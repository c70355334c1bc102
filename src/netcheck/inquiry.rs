//! What netcheck asks, and when: more than a starting daemon does, so that what it says is sure.
//!
//! ```text
//! 0                   the daemon's own survey: main socket, and a scout that asks about the filter as well
//! its answers + 0 …   six more sockets, two every 60 ms: what is alike from socket to socket, and what differs
//!             + 180   where ports move: a watch, a question every 25 ms for a fifth of a second: others' rate
//! until               all answers are there, and what is not answered was asked twice: the filter is closed
//! ```
//!
//! It makes some 40 NAT entries, which the NAT forgets by itself.

use std::time::Duration;

use crate::proto::discovery::client::Client;
use crate::proto::message_control::{Candidate, CandidateKind, Report};
use crate::proto::snapshot::Nat;
use crate::proto::{Instant, SocketId};

/// Sockets besides the daemon's two: with them eight ports were drawn, so that parity is seen by chance once in 256 times.
const SOCKETS: u32 = 6;
/// Two at once show a sequence's step, others' traffic or not.
const PAIR: u32 = 2;
/// Between two pairs: long enough for others' traffic to show.
const PAUSE: Duration = Duration::from_millis(60);
/// How soon it is looked whether enough is known: a round trip's fraction.
const TICK: Duration = Duration::from_millis(10);
/// The client gives up on its questions long before; this is for a machine that was asleep in between.
const LONGEST: Duration = Duration::from_secs(30);

/// One netcheck's discovery.
pub struct Inquiry {
    client: Client,
    began: Instant,
    main_port: u16,
    opened: u32,
    next: Option<Instant>,
    /// As the main socket saw it: what peers will see of a member on that port.
    main: Option<Nat>,
}

impl Inquiry {
    /// Of a client that was started just now.
    pub fn new(now: Instant, client: Client, main_port: u16) -> Self {
        Self { client, began: now, main_port, opened: 0, next: None, main: None }
    }

    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Opens what is due. `true`: all that can be known is known.
    pub fn advance(&mut self, now: Instant) -> bool {
        self.client.handle_timeout(now);
        if now.since(self.began) > LONGEST {
            return true;
        }
        if self.main.is_none() && self.client.is_ready(now, SocketId::MAIN_V4) {
            let nat = self.client.nat(now);
            // Where nobody answers, more questions tell no more.
            self.next = (!nat.public.is_empty()).then_some(now);
            self.main = Some(nat);
        }
        let Some(next) = self.next else { return self.main.is_some() && self.client.is_settled(now) };
        if now >= next {
            self.next = Some(now + PAUSE);
            if self.opened < SOCKETS {
                for _ in 0..PAIR {
                    let socket = self.new_socket();
                    self.client.scout(now, socket, u32::MAX);
                }
            } else {
                if self.client.moves() {
                    let socket = self.new_socket();
                    self.client.watch(now, socket, 0, u32::MAX);
                }
                self.next = None;
            }
        }
        false
    }

    fn new_socket(&mut self) -> SocketId {
        self.opened += 1;
        SocketId(SocketId::FIRST_EXTRA.0 + self.opened)
    }

    pub fn poll_timeout(&self, now: Instant) -> Instant {
        let due = [self.client.poll_timeout(), self.next].into_iter().flatten().min().unwrap_or(now + TICK);
        due.min(now + TICK)
    }

    /// What was found.
    pub fn nat(&self, now: Instant) -> Nat {
        let mut nat = self.client.nat(now);
        if let Some(main) = &self.main {
            // The scouts' public addresses are gone in a moment, unless they show another one of a pool.
            let known = |ip| main.public.iter().any(|public| public.ip() == ip);
            let others = nat.observations.iter().filter_map(|seen| seen.public).filter(|public| !known(public.ip()));
            let mut public = main.public.clone();
            for other in others {
                if public.iter().all(|known| known.ip() != other.ip()) {
                    public.push(other);
                }
            }
            nat.public = public;
        }
        nat
    }

    /// What a member here would say of itself in a call.
    pub fn report(&self, now: Instant, mapped: Option<std::net::SocketAddr>) -> Report {
        let view = self.client.view(now, SocketId::MAIN_V4);
        let mapped = mapped.map(|address| Candidate { kind: CandidateKind::Mapped, address });
        Report {
            tuple: view.tuple,
            mapping: view.mapping,
            filtering: view.filtering,
            allocation: view.allocation,
            cross_traffic: view.cross_traffic.map(Into::into),
            candidates: mapped.into_iter().collect(),
            fresh_port: view.fresh_preserves.then_some(self.main_port),
            range: view.range,
            ..Report::default()
        }
    }
}
