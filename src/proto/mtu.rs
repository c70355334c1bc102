//! How long a datagram a peer's path carries, found without a word from the routers on it (DPLPMTUD, RFC 8899).
//!
//! A *sounding* is a probe, padded to the length in question and sent with the don't-fragment bit; the peer answers with a short
//! one ([`super::probe`]). Each side sounds its own direction. A stock WireGuard peer answers none and is sent none.
//!
//! ```text
//! Off ─► Searching ─► Complete ─► asked while in use ─► answered: Complete, or Searching above it when the time has come
//!         ▲  │  ▲                                    └► not answered: Searching, down from it
//!         │  ▼  └ in use again, later
//!         Silent     nothing is answered, not even the shortest: what was believed stays
//! ```
//!
//! A search goes in rounds of soundings sent together. Each has one that is known to pass, the *control*: a round in which nothing is
//! answered says that the path is silent, and nothing about lengths.
//!
//! ```text
//! 1   control, longest                                   on most paths that is all
//! 2   control, longest again, every likely length         the bracket: the longest answered, the shortest that was not
//! 3 … control, the bracket's upper end again, four between    until the ends are one byte apart and the upper one failed three times
//! ```
//!
//! What is believed until a new path is measured: the last path's length, for the narrow link is mostly our own, and at the very
//! first what the config says. That is not RFC 8899's cautious base: a round trip later the longest has been answered on nearly every
//! path, while a connection opened in that round trip with short segments would keep them for good. A belief is given up when
//! soundings of several lengths beyond the longest that passed were lost, three in all: a host that is told of a shorter
//! length keeps to it for ten minutes. A longer one is believed as soon as it passes.
//!
//! Nothing is sent for a path that carries no payload of any length. Lengths are of whole IP packets, but for those that say `inner`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::path::Way;
use super::probe::Token;
use super::{Instant, session};

/// IPv4's and UDP's headers; IPv6's and UDP's.
const V4_HEADERS: u16 = 28;
const V6_HEADERS: u16 = 48;
/// What every host takes (RFC 791), and what every link carries (RFC 8200 section 5). Shorter is not looked for.
const V4_FLOOR: u16 = 576;
const V6_FLOOR: u16 = 1280;
/// Lengths that paths often have: SLIP's (RFC 1191 section 7.1); a hotel's (tailscale issue 7706); IPv6's least, and what tunnels keep
/// to for it; LTE behind GTP and IPsec; AWS's and others' VPN; WireGuard's; Google's cloud; GRE; IP in IP; PPPoE; Ethernet; jumbo frames.
const LIKELY: [u16; 13] = [1006, 1124, 1280, 1358, 1400, 1420, 1440, 1460, 1476, 1480, 1492, 1500, 9000];
/// Lengths asked between two ends that no likely one lies between: each round leaves a fifth, so a kilobyte takes five.
const SPLITS: u16 = 4;
/// So many lost soundings make a length too long (RFC 8899's MAX_PROBES): with 2 % loss each way it is wrong once in 15,000.
const TRIES: u8 = 3;
/// So many lost soundings beyond the longest that passed, of so many lengths, and it is believed to be the longest there is.
const EVIDENCE: u8 = 3;
const EVIDENCE_LENS: usize = 2;
/// After so many rounds without an answer the path is silent.
const SILENT_ROUNDS: u8 = 3;
/// A round lasts a round trip and a quarter of one, and no less than a slow answer of the peer's takes …
const SHORTEST_ROUND: Duration = Duration::from_millis(100);
/// … where the round trip is not known, this (RFC 8899 section 5.1.1 says a second at most for a path of which nothing is known), or
/// until the first answer tells it.
const UNTIMED_ROUND: Duration = Duration::from_millis(500);
/// A path in use is asked this often whether it still carries what it did: a connection that stands still for so long has not timed out
/// anywhere. Where it is seen to be amiss it is asked at once.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// Longer ones may come to be possible. It is tried after this long …
const FIRST_RAISE: Duration = Duration::from_secs(30);
/// … then ever more seldom, up to RFC 8899's PMTU_RAISE_TIMER.
const LAST_RAISE: Duration = Duration::from_secs(600);
/// Inner packets no longer than this pass on any path, so they say nothing about it and are no reason to ask.
const SHORT: usize = 256;
/// Soundings whose answers still count: two rounds, and a late one.
const MAX_ASKED: usize = 48;

