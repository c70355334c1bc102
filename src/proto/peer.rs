//! One peer: its tunnel, its paths, and the call that finds them.
//!
//! ```text
//! Idle ─► Surveying ─► Calling ─► Punching ─► (a path) ─► Idle
//!             ▲            │          │
//!             └── Resting ◄┴──────────┘    refused, absent, no path: tried again with back-off
//!
//! a call of the peer's:  Idle … ─► Surveying ─► Punching
//! ```
//!
//! The tunnel is WireGuard's and goes on by itself; a path may come and go below it. `packets` has what goes by both, `calling` the call, `recovering`
//! what follows it when the path breaks, the network changes or a nearer path appears, this file what holds them together.

mod called;
mod calling;
mod holding;
mod introducing;
mod lanes;
mod packets;
mod probing;
mod punching;
pub mod recovering;
mod sounding;
mod words;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::rand_core::RngCore;

use super::action::Event;
use super::allowance::Allowance;
use super::budget::Budget;
use super::config::{self, Connect};
use super::context::{Local, PeerId};
use super::introduction::{Passers, Standing, Via};
use super::lane::Traffic;
use super::message_control::{CallId, Hold, Report};
use super::mtu::Mtu;
use super::noise::Received;
use super::noise::export::Open;
use super::path::{Due, Goal, News, Paths, Way};
use super::punch::{Punch, Spare};
use super::rendezvous::Wait;
use super::snapshot::{self, Method};
use super::tunnel::{Limits, Tunnel, TunnelEvent};
use super::{Instant, SocketId};
use holding::Holding;
use lanes::HandedOut;
use punching::{Hope, Parties, Updating};

/// A peer with an endpoint gets so long to answer there before it is called as well.
const ENDPOINT_FIRST: Duration = Duration::from_millis(600);
/// Pings that wait for a path.
const MAX_WAITING_PINGS: usize = 16;

/// One peer.
pub struct Peer {
    pub id: PeerId,
    pub config: config::Peer,
    pub tunnel: Tunnel,
    paths: Paths,
    mtu: Mtu,
    call: Call,
    /// The config's endpoint, resolved.
    endpoints: Vec<SocketAddr>,
    /// Which of them is next, and when the last one was tried.
    endpoint_turn: usize,
    /// Payload or a user waits for a path.
    wanted: bool,
    /// Calls in a row that came to nothing.
    failures: u32,
    /// Those of them whose probes found no path.
    fruitless: u8,
    /// It answered a call or a probe: it speaks the DUDP family, not WireGuard alone.
    is_member: bool,
    /// Where the handshake that we responded to came from, until its session is confirmed.
    handshake_from: Option<Way>,
    /// The new address of a stock WireGuard peer that was last tried, and when.
    followed: Option<(Way, Instant)>,
    /// The call that was answered last, and the answer, for when the answer is lost.
    answered: Option<Answered>,
    /// The session of the last punch, for probes that outlive it.
    punched_index: Option<u32>,
    /// The path in use broke, or may have. What the peer still sends there may poison the old tuples at our router.
    broke: bool,
    /// How long we had sent nothing by it before that.
    silence: Duration,
    /// The peer was not registered when it was called last.
    absent: bool,
    /// A call was held for the peer, in vain: it is not one that was started with us.
    was_held: bool,
    /// This call may become a hard one, by what our own NAT does.
    claims_hard: bool,
    /// The main socket has a mapping towards this peer already, perhaps at a port that nobody knows.
    main_was_used: bool,
    /// Where the peer sees our main socket.
    seen: Option<SocketAddr>,
    /// What it may still have passed, or pass to us.
    introductions: Allowance,
    /// Calls of the peer's.
    calls: Allowance,
    /// As whom [`super::node::Node`] has it in its list of introducers.
    pub listed: Option<Standing>,
    /// Who passed the call that a path is looked for with, where that was no server.
    introduced: Option<String>,
    /// Sockets that outlive their punch: the one that the path in use goes by.
    kept_socket: Option<SocketId>,
    /// Sockets to close, and when: a path that was left went by them.
    lingering: Vec<(SocketId, Instant)>,
    /// There may be a nearer path than the one in use.
    wants_better: bool,
    waiting_pings: Vec<u64>,
    why: Option<String>,
    failed: bool,
    connect_time: Option<Duration>,
    /// Since when this call, with all its tries, goes on, and what it has used up of its budgets.
    call_began: Option<Instant>,
    budget: Option<Budget>,
    /// Sockets of its last sweep or grid, for the next try.
    spare: Vec<Spare>,
    /// When what its calls have used up is made up for: a whole budget in the time that a call has.
    made_up: Instant,
    probes_sent: u64,
    sockets_used: u32,
    entries_used: u32,
    /// What the threads that carry packets have, and what they tell.
    handed_out: HandedOut,
    traffic: Arc<Traffic>,
    /// When [`super::node::Node`] has it in its table of deadlines.
    pub scheduled: Option<Instant>,
}

