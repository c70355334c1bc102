//! Our side of a call that we place (patent \[0059\] to \[0062\], \[0069\]), and what both sides share: the punch, the end of a call,
//! and the back-off.

use std::time::Duration;

use rand_chacha::rand_core::RngCore;

use super::called::COMPUTING;
use super::holding::Onward;
use super::punching::{Parties, Sockets};
use super::{Call, Calling, ENDPOINT_FIRST, Peer, Purpose, words};
use crate::proto::action::{Drop, Event};
use crate::proto::config::Calls;
use crate::proto::context::Local;
use crate::proto::introduction::{Next, Passers, Via};
use crate::proto::message_control::{self, Abort, Answer, CandidateKind, Reason, Report};
use crate::proto::noise::RESPONSE_LEN;
use crate::proto::path::{Goal, Way};
use crate::proto::plan;
use crate::proto::punch::Role;
use crate::proto::rendezvous::Wait;
use crate::proto::tunnel::timers::REKEY_TIMEOUT;
use crate::proto::{Action, Instant, SocketId};

/// What goes through the server begins with one of these.
pub(super) const CALL: u8 = 1;
pub(super) const ANSWER: u8 = 2;
pub(super) const ABORT: u8 = 3;
pub(super) const UPDATE: u8 = 4;

/// How old a survey may be for a call: a NAT whose ports move gives out some more each second, one whose ports stay only
/// moves when it is restarted.
const FRESH_IF_MOVING: Duration = Duration::from_secs(1);
const FRESH_IF_FIXED: Duration = Duration::from_secs(5);
/// How long the peer's call waits for our own survey: what a survey with silent servers takes, and some.
pub(super) const SURVEY_WAIT: Duration = Duration::from_secs(2);
/// A call without an answer is repeated after three round trips to the server, one for each member's way and one for the called
/// member's hold, but no sooner than this …
const SOONEST_RETRY: Duration = Duration::from_millis(200);
/// … nor, where a server holds it, than this …
const HELD_RETRY: Duration = Duration::from_millis(300);
/// … so many times in all, each time later by half.
const CALL_TRIES: u32 = 6;
/// Back-off between calls: a second, doubled up to half a minute; the peer's own calls come through all the while.
pub(super) const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// A peer that is not registered may be just starting; one that stays away calls by itself when it comes back, unless its
/// owner forbids that.
const ABSENT_REST: Duration = Duration::from_millis(300);
const LONGEST_ABSENT_REST: Duration = Duration::from_secs(120);
/// Another hard call of our own goes first: most take a few round trips.
pub(super) const TURN_REST: Duration = Duration::from_millis(200);
/// The called member was in another hard call: those take about as long.
pub(super) const BUSY_REST: Duration = Duration::from_millis(1500);
/// A member that does not want us will not want us in a second either.
const REFUSED_REST: Duration = Duration::from_secs(60);
impl Peer {
    /// What passes the call's own deadlines.
    pub(super) fn call_timeout(&self) -> Option<Instant> {
        match &self.call {
            Call::Idle => None,
            Call::Knocking { until } | Call::Resting { until } => Some(*until),
            Call::Surveying { purpose: Purpose::Answer(incoming), .. } => Some(incoming.came + SURVEY_WAIT),
            // The survey ends by its own deadlines, and whoever waits for it is looked at then.
            Call::Surveying { purpose: Purpose::Place | Purpose::Better, .. } => None,
            Call::Calling(calling) => Some(calling.due),
            Call::Punching(punching) => punching.poll_timeout(),
        }
    }

    /// Whether a change in discovery or at a server may let this peer's call go on.
    pub fn waits_for_others(&self) -> bool {
        match self.call {
            Call::Surveying { .. } => true,
            Call::Punching(ref punching) => punching.hold.is_some(),
            Call::Idle => self.wanted && !self.is_settled(),
            Call::Knocking { .. } | Call::Calling(_) | Call::Resting { .. } => false,
        }
    }

    /// The network changed under us: back-off is for others' sake, and the others are not the same any more.
    pub fn hurry(&mut self, now: Instant, local: &mut Local) {
        if matches!(&self.call, Call::Calling(calling) if calling.held.is_some()) {
            // Nobody is to be called from where we were.
            self.end_call(local, None);
            self.call = Call::Resting { until: now };
        }
        if let Call::Resting { until } = &mut self.call {
            *until = now;
            self.failures = 0;
            self.fruitless = 0;
        }
        if let Some(path) = self.paths.current()
            && self.is_member
        {
            self.challenge(now, local, path.way, Goal::Check);
        }
        self.drive(now, local);
    }

