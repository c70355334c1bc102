//! Two tunnels, a clock that is a number, and a wire that can lose what is on it.

mod cipher;
mod handshakes;

use super::*;
use crate::proto::keys::PrivateKey;
use crate::proto::tunnel::timers::KEEPALIVE_TIMEOUT;
use proptest::prelude::*;
use rand_chacha::rand_core::SeedableRng;
use std::collections::HashSet;

/// One way over the wire.
const LATENCY: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

fn inner(mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; 40];
    packet[..20].fill(0);
    (packet[0], packet[3]) = (0x45, 40);
    packet
}

struct Side {
    tunnel: Tunnel,
    identity: Identity,
    next_index: u32,
    /// Indices that the tunnel has from us.
    indices: HashSet<u32>,
    events: Vec<(Instant, TunnelEvent)>,
    received: Vec<(Instant, u8)>,
    /// How many datagrams of each type it sent.
    sent: [u32; 5],
    /// Whether it sends initiations when it is told to.
    obeys: bool,
}

struct World {
    now: Instant,
    sides: [Side; 2],
    /// When, to whom, what.
    wire: Vec<(Instant, usize, Vec<u8>)>,
    /// Receiver's index and counter of all transport data ever sealed, by sender.
    nonces: HashSet<(usize, u32, u64)>,
    /// Loses every so many-th datagram; all of them, where 1.
    lose_each: Option<u32>,
    carried: u32,
    rng: ChaCha20Rng,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::PAYLOAD)
    }

    fn with(limits: Limits) -> Self {
        let identities = [1, 2].map(|byte| Identity::new(PrivateKey::from_bytes([byte; 32])));
        let publics = [identities[1].public(), identities[0].public()];
        let mut publics = publics.into_iter();
        let sides = identities.map(|identity| Side {
            tunnel: Tunnel::new(&identity, publics.next().expect("two"), None, limits),
            identity,
            next_index: 0,
            indices: HashSet::new(),
            events: Vec::new(),
            received: Vec::new(),
            sent: [0; 5],
            obeys: true,
        });
        Self {
            now: Instant::from_nanos(1_000_000_000),
            sides,
            wire: Vec::new(),
            nonces: HashSet::new(),
            lose_each: None,
            carried: 0,
            rng: ChaCha20Rng::from_seed([9; 32]),
        }
    }

    fn wall(&self) -> Wall {
        Wall(Duration::from_secs(1_790_000_000) + self.now.since(Instant::default()))
    }

    fn index(&mut self, side: usize) -> u32 {
        let side = &mut self.sides[side];
        side.next_index += 1;
        assert!(side.indices.insert(side.next_index));
        side.next_index
    }

    fn transmit(&mut self, from: usize, datagram: Vec<u8>) {
        self.sides[from].sent[usize::from(datagram[0])] += 1;
        if datagram[0] == 4 {
            let receiver = receiver_of(&datagram, 4).expect("long enough");
            let counter = u64::from_le_bytes(datagram[8..16].try_into().expect("8 bytes"));
            assert!(self.nonces.insert((from, receiver, counter)), "a nonce repeats");
        }
        self.carried += 1;
        if self.lose_each.is_none_or(|each| !self.carried.is_multiple_of(each)) {
            self.wire.push((self.now + LATENCY, 1 - from, datagram));
        }
    }

    fn say(&mut self, from: usize, mark: u8) {
        self.seal(from, Packet::copy_from(&inner(mark)));
    }

    fn seal(&mut self, from: usize, mut packet: Packet) {
        if self.sides[from].tunnel.seal(self.now, &mut packet) {
            self.transmit(from, packet.bytes().to_vec());
        }
        self.drain(from);
    }

    fn begin(&mut self, from: usize) {
        let (index, wall) = (self.index(from), self.wall());
        let (initiation, _) = self.sides[from].tunnel.start_handshake(self.now, wall, index, &mut self.rng);
        self.transmit(from, initiation.to_vec());
    }

    fn drain(&mut self, side: usize) {
        while let Some(event) = self.sides[side].tunnel.poll_event() {
            self.sides[side].events.push((self.now, event));
            match event {
                TunnelEvent::WantHandshake { .. } if self.sides[side].obeys => self.begin(side),
                TunnelEvent::WantKeepalive => self.seal(side, Packet::with_capacity(0)),
                TunnelEvent::Retired(index) => assert!(self.sides[side].indices.remove(&index), "{index} twice"),
                TunnelEvent::WantHandshake { .. } | TunnelEvent::HandshakeExpired | TunnelEvent::Established { .. } => {
                }
            }
        }
        while let Some(packet) = self.sides[side].tunnel.poll_queued(self.now) {
            self.seal(side, packet);
        }
        let known: HashSet<u32> = self.sides[side].tunnel.indices().collect();
        assert_eq!(known, self.sides[side].indices, "each index that is not retired is in use");
    }

    fn deliver(&mut self, to: usize, datagram: &[u8]) -> Result<(), Drop> {
        let index = self.index(to);
        let now = self.now;
        let side = &mut self.sides[to];
        side.indices.remove(&index);
        match datagram[0] {
            1 => {
                let received = Received::open(&side.identity, datagram)?;
                let (response, _) = side.tunnel.handle_initiation(now, received, index, &mut self.rng)?;
                side.indices.insert(index);
                self.transmit(to, response.to_vec());
            }
            2 => {
                let index = receiver_of(datagram, 8).ok_or(Drop::Malformed)?;
                side.tunnel.handle_response(now, index, datagram)?;
            }
            _ => {
                let mut packet = Packet::copy_from(datagram);
                let opened = side.tunnel.open(now, &mut packet)?;
                if opened.payload != Payload::Keepalive {
                    assert_eq!(packet.bytes().len(), 40, "padding is off");
                    side.received.push((now, packet.bytes()[39]));
                }
            }
        }
        self.drain(to);
        Ok(())
    }

    /// Sleeps exactly to each deadline, as the shell does, until `until`.
    fn run_until(&mut self, until: Instant) {
        loop {
            let timeouts = self.sides.iter().filter_map(|side| side.tunnel.poll_timeout());
            let arrivals = self.wire.iter().map(|(at, ..)| *at);
            let next = timeouts.chain(arrivals).min().filter(|next| *next <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            let (due, later) = std::mem::take(&mut self.wire).into_iter().partition(|(at, ..)| *at <= self.now);
            self.wire = later;
            for (_, to, datagram) in due {
                let _ = self.deliver(to, &datagram);
            }
            for side in 0..2 {
                self.sides[side].tunnel.handle_timeout(self.now);
                self.drain(side);
                let next = self.sides[side].tunnel.poll_timeout();
                assert!(next.is_none_or(|next| next > self.now), "a deadline that passed is no deadline");
            }
        }
        self.now = until;
    }

    fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn connect(&mut self) {
        self.begin(0);
        self.run(SECOND);
        assert!(self.sides.iter().all(|side| side.tunnel.is_established(self.now)));
    }

    fn marks(&self, side: usize) -> Vec<u8> {
        self.sides[side].received.iter().map(|(_, mark)| *mark).collect()
    }

    fn count(&self, side: usize, is: impl Fn(&TunnelEvent) -> bool) -> usize {
        self.sides[side].events.iter().filter(|(_, event)| is(event)).count()
    }

    fn silence(&mut self) {
        self.lose_each = Some(1);
    }
}

