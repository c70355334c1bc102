//! Holds: mappings that a side whose ports move makes towards the other before it is shot at, so that it can tell their ports
//! ([`crate::proto::plan::hold`]).
//!
//! ```text
//! called   call in ─ hold ─ (its answers) ─► the answer tells of it
//! caller   answer in ─ hold ─ (its answers) ─► an update tells of it; the punch goes on by a new plan
//! ```
//!
//! How many hops lead out of our own site is not known at first. So the first hold is made twice, from two sockets, the second
//! with packets that go a hop further: the nearer one that made mappings counts. What the further one may do at the peer's
//! router, take a port from a flow of its own, concerns that flow alone, and it is never used. A single shot has a *decoy* then,
//! towards the port next to the peer's: others' mappings fill the place of one that ended too soon once in a hundred times (60 µs
//! at λ = 300), those of two hardly ever.

use std::net::SocketAddr;
use std::time::Duration;

use super::called::COMPUTING;
use super::punching::Updating;
use super::{Call, Incoming, Peer};
use crate::proto::context::Local;
use crate::proto::discovery::client::Held;
use crate::proto::message_control::{Hold, Update};
use crate::proto::plan;
use crate::proto::wire::Dudp;
use crate::proto::{Instant, SocketId};

/// Holds tried for one call: each goes further, where the one before did not come out of our own site.
const MOST_HOLDS: u32 = 3;
/// Two NATs in a row, and a carrier's network between them.
const HIGHEST_LOW_TTL: u8 = 5;

/// A hold whose answers are not there yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holding {
    pub socket: SocketId,
    /// The same a hop further, while it is not known how many it takes.
    further: Option<SocketId>,
}

/// What became of a hold.
enum Outcome {
    Waiting,
    Held(SocketId, Vec<Hold>),
    TooShort,
}

/// What a call of the peer's waits for.
pub(super) enum Onward {
    Wait(SocketId),
    Answer(SocketId),
}

impl Peer {
    /// Where we are called and our NAT moves: a hold towards the caller, whose answers are our survey. Gives its socket.
    pub(super) fn begin_hold(&mut self, now: Instant, local: &mut Local, incoming: &mut Incoming) -> Option<SocketId> {
        if incoming.call.beside {
            return None;
        }
        let ours = local.outline(now, SocketId::MAIN_V4, incoming.via);
        let theirs = &incoming.call.report;
        let signal = (ours.server_delay + theirs.server_delay) / 2 + COMPUTING;
        // The call came a signal after its report; the sweep comes after the hold's round trip and the answer.
        let ahead = signal + incoming.held + now.since(incoming.came) + ours.server_delay + signal;
        let places = plan::wants_hold(&ours, theirs, true, ahead, self.knows_better(local, &ours, theirs));
        let holding = self.start_hold(now, local, &places, incoming.tries)?;
        incoming.tries += 1;
        incoming.holding = Some(holding);
        Some(holding.socket)
    }

    fn start_hold(&mut self, now: Instant, local: &mut Local, places: &[SocketAddr], tries: u32) -> Option<Holding> {
        if places.is_empty() || tries >= MOST_HOLDS {
            return None;
        }
        let mut places = places.to_vec();
        if !local.low_ttl_is_known
            && let [place] = places[..]
        {
            let port = place.port().checked_add(1).unwrap_or(place.port() - 1);
            places.push(SocketAddr::new(place.ip(), port));
        }
        let socket = self.hold(now, local, &places, local.low_ttl)?;
        let further = (!local.low_ttl_is_known).then(|| self.hold(now, local, &places, local.low_ttl + 1)).flatten();
        local.collect_discovery();
        Some(Holding { socket, further })
    }

    pub(super) fn hold(&mut self, now: Instant, local: &mut Local, places: &[SocketAddr], ttl: u8) -> Option<SocketId> {
        let packets = u32::try_from(places.len()).unwrap_or(u32::MAX);
        if packets > self.budget(local).left().probes {
            return None;
        }
        let socket = local.ids.next();
        let most = self.budget(local).survey_left();
        let made = local.discovery.hold(now, socket, places, ttl, most);
        if made == 0 {
            return None;
        }
        let budget = self.budget(local);
        budget.note_survey(made);
        budget.note_hold(packets);
        self.probes_sent += u64::from(packets);
        Some(socket)
    }

    /// Whether a hold's answers are there, and what they say. What is not needed any more is closed.
    fn held(&mut self, now: Instant, local: &mut Local, holding: Holding) -> Outcome {
        let Holding { socket, further } = holding;
        if !local.discovery.is_ready(now, socket) {
            return Outcome::Waiting;
        }
        let near = local.discovery.held(socket);
        let Some(further) = further else { return self.settle_hold(local, socket, near, 0) };
        if !near.may_be_too_short() {
            self.close_socket(local, further);
            return self.settle_hold(local, socket, near, 0);
        }
        if !local.discovery.is_ready(now, further) {
            return Outcome::Waiting;
        }
        let far = local.discovery.held(further);
        if near.is_too_short() || !(far.may_be_too_short() || far.holds.is_empty()) {
            self.close_socket(local, socket);
            self.settle_hold(local, further, far, 1)
        } else {
            self.close_socket(local, further);
            self.settle_hold(local, socket, near, 0)
        }
    }

