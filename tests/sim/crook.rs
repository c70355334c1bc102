//! A peer with a key that others trust, at a public address, that misuses what it is given to pass.

use std::net::SocketAddr;
use std::time::Duration;

use p2ptund::proto::config::Config;
use p2ptund::proto::introduction::Introduction;
use p2ptund::proto::keys::PublicKey;
use p2ptund::proto::noise::{Identity, Received};
use p2ptund::proto::probe::{Ack, Ack2};
use p2ptund::proto::rendezvous::receiver;
use p2ptund::proto::session::receiver_of;
use p2ptund::proto::tunnel::{Limits, Tunnel};
use p2ptund::proto::wire::{Dudp, HEADER_LEN, Kind, WireGuard};
use p2ptund::proto::{Instant, Packet};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::member::wall;
use crate::world::{Datagram, Machine, Moment};

/// What an introducer does with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    /// Passes only so many of a hundred.
    Drops(u8),
    /// Bends one byte of so many of a hundred.
    Bends(u8),
    /// Says everything twice, and once more what it said before.
    Repeats,
    /// Passes, and says of its own what nobody said, to both, in the name of the other.
    Forges,
    /// Passes, and says that the other is as far away as can be said.
    LiesOnDelay,
}

struct Victim {
    tunnel: Tunnel,
    indices: Vec<u32>,
    at: Option<SocketAddr>,
}

pub struct Crook {
    identity: Identity,
    own: SocketAddr,
    rng: ChaCha20Rng,
    victims: Vec<Victim>,
    misuse: Misuse,
    before: Option<(PublicKey, Introduction)>,
    /// What was given to it to be passed.
    pub given: u32,
}

impl Crook {
    /// In the place of the member that has this config.
    pub fn new(config: &Config, own: SocketAddr, misuse: Misuse, seed: [u8; 32]) -> Self {
        let identity = Identity::new(config.private_key.clone());
        let tunnel = |key, psk| Tunnel::new(&identity, key, psk, Limits::PAYLOAD);
        let peers = config.peers.iter();
        let victims = peers.map(|peer| tunnel(peer.public_key, peer.preshared_key.clone()));
        let victims = victims.map(|tunnel| Victim { tunnel, indices: Vec::new(), at: None }).collect();
        Self { identity, own, rng: ChaCha20Rng::from_seed(seed), victims, misuse, before: None, given: 0 }
    }

    /// Shakes hands with a peer.
    pub fn begin(&mut self, moment: &mut Moment<'_>, key: PublicKey, to: SocketAddr) {
        let index = self.rng.next_u32();
        let victim = self.victims.iter_mut().find(|victim| victim.tunnel.remote() == key).expect("is a peer");
        victim.indices.push(index);
        victim.at = Some(to);
        let (message, _) = victim.tunnel.start_handshake(moment.now, wall(moment.now), index, &mut self.rng);
        self.send(moment, to, message.to_vec());
    }

    /// Says `word` to a peer, if there is a session.
    pub fn say(&mut self, moment: &mut Moment<'_>, key: PublicKey, word: &Introduction) {
        let Some(victim) = self.victims.iter_mut().find(|victim| victim.tunnel.remote() == key) else { return };
        let message = victim.tunnel.seal_control(moment.now, &Dudp::MessageControl.header(), &word.encode());
        if let (Some(message), Some(at)) = (message, victim.at) {
            self.send(moment, at, message);
        }
    }

    fn send(&self, moment: &mut Moment<'_>, to: SocketAddr, payload: Vec<u8>) {
        moment.sent.push(Datagram { src: self.own, dst: to, ttl: 64, whole: false, payload });
    }

    fn pass(&mut self, moment: &mut Moment<'_>, from: PublicKey, to: PublicKey, mut passed: Vec<u8>) {
        self.given += 1;
        let chance = |moment: &mut Moment<'_>, percent: u8| moment.dice.chance(f64::from(percent) / 100.0);
        let mut delay = Duration::from_millis(80);
        match self.misuse {
            Misuse::Drops(percent) if chance(moment, percent) => return,
            Misuse::Bends(percent) if chance(moment, percent) => {
                let at = usize::try_from(moment.dice.between(0, passed.len() as u64 - 1)).expect("is a length");
                passed[at] ^= 1 << moment.dice.between(0, 7);
            }
            Misuse::Forges => self.forge(moment, from, to, &passed),
            Misuse::LiesOnDelay => delay = Duration::from_micros(u32::MAX.into()),
            Misuse::Drops(_) | Misuse::Bends(_) | Misuse::Repeats => {}
        }
        let word = Introduction::Deliver { from, delay, passed };
        if self.misuse == Misuse::Repeats {
            let before = self.before.replace((to, word.clone()));
            before.into_iter().for_each(|(to, word)| self.say(moment, to, &word));
            self.say(moment, to, &word);
        }
        self.say(moment, to, &word);
    }

