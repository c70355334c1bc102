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

use super::called::{CALL_INTERVAL, COMPUTING};
use super::calling::{BUSY_REST, FIRST_REST, TURN_REST, UPDATE, retry_after};
use super::{Call, Peer, Punching, words};
use crate::proto::action::{Drop, Event};
use crate::proto::budget::Budget;
use crate::proto::context::Local;
use crate::proto::introduction::Via;
use crate::proto::message_control::{CallId, CandidateKind, Report, Terms, Update};
use crate::proto::nat::Mapping;
use crate::proto::path::{Goal, Way};
use crate::proto::plan::{self, Outlook, Plan, Round, Strategy, Target, sweep};
use crate::proto::probe::Ack;
use crate::proto::punch::{Punch, Role, Setup, Shot, Step};
use crate::proto::snapshot::Method;
use crate::proto::tunnel::MAX_QUEUED;
use crate::proto::wire::{Dudp, HEADER_LEN};
use crate::proto::{Action, Instant, SocketId};

/// Between two tries of one call: the caller goes on at once, the called member waits, so that the two do not cross.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_IF_CALLED: Duration = Duration::from_millis(600);
/// An update is repeated until the peer is heard, so often.
const MOST_UPDATES: u32 = 4;

/// An update that is on its way.
pub(super) struct Updating {
    passed: Vec<u8>,
    due: Instant,
    tries: u32,
}

impl Updating {
    pub(super) fn new(now: Instant, sealed: &[u8]) -> Self {
        Self { passed: [[UPDATE].as_slice(), sealed].concat(), due: now, tries: 0 }
    }
}

/// Both members of a call that was answered, as one of them sees it.
pub(super) struct Parties {
    pub id: CallId,
    pub role: Role,
    pub ours: Report,
    pub theirs: Report,
    pub terms: Terms,
    pub via: Via,
    /// The caller has a path, and only addresses that need no guessing are worth a probe.
    pub beside: bool,
}

impl Parties {
    /// Whether both are seen at one address, and no port has to be guessed: what was tried once is all that there is.
    pub(super) fn share_a_nat(&self) -> bool {
        let fixed = |report: &Report| matches!(plan::port(report), plan::Port::Fixed { .. });
        if !fixed(&self.ours) || !fixed(&self.theirs) {
            return false;
        }
        let behind = |report: &Report| report.tuple.filter(|_| report.mapping != Mapping::None);
        behind(&self.ours).zip(behind(&self.theirs)).is_some_and(|(a, b)| a.ip() == b.ip())
    }

    pub(super) fn plan(&self, local: &Local) -> Plan {
        let (caller, called) = match self.role {
            Role::Caller => (&self.ours, &self.theirs),
            Role::Called => (&self.theirs, &self.ours),
        };
        if self.beside {
            let length = self.terms.round;
            let only = Round { strategy: Strategy::Direct, length, caller: None, called: None };
            return Plan { rounds: vec![only], outlook: Outlook::Good };
        }
        plan::plan(caller, called, &self.terms, &local.punch)
    }
}

/// The caller's first packet may be payload, right behind the first probe: where the plan has it shoot from one socket at one
/// port that is the peer's by its own sealed word, or where both have IPv6. The called member has no key of the caller's confirmed
/// yet, and waits.
fn hope(now: Instant, setup: &Setup, parties: &Parties) -> Option<Hope> {
    if setup.role == Role::Called {
        return None;
    }
    let until = now + parties.terms.round / 4;
    let ipv6 = setup.candidates.iter().find(|candidate| candidate.kind == CandidateKind::Ipv6);
    let ipv6 = ipv6.map(|candidate| Way { socket: SocketId::MAIN_V6, remote: candidate.address });
    known_way(setup, parties).or(ipv6).map(|way| Hope { way, until, left: MAX_QUEUED })
}

/// Where payload goes before anything was heard.
pub(super) struct Hope {
    way: Way,
    until: Instant,
    /// So many packets more: what a peer tells us may be somebody else's address, who gets no more than what had waited for a path.
    left: usize,
}

/// The one way that the plan begins with, where it needs no guess.
fn known_way(setup: &Setup, parties: &Parties) -> Option<Way> {
    let round = setup.plan.rounds.first()?;
    let side = round.caller.as_ref()?;
    let Target::Ports { ip, ports } = &side.target else { return None };
    let ([port], Some(ours)) = (ports.as_slice(), parties.ours.tuple) else { return None };
    let is_known = round.strategy == Strategy::Hold
        || matches!(plan::port(&parties.theirs), plan::Port::Fixed { .. } | plan::Port::Fresh(_));
    let socket = match side.sockets {
        plan::Sockets::Main => SocketId::MAIN_V4,
        plan::Sockets::Reported => setup.reported,
        plan::Sockets::Fresh => setup.fresh?,
        plan::Sockets::New | plan::Sockets::Row(_) => return None,
    };
    // Two behind one NAT are nearer to each other than that.
    let apart = !round.is_hard() && side.timing == plan::Timing::Volleys && ours.ip() != *ip;
    (is_known && apart).then_some(Way { socket, remote: SocketAddr::new(*ip, *port) })
}

