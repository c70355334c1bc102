use super::*;
use crate::proto::keys::PrivateKey;
use crate::proto::noise::timestamp::Timestamp;
use crate::proto::noise::{Initiator, Remote};
use rand_chacha::rand_core::SeedableRng;

struct Scene {
    local: Identity,
    gate: Gate,
    jar: Jar,
    message: [u8; INITIATION_LEN],
    from: SocketAddr,
    now: Instant,
    rng: ChaCha20Rng,
}

/// An initiation that comes to a gate which thinks `busy_per_s` handshakes a second too many.
fn scene(busy_per_s: u32) -> Scene {
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let local = Identity::new(PrivateKey::from_bytes([2; 32]));
    let caller = Identity::new(PrivateKey::from_bytes([3; 32]));
    let remote = Remote::new(&caller, local.public());
    let (_, message, _) = Initiator::start(&caller, &remote, None, 0x0102_0304, Timestamp::default(), &mut rng);
    Scene {
        gate: Gate::new(local.public(), busy_per_s, &mut rng),
        jar: Jar::new(local.public()),
        local,
        message,
        from: "203.0.113.1:4275".parse().expect("parses"),
        now: Instant::from_nanos(1),
        rng,
    }
}

impl Scene {
    fn judge(&mut self) -> Verdict {
        self.gate.judge(self.now, &self.local, self.from, &self.message, &mut self.rng)
    }

    fn reply(&mut self) -> [u8; COOKIE_REPLY_LEN] {
        match self.judge() {
            Verdict::Reply(reply) => reply,
            other => panic!("a reply is due: {other:?}"),
        }
    }

    fn stamp(&mut self) {
        self.message[INITIATION_LEN - MAC_LEN..].fill(0);
        self.jar.stamp(self.now, &mut self.message);
    }
}

#[test]
fn in_quiet_times_a_right_mac1_is_enough() {
    let mut scene = scene(100);
    assert_eq!(scene.judge(), Verdict::Pass);
    scene.message[120] ^= 1;
    assert_eq!(scene.judge(), Verdict::Drop(Drop::Unauthentic));
}

#[test]
fn under_load_a_sender_that_receives_at_its_address_gets_through() {
    let mut scene = scene(0);
    scene.stamp();
    let reply = scene.reply();
    assert_eq!(reply_receiver(&reply), Some(0x0102_0304));
    assert_eq!(scene.jar.handle_reply(scene.now, &reply), Ok(()));
    scene.stamp();
    assert_eq!(scene.judge(), Verdict::Pass);
}

#[test]
fn a_cookie_holds_for_its_address_and_port_alone() {
    let mut scene = scene(0);
    scene.stamp();
    let reply = scene.reply();
    scene.jar.handle_reply(scene.now, &reply).expect("taken");
    scene.stamp();
    for other in ["203.0.113.1:4276", "203.0.113.2:4275", "[2001:db8::1]:4275"] {
        scene.from = other.parse().expect("parses");
        assert!(matches!(scene.judge(), Verdict::Reply(_)), "{other}");
    }
    scene.from = "[::ffff:203.0.113.1]:4275".parse().expect("parses");
    assert_eq!(scene.judge(), Verdict::Pass, "the same address, as a socket for both families shows it");
}

#[test]
fn a_cookie_is_used_for_115_s_and_taken_for_120() {
    let mut scene = scene(0);
    scene.stamp();
    let reply = scene.reply();
    scene.jar.handle_reply(scene.now, &reply).expect("taken");
    scene.now = scene.now + Duration::from_secs(114);
    scene.stamp();
    assert_eq!(scene.judge(), Verdict::Pass);
    let stamped = scene.message;
    scene.now = scene.now + Duration::from_secs(2);
    scene.stamp();
    assert_eq!(scene.message[INITIATION_LEN - MAC_LEN..], [0; MAC_LEN]);
    scene.message = stamped;
    scene.now = scene.now + Duration::from_secs(4);
    assert!(matches!(scene.judge(), Verdict::Reply(_)));
}

#[test]
fn a_source_with_a_cookie_still_has_no_more_than_its_share() {
    let mut scene = scene(0);
    scene.stamp();
    let reply = scene.reply();
    scene.jar.handle_reply(scene.now, &reply).expect("taken");
    scene.stamp();
    let passed = (0..20).filter(|_| scene.judge() == Verdict::Pass).count();
    assert_eq!(passed, 5);
    assert_eq!(scene.judge(), Verdict::Drop(Drop::Overload));
}

#[test]
fn a_reply_is_taken_once_and_only_for_our_last_message() {
    let mut scene = scene(0);
    let early = scene.reply();
    assert_eq!(scene.jar.handle_reply(scene.now, &early), Err(Drop::Unknown), "nothing was sent");
    scene.stamp();
    let reply = scene.reply();
    let mut forged = reply;
    forged[40] ^= 1;
    assert_eq!(scene.jar.handle_reply(scene.now, &forged), Err(Drop::Unauthentic));
    assert_eq!(scene.jar.handle_reply(scene.now, &reply), Ok(()));
    assert_eq!(scene.jar.handle_reply(scene.now, &reply), Err(Drop::Unknown));
}

#[test]
fn every_truncation_is_malformed() {
    let mut scene = scene(0);
    scene.stamp();
    let reply = scene.reply();
    for len in 0..COOKIE_REPLY_LEN {
        assert_eq!(scene.jar.handle_reply(scene.now, &reply[..len]), Err(Drop::Malformed));
        assert_eq!(reply_receiver(&reply[..len]), None);
    }
    for len in 0..INITIATION_LEN {
        let message = scene.message;
        let verdict = scene.gate.judge(scene.now, &scene.local, scene.from, &message[..len], &mut scene.rng);
        assert_eq!(verdict, Verdict::Drop(Drop::Malformed), "{len}");
    }
    scene.jar.stamp(scene.now, &mut [0; 3]);
}