fn is_established(event: &TunnelEvent) -> bool {
    matches!(event, TunnelEvent::Established { .. })
}

#[test]
fn a_packet_starts_the_handshake_and_arrives_after_three_ways() {
    let mut world = World::new();
    let start = world.now;
    world.say(0, 1);
    world.run(SECOND);
    assert_eq!(world.sides[1].received, [(start + LATENCY * 3, 1)]);
    let events = [
        TunnelEvent::WantHandshake { retry: false },
        TunnelEvent::Established { initiator: true, handshake_rtt: Some(LATENCY * 2) },
    ];
    assert!(world.sides[0].events.iter().map(|(_, event)| event).eq(&events));
    let confirmed = (start + LATENCY * 3, TunnelEvent::Established { initiator: false, handshake_rtt: None });
    assert_eq!(world.sides[1].events, [confirmed]);
}

#[test]
fn a_responder_sends_nothing_before_the_first_packet_came() {
    let mut world = World::new();
    world.begin(0);
    world.run(LATENCY);
    assert!(!world.sides[1].tunnel.is_established(world.now));
    world.say(1, 1);
    assert_eq!(world.sides[1].sent[4], 0);
    world.run(SECOND);
    assert_eq!(world.marks(0), [1], "it was kept until then");
}

#[test]
fn with_nothing_to_say_a_new_session_is_confirmed_by_a_keepalive() {
    let mut world = World::new();
    world.connect();
    assert_eq!(world.sides[0].sent, [0, 1, 0, 0, 1]);
    assert_eq!(world.sides[1].sent, [0, 0, 1, 0, 0]);
    world.run(Duration::from_secs(100));
    assert_eq!(world.sides[0].sent[4], 1, "and then it is quiet");
}

