//! What follows a connection: how long a NAT that reboots or is renumbered, or a move, keeps payload from flowing; that mappings
//! are kept open; and that a better path costs nothing.
//!
//! Traffic flows each 50 ms, as pings or in one direction only; an outage is the longest run of packets in a row that were lost.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use p2ptund::proto::Event;
use p2ptund::proto::snapshot::{self, Method};

use crate::classes::Class;
use crate::dice::Dice;
use crate::link::Link;
use crate::nat::{Allocation, Profile, Scope};
use crate::scene::Scene;
use crate::seeds::number;
use crate::terms::{Layout, Terms};

const EVERY: Duration = Duration::from_millis(50);
/// A first connection stands by then.
const SOON: Duration = Duration::from_secs(30);
/// How long after the event an outage is looked for.
const LOOKED_AT: Duration = Duration::from_secs(12);
/// The issue's: of a NAT that reboots or is renumbered, and of a member that moves.
const REBOOT_COSTS: Duration = Duration::from_secs(3);
const MOVE_COSTS: Duration = Duration::from_secs(2);
/// What netmon waits for a burst of changes to end before the node is told.
const NETMON: Duration = Duration::from_millis(200);

/// Who sends.
#[derive(Clone, Copy, Debug)]
enum Flow {
    Pings(usize),
    /// In one direction, and nothing comes back.
    Stream(usize),
}

const FLOWS: [Flow; 4] = [Flow::Pings(0), Flow::Pings(1), Flow::Stream(0), Flow::Stream(1)];

/// Two members between which `flow` flows already.
fn flowing(terms: &Terms, flow: Flow) -> Option<Scene> {
    let mut scene = Scene::new(terms);
    let (Flow::Pings(side) | Flow::Stream(side)) = flow;
    scene.run_to_answer(side, SOON)?;
    scene.member_mut(side).pinger.stop();
    // What the first call's many shots permitted at a NAT is forgotten by then; half of the time.
    scene.run_for(Duration::from_secs(if terms.seed.is_multiple_of(2) { 35 } else { 8 }));
    begin(&mut scene, flow);
    scene.run_for(Duration::from_secs(2));
    Some(scene)
}

fn begin(scene: &mut Scene, flow: Flow) {
    let (Flow::Pings(side) | Flow::Stream(side)) = flow;
    scene.ping(side, EVERY);
    if let Flow::Stream(_) = flow {
        scene.member_mut(side).pinger.one_way = true;
        scene.member_mut(1 - side).deliveries = Some(vec![scene.world.now]);
    }
}

/// The longest outage of the flow since it began.
fn outage(scene: &mut Scene, flow: Flow) -> Duration {
    let now = scene.world.now;
    match flow {
        Flow::Pings(side) => scene.member(side).pinger.outage(now - Duration::from_secs(1)),
        Flow::Stream(side) => {
            let mut times = scene.member(1 - side).deliveries.clone().unwrap_or_default();
            times.push(now);
            times.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap_or_default()
        }
    }
}

fn situation(scene: &Scene) -> String {
    let side = |side: usize| {
        let peer = scene.member(side).snapshot(scene.world.now).and_then(|snapshot| snapshot.peers.into_iter().next());
        peer.map_or("not started".to_owned(), |peer| format!("{:?}: {:?}", peer.state, peer.why))
    };
    format!("{}; {}", side(0), side(1))
}

/// What happens to the NATs of one office.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blow {
    /// All of them forget everything, and count on from elsewhere.
    Reboot,
    /// The outermost gets another public address.
    Renumber,
}

fn strike(scene: &mut Scene, blow: Blow, side: usize) {
    for (layer, id) in scene.nats[side].clone().into_iter().rev().enumerate() {
        if blow == Blow::Renumber && layer == 0 {
            scene.world.renumber(id, Ipv4Addr::new(203, 0, 113, 71 + u8::try_from(side).expect("is 0 or 1")));
        } else {
            scene.world.reboot(id);
        }
    }
}

fn seeds(default: u64) -> u64 {
    number("SEEDS").unwrap_or(default)
}

