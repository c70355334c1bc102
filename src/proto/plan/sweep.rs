//! Moving × moving: the called member holds a few mappings towards ports that the caller's counter has yet to reach; the
//! caller sweeps its counter over one of them.
//!
//! ```text
//! called   holds  x₁ → y₁, x₂ → y₂, …     exact x (as in `hold`), y ahead of the caller's counter
//! caller   looks at its counter every 25 ms; takes the first y that is surely ahead of it; from so many new sockets
//!          as it takes to get there shoots at that x: its ports are n, n+1, n+2, … and one of them is y
//! ```
//!
//! In the plane: a point and a row, and the row runs over the point. It misses only where another user takes y itself: at λ mappings a
//! second against a shot each 10 µs, once in 1/(λ × 10⁻⁵), that is 3 % at λ = 3,000; or where no y is ahead. The five y
//! stand where the counter will be: at −0.7, 0.6, 1.9, 3.2 and 5 standard deviations from the expected place, and where nothing is known
//! of λ yet, spread for 0 to 3,000 a second. What a sweep costs is the way to the y and 2.5 deviations of the newest look,
//! some 30 to 200 entries.
//!
//! A counter of large steps goes around within a second or less (a step of 256 in 252 mappings at most), and may step aside by one
//! where it meets a port that is in use, such as the caller's own of a lap ago. So there are fewer places, but each in three
//! classes, its own and the next two; and the caller walks the course that its counter is expected to take, past its own ports, from
//! five starts, and takes the y that it meets from most of them.
//!
//! A sweep that missed is followed by another call: the caller watches its counter meanwhile, and sweeps from the same sockets
//! again, for the called member's next x are other ports.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Moving, Outlook, Pair, Plan, Port, Side, Sockets, Strategy, Target, Timing, placed};
use crate::proto::counter::{self, Ahead, Aside, Course};
use crate::proto::message_control::{Hold, Report};

/// Where the held ports stand, in standard deviations from the expected place.
const PLACES: [f64; 5] = [-0.7, 0.6, 1.9, 3.2, 5.0];
/// A deviation is not taken for less than so many steps: a datagram that was lost, or a look that was not counted.
const LEAST_ERROR: f64 = 4.0;
/// Where λ is not known, for 10 to 3,000 a second after a quarter of a second.
const UNKNOWN_PLACES: [i64; 5] = [9, 45, 130, 320, 850];
/// The same in each class of a large step, and in how many: the caller's own looks, and the sweep, may each move it on by one.
const PLACES_IN_CLASS: [f64; 4] = [-0.7, 0.9, 2.5, 5.0];
const CLASSES: i64 = 3;
const QUARTERS: i64 = 4;
/// A port is ahead if it is by so many standard deviations: once in 160 it is not.
const SURE: f64 = 2.5;

