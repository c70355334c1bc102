//! What a peer that has our trust, and means ill, can make us do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::calling::{ANSWER, CALL, UPDATE};
use super::*;
use crate::proto::Packet;
use crate::proto::action::Action;
use crate::proto::action::Drop;
use crate::proto::config::{Calls, Discovery, Host};
use crate::proto::context::Output;
use crate::proto::discovery::client::Client;
use crate::proto::discovery::{PubInfo, Reply, Start};
use crate::proto::introduction::Introducer;
use crate::proto::keys::PrivateKey;
use crate::proto::message_control::{self, Answer, Update};
use crate::proto::nat::{Allocation, Mapping};
use crate::proto::noise::{INITIATION_LEN, Identity, RESPONSE_LEN};
use crate::proto::time::{Wall, WallClock};
use crate::proto::tunnel::MAX_QUEUED;
use crate::proto::wire::Dudp;

const VIA: Via = Via::Member { id: 9, delay: Duration::from_millis(40) };
const WALL: Wall = Wall(Duration::from_secs(1_790_000_000));

fn at(ms: u64) -> Instant {
    Instant::default() + Duration::from_millis(1000 + ms)
}

fn local(discovery: Vec<Discovery>) -> Local {
    Local {
        identity: Identity::new(PrivateKey::from_bytes([1; 32])),
        clock: WallClock::new(at(0), WALL),
        rng: ChaCha20Rng::from_seed([1; 32]),
        listen_port: config::MEMBER_PORT,
        aes: true,
        punch: config::Punch::default(),
        addresses: Vec::new(),
        inside: Vec::new(),
        mapped: None,
        discovery: Client::new(discovery, [2; 32]),
        lifetime: Default::default(),
        servers: Vec::new(),
        ids: Default::default(),
        introducers: BTreeMap::new(),
        errands: VecDeque::new(),
        indices: BTreeMap::new(),
        out: VecDeque::new(),
        orders: None,
        hard_calls: BTreeSet::new(),
        punching: BTreeSet::new(),
        low_ttl: 2,
        low_ttl_is_known: false,
        memory: Default::default(),
    }
}

fn servers() -> Vec<Discovery> {
    [1, 2].map(|host| Discovery::Series(Host::Ip([198, 51, 100, host].into()))).to_vec()
}

/// A caller that keeps to the protocol as far as it likes.
struct Caller {
    identity: Identity,
    tunnel: Tunnel,
    rng: ChaCha20Rng,
    calls: u32,
}

impl Caller {
    fn call(&mut self, now: Instant, report: Report) -> Vec<u8> {
        self.calls += 1;
        let wall = Wall(WALL.0 + now.since(Instant::default()));
        let (initiation, keys) = self.tunnel.start_handshake(now, wall, self.calls, &mut self.rng);
        let call = message_control::Call { id: u64::from(self.calls), report, beside: false };
        [[CALL].as_slice(), &initiation, &keys.call.seal(&call.encode())].concat()
    }

    fn take_answer(&mut self, now: Instant, passed: &[u8]) -> Answer {
        let (kind, rest) = passed.split_first().expect("is an answer");
        assert_eq!(*kind, ANSWER);
        let (response, sealed) = rest.split_at(RESPONSE_LEN);
        let key = self.tunnel.handle_response(now, self.calls, response).expect("is a response");
        Answer::parse(&key.open(sealed).expect("opens")).expect("parses")
    }

    /// As the one that is called: answers with whatever report it likes.
    fn answer(&mut self, now: Instant, passed: &[u8], report: Report) -> Vec<u8> {
        let (kind, rest) = passed.split_first().expect("is a call");
        assert_eq!(*kind, CALL);
        let (initiation, sealed) = rest.split_at(INITIATION_LEN);
        let received = Received::open(&self.identity, initiation).expect("is for us");
        let call = message_control::Call::parse(&received.exports.call.open(sealed).expect("opens")).expect("parses");
        let (response, key) = self.tunnel.handle_initiation(now, received, 7, &mut self.rng).expect("is new");
        let terms = message_control::Terms { round: Duration::from_millis(800), ..Default::default() };
        let answer = Answer { id: call.id, report, terms };
        [[ANSWER].as_slice(), &response, &key.seal(&answer.encode())].concat()
    }

