//! `status --json` and `netcheck --json` by the names that the contract fixes.

use serde_json::Value;

const BEHAVIOURS: [&str; 5] =
    ["none", "endpoint-independent", "address-dependent", "address-and-port-dependent", "unknown"];
const ALLOCATIONS: [&str; 4] = ["preserving", "sequential", "random", "unknown"];
const PORT_MAPPINGS: [&str; 4] = ["upnp", "pcp", "nat-pmp", "none"];
const STATES: [&str; 5] = ["idle", "calling", "punching", "connected", "failed"];
const METHODS: [&str; 7] = ["endpoint", "lan", "ipv6", "port-mapping", "punch", "shotgun", "roamed"];
const CIPHERS: [&str; 2] = ["chacha20poly1305", "aes256gcm"];

/// The field must be there; where it is not null, `fits` must hold for it.
fn field(object: &Value, name: &str, fits: impl Fn(&Value) -> bool) {
    let value = object.get(name).unwrap_or_else(|| panic!("no field {name} in {object}"));
    assert!(value.is_null() || fits(value), "{name} does not fit: {value}");
}

fn word_of<'a>(words: &'a [&'a str]) -> impl Fn(&Value) -> bool + 'a {
    move |value| value.as_str().is_some_and(|word| words.contains(&word))
}

fn strings(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
}

pub fn check_status(status: &Value) {
    field(status, "interface", Value::is_string);
    field(status, "public_key", Value::is_string);
    field(status, "listen_port", Value::is_u64);
    field(status, "addresses", strings);
    field(status, "mtu", Value::is_u64);
    check_nat(&status["nat"]);
    for limit in ["sockets", "probes", "entries", "rate", "hard_calls", "hard_calls_now"] {
        assert!(status["punch"][limit].is_u64(), "punch {limit} in {status}");
    }
    for server in status["rendezvous"].as_array().expect("rendezvous is an array") {
        field(server, "address", Value::is_string);
        field(server, "connected", Value::is_boolean);
    }
    for peer in status["peers"].as_array().expect("peers is an array") {
        field(peer, "name", Value::is_string);
        field(peer, "public_key", Value::is_string);
        assert!(word_of(&STATES)(&peer["state"]), "{peer}");
        field(peer, "endpoint", |value| {
            value.as_str().is_some_and(|text| text.parse::<std::net::SocketAddr>().is_ok())
        });
        field(peer, "method", word_of(&METHODS));
        field(peer, "why", Value::is_string);
        field(peer, "cipher", word_of(&CIPHERS));
        field(peer, "rtt_ms", Value::is_number);
        for number in
            ["connect_ms", "probes_sent", "sockets_used", "entries_used", "tx_bytes", "rx_bytes", "last_handshake"]
        {
            field(peer, number, Value::is_u64);
        }
        field(peer, "allowed_ips", strings);
    }
}

pub fn check_nat(nat: &Value) {
    for name in ["mapping", "filtering"] {
        assert!(word_of(&BEHAVIOURS)(&nat[name]), "{name} in {nat}");
    }
    assert!(word_of(&ALLOCATIONS)(&nat["allocation"]), "allocation in {nat}");
    field(nat, "delta", Value::is_i64);
    field(nat, "cross_traffic_per_s", Value::is_number);
    field(nat, "public", strings);
    field(nat, "cross_traffic_error_per_s", Value::is_number);
    field(nat, "ports", |ports| ports.as_array().is_some_and(|pair| pair.len() == 2));
    for truth in ["parity_kept", "paired", "second_priority"] {
        field(nat, truth, Value::is_boolean);
    }
    field(nat, "port_offset", Value::is_i64);
    for property in ["mapping", "filtering", "allocation", "ports", "parity_kept", "port_offset", "paired"] {
        field(&nat["confidence"], property, |sure| {
            sure["chance"].as_f64().is_some_and(|chance| (0.0..=1.0).contains(&chance)) && sure["observations"].is_u64()
        });
    }
    assert!(word_of(&PORT_MAPPINGS)(&nat["port_mapping"]), "port_mapping in {nat}");
}