/// Where the call stands.
enum Call {
    Idle,
    /// A handshake with the config's endpoint is out; after `until`, a call is tried as well.
    Knocking {
        until: Instant,
    },
    /// A survey is under way, before a call is placed or answered.
    Surveying {
        socket: SocketId,
        purpose: Purpose,
    },
    Calling(Box<Calling>),
    Punching(Box<Punching>),
    Resting {
        until: Instant,
    },
}

enum Purpose {
    Place,
    /// As [`Purpose::Place`], beside a path that works, for a nearer one.
    Better,
    Answer(Box<Incoming>),
}

/// A call of the peer's that waits for our own survey.
struct Incoming {
    passed: Vec<u8>,
    received: Received,
    call: super::message_control::Call,
    came: Instant,
    /// How long a server held it before.
    held: Duration,
    via: Via,
    /// Mappings that we made towards the caller for it, and how often that was tried.
    holds: Vec<Hold>,
    holding: Option<Holding>,
    tries: u32,
}

/// A call that was placed.
struct Calling {
    id: CallId,
    passed: Vec<u8>,
    report: Report,
    socket: SocketId,
    fresh: Option<SocketId>,
    abort: Open,
    index: u32,
    due: Instant,
    tries: u32,
    passers: Passers,
    /// How long it may wait at a server for the peer if that is not there …
    wait: Wait,
    /// … and since when it does.
    held: Option<Instant>,
    /// A call of the peer's crossed with it.
    crossed: bool,
    /// The sockets that our counter is watched from.
    watches: Vec<SocketId>,
    /// For a nearer path than the one in use.
    beside: bool,
}

struct Punching {
    punch: Punch,
    /// The session whose keys the probes are sealed with.
    index: u32,
    parties: Parties,
    watches: Vec<SocketId>,
    /// A hold whose answers are not there yet, and how many were tried.
    hold: Option<Holding>,
    hold_tries: u32,
    update: Option<Updating>,
    /// The caller has told its new report.
    updated: bool,
    hope: Option<Hope>,
}

struct Answered {
    passed: Vec<u8>,
    answer: Vec<u8>,
}

impl Peer {
    pub fn new(now: Instant, id: PeerId, config: config::Peer, local: &Local, mtu: u16) -> Self {
        let mut tunnel = Tunnel::new(&local.identity, config.public_key, config.preshared_key.clone(), Limits::PAYLOAD);
        tunnel.set_mtu(mtu);
        tunnel.set_aes(now, local.aes);
        let mut peer = Self {
            id,
            tunnel,
            paths: Paths::default(),
            mtu: Mtu::new(mtu),
            call: Call::Resting { until: now },
            endpoints: Vec::new(),
            endpoint_turn: 0,
            wanted: config.connect == Connect::Always,
            config,
            failures: 0,
            fruitless: 0,
            is_member: false,
            handshake_from: None,
            followed: None,
            answered: None,
            punched_index: None,
            broke: false,
            silence: Duration::ZERO,
            absent: false,
            was_held: false,
            claims_hard: false,
            main_was_used: false,
            seen: None,
            introductions: Allowance::default(),
            calls: Allowance::default(),
            listed: None,
            introduced: None,
            kept_socket: None,
            lingering: Vec::new(),
            wants_better: false,
            waiting_pings: Vec::new(),
            why: None,
            failed: false,
            connect_time: None,
            call_began: None,
            budget: None,
            spare: Vec::new(),
            made_up: now,
            probes_sent: 0,
            sockets_used: 0,
            entries_used: 0,
            handed_out: HandedOut::default(),
            traffic: Arc::default(),
            scheduled: None,
        };
        if let Some(at) = &peer.config.endpoint
            && let config::Host::Ip(ip) = at.host
        {
            peer.endpoints = vec![SocketAddr::new(ip, at.port)];
        }
        peer
    }

