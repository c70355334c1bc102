//! WireGuard's state machine for one peer: handshakes, sessions, timers, and the packets that wait for a session.
//!
//! It knows no address. Its owner sends what it makes by whatever way there is (a path, or a sealed call), and gives it what comes
//! in for it: an initiation by its static key ([`Received::peer`]), everything else by the receiver's index.
//!
//! ```text
//! out   seal ─► datagram, or queued and WantHandshake ─► start_handshake ─► initiation
//!       handle_response ─► Established, poll_queued ─► seal …
//! in    handle_initiation ─► response;   open ─► inner packet (the first one: Established, poll_queued)
//! time  handle_timeout ─► WantHandshake, WantKeepalive, HandshakeExpired, Retired
//! ```
//!
//! The owner may ignore any `Want…`: it comes again as WireGuard's timers say. It must keep a table of local indices: those
//! that it gave to [`Tunnel::start_handshake`] and [`Tunnel::handle_initiation`], until [`TunnelEvent::Retired`] names them.
//!
//! Differences from the kernel module, none of them seen on the wire:
//! - An initiation that comes in while ours is out does not cancel ours. Both finish; each side uses the session that it
//!   initiated, and both go on opening either.
//! - The persistent keepalive counts from the last packet sent, not from the last seen in either direction: a NAT's mapping
//!   lives by what goes out (RFC 4787, REQ-6).
//! - At most [`MAX_QUEUED`] packets wait for a session.

mod deadlines;
mod limits;
mod slots;
pub mod timers;

use std::collections::VecDeque;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;

pub use self::limits::Limits;
use self::slots::Slots;
use self::timers::{REKEY_TIMEOUT, Timer, Timers};
use super::action::Drop;
use super::cipher::Cipher;
use super::cookie::Jar;
use super::ip::Header;
use super::keys::{PresharedKey, PublicKey};
use super::lane::Carried;
use super::noise::export::{CallerKeys, Open, SealOnce};
use super::noise::timestamp::Timestamp;
use super::noise::{INITIATION_LEN, Identity, Initiator, RESPONSE_LEN, Received, Remote};
use super::packet::Packet;
use super::session::{Opener, Sealer, Session, receiver_of};
use super::time::{Instant, Wall};

/// Most inner packets that wait for a session. A handshake takes about one round trip, a call two: in that time a host sends some
/// pings, DNS questions and the SYNs of new connections, and TCP no more than that. More would be stale when they leave;
/// 1,000 peers that can't be reached hold 45 MB like this, not WireGuard's 180 (it queues 128).
pub const MAX_QUEUED: usize = 32;
/// A peer's initiations are handled at most so often (WireGuard's 50 a second).
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// What the owner is to do, or may want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelEvent {
    /// Call [`Tunnel::start_handshake`] and send what it makes. `retry`: the one before had no answer.
    WantHandshake { retry: bool },
    /// Seal an empty packet and send it, if there is a path.
    WantKeepalive,
    /// No answer for 90 s. Queued packets are gone; the next packet begins anew.
    HandshakeExpired,
    /// Payload can flow, both ways: call [`Tunnel::poll_queued`]. `handshake_rtt`: from the initiation to its response, for
    /// its initiator.
    Established { initiator: bool, handshake_rtt: Option<Duration> },
    /// This local index is no longer in use.
    Retired(u32),
}

/// What a datagram turned out to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    pub payload: Payload,
    /// Nothing else of the peer's was opened on its session before.
    pub first_on_session: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    Keepalive,
    /// An inner packet, its padding taken off. The owner has yet to check that its source is the peer's.
    Data(Header),
}

/// A session, for those who carry packets with it.
pub struct Carrying<'a> {
    pub local_index: u32,
    pub sealer: &'a Sealer,
    pub opener: &'a Opener,
    /// From then on it seals and opens nothing.
    pub until: Instant,
}

/// An initiation that is out.
struct Initiation {
    initiator: Initiator,
    sent: Instant,
}

/// WireGuard with one peer.
pub struct Tunnel {
    local: Identity,
    remote: PublicKey,
    psk: Option<PresharedKey>,
    limits: Limits,
    mtu: usize,
    /// Whether transport data may be sealed with AES-256-GCM, if the peer agrees ([`super::cipher`]).
    aes: bool,
    keepalive: Option<Duration>,
    slots: Slots,
    initiation: Option<Initiation>,
    /// Since when a handshake is wanted, while one is.
    wanted_since: Option<Instant>,
    timers: Timers,
    jitter: Duration,
    /// The timestamp of our last initiation, and of the peer's.
    stamped: Timestamp,
    seen: Timestamp,
    seen_at: Option<Instant>,
    jar: Jar,
    queue: VecDeque<Packet>,
    events: VecDeque<TunnelEvent>,
    last_sent: Option<Instant>,
    last_received: Option<Instant>,
    last_handshake: Option<Instant>,
    tx_bytes: u64,
    rx_bytes: u64,
}

