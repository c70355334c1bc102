//! Underlays that carry less than an Ethernet frame and say nothing of it, as behind a firewall that forbids ICMP.

use std::process::Stdio;
use std::time::Duration;

use super::lab::{Lab, needs_root, within};
use super::member::{Member, Servers, pair, ping_both_ways};
use super::traffic::downloads_of;

const LIMIT: Duration = Duration::from_secs(25);
const MEBIBYTE: usize = 1 << 20;
/// A download that goes on for five seconds and more: 512 pieces with a pause after each.
const LONG: usize = 32 << 20;
const PAUSE: Duration = Duration::from_millis(10);
/// A full packet of the members' interfaces.
const FULL: &str = "1392";

/// The internet's router drops what is longer, and nobody hears of it.
fn swallow_beyond(lab: &Lab, limit: u16) {
    for host in ["left", "right"] {
        // The rule is to see datagrams, not the super-packets that a kernel hands on over a veth pair.
        lab.expect(host, "ip link set dev eth0 gso_max_segs 1");
    }
    lab.nft(
        "inet",
        "inet narrow",
        "forward priority 0",
        &format!("meta l4proto udp meta length > {limit} counter drop"),
    );
}

/// 0 while hosts are still told of more than the path was seen to carry.
fn path_mtu(lab: &Lab, member: &Member, peer: &str) -> u64 {
    let peer = member.peer(lab, peer);
    let number = |name: &str| peer[name].as_u64().unwrap_or(0);
    // IPv4, UDP and the transport.
    if number("inner_mtu") + 60 <= number("path_mtu") { number("path_mtu") } else { 0 }
}

/// A mebibyte each way, by both families, over a path of `limit` bytes; and what a host hears that sends longer packets.
fn carries(limit: u16) {
    let lab = Lab::new("--left port-restricted --right port-restricted");
    swallow_beyond(&lab, limit);
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    let met = lab.pings_within("left", &right.address4, LIMIT);
    assert!(met.is_some(), "{:?}", left.status(&lab));
    // At once, before or after the path was measured.
    downloads_of(MEBIBYTE, Duration::ZERO, &lab, "right", &right.address4, "left");
    downloads_of(MEBIBYTE, Duration::ZERO, &lab, "left", &left.address4, "right");
    downloads_of(MEBIBYTE, Duration::ZERO, &lab, "right", &format!("[{}]", right.address6), "left");
    downloads_of(MEBIBYTE, Duration::ZERO, &lab, "left", &format!("[{}]", left.address6), "right");
    for (member, peer) in [(&left, "right"), (&right, "left")] {
        let measured = || path_mtu(&lab, member, peer) == u64::from(limit);
        assert!(within(Duration::from_secs(1), measured), "{}", member.peer(&lab, peer));
        assert_eq!(member.peer(&lab, peer)["inner_mtu"], limit - 60);
    }
    let text = String::from_utf8_lossy(&left.control(&lab, &["status"]).stdout).into_owned();
    assert!(text.contains(&format!("path mtu: {limit}, {} inside", limit - 60)), "{text}");

    // Fragments of what may be cut: a ping of IPv4 without the bit, and IPv6's least MTU.
    let cut = format!("ping -q -n -c 3 -i 0.1 -W 2 -M dont -s {FULL} {}", right.address4);
    let least = format!("ping -q -n -c 3 -i 0.1 -W 2 -s 1232 {}", right.address6);
    for line in [cut, least] {
        // Linux may have learned of a narrower path before, and then cuts by itself.
        lab.expect("left", "ip route flush cache; ip -6 route flush cache");
        let said = lab.expect("left", &line);
        assert!(said.contains(" 0% packet loss"), "{limit}: {said}");
    }
    lab.expect("left", "ip route flush cache; ip -6 route flush cache");
    let (_, said) = lab.shell("left", &format!("ping -n -c 1 -W 2 -M do -s {FULL} {}", right.address4));
    assert!(said.contains(&format!("Frag needed and DF set (mtu = {})", limit - 60)), "{said}");
    let (_, said) = lab.shell("left", &format!("ping -n -c 1 -W 2 -M do -s 1372 {}", right.address6));
    assert!(said.contains(&format!("Packet too big: mtu={}", (limit - 60).max(1280))), "{said}");
    assert!(left.drops(&lab, "too_big") >= 2);
}