    fn update(&mut self, now: Instant, kind: Dudp, report: Report) -> Vec<u8> {
        let update = Update { id: u64::from(self.calls), report };
        let sealed = self.tunnel.seal_probe(now, self.calls, &kind.header(), &update.encode()).expect("has a session");
        [[UPDATE].as_slice(), &sealed].concat()
    }
}

fn pair(local: &Local) -> (Peer, Caller) {
    let caller = Identity::new(PrivateKey::from_bytes([3; 32]));
    let config = config::Peer {
        name: "caller".to_owned(),
        public_key: caller.public(),
        preshared_key: None,
        allowed_ips: Vec::new(),
        endpoint: None,
        calls: Calls::In,
        connect: Connect::OnDemand,
    };
    let peer = Peer::new(at(0), 1, config, local, 1420);
    let tunnel = Tunnel::new(&caller, local.identity.public(), None, Limits::PAYLOAD);
    (peer, Caller { identity: caller, tunnel, rng: ChaCha20Rng::from_seed([4; 32]), calls: 0 })
}

fn report(ip: [u8; 4]) -> Report {
    let budget = message_control::Budget { probes: 2048, entries: 1280, rate: 1000 };
    let tuple = Some(SocketAddr::from((ip, 30_000)));
    Report { tuple, mapping: Mapping::EndpointIndependent, budget, ..Report::default() }
}

/// A NAT that counts ports, and servers behind it that answer at once. Gives the sockets that were closed.
fn settle_discovery(local: &mut Local, now: Instant, mappings: &mut Vec<(SocketId, SocketAddr)>) -> Vec<SocketId> {
    settle_behind(local, now, mappings, 1)
}

/// The same, so many hops away.
fn settle_behind(
    local: &mut Local,
    now: Instant,
    mappings: &mut Vec<(SocketId, SocketAddr)>,
    hops: u8,
) -> Vec<SocketId> {
    let mut closed = Vec::new();
    local.collect_discovery();
    while let Some(output) = local.out.pop_front() {
        match output {
            Output::Action(Action::CloseSocket { id }) => closed.push(id),
            Output::Action(_) => {}
            Output::Transmit(sent) if sent.ttl.is_some_and(|ttl| ttl < hops) => {}
            Output::Transmit(sent) => {
                if !mappings.contains(&(sent.socket, sent.to)) {
                    mappings.push((sent.socket, sent.to));
                }
                let nth = mappings.iter().position(|mapping| *mapping == (sent.socket, sent.to)).expect("is there");
                let public = SocketAddr::from(([203, 0, 113, 9], 40_000 + u16::try_from(nth).expect("is small")));
                let question =
                    Start::parse(&sent.payload).filter(|start| start.reply == Reply::Same && sent.ttl.is_none());
                if let Some(Start { transaction, reply }) = question {
                    local.discovery.handle_datagram(now, &PubInfo { transaction, reply, public }.encode());
                }
            }
        }
        local.collect_discovery();
    }
    closed
}

/// What discovery asked, and where its shots come between: sees each question at the port that `public` gives it.
fn answer_hold(local: &mut Local, now: Instant, public: impl Fn(usize) -> u16) {
    local.collect_discovery();
    let sent: Vec<_> = local.out.drain(..).collect();
    let questions = sent.into_iter().filter_map(|output| match output {
        Output::Transmit(sent) if sent.ttl.is_none() => Start::parse(&sent.payload),
        Output::Transmit(_) | Output::Action(_) => None,
    });
    for (nth, Start { transaction, reply }) in questions.enumerate() {
        let public = SocketAddr::from(([203, 0, 113, 9], public(nth)));
        local.discovery.handle_datagram(now, &PubInfo { transaction, reply, public }.encode());
    }
}

/// Where it has sent to since it was asked last.
fn sent_to(local: &mut Local) -> Vec<SocketAddr> {
    let sent = local.out.drain(..).filter_map(|output| match output {
        Output::Transmit(transmit) => Some(transmit.to),
        Output::Action(_) => None,
    });
    sent.collect()
}