    /// Applies a change that keeps the tunnel: everything but the keys.
    pub fn reconfigure(&mut self, now: Instant, config: config::Peer) {
        if config.endpoint != self.config.endpoint {
            self.endpoints = match config.endpoint.as_ref().map(|at| (&at.host, at.port)) {
                Some((config::Host::Ip(ip), port)) => vec![SocketAddr::new(*ip, port)],
                Some((config::Host::Name(_), _)) | None => Vec::new(),
            };
        }
        self.wanted |= config.connect == Connect::Always;
        // Its name may be another.
        self.listed = None;
        self.config = config;
        if let Call::Resting { .. } | Call::Idle = self.call {
            self.call = Call::Resting { until: now };
        }
    }

    /// Takes the peer down: closes what it opened.
    pub fn close(&mut self, local: &mut Local) {
        self.take_back(local);
        self.paths.lose();
        self.end_call(local, None);
        self.close_spare(local);
        if let Some(socket) = self.kept_socket.take() {
            self.close_socket(local, socket);
        }
        for (socket, _) in std::mem::take(&mut self.lingering) {
            local.close_socket(socket);
        }
        for index in self.tunnel.indices().collect::<Vec<_>>() {
            local.indices.remove(&index);
        }
    }

    /// Closes a socket, and forgets whatever would still be sent from it. The main sockets stay open, and the one that the path in use
    /// goes by outlives whatever opened it: a call may end after another way than its own has brought the path up.
    fn close_socket(&mut self, local: &mut Local, socket: SocketId) {
        local.discovery.forget_scout(socket);
        if socket >= SocketId::FIRST_EXTRA && self.way().is_some_and(|way| way.socket == socket) {
            self.kept_socket = Some(socket);
            return;
        }
        self.paths.forget_socket(socket);
        match self.paths.lingers(socket).filter(|_| socket >= SocketId::FIRST_EXTRA) {
            Some(until) => self.lingering.push((socket, until)),
            None => local.close_socket(socket),
        }
    }

    pub fn is_connected(&self, now: Instant) -> bool {
        self.paths.current().is_some() && self.tunnel.is_established(now)
    }

    /// Whether there is a path of which nothing bad is known.
    fn is_settled(&self) -> bool {
        self.paths.current().is_some() && !self.paths.is_suspect()
    }

    pub fn way(&self) -> Option<Way> {
        self.paths.current().map(|path| path.way)
    }

    /// The name that the config gives as the endpoint's host, if it is one.
    pub fn endpoint_name(&self) -> Option<&str> {
        match &self.config.endpoint.as_ref()?.host {
            config::Host::Name(name) => Some(name),
            config::Host::Ip(_) => None,
        }
    }

    pub fn handle_resolved(&mut self, now: Instant, addresses: &[std::net::IpAddr]) {
        let Some(port) = self.config.endpoint.as_ref().map(|at| at.port) else { return };
        // A name that can't be resolved just now takes nothing away.
        if addresses.is_empty() {
            return;
        }
        self.endpoints = addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        if !self.is_connected(now) && matches!(self.call, Call::Idle | Call::Resting { .. }) {
            self.call = Call::Resting { until: now };
        }
    }

