//! What happens after the first ping: reboots, restarts, outages, refusals, long silence and long talk.

use std::net::IpAddr;
use std::time::Duration;

use p2ptund::proto::Event;
use p2ptund::proto::config::{Calls, Connect};
use p2ptund::proto::node::MappedPort;
use p2ptund::proto::snapshot::{Method, PortMapping, State};

use crate::classes::Class;
use crate::dice::Dice;
use crate::nat::{Allocation, Profile, Scope};
use crate::scene::{RENDEZVOUS, Scene, virtual_address};
use crate::terms::{Layout, Terms};

const ONE_WAY: Duration = Duration::from_millis(20);
/// By then a first connection stands.
const SOON: Duration = Duration::from_secs(30);
/// By then one that broke stands again, whatever happened; [`crate::after`] holds what is sooner than that.
const AGAIN: Duration = Duration::from_secs(60);
/// One of every kind: a cone, the trap, and one whose every path has to be guessed.
const KINDS: [Class; 3] = [Class::PortRestricted, Class::Masquerade, Class::Fig4BStep1];

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two members that ping each other already.
fn connected(terms: &Terms) -> Scene {
    let mut scene = Scene::new(terms);
    let answer = scene.run_to_answer(0, SOON);
    assert!(answer.is_some(), "never connected: {}", situation(&scene));
    scene
}

fn connected_between(class: Class) -> Scene {
    connected(&Terms::exact([class; 2], ONE_WAY, 21))
}

fn situation(scene: &Scene) -> String {
    let side = |side: usize| {
        let peer = scene.member(side).snapshot(scene.world.now).and_then(|snapshot| snapshot.peers.into_iter().next());
        peer.map_or("not started".to_owned(), |peer| format!("{:?}: {:?}", peer.state, peer.why))
    };
    format!("{}; {}", side(0), side(1))
}

/// Both find that pings are answered, within `time` from now.
fn answers_both_ways(scene: &mut Scene, time: Duration) {
    for side in [0, 1] {
        let answer = scene.run_to_answer(side, time);
        assert!(answer.is_some(), "no ping of side {side} was answered within {time:?}: {}", situation(scene));
        scene.world.act(scene.members[side], |machine, _| machine.member_mut().pinger.stop());
    }
    scene.check();
}

#[test]
fn a_nat_that_reboots_is_got_through_again() {
    // A counter that jumps must not pass for traffic of others; where it jumps to depends on the seed.
    for (class, seed) in KINDS.into_iter().flat_map(|class| (0..8).map(move |seed| (class, seed))) {
        for sides in [&[0][..], &[0, 1]] {
            let mut scene = connected(&Terms::exact([class; 2], ONE_WAY, seed));
            for side in sides {
                for id in scene.nats[*side].clone() {
                    scene.world.reboot(id);
                }
            }
            answers_both_ways(&mut scene, AGAIN);
        }
    }
}

#[test]
fn a_member_that_was_killed_is_found_again() {
    for class in KINDS {
        for sides in [&[0][..], &[1], &[0, 1]] {
            let mut scene = connected_between(class);
            scene.run_for(secs(5));
            sides.iter().for_each(|side| scene.restart(*side));
            answers_both_ways(&mut scene, AGAIN);
        }
    }
}

/// Its NAT still remembers the mappings of the run before, whose ports say nothing of where the counter is.
#[test]
fn a_member_that_is_restarted_behind_a_symmetric_nat_is_back_within_two_seconds() {
    for class in [Class::Fig4A, Class::Fig4BStep1, Class::Fig4BStep4, Class::AddressDependent] {
        let mut scene = connected_between(class);
        scene.run_for(secs(5));
        scene.restart(0);
        let answer = scene.run_to_answer(0, secs(2));
        assert!(answer.is_some(), "{class:?}: {}", situation(&scene));
    }
}

#[test]
fn members_register_by_themselves_with_a_rendezvous_server_that_was_restarted() {
    let mut scene = connected_between(Class::PortRestricted);
    scene.restart_rendezvous();
    assert_eq!(scene.rendezvous_mut().members(), 0);
    scene.run_for(AGAIN);
    assert_eq!(scene.rendezvous_mut().members(), 2);
    answers_both_ways(&mut scene, secs(1));
}

#[test]
fn a_path_outlives_the_rendezvous_server_and_the_next_call_waits_for_it() {
    let mut scene = connected_between(Class::Fig4BStep1);
    scene.rendezvous_mut().silent = true;
    scene.run_for(secs(300));
    answers_both_ways(&mut scene, secs(1));
    scene.restart(0);
    assert_eq!(scene.run_to_answer(0, secs(20)), None, "there was nobody to pass the call on");
    scene.rendezvous_mut().silent = false;
    answers_both_ways(&mut scene, secs(90));
}