#[test]
fn a_caller_changes_the_plan_of_its_call_once() {
    let mut local = local(Vec::new());
    let (mut peer, mut caller) = pair(&local);
    let call = caller.call(at(1), report([203, 0, 113, 1]));
    peer.handle_passed(at(1), &mut local, VIA, &call).expect("is taken");
    let answer = local.errands.pop_front().expect("answers").passed;
    caller.take_answer(at(40), &answer);
    for (nth, host) in (2u8..60).enumerate() {
        let now = at(60 + nth as u64);
        let update = caller.update(now, Dudp::MessageControl, report([203, 0, 113, host]));
        peer.handle_passed(now, &mut local, VIA, &update).expect("is authentic");
    }
    let sent = sent_to(&mut local);
    let reached = |host| sent.iter().any(|to| *to == SocketAddr::from(([203, 0, 113, host], 30_000)));
    assert!(reached(2), "{sent:?}");
    assert!(!(3..60).any(reached), "{sent:?}");
}

#[test]
fn a_probe_that_a_server_passes_on_is_no_update() {
    let mut local = local(Vec::new());
    let (mut peer, mut caller) = pair(&local);
    let call = caller.call(at(1), report([203, 0, 113, 1]));
    peer.handle_passed(at(1), &mut local, VIA, &call).expect("is taken");
    let answer = local.errands.pop_front().expect("answers").passed;
    caller.take_answer(at(40), &answer);
    let probe = caller.update(at(50), Dudp::Ack, report([203, 0, 113, 2]));
    assert_eq!(peer.handle_passed(at(50), &mut local, VIA, &probe), Err(Drop::Malformed));
}

#[test]
fn calls_that_come_one_upon_the_other_do_not_each_begin_a_survey() {
    let mut local = local(servers());
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    local.collect_discovery();
    local.out.clear();
    let (mut peer, mut caller) = pair(&local);
    // A path broke before: so each call is surveyed for from a new socket.
    peer.broke = true;
    let mut taken = 0;
    for ms in (20..1020).step_by(20) {
        let call = caller.call(at(ms), report([203, 0, 113, 1]));
        taken += u32::from(peer.handle_passed(at(ms), &mut local, VIA, &call).is_ok());
    }
    let opened = local.out.iter().filter(|output| matches!(output, Output::Action(Action::OpenSocket { .. }))).count();
    assert!(taken <= 9 && opened <= 9, "{taken} calls taken, {opened} sockets opened in a second");
}

#[test]
fn a_punch_that_comes_to_a_hard_round_waits_for_its_turn() {
    let mut local = local(Vec::new());
    let (mut peer, mut caller) = pair(&local);
    let seen = Some(SocketAddr::from(([198, 51, 100, 9], config::MEMBER_PORT)));
    let standing = Standing { rtt: Some(Duration::from_millis(40)), seen };
    local.introducers.insert(9, Introducer { name: "introducer".to_owned(), standing });
    let other = peer.id + 1;
    let mut comes_to_it = |local: &mut Local, from: u64| {
        let call = caller.call(at(from), report([203, 0, 113, 1]));
        peer.handle_passed(at(from), local, VIA, &call).expect("is taken");
        assert!(matches!(peer.call, Call::Punching(_)) && !peer.is_in_hard_call());
        (from..from + 900).step_by(10).any(|ms| {
            peer.handle_timeout(at(ms), local);
            let hard = peer.is_in_hard_call();
            assert!(!hard || local.hard_calls.contains(&peer.id));
            assert!(matches!(peer.call, Call::Punching(_) | Call::Resting { .. }));
            hard
        })
    };
    local.hard_calls.insert(other);
    assert!(!comes_to_it(&mut local, 10), "another one is at it");
    local.hard_calls.remove(&other);
    assert!(comes_to_it(&mut local, 5010));
}

#[test]
fn what_a_call_spends_while_it_punches_is_counted_to_its_end() {
    let mut local = local(Vec::new());
    let (mut peer, mut caller) = pair(&local);
    let call = caller.call(at(1), report([203, 0, 113, 1]));
    peer.handle_passed(at(1), &mut local, VIA, &call).expect("is taken");
    assert!(matches!(peer.call, Call::Punching(_)));
    let before = peer.budget(&local).entries();
    peer.budget(&local).note_survey(12);
    peer.end_call(&mut local, None);
    assert_eq!(peer.budget(&local).entries(), before + 12);
}

