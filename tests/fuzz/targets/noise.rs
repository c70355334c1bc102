//! WireGuard's handshake messages and cookie replies from anybody: any bytes, and true ones that were bent and given a right
//! mac1 (which takes only the public key).

use p2ptund::proto::Instant;
use p2ptund::proto::cookie::{Gate, Jar, Verdict};
use p2ptund::proto::keys::{PrivateKey, PublicKey};
use p2ptund::proto::noise::primitive::{MAC_LEN, hash, mac};
use p2ptund::proto::noise::timestamp::Timestamp;
use p2ptund::proto::noise::{Identity, Initiator, MACS_LEN, Received, Remote};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::input::{Input, bend};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let [us, them] = [1, 2].map(|byte| Identity::new(PrivateKey::from_bytes([byte; 32])));
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let remote = Remote::new(&them, us.public());
    let (initiator, initiation, _) = Initiator::start(&them, &remote, None, 77, Timestamp([5; 12]), &mut rng);
    let true_one = Received::open(&us, &initiation).expect("is as it was made");
    let (response, ..) = true_one.respond(None, 78, &mut rng);

    let mode = input.u8();
    let mut message = match mode % 3 {
        0 => input.take(usize::MAX).to_vec(),
        1 => initiation.to_vec(),
        _ => response.to_vec(),
    };
    if !mode.is_multiple_of(3) {
        bend(&mut input, &mut message);
    }
    if mode & 0x80 != 0 {
        let (key, other) = if mode % 3 == 2 { (&them, &us) } else { (&us, &them) };
        restore_mac1(&key.public(), &mut message);
        assert!(key.checks_mac1(&message) || message.len() < MACS_LEN);
        assert!(!other.checks_mac1(&message));
    }

    if let Ok(received) = Received::open(&us, &message) {
        assert_eq!(received.peer, them.public(), "nobody else's key is known to these bytes");
        // The sender's index and mac2 are not sealed; all between them is.
        assert_eq!(message[8..116], initiation[8..116], "a bent initiation is refused");
        assert_eq!(received.timestamp, Timestamp([5; 12]));
        received.respond(None, 79, &mut rng);
    }
    if initiator.finish(&message).is_ok() {
        assert_eq!(message[8..60], response[8..60], "a bent response is refused");
    }
    let mut gate = Gate::new(us.public(), u32::from(mode >> 4 & 1), &mut rng);
    let now = Instant::from_nanos(1_000_000_000);
    for _ in 0..2 {
        let from = "203.0.113.5:7".parse().expect("is an address");
        match gate.judge(now, &us, from, &message, &mut rng) {
            Verdict::Pass | Verdict::Drop(_) => {}
            Verdict::Reply(reply) => {
                assert!(reply.len() <= message.len(), "nobody is amplified");
                let mut jar = Jar::new(us.public());
                let mut stamped = message.clone();
                jar.stamp(now, &mut stamped);
                assert!(jar.handle_reply(now, &reply).is_ok(), "who sent the message can open its cookie");
            }
        }
    }
    let mut jar = Jar::new(us.public());
    jar.stamp(now, &mut initiation.clone());
    assert!(jar.handle_reply(now, &message).is_err(), "only the gate makes cookies");
}

fn restore_mac1(public: &PublicKey, message: &mut [u8]) {
    let Some(end) = message.len().checked_sub(MACS_LEN) else { return };
    let (body, macs) = message.split_at_mut(end);
    macs[..MAC_LEN].copy_from_slice(&mac(&hash(&[b"mac1----", public.as_bytes()]), &[body]));
}
