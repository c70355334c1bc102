//! The rendezvous server, pure, so that the simulator runs it too: knows which member is where, and passes sealed calls.
//!
//! It reads neither tuple nor payload, and holds nothing that a restart loses for good: a member whose session it does not
//! know is told so (DUDP_RESET) and registers again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::echo::Echoes;
use super::holding::Held;
use super::{Control, FORGET_AFTER, RENEW_AFTER, Wait, receiver, reset};
use crate::proto::Instant;
use crate::proto::action::{Drop, Drops};
use crate::proto::allowance::{Allowance, Rate};
use crate::proto::codec::Writer;
use crate::proto::cookie::{Gate, Verdict};
use crate::proto::keys::{PrivateKey, PublicKey};
use crate::proto::noise::timestamp::Timestamp;
use crate::proto::noise::{Identity, RESPONSE_LEN, Received};
use crate::proto::replay::CONTROL_WORDS;
use crate::proto::session::Session;
use crate::proto::wire::{Dudp, HEADER_LEN, Kind, WireGuard};

/// Members and half-open registrations held at once: the design's 200,000 and room to spare, at about 600 bytes each.
const MAX_MEMBERS: usize = 262_144;
/// More handshakes a second than this, and proof of address is asked for: half of what one core can do at about 150 µs each.
const BUSY_PER_S: u32 = 3_000;
/// A registration that its member does not use within this long was a replay, or its member is gone.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// Calls that one member may have passed at once, and how fast its allowance comes back: a member of a mesh of 1,000 peers
/// calls each of them at its start, at its own pace.
const CALLS: Rate = Rate { burst: 100, per_s: 50 };

/// Knows members by key and passes MESSAGE_CONTROL between them.
pub struct Server {
    identity: Identity,
    rng: ChaCha20Rng,
    gate: Gate,
    allow: Option<BTreeSet<PublicKey>>,
    members: BTreeMap<PublicKey, Member>,
    sessions: BTreeMap<u32, PublicKey>,
    /// When to look whether a session has ended; one entry a session, put off while it is alive.
    checks: VecDeque<(Instant, u32)>,
    held: Held,
    transmits: VecDeque<Transmit>,
    echoes: Echoes<Transmit>,
    drops: Drops,
}

/// By which listener, to whom, and what.
type Transmit = (usize, SocketAddr, Vec<u8>);

#[derive(Default)]
struct Member {
    /// Of the newest handshake, so that none is taken twice.
    timestamp: Timestamp,
    registered: Option<Place>,
    /// Shaken hands with, not yet heard from.
    unconfirmed: Option<Unconfirmed>,
    allowance: Allowance,
}

struct Place {
    session: Session,
    listener: usize,
    address: SocketAddr,
    /// Where the handshake was answered. If the member is still there, it read that.
    proved: SocketAddr,
    last_heard: Instant,
}

struct Unconfirmed {
    place: Place,
    /// What was answered to the initiation, for a second copy of that.
    response: [u8; RESPONSE_LEN],
}

impl Server {
    /// `allow`: only these members; `None`: any. `seed`: 32 bytes of the system's best randomness.
    pub fn new(private_key: PrivateKey, allow: Option<Vec<PublicKey>>, seed: [u8; 32]) -> Self {
        let identity = Identity::new(private_key);
        let mut rng = ChaCha20Rng::from_seed(seed);
        let gate = Gate::new(identity.public(), BUSY_PER_S, &mut rng);
        Self {
            identity,
            rng,
            gate,
            allow: allow.map(|keys| keys.into_iter().collect()),
            members: BTreeMap::new(),
            sessions: BTreeMap::new(),
            checks: VecDeque::new(),
            held: Held::default(),
            transmits: VecDeque::new(),
            echoes: Echoes::default(),
            drops: Drops::default(),
        }
    }

