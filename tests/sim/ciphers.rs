//! AES-256-GCM between members: where both have it, nowhere else, whatever happens to them or is done to them.

use std::time::Duration;

use p2ptund::proto::config::{Host, HostPort, MEMBER_PORT};
use p2ptund::proto::snapshot::Cipher;

use crate::classes::Class;
use crate::crook::Misuse;
use crate::dice::Dice;
use crate::hostile::storm;
use crate::introductions::betrayed;
use crate::scene::{NAMES, Scene};
use crate::servers::Manners;
use crate::terms::Terms;

const ONE_WAY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const AES: Option<Cipher> = Some(Cipher::Aes256Gcm);
const CHACHA: Option<Cipher> = Some(Cipher::ChaCha20Poly1305);

/// What each of the two offices seals with, towards the other; `None`: nothing.
fn ciphers(scene: &Scene) -> [Option<Cipher>; 2] {
    [0, 1].map(|of| {
        let peers = scene.member(of).snapshot(scene.world.now).expect("was started").peers;
        peers.into_iter().find(|peer| peer.name == NAMES[1 - of]).expect("is a peer").cipher
    })
}

fn connected(terms: &Terms) -> Scene {
    let mut scene = Scene::new(terms);
    assert!(scene.run_to_answer(0, SOON).is_some(), "{terms:?}");
    scene
}

/// Both directions in use, for `time`, with `cipher` all the while.
fn keep(scene: &mut Scene, time: Duration, cipher: Option<Cipher>) {
    let until = scene.world.now + time;
    while scene.world.now < until {
        scene.run_for(Duration::from_millis(100));
        assert_eq!(ciphers(scene), [cipher; 2], "at {:?}", scene.world.now);
    }
}

#[test]
fn a_call_agrees_on_aes_where_both_have_it_and_else_on_chacha20_poly1305() {
    for class in [Class::None, Class::PortRestricted, Class::Fig4A, Class::Fig4BStep1] {
        for (aes, agreed) in [([true; 2], AES), ([true, false], CHACHA), ([false, true], CHACHA), ([false; 2], CHACHA)]
        {
            let mut scene = connected(&Terms { aes, ..Terms::exact([class; 2], ONE_WAY, 81) });
            scene.run_for(SECOND);
            assert_eq!(ciphers(&scene), [agreed; 2], "{class:?} {aes:?}");
            scene.check();
        }
    }
}

#[test]
fn endpoints_agree_without_any_call() {
    for agreed in [AES, CHACHA] {
        let mut scene =
            Scene::new(&Terms { aes: [true, agreed == AES], ..Terms::exact([Class::None; 2], ONE_WAY, 82) });
        for side in [0, 1] {
            let other = scene.member(1 - side).addresses()[0].addr();
            let config = &mut scene.member_mut(side).config;
            config.rendezvous.clear();
            config.discovery.clear();
            config.peers[0].endpoint = Some(HostPort { host: Host::Ip(other), port: MEMBER_PORT });
        }
        assert!(scene.run_to_answer(0, SOON).is_some());
        scene.run_for(SECOND);
        keep(&mut scene, Duration::from_secs(150), agreed);
        scene.check();
    }
}

#[test]
fn rekeys_keep_aes_and_lose_no_ping() {
    let mut scene = connected(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 83));
    let handshake = |scene: &Scene| scene.member(0).snapshot(scene.world.now).expect("runs").peers[0].last_handshake;
    scene.run_for(SECOND);
    let first = handshake(&scene);
    scene.ping(0, Duration::from_millis(100));
    keep(&mut scene, Duration::from_secs(400), AES);
    assert!(handshake(&scene) > first.map(|at| at + 300), "there were rekeys");
    assert!(scene.member(0).pinger.answers >= 3990, "{} of 4000", scene.member(0).pinger.answers);
    scene.check();
}

#[test]
fn who_is_restarted_without_aes_is_spoken_to_in_chacha20_poly1305_and_the_way_back_is_open() {
    for (seed, side) in [(84, 0), (85, 1)] {
        let mut scene = connected(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, seed));
        scene.run_for(SECOND);
        assert_eq!(ciphers(&scene), [AES; 2]);
        for (aes, agreed) in [(false, CHACHA), (true, AES)] {
            scene.member_mut(side).config.aes = aes;
            scene.restart(side);
            assert!(scene.run_to_answer(1 - side, SOON).is_some(), "side {side}");
            scene.run_for(SECOND);
            keep(&mut scene, Duration::from_secs(130), agreed);
        }
        scene.check();
    }
}

#[test]
fn a_reload_changes_the_cipher_within_two_seconds_and_loses_no_ping() {
    let mut scene = connected(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 86));
    scene.run_for(SECOND);
    scene.ping(0, Duration::from_millis(20));
    for (aes, agreed) in [(false, CHACHA), (true, AES)] {
        scene.world.act(scene.members[1], |machine, moment| {
            let member = machine.member_mut();
            member.config.aes = aes;
            let config = member.config.clone();
            member.with_node(moment, |node, now| node.handle_config(now, config));
        });
        scene.run_for(2 * SECOND);
        assert_eq!(ciphers(&scene), [agreed; 2]);
    }
    assert!(scene.member(0).pinger.answers >= 195, "{} of 200", scene.member(0).pinger.answers);
    scene.check();
}

/// Somebody between two members that both have AES.
#[test]
fn a_storm_of_forged_datagrams_neither_downgrades_nor_splits() {
    for seed in 0..3 {
        let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 91 + seed));
        scene.world.tap = Some(Vec::new());
        scene.ping(0, Duration::from_millis(50));
        let mut dice = Dice::new(seed);
        // Through the call, and through a rekey.
        for _ in 0..150 {
            storm(&mut scene, &mut dice, SECOND);
            assert!(ciphers(&scene).into_iter().flatten().all(|cipher| Some(cipher) == AES), "seed {seed}");
            let tap = scene.world.tap.as_mut().expect("is tapped");
            tap.drain(..tap.len().saturating_sub(500));
        }
        assert!(scene.member(0).pinger.first_answer.is_some(), "seed {seed}");
        assert_eq!(ciphers(&scene), [AES; 2], "seed {seed}");
        scene.check();
    }
}

#[test]
fn a_rendezvous_server_that_drops_bends_or_repeats_calls_downgrades_nobody() {
    for manners in [Manners::Drops(40), Manners::Bends(40), Manners::Repeats] {
        for seed in 0..6 {
            let mut scene = Scene::new(&Terms::exact([Class::Fig4A, Class::PortRestricted], ONE_WAY, 101 + seed));
            scene.rendezvous_mut().manners = manners;
            assert!(scene.run_to_answer(0, SOON).is_some(), "{manners:?}, seed {seed}");
            scene.run_for(SECOND);
            assert_eq!(ciphers(&scene), [AES; 2], "{manners:?}, seed {seed}");
            scene.check();
        }
    }
}

#[test]
fn an_introducer_that_misuses_calls_downgrades_nobody() {
    for misuse in [Misuse::Drops(30), Misuse::Bends(30), Misuse::Repeats, Misuse::Forges] {
        for seed in 0..3 {
            let scene = betrayed(misuse, 111 + seed);
            assert!(ciphers(&scene).into_iter().flatten().all(|cipher| Some(cipher) == AES), "{misuse:?}, {seed}");
        }
    }
}
