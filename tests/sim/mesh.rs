//! More than two members: every one finds every other.

use std::time::Duration;

use crate::classes::Class;
use crate::scene::Scene;
use crate::terms::Terms;
use crate::world::START;

const ONE_WAY: Duration = Duration::from_millis(20);
/// Hard calls come one after the other, so a mesh takes longer than a pair.
const PATIENCE: Duration = Duration::from_secs(90);

fn meets(classes: [Class; 2], more: &[Class], seed: u64) {
    let terms = Terms { more: more.to_vec(), ..Terms::exact(classes, ONE_WAY, seed) };
    let mut scene = Scene::new(&terms);
    let count = scene.members.len();
    (0..count).for_each(|member| scene.ping(member, Duration::from_millis(50)));
    let members = scene.members.clone();
    let met = scene
        .world
        .run(START + PATIENCE, |world| members.iter().all(|id| world.machine(*id).member().pinger.all_answered()));
    let heard = |member: usize| scene.member(member).pinger.answered_by.clone();
    let states: Vec<_> = (0..count).map(heard).collect();
    assert!(met, "{classes:?} and {more:?}, seed {seed}: answers from {states:?}");
    assert!((0..count).all(|member| scene.member(member).is_connected()));
    scene.check();
}

#[test]
fn six_members_behind_six_kinds_of_nat_all_meet() {
    for seed in 0..5 {
        let more = [Class::PortRestricted, Class::Masquerade, Class::Fig4A, Class::ConeInCone];
        meets([Class::None, Class::FullCone], &more, seed);
    }
}

#[test]
fn five_members_behind_symmetric_nats_all_meet() {
    for seed in 0..5 {
        let more = [Class::Fig4BStep4, Class::AddressDependent, Class::SymmetricInCone];
        meets([Class::Fig4A, Class::Fig4BStep1], &more, seed);
    }
}
