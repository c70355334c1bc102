//! Two members and a third that both have a path to, while no rendezvous server answers: the third introduces them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use p2ptund::proto::action::Drop;
use p2ptund::proto::config::{Calls, Host, HostPort, MEMBER_PORT};
use p2ptund::proto::introduction::{Introduction, PER_PEER};
use p2ptund::proto::{Event, Instant, snapshot};

use crate::classes::Class;
use crate::crook::{Crook, Misuse};
use crate::machines::Any;
use crate::scene::{NAMES, Scene, virtual_address};
use crate::terms::Terms;

const ONE_WAY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(30);
/// By then every member has noticed that the server is gone: a keepalive of 21 s, and four tries of a second.
const SERVER_GONE: Duration = Duration::from_secs(60);
/// What a restarted member may take to find its peer: the way to the third, a survey, and a call of two round trips.
const A_FEW_SECONDS: Duration = Duration::from_secs(3);
const THIRD: usize = 2;
const THIRD_IS_AT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
const CLASSES: [Class; 6] = [
    Class::PortRestricted,
    Class::Masquerade,
    Class::ConeInCone,
    Class::Fig4A,
    Class::Fig4BStep1,
    Class::AddressDependent,
];

fn third() -> SocketAddr {
    SocketAddr::new(THIRD_IS_AT.into(), MEMBER_PORT)
}

/// Not yet started: athens and berlin behind NATs, and cairo, at an address that their configs name.
fn offices(terms: &Terms) -> Scene {
    let mut scene = Scene::new(&Terms { more: vec![Class::None], ..terms.clone() });
    let endpoint = HostPort { host: Host::Ip(THIRD_IS_AT.into()), port: MEMBER_PORT };
    for side in [0, 1] {
        let peers = &mut scene.member_mut(side).config.peers;
        let third = peers.iter_mut().find(|peer| peer.name == NAMES[THIRD]).expect("is a peer");
        third.endpoint = Some(endpoint.clone());
    }
    scene
}

/// All are connected, and then the server goes away.
fn left_alone(terms: &Terms) -> Scene {
    let mut scene = offices(terms);
    assert!(scene.run_to_connected(SOON), "{terms:?}: never connected: {}", situation(&scene));
    scene.rendezvous_mut().silent = true;
    scene.run_for(SERVER_GONE);
    scene
}

/// All are connected, the server goes away, and a crook takes the third's place.
pub fn betrayed(misuse: Misuse, seed: u64) -> Scene {
    let mut scene = left_alone(&Terms::exact([Class::Fig4A, Class::PortRestricted], ONE_WAY, seed));
    let seed = scene.world.dice.bytes();
    let crook = Crook::new(&scene.member(THIRD).config, third(), misuse, seed);
    scene.world.replace(scene.members[THIRD], Any::Crook(Box::new(crook)));
    // Both notice, and shake hands with what they take for the third.
    scene.ping(0, Duration::from_secs(1));
    scene.ping(1, Duration::from_secs(1));
    scene.run_for(Duration::from_secs(60));
    scene
}

fn peer(scene: &Scene, of: usize, name: &str) -> snapshot::Peer {
    let peers = scene.member(of).snapshot(scene.world.now).expect("was started").peers;
    peers.into_iter().find(|peer| peer.name == name).expect("is a peer")
}

fn situation(scene: &Scene) -> String {
    let told = [(0, "berlin"), (0, "cairo"), (1, "athens"), (1, "cairo")].map(|(of, name)| {
        let peer = peer(scene, of, name);
        format!("{} to {name}: {:?}, {:?}", NAMES[of], peer.state, peer.why)
    });
    told.join("; ")
}

/// How long until the other of the two offices answers a ping of `side`'s.
fn meets(scene: &mut Scene, side: usize, within: Duration) -> Option<Duration> {
    scene.ping(side, Duration::from_millis(50));
    let (from, id) = (scene.world.now, scene.members[side]);
    let other = virtual_address(1 - side, 0);
    let met = scene.world.run(from + within, |world| world.machine(id).member().pinger.answered_by.contains(&other));
    met.then_some(scene.world.now.since(from))
}

fn calls(scene: &Scene, of: usize, since: Instant, what: &str) -> usize {
    let is = |event: &Event| matches!(event, Event::Step { text, .. } if text.contains(what));
    scene.member(of).events.iter().filter(|(at, event)| *at >= since && is(event)).count()
}

