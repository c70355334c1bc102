//! A firewall on a member's own machine: stateful, by address and port, so that only those come in to whom it sent.
//!
//! It translates nothing. A mapped port is of no use behind it until the member has sent to whoever is to come in by it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use p2ptund::proto::Instant;

/// Linux: `nf_conntrack_udp_timeout`, and `nf_conntrack_udp_timeout_stream` once something came back.
const UNREPLIED: Duration = Duration::from_secs(30);
const STREAM: Duration = Duration::from_secs(120);

/// Local port and remote to: until when, and whether the remote answered.
#[derive(Default)]
pub struct Firewall(BTreeMap<(u16, SocketAddr), (Instant, bool)>);

impl Firewall {
    pub fn note(&mut self, now: Instant, port: u16, to: SocketAddr) {
        let (until, replied) = self.0.entry((port, to)).or_insert((now, false));
        *replied &= *until > now;
        *until = now + if *replied { STREAM } else { UNREPLIED };
    }

    pub fn lets_in(&mut self, now: Instant, port: u16, from: SocketAddr) -> bool {
        let Some((until, replied)) = self.0.get_mut(&(port, from)).filter(|(until, _)| *until > now) else {
            return false;
        };
        (*until, *replied) = (now + STREAM, true);
        true
    }
}

#[test]
fn only_those_come_in_to_whom_it_sent_and_only_for_a_time() {
    let (mut firewall, start) = (Firewall::default(), Instant::from_nanos(1_000_000_000));
    let there = SocketAddr::from(([203, 0, 113, 2], 4275));
    let seconds = Duration::from_secs;
    assert!(!firewall.lets_in(start, 4275, there));
    firewall.note(start, 4275, there);
    assert!(!firewall.lets_in(start, 4276, there));
    assert!(!firewall.lets_in(start, 4275, SocketAddr::from(([203, 0, 113, 2], 4276))));
    assert!(!firewall.lets_in(start + seconds(30), 4275, there));
    assert!(firewall.lets_in(start + seconds(29), 4275, there));
    assert!(firewall.lets_in(start + seconds(29 + 119), 4275, there));
}
