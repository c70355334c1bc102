//! Our side of a call that the peer places: taken or refused, and answered (patent \[0063\] to \[0068\]).

use std::time::Duration;

use super::calling::{ABORT, ANSWER, BUSY_REST, CALL, FIRST_REST, UPDATE};
use super::punching::{Parties, Sockets};
use super::{Answered, Call, Incoming, Peer, Purpose, words};
use crate::proto::action::Drop;
use crate::proto::allowance::Rate;
use crate::proto::context::Local;
use crate::proto::introduction::Via;
use crate::proto::message_control::{self, Abort, Answer, CallId, Reason, Report};
use crate::proto::noise::{INITIATION_LEN, Received};
use crate::proto::plan;
use crate::proto::punch::Role;
use crate::proto::{Instant, SocketId};

/// A call of the peer's that crossed with our own is ignored for so long after ours was answered: what a datagram may have
/// been on its way.
const CROSSED: Duration = Duration::from_secs(2);

/// A peer's calls are taken at most this often: each costs a survey and volleys, at addresses that the caller names …
pub(super) const CALL_INTERVAL: Duration = Duration::from_millis(150);
/// … but for one: a caller whose router maps a port a moment after the call places another, which says so and takes the first
/// one's place before that costs a probe.
const CALLS: Rate = Rate { burst: 2, per_s: 7 };
/// A peer's calls may use up so many budgets at once, and one more in each time that a call has: our own tries are held by their
/// back-off, and a caller need not keep to its own. Three are what a fair one uses up before its back-off is as long.
const BUDGETS_AHEAD: u32 = 3;
/// What the server and the caller need to pass the answer on, to compute its keys and to open their sockets, on a slow machine.
/// A volley that comes sooner than the caller's own poisons ports; one that is a little late does no harm, for the opening
/// volley lets the caller's in.
pub(super) const COMPUTING: Duration = Duration::from_millis(10);

impl Peer {
    /// Something that the peer had a server, or another member, pass to us.
    pub fn handle_passed(&mut self, now: Instant, local: &mut Local, via: Via, passed: &[u8]) -> Result<(), Drop> {
        match passed.split_first() {
            Some((&CALL, rest)) => self.handle_call(now, local, via, Duration::ZERO, passed, rest),
            Some((&ANSWER, rest)) => {
                let introduced = std::mem::replace(&mut self.introduced, words::introduced(local, via));
                let outcome = self.handle_answer(now, local, via, rest);
                if outcome.is_err() {
                    self.introduced = introduced;
                }
                outcome
            }
            Some((&UPDATE, rest)) => self.handle_update(now, local, rest),
            Some((&ABORT, rest)) => self.handle_abort(now, local, rest),
            _ => Err(Drop::Malformed),
        }
    }

    /// A call from before we registered, which the server held for so long.
    pub fn handle_held(
        &mut self,
        now: Instant,
        local: &mut Local,
        via: Via,
        held: Duration,
        passed: &[u8],
    ) -> Result<(), Drop> {
        if self.is_settled() || matches!(self.call, Call::Knocking { .. }) {
            // It may be out of date: there is a path by now, or the configured endpoint is being asked for one. Who still needs the
            // call repeats it.
            return Ok(());
        }
        match passed.split_first() {
            Some((&CALL, rest)) => self.handle_call(now, local, via, held, passed, rest),
            _ => Err(Drop::Malformed),
        }
    }

    fn handle_call(
        &mut self,
        now: Instant,
        local: &mut Local,
        via: Via,
        held: Duration,
        passed: &[u8],
        rest: &[u8],
    ) -> Result<(), Drop> {
        if let Some(answered) = self.answered.as_ref().filter(|answered| answered.passed == passed) {
            // A repetition, because our answer was lost or is late.
            let answer = answered.answer.clone();
            self.pass(now, local, via, answer);
            self.start_again(now);
            self.drive(now, local);
            return Ok(());
        }
        if let Call::Surveying { purpose: Purpose::Answer(incoming), .. } = &self.call
            && incoming.passed == passed
        {
            return Ok(());
        }
        let (initiation, sealed) = rest.split_at_checked(INITIATION_LEN).ok_or(Drop::Malformed)?;
        let received = Received::open(&local.identity, initiation)?;
        if received.peer != self.config.public_key {
            return Err(Drop::Unauthentic);
        }
        if !self.tunnel.is_new(&received) {
            return Err(Drop::Replayed);
        }
        let call = received.exports.call.open(sealed).ok_or(Drop::Unauthentic)?;
        let mut call = message_control::Call::parse(&call).ok_or(Drop::Malformed)?;
        if !self.calls.take(now, CALLS) {
            return Err(Drop::Overload);
        }
        if let Via::Member { delay, .. } = via {
            // The caller meant another way. An introducer that lies can make us late, which it could by waiting; not early.
            call.report.server_delay = call.report.server_delay.max(delay.min(plan::LONGEST_ROUND));
        }
        if !self.config.calls.answers() {
            return self.refuse(now, local, via, passed, received, (call.id, Reason::Unwilling));
        }
        if self.has_precedence(now, local, &call.report) {
            self.note_crossed(now, &call.report);
            return Ok(());
        }
        if !self.budget(local).is_left() {
            self.rest(now, local, FIRST_REST);
        }
        if self.made_up.since(now) > local.punch.timeout * (BUDGETS_AHEAD - 1) {
            return self.refuse(now, local, via, passed, received, (call.id, Reason::Busy));
        }
        local.step(&self.config.name, format!("calls, from {}", words::tuple(&call.report)));
        // The caller's try may have ended a moment before ours.
        self.end_try(local);
        self.call_began.get_or_insert(now);
        if !self.failed {
            // Who calls is registered, and a server passes calls.
            self.why = None;
        }
        // Who calls although there is a path has found that it broke, unless it says otherwise.
        if self.paths.current().is_some() && !call.beside && !self.broke {
            self.broke = true;
            self.silence = self.tunnel.last_sent().map_or(Duration::ZERO, |last| now.since(last));
        }
        let incoming = Incoming {
            passed: passed.to_vec(),
            received,
            call,
            came: now,
            held,
            via,
            holds: Vec::new(),
            holding: None,
            tries: 0,
        };
        self.survey(now, local, Purpose::Answer(Box::new(incoming)));
        self.drive(now, local);
        Ok(())
    }

