//! Two members that start almost together, or one up to two seconds before the other: the later one's start is what counts.
//! The one that pings is to be the caller, for a caller's payload may follow its call sooner than the called member's.

use std::time::Duration;

use p2ptund::proto::Event;
use p2ptund::proto::config::{Host, HostPort, MEMBER_PORT};

use crate::classes::Class;
use crate::nat::{Allocation, Profile, Scope};
use crate::scene::Scene;
use crate::terms::Terms;
use crate::world::START;

const ONE_WAY: Duration = Duration::from_millis(25);
/// A handshake with the server, a call and its answer, a ping and its answer: ten times one way; and what computing takes.
const WITHIN: Duration = Duration::from_millis(255);
const PING_EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(10);

fn terms(late: Duration, later: usize, seed: u64) -> Terms {
    let mut up = [Duration::ZERO; 2];
    up[later] = late;
    Terms { up, ..Terms::exact([Class::None, Class::FullCone], ONE_WAY, seed) }
}

/// From the later one's start to the first answer.
fn took(terms: &Terms, pinging: usize) -> Option<Duration> {
    took_in(Scene::new(terms), terms, pinging)
}

fn took_in(mut scene: Scene, terms: &Terms, pinging: usize) -> Option<Duration> {
    let started = START + terms.up[0].max(terms.up[1]);
    scene.ping(pinging, PING_EVERY);
    let id = scene.members[pinging];
    scene.world.run(started + PATIENCE, |world| world.machine(id).member().pinger.first_answer.is_some());
    scene.check();
    scene.member(pinging).pinger.first_answer.map(|at| at.since(started))
}

#[test]
fn whoever_starts_first_and_whoever_pings_the_first_ping_takes_ten_times_one_way() {
    let mut slow = Vec::new();
    for late in [0, 1, 5, 20, 40, 60, 90, 120, 200, 310, 500, 760, 1000, 1430, 1700, 2000] {
        for (later, pinging) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for seed in 0..4 {
                let took = took(&terms(Duration::from_millis(late), later, seed), pinging);
                if took.is_none_or(|took| took > WITHIN) {
                    slow.push(format!("{later} starts {late} ms later, {pinging} pings, seed {seed}: {took:?}"));
                }
            }
        }
    }
    assert!(slow.is_empty(), "{}\n{}", slow.len(), slow.join("\n"));
}

#[test]
fn a_held_call_does_not_disturb_a_path_by_the_configured_endpoint() {
    for late in [0, 10, 50, 100, 400, 1500] {
        let mut scene = Scene::new(&terms(Duration::from_millis(late), 1, 7));
        let ip = scene.world.host(scene.members[0]).address_v4().expect("is there");
        let endpoint = HostPort { host: Host::Ip(ip.into()), port: MEMBER_PORT };
        scene.member_mut(1).config.peers[0].endpoint = Some(endpoint);
        scene.run_for(Duration::from_millis(late) + Duration::from_secs(3));
        for side in [0, 1] {
            assert!(scene.member(side).is_connected(), "{late} ms");
            let answers = |event: &Event| matches!(event, Event::Step { text, .. } if text.starts_with("calls, from"));
            assert!(!scene.member(side).events.iter().any(|(_, event)| answers(event)), "{late} ms, side {side}");
        }
        scene.check();
    }
}

/// The issue's: 99.5 % within a second, with 2 % lost in each direction at each site.
#[test]
fn what_is_lost_costs_less_than_a_second() {
    const RUNS: u64 = 800;
    let soon = |seed: &u64| {
        let late = Duration::from_millis(seed * 7 % 300);
        let terms = Terms { loss: 0.02, ..terms(late, usize::from(seed % 2 == 1), *seed) };
        took(&terms, usize::from(seed / 2 % 2 == 1)).is_some_and(|took| took <= Duration::from_secs(1))
    };
    let count = (0..RUNS).filter(soon).count();
    assert!(count >= 796, "{count} of {RUNS}");
}

/// A call that found nobody there must not make later probes go further: they would reach a Linux router before its own member's
/// do, and take their port there.
#[test]
fn a_call_that_came_too_early_does_not_poison_a_linux_router() {
    let counts = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step: 1 });
    for late in [0, 10, 40, 100, 250, 600, 1500, 4000] {
        for seed in 0..8 {
            let terms = Terms {
                nats: [Some(vec![Profile::masquerade()]), Some(vec![counts.clone()])],
                ..terms(Duration::from_millis(late), 0, seed)
            };
            let mut scene = Scene::new(&terms);
            // As near as two sites can be.
            scene.world.hops = 1;
            let took = took_in(scene, &terms, 0);
            assert!(took.is_some_and(|took| took <= Duration::from_secs(1)), "{late} ms, seed {seed}: {took:?}");
        }
    }
}
