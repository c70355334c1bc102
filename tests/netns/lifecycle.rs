//! Coming, going, and coming back: what is left behind, and who finds whom again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::lab::{Lab, needs_root, said, text, within};
use super::member::{BINARY, Keys, Member, Servers, pair, ping_both_ways, secret};

const LIMIT: Duration = Duration::from_secs(25);
/// A peer that went without a word is noticed by WireGuard's timers first: 15 s of silence (KEEPALIVE + REKEY_TIMEOUT).
const AFTER_SILENCE: Duration = Duration::from_secs(45);

/// What a stop must leave as it was, and the stop itself.
fn leaves_nothing_behind(stop: impl Fn(&Lab, &mut Member)) {
    let lab = Lab::new("--left port-restricted --right symmetric-4b");
    let (_servers, mut left, mut right) = pair(&lab);
    left.knows_key("elsewhere", &Keys::fresh().public, &["10.78.0.0/16".to_owned(), "fd78::/16".to_owned()], "");
    let before = lab.settled_traces("left");
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    assert_ne!(lab.traces("left"), before, "the interface is there");
    stop(&lab, &mut left);
    let _ = within(Duration::from_secs(2), || lab.traces("left") == before);
    assert_eq!(lab.traces("left"), before);
    assert!(!std::path::Path::new("/run/p2ptund").join(format!("{}.sock", left.interface)).exists());
}

#[test]
fn sigterm_leaves_nothing_behind() {
    needs_root!();
    leaves_nothing_behind(|_, member| assert_eq!(member.stop("TERM").code(), Some(0)));
}

#[test]
fn sigint_leaves_nothing_behind() {
    needs_root!();
    leaves_nothing_behind(|_, member| assert_eq!(member.stop("INT").code(), Some(0)));
}

#[test]
fn down_leaves_nothing_behind() {
    needs_root!();
    leaves_nothing_behind(|lab, member| {
        let output = member.control(lab, &["down"]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(member.daemon.as_mut().and_then(|daemon| daemon.ended()).and_then(|status| status.code()), Some(0));
    });
}

#[test]
fn the_next_up_cleans_up_after_sigkill() {
    needs_root!();
    leaves_nothing_behind(|lab, member| {
        for _ in 0..3 {
            assert_eq!(member.stop("KILL").signal(), Some(9));
            member.start(lab);
            assert!(within(LIMIT, || member.status(lab).is_some()), "it comes up again");
        }
        assert_eq!(member.stop("TERM").code(), Some(0));
    });
}

#[test]
fn a_member_in_the_background_is_there_when_up_returns_and_goes_by_down() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right none");
    let (_servers, left, _right) = pair(&lab);
    let before = lab.settled_traces("left");
    let mut command = lab.command("left", BINARY);
    command.args(["up", "-b"]).arg(left.config()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("the binary can be started").success());
    assert!(lab.expect("left", "ip -o addr").contains("10.77.0.1/24"));
    assert!(lab.expect("left", "ip route get 10.77.0.2").contains(&left.interface), "the peer's route");
    left.expect_status(&lab);
    let output = left.control(&lab, &["down"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(within(Duration::from_secs(5), || lab.traces("left") == before), "{}", lab.traces("left"));
}

#[test]
fn a_member_that_was_killed_is_found_again() {
    needs_root!();
    let lab = Lab::new("--left symmetric-4a --right symmetric-4b");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    left.stop("KILL");
    left.start(&lab);
    ping_both_ways(&lab, &left, &right, AFTER_SILENCE);
    // And the other way round, when it goes politely.
    right.stop("TERM");
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, AFTER_SILENCE);
}

#[test]
fn both_members_restart_and_find_each_other_again() {
    needs_root!();
    let lab = Lab::new("--left symmetric-4b --right port-restricted");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    left.stop("KILL");
    right.stop("TERM");
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, AFTER_SILENCE);
}

#[test]
fn servers_come_back_and_members_register_by_themselves() {
    needs_root!();
    let mut lab = Lab::new("--left port-restricted --right symmetric-4b");
    let (mut servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    servers.kill();
    assert!(lab.pings("left", &right.address4), "a tunnel needs no server");
    lab.idle(Duration::from_secs(5));
    servers.start_again(&lab);
    assert!(lab.pings("left", &right.address4), "a tunnel needs no server");
    // Only members that are registered again can be called by one that restarts.
    right.stop("TERM");
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, Duration::from_secs(60));
    for member in [&left, &right] {
        assert_eq!(member.expect_status(&lab)["rendezvous"][0]["connected"], true);
    }
}

