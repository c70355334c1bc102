//! What worked between two public addresses, so that the next call begins with it.
//!
//! A call tries what is cheap first: an open filter, a nearer address, a port that maps. Where that was in vain and something else
//! found the path, the NATs are mostly still the ones they were, and so the next call makes its holds at once. It is a habit
//! of this member's alone, and orders what is tried; what is remembered wrongly costs a few probes.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::plan::Strategy;

/// As many as a member has peers that it calls again and again; the oldest goes.
const MOST: usize = 256;

/// The strategies that found paths, the latest last.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    lessons: VecDeque<Lesson>,
}

#[derive(Clone, Copy, Debug)]
struct Lesson {
    pair: (IpAddr, IpAddr),
    strategy: Strategy,
}

impl Memory {
    /// Between our public address and the peer's, this found a path.
    pub fn note(&mut self, ours: IpAddr, theirs: IpAddr, strategy: Strategy) {
        let pair = (ours, theirs);
        self.lessons.retain(|lesson| lesson.pair != pair);
        if self.lessons.len() >= MOST {
            self.lessons.pop_front();
        }
        self.lessons.push_back(Lesson { pair, strategy });
    }

    /// What found a path between the two last time.
    pub fn worked(&self, ours: IpAddr, theirs: IpAddr) -> Option<Strategy> {
        self.lessons.iter().find(|lesson| lesson.pair == (ours, theirs)).map(|lesson| lesson.strategy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u16) -> IpAddr {
        let [a, b] = number.to_be_bytes();
        IpAddr::from([203, 0, a, b])
    }

    #[test]
    fn the_latest_lesson_of_a_pair_counts_and_another_pairs_does_not() {
        let mut memory = Memory::default();
        memory.note(ip(1), ip(2), Strategy::Direct);
        memory.note(ip(1), ip(2), Strategy::Hold);
        assert_eq!(memory.worked(ip(1), ip(2)), Some(Strategy::Hold));
        assert_eq!(memory.worked(ip(2), ip(1)), None);
    }

    #[test]
    fn the_oldest_lesson_goes_where_there_are_too_many() {
        let mut memory = Memory::default();
        for number in 0..=MOST as u16 {
            memory.note(ip(1000), ip(number), Strategy::Sweep);
        }
        assert_eq!(memory.lessons.len(), MOST);
        assert_eq!(memory.worked(ip(1000), ip(0)), None);
        assert_eq!(memory.worked(ip(1000), ip(1)), Some(Strategy::Sweep));
    }
}
