//! The lab is what its words say: otherwise the other tests show nothing.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

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
    assert_eq!(ports_behind("symmetric-4b:-1"), [60000, 59999, 59998, 59997]);
    assert_eq!(ports_behind("symmetric-4a:256"), [5000, 30000, 30256, 30512]);
    let adm = ports_behind("random-adm");
    assert!(adm[0] == adm[1] && adm[2] == adm[3] && adm[0].abs_diff(adm[2]) > 1, "random-adm: {adm:?}");
    let block = ports_behind("block");
    assert!(block.iter().all(|port| (20000..20512).contains(port)), "block: {block:?}");
    for random in [ports_behind("random"), block] {
        assert!(random.windows(2).any(|pair| pair[0].abs_diff(pair[1]) > 1), "random: {random:?}");
    }
}

#[test]
fn an_own_nat_gives_ports_as_its_words_say() {
    needs_root!();
    assert_eq!(ports_behind("own"), [5000; 4]);
    assert_eq!(ports_behind("own:mapping=apdm,alloc=preserve+own"), [5000; 4]);
    let steps = |ports: &[u16]| -> Vec<i32> {
        ports.windows(2).map(|pair| (i32::from(pair[1]) - i32::from(pair[0])).rem_euclid(64_512)).collect()
    };
    for step in [1i32, 2, -1, 256] {
        let ports = ports_behind(&format!("own:mapping=apdm,alloc=seq:{step},seed=9"));
        assert_eq!(steps(&ports), [step.rem_euclid(64_512); 3], "{step}: {ports:?}");
        let ports = ports_behind(&format!("port-restricted+own:mapping=apdm,alloc=second:{step}"));
        assert_eq!((ports[0], &steps(&ports)[1..]), (5000, &[step.rem_euclid(64_512); 2][..]), "{step}: {ports:?}");
    }
    let adm = ports_behind("own:mapping=adm,alloc=random");
    assert!(adm[0] == adm[1] && adm[2] == adm[3] && adm[0] != adm[2], "{adm:?}");
    let block = ports_behind("own:mapping=apdm,alloc=block,range=40000-59999");
    assert!(block.iter().max().unwrap() - block.iter().min().unwrap() < 512, "{block:?}");
}

/// What a site's routers counted, the outermost last.
fn counts(lab: &Lab, site: &str) -> Vec<Value> {
    let lines = lab.script("counts", site);
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn routers_count_what_leaves_them_but_not_what_others_send() {
    needs_root!();
    for kind in ["symmetric-4b", "own:mapping=apdm,alloc=seq,lambda=500", "port-restricted+own:mapping=apdm,alloc=seq"]
    {
        let lab = Lab::new(&format!("--left {kind} --right none --hosts left=2"));
        answer(&lab);
        lab.script("cross", "left 3000");
        for _ in 0..2 {
            ports(&lab, 5000);
        }
        for counted in counts(&lab, "left") {
            assert_eq!((counted["entries"].as_u64(), counted["packets_out"].as_u64()), (Some(4), Some(8)), "{counted}");
        }
    }
}

#[test]
fn other_users_take_ports_as_often_as_they_are_told_to() {
    needs_root!();
    for kind in ["symmetric-4b", "own:mapping=apdm,alloc=seq,range=30000-60000"] {
        let lab = Lab::new(&format!("--left {kind} --right none --hosts left=2"));
        answer(&lab);
        lab.script("cross", "left 3000");
        // A program needs a moment to start.
        std::thread::sleep(Duration::from_millis(300));
        let (start, first) = (Instant::now(), ports(&lab, 5000)[3]);
        std::thread::sleep(Duration::from_secs(2));
        let (time, last) = (start.elapsed().as_secs_f64(), ports(&lab, 5001)[0]);
        let rate = f64::from((i32::from(last) - i32::from(first)).rem_euclid(30_001)) / time;
        assert!((2600.0..3400.0).contains(&rate), "{kind}: {rate} a second");
        lab.script("cross", "left 0");
        let (before, after) = (ports(&lab, 5002)[3], ports(&lab, 5003)[0]);
        assert_eq!((i32::from(after) - i32::from(before)).rem_euclid(30_001), 1, "{kind}: nobody else is left");
    }
}

#[test]
fn an_own_nat_that_reboots_forgets_and_may_get_another_address() {
    needs_root!();
    let lab = Lab::new("--left own:mapping=apdm,alloc=seq --right none");
    answer(&lab);
    let public = |lab: &Lab| counts(lab, "left")[0]["public"].as_str().unwrap().to_owned();
    let before = ports(&lab, 5000);
    lab.script("reboot", "left");
    let after = ports(&lab, 5000);
    assert!(before.iter().all(|port| !after.contains(port)), "{before:?}, {after:?}");
    assert_eq!(public(&lab), "203.0.113.101");
    lab.script("reboot", "left renumber");
    ports(&lab, 5000);
    assert_eq!(public(&lab), "203.0.113.200");
}

/// Whether a low TTL of left's opened its NAT, though it went no further than `ttl` routers.
fn opens(kind: &str, ttl: u32) -> bool {
    let lab = Lab::new(&format!("--left {kind} --right none"));
    let (opened, now) = std::sync::mpsc::channel();
    let left = lab.inside("left", move || {
        let socket = UdpSocket::bind("0.0.0.0:5000").expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_millis(800))).expect("a timeout can be set");
        socket.set_ttl(ttl).expect("a TTL can be set");
        socket.send_to(b"open", "203.0.113.102:6000").expect("it can be sent");
        opened.send(()).expect("the peer waits");
        let mut buffer = [0; 64];
        let end = Instant::now() + Duration::from_millis(800);
        // A router's word that the TTL ended is an error of the socket's, and not what is waited for.
        while Instant::now() < end {
            if socket.recv_from(&mut buffer).is_ok() {
                return true;
            }
        }
        false
    });
    lab.inside("right", move || {
        let socket = UdpSocket::bind("0.0.0.0:6000").expect("the port is free");
        now.recv().expect("left sends");
        std::thread::sleep(Duration::from_millis(200));
        socket.send_to(b"came", "203.0.113.101:5000").expect("it can be sent");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout can be set");
        assert!(socket.recv_from(&mut [0; 64]).is_err(), "left's datagram came all the way");
    })
    .join()
    .expect("no fault at the peer");
    left.join().expect("no fault at left")
}

