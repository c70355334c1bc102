//! With a real device, in a network namespace of the test's own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::io::links::{Gateway, Layout, LinkError, Links, clean_up, gateway, own_addresses};
use crate::io::netmon::Monitor;
use crate::io::sys::tests::{enter_own_namespace, run};

/// A device like any (test kernels may lack dummy ones); up when it is set up.
fn add_device(name: &str) {
    run(&format!("ip link add {name} type veth peer name {name}-peer"));
    run(&format!("ip link set {name}-peer up"));
}

fn layout(addresses: &[&str], routes: &[&str]) -> Layout {
    let nets = |list: &[&str]| list.iter().map(|text| text.parse().expect("a network")).collect();
    Layout { mtu: 1420, addresses: nets(addresses), routes: nets(routes) }
}

fn usual() -> Layout {
    layout(
        &["10.77.0.1/24", "fd77::1/64"],
        &["10.77.0.2/32", "192.168.20.0/24", "fd77::2/128", "fd99::/64", "10.78.1.2/32"],
    )
}

/// IPv4 UDP from `from` to `to`, without a UDP checksum (optional in IPv4).
fn ipv4_udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    packet[2..4].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
    let sum: u32 = packet.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, 8 + payload.len() as u16, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

fn create(name: &str) -> Result<Tun, TunError> {
    Tun::create(name, 1420, Offloads::NONE)
}

