//! The anti-replay window of RFC 6479: a ring of bits over the most recent counters, moved by whole words.

/// Counters to a word of the ring.
const WORD: u64 = 64;
/// Words of a window as wide as WireGuard's own: 8,192 bits, so 8,128 counters (a word less).
pub const DATA_WORDS: usize = 128;
/// Words of a window for sessions that carry little: 1,024 bits, so 960 counters. A server holds many of them.
pub const CONTROL_WORDS: usize = 16;
/// Words of a window for probes: more counters (4,032) than one call may send probes (2,048 by default), so no probe is too
/// late to tell.
pub const PROBE_WORDS: usize = 64;

/// Which counters were seen.
pub struct Window {
    /// Empty until the first counter: most sessions of a large server never see a probe.
    ring: Box<[u64]>,
    words: usize,
    /// One more than the greatest counter seen; 0: none was.
    next: u64,
}

impl Window {
    /// A window over `words` words: `(words - 1) * 64` counters and up. `words` is a power of two, at least 2.
    pub fn new(words: usize) -> Self {
        Self { ring: Box::default(), words: words.next_power_of_two().max(2), next: 0 }
    }

    /// Whether nothing was seen yet.
    pub fn is_fresh(&self) -> bool {
        self.next == 0
    }

    /// Whether `counter` is new, as far as the window can tell. Changes nothing: mark it once the packet proved authentic.
    pub fn admits(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        // The word that the greatest counter is in may be partly used, hence one word less than there are.
        let behind = (self.next - 1) / WORD - counter / WORD;
        behind < self.words as u64 && self.next - 1 - counter < (self.words as u64 - 1) * WORD && !self.bit(counter)
    }

    /// Remembers `counter`, which [`Window::admits`].
    pub fn mark(&mut self, counter: u64) {
        if self.ring.is_empty() {
            self.ring = vec![0; self.words].into_boxed_slice();
        }
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / WORD;
            let ahead = (counter / WORD - newest).min(self.words as u64);
            for word in 1..=ahead {
                let slot = self.slot((newest + word) * WORD);
                self.ring[slot] = 0;
            }
            self.next = counter.saturating_add(1);
        }
        let slot = self.slot(counter);
        self.ring[slot] |= 1 << (counter % WORD);
    }

    fn bit(&self, counter: u64) -> bool {
        self.ring.get(self.slot(counter)).is_some_and(|word| word >> (counter % WORD) & 1 == 1)
    }

    fn slot(&self, counter: u64) -> usize {
        (counter / WORD) as usize & (self.words - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn accept(window: &mut Window, counter: u64) -> bool {
        let new = window.admits(counter);
        if new {
            window.mark(counter);
        }
        new
    }

    #[test]
    fn each_counter_passes_once_in_any_order() {
        let mut window = Window::new(DATA_WORDS);
        for counter in (0..8128).rev() {
            assert!(accept(&mut window, counter), "{counter}");
        }
        for counter in 0..8128 {
            assert!(!accept(&mut window, counter), "{counter}");
        }
    }

    #[test]
    fn the_window_is_8128_wide() {
        let mut window = Window::new(DATA_WORDS);
        assert!(accept(&mut window, 20_000));
        assert!(accept(&mut window, 20_000 - 8127));
        assert!(!accept(&mut window, 20_000 - 8128));
    }

    #[test]
    fn a_leap_over_the_whole_ring_forgets_all_of_it() {
        let mut window = Window::new(2);
        for counter in 0..128 {
            accept(&mut window, counter);
        }
        assert!(accept(&mut window, u64::MAX - 1));
        assert!(accept(&mut window, u64::MAX - 2));
        assert!(!accept(&mut window, 127));
        assert!(!accept(&mut window, u64::MAX - 1));
    }

    proptest! {
        /// Against a set that remembers everything: what was seen never passes, what is new and recent always does.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((-9000i64..9000, any::<bool>()), 1..400), words in 1u32..8) {
            let words = 1usize << words;
            let width = (words as u64 - 1) * WORD;
            let mut window = Window::new(words);
            let mut seen = HashSet::new();
            let (mut at, mut greatest) = (0u64, None::<u64>);
            for (step, near) in steps {
                at = at.saturating_add_signed(if near { step / 100 } else { step });
                let recent = greatest.is_none_or(|greatest| at > greatest || greatest - at < width);
                prop_assert_eq!(accept(&mut window, at), recent && !seen.contains(&at), "{}", at);
                if recent {
                    seen.insert(at);
                }
                greatest = Some(greatest.map_or(at, |greatest| greatest.max(at)));
            }
        }
    }
}
