//! Handshakes that find no answer, cross, come twice, or are not for us.

use super::*;

#[test]
fn no_answer_for_fifteen_seconds_starts_a_new_handshake() {
    let mut world = World::new();
    world.connect();
    world.silence();
    let start = world.now;
    world.say(0, 1);
    world.run(Duration::from_secs(16));
    let (at, event) = *world.sides[0].events.last().expect("some");
    assert_eq!(event, TunnelEvent::WantHandshake { retry: false });
    let after = at.since(start).as_millis();
    assert!((15_000..15_334).contains(&after), "{after} ms");
}

#[test]
fn an_initiation_without_answer_is_repeated_for_ninety_seconds_and_then_given_up() {
    let mut world = World::new();
    world.silence();
    let start = world.now;
    world.say(0, 1);
    world.run(Duration::from_secs(200));
    let (at, event) = world.sides[0].events[world.sides[0].events.len() - 1];
    assert_eq!(event, TunnelEvent::HandshakeExpired);
    let after = at.since(start).as_secs();
    assert!((90..=96).contains(&after), "{after} s");
    let sent = world.sides[0].sent[1];
    assert!((17..=19).contains(&sent), "{sent} initiations");
    assert_eq!(world.sides[0].tunnel.poll_timeout(), None);

    // The packet is gone; the next one begins anew.
    world.lose_each = None;
    world.run(SECOND);
    world.say(0, 2);
    world.run(SECOND);
    assert_eq!(world.marks(1), [2]);
}

#[test]
fn an_owner_that_ignores_every_wish_is_asked_for_ninety_seconds_and_then_left_alone() {
    let mut world = World::new();
    world.sides[0].obeys = false;
    world.say(0, 1);
    world.run(Duration::from_secs(200));
    assert_eq!(world.count(0, |event| *event == TunnelEvent::HandshakeExpired), 1);
    assert_eq!(world.sides[0].tunnel.poll_timeout(), None);
}

#[test]
fn someone_who_goes_on_sending_is_not_given_up() {
    let mut world = World::new();
    world.silence();
    for _ in 0..300 {
        world.say(0, 1);
        world.run(SECOND);
    }
    assert_eq!(world.count(0, |event| *event == TunnelEvent::HandshakeExpired), 0);
}

#[test]
fn both_may_start_at_the_same_time() {
    let mut world = World::new();
    world.begin(0);
    world.begin(1);
    world.run(SECOND);
    for second in 0..400u32 {
        world.say(0, second as u8);
        world.say(1, second as u8);
        world.run(SECOND);
    }
    assert_eq!(world.sides[0].received.len(), 400);
    assert_eq!(world.sides[1].received.len(), 400);
    let initiations = world.sides[0].sent[1] + world.sides[1].sent[1];
    assert!(initiations <= 8, "{initiations}: each still rekeys what it initiated, and no more");
}

#[test]
fn an_initiation_that_the_peers_own_made_needless_goes_with_the_keys() {
    let mut world = World::new();
    world.begin(0);
    world.wire.clear();
    world.begin(1);
    world.run(SECOND);
    assert_eq!(world.sides[0].tunnel.indices().count(), 2);
    assert_eq!(world.sides[0].sent[1], 1, "it is not repeated");
    world.run(Duration::from_secs(541));
    assert_eq!(world.sides[0].tunnel.indices().count(), 0);
}

#[test]
fn a_replayed_initiation_is_refused_and_one_that_comes_too_soon_is() {
    let mut world = World::new();
    world.begin(0);
    let initiation = world.wire[0].2.clone();
    world.run(SECOND);
    assert_eq!(world.deliver(1, &initiation), Err(Drop::Replayed));
    world.begin(0);
    let first = world.wire.pop().expect("on the wire").2;
    world.begin(0);
    let second = world.wire.pop().expect("on the wire").2;
    assert_eq!(world.deliver(1, &first), Ok(()));
    assert_eq!(world.deliver(1, &second), Err(Drop::Overload));
    world.now = world.now + INITIATION_INTERVAL;
    assert_eq!(world.deliver(1, &second), Ok(()));
}

#[test]
fn an_initiation_of_another_peer_is_not_taken() {
    let mut world = World::new();
    let stranger = Identity::new(PrivateKey::from_bytes([7; 32]));
    let mut other = Tunnel::new(&stranger, world.sides[1].identity.public(), None, Limits::PAYLOAD);
    let wall = world.wall();
    let (initiation, _) = other.start_handshake(world.now, wall, 1, &mut world.rng);
    assert_eq!(world.deliver(1, &initiation), Err(Drop::Unknown));
}

#[test]
fn a_response_to_an_initiation_that_was_replaced_is_unknown() {
    let mut world = World::new();
    world.begin(0);
    world.run(LATENCY);
    let response = world.wire.pop().expect("on the wire").2;
    world.begin(0);
    assert_eq!(world.deliver(0, &response), Err(Drop::Unknown));
    world.run(SECOND);
    assert!(world.sides[0].tunnel.is_established(world.now));
}

#[test]
fn a_refused_initiation_makes_no_session_and_is_refused_once() {
    let mut world = World::new();
    let (index, wall) = (world.index(0), world.wall());
    let (initiation, caller) = world.sides[0].tunnel.start_handshake(world.now, wall, index, &mut world.rng);
    let open = |side: &Side| Received::open(&side.identity, &initiation).expect("authentic");
    let side = &mut world.sides[1];
    let received = open(side);
    let abort = side.tunnel.refuse_initiation(world.now, received).expect("the first of its kind");
    assert_eq!(caller.abort.open(&abort.seal(b"busy")).as_deref(), Some(&b"busy"[..]));
    let received = open(side);
    assert_eq!(side.tunnel.refuse_initiation(world.now, received).err(), Some(Drop::Replayed));
    assert_eq!(side.tunnel.indices().count(), 0);
}
