//! A punch carries out the plan of one call: opens sockets, fires volleys, and keeps to the budget.
//!
//! ```text
//! called   answer sent ─ low-TTL volley ─────────── start ─ volley ─ volley ── volley ──── volley ─┐
//! caller                      answer received ───── start ─ volley ─ volley ── volley ──── volley ─┴─ next round …
//! ```
//!
//! Whoever spoke last starts when that has most likely been heard: half of both round trips to the server later. Its
//! first volley, with a time to live that ends between the two sites, opens its own NAT without touching the other's: a
//! packet that comes too early can poison a Linux router's port for 30 s. Every later volley of a round has the same tuples,
//! which allocates nothing new at any NAT. An update of the caller's replaces the plan; what was spent stays spent. Where the peer
//! is heard, and that says something, nothing is fired until it has had the time to say that it hears us ([`Fire`]).
//!
//! Candidates that need no guessing (a host's own addresses, a mapped port) are probed beside all that.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::budget::{Budget, Entries, TICK};
use super::discovery::client::SCOUT_PORTS;
use super::message_control::{CallId, Candidate, CandidateKind, Hold};
use super::nat::{Made, Mapping, gcd};
use super::plan::{self, Line, Outlook, Plan, Side, Sockets, Strategy, Target, Timing};
use super::probe::Token;
use super::{Instant, SocketId};

/// Which end of the call we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Caller,
    Called,
}

/// One probe to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shot {
    pub socket: SocketId,
    pub to: SocketAddr,
    pub ttl: Option<u8>,
    pub token: Token,
    pub via: Option<CandidateKind>,
}

/// What the punch wants done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Open { socket: SocketId, port: u16 },
    Close(SocketId),
    Shoot(Shot),
}

/// What a punch starts from.
pub struct Setup {
    pub id: CallId,
    pub role: Role,
    /// When our first full volley leaves; an opening one leaves at once.
    pub start: Instant,
    pub plan: Plan,
    /// The socket that our report named, and the unused one.
    pub reported: SocketId,
    pub fresh: Option<SocketId>,
    /// Sockets of the try before.
    pub spare: Vec<Spare>,
    pub candidates: Vec<Candidate>,
    /// What our own NAT makes entries for.
    pub mapping: Mapping,
    /// So many hops get a packet out of our own site, and not to the peer's.
    pub low_ttl: u8,
}

/// A socket of an earlier try, which the next may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spare {
    pub socket: SocketId,
    /// Where it has a mapping to.
    pub mapped: Option<IpAddr>,
}

/// A shot that was fired, to be recognised by its token.
#[derive(Clone, Copy, Debug)]
struct Fired {
    token: Token,
    socket: SocketId,
    to: SocketAddr,
    at: Instant,
}

/// Whether it shoots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fire {
    Open,
    /// The peer was heard, and is being asked whether it hears us. A NAT that lets anybody in where its answers leave by another port
    /// has us hear a peer that we don't reach.
    Held {
        until: Instant,
    },
    /// There is a path.
    Ceased,
}

/// One call's punch.
pub struct Punch {
    setup: Setup,
    pub budget: Budget,
    entries: Entries,
    opened: Instant,
    /// When the plan in use was taken up.
    planned: Instant,
    /// Which round's volleys are being fired, and how many of them were.
    round: usize,
    volley: usize,
    aimed: Option<Aimed>,
    row: Vec<SocketId>,
    candidate_volley: usize,
    fired: Vec<Fired>,
    /// How many shots came in there, where not all are answered.
    came: BTreeMap<(SocketId, SocketAddr), u32>,
    answered: u64,
    /// Mappings that its shots made at our NAT and nobody asked about yet.
    made: Made,
    fire: Fire,
}

/// What a round shoots at, laid out.
enum Aimed {
    Volley(Vec<(SocketId, SocketAddr)>),
    /// Drawn as it goes: grids are too large to be laid out.
    Paced {
        draws: Vec<Draw>,
        at: Line,
        each: u32,
        next: u64,
    },
}

/// One socket's own order of a line's ports: each once, from anywhere, by a stride that shares no factor with their number.
struct Draw {
    socket: SocketId,
    start: u32,
    stride: u32,
}