/// The sockets that a call brings along.
pub(super) struct Sockets {
    pub reported: SocketId,
    pub fresh: Option<SocketId>,
    pub watches: Vec<SocketId>,
}

impl Punching {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let update = self.update.as_ref().map(|update| update.due);
        self.punch.poll_timeout().into_iter().chain(update).min()
    }

    pub(super) fn ours(&self) -> &Report {
        &self.parties.ours
    }

    pub(super) fn theirs(&self) -> &Report {
        &self.parties.theirs
    }

    /// Whether one of the two, whose report that is, may now hear hundreds by ways that lead nowhere.
    pub(super) fn may_hear_a_crowd(&self, report: &Report) -> bool {
        report.may_hear_in_vain() != Some(false) && self.punch.strategy().is_some_and(Strategy::is_a_crowd)
    }
}

impl Peer {
    /// What this call, with all its tries, may still spend.
    pub(super) fn budget(&mut self, local: &Local) -> &mut Budget {
        match &mut self.call {
            // The punch has it while it lasts.
            Call::Punching(punching) => &mut punching.punch.budget,
            _ => self.budget.get_or_insert_with(|| Budget::new(local.punch)),
        }
    }

    /// The call is over, with all its tries: what comes is another one.
    pub(super) fn end_budget(&mut self, now: Instant, local: &mut Local) {
        self.call_began = None;
        self.close_spare(local);
        if let Some(budget) = self.budget.take() {
            self.made_up = self.made_up.max(now) + local.punch.timeout.mul_f64(budget.share());
        }
    }

    /// The try that goes on is over, its call is not: the next one may use its sockets.
    pub(super) fn end_try(&mut self, local: &mut Local) {
        if let Call::Punching(punching) = &mut self.call {
            self.spare.extend(punching.punch.take_row());
        }
        self.end_call(local, None);
    }

    pub(super) fn close_spare(&mut self, local: &mut Local) {
        for kept in std::mem::take(&mut self.spare) {
            self.close_socket(local, kept.socket);
        }
    }

    /// Whether what is cheap was tried in vain: earlier in this call, or when these two addresses met last.
    pub(super) fn knows_better(&self, local: &Local, ours: &Report, theirs: &Report) -> bool {
        let pair = ours.tuple.zip(theirs.tuple);
        let worked = pair.and_then(|(ours, theirs)| local.memory.worked(ours.ip(), theirs.ip()));
        self.has_tried() || worked.is_some_and(|strategy| !matches!(strategy, Strategy::Direct | Strategy::Wait))
    }

    /// Remembers what found `way` in the call that goes on, unless it needed no guess.
    pub(super) fn learn(&self, local: &mut Local, way: Way) {
        let Call::Punching(punching) = &self.call else { return };
        if self.candidate_method(way).is_some() {
            return;
        }
        let pair = punching.ours().tuple.zip(punching.theirs().tuple);
        if let (Some((ours, theirs)), Some(strategy)) = (pair, punching.punch.strategy()) {
            local.memory.note(ours.ip(), theirs.ip(), strategy);
        }
    }

    /// Whether an earlier try of this call came to nothing.
    pub(super) fn has_tried(&self) -> bool {
        self.budget.as_ref().is_some_and(|budget| budget.tries() > 0)
    }

    /// Watches our own counter while the call is on its way, so that a sweep knows where it is and how fast others move it.
    pub(super) fn watch(&mut self, now: Instant, local: &mut Local) -> Vec<SocketId> {
        let mut watches = Vec::new();
        for nth in 0..local.discovery.watches() {
            let socket = local.ids.next();
            let most = self.budget(local).survey_left();
            let made = local.discovery.watch(now, socket, nth, most);
            self.budget(local).note_survey(made);
            if made > 0 {
                watches.push(socket);
            }
        }
        local.collect_discovery();
        watches
    }

    /// Where two whose ports move are seen at one address, a try goes to their own addresses alone, and most likely a sweep follows: then
    /// it is known where the counter is.
    pub(super) fn watch_at_a_gate(&mut self, now: Instant, local: &mut Local) {
        let Call::Punching(punching) = &self.call else { return };
        let moves = |report: &Report| matches!(plan::port(report), plan::Port::Moving(_));
        let ip = |report: &Report| report.tuple.map(|tuple| tuple.ip());
        let (ours, theirs) = (punching.ours(), punching.theirs());
        let is_gate = punching.punch.strategy() == Some(Strategy::Direct) && !punching.parties.beside;
        if is_gate && moves(ours) && moves(theirs) && ip(ours) == ip(theirs) {
            let watches = self.watch(now, local);
            if let Call::Punching(punching) = &mut self.call {
                punching.watches.extend(watches);
            }
        }
    }

