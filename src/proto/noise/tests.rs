use super::*;
use rand_chacha::rand_core::SeedableRng;

fn rng(seed: u8) -> ChaCha20Rng {
    ChaCha20Rng::from_seed([seed; 32])
}

fn identity(byte: u8) -> Identity {
    Identity::new(PrivateKey::from_bytes([byte; 32]))
}

struct Made {
    caller: Identity,
    called: Identity,
    initiator: Initiator,
    initiation: [u8; INITIATION_LEN],
    exports: CallerKeys,
}

fn start(psk: Option<&PresharedKey>) -> Made {
    start_at(psk, Timestamp([5; 12]))
}

fn start_at(psk: Option<&PresharedKey>, timestamp: Timestamp) -> Made {
    let (caller, called) = (identity(1), identity(2));
    let remote = Remote::new(&caller, called.public());
    let (initiator, initiation, exports) = Initiator::start(&caller, &remote, psk, 0x1122_3344, timestamp, &mut rng(3));
    Made { caller, called, initiator, initiation, exports }
}

#[test]
fn both_sides_end_with_the_same_keys() {
    let psk = PresharedKey::from_bytes([9; 32]);
    for psk in [None, Some(&psk)] {
        let made = start(psk);
        let received = Received::open(&made.called, &made.initiation).expect("opens");
        assert_eq!(received.peer, made.caller.public());
        assert_eq!((received.timestamp, received.index), (Timestamp([5; 12]), 0x1122_3344));
        let (response, theirs, answer) = received.respond(psk, 0x5566_7788, &mut rng(4));
        let (ours, open_answer) = made.initiator.finish(&response).expect("finishes");
        assert_eq!(ours.send, theirs.receive);
        assert_eq!(ours.receive, theirs.send);
        assert_eq!(ours.probe_send, theirs.probe_receive);
        assert_eq!(ours.probe_receive, theirs.probe_send);
        assert_eq!((ours.remote_index, theirs.remote_index), (theirs.local_index, ours.local_index));
        assert!(ours.initiator && !theirs.initiator);
        let all = [&ours.send, &ours.receive, &ours.probe_send, &ours.probe_receive];
        for (i, key) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != key));
        }
        assert_eq!(open_answer.open(&answer.seal(b"my tuple")).as_deref(), Some(&b"my tuple"[..]));
    }
}

#[test]
fn a_call_and_its_abort_open_on_the_other_side_of_the_same_handshake_alone() {
    let made = start(None);
    let received = Received::open(&made.called, &made.initiation).expect("opens");
    let sealed = made.exports.call.seal(b"tuple");
    assert_eq!(received.exports.call.open(&sealed).as_deref(), Some(&b"tuple"[..]));
    let abort = received.exports.abort.seal(b"no");
    assert_eq!(made.exports.abort.open(&abort).as_deref(), Some(&b"no"[..]));
    assert_eq!(made.exports.abort.open(&sealed), None, "one key for each direction");
    assert_eq!(received.exports.call.open(&sealed[..10]), None);

    let remote = Remote::new(&made.caller, made.called.public());
    let (_, _, other) = Initiator::start(&made.caller, &remote, None, 1, Timestamp([6; 12]), &mut rng(8));
    assert_eq!(received.exports.call.open(&other.call.seal(b"tuple")), None);
}

#[test]
fn what_is_exported_is_none_of_the_keys_of_the_session_and_changes_none() {
    let chaining = [7; 32];
    let [to_responder, to_initiator] = derive(&chaining, &[]);
    let exported = FinalKeys::derive(&chaining);
    let [again, _] = derive(&chaining, &[]);
    assert_eq!(to_responder, again);
    let [aes_to_responder, aes_to_initiator] = transport_keys(&chaining, Cipher::Aes256Gcm);
    let own = [exported.answer, exported.probe_initiator_to_responder, exported.probe_responder_to_initiator];
    for key in own.iter().chain([&aes_to_responder, &aes_to_initiator]) {
        assert!(*key != to_responder && *key != to_initiator);
    }
    assert!(!own.contains(&aes_to_responder) && !own.contains(&aes_to_initiator));
}

