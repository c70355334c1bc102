//! Issue 3's matrix: every pair of NATs, over many seeds, against what the issue wants of it.
//!
//! - `cargo test --test sim matrix -- --nocapture` prints the table, 24 seeds a row.
//! - `SEEDS=1000 cargo test --test sim matrix::every -- --nocapture` is the full one.
//! - `ROW="random by address"` with either takes the rows whose names contain that (with `^` before and `$` behind it: begin, end).
//! - `ROW="^4B +1 × 4B +1, λ 300$" SEED=17 cargo test --test sim matrix::one -- --nocapture` replays one run, datagram by datagram.
//!
//! A call is good where a ping is answered within the row's time after both members were started, and where pings still are a
//! second later. Even seeds lose nothing, odd ones 2 % in each direction at each site. What is counted is all that a side did:
//! every call of the run, the look at its own NAT included.

mod not_yet;
mod rows;
mod tally;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::classes::Class;
use crate::dice::Dice;
use crate::scene::Scene;
use crate::seeds::{self, number};
use crate::terms::Terms;
use crate::world::START;
use not_yet::NOT_YET;
use rows::Row;
use tally::Tally;

const SEEDS: u64 = 24;
/// Of counters that go around by other rules than the matrix's, so many seeds a row, and so many of a hundred calls come through: the
/// worst of these NATs start anew at the same port each time, and step aside by one, so that two classes alternate.
const SEEDS_OF_LAPS: u64 = 4;
const LEAST_OF_LAPS: usize = 75;
const EXACT_DELAY: Duration = Duration::from_millis(25);
const DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(50));
const LATEST_START: Duration = Duration::from_millis(300);
const LOSS: f64 = 0.02;
/// How long a router takes to map a port: a multicast question, two HTTP requests in the LAN.
const MAPPING_TAKES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// The path must last that long at least.
const LASTS: Duration = Duration::from_secs(1);
/// Often enough that it is no part of what is measured.
const PING_EVERY: Duration = Duration::from_millis(5);
/// A call of many seconds is measured well enough by these.
const PING_EVERY_OF_LONG: Duration = Duration::from_millis(20);

/// What came of one run.
#[derive(Default)]
struct Outcome {
    good: bool,
    took: Option<Duration>,
    probes: [u32; 2],
    entries: [u64; 2],
    /// Datagrams that members and servers sent.
    datagrams: u64,
    /// Why it is no good, or which invariant broke.
    why: Option<String>,
    broken: bool,
}

fn terms(row: &Row, seed: u64) -> Terms {
    let own = seeds::own(&row.name, seed);
    let mut dice = Dice::new(own);
    let mut delay = || if row.exact { EXACT_DELAY } else { dice.duration(DELAYS.0, DELAYS.1) };
    let delay = [delay(), delay()];
    let late = if row.exact { Duration::ZERO } else { dice.duration(Duration::ZERO, LATEST_START) };
    let up = if dice.chance(0.5) { [late, Duration::ZERO] } else { [Duration::ZERO, late] };
    let mapping = dice.duration(MAPPING_TAKES.0, MAPPING_TAKES.1);
    Terms {
        nats: [0, 1].map(|side| Some(row.profiles(side, &mut dice))),
        loss: if seed % 2 == 1 { LOSS } else { 0.0 },
        up,
        layout: row.layout,
        ipv6: row.ipv6,
        punch: [row.punch; 2],
        host_firewall: [row.host_firewall, false],
        port_mapping: [row.mapped.then_some(mapping), None],
        delay,
        ..Terms::exact([Class::None; 2], EXACT_DELAY, own)
    }
}

fn run(row: &Row, seed: u64, loud: bool) -> Outcome {
    let terms = terms(row, seed);
    let mut scene = Scene::new(&terms);
    scene.world.transcript.loud = loud;
    let started = START + terms.up[0].max(terms.up[1]);
    let pinging = usize::from(seed / 2 % 2 == 1);
    let long = row.goal.within > Duration::from_secs(3);
    scene.ping(pinging, if long { PING_EVERY_OF_LONG } else { PING_EVERY });
    let id = scene.members[pinging];
    scene.world.run(started + row.goal.within, |world| world.machine(id).member().pinger.first_answer.is_some());
    let took = scene.member(pinging).pinger.first_answer.map(|at| at.since(started));
    let said = [0, 1].map(|side| why(&scene, side));
    let told =
        row.goal.or_said.is_some_and(|words| said.iter().all(|said| words.iter().any(|word| said.contains(word))));
    let mut why = (took.is_none() && !told).then(|| format!("no answer: {said:?}"));
    if took.is_some() {
        let method = scene.member(pinging).snapshot(scene.world.now).and_then(|all| all.peers.first()?.method);
        if row.goal.method.is_some() && row.goal.method != method {
            why = Some(format!("found by {method:?}"));
        } else if !lasts(&mut scene, pinging) {
            why = Some("the path did not last".to_owned());
        }
    }
    let good = why.is_none();
    let broken = !scene.world.faults.is_empty();
    if broken {
        why = Some(scene.world.faults.iter().take(3).cloned().collect::<Vec<_>>().join("; "));
    }
    let hosts = scene.members.iter().chain(&scene.discovery).chain([&scene.rendezvous]);
    Outcome {
        good,
        took: took.filter(|_| good),
        probes: [0, 1].map(|side| scene.member(side).probes),
        datagrams: hosts.map(|id| scene.world.host(*id).sent).sum(),
        entries: [0, 1].map(|side| scene.nat_entries(side)),
        why,
        broken,
    }
}

