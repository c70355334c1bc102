//! The patent's shotgun (\[0038\], \[0070\]): a window of −16 to +32 steps around the port extrapolated from the differential,
//! which moves with each round. It is what is left where a NAT was misread, or no hold could be made.
//!
//! ```text
//! fixed × fixed     both were thought to be, and nothing came: what is no cone mostly takes the next port, so there both shoot
//! fixed × moving    the fixed side at the window, the moving one at the fixed port
//! moving × moving   a row of sockets at each side, at the one port 32 steps beyond the other's next
//! ```
//!
//! Two shotguns that both ascend never meet where mapping is by address and port: each shot takes the next port, so both are
//! diagonals of the plane with the same slope, whatever their windows. A row and a column always cross. A window forgives a
//! drift of 16 steps back and 32 on; its success is the chance that others took no more.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Line, Moving, Pair, Port, Round, Side, Sockets, Strategy, Target, Timing, direct, placed, port};
use crate::proto::config::Punch;
use crate::proto::counter::{self, Ahead};
use crate::proto::message_control::Report;

/// More rounds would shoot at ports ever further ahead of where the NAT's counter can be. A new look at it is worth more: after
/// these, the call surveys again.
const MAX_ROUNDS: usize = 4;
/// A row opens as many sockets as the window is wide: two looks are worth more than four rounds.
const MAX_ROWS: usize = 2;

/// Where `report`'s owner will be, `ahead` after the report was sent.
pub fn aim(report: &Report, ahead: Duration) -> Option<SocketAddr> {
    match port(report) {
        Port::Fixed { at, .. } | Port::Fresh(at) => Some(at),
        Port::Moving(moving) => {
            let others = report.cross_traffic.map_or(0.0, |rate| Ahead::after(report.age + ahead, rate.into()).steps);
            // One for the mapping that the shot itself makes.
            let steps = 1 + others.round() as i64;
            let next = counter::after(moving.last.port(), moving.step, steps, moving.range);
            Some(SocketAddr::new(moving.last.ip(), next))
        }
        Port::Random(_) | Port::Unknown => None,
    }
}

/// The rounds that follow those of the strategy.
pub fn rounds(pair: &Pair<'_>, before: &[Round]) -> Vec<Round> {
    let (a, b) = (port(pair.caller), port(pair.called));
    let (at_a, at_b) = (pair.terms.modification, pair.terms.aim);
    let mut rounds = Vec::new();
    match (&a, &b) {
        (Port::Fixed { .. } | Port::Fresh(_), Port::Fixed { .. } | Port::Fresh(_)) => {
            for nth in 0..MAX_ROUNDS.saturating_sub(before.len()) {
                let side = |at: Option<SocketAddr>, timing| {
                    Some(Side { sockets: Sockets::Reported, target: window(pair.punch, at?, 1, None, nth)?, timing })
                };
                rounds.push(of(pair, side(at_b, Timing::LowFirst), side(at_a, Timing::LowFirst)));
            }
        }
        (Port::Moving(moving), fixed @ (Port::Fixed { .. } | Port::Fresh(_))) => {
            rounds.extend((0..most_windows(fixed)).map(|nth| against(pair, moving, at_a, fixed, nth, true)));
        }
        (fixed @ (Port::Fixed { .. } | Port::Fresh(_)), Port::Moving(moving)) => {
            rounds.extend((0..most_windows(fixed)).map(|nth| against(pair, moving, at_b, fixed, nth, false)));
        }
        (Port::Moving(us), Port::Moving(them)) if before.is_empty() => {
            for nth in 0..MAX_ROWS {
                rounds.push(of(pair, row(pair.punch, them, at_b, nth), row(pair.punch, us, at_a, nth)));
            }
        }
        (Port::Unknown, known) => rounds.push(of(pair, direct::side(&a, known, Timing::Volleys), None)),
        (known, Port::Unknown) => rounds.push(of(pair, None, direct::side(&b, known, Timing::Opened))),
        (Port::Moving(_) | Port::Random(_) | Port::Fresh(_) | Port::Fixed { .. }, _) => {}
    }
    rounds
}

/// A socket that was used keeps its port no more, so what was said of it is wrong or the shots are in vain: a new one is worth more.
fn most_windows(fixed: &Port) -> usize {
    if matches!(fixed, Port::Fresh(_)) { 1 } else { MAX_ROUNDS }
}

fn of(pair: &Pair<'_>, caller: Option<Side>, called: Option<Side>) -> Round {
    placed(Strategy::Window, pair.terms.round, caller, called, true)
}

/// The fixed side shoots at the window, the moving one at the fixed port.
fn against(
    pair: &Pair<'_>,
    moving: &Moving,
    at: Option<SocketAddr>,
    fixed: &Port,
    nth: usize,
    moving_calls: bool,
) -> Round {
    let shot = direct::side(&Port::Moving(moving.clone()), fixed, Timing::LowFirst);
    let sockets = if let Port::Fixed { from, .. } = fixed { *from } else { Sockets::Fresh };
    let target = at.and_then(|at| window(pair.punch, at, moving.step, moving.range, nth));
    let timing = direct::timing_from(sockets, Timing::LowFirst);
    let at_window = target.map(|target| Side { sockets, target, timing });
    placed(Strategy::Window, pair.terms.round, shot, at_window, moving_calls)
}

/// A row of sockets at the port that lies a window's end beyond the other's next; so a row forgives the drift that a window does.
fn row(punch: &Punch, them: &Moving, at: Option<SocketAddr>, nth: usize) -> Option<Side> {
    let at = at?;
    let width = width(punch).min(i64::from(punch.sockets.max(1)));
    let steps = i64::from(punch.window.1) + nth as i64 * width;
    let port = counter::after(at.port(), them.step, steps, them.range);
    let target = Target::Ports { ip: at.ip(), ports: vec![port] };
    Some(Side { sockets: Sockets::Row(u32::try_from(width).ok()?), target, timing: Timing::LowFirst })
}

fn width(punch: &Punch) -> i64 {
    i64::from(punch.window.1 - punch.window.0 + 1).max(1)
}

/// The `nth` window around `center`, nearest to it first.
fn window(punch: &Punch, center: SocketAddr, step: i32, range: Option<(u16, u16)>, nth: usize) -> Option<Target> {
    let shift = i32::try_from(nth as i64 * width(punch)).ok()?;
    let line = Line { ip: center.ip(), first: center.port(), step, count: 1, range };
    let ports = offsets(punch.window.0 + shift, punch.window.1 + shift)
        .map(|offset| counter::after(line.first, line.step, i64::from(offset), line.range))
        .collect();
    Some(Target::Ports { ip: center.ip(), ports })
}

/// The offsets of a window, nearest to its center (0, or its end next to 0) first: 0, 1, −1, 2, −2 …
pub fn offsets(low: i32, high: i32) -> impl Iterator<Item = i32> {
    let reach = low.unsigned_abs().max(high.unsigned_abs());
    let reach = i32::try_from(reach).unwrap_or(0);
    (0..=reach)
        .flat_map(|way| if way == 0 { [Some(0), None] } else { [Some(way), Some(-way)] })
        .flatten()
        .filter(move |offset| (low..=high).contains(offset))
}
