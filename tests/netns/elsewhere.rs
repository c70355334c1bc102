//! Help from outside: routers that map ports, other people's STUN servers, and IPv6.

use std::path::Path;
use std::time::Duration;

use super::lab::{Lab, needs_root, within};
use super::member::{Daemon, Member, Servers, pair, ping_both_ways};

const LIMIT: Duration = Duration::from_secs(25);

#[test]
fn a_port_mapped_by_upnp_is_used_and_removed_at_the_end() {
    needs_root!();
    // miniupnpd gives nothing away on a documentation address; inside the lab any other is as good.
    let lab = Lab::new("--left symmetric-4b --right random --public left=44.0.0.101");
    lab.script("upnp", "left");
    let (_servers, mut left, mut right) = pair(&lab);
    left.discovery_lines = "port_mapping = [\"upnp\"]".to_owned();
    left.write_config();
    left.start(&lab);
    right.start(&lab);
    let mapped = within(Duration::from_secs(15), || {
        left.status(&lab).is_some_and(|status| status["nat"]["port_mapping"] != "none")
    });
    assert!(mapped, "{:?}", left.status(&lab));
    let nat = left.expect_status(&lab)["nat"].clone();
    assert_eq!(nat["port_mapping"], "upnp", "{nat}");
    let rules = lab.expect("left-router", "nft list table inet miniupnpd");
    assert!(rules.contains("dport 4275"), "the external port is equal to the internal one: {rules}");
    ping_both_ways(&lab, &left, &right, LIMIT);
    assert_eq!(right.peer(&lab, "left")["endpoint"], "44.0.0.101:4275");
    left.stop("TERM");
    let rules = lab.expect("left-router", "nft list table inet miniupnpd");
    assert!(!rules.contains("4275"), "the mapping is still there: {rules}");
}

#[test]
fn plain_stun_servers_do_for_discovery() {
    needs_root!();
    for (left_kind, right_kind) in [("symmetric-4a", "port-restricted"), ("symmetric-4b", "symmetric-4b")] {
        let lab = Lab::new(&format!("--left {left_kind} --right {right_kind}"));
        let servers = Servers::start(&lab);
        let dir = tempfile::TempDir::new().unwrap();
        let _stun: Vec<Daemon> = [("discovery1", "198.51.100.7"), ("discovery2", "203.0.113.9")]
            .map(|(host, address)| {
                let mut command = lab.command(host, "turnserver");
                command.args([
                    "--stun-only",
                    "--no-cli",
                    "--no-tls",
                    "--no-dtls",
                    "--no-tcp",
                    "--log-file",
                    "stdout",
                    "-n",
                ]);
                command.args(["--listening-ip", address, "--listening-port", "3478", "--relay-ip", address]);
                command.arg("--pidfile").arg(dir.path().join(format!("{host}.pid")));
                command.arg("--userdb").arg(dir.path().join(format!("{host}.db")));
                Daemon::start(command, dir.path().join(format!("{host}.log")))
            })
            .into();
        for host in ["discovery1", "discovery2"] {
            assert!(within(Duration::from_secs(5), || lab.expect(host, "ss -Hlun").contains(":3478")), "coturn starts");
        }
        let mut left = Member::new(&servers, "left", 1);
        let mut right = Member::new(&servers, "right", 2);
        for member in [&mut left, &mut right] {
            member.discovery = r#"["stun:198.51.100.7:3478", "stun:203.0.113.9:3478"]"#.to_owned();
        }
        left.knows(&right);
        right.knows(&left);
        left.start(&lab);
        right.start(&lab);
        ping_both_ways(&lab, &left, &right, LIMIT);
    }
}

#[test]
fn ipv6_is_used_where_ipv4_can_not_work() {
    needs_root!();
    let lab = Lab::new("--left random --right random --ipv6");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    let peer = left.peer(&lab, "right");
    assert_eq!(peer["method"], "ipv6", "{peer}");
    assert!(peer["endpoint"].as_str().unwrap().starts_with("[2001:db8:"), "{peer}");
}

#[test]
fn a_member_serves_discovery_and_rendezvous_itself() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right symmetric-4b --site hub=none");
    let servers = Servers::start(&lab);
    let mut hub = Member::new(&servers, "hub", 3);
    // A server has a key pair of its own, in a member, too; the usual servers' will do, which knows nobody here.
    super::member::secret(&hub.dir.path().join("server.key"), &servers.keys.private);
    let serve =
        "[serve.discovery]\nlisten = [\"203.0.113.103\"]\n[serve.rendezvous]\nlisten = [\"203.0.113.103:4274\"]\n";
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    hub.knows(&left);
    hub.knows(&right);
    let config = std::fs::read_to_string(hub.config()).unwrap();
    let from_hub = |text: String| text.replace(super::member::RENDEZVOUS, "203.0.113.103:4274");
    super::member::secret(&hub.config(), &(from_hub(config) + serve + "private_key_file = \"server.key\"\n"));
    for member in [&mut left, &mut right] {
        member.discovery = r#"["203.0.113.103", "203.0.113.9"]"#.to_owned();
    }
    left.knows(&right);
    right.knows(&left);
    for member in [&left, &right] {
        let config = std::fs::read_to_string(member.config()).unwrap();
        super::member::secret(&member.config(), &from_hub(config));
    }
    for member in [&mut hub, &mut left, &mut right] {
        member.start(&lab);
    }
    ping_both_ways(&lab, &left, &right, LIMIT);
    assert!(Path::new("/run/p2ptund").join(format!("{}.sock", hub.interface)).exists());
}