#[test]
fn bytes_are_counted_as_wg_counts_them() {
    let mut world = World::new();
    world.connect();
    world.say(0, 1);
    world.run(SECOND);
    let tx = 148 + 32 + (48 + 32);
    assert_eq!(world.sides[0].tunnel.traffic(), (tx, 92));
    assert_eq!(world.sides[1].tunnel.traffic(), (92, tx));
}

#[test]
fn a_talk_in_both_directions_goes_through_rekeys_without_losing_a_packet() {
    let mut world = World::new();
    world.connect();
    for second in 0..600u32 {
        world.say(0, second as u8);
        world.say(1, second as u8);
        world.run(SECOND);
    }
    let all: Vec<u8> = (0..600u32).map(|second| second as u8).collect();
    assert_eq!(world.marks(0), all);
    assert_eq!(world.marks(1), all);
    let handshakes = world.count(0, is_established);
    assert_eq!(handshakes, 5, "one each 120 s and the first");
    assert_eq!(world.sides[1].sent[1], 0, "the responder leaves it to the initiator");
}

#[test]
fn a_talk_survives_the_loss_of_every_third_datagram() {
    let mut world = World::new();
    world.lose_each = Some(3);
    for second in 0..600u32 {
        world.say(0, second as u8);
        world.say(1, second as u8);
        world.run(SECOND);
    }
    for side in 0..2 {
        let arrived = world.sides[side].received.len();
        assert!(arrived > 350, "{arrived} of 600 arrived");
    }
}

#[test]
fn a_download_is_rekeyed_by_its_receiver_before_the_session_ends() {
    let mut world = World::new();
    world.connect();
    // The initiator hears and says nothing but keepalives, so rekeying falls to what it receives (165 s) or those.
    for _ in 0..400 {
        world.say(1, 1);
        world.run(SECOND);
    }
    assert_eq!(world.sides[0].received.len(), 400);
}

#[test]
fn who_only_receives_sends_a_keepalive_after_ten_seconds() {
    let mut world = World::new();
    world.connect();
    let start = world.now;
    world.say(0, 1);
    world.run(Duration::from_secs(9));
    assert_eq!(world.sides[1].sent[4], 0);
    world.run(Duration::from_secs(60));
    assert_eq!(world.sides[1].sent[4], 1);
    let keepalive = (start + LATENCY + KEEPALIVE_TIMEOUT, TunnelEvent::WantKeepalive);
    assert_eq!(world.sides[1].events.last(), Some(&keepalive));
    assert_eq!(world.sides[0].sent[4], 2, "a keepalive is not answered");
}

#[test]
fn who_answered_owes_no_keepalive() {
    let mut world = World::new();
    world.connect();
    world.say(0, 1);
    world.run(SECOND);
    world.say(1, 1);
    world.run(Duration::from_secs(60));
    assert_eq!(world.sides[1].sent[4], 1, "the answer");
    assert_eq!(world.sides[0].sent[4], 3, "the first, what it said, and a keepalive for the answer");
}

#[test]
fn a_packet_that_comes_late_in_a_session_makes_its_initiator_rekey() {
    let mut world = World::new();
    world.connect();
    world.run(Duration::from_secs(166));
    world.say(1, 1);
    world.run(SECOND);
    assert_eq!(world.sides[0].sent[1], 2);
    assert_eq!(world.count(0, is_established), 2);
}

#[test]
fn a_responder_does_not_rekey_an_old_session_that_it_hears_from() {
    let mut world = World::new();
    world.connect();
    world.run(Duration::from_secs(166));
    world.sides[0].obeys = false;
    world.say(0, 1);
    world.run(SECOND);
    assert_eq!(world.sides[1].received.len(), 1);
    assert_eq!(world.sides[1].sent[1], 0);
}

#[test]
fn either_side_rekeys_a_session_that_sealed_too_much() {
    for side in 0..2 {
        let mut world = World::with(Limits { rekey_after_messages: 10, ..Limits::PAYLOAD });
        world.connect();
        for mark in 0..11 {
            world.say(side, mark);
        }
        world.run(SECOND);
        assert_eq!(world.sides[side].sent[1], 2 - side as u32);
        assert_eq!(world.marks(1 - side), (0..11).collect::<Vec<u8>>());
    }
}

#[test]
fn the_queue_keeps_the_latest_packets_and_no_more_than_it_may() {
    let mut world = World::new();
    for mark in 0..40 {
        world.say(0, mark);
    }
    world.run(SECOND);
    assert_eq!(world.marks(1), (8..40).collect::<Vec<u8>>());
}