    pub(super) fn end_watches(&mut self, local: &mut Local, watches: &[SocketId]) {
        for socket in watches {
            self.close_socket(local, *socket);
        }
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
        let mut budget = self.budget(local).clone();
        budget.note_try();
        let plan = parties.plan(local);
        let Sockets { reported, fresh, watches } = sockets;
        if plan.rounds.first().is_some_and(plan::Round::is_hard) && !local.take_hard_turn(self.id) {
            self.end_sockets(local, reported, fresh);
            self.end_watches(local, &watches);
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
            spare: std::mem::take(&mut self.spare),
            candidates: local.worthwhile(&parties.ours, &parties.theirs),
            mapping: parties.ours.mapping,
            low_ttl: self.low_ttl(local),
        };
        let hope = hope(now, &setup, &parties);
        let punch = Punch::new(now, setup, budget);
        let (hold, hold_tries, update, updated) = (None, 0, None, false);
        let punching = Punching { punch, index, parties, watches, hold, hold_tries, update, updated, hope };
        self.call = Call::Punching(Box::new(punching));
        self.drive_punch(now, local);
        if self.paths.current().is_none() {
            self.flush(now, local);
        }
        true
    }

    /// Where payload may go before anything was heard: the one port that the peer's sealed answer names, for a moment.
    pub(super) fn hope(&self, now: Instant) -> Option<Way> {
        let Call::Punching(punching) = &self.call else { return None };
        punching.hope.as_ref().filter(|hope| now < hope.until && hope.left > 0).map(|hope| hope.way)
    }

    /// Payload was sent; without a path, in hope.
    pub(super) fn note_payload_sent(&mut self) {
        if self.paths.current().is_none()
            && let Call::Punching(punching) = &mut self.call
            && let Some(hope) = &mut punching.hope
        {
            hope.left = hope.left.saturating_sub(1);
        }
    }

