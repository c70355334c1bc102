//! A member's side of one rendezvous server: registers, keeps registered, and passes calls.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::echo::Echoes;
use super::{Control, KEEPALIVE, RENEW_AFTER, RESET_LEN, Wait};
use crate::proto::action::Drop;
use crate::proto::codec::Reader;
use crate::proto::config::{Host, Rendezvous};
use crate::proto::cookie::Jar;
use crate::proto::keys::PublicKey;
use crate::proto::noise::{Identity, Initiator, Remote, timestamp::Timestamp};
use crate::proto::replay::CONTROL_WORDS;
use crate::proto::session::Session;
use crate::proto::wire::{Dudp, HEADER_LEN};
use crate::proto::{Action, Event, Instant, SocketId, Transmit, Wall};

/// A handshake that is not answered is tried again after two round trips, or this long where none was measured, doubled each
/// time up to [`LONGEST_RETRY`]. Most of the world is nearer than that to its server; from further off, the answer to the
/// second try or the third is waited for long enough.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// What a slow machine, or a queue on the way, may add to a round trip that was measured.
const SOONEST_RETRY: Duration = Duration::from_millis(120);
/// So that a server that comes back is found within this long.
/// One packet in 20 s is what a server may cost.
const LONGEST_RETRY: Duration = Duration::from_secs(20);
/// A DUDP_RESET is heeded at most this often: it is not sealed.
const RESET_INTERVAL: Duration = Duration::from_secs(5);
/// A registration that is not answered is repeated after two round trips, at most this long or a round trip and a quarter,
/// then twice as long and so on …
const REGISTER_RETRY: Duration = Duration::from_millis(250);
/// … until the server is given up, which takes five tries of the soonest, four of others; and three of those from far off.
const GIVE_UP_AFTER: Duration = Duration::from_millis(3720);
/// Addresses that a server's name may stand for.
const MAX_ADDRESSES: usize = 8;

/// One server, as a member sees it.
pub struct Client {
    server: Rendezvous,
    remote: Remote,
    jar: Jar,
    addresses: Vec<SocketAddr>,
    /// Which of the addresses is tried.
    current: usize,
    timestamp: Timestamp,
    session: Option<Registration>,
    handshake: Handshake,
    keepalive: Duration,
    /// Smoothed.
    rtt: Option<Duration>,
    /// Where the server sees us.
    public: Option<SocketAddr>,
    /// When it last said that it does not know us.
    reset_at: Option<Instant>,
    transmits: VecDeque<Transmit>,
    echoes: Echoes<Transmit>,
    actions: VecDeque<Action>,
}

struct Registration {
    session: Session,
    address: SocketAddr,
    last_sent: Instant,
    /// Registrations sent since the server last answered, and when the first of them was.
    unanswered: u32,
    asked_at: Instant,
    /// How long we had sent nothing before that.
    silence: Duration,
}

enum Handshake {
    /// None is needed until then.
    Rest {
        until: Instant,
    },
    /// The server's name is being resolved.
    Resolving {
        again: Instant,
    },
    Waiting {
        initiator: Box<Initiator>,
        sent: Instant,
        due: Instant,
        tries: u32,
    },
}

/// What came from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// A sealed call, answer or abort of that member's. `held`: a call, so long before we registered.
    Deliver {
        from: PublicKey,
        held: Option<Duration>,
        passed: Vec<u8>,
    },
    /// That member is not registered there. `held`: it gets the call if it registers soon.
    Absent {
        to: PublicKey,
        held: bool,
    },
    /// It sees us at that address, which is another one than before.
    Moved {
        public: SocketAddr,
        /// The same address as before, another port, after so long a silence: our NAT forgot us.
        forgotten_after: Option<Duration>,
    },
    Nothing,
}

impl Client {
    pub fn new(now: Instant, local: &Identity, server: Rendezvous) -> Self {
        let addresses = match server.address.host {
            Host::Ip(ip) => vec![SocketAddr::new(ip, server.address.port)],
            Host::Name(_) => Vec::new(),
        };
        Self {
            remote: Remote::new(local, server.public_key),
            jar: Jar::new(server.public_key),
            server,
            addresses,
            current: 0,
            timestamp: Timestamp::default(),
            session: None,
            handshake: Handshake::Rest { until: now },
            keepalive: KEEPALIVE,
            rtt: None,
            public: None,
            reset_at: None,
            transmits: VecDeque::new(),
            echoes: Echoes::default(),
            actions: VecDeque::new(),
        }
    }

