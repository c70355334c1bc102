use proptest::prelude::*;

use super::*;

const PEER: PeerId = 0;

/// Introducers 1 to `count`, the last of them the nearest.
fn known(count: u32) -> Introducers {
    let introducer = |id: u32| {
        let rtt = Some(Duration::from_millis(u64::from(100 - id)));
        (id, Introducer { name: format!("m{id}"), standing: Standing { rtt, seen: None } })
    };
    (0..=count).map(introducer).collect()
}

fn member(id: PeerId) -> Via {
    Via::Member { id, delay: Duration::ZERO }
}

#[test]
fn every_message_reads_back_as_it_was_written() {
    let key = PublicKey([7; 32]);
    for word in [
        Introduction::Forward { to: key, passed: vec![1, 2, 3] },
        Introduction::Deliver { from: key, delay: Duration::from_micros(50_250), passed: vec![0; MAX_PASSED] },
        Introduction::Absent { to: key },
    ] {
        assert_eq!(Introduction::parse(&word.encode()), Some(word));
    }
}

#[test]
fn a_message_too_long_too_short_or_of_no_kind_is_refused() {
    let key = PublicKey([7; 32]);
    let long = vec![0; MAX_PASSED + 1];
    let deliver = Introduction::Deliver { from: key, delay: Duration::ZERO, passed: Vec::new() };
    assert_eq!(Introduction::parse(&Introduction::Forward { to: key, passed: long }.encode()), None);
    assert_eq!(Introduction::parse(&deliver.encode()[..36]), None);
    assert_eq!(Introduction::parse(&Introduction::Absent { to: key }.encode()[..32]), None);
    assert_eq!(Introduction::parse(&[[9].as_slice(), &[7; 32]].concat()), None);
}

#[test]
fn the_nearest_are_asked_first_and_those_that_have_the_call_last() {
    let (mut passers, known) = (Passers::default(), known(5));
    assert_eq!(passers.ask(&known, PEER), [5, 4, 3]);
    assert_eq!(passers.ask(&known, PEER), [2, 1, 5]);
    assert_eq!(passers.ask(&known, PEER), [5, 4, 3]);
}

#[test]
fn who_does_not_know_the_peer_is_not_asked_again_and_the_peer_itself_never() {
    let (mut passers, known) = (Passers::default(), known(3));
    assert_eq!(passers.ask(&known, 3), [2, 1, 0]);
    assert_eq!(passers.note_absent(member(1), 0, &known, 3), Next::Wait);
    assert_eq!(passers.ask(&known, 3), [2, 0]);
}

#[test]
fn one_call_is_given_to_nine_at_most() {
    let (mut passers, known) = (Passers::default(), known(40));
    let mut asked = 0;
    loop {
        let some = passers.ask(&known, PEER);
        asked += some.len();
        let last = some.into_iter().map(|id| passers.note_absent(member(id), 0, &known, PEER)).last();
        if last == Some(Next::GiveUp) {
            break;
        }
        assert_eq!(last, Some(Next::Ask));
    }
    assert_eq!(asked, MAX_ASKED);
}

#[test]
fn a_call_is_given_up_when_nobody_is_left_that_may_know_the_peer() {
    let known = known(1);
    let mut passers = Passers::default();
    assert_eq!(passers.note_absent(Via::Server(0), 1, &known, PEER), Next::Ask);
    assert_eq!(passers.ask(&known, PEER), [1]);
    assert_eq!(passers.note_absent(Via::Server(0), 1, &known, PEER), Next::Wait, "it is asked at each try");
    assert_eq!(passers.note_absent(member(7), 1, &known, PEER), Next::Wait, "nobody asked it");
    assert_eq!(passers.note_absent(member(1), 1, &known, PEER), Next::GiveUp);

    let (mut passers, nobody) = (Passers::default(), Introducers::new());
    assert_eq!(passers.note_absent(Via::Server(0), 2, &nobody, PEER), Next::Wait, "the other server may know it");
    assert_eq!(passers.note_absent(Via::Server(0), 1, &nobody, PEER), Next::GiveUp);
}

proptest! {
    #[test]
    fn no_input_panics(bytes: Vec<u8>) {
        let _ = Introduction::parse(&bytes);
    }
}
