//! Somebody on the way, and servers that lie: nobody panics, nothing false is delivered, the path stays.

use std::net::SocketAddr;
use std::time::Duration;

use p2ptund::proto::action::Drop;
use p2ptund::proto::config::MEMBER_PORT;
use p2ptund::proto::wire::Dudp;
use p2ptund::proto::{Event, SocketId};

use crate::classes::Class;
use crate::dice::Dice;
use crate::inner::{Echo, PAYLOAD};
use crate::machines::Any;
use crate::scene::{Scene, virtual_address};
use crate::servers::Manners;
use crate::terms::Terms;
use crate::world::{Datagram, World};

const ONE_WAY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(30);

/// What an attacker makes of datagrams that it saw, and of nothing: with the true addresses, so that NATs let it in.
fn forge(dice: &mut Dice, seen: &[Datagram]) -> Option<Datagram> {
    let last = u64::try_from(seen.len().checked_sub(1)?).expect("fits");
    let mut pick = || seen[usize::try_from(dice.between(0, last)).expect("fits")].clone();
    let (mut datagram, other) = (pick(), pick());
    let length = datagram.payload.len() as u64;
    let mut within = |length: u64| usize::try_from(dice.between(0, length.max(1) - 1)).expect("fits");
    match within(7) {
        // Again, as it was.
        0 => {}
        // One to eight bits turned.
        1 if length > 0 => {
            for _ in 0..=within(8) {
                let at = within(length);
                datagram.payload[at] ^= 1 << within(8);
            }
        }
        // The head bent, where types and lengths are.
        2 if length > 4 => {
            let (at, to) = (within(length.min(16)), within(256));
            datagram.payload[at] = u8::try_from(to).expect("is a byte");
        }
        3 => datagram.payload.truncate(within(length)),
        4 => datagram.payload.extend(vec![0xa5; within(1000)]),
        // The bytes of another, to here.
        5 => datagram.payload = other.payload,
        _ => {
            datagram.payload = vec![0; within(1400)];
            dice.fill(&mut datagram.payload);
        }
    }
    datagram.ttl = 64;
    Some(datagram)
}

/// Lets the scene run for `time` with a forged datagram every two milliseconds.
pub fn storm(scene: &mut Scene, dice: &mut Dice, time: Duration) {
    let until = scene.world.now + time;
    let tap = |world: &World<Any>| world.tap.clone().unwrap_or_default();
    while scene.world.now < until {
        if let Some(forged) = forge(dice, &tap(&scene.world)) {
            scene.world.inject(forged);
        }
        scene.run_for(Duration::from_millis(2));
    }
}

fn tapped(class: Class, seed: u64) -> Scene {
    let mut scene = Scene::new(&Terms::exact([class; 2], ONE_WAY, seed));
    scene.world.tap = Some(Vec::new());
    scene
}

#[test]
fn a_storm_of_forged_datagrams_does_not_break_a_path() {
    for (seed, class) in [Class::None, Class::PortRestricted, Class::Fig4BStep1].into_iter().enumerate() {
        let mut scene = tapped(class, 31 + seed as u64);
        assert!(scene.run_to_answer(0, SOON).is_some(), "{class:?}: never connected");
        scene.ping(0, Duration::from_millis(100));
        storm(&mut scene, &mut Dice::new(seed as u64), Duration::from_secs(30));
        let pinger = &scene.member(0).pinger;
        assert!(pinger.answers >= 295, "{class:?}: {} of 300 answered", pinger.answers);
        for side in [0, 1] {
            let lost = scene.member(side).events.iter().any(|(_, event)| matches!(event, Event::Lost { .. }));
            assert!(!lost, "{class:?}: side {side} lost the path");
            assert!(scene.member(side).drops().total() > 100, "{class:?}: what was forged is to be counted");
        }
        scene.check();
    }
}

#[test]
fn a_storm_of_forged_datagrams_does_not_stop_a_call() {
    for seed in 0..4 {
        let mut scene = tapped(Class::PortRestricted, 41 + seed);
        scene.ping(0, Duration::from_millis(50));
        storm(&mut scene, &mut Dice::new(seed), Duration::from_secs(10));
        assert!(scene.member(0).pinger.first_answer.is_some(), "seed {seed}");
        scene.check();
    }
}

