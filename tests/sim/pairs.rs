//! Every pair of NATs connects, for every seed, and soon enough.
//!
//! `SEEDS=1000` runs so many seeds a pair (30 without); `SEED=17 PAIR="4A x masquerade" cargo test --test sim pairs::one --
//! --nocapture` replays one run and tells all that happens. `EXACT=1` with it takes the undisturbed internet instead of a drawn one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::classes::Class;
use crate::member::Usage;
use crate::scene::Scene;
use crate::seeds::number;
use crate::table::{Row, Table};
use crate::terms::Terms;
use crate::world::START;

/// Within this a ping must be answered, whatever the pair.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a member pings until it is answered.
const PING_EVERY: Duration = Duration::from_millis(50);
const SEEDS: u64 = 30;
/// For the medians of an undisturbed internet.
const SEEDS_EXACT: u64 = 21;
const THREADS: usize = 2;
/// The issue's own figures, at 50 ms one way between each office and the internet.
const ONE_WAY: Duration = Duration::from_millis(50);
const CONES_WITHIN: Duration = Duration::from_millis(900);
const SYMMETRIC_WITHIN: Duration = Duration::from_millis(2500);

/// What came of one run.
pub struct Outcome {
    /// From both sides' start to the first answer.
    pub took: Option<Duration>,
    pub usage: [Usage; 2],
    pub entries: [u64; 2],
    pub sent: [u64; 2],
    /// What went wrong, if anything did.
    pub fault: Option<String>,
}

pub fn run(terms: &Terms, loud: bool) -> Outcome {
    let mut scene = Scene::new(terms);
    scene.world.transcript.loud = loud;
    let started = START + terms.up[0].max(terms.up[1]);
    let pinging = usize::from(terms.seed % 2 == 1);
    scene.ping(pinging, PING_EVERY);
    let id = scene.members[pinging];
    scene.world.run(started + PATIENCE, |world| world.machine(id).member().pinger.first_answer.is_some());
    let took = scene.member(pinging).pinger.first_answer.map(|at| at.since(started));

    let mut faults = std::mem::take(&mut scene.world.faults);
    faults.truncate(3);
    if took.is_none() {
        faults.push(format!("no ping was answered within {PATIENCE:?}: {}", why(&scene)));
    } else if !stays_up(&mut scene, pinging) {
        faults.push("the path did not last".to_owned());
    }
    Outcome {
        took,
        usage: [0, 1].map(|side| scene.member(side).most),
        entries: [0, 1].map(|side| scene.nat_entries(side)),
        sent: [0, 1].map(|side| scene.world.host(scene.members[side]).sent),
        fault: (!faults.is_empty()).then(|| faults.join("; ")),
    }
}

/// For two seconds more, most pings are answered, for the loss allows no more than that.
fn stays_up(scene: &mut Scene, pinging: usize) -> bool {
    scene.ping(pinging, Duration::from_millis(100));
    scene.run_for(Duration::from_secs(2));
    scene.member(pinging).pinger.answers >= 10
}

fn why(scene: &Scene) -> String {
    let side = |side: usize| {
        let snapshot = scene.member(side).snapshot(scene.world.now);
        let peer = snapshot.and_then(|snapshot| snapshot.peers.into_iter().next());
        peer.map_or("not started".to_owned(), |peer| format!("{:?}, {}", peer.state, peer.why.unwrap_or_default()))
    };
    format!("[{}] [{}]", side(0), side(1))
}

fn seeds(default: u64) -> u64 {
    number("SEEDS").unwrap_or(default)
}

fn outcomes(count: u64, terms: impl Fn(u64) -> Terms + Sync) -> BTreeMap<u64, Outcome> {
    let next = AtomicU64::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(&terms(seed), false)));
                    let outcome = outcome.unwrap_or_else(|_| Outcome {
                        took: None,
                        usage: Default::default(),
                        entries: Default::default(),
                        sent: Default::default(),
                        fault: Some("panicked".to_owned()),
                    });
                    done.lock().expect("no thread panics while it holds it").insert(seed, outcome);
                }
            });
        }
    });
    done.into_inner().expect("no thread panics while it holds it")
}

