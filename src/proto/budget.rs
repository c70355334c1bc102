//! What a call may cost the networks that it goes through: the one place where that is counted and refused.
//!
//! Probes, sockets and NAT entries are counted over all tries of one call; no more than `[punch]` says are ever spent. The pace is a
//! bucket: a volley may leave in one go, as its size is bounded by the entries; what goes on for longer is sent as the
//! bucket fills.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::config;
use super::message_control;
use super::nat::Mapping;
use super::{Instant, SocketId};

/// How often a paced side sends: 100 parts a second, so at the usual 1,000 probes a second ten at a time.
pub const TICK: Duration = Duration::from_millis(10);
/// What a paced side sends in one go at most, however long it was kept from it.
const LONGEST_BACKLOG: Duration = Duration::from_millis(50);

/// What one call has spent, and may.
#[derive(Clone, Debug)]
pub struct Budget {
    limits: config::Punch,
    tries: u32,
    /// Probes and entries before the last one.
    before_try: (u32, u32),
    probes: u32,
    /// Those of holds.
    held: u32,
    sockets: u32,
    entries: u32,
    /// Probes that may leave now, and since when that is so.
    bucket: f64,
    filled: Option<Instant>,
}

impl Budget {
    pub fn new(limits: config::Punch) -> Self {
        Self {
            limits,
            tries: 0,
            before_try: (0, 0),
            probes: 0,
            held: 0,
            sockets: 0,
            entries: 0,
            bucket: 0.0,
            filled: None,
        }
    }

    pub fn limits(&self) -> &config::Punch {
        &self.limits
    }

    /// Another punch begins.
    pub fn note_try(&mut self) {
        self.tries += 1;
        self.before_try = (self.probes(), self.entries);
    }

    /// How many punches there were.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// All of them, with those that were meant to end on the way.
    pub fn probes(&self) -> u32 {
        self.probes + self.held
    }

    /// Whether a punch sent any.
    pub fn has_shot(&self) -> bool {
        self.probes > 0
    }

    pub fn sockets(&self) -> u32 {
        self.sockets
    }

    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// What is left, for the reports that both plan from.
    pub fn left(&self) -> message_control::Budget {
        message_control::Budget {
            probes: self.limits.probes.saturating_sub(self.probes()),
            entries: self.limits.entries.saturating_sub(self.entries),
            rate: self.limits.pace(),
        }
    }

    /// How many entries a sweep may still make: 256 in all behind a NAT with as much traffic as most have, three times that behind a busy
    /// one.
    pub fn sweep_left(&self, busy: bool) -> u32 {
        let most = if busy { SWEEPS_IF_BUSY } else { SWEEPS };
        most.min(self.limits.entries).saturating_sub(self.entries + ENTRIES_ASIDE)
    }

    /// Whether another try is worth it.
    pub fn is_left(&self) -> bool {
        let left = self.left();
        left.probes > FEWEST && left.entries > FEWEST && self.sockets < self.limits.sockets
    }

    /// Whether another try that costs as much as the last one is within it.
    pub fn affords_another(&self) -> bool {
        let left = self.left();
        let (probes, entries) = self.before_try;
        left.probes >= self.probes() - probes && left.entries >= self.entries - entries
    }

    /// How much of it is used up: 0, nothing, to 1.
    pub fn share(&self) -> f64 {
        let of = |spent: u32, limit: u32| f64::from(spent) / f64::from(limit.max(1));
        of(self.probes(), self.limits.probes).max(of(self.entries, self.limits.entries)).min(1.0)
    }

    /// How many sockets may still be opened.
    pub fn sockets_left(&self) -> u32 {
        self.limits.sockets.saturating_sub(self.sockets)
    }

    /// A socket is opened. `false`: not any more.
    pub fn take_socket(&mut self) -> bool {
        let ok = self.sockets < self.limits.sockets;
        self.sockets += u32::from(ok);
        ok
    }