/// The outages of all pairs with `class`, over seeds, flows and one-way times; the pairs that were worse than `most`, and what they
/// had, as text.
fn outages(class: Class, most: Duration, happen: impl Fn(&mut Scene, u64) -> Option<String>) {
    let (mut all, mut worse) = (Vec::new(), Vec::new());
    for other in Class::ALL.into_iter().filter(|other| *other >= class) {
        for seed in 0..seeds(12) {
            let own = seed ^ ((class as u64) << 40) ^ ((other as u64) << 48);
            let one_way = Duration::from_millis(20 + 10 * (seed % 4));
            let flow = FLOWS[usize::try_from(seed / 2 % 4).expect("is small")];
            let classes = if seed % 2 == 0 { [class, other] } else { [other, class] };
            let Some(mut scene) = flowing(&Terms::exact(classes, one_way, own), flow) else {
                worse.push(format!("{classes:?} seed {seed}: never connected"));
                continue;
            };
            if let Ok(only) = std::env::var("SEED") {
                if only != format!("{} {seed}", other.name()) {
                    continue;
                }
                scene.world.transcript.loud = true;
            }
            let Some(what) = happen(&mut scene, seed) else { continue };
            scene.run_for(LOOKED_AT);
            let took = outage(&mut scene, flow);
            scene.check();
            all.push(took);
            if took > most {
                let at = situation(&scene);
                worse.push(format!(
                    "{} seed {seed} {classes:?} {flow:?} {what}, {one_way:?}: {took:?}; {at}",
                    other.name()
                ));
            }
        }
    }
    all.sort();
    let at = |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1)));
    println!("{}: {} runs, median {:?}, 95 % {:?}, longest {:?}", class.name(), all.len(), at(50), at(95), all.last());
    assert!(worse.is_empty(), "{} of {}:\n{}", worse.len(), all.len(), worse.join("\n"));
}

fn a_blow_costs_little(class: Class) {
    outages(class, REBOOT_COSTS, |scene, seed| {
        let blow = if seed % 3 == 2 { Blow::Renumber } else { Blow::Reboot };
        let sides: &[usize] = match seed / 2 % 3 {
            0 => &[0],
            1 => &[1],
            _ => &[0, 1],
        };
        sides.iter().for_each(|side| strike(scene, blow, *side));
        Some(format!("{blow:?} of {sides:?}"))
    });
}

fn a_move_costs_little(class: Class) {
    outages(class, MOVE_COSTS, |scene, seed| {
        let side = usize::try_from(seed / 3 % 2).expect("is 0 or 1");
        // A NAT of any kind there, too.
        let mut dice = Dice::new(seed);
        let kind = Class::ALL[usize::try_from(dice.between(1, 9)).expect("is small")];
        move_elsewhere(scene, side, kind);
        Some(format!("{side} moves behind {}", kind.name()))
    });
}

/// A member leaves its office and is at another place at once, behind a NAT of that kind; its node is told a little later.
fn move_elsewhere(scene: &mut Scene, side: usize, kind: Class) {
    let number = u8::try_from(side).expect("is 0 or 1");
    let link = scene.uplink_mut(side).clone();
    let profile = kind.profiles(0.0, &mut scene.world.dice).remove(0);
    let wan = Ipv4Addr::new(203, 0, 113, 91 + number);
    let (nat, network) = scene.world.add_nat(crate::world::INTERNET, wan, profile, link);
    scene.nats[side] = vec![nat];
    let address = IpAddr::from([172, 16, 9, 2]);
    let id = scene.members[side];
    scene.world.move_host(id, network, &[address], Link::lan());
    // What is sent meanwhile has the new address already, as the kernel does it.
    scene.member_mut(side).set_addresses(vec![IpNet::new(address, 24).expect("is a prefix")]);
    scene.run_for(NETMON);
    scene.world.act(id, |machine, moment| machine.member_mut().tell_addresses(moment));
}

/// Gives both members IPv6, a while apart.
fn give_ipv6(scene: &mut Scene) {
    for side in [0, 1] {
        let id = scene.members[side];
        let (network, link) = (scene.world.host(id).network, scene.world.host(id).link.clone());
        let v6: IpNet = format!("2001:db8:{}::2/64", 1 + side).parse().expect("is an address");
        let mut addresses = scene.member(side).addresses().to_vec();
        addresses.push(v6);
        let plain: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
        scene.world.move_host(id, network, &plain, link);
        scene.member_mut(side).set_addresses(addresses);
        scene.world.act(id, |machine, moment| machine.member_mut().tell_addresses(moment));
        scene.run_for(Duration::from_millis(300));
    }
}