#[test]
fn another_psk_on_one_side_fails_at_the_response() {
    let psk = PresharedKey::from_bytes([9; 32]);
    let made = start(Some(&psk));
    let received = Received::open(&made.called, &made.initiation).expect("opens");
    let (response, ..) = received.respond(None, 1, &mut rng(4));
    assert_eq!(made.initiator.finish(&response).err(), Some(Drop::Unauthentic));
}

#[test]
fn any_changed_byte_of_either_message_is_refused() {
    let made = start(None);
    for at in 0..INITIATION_LEN - MAC_LEN {
        let mut initiation = made.initiation;
        initiation[at] ^= 1;
        assert!(Received::open(&made.called, &initiation).is_err(), "byte {at}");
    }
    let received = Received::open(&made.called, &made.initiation).expect("opens");
    let (response, ..) = received.respond(None, 1, &mut rng(4));
    assert!(made.caller.checks_mac1(&response));
    // Bytes 4 to 7, the sender's index, are protected by mac1 alone: a wrong one makes a session that hears nothing.
    for at in (0..4).chain(8..60) {
        let mut response = response;
        response[at] ^= 1;
        assert!(made.initiator.finish(&response).is_err(), "byte {at}");
    }
}

#[test]
fn a_right_mac1_alone_opens_nothing() {
    let made = start(None);
    for at in 8..116 {
        let mut initiation = made.initiation;
        initiation[at] ^= 1;
        put_mac1(&mac1_key(&made.called.public()), &mut initiation);
        assert_eq!(Received::open(&made.called, &initiation).err(), Some(Drop::Unauthentic), "byte {at}");
    }
}

#[test]
fn an_ephemeral_or_static_key_of_low_order_is_refused() {
    let made = start(None);
    let mut initiation = made.initiation;
    initiation[8..40].fill(0);
    put_mac1(&mac1_key(&made.called.public()), &mut initiation);
    assert_eq!(Received::open(&made.called, &initiation).err(), Some(Drop::Unauthentic));
}

#[test]
fn a_handshake_towards_a_key_that_is_nobodys_shows_nobody_who_calls() {
    let caller = identity(1);
    let nobody = PublicKey([0; 32]);
    let remote = Remote::new(&caller, nobody);
    let (_, initiation, _) = Initiator::start(&caller, &remote, None, 1, Timestamp([5; 12]), &mut rng(3));
    // All agreements with that key are zero, so without care anyone could open this.
    let mut transcript = Transcript::new(&nobody);
    transcript.mix_ephemeral(&PublicKey(bytes_at(&initiation, 8)));
    let key = transcript.mix_shared(&Zeroizing::new([0; 32]));
    assert_eq!(transcript.open(&key, &initiation[40..88], &mut [0; 32]), Err(Drop::Unauthentic));
}

#[test]
fn every_wrong_length_is_malformed() {
    let made = start(None);
    let received = Received::open(&made.called, &made.initiation).expect("opens");
    let (response, ..) = received.respond(None, 1, &mut rng(4));
    let long = [0; 200];
    for len in (0..200).filter(|len| *len != INITIATION_LEN) {
        let message = if len < INITIATION_LEN { &made.initiation[..len] } else { &long[..len] };
        assert_eq!(Received::open(&made.called, message).err(), Some(Drop::Malformed), "{len}");
    }
    for len in (0..200).filter(|len| *len != RESPONSE_LEN) {
        let message = if len < RESPONSE_LEN { &response[..len] } else { &long[..len] };
        assert_eq!(made.initiator.finish(message).err(), Some(Drop::Malformed), "{len}");
    }
    assert!(!made.called.checks_mac1(&[0; 31]));
}