    pub(super) fn drive_punch(&mut self, now: Instant, local: &mut Local) {
        self.on_hold(now, local);
        let Call::Punching(punching) = &mut self.call else { return };
        let budget = &punching.punch.budget;
        let sockets = budget.sockets_left() + punching.punch.spare();
        let most = sockets.min(budget.sweep_left(local.discovery.is_busy()));
        if let Some(holds) = punching.punch.wants_aim(now) {
            let aim = local.discovery.expect(now).and_then(|(course, ahead)| sweep::aim(holds, &course, ahead, most));
            local.discovery.note_swept(aim.as_ref().map_or(&[], |aim| &aim.ports));
            let sweeps = aim.is_some();
            punching.punch.aim_sweep(aim.map(|aim| (aim.hold, aim.shots)));
            if sweeps {
                // If it misses, the next try knows where the counter is, and begins at once.
                let watches = self.watch(now, local);
                if let Call::Punching(punching) = &mut self.call {
                    punching.watches.extend(watches);
                }
            }
        }
        let Call::Punching(punching) = &mut self.call else { return };
        // What began with a round for all may come to one that few may do at a time.
        if punching.punch.is_hard() && !local.take_hard_turn(self.id) {
            return self.miss_turn(now, local);
        }
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
                let body = Ack { token, via, chosen: false, shot: true }.encode();
                if let Some(payload) = self.tunnel.seal_probe(now, index, &Dudp::Ack.header(), &body) {
                    local.send_with(Way { socket, remote: to }, ttl, payload);
                }
            }
        }
    }

    /// Our answer is sent again: the caller starts later than we thought, and so do we, unless something was heard or what goes on
    /// opens sockets.
    pub(super) fn start_again(&mut self, now: Instant) {
        let heard = self.paths.current().is_some() && !self.paths.is_suspect();
        let Call::Punching(punching) = &mut self.call else { return };
        let signal = (punching.ours().server_delay + punching.theirs().server_delay) / 2 + COMPUTING;
        if !heard && punching.punch.role() == Role::Called && !punching.punch.is_hard() {
            punching.punch.restart(now + signal);
        }
    }

    fn repeat_update(&mut self, now: Instant, local: &mut Local) {
        let heard = self.paths.current().is_some() && !self.paths.is_suspect();
        let Call::Punching(punching) = &mut self.call else { return };
        if heard || punching.update.as_ref().is_some_and(|update| update.tries >= MOST_UPDATES) {
            punching.update = None;
        }
        let Some(update) = punching.update.as_mut().filter(|update| now >= update.due) else { return };
        update.tries += 1;
        update.due = now + retry_after(&punching.parties.ours);
        let (via, passed) = (punching.parties.via, update.passed.clone());
        local.pass(now, via, self.config.public_key, passed);
    }

    /// The caller's new report: its ports towards us.
    pub(super) fn handle_update(&mut self, now: Instant, local: &mut Local, rest: &[u8]) -> Result<(), Drop> {
        let index = crate::proto::rendezvous::receiver(rest).ok_or(Drop::Malformed)?;
        if !rest.starts_with(&Dudp::MessageControl.header()) {
            return Err(Drop::Malformed);
        }
        let body = self.tunnel.open_probe(now, HEADER_LEN, rest)?;
        let update = Update::parse(&body).ok_or(Drop::Malformed)?;
        let Call::Punching(punching) = &mut self.call else { return Err(Drop::Unknown) };
        let ours = punching.index == index && punching.parties.id == update.id && punching.punch.role() == Role::Called;
        if !ours {
            return Err(Drop::Unknown);
        }
        // A caller learns its port once a call. Each plan shoots at once, at addresses that the caller names: one that told
        // more would not be held by the pace.
        if !std::mem::replace(&mut punching.updated, true) {
            punching.parties.theirs = update.report;
            let plan = punching.parties.plan(local);
            let reported = punching.punch.reported();
            punching.punch.replan(now, now, plan, reported);
        }
        self.drive(now, local);
        Ok(())
    }

    /// The rest of the plan is hard, and another call is at that: the try ends here, and its turn comes with the next one. A path that is
    /// in use stays.
    fn miss_turn(&mut self, now: Instant, local: &mut Local) {
        let Call::Punching(punching) = &self.call else { return };
        let rest = if punching.punch.role() == Role::Caller { TURN_REST } else { BUSY_REST };
        self.why =
            Some("another hard call goes first, as `hard_calls` in [punch] says; this one is tried again".to_owned());
        self.pause(now, local, rest);
    }

    /// Hops of a probe that is to open our NAT and go no further. Too many, and it takes a port of the peer's router from the
    /// peer's own probe (a Linux router's, from then on), so they are raised only where nothing but probes could tell.
    fn low_ttl(&self, local: &Local) -> u8 {
        // A try that came to nothing may have ended within our own site.
        let further = if local.low_ttl_is_known { 0 } else { self.fruitless.min(2) };
        local.low_ttl + further
    }

    fn on_punch_expired(&mut self, now: Instant, local: &mut Local) {
        let Call::Punching(punching) = &self.call else { return };
        if punching.punch.has_only_heard()
            && let Some(way) = self.paths.retract(now)
        {
            self.tunnel.set_keepalive(now, None);
            local.tell(Event::Lost { peer: self.config.name.clone(), why: words::lost(way, false) });
        }
        if self.is_settled() {
            self.end_call(local, None);
            self.end_budget(now, local);
            return;
        }
        let elapsed = now.since(self.call_began.unwrap_or(now));
        let good = punching.punch.outlook().is_worth_a_try() && !punching.parties.share_a_nat();
        // What takes a whole budget, or what no budget can do, is not worth another one soon.
        let strategy = punching.punch.strategy();
        let costly = matches!(strategy, Some(Strategy::Scatter | Strategy::Grid | Strategy::Cells));
        let spent = costly && (strategy != Some(Strategy::Grid) || !punching.punch.budget.affords_another());
        if elapsed + plan::LONGEST_ROUND < local.punch.timeout && punching.punch.budget.is_left() && good && !spent {
            let wait = if punching.punch.role() == Role::Caller { AGAIN } else { AGAIN_IF_CALLED };
            // A call that comes too soon after another is not taken. The called member answered a signal before we began, and has the
            // next one a signal after we send it.
            let signal = (punching.ours().server_delay + punching.theirs().server_delay) / 2;
            let soonest = punching.punch.opened() + CALL_INTERVAL.saturating_sub(signal);
            let until = soonest.max(now + wait);
            self.end_try(local);
            self.call = Call::Resting { until };
            return;
        }
        let why = words::no_path(punching);
        // The patent's fail-over value ([0072]): the reported tuple, by itself, when all else is over. It is asked while the
        // back-off lasts, and taken if it answers.
        if let Some(remote) = punching.theirs().tuple {
            let way = Way { socket: SocketId::main_for(&remote), remote };
            self.challenge(now, local, way, Goal::Move(Method::Punch));
        }
        self.fruitless = self.fruitless.saturating_add(1);
        self.fail(now, local, why, if costly || !good { local.punch.timeout } else { FIRST_REST });
    }
}
