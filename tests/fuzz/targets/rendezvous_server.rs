//! A rendezvous server among four members, one of whom it does not allow, and somebody who bends, repeats, loses and invents
//! datagrams on the way. The members are real: their handshakes, registrations and calls are valid.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use p2ptund::proto::config::{Host, HostPort, Rendezvous};
use p2ptund::proto::keys::PrivateKey;
use p2ptund::proto::noise::Identity;
use p2ptund::proto::rendezvous::Wait;
use p2ptund::proto::rendezvous::client::{Client, Word};
use p2ptund::proto::rendezvous::server::Server;
use p2ptund::proto::wire::{Dudp, Kind, WireGuard};
use p2ptund::proto::{Instant, Wall};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::input::{Input, bend};

const STEPS: usize = 100;
/// A sealed MESSAGE_CONTROL that says ABSENT: its header, index and counter, 33 bytes and the tag.
const ABSENT_LEN: usize = 8 + 12 + 33 + 16;
const MEMBERS: usize = 4;
const WALL: Duration = Duration::from_secs(1_790_000_000);

struct Member {
    identity: Identity,
    client: Client,
    at: SocketAddr,
    /// Datagrams on their way from the server.
    inbox: Vec<Vec<u8>>,
}

struct Scene {
    now: Instant,
    server: Server,
    members: Vec<Member>,
    rng: ChaCha20Rng,
    /// All that members sent: what was sealed by nobody is none of them.
    sent: Vec<(SocketAddr, Vec<u8>)>,
    genuine: BTreeSet<Vec<u8>>,
    /// How many bytes came to the server, and how many it sent, second copies aside.
    bytes: (usize, usize),
    /// What came to the server.
    arrived: BTreeSet<Vec<u8>>,
    /// What it sent, and where.
    said: BTreeSet<(SocketAddr, Vec<u8>)>,
    /// What members asked the server to pass.
    passed: BTreeSet<(usize, usize, Vec<u8>)>,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut scene = Scene::new(input.u8());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        scene.step(&mut input);
        assert!(scene.server.members() < MEMBERS, "one of them is not allowed, ever");
    }
}

impl Scene {
    fn new(seed: u8) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let key = PrivateKey::from_bytes([100; 32]);
        let at = Rendezvous {
            address: HostPort { host: Host::Ip([198, 51, 100, 9].into()), port: 4274 },
            public_key: key.public(),
        };
        let members: Vec<Member> = (1..=MEMBERS as u8)
            .map(|number| {
                let identity = Identity::new(PrivateKey::from_bytes([number; 32]));
                let client = Client::new(now, &identity, at.clone());
                Member { identity, client, at: ([203, 0, 113, number], 4275).into(), inbox: Vec::new() }
            })
            .collect();
        let allow = members[1..].iter().map(|member| member.identity.public()).collect();
        Self {
            server: Server::new(key, Some(allow), [seed; 32]),
            members,
            rng: ChaCha20Rng::from_seed([seed; 32]),
            sent: Vec::new(),
            genuine: BTreeSet::new(),
            bytes: (0, 0),
            arrived: BTreeSet::new(),
            said: BTreeSet::new(),
            passed: BTreeSet::new(),
            now,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 10 {
            // Everything arrives.
            0..=2 => {
                for (from, datagram) in std::mem::take(&mut self.sent) {
                    self.arrive(from, datagram);
                }
                (0..MEMBERS).for_each(|who| self.deliver(who));
            }
            3 => {
                let who = input.below(MEMBERS);
                self.deliver(who);
            }
            // One arrives, from where it was sent or elsewhere, whole or bent, once or again.
            4 | 5 if !self.sent.is_empty() => {
                let at = input.below(self.sent.len());
                let (mut from, mut datagram) = self.sent[at].clone();
                let mode = input.u8();
                if mode & 1 == 1 {
                    self.sent.remove(at);
                }
                if mode & 2 == 2 {
                    from = input.address();
                }
                if mode & 4 == 4 {
                    bend(input, &mut datagram);
                }
                self.arrive(from, datagram);
            }
            4..=6 => {
                let (from, datagram) = (input.address(), input.piece().to_vec());
                self.arrive(from, datagram);
            }
            7 => {
                let (who, to) = (input.below(MEMBERS), input.below(MEMBERS));
                // The corpus has odd ones for long.
                let wait = [Wait::Never, Wait::Long, Wait::Briefly, Wait::Long][usize::from(input.u8() % 4)];
                let passed = input.piece().to_vec();
                let key = self.members[to].identity.public();
                if self.members[who].client.forward(self.now, key, wait, passed.clone()) {
                    self.passed.insert((who, to, passed));
                }
            }
            8 => {
                let who = input.below(MEMBERS);
                let member = &mut self.members[who];
                match input.u8() % 4 {
                    0 => member.at = ([203, 0, 113, who as u8 + 1], input.u16()).into(),
                    1 => member.inbox.clear(),
                    // Nothing that it says means anything to the member.
                    2 => {
                        let mut datagram = member.inbox.pop().unwrap_or_default();
                        bend(input, &mut datagram);
                        member.inbox.push(datagram);
                    }
                    _ => member.client.renew(self.now),
                }
            }
            _ => self.pass_time(Duration::from_millis(u64::from(input.u16()) * 4)),
        }
        for who in 0..MEMBERS {
            self.collect(who);
        }
    }

