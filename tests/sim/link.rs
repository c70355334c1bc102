//! A link between a machine (or a router) and the network that it hangs on: it delays, jitters, loses, doubles and reorders.
//!
//! Jitter alone keeps the order, as a queue does; only `reorder` lets a later datagram overtake.

use std::time::Duration;

use p2ptund::proto::Instant;

use crate::datagram::Datagram;
use crate::dice::Dice;

#[derive(Clone, Debug)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Added evenly, from none to this much.
    pub jitter: Duration,
    pub loss: f64,
    pub duplicate: f64,
    /// How often a datagram is held back by [`HELD_BACK`] and so overtaken.
    pub reorder: f64,
    pub narrow: Narrow,
    /// `false`: cut; nothing passes.
    pub up: bool,
    /// The last arrival in each direction.
    pub last: [Instant; 2],
}

/// What becomes of a datagram that is longer than the link carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Narrow {
    No,
    /// Beyond so many bytes it is lost, and nobody says so.
    Swallows(usize),
    /// It goes in fragments, unless it must not; then it is lost.
    Cuts(usize),
}

impl Narrow {
    fn passes(self, datagram: &Datagram) -> bool {
        match self {
            Self::No => true,
            Self::Swallows(most) => datagram.len() <= most,
            Self::Cuts(most) => datagram.len() <= most || !datagram.whole,
        }
    }
}

/// Long enough that a burst overtakes, short enough that no timer of anybody's fires because of it.
const HELD_BACK: Duration = Duration::from_millis(4);

#[derive(Clone, Copy)]
pub enum Direction {
    Up = 0,
    Down = 1,
}

impl Link {
    pub fn of_delay(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            narrow: Narrow::No,
            up: true,
            last: [Instant::default(); 2],
        }
    }

    /// A cable in a house.
    pub fn lan() -> Self {
        Self::of_delay(Duration::from_micros(100))
    }

    /// When a datagram that enters now comes out: never, once, or twice.
    pub fn carry(
        &mut self,
        now: Instant,
        direction: Direction,
        datagram: &Datagram,
        dice: &mut Dice,
    ) -> [Option<Instant>; 2] {
        if !self.up || !self.narrow.passes(datagram) || dice.chance(self.loss) {
            return [None, None];
        }
        let first = self.arrival(now, direction, dice);
        let second = dice.chance(self.duplicate).then(|| self.arrival(now, direction, dice));
        [Some(first), second]
    }

    fn arrival(&mut self, now: Instant, direction: Direction, dice: &mut Dice) -> Instant {
        let jitter = if self.jitter.is_zero() { Duration::ZERO } else { dice.duration(Duration::ZERO, self.jitter) };
        let at = now + self.delay + jitter;
        if dice.chance(self.reorder) {
            return at + HELD_BACK;
        }
        let last = &mut self.last[direction as usize];
        *last = at.max(*last);
        *last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(1_000_000_000);

    fn datagram(len: usize, whole: bool) -> Datagram {
        let address = "203.0.113.1:4275".parse().expect("an address");
        Datagram { src: address, dst: address, ttl: 64, whole, payload: vec![0; len - 28] }
    }

    #[test]
    fn a_clean_link_delays_and_nothing_else() {
        let mut link = Link::of_delay(Duration::from_millis(50));
        let out = link.carry(START, Direction::Up, &datagram(100, false), &mut Dice::new(1));
        assert_eq!(out, [Some(START + Duration::from_millis(50)), None]);
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_breaks_it() {
        let overtakes = |reorder: f64| {
            let mut link =
                Link { jitter: Duration::from_millis(3), reorder, ..Link::of_delay(Duration::from_millis(9)) };
            let mut dice = Dice::new(2);
            let arrivals: Vec<Instant> = (0..200)
                .filter_map(|i| {
                    let at = START + Duration::from_micros(i * 100);
                    link.carry(at, Direction::Up, &datagram(100, false), &mut dice)[0]
                })
                .collect();
            arrivals.windows(2).filter(|pair| pair[1] < pair[0]).count()
        };
        assert_eq!(overtakes(0.0), 0);
        assert!(overtakes(0.2) > 10);
    }

    #[test]
    fn loss_and_duplication_come_as_often_as_asked() {
        let mut link = Link { loss: 0.1, duplicate: 0.2, ..Link::of_delay(Duration::ZERO) };
        let mut dice = Dice::new(3);
        let (mut lost, mut doubled) = (0, 0);
        for _ in 0..10_000 {
            match link.carry(START, Direction::Down, &datagram(100, false), &mut dice) {
                [None, _] => lost += 1,
                [_, Some(_)] => doubled += 1,
                _ => {}
            }
        }
        assert!((900..1100).contains(&lost), "lost {lost}");
        assert!((1650..1950).contains(&doubled), "doubled {doubled}");
    }

    #[test]
    fn a_cut_link_carries_nothing() {
        let mut link = Link { up: false, ..Link::lan() };
        assert_eq!(link.carry(START, Direction::Up, &datagram(100, false), &mut Dice::new(4)), [None, None]);
    }

    #[test]
    fn a_narrow_link_swallows_what_is_too_long_or_cuts_what_it_may() {
        let passes = |narrow, len, whole| {
            let mut link = Link { narrow, ..Link::lan() };
            link.carry(START, Direction::Up, &datagram(len, whole), &mut Dice::new(5))[0].is_some()
        };
        assert!(passes(Narrow::Swallows(1280), 1280, true) && !passes(Narrow::Swallows(1280), 1281, false));
        assert!(passes(Narrow::Cuts(1280), 1500, false) && !passes(Narrow::Cuts(1280), 1281, true));
    }
}
