//! The rows of the matrix: which NATs, on which internet, and what must come of it.
//!
//! The figures are the targets of issue 3. Two members behind one carrier that does not hairpin are in no row: each's address
//! in the carrier's network, the only one that would do, is known to nobody who could tell it.

use std::time::Duration;

use p2ptund::proto::config::Punch;
use p2ptund::proto::snapshot::Method;

use crate::dice::Dice;
use crate::nat::{Allocation, Aside, Profile, Scope, Turn};
use crate::terms::Layout;

/// One NAT.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Layer {
    /// One port for all destinations, whichever way it is chosen.
    Cone(Scope),
    /// The same, which numbers by no dice: what is left of a sequence further in must stay one.
    Orderly,
    /// Keeps ports and maps by address and port, as Linux does; `true`: an early packet poisons it.
    Masquerade(bool),
    PoisonableCone,
    /// FIG. 4A.
    SecondPriority(i32),
    /// FIG. 4B; what it maps by.
    Sequential(Scope, i32),
    /// The same, that goes around another way than ours do.
    Lapping(Laps),
    Random(Scope),
    /// Random within a block of 512 ports.
    Block,
}

const BLOCK: u16 = 512;

/// How a counter of large steps goes around.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Laps {
    step: i32,
    range: (u16, u16),
    turn: Turn,
    aside: Aside,
}

impl Layer {
    fn name(self) -> String {
        match self {
            Layer::Cone(Scope::Endpoint) => "full cone".to_owned(),
            Layer::Cone(Scope::Address) => "address-restricted".to_owned(),
            Layer::Cone(Scope::AddressAndPort) => "port-restricted".to_owned(),
            Layer::Orderly => "cone".to_owned(),
            Layer::Masquerade(false) => "masquerade".to_owned(),
            Layer::Masquerade(true) => "masquerade, poisonable".to_owned(),
            Layer::PoisonableCone => "port-restricted, poisonable".to_owned(),
            Layer::SecondPriority(step) => format!("4A {step:+}"),
            Layer::Sequential(Scope::Address, step) => format!("4B {step:+} by address"),
            Layer::Sequential(_, step) => format!("4B {step:+}"),
            Layer::Lapping(Laps { step, range: (low, high), turn, aside }) => {
                format!("4B {step:+} in {low}–{high}, {turn:?}, {aside:?}").to_lowercase()
            }
            Layer::Random(Scope::Address) => "random by address".to_owned(),
            Layer::Random(_) => "random".to_owned(),
            Layer::Block => format!("random in {BLOCK}"),
        }
    }

    /// `others`: new mappings a second that others make, where that moves anything.
    fn profile(self, others: f64, dice: &mut Dice) -> Profile {
        use Scope::{AddressAndPort, Endpoint};
        let symmetric = |mapping, allocation| Profile::new(mapping, AddressAndPort, allocation);
        let one_of = |ways: &[Allocation], dice: &mut Dice| {
            ways[usize::try_from(dice.between(0, ways.len() as u64 - 1)).expect("is small")]
        };
        const WAYS: [Allocation; 3] = [Allocation::Preserving, Allocation::Sequential { step: 1 }, Allocation::Random];
        let profile = match self {
            Layer::Cone(filtering) => Profile::new(Endpoint, filtering, one_of(&WAYS, dice)),
            Layer::Orderly => symmetric(Endpoint, one_of(&WAYS[..2], dice)),
            Layer::Masquerade(poisonable) => Profile { poisonable, ..Profile::masquerade() },
            Layer::PoisonableCone => Profile { poisonable: true, ..symmetric(Endpoint, Allocation::Preserving) },
            Layer::SecondPriority(step) => symmetric(AddressAndPort, Allocation::SecondPriority { step }),
            Layer::Sequential(mapping, step) => symmetric(mapping, Allocation::Sequential { step }),
            Layer::Lapping(Laps { step, range, turn, aside }) => {
                Profile { range, turn, aside, ..symmetric(AddressAndPort, Allocation::Sequential { step }) }
            }
            Layer::Random(mapping) => symmetric(mapping, Allocation::Random),
            Layer::Block => symmetric(AddressAndPort, Allocation::Block { size: BLOCK }),
        };
        Profile { cross_traffic: others, ..profile }
    }
}

/// What must come of it.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Of a hundred calls.
    pub percent: f64,
    pub within: Duration,
    pub median: Option<Duration>,
    /// By which method alone.
    pub method: Option<Method>,
    /// It will do to be told why not, with one of these words, within `within`.
    pub or_said: Option<&'static [&'static str]>,
    /// Of each side.
    pub probes: u32,
    pub entries: [Option<u64>; 2],
}

