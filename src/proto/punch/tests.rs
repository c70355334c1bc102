use super::*;
use crate::proto::config;

fn punch(limits: config::Punch) -> Punch {
    let now = Instant::default();
    let setup = Setup {
        id: 1,
        role: Role::Called,
        start: now,
        plan: Plan { rounds: Vec::new(), outlook: Outlook::Good },
        reported: SocketId::MAIN_V4,
        fresh: None,
        spare: Vec::new(),
        candidates: Vec::new(),
        mapping: Mapping::AddressAndPortDependent,
        low_ttl: 2,
    };
    Punch::new(now, setup, Budget::new(limits))
}

fn from(port: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], port))
}

#[test]
fn of_many_shots_from_one_port_fewer_and_fewer_are_answered() {
    let mut punch = punch(config::Punch::default());
    let answers: Vec<bool> = (0..9).map(|_| punch.take_answer(SocketId(2), from(7))).collect();
    assert_eq!(answers, [true, true, false, true, false, false, false, true, false]);
    assert_eq!((punch.probes_sent(), punch.budget.probes(), punch.budget.entries()), (4, 4, 1));
}

#[test]
fn answers_make_no_more_entries_and_are_no_more_probes_than_a_call_may() {
    let mut few_entries = punch(config::Punch { entries: 10, ..config::Punch::default() });
    assert_eq!((0..100).filter(|port| few_entries.take_answer(SocketId(2), from(*port))).count(), 10);
    let mut few_probes = punch(config::Punch { probes: 12, ..config::Punch::default() });
    assert_eq!((0..100).filter(|port| few_probes.take_answer(SocketId(2), from(*port))).count(), 12);
}

#[test]
fn a_peer_that_shoots_from_everywhere_fills_no_memory() {
    let plenty = config::Punch { probes: 1_000_000, entries: 1_000_000, ..config::Punch::default() };
    let mut punch = punch(plenty);
    for port in 0..u16::MAX {
        punch.take_answer(SocketId(2), from(port));
    }
    assert_eq!(punch.came.len(), MOST_CAME);
    assert!(punch.take_answer(SocketId(2), from(7)), "the second from there");
}
