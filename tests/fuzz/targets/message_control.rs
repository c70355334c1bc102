//! The sealed part of a call, an answer and an abort: a peer's own words, so authentic, and yet believed no further than this.

use std::net::SocketAddr;

use p2ptund::proto::message_control::{Abort, Answer, Call, MAX_CANDIDATES, Report, reachable};
use p2ptund::proto::nat::Allocation;

/// "A call with all its candidates takes less than 800 bytes" (`rendezvous::MAX_PASSED`).
const LONGEST: usize = 800;

pub fn run(data: &[u8]) {
    if let Some(call) = Call::parse(data) {
        check(&call.report, []);
        let encoded = call.encode();
        assert!(encoded.len() < LONGEST);
        assert_eq!(Call::parse(&encoded), Some(call));
    }
    if let Some(answer) = Answer::parse(data) {
        check(&answer.report, [answer.terms.modification, answer.terms.aim]);
        let encoded = answer.encode();
        assert!(encoded.len() < LONGEST);
        assert_eq!(Answer::parse(&encoded), Some(answer));
    }
    if let Some(abort) = Abort::parse(data) {
        assert_eq!(Abort::parse(&abort.encode()), Some(abort));
    }
}

fn check<const N: usize>(report: &Report, terms: [Option<SocketAddr>; N]) {
    assert!(report.candidates.len() <= MAX_CANDIDATES);
    let candidates = report.candidates.iter().map(|candidate| candidate.address);
    for address in candidates.chain(report.tuple).chain(terms.into_iter().flatten()) {
        assert_eq!(reachable(address), Some(address), "nobody may be sent there");
    }
    if let Allocation::SecondPriority { step } | Allocation::Sequential { step } = report.allocation {
        assert!(step != 0 && step.unsigned_abs() <= u32::from(u16::MAX));
    }
    assert_ne!(report.fresh_port, Some(0));
}