#[test]
fn a_session_seals_and_opens_nothing_after_180_seconds() {
    let mut world = World::new();
    world.connect();
    world.sides[0].obeys = false;
    world.sides[1].obeys = false;
    let mut packet = Packet::copy_from(&inner(1));
    assert!(world.sides[0].tunnel.seal(world.now, &mut packet));
    world.run(Duration::from_secs(180));
    assert!(!world.sides[0].tunnel.is_established(world.now));
    let index = world.sides[0].tunnel.current_index().expect("still there");
    assert_eq!(world.sides[0].tunnel.seal_probe(world.now, index, b"ACK", b""), None);
    assert_eq!(world.sides[1].tunnel.open(world.now, &mut packet), Err(Drop::Unknown));
    world.say(0, 2);
    assert_eq!(world.sides[0].sent[4], 1, "the one before");
}

#[test]
fn after_540_seconds_all_keys_and_indices_are_gone() {
    let mut world = World::new();
    world.connect();
    world.run(Duration::from_secs(541));
    for side in &world.sides {
        assert_eq!(side.tunnel.indices().count(), 0);
        assert!(side.indices.is_empty());
        assert_eq!(side.tunnel.poll_timeout(), None);
    }
}

#[test]
fn the_persistent_keepalive_counts_from_the_last_packet_sent() {
    let mut world = World::new();
    world.connect();
    let now = world.now;
    world.sides[0].tunnel.set_keepalive(now, Some(Duration::from_secs(15)));
    world.run(Duration::from_secs(7));
    world.say(0, 1);
    let said = world.now;
    world.run(Duration::from_secs(14));
    assert_eq!(world.sides[0].sent[4], 2);
    // The other side hears packets that carry nothing, and needs not answer those.
    world.run_until(said + Duration::from_secs(60));
    assert_eq!(world.sides[0].sent[4], 6);
    let now = world.now;
    world.sides[0].tunnel.set_keepalive(now, None);
    world.run(Duration::from_secs(60));
    assert_eq!(world.sides[0].sent[4], 6);
}

#[test]
fn a_persistent_keepalive_keeps_a_session_alive_for_an_hour() {
    let mut world = World::new();
    world.connect();
    let now = world.now;
    world.sides[1].tunnel.set_keepalive(now, Some(Duration::from_secs(15)));
    world.run(Duration::from_secs(3600));
    let quiet = world.sides[0].sent[4] + world.sides[1].sent[4];
    assert!(world.sides.iter().all(|side| side.tunnel.is_established(world.now)));
    assert!(quiet <= 3600 / 15 + 60, "{quiet} packets");
}

#[test]
fn a_restarted_peer_is_back_as_soon_as_it_speaks_or_is_missed() {
    let mut world = World::new();
    world.connect();
    let identity = world.sides[1].identity.clone();
    let remote = world.sides[0].identity.public();
    world.sides[1].tunnel = Tunnel::new(&identity, remote, None, Limits::PAYLOAD);
    world.sides[1].indices.clear();
    world.say(0, 1);
    world.run(Duration::from_secs(17));
    world.say(0, 2);
    world.run(SECOND);
    assert_eq!(world.marks(1), [2]);
}

#[test]
fn control_messages_ride_in_the_session_and_probes_beside_it() {
    let mut world = World::with(Limits::SIGNALLING);
    let now = world.now;
    assert_eq!(world.sides[0].tunnel.seal_control(now, &[0x20, 0, 0, 0], b"register"), None);
    world.drain(0);
    world.run(SECOND);
    let now = world.now;
    let [ours, theirs] = &mut world.sides;
    let message = ours.tunnel.seal_control(now, &[0x20, 0, 0, 0], b"register").expect("there is a session");
    assert_eq!(theirs.tunnel.open_control(now, 4, &message).as_deref(), Ok(&b"register"[..]));
    assert_eq!(theirs.tunnel.open_control(now, 4, &message), Err(Drop::Replayed));
    let index = ours.tunnel.current_index().expect("there is one");
    let probe = ours.tunnel.seal_probe(now, index, &[0x31], b"round 1").expect("there is a session");
    assert_eq!(theirs.tunnel.open_probe(now, 1, &probe).as_deref(), Ok(&b"round 1"[..]));
    assert_eq!(theirs.tunnel.open_probe(now, 1, &probe), Err(Drop::Replayed));
    for len in 0..probe.len() {
        assert!(theirs.tunnel.open_probe(now, 1, &probe[..len]).is_err());
    }
    for len in 0..message.len() {
        assert!(theirs.tunnel.open_control(now, 4, &message[..len]).is_err());
    }
}

