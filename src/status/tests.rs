use std::collections::BTreeMap;

use super::*;
use crate::proto::snapshot::{Confidence, Observation, Rendezvous};

fn snapshot() -> Snapshot {
    Snapshot {
        interface: "p2p0".into(),
        public_key: "KEY=".into(),
        listen_port: 4275,
        addresses: vec!["10.77.0.1/24".into(), "fd77::1/64".into()],
        mtu: 1420,
        nat: Nat {
            mapping: Behaviour::AddressAndPortDependent,
            filtering: Behaviour::AddressDependent,
            allocation: Allocation::Sequential,
            delta: Some(2),
            cross_traffic_per_s: Some(12.0),
            cross_traffic_error_per_s: Some(3.0),
            ports: None,
            parity_kept: None,
            port_offset: None,
            paired: None,
            public: vec!["203.0.113.101:30001".parse().expect("an address")],
            mapping_lifetime_s: Some(19.0),
            keepalive_s: Some(14.25),
            port_mapping: PortMapping::None,
            second_priority: Some(true),
            low_ttl: None,
            confidence: Confidence::default(),
            observations: vec![Observation {
                server: "198.51.100.7:4270".parse().expect("an address"),
                local_port: 4275,
                public: None,
                rtt_ms: None,
                purpose: "mapping".into(),
            }],
        },
        punch: Punch {
            window: (-16, 32),
            sockets: 256,
            probes: 2048,
            entries: 1280,
            rate: 1000,
            timeout_s: 10.0,
            hard_calls: 1,
            hard_calls_now: 0,
        },
        rendezvous: vec![Rendezvous { address: "rv.example.net:4274".into(), connected: true, rtt_ms: Some(5.0) }],
        peers: vec![Peer {
            name: "berlin".into(),
            public_key: "PEER=".into(),
            state: State::Connected,
            endpoint: Some("203.0.113.102:30007".parse().expect("an address")),
            method: Some(Method::Shotgun),
            why: Some("the third round met".into()),
            cipher: Some(Cipher::Aes256Gcm),
            path_mtu: Some(1280),
            inner_mtu: 1220,
            rtt_ms: Some(12.34),
            connect_ms: Some(340),
            probes_sent: 63,
            sockets_used: 1,
            entries_used: 4,
            tx_bytes: 1023,
            rx_bytes: 3 << 20,
            last_handshake: Some(1_000),
            allowed_ips: vec!["10.77.0.2/32".into()],
        }],
        drops: BTreeMap::from([("no_route".into(), 3), ("malformed".into(), 0)]),
    }
}

fn at(unix: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix)
}

#[test]
fn a_peer_is_shown_with_its_path_and_how_it_was_found() {
    let text = text(&snapshot(), at(1_000 + 3_661), Style::PLAIN);
    for line in [
        "keepalives: after 14 s of silence: the nat remembers for 19 s at least",
        "peer: berlin (connected)\n",
        "  endpoint: 203.0.113.102:30007\n",
        "  found by: shotgun in 340 ms with 63 probes from 1 socket, 4 nat entries\n",
        "  why: the third round met\n",
        "  round trip: 12.3 ms\n",
        "  path mtu: 1280, 1220 inside\n",
        "  latest handshake: 1 hour, 1 minute, 1 second ago\n",
        "  transfer: 3.00 MiB received, 1023 B sent\n",
        "  nat ports: given out one after the other, the first mapping of a port keeps it, step 2, 12.0 taken by others each second\n",
        "  rendezvous: rv.example.net:4274, connected, 5.00 ms\n",
        "  packets dropped: 3 no route\n",
        "  punch: a call may use 2048 probes (1000 a second), 1280 nat entries, 256 sockets, 10 s; hard calls now: 0 of 1\n",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    assert!(!text.contains('\u{1b}') && !text.contains("malformed"));
}

#[test]
fn what_is_not_known_is_not_shown() {
    let mut snapshot = snapshot();
    let peer = &mut snapshot.peers[0];
    peer.state = State::Idle;
    (peer.endpoint, peer.method, peer.why, peer.cipher, peer.rtt_ms) = (None, None, None, None, None);
    peer.path_mtu = None;
    (peer.connect_ms, peer.last_handshake, peer.tx_bytes, peer.rx_bytes, peer.probes_sent) = (None, None, 0, 0, 0);
    let text = text(&snapshot, at(0), Style::PLAIN);
    assert!(text.ends_with("peer: berlin (idle)\n  public key: PEER=\n  allowed ips: 10.77.0.2/32\n"), "{text}");
}

#[test]
fn what_was_spent_in_vain_is_shown() {
    let mut snapshot = snapshot();
    (snapshot.peers[0].state, snapshot.peers[0].method) = (State::Failed, None);
    let text = text(&snapshot, at(0), Style::PLAIN);
    assert!(text.contains("\n  tried: 63 probes from 1 socket, 4 nat entries\n"), "{text}");
}

#[test]
fn nothing_in_a_snapshot_reaches_the_terminal_as_a_command() {
    let mut snapshot = snapshot();
    for text in [&mut snapshot.peers[0].name, &mut snapshot.interface] {
        *text = "\u{1b}]0;owned\u{7}\u{202e}x\n".into();
    }
    snapshot.peers[0].why = Some("\u{9b}31m".into());
    let text = text(&snapshot, at(0), Style::PLAIN);
    assert!(text.contains("\\u{1b}]0;owned\\u{7}\\u{202e}x\\n") && text.contains("\\u{9b}31m"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn colours_appear_only_when_asked_for() {
    let colour = Style { colour: true, terminal: true };
    assert!(text(&snapshot(), at(0), colour).contains("\u{1b}[1;32mconnected\u{1b}[0m"));
}

#[test]
fn json_is_one_line_for_machines_and_reads_back_as_it_was() {
    let line = json(&snapshot(), Style::PLAIN).expect("JSON");
    assert_eq!(line.matches('\n').count(), 1);
    assert_eq!(serde_json::from_str::<Snapshot>(&line).expect("reads back"), snapshot());
    assert!(json(&snapshot(), Style { colour: false, terminal: true }).expect("JSON").lines().count() > 10);
}

#[test]
fn a_handshake_after_now_does_not_overflow() {
    assert!(ago(at(5), u64::MAX).contains("clock"));
    assert_eq!(ago(at(5), 5), "now");
    assert_eq!(bytes(u64::MAX), "16384.00 PiB");
}