impl Draw {
    fn new(socket: SocketId, count: u32, rng: &mut ChaCha20Rng) -> Self {
        let count = count.max(1);
        let mut stride = 1 + rng.next_u32() % count;
        while gcd(stride, count) != 1 {
            stride = 1 + rng.next_u32() % count;
        }
        Self { socket, start: rng.next_u32() % count, stride }
    }

    fn port(&self, at: &Line, nth: u32) -> SocketAddr {
        let place = (u64::from(self.start) + u64::from(nth) * u64::from(self.stride)) % u64::from(at.count.max(1));
        SocketAddr::new(at.ip, at.port(u32::try_from(place).unwrap_or(0)))
    }
}

/// Behind an answer, so long that the caller has read it before the shot comes.
const PROMPT: Duration = Duration::from_millis(10);
/// An opening volley takes this long at most to leave and to make its mappings, on a slow machine.
const OPENING_AHEAD: Duration = Duration::from_millis(20);
/// As far as the router.
const INSIDE_TTL: u8 = 1;
/// When candidates are probed, after the start: at once, and again against loss.
const CANDIDATE_AT: [u64; 6] = [0, 100, 300, 700, 1500, 3100];
/// The most candidates probed: the best ones; each costs six probes.
const MAX_CANDIDATES: usize = 8;
/// Ways by which shots are remembered to have come: a grid's row hears 240 ports, a block's cells up to 512, from a socket a try.
const MOST_CAME: usize = 2048;
/// In a grid, so many probes in a row leave one socket: one system call sends them.
const RUN: u64 = 32;

impl Punch {
    pub fn new(now: Instant, setup: Setup, budget: Budget) -> Self {
        Self {
            entries: Entries::new(
                setup.mapping,
                setup.spare.iter().filter_map(|kept| Some((kept.socket, kept.mapped?))),
            ),
            setup,
            budget,
            opened: now,
            planned: now,
            round: 0,
            volley: 0,
            aimed: None,
            row: Vec::new(),
            candidate_volley: 0,
            fired: Vec::new(),
            came: BTreeMap::new(),
            answered: 0,
            made: Made::default(),
            fire: Fire::Open,
        }
    }

    /// Another plan from now on: there is an update.
    /// Gives the socket that was reported before.
    pub fn replan(&mut self, now: Instant, start: Instant, plan: Plan, reported: SocketId) -> SocketId {
        self.setup.plan = plan;
        self.setup.start = start;
        let old = std::mem::replace(&mut self.setup.reported, reported);
        self.planned = now;
        (self.round, self.volley, self.aimed) = (0, 0, None);
        old
    }

    /// The same plan from its first full volley on, at another time.
    pub fn restart(&mut self, start: Instant) {
        self.setup.start = start;
        self.round = 0;
        // An opening volley has opened what it could.
        self.volley = self.volley.min(1);
        self.aimed = None;
    }

    pub fn reported(&self) -> SocketId {
        self.setup.reported
    }

    pub fn id(&self) -> CallId {
        self.setup.id
    }

    pub fn role(&self) -> Role {
        self.setup.role
    }

    pub fn outlook(&self) -> Outlook {
        self.setup.plan.outlook
    }

    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// What is being tried now.
    pub fn strategy(&self) -> Option<Strategy> {
        self.setup
            .plan
            .rounds
            .get(self.round.min(self.setup.plan.rounds.len().saturating_sub(1)))
            .map(|round| round.strategy)
    }

    /// Whether it does what a network notices, which a member does for few peers at a time.
    pub fn is_hard(&self) -> bool {
        !self.is_stopped() && self.setup.plan.rounds.get(self.round).is_some_and(|round| round.strategy.is_hard())
    }

    /// Shots, and answers where they are counted as such.
    pub fn probes_sent(&self) -> u64 {
        self.fired.len() as u64 + self.answered
    }

    /// The mappings that its shots made since it was asked last.
    pub fn take_mappings(&mut self) -> Made {
        std::mem::take(&mut self.made)
    }