impl Tunnel {
    pub fn new(local: &Identity, remote: PublicKey, psk: Option<PresharedKey>, limits: Limits) -> Self {
        Self {
            remote,
            local: local.clone(),
            psk,
            limits,
            mtu: 0,
            aes: false,
            keepalive: None,
            slots: Slots::default(),
            initiation: None,
            wanted_since: None,
            timers: Timers::default(),
            jitter: Duration::ZERO,
            stamped: Timestamp::default(),
            seen: Timestamp::default(),
            seen_at: None,
            jar: Jar::new(remote),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            last_sent: None,
            last_received: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
        }
    }

    pub fn remote(&self) -> PublicKey {
        self.remote
    }

    /// The inner MTU, beyond which no packet is padded; 0 (as at first): no such bound.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = usize::from(mtu);
    }

    /// Whether AES-256-GCM is offered and taken from now on; at first it is not. Where that changes, the session in use is to be
    /// replaced.
    pub fn set_aes(&mut self, now: Instant, aes: bool) {
        if std::mem::replace(&mut self.aes, aes) != aes && self.slots.current_ref().is_some() {
            self.want_handshake(now);
        }
    }

    /// What the session in use seals with.
    pub fn cipher(&self) -> Option<Cipher> {
        self.slots.current_ref().map(|session| session.sealer.cipher())
    }

    /// Asks for a keepalive whenever nothing was sent for so long; `None` or zero: never.
    pub fn set_keepalive(&mut self, now: Instant, interval: Option<Duration>) {
        let interval = interval.filter(|interval| !interval.is_zero());
        if self.keepalive == interval {
            return;
        }
        self.keepalive = interval;
        match interval {
            Some(interval) => {
                let due = self.last_sent.map_or(now, |sent| (sent + interval).max(now));
                self.timers.set(Timer::PersistentKeepalive, due);
            }
            None => self.timers.stop(Timer::PersistentKeepalive),
        }
    }

    /// When a packet was sealed last.
    pub fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// Whether a packet would be sealed at `now`.
    pub fn is_established(&self, now: Instant) -> bool {
        self.slots.current_ref().is_some_and(|session| self.limits.is_usable(session, now))
    }

    /// The sessions that carry payload, the one that seals first; the one that waits for its first packet is not among them.
    pub fn carrying(&self) -> Vec<Carrying<'_>> {
        let until = |session: &Session| session.created + self.limits.reject_after_time;
        let sessions = self.slots.carrying();
        sessions
            .map(|session| Carrying {
                local_index: session.local_index,
                sealer: &session.sealer,
                opener: &session.opener,
                until: until(session),
            })
            .collect()
    }

    /// What was sealed beside the tunnel, with a clone of its session's half.
    pub fn note_sent(&mut self, sent: Carried) {
        self.on_sealed(sent.last, sent.data > 0, usize::try_from(sent.bytes).unwrap_or(usize::MAX));
    }

    /// What was opened beside it.
    pub fn note_received(&mut self, received: Carried) {
        self.on_received(received.last, usize::try_from(received.bytes).unwrap_or(usize::MAX));
        if let Some(index) = self.current_index() {
            self.on_authentic(received.last, index);
        }
        if received.data > 0 {
            self.on_data_received(received.last);
        }
    }

    /// The local index of the session in use.
    pub fn current_index(&self) -> Option<u32> {
        self.slots.current_ref().map(|session| session.local_index)
    }

    /// Every local index in use, for an owner that takes the tunnel down.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.indices().chain(self.initiation.iter().map(|initiation| initiation.initiator.local_index()))
    }

    /// When the last handshake was finished; [`super::time::WallClock::at`] makes wall time of it.
    pub fn last_handshake(&self) -> Option<Instant> {
        self.last_handshake
    }

    /// When anything authentic of the peer's last came in, probes aside.
    pub fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    /// Bytes sent and received, as `wg` counts them: whole datagrams, handshakes and keepalives too.
    pub fn traffic(&self) -> (u64, u64) {
        (self.tx_bytes, self.rx_bytes)
    }

    /// Makes an initiation, in place of one that is still out. `index`: unused so far; the response is addressed to it.
    pub fn start_handshake(
        &mut self,
        now: Instant,
        wall: Wall,
        index: u32,
        rng: &mut ChaCha20Rng,
    ) -> ([u8; INITIATION_LEN], CallerKeys) {
        let stamp = if self.aes { Timestamp::offering_aes } else { Timestamp::after };
        self.stamped = stamp(self.stamped, wall);
        self.draw_jitter(rng);
        // Made here and not kept: a server answers 200,000 members and calls none of them.
        let remote = Remote::new(&self.local, self.remote);
        let (initiator, mut message, exports) =
            Initiator::start(&self.local, &remote, self.psk.as_ref(), index, self.stamped, rng);
        self.jar.stamp(now, &mut message);
        self.forget_initiation();
        self.initiation = Some(Initiation { initiator, sent: now });
        self.wanted_since.get_or_insert(now);
        self.timers.set(Timer::Retry, now + REKEY_TIMEOUT + self.jitter);
        self.on_sent(now, message.len());
        (message, exports)
    }

    /// Answers an initiation of this peer's. `index`: unused so far; it names the new session from now on. The session carries
    /// payload out once a first packet came in on it.
    pub fn handle_initiation(
        &mut self,
        now: Instant,
        mut received: Received,
        index: u32,
        rng: &mut ChaCha20Rng,
    ) -> Result<([u8; RESPONSE_LEN], SealOnce), Drop> {
        self.admit(now, &received)?;
        self.draw_jitter(rng);
        if self.aes {
            received.accept_aes();
        }
        let (mut message, keys, answer) = received.respond(self.psk.as_ref(), index, rng);
        self.jar.stamp(now, &mut message);
        let gone = self.slots.add_responded(Session::new(keys, now, self.limits.replay_words));
        self.retire(gone);
        self.timers.set(Timer::Forget, now + self.limits.forget_after);
        self.on_received(now, INITIATION_LEN);
        self.on_sent(now, message.len());
        Ok((message, answer))
    }

    /// Takes an initiation of this peer's without an answer; gives the key that seals why there is none. Its timestamp counts as
    /// seen, so a replay gets nothing twice.
    pub fn refuse_initiation(&mut self, now: Instant, received: Received) -> Result<SealOnce, Drop> {
        self.admit(now, &received)?;
        self.on_received(now, INITIATION_LEN);
        Ok(received.exports.abort)
    }

    /// Takes the response to the initiation that went out with `index`.
    pub fn handle_response(&mut self, now: Instant, index: u32, message: &[u8]) -> Result<Open, Drop> {
        let initiation = self.initiation.as_ref().filter(|initiation| initiation.initiator.local_index() == index);
        let initiation = initiation.ok_or(Drop::Unknown)?;
        let (keys, answer) = initiation.initiator.finish(message)?;
        let rtt = now.since(initiation.sent);
        self.initiation = None;
        for gone in self.slots.add_initiated(Session::new(keys, now, self.limits.replay_words)) {
            self.retire(gone);
        }
        self.timers.set(Timer::Forget, now + self.limits.forget_after);
        self.on_received(now, message.len());
        self.on_established(now, true, Some(rtt));
        // The peer may send once it heard from us: at once, and with something to say if there is.
        if self.queue.is_empty() {
            self.events.push_back(TunnelEvent::WantKeepalive);
        }
        Ok(answer)
    }

    /// Takes a cookie, for the handshake or session with local index `index`. The next initiation proves our address with it.
    pub fn handle_cookie(&mut self, now: Instant, index: u32, reply: &[u8]) -> Result<(), Drop> {
        if !self.indices().any(|used| used == index) {
            return Err(Drop::Unknown);
        }
        self.jar.handle_reply(now, reply)
    }

    /// Turns an inner packet (an empty one: a keepalive) into a datagram, in place. `false`: there is no session; a copy waits,
    /// unless the packet was empty, and [`TunnelEvent::WantHandshake`] was or is raised.
    #[must_use]
    pub fn seal(&mut self, now: Instant, packet: &mut Packet) -> bool {
        let is_data = !packet.bytes().is_empty();
        let (limits, mtu) = (self.limits, self.mtu);
        let sealed = self
            .slots
            .current()
            .filter(|session| limits.is_usable(session, now))
            .is_some_and(|session| session.sealer.seal(packet, mtu).is_some());
        if sealed {
            self.on_sealed(now, is_data, packet.bytes().len());
        } else {
            self.on_unsealed(now, is_data.then_some(packet));
        }
        sealed
    }

    /// Turns transport data for one of this tunnel's sessions into the inner packet, in place. After an error the packet is of
    /// no use.
    pub fn open(&mut self, now: Instant, packet: &mut Packet) -> Result<Opened, Drop> {
        let len = packet.bytes().len();
        let (index, first_on_session) = self.open_with(now, receiver_of(packet.bytes(), 4), |session| {
            let first = session.is_fresh();
            session.opener.open(packet)?;
            Ok((session.local_index, first))
        })?;
        self.on_received(now, len);
        self.on_authentic(now, index);
        if packet.bytes().is_empty() {
            return Ok(Opened { payload: Payload::Keepalive, first_on_session });
        }
        self.on_data_received(now);
        let header = Header::parse(packet.bytes()).ok_or(Drop::NoRoute)?;
        packet.narrow(0, header.len);
        Ok(Opened { payload: Payload::Data(header), first_on_session })
    }

    /// A control message on the session in use ([`super::session`] has the layout): `prefix`, receiver, counter, sealed `body`.
    /// `None`: there is no session; the message does not wait, a handshake is wanted.
    pub fn seal_control(&mut self, now: Instant, prefix: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        let limits = self.limits;
        let session = self.slots.current().filter(|session| limits.is_usable(session, now));
        let message = session.and_then(|session| session.sealer.seal_message(prefix, body));
        match &message {
            Some(message) => self.on_sealed(now, true, message.len()),
            None => self.on_unsealed(now, None),
        }
        message
    }

    /// The body of a control message that has a prefix of `prefix` bytes.
    pub fn open_control(&mut self, now: Instant, prefix: usize, message: &[u8]) -> Result<Vec<u8>, Drop> {
        let (index, body) = self.open_with(now, receiver_of(message, prefix), |session| {
            Ok((session.local_index, session.opener.open_message(prefix, message)?))
        })?;
        self.on_received(now, message.len());
        self.on_authentic(now, index);
        self.on_data_received(now);
        Ok(body)
    }

    /// A probe under the keys of the session with local index `index`, even one that waits for its first packet. It does not
    /// count as traffic: no timer hears of it. `None`: no such session, or too old.
    pub fn seal_probe(&mut self, now: Instant, index: u32, prefix: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        let limits = self.limits;
        let session = self.slots.find(index).filter(|session| limits.is_usable(session, now))?;
        session.probe_sealer.seal_message(prefix, body)
    }

    /// The body of a probe that has a prefix of `prefix` bytes. The first one confirms a session that we responded to, as a packet
    /// would: only who has the response can have made it.
    pub fn open_probe(&mut self, now: Instant, prefix: usize, message: &[u8]) -> Result<Vec<u8>, Drop> {
        let (index, body) = self.open_with(now, receiver_of(message, prefix), |session| {
            Ok((session.local_index, session.probe_opener.open_message(prefix, message)?))
        })?;
        self.confirm(now, index);
        Ok(body)
    }

    /// Keeps a copy of an inner packet until it can be sent: there may be a session, but there is no path. The oldest goes
    /// where there is no room.
    pub fn hold(&mut self, packet: &Packet) {
        if self.queue.len() == MAX_QUEUED {
            self.queue.pop_front();
        }
        self.queue.push_back(Packet::copy_from(packet.bytes()));
    }

    /// Whether inner packets wait for a path.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether an initiation of this peer's is newer than all that were answered or refused: no replay.
    pub fn is_new(&self, received: &Received) -> bool {
        received.timestamp > self.seen
    }

    /// A packet that waited, once it can be sealed. Oldest first.
    pub fn poll_queued(&mut self, now: Instant) -> Option<Packet> {
        if self.is_established(now) { self.queue.pop_front() } else { None }
    }

    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    fn admit(&mut self, now: Instant, received: &Received) -> Result<(), Drop> {
        if received.peer != self.remote {
            return Err(Drop::Unknown);
        }
        if received.timestamp <= self.seen {
            return Err(Drop::Replayed);
        }
        if self.seen_at.is_some_and(|seen| now.since(seen) < INITIATION_INTERVAL) {
            return Err(Drop::Overload);
        }
        self.seen = received.timestamp;
        self.seen_at = Some(now);
        Ok(())
    }

    fn open_with<T>(
        &mut self,
        now: Instant,
        index: Option<u32>,
        open: impl FnOnce(&mut Session) -> Result<T, Drop>,
    ) -> Result<T, Drop> {
        let limits = self.limits;
        let session = self.slots.find(index.ok_or(Drop::Malformed)?);
        open(session.filter(|session| !limits.is_too_old(session, now)).ok_or(Drop::Unknown)?)
    }
}

#[cfg(test)]
mod tests;
