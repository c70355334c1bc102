//! Probes: what an authentic DUDP_ACK or DUDP_ACK2 means for a peer's paths (patent \[0070\] to \[0073\]).
//!
//! ```text
//! ACK in            heard: payload may go back, if the sealed call named the address; our own ACK goes the same way
//! ACK2 in           proved: the way works in both directions; from another port than was asked, it is heard there
//! sounding in       answered: a datagram of its length arrives; nothing else comes of it
//! ACK overheard     our own ACK goes the same way, past a firewall on this machine, and opens that
//! caller, proved    ─► ACK with `chosen` ─► the called member takes the same way, and both close all other sockets
//! ```
//!
//! Where hundreds of ports shoot at hundreds ([`crate::proto::plan::Strategy::is_a_crowd`]), a filter that asks less than its mapping lets in most of them, by
//! ways that lead nowhere: none of them is heard in this sense, few are answered, and a called member that has proof tells the caller.

use std::time::Duration;

use rand_chacha::rand_core::RngCore;

use super::{Call, Peer};
use crate::proto::action::{Drop, Event};
use crate::proto::context::Local;
use crate::proto::message_control::reachable;
use crate::proto::path::{Ask, Goal, PROOF_TRIES, Way, method_of};
use crate::proto::probe::{Ack, Ack2, parse_sounding};
use crate::proto::punch::Role;
use crate::proto::snapshot::Method;
use crate::proto::wire::{Dudp, HEADER_LEN};
use crate::proto::{Instant, SocketId};

/// Of a round, so much may pass until a peer that was heard has answered: a round trip and some ([`crate::proto::plan::Pace`]).
const HEARD: u32 = 4;
/// Behind a NAT of which too little is known, the punch waits for so many answers: with 2 % lost on each of four links, all are
/// once in 350,000 times.
const UNSURE_TRIES: u32 = 5;

impl Peer {
    /// DUDP_ACK or DUDP_ACK2 under one of our sessions.
    pub fn handle_probe(
        &mut self,
        now: Instant,
        local: &mut Local,
        way: Way,
        kind: Dudp,
        datagram: &[u8],
    ) -> Result<(), Drop> {
        let index = crate::proto::rendezvous::receiver(datagram).ok_or(Drop::Malformed)?;
        let body = self.tunnel.open_probe(now, HEADER_LEN, datagram)?;
        self.note_member();
        self.paths.note_heard(now, way);
        match kind {
            Dudp::Ack => {
                let ack = Ack::parse(&body);
                let token = ack.map(|ack| ack.token).or_else(|| parse_sounding(&body)).ok_or(Drop::Malformed)?;
                if ack.is_some_and(|ack| ack.shot) && !self.may_answer(way) {
                    return Ok(());
                }
                let answer = Ack2 { token, seen: way.remote }.encode();
                if let Some(payload) = self.tunnel.seal_probe(now, index, &Dudp::Ack2.header(), &answer) {
                    local.send(way, payload);
                }
                let Some(ack) = ack else {
                    self.drive(now, local);
                    return Ok(());
                };
                self.on_ack(now, local, way, ack);
                if self.paths.is_current(way) && self.paths.rtt().is_none() {
                    // Our greeting, or its answer, was lost.
                    self.challenge(now, local, way, Goal::Greet);
                }
            }
            _ => {
                let ack2 = Ack2::parse(&body).ok_or(Drop::Malformed)?;
                if way.socket == SocketId::MAIN_V4 {
                    self.seen = reachable(ack2.seen);
                }
                self.on_ack2(now, local, way, ack2);
            }
        }
        self.drive(now, local);
        Ok(())
    }

    /// A probe that a firewall on this machine may have kept from our socket: what we ask at once opens that for the answer, which is
    /// what proves a path. Errors: not a probe of the peer's, or one that came by the socket already.
    pub fn handle_overheard(&mut self, now: Instant, local: &mut Local, way: Way, datagram: &[u8]) -> Result<(), Drop> {
        if !self.is_punching() {
            return Err(Drop::Unknown);
        }
        let body = self.tunnel.open_probe(now, HEADER_LEN, datagram)?;
        let ack = Ack::parse(&body).ok_or(Drop::Malformed)?;
        if !self.paths.is_current(way) {
            let method = method_of(ack.via).unwrap_or_else(|| self.punch_method(way));
            self.challenge(now, local, way, Goal::Move(method));
        }
        self.drive(now, local);
        Ok(())
    }