/// A probe to send, so long that the whole IP packet has `len` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sounding {
    pub token: Token,
    pub len: u16,
}

/// What is known of the length that one peer's path carries.
#[derive(Debug)]
pub struct Mtu {
    /// The interface's own MTU: nothing longer is looked for.
    most_inner: u16,
    /// The longest inner packet that is believed to pass, once one was measured.
    inner: Option<u16>,
    way: Option<Way>,
    phase: Phase,
    /// What was asked and is not answered yet, and when.
    asked: VecDeque<(Sounding, Instant)>,
    /// Payload of some length was sent since the last answer.
    used: bool,
    raise_after: Duration,
    raise_at: Instant,
}

#[derive(Debug)]
enum Phase {
    Off,
    Searching(Search),
    Complete {
        len: u16,
        /// When to ask again, if it is used; and until when an answer is waited for.
        next: Instant,
        waiting: Option<Instant>,
    },
    Silent {
        until: Instant,
    },
}

#[derive(Debug)]
struct Search {
    /// The longest that is looked for.
    top: u16,
    passed: Option<u16>,
    /// How often each length beyond that was lost.
    lost: BTreeMap<u16, u8>,
    /// How often the top must be lost before others are asked.
    doubts: u8,
    /// What passed before the search, where it looks for more.
    from: Option<u16>,
    /// What was asked together, and whether it was answered.
    round: Vec<(u16, bool)>,
    ends: Instant,
    /// When the round began, where it is not known how long a round trip takes.
    untimed: Option<Instant>,
    silent: u8,
}

impl Mtu {
    /// `most_inner`: the interface's MTU.
    pub fn new(most_inner: u16) -> Self {
        Self {
            most_inner,
            inner: None,
            way: None,
            phase: Phase::Off,
            asked: VecDeque::new(),
            used: false,
            raise_after: FIRST_RAISE,
            raise_at: Instant::default(),
        }
    }

    /// The interface's MTU is another: all is measured anew.
    pub fn set_most(&mut self, most_inner: u16) {
        if most_inner != self.most_inner {
            *self = Self::new(most_inner);
        }
    }

    /// The longest inner packet that is to go by the path in use.
    pub fn inner_limit(&self) -> u16 {
        self.inner.map_or(self.most_inner, |inner| inner.min(self.most_inner))
    }

    /// Whether the path carries less than the interface says.
    pub fn is_narrow(&self) -> bool {
        self.inner_limit() < self.most_inner
    }

    /// The longest IP packet that the path in use was seen to carry.
    pub fn measured(&self) -> Option<u16> {
        match &self.phase {
            Phase::Complete { len, .. } => Some(*len),
            Phase::Searching(search) => search.passed,
            Phase::Off | Phase::Silent { .. } => None,
        }
    }

    pub fn is_on(&self, way: Way) -> bool {
        self.way == Some(way)
    }

    /// A member's path is in use.
    pub fn begin(&mut self, now: Instant, way: Way) {
        self.way = Some(way);
        self.asked.clear();
        self.raise_after = FIRST_RAISE;
        if self.longest() > self.floor() {
            self.phase = Phase::Searching(Search::new(now, self.longest(), None, 1));
        } else {
            // Any path carries that.
            (self.phase, self.inner) = (Phase::Off, None);
        }
    }

    /// There is no path, or the network below it is another.
    pub fn stop(&mut self) {
        self.way = None;
        self.phase = Phase::Off;
        self.asked.clear();
    }

    /// An inner packet of `len` bytes goes out.
    pub fn note_sent(&mut self, len: usize) {
        self.used |= len > SHORT;
    }

    /// What was sent may not have arrived.
    pub fn note_amiss(&mut self, now: Instant) {
        if let Phase::Complete { next, waiting: None, .. } = &mut self.phase {
            *next = (*next).min(now);
        }
    }