/// Which of the two is behind which NAT must not matter, so it is drawn too.
fn drawn_terms(classes: [Class; 2], seed: u64) -> Terms {
    let swapped = [classes[1], classes[0]];
    // Each pair draws for itself: else one unlucky seed is unlucky for all, and the others are tried that much less.
    let own = seed ^ ((classes[0] as u64) << 40) ^ ((classes[1] as u64) << 48);
    Terms::drawn(if seed % 4 < 2 { classes } else { swapped }, own)
}

/// One pair at a time, so that their threads and their tables don't mix.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn connects_with_all_from(class: Class) {
    let _turn = ONE_AT_A_TIME.lock();
    let mut table = Table::new(&format!("{} × …, drawn internet", class.name()));
    let mut failures = Vec::new();
    for other in Class::ALL.into_iter().filter(|other| *other >= class) {
        let drawn = outcomes(seeds(SEEDS), |seed| drawn_terms([class, other], seed));
        let row = Row::of(class, other, &drawn);
        failures.extend(row.failures(&drawn));
        table.push(row);
    }
    println!("{table}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn is_quick_with_all_from(class: Class) {
    let _turn = ONE_AT_A_TIME.lock();
    let mut table = Table::new(&format!("{} × …, 50 ms one way, undisturbed", class.name()));
    let mut failures = Vec::new();
    for other in Class::ALL.into_iter().filter(|other| *other >= class) {
        let exact = outcomes(seeds(SEEDS_EXACT).min(SEEDS_EXACT), |seed| Terms::exact([class, other], ONE_WAY, seed));
        let row = Row::of(class, other, &exact);
        failures.extend(row.failures(&exact));
        let within = if class.is_symmetric() || other.is_symmetric() { SYMMETRIC_WITHIN } else { CONES_WITHIN };
        if row.median.is_none_or(|median| median > within) {
            failures.push(format!("{}: median {:?} instead of {within:?}", row.name, row.median));
        }
        table.push(row);
    }
    println!("{table}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! rows {
    ($($name:ident: $class:ident,)*) => {
        /// 100 % of the seeds, with delay, jitter, loss and cross traffic drawn.
        mod connects {
            $(#[test] fn $name() { super::connects_with_all_from(crate::classes::Class::$class); })*
        }
        /// The medians.
        mod is_quick {
            $(#[test] fn $name() { super::is_quick_with_all_from(crate::classes::Class::$class); })*
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

#[test]
fn one() {
    let pair = std::env::var("PAIR").unwrap_or("port-restricted x port-restricted".to_owned());
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let classes: Vec<Class> = pair.split(" x ").map(|name| Class::by_name(name).expect("is a class")).collect();
    let classes = [classes[0], classes[1]];
    let terms = match std::env::var("EXACT") {
        Ok(_) => Terms::exact(classes, ONE_WAY, seed),
        Err(_) => drawn_terms(classes, seed),
    };
    println!("{terms:#?}");
    let outcome = run(&terms, true);
    println!("took {:?}, used {:?}, NAT entries {:?}", outcome.took, outcome.usage, outcome.entries);
    assert_eq!(outcome.fault, None);
}

#[test]
fn one_seed_gives_one_transcript_to_the_byte() {
    for classes in [[Class::Masquerade, Class::Fig4A], [Class::Fig4BStep4, Class::Fig4BStep1]] {
        let hash = |seed: u64| {
            let mut scene = Scene::new(&Terms::drawn(classes, seed));
            scene.ping(0, PING_EVERY);
            scene.run_for(Duration::from_secs(12));
            scene.world.transcript.hash()
        };
        assert_eq!(hash(3), hash(3));
        assert_ne!(hash(3), hash(4));
    }
}

#[test]
fn a_path_is_found_without_any_packet_that_asks_for_it() {
    let mut scene = Scene::new(&Terms::exact([Class::Fig4A, Class::PortRestricted], ONE_WAY, 1));
    assert!(scene.run_to_connected(PATIENCE), "{}", why(&scene));
}