    /// Takes a way into use, and sends what waited for one.
    fn adopt(&mut self, now: Instant, local: &mut Local, way: Way, method: Method, proved: bool) {
        let news = self.paths.current().is_none();
        if !news && !self.paths.is_current(way) {
            local.step(&self.config.name, format!("goes on by {}, {}", way.remote, self.found_by(method)));
        }
        self.paths.adopt(now, way, method, proved);
        // No more shots, and above all no new row, whose sockets would take the place of the one that the path goes by.
        if let Call::Punching(punching) = &mut self.call
            && proved
        {
            punching.punch.stop();
        }
        if let Some(old) = self.kept_socket.filter(|old| *old != way.socket) {
            self.close_socket(local, old);
            self.kept_socket = None;
        }
        if let Some(at) = self.lingering.iter().position(|(socket, _)| *socket == way.socket) {
            self.lingering.swap_remove(at);
            self.kept_socket = Some(way.socket);
        }
        self.failures = 0;
        self.fruitless = 0;
        self.failed = false;
        self.absent = false;
        if std::mem::take(&mut self.broke) {
            // The peer was there all the while, so it was a NAT that forgot, perhaps ours.
            local.lifetime.note_forgotten(self.silence);
        }
        self.was_held = false;
        self.wanted = self.config.connect == Connect::Always;
        // A way that is proved after its call is over was described better while it lasted.
        if news || method == Method::Roamed || self.is_punching() {
            self.why = Some(self.found_by(method));
        }
        self.tunnel.set_keepalive(now, Some(local.lifetime.keepalive()));
        match self.call {
            Call::Punching(_) => {
                if way.socket == SocketId::MAIN_V4 {
                    self.main_was_used = true;
                }
            }
            // The peer is there, and found us by other means than the call.
            Call::Calling(ref calling) if calling.held.is_some() => self.end_call(local, None),
            Call::Calling(_) | Call::Surveying { purpose: Purpose::Answer(_), .. } => {}
            Call::Idle | Call::Knocking { .. } | Call::Resting { .. } | Call::Surveying { .. } => {
                self.end_call(local, None);
                // Of a call that rests between two tries.
                self.close_spare(local);
            }
        }
        if news {
            let after = now.since(self.call_began.unwrap_or(now));
            self.connect_time = Some(after);
            local.tell(Event::Connected { peer: self.config.name.clone(), endpoint: way.remote, method, after });
        }
        self.flush(now, local);
        if news && !self.is_member {
            // A member answers this; stock WireGuard drops it, and is sent no other.
            self.challenge(now, local, way, Goal::Greet);
        }
        for token in std::mem::take(&mut self.waiting_pings) {
            self.challenge(now, local, way, Goal::Ping(token));
        }
    }

    pub fn handle_ping(&mut self, now: Instant, local: &mut Local, token: u64) {
        match self.way().filter(|_| self.tunnel.is_established(now)) {
            Some(way) => self.challenge(now, local, way, Goal::Ping(token)),
            None => {
                if self.waiting_pings.len() < MAX_WAITING_PINGS {
                    self.waiting_pings.push(token);
                }
                self.wanted = true;
            }
        }
        self.drive(now, local);
    }

    pub fn handle_timeout(&mut self, now: Instant, local: &mut Local) {
        self.tunnel.handle_timeout(now);
        self.close_lingering(now, local);
        let Due { asks, news } = self.paths.handle_timeout(now, || local.rng.next_u64());
        for ask in asks {
            if self.paths.is_current(ask.way) {
                self.mtu.note_amiss(now);
            }
            self.ask(now, local, ask);
        }
        match news {
            None => {}
            Some(News::Doubted) => local.poke_servers(now),
            Some(News::Suspect) => self.on_suspect(now, local),
            Some(News::Lost(way)) => {
                let worked = self.paths.current().is_some_and(|path| path.proved);
                self.on_path_lost(now, local, words::lost(way, worked));
            }
        }
        self.drive(now, local);
    }

    fn on_path_lost(&mut self, now: Instant, local: &mut Local, why: String) {
        // What never worked did not break.
        self.broke |= self.paths.current().is_some_and(|path| path.proved);
        self.paths.lose();
        if let Some(socket) = self.kept_socket.take() {
            self.close_socket(local, socket);
        }
        self.tunnel.set_keepalive(now, None);
        local.tell(Event::Lost { peer: self.config.name.clone(), why: why.clone() });
        self.why = Some(why);
        self.wanted |= self.config.connect == Connect::Always;
        // A punch that still shoots is the cure; one that stopped had only found what is lost now.
        let ends = match &self.call {
            Call::Idle | Call::Resting { .. } => true,
            Call::Punching(punching) => punching.punch.is_stopped(),
            Call::Knocking { .. } | Call::Surveying { .. } | Call::Calling(_) => false,
        };
        if ends {
            self.end_call(local, None);
            // What comes is another call, with its own time and its own budget.
            self.end_budget(now, local);
            self.call = Call::Resting { until: now };
        }
    }