    /// We can be reached at a port that was not there when the call began: it is placed anew.
    pub fn handle_mapped(&mut self, now: Instant, local: &mut Local) {
        let had = |report: &Report| report.candidates.iter().any(|candidate| candidate.kind == CandidateKind::Mapped);
        let without = match &self.call {
            Call::Calling(calling) => !had(&calling.report),
            Call::Punching(punching) => !had(punching.ours()) && self.paths.current().is_none(),
            Call::Idle | Call::Knocking { .. } | Call::Surveying { .. } | Call::Resting { .. } => false,
        };
        if without && self.config.calls.may_call() {
            self.end_call(local, None);
            self.call = Call::Resting { until: now };
        }
        self.hurry(now, local);
    }

    pub fn is_in_hard_call(&self) -> bool {
        match &self.call {
            Call::Punching(punching) => punching.punch.is_hard(),
            Call::Surveying { purpose: Purpose::Place, .. } | Call::Calling(_) => self.claims_hard,
            Call::Idle | Call::Knocking { .. } | Call::Resting { .. } | Call::Surveying { .. } => false,
        }
    }

    pub fn is_punching(&self) -> bool {
        matches!(self.call, Call::Punching(_))
    }

    pub(super) fn drive_call(&mut self, now: Instant, local: &mut Local) {
        match &mut self.call {
            Call::Resting { until } if now >= *until => {
                self.call = Call::Idle;
                self.begin(now, local);
            }
            Call::Idle => self.begin(now, local),
            Call::Knocking { until } if now >= *until => {
                self.call = Call::Idle;
                self.begin_call(now, local);
            }
            Call::Surveying { .. } => self.on_survey(now, local),
            Call::Calling(calling) if now >= calling.due => self.repeat_call(now, local),
            Call::Punching(_) => self.drive_punch(now, local),
            Call::Knocking { .. } | Call::Calling(_) | Call::Resting { .. } => {}
        }
    }

    /// Begins to look for a path, where one is wanted and missing.
    fn begin(&mut self, now: Instant, local: &mut Local) {
        if self.paths.is_suspect() {
            self.on_suspect(now, local);
            return;
        }
        if self.paths.current().is_some() {
            if std::mem::take(&mut self.wants_better) {
                self.look_for_better(now, local);
            }
            return;
        }
        if !self.wanted {
            return;
        }
        if let Some(name) = self.endpoint_name()
            && (self.endpoints.is_empty() || self.failures > 0)
        {
            // It may stand for another address by now.
            let name = name.to_owned();
            local.act(Action::Resolve { name });
        }
        if self.endpoints.is_empty() {
            self.begin_call(now, local);
            return;
        }
        let turn = self.endpoint_turn;
        self.endpoint_turn = turn.wrapping_add(1);
        let remote = self.endpoints[turn % self.endpoints.len()];
        self.call_began.get_or_insert(now);
        local.step(&self.config.name, format!("shaking hands at the configured endpoint {remote}"));
        self.initiate(now, local, Way { socket: SocketId::main_for(&remote), remote });
        let can_call = self.config.calls.may_call() && local.passer(self.id).is_some();
        // Longer each time: a satellite's round trip is longer than the first wait.
        let wait = if can_call { ENDPOINT_FIRST * 2u32.pow(self.failures.min(4)) } else { REKEY_TIMEOUT };
        let wait = wait.min(REKEY_TIMEOUT);
        self.call = Call::Knocking { until: now + wait };
    }

