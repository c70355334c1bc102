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

use std::net::SocketAddr;
use std::time::Duration;

use super::{Moving, Outlook, Pair, Plan, Port, Side, Sockets, Strategy, Target, Timing, placed};
use crate::proto::counter::{self, Ahead, Place};
use crate::proto::message_control::{Hold, Report};

/// Where the held ports stand, in standard deviations from the expected place.
const PLACES: [f64; 5] = [-0.7, 0.6, 1.9, 3.2, 5.0];
/// A deviation is not taken for less than so many steps: a datagram that was lost, or a look that was not counted.
const LEAST_ERROR: f64 = 4.0;
/// Where λ is not known, for 10 to 3,000 a second after a quarter of a second.
const UNKNOWN_PLACES: [i64; 5] = [9, 45, 130, 320, 850];
/// A counter that goes around after so many mappings can be waited for.
const SOON_AROUND: i64 = 512;
/// A port is ahead if it is by so many standard deviations: once in 160 it is not.
const SURE: f64 = 2.5;

/// Where the called member holds mappings to, for a caller whose counter moves.
pub fn places(them: &Moving, report: &Report, ahead: Duration) -> Vec<SocketAddr> {
    let at =
        |steps: i64| SocketAddr::new(them.last.ip(), counter::after(them.last.port(), them.step, steps, them.range));
    let Some(rate) = report.cross_traffic else { return UNKNOWN_PLACES.map(at).to_vec() };
    let Ahead { steps, error } = Ahead::after(report.age + ahead, rate.into());
    let mut places: Vec<SocketAddr> = Vec::new();
    for deviations in PLACES {
        let place = at(1 + (steps + deviations * error.max(LEAST_ERROR)).round().max(1.0) as i64);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
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
        timing: Timing::Volleys,
    };
    let back =
        Side { sockets: Sockets::Reported, target: Target::Ports { ip: caller.last.ip(), ports }, timing: Timing::Low };
    let round = placed(Strategy::Sweep, pair.pace.lead * 3, Some(sweep), Some(back), true);
    Plan { rounds: vec![round], outlook: Outlook::Good }
}

/// Which of the peer's holds to sweep over, and from how many sockets, by the newest look at our own counter and how far others
/// have moved it since. `None`: it has passed them all, or the way is longer than the budget.
pub fn aim(holds: &[Hold], place: Place, ahead: Ahead, most: u32) -> Option<(Hold, u32)> {
    let Place { last, step, range } = place;
    let error = ahead.error.max(LEAST_ERROR / 2.0);
    let on_step = holds.iter().filter(|hold| counter::is_on_step(last, hold.to, step));
    let reachable = on_step.filter_map(|hold| {
        let mut way = counter::steps_between(last, hold.to, step, range) as f64;
        let passed = ahead.steps + SURE * error;
        // A counter that comes around soon enough comes by again.
        if let Some(period) = counter::period(step, range).filter(|period| *period > 0 && *period <= SOON_AROUND) {
            let around = ((passed - way) / period as f64).floor() + 1.0;
            way += around.max(0.0) * period as f64;
        }
        // The first shot takes the next port.
        let shots = (way - ahead.steps + SURE * error).ceil() + 2.0;
        (way > passed).then_some((*hold, shots as u32))
    });
    let (hold, shots) = reachable.min_by_key(|(_, shots)| *shots)?;
    (shots <= most.saturating_add(most / 4)).then_some((hold, shots.min(most)))
}
