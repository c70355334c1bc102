//! Three members, and servers that die: a third office introduces the two others.

use std::time::Duration;

use super::lab::{Lab, needs_root};
use super::member::{Member, Servers, ping_both_ways};

const LIMIT: Duration = Duration::from_secs(25);
/// A member that was restarted shakes hands with the hub, surveys, and calls: a second, and patience for a busy machine.
const FOUND_AGAIN: Duration = Duration::from_secs(10);

/// Offices at left and right, and a hub at a public address; left is restarted while there are no servers, or no rendezvous.
fn find_each_other_through_the_hub(left_kind: &str, right_kind: &str, lose_servers: fn(&mut Servers)) {
    let lab = Lab::new(&format!("--left {left_kind} --right {right_kind} --site hub=none"));
    let mut servers = Servers::start(&lab);
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    let mut hub = Member::new(&servers, "hub", 3);
    let endpoint = "endpoint = \"203.0.113.103:4275\"";
    left.knows(&right);
    left.knows_with(&hub, endpoint);
    right.knows(&left);
    right.knows_with(&hub, endpoint);
    hub.knows(&left);
    hub.knows(&right);
    for member in [&mut hub, &mut left, &mut right] {
        member.start(&lab);
    }
    ping_both_ways(&lab, &left, &right, LIMIT);
    ping_both_ways(&lab, &left, &hub, LIMIT);
    ping_both_ways(&lab, &right, &hub, LIMIT);

    lose_servers(&mut servers);
    left.stop("KILL");
    left.start(&lab);
    let took = ping_both_ways(&lab, &left, &right, FOUND_AGAIN);
    let (status, peer) = (left.expect_status(&lab), left.peer(&lab, "right"));
    assert_eq!(status["rendezvous"][0]["connected"], false, "{status}");
    assert_eq!(peer["state"], "connected", "{peer}");
    let why = peer["why"].as_str().unwrap_or_default();
    assert!(why.contains("no rendezvous server answers; called through hub"), "after {took:?}: {peer}");
    println!("{left_kind} × {right_kind}: found again after {took:?}, {why}");
}

#[test]
fn cones_find_each_other_through_a_third_office_without_any_server() {
    needs_root!();
    find_each_other_through_the_hub("port-restricted", "masquerade", Servers::kill);
}

#[test]
fn symmetric_nats_find_each_other_through_a_third_office_without_a_rendezvous_server() {
    needs_root!();
    for (left, right) in [("symmetric-4a", "symmetric-4b"), ("symmetric-4b", "port-restricted")] {
        find_each_other_through_the_hub(left, right, Servers::kill_rendezvous);
    }
}