    /// A shot that came in is to be answered, there, from that socket: the first, the second, the fourth and so on. All but the first come by
    /// the mapping that the first answer made, if its port is not the one that was shot at; when the peer has shot at that one as
    /// well, they get through. `false`: not this one, or the budget has nothing left for it.
    pub fn take_answer(&mut self, socket: SocketId, to: SocketAddr) -> bool {
        if self.came.len() >= MOST_CAME && !self.came.contains_key(&(socket, to)) {
            return false;
        }
        let came = self.came.entry((socket, to)).or_insert(0);
        *came = came.saturating_add(1);
        let answers = came.is_power_of_two() && self.take_probe(socket, to);
        self.answered += u64::from(answers);
        answers
    }

    /// `false`: there is no budget for it.
    fn take_probe(&mut self, socket: SocketId, to: SocketAddr) -> bool {
        if !self.budget.take_probe(self.entries.is_new(socket, to)) {
            return false;
        }
        self.made += self.entries.note(socket, to);
        true
    }

    /// From how many sockets it sent.
    pub fn sockets_used(&self) -> u32 {
        self.budget.sockets().max(u32::from(!self.fired.is_empty()))
    }

    pub fn has_expired(&self, now: Instant) -> bool {
        now >= self.deadline()
    }

    /// When the last round has had its time, or the call has, and what was heard last.
    fn deadline(&self) -> Instant {
        let rounds = self.round_start(self.setup.plan.rounds.len()) + self.grace();
        let all = rounds.min(self.opened + self.budget.limits().timeout);
        if let Fire::Held { until } = self.fire { all.max(until) } else { all }
    }

    /// The last volley of a round leaves at two thirds; its answer takes about as long as two thirds of the shortest round.
    fn grace(&self) -> Duration {
        let last = self.setup.plan.rounds.last().map(|round| round.length);
        last.unwrap_or_default().min(plan::SHORTEST_ROUND) / 3
    }

    /// The shot with that token: from which socket, to where, when.
    pub fn fired(&self, token: Token) -> Option<(SocketId, SocketAddr, Instant)> {
        let fired = self.fired.iter().rev().find(|fired| fired.token == token)?;
        Some((fired.socket, fired.to, fired.at))
    }

    pub fn is_stopped(&self) -> bool {
        self.fire == Fire::Ceased
    }

    /// No more shots: there is a path. Sockets stay open until [`Punch::close`], for the caller may choose any of them.
    pub fn stop(&mut self) {
        self.fire = Fire::Ceased;
    }

    /// No shots until then: most likely there is a path. The plan's time goes on, so that both sides stay in step.
    pub fn hold_fire(&mut self, until: Instant) {
        if self.fire != Fire::Ceased {
            self.fire = Fire::Held { until };
        }
    }

    /// Whether the peer was heard, and has not said that it hears us.
    pub fn has_only_heard(&self) -> bool {
        matches!(self.fire, Fire::Held { .. })
    }

    /// Whether what is due may be fired.
    pub fn may_fire(&self, now: Instant) -> bool {
        match self.fire {
            Fire::Open => true,
            Fire::Held { until } => now >= until,
            Fire::Ceased => false,
        }
    }

    /// How many sockets of the try before are open still.
    pub fn spare(&self) -> u32 {
        u32::try_from(self.setup.spare.len()).unwrap_or(0)
    }

    /// The sockets of a sweep or a grid that missed, for the next try. Where a NAT gives a socket one port for all of the peer's, they
    /// would bring a sweep nothing new.
    pub fn take_row(&mut self) -> Vec<Spare> {
        let may_be_used_again = match self.strategy() {
            Some(Strategy::Sweep) => self.setup.mapping == Mapping::AddressAndPortDependent,
            Some(Strategy::Grid) => true,
            _ => false,
        };
        if !may_be_used_again {
            return Vec::new();
        }
        let mapped = |socket| Spare { socket, mapped: self.entries.mapped(socket) };
        self.row.drain(..).map(mapped).chain(self.setup.spare.drain(..)).collect()
    }