    /// Surveys, where that is due, and then places a call.
    pub(super) fn begin_call(&mut self, now: Instant, local: &mut Local) {
        let has_endpoint = !self.endpoints.is_empty();
        self.claims_hard = false;
        let passer = local.passer(self.id);
        if !self.config.calls.may_call() || (local.servers.is_empty() && passer.is_none()) {
            if let Some(name) = self.endpoint_name().filter(|_| !has_endpoint) {
                let why = format!("the endpoint's name {name} could not be resolved; it is tried again");
                self.fail(now, local, why, FIRST_REST);
            } else if has_endpoint {
                let remote = self.endpoints[0];
                let why = format!(
                    "nothing answers at the configured endpoint {remote}: check the address, the port, and the keys on both sides"
                );
                self.fail(now, local, why, FIRST_REST);
            } else {
                let why = match (self.config.calls, local.servers.is_empty()) {
                    (_, true) => "no endpoint and no rendezvous server are configured: waits for the peer's handshake",
                    (Calls::None, false) => "`calls = \"none\"` and no endpoint: neither side may call the other",
                    (Calls::In | Calls::Both | Calls::Out, false) => "waits for the peer to call, as `calls` says",
                };
                self.why.get_or_insert_with(|| why.to_owned());
            }
            return;
        }
        if passer.is_none() {
            self.why = Some("no rendezvous server answers, so there is nobody to pass a call".to_owned());
            if self.endpoint_name().is_some() || has_endpoint {
                self.rest(now, local, FIRST_REST);
            }
            return;
        }
        if local.discovery.moves() {
            if !local.take_hard_turn(self.id) {
                self.pause(now, local, TURN_REST);
                return;
            }
            self.claims_hard = true;
        }
        self.call_began.get_or_insert(now);
        if self.absent {
            // A new look at the NAT is worth its packets once the peer is there: if this call is answered and comes to nothing,
            // the next try looks.
            self.place_call(now, local, SocketId::MAIN_V4, false);
        } else {
            self.survey(now, local, Purpose::Place);
        }
    }

    pub(super) fn survey(&mut self, now: Instant, local: &mut Local, purpose: Purpose) {
        let moving = local.discovery.moves();
        let age = local.discovery.main_age(now);
        let stale = age.is_some_and(|age| age > if moving { FRESH_IF_MOVING } else { FRESH_IF_FIXED });
        if self.broke && self.budget.is_none() {
            local.discovery.doubt();
        }
        let mut purpose = purpose;
        let mut socket = SocketId::MAIN_V4;
        if let Purpose::Answer(incoming) = &mut purpose
            && moving
            && let Some(hold) = self.begin_hold(now, local, incoming)
        {
            socket = hold;
        } else if local.discovery.is_watched(now) {
            // Where the counter is was seen a moment ago.
        } else if (moving && (stale || self.main_was_used || local.discovery.main_is_stale()))
            // After a try that came to nothing the old tuples may be poisoned at either router: a new socket's are not.
            || self.budget.as_ref().is_some_and(|budget| budget.has_shot())
            || (self.broke && local.discovery.may_be_behind_nat())
        {
            let scout = local.ids.next();
            let most = self.budget(local).survey_left();
            let made = local.discovery.scout(now, scout, most);
            if made > 0 {
                self.budget(local).note_survey(made);
                socket = scout;
            }
        } else if stale && local.discovery.is_ready(now, SocketId::MAIN_V4) {
            local.discovery.again(now);
        }
        local.collect_discovery();
        self.call = Call::Surveying { socket, purpose };
        self.on_survey(now, local);
    }

    fn on_survey(&mut self, now: Instant, local: &mut Local) {
        let Call::Surveying { socket, purpose } = &self.call else { return };
        let socket = *socket;
        let waited = match purpose {
            Purpose::Place | Purpose::Better => false,
            Purpose::Answer(incoming) => now.since(incoming.came) >= SURVEY_WAIT,
        };
        if !waited && !local.discovery.is_ready(now, socket) {
            return;
        }
        if matches!(purpose, Purpose::Place) && self.is_settled() {
            // The path that was suspect answered meanwhile.
            self.end_call(local, None);
            return;
        }
        match std::mem::replace(&mut self.call, Call::Idle) {
            Call::Surveying { purpose: Purpose::Place, .. } => self.place_call(now, local, socket, false),
            Call::Surveying { purpose: Purpose::Better, .. } => self.place_call(now, local, socket, true),
            Call::Surveying { purpose: Purpose::Answer(mut incoming), .. } => {
                match self.go_on_holding(now, local, socket, &mut incoming) {
                    Onward::Wait(_) if waited => {
                        // The caller waits no longer for what a hold would tell.
                        if let Some(holding) = incoming.holding.take() {
                            self.end_hold(local, holding);
                        }
                        self.answer(now, local, SocketId::MAIN_V4, *incoming);
                    }
                    Onward::Wait(socket) => {
                        local.collect_discovery();
                        self.call = Call::Surveying { socket, purpose: Purpose::Answer(incoming) };
                    }
                    Onward::Answer(socket) => self.answer(now, local, socket, *incoming),
                }
            }
            other => self.call = other,
        }
    }