fn method(scene: &Scene, side: usize) -> Option<Method> {
    let snapshot = scene.member(side).snapshot(scene.world.now)?;
    snapshot.peers.first().and_then(|peer| peer.method)
}

/// Both ping all the while; `happen` makes a better path possible, which both are to use, and no ping is to be lost.
fn is_taken_without_a_loss(scene: &mut Scene, better: Method, happen: impl Fn(&mut Scene)) {
    let often = Duration::from_millis(7);
    [0, 1].into_iter().for_each(|side| scene.ping(side, often));
    scene.run_for(Duration::from_secs(3));
    scene.world.transcript.loud = std::env::var("LOUD").is_ok();
    happen(scene);
    scene.run_for(Duration::from_secs(8));
    let now = scene.world.now;
    for side in [0, 1] {
        assert_eq!(method(scene, side), Some(better), "side {side}: {}", situation(scene));
        let lost = scene.member(side).pinger.unanswered(now - Duration::from_secs(1));
        assert_eq!(lost, 0, "pings of side {side} were lost");
        // Discovery has one open, and four to learn how long the NAT remembers.
        let sockets = scene.member(side).open_sockets();
        assert!(sockets <= 5, "{sockets} sockets are open: those of the old path, too");
    }
    scene.check();
}

#[test]
fn ipv6_that_comes_later_is_taken_without_a_loss() {
    for (a, b) in Class::ALL.into_iter().flat_map(|a| Class::ALL.map(|b| (a, b))).filter(|(a, b)| a <= b) {
        for seed in 0..seeds(2) {
            let one_way = Duration::from_millis(20 + 10 * (seed % 4));
            let classes = if seed % 2 == 0 { [a, b] } else { [b, a] };
            let mut scene = Scene::new(&Terms::exact(classes, one_way, seed));
            assert!(scene.run_to_answer(0, SOON).is_some(), "{classes:?}: {}", situation(&scene));
            is_taken_without_a_loss(&mut scene, Method::Ipv6, give_ipv6);
        }
    }
}

#[test]
fn a_lan_that_is_found_later_is_taken_without_a_loss() {
    for class in [Class::FullCone, Class::AddressRestricted, Class::PortRestricted] {
        for seed in 0..seeds(8) {
            let terms = Terms { layout: Layout::SameLan, ..Terms::exact([class; 2], Duration::from_millis(30), seed) };
            let mut scene = Scene::new(&terms);
            for id in scene.nats[0].clone() {
                scene.world.router_mut(id).nat.profile.hairpin = true;
            }
            // Until it is told of them, neither knows its own addresses.
            [0, 1].into_iter().for_each(|side| scene.member_mut(side).hides_addresses = true);
            assert!(scene.run_to_answer(0, SOON).is_some(), "{class:?}: {}", situation(&scene));
            assert_eq!(method(&scene, 0), Some(Method::Punch));
            is_taken_without_a_loss(&mut scene, Method::Lan, |scene| {
                let side = usize::try_from(seed % 2).expect("is 0 or 1");
                for side in [side, 1 - side] {
                    let id = scene.members[side];
                    scene.world.act(id, |machine, moment| machine.member_mut().tell_addresses(moment));
                    scene.run_for(Duration::from_millis(300));
                }
            });
        }
    }
}

/// How often a member called beside a path, or lost it.
fn alarms(scene: &Scene, side: usize) -> (usize, usize) {
    let events = &scene.member(side).events;
    let beside = |event: &Event| matches!(event, Event::Step { text, .. } if text.contains("calls beside"));
    let lost = |event: &Event| matches!(event, Event::Lost { .. });
    let count = |of: &dyn Fn(&Event) -> bool| events.iter().filter(|(_, event)| of(event)).count();
    (count(&beside), count(&lost))
}

