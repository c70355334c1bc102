//! What the log and `systemctl status` say of what the core did: events as they come, dropped packets once a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::{debug, info};

use crate::daemon::notify;
use crate::proto::action::{Drop, Drops};
use crate::proto::{Event, Instant};

/// At most one line about dropped packets in this time, however many are dropped: a flood must not fill a disk.
const DROPS_EVERY: Duration = Duration::from_secs(60);

/// Remembers what was said already.
#[derive(Debug)]
pub struct Journal {
    /// Names of the peers to which payload can flow.
    connected: BTreeSet<String>,
    /// Why the last call to a peer failed, as it was told: a peer that is off for days is one line, not one a try.
    failed: BTreeMap<String, String>,
    /// How many peers there are.
    peers: usize,
    told: Drops,
    drops_next: Instant,
}

impl Journal {
    pub fn new(peers: usize, now: Instant) -> Self {
        Self {
            connected: BTreeSet::new(),
            failed: BTreeMap::new(),
            peers,
            told: Drops::default(),
            drops_next: now + DROPS_EVERY,
        }
    }

    /// Writes `event` to the log, and to systemd where it changes the status line.
    pub fn handle_event(&mut self, event: &Event) {
        match event {
            Event::Registered { server } => info!(%server, "registered with rendezvous server"),
            Event::Unregistered { server } => info!(%server, "rendezvous server does not answer"),
            Event::NatChanged { summary } => info!(%summary, "NAT"),
            Event::Step { peer, text } => debug!(%peer, %text, "step"),
            Event::Connected { peer, endpoint, method, after } => {
                // The peer's address is for those who debug (style: no addresses above DEBUG).
                info!(%peer, ?method, after_ms = millis(*after), "connected");
                debug!(%peer, %endpoint, "path");
                self.failed.remove(peer);
                self.connected.insert(peer.clone());
                self.tell_status();
            }
            Event::Lost { peer, why } => {
                info!(%peer, %why, "lost");
                self.connected.remove(peer);
                self.tell_status();
            }
            Event::CallFailed { peer, why } if self.is_news(peer, why) => info!(%peer, %why, "call failed"),
            Event::CallFailed { peer, why } => debug!(%peer, %why, "call failed again"),
            Event::Pong { token, rtt } => debug!(token, rtt_us = rtt.as_micros(), "pong"),
        }
    }

    /// The peers are these now.
    pub fn handle_peers<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let names: BTreeSet<&str> = names.collect();
        self.peers = names.len();
        self.connected.retain(|name| names.contains(name.as_str()));
        self.failed.retain(|name, _| names.contains(name.as_str()));
        self.tell_status();
    }

    /// Says what was dropped since it last did, if there is something and it is time to.
    pub fn handle_drops(&mut self, now: Instant, drops: Drops) {
        if let Some(line) = self.due_drops(now, drops) {
            info!(dropped = %line, "packets dropped");
        }
    }

    /// One line for `systemctl status`.
    pub fn status(&self) -> String {
        format!("{} of {} peers connected", self.connected.len(), self.peers)
    }

    fn is_news(&mut self, peer: &str, why: &str) -> bool {
        self.failed.insert(peer.to_owned(), why.to_owned()).as_deref() != Some(why)
    }

    fn tell_status(&self) {
        notify::status(&self.status());
    }

    fn due_drops(&mut self, now: Instant, drops: Drops) -> Option<String> {
        if now < self.drops_next || drops == self.told {
            return None;
        }
        let since = |reason: Drop| drops.of(reason).saturating_sub(self.told.of(reason));
        let parts: Vec<String> = Drop::ALL
            .iter()
            .filter(|(reason, _)| since(*reason) > 0)
            .map(|(reason, name)| format!("{name} {}", since(*reason)))
            .collect();
        self.told = drops;
        self.drops_next = now + DROPS_EVERY;
        Some(parts.join(", "))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::snapshot::Method;

    fn connected(peer: &str) -> Event {
        Event::Connected {
            peer: peer.into(),
            endpoint: "192.0.2.1:4275".parse().expect("an address"),
            method: Method::Punch,
            after: Duration::from_millis(340),
        }
    }

    #[test]
    fn the_status_line_counts_each_connected_peer_once_and_forgets_removed_ones() {
        let mut journal = Journal::new(3, Instant::default());
        for peer in ["berlin", "berlin", "paris"] {
            journal.handle_event(&connected(peer));
        }
        assert_eq!(journal.status(), "2 of 3 peers connected");
        journal.handle_event(&Event::Lost { peer: "paris".into(), why: "silent for 25 s".into() });
        assert_eq!(journal.status(), "1 of 3 peers connected");
        journal.handle_peers(["rome", "paris"].into_iter());
        assert_eq!(journal.status(), "0 of 2 peers connected");
    }

    #[test]
    fn a_call_that_fails_the_same_way_again_is_no_news_until_the_peer_was_there() {
        let mut journal = Journal::new(1, Instant::default());
        assert!(journal.is_news("berlin", "it is off"));
        assert!(!journal.is_news("berlin", "it is off"));
        assert!(journal.is_news("berlin", "it refuses"));
        journal.handle_event(&connected("berlin"));
        assert!(journal.is_news("berlin", "it refuses"));
        journal.handle_peers(["paris"].into_iter());
        assert!(journal.is_news("berlin", "it refuses"));
    }

    #[test]
    fn a_flood_of_bad_packets_is_one_line_a_minute() {
        let start = Instant::default();
        let mut journal = Journal::new(0, start);
        let mut drops = Drops::default();
        let mut lines = Vec::new();
        for second in 0..=120 {
            for _ in 0..100 {
                drops.count(Drop::Malformed);
            }
            lines.extend(journal.due_drops(start + Duration::from_secs(second), drops));
        }
        assert_eq!(lines, ["malformed 6100", "malformed 6000"]);
    }

    #[test]
    fn where_nothing_was_dropped_nothing_is_said() {
        let mut journal = Journal::new(0, Instant::default());
        assert_eq!(journal.due_drops(Instant::from_nanos(u64::MAX), Drops::default()), None);
    }
}