    /// Sends the second tuple and the differential to the peer (patent \[0062\]).
    fn place_call(&mut self, now: Instant, local: &mut Local, socket: SocketId, beside: bool) {
        let Some(passer) = local.passer(self.id) else {
            self.end_sockets(local, socket, None);
            self.rest(now, local, FIRST_REST);
            return;
        };
        let (mut report, fresh) = local.report(now, socket, passer);
        report.budget = self.budget(local).left();
        report.waiting = self.tunnel.has_queued() || !self.waiting_pings.is_empty();
        let moves = !beside && matches!(plan::port(&report), plan::Port::Moving(_));
        let watches = if moves { self.watch(now, local) } else { Vec::new() };
        let index = local.new_index(self.id);
        let wall = local.wall(now);
        let (initiation, keys) = self.tunnel.start_handshake(now, wall, index, &mut local.rng);
        let id = local.rng.next_u64();
        let call = message_control::Call { id, report: report.clone(), beside };
        let sealed = keys.call.seal(&call.encode());
        let passed = [[CALL].as_slice(), &initiation, &sealed].concat();
        local.step(&self.config.name, format!("calling, from {}", words::tuple(&report)));
        let due = now + retry_after(&report);
        let abort = keys.abort;
        let calling = Calling {
            id,
            passed,
            report,
            socket,
            fresh,
            abort,
            index,
            due,
            tries: 0,
            passers: Passers::default(),
            wait: Wait::Never,
            held: None,
            crossed: false,
            watches,
            beside,
        };
        self.call = Call::Calling(Box::new(calling));
        if !self.failed {
            self.why = None;
        }
        self.pass_call(now, local);
    }

    fn pass_call(&mut self, now: Instant, local: &mut Local) {
        let Call::Calling(calling) = &mut self.call else { return };
        calling.tries += 1;
        let mut has_server = false;
        // Beside a path, the peer is heard of there first.
        calling.wait = if self.was_held || self.paths.current().is_some() {
            Wait::Never
        } else if local.discovery.moves() {
            Wait::Briefly
        } else {
            Wait::Long
        };
        for server in &mut local.servers {
            has_server |= server.forward(now, self.config.public_key, calling.wait, calling.passed.clone());
        }
        // Servers come first, for they are nobody's office. A server that is gone is noticed much later than a lost answer.
        if !has_server || calling.tries > 1 {
            self.ask_introducers(local);
        }
    }

    fn repeat_call(&mut self, now: Instant, local: &mut Local) {
        let Call::Calling(calling) = &mut self.call else { return };
        if calling.held.is_some_and(|since| now.since(since) >= calling.wait.time()) {
            self.was_held = true;
            if calling.wait == Wait::Briefly && !calling.crossed {
                self.on_absent(now, local);
            } else {
                // A new call takes the place of the held one, so that the peer is not called by one that nobody waits for any more.
                self.end_call(local, None);
                self.begin_call(now, local);
            }
        } else if calling.tries < CALL_TRIES {
            if calling.wait == Wait::Briefly {
                // This one starts to wait anew, if it must.
                calling.held = None;
            }
            calling.due = now + retry_after(&calling.report) * 3u32.pow(calling.tries) / 2u32.pow(calling.tries);
            self.pass_call(now, local);
        } else {
            let why = words::unanswered(local, &calling.passers);
            self.fail(now, local, why, FIRST_REST);
        }
    }