#[test]
fn loss_and_satellites_raise_no_alarm() {
    for (one_way, loss) in [(150, 0.0), (150, 0.01), (30, 0.02), (60, 0.02)] {
        for (seed, flow) in (0..).zip(FLOWS) {
            let classes = [Class::PortRestricted, Class::Fig4BStep1];
            let terms = Terms { loss, ..Terms::exact(classes, Duration::from_millis(one_way), seed) };
            let mut scene = flowing(&terms, flow).expect("they connect");
            scene.run_for(Duration::from_secs(600));
            for side in [0, 1] {
                let (beside, lost) = alarms(&scene, side);
                // A stream that nobody answers has one check a second, and of three asked in a row one in 2,000 all are lost.
                let most = if loss > 0.0 && matches!(flow, Flow::Stream(_)) { 3 } else { 0 };
                assert!(beside <= most && lost == 0, "{one_way} ms, {loss}, {flow:?}, side {side}: {beside}, {lost}");
            }
            assert!(outage(&mut scene, flow) < Duration::from_millis(400), "{one_way} ms, {loss}, {flow:?}");
            scene.check();
        }
    }
}

#[test]
fn a_stream_in_one_direction_costs_a_probe_a_second() {
    let mut scene = flowing(&Terms::exact([Class::PortRestricted; 2], Duration::from_millis(30), 1), Flow::Stream(0));
    let scene = scene.as_mut().expect("they connect");
    let probes = |scene: &Scene, side: usize| {
        scene.member(side).snapshot(scene.world.now).map_or(0, |snapshot| snapshot.peers[0].probes_sent)
    };
    let before = [probes(scene, 0), probes(scene, 1)];
    scene.run_for(Duration::from_secs(100));
    for side in [0, 1] {
        let sent = probes(scene, side) - before[side];
        assert!(sent <= 101, "side {side}: {sent} in 100 s");
    }
}

/// Every kind of mapping, filtering and allocation, of a NAT that forgets after `lifetime` of silence, whatever comes in.
fn forgetful(lifetime: Duration) -> Vec<Profile> {
    use Scope::{Address, AddressAndPort, Endpoint};
    let kinds = [
        (Endpoint, Endpoint, Allocation::Preserving),
        (Endpoint, Address, Allocation::Random),
        (Endpoint, AddressAndPort, Allocation::Sequential { step: 1 }),
        (Address, AddressAndPort, Allocation::Sequential { step: 1 }),
        (AddressAndPort, AddressAndPort, Allocation::Sequential { step: 4 }),
        (AddressAndPort, AddressAndPort, Allocation::SecondPriority { step: 1 }),
    ];
    let of = |(mapping, filtering, allocation)| Profile {
        lifetime,
        unreplied: lifetime,
        inbound_refresh: false,
        ..Profile::new(mapping, filtering, allocation)
    };
    kinds.map(of).to_vec()
}

fn nat_of(scene: &Scene, side: usize) -> snapshot::Nat {
    scene.member(side).snapshot(scene.world.now).expect("was started").nat
}

#[test]
fn a_nat_that_forgets_after_twenty_seconds_never_loses_a_path() {
    let lifetime = Duration::from_secs(20);
    for profile in forgetful(lifetime) {
        for seed in 0..seeds(6) {
            let terms = Terms::exact([Class::PortRestricted; 2], Duration::from_millis(20 + 10 * (seed % 4)), seed);
            let mut scene = Scene::new(&terms);
            scene.replace_nats(&profile);
            assert!(scene.run_to_answer(0, SOON).is_some(), "{profile:?}: {}", situation(&scene));
            scene.world.act(scene.members[0], |machine, _| machine.member_mut().pinger.stop());
            // A ping after each long silence, in the first minute too, from either side: none is lost, none is late.
            for pause in [19, 22, 41, 67, 300, 123] {
                scene.run_for(Duration::from_secs(pause));
                for side in [0, 1] {
                    let answer = scene.run_to_answer(side, Duration::from_secs(1));
                    assert!(answer.is_some(), "{profile:?}, after {pause} s: {}", situation(&scene));
                    let pinger = &scene.member(side).pinger;
                    assert!(pinger.longest < Duration::from_millis(300), "one took {:?}", pinger.longest);
                    scene.world.act(scene.members[side], |machine, _| machine.member_mut().pinger.stop());
                    scene.run_for(Duration::from_millis(400));
                    assert_eq!(
                        scene.member(side).pinger.unanswered(scene.world.now),
                        0,
                        "{profile:?}, after {pause} s"
                    );
                }
            }
            for side in [0, 1] {
                let nat = nat_of(&scene, side);
                assert_eq!((nat.mapping_lifetime_s, nat.keepalive_s), (Some(19.0), Some(14.25)), "{profile:?}");
            }
            scene.check();
        }
    }
}