#[test]
fn a_mebibyte_arrives_over_1420_bytes_that_say_nothing() {
    needs_root!();
    carries(1420);
}

#[test]
fn a_mebibyte_arrives_over_1280_bytes_that_say_nothing() {
    needs_root!();
    carries(1280);
}

#[test]
fn a_mebibyte_arrives_over_1124_bytes_that_say_nothing() {
    needs_root!();
    carries(1124);
}

#[test]
fn a_mebibyte_arrives_over_576_bytes_that_say_nothing() {
    needs_root!();
    carries(576);
}

/// A host in an office behind a member is no worse off.
#[test]
fn hosts_behind_the_members_hear_of_a_narrow_path_too() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right port-restricted --lan");
    swallow_beyond(&lab, 1280);
    let servers = Servers::start(&lab);
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    left.lans.push("192.168.21.0/24".to_owned());
    right.lans.push("192.168.22.0/24".to_owned());
    left.knows(&right);
    right.knows(&left);
    left.start(&lab);
    right.start(&lab);
    assert!(lab.pings_within("left-lan", "192.168.22.10", LIMIT).is_some(), "{:?}", left.status(&lab));
    assert!(within(LIMIT, || path_mtu(&lab, &left, "right") == 1280 && path_mtu(&lab, &right, "left") == 1280));
    let (_, said) = lab.shell("left-lan", &format!("ping -n -c 1 -W 2 -M do -s {FULL} 192.168.22.10"));
    assert!(said.contains("Frag needed and DF set (mtu = 1220)"), "{said}");
    // The clamped MSS alone must do, too: no error reaches who sends.
    lab.nft("right-lan", "inet deaf", "input priority 0", "icmp type destination-unreachable counter drop");
    downloads_of(MEBIBYTE, Duration::ZERO, &lab, "right-lan", "192.168.22.10", "left-lan");
    assert!(lab.expect("right-lan", "nft list table inet deaf").contains("packets 0 "), "and none had to be sent");
}

fn outlives(limit: u16) {
    let mut lab = Lab::new("--left port-restricted --right port-restricted");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    assert!(within(LIMIT, || path_mtu(&lab, &left, "right") == 1480), "{:?}", left.status(&lab));
    std::thread::scope(|scope| {
        let download = scope.spawn(|| downloads_of(LONG, PAUSE, &lab, "right", &right.address4, "left"));
        std::thread::sleep(Duration::from_millis(300));
        swallow_beyond(&lab, limit);
        assert!(!download.is_finished(), "it was to go on");
        download.join().expect("the download is complete");
    });
    assert_eq!(path_mtu(&lab, &right, "left"), u64::from(limit), "it was measured while the download went on");

    lab.expect("inet", "nft delete table inet narrow");
    let ping = format!("ping -q -n -c 600 -i 0.1 -W 2 -s 400 {}", left.address4);
    let mut pings = lab.command("right", "sh").args(["-c", &ping]).stdout(Stdio::null()).spawn().expect("ping starts");
    lab.idle(Duration::from_secs(35));
    let rose = within(LIMIT, || path_mtu(&lab, &right, "left") == 1480);
    pings.kill().expect("our own child");
    pings.wait().expect("our own child");
    assert!(rose, "{:?}", right.status(&lab));
    lab.expect("right", "ip route flush cache");
    let said = lab.expect("right", &format!("ping -q -n -c 3 -i 0.1 -W 2 -M do -s {FULL} {}", left.address4));
    assert!(said.contains(" 0% packet loss"), "{said}");
}

#[test]
fn a_download_outlives_a_path_that_narrows_to_1280_bytes_and_the_path_rises_again() {
    needs_root!();
    outlives(1280);
}

#[test]
fn a_download_outlives_a_path_that_narrows_to_576_bytes_and_the_path_rises_again() {
    needs_root!();
    outlives(576);
}
