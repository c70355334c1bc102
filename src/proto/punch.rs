//! A punch carries out the plan of one call: opens sockets, fires volleys, and counts.
//!
//! ```text
//! called   answer sent ─ low-TTL volley ─────────── start ─ volley ─ volley ── volley ──── volley ─┐
//! caller                      answer received ───── start ─ volley ─ volley ── volley ──── volley ─┴─ next round …
//! ```
//!
//! The called member starts when the answer has most likely reached the caller: half of both round trips to the server. Its
//! first volley, with a time to live that ends between the two sites, opens its own NAT without touching the other's: a
//! packet that comes too early can poison a Linux router's port for 30 s. Every later volley of a round has the same tuples,
//! which allocates nothing new at any NAT. A row's sockets are new in each round.
//!
//! Candidates that need no guessing (a host's own addresses, a mapped port) are probed beside all that.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::config;
use super::message_control::{CallId, Candidate, CandidateKind};
use super::plan::{self, Outlook, Round, Side, Sockets, Target};
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
    pub load: Load,
}

/// What a shot carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    Ack {
        token: Token,
        via: Option<CandidateKind>,
    },
    /// Anything, to a server: it uses up a socket's first mapping.
    Blank,
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
    /// When both sides fire their first full volley; the called member's opening one leaves at once.
    pub start: Instant,
    pub rounds: Vec<Round>,
    pub round: Duration,
    pub outlook: Outlook,
    /// The socket that our report named, and the unused one.
    pub reported: SocketId,
    pub fresh: Option<SocketId>,
    pub candidates: Vec<Candidate>,
    pub limits: config::Punch,
    /// A server, to use up first mappings at.
    pub server: Option<SocketAddr>,
}

/// A shot that was fired, to be recognised by its token.
#[derive(Clone, Copy, Debug)]
struct Fired {
    token: Token,
    socket: SocketId,
    to: SocketAddr,
    at: Instant,
}

/// One call's punch.
pub struct Punch {
    setup: Setup,
    opened: Instant,
    /// Which round's volleys are being fired, and how many of them were.
    round: usize,
    volley: usize,
    shots: Vec<(SocketId, SocketAddr)>,
    /// How many of a scatter's shots were fired.
    scattered: usize,
    row: Vec<SocketId>,
    candidate_volley: usize,
    fired: Vec<Fired>,
    /// Mappings that its shots made at our NAT and nobody asked about yet.
    mappings: usize,
    sockets_opened: u32,
    stopped: bool,
}

/// When candidates are probed, after the start: at once, and again against loss.
const CANDIDATE_AT: [u64; 6] = [0, 100, 300, 700, 1500, 3100];
/// The most candidates probed: the best ones; each costs six probes.
const MAX_CANDIDATES: usize = 8;
/// The opening volleys' time to live, by round: enough to pass one's own NAT, or two, and to end before the other's. How far
/// away that is, nobody tells; so each round tries another.
const LOW_TTLS: [u8; 4] = [2, 3, 4, 3];
/// A scatter's pace: 8 probes each 10 ms, 800 a second, less than a voice call's two directions; 2,048 take 2.6 s.
const SCATTER_SHOTS: usize = 8;
const SCATTER_EVERY: Duration = Duration::from_millis(10);
/// A scatter's row repeats its volley this often, for ports that were not shot at yet when it did last.
const SCATTER_ROUND: Duration = Duration::from_secs(8);

impl Punch {
    pub fn new(now: Instant, setup: Setup) -> Self {
        Self {
            setup,
            opened: now,
            round: 0,
            volley: 0,
            shots: Vec::new(),
            scattered: 0,
            row: Vec::new(),
            candidate_volley: 0,
            fired: Vec::new(),
            mappings: 0,
            sockets_opened: 0,
            stopped: false,
        }
    }

    pub fn id(&self) -> CallId {
        self.setup.id
    }

    pub fn role(&self) -> Role {
        self.setup.role
    }

    pub fn outlook(&self) -> Outlook {
        self.setup.outlook
    }

    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether it opens rows or shoots at windows: what a member does for one peer at a time.
    pub fn is_hard(&self) -> bool {
        !self.stopped && self.setup.rounds.get(self.round).is_some_and(is_hard)
    }

    pub fn probes_sent(&self) -> u64 {
        self.fired.len() as u64
    }

    /// How many mappings its shots made since it was asked last.
    pub fn take_mappings(&mut self) -> usize {
        std::mem::take(&mut self.mappings)
    }

    /// What it used up of the call's probes.
    pub fn probes_used(&self) -> u32 {
        u32::try_from(self.fired.len()).unwrap_or(u32::MAX)
    }

    /// From how many sockets it sent.
    pub fn sockets_used(&self) -> u32 {
        let used: std::collections::BTreeSet<_> = self.fired.iter().map(|fired| fired.socket).collect();
        u32::try_from(used.len()).unwrap_or(u32::MAX)
    }

