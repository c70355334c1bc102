//! Every pair of NATs that the patent names ([0025] to [0029]) and some that it does not: a path is found, and IP traffic of
//! both families goes both ways.

use std::time::Duration;

use serde_json::Value;

use super::contract::{check_nat, check_status};
use super::lab::{Lab, needs_root, said};
use super::member::{BINARY, Servers, pair, ping_both_ways, secret};

/// A call may fail at first (10 s, by default) and be tried again.
const LIMIT: Duration = Duration::from_secs(25);

fn connects(left_kind: &str, right_kind: &str) {
    let lab = Lab::new(&format!("--left {left_kind} --right {right_kind}"));
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);

    for (member, other) in [(&left, &right), (&right, &left)] {
        let status = member.expect_status(&lab);
        check_status(&status);
        assert_eq!(status["public_key"], member.keys.public.as_str());
        assert_eq!(status["interface"], member.interface.as_str());
        assert_eq!(status["rendezvous"][0]["connected"], true);
        let peer = member.peer(&lab, &other.host);
        assert_eq!(peer["state"], "connected", "{peer}");
        assert_eq!(peer["public_key"], other.keys.public.as_str());
        for known in ["endpoint", "method", "cipher", "connect_ms", "last_handshake"] {
            assert!(!peer[known].is_null(), "{known} of a connected peer: {peer}");
        }
        let cipher = if p2ptund::io::cpu::has_aes() { "aes256gcm" } else { "chacha20poly1305" };
        assert_eq!(peer["cipher"], cipher);
        assert!(peer["rx_bytes"].as_u64() > Some(0) && peer["tx_bytes"].as_u64() > Some(0), "{peer}");
    }
}

macro_rules! pairs {
    ($($name:ident: $left:literal, $right:literal;)*) => {
        $(
            #[test]
            fn $name() {
                needs_root!();
                connects($left, $right);
            }
        )*
    };
}

// The eight kinds of the main job, each with each.
pairs! {
    none_meets_none: "none", "none";
    none_meets_full_cone: "none", "full-cone";
    none_meets_port_restricted: "none", "port-restricted";
    none_meets_masquerade: "none", "masquerade";
    none_meets_symmetric_4a: "none", "symmetric-4a";
    none_meets_symmetric_4b: "none", "symmetric-4b";
    none_meets_symmetric_4b_by_4: "none", "symmetric-4b:4";
    none_meets_double: "none", "double";
    full_cone_meets_full_cone: "full-cone", "full-cone";
    full_cone_meets_port_restricted: "full-cone", "port-restricted";
    full_cone_meets_masquerade: "full-cone", "masquerade";
    full_cone_meets_symmetric_4a: "full-cone", "symmetric-4a";
    full_cone_meets_symmetric_4b: "full-cone", "symmetric-4b";
    full_cone_meets_symmetric_4b_by_4: "full-cone", "symmetric-4b:4";
    full_cone_meets_double: "full-cone", "double";
    port_restricted_meets_port_restricted: "port-restricted", "port-restricted";
    port_restricted_meets_masquerade: "port-restricted", "masquerade";
    port_restricted_meets_symmetric_4a: "port-restricted", "symmetric-4a";
    port_restricted_meets_symmetric_4b: "port-restricted", "symmetric-4b";
    port_restricted_meets_symmetric_4b_by_4: "port-restricted", "symmetric-4b:4";
    port_restricted_meets_double: "port-restricted", "double";
    masquerade_meets_masquerade: "masquerade", "masquerade";
    masquerade_meets_symmetric_4a: "masquerade", "symmetric-4a";
    masquerade_meets_symmetric_4b: "masquerade", "symmetric-4b";
    masquerade_meets_symmetric_4b_by_4: "masquerade", "symmetric-4b:4";
    masquerade_meets_double: "masquerade", "double";
    symmetric_4a_meets_symmetric_4a: "symmetric-4a", "symmetric-4a";
    symmetric_4a_meets_symmetric_4b: "symmetric-4a", "symmetric-4b";
    symmetric_4a_meets_symmetric_4b_by_4: "symmetric-4a", "symmetric-4b:4";
    symmetric_4a_meets_double: "symmetric-4a", "double";
    symmetric_4b_meets_symmetric_4b: "symmetric-4b", "symmetric-4b";
    symmetric_4b_meets_symmetric_4b_by_4: "symmetric-4b", "symmetric-4b:4";
    symmetric_4b_meets_double: "symmetric-4b", "double";
    symmetric_4b_by_4_meets_symmetric_4b_by_4: "symmetric-4b:4", "symmetric-4b:4";
    symmetric_4b_by_4_meets_double: "symmetric-4b:4", "double";
    double_meets_double: "double", "double";
}