#[test]
fn a_call_after_a_lost_path_is_another_call() {
    let mut local = local(Vec::new());
    let (mut peer, _) = pair(&local);
    // As where the configured endpoint answered: no call was placed, and none was settled.
    peer.call_began = Some(at(0));
    let remote = SocketAddr::from(([203, 0, 113, 1], 4275));
    peer.adopt(at(50), &mut local, Way { socket: SocketId::MAIN_V4, remote }, Method::Endpoint, true);
    assert_eq!(peer.connect_time, Some(Duration::from_millis(50)));
    let hour = 3_600_000;
    peer.on_path_lost(at(hour), &mut local, "it was cut".to_owned());
    let call = [203, 0, 113, 1];
    let mut caller = pair(&local).1;
    let call = caller.call(at(hour + 100), report(call));
    peer.handle_passed(at(hour + 100), &mut local, VIA, &call).expect("is taken");
    assert_eq!(peer.call_began, Some(at(hour + 100)));
}

#[test]
fn a_caller_that_never_rests_makes_us_send_one_budget_in_the_time_of_a_call() {
    let mut local = local(Vec::new());
    let seen = Some(SocketAddr::from(([198, 51, 100, 9], config::MEMBER_PORT)));
    let standing = Standing { rtt: Some(Duration::from_millis(40)), seen };
    local.introducers.insert(9, Introducer { name: "introducer".to_owned(), standing });
    let (mut peer, mut caller) = pair(&local);
    let mut random = report([203, 0, 113, 1]);
    (random.mapping, random.allocation) = (Mapping::AddressAndPortDependent, Allocation::Random);
    let (mut sent, seconds) = (0, 60);
    for ms in (10..seconds * 1000).step_by(10) {
        if ms % 200 == 0 && !matches!(peer.call, Call::Punching(_)) {
            let call = caller.call(at(ms), random.clone());
            let _ = peer.handle_passed(at(ms), &mut local, VIA, &call);
        }
        peer.handle_timeout(at(ms), &mut local);
        sent += sent_to(&mut local).len();
    }
    let budgets = seconds / local.punch.timeout.as_secs() + 3;
    let probes = u64::from(local.punch.probes);
    assert!(sent as u64 <= probes * budgets, "{sent} probes in {seconds} s");
    assert!(sent as u64 >= probes * budgets / 2, "{sent}: and it is still called");
}

#[test]
fn scouts_watches_and_holds_keep_to_the_entries_of_a_call() {
    let mut local = local(servers());
    local.punch.entries = 30;
    let mut mappings = Vec::new();
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    settle_discovery(&mut local, at(0), &mut mappings);
    let seen = Some(SocketAddr::from(([203, 0, 113, 9], config::MEMBER_PORT)));
    let standing = Standing { rtt: Some(Duration::from_millis(40)), seen };
    local.introducers.insert(9, Introducer { name: "introducer".to_owned(), standing });
    let (mut peer, _) = pair(&local);
    let before = mappings.len();
    let place = SocketAddr::from(([203, 0, 113, 1], 30_000));
    for nth in (1..6).map(|nth| nth * 1000) {
        peer.broke = true;
        peer.survey(at(nth), &mut local, Purpose::Place);
        peer.hold(at(nth), &mut local, &[place], 2);
        let watches = peer.watch(at(nth), &mut local);
        settle_discovery(&mut local, at(nth), &mut mappings);
        // A watch sends its questions over a while.
        peer.end_watches(&mut local, &watches);
        peer.end_call(&mut local, None);
    }
    let entries = peer.budget(&local).entries();
    assert!((20..=30).contains(&entries) && mappings.len() - before <= 30, "{entries}, {}", mappings.len() - before);
}