    /// A datagram came in on listening socket number `listener` (the shell's own count, from 0).
    pub fn handle_datagram(&mut self, now: Instant, listener: usize, from: SocketAddr, datagram: &mut [u8]) {
        let outcome = match Kind::of(datagram) {
            Some(Kind::WireGuard(WireGuard::Initiation)) => self.handle_initiation(now, listener, from, datagram),
            Some(Kind::Dudp(kind @ (Dudp::Register | Dudp::MessageControl))) => {
                self.handle_sealed(now, listener, from, kind, datagram)
            }
            Some(Kind::WireGuard(_) | Kind::Stun | Kind::Dudp(_)) | None => Err(Drop::Malformed),
        };
        if let Err(reason) = outcome {
            self.drops.count(reason);
        }
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        listener: usize,
        from: SocketAddr,
        message: &[u8],
    ) -> Result<(), Drop> {
        match self.gate.judge(now, &self.identity, from, message, &mut self.rng) {
            Verdict::Pass => {}
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Reply(reply) => {
                self.transmits.push_back((listener, from, reply.to_vec()));
                return Ok(());
            }
        }
        let received = Received::open(&self.identity, message)?;
        let key = received.peer;
        if self.allow.as_ref().is_some_and(|allow| !allow.contains(&key)) {
            return Err(Drop::Unauthentic);
        }
        if self.sessions.len() >= MAX_MEMBERS && !self.members.contains_key(&key) {
            return Err(Drop::Overload);
        }
        let member = self.members.entry(key).or_default();
        if let Some(unconfirmed) = &member.unconfirmed
            && unconfirmed.answers(&received, member.timestamp, from)
        {
            self.transmits.push_back((listener, from, unconfirmed.response.to_vec()));
            return Ok(());
        }
        if received.timestamp <= member.timestamp {
            return Err(Drop::Replayed);
        }
        member.timestamp = received.timestamp;
        let index = self.rng.next_u32();
        let (response, keys, _) = received.respond(None, index, &mut self.rng);
        let session = Session::new(keys, now, CONTROL_WORDS);
        let place = Place { session, listener, address: from, proved: from, last_heard: now };
        if let Some(old) = member.unconfirmed.replace(Unconfirmed { place, response }) {
            self.sessions.remove(&old.place.session.local_index);
        }
        self.sessions.insert(index, key);
        self.checks.push_back((now + CONFIRM_WITHIN, index));
        self.transmits.push_back((listener, from, response.to_vec()));
        Ok(())
    }

    fn handle_sealed(
        &mut self,
        now: Instant,
        listener: usize,
        from: SocketAddr,
        kind: Dudp,
        datagram: &[u8],
    ) -> Result<(), Drop> {
        let index = receiver(datagram).ok_or(Drop::Malformed)?;
        let Some(key) = self.sessions.get(&index).copied() else {
            let reset = reset(datagram).ok_or(Drop::Malformed)?;
            self.transmits.push_back((listener, from, reset));
            return Err(Drop::Unknown);
        };
        let member = self.members.get_mut(&key).ok_or(Drop::Unknown)?;
        let place = member.place_mut(index).ok_or(Drop::Unknown)?;
        let body = match place.session.opener.open_message(HEADER_LEN, datagram) {
            // The second copy.
            Err(Drop::Replayed) => return Ok(()),
            opened => opened?,
        };
        place.listener = listener;
        place.address = from;
        place.last_heard = now;
        let is_proved = place.is_proved();
        let new = member.unconfirmed.take_if(|unconfirmed| unconfirmed.place.session.local_index == index);
        let is_new = new.is_some();
        if let Some(new) = new
            && let Some(old) = member.registered.replace(new.place)
        {
            self.sessions.remove(&old.session.local_index);
        }
        let outcome = match kind {
            Dudp::Register => {
                let seen = Writer::default().address(from).finish();
                self.send(now, key, Dudp::Register, &seen);
                Ok(())
            }
            _ => self.handle_control(now, key, &body),
        };
        if is_new && is_proved {
            for (from, held, passed) in self.held.take(now, key) {
                self.send(
                    now,
                    key,
                    Dudp::MessageControl,
                    &Control::Deliver { from, held: Some(held), passed }.encode(),
                );
            }
        }
        outcome
    }

