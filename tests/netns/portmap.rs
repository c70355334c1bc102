//! Routers that map ports: what a member makes of each protocol, and what it leaves at the router.

use std::time::{Duration, Instant};

use super::contract::check_nat;
use super::lab::{Lab, needs_root, said, within};
use super::member::{BINARY, Member, Servers, pair};

/// miniupnpd gives nothing away on a documentation address; inside the lab any other is as good.
const PUBLIC: &str = "--public left=44.0.0.101";
const PROTOCOLS: [&str; 3] = ["upnp", "pcp", "nat-pmp"];
const NONE: [u16; 0] = [];

/// The external ports that the left router has mapped.
fn mapped(lab: &Lab) -> Vec<u16> {
    let rules = lab.expect("left-router", "nft list chain inet miniupnpd prerouting_miniupnpd");
    let port = |(_, rest): (&str, &str)| rest.split_whitespace().next().and_then(|word| word.parse().ok());
    rules.lines().filter_map(|line| line.split_once(" dport ").and_then(port)).collect()
}

#[test]
fn netcheck_shows_a_mapping_by_each_protocol_and_removes_it() {
    needs_root!();
    let lab = Lab::new(&format!("--left port-restricted --right none {PUBLIC}"));
    lab.script("upnp", "left");
    let servers = Servers::start(&lab);
    let mut member = Member::new(&servers, "left", 1);
    for protocol in PROTOCOLS {
        member.discovery_lines = format!("port_mapping = [\"{protocol}\"]");
        member.write_config();
        let mut command = lab.command("left", BINARY);
        let output = command.args(["netcheck", "--json"]).arg(member.config()).output().expect("can be started");
        let nat = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
        check_nat(&nat);
        assert_eq!(nat["port_mapping"], protocol, "{nat}");
        assert_eq!(nat["mapping"], "endpoint-independent", "the mapping hides nothing: {nat}");
        assert_eq!(mapped(&lab), NONE, "{protocol}");
    }
    let output = lab.command("left", BINARY).arg("netcheck").arg(member.config()).output().expect("can be started");
    let text = said(&output);
    assert!(text.contains("came to be the equal port, 44.0.0.101:"), "{text}");
    assert!(text.contains("it was removed again"), "{text}");
}

#[test]
fn a_member_maps_its_port_by_each_protocol_in_a_moment_and_a_killed_ones_mapping_goes_with_the_next() {
    needs_root!();
    let lab = Lab::new(&format!("--left symmetric-4b --right none {PUBLIC}"));
    lab.script("upnp", "left");
    let servers = Servers::start(&lab);
    let mut member = Member::new(&servers, "left", 1);
    for protocol in PROTOCOLS {
        member.discovery_lines = format!("port_mapping = [\"{protocol}\"]");
        member.write_config();
        let began = Instant::now();
        member.start(&lab);
        assert!(within(Duration::from_secs(5), || mapped(&lab) == [4275]), "{protocol}: {:?}", mapped(&lab));
        eprintln!("{protocol}: at the router {:?} after the start", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(1), "{protocol}: {:?}", began.elapsed());
        let shown =
            |member: &Member| member.status(&lab).is_some_and(|status| status["nat"]["port_mapping"] == protocol);
        assert!(within(Duration::from_secs(1), || shown(&member)), "{protocol}: {:?}", member.status(&lab));
        member.stop("KILL");
        assert_eq!(mapped(&lab), [4275], "{protocol}");
        member.start(&lab);
        assert!(within(Duration::from_secs(2), || shown(&member)), "{protocol}: {:?}", member.status(&lab));
        assert_eq!(mapped(&lab), [4275], "{protocol}: taken over");
        member.stop("TERM");
        assert_eq!(mapped(&lab), NONE, "{protocol}");
    }
}

/// The other side may send to the mapped port, so no port needs guessing, whatever its own NAT does.
#[test]
fn a_mapped_port_on_one_side_connects_it_with_anything() {
    needs_root!();
    for (kind, other) in [("symmetric-4b", "symmetric-4b"), ("random", "random"), ("symmetric-4a", "double")] {
        let lab = Lab::new(&format!("--left {kind} --right {other} {PUBLIC} --delay 25"));
        lab.script("upnp", "left");
        let (_servers, mut left, mut right) = pair(&lab);
        left.start(&lab);
        right.start(&lab);
        let time = lab.pings_within("left", &right.address4, Duration::from_secs(5));
        let peer = left.peer(&lab, "right");
        eprintln!(
            "{kind} with a mapped port, {other}: {time:?}, by {}, {} probes",
            peer["method"], peer["probes_sent"]
        );
        assert!(time.is_some_and(|time| time < Duration::from_secs(3)), "{kind}, {other}: {time:?}: {peer}");
        left.stop("TERM");
        assert_eq!(mapped(&lab), NONE);
    }
}

/// The firewall lets in only answers, so the member behind it must send to where the other's packets come from.
#[test]
fn a_host_firewall_behind_a_mapped_port_lets_a_symmetric_nat_in() {
    needs_root!();
    for (kind, other) in
        [("port-restricted", "symmetric-4b"), ("symmetric-4b", "symmetric-4b"), ("port-restricted", "random")]
    {
        let lab = Lab::new(&format!("--left {kind} --right {other} {PUBLIC} --delay 25"));
        lab.script("upnp", "left");
        let (_servers, mut left, mut right) = shut(&lab);
        left.start(&lab);
        right.start(&lab);
        let time = lab.pings_within("left", &right.address4, Duration::from_secs(3));
        let peers = (left.peer(&lab, "right"), right.peer(&lab, "left"));
        assert_ne!(left.expect_status(&lab)["nat"]["port_mapping"], "none");
        assert!(time.is_some(), "{kind}, {other}: {peers:?}");
    }
}

/// With so few guesses hardly one call in a hundred would come through; what is overheard needs none.
#[test]
fn a_random_port_that_the_host_firewall_drops_is_overheard_and_needs_no_guess() {
    needs_root!();
    for kind in ["port-restricted", "none"] {
        let lab = Lab::new(&format!("--left {kind} --right random {PUBLIC} --delay 25"));
        if kind != "none" {
            lab.script("upnp", "left");
        }
        let (_servers, mut left, mut right) = shut(&lab);
        for member in [&mut left, &mut right] {
            member.discovery_lines = "[punch]\nprobes = 64\nsockets = 16\nentries = 64".to_owned();
            member.write_config();
            member.start(&lab);
        }
        let time = lab.pings_within("left", &right.address4, Duration::from_secs(10));
        let peers = (left.peer(&lab, "right"), right.peer(&lab, "left"));
        assert!(time.is_some(), "{kind}: {peers:?}");
        // Packet sockets of IPv4, by their protocol: there while it called, and no longer.
        let gone = within(Duration::from_secs(5), || !lab.expect("left", "cat /proc/net/packet").contains(" 0800 "));
        assert!(gone, "a packet socket stays open");
    }
}

/// The usual pair, the left one behind a firewall of its own.
fn shut(lab: &Lab) -> (Servers, Member, Member) {
    lab.nft("left", "inet firewall", "input priority 0", "meta l4proto udp iifname eth0 ct state new drop");
    pair(lab)
}