#[test]
fn an_answer_that_names_somebody_else_gets_them_a_few_packets_of_ours() {
    let mut local = local(Vec::new());
    let seen = Some(SocketAddr::from(([198, 51, 100, 9], config::MEMBER_PORT)));
    let standing = Standing { rtt: Some(Duration::from_millis(40)), seen };
    local.introducers.insert(9, Introducer { name: "introducer".to_owned(), standing });
    let (mut peer, mut called) = pair(&local);
    peer.config.calls = Calls::Both;
    let inner = |_| Packet::copy_from(&[[0x45, 0, 0, 20].as_slice(), &[0; 16]].concat());
    assert_eq!(peer.handle_packet(at(1), &mut local, &mut inner(0)), None);
    peer.handle_timeout(at(2), &mut local);
    let call = local.errands.pop_front().expect("calls").passed;
    let answer = called.answer(at(20), &call, report([203, 0, 113, 66]));
    peer.handle_passed(at(40), &mut local, VIA, &answer).expect("is taken");
    let victim = SocketAddr::from(([203, 0, 113, 66], 30_000));
    let data = |local: &mut Local| {
        let is_data = |output: &Output| matches!(output, Output::Transmit(sent) if sent.to == victim && sent.payload.first() == Some(&4));
        let count = local.out.iter().filter(|output| is_data(output)).count();
        local.out.clear();
        count
    };
    assert_eq!(data(&mut local), 1, "what waited goes right behind the first probe");
    let more = (0..500).filter(|nth| peer.handle_packet(at(45), &mut local, &mut inner(*nth)).is_some()).count();
    assert_eq!(more + data(&mut local), MAX_QUEUED - 1);
}

#[test]
fn a_hold_is_too_short_only_where_none_of_its_shots_took_a_port() {
    let mut local = local(servers());
    let mut mappings = Vec::new();
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    settle_discovery(&mut local, at(0), &mut mappings);
    let places = [1, 2].map(|port| SocketAddr::from(([203, 0, 113, 1], port)));
    let mut held = |ms, public: &dyn Fn(usize) -> u16| {
        let socket = local.ids.next();
        assert!(local.discovery.hold(at(ms), socket, &places, 2, u32::MAX) > 0);
        answer_hold(&mut local, at(ms), public);
        let held = local.discovery.held(socket);
        local.discovery.forget_scout(socket);
        held
    };
    let short = held(100, &|nth| 41_000 + nth as u16);
    assert!(short.is_too_short(), "every port is the question's before it and one");
    // It came to the end of its ports, and nobody knew where that is.
    assert!(!held(200, &|nth| if nth < 2 { 65_534 + nth as u16 } else { 1024 + 2 * nth as u16 }).is_too_short());
    // The first two questions overtook each other.
    assert!(!held(300, &|nth| 43_000 + [1, 0, 4, 3, 6, 7, 8][nth]).is_too_short());
    // The second shot's place was filled by another user's mapping.
    let filled = held(400, &|nth| 44_000 + nth as u16 + u16::from(nth > 2));
    assert!(filled.may_be_too_short() && !filled.is_too_short(), "{filled:?}");
}

#[test]
fn a_member_whose_first_ports_are_kept_names_one_even_where_a_scout_heard_nothing() {
    let mut local = local(servers());
    let seen = Some(SocketAddr::from(([203, 0, 113, 9], config::MEMBER_PORT)));
    let standing = Standing { rtt: Some(Duration::from_millis(40)), seen };
    local.introducers.insert(9, Introducer { name: "introducer".to_owned(), standing });
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    let mut ports = BTreeMap::from([(SocketId::MAIN_V4, config::MEMBER_PORT)]);
    let mut next = 50_000;
    local.collect_discovery();
    while let Some(output) = local.out.pop_front() {
        match output {
            Output::Action(Action::OpenSocket { id, port }) => drop(ports.insert(id, port)),
            Output::Action(_) => {}
            Output::Transmit(sent) => {
                let kept = ports.get(&sent.socket).copied().filter(|port| *port < 50_000);
                let public = SocketAddr::from(([203, 0, 113, 9], kept.unwrap_or(next)));
                // The first of a socket's keeps its port, each other one has the next of the sequence.
                ports.insert(sent.socket, 50_000);
                next += u16::from(kept.is_none());
                if let Some(Start { transaction, reply: Reply::Same }) = Start::parse(&sent.payload) {
                    let info = PubInfo { transaction, reply: Reply::Same, public };
                    local.discovery.handle_datagram(at(0), &info.encode());
                }
            }
        }
    }
    let scout = local.ids.next();
    assert!(local.discovery.scout(at(10), scout, u32::MAX) > 0);
    let outline = local.outline(at(2000), scout, VIA);
    assert!(matches!(outline.allocation, Allocation::SecondPriority { .. }), "{outline:?}");
    assert!(outline.tuple.is_some() && outline.fresh_port.is_some(), "{outline:?}");
}

