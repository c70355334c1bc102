//! Which cipher two tunnels come to, whatever becomes of what they send each other.

use super::*;
use crate::proto::cipher::Cipher;
use crate::proto::noise::MACS_LEN;
use crate::proto::noise::primitive::{MAC_LEN, hash, mac};

fn able(sides: [bool; 2]) -> World {
    let mut world = World::new();
    for (side, aes) in world.sides.iter_mut().zip(sides) {
        side.tunnel.set_mtu(1420);
        side.tunnel.set_aes(world.now, aes);
    }
    world
}

fn ciphers(world: &World) -> [Option<Cipher>; 2] {
    [0, 1].map(|side| world.sides[side].tunnel.cipher())
}

impl World {
    /// Every session that both sides have, by the ciphers that they have it with.
    fn shared(&mut self) -> Vec<[Cipher; 2]> {
        let [ours, theirs] = &mut self.sides;
        let mut shared = Vec::new();
        for index in ours.tunnel.indices().collect::<Vec<_>>() {
            let Some(session) = ours.tunnel.slots.find(index) else { continue };
            let Some(other) = theirs.tunnel.slots.find(session.remote_index) else { continue };
            // An index that was changed on its way names a session that the other side has not.
            if other.remote_index == index {
                shared.push([session.sealer.cipher(), other.sealer.cipher()]);
            }
        }
        shared
    }

    fn restart(&mut self, side: usize, aes: bool) {
        let (identity, remote) = (self.sides[side].identity.clone(), self.sides[1 - side].identity.public());
        self.sides[side].tunnel = Tunnel::new(&identity, remote, None, Limits::PAYLOAD);
        self.sides[side].tunnel.set_aes(self.now, aes);
        self.sides[side].indices.clear();
    }
}

/// mac1 made anew, as anybody can who knows to whom a message goes.
fn stamp(to: &PublicKey, message: &mut [u8]) {
    if let Some(body) = message.len().checked_sub(MACS_LEN) {
        let key = hash(&[b"mac1----", to.as_bytes()]);
        let (body, macs) = message.split_at_mut(body);
        macs[..MAC_LEN].copy_from_slice(&mac(&key, &[body]));
    }
}