#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    /// In a row, the innermost first.
    pub layers: [Vec<Layer>; 2],
    /// New mappings a second by others, at each NAT that counts.
    pub others: f64,
    pub layout: Layout,
    pub hairpin: bool,
    pub ipv6: bool,
    /// The first side's router maps a port.
    pub mapped: bool,
    /// A firewall on the first side's machine.
    pub host_firewall: bool,
    /// The second side's NAT lets nothing out to this port and higher ones.
    pub forbids_from: Option<u16>,
    /// 25 ms one way at each site and both started at once, instead of drawn.
    pub exact: bool,
    pub punch: Punch,
    pub goal: Goal,
}

impl Row {
    fn new(one: &[Layer], other: &[Layer], goal: Goal) -> Self {
        let name = [one, other].map(|layers| match layers {
            [] => "none".to_owned(),
            _ => layers.iter().map(|layer| layer.name()).collect::<Vec<_>>().join(" in "),
        });
        Self {
            name: name.join(" × "),
            layers: [one.to_vec(), other.to_vec()],
            others: 0.0,
            layout: Layout::Apart,
            hairpin: false,
            ipv6: false,
            mapped: false,
            host_firewall: false,
            forbids_from: None,
            exact: goal.median.is_some(),
            punch: Punch::default(),
            goal,
        }
    }

    fn others(self, others: u32) -> Self {
        Self { name: format!("{}, λ {others}", self.name), others: others.into(), ..self }
    }

    fn called(self, more: &str) -> Self {
        Self { name: format!("{}, {more}", self.name), ..self }
    }

    fn laid_out(self, layout: Layout, hairpin: bool) -> Self {
        let place = match layout {
            Layout::Apart | Layout::SameNumbers => "apart",
            Layout::SameLan => "same LAN",
            Layout::SameRouter => "same router",
            Layout::SameCarrier => "same carrier",
        };
        let turns = if hairpin { "hairpin" } else { "no hairpin" };
        Self { layout, hairpin, ..self.called(&format!("{place}, {turns}")) }
    }

    /// What the owner wrote, where the footnote says so.
    fn with_probes(self, probes: u32, timeout: Duration) -> Self {
        let punch = Punch { probes, timeout, ..Punch::default() };
        Self { punch, ..self.called(&format!("probes = {probes}")) }
    }

