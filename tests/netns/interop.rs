//! Sessions are WireGuard's: an unmodified wireguard-go speaks with a member, whoever begins, through a rekey.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::lab::{Lab, needs_root, text, within};
use super::member::{BINARY, Daemon, Keys, Member, Servers, output_of, secret};

/// Longer than REKEY_AFTER_TIME (120 s), after which the one that began makes a new session with its next packet.
const THROUGH_A_REKEY: u32 = 132;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Begins {
    Member,
    WireGuard,
}

/// A member at left, wireguard-go at right, no NAT; `begins` knows the other's address, and the other does not.
fn speaks(begins: Begins, with_psk: bool) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut lab = Lab::new("--left none --right none");
    let servers = Servers::start(&lab);
    let keys = Keys::fresh();
    let mut member = Member::new(&servers, "left", 1);
    let psk = with_psk.then(|| output_of(std::process::Command::new(BINARY).arg("genpsk")));

    let mut lines = String::new();
    let mut peer = format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.1/32, fd77::1/128\n", member.keys.public);
    if let Some(psk) = &psk {
        secret(&member.dir.path().join("peer.psk"), psk);
        lines += "preshared_key_file = \"peer.psk\"\n";
        peer += &format!("PresharedKey = {psk}\n");
    }
    match begins {
        Begins::Member => lines += "endpoint = \"203.0.113.102:51820\"\n",
        Begins::WireGuard => peer += "Endpoint = 203.0.113.101:4275\n",
    }
    let allowed = ["10.77.0.2/32".to_owned(), "fd77::2/128".to_owned()];
    member.knows_key("wireguard", &keys.public, &allowed, &lines);

    // Its control socket lies in a directory that all namespaces share.
    let interface = format!("wg{}n{}", std::process::id() % 1_000_000, COUNT.fetch_add(1, Ordering::Relaxed));
    let mut command = lab.command("right", "wireguard-go");
    command.args(["-f", &interface]).env("LOG_LEVEL", "error");
    let _wireguard = Daemon::start(command, member.dir.path().join("wireguard-go.log"));
    let control = format!("/var/run/wireguard/{interface}.sock");
    assert!(within(Duration::from_secs(5), || std::path::Path::new(&control).exists()), "wireguard-go starts");
    let config = member.dir.path().join("wg.conf");
    secret(&config, &format!("[Interface]\nPrivateKey = {}\nListenPort = 51820\n{peer}", keys.private));
    lab.expect(
        "right",
        &format!(
            "wg setconf {interface} {}; ip addr add 10.77.0.2/24 dev {interface}; ip -6 addr add fd77::2/64 dev {interface} nodad
             ip link set {interface} mtu 1420 up",
            config.display()
        ),
    );
    member.start(&lab);
    let (from, to4, to6) = match begins {
        Begins::Member => ("left", "10.77.0.2", "fd77::2"),
        Begins::WireGuard => ("right", "10.77.0.1", "fd77::1"),
    };
    assert!(within(Duration::from_secs(5), || member.status(&lab).is_some()), "the member starts");
    assert!(
        lab.pings_within(from, to4, Duration::from_secs(15)).is_some(),
        "{begins:?} begins: {:?}",
        member.status(&lab)
    );
    assert!(lab.pings(from, to6), "IPv6, {begins:?} begins");
    let handshakes = |lab: &Lab| {
        let theirs = lab.expect("right", &format!("wg show {interface} latest-handshakes"));
        let theirs: u64 = theirs.split_whitespace().nth(1).expect("a time").parse().expect("a number");
        (theirs, member.peer(lab, "wireguard")["last_handshake"].as_u64().expect("there was one"))
    };
    let first = handshakes(&lab);

    let ping = format!("ping -q -n -c {THROUGH_A_REKEY} -i 1 -W 2 {to4}");
    let pings =
        lab.command(from, "sh").args(["-c", &ping]).stdout(Stdio::piped()).spawn().expect("ping can be started");
    lab.idle(Duration::from_secs(u64::from(THROUGH_A_REKEY)));
    let pings = text(&pings.wait_with_output().expect("ping ends").stdout);
    assert!(pings.contains(" 0% packet loss"), "{begins:?} begins, psk {with_psk}: {pings}");
    let second = handshakes(&lab);
    assert!(second.0 > first.0 + 100 && second.1 > first.1 + 100, "no new session: {first:?}, then {second:?}");
    assert_eq!(member.peer(&lab, "wireguard")["cipher"], "chacha20poly1305");
    assert_eq!(member.peer(&lab, "wireguard")["state"], "connected");
    // It answers no probe, so it is sent none and has whatever the interface says.
    assert_eq!(member.peer(&lab, "wireguard")["path_mtu"], serde_json::Value::Null);
    assert!(lab.expect(from, &format!("ping -n -c 2 -W 2 -M do -s 1392 {to4}")).contains(" 0% packet loss"));
}

#[test]
fn wireguard_go_and_a_member_speak_through_a_rekey_whoever_begins() {
    needs_root!();
    let variants =
        [(Begins::Member, false), (Begins::Member, true), (Begins::WireGuard, false), (Begins::WireGuard, true)];
    let threads = variants.map(|(begins, with_psk)| std::thread::spawn(move || speaks(begins, with_psk)));
    let faults = threads.into_iter().zip(variants).filter_map(|(thread, variant)| thread.join().err().map(|_| variant));
    let faults: Vec<_> = faults.collect();
    assert!(faults.is_empty(), "failed: {faults:?}");
}