    pub fn has_expired(&self, now: Instant) -> bool {
        now >= self.deadline()
    }

    /// When the last round has had its time, or the call has.
    fn deadline(&self) -> Instant {
        let rounds = self.round_start(self.setup.rounds.len()) + self.round_length();
        rounds.min(self.opened + self.setup.limits.timeout)
    }

    /// The shot with that token: from which socket, to where, when.
    pub fn fired(&self, token: Token) -> Option<(SocketId, SocketAddr, Instant)> {
        let fired = self.fired.iter().rev().find(|fired| fired.token == token)?;
        Some((fired.socket, fired.to, fired.at))
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// No more shots: something was heard. Sockets stay open until [`Punch::close`], for the caller may choose any of them.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Closes every socket of the punch's but `keep`.
    pub fn close(&mut self, keep: Option<SocketId>) -> Vec<SocketId> {
        self.stopped = true;
        let own = [Some(self.setup.reported), self.setup.fresh];
        let all = self.row.drain(..).chain(own.into_iter().flatten());
        all.filter(|socket| *socket >= SocketId::FIRST_EXTRA && Some(*socket) != keep).collect()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stopped {
            return Some(self.deadline());
        }
        let candidates = CANDIDATE_AT.get(self.candidate_volley).filter(|_| !self.setup.candidates.is_empty());
        let candidates = candidates.map(|at| self.candidates_start() + Duration::from_millis(*at));
        candidates.into_iter().chain(self.volley_due()).chain([self.deadline()]).min()
    }

    /// Addresses that need no guessing are probed as soon as may be: no NAT on the way there takes harm.
    fn candidates_start(&self) -> Instant {
        match self.setup.role {
            Role::Caller => self.setup.start,
            Role::Called => self.opened,
        }
    }

    fn side(&self, round: usize) -> Option<Side> {
        let round = self.setup.rounds.get(round)?;
        match self.setup.role {
            Role::Caller => round.caller,
            Role::Called => round.called,
        }
    }

    fn round_length(&self) -> Duration {
        let scatters = self.setup.rounds.first().is_some_and(|round| {
            let sides = [round.caller, round.called];
            sides.into_iter().flatten().any(|side| matches!(side.target, Target::Scatter { .. }))
        });
        if scatters { SCATTER_ROUND } else { self.setup.round }
    }

    fn round_start(&self, round: usize) -> Instant {
        self.setup.start + self.round_length() * u32::try_from(round).unwrap_or(u32::MAX)
    }

    /// When the next volley is due, or the next part of a scatter.
    fn volley_due(&self) -> Option<Instant> {
        if self.round >= self.setup.rounds.len() {
            return None;
        }
        let start = self.round_start(self.round);
        let length = self.round_length();
        let side = self.side(self.round);
        if let Some(Side { target: Target::Scatter { shots, .. }, .. }) = side {
            let parts = self.scattered / SCATTER_SHOTS;
            return (self.scattered < shots as usize)
                .then(|| start + SCATTER_EVERY * u32::try_from(parts).unwrap_or(u32::MAX));
        }
        if side.is_none() {
            return Some(start + length);
        }
        let opens_at_once = self.round == 0 && self.setup.role == Role::Called;
        Some(match (self.round, self.volley) {
            (0, 0) if opens_at_once => self.opened,
            (0, volley) => {
                let volley = volley - usize::from(opens_at_once);
                match volley {
                    0 => start,
                    1 => start + length / 8,
                    2 => start + length / 3,
                    3 => start + length * 2 / 3,
                    _ => start + length,
                }
            }
            (_, volley @ 0..=3) => start + length * u32::try_from(volley).unwrap_or(0) / 4,
            _ => start + length,
        })
    }

    /// The time to live of the volley that is due.
    fn ttl(&self) -> Option<u8> {
        let opening = self.volley == 0 && (self.round > 0 || self.setup.role == Role::Called);
        opening.then(|| LOW_TTLS[self.round % LOW_TTLS.len()])
    }

    /// Everything that is due: in order, sockets before their shots.
    pub fn handle_timeout(&mut self, now: Instant, ids: &mut SocketIds, rng: &mut ChaCha20Rng) -> Vec<Step> {
        let mut steps = Vec::new();
        while !self.stopped {
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
        for Candidate { kind, address } in
            self.setup.candidates.iter().take(MAX_CANDIDATES).copied().collect::<Vec<_>>()
        {
            self.shoot(now, SocketId::main_for(&address), address, None, Some(kind), rng, steps);
        }
    }

    fn fire(&mut self, now: Instant, ids: &mut SocketIds, rng: &mut ChaCha20Rng, steps: &mut Vec<Step>) {
        let Some(side) = self.side(self.round) else {
            self.next_round();
            return;
        };
        if self.volley == 0 && self.scattered == 0 {
            self.aim(side, ids, rng, steps);
            self.mappings += self.shots.len();
        }
        if let Target::Scatter { shots, .. } = side.target {
            let part: Vec<_> = self.shots.iter().skip(self.scattered).take(SCATTER_SHOTS).copied().collect();
            self.scattered += SCATTER_SHOTS;
            for (socket, to) in part {
                self.shoot(now, socket, to, None, None, rng, steps);
            }
            if self.scattered >= shots as usize {
                // One scatter uses up what the call may send.
                self.round = self.setup.rounds.len();
            }
            return;
        }
        let volleys = if self.round == 0 && self.setup.role == Role::Called { 5 } else { 4 };
        if self.volley >= volleys {
            self.next_round();
            return;
        }
        let ttl = self.ttl();
        for (socket, to) in self.shots.clone() {
            self.shoot(now, socket, to, ttl, None, rng, steps);
        }
        self.volley += 1;
    }

    fn next_round(&mut self) {
        self.round += 1;
        self.volley = 0;
        self.shots.clear();
    }

    /// Lays out the round's shots, and opens the sockets for them.
    fn aim(&mut self, side: Side, ids: &mut SocketIds, rng: &mut ChaCha20Rng, steps: &mut Vec<Step>) {
        let socket = match side.sockets {
            Sockets::Reported => self.setup.reported,
            Sockets::Fresh => self.setup.fresh.unwrap_or(self.setup.reported),
            Sockets::Row(count) | Sockets::UsedRow(count) => {
                self.shots = self.open_row(count, side, ids, rng, steps);
                return;
            }
        };
        self.shots = match side.target {
            Target::One(to) => vec![(socket, to)],
            Target::Window { center, step, low, high } => plan::offsets(low, high)
                .map(|offset| (socket, plan::moved(center, i64::from(offset) * i64::from(step))))
                .collect(),
            Target::Series { first, step, count } => {
                (0..i64::from(count)).map(|k| (socket, plan::moved(first, k * i64::from(step)))).collect()
            }
            Target::Scatter { ip, shots } => {
                let mut ports: Vec<u16> = (1024..=u16::MAX).collect();
                // The first `shots` places of a Fisher-Yates shuffle: no port is drawn twice.
                let shots = (shots as usize).min(ports.len());
                for i in 0..shots {
                    let left = ports.len() - i;
                    ports.swap(i, i + (rng.next_u64() % left as u64) as usize);
                }
                ports[..shots].iter().map(|port| (socket, SocketAddr::new(ip, *port))).collect()
            }
        };
    }

    fn open_row(
        &mut self,
        count: u32,
        side: Side,
        ids: &mut SocketIds,
        rng: &mut ChaCha20Rng,
        steps: &mut Vec<Step>,
    ) -> Vec<(SocketId, SocketAddr)> {
        let Target::One(to) = side.target else { return Vec::new() };
        // The row before has had its time; its sockets make room.
        steps.extend(self.row.drain(..).map(Step::Close));
        let left = self.setup.limits.sockets.saturating_sub(self.sockets_opened);
        for _ in 0..count.min(left) {
            let socket = ids.next();
            let port = super::discovery::client::SCOUT_PORTS.start
                + (rng.next_u32() % super::discovery::client::SCOUT_PORTS.len() as u32) as u16;
            steps.push(Step::Open { socket, port });
            self.row.push(socket);
            self.sockets_opened += 1;
            if let (Sockets::UsedRow(_), Some(server)) = (side.sockets, self.setup.server) {
                steps.push(Step::Shoot(Shot { socket, to: server, ttl: None, load: Load::Blank }));
            }
        }
        self.row.iter().map(|socket| (*socket, to)).collect()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one shot has so many properties; a struct for one caller says no more"
    )]
    fn shoot(
        &mut self,
        now: Instant,
        socket: SocketId,
        to: SocketAddr,
        ttl: Option<u8>,
        via: Option<CandidateKind>,
        rng: &mut ChaCha20Rng,
        steps: &mut Vec<Step>,
    ) {
        if self.fired.len() >= self.setup.limits.probes as usize {
            return;
        }
        let token = rng.next_u64();
        self.fired.push(Fired { token, socket, to, at: now });
        steps.push(Step::Shoot(Shot { socket, to, ttl, load: Load::Ack { token, via } }));
    }
}

/// Whether a round does what a network notices.
pub fn is_hard(round: &Round) -> bool {
    [round.caller, round.called].into_iter().flatten().any(|side| {
        matches!(side.sockets, Sockets::Row(_) | Sockets::UsedRow(_))
            || matches!(side.target, Target::Window { .. } | Target::Series { .. } | Target::Scatter { .. })
    })
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