#[test]
fn ten_minutes_without_any_network_are_got_over() {
    for class in KINDS {
        for (cut, pinging) in [(&[0][..], true), (&[0, 1], false)] {
            let mut scene = connected_between(class);
            if !pinging {
                scene.world.act(scene.members[0], |machine, _| machine.member_mut().pinger.stop());
            }
            cut.iter().for_each(|side| scene.uplink_mut(*side).up = false);
            scene.run_for(secs(600));
            cut.iter().for_each(|side| scene.uplink_mut(*side).up = true);
            answers_both_ways(&mut scene, secs(90));
        }
    }
}

#[test]
fn a_cut_of_five_seconds_costs_no_new_call() {
    let mut scene = connected_between(Class::PortRestricted);
    scene.uplink_mut(0).up = false;
    scene.run_for(secs(5));
    scene.uplink_mut(0).up = true;
    answers_both_ways(&mut scene, secs(15));
}

#[test]
fn who_may_call_whom_is_kept_to_and_the_refused_one_is_told_why() {
    let all = [Calls::Both, Calls::Out, Calls::In, Calls::None];
    for calls in all.iter().flat_map(|a| all.map(|b| [*a, b])) {
        let terms = Terms { calls, ..Terms::exact([Class::PortRestricted; 2], ONE_WAY, 22) };
        let allowed = |from: usize| calls[from].may_call() && calls[1 - from].answers();
        let mut scene = Scene::new(&terms);
        let answer = scene.run_to_answer(0, SOON);
        assert_eq!(answer.is_some(), allowed(0) || allowed(1), "{calls:?}: {}", situation(&scene));
        for side in [0, 1] {
            let peer = scene.member(side).snapshot(scene.world.now).expect("was started").peers.remove(0);
            let other = IpAddr::from([203, 0, 113, 2 - u8::try_from(side).expect("is 0 or 1")]);
            if answer.is_some() {
                assert_eq!(peer.state, State::Connected, "{calls:?}, side {side}");
            } else {
                assert_eq!(scene.member(side).traffic.get(&other), None, "{calls:?}: it was to leave the other alone");
            }
            if calls[side].may_call() && !allowed(side) && answer.is_none() {
                let why = peer.why.unwrap_or_default();
                assert!(why.contains("refuse"), "{calls:?}, side {side} says only {why:?}");
            }
        }
        scene.check();
    }
}

#[test]
fn a_call_on_demand_waits_for_the_first_packet() {
    let terms = Terms { connect: Connect::OnDemand, ..Terms::exact([Class::Fig4A; 2], ONE_WAY, 23) };
    let mut scene = Scene::new(&terms);
    scene.run_for(SOON);
    assert!(scene.member(0).first_connected().is_none() && scene.member(1).first_connected().is_none());
    answers_both_ways(&mut scene, SOON);
}

#[test]
fn an_idle_member_sends_keepalives_and_nothing_else() {
    for class in KINDS {
        let mut scene = connected_between(class);
        scene.world.act(scene.members[0], |machine, _| machine.member_mut().pinger.stop());
        scene.run_for(secs(60));
        [0, 1].into_iter().for_each(|side| scene.member_mut(side).start_counting());
        let time = 600;
        scene.run_for(secs(time));
        for side in [0, 1] {
            for (address, count) in &scene.member(side).traffic {
                let each = if is_server(*address) { 20 } else { 15 };
                // One more than fits in, for the window may begin and end with one.
                assert!(*count <= time / each + 1, "{class:?}: {count} to {address} within {time} s");
            }
            assert!(scene.member(side).open_sockets() <= 1, "{class:?}: sockets of the call stay open");
            let lost = scene.member(side).events.iter().any(|(_, event)| matches!(event, Event::Lost { .. }));
            assert!(!lost, "{class:?}: an idle path was given up");
        }
        answers_both_ways(&mut scene, secs(2));
    }
}

fn is_server(address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else { return false };
    [198, 192].contains(&address.octets()[0]) && !address.is_private()
}