#[test]
fn a_probe_that_is_led_to_a_socket_of_discovery_brings_up_no_path_there() {
    let mut scene = tapped(Class::None, 45);
    scene.ping(0, Duration::from_millis(50));
    let own = scene.world.host(scene.members[0]).address_v4().expect("is there");
    let to = SocketAddr::from((own, MEMBER_PORT));
    let mut led = 0;
    for _ in 0..1000 {
        scene.run_for(Duration::from_millis(1));
        let tap = scene.world.tap.replace(Vec::new()).expect("is tapped");
        let Some(asks_from) = scene.member(0).port_of(SocketId::FIRST_EXTRA) else { continue };
        // Ahead of the peer's own.
        for datagram in tap.into_iter().filter(|it| it.dst == to && it.payload.starts_with(&Dudp::Ack.header())) {
            led += 1;
            scene.world.inject(Datagram { dst: SocketAddr::from((own, asks_from)), ..datagram });
        }
    }
    assert!(led > 0, "the peer does not probe while discovery still asks");
    assert_eq!(scene.member(0).drops().of(Drop::Unknown), led);
    scene.run_for(SOON);
    assert!(scene.member(0).pinger.first_answer.is_some());
    scene.check();
}

#[test]
fn what_was_heard_before_a_restart_means_nothing_after_it() {
    let mut scene = tapped(Class::None, 51);
    assert!(scene.run_to_answer(0, SOON).is_some());
    let heard = scene.world.tap.clone().expect("is tapped");
    scene.restart(1);
    heard.iter().for_each(|datagram| scene.world.inject(datagram.clone()));
    assert!(scene.run_to_answer(0, Duration::from_secs(60)).is_some());
    heard.into_iter().for_each(|datagram| scene.world.inject(datagram));
    scene.run_for(Duration::from_secs(1));
    assert!(scene.run_to_answer(1, Duration::from_secs(1)).is_some());
    scene.check();
}

#[test]
fn a_rendezvous_server_that_drops_bends_or_repeats_only_delays() {
    for manners in [Manners::Drops(30), Manners::Bends(30), Manners::Repeats] {
        for seed in 61..71 {
            let mut scene = Scene::new(&Terms::exact([Class::Fig4A, Class::PortRestricted], ONE_WAY, seed));
            scene.rendezvous_mut().manners = manners;
            assert!(scene.run_to_answer(0, SOON).is_some(), "{manners:?}, seed {seed}");
            scene.check();
        }
    }
}

#[test]
fn a_packet_from_a_foreign_source_is_dropped_and_counted() {
    let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 71));
    assert!(scene.run_to_answer(0, SOON).is_some());
    let before = scene.member(1).drops().of(Drop::ForeignSource);
    let foreign = "10.66.0.1".parse().expect("is an address");
    let echo = Echo { src: foreign, dst: virtual_address(1, 0), reply: false, number: 1, payload: PAYLOAD };
    scene.world.act(scene.members[0], |machine, moment| machine.member_mut().give_tun(moment, &echo.encode()));
    scene.run_for(Duration::from_secs(1));
    assert_eq!(scene.member(1).drops().of(Drop::ForeignSource), before + 1);
    scene.check();
}

#[test]
fn what_is_no_ip_packet_and_what_goes_nowhere_is_dropped_and_counted() {
    let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 72));
    assert!(scene.run_to_answer(0, SOON).is_some());
    let before = scene.member(0).drops().of(Drop::NoRoute);
    let nowhere = "10.66.0.1".parse().expect("is an address");
    let echo = Echo { src: virtual_address(0, 0), dst: nowhere, reply: false, number: 1, payload: PAYLOAD }.encode();
    for bytes in [&[][..], &[0x45], &[0xff; 60], &echo[..19], &echo] {
        scene.world.act(scene.members[0], |machine, moment| machine.member_mut().give_tun(moment, bytes));
    }
    assert_eq!(scene.member(0).drops().of(Drop::NoRoute), before + 5);
    scene.check();
}