    /// A server, or another member, does not know the peer; `held`: it keeps the call for a moment.
    pub fn handle_absent(&mut self, now: Instant, local: &mut Local, via: Via, held: bool) {
        let Call::Calling(calling) = &mut self.call else { return };
        if held {
            calling.held.get_or_insert(now);
            // A member that starts may first knock at an endpoint; what is held reaches it anyhow. What is held briefly is never
            // repeated, so its answer has the time that it takes: a survey that loses a packet, and the way back.
            let answered = match calling.wait {
                Wait::Briefly => calling.wait.time() + retry_after(&calling.report) * 2,
                Wait::Never | Wait::Long => HELD_RETRY,
            };
            calling.due = calling.due.max(now + answered);
        }
        if !held && matches!(via, Via::Server(_)) && calling.held.take().is_some() {
            // It waited in vain.
            self.was_held = true;
        }
        let servers = local.servers.iter().filter(|server| server.is_connected()).count();
        match calling.passers.note_absent(via, servers, &local.introducers, self.id) {
            // If nobody knows it, the call's own time runs out.
            Next::Wait => return,
            Next::Ask => return self.ask_introducers(local),
            Next::GiveUp => {}
        }
        if calling.held.is_some() && self.paths.current().is_none() {
            // It may be starting, and then has the call before it places one: ours is repeated as one that is not answered.
            self.why = Some(words::absent(local, &calling.passers));
            return;
        }
        self.on_absent(now, local);
    }

    /// Nobody knows the peer who could pass our call.
    fn on_absent(&mut self, now: Instant, local: &mut Local) {
        if self.paths.current().is_some() {
            // It may be about to tell the server where it is now.
            self.pause(now, local, ABSENT_REST);
            return;
        }
        let Call::Calling(calling) = &self.call else { return };
        let why = words::absent(local, &calling.passers);
        self.absent = true;
        if self.failures < 2 {
            // Two members that start at the same time are not news; the other one's call is on its way.
            self.why = Some(why);
            self.rest(now, local, ABSENT_REST);
        } else {
            self.fail(now, local, why, ABSENT_REST);
        }
        self.drive(now, local);
    }

    /// A call of the peer's came while ours is on its way, which goes first. So the peer is there; that it has ours is not sure,
    /// where a server held it, or said that the peer was absent.
    pub(super) fn note_crossed(&mut self, now: Instant, theirs: &Report) {
        let Call::Calling(calling) = &mut self.call else { return };
        if !std::mem::replace(&mut calling.crossed, true) {
            // Twice what the answer takes now.
            let answered = now + calling.report.server_delay + theirs.server_delay + COMPUTING;
            calling.due = calling.due.min(answered);
        }
    }

    pub(super) fn handle_answer(&mut self, now: Instant, local: &mut Local, via: Via, rest: &[u8]) -> Result<(), Drop> {
        let (response, sealed) = rest.split_at_checked(RESPONSE_LEN).ok_or(Drop::Malformed)?;
        let Call::Calling(calling) = &self.call else { return Err(Drop::Unknown) };
        let (id, index) = (calling.id, calling.index);
        let key = self.tunnel.handle_response(now, index, response)?;
        let answer = key.open(sealed).ok_or(Drop::Unauthentic)?;
        let answer = Answer::parse(&answer).filter(|answer| answer.id == id).ok_or(Drop::Malformed)?;
        let Call::Calling(calling) = std::mem::replace(&mut self.call, Call::Idle) else { return Err(Drop::Unknown) };
        let Calling { report, socket, fresh, watches, beside, .. } = *calling;
        local.step(&self.config.name, format!("answers, from {}", words::tuple(&answer.report)));
        if self.is_settled() && !beside {
            // The path that was suspect answered meanwhile; the peer's shots are answered, and the peer stays where it is, too.
            self.end_sockets(local, socket, fresh);
            self.end_watches(local, &watches);
            self.call_began = None;
            return Ok(());
        }
        let mut terms = answer.terms;
        terms.round = terms.round.clamp(plan::SHORTEST_ROUND, plan::LONGEST_ROUND);
        let again = self.knows_better(local, &report, &answer.report);
        let places = plan::wants_hold(&report, &answer.report, false, Duration::ZERO, again);
        let parties = Parties { id, role: Role::Caller, ours: report, theirs: answer.report, terms, via, beside };
        let sockets = Sockets { reported: socket, fresh, watches };
        if !self.punch(now, local, index, now, parties, sockets) {
            self.pause(now, local, TURN_REST);
            return Ok(());
        }
        self.absent = false;
        if !beside {
            self.hold_towards(now, local, &places);
        }
        self.watch_at_a_gate(now, local);
        self.drive(now, local);
        Ok(())
    }