    /// How many entries a survey, a watch or a hold may make: a call's first look may always be, for without it there is no call.
    pub fn survey_left(&self) -> u32 {
        match (self.entries, self.sockets_left()) {
            (0, _) => u32::MAX,
            (_, 0) => 0,
            (spent, _) => self.limits.entries.saturating_sub(spent),
        }
    }

    /// A survey for this call opened a socket, and made so many entries.
    pub fn note_survey(&mut self, entries: u32) {
        self.sockets = self.sockets.saturating_add(u32::from(entries > 0));
        self.entries = self.entries.saturating_add(entries);
    }

    /// A hold sent so many packets towards the peer, of those that are left.
    pub fn note_hold(&mut self, packets: u32) {
        self.held = self.held.saturating_add(packets);
    }

    /// A probe is sent, and maybe makes an entry. `false`: not any more.
    pub fn take_probe(&mut self, makes_entry: bool) -> bool {
        let ok = self.probes() < self.limits.probes && (!makes_entry || self.entries < self.limits.entries);
        if ok {
            self.probes += 1;
            self.entries += u32::from(makes_entry);
            self.bucket -= 1.0;
        }
        ok
    }

    fn rate(&self) -> f64 {
        f64::from(self.limits.pace())
    }

    /// How many probes a paced side may send now.
    pub fn paced(&mut self, now: Instant) -> u32 {
        let most = self.rate() * LONGEST_BACKLOG.as_secs_f64();
        let elapsed = self.filled.map_or(TICK, |filled| now.since(filled));
        self.filled = Some(now);
        self.bucket = (self.bucket.max(0.0) + self.rate() * elapsed.as_secs_f64()).min(most);
        self.bucket as u32
    }
}

/// What all sweeps of a call, and what is asked for them, may make.
const SWEEPS: u32 = 256;
const SWEEPS_IF_BUSY: u32 = 768;
/// Entries that were made before the call was, a start's, and those of a watch while the sweep is on its way.
const ENTRIES_ASIDE: u32 = 36;
/// A try with less than this is over before it began.
const FEWEST: u32 = 16;

/// Which probes make an entry at our NAT: one for each socket, for each address, or for each address and port.
#[derive(Clone, Debug)]
pub struct Entries {
    mapping: Mapping,
    sockets: BTreeSet<SocketId>,
    by_address: BTreeSet<(SocketId, IpAddr)>,
    by_port: BTreeSet<(SocketId, SocketAddr)>,
}

impl Entries {
    /// `kept`: sockets of an earlier try, by address, and where they have a mapping to.
    pub fn new(mapping: Mapping, kept: impl IntoIterator<Item = (SocketId, IpAddr)>) -> Self {
        let by_address = kept.into_iter().collect();
        Self { mapping, sockets: BTreeSet::new(), by_address, by_port: BTreeSet::new() }
    }

    /// An address that the socket has a mapping towards.
    pub fn mapped(&self, socket: SocketId) -> Option<IpAddr> {
        self.by_address.iter().find(|(mapped, _)| *mapped == socket).map(|(_, ip)| *ip)
    }

    pub fn is_new(&self, socket: SocketId, to: SocketAddr) -> bool {
        match self.mapping {
            Mapping::None => false,
            Mapping::EndpointIndependent | Mapping::Unknown => !self.sockets.contains(&socket),
            Mapping::AddressDependent => !self.by_address.contains(&(socket, to.ip())),
            Mapping::AddressAndPortDependent => !self.by_port.contains(&(socket, to)),
        }
    }