    /// Closes every socket of the punch's but `keep`.
    pub fn close(&mut self, keep: Option<SocketId>) -> Vec<SocketId> {
        self.stop();
        let own = [Some(self.setup.reported), self.setup.fresh];
        let spare = self.setup.spare.drain(..).map(|kept| kept.socket);
        let all = self.row.drain(..).chain(spare).chain(own.into_iter().flatten());
        all.filter(|socket| *socket >= SocketId::FIRST_EXTRA && Some(*socket) != keep).collect()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let candidates = CANDIDATE_AT.get(self.candidate_volley).filter(|_| !self.setup.candidates.is_empty());
        let candidates = candidates.map(|at| self.candidates_start() + Duration::from_millis(*at));
        let fire = candidates.into_iter().chain(self.volley_due()).min();
        let fire = match self.fire {
            Fire::Open => fire,
            Fire::Held { until } => fire.map(|due| due.max(until)),
            Fire::Ceased => None,
        };
        fire.into_iter().chain([self.deadline()]).min()
    }

    /// Addresses that need no guessing are probed as soon as may be: no NAT on the way there takes harm.
    fn candidates_start(&self) -> Instant {
        self.opened
    }

    fn side(&self) -> Option<&Side> {
        let round = self.setup.plan.rounds.get(self.round)?;
        match self.setup.role {
            Role::Caller => round.caller.as_ref(),
            Role::Called => round.called.as_ref(),
        }
    }

    fn round_start(&self, round: usize) -> Instant {
        let before = self.setup.plan.rounds.iter().take(round).map(|round| round.length);
        self.setup.start + before.sum::<Duration>()
    }

    /// When the round's first packets may leave: with the plan, where they open our own NAT only.
    fn round_opens(&self) -> Instant {
        let start = self.round_start(self.round);
        if self.round > 0 {
            return start;
        }
        // Cells cost hundreds of mappings: none is made before it must be, for the caller may yet find that its router maps a port,
        // and call anew.
        let is_dear = self.setup.plan.rounds.first().is_some_and(|round| round.strategy == Strategy::Cells);
        if is_dear { self.planned.max(start - OPENING_AHEAD) } else { self.planned }
    }

    /// When the volley with that number leaves, and whether it is to reach the peer. `None`: the round has no more.
    fn volley(&self, timing: Timing, length: Duration) -> Option<(Instant, bool)> {
        let start = self.round_start(self.round);
        let full = |nth: usize| {
            let after = [Duration::ZERO, length / 8, length / 3, length * 2 / 3];
            after.get(nth).map(|after| (start + *after, true))
        };
        match (timing, self.volley) {
            (Timing::Opened | Timing::LowFirst | Timing::Low | Timing::LowThen(_), 0) => {
                Some((self.round_opens(), false))
            }
            (Timing::Prompt, 0) => Some((self.round_opens() + PROMPT, true)),
            (Timing::Opened | Timing::Prompt, nth) => full(nth - 1),
            (Timing::Volleys, nth) => full(nth),
            (Timing::LowFirst, nth @ 1..=3) => full(nth),
            (Timing::Twice, nth @ 0..=1) => full(nth * 2),
            (Timing::Low, 1) => full(3),
            (Timing::LowThen(after), 1) => Some((start + after, true)),
            (Timing::Inside, nth @ 0..=1) => full(nth * 2).map(|(at, _)| (at, false)),
            (
                Timing::LowFirst | Timing::Low | Timing::LowThen(_) | Timing::Inside | Timing::Twice | Timing::Paced,
                _,
            ) => None,
        }
    }

    /// When something is to be fired next, or the next round begins.
    fn volley_due(&self) -> Option<Instant> {
        let round = self.setup.plan.rounds.get(self.round)?;
        let next_round = self.round_start(self.round + 1);
        let Some(side) = self.side() else { return Some(next_round) };
        if side.timing == Timing::Paced {
            let done =
                matches!(&self.aimed, Some(Aimed::Paced { draws, each, next, .. }) if *next >= places(draws, *each));
            let tick = self.round_start(self.round) + TICK * u32::try_from(self.volley).unwrap_or(u32::MAX);
            return Some(if done { next_round } else { tick.min(next_round) });
        }
        Some(self.volley(side.timing, round.length).map_or(next_round, |(at, _)| at.min(next_round)))
    }

    /// Everything that is due: in order, sockets before their shots.
    pub fn handle_timeout(&mut self, now: Instant, ids: &mut SocketIds, rng: &mut ChaCha20Rng) -> Vec<Step> {
        let mut steps = Vec::new();
        while self.may_fire(now) {
            if self.candidates_due(now) {
                self.shoot_at_candidates(now, rng, &mut steps);
            } else if self.volley_due().is_some_and(|due| now >= due) {
                self.fire(now, ids, rng, &mut steps);
            } else {
                break;
            }
        }
        steps
    }