    /// Whether our own call goes first, where both call at once: the one that payload waits for, for a caller's may follow its call
    /// sooner; or else that of the lower key.
    fn has_precedence(&self, now: Instant, local: &Local, theirs: &Report) -> bool {
        let lower = local.identity.public() < self.config.public_key;
        let first = |ours: &Report| if ours.waiting == theirs.waiting { lower } else { ours.waiting };
        match &self.call {
            Call::Calling(calling) => first(&calling.report),
            Call::Punching(punching) => {
                let punch = &punching.punch;
                first(punching.ours()) && punch.role() == Role::Caller && now.since(punch.opened()) < CROSSED
            }
            Call::Idle | Call::Knocking { .. } | Call::Surveying { .. } | Call::Resting { .. } => false,
        }
    }

    /// Sends one abort, and never another for the same call: its key seals once.
    fn refuse(
        &mut self,
        now: Instant,
        local: &mut Local,
        via: Via,
        passed: &[u8],
        received: Received,
        (id, reason): (CallId, Reason),
    ) -> Result<(), Drop> {
        let index = received.index.to_le_bytes();
        let key = self.tunnel.refuse_initiation(now, received)?;
        let sealed = key.seal(&Abort { id, reason }.encode());
        let answer = [[ABORT].as_slice(), &index, &sealed].concat();
        self.pass(now, local, via, answer.clone());
        self.answered = Some(Answered { passed: passed.to_vec(), answer });
        Ok(())
    }

    fn pass(&self, now: Instant, local: &mut Local, via: Via, passed: Vec<u8>) {
        local.pass(now, via, self.config.public_key, passed);
    }

    /// Answers with our own second tuple, the differential, and the modifications to the caller's (patent \[0067\]).
    pub(super) fn answer(&mut self, now: Instant, local: &mut Local, socket: SocketId, incoming: Incoming) {
        let Incoming { passed, received, call, came, held, via, holds, .. } = incoming;
        let beside = call.beside;
        self.introduced = words::introduced(local, via);
        let (mut ours, fresh) = local.report(now, socket, via);
        ours.holds = holds;
        ours.budget = self.budget(local).left();
        // Half of both round trips to who passes the call: when the caller most likely has the answer.
        let until_start = (call.report.server_delay + ours.server_delay) / 2 + COMPUTING;
        let round = plan::round_of(until_start);
        let since_call = held + now.since(came) + until_start;
        let terms = plan::terms(&call.report, &ours, since_call, until_start, round);
        let sockets = Sockets { reported: socket, fresh, watches: Vec::new() };
        let hard =
            plan::plan(&call.report, &ours, &terms, &local.punch).rounds.first().is_some_and(plan::Round::is_hard);
        if hard && !local.take_hard_turn(self.id) {
            self.end_sockets(local, socket, fresh);
            // A replay gets no abort, and needs none.
            let _ = self.refuse(now, local, via, &passed, received, (call.id, Reason::Busy));
            self.pause(now, local, BUSY_REST);
            return;
        }
        let index = local.new_index(self.id);
        let Ok((response, key)) = self.tunnel.handle_initiation(now, received, index, &mut local.rng) else {
            local.indices.remove(&index);
            self.end_sockets(local, socket, fresh);
            self.rest(now, local, FIRST_REST);
            return;
        };
        let answer = Answer { id: call.id, report: ours.clone(), terms };
        let answer = [[ANSWER].as_slice(), &response, &key.seal(&answer.encode())].concat();
        self.pass(now, local, via, answer.clone());
        self.answered = Some(Answered { passed, answer });
        let parties = Parties { id: call.id, role: Role::Called, ours, theirs: call.report, terms, via, beside };
        self.punch(now, local, index, now + until_start, parties, sockets);
    }
}