    /// Remembers it; only as much as the NAT does, so no more than the entries that the budget lets be made.
    pub fn note(&mut self, socket: SocketId, to: SocketAddr) -> super::nat::Made {
        let made = |news: bool| u64::from(news);
        let sockets = made(self.sockets.insert(socket));
        let by_address = made(self.by_address.insert((socket, to.ip())));
        // By address, a grid has more ports than anybody needs to remember.
        let by_port = match self.mapping {
            Mapping::AddressAndPortDependent => made(self.by_port.insert((socket, to))),
            Mapping::None | Mapping::EndpointIndependent | Mapping::AddressDependent | Mapping::Unknown => by_address,
        };
        super::nat::Made { sockets, by_address, by_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(1000 + ms)
    }

    proptest! {
        #[test]
        fn no_more_is_ever_spent_than_the_limits_say(
            probes in 1u32..200, entries in 1u32..200, tries in prop::collection::vec((any::<bool>(), 0u32..3), 0..500)
        ) {
            let mut budget = Budget::new(config::Punch { probes, entries, ..config::Punch::default() });
            let mut sent = 0;
            for (makes_entry, held) in tries {
                sent += u32::from(budget.take_probe(makes_entry));
                if held <= budget.left().probes {
                    budget.note_hold(held);
                    sent += held;
                }
            }
            prop_assert!(sent <= probes);
            prop_assert_eq!(budget.probes(), sent);
            prop_assert!(budget.entries() <= entries);
        }

        #[test]
        fn a_paced_side_keeps_to_its_rate(waits in prop::collection::vec(1u64..40, 1..200)) {
            let limits = config::Punch { probes: 1_000_000, rate: Some(1000), ..config::Punch::default() };
            let mut budget = Budget::new(limits);
            let (mut now, mut sent) = (0, 0);
            for wait in waits {
                for _ in 0..budget.paced(at(now)) {
                    sent += u64::from(budget.take_probe(false));
                }
                now += wait;
            }
            prop_assert!(sent <= now + 10, "{} in {} ms", sent, now);
        }
    }

    #[test]
    fn a_call_looks_once_whatever_its_limits_are_and_again_within_them() {
        let mut budget = Budget::new(config::Punch { entries: 10, sockets: 2, ..config::Punch::default() });
        assert_eq!(budget.survey_left(), u32::MAX);
        budget.note_survey(4);
        assert_eq!(budget.survey_left(), 6);
        budget.note_survey(4);
        assert_eq!(budget.survey_left(), 0, "there are two left, and no socket");
    }

    #[test]
    fn another_try_is_afforded_where_as_much_is_left_as_one_took() {
        for (probes, entries) in [(110, 100), (1000, 44)] {
            let mut budget = Budget::new(config::Punch { probes, entries, ..config::Punch::default() });
            // At the gate.
            budget.note_try();
            (0..10).for_each(|nth| assert!(budget.take_probe(nth < 5)));
            for affords_another in [true, true, false] {
                budget.note_try();
                (0..30).for_each(|nth| assert!(budget.take_probe(nth < 10)));
                assert_eq!(budget.affords_another(), affords_another, "of {probes} and {entries}");
            }
        }
    }

    #[test]
    fn by_address_a_socket_that_is_used_again_makes_no_entry() {
        let to = SocketAddr::from(([203, 0, 113, 5], 7));
        let mut before = Entries::new(Mapping::AddressDependent, []);
        before.note(SocketId(2), to);
        assert_eq!(before.mapped(SocketId(3)), None);
        let kept = before.mapped(SocketId(2)).map(|ip| (SocketId(2), ip));
        let is_new = |mapping, socket| Entries::new(mapping, kept).is_new(SocketId(socket), to);
        assert!(!is_new(Mapping::AddressDependent, 2) && is_new(Mapping::AddressDependent, 3));
        assert!(is_new(Mapping::AddressAndPortDependent, 2), "towards another port");
    }

    #[test]
    fn an_entry_is_what_makes_one_at_a_nat_of_that_kind() {
        let to = |port| SocketAddr::from(([203, 0, 113, 5], port));
        let count = |mapping| {
            let mut entries = Entries::new(mapping, []);
            let shots = [(2, 7), (2, 8), (3, 7), (2, 7)];
            let new = |(socket, port)| {
                let new = entries.is_new(SocketId(socket), to(port));
                entries.note(SocketId(socket), to(port));
                new
            };
            shots.into_iter().map(new).filter(|new| *new).count()
        };
        assert_eq!(count(Mapping::None), 0);
        assert_eq!(count(Mapping::EndpointIndependent), 2);
        assert_eq!(count(Mapping::AddressDependent), 2);
        assert_eq!(count(Mapping::AddressAndPortDependent), 3);
    }
}