#[test]
fn no_ping_is_lost_over_ten_rekeys() {
    let mut scene = connected_between(Class::PortRestricted);
    scene.ping(0, Duration::from_millis(200));
    scene.run_for(secs(1300));
    let pinger = &scene.member(0).pinger;
    assert!(pinger.answers > 6000, "{} answers", pinger.answers);
    assert_eq!(pinger.unanswered(scene.world.now - secs(1)), 0);
    assert!(pinger.longest < ONE_WAY * 10, "one took {:?}", pinger.longest);
    scene.check();
}

#[test]
fn a_mapped_port_gets_through_where_no_port_can_be_guessed() {
    let mut scene = Scene::new(&Terms::exact([Class::Fig4BStep1; 2], ONE_WAY, 24));
    scene.replace_nats(&random());
    scene.run_for(Duration::from_millis(1));
    let (router, now) = (scene.nats[0][0], scene.world.now);
    let inside = "192.168.1.2:4275".parse().expect("is an address");
    assert!(scene.world.router_mut(router).nat.forward_port(now, 4275, inside));
    scene.world.act(scene.members[0], |machine, moment| {
        let external = "203.0.113.1:4275".parse().expect("is an address");
        let mapped = MappedPort { external, by: PortMapping::Upnp };
        machine.member_mut().with_node(moment, |node, now| node.handle_port_mapping(now, Some(mapped)));
    });
    answers_both_ways(&mut scene, SOON);
    let peer = scene.member(1).snapshot(scene.world.now).expect("was started").peers.remove(0);
    assert_eq!(peer.method, Some(Method::PortMapping));
    assert_eq!(peer.endpoint, "203.0.113.1:4275".parse().ok());
}

/// A probe to it would reach somebody else's machine, or nobody's, and cost a port of our NAT.
#[test]
fn a_port_mapped_on_a_carriers_address_is_not_tried_from_elsewhere() {
    let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 24));
    scene.run_for(Duration::from_millis(1));
    scene.world.act(scene.members[0], |machine, moment| {
        let external = "100.64.3.4:4275".parse().expect("is an address");
        let mapped = MappedPort { external, by: PortMapping::NatPmp };
        machine.member_mut().with_node(moment, |node, now| node.handle_port_mapping(now, Some(mapped)));
    });
    scene.member_mut(1).start_counting();
    answers_both_ways(&mut scene, SOON);
    let traffic = &scene.member(1).traffic;
    assert!(!traffic.is_empty() && !traffic.contains_key(&IpAddr::from([100, 64, 3, 4])), "{traffic:?}");
}

#[test]
fn ipv6_gets_through_where_no_port_can_be_guessed() {
    let terms = Terms { ipv6: true, ..Terms::exact([Class::Fig4BStep1; 2], ONE_WAY, 25) };
    let mut scene = Scene::new(&terms);
    scene.replace_nats(&random());
    answers_both_ways(&mut scene, SOON);
    let peer = scene.member(1).snapshot(scene.world.now).expect("was started").peers.remove(0);
    assert_eq!(peer.method, Some(Method::Ipv6));
}

#[test]
fn two_members_in_one_lan_meet_there() {
    for class in [Class::Masquerade, Class::Fig4BStep1, Class::SymmetricInCone] {
        let terms = Terms { layout: Layout::SameLan, ..Terms::exact([class; 2], ONE_WAY, 29) };
        let mut scene = connected(&terms);
        answers_both_ways(&mut scene, SOON);
        let peer = scene.member(0).snapshot(scene.world.now).expect("was started").peers.remove(0);
        assert_eq!(peer.method, Some(Method::Lan), "{class:?}");
        assert_eq!(peer.endpoint, "192.168.1.3:4275".parse().ok());
    }
}

#[test]
fn two_members_behind_one_carrier_meet_round_its_corner() {
    let mut scene =
        Scene::new(&Terms { layout: Layout::SameCarrier, ..Terms::exact([Class::ConeInCone; 2], ONE_WAY, 30) });
    let carrier = *scene.nats[0].last().expect("is there");
    scene.world.router_mut(carrier).nat.profile.hairpin = true;
    answers_both_ways(&mut scene, SOON);
}

#[test]
fn random_ports_on_both_sides_are_said_to_be_hopeless() {
    let mut scene = Scene::new(&Terms::exact([Class::Fig4BStep1; 2], ONE_WAY, 26));
    scene.replace_nats(&random());
    assert_eq!(scene.run_to_answer(0, AGAIN), None);
    for side in [0, 1] {
        let peer = scene.member(side).snapshot(scene.world.now).expect("was started").peers.remove(0);
        assert!(peer.why.is_some_and(|why| why.len() > 20), "side {side} says nothing");
    }
    scene.check();
}

