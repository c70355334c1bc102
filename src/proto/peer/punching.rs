//! The punch of a call, on either side: the plan from both reports, the holds that a moving side makes for it, the update that
//! tells of them, and the end.
//!
//! ```text
//! called, moving    call in ─ hold ─ (its answers) ─► answer with the holds ─► punch
//! caller, moving    answer in ─► punch ─ hold ─ (its answers) ─► update with the holds ─► the same punch, by a new plan
//! called            update in ─► the same punch, by a new plan
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use super::called::COMPUTING;
use super::calling::{FIRST_REST, LONGEST_ROUND, UPDATE, retry_after};
use super::{Call, Incoming, Peer, Punching, words};
use crate::proto::action::Drop;
use crate::proto::budget::Budget;
use crate::proto::context::Local;
use crate::proto::counter::{Ahead, Rate};
use crate::proto::discovery::client::TooShort;
use crate::proto::introduction::Via;
use crate::proto::message_control::{CallId, Hold, Report, Terms, Update};
use crate::proto::path::{Goal, Way};
use crate::proto::plan::{self, Outlook, Plan, Target, sweep};
use crate::proto::probe::Ack;
use crate::proto::punch::{Punch, Role, Setup, Shot, Step};
use crate::proto::snapshot::Method;
use crate::proto::wire::{Dudp, HEADER_LEN};
use crate::proto::{Action, Instant, SocketId};

/// Between two tries of one call: the caller goes on at once, the called member waits, so that the two do not cross.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_IF_CALLED: Duration = Duration::from_millis(600);
/// Holds tried for one call: each goes a hop further, where the one before did not come out of our own site.
const MOST_HOLDS: u32 = 3;
/// Two NATs in a row, and a carrier's network between them.
const HIGHEST_LOW_TTL: u8 = 5;
/// An update is repeated until the peer is heard, so often.
const MOST_UPDATES: u32 = 4;
/// Where λ was not seen yet, it may be anything.
const UNKNOWN_RATE: Rate = Rate { per_s: 0.0, error: 300.0 };

/// An update that is on its way.
pub(super) struct Updating {
    passed: Vec<u8>,
    due: Instant,
    tries: u32,
}

/// Both members of a call that was answered, as one of them sees it.
pub(super) struct Parties {
    pub id: CallId,
    pub role: Role,
    pub ours: Report,
    pub theirs: Report,
    pub terms: Terms,
    pub via: Via,
}

impl Parties {
    fn plan(&self, now: Instant, local: &Local, budget: &Budget) -> Plan {
        let (caller, called) = match self.role {
            Role::Caller => (&self.ours, &self.theirs),
            Role::Called => (&self.theirs, &self.ours),
        };
        let mut plan = plan::plan(caller, called, &self.terms, &local.punch);
        let first = plan.rounds.first_mut().and_then(|round| round.caller.as_mut());
        if let (Role::Caller, Some(side)) = (self.role, first)
            && let Target::Sweep { ip, holds } = &side.target
        {
            let most = budget.sockets_left().min(budget.left().entries);
            match aim(now, local, holds, most) {
                Some((hold, count)) => {
                    side.sockets = plan::Sockets::Row(count);
                    side.target = Target::one(SocketAddr::new(*ip, hold.first));
                }
                // It passed them all: the next try will have learned from that, and is due at once.
                None => plan.rounds.clear(),
            }
        }
        plan
    }
}

fn aim(now: Instant, local: &Local, holds: &[Hold], most: u32) -> Option<(Hold, u32)> {
    let (last, at) = local.discovery.position()?;
    let counter = local.discovery.counter();
    let rate = counter.rate().unwrap_or(UNKNOWN_RATE);
    let ahead = Ahead::after(now.since(at), rate);
    sweep::aim(holds, (last, counter.step(), counter.range()), ahead, most)
}

/// The sockets that a call brings along.
pub(super) struct Sockets {
    pub reported: SocketId,
    pub fresh: Option<SocketId>,
    pub watch: Option<SocketId>,
}

impl Punching {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let update = self.update.as_ref().filter(|update| update.tries < MOST_UPDATES).map(|update| update.due);
        self.punch.poll_timeout().into_iter().chain(update).min()
    }

    pub(super) fn ours(&self) -> &Report {
        &self.parties.ours
    }

    pub(super) fn theirs(&self) -> &Report {
        &self.parties.theirs
    }
}

impl Peer {
    /// What this call, with all its tries, may still spend.
    pub(super) fn budget(&mut self, local: &Local) -> &mut Budget {
        self.budget.get_or_insert_with(|| Budget::new(local.punch))
    }

    /// Watches our own counter while the call is on its way, so that a sweep knows where it is and how fast others move it.
    pub(super) fn watch(&mut self, now: Instant, local: &mut Local) -> Option<SocketId> {
        let socket = local.ids.next();
        let made = local.discovery.watch(now, socket);
        local.collect_discovery();
        self.budget(local).note_entries(made);
        (made > 0).then_some(socket)
    }

