//! NATs that nobody measured us against: mapping, filtering, step, range, lifetimes and other users drawn anew for each call, and the
//! internet between them too. What was learned from the matrix's figures must not hang on these.
//!
//! - `SEEDS=400 cargo test --test sim strangers -- --nocapture` prints a line a pair of kinds, and the calls that came to nothing.
//! - `PAIR="cone × random" SEED=17` with it replays one, datagram by datagram.
//!
//! What is drawn is what a NAT may be: one that shares a port between two sockets, or counts around a range in less than 64 steps, is none.

use std::fmt;
use std::time::Duration;

use p2ptund::proto::config::Punch;

use crate::classes::Class;
use crate::dice::Dice;
use crate::nat::{Allocation, Aside, Profile, Scope, Turn};
use crate::scene::Scene;
use crate::seeds::{self, number};
use crate::terms::Terms;
use crate::world::START;

const SEEDS: u64 = 40;
const PING_EVERY: Duration = Duration::from_millis(20);
const WITHIN: Duration = Duration::from_secs(10);
/// Where the owner raised `probes`.
const WITHIN_OF_GRIDS: Duration = Duration::from_secs(32);
const DELAYS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(80));
/// A counter comes around after so many mappings at the earliest.
const SHORTEST_LAP: u32 = 64;
/// Of a hundred calls between kinds that can be brought together …
const LEAST: usize = 99;
/// … and of those that take raised probes: they are laid out for 99, and counters that go around their range in each row are the rest.
const LEAST_OF_GRIDS: usize = 93;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    None,
    Cone,
    Preserving,
    SecondPriority,
    Sequential,
    SequentialByAddress,
    Random,
    RandomByAddress,
    Block,
}

const KINDS: [Kind; 9] = [
    Kind::None,
    Kind::Cone,
    Kind::Preserving,
    Kind::SecondPriority,
    Kind::Sequential,
    Kind::SequentialByAddress,
    Kind::Random,
    Kind::RandomByAddress,
    Kind::Block,
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::None => "none",
            Kind::Cone => "cone",
            Kind::Preserving => "keeps ports",
            Kind::SecondPriority => "4A",
            Kind::Sequential => "4B",
            Kind::SequentialByAddress => "4B by address",
            Kind::Random => "random",
            Kind::RandomByAddress => "random by address",
            Kind::Block => "random in a block",
        })
    }
}

fn one_of<T: Copy>(dice: &mut Dice, all: &[T]) -> T {
    all[usize::try_from(dice.between(0, all.len() as u64 - 1)).expect("is small")]
}

impl Kind {
    fn draw(self, dice: &mut Dice) -> Vec<Profile> {
        use Scope::{Address, AddressAndPort, Endpoint};
        const STEPS: [i32; 16] = [1, -1, 2, -2, 3, -3, 4, 5, 7, 8, 16, 64, 100, -100, 200, 256];
        const RANGES: [(u16, u16); 7] = [
            (1024, 65535),
            (1, 65535),
            (32768, 60999),
            (49152, 65535),
            (10_000, 59_999),
            (5000, 9999),
            (20_000, 21_999),
        ];
        let filtering = one_of(dice, &[Endpoint, Address, AddressAndPort, AddressAndPort]);
        let step = one_of(dice, &STEPS);
        let mut range = one_of(dice, &RANGES);
        let by_some_address = one_of(dice, &[Address, AddressAndPort]);
        let (counts, keeps_first) = (Allocation::Sequential { step }, Allocation::SecondPriority { step });
        let any = one_of(dice, &[Allocation::Preserving, counts, keeps_first, Allocation::Random]);
        let (mapping, allocation) = match self {
            Kind::None => return Vec::new(),
            Kind::Cone => (Endpoint, any),
            Kind::Preserving => (AddressAndPort, Allocation::Preserving),
            Kind::SecondPriority => (by_some_address, keeps_first),
            Kind::Sequential => (AddressAndPort, counts),
            Kind::SequentialByAddress => (Address, counts),
            Kind::Random => (AddressAndPort, Allocation::Random),
            Kind::RandomByAddress => (Address, Allocation::Random),
            Kind::Block => {
                (by_some_address, Allocation::Block { size: one_of(dice, &[256, 512, 1000, 1024, 2016, 4096]) })
            }
        };
        if self == Kind::Block || u32::from(range.1 - range.0) < step.unsigned_abs() * SHORTEST_LAP {
            range = RANGES[0];
        }
        let aside = one_of(dice, &[Aside::One, Aside::Shares]);
        let lifetime = Duration::from_secs(dice.between(20, 300));
        vec![Profile {
            range,
            turn: one_of(dice, &[Turn::Around, Turn::Anew]),
            aside: if mapping == AddressAndPort { aside } else { Aside::One },
            lifetime,
            unreplied: Duration::from_secs(dice.between(10, 60)).min(lifetime),
            inbound_refresh: dice.chance(0.7),
            hairpin: dice.chance(0.5),
            poisonable: filtering == AddressAndPort && dice.chance(0.3),
            cross_traffic: one_of(dice, &[0.0, 0.0, 3.0, 20.0, 50.0, 100.0, 200.0, 300.0]),
            ..Profile::new(mapping, filtering, allocation)
        }]
    }
}