/// Where the called member holds mappings to, for a caller whose counter moves.
pub fn places(them: &Moving, report: &Report, ahead: Duration) -> Vec<SocketAddr> {
    let port = |steps: i64| counter::after(them.last.port(), them.step, steps, them.range);
    let is_large = i64::from(them.step.unsigned_abs()) >= counter::LARGE_STEP;
    let expected = report.cross_traffic.map(|rate| Ahead::after(report.age + ahead, rate.into()));
    let place = |steps: f64, error: f64, deviations: f64| 1 + (steps + deviations * error).round().max(1.0) as i64;
    let around = counter::period(them.step, them.range).filter(|_| is_large);
    let steps: Vec<i64> = match (expected, around) {
        // All around the lap, where it may be anywhere in it.
        (None, Some(period)) => (0..QUARTERS).map(|nth| 1 + nth * period / QUARTERS).collect(),
        (Some(Ahead { steps, error }), Some(period)) if error * PLACES[4] > period as f64 => {
            (0..QUARTERS).map(|nth| place(steps, error, PLACES[0]) + nth * period / QUARTERS).collect()
        }
        (Some(Ahead { steps, error }), Some(_)) => {
            PLACES_IN_CLASS.map(|deviations| place(steps, error.max(LEAST_ERROR), deviations)).to_vec()
        }
        (None, None) => UNKNOWN_PLACES.to_vec(),
        (Some(Ahead { steps, error }), None) => {
            PLACES.map(|deviations| place(steps, error.max(LEAST_ERROR), deviations)).to_vec()
        }
    };
    let mut ports: Vec<u16> = Vec::new();
    // A counter of large steps goes around soon, meets ports in use, and may step aside by one.
    let classes = if is_large { CLASSES } else { 1 };
    for (steps, class) in (0..classes).flat_map(|class| steps.iter().map(move |steps| (*steps, class))) {
        let port = counter::after(port(steps), them.step.signum(), class, them.range);
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports.into_iter().map(|port| SocketAddr::new(them.last.ip(), port)).collect()
}

pub fn plan(pair: &Pair<'_>, a: &Port, b: &Port) -> Plan {
    let (Port::Moving(caller), Port::Moving(called)) = (a, b) else {
        return Plan { rounds: Vec::new(), outlook: Outlook::Good };
    };
    let holds: Vec<Hold> = called.holds.iter().filter(|hold| hold.is_exact()).copied().collect();
    if holds.is_empty() {
        return Plan { rounds: Vec::new(), outlook: Outlook::Good };
    }
    let ports = holds.iter().map(|hold| hold.to).collect();
    let sweep = Side {
        sockets: Sockets::Reported,
        target: Target::Sweep { ip: called.last.ip(), holds },
        timing: Timing::Twice,
    };
    let back = Side {
        sockets: Sockets::Reported,
        target: Target::Ports { ip: caller.last.ip(), ports },
        timing: Timing::Volleys,
    };
    let round = placed(Strategy::Sweep, pair.pace.lead * 3, Some(sweep), Some(back), true);
    Plan { rounds: vec![round], outlook: Outlook::Good }
}

/// Which of the peer's holds to sweep over, and from how many sockets.
#[derive(Clone, PartialEq, Debug)]
pub struct Aim {
    pub hold: Hold,
    pub shots: u32,
    /// The ports that the sweep is given, most likely.
    pub ports: Vec<u16>,
}

/// By the newest look at our own counter, how it goes on, and how far others have moved it since. `None`: it has passed them all, or the
/// way is longer than the budget.
pub fn aim(holds: &[Hold], course: &Course, ahead: Ahead, most: u32) -> Option<Aim> {
    let error = ahead.error.max(LEAST_ERROR / 2.0);
    let from = |deviations: f64| 1 + (ahead.steps + deviations * error).floor().max(0.0) as i64;
    // What a NAT does with a port in use is only of interest where there are some of ours.
    let rules: &[(Aside, f64)] = match course.aside {
        Aside::Unknown => &[(Aside::Shares, 0.45), (Aside::Steps, 0.55)],
        Aside::Shares => &[(Aside::Shares, 1.0)],
        Aside::Steps => &[(Aside::Steps, 1.0)],
    };
    // Each hold's chance, and the shots that it takes.
    let mut reached: Vec<(f64, u32)> = vec![(0.0, 0); holds.len()];
    for ((rule, share), (deviations, chance)) in rules.iter().flat_map(|rule| STARTS.map(|start| (*rule, start))) {
        let longest = (most + most / 4) as usize;
        let mut met = vec![false; holds.len()];
        for (nth, port) in (1..).zip(course.ports(from(deviations), rule).take(longest)) {
            for (at, hold) in holds.iter().enumerate() {
                if hold.to == port && !std::mem::replace(&mut met[at], true) {
                    reached[at].0 += chance * share;
                    reached[at].1 = reached[at].1.max(nth + 1);
                }
            }
        }
    }
    let within = |most: u32, least: f64| {
        let all = || holds.iter().zip(&reached).filter(move |(_, (_, shots))| *shots <= most);
        let best = all().map(|(_, (chance, _))| *chance).fold(least, f64::max);
        all().filter(|(_, (chance, _))| *chance >= best - MUCH).min_by_key(|(_, (_, shots))| *shots)
    };
    // What takes more than half of what is left must be worth it, and never all of it: another look costs less, and knows more of
    // others' rate.
    let sure = within(most / 2, SURE_CHANCE).or_else(|| within(most / 4 * 3, GOOD_CHANCE));
    let (hold, (_, shots)) = sure.or_else(|| within(most / 2, LEAST_CHANCE))?;
    let shots = (*shots).min(most);
    let rule = rules.last().map(|(rule, _)| *rule).unwrap_or_default();
    let ports = course.ports(from(-1.0), rule).take(shots as usize).collect();
    Some(Aim { hold: *hold, shots, ports })
}

/// From where a sweep may start, in standard deviations from the expected place, and how likely it is that it does: a normal
/// distribution cut into five.
const STARTS: [(f64, f64); 5] = [(-SURE, 0.05), (-1.0, 0.24), (0.0, 0.42), (1.0, 0.24), (SURE, 0.05)];
/// So much of a chance is worth more shots.
const MUCH: f64 = 0.02;
/// With less, another look is worth more.
const LEAST_CHANCE: f64 = 0.4;
const GOOD_CHANCE: f64 = 0.8;
const SURE_CHANCE: f64 = 1.0;