    /// `false`: it is not our turn for a hard call. All its sockets are closed then.
    pub(super) fn punch(
        &mut self,
        now: Instant,
        local: &mut Local,
        index: u32,
        start: Instant,
        parties: Parties,
        sockets: Sockets,
    ) -> bool {
        let budget = self.budget(local).clone();
        let plan = parties.plan(now, local, &budget);
        let Sockets { reported, fresh, watch } = sockets;
        if plan.rounds.first().is_some_and(plan::Round::is_hard) && !local.take_hard_turn(self.id) {
            self.end_sockets(local, reported, fresh);
            if let Some(watch) = watch {
                self.close_socket(local, watch);
            }
            return false;
        }
        local.step(&self.config.name, words::plan(&plan, &parties));
        self.main_was_used |= reported == SocketId::MAIN_V4;
        self.note_member();
        self.punched_index = Some(index);
        let setup = Setup {
            id: parties.id,
            role: parties.role,
            start,
            plan,
            reported,
            fresh,
            candidates: local.worthwhile(&parties.ours, &parties.theirs),
            mapping: parties.ours.mapping,
            // A try that came to nothing may have ended within our own site.
            low_ttl: local.low_ttl + u8::try_from(self.failures.min(2)).unwrap_or(0),
        };
        let punch = Punch::new(now, setup, budget);
        let (hold, hold_tries, update) = (None, 0, None);
        self.call = Call::Punching(Box::new(Punching { punch, index, parties, watch, hold, hold_tries, update }));
        self.drive_punch(now, local);
        true
    }

    pub(super) fn drive_punch(&mut self, now: Instant, local: &mut Local) {
        self.on_hold(now, local);
        let Call::Punching(punching) = &mut self.call else { return };
        let steps = punching.punch.handle_timeout(now, &mut local.ids, &mut local.rng);
        local.discovery.note_mappings(punching.punch.take_mappings());
        let index = punching.index;
        let expired = punching.punch.has_expired(now);
        for step in steps {
            self.carry_out(now, local, index, step);
        }
        self.repeat_update(now, local);
        if expired {
            self.on_punch_expired(now, local);
        }
    }

    fn carry_out(&mut self, now: Instant, local: &mut Local, index: u32, step: Step) {
        match step {
            Step::Open { socket, port } => local.act(Action::OpenSocket { id: socket, port }),
            Step::Close(socket) => self.close_socket(local, socket),
            Step::Shoot(Shot { socket, to, ttl, token, via }) => {
                let body = Ack { token, via, chosen: false }.encode();
                if let Some(payload) = self.tunnel.seal_probe(now, index, &Dudp::Ack.header(), &body) {
                    local.send_with(Way { socket, remote: to }, ttl, payload);
                }
            }
        }
    }

    /// Where we are called and our NAT moves: a hold towards the caller, whose answers are our survey. Gives its socket.
    pub(super) fn begin_hold(&mut self, now: Instant, local: &mut Local, incoming: &mut Incoming) -> Option<SocketId> {
        let ours = local.outline(now, SocketId::MAIN_V4, incoming.via);
        let theirs = &incoming.call.report;
        let signal = (ours.server_delay + theirs.server_delay) / 2 + COMPUTING;
        // The call came a signal after its report; the sweep comes after the hold's round trip and the answer.
        let ahead = signal + now.since(incoming.came) + ours.server_delay + signal;
        let places = plan::wants_hold(&ours, theirs, true, ahead);
        let socket = self.start_hold(now, local, &places, incoming.tries)?;
        incoming.tries += 1;
        Some(socket)
    }

    fn start_hold(&mut self, now: Instant, local: &mut Local, places: &[SocketAddr], tries: u32) -> Option<SocketId> {
        if places.is_empty() || tries >= MOST_HOLDS {
            return None;
        }
        let socket = local.ids.next();
        let made = local.discovery.hold(now, socket, places, local.low_ttl);
        local.collect_discovery();
        self.budget(local).note_entries(made);
        (made > 0).then_some(socket)
    }