#[test]
fn how_long_a_nat_remembers_is_learned_whatever_its_kind() {
    for (lifetime, measured) in [(7, 0.0), (12, 9.0), (20, 19.0), (30, 26.0), (120, 34.0)] {
        for profile in forgetful(Duration::from_secs(lifetime)) {
            let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], Duration::from_millis(30), lifetime));
            scene.replace_nats(&profile);
            scene.run_for(Duration::from_secs(60));
            for side in [0, 1] {
                let nat = nat_of(&scene, side);
                assert_eq!(nat.mapping_lifetime_s, Some(measured), "{lifetime} s, {profile:?}");
                let most = if lifetime > 10 { Duration::from_secs(lifetime).as_secs_f64() } else { 5.0 };
                assert!(nat.keepalive_s.is_some_and(|interval| interval <= most.min(25.0)), "{nat:?}");
                assert!(scene.member(side).open_sockets() <= 1, "feelers stay open");
            }
            scene.check();
        }
    }
}

#[test]
fn without_a_server_that_helps_to_measure_keepalives_stay_careful() {
    let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], Duration::from_millis(30), 1));
    [0, 1].into_iter().for_each(|which| scene.discovery_mut(which).is_old = true);
    scene.run_for(Duration::from_secs(90));
    for side in [0, 1] {
        let nat = nat_of(&scene, side);
        assert_eq!((nat.mapping_lifetime_s, nat.keepalive_s), (None, Some(18.0)));
        assert!(scene.member(side).open_sockets() <= 1, "feelers stay open");
    }
    scene.check();
}

/// But for NATs that give the same port again: what they forgot is as it was with the next keepalive, and nothing shows.
#[test]
fn without_a_measurement_a_path_that_was_forgotten_teaches() {
    let shows = |profile: &Profile| profile.allocation != Allocation::Preserving;
    for profile in forgetful(Duration::from_secs(12)).into_iter().filter(shows) {
        let mut scene = Scene::new(&Terms::exact([Class::PortRestricted; 2], Duration::from_millis(30), 1));
        [0, 1].into_iter().for_each(|which| scene.discovery_mut(which).is_old = true);
        scene.replace_nats(&profile);
        assert!(scene.run_to_answer(0, SOON).is_some(), "{profile:?}: {}", situation(&scene));
        for pause in 0..16 {
            [0, 1].into_iter().for_each(|side| scene.member_mut(side).pinger.stop());
            scene.run_for(Duration::from_secs(60 + 7 * pause));
            // A server that a forgetful NAT lets in again at the next keepalive only can't pass a call any sooner.
            let side = usize::try_from(pause % 2).expect("is 0 or 1");
            assert!(scene.run_to_answer(side, Duration::from_secs(9)).is_some(), "{profile:?}: {}", situation(&scene));
        }
        for side in [0, 1] {
            let interval = nat_of(&scene, side).keepalive_s;
            assert!(interval.is_some_and(|interval| interval < 12.0), "side {side}, {profile:?}: {interval:?}");
        }
        scene.check();
    }
}

macro_rules! rows {
    ($($name:ident: $class:ident,)*) => {
        /// NATs that forget, or get another address: every pair, traffic either way or one way only.
        mod a_nat_that_reboots_costs_three_seconds {
            $(#[test] fn $name() { super::a_blow_costs_little(crate::classes::Class::$class); })*
        }
        mod a_move_costs_two_seconds {
            $(#[test] fn $name() { super::a_move_costs_little(crate::classes::Class::$class); })*
        }
    };
}

rows! {
    none: None,
    full_cone: FullCone,
    address_restricted: AddressRestricted,
    port_restricted: PortRestricted,
    fig_4a: Fig4A,
    fig_4b_step_1: Fig4BStep1,
    fig_4b_step_4: Fig4BStep4,
    fig_4b_step_minus_1: Fig4BStepMinus1,
    address_dependent: AddressDependent,
    masquerade: Masquerade,
    cone_in_cone: ConeInCone,
    symmetric_in_cone: SymmetricInCone,
    cone_in_symmetric: ConeInSymmetric,
    fig_4b_poisonable: Fig4BPoisonable,
}
