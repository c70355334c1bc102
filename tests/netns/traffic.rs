//! What goes through a tunnel, what does not, and what is said when there is nothing to say.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::lab::{Lab, needs_root, text};
use super::member::{Member, pair, ping_both_ways};

const LIMIT: Duration = Duration::from_secs(25);
/// Enough to fill every queue on the way, and done in a second or two by a build without optimisations.
const DOWNLOAD: usize = 8 << 20;

/// Bytes that tell a missing, repeated or exchanged packet.
fn content(length: usize) -> Vec<u8> {
    (0..length as u32 / 4).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect()
}

fn downloads(lab: &Lab, server: &str, address: &str, client: &str) {
    downloads_of(DOWNLOAD, Duration::ZERO, lab, server, address, client);
}

/// Serves [`content`] to one HTTP client at `server`, with a pause after each 64 KiB, and fetches it at `client`.
pub fn downloads_of(length: usize, pause: Duration, lab: &Lab, server: &str, address: &str, client: &str) {
    let at = format!("{address}:8080");
    let (bound, ready) = std::sync::mpsc::channel();
    let listen_at = at.clone();
    let serve = lab.inside(server, move || {
        let listener = TcpListener::bind(listen_at).expect("the address is there");
        bound.send(()).expect("the test waits");
        let (mut stream, _) = listener.accept().expect("a client comes");
        let mut request = [0; 1024];
        let asked = stream.read(&mut request).expect("a request comes");
        assert!(request[..asked].starts_with(b"GET / "));
        stream.write_all(format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).unwrap();
        for piece in content(length).chunks(64 << 10) {
            stream.write_all(piece).expect("the client takes it all");
            std::thread::sleep(pause);
        }
    });
    ready.recv().expect("the server starts");
    let fetch = lab.inside(client, move || {
        let mut stream = TcpStream::connect(at).expect("the server can be reached");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).expect("the whole response comes");
        let head = response.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        assert!(response[head..] == content(length), "{} bytes came, or not the right ones", response.len() - head);
    });
    fetch.join().expect("the download is complete");
    serve.join().expect("the server gave it all");
}

#[test]
fn downloads_go_both_ways_and_to_the_lans_behind() {
    needs_root!();
    let lab = Lab::new("--left symmetric-4b --right port-restricted --lan");
    let servers = super::member::Servers::start(&lab);
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    left.lans.push("192.168.21.0/24".to_owned());
    right.lans.push("192.168.22.0/24".to_owned());
    left.knows(&right);
    right.knows(&left);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    downloads(&lab, "right", &right.address4, "left");
    downloads(&lab, "left", &left.address4, "right");
    downloads(&lab, "right", &format!("[{}]", right.address6), "left");
    assert!(lab.pings("left-lan", "192.168.22.10"), "from office to office");
    assert!(lab.pings("right-lan", "192.168.21.10"), "and back");
    downloads(&lab, "right-lan", "192.168.22.10", "left-lan");
}

#[test]
fn an_inner_packet_from_an_address_that_the_peer_has_not_is_dropped_and_counted() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right none");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    // On the loopback: the daemon takes addresses that are not its own off its interface.
    lab.expect("right", "ip addr add 10.99.9.9/32 dev lo; ip addr add fd99::9/128 dev lo nodad");
    lab.nft("left", "inet seen", "input priority 0", "ip saddr 10.99.9.9 counter\nip6 saddr fd99::9 counter");
    let before = left.drops(&lab, "foreign_source");
    for (source, to) in [("10.99.9.9", &left.address4), ("fd99::9", &left.address6)] {
        let (answered, _) = lab.shell("right", &format!("ping -q -c 3 -i 0.1 -W 0.5 -I {source} {to}"));
        assert!(!answered, "an answer to {source}");
    }
    assert_eq!(lab.expect("left", "nft list table inet seen").matches("packets 0 ").count(), 2, "it came through");
    assert!(left.drops(&lab, "foreign_source") >= before + 6, "{:?}", left.status(&lab));
    ping_both_ways(&lab, &left, &right, LIMIT);
}

/// Packets that a host sent through its own interface, by an nft counter; UDP, as tunnels and servers speak it.
fn count_sent(lab: &Lab, host: &str) -> u64 {
    let table = lab.expect(host, "nft list table inet count");
    let number = table.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    number.expect("a counter").parse().expect("a number")
}

#[test]
fn nothing_but_keepalives_is_sent_when_nothing_is_said() {
    needs_root!();
    const QUIET: u64 = 60;
    let mut lab = Lab::new("--left port-restricted --right symmetric-4b");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    // A last packet's keepalive comes 10 s after it (WireGuard's KEEPALIVE_TIMEOUT); a search for a UPnP router ends, too; and how
    // long the NAT remembers is measured once, by some twenty packets in the first 45 s.
    lab.idle(Duration::from_secs(50));
    for host in ["left", "right"] {
        // A router that maps ports is looked for ever more seldom; that stays within the LAN.
        let out = "oifname eth0 ip daddr != { 192.168.0.0/16, 224.0.0.0/4 } meta l4proto udp counter";
        lab.nft(host, "inet count", "output priority 0", out);
    }
    lab.idle(Duration::from_secs(QUIET));
    // One peer, three servers, and one for a period that has begun at each of the two borders.
    let limit = QUIET / 15 + 3 * (QUIET / 20) + 2;
    for host in ["left", "right"] {
        let sent = count_sent(&lab, host);
        assert!(sent <= limit, "{host} sent {sent} packets in {QUIET} s, more than {limit}");
    }
    ping_both_ways(&lab, &left, &right, Duration::from_secs(2));
}