    /// The answers to a hold, or a survey, for a call of the peer's are there. `Some`: another one is under way.
    pub(super) fn go_on_holding(
        &mut self,
        now: Instant,
        local: &mut Local,
        socket: SocketId,
        incoming: &mut Incoming,
    ) -> Option<SocketId> {
        if incoming.tries == 0 {
            // It was not known before this survey that our NAT moves.
            let hold = self.begin_hold(now, local, incoming)?;
            self.close_socket(local, socket);
            return Some(hold);
        }
        match local.discovery.held(socket) {
            Ok(holds) => {
                incoming.holds = holds;
                None
            }
            Err(TooShort) => {
                local.low_ttl = (local.low_ttl + 1).min(HIGHEST_LOW_TTL);
                let hold = self.begin_hold(now, local, incoming)?;
                self.close_socket(local, socket);
                Some(hold)
            }
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
    fn on_hold(&mut self, now: Instant, local: &mut Local) {
        let Call::Punching(punching) = &mut self.call else { return };
        let Some(socket) = punching.hold.filter(|socket| local.discovery.is_ready(now, *socket)) else { return };
        punching.hold = None;
        let held = local.discovery.held(socket);
        let holds = match held {
            Ok(holds) if !holds.is_empty() => holds,
            outcome => {
                if outcome == Err(TooShort) {
                    local.low_ttl = (local.low_ttl + 1).min(HIGHEST_LOW_TTL);
                }
                let places = plan::wants_hold(&punching.parties.ours, &punching.parties.theirs, false, Duration::ZERO);
                self.close_socket(local, socket);
                return self.hold_towards(now, local, &places);
            }
        };
        let view = local.discovery.view(now, socket);
        let parties = &mut punching.parties;
        parties.ours.holds = holds;
        parties.ours.tuple = view.tuple.or(parties.ours.tuple);
        parties.ours.age = view.age;
        let start = now + (parties.ours.server_delay + parties.theirs.server_delay) / 2 + COMPUTING;
        let plan = parties.plan(now, local, &punching.punch.budget);
        let old = punching.punch.replan(now, start, plan, socket);
        let update = Update { id: parties.id, report: parties.ours.clone() };
        let index = punching.index;
        if let Some(sealed) = self.tunnel.seal_probe(now, index, &Dudp::MessageControl.header(), &update.encode())
            && let Call::Punching(punching) = &mut self.call
        {
            let passed = [[UPDATE].as_slice(), &sealed].concat();
            punching.update = Some(Updating { passed, due: now, tries: 0 });
        }
        local.step(&self.config.name, "holds a port towards the peer, and tells it".to_owned());
        self.close_socket(local, old);
    }

    fn repeat_update(&mut self, now: Instant, local: &mut Local) {
        let heard = self.paths.current().is_some() && !self.paths.is_suspect();
        let Call::Punching(punching) = &mut self.call else { return };
        let Some(update) = punching.update.as_mut().filter(|update| now >= update.due && !heard) else { return };
        if update.tries >= MOST_UPDATES {
            return;
        }
        update.tries += 1;
        update.due = now + retry_after(&punching.parties.ours);
        let (via, passed) = (punching.parties.via, update.passed.clone());
        local.pass(now, via, self.config.public_key, passed);
    }

    /// The caller's new report: its ports towards us.
    pub(super) fn handle_update(&mut self, now: Instant, local: &mut Local, rest: &[u8]) -> Result<(), Drop> {
        let index = crate::proto::rendezvous::receiver(rest).ok_or(Drop::Malformed)?;
        let body = self.tunnel.open_probe(now, HEADER_LEN, rest)?;
        let update = Update::parse(&body).ok_or(Drop::Malformed)?;
        let Call::Punching(punching) = &mut self.call else { return Err(Drop::Unknown) };
        let ours = punching.index == index && punching.parties.id == update.id && punching.punch.role() == Role::Called;
        if !ours {
            return Err(Drop::Unknown);
        }
        if punching.parties.theirs != update.report {
            punching.parties.theirs = update.report;
            let plan = punching.parties.plan(now, local, &punching.punch.budget);
            let reported = punching.punch.reported();
            punching.punch.replan(now, now, plan, reported);
        }
        self.drive(now, local);
        Ok(())
    }

    fn on_punch_expired(&mut self, now: Instant, local: &mut Local) {
        let Call::Punching(punching) = &self.call else { return };
        if self.is_settled() {
            self.end_call(local, None);
            self.call_began = None;
            self.budget = None;
            return;
        }
        let elapsed = now.since(self.call_began.unwrap_or(now));
        let good = punching.punch.outlook() == Outlook::Good;
        if elapsed + LONGEST_ROUND < local.punch.timeout && punching.punch.budget.is_left() && good {
            let wait = if punching.punch.role() == Role::Caller { AGAIN } else { AGAIN_IF_CALLED };
            self.end_call(local, None);
            self.call = Call::Resting { until: now + wait };
            return;
        }
        let why = words::no_path(punching);
        // The patent's fail-over value ([0072]): the reported tuple, by itself, when all else is over. It is asked while the
        // back-off lasts, and taken if it answers.
        if let Some(remote) = punching.theirs().tuple {
            let way = Way { socket: SocketId::main_for(&remote), remote };
            self.challenge(now, local, way, Goal::Move(Method::Punch));
        }
        self.fail(now, local, why, FIRST_REST);
    }
}