    /// An answer came by `way`; whether it was to a sounding.
    pub fn handle_answer(&mut self, now: Instant, way: Way, token: Token) -> bool {
        if !self.is_on(way) {
            return false;
        }
        let Some(place) = self.asked.iter().position(|(asked, _)| asked.token == token) else { return false };
        let Some((Sounding { len: answered, .. }, sent)) = self.asked.remove(place) else { return false };
        match &mut self.phase {
            Phase::Off => {}
            Phase::Searching(search) => search.on_answer(now, answered, sent),
            Phase::Complete { len, next, waiting } if answered >= *len => {
                (*len, *next, *waiting) = (answered, now + CONFIRM_EVERY, None);
                let len = *len;
                self.used = false;
                self.believe(len);
                if len < self.longest() && now >= self.raise_at {
                    self.phase = Phase::Searching(Search::new(now, self.longest(), Some(len), 1));
                }
            }
            // It was on its way since the search.
            Phase::Complete { .. } => {}
            Phase::Silent { .. } => self.phase = Phase::Searching(Search::new(now, self.longest(), None, 1)),
        }
        true
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Off => None,
            Phase::Searching(search) => Some(search.ends),
            Phase::Complete { next, waiting, .. } => waiting.or(self.used.then_some(*next)),
            Phase::Silent { until } => self.used.then_some(*until),
        }
    }

    /// What to send now. `rtt`: the path's.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        rtt: Option<Duration>,
        mut token: impl FnMut() -> Token,
    ) -> Vec<Sounding> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let round_ends = now + rtt.map_or(UNTIMED_ROUND, round_of);
        let lens = match &mut self.phase {
            Phase::Complete { len, waiting: waiting @ None, .. } => {
                *waiting = Some(round_ends);
                vec![*len]
            }
            Phase::Complete { len, .. } => {
                // It was lost, or the path became narrower: the others wait until it failed as often as a search asks for.
                let len = *len;
                self.on_round(now, round_ends, Search::new(now, len, None, TRIES))
            }
            Phase::Searching(_) => match std::mem::replace(&mut self.phase, Phase::Off) {
                Phase::Searching(search) => self.on_round(now, round_ends, search),
                Phase::Off | Phase::Complete { .. } | Phase::Silent { .. } => Vec::new(),
            },
            Phase::Silent { .. } => {
                let search = Search::new(now, self.longest(), None, 1);
                self.on_round(now, round_ends, search)
            }
            Phase::Off => Vec::new(),
        };
        if let Phase::Searching(search) = &mut self.phase {
            search.untimed = rtt.is_none().then_some(now);
        }
        let soundings: Vec<Sounding> = lens.into_iter().map(|len| Sounding { token: token(), len }).collect();
        self.asked.extend(soundings.iter().map(|sounding| (*sounding, now)));
        let surplus = self.asked.len().saturating_sub(MAX_ASKED);
        self.asked.drain(..surplus);
        soundings
    }

    /// A round of a search is over: the lengths of the next one, or none, where it is the last.
    fn on_round(&mut self, now: Instant, ends: Instant, mut search: Search) -> Vec<u16> {
        search.count();
        if let Some(passed) = search.passed
            && (search.is_evident() || passed >= self.believed())
        {
            self.believe(passed);
        }
        if search.silent >= SILENT_ROUNDS {
            self.used = false;
            self.phase = Phase::Silent { until: now + self.raise_after };
            self.raise_after = (self.raise_after * 2).min(LAST_RAISE);
            return Vec::new();
        }
        if let Some(len) = search.found() {
            self.believe(len);
            let in_vain = search.from == Some(len);
            self.raise_after = if in_vain { (self.raise_after * 2).min(LAST_RAISE) } else { FIRST_RAISE };
            self.raise_at = now + self.raise_after;
            self.used = false;
            self.phase = Phase::Complete { len, next: now + CONFIRM_EVERY, waiting: None };
            return Vec::new();
        }
        let lens = search.next_round(self.floor(), ends);
        self.phase = Phase::Searching(search);
        lens
    }

    fn believe(&mut self, len: u16) {
        self.inner = Some(len - self.overhead());
    }

    fn believed(&self) -> u16 {
        self.inner_limit().saturating_add(self.overhead())
    }

    fn is_v6(&self) -> bool {
        self.way.is_some_and(|way| way.remote.is_ipv6())
    }

    /// Headers and tag around an inner packet.
    fn overhead(&self) -> u16 {
        session::OVERHEAD as u16 + headers(self.is_v6())
    }

    fn floor(&self) -> u16 {
        if self.is_v6() { V6_FLOOR } else { V4_FLOOR }
    }

    fn longest(&self) -> u16 {
        self.most_inner.saturating_add(self.overhead())
    }
}