/// Datagrams of every kind, most of them nearly right.
fn hostile(number: u32) -> Vec<u8> {
    // Any mixture does; the same one in each run, so that a failure can be seen again.
    let mut state = number.wrapping_mul(0x9e37_79b1) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    // WireGuard's lengths for messages 1 to 4, the shortest and longest of all, and any other.
    let lengths = [0, 1, 3, 4, 16, 31, 32, 48, 64, 92, 148, 149, 512, 1280, 1472];
    let length =
        if number.is_multiple_of(3) { next() as usize % 1473 } else { lengths[next() as usize % lengths.len()] };
    let mut datagram: Vec<u8> = (0..length).map(|_| next() as u8).collect();
    if !number.is_multiple_of(5) {
        let kind = (number % 17) as u8;
        for (slot, byte) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
            *slot = byte;
        }
    } else if number.is_multiple_of(10) {
        // A STUN binding request, with its magic cookie, and attributes that do not fit it.
        for (slot, byte) in datagram.iter_mut().zip([0, 1, 0, 200, 0x21, 0x12, 0xa4, 0x42]) {
            *slot = byte;
        }
    }
    datagram
}

#[test]
fn a_flood_of_hostile_datagrams_at_every_port_does_no_harm() {
    needs_root!();
    let lab = Lab::new("--left none --right full-cone --site evil=none");
    let (mut servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    let memory_before = resident(left.daemon.as_ref().unwrap().id());

    let ping = format!("ping -q -n -c 30 -i 0.1 -W 2 {}", right.address4);
    let pings = lab.command("left", "sh").args(["-c", &ping]).stdout(Stdio::piped()).spawn().unwrap();
    let flood = lab.inside("evil", || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        let mut targets: Vec<String> = vec!["203.0.113.101:4275".into(), "203.0.113.102:4275".into()];
        targets.extend((4270..4274).flat_map(|port| [format!("198.51.100.7:{port}"), format!("203.0.113.10:{port}")]));
        targets.push("192.0.2.10:4274".into());
        let targets: Vec<std::net::SocketAddr> = targets.iter().map(|target| target.parse().unwrap()).collect();
        let start = Instant::now();
        let mut number = 0;
        while start.elapsed() < Duration::from_secs(3) {
            for target in &targets {
                // The socket hands on that a port is closed; that is no reason to stop.
                let _ = socket.send_to(&hostile(number), target);
                number += 1;
            }
            // About 20,000 a second in all, 2,000 at each port.
            std::thread::sleep(Duration::from_micros(500));
        }
        number
    });
    let sent = flood.join().expect("the flood runs to its end");
    let pings = text(&pings.wait_with_output().unwrap().stdout);
    let lost: f64 = pings.split("received, ").nth(1).and_then(|rest| rest.split('%').next()).unwrap().parse().unwrap();
    assert!(lost <= 4.0, "under {sent} hostile datagrams: {pings}");

    assert!(
        servers.all_run() && left.daemon.as_mut().unwrap().is_running() && right.daemon.as_mut().unwrap().is_running()
    );
    let status = left.expect_status(&lab);
    let dropped: u64 =
        status["drops"].as_object().map_or(0, |drops| drops.values().filter_map(|count| count.as_u64()).sum());
    assert!(dropped > 100, "counted are {dropped} of {sent}: {status}");
    let memory = resident(left.daemon.as_ref().unwrap().id());
    assert!(memory < memory_before + 8192, "memory grew from {memory_before} kB to {memory} kB");
    // The servers still serve: a member that starts now is found.
    right.stop("TERM");
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, Duration::from_secs(45));
}

#[test]
fn packets_that_come_twice_are_taken_once() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right port-restricted");
    for (from, to, address) in [("left", "right", "203.0.113.102"), ("right", "left", "203.0.113.101")] {
        let twice = format!("iifname s-{from} ip daddr {address} dup to {address} device s-{to}");
        lab.nft("inet", &format!("ip twice-{from}"), "prerouting priority -300", &twice);
    }
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    let pings = lab.expect("left", &format!("ping -n -c 10 -i 0.1 -W 2 {}", right.address4));
    assert!(pings.contains(" 0% packet loss") && !pings.contains("DUP!"), "{pings}");
    assert!(right.drops(&lab, "replayed") >= 10, "{:?}", right.status(&lab));
}

/// A process's resident memory, in kB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn two_members_behind_one_nat_meet_on_their_lan() {
    needs_root!();
    let lab = Lab::new("--left symmetric-4b --hosts left=2");
    let servers = super::member::Servers::start(&lab);
    let mut one = Member::new(&servers, "left", 1);
    let mut two = Member::new(&servers, "left2", 2);
    one.knows(&two);
    two.knows(&one);
    one.start(&lab);
    two.start(&lab);
    ping_both_ways(&lab, &one, &two, LIMIT);
    assert_eq!(one.peer(&lab, "left2")["method"], "lan");
}

#[test]
fn offices_with_the_same_private_addresses_meet() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right symmetric-4b --same-lan");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
}

#[test]
fn a_slow_and_lossy_internet_only_takes_longer() {
    needs_root!();
    let lab = Lab::new("--left symmetric-4b --right symmetric-4b --delay 50 --loss 3 --hops 4");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    let time = lab.pings_within("left", &right.address4, Duration::from_secs(40));
    assert!(time.is_some(), "{:?}", left.status(&lab));
}

#[test]
fn ping_tells_the_time_of_the_path() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right port-restricted --delay left=20");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    let output = left.control(&lab, &["ping", "right", "-c", "3"]);
    assert!(output.status.success(), "{}", super::lab::said(&output));
    let rtt = left.peer(&lab, "right")["rtt_ms"].as_f64().expect("known by now");
    assert!((40.0..90.0).contains(&rtt), "{rtt} ms");
}