    /// Does what is to be done now: what the tunnel asked for, and what the call is due for.
    fn drive(&mut self, now: Instant, local: &mut Local) {
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                TunnelEvent::WantHandshake { retry } => self.on_want_handshake(now, local, retry),
                TunnelEvent::WantKeepalive => self.send_keepalive(now, local),
                TunnelEvent::HandshakeExpired => self.on_handshake_expired(now, local),
                TunnelEvent::Established { .. } => self.flush(now, local),
                TunnelEvent::Retired(index) => {
                    local.indices.remove(&index);
                }
            }
        }
        self.drive_call(now, local);
        self.drive_soundings(now, local);
    }

    fn on_want_handshake(&mut self, now: Instant, local: &mut Local, retry: bool) {
        match (&self.call, self.paths.current()) {
            // A call carries its own handshake.
            (Call::Calling(_) | Call::Punching(_) | Call::Surveying { .. }, _) => {}
            (_, Some(path)) => {
                if retry && self.is_member {
                    self.challenge(now, local, path.way, Goal::Check);
                }
                self.initiate(now, local, path.way);
            }
            (_, None) => self.wanted = true,
        }
    }

    fn on_handshake_expired(&mut self, now: Instant, local: &mut Local) {
        if let Some(path) = self.paths.current() {
            let why = format!("{} did not answer a handshake for 90 s", path.way.remote);
            self.on_path_lost(now, local, why);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers =
            [self.tunnel.poll_timeout(), self.paths.poll_timeout(), self.mtu.poll_timeout(), self.call_timeout()];
        timers.into_iter().chain(self.lingering.iter().map(|(_, until)| Some(*until))).flatten().min()
    }

    pub fn snapshot(&self, now: Instant, local: &Local) -> snapshot::Peer {
        let path = self.paths.current();
        let (tx_bytes, rx_bytes) = self.tunnel.traffic();
        let connected = self.is_connected(now);
        let state = match &self.call {
            _ if connected => snapshot::State::Connected,
            Call::Punching(_) => snapshot::State::Punching,
            Call::Calling(_) | Call::Surveying { .. } | Call::Knocking { .. } => snapshot::State::Calling,
            Call::Idle | Call::Resting { .. } if self.failed => snapshot::State::Failed,
            Call::Resting { .. } if self.wanted => snapshot::State::Calling,
            Call::Idle | Call::Resting { .. } => snapshot::State::Idle,
        };
        let (probes, sockets, entries) = match &self.call {
            Call::Punching(punching) => {
                let punch = &punching.punch;
                (punch.probes_sent(), punch.sockets_used(), punch.budget.entries())
            }
            _ => (0, 0, self.entries_used),
        };
        snapshot::Peer {
            name: self.config.name.clone(),
            public_key: self.config.public_key.to_string(),
            state,
            endpoint: path.map(|path| path.way.remote),
            method: path.filter(|_| connected).map(|path| path.method),
            why: self.why.clone(),
            cipher: self.tunnel.cipher().filter(|_| connected),
            path_mtu: self.mtu.measured().filter(|_| connected),
            inner_mtu: self.mtu.inner_limit(),
            rtt_ms: self.paths.rtt().filter(|_| connected).map(|rtt| rtt.as_secs_f64() * 1e3),
            connect_ms: self.connect_time.and_then(|time| u64::try_from(time.as_millis()).ok()),
            probes_sent: self.probes_sent + probes,
            sockets_used: self.sockets_used.max(sockets),
            entries_used: entries,
            tx_bytes,
            rx_bytes,
            last_handshake: self.tunnel.last_handshake().map(|at| local.clock.at(at).0.as_secs()),
            allowed_ips: self.config.allowed_ips.iter().map(ToString::to_string).collect(),
        }
    }
}