/// A tenth of a second between pings: half of those that could be answered by now are, for the loss allows no more.
fn lasts(scene: &mut Scene, pinging: usize) -> bool {
    scene.ping(pinging, LASTS / 10);
    scene.run_for(LASTS);
    scene.member(pinging).pinger.answers >= 4
}

fn why(scene: &Scene, side: usize) -> String {
    let peer = scene.member(side).snapshot(scene.world.now).and_then(|all| all.peers.into_iter().next());
    peer.and_then(|peer| peer.why).unwrap_or_default()
}

fn outcomes(row: &Row, count: u64) -> BTreeMap<u64, Outcome> {
    seeds::run_each(0..count, |seed| {
        catch_unwind(AssertUnwindSafe(|| run(row, seed, false))).unwrap_or_else(|_| Outcome {
            why: Some("panicked".to_owned()),
            broken: true,
            ..Outcome::default()
        })
    })
}

fn chosen() -> Vec<Row> {
    let wanted = std::env::var("ROW").unwrap_or_default();
    let fits = |row: &Row| format!("^{}$", row.name).contains(&wanted);
    rows::all().into_iter().filter(fits).collect()
}

#[test]
fn every_pair_comes_through_as_often_as_the_issue_wants() {
    let (mut faults, mut datagrams, mut runs) = (Vec::new(), 0, 0);
    let mut met_all = 0;
    let rows = chosen();
    println!("\n{}", tally::HEAD);
    for row in &rows {
        let outcomes = outcomes(row, number("SEEDS").unwrap_or(SEEDS));
        let tally = Tally::of(row, &outcomes);
        println!("{}", tally.line(row));
        datagrams += outcomes.values().map(|run| run.datagrams).sum::<u64>();
        runs += outcomes.len();
        let met = tally.is_met(row);
        met_all += usize::from(met);
        let replay = |seed: &u64, run: &Outcome| {
            format!("ROW=\"^{}$\" SEED={seed}: {}", row.name, run.why.clone().unwrap_or_default())
        };
        let broken = outcomes.iter().filter(|(_, run)| run.broken).map(|(seed, run)| replay(seed, run));
        faults.extend(broken.take(3));
        match (met, NOT_YET.contains(&row.name.as_str())) {
            // With other seeds the table is what counts: of a thousand calls some miss where twenty-four do not.
            (true, _) if number("SEEDS").is_some() => {}
            (false, _) if number("SEEDS").is_some() => {
                let bad = outcomes.iter().filter(|(_, run)| !run.good || tally::is_over(row, run));
                let seeds: Vec<String> = bad.take(20).map(|(seed, _)| seed.to_string()).collect();
                println!("  missed by seeds {}", seeds.join(", "));
            }
            (true, true) => faults.push(format!("{} is met: take it out of NOT_YET", row.name)),
            (false, false) => {
                faults.push(format!("{} is not met", row.name));
                let bad = outcomes.iter().filter(|(_, run)| !run.good).map(|(seed, run)| replay(seed, run));
                faults.extend(bad.take(3));
            }
            _ => {}
        }
    }
    println!("\n{met_all} of {} rows met; {runs} runs, {datagrams} datagrams", rows.len());
    assert!(!rows.is_empty(), "no row is called so");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn counters_of_large_steps_meet_whatever_range_and_rule_they_go_around_by() {
    let wanted = std::env::var("ROW").unwrap_or_default();
    let fits = |row: &Row| format!("^{}$", row.name).contains(&wanted);
    let (mut runs, mut good, mut broken) = (0, 0, Vec::new());
    println!("\n{}", tally::HEAD);
    for row in rows::laps().iter().filter(|row| fits(row)) {
        let outcomes = outcomes(row, number("SEEDS").unwrap_or(SEEDS_OF_LAPS));
        println!("{}", Tally::of(row, &outcomes).line(row));
        runs += outcomes.len();
        good += outcomes.values().filter(|run| run.good).count();
        broken.extend(outcomes.into_values().filter(|run| run.broken).filter_map(|run| run.why));
    }
    println!("\n{good} of {runs} runs are good");
    assert!(broken.is_empty(), "{broken:?}");
    assert!(good * 100 >= runs * LEAST_OF_LAPS, "{good} of {runs}");
}

#[test]
fn no_row_is_listed_twice_and_none_that_is_not_there() {
    let rows = rows::all();
    let count = |name: &str| rows.iter().filter(|row| row.name == name).count();
    for name in rows.iter().map(|row| row.name.as_str()).chain(NOT_YET.iter().copied()) {
        assert_eq!(count(name), 1, "{name}");
    }
}

#[test]
fn one() {
    let rows = chosen();
    let seed = number("SEED").unwrap_or(0);
    let (row, loud) = (rows.first().expect("there is a row of that name"), std::env::var("SEED").is_ok());
    println!("{row:#?}\n{:#?}", terms(row, seed));
    let outcome = run(row, seed, loud);
    println!("took {:?}, probes {:?}, entries {:?}", outcome.took, outcome.probes, outcome.entries);
    assert_eq!(outcome.why, None);
}