    pub(super) fn handle_abort(&mut self, now: Instant, local: &mut Local, rest: &[u8]) -> Result<(), Drop> {
        let Call::Calling(calling) = &self.call else { return Err(Drop::Unknown) };
        let (index, sealed) = rest.split_at_checked(4).ok_or(Drop::Malformed)?;
        if index != calling.index.to_le_bytes() {
            return Err(Drop::Unknown);
        }
        let abort = calling.abort.open(sealed).ok_or(Drop::Unauthentic)?;
        let abort = Abort::parse(&abort).filter(|abort| abort.id == calling.id).ok_or(Drop::Malformed)?;
        match abort.reason {
            Reason::Unwilling => {
                let why = "the peer refuses calls from us: its owner set `calls` so; ask there for `calls = \"both\"`, or wait for its call";
                self.fail(now, local, why.to_owned(), REFUSED_REST);
            }
            Reason::Busy => {
                self.why = Some("the peer is in another hard call; this one is tried again in a moment".to_owned());
                self.pause(now, local, BUSY_REST);
            }
        }
        Ok(())
    }

    /// Ends whatever call there is, and closes its sockets but the one in use and `keep`.
    pub(super) fn end_call(&mut self, local: &mut Local, keep: Option<SocketId>) {
        match std::mem::replace(&mut self.call, Call::Idle) {
            Call::Punching(mut punching) => {
                self.probes_sent += punching.punch.probes_sent();
                self.sockets_used = punching.punch.sockets_used();
                self.entries_used = punching.punch.budget.entries();
                self.budget = Some(punching.punch.budget.clone());
                if let Some(holding) = punching.hold {
                    self.end_hold(local, holding);
                }
                self.end_watches(local, &punching.watches);
                let keep = keep.or(self.paths.current().map(|path| path.way.socket));
                for socket in punching.punch.close(keep) {
                    self.close_socket(local, socket);
                }
                if let Some(kept) = keep.filter(|socket| *socket >= SocketId::FIRST_EXTRA) {
                    local.discovery.forget_scout(kept);
                    self.kept_socket = Some(kept);
                }
            }
            Call::Calling(calling) => {
                self.end_sockets(local, calling.socket, calling.fresh);
                self.end_watches(local, &calling.watches);
            }
            Call::Surveying { purpose: Purpose::Answer(incoming), .. } if let Some(holding) = incoming.holding => {
                // The socket of the survey is the hold's.
                self.end_hold(local, holding);
            }
            Call::Surveying { socket, .. } => self.end_sockets(local, socket, None),
            Call::Idle | Call::Knocking { .. } | Call::Resting { .. } => {}
        }
    }

    pub(super) fn end_sockets(&mut self, local: &mut Local, reported: SocketId, fresh: Option<SocketId>) {
        for socket in [Some(reported), fresh].into_iter().flatten() {
            self.close_socket(local, socket);
        }
    }

    pub(super) fn fail(&mut self, now: Instant, local: &mut Local, why: String, first_rest: Duration) {
        if self.paths.current().is_some() {
            // A call that came to nothing beside a path that works is no news.
            self.pause(now, local, TURN_REST);
            return;
        }
        // The same news is no news: a peer that is off for a night is told of once.
        if !self.failed || self.why.as_ref() != Some(&why) {
            local.tell(Event::CallFailed { peer: self.config.name.clone(), why: why.clone() });
        }
        self.why = Some(why);
        self.failed = true;
        self.rest(now, local, first_rest);
    }

    /// Waits before the next try, longer each time.
    pub(super) fn rest(&mut self, now: Instant, local: &mut Local, first: Duration) {
        self.end_call(local, None);
        let longest = if self.absent { LONGEST_ABSENT_REST } else { LONGEST_REST };
        let wait = (first * 2u32.pow(self.failures.min(10))).min(longest.max(first));
        self.failures = self.failures.saturating_add(1);
        // A quarter of jitter, so that two sides that fail together do not go on to meet in the same way.
        let jitter = wait.mul_f64(f64::from(local.rng.next_u32() % 256) / 1024.0);
        self.end_budget(now, local);
        self.call = Call::Resting { until: now + wait + jitter };
    }

    /// Waits for its turn, which is nobody's failure.
    pub(super) fn pause(&mut self, now: Instant, local: &mut Local, wait: Duration) {
        self.end_call(local, None);
        let jitter = wait.mul_f64(f64::from(local.rng.next_u32() % 256) / 256.0);
        self.call = Call::Resting { until: now + wait + jitter };
    }
}

pub(super) fn retry_after(report: &Report) -> Duration {
    (report.server_delay * 3).max(SOONEST_RETRY)
}