    /// The hold whose packets went `hops` further than what is known counts.
    fn settle_hold(&mut self, local: &mut Local, socket: SocketId, held: Held, hops: u8) -> Outcome {
        if held.is_too_short() {
            return self.go_further(local, socket, hops + 1);
        }
        if !held.holds.is_empty() {
            local.learn_low_ttl(local.low_ttl + hops);
        }
        Outcome::Held(socket, held.holds)
    }

    fn go_further(&mut self, local: &mut Local, socket: SocketId, hops: u8) -> Outcome {
        local.low_ttl = (local.low_ttl + hops).min(HIGHEST_LOW_TTL);
        local.low_ttl_is_known = false;
        self.close_socket(local, socket);
        Outcome::TooShort
    }

    /// The answers to a hold, or a survey, for a call of the peer's are there.
    pub(super) fn go_on_holding(
        &mut self,
        now: Instant,
        local: &mut Local,
        socket: SocketId,
        incoming: &mut Incoming,
    ) -> Onward {
        let Some(holding) = incoming.holding else {
            // It was not known before this survey that our NAT moves.
            let Some(hold) = self.begin_hold(now, local, incoming) else { return Onward::Answer(socket) };
            self.close_socket(local, socket);
            return Onward::Wait(hold);
        };
        match self.held(now, local, holding) {
            Outcome::Waiting => Onward::Wait(socket),
            Outcome::Held(socket, holds)
                if incoming.tries == 1 && !plan::hold::is_enough(&holds, &incoming.call.report) =>
            {
                // Others came between, or the counter stepped aside. A second hold costs a round trip, a window around a guess 49 shots.
                match self.begin_hold(now, local, incoming) {
                    Some(hold) => {
                        self.close_socket(local, socket);
                        Onward::Wait(hold)
                    }
                    None => {
                        incoming.holds = holds;
                        Onward::Answer(socket)
                    }
                }
            }
            Outcome::Held(socket, holds) => {
                incoming.holds = holds;
                Onward::Answer(socket)
            }
            Outcome::TooShort => match self.begin_hold(now, local, incoming) {
                Some(hold) => Onward::Wait(hold),
                None => Onward::Answer(SocketId::MAIN_V4),
            },
        }
    }

    /// Closes what a hold that nobody waits for any more has open.
    pub(super) fn end_hold(&mut self, local: &mut Local, holding: Holding) {
        for socket in [Some(holding.socket), holding.further].into_iter().flatten() {
            self.close_socket(local, socket);
        }
    }

    /// Where we call and our NAT moves: a hold towards the called member, now that it is known where that is.
    pub(super) fn hold_towards(&mut self, now: Instant, local: &mut Local, places: &[SocketAddr]) {
        let Call::Punching(punching) = &self.call else { return };
        let tries = punching.hold_tries;
        let hold = self.start_hold(now, local, places, tries);
        if let Call::Punching(punching) = &mut self.call {
            punching.hold = hold;
            punching.hold_tries += 1;
        }
    }

    /// The hold's answers are there: the peer is told, and the plan made anew.
    pub(super) fn on_hold(&mut self, now: Instant, local: &mut Local) {
        let Call::Punching(punching) = &self.call else { return };
        let Some(holding) = punching.hold else { return };
        if punching.punch.is_stopped() {
            // The path that was found meanwhile may go by the socket that the hold's would replace.
            if let Call::Punching(punching) = &mut self.call {
                punching.hold = None;
            }
            return self.end_hold(local, holding);
        }
        if !punching.punch.may_fire(now) {
            return;
        }
        let outcome = self.held(now, local, holding);
        let Call::Punching(punching) = &self.call else { return };
        let is_enough = |holds: &[Hold]| {
            plan::hold::is_enough(holds, punching.theirs()) || (punching.hold_tries > 1 && !holds.is_empty())
        };
        let (socket, holds) = match outcome {
            Outcome::Waiting => return,
            Outcome::Held(socket, holds) if is_enough(&holds) => (socket, holds),
            outcome => {
                if let Outcome::Held(socket, _) = outcome {
                    self.close_socket(local, socket);
                }
                let Call::Punching(punching) = &mut self.call else { return };
                punching.hold = None;
                let places = plan::wants_hold(punching.ours(), punching.theirs(), false, Duration::ZERO, true);
                return self.hold_towards(now, local, &places);
            }
        };
        let Call::Punching(punching) = &mut self.call else { return };
        punching.hold = None;
        let view = local.discovery.view(now, socket);
        let parties = &mut punching.parties;
        parties.ours.holds = holds;
        parties.ours.tuple = view.tuple.or(parties.ours.tuple);
        parties.ours.age = view.age;
        let start = now + (parties.ours.server_delay + parties.theirs.server_delay) / 2 + COMPUTING;
        let plan = parties.plan(local);
        let old = punching.punch.replan(now, start, plan, socket);
        // It may go by the socket that is closed now.
        punching.hope = None;
        let update = Update { id: parties.id, report: parties.ours.clone() };
        let index = punching.index;
        if let Some(sealed) = self.tunnel.seal_probe(now, index, &Dudp::MessageControl.header(), &update.encode())
            && let Call::Punching(punching) = &mut self.call
        {
            punching.update = Some(Updating::new(now, &sealed));
        }
        local.step(&self.config.name, "holds a port towards the peer, and tells it".to_owned());
        self.close_socket(local, old);
    }
}
