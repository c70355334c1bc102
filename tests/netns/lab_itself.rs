//! The lab is what its words say: otherwise the other tests show nothing.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::lab::{Lab, needs_root};

const SERVERS: [&str; 4] = ["198.51.100.7:4270", "198.51.100.7:4271", "203.0.113.9:4270", "203.0.113.9:4271"];

/// Starts servers that answer with the port that a datagram came from.
fn answer(lab: &Lab) {
    for (host, address) in
        [("discovery1", SERVERS[0]), ("discovery1", SERVERS[1]), ("discovery2", SERVERS[2]), ("discovery2", SERVERS[3])]
    {
        let (bound, ready) = std::sync::mpsc::channel();
        lab.inside(host, move || {
            let socket = UdpSocket::bind(address).expect("the server's address is free");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
            bound.send(()).expect("the test waits");
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&from.port().to_be_bytes(), from);
            }
        });
        ready.recv().expect("the server starts");
    }
}

/// The public ports of `local_port` at each of the servers, in order.
fn ports(lab: &Lab, local_port: u16) -> Vec<u16> {
    lab.inside("left", move || {
        let socket = UdpSocket::bind(("0.0.0.0", local_port)).expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout can be set");
        SERVERS.map(|server| {
            socket.send_to(b"?", server).expect("the server can be reached");
            let mut answer = [0; 2];
            socket.recv(&mut answer).expect("the server answers");
            u16::from_be_bytes(answer)
        })
    })
    .join()
    .expect("no fault while asking")
    .to_vec()
}

fn ports_behind(kind: &str) -> Vec<u16> {
    let lab = Lab::new(&format!("--left {kind} --right none"));
    answer(&lab);
    ports(&lab, 5000)
}

#[test]
fn each_nat_gives_ports_as_its_name_says() {
    needs_root!();
    for kind in ["none", "full-cone", "port-restricted", "masquerade", "full-cone+port-restricted"] {
        assert_eq!(ports_behind(kind), [5000; 4], "{kind}");
    }
    let moved = ports_behind("moved");
    assert!(moved[0] != 5000 && moved.iter().all(|port| *port == moved[0]), "moved: {moved:?}");
    assert_eq!(ports_behind("symmetric-4a"), [5000, 30000, 30001, 30002]);
    assert_eq!(ports_behind("symmetric-4a:4"), [5000, 30000, 30004, 30008]);
    assert_eq!(ports_behind("symmetric-4b"), [30000, 30001, 30002, 30003]);
    assert_eq!(ports_behind("symmetric-4b-open:4"), [30000, 30004, 30008, 30012]);
    assert_eq!(ports_behind("double:4"), [30000, 30004, 30008, 30012]);
    let adm = ports_behind("symmetric-adm");
    assert!(adm[0] == adm[1] && adm[2] == adm[3] && adm[0] != adm[2], "symmetric-adm: {adm:?}");
    let random = ports_behind("random");
    assert!(random.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1), "random: {random:?}");
}

/// What left's port becomes towards a peer that sent first, and whether the peer's packet came in.
fn after_an_early_packet(kind: &str) -> (u16, bool) {
    let lab = Lab::new(&format!("--left {kind} --right none"));
    let (bound, left_is_there) = std::sync::mpsc::channel();
    let left = lab.inside("left", move || {
        let socket = UdpSocket::bind("0.0.0.0:5000").expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_millis(1500))).expect("a timeout can be set");
        bound.send(()).expect("the peer waits");
        let mut buffer = [0; 64];
        let came = socket.recv_from(&mut buffer).is_ok();
        socket.send_to(b"now", SocketAddr::from(([203, 0, 113, 102], 6000))).expect("it can be sent");
        came
    });
    let peer = lab.inside("right", move || {
        let socket = UdpSocket::bind("0.0.0.0:6000").expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout can be set");
        left_is_there.recv().expect("left starts");
        socket.send_to(b"early", "203.0.113.101:5000").expect("it can be sent");
        // A plain router says that the port is unreachable, and the socket hands that on as an error: not what is waited for.
        let mut buffer = [0; 64];
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                return from.port();
            }
        }
        panic!("left's packet does not get out");
    });
    (peer.join().expect("no fault at the peer"), left.join().expect("no fault at left"))
}

#[test]
fn an_early_packet_poisons_a_plain_masquerade_and_only_that() {
    needs_root!();
    assert_eq!(after_an_early_packet("port-restricted"), (5000, false));
    assert_eq!(after_an_early_packet("full-cone"), (5000, true));
    let (port, came) = after_an_early_packet("masquerade");
    assert!(port != 5000 && !came, "masquerade kept the port {port}");
}

#[test]
fn ipv6_goes_out_and_nothing_comes_in_unasked() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right none --site far=double --ipv6");
    assert!(lab.pings("left", "2001:db8:102::2"));
    assert!(lab.pings("far", "2001:db8:102::2"));
    assert!(!lab.shell("right", "ping -q -c 1 -W 0.5 2001:db8:101:1::2").0);
    assert!(!lab.shell("right", "ping -q -c 1 -W 0.5 2001:db8:103:1::2").0);
}

#[test]
fn a_slow_wire_delays_both_ways_and_shortens_lives() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right none --delay left=30 --hops 3");
    let start = Instant::now();
    let answer = lab.expect("left", "ping -n -c 1 -W 2 198.51.100.7");
    assert!(start.elapsed() >= Duration::from_millis(60), "{answer}");
    let time: f64 = answer.split("time=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert!((60.0..90.0).contains(&time), "{answer}");
    // Of 64: three hops in the wire, the internet before and after it, and the site's own router.
    assert!(answer.contains("ttl=58"), "{answer}");
    assert!(!lab.shell("left", "ping -n -c 1 -W 0.3 -t 5 198.51.100.7").0);
    assert!(lab.shell("left", "ping -n -c 1 -W 0.3 -t 7 198.51.100.7").0);
}

#[test]
fn a_lab_that_fails_half_way_leaves_nothing_behind() {
    needs_root!();
    let lab = Lab::new("--left none");
    let output = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lab"))
        .args(["up", &format!("{}b", lab.name), "--left", "none", "--public", "left=not-an-address"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let namespaces = std::process::Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!super::lab::text(&namespaces.stdout).contains(&format!("lab-{}b", lab.name)));
    assert!(super::lab::text(&namespaces.stdout).contains(&format!("lab-{}-left", lab.name)));
}