#[test]
fn a_member_that_was_restarted_is_found_through_a_third() {
    for (class, seed) in CLASSES.into_iter().flat_map(|class| (0..10).map(move |seed| (class, seed))) {
        let mut scene = left_alone(&Terms::exact([class; 2], ONE_WAY, seed));
        scene.restart(usize::from(seed % 2 == 1));
        let met = meets(&mut scene, 0, A_FEW_SECONDS);
        assert!(met.is_some(), "{class:?}, seed {seed}: {}", situation(&scene));
        // The first ping is answered before the called member has been told which path it is.
        scene.run_for(Duration::from_millis(500));
        let (why, other) = (peer(&scene, 0, "berlin").why, peer(&scene, 1, "athens").why);
        for why in [why, other].map(Option::unwrap_or_default) {
            assert!(
                why.contains("no rendezvous server answers; called through cairo"),
                "{class:?}, seed {seed}: {why}"
            );
        }
        scene.check();
    }
}

#[test]
fn both_that_were_restarted_find_each_other_through_a_third_over_the_internet_as_it_is() {
    for (class, seed) in CLASSES.into_iter().flat_map(|class| (0..10).map(move |seed| (class, seed))) {
        let mut scene = left_alone(&Terms { second_address: true, ..Terms::drawn([class; 2], seed) });
        scene.restart(0);
        scene.restart(1);
        scene.world.transcript.loud = std::env::var("LOUD").is_ok_and(|v| v == format!("{class:?}{seed}"));
        let met = meets(&mut scene, 0, Duration::from_secs(20));
        assert!(met.is_some(), "{class:?}, seed {seed}: {}", situation(&scene));
        scene.check();
    }
}

#[test]
fn a_nat_that_reboots_is_got_through_again_without_a_server() {
    for (class, seed) in CLASSES.into_iter().flat_map(|class| (20..25).map(move |seed| (class, seed))) {
        let mut scene = left_alone(&Terms::exact([class; 2], ONE_WAY, seed));
        for id in scene.nats[0].clone() {
            scene.world.reboot(id);
        }
        let met = meets(&mut scene, 0, SOON);
        assert!(met.is_some(), "{class:?}, seed {seed}: {}", situation(&scene));
        scene.check();
    }
}

#[test]
fn a_mesh_without_any_server_meets_through_its_public_member() {
    for (class, seed) in
        [Class::PortRestricted, Class::Masquerade].into_iter().flat_map(|class| [(class, 1), (class, 2)])
    {
        let mut scene = offices(&Terms::exact([class; 2], ONE_WAY, seed));
        for member in 0..=THIRD {
            let config = &mut scene.member_mut(member).config;
            config.rendezvous.clear();
            config.discovery.clear();
        }
        let met = meets(&mut scene, 0, A_FEW_SECONDS);
        assert!(met.is_some(), "{class:?}, seed {seed}: {}", situation(&scene));
        scene.check();
    }
}

/// The one that stayed calls, and still believes to be registered.
#[test]
fn a_call_that_the_server_leaves_unanswered_goes_through_a_third_as_well() {
    for seed in 30..40 {
        let terms =
            Terms { calls: [Calls::Both, Calls::In], ..Terms::exact([Class::PortRestricted; 2], ONE_WAY, seed) };
        let mut scene = offices(&terms);
        assert!(scene.run_to_connected(SOON));
        scene.rendezvous_mut().silent = true;
        scene.restart(1);
        // Until the loss is noticed it takes 2 s without an answer and four questions of 0.4 s.
        let met = meets(&mut scene, 0, A_FEW_SECONDS + Duration::from_secs(4));
        assert!(met.is_some(), "seed {seed}: {}", situation(&scene));
        let why = peer(&scene, 0, "berlin").why.unwrap_or_default();
        assert!(why.ends_with("); called through cairo"), "seed {seed}: {why}");
        scene.check();
    }
}

#[test]
fn a_server_that_answers_is_asked_and_nobody_else() {
    for class in [Class::PortRestricted, Class::Fig4A] {
        let mut scene = offices(&Terms::exact([class; 2], ONE_WAY, 41));
        assert!(scene.run_to_connected(SOON));
        scene.run_for(Duration::from_secs(5));
        let from = scene.world.now;
        scene.restart(0);
        assert!(meets(&mut scene, 0, A_FEW_SECONDS).is_some(), "{}", situation(&scene));
        assert_eq!([0, 1].map(|of| calls(&scene, of, from, "through cairo")), [0, 0], "{}", situation(&scene));
    }
}

