//! Paths that carry less than an Ethernet frame, and say nothing of it.

use std::time::Duration;

use p2ptund::proto::action::Drop;

use crate::classes::Class;
use crate::link::Narrow;
use crate::scene::{Scene, virtual_address};
use crate::terms::Terms;

const ONE_WAY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(30);
/// What a full inner packet of the members' interfaces has behind ICMP's header.
const FULL: usize = 1420 - 28;
const MEBIBYTE: usize = 1 << 20;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn scene(class: Class, narrow: Narrow, loss: f64) -> Scene {
    let mut scene = Scene::new(&Terms::exact([class; 2], ONE_WAY, 5));
    scene.uplink_mut(0).loss = loss;
    narrowed(&mut scene, narrow);
    assert!(scene.run_to_connected(SOON));
    scene
}

fn narrowed(scene: &mut Scene, narrow: Narrow) {
    scene.uplink_mut(0).narrow = narrow;
}

/// Lets member 0 send packets as long as its interface gives, so long as nobody says otherwise.
fn stream(scene: &mut Scene, every: Duration) {
    let from = scene.world.now;
    let id = scene.members[0];
    scene.world.act(id, |machine, _| {
        let pinger = &mut machine.member_mut().pinger;
        pinger.start(vec![(virtual_address(0, 0), virtual_address(1, 0))], from.as_nanos() << 10, every, from);
        pinger.payload = FULL;
    });
}

/// What both sides say of the path, and of what goes inside.
fn measured(scene: &Scene) -> [(Option<u16>, u16); 2] {
    [0, 1].map(|side| {
        let snapshot = scene.member(side).snapshot(scene.world.now).expect("is started");
        (snapshot.peers[0].path_mtu, snapshot.peers[0].inner_mtu)
    })
}

#[test]
fn a_mebibyte_arrives_over_underlays_that_swallow_what_is_too_long() {
    for class in [Class::None, Class::PortRestricted, Class::Masquerade] {
        for limit in [1420, 1280, 1124, 576] {
            let mut scene = scene(class, Narrow::Swallows(limit.into()), 0.0);
            let began = scene.world.now;
            stream(&mut scene, Duration::from_millis(2));
            let (id, until) = (scene.members[0], began + secs(10));
            assert!(scene.world.run(until, |world| world.machine(id).member().pinger.bytes >= MEBIBYTE), "{limit}");
            assert_eq!(measured(&scene), [(Some(limit), limit - 60); 2]);
            // Of the first half second, before the path was measured: after that nothing is lost.
            let pinger = &scene.member(0).pinger;
            let lost = pinger.unanswered(scene.world.now - secs(1));
            assert!(lost < 250, "{class:?}, {limit}: {lost} packets");
            assert_eq!(pinger.payload, usize::from(limit) - 60 - 28, "what the host was told");
            scene.check();
        }
    }
}

#[test]
fn an_idle_path_is_measured_with_a_few_datagrams_and_nothing_is_lost_later() {
    for (limit, most) in [(1500, 5), (1280, 60)] {
        let mut scene = scene(Class::PortRestricted, Narrow::Swallows(limit), 0.0);
        scene.member_mut(0).start_counting();
        scene.run_for(secs(2));
        let inner = u16::try_from(limit.min(1480) - 60).expect("is small");
        assert_eq!(measured(&scene).map(|(_, inner)| inner), [inner; 2]);
        let sent: u64 = scene.member(0).traffic.values().sum();
        assert!(sent <= 2 * most + 20, "{sent} datagrams");
        stream(&mut scene, Duration::from_millis(5));
        scene.run_for(secs(3));
        let pinger = &scene.member(0).pinger;
        let told = scene.member(0).drops().of(Drop::TooBig);
        assert!(told <= 1, "the first packet tells");
        assert_eq!(pinger.unanswered(scene.world.now - secs(1)) as u64, told);
        scene.check();
    }
}

#[test]
fn a_path_that_becomes_narrower_while_it_is_used_is_measured_anew_and_rises_when_it_does() {
    for limit in [1420, 1280, 1124, 576] {
        let mut scene = scene(Class::PortRestricted, Narrow::No, 0.0);
        stream(&mut scene, Duration::from_millis(10));
        scene.run_for(secs(10));
        assert_eq!(measured(&scene), [(Some(1480), 1420); 2]);
        assert_eq!(scene.member(0).pinger.unanswered(scene.world.now - secs(1)), 0);

        narrowed(&mut scene, Narrow::Swallows(limit.into()));
        scene.run_for(secs(10));
        assert_eq!(measured(&scene), [(Some(limit), limit - 60); 2], "narrower");
        let outage = scene.member(0).pinger.outage(scene.world.now);
        assert!(outage < Duration::from_millis(2500), "{limit}: an outage of {outage:?}");

        narrowed(&mut scene, Narrow::No);
        scene.run_for(secs(50));
        assert_eq!(measured(&scene), [(Some(1480), 1420); 2], "as wide as before");
        scene.check();
    }
}

#[test]
fn a_path_that_makes_fragments_loses_nothing_and_is_spared_them_all_the_same() {
    let mut scene = scene(Class::PortRestricted, Narrow::Cuts(1280), 0.0);
    stream(&mut scene, Duration::from_millis(5));
    scene.run_for(secs(5));
    assert_eq!(measured(&scene), [(Some(1280), 1220); 2]);
    let told = scene.member(0).drops().of(Drop::TooBig);
    assert_eq!(scene.member(0).pinger.unanswered(scene.world.now - secs(1)) as u64, told);
    assert!((1..=20).contains(&told), "{told} until the host knew");
    scene.check();
}

#[test]
fn loss_does_not_pass_for_a_narrow_path() {
    for loss in [0.02, 0.1] {
        let mut scene = scene(Class::PortRestricted, Narrow::No, loss);
        stream(&mut scene, Duration::from_millis(20));
        for _ in 0..120 {
            scene.run_for(secs(1));
            assert_eq!(measured(&scene).map(|(_, inner)| inner), [1420; 2], "with a loss of {loss}");
        }
        scene.check();
    }
}

#[test]
fn a_new_path_is_measured_for_itself() {
    let mut scene = scene(Class::PortRestricted, Narrow::Swallows(1280), 0.0);
    scene.run_for(secs(2));
    assert_eq!(measured(&scene), [(Some(1280), 1220); 2]);
    narrowed(&mut scene, Narrow::No);
    scene.restart(1);
    assert!(scene.run_to_answer(0, SOON).is_some());
    scene.run_for(secs(2));
    assert_eq!(measured(&scene), [(Some(1480), 1420); 2]);
    scene.check();
}