#[test]
fn what_was_counted_by_another_reading_of_the_nat_is_counted_anew() {
    let mut local = local(servers());
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    local.collect_discovery();
    let mut mappings: Vec<(SocketId, std::net::IpAddr)> = Vec::new();
    let mut answers = Vec::new();
    for output in local.out.drain(..) {
        let Output::Transmit(sent) = output else { continue };
        // Its NAT maps by address.
        let mapping = (sent.socket, sent.to.ip());
        if !mappings.contains(&mapping) {
            mappings.push(mapping);
        }
        let nth = mappings.iter().position(|known| *known == mapping).expect("is there");
        let public = SocketAddr::from(([203, 0, 113, 9], 40_000 + u16::try_from(nth).expect("is small")));
        if let Some(Start { transaction, reply: Reply::Same }) = Start::parse(&sent.payload) {
            answers.push((sent.to.port(), PubInfo { transaction, reply: Reply::Same, public }.encode()));
        }
    }
    let first_port = answers.iter().map(|(port, _)| *port).min();
    let (early, late): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(port, _)| Some(*port) == first_port);
    for (_, answer) in early {
        local.discovery.handle_datagram(at(20), &answer);
    }
    // Nothing more comes for a while, and two ports at two addresses look as if the NAT maps by address and port.
    local.discovery.handle_timeout(at(240));
    let mapping = |local: &Local| local.discovery.view(at(250), SocketId::MAIN_V4).mapping;
    assert!(local.discovery.moves() && mapping(&local) == Mapping::AddressAndPortDependent);
    for (_, answer) in late {
        local.discovery.handle_datagram(at(250), &answer);
    }
    assert_eq!(mapping(&local), Mapping::AddressDependent);
    assert_eq!(local.discovery.position().map(|(port, _)| port), Some(40_003));
}

#[test]
fn a_hold_that_comes_after_the_path_does_not_close_its_socket() {
    let mut local = local(servers());
    let mut mappings = Vec::new();
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    settle_discovery(&mut local, at(0), &mut mappings);
    assert!(local.discovery.moves());
    let (mut peer, mut caller) = pair(&local);
    let theirs = report([203, 0, 113, 1]);
    let place = theirs.tuple.expect("is known");
    let call = caller.call(at(1), theirs);
    peer.handle_passed(at(1), &mut local, VIA, &call).expect("is taken");
    settle_discovery(&mut local, at(1), &mut mappings);
    peer.handle_timeout(at(1), &mut local);
    let Call::Punching(punching) = &peer.call else { panic!("punches") };
    let way = Way { socket: punching.punch.reported(), remote: place };
    assert!(way.socket >= SocketId::FIRST_EXTRA);
    peer.hold_towards(at(2), &mut local, &[place]);
    peer.adopt(at(2), &mut local, way, Method::Punch, true);
    settle_discovery(&mut local, at(2), &mut mappings);
    peer.handle_timeout(at(3), &mut local);
    let closed = settle_discovery(&mut local, at(3), &mut mappings);
    assert!(matches!(&peer.call, Call::Punching(punching) if punching.hold.is_none()), "its answers are there");
    assert!(!closed.contains(&way.socket), "{closed:?}");
}

#[test]
fn holds_that_both_end_too_soon_are_followed_by_one_that_goes_further() {
    let mut local = local(servers());
    let mut mappings = Vec::new();
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    settle_discovery(&mut local, at(0), &mut mappings);
    let (mut peer, mut caller) = pair(&local);
    let call = caller.call(at(1), report([203, 0, 113, 1]));
    peer.handle_passed(at(1), &mut local, VIA, &call).expect("is taken");
    let mut closed = Vec::new();
    for ms in 1..6 {
        closed.extend(settle_behind(&mut local, at(ms), &mut mappings, 4));
        peer.handle_timeout(at(ms), &mut local);
    }
    let Call::Punching(punching) = &peer.call else { panic!("punches") };
    assert!(!closed.contains(&punching.punch.reported()), "it reports a socket that it closed");
    assert_eq!(local.low_ttl, 4);
    assert!(!punching.ours().holds.is_empty(), "the third goes far enough");
}

