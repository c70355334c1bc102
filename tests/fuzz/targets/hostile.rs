//! A peer who means ill: it has a key that the member's owner trusts, and says with it whatever the fuzzer wants. Its
//! handshakes and seals are valid, and nothing inside them need be.

use std::collections::VecDeque;
use std::net::SocketAddr;

use p2ptund::proto::config::Rendezvous;
use p2ptund::proto::keys::{PrivateKey, PublicKey};
use p2ptund::proto::noise::export::Open;
use p2ptund::proto::noise::timestamp::Timestamp;
use p2ptund::proto::noise::{INITIATION_LEN, Identity, Initiator, RESPONSE_LEN, Received, Remote};
use p2ptund::proto::rendezvous::Wait;
use p2ptund::proto::rendezvous::client::{Client, Word};
use p2ptund::proto::replay::DATA_WORDS;
use p2ptund::proto::session::Session;
use p2ptund::proto::wire::{Dudp, Kind, WireGuard};
use p2ptund::proto::{Instant, Packet};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::miniature::{Datagram, START, public, wall};

/// What a sealed part passed through a rendezvous server begins with (`message_control`).
const CALL: u8 = 1;
const ANSWER: u8 = 2;

pub struct Hostile {
    identity: Identity,
    target: Remote,
    client: Client,
    rng: ChaCha20Rng,
    timestamp: Timestamp,
    waiting: Option<Initiator>,
    /// A call of the target's that waits for an answer, and its id.
    called: Option<(Received, [u8; 8])>,
    sessions: Vec<Session>,
    out: VecDeque<Datagram>,
}

impl Hostile {
    pub fn new(key: PrivateKey, target: PublicKey, server: Rendezvous) -> Self {
        let identity = Identity::new(key);
        Self {
            target: Remote::new(&identity, target),
            client: Client::new(START, &identity, server),
            identity,
            rng: ChaCha20Rng::from_seed([33; 32]),
            timestamp: Timestamp::default(),
            waiting: None,
            called: None,
            sessions: Vec::new(),
            out: VecDeque::new(),
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.client.poll_timeout()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.client.handle_timeout(now, wall(now), &self.identity, &mut self.rng);
    }

    pub fn poll_transmit(&mut self) -> Option<Datagram> {
        while let Some(transmit) = self.client.poll_transmit() {
            self.send(4275, transmit.to, transmit.payload);
        }
        while self.client.poll_action().is_some() {}
        self.out.pop_front()
    }

    fn send(&mut self, port: u16, to: SocketAddr, payload: Vec<u8>) {
        self.out.push_back(Datagram { from: SocketAddr::new(public(2), port), to, payload });
    }

    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, payload: &[u8]) {
        match Kind::of(payload) {
            Some(Kind::WireGuard(WireGuard::Response)) => {
                let for_client = self.client.handle_response(now, from, payload, &mut self.rng);
                for_client.unwrap_or_else(|_| self.finish(now, payload));
            }
            Some(Kind::Dudp(kind @ (Dudp::Register | Dudp::MessageControl))) => {
                if let Ok(Word::Deliver { passed, .. }) = self.client.handle_sealed(now, kind, from, payload) {
                    self.handle_passed(now, &passed);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, now: Instant, response: &[u8]) {
        let Some((keys, _)) = self.waiting.as_ref().and_then(|waiting| waiting.finish(response).ok()) else { return };
        self.sessions.push(Session::new(keys, now, DATA_WORDS));
    }

    fn handle_passed(&mut self, now: Instant, passed: &[u8]) {
        match passed.split_first() {
            Some((&CALL, rest)) => {
                let Some((initiation, sealed)) = rest.split_at_checked(INITIATION_LEN) else { return };
                let Ok(received) = Received::open(&self.identity, initiation) else { return };
                let id = open_id(&received.exports.call, sealed);
                self.called = id.map(|id| (received, id));
            }
            Some((&ANSWER, rest)) => {
                if let Some((response, _)) = rest.split_at_checked(RESPONSE_LEN) {
                    self.finish(now, response);
                }
            }
            _ => {}
        }
    }

    /// Calls the target: `fields` are what the call says. `directly`: the handshake alone goes to the target's own port.
    pub fn call(&mut self, now: Instant, fields: &[u8], directly: Option<SocketAddr>) {
        self.timestamp = Timestamp::after(self.timestamp, wall(now));
        let index = self.rng.next_u32();
        let (initiator, message, keys) =
            Initiator::start(&self.identity, &self.target, None, index, self.timestamp, &mut self.rng);
        self.waiting = Some(initiator);
        if let Some(to) = directly {
            self.send(4275, to, message.to_vec());
            return;
        }
        let sealed = keys.call.seal(&[&[7; 8], fields].concat());
        self.client.forward(now, self.target.public(), Wait::Never, [&[CALL], message.as_slice(), &sealed].concat());
    }

    /// Answers the target's call, if there is one.
    pub fn answer(&mut self, now: Instant, fields: &[u8]) {
        let Some((received, id)) = self.called.take() else { return };
        let index = self.rng.next_u32();
        let (response, keys, key) = received.respond(None, index, &mut self.rng);
        self.sessions.push(Session::new(keys, now, DATA_WORDS));
        let sealed = key.seal(&[id.as_slice(), fields].concat());
        self.client.forward(now, self.target.public(), Wait::Never, [&[ANSWER], response.as_slice(), &sealed].concat());
    }

    /// A probe with any body, from any port, in the newest session.
    pub fn probe(&mut self, kind: Dudp, body: &[u8], port: u16, to: SocketAddr) {
        let Some(session) = self.sessions.last_mut() else { return };
        if let Some(message) = session.probe_sealer.seal_message(&kind.header(), body) {
            self.send(port, to, message);
        }
    }

    /// Transport data with anything inside. `false`: there is no session to seal it with.
    pub fn transport(&mut self, inner: &[u8], port: u16, to: SocketAddr) -> bool {
        let Some(session) = self.sessions.last_mut() else { return false };
        let mut packet = Packet::copy_from(inner);
        let sealed = session.sealer.seal(&mut packet, 0).is_some();
        self.send(port, to, packet.bytes().to_vec());
        sealed
    }
}

fn open_id(key: &Open, sealed: &[u8]) -> Option<[u8; 8]> {
    key.open(sealed)?.first_chunk().copied()
}