#[test]
fn a_failed_response_leaves_the_initiation_waiting() {
    let made = start(None);
    let received = Received::open(&made.called, &made.initiation).expect("opens");
    let (response, ..) = received.respond(None, 1, &mut rng(4));
    let mut forged = response;
    forged[50] ^= 1;
    assert!(made.initiator.finish(&forged).is_err());
    assert!(made.initiator.finish(&response).is_ok());
}

/// One handshake; whether the initiator offers AES, and whether the responder is willing.
fn agreed(offers: bool, willing: bool) -> (Made, [u8; RESPONSE_LEN], Keys) {
    let wall = crate::proto::Wall(std::time::Duration::from_secs(1_790_000_000));
    let stamp = if offers { Timestamp::offering_aes } else { Timestamp::after };
    let made = start_at(None, stamp(Timestamp::default(), wall));
    let mut received = Received::open(&made.called, &made.initiation).expect("opens");
    if willing {
        received.accept_aes();
    }
    let (response, theirs, _) = received.respond(None, 1, &mut rng(4));
    (made, response, theirs)
}

#[test]
fn both_sides_know_the_choice_and_have_its_keys() {
    let mut all = Vec::new();
    for (offers, willing) in [(true, true), (true, false), (false, true), (false, false)] {
        let (made, response, theirs) = agreed(offers, willing);
        let (ours, _) = made.initiator.finish(&response).expect("finishes");
        let aes = ours.cipher == Cipher::Aes256Gcm;
        assert_eq!((aes, ours.cipher), (offers && willing, theirs.cipher));
        assert_eq!((&ours.send, &ours.receive), (&theirs.receive, &theirs.send));
        all.push((offers, aes, ours));
    }
    // With the same random numbers, the first two differ in the choice alone.
    let [(_, _, aes), (_, _, chacha), ..] = &all[..] else { panic!("four") };
    assert!(aes.send != chacha.send && aes.receive != chacha.receive && aes.send != chacha.receive);
    assert_eq!(aes.probe_send, chacha.probe_send);
}

#[test]
fn neither_choice_can_be_made_of_the_other() {
    for (willing, other) in [(true, Cipher::ChaCha20Poly1305), (false, Cipher::Aes256Gcm)] {
        let (made, response, _) = agreed(true, willing);
        // Whoever does not have the keys has this: what was sent, and bits to turn, mac1 made to fit.
        for bit in 12 * 8..60 * 8 {
            let mut forged = response;
            forged[bit / 8] ^= 1 << (bit % 8);
            put_mac1(&mac1_key(&made.caller.public()), &mut forged);
            assert_eq!(made.initiator.finish(&forged).err(), Some(Drop::Unauthentic), "bit {bit}");
        }
        for bit in 8 * 8..116 * 8 {
            let mut forged = made.initiation;
            forged[bit / 8] ^= 1 << (bit % 8);
            put_mac1(&mac1_key(&made.called.public()), &mut forged);
            assert_eq!(Received::open(&made.called, &forged).err(), Some(Drop::Unauthentic), "bit {bit}");
        }
        assert_ne!(made.initiator.finish(&response).expect("the true one").0.cipher, other);
    }
}

#[test]
fn who_offered_nothing_takes_no_response_that_accepts() {
    let (made, mut response, _) = agreed(true, true);
    let plain = Initiator { offers_aes: false, ..made.initiator };
    assert_eq!(plain.finish(&response).err(), Some(Drop::Unauthentic));
    // And one that was made without an offer is never taken for one.
    let (made, plain, _) = agreed(false, true);
    response.copy_from_slice(&plain);
    let curious = Initiator { offers_aes: true, ..made.initiator };
    assert_eq!(curious.finish(&response).expect("opens").0.cipher, Cipher::ChaCha20Poly1305);
}

#[test]
fn a_key_is_not_shown_by_debug() {
    let made = start(None);
    assert_eq!(format!("{:?}", made.exports), "CallerKeys { call: SealOnce(…), abort: Open(…) }");
}