    fn candidates_due(&self, now: Instant) -> bool {
        let at = CANDIDATE_AT.get(self.candidate_volley).filter(|_| !self.setup.candidates.is_empty());
        at.is_some_and(|at| now >= self.candidates_start() + Duration::from_millis(*at))
    }

    fn shoot_at_candidates(&mut self, now: Instant, rng: &mut ChaCha20Rng, steps: &mut Vec<Step>) {
        self.candidate_volley += 1;
        let candidates: Vec<_> = self.setup.candidates.iter().take(MAX_CANDIDATES).copied().collect();
        for Candidate { kind, address } in candidates {
            self.shoot(now, (SocketId::main_for(&address), address), None, Some(kind), rng, steps);
        }
    }

    fn fire(&mut self, now: Instant, ids: &mut SocketIds, rng: &mut ChaCha20Rng, steps: &mut Vec<Step>) {
        let length = self.setup.plan.rounds.get(self.round).map_or(Duration::ZERO, |round| round.length);
        if now >= self.round_start(self.round + 1) {
            self.next_round();
            return;
        }
        let Some(side) = self.side().cloned() else {
            self.next_round();
            return;
        };
        if self.aimed.is_none() {
            self.aimed = Some(self.aim(&side, ids, rng, steps));
        }
        match self.aimed.take() {
            Some(Aimed::Volley(shots)) => {
                let full = self.volley(side.timing, length).is_none_or(|(_, full)| full);
                let low = if side.timing == Timing::Inside { INSIDE_TTL } else { self.setup.low_ttl };
                let ttl = (!full).then_some(low);
                for shot in &shots {
                    self.shoot(now, *shot, ttl, None, rng, steps);
                }
                self.aimed = Some(Aimed::Volley(shots));
            }
            Some(Aimed::Paced { draws, at, each, mut next }) => {
                for _ in 0..self.budget.paced(now) {
                    let Some((draw, nth)) = place(&draws, each, &mut next) else { break };
                    self.shoot(now, (draw.socket, draw.port(&at, nth)), None, None, rng, steps);
                }
                self.aimed = Some(Aimed::Paced { draws, at, each, next });
            }
            None => {}
        }
        self.volley += 1;
    }

    /// The peer's holds that a sweep is due over; our own counter says which is still ahead.
    pub fn wants_aim(&mut self, now: Instant) -> Option<&[Hold]> {
        while self.round < self.setup.plan.rounds.len() && now >= self.round_start(self.round + 1) {
            self.next_round();
        }
        let due = self.may_fire(now) && self.aimed.is_none() && self.volley_due().is_some_and(|due| now >= due);
        match self.side().filter(|_| due).map(|side| &side.target) {
            Some(Target::Sweep { holds, .. }) if now < self.round_start(self.round + 1) => Some(holds),
            _ => None,
        }
    }

    /// The one to sweep over, and from how many sockets. `None`: they all lie behind; the next try, which has learned from that, is due at
    /// once.
    pub fn aim_sweep(&mut self, aim: Option<(Hold, u32)>) {
        let at = self.round;
        let role = self.setup.role;
        let Some(round) = self.setup.plan.rounds.get_mut(at) else { return };
        let side = match role {
            Role::Caller => &mut round.caller,
            Role::Called => &mut round.called,
        };
        match (aim, side) {
            (Some((hold, count)), Some(side)) => {
                if let Target::Sweep { ip, .. } = side.target {
                    side.sockets = Sockets::Row(count);
                    side.target = Target::one(SocketAddr::new(ip, hold.first));
                }
            }
            _ => self.setup.plan.rounds.clear(),
        }
    }

    fn next_round(&mut self) {
        self.round += 1;
        self.volley = 0;
        self.aimed = None;
    }

