//! The anti-replay window of RFC 6479, for several threads at once: a ring of words, each of which says which counters it is of.
//!
//! ```text
//! a word      number of the word (counter / 32, its low 32 bits)  |  a bit for each of its 32 counters
//! ```
//!
//! RFC 6479 clears words as the window moves. Here a word that is of older counters is taken over by whoever first has one of
//! newer ones, in the same atomic step that sets its bit: so nothing is ever cleared under another thread's hands, and of two
//! threads with the same counter one is told that it was seen. No lock is taken.
//!
//! The number's missing high bits matter where a counter leaps by 2^36, of which no session's time has room for a hundredth; and
//! then a new packet is refused, but no old one taken.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters to a word of the ring.
const WORD: u64 = 32;
/// Words of a window as wide as WireGuard's own: 8,192 bits, so 8,160 counters (a word less).
pub const DATA_WORDS: usize = 256;
/// Words of a window for sessions that carry little: 512 bits, so 480 counters. A server holds many of them.
pub const CONTROL_WORDS: usize = 16;
/// Words of a window for probes: more counters (4,064) than one call may send probes (2,048 by default), so no probe is too
/// late to tell.
pub const PROBE_WORDS: usize = 128;

/// Which counters were seen.
pub struct Window {
    /// None until the first counter: most sessions of a large server never see a probe.
    ring: OnceLock<Box<[AtomicU64]>>,
    words: usize,
    /// One more than the greatest counter seen; 0: none was.
    next: AtomicU64,
}

impl Window {
    /// A window over `words` words: `(words - 1) * 32` counters and up. `words` is a power of two, at least 2.
    pub fn new(words: usize) -> Self {
        Self { ring: OnceLock::new(), words: words.next_power_of_two().max(2), next: AtomicU64::new(0) }
    }

    /// Whether nothing was seen yet.
    pub fn is_fresh(&self) -> bool {
        self.next.load(Ordering::Relaxed) == 0
    }

    /// Whether `counter` is new, as far as the window can tell. Changes nothing: mark it once the packet proved authentic.
    pub fn admits(&self, counter: u64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        if counter >= next {
            return true;
        }
        let recent = next - 1 - counter < (self.words as u64 - 1) * WORD;
        recent
            && self
                .ring
                .get()
                .is_none_or(|ring| taken(ring[self.slot(counter)].load(Ordering::Relaxed), counter).is_some())
    }

    /// Remembers `counter`; `false` where it was seen, or is too old to tell.
    pub fn mark(&self, counter: u64) -> bool {
        if !self.admits(counter) {
            return false;
        }
        let ring = self.ring.get_or_init(|| (0..self.words).map(|_| AtomicU64::new(0)).collect());
        let word = &ring[self.slot(counter)];
        let marked = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| taken(word, counter)).is_ok();
        if marked {
            self.next.fetch_max(counter.saturating_add(1), Ordering::Relaxed);
        }
        marked
    }

    fn slot(&self, counter: u64) -> usize {
        (counter / WORD) as usize & (self.words - 1)
    }
}

/// The word with `counter`'s bit set; `None` where it is set, or where the word is of later counters.
fn taken(word: u64, counter: u64) -> Option<u64> {
    let (of, bits) = ((word >> WORD) as u32, word as u32);
    let (number, bit) = ((counter / WORD) as u32, 1u32 << (counter % WORD));
    let bits = match number.wrapping_sub(of) {
        0 if bits & bit != 0 => return None,
        0 => bits | bit,
        ahead if bits == 0 || ahead <= u32::MAX / 2 => bit,
        _ => return None,
    };
    Some(u64::from(number) << WORD | u64::from(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn accept(window: &Window, counter: u64) -> bool {
        let new = window.admits(counter);
        assert_eq!(window.mark(counter), new);
        new
    }

    #[test]
    fn each_counter_passes_once_in_any_order() {
        let window = Window::new(DATA_WORDS);
        for counter in (0..8160).rev() {
            assert!(accept(&window, counter), "{counter}");
        }
        for counter in 0..8160 {
            assert!(!accept(&window, counter), "{counter}");
        }
    }

    #[test]
    fn the_window_is_8160_wide() {
        let window = Window::new(DATA_WORDS);
        assert!(accept(&window, 20_000));
        assert!(accept(&window, 20_000 - 8159));
        assert!(!accept(&window, 20_000 - 8160));
    }

    #[test]
    fn a_leap_over_the_whole_ring_forgets_all_of_it() {
        const LEAP: u64 = 1 << 35;
        let window = Window::new(2);
        for counter in 0..64 {
            accept(&window, counter);
        }
        assert!(accept(&window, LEAP));
        assert!(accept(&window, LEAP - 1));
        assert!(!accept(&window, 63));
        assert!(!accept(&window, LEAP));
    }

    #[test]
    fn of_two_threads_with_the_same_counters_each_gets_only_what_the_other_does_not() {
        let window = Window::new(DATA_WORDS);
        let run = || (0..200_000).filter(|counter| window.mark(*counter)).count();
        let passed = std::thread::scope(|scope| {
            let other = scope.spawn(run);
            run() + other.join().expect("no panic")
        });
        assert!(passed <= 200_000, "{passed}");
        assert!(window.next.load(Ordering::Relaxed) == 200_000 && passed > 0);
    }

    proptest! {
        /// Against a set that remembers everything: what was seen never passes, what is new and recent always does.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((-9000i64..9000, any::<bool>()), 1..400), words in 1u32..8) {
            let words = 1usize << words;
            let width = (words as u64 - 1) * WORD;
            let window = Window::new(words);
            let mut seen = HashSet::new();
            let (mut at, mut greatest) = (0u64, None::<u64>);
            for (step, near) in steps {
                at = at.saturating_add_signed(if near { step / 100 } else { step });
                let recent = greatest.is_none_or(|greatest| at > greatest || greatest - at < width);
                prop_assert_eq!(accept(&window, at), recent && !seen.contains(&at), "{}", at);
                if recent {
                    seen.insert(at);
                }
                greatest = Some(greatest.map_or(at, |greatest| greatest.max(at)));
            }
        }
    }
}