#[test]
fn an_authentic_probe_confirms_a_session_and_the_responder_may_probe_before_it() {
    let mut world = World::new();
    world.begin(0);
    world.run(LATENCY);
    let now = world.now;
    // The response is on its way; the hole is being punched from this side already.
    let theirs = world.sides[1].tunnel.indices().next().expect("one");
    let early = world.sides[1].tunnel.seal_probe(now, theirs, b"ACK", b"").expect("the keys are there");
    let response = world.wire.pop().expect("on the wire").2;
    let ours = receiver_of(&response, 8).expect("long enough");
    world.sides[0].tunnel.handle_response(now, ours, &response).expect("authentic");
    assert!(world.sides[0].tunnel.open_probe(now, 3, &early).is_ok());
    let probe = world.sides[0].tunnel.seal_probe(now, ours, b"ACK", b"").expect("the keys are there");
    assert!(!world.sides[1].tunnel.is_established(now));
    assert!(world.sides[1].tunnel.open_probe(now, 3, &probe).is_ok());
    assert!(world.sides[1].tunnel.is_established(now));
}

#[test]
fn a_session_with_a_server_lives_for_an_hour() {
    let mut world = World::with(Limits::SIGNALLING);
    world.connect();
    let now = world.now;
    world.sides[0].tunnel.set_keepalive(now, Some(Duration::from_secs(20)));
    world.run(Duration::from_secs(3500));
    assert_eq!(world.sides[0].sent[1], 1);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.sides[0].sent[1], 2);
    assert!(world.sides[0].tunnel.is_established(world.now));
}

#[test]
fn a_datagram_of_any_length_and_type_does_not_make_it_panic() {
    let mut world = World::new();
    world.connect();
    let index = world.sides[0].tunnel.current_index().expect("there is one");
    for kind in 0..6 {
        for len in 0..200 {
            let mut datagram = vec![0; len.max(1)];
            datagram[0] = kind;
            for at in [4, 8] {
                if let Some(bytes) = datagram.get_mut(at..at + 4) {
                    bytes.copy_from_slice(&index.to_le_bytes());
                }
            }
            assert!(world.deliver(0, &datagram).is_err());
            assert!(world.sides[0].tunnel.handle_cookie(world.now, index, &datagram).is_err());
        }
    }
}

#[test]
fn an_inner_packet_that_is_no_ip_packet_is_dropped_but_proves_the_session() {
    let mut world = World::new();
    world.begin(0);
    world.run(LATENCY * 2);
    world.wire.clear();
    let now = world.now;
    let mut packet = Packet::copy_from(b"what is this?");
    assert!(world.sides[0].tunnel.seal(now, &mut packet));
    assert_eq!(world.sides[1].tunnel.open(now, &mut packet), Err(Drop::NoRoute));
    assert!(world.sides[1].tunnel.is_established(now));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was said, lost, begun, repeated and waited for: the world's own checks hold (no nonce twice, every index
    /// retired once, every deadline ahead), no packet arrives twice, and once the wire is whole both can talk again.
    #[test]
    fn any_course_of_events_ends_in_a_talk(steps in prop::collection::vec((0u8..6, 0usize..2, 1u64..40_000), 1..40)) {
        let mut world = World::new();
        let mut mark = [0u8; 2];
        for (what, side, millis) in steps {
            match what {
                0 | 1 => {
                    mark[side] += 1;
                    world.say(side, mark[side]);
                }
                2 => world.begin(side),
                3 => world.lose_each = Some(1 + (millis % 4) as u32),
                4 => world.lose_each = None,
                _ => {
                    let again: Vec<_> = world.wire.iter().map(|(at, to, bytes)| (*at + LATENCY, *to, bytes.clone())).collect();
                    world.wire.extend(again);
                    world.run(Duration::from_millis(millis));
                }
            }
        }
        world.lose_each = None;
        // As long as a dead session can go unnoticed, and a retry.
        for _ in 0..3 {
            world.run(Duration::from_secs(10));
            world.say(0, 201);
            world.say(1, 201);
        }
        world.run(Duration::from_secs(1));
        world.say(0, 200);
        world.say(1, 200);
        world.run(Duration::from_secs(6));
        for side in 0..2 {
            let marks = world.marks(side);
            prop_assert_eq!(marks.iter().filter(|mark| **mark == 200).count(), 1);
            let unique: HashSet<u8> = marks.iter().copied().collect();
            let repeated = marks.iter().filter(|mark| **mark == 201).count().saturating_sub(1);
            prop_assert_eq!(unique.len() + repeated, marks.len(), "a packet came twice");
        }
    }
}