#[test]
fn members_start_before_their_servers_and_still_meet() {
    needs_root!();
    let mut lab = Lab::new("--left port-restricted --right port-restricted");
    let (mut servers, mut left, mut right) = pair(&lab);
    servers.kill();
    left.start(&lab);
    right.start(&lab);
    lab.idle(Duration::from_secs(8));
    servers.start_again(&lab);
    ping_both_ways(&lab, &left, &right, Duration::from_secs(60));
}

#[test]
fn a_reload_adds_a_peer_and_drops_no_ping_of_another() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right symmetric-4b --site third=port-restricted");
    let (servers, mut left, mut right) = pair(&lab);
    let mut third = Member::new(&servers, "third", 3);
    third.knows(&left);
    for member in [&mut left, &mut right, &mut third] {
        member.start(&lab);
    }
    ping_both_ways(&lab, &left, &right, LIMIT);
    let handshake = left.peer(&lab, "right")["last_handshake"].clone();

    let ping = format!("ping -q -n -c 40 -i 0.1 -W 2 {}", right.address4);
    let pings = lab.command("left", "sh").args(["-c", &ping]).stdout(Stdio::piped()).spawn().unwrap();
    left.knows(&third);
    let output = left.control(&lab, &["reload"]);
    assert!(output.status.success(), "{}", said(&output));
    ping_both_ways(&lab, &left, &third, LIMIT);
    // SIGHUP does the same, and a config that `check` refuses changes nothing.
    left.daemon.as_ref().unwrap().signal("HUP");
    let good = std::fs::read_to_string(left.config()).unwrap();
    secret(&left.config(), &good.replace("10.77.0.3/32", "no address"));
    assert_eq!(left.control(&lab, &["reload"]).status.code(), Some(1));
    let pings = text(&pings.wait_with_output().unwrap().stdout);
    assert!(pings.contains(" 0% packet loss"), "{pings}");
    assert_eq!(left.peer(&lab, "right")["last_handshake"], handshake, "the tunnel was made anew");
    assert!(lab.pings("left", &third.address4));
}

#[test]
fn a_member_that_was_cut_off_for_over_a_minute_is_found_again() {
    needs_root!();
    // Ten minutes take too long for a test; 75 s outlive the NATs' mappings of one-way traffic (30 s) and WireGuard's attempts.
    let mut lab = Lab::new("--left symmetric-4a --right symmetric-4b");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    lab.script("cut", "left on");
    lab.idle(Duration::from_secs(75));
    lab.script("cut", "left off");
    ping_both_ways(&lab, &left, &right, Duration::from_secs(60));
}

#[test]
fn routers_that_forget_everything_are_noticed() {
    needs_root!();
    let lab = Lab::new("--left symmetric-4b --right port-restricted");
    let (_servers, mut left, mut right) = pair(&lab);
    left.start(&lab);
    right.start(&lab);
    ping_both_ways(&lab, &left, &right, LIMIT);
    lab.script("reboot", "left");
    ping_both_ways(&lab, &left, &right, AFTER_SILENCE);
}

#[test]
fn an_unwilling_member_refuses_and_the_caller_says_so() {
    needs_root!();
    let lab = Lab::new("--left port-restricted --right port-restricted");
    let servers = Servers::start(&lab);
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    left.knows(&right);
    right.knows_with(&left, "calls = \"none\"");
    right.start(&lab);
    left.start(&lab);
    let refused = within(Duration::from_secs(15), || {
        left.status(&lab).is_some_and(|status| {
            status["peers"][0]["why"].as_str().is_some_and(|why| why.to_lowercase().contains("refuse"))
        })
    });
    assert!(refused, "{:?}", left.status(&lab));
    assert_ne!(left.peer(&lab, "right")["state"], "connected");
    assert!(!lab.shell("left", &format!("ping -q -c 1 -W 0.5 {}", right.address4)).0);
}

#[test]
fn without_root_there_is_one_clear_sentence() {
    needs_root!();
    let lab = Lab::new("--left none");
    let servers = Servers::start(&lab);
    let member = Member::new(&servers, "left", 1);
    member.write_config();
    for path in [member.dir.path(), &member.config(), &member.dir.path().join("private.key")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("root can give files away");
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", BINARY, "up"])
        .arg(member.config())
        .env_remove("RUST_LOG")
        .output()
        .expect("setpriv can be started");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let message = text(&output.stderr);
    assert_eq!(message.trim().lines().count(), 1, "{message}");
    assert!(message.contains("root") || message.contains("CAP_NET_ADMIN"), "{message}");
}