#[test]
fn aes_is_used_where_both_are_able_and_from_the_first_packet_on() {
    for sides in [[true, true], [true, false], [false, true], [false, false]] {
        let mut world = able(sides);
        world.say(0, 1);
        world.run(SECOND);
        world.say(1, 1);
        world.run(SECOND);
        assert_eq!([world.marks(0), world.marks(1)], [[1], [1]], "{sides:?}");
        let agreed = if sides == [true; 2] { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        assert_eq!(ciphers(&world), [Some(agreed); 2], "{sides:?}");
    }
}

#[test]
fn a_rekey_keeps_the_cipher_and_loses_nothing() {
    let mut world = able([true; 2]);
    world.connect();
    for second in 0..400u32 {
        world.say(0, second as u8);
        world.say(1, second as u8);
        world.run(SECOND);
        assert_eq!(ciphers(&world), [Some(Cipher::Aes256Gcm); 2], "after {second} s");
    }
    assert!(world.count(0, is_established) > 3);
    assert_eq!([world.marks(0).len(), world.marks(1).len()], [400, 400]);
}

#[test]
fn who_comes_back_without_aes_is_never_sent_any_and_who_comes_back_with_it_is() {
    for side in [0, 1] {
        let mut world = able([true; 2]);
        world.connect();
        for aes in [false, true] {
            world.restart(side, aes);
            world.say(side, 100);
            world.run(SECOND);
            world.say(1 - side, 101);
            world.run(SECOND);
            let agreed = if aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
            assert_eq!(ciphers(&world), [Some(agreed); 2]);
        }
        assert_eq!(world.marks(side), [101, 101]);
        assert_eq!(world.marks(1 - side), [100, 100]);
    }
}

#[test]
fn a_changed_mind_makes_a_new_session_at_once() {
    let mut world = able([true; 2]);
    world.connect();
    for (side, aes) in [(1, false), (0, false), (0, true), (1, true)] {
        let now = world.now;
        world.sides[side].tunnel.set_aes(now, aes);
        world.drain(side);
        world.run(SECOND);
    }
    assert_eq!(ciphers(&world), [Some(Cipher::Aes256Gcm); 2]);
    let handshakes = world.sides[0].sent[1] + world.sides[1].sent[1];
    assert_eq!(handshakes, 5, "one each, and the first");
}

#[test]
fn aes_wants_a_new_session_after_what_one_key_bears() {
    let mut world = able([true; 2]);
    world.connect();
    let before = world.sides[0].sent[1];
    let most = Cipher::Aes256Gcm.rekey_after_messages(1420);
    let skip = |world: &mut World, to: u64| {
        let session = world.sides[0].tunnel.slots.current().expect("there is one");
        session.sealer.skip_to(to);
    };
    skip(&mut world, most - 2);
    world.say(0, 1);
    assert_eq!(world.sides[0].sent[1], before);
    world.say(0, 2);
    assert_eq!(world.sides[0].sent[1], before + 1, "that was the last one");
    world.run(SECOND);
    assert_eq!(world.marks(1), [1, 2]);
    // Where the handshake comes to nothing, the key ends all the same.
    world.silence();
    skip(&mut world, Cipher::Aes256Gcm.reject_after_messages(100));
    assert!(!world.sides[0].tunnel.is_established(world.now));
    let sent = world.sides[0].sent[4];
    world.say(0, 3);
    assert_eq!(world.sides[0].sent[4], sent, "it waits");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Somebody on the way, who knows both public keys and all that was ever sent, drops, bends, repeats, reorders and exchanges what
    /// he likes. Whatever session both sides come to have, they have it with one cipher; and where both are able all the
    /// time, that is AES: there is neither a way down nor one that splits them.
    #[test]
    fn nobody_in_between_turns_the_cipher(
        seed: u64,
        steps in prop::collection::vec((0u8..12, 0usize..2, any::<u32>()), 1..60),
        changes: bool,
    ) {
        let mut world = able([true; 2]);
        world.rng = ChaCha20Rng::seed_from_u64(seed);
        let mut seen: Vec<(usize, Vec<u8>)> = Vec::new();
        for (what, side, number) in steps {
            let at = number as usize;
            match what {
                0 | 1 => world.say(side, number as u8),
                2 => world.begin(side),
                3 if !world.wire.is_empty() => drop(world.wire.swap_remove(at % world.wire.len())),
                // A byte of a handshake message bent, often one that is sealed, and mac1 made to fit.
                4..=6 if !world.wire.is_empty() => {
                    let chosen = at % world.wire.len();
                    let to = world.sides[world.wire[chosen].1].identity.public();
                    let message = &mut world.wire[chosen].2;
                    let byte = (number >> 8) as usize % message.len();
                    message[byte] ^= 1 << (number % 8);
                    if message[0] < 4 {
                        stamp(&to, message);
                    }
                }
                7 if !seen.is_empty() => {
                    let (to, old) = seen[at % seen.len()].clone();
                    world.wire.push((world.now + LATENCY, to, old));
                }
                // The sealed part of one message in another of its kind.
                8 if !seen.is_empty() && !world.wire.is_empty() => {
                    let (_, old) = &seen[at % seen.len()];
                    let chosen = (number >> 8) as usize % world.wire.len();
                    let to = world.sides[world.wire[chosen].1].identity.public();
                    let message = &mut world.wire[chosen].2;
                    let sealed = if message[0] == 1 { 88..116 } else { 44..60 };
                    if old[0] == message[0] && message[0] < 3 {
                        message[sealed.clone()].copy_from_slice(&old[sealed]);
                        stamp(&to, message);
                    }
                }
                9 => world.wire.iter_mut().for_each(|(at, ..)| *at = *at + LATENCY * (number % 5)),
                10 if changes => world.restart(side, number % 2 == 0),
                _ => {
                    seen.extend(world.wire.iter().map(|(_, to, bytes)| (*to, bytes.clone())));
                    world.run(Duration::from_millis(u64::from(number % 30_000)));
                }
            }
            for [ours, theirs] in world.shared() {
                prop_assert_eq!(ours, theirs);
                prop_assert!(changes || ours == Cipher::Aes256Gcm);
            }
            prop_assert!(changes || ciphers(&world).iter().flatten().all(|cipher| *cipher == Cipher::Aes256Gcm));
        }
    }
}