    pub fn server(&self) -> &Rendezvous {
        &self.server
    }

    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub fn public(&self) -> Option<SocketAddr> {
        self.public
    }

    /// Whether a message for session or handshake `index` is for this client.
    pub fn owns(&self, index: u32) -> bool {
        let waiting = match &self.handshake {
            Handshake::Waiting { initiator, .. } => initiator.local_index() == index,
            Handshake::Rest { .. } | Handshake::Resolving { .. } => false,
        };
        waiting || self.session.as_ref().is_some_and(|registration| registration.session.local_index == index)
    }

    /// Has the server pass something to another member, or hold it if that is not there. `false`: not registered just now.
    pub fn forward(&mut self, now: Instant, to: PublicKey, wait: Wait, passed: Vec<u8>) -> bool {
        self.send_twice(now, Dudp::MessageControl, &Control::Forward { to, wait, passed }.encode())
    }

    /// The network changed: the registration may be at an address that is ours no longer.
    pub fn renew(&mut self, now: Instant) {
        self.handshake = Handshake::Rest { until: now };
    }

    /// Our NAT remembers for longer than this.
    pub fn set_keepalive(&mut self, interval: Duration) {
        self.keepalive = interval.min(KEEPALIVE);
    }

    /// Our NAT may have forgotten where the server is to be let in: it is asked, unless it just was.
    pub fn poke(&mut self, now: Instant) {
        let Some(registration) = &mut self.session else { return };
        if registration.unanswered == 0 {
            registration.unanswered = 1;
            registration.asked_at = now;
            registration.silence = now.since(registration.last_sent);
            self.send(now, Dudp::Register, &[0; 19]);
        }
    }

    pub fn handle_timeout(&mut self, now: Instant, wall: Wall, local: &Identity, rng: &mut ChaCha20Rng) {
        self.transmits.extend(std::iter::from_fn(|| self.echoes.poll(now)));
        match &self.handshake {
            Handshake::Rest { until } if now >= *until => self.shake_hands(now, wall, local, rng, 0),
            Handshake::Resolving { again } if now >= *again => self.shake_hands(now, wall, local, rng, 0),
            Handshake::Waiting { due, tries, .. } if now >= *due => {
                let tries = *tries + 1;
                self.current = self.current.wrapping_add(1);
                if tries % 4 == 0
                    && let Host::Name(name) = &self.server.address.host
                {
                    self.actions.push_back(Action::Resolve { name: name.clone() });
                }
                self.shake_hands(now, wall, local, rng, tries);
            }
            Handshake::Rest { .. } | Handshake::Resolving { .. } | Handshake::Waiting { .. } => {}
        }
        let (keepalive, retry) = (self.keepalive, self.register_retry());
        let Some(registration) = &mut self.session else { return };
        if now < registration.register_due(keepalive, retry) {
            return;
        }
        let silence =
            if registration.unanswered == 0 { now.since(registration.last_sent) } else { registration.silence };
        if registration.unanswered > 0 && now >= registration.given_up_at(retry) {
            self.lose(now);
            return;
        }
        if registration.unanswered == 0 {
            registration.asked_at = now;
        }
        registration.unanswered += 1;
        registration.silence = silence;
        self.send(now, Dudp::Register, &[0; 19]);
    }

    fn lose(&mut self, now: Instant) {
        self.session = None;
        self.actions.push_back(Action::Event(Event::Unregistered { server: self.name() }));
        if !matches!(self.handshake, Handshake::Waiting { .. }) {
            self.handshake = Handshake::Rest { until: now };
        }
    }