#[test]
fn a_low_ttl_that_passes_an_own_nat_opens_it_and_one_that_ends_there_does_not() {
    needs_root!();
    for kind in ["own", "port-restricted"] {
        assert!(!opens(kind, 1), "{kind}");
        assert!(opens(kind, 2), "{kind}");
    }
}

#[test]
fn two_hosts_that_are_kept_apart_meet_by_a_hairpin_only() {
    needs_root!();
    for (hairpin, meets) in [("yes", true), ("no", false)] {
        let lab = Lab::new(&format!("--left own:hairpin={hairpin} --right none --hosts left=2 --isolated left"));
        assert!(!lab.shell("left", "ping -q -c 1 -W 0.3 192.168.11.3").0);
        let host = |name: &str, port: u16, other: u16| {
            lab.inside(name, move || {
                let socket = UdpSocket::bind(("0.0.0.0", port)).expect("the port is free");
                socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
                // To the end, for the other may not have opened its way yet when the first comes.
                let heard = (0..10).filter(|_| {
                    socket.send_to(b"there?", ("203.0.113.101", other)).expect("it can be sent");
                    socket.recv_from(&mut [0; 64]).is_ok()
                });
                heard.count() > 0
            })
        };
        let (one, two) = (host("left", 5000, 6000), host("left2", 6000, 5000));
        assert_eq!((one.join().unwrap(), two.join().unwrap()), (meets, meets));
    }
}

#[test]
fn firewalls_drop_what_they_say() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right none --host-firewall right --forbid-high left");
    let listen = |at: &'static str| {
        let (bound, ready) = std::sync::mpsc::channel();
        let waiting = lab.inside("right", move || {
            let socket = UdpSocket::bind(at).expect("the port is free");
            socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a timeout can be set");
            bound.send(()).expect("the test waits");
            socket.recv_from(&mut [0; 64]).is_ok()
        });
        ready.recv().expect("the host is there");
        std::thread::sleep(Duration::from_millis(50));
        lab.expect("left", &format!("bash -c 'exec 3<>/dev/udp/{}; echo x >&3'", at.replace(':', "/")));
        waiting.join().expect("no fault while waiting")
    };
    assert!(!listen("203.0.113.102:6000"), "the host's firewall lets it in");
    lab.expect("right", "nft delete table inet host-firewall");
    assert!(listen("203.0.113.102:6001"));
    assert!(!listen("203.0.113.102:40000"), "the router lets it out");
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