/// What the two are to each other, whichever is which.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hope {
    Sure,
    /// With `probes` raised.
    Grid,
    /// By address and port, which no budget covers for sure: an open filter, the first port kept, or a small block may help.
    Faint,
}

fn hope(one: Kind, other: Kind) -> Hope {
    use Kind::{Block, Random, RandomByAddress, SecondPriority, Sequential};
    let is = |a: Kind, b: &[Kind]| (one == a && b.contains(&other)) || (other == a && b.contains(&one));
    let draws = [Random, RandomByAddress, SecondPriority, Sequential, Block];
    if is(Random, &draws) || is(Block, &draws) {
        Hope::Faint
    } else if is(RandomByAddress, &[SecondPriority, Sequential, RandomByAddress]) {
        Hope::Grid
    } else {
        Hope::Sure
    }
}

fn terms(kinds: [Kind; 2], seed: u64) -> Terms {
    let own = seeds::own(&format!("{} × {}", kinds[0], kinds[1]), seed);
    let mut dice = Dice::new(own);
    let nats = kinds.map(|kind| Some(kind.draw(&mut dice)));
    let delay = [0, 1].map(|_| dice.duration(DELAYS.0, DELAYS.1));
    let raised = Punch { probes: 400_000, timeout: Duration::from_secs(30), ..Punch::default() };
    let punch = if hope(kinds[0], kinds[1]) == Hope::Grid { raised } else { Punch::default() };
    Terms { nats, delay, punch: [punch; 2], ..Terms::drawn([Class::None; 2], own) }
}

/// How long the first ping took; the words of who got none; what broke.
struct Outcome {
    took: Option<Duration>,
    why: String,
    faults: Vec<String>,
}

fn run(terms: &Terms, loud: bool) -> Outcome {
    let mut scene = Scene::new(terms);
    scene.world.transcript.loud = loud;
    let started = START + terms.up[0].max(terms.up[1]);
    let within = if terms.punch[0] == Punch::default() { WITHIN } else { WITHIN_OF_GRIDS };
    scene.ping(0, PING_EVERY);
    let id = scene.members[0];
    scene.world.run(started + within, |world| world.machine(id).member().pinger.first_answer.is_some());
    let took = scene.member(0).pinger.first_answer.map(|at| at.since(started));
    let peer = scene.member(0).snapshot(scene.world.now).and_then(|all| all.peers.into_iter().next());
    let why = peer.and_then(|peer| peer.why).unwrap_or_default();
    Outcome { took, why, faults: std::mem::take(&mut scene.world.faults) }
}

#[test]
fn nats_with_other_figures_than_ours_are_brought_together_as_well() {
    let wanted = std::env::var("PAIR").unwrap_or_default();
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    let loud = seeds.end - seeds.start == 1;
    let (mut sure, mut grids, mut missed, mut broken) = ((0, 0), (0, 0), Vec::new(), Vec::new());
    println!("\n| pair | found a path | median | slowest |\n| --- | --- | --- | --- |");
    for (nth, one) in KINDS.into_iter().enumerate() {
        for other in KINDS.into_iter().skip(nth) {
            let name = format!("{one} × {other}");
            if !name.contains(&wanted) {
                continue;
            }
            let outcomes = seeds::run_each(seeds.clone(), |seed| run(&terms([one, other], seed), loud));
            let mut times: Vec<Duration> = outcomes.values().filter_map(|outcome| outcome.took).collect();
            times.sort();
            let show =
                |at: usize| times.get(at).map_or("–".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
            let (median, slowest) = (show(times.len() / 2), show(times.len().saturating_sub(1)));
            println!("| {name} | {} of {} | {median} | {slowest} |", times.len(), outcomes.len());
            let hope = hope(one, other);
            let (good, runs) = match hope {
                Hope::Sure => &mut sure,
                Hope::Grid => &mut grids,
                Hope::Faint => &mut (0, 0),
            };
            *good += times.len();
            *runs += outcomes.len();
            for (seed, outcome) in outcomes {
                let replay = format!("PAIR=\"{name}\" SEED={seed}");
                if outcome.took.is_none() && hope != Hope::Faint {
                    missed.push(format!("{replay}: {}", outcome.why));
                }
                broken.extend(outcome.faults.first().map(|fault| format!("{replay}: {fault}")));
            }
        }
    }
    println!(
        "\n{} of {} calls found a path where one is to be had by the default budget, {} of {} with raised probes\n{}",
        sure.0,
        sure.1,
        grids.0,
        grids.1,
        missed.join("\n")
    );
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    for ((good, runs), least) in [(sure, LEAST), (grids, LEAST_OF_GRIDS)] {
        assert!(good * 100 >= runs * least, "{good} of {runs}:\n{}", missed.join("\n"));
    }
}