#[test]
fn a_nearer_address_that_nobody_can_try_does_not_stand_in_the_way_of_a_hold() {
    let mut local = local(servers());
    let mut mappings = Vec::new();
    let scout = local.ids.next();
    local.discovery.start(at(0), config::MEMBER_PORT, &[], scout);
    settle_discovery(&mut local, at(0), &mut mappings);
    let (mut peer, mut caller) = pair(&local);
    // Its router maps a port of its carrier's.
    let address = "100.64.0.2:4275".parse().expect("address");
    let candidates = vec![message_control::Candidate { kind: message_control::CandidateKind::Mapped, address }];
    let mut holds = 0;
    for ms in (1..6000).step_by(10) {
        if ms % 500 == 1 && !matches!(peer.call, Call::Punching(_)) {
            let call = caller.call(at(ms), Report { candidates: candidates.clone(), ..report([203, 0, 113, 1]) });
            let _ = peer.handle_passed(at(ms), &mut local, VIA, &call);
        }
        settle_discovery(&mut local, at(ms), &mut mappings);
        peer.handle_timeout(at(ms), &mut local);
        holds += usize::from(matches!(&peer.call, Call::Punching(punching) if !punching.ours().holds.is_empty()));
    }
    assert!(holds > 0, "no call was held for");
}

#[test]
fn a_socket_that_the_path_goes_by_outlives_the_call_that_opened_it_and_is_closed_once() {
    let mut local = local(Vec::new());
    let (mut peer, _) = pair(&local);
    let (socket, _) = local.open_socket();
    peer.call = Call::Surveying { socket, purpose: Purpose::Place };
    let remote = SocketAddr::from(([203, 0, 113, 1], 4275));
    peer.adopt(at(1), &mut local, Way { socket, remote }, Method::Roamed, true);
    assert!(matches!(peer.call, Call::Idle));
    let closed = |local: &Local| {
        let closes = |output: &&Output| matches!(output, Output::Action(Action::CloseSocket { id }) if *id == socket);
        local.out.iter().filter(closes).count()
    };
    assert_eq!(closed(&local), 0);
    peer.close(&mut local);
    assert_eq!(closed(&local), 1);
}

#[test]
fn a_peer_that_is_heard_and_hears_nothing_holds_the_punch_up_and_does_not_end_it() {
    let mut local = local(Vec::new());
    let (mut peer, mut caller) = pair(&local);
    let theirs = report([203, 0, 113, 1]);
    let way = Way { socket: SocketId::MAIN_V4, remote: theirs.tuple.expect("is known") };
    let call = caller.call(at(1), theirs);
    peer.handle_passed(at(1), &mut local, VIA, &call).expect("is taken");
    let fires = |peer: &Peer, ms: u64| match &peer.call {
        Call::Punching(punching) => punching.punch.may_fire(at(ms)),
        _ => panic!("punches no more"),
    };
    peer.hear(at(10), &mut local, way, Method::Punch, true);
    assert!(peer.paths.is_current(way) && !fires(&peer, 10));
    let Call::Punching(punching) = &peer.call else { panic!("punches") };
    let retry = punching.parties.terms.round / 4;
    assert_eq!(punching.ours().may_hear_in_vain(), None);
    let doubts = 10 + u64::try_from((retry * 5).as_millis()).expect("is short");
    for ms in 11..doubts {
        peer.handle_timeout(at(ms), &mut local);
        assert!(!fires(&peer, ms), "{ms} ms");
    }
    peer.handle_timeout(at(doubts), &mut local);
    assert!(fires(&peer, doubts) && peer.paths.is_current(way), "it may answer yet");
    while peer.paths.current().is_some() {
        let due = peer.poll_timeout().expect("it asks");
        peer.handle_timeout(due, &mut local);
        assert!(due < at(5000));
    }
    // It is heard there still, and that is no news.
    let late = at(doubts) + retry * 4;
    let call = caller.call(late, report([203, 0, 113, 1]));
    peer.handle_passed(late, &mut local, VIA, &call).expect("is taken");
    peer.hear(late, &mut local, way, Method::Punch, true);
    assert!(peer.paths.current().is_none());
    let elsewhere = Way { remote: SocketAddr::from(([203, 0, 113, 1], 30_001)), ..way };
    peer.hear(late, &mut local, elsewhere, Method::Punch, true);
    assert!(peer.paths.is_current(elsewhere));
}