    /// It speaks the family, so its paths can be asked.
    pub(super) fn note_member(&mut self) {
        self.is_member = true;
        self.paths.watch();
    }

    /// The peer is at `way`, and gets through to us.
    fn on_ack(&mut self, now: Instant, local: &mut Local, way: Way, ack: Ack) {
        if self.paths.is_current(way) {
            if ack.chosen {
                self.follow(now, local, way);
            }
            return;
        }
        if !ack.chosen && self.is_settled() && (self.paths.was_left(now, way) || self.paths.was_declined(now, way)) {
            return;
        }
        let via = method_of(ack.via);
        let (called, punching) = match &self.call {
            Call::Punching(punching) => (punching.punch.role() == Role::Called, true),
            _ => (false, false),
        };
        if ack.shot && !punching && self.is_settled() {
            // It looks for a path, and goes on by the one that we have until it has found another.
            return;
        }
        let method = via.unwrap_or_else(|| self.punch_method(way));
        let known = self.is_known(way);
        if ack.chosen && (called || !punching) {
            // The caller decides. Payload follows at once to an address that its sealed call named; that the way works in both
            // directions, its choice says. Any other address is asked first.
            if known {
                self.adopt(now, local, way, method, true);
                self.follow(now, local, way);
            } else {
                self.challenge(now, local, way, Goal::Follow(method));
            }
        } else {
            self.hear(now, local, way, method, ack.shot);
        }
    }

    /// The peer was heard on `way` in a call; `shot`: by a guess, not by a question that it asks where it hears us. An address that its
    /// sealed report names is most likely where it hears us, too: payload follows at once, and nothing is shot until it has had the time
    /// to say so. Any other is asked first.
    pub(super) fn hear(&mut self, now: Instant, local: &mut Local, way: Way, method: Method, shot: bool) {
        let Call::Punching(punching) = &self.call else { return self.challenge(now, local, way, Goal::Move(method)) };
        if !shot {
            self.paths.prefer(way);
        }
        // Where many guess at many, a filter that asks less than its mapping lets in hundreds that say nothing.
        let says_little = shot && punching.may_hear_a_crowd(punching.ours());
        if says_little || !self.is_known(way) || self.paths.current().is_some() || self.paths.is_deaf(now, way) {
            return self.challenge(now, local, way, Goal::Move(method));
        }
        let retry = punching.parties.terms.round / HEARD;
        let tries = match punching.ours().may_hear_in_vain() {
            Some(false) => PROOF_TRIES,
            None => UNSURE_TRIES,
            Some(true) => 1,
        };
        self.adopt(now, local, way, method, false);
        if let Call::Punching(punching) = &mut self.call {
            punching.punch.hold_fire(now + retry * tries);
        }
        self.challenge(now, local, way, Goal::Prove(method, retry));
    }

    /// Where both have hundreds of ports, a filter that asks less than its mapping lets in most shots, and an answer to one may make a
    /// mapping: answers are counted as shots are. They are good ones, for there is somebody at the port that they go to.
    fn may_answer(&mut self, way: Way) -> bool {
        match &mut self.call {
            Call::Punching(punching) if punching.may_hear_a_crowd(punching.ours()) => {
                punching.punch.take_answer(way.socket, way.remote)
            }
            _ => true,
        }
    }

    /// The caller's choice is ours. It was proved by the caller's probe; ours, once, tells how long it takes. What else is proved
    /// from now on is no better: the caller has closed it.
    fn follow(&mut self, now: Instant, local: &mut Local, way: Way) {
        self.paths.prove();
        self.settle(now, local, way);
        if self.paths.rtt().is_none() {
            self.challenge(now, local, way, Goal::Greet);
        }
    }