#[test]
fn random_ports_against_a_cone_are_found_by_many_sockets() {
    for seed in 0..20 {
        let mut scene = Scene::new(&Terms::exact([Class::PortRestricted, Class::Fig4BStep1], ONE_WAY, seed));
        let hard = scene.nats[1][0];
        scene.world.router_mut(hard).nat.profile = random();
        scene.world.reboot(hard);
        assert!(scene.run_to_answer(0, AGAIN).is_some(), "seed {seed}: {}", situation(&scene));
        scene.check();
    }
}

#[test]
fn a_system_that_gives_few_sockets_is_put_up_with() {
    let mut scene = Scene::new(&Terms::exact([Class::PortRestricted, Class::Fig4BStep1], ONE_WAY, 31));
    scene.replace_nats(&random());
    [0, 1].into_iter().for_each(|side| scene.member_mut(side).socket_limit = 5);
    scene.ping(0, secs(1));
    scene.run_for(AGAIN);
    scene.check();
}

/// Whatever happens to them, in whatever order: once it stops, they find each other.
#[test]
fn a_bad_week_is_got_over() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let mut pick = |count: u64| usize::try_from(dice.between(0, count - 1)).expect("is small");
        let classes = [0, 1].map(|_| Class::ALL[pick(Class::ALL.len() as u64)]);
        let mut scene = Scene::new(&Terms::exact(classes, ONE_WAY, seed));
        scene.ping(0, Duration::from_millis(500));
        let mut story = Vec::new();
        for _ in 0..12 {
            let side = pick(2);
            let event = pick(6);
            story.push((event, side));
            match event {
                0 => scene.nats[side].clone().into_iter().for_each(|id| scene.world.reboot(id)),
                1 => scene.restart(side),
                2 => scene.restart_rendezvous(),
                3 => scene.uplink_mut(side).up ^= true,
                4 => scene.rendezvous_mut().silent ^= true,
                _ => {
                    let discovery = scene.discovery_mut(side);
                    discovery.silent = !discovery.silent;
                }
            }
            scene.run_for(Duration::from_millis(100 << pick(10)));
        }
        for side in [0, 1] {
            scene.uplink_mut(side).up = true;
            scene.discovery_mut(side).silent = false;
        }
        scene.rendezvous_mut().silent = false;
        let answer = scene.run_to_answer(0, secs(120));
        assert!(answer.is_some(), "seed {seed}, {classes:?}, {story:?}: {}", situation(&scene));
        scene.check();
    }
}

fn random() -> Profile {
    Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Random)
}

#[test]
fn mappings_that_live_twenty_seconds_are_kept_alive() {
    let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 27));
    let short = Profile {
        lifetime: secs(30),
        unreplied: secs(20),
        inbound_refresh: false,
        ..Profile::new(Scope::Endpoint, Scope::AddressAndPort, Allocation::Preserving)
    };
    scene.replace_nats(&short);
    assert!(scene.run_to_answer(0, SOON).is_some());
    scene.world.act(scene.members[0], |machine, _| machine.member_mut().pinger.stop());
    scene.run_for(secs(300));
    answers_both_ways(&mut scene, secs(2));
}

#[test]
fn one_discovery_server_that_is_silent_does_not_stop_a_cone() {
    for silent in [0, 1] {
        let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], ONE_WAY, 28));
        scene.discovery_mut(silent).silent = true;
        answers_both_ways(&mut scene, SOON);
    }
}

#[test]
fn a_ping_of_the_users_is_answered_with_a_time() {
    let mut scene = connected_between(Class::PortRestricted);
    scene.world.act(scene.members[0], |machine, moment| {
        machine.member_mut().with_node(moment, |node, now| {
            node.handle_ping(now, "berlin").expect("is a peer");
            assert!(node.handle_ping(now, "carthage").is_err());
        });
    });
    scene.run_for(secs(1));
    let pongs: Vec<Duration> = scene.member(0).events.iter().filter_map(|(_, event)| pong(event)).collect();
    assert_eq!(pongs.len(), 1);
    assert!((ONE_WAY * 4..ONE_WAY * 5).contains(&pongs[0]), "took {:?}", pongs[0]);
}

fn pong(event: &Event) -> Option<Duration> {
    match event {
        Event::Pong { rtt, .. } => Some(*rtt),
        _ => None,
    }
}

#[test]
fn the_servers_are_where_the_scene_says() {
    assert!(is_server(RENDEZVOUS.into()));
    assert!(!is_server(IpAddr::from([192, 168, 1, 2])) && !is_server(virtual_address(0, 0)));
}