#[test]
fn an_introducer_whose_owner_forbids_it_passes_nothing() {
    let mut scene = offices(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 51));
    scene.member_mut(THIRD).config.introduce = false;
    assert!(scene.run_to_connected(SOON));
    scene.rendezvous_mut().silent = true;
    scene.run_for(SERVER_GONE);
    scene.restart(0);
    assert_eq!(meets(&mut scene, 0, Duration::from_secs(20)), None);
    let why = peer(&scene, 0, "berlin").why.unwrap_or_default();
    assert!(why.contains("not reached through cairo"), "{why}");
    scene.check();
}

#[test]
fn an_introducer_that_drops_bends_repeats_forges_or_lies_only_delays() {
    for misuse in [Misuse::Drops(30), Misuse::Bends(30), Misuse::Repeats, Misuse::Forges, Misuse::LiesOnDelay] {
        for seed in 61..66 {
            let mut scene = betrayed(misuse, seed);
            scene.restart(0);
            let met = meets(&mut scene, 0, SOON);
            assert!(met.is_some(), "{misuse:?}, seed {seed}: {}", situation(&scene));
            let given = scene.world.host_mut(scene.members[THIRD]).machine.crook_mut().given;
            assert!(given >= 2, "{misuse:?}, seed {seed}: a call and its answer go through it");
            scene.check();
        }
    }
}

/// A peer gives an introducer 500 messages a second for another one.
#[test]
fn a_flood_of_calls_is_passed_on_at_the_rate_of_a_peer() {
    let seconds = 10;
    let most = u64::from(PER_PEER.burst + PER_PEER.per_s * seconds);
    let mut scene = offices(&Terms::exact([Class::None, Class::PortRestricted], ONE_WAY, 71));
    assert!(scene.run_to_connected(SOON));
    let own = SocketAddr::new(IpAddr::from([203, 0, 113, 1]), MEMBER_PORT);
    let seed = scene.world.dice.bytes();
    let crook = Crook::new(&scene.member(0).config, own, Misuse::Repeats, seed);
    let key = |of: usize| scene.member(of).config.private_key.public();
    let (berlin, cairo) = (key(1), key(THIRD));
    scene.world.replace(scene.members[0], Any::Crook(Box::new(crook)));
    scene.world.act(scene.members[0], |machine, moment| machine.crook_mut().begin(moment, cairo, third()));
    scene.run_for(Duration::from_secs(1));
    let before = [1, THIRD].map(|of| scene.member(of).drops());
    scene.member_mut(THIRD).start_counting();
    for number in 0..500 * seconds {
        let mut passed = vec![1; 600];
        passed[1..5].copy_from_slice(&number.to_be_bytes());
        scene.world.act(scene.members[0], |machine, moment| {
            machine.crook_mut().say(moment, cairo, &Introduction::Forward { to: berlin, passed });
        });
        scene.run_for(Duration::from_millis(2));
    }
    scene.run_for(Duration::from_secs(1));
    let to_berlin = scene.member(THIRD).traffic[&IpAddr::from([203, 0, 113, 2])];
    assert!((most - 10..=most + 20).contains(&to_berlin), "{to_berlin} went to berlin, of {most}");
    let of = |member: usize, reason| scene.member(member).drops().of(reason);
    assert!(of(THIRD, Drop::Overload) - before[1].of(Drop::Overload) >= u64::from(500 * seconds) - most - 10);
    assert_eq!(peer(&scene, 1, "cairo").state, snapshot::State::Connected);
    scene.check();
}

#[test]
fn a_flood_by_an_introducer_is_taken_at_the_rate_of_a_peer() {
    let mut scene = betrayed(Misuse::Repeats, 81);
    let key = |of: usize| scene.member(of).config.private_key.public();
    let (athens, berlin) = (key(0), key(1));
    let before = scene.member(1).drops();
    scene.ping(0, Duration::from_millis(100));
    for _ in 0..5000 {
        scene.world.act(scene.members[THIRD], |machine, moment| {
            let passed = vec![1; 600];
            let word = Introduction::Deliver { from: athens, delay: Duration::ZERO, passed };
            machine.crook_mut().say(moment, berlin, &word);
        });
        scene.run_for(Duration::from_millis(2));
    }
    scene.run_for(Duration::from_secs(1));
    let dropped = |reason| scene.member(1).drops().of(reason) - before.of(reason);
    let most = u64::from(PER_PEER.burst + PER_PEER.per_s * 11);
    assert!(dropped(Drop::Overload) >= 5000 - most, "{:?}", scene.member(1).drops());
    assert!(scene.member(0).pinger.answers >= 45, "the path beside it carries on");
    scene.check();
}