    fn handle_control(&mut self, now: Instant, from: PublicKey, body: &[u8]) -> Result<(), Drop> {
        let Control::Forward { to, wait, passed } = Control::parse(body).ok_or(Drop::Malformed)? else {
            return Err(Drop::Malformed);
        };
        let caller = self.members.get_mut(&from).ok_or(Drop::Unknown)?;
        if !caller.allowance.take(now, CALLS) {
            return Err(Drop::Overload);
        }
        self.held.forget(from, to);
        if self.members.get(&to).is_some_and(|member| member.registered.is_some()) {
            self.send(now, to, Dudp::MessageControl, &Control::Deliver { from, held: None, passed }.encode());
        } else {
            let held = wait != Wait::Never && self.held.hold(now, from, to, wait, passed);
            self.send(now, from, Dudp::MessageControl, &Control::Absent { to, held }.encode());
        }
        Ok(())
    }

    fn send(&mut self, now: Instant, to: PublicKey, kind: Dudp, body: &[u8]) {
        let Some(place) = self.members.get_mut(&to).and_then(|member| member.registered.as_mut()) else { return };
        if let Some(message) = place.session.sealer.seal_message(&kind.header(), body) {
            let transmit = (place.listener, place.address, message);
            if kind == Dudp::MessageControl && place.is_proved() {
                self.echoes.push(now, transmit.clone());
            }
            self.transmits.push_back(transmit);
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.transmits.extend(std::iter::from_fn(|| self.echoes.poll(now)));
        for (from, to, wait) in self.held.handle_timeout(now) {
            let is_proved =
                self.members.get(&from).and_then(|member| member.registered.as_ref()).is_some_and(Place::is_proved);
            if wait == Wait::Briefly && is_proved {
                self.send(now, from, Dudp::MessageControl, &Control::Absent { to, held: false }.encode());
            }
        }
        while let Some((_, index)) = self.checks.pop_front_if(|(due, _)| now >= *due) {
            let Some(key) = self.sessions.get(&index).copied() else { continue };
            let Some(member) = self.members.get_mut(&key) else { continue };
            let confirmed = member.registered.as_ref().is_some_and(|place| place.session.local_index == index);
            if let Some(place) = member.registered.as_ref().filter(|_| confirmed) {
                let alive = now.since(place.last_heard) < FORGET_AFTER;
                if alive && now.since(place.session.created) < RENEW_AFTER * 2 {
                    self.checks.push_back((now + FORGET_AFTER, index));
                    continue;
                }
                member.registered = None;
            } else {
                member.unconfirmed = None;
            }
            self.sessions.remove(&index);
            // With the member goes the timestamp that guards against its old handshakes: one of those gets a session that
            // nobody can confirm, which does no harm.
            if member.registered.is_none() && member.unconfirmed.is_none() {
                self.members.remove(&key);
            }
        }
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        // Not sorted strictly, for half-open registrations are looked at sooner than others; the first is due soon enough to
        // look at what stands behind it.
        let check = self.checks.front().map(|(due, _)| *due);
        [check, self.held.poll_timeout(), self.echoes.poll_timeout()].into_iter().flatten().min()
    }

    /// How many members are registered.
    pub fn members(&self) -> usize {
        self.members.values().filter(|member| member.registered.is_some()).count()
    }

    pub fn drops(&self) -> Drops {
        self.drops
    }

    pub fn public_key(&self) -> PublicKey {
        self.identity.public()
    }
}

impl Member {
    fn place_mut(&mut self, index: u32) -> Option<&mut Place> {
        let unconfirmed = self.unconfirmed.as_mut().map(|unconfirmed| &mut unconfirmed.place);
        let places = [self.registered.as_mut(), unconfirmed];
        places.into_iter().flatten().find(|place| place.session.local_index == index)
    }
}

impl Place {
    fn is_proved(&self) -> bool {
        self.address == self.proved
    }
}

impl Unconfirmed {
    /// Whether `received` is once more what it answered, `last` being the newest initiation's timestamp, from the same place.
    fn answers(&self, received: &Received, last: Timestamp, from: SocketAddr) -> bool {
        received.timestamp == last && received.index == self.place.session.remote_index && from == self.place.address
    }
}

#[cfg(test)]
mod tests;