// Other NATs that offices have.
pairs! {
    cones_in_a_row_meet_each_other: "port-restricted+masquerade", "masquerade+port-restricted";
    moved_ports_meet_symmetric_4b: "moved", "symmetric-4b";
    symmetric_by_address_meets_port_restricted: "symmetric-adm", "port-restricted";
    random_meets_full_cone: "random", "full-cone";
    random_meets_port_restricted: "random", "port-restricted";
    open_symmetric_4b_meets_the_same: "symmetric-4b-open", "symmetric-4b-open";
    symmetric_4a_behind_symmetric_4b_meets_symmetric_4a: "symmetric-4a+symmetric-4b", "symmetric-4a";
}

/// `netcheck --json` behind a NAT, by a user without rights.
fn netcheck(kind: &str) -> Value {
    let lab = Lab::new(&format!("--left {kind} --right none"));
    let servers = Servers::start(&lab);
    let member = super::member::Member::new(&servers, "left", 1);
    member.write_config();
    let nobody = 65534;
    for path in [member.dir.path(), &member.config(), &member.dir.path().join("private.key")] {
        std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).expect("root can give files away");
    }
    secret(&member.dir.path().join("private.key"), &member.keys.private);
    let mut command = lab.command("left", "setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", BINARY, "netcheck", "--json"]);
    let output = command.arg(member.config()).output().expect("setpriv can be started");
    assert!(output.status.success(), "netcheck behind {kind}: {}", said(&output));
    let nat = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    check_nat(&nat);
    nat
}

#[test]
fn netcheck_names_cones() {
    needs_root!();
    for (kind, mapping, filtering) in [
        ("none", "none", vec!["none", "endpoint-independent"]),
        ("full-cone", "endpoint-independent", vec!["endpoint-independent"]),
        ("port-restricted", "endpoint-independent", vec!["address-and-port-dependent"]),
        ("masquerade", "endpoint-independent", vec!["address-and-port-dependent"]),
    ] {
        let nat = netcheck(kind);
        assert_eq!(nat["mapping"], mapping, "{kind}: {nat}");
        assert!(filtering.contains(&nat["filtering"].as_str().unwrap()), "{kind}: {nat}");
        if kind != "none" {
            assert_eq!(nat["allocation"], "preserving", "{kind}: {nat}");
        }
        let public = nat["public"].as_array().unwrap();
        assert!(public.iter().any(|address| address.as_str().unwrap().starts_with("203.0.113.101:")), "{kind}: {nat}");
    }
}

#[test]
fn netcheck_names_symmetric_nats_and_their_steps() {
    needs_root!();
    for (kind, delta) in [("symmetric-4a", 1), ("symmetric-4b", 1), ("symmetric-4b:4", 4), ("double", 1)] {
        let nat = netcheck(kind);
        assert_eq!(nat["mapping"], "address-and-port-dependent", "{kind}: {nat}");
        assert_eq!(nat["allocation"], "sequential", "{kind}: {nat}");
        assert_eq!(nat["delta"], delta, "{kind}: {nat}");
    }
    let nat = netcheck("symmetric-adm");
    assert_eq!(nat["mapping"], "address-dependent", "{nat}");
    let nat = netcheck("block");
    assert_eq!(nat["allocation"], "random", "{nat}");
    // Twenty ports that are drawn tell the block's length, and where it is to a sixteenth: where none is among the last 32, one
    // that begins at a multiple of 512 is as likely, and is what carriers give out.
    let ends = [0, 1].map(|end| nat["ports"][end].as_u64().unwrap_or(0));
    assert!(ends == [20_000, 20_511] || ends == [19_968, 20_479], "{nat}");
    for property in ["mapping", "filtering", "allocation", "ports"] {
        assert!(nat["confidence"][property]["chance"].as_f64().unwrap() >= 0.99, "{property}: {nat}");
    }
    let nat = netcheck("random");
    assert_eq!(
        (&nat["mapping"], &nat["allocation"]),
        (&"address-and-port-dependent".into(), &"random".into()),
        "{nat}"
    );
}