    pub fn profiles(&self, side: usize, dice: &mut Dice) -> Vec<Profile> {
        let mut profiles: Vec<Profile> =
            self.layers[side].iter().map(|layer| layer.profile(self.others, dice)).collect();
        if let Some(outermost) = profiles.last_mut() {
            outermost.hairpin = self.hairpin;
            outermost.forbids_from = self.forbids_from.filter(|_| side == 1);
        }
        profiles
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn goal(percent: f64, within: Duration, probes: u32, entries: [Option<u64>; 2]) -> Goal {
    Goal { percent, within, median: None, method: None, or_said: None, probes, entries }
}

/// The issue gives the median and no bound; what is lost is sent again well within this.
const FIRST: Goal = Goal { median: Some(ms(300)), ..goal(100.0, secs(3), 16, [None; 2]) };
const BY_LAN: Goal = Goal { method: Some(Method::Lan), ..FIRST };
const TO_SEQUENTIAL: Goal = goal(99.5, secs(1), 64, [None; 2]);
const RANDOM: Goal = goal(99.9, secs(5), 2048, [Some(256); 2]);
const MAPPED: Goal = goal(100.0, secs(1), 16, [None; 2]);
const SAID: Goal = Goal { or_said: Some(&["random"]), ..goal(100.0, secs(5), 2048, [Some(256); 2]) };
/// Where raising the budget would help, that is what is said when the call has had its time.
const SAYS_MORE: Goal = Goal { or_said: Some(&["[punch]"]), ..goal(100.0, secs(12), 2048, [Some(256); 2]) };

const NONE: &[Layer] = &[];
const FULL: &[Layer] = &[Layer::Cone(Scope::Endpoint)];
const BY_ADDRESS: &[Layer] = &[Layer::Cone(Scope::Address)];
const PORT_RESTRICTED: &[Layer] = &[Layer::Cone(Scope::AddressAndPort)];
const KEEPS: &[Layer] = &[Layer::Masquerade(false)];
const TRAP: &[Layer] = &[Layer::Masquerade(true)];
const CONE_TRAP: &[Layer] = &[Layer::PoisonableCone];
const SECOND: &[Layer] = &[Layer::SecondPriority(1)];
const COUNTS: &[Layer] = &[Layer::Sequential(Scope::AddressAndPort, 1)];
const COUNTS_BY_2: &[Layer] = &[Layer::Sequential(Scope::AddressAndPort, 2)];
const COUNTS_DOWN: &[Layer] = &[Layer::Sequential(Scope::AddressAndPort, -1)];
const COUNTS_BY_256: &[Layer] = &[Layer::Sequential(Scope::AddressAndPort, 256)];
const HELD: &[Layer] = &[Layer::Sequential(Scope::Address, 1)];
const RANDOM_ALL: &[Layer] = &[Layer::Random(Scope::AddressAndPort)];
const RANDOM_HELD: &[Layer] = &[Layer::Random(Scope::Address)];
const BLOCK_OF_512: &[Layer] = &[Layer::Block];

/// The dynamic ports of the patent's \[0041\], as the issue names them.
const DYNAMIC_PORTS: u16 = 32768;

pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    easy(&mut rows);
    sequential(&mut rows);
    random(&mut rows);
    several_in_a_row(&mut rows);
    around_the_nat(&mut rows);
    rows
}

fn easy(rows: &mut Vec<Row>) {
    let open = [NONE, FULL, BY_ADDRESS];
    for (i, one) in open.into_iter().enumerate() {
        rows.extend(open[i..].iter().map(|other| Row::new(one, other, FIRST)));
        for other in [PORT_RESTRICTED, TRAP] {
            rows.push(Row::new(one, other, FIRST));
        }
        for other in [SECOND, COUNTS, HELD] {
            rows.push(Row::new(one, other, FIRST).others(300));
        }
        for other in [RANDOM_ALL, RANDOM_HELD] {
            rows.push(Row::new(one, other, FIRST));
        }
    }
    for one in [PORT_RESTRICTED, KEEPS] {
        for other in [PORT_RESTRICTED, KEEPS, CONE_TRAP, TRAP] {
            if (one, other) != (KEEPS, PORT_RESTRICTED) {
                rows.push(Row::new(one, other, FIRST));
            }
        }
    }
    for (one, other) in [(CONE_TRAP, CONE_TRAP), (CONE_TRAP, TRAP), (TRAP, TRAP)] {
        rows.push(Row::new(one, other, FIRST));
    }
}

fn sequential(rows: &mut Vec<Row>) {
    for other in [SECOND, COUNTS, COUNTS_BY_2, COUNTS_DOWN, COUNTS_BY_256, HELD] {
        rows.push(Row::new(PORT_RESTRICTED, other, TO_SEQUENTIAL).others(300));
    }
    rows.push(Row::new(TRAP, COUNTS, TO_SEQUENTIAL).others(300));
    let pairs = [
        (COUNTS, COUNTS),
        (COUNTS_BY_2, COUNTS_BY_2),
        (COUNTS_DOWN, COUNTS_DOWN),
        (COUNTS_BY_256, COUNTS_BY_256),
        (COUNTS, COUNTS_DOWN),
        (COUNTS_BY_2, COUNTS_BY_256),
        (SECOND, SECOND),
        (SECOND, COUNTS),
        (HELD, HELD),
        (HELD, COUNTS),
    ];
    for (others, percent, within, entries) in [(300, 99.5, 2, 256), (1000, 99.0, 3, 768), (3000, 95.0, 5, 768)] {
        // The issue bounds the entries alone; what the owner lets one call send bounds the probes.
        let goal = goal(percent, secs(within), Punch::default().probes, [Some(entries); 2]);
        rows.extend(pairs.iter().map(|(one, other)| Row::new(one, other, goal).others(others)));
    }
}

/// Counters of large steps against each other, in other ranges than ours and by other rules: no NAT's rule is known beforehand.
pub fn laps() -> Vec<Row> {
    let mut rows = Vec::new();
    let ranges = [(1024, 65535), (32768, 60999), (49152, 65535), (10_000, 59_999)];
    for (others, percent, within, entries) in [(300, 99.5, 2, 256), (1000, 99.0, 3, 768), (3000, 95.0, 5, 768)] {
        let goal = goal(percent, secs(within), Punch::default().probes, [Some(entries); 2]);
        for (range, turn) in ranges.into_iter().flat_map(|range| [(range, Turn::Around), (range, Turn::Anew)]) {
            // Where it takes the next of the sequence, a step of 256 has no more than a few dozen ports in all, which a call uses up.
            for (step, aside) in [(256, Aside::One), (256, Aside::Shares), (-100, Aside::Step)] {
                let layer = [Layer::Lapping(Laps { step, range, turn, aside })];
                rows.push(Row::new(&layer, &layer, goal).others(others));
            }
        }
    }
    rows
}

fn random(rows: &mut Vec<Row>) {
    rows.push(Row::new(RANDOM_ALL, PORT_RESTRICTED, RANDOM));
    rows.push(Row::new(RANDOM_HELD, PORT_RESTRICTED, RANDOM));
    rows.push(Row::new(RANDOM_ALL, TRAP, RANDOM));
    rows.push(Row::new(RANDOM_ALL, HELD, RANDOM).others(300));
    let long = secs(30);
    let to_counting = goal(99.0, long, 400_000, [Some(256), Some(1280)]);
    let grid = goal(99.0, long, 300_000, [Some(256); 2]);
    rows.push(Row::new(RANDOM_HELD, COUNTS, to_counting).others(300).with_probes(400_000, long));
    rows.push(Row::new(RANDOM_HELD, RANDOM_HELD, grid).with_probes(300_000, long));
    let blocks = goal(60.0, secs(10), Punch::default().probes, [Some(512); 2]);
    rows.push(Row::new(BLOCK_OF_512, BLOCK_OF_512, blocks));
    rows.push(Row::new(RANDOM_ALL, COUNTS, SAID).others(300));
    rows.push(Row::new(RANDOM_ALL, RANDOM_ALL, SAID));
    rows.push(Row::new(RANDOM_HELD, COUNTS, SAYS_MORE).others(300));
    rows.push(Row::new(RANDOM_HELD, RANDOM_HELD, SAYS_MORE));
}

fn several_in_a_row(rows: &mut Vec<Row>) {
    use Layer::{Cone, Orderly, Random, Sequential};
    let (cone, counts) = (Cone(Scope::AddressAndPort), Sequential(Scope::AddressAndPort, 1));
    let dice = Random(Scope::AddressAndPort);
    let (cones, two_counters) = ([cone, cone], [counts, counts]);
    let (symmetric_in_cone, cone_in_symmetric) = ([counts, Orderly], [cone, counts]);
    let pair = goal(99.5, secs(2), Punch::default().probes, [Some(256); 2]);

    rows.push(Row::new(&cones, PORT_RESTRICTED, FIRST));
    rows.push(Row::new(&cones, &cones, FIRST));
    for counting in [symmetric_in_cone, cone_in_symmetric, two_counters] {
        rows.push(Row::new(&counting, PORT_RESTRICTED, TO_SEQUENTIAL).others(300));
    }
    rows.push(Row::new(&symmetric_in_cone, &cone_in_symmetric, pair).others(300));
    for random in [[dice, Orderly], [cone, dice]] {
        rows.push(Row::new(&random, PORT_RESTRICTED, RANDOM));
    }

    for layers in [PORT_RESTRICTED, COUNTS, RANDOM_ALL] {
        rows.push(Row::new(layers, layers, BY_LAN).laid_out(Layout::SameLan, false));
    }
    rows.push(Row::new(&cone_in_symmetric, &cone_in_symmetric, BY_LAN).laid_out(Layout::SameLan, false));
    for hairpin in [false, true] {
        for layers in [PORT_RESTRICTED, COUNTS, RANDOM_ALL] {
            rows.push(Row::new(layers, layers, FIRST).laid_out(Layout::SameRouter, hairpin));
        }
    }
    rows.push(Row::new(&cones, &cones, FIRST).laid_out(Layout::SameCarrier, true));
    for counting in [symmetric_in_cone, cone_in_symmetric] {
        rows.push(Row::new(&counting, &counting, pair).others(300).laid_out(Layout::SameCarrier, true));
    }
}

/// IPv6, mapped ports, and firewalls beside the NAT.
fn around_the_nat(rows: &mut Vec<Row>) {
    for layers in [PORT_RESTRICTED, COUNTS, RANDOM_ALL] {
        let row = Row { ipv6: true, ..Row::new(layers, layers, FIRST) };
        rows.push(row.called("IPv6 with stateful firewalls"));
    }
    let mapped =
        |other: &[Layer], goal| Row { mapped: true, ..Row::new(RANDOM_ALL, other, goal).called("a port mapped") };
    for other in [NONE, FULL, PORT_RESTRICTED, TRAP, RANDOM_ALL, RANDOM_HELD] {
        rows.push(mapped(other, MAPPED));
    }
    for other in [SECOND, COUNTS] {
        rows.push(mapped(other, MAPPED).others(300));
    }
    for other in [PORT_RESTRICTED, COUNTS, RANDOM_ALL] {
        let goal = goal(100.0, secs(2), 64, [None; 2]);
        let row = Row { forbids_from: Some(DYNAMIC_PORTS), ..mapped(other, goal) };
        rows.push(row.called("ports ≥ 32768 forbidden"));
    }
    let pair = goal(100.0, secs(3), 64, [Some(256); 2]);
    let random = Goal { probes: 2048, ..pair };
    for (row, others) in [(mapped(COUNTS, pair), 300), (mapped(RANDOM_ALL, random), 0)] {
        let row = Row { host_firewall: true, ..row }.called("host firewall");
        rows.push(if others > 0 { row.others(others) } else { row });
    }
    for other in [COUNTS, RANDOM_ALL] {
        rows.push(Row { host_firewall: true, ..Row::new(NONE, other, pair) }.called("host firewall"));
    }
}