    fn name(&self) -> String {
        match &self.server.address.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.server.address.port).to_string(),
            Host::Name(name) => format!("{name}:{}", self.server.address.port),
        }
    }

    /// How the contract's `status` names it.
    pub fn address(&self) -> String {
        self.name()
    }

    fn shake_hands(&mut self, now: Instant, wall: Wall, local: &Identity, rng: &mut ChaCha20Rng, tries: u32) {
        let Some(to) = self.addresses.get(self.current % self.addresses.len().max(1)).copied() else {
            if let Host::Name(name) = &self.server.address.host {
                self.actions.push_back(Action::Resolve { name: name.clone() });
            }
            self.handshake = Handshake::Resolving { again: now + LONGEST_RETRY };
            return;
        };
        self.timestamp = Timestamp::after(self.timestamp, wall);
        let index = rng.next_u32();
        let (initiator, mut message, _) = Initiator::start(local, &self.remote, None, index, self.timestamp, rng);
        self.jar.stamp(now, &mut message);
        let transmit =
            Transmit { socket: SocketId::main_for(&to), to, ttl: None, whole: false, payload: message.to_vec() };
        if tries == 0 && self.session.is_none() {
            // Nothing can begin before. Those who have a session are in no hurry, and may be many.
            self.echoes.push(now, transmit.clone());
        }
        self.transmits.push_back(transmit);
        let first = self.rtt.map_or(FIRST_RETRY, |rtt| (rtt * 2).max(SOONEST_RETRY));
        let wait = (first * 2u32.pow(tries.min(8))).min(LONGEST_RETRY);
        // A quarter of jitter, so that the members of a server that was restarted do not come all at once.
        let jitter = wait.mul_f64(f64::from(rng.next_u32() % 256) / 1024.0);
        self.handshake =
            Handshake::Waiting { initiator: Box::new(initiator), sent: now, due: now + wait + jitter, tries };
    }

    /// A WireGuard response whose receiver index is ours.
    pub fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        rng: &mut ChaCha20Rng,
    ) -> Result<(), Drop> {
        let Handshake::Waiting { initiator, sent, .. } = &self.handshake else {
            // The answer to the second copy of our initiation.
            return if self.session.is_some() { Ok(()) } else { Err(Drop::Unknown) };
        };
        let (keys, _) = initiator.finish(message)?;
        self.rtt = Some(now.since(*sent));
        let first = self.session.is_none();
        self.session = Some(Registration {
            session: Session::new(keys, now, CONTROL_WORDS),
            address: from,
            last_sent: now,
            unanswered: 1,
            asked_at: now,
            silence: Duration::ZERO,
        });
        // A tenth of jitter, again so that members do not come all at once.
        let jitter = RENEW_AFTER.mul_f64(f64::from(rng.next_u32() % 256) / 2560.0);
        self.handshake = Handshake::Rest { until: now + RENEW_AFTER + jitter };
        // The first packet in the session is what registers us.
        self.send_twice(now, Dudp::Register, &[0; 19]);
        if first {
            self.actions.push_back(Action::Event(Event::Registered { server: self.name() }));
        }
        Ok(())
    }

    pub fn handle_cookie_reply(&mut self, now: Instant, message: &[u8]) -> Result<(), Drop> {
        self.jar.handle_reply(now, message)?;
        // The server is under load and alive: with the proof of address in hand there is no reason to wait for long.
        if let Handshake::Waiting { due, .. } = &mut self.handshake {
            *due = (*due).min(now + FIRST_RETRY);
        }
        Ok(())
    }

    /// A sealed message of the family whose receiver index is ours.
    pub fn handle_sealed(&mut self, now: Instant, kind: Dudp, from: SocketAddr, datagram: &[u8]) -> Result<Word, Drop> {
        let registration = self.session.as_mut().ok_or(Drop::Unknown)?;
        let body = match registration.session.opener.open_message(HEADER_LEN, datagram) {
            // The second copy.
            Err(Drop::Replayed) => return Ok(Word::Nothing),
            opened => opened?,
        };
        // The server answers from where it was asked; an authentic packet from elsewhere changes nothing.
        if from != registration.address {
            return Err(Drop::Unknown);
        }
        match kind {
            Dudp::Register => {
                if registration.unanswered == 1 {
                    let rtt = now.since(registration.asked_at);
                    // RFC 6298's smoothing.
                    self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
                }
                registration.unanswered = 0;
                let public = Reader::new(&body).address().ok_or(Drop::Malformed)?;
                let Some(before) = self.public.replace(public).filter(|before| *before != public) else {
                    return Ok(Word::Nothing);
                };
                let forgotten_after = (before.ip() == public.ip()).then_some(registration.silence);
                Ok(Word::Moved { public, forgotten_after })
            }
            Dudp::MessageControl => match Control::parse(&body).ok_or(Drop::Malformed)? {
                Control::Deliver { from, held, passed } => Ok(Word::Deliver { from, held, passed }),
                Control::Absent { to, held } => Ok(Word::Absent { to, held }),
                Control::Forward { .. } => Err(Drop::Malformed),
            },
            Dudp::Start | Dudp::PubInfo | Dudp::Ack | Dudp::Ack2 | Dudp::Reset => Err(Drop::Malformed),
        }
    }

    /// The server says that it does not know our session.
    pub fn handle_reset(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Result<(), Drop> {
        let registration = self.session.as_ref().ok_or(Drop::Unknown)?;
        if datagram.len() != RESET_LEN || from != registration.address {
            return Err(Drop::Malformed);
        }
        let mut reader = Reader::new(&datagram[HEADER_LEN..]);
        let index = reader.array().map(u32::from_le_bytes);
        let counter = reader.array().map(u64::from_le_bytes);
        // It must name a packet that we sent: who does not see our packets can't make one.
        let session = &registration.session;
        if index != Some(session.remote_index) || counter.is_none_or(|counter| counter >= session.sealer.sealed()) {
            return Err(Drop::Unauthentic);
        }
        if self.reset_at.is_some_and(|at| now.since(at) < RESET_INTERVAL) {
            return Err(Drop::Overload);
        }
        self.reset_at = Some(now);
        if let Handshake::Rest { .. } = self.handshake {
            self.handshake = Handshake::Rest { until: now };
        }
        Ok(())
    }

    pub fn handle_resolved(&mut self, now: Instant, name: &str, addresses: &[IpAddr]) {
        if self.server.address.host != Host::Name(name.to_owned()) || addresses.is_empty() {
            return;
        }
        let port = self.server.address.port;
        self.addresses = addresses.iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, port)).collect();
        if let Handshake::Resolving { .. } = self.handshake {
            self.handshake = Handshake::Rest { until: now };
        }
    }

    /// No sooner than an answer can be here.
    fn register_retry(&self) -> Duration {
        self.rtt.map_or(REGISTER_RETRY, |rtt| (rtt * 2).clamp(SOONEST_RETRY, REGISTER_RETRY).max(rtt * 5 / 4))
    }

    fn send(&mut self, now: Instant, kind: Dudp, body: &[u8]) -> bool {
        let Some(registration) = &mut self.session else { return false };
        let Some(payload) = registration.session.sealer.seal_message(&kind.header(), body) else { return false };
        registration.last_sent = now;
        let to = registration.address;
        self.transmits.push_back(Transmit { socket: SocketId::main_for(&to), to, ttl: None, whole: false, payload });
        true
    }

    fn send_twice(&mut self, now: Instant, kind: Dudp, body: &[u8]) -> bool {
        let is_sent = self.send(now, kind, body);
        if let Some(transmit) = self.transmits.back().filter(|_| is_sent) {
            self.echoes.push(now, transmit.clone());
        }
        is_sent
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let handshake = match &self.handshake {
            Handshake::Rest { until } => *until,
            Handshake::Resolving { again } => *again,
            Handshake::Waiting { due, .. } => *due,
        };
        let register =
            self.session.as_ref().map(|registration| registration.register_due(self.keepalive, self.register_retry()));
        [Some(handshake), register, self.echoes.poll_timeout()].into_iter().flatten().min()
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
}

impl Registration {
    /// When the next registration is to be sent, or the server to be given up.
    fn register_due(&self, keepalive: Duration, retry: Duration) -> Instant {
        match self.unanswered {
            0 => self.last_sent + keepalive,
            // So many waits since the first try, each twice as long as the one before: calls that go out meanwhile put off none.
            tries => (self.asked_at + retry * (2u32.pow(tries.min(8)) - 1)).min(self.given_up_at(retry)),
        }
    }

    fn given_up_at(&self, retry: Duration) -> Instant {
        self.asked_at + GIVE_UP_AFTER.max(retry * 7)
    }
}
