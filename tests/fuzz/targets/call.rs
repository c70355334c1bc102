//! A call between a member and a peer that says anything of itself: the plan, and the punch that carries it out, stay within
//! what the owner allows, whatever the reports and terms are.

use std::collections::BTreeSet;
use std::time::Duration;

use p2ptund::proto::budget::Budget;
use p2ptund::proto::message_control::{Answer, Report};
use p2ptund::proto::punch::{Punch, Role, Setup, SocketIds, Step};
use p2ptund::proto::{Instant, SocketId, config, message_control, plan};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::input::Input;

/// What a member takes for the length of a round (`peer::calling`).
const SHORTEST_ROUND: Duration = Duration::from_millis(500);
const LONGEST_ROUND: Duration = Duration::from_secs(2);

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = config::Punch {
        window: (-i32::from(input.u16() % 4097), i32::from(input.u16() % 4097)),
        sockets: u32::from(input.u16() % 1025),
        probes: u32::from(input.u16()),
        timeout: Duration::from_millis(u64::from(input.u16()) + 1000),
        ..config::Punch::default()
    };
    // `until_start` follows from both reports' round trips to the server, which are any; a round is bounded by both sides.
    let mut millis = || Duration::from_millis(u64::from(input.u32() >> 8));
    let (since_call, until_start) = (millis(), millis());
    let round = Duration::from_millis(u64::from(input.u16())).clamp(SHORTEST_ROUND, LONGEST_ROUND);
    let candidates = input.u8();
    let (caller, _) = report(&mut input);
    let (called, answer) = report(&mut input);
    let ours = plan::terms(&caller, &called, since_call, until_start, round);
    let mut theirs = answer.map_or(ours, |answer| answer.terms);
    theirs.round = theirs.round.clamp(SHORTEST_ROUND, LONGEST_ROUND);
    for (role, terms) in [(Role::Called, ours), (Role::Caller, theirs)] {
        let (one, other) = if role == Role::Called { (&called, &caller) } else { (&caller, &called) };
        let setup = Setup {
            id: 1,
            role,
            start: Instant::from_nanos(1_000_000_000) + until_start,
            plan: plan::plan(&caller, &called, &terms, &limits),
            reported: SocketId::MAIN_V4,
            fresh: one.fresh_port.map(|_| SocketId(1000)),
            spare: Vec::new(),
            candidates: other.candidates.iter().copied().take(usize::from(candidates)).collect(),
            mapping: one.mapping,
            low_ttl: 2,
        };
        play(setup, limits);
    }
    let places = plan::wants_hold(&caller, &called, true, since_call, false);
    assert!(places.len() <= message_control::MAX_HOLDS);
}

fn report(input: &mut Input<'_>) -> (Report, Option<Answer>) {
    let len = usize::from(input.u16());
    let answer = Answer::parse(input.take(len));
    (answer.clone().map(|answer| answer.report).unwrap_or_default(), answer)
}

fn play(setup: Setup, limits: config::Punch) {
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut punch = Punch::new(now, setup, Budget::new(limits));
    let (mut ids, mut rng) = (SocketIds::default(), ChaCha20Rng::from_seed([4; 32]));
    let (mut probes, mut opened) = (0, BTreeSet::new());
    while !punch.has_expired(now) {
        if let Some(holds) = punch.wants_aim(now) {
            let aim = holds.first().map(|hold| (*hold, limits.sockets));
            punch.aim_sweep(aim);
        }
        for step in punch.handle_timeout(now, &mut ids, &mut rng) {
            match step {
                Step::Open { socket, .. } => assert!(opened.insert(socket), "a socket is opened once"),
                Step::Close(socket) => assert!(opened.contains(&socket), "what is closed was open"),
                Step::Shoot(shot) => {
                    assert!(shot.to.port() != 0);
                    probes += 1;
                }
            }
        }
        let due = punch.poll_timeout().expect("a punch ends");
        assert!(due > now, "all that was due is done");
        now = due;
    }
    assert_eq!(punch.probes_sent(), u64::from(probes));
    assert!(probes <= limits.probes);
    assert!(punch.budget.entries() <= limits.entries);
    assert!(opened.len() <= limits.sockets as usize);
    punch.close(None);
}