    fn pass_time(&mut self, time: Duration) {
        self.now = self.now + time;
        let wall = Wall(WALL + self.now.since(Instant::default()));
        for Member { identity, client, .. } in &mut self.members {
            client.handle_timeout(self.now, wall, identity, &mut self.rng);
        }
        self.server.handle_timeout(self.now);
        assert!(self.server.poll_timeout().is_none_or(|due| due > self.now), "all that was due is done");
        while let Some((_, to, copy)) = self.server.poll_transmit() {
            let answered = |(at, said): &(SocketAddr, Vec<u8>)| {
                *at == to && matches!(Kind::of(said), Some(Kind::WireGuard(WireGuard::Response)))
            };
            assert!(self.said.iter().any(answered), "a second copy goes where a handshake was answered");
            if let Some(member) = self.members.iter_mut().find(|member| member.at == to) {
                member.inbox.push(copy.clone());
            }
            let is_last_word =
                copy.len() == ABSENT_LEN && matches!(Kind::of(&copy), Some(Kind::Dudp(Dudp::MessageControl)));
            let is_copy = self.said.contains(&(to, copy.clone()));
            assert!(
                is_copy || is_last_word,
                "a server speaks when it is spoken to, says it again, or that it waits no longer"
            );
            self.said.insert((to, copy));
        }
    }

    /// Takes what member `who` sends.
    fn collect(&mut self, who: usize) {
        let member = &mut self.members[who];
        while let Some(transmit) = member.client.poll_transmit() {
            self.genuine.insert(transmit.payload.clone());
            self.sent.push((member.at, transmit.payload));
        }
        while member.client.poll_action().is_some() {}
        // A network does not hold more.
        self.sent.drain(..self.sent.len().saturating_sub(64));
    }

    /// A datagram comes to the server.
    fn arrive(&mut self, from: SocketAddr, datagram: Vec<u8>) {
        let dropped = self.server.drops().total();
        self.server.handle_datagram(self.now, 0, from, &mut datagram.clone());
        let dropped = self.server.drops().total() - dropped;
        let (mut answers, mut held) = (0, 0_u64);
        self.bytes.0 += datagram.len();
        while let Some((listener, to, answer)) = self.server.poll_transmit() {
            self.bytes.1 += answer.len();
            self.said.insert((to, answer.clone()));
            // What was held follows the answer to a member's first word.
            if answers == 1 || (dropped == 1 && answers == 0 && answer.len() > datagram.len()) {
                assert!(matches!(Kind::of(&answer), Some(Kind::Dudp(Dudp::MessageControl))));
                held += 1;
            } else {
                answers += 1;
                assert!(answer.len() <= datagram.len(), "nobody is amplified");
            }
            assert_eq!(listener, 0);
            if let Some(member) = self.members.iter_mut().find(|member| member.at == to) {
                member.inbox.push(answer);
            }
        }
        assert!(self.bytes.1 <= self.bytes.0, "nobody is amplified by what is held");
        assert!(held < MEMBERS as u64, "each other member has one call held");
        let is_new = self.arrived.insert(datagram.clone());
        assert!(
            answers + held + dropped >= 1 || !is_new,
            "what is not answered or passed is counted, but for second copies"
        );
        assert!(answers <= 1 && dropped <= 1, "{answers} answers, {dropped} drops for one datagram");
        let sealed = matches!(Kind::of(&datagram), Some(Kind::Dudp(Dudp::Register | Dudp::MessageControl)));
        let fits = matches!(
            Kind::of(&datagram),
            Some(Kind::Dudp(Dudp::Register | Dudp::MessageControl) | Kind::WireGuard(WireGuard::Initiation))
        );
        if !fits || (sealed && !self.genuine.contains(&datagram)) {
            assert_eq!(dropped, 1, "what nobody sealed is dropped");
        }
    }

    fn deliver(&mut self, who: usize) {
        for datagram in std::mem::take(&mut self.members[who].inbox) {
            let (now, at) = (self.now, ([198, 51, 100, 9], 4274).into());
            let client = &mut self.members[who].client;
            match Kind::of(&datagram) {
                Some(Kind::WireGuard(WireGuard::Response)) => {
                    let _ = client.handle_response(now, at, &datagram, &mut self.rng);
                }
                Some(Kind::WireGuard(WireGuard::CookieReply)) => {
                    let _ = client.handle_cookie_reply(now, &datagram);
                }
                Some(Kind::Dudp(Dudp::Reset)) => {
                    let _ = client.handle_reset(now, at, &datagram);
                }
                Some(Kind::Dudp(kind)) => {
                    if let Ok(Word::Deliver { from, passed, .. }) = client.handle_sealed(now, kind, at, &datagram) {
                        let from = self.members.iter().position(|member| member.identity.public() == from);
                        let told = (from.expect("is one of them"), who, passed);
                        assert!(
                            self.passed.contains(&told),
                            "what is delivered is what was sent, from whom it was sent"
                        );
                    }
                }
                _ => {}
            }
        }
    }
}
