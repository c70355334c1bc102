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
    let (caller, called) = (identity(1), identity(2));
    let remote = Remote::new(&caller, called.public());
    let (initiator, initiation, exports) =
        Initiator::start(&caller, &remote, psk, 0x1122_3344, Timestamp([5; 12]), &mut rng(3));
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
    for key in [exported.answer, exported.probe_initiator_to_responder, exported.probe_responder_to_initiator] {
        assert!(key != to_responder && key != to_initiator);
    }
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

#[test]
fn a_key_is_not_shown_by_debug() {
    let made = start(None);
    assert_eq!(format!("{:?}", made.exports), "CallerKeys { call: SealOnce(…), abort: Open(…) }");
}
