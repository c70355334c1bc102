//! What follows a connection, with the shipped binary: routers that forget everything, and a member that moves to another network.
//!
//! `cargo test --test netns after -- --nocapture` prints how long each took. The bounds here leave room for a loaded test machine;
//! `tests/sim` holds the exact ones, in virtual time.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::lab::{Lab, needs_root, text};
use super::member::{Member, Servers, pair, ping_both_ways};

const LIMIT: Duration = Duration::from_secs(25);
/// Three seconds for routers that reboot and two for a move are the aim; twice that for the test machine.
const REBOOT_COSTS: Duration = Duration::from_secs(6);
const MOVE_COSTS: Duration = Duration::from_secs(4);
const EVERY: Duration = Duration::from_millis(50);
/// Before and after the event.
const PINGS_FOR: Duration = Duration::from_secs(12);

/// Pings from a host, each 50 ms, until they end by themselves.
fn ping_on(lab: &Lab, from: &Member, to: &Member) -> Child {
    let line = format!("ping -n -i {} -w {} {}", EVERY.as_secs_f64(), PINGS_FOR.as_secs(), to.address4);
    let mut command = lab.command(&from.host, "sh");
    command.args(["-c", &line]).stdout(Stdio::piped()).spawn().expect("ping can be started")
}

/// The longest run of pings in a row that were lost, as time; the last ones must have come through.
fn outage(pings: Child) -> Duration {
    let output = text(&pings.wait_with_output().expect("our own child").stdout);
    let answered: Vec<u32> = output
        .lines()
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split_whitespace().next()?.parse().ok())
        .collect();
    let last = u32::try_from(PINGS_FOR.as_millis() / EVERY.as_millis()).expect("is small");
    assert!(answered.iter().any(|number| number + 60 > last), "the path did not come back: {output}");
    let gaps = answered.windows(2).map(|pair| pair[1].saturating_sub(pair[0] + 1));
    EVERY * gaps.max().unwrap_or(last)
}

/// A line past libtest's capture, for it is a measurement.
fn tell(what: &str, outages: &[Duration]) {
    let _ = writeln!(std::io::stderr(), "{what}: outages of {outages:?}");
}

/// Both ping each other while `event` happens; the longest outage of each.
fn while_pinging(lab: &Lab, left: &Member, right: &Member, event: impl FnOnce()) -> [Duration; 2] {
    let pings = [ping_on(lab, left, right), ping_on(lab, right, left)];
    std::thread::sleep(Duration::from_secs(3));
    event();
    pings.map(outage)
}

/// A cable from the café's router to the left host, not yet plugged in.
fn lay_cable(lab: &Lab) {
    let left = lab.namespace("left");
    lab.expect("cafe-router", &format!("ip link add lan-9 type veth peer name eth1 netns {left}"));
    lab.expect("cafe-router", "ip link set lan-9 master lan up");
}

/// The left host leaves its office for the café.
fn walk(lab: &Lab) {
    lab.expect(
        "left",
        "ip link set eth0 down; ip link set eth1 up; ip addr flush dev eth0; ip addr add 192.168.13.50/24 dev eth1
         ip route add default via 192.168.13.1",
    );
}

#[test]
fn routers_that_reboot_cost_a_few_seconds() {
    needs_root!();
    for (kinds, sites) in [
        (["symmetric-4b", "port-restricted"], &["left"][..]),
        (["moved", "symmetric-4b"], &["left"]),
        (["masquerade", "symmetric-4a"], &["left", "right"]),
        (["port-restricted", "masquerade"], &["right"]),
    ] {
        let mut lab = Lab::new(&format!("--left {} --right {} --delay 25", kinds[0], kinds[1]));
        let (_servers, mut left, mut right) = pair(&lab);
        left.start(&lab);
        right.start(&lab);
        ping_both_ways(&lab, &left, &right, LIMIT);
        // What the first call's many shots permitted at the routers is forgotten by then.
        lab.idle(Duration::from_secs(35));
        let reboot = || {
            for site in sites {
                lab.script("reboot", site);
            }
        };
        let outages = while_pinging(&lab, &left, &right, reboot);
        tell(&format!("{} × {}, reboot of {sites:?}", kinds[0], kinds[1]), &outages);
        assert!(outages.iter().all(|outage| *outage <= REBOOT_COSTS), "{kinds:?}, {sites:?}: {outages:?}");
    }
}

#[test]
fn a_member_that_moves_to_another_network_is_back_within_seconds() {
    needs_root!();
    for (home, cafe, right_kind) in [
        ("port-restricted", "moved", "port-restricted"),
        ("symmetric-4b", "port-restricted", "symmetric-4b"),
        ("port-restricted", "symmetric-4b", "masquerade"),
    ] {
        let lab = Lab::new(&format!("--left {home} --right {right_kind} --site cafe={cafe} --delay 25"));
        let (_servers, mut left, mut right) = pair(&lab);
        left.start(&lab);
        right.start(&lab);
        ping_both_ways(&lab, &left, &right, LIMIT);
        lay_cable(&lab);
        let outages = while_pinging(&lab, &left, &right, || walk(&lab));
        tell(&format!("from {home} to {cafe}, the other behind {right_kind}"), &outages);
        assert!(outages.iter().all(|outage| *outage <= MOVE_COSTS), "{home}, {cafe}, {right_kind}: {outages:?}");
        assert_eq!(left.peer(&lab, "right")["state"], "connected");
    }
}

#[test]
fn status_says_how_long_the_nat_remembers() {
    needs_root!();
    let mut lab = Lab::new("--left symmetric-4b --right port-restricted");
    // The right router forgets after 20 s of silence, whether the flow was answered or not.
    for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        lab.expect("right-router", &format!("echo 20 >/proc/sys/net/netfilter/{timeout}"));
    }
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    // Five seconds until it begins, and the longest silence that is tried.
    lab.idle(Duration::from_secs(50));
    for (member, lifetime, keepalive) in [(&left, 34.0, 25.0), (&right, 19.0, 14.25)] {
        let nat = member.expect_status(&lab)["nat"].clone();
        assert_eq!(
            (nat["mapping_lifetime_s"].as_f64(), nat["keepalive_s"].as_f64()),
            (Some(lifetime), Some(keepalive))
        );
    }
    lab.idle(Duration::from_secs(60));
    assert!(lab.pings("left", &right.address4), "the path was kept open");
}

#[test]
fn a_move_without_any_server_is_survived_where_the_peer_can_be_reached() {
    needs_root!();
    // The path itself goes on from the new address; no call is needed.
    let lab = Lab::new("--left port-restricted --right full-cone --site cafe=port-restricted --delay 25");
    let mut servers = Servers::start(&lab);
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    left.knows(&right);
    right.knows(&left);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    servers.kill();
    lay_cable(&lab);
    let outages = while_pinging(&lab, &left, &right, || walk(&lab));
    tell("a move without any server, to a peer behind a full cone", &outages);
    assert!(outages.iter().all(|outage| *outage <= MOVE_COSTS), "{outages:?}");
}