    /// The way on which a probe of ours was answered works both ways.
    fn on_ack2(&mut self, now: Instant, local: &mut Local, way: Way, ack2: Ack2) {
        if self.mtu.handle_answer(now, way, ack2.token) {
            return;
        }
        if let Some((goal, rtt)) = self.paths.handle_answer(now, way, ack2.token) {
            match goal {
                Goal::Check => self.broke = false,
                Goal::Greet => {}
                Goal::Follow(method) => {
                    self.adopt(now, local, way, method, true);
                    self.settle(now, local, way);
                }
                Goal::Ping(token) => local.tell(Event::Pong { token, rtt }),
                Goal::Choose => self.settle(now, local, way),
                Goal::Prove(method, _) | Goal::Move(method) => self.on_proved(now, local, way, method, Some(rtt)),
            }
            return;
        }
        let Call::Punching(punching) = &self.call else { return };
        let Some((socket, to, at)) = punching.punch.fired(ack2.token) else { return };
        if (Way { socket, remote: to }) != way {
            // Its answer left by another port than where it heard us, and came in: there we reach it.
            if !self.paths.is_proved() && self.may_answer(way) {
                let method = self.punch_method(way);
                self.hear(now, local, way, method, false);
            }
            return;
        }
        let method = self.candidate_method(way).unwrap_or_else(|| self.punch_method(way));
        self.on_proved(now, local, way, method, Some(now.since(at)));
    }

    fn on_proved(&mut self, now: Instant, local: &mut Local, way: Way, method: Method, rtt: Option<Duration>) {
        let called = matches!(&self.call, Call::Punching(punching) if punching.punch.role() == Role::Called);
        let was_current = self.paths.is_current(way);
        // Roaming: the peer sends from there now, so that is where it is to be answered.
        if !was_current && !self.paths.improves(method) && method != Method::Roamed {
            self.paths.decline(now, way);
            return;
        }
        let method = if was_current { self.paths.current().map_or(method, |path| path.method) } else { method };
        // The caller chooses; but where it went while it called is no choice.
        if called && self.paths.is_proved() && !was_current && method != Method::Roamed {
            self.paths.decline(now, way);
            return;
        }
        self.adopt(now, local, way, method, true);
        if let Some(rtt) = rtt {
            self.paths.note_rtt(rtt);
        }
        if !called {
            self.challenge(now, local, way, Goal::Choose);
        } else if self.may_be_heard_in_vain() {
            // Among all that the caller hears, this is where it hears us, and it is for the caller to choose.
            self.challenge(now, local, way, Goal::Greet);
        }
    }

    /// Whether the peer, in a call, may hear us by many ways that don't lead back.
    fn may_be_heard_in_vain(&self) -> bool {
        matches!(&self.call, Call::Punching(punching) if punching.may_hear_a_crowd(punching.theirs()))
    }

    /// Whether a way leads to an address that the peer's sealed report names.
    pub(super) fn is_known(&self, way: Way) -> bool {
        let Call::Punching(punching) = &self.call else { return false };
        let ip = way.remote.ip();
        let theirs = punching.theirs();
        theirs.tuple.is_some_and(|tuple| tuple.ip() == ip)
            || theirs.candidates.iter().any(|candidate| candidate.address.ip() == ip)
    }

    /// The path of a call is chosen: everything else that the call opened is closed.
    pub(super) fn settle(&mut self, now: Instant, local: &mut Local, way: Way) {
        if self.is_punching() {
            self.learn(local, way);
            self.end_call(local, Some(way.socket));
            self.end_budget(now, local);
        }
    }

    pub(super) fn challenge(&mut self, now: Instant, local: &mut Local, way: Way, goal: Goal) {
        let token = local.rng.next_u64();
        if let Some(ask) = self.paths.challenge(now, way, goal, token) {
            self.ask(now, local, ask);
        }
    }

    pub(super) fn ask(&mut self, now: Instant, local: &mut Local, ask: Ask) {
        let Some(index) = self.probe_index() else { return };
        let body = Ack { token: ask.token, via: None, chosen: ask.chosen, shot: false }.encode();
        if let Some(payload) = self.tunnel.seal_probe(now, index, &Dudp::Ack.header(), &body) {
            local.send(ask.way, payload);
            self.probes_sent += 1;
        }
    }

    /// The session whose keys probes are sealed with: the call's while it lasts, for it may not be the tunnel's current one yet.
    pub(super) fn probe_index(&self) -> Option<u32> {
        match &self.call {
            Call::Punching(punching) => Some(punching.index),
            _ => self.tunnel.current_index().or(self.punched_index),
        }
    }
}