/// All that waits in the device, once anything does.
fn receive(tun: &Tun) -> Vec<Vec<u8>> {
    let wait = Wait::new().expect("an eventfd");
    assert!(tun.wait(&wait, Some(Duration::from_secs(1))).expect("the device").readable, "a packet");
    let mut buffer = vec![0; READ_LEN];
    let mut packets = Vec::new();
    loop {
        match tun.read(&mut buffer) {
            Ok(len) => packets.push(buffer[..len].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return packets,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_burst_as_long_as_the_devices_queue_waits_until_it_is_read() {
    if !enter_own_namespace() {
        return;
    }
    let tun = create("p2ptest").expect("a device");
    let links = Links::open("p2ptest").await.expect("the device");
    links.apply(&usual()).await.expect("addresses and routes");
    let socket = UdpSocket::bind("10.77.0.1:7000").expect("the address is there");
    for i in 0..1100u16 {
        socket.send_to(&i.to_be_bytes(), "192.168.20.9:9").expect("the route is there");
    }
    // Later kernels stop the sender instead of dropping, and then there are more.
    assert!(receive(&tun).len() >= 1000);

    run("ip link set p2ptest txqueuelen 700");
    links.apply(&Layout { mtu: 1400, ..usual() }).await.expect("another MTU");
    assert!(run("ip -o link show p2ptest").contains("mtu 1400 "));
    assert!(run("ip -o link show p2ptest").contains(" qlen 700"), "what an administrator set stays");
}

#[tokio::test]
async fn packets_go_through_the_device_in_both_directions() {
    if !enter_own_namespace() {
        return;
    }
    let tun = create("p2ptest").expect("a device");
    let links = Links::open("p2ptest").await.expect("the device");
    links.apply(&usual()).await.expect("addresses and routes");
    let socket = UdpSocket::bind("10.77.0.1:7000").expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    for i in 0..20u8 {
        socket.send_to(&[i], "192.168.20.9:9").expect("the route is there");
    }
    let mut seen = 0u8;
    while seen < 20 {
        for bytes in receive(&tun) {
            assert_eq!(&bytes[12..20], [10, 77, 0, 1, 192, 168, 20, 9], "from our address, to the LAN behind the peer");
            assert_eq!(bytes[28..], [seen]);
            seen += 1;
        }
    }
    let peer = (Ipv4Addr::new(10, 77, 0, 2), 5);
    let inner = ipv4_udp(peer, (Ipv4Addr::new(10, 77, 0, 1), 7000), b"hello");
    tun.write_packet(&inner).expect("the device is there");
    assert!(matches!(tun.write_packet(b"\xff no packet"), Err(WriteError::Refused(_))));
    tun.write_packet(&inner).expect("the device is there");
    let mut buffer = [0; 16];
    for _ in 0..2 {
        let (len, from) = socket.recv_from(&mut buffer).expect("arrives");
        assert_eq!((&buffer[..len], from), (b"hello".as_slice(), SocketAddr::from(peer)));
    }
}

#[tokio::test]
async fn the_device_gets_what_the_layout_says_and_a_second_apply_changes_nothing() {
    if !enter_own_namespace() {
        return;
    }
    let _tun = create("p2ptest").expect("a device");
    let links = Links::open("p2ptest").await.expect("the device");
    assert!(links.apply(&usual()).await.expect("applies") > 0);
    let link = run("ip link show p2ptest");
    assert!(link.contains("mtu 1420") && link.contains("UP"), "{link}");
    let addresses = run("ip addr show p2ptest");
    assert!(addresses.contains("10.77.0.1/24") && addresses.contains("fd77::1/64"), "{addresses}");
    assert!(!addresses.contains("tentative") && !addresses.contains("fe80"), "{addresses}");
    let v4 = run("ip route show dev p2ptest");
    assert!(v4.contains("192.168.20.0/24") && v4.contains("10.78.1.2"), "{v4}");
    assert_eq!(v4.matches("10.77.0").count() - v4.matches("src 10.77.0.1").count(), 1, "the connected one only: {v4}");
    let v6 = run("ip -6 route show dev p2ptest");
    assert!(v6.contains("fd99::/64") && !v6.contains("fd77::2"), "{v6}");
    assert_eq!(links.apply(&usual()).await.expect("applies"), 0, "nothing to do");

    let other = layout(&["10.77.0.1/24", "10.79.0.1/24"], &["192.168.30.0/24"]);
    links.apply(&other).await.expect("applies");
    let v4 = run("ip route show dev p2ptest");
    assert!(v4.contains("192.168.30.0/24") && !v4.contains("192.168.20.0/24"), "{v4}");
    let addresses = run("ip addr show p2ptest");
    assert!(addresses.contains("10.79.0.1/24") && !addresses.contains("fd77::1"), "{addresses}");
    assert_eq!(links.apply(&other).await.expect("applies"), 0);
}

#[tokio::test]
async fn a_network_that_the_machine_is_in_wins_over_a_peer_that_claims_it() {
    if !enter_own_namespace() {
        return;
    }
    add_device("lan");
    run("ip addr add 192.168.20.5/24 dev lan");
    run("ip link set lan up");
    let _tun = create("p2ptest").expect("a device");
    let links = Links::open("p2ptest").await.expect("the device");
    run("ip route add 10.78.1.2/32 dev lan metric 4275 proto static");
    let refused = links.apply(&usual()).await.expect_err("somebody else has the very same route").to_string();
    assert!(refused.contains("10.78.1.2/32"), "{refused}");
    assert!(run("ip route get 192.168.20.9").contains("dev lan"));
    assert!(run("ip -6 route show dev p2ptest").contains("fd99::/64"), "the rest is done");
    run("ip route del 10.78.1.2/32 dev lan");
    assert_eq!(links.apply(&usual()).await.expect("applies"), 1);
}

#[tokio::test]
async fn a_default_route_through_the_tunnel_leaves_our_own_datagrams_outside_and_nothing_behind() {
    if !enter_own_namespace() {
        return;
    }
    add_device("wan");
    run("ip addr add 203.0.113.7/24 dev wan");
    run("ip -6 addr add 2001:db8:1::7/64 dev wan nodad");
    run("ip link set wan up");
    run("ip route add default via 203.0.113.1");
    run("ip -6 route add default via 2001:db8:1::1");
    let before = (run("ip rule"), run("ip -6 rule"));
    let full = layout(&["10.77.0.1/24", "fd77::1/64"], &["0.0.0.0/0", "::/0"]);
    {
        let _tun = create("p2ptest").expect("a device");
        let links = Links::open("p2ptest").await.expect("the device");
        links.apply(&full).await.expect("applies");
        assert_eq!(links.apply(&full).await.expect("applies"), 0);
        for (family, far, near) in [("-4", "198.51.100.1", "203.0.113.9"), ("-6", "2001:db8:9::1", "2001:db8:1::9")] {
            assert!(run(&format!("ip {family} route get {far}")).contains("dev p2ptest"), "{family}");
            assert!(run(&format!("ip {family} route get {far} mark 4275")).contains("dev wan"), "{family}");
            assert!(run(&format!("ip {family} route get {near}")).contains("dev wan"), "{family}");
        }
        // As after SIGKILL: the device goes, and nobody removes the rules.
    }
    assert_ne!(run("ip rule"), before.0);
    clean_up("another").await.expect("cleans up");
    assert_ne!(run("ip rule"), before.0, "another name's are left alone");
    clean_up("p2ptest").await.expect("cleans up");
    assert_eq!((run("ip rule"), run("ip -6 rule")), before);

    let _tun = super::offload_tests::create_again(Offloads::NONE);
    let links = Links::open("p2ptest").await.expect("the device");
    links.apply(&full).await.expect("applies");
    links.apply(&usual()).await.expect("applies");
    assert_eq!((run("ip rule"), run("ip -6 rule")), before, "a reload without it takes the rules away");
    links.apply(&full).await.expect("applies");
    links.remove().await.expect("removes");
    assert_eq!((run("ip rule"), run("ip -6 rule")), before);
}

#[tokio::test]
async fn what_somebody_else_deletes_is_noticed_and_put_back_within_a_second() {
    if !enter_own_namespace() {
        return;
    }
    let tun = create("p2ptest").expect("a device");
    let links = Links::open("p2ptest").await.expect("the device");
    let mut monitor = Monitor::open().expect("a monitor");
    links.apply(&usual()).await.expect("applies");
    while tokio::time::timeout(Duration::from_millis(500), monitor.changed()).await.is_ok() {}
    for harm in ["ip route flush dev p2ptest proto 177", "ip addr flush dev p2ptest", "ip link set p2ptest down"] {
        run(harm);
        let changed = tokio::time::timeout(Duration::from_secs(1), monitor.changed()).await.expect("is noticed");
        assert!(changed.routes, "{harm}: {changed:?}");
        assert!(links.apply(&usual()).await.expect("applies") > 0 || harm.contains("down"), "{harm}");
        assert!(run("ip route show dev p2ptest").contains("192.168.20.0/24"), "{harm}");
        assert!(run("ip addr show p2ptest").contains("fd77::1/64"), "{harm}");
        while tokio::time::timeout(Duration::from_millis(500), monitor.changed()).await.is_ok() {
            assert_eq!(links.apply(&usual()).await.expect("applies"), 0, "our own change does not go round for ever");
        }
    }
    run("ip link del p2ptest");
    let changed = tokio::time::timeout(Duration::from_secs(1), monitor.changed()).await.expect("is noticed");
    assert!(changed.links);
    assert!(matches!(links.apply(&usual()).await, Err(LinkError::Gone(_))));
    assert!(matches!(tun.write_packet(&[0x45; 20]), Err(WriteError::Gone(_))));
    drop(tun);
    super::offload_tests::create_again(Offloads::NONE);
}

#[tokio::test]
async fn each_way_of_having_no_device_is_one_sentence() {
    if !enter_own_namespace() {
        return;
    }
    let _first = create("p2ptest").expect("a device");
    assert!(matches!(create("p2ptest"), Err(TunError::Busy(_))));
    add_device("other");
    assert!(matches!(create("other"), Err(TunError::Taken(_))));
    for bad in ["", "a/b", "sixteen-letters-", "tun%d", "..", "a b"] {
        assert!(matches!(create(bad), Err(TunError::BadName(_))), "{bad}");
    }
    assert!(matches!(Links::open("nothing").await, Err(LinkError::Gone(_))));
    for error in [TunError::NoDevice, TunError::NoPermission, TunError::Busy("a".to_owned())] {
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 120, "{text}");
    }
}

#[tokio::test]
async fn own_addresses_are_the_usable_ones_of_other_devices_that_are_up() {
    if !enter_own_namespace() {
        return;
    }
    let _tun = create("p2ptest").expect("a device");
    Links::open("p2ptest").await.expect("the device").apply(&usual()).await.expect("applies");
    run("ip link set lo up");
    add_device("lan");
    add_device("off");
    run("ip addr add 192.168.1.5/24 dev lan");
    run("ip addr add 169.254.7.7/16 dev lan");
    run("ip addr add 192.168.9.5/24 dev off");
    run("ip addr add 2001:db8::5/64 dev lan nodad");
    run("ip addr add 2001:db8::6/64 dev lan nodad preferred_lft 0");
    run("ip link set lan up");
    let mut addresses: Vec<String> =
        own_addresses("p2ptest").await.expect("lists").iter().map(ToString::to_string).collect();
    addresses.sort();
    assert_eq!(addresses, ["192.168.1.5/24", "2001:db8::5/64"]);
}

#[tokio::test]
async fn the_gateway_is_the_best_default_routes_and_a_neighbour() {
    if !enter_own_namespace() {
        return;
    }
    assert_eq!(gateway().await.expect("asks"), None);
    add_device("lan");
    run("ip addr add 192.168.1.5/24 dev lan");
    run("ip link set lan up");
    assert_eq!(gateway().await.expect("asks"), None);
    run("ip route add default via 192.168.1.254 metric 200");
    run("ip route add default via 192.168.1.1 metric 100");
    run("ip route add 203.0.113.0/24 via 192.168.1.9");
    let Gateway { address, source, .. } = gateway().await.expect("asks").expect("is there");
    assert_eq!((IpAddr::V4(address), source), (IpAddr::from([192, 168, 1, 1]), Ipv4Addr::new(192, 168, 1, 5)));
    run("ip route del default metric 100");
    run("ip route add default via 10.9.9.9 dev lan onlink metric 5");
    assert_eq!(gateway().await.expect("asks"), None, "a router that is not beside us is not asked");
}

/// Runs itself again as nobody.
#[tokio::test]
async fn without_the_permission_the_user_is_told_what_to_do() {
    const AGAIN: &str = "P2PTUND_TEST_AS_NOBODY";
    if std::env::var_os(AGAIN).is_some() {
        let error = create("p2ptest").err().expect("nobody may not");
        assert!(matches!(error, TunError::NoPermission | TunError::NoDevice), "{error:?}");
        assert!(own_addresses("p2ptest").await.is_ok(), "netcheck needs no root");
        crate::io::udp::Sockets::bind(0).expect("sockets need no root");
        return;
    }
    let test = std::env::current_exe().expect("this test");
    let status = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&test)
        .args(["--exact", "io::tun::tests::without_the_permission_the_user_is_told_what_to_do"])
        .env(AGAIN, "1")
        .status();
    match status {
        Ok(status) if status.code() == Some(0) || status.code() == Some(101) => assert!(status.success()),
        other => eprintln!("SKIPPED: this test needs root and setpriv, and nobody must reach {test:?}: {other:?}"),
    }
}