    fn forge(&mut self, moment: &mut Moment<'_>, from: PublicKey, to: PublicKey, passed: &[u8]) {
        let delay = Duration::ZERO;
        for kind in 0..6u8 {
            let mut invented = vec![kind; usize::try_from(moment.dice.between(1, 900)).expect("is small")];
            moment.dice.fill(&mut invented[1..]);
            self.say(moment, to, &Introduction::Deliver { from, delay, passed: invented.clone() });
            self.say(moment, from, &Introduction::Deliver { from: to, delay, passed: invented });
            // What is true, said to be something else.
            let other = [&[kind], &passed[1..]].concat();
            self.say(moment, to, &Introduction::Deliver { from, delay, passed: other });
        }
        // What one said, back to itself; in the crook's own name; and to be passed on once more.
        self.say(moment, from, &Introduction::Deliver { from: to, delay, passed: passed.to_vec() });
        let own = self.identity.public();
        self.say(moment, to, &Introduction::Deliver { from: own, delay, passed: passed.to_vec() });
        self.say(moment, to, &Introduction::Forward { to: from, passed: passed.to_vec() });
    }

    fn victim_of(&mut self, index: Option<u32>) -> Option<&mut Victim> {
        let index = index?;
        self.victims.iter_mut().find(|victim| victim.indices.contains(&index))
    }
}

impl Machine for Crook {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, datagram: Datagram) {
        let (now, from, payload) = (moment.now, datagram.src, datagram.payload);
        match Kind::of(&payload) {
            Some(Kind::WireGuard(WireGuard::Initiation)) => {
                let Ok(received) = Received::open(&self.identity, &payload) else { return };
                let index = self.rng.next_u32();
                let mut victims = self.victims.iter_mut();
                let Some(victim) = victims.find(|victim| victim.tunnel.remote() == received.peer) else { return };
                if let Ok((response, _)) = victim.tunnel.handle_initiation(now, received, index, &mut self.rng) {
                    victim.at = Some(from);
                    victim.indices.push(index);
                    self.send(moment, from, response.to_vec());
                }
            }
            Some(Kind::WireGuard(WireGuard::Response)) => {
                let index = receiver_of(&payload, 8);
                let Some(victim) = self.victim_of(index) else { return };
                let _ = victim.tunnel.handle_response(now, index.unwrap_or_default(), &payload);
                let mut keepalive = Packet::with_capacity(0);
                if victim.tunnel.seal(now, &mut keepalive) {
                    self.send(moment, from, keepalive.bytes().to_vec());
                }
            }
            Some(Kind::WireGuard(WireGuard::Transport)) => {
                if let Some(victim) = self.victim_of(receiver_of(&payload, 4)) {
                    let _ = victim.tunnel.open(now, &mut Packet::copy_from(&payload));
                }
            }
            Some(Kind::Dudp(Dudp::Ack)) => {
                let Some(index) = receiver(&payload) else { return };
                let Some(victim) = self.victim_of(Some(index)) else { return };
                let Ok(body) = victim.tunnel.open_probe(now, HEADER_LEN, &payload) else { return };
                let Some(ack) = Ack::parse(&body) else { return };
                let answer = Ack2 { token: ack.token, seen: from }.encode();
                if let Some(answer) = victim.tunnel.seal_probe(now, index, &Dudp::Ack2.header(), &answer) {
                    self.send(moment, from, answer);
                }
            }
            Some(Kind::Dudp(Dudp::MessageControl)) => {
                let Some(victim) = self.victim_of(receiver(&payload)) else { return };
                let giver = victim.tunnel.remote();
                let Ok(body) = victim.tunnel.open_control(now, HEADER_LEN, &payload) else { return };
                if let Some(Introduction::Forward { to, passed }) = Introduction::parse(&body) {
                    self.pass(moment, giver, to, passed);
                }
            }
            _ => {}
        }
        for victim in &mut self.victims {
            while victim.tunnel.poll_event().is_some() {}
        }
    }

    fn handle_timeout(&mut self, _: &mut Moment<'_>) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}
