//! How a NAT picks the outside port of a new mapping.

use std::time::Duration;

use p2ptund::proto::Instant;

use super::Profile;
use crate::dice::Dice;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// The inside port; a random one where that is taken.
    Preserving,
    /// The patent's FIG. 4A: the first mapping of a local endpoint keeps its port while that is free, further ones count on.
    SecondPriority {
        step: i32,
    },
    /// The patent's FIG. 4B: each new mapping is `step` further.
    Sequential {
        step: i32,
    },
    Random,
    /// Random within a block of so many ports, as carriers give to a subscriber (RFC 7422).
    Block {
        size: u16,
    },
}

/// What a counter does at the end of its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Goes on by the remainder: a step that does not divide the range comes to other ports each time around.
    Around,
    /// Starts anew at the range's first port; counting down, at its last.
    Anew,
}

/// What a counter does where the port whose turn it is is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aside {
    /// Takes the one next to it, lest a step that divides the range go round in a circle.
    One,
    /// Takes the next of the sequence.
    Step,
    /// Gives it again, towards another remote, as a kernel does that looks at whole flows.
    Shares,
}

/// The allocator's own state.
pub struct Ports {
    low: u16,
    high: u16,
    /// `None`: draws; else counts on by so much.
    step: Option<i32>,
    turn: Turn,
    aside: Aside,
    next: u16,
    /// When another user of the NAT makes the next mapping.
    next_other: Option<Instant>,
    /// When it was last asked for a port.
    asked: Instant,
}

/// A burst passes one packet after the other, and others come between: what lies between two packets that a host sends at once.
const SPACING: Duration = Duration::from_micros(20);

/// How many draws a random allocator makes before it gives up; one in a table of 16,384 fails with 4⁻⁶⁴.
const DRAWS: usize = 64;

impl Ports {
    pub fn new(profile: &Profile, dice: &mut Dice) -> Self {
        let (mut low, mut high) = profile.range;
        if let Allocation::Block { size } = profile.allocation {
            // Blocks lie side by side from the range's start, as RFC 7422 lays them out.
            let blocks = (high - low + 1) / size;
            low += size * (dice.port(1, blocks) - 1);
            high = low + (size - 1);
        }
        let step = match profile.allocation {
            Allocation::SecondPriority { step } | Allocation::Sequential { step } => Some(step),
            Allocation::Preserving | Allocation::Random | Allocation::Block { .. } => None,
        };
        let (turn, aside) = (profile.turn, profile.aside);
        Self { low, high, step, turn, aside, next: dice.port(low, high), next_other: None, asked: Instant::default() }
    }

    pub fn counts(&self) -> bool {
        self.step.is_some()
    }

    /// How often [`Ports::next`] may be asked before the range counts as full.
    pub fn tries(&self) -> usize {
        if self.counts() { usize::from(self.high - self.low) + 1 } else { DRAWS }
    }

    pub fn next(&mut self, dice: &mut Dice) -> u16 {
        match self.step {
            None => dice.port(self.low, self.high),
            Some(step) => {
                let given = self.next;
                self.next = self.moved(given, step);
                given
            }
        }
    }

    /// The port given last is in use.
    pub fn step_aside(&mut self, held: u16) {
        if let (Some(step), Aside::One) = (self.step, self.aside) {
            self.next = self.moved(held, step.signum());
        }
    }

    fn moved(&self, port: u16, by: i32) -> u16 {
        let span = i64::from(self.high - self.low) + 1;
        let at = i64::from(port - self.low) + i64::from(by);
        let at = match self.turn {
            Turn::Anew if at >= span => 0,
            Turn::Anew if at < 0 => span - 1,
            Turn::Around | Turn::Anew => at.rem_euclid(span),
        };
        self.low + u16::try_from(at).expect("lies within the range")
    }

    /// Moves the counter by the mappings that others made until `now`, `rate` a second.
    pub fn let_others_pass(&mut self, now: Instant, rate: f64, dice: &mut Dice) {
        if rate <= 0.0 || !self.counts() {
            return;
        }
        let now = now.max(self.asked + SPACING);
        self.asked = now;
        let mut next = self.next_other.unwrap_or_else(|| now + dice.gap(rate));
        while next <= now {
            self.next(dice);
            next = next + dice.gap(rate);
        }
        self.next_other = Some(next);
    }
}