    /// Lays out the round's shots, and opens the sockets for them.
    fn aim(&mut self, side: &Side, ids: &mut SocketIds, rng: &mut ChaCha20Rng, steps: &mut Vec<Step>) -> Aimed {
        let sockets = match side.sockets {
            Sockets::Main => vec![SocketId::MAIN_V4],
            Sockets::Reported => vec![self.setup.reported],
            Sockets::Fresh => vec![self.setup.fresh.unwrap_or(self.setup.reported)],
            Sockets::New => self.open_row(1, ids, rng, steps),
            Sockets::Row(count) => self.open_row(count, ids, rng, steps),
        };
        match &side.target {
            Target::Ports { ip, ports } => {
                let at = |socket: SocketId| ports.iter().map(move |port| (socket, SocketAddr::new(*ip, *port)));
                Aimed::Volley(sockets.into_iter().flat_map(at).collect())
            }
            Target::Draw { at, each } => {
                let draws: Vec<Draw> = sockets.into_iter().map(|socket| Draw::new(socket, at.count, rng)).collect();
                let each = (*each).min(at.count);
                if side.timing == Timing::Paced {
                    return Aimed::Paced { draws, at: *at, each, next: 0 };
                }
                let of = |draw: &Draw| (0..each).map(|nth| (draw.socket, draw.port(at, nth))).collect::<Vec<_>>();
                Aimed::Volley(draws.iter().flat_map(of).collect())
            }
            // Its owner aims it before it comes here.
            Target::Sweep { .. } => Aimed::Volley(Vec::new()),
        }
    }

    fn open_row(
        &mut self,
        count: u32,
        ids: &mut SocketIds,
        rng: &mut ChaCha20Rng,
        steps: &mut Vec<Step>,
    ) -> Vec<SocketId> {
        // The row before has had its time; its sockets make room.
        steps.extend(self.row.drain(..).map(Step::Close));
        for _ in 0..count {
            if let Some(kept) = self.setup.spare.pop() {
                self.row.push(kept.socket);
                continue;
            }
            if !self.budget.take_socket() {
                break;
            }
            let socket = ids.next();
            let port = SCOUT_PORTS.start + (rng.next_u32() % SCOUT_PORTS.len() as u32) as u16;
            steps.push(Step::Open { socket, port });
            self.row.push(socket);
        }
        self.row.clone()
    }

    fn shoot(
        &mut self,
        now: Instant,
        (socket, to): (SocketId, SocketAddr),
        ttl: Option<u8>,
        via: Option<CandidateKind>,
        rng: &mut ChaCha20Rng,
        steps: &mut Vec<Step>,
    ) {
        // What ends at our router makes no entry there.
        let leaves = ttl != Some(INSIDE_TTL);
        let may = if leaves { self.take_probe(socket, to) } else { self.budget.take_probe(false) };
        if !may {
            return;
        }
        let token = rng.next_u64();
        self.fired.push(Fired { token, socket, to, at: now });
        steps.push(Step::Shoot(Shot { socket, to, ttl, token, via }));
    }
}

/// Places of a grid in all, with those of its last run that there are no ports for.
fn places(draws: &[Draw], each: u32) -> u64 {
    u64::from(each).div_ceil(RUN) * RUN * draws.len() as u64
}

/// The next place of a grid: [`RUN`] ports of one socket, then as many of the next.
fn place<'a>(draws: &'a [Draw], each: u32, next: &mut u64) -> Option<(&'a Draw, u32)> {
    let row = RUN * draws.len() as u64;
    while *next < places(draws, each) {
        let (turn, within) = (*next / row, *next % row);
        let nth = turn * RUN + within % RUN;
        *next += 1;
        if nth < u64::from(each) {
            let draw = draws.get(usize::try_from(within / RUN).ok()?)?;
            return Some((draw, u32::try_from(nth).ok()?));
        }
    }
    None
}

/// Numbers for new sockets.
#[derive(Clone, Copy, Debug)]
pub struct SocketIds(u32);

impl Default for SocketIds {
    fn default() -> Self {
        Self(SocketId::FIRST_EXTRA.0)
    }
}

impl SocketIds {
    #[expect(clippy::should_implement_trait, reason = "it has no end, so it is no iterator")]
    pub fn next(&mut self) -> SocketId {
        let id = SocketId(self.0);
        self.0 = self.0.checked_add(1).unwrap_or(SocketId::FIRST_EXTRA.0);
        id
    }
}

#[cfg(test)]
mod tests;