/// Bytes of an IP packet in front of a UDP datagram's payload.
pub fn headers(is_v6: bool) -> u16 {
    if is_v6 { V6_HEADERS } else { V4_HEADERS }
}

fn round_of(rtt: Duration) -> Duration {
    (rtt * 5 / 4).max(SHORTEST_ROUND)
}

impl Search {
    /// Due at once. `passed`: known to pass.
    fn new(now: Instant, top: u16, passed: Option<u16>, doubts: u8) -> Self {
        Self {
            top,
            passed,
            lost: BTreeMap::new(),
            doubts,
            from: passed,
            round: Vec::new(),
            ends: now,
            untimed: None,
            silent: 0,
        }
    }

    /// What was `sent` then is answered now. Answers that come late count like any other.
    fn on_answer(&mut self, now: Instant, len: u16, sent: Instant) {
        if self.untimed.take_if(|began| *began == sent).is_some() {
            self.ends = sent + round_of(now.since(sent));
        }
        let len = len.min(self.top);
        for (asked, answered) in &mut self.round {
            *answered |= *asked == len;
        }
        if self.passed.is_none_or(|passed| len > passed) {
            self.passed = Some(len);
            self.lost = self.lost.split_off(&(len + 1));
        }
        if self.passed == Some(self.top) || self.round.iter().all(|(_, answered)| *answered) {
            self.ends = now;
        }
    }

    /// Notes what the last round lost.
    fn count(&mut self) {
        if self.round.is_empty() {
            return;
        }
        if !self.round.iter().any(|(_, answered)| *answered) {
            self.silent += 1;
            return;
        }
        self.silent = 0;
        for (len, _) in self.round.iter().filter(|(len, _)| self.passed.is_none_or(|passed| *len > passed)) {
            let lost = self.lost.entry(*len).or_default();
            *lost = lost.saturating_add(1);
        }
    }

    /// Whether enough speaks against anything longer than what passed.
    fn is_evident(&self) -> bool {
        let lost = self.lost.values().fold(0, |sum: u8, lost| sum.saturating_add(*lost));
        lost >= EVIDENCE && self.lost.len() >= EVIDENCE_LENS
    }

    fn found(&self) -> Option<u16> {
        let passed = self.passed?;
        let next = self.lost.first_key_value();
        let is_end = passed == self.top || next.is_some_and(|(len, lost)| *len == passed + 1 && *lost >= TRIES);
        is_end.then_some(passed)
    }

    fn next_round(&mut self, floor: u16, ends: Instant) -> Vec<u16> {
        let control = self.passed.unwrap_or(floor);
        let mut lens = vec![control];
        match self.lost.first_key_value().map(|(len, lost)| (*len, *lost)) {
            None => {
                // Nothing longer is possible, mostly: one byte more tells.
                lens.extend(self.passed.map(|passed| passed + 1));
                lens.push(self.top);
            }
            Some((len, lost)) if len == self.top && lost < self.doubts => lens.push(len),
            Some((end, lost)) => {
                let likely = LIKELY.into_iter().filter(|len| (control + 1..end).contains(len));
                lens.extend(likely);
                if lens.len() == 1 {
                    let width = end - control;
                    let parts = SPLITS.min(width - 1) + 1;
                    let split = |part: u16| control + (u32::from(width) * u32::from(part) / u32::from(parts)) as u16;
                    lens.extend((1..parts).map(split));
                }
                lens.extend((lost < TRIES).then_some(end));
            }
        }
        lens.dedup();
        (self.round, self.ends) = (lens.iter().map(|len| (*len, false)).collect(), ends);
        lens
    }
}

#[cfg(test)]
mod tests;
