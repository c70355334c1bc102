//! What the core hands out to the threads that carry packets, and what it hears of them.
//!
//! ```text
//! out   TUN ─► route by destination ─► OutwardLane: sealed, to its way
//! in    UDP ─► receiver's index ─► InwardLane: opened; its own way? source routed to the peer? ─► TUN
//! else  no lane, or not of the lane's way: whole, to the core, as if there were no threads
//! news  Traffic: counts and times, to the core, some times a second
//! ```
//!
//! A lane is a value: all that one packet after the other needs. The core hands it out when a session is confirmed and a path is in
//! use, and takes it back when either ends; everything that is a decision (a handshake, a call, a new address of the peer's, a
//! timer) stays the core's. An order is to be carried out
//!
//! - for the way in, before the datagrams are sent that came out of the core with it: the peer answers those;
//! - for the way out, after them: what had waited goes first.
//!
//! So no packet overtakes another of its flow, provided that a thread waits, before it takes a new lane into use, until the core is
//! done with what that thread gave it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::action::{Drop, Drops};
use super::context::PeerId;
use super::node::Routes;
use super::path::Way;
use super::session::{Opener, Sealer};
use super::time::Instant;

/// To a peer, by the session and the path in use.
#[derive(Clone)]
pub struct OutwardLane {
    pub way: Way,
    pub sealer: Sealer,
    /// From then on the session seals nothing.
    pub until: Instant,
    /// The longest inner packet that the path carries, which padding does not exceed either; a longer one is the core's to judge.
    pub limit: u16,
    pub traffic: Arc<Traffic>,
}

/// From a peer, by one of its sessions.
#[derive(Clone)]
pub struct InwardLane {
    pub peer: PeerId,
    /// What comes by another one is the core's to judge.
    pub way: Way,
    pub opener: Opener,
    /// From then on the session opens nothing.
    pub until: Instant,
    /// As the outward lane's, for the MSS of connections from there.
    pub limit: u16,
    pub traffic: Arc<Traffic>,
}

/// A change of what the threads have.
pub enum Order {
    /// Whose a destination, or a source, is.
    Routes(Arc<Routes>),
    /// `None`: packets for this peer go to the core.
    Outward { peer: PeerId, lane: Option<OutwardLane> },
    /// `None`: datagrams with this index go to the core.
    Inward { index: u32, lane: Option<InwardLane> },
}

/// What was carried one way since it was last asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// When the last packet was.
    pub last: Instant,
    /// Whole datagrams.
    pub bytes: u64,
    /// Packets that were no keepalives.
    pub data: u64,
    /// The longest of the datagrams, without what the transport adds.
    pub longest: usize,
}

#[derive(Default)]
struct Tally {
    longest: AtomicUsize,
    last: AtomicU64,
    bytes: AtomicU64,
    data: AtomicU64,
}

impl Tally {
    fn add(&self, at: Instant, bytes: usize, data: usize, longest: usize) {
        // One thread only adds, so no maximum of the time need be kept; the core takes a count after its time.
        self.longest.fetch_max(longest, Ordering::Relaxed);
        self.last.store(at.as_nanos(), Ordering::Relaxed);
        self.data.fetch_add(data as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Release);
    }

    fn take(&self) -> Option<Carried> {
        let bytes = self.bytes.swap(0, Ordering::Acquire);
        let data = self.data.swap(0, Ordering::Relaxed);
        let last = Instant::from_nanos(self.last.load(Ordering::Relaxed));
        let longest = self.longest.swap(0, Ordering::Relaxed);
        (bytes > 0).then_some(Carried { last, bytes, data, longest })
    }
}

/// What the threads carried to and from one peer.
#[derive(Default)]
pub struct Traffic {
    sent: Tally,
    received: Tally,
    news: AtomicBool,
}

impl Traffic {
    /// `bytes`: whole datagrams; `data`: how many were no keepalives; `longest`: the longest inner packet, padded. `true`: the
    /// core has not been told since it last asked.
    #[must_use]
    pub fn note_sent(&self, at: Instant, bytes: usize, data: usize, longest: usize) -> bool {
        self.sent.add(at, bytes, data, longest);
        self.is_news()
    }

    /// The same for what came in and was authentic.
    #[must_use]
    pub fn note_received(&self, at: Instant, bytes: usize, data: usize) -> bool {
        self.received.add(at, bytes, data, 0);
        self.is_news()
    }

    fn is_news(&self) -> bool {
        // Looked at before it is written: a flow has no news between two looks of the core.
        !self.news.load(Ordering::Relaxed) && !self.news.swap(true, Ordering::AcqRel)
    }

    /// What was sent and what was received since this was last asked.
    pub fn take(&self) -> [Option<Carried>; 2] {
        if !self.news.swap(false, Ordering::AcqRel) {
            return [None, None];
        }
        [self.sent.take(), self.received.take()]
    }
}

/// Packets that the threads dropped, by reason.
#[derive(Default)]
pub struct DropCounts([AtomicU64; Drop::ALL.len()]);

impl DropCounts {
    pub fn count(&self, reason: Drop) {
        self.add(reason, 1);
    }

    pub fn add(&self, reason: Drop, count: usize) {
        self.0[reason as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Adds them to the core's own.
    pub fn add_to(&self, drops: &mut Drops) {
        for ((reason, _), count) in Drop::ALL.iter().zip(&self.0) {
            drops.add(*reason, count.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_told_once_until_the_core_asks() {
        let traffic = Traffic::default();
        assert_eq!(traffic.take(), [None, None]);
        assert!(traffic.note_sent(Instant::from_nanos(5), 100, 1, 68));
        assert!(!traffic.note_sent(Instant::from_nanos(7), 50, 0, 18));
        assert!(!traffic.note_received(Instant::from_nanos(6), 32, 0));
        let sent = Carried { last: Instant::from_nanos(7), bytes: 150, data: 1, longest: 68 };
        let received = Carried { last: Instant::from_nanos(6), bytes: 32, data: 0, longest: 0 };
        assert_eq!(traffic.take(), [Some(sent), Some(received)]);
        assert_eq!(traffic.take(), [None, None]);
        assert!(traffic.note_received(Instant::from_nanos(9), 32, 0), "news again");
    }

    #[test]
    fn drops_beside_the_core_are_added_to_its_own() {
        let (counts, mut drops) = (DropCounts::default(), Drops::default());
        drops.count(Drop::NoRoute);
        counts.count(Drop::NoRoute);
        counts.count(Drop::Replayed);
        counts.add_to(&mut drops);
        assert_eq!((drops.of(Drop::NoRoute), drops.of(Drop::Replayed), drops.total()), (2, 1, 3));
    }
}
