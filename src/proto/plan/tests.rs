use proptest::prelude::{TestCaseError, prop, prop_assert, prop_assert_eq, proptest};

use super::Strategy;
use super::*;
use crate::proto::message_control::PerKilosecond;

const OURS: [u8; 4] = [203, 0, 113, 5];
const THEIRS: [u8; 4] = [203, 0, 113, 6];

fn report(mapping: Mapping, allocation: Allocation) -> Report {
    let budget = Budget { probes: 2048, entries: 1280, rate: 1000 };
    Report { tuple: Some(SocketAddr::from((OURS, 30_000))), mapping, allocation, budget, ..Report::default() }
}

fn cone() -> Report {
    report(Mapping::EndpointIndependent, Allocation::Preserving)
}

fn counting(step: i32) -> Report {
    report(Mapping::AddressAndPortDependent, Allocation::Sequential { step })
}

fn random(mapping: Mapping) -> Report {
    report(mapping, Allocation::Random)
}

fn there(report: Report) -> Report {
    Report { tuple: Some(SocketAddr::from((THEIRS, 40_000))), ..report }
}

fn rounds(caller: &Report, called: &Report) -> Plan {
    let round = Duration::from_millis(800);
    let terms = terms(caller, called, Duration::ZERO, Duration::ZERO, round);
    let Budget { probes, entries, .. } = caller.budget;
    plan(caller, called, &terms, &Punch { probes, entries, ..Punch::default() })
}

fn hold(port: u16, to: u16) -> Hold {
    Hold { first: port, last: port, to }
}

#[test]
fn two_cones_shoot_at_each_others_one_port_and_then_begin_a_shotgun() {
    let plan = rounds(&cone(), &there(cone()));
    let first = &plan.rounds[0];
    assert_eq!(first.strategy, Strategy::Direct);
    assert_eq!(first.caller.as_ref().expect("shoots").target, Target::one(SocketAddr::from((THEIRS, 40_000))));
    assert_eq!(first.called.as_ref().expect("shoots").timing, Timing::Opened);
    assert!(plan.rounds[1..].iter().all(|round| round.strategy == Strategy::Window));
    assert!(plan.rounds.len() > 1);
}

#[test]
fn a_held_port_is_shot_at_and_nothing_else() {
    let mut moving = there(counting(2));
    moving.holds = vec![hold(40_008, 30_000)];
    let plan = rounds(&cone(), &moving);
    assert_eq!(plan.rounds[0].strategy, Strategy::Hold);
    let target = &plan.rounds[0].caller.as_ref().expect("shoots").target;
    assert_eq!(*target, Target::one(SocketAddr::from((THEIRS, 40_008))));
}

#[test]
fn a_called_member_waits_for_the_hold_of_a_caller_whose_ports_move() {
    assert_eq!(rounds(&counting(1), &there(cone())).rounds[0].strategy, Strategy::Wait);
    assert_eq!(
        wants_hold(&counting(1), &there(cone()), false, Duration::ZERO, false),
        [SocketAddr::from((THEIRS, 40_000))]
    );
    assert!(wants_hold(&cone(), &there(counting(1)), true, Duration::ZERO, false).is_empty());
}

#[test]
fn a_port_that_lies_between_two_questions_is_shot_at_wherever_it_may_be() {
    let hold = Hold { first: 40_008, last: 40_012, to: 1 };
    assert_eq!(ports_of(&hold, 2, None), [40_008, 40_010, 40_012]);
}

#[test]
fn a_fresh_socket_is_worth_a_second_hold_where_the_first_leaves_two_ports_and_one_window() {
    let second = report(Mapping::AddressAndPortDependent, Allocation::SecondPriority { step: 1 });
    let fresh = Report { fresh_port: Some(20_000), ..second };
    let wide = [Hold { first: 40_008, last: 40_009, to: 20_000 }];
    assert!(!hold::is_enough(&wide, &fresh) && hold::is_enough(&[hold(40_008, 20_000)], &fresh));
    let to_cone = |port| [Hold { to: port, ..wide[0] }];
    assert!(
        hold::is_enough(&to_cone(30_000), &cone()) && !hold::is_enough(&to_cone(30_001), &cone()),
        "a decoy is none"
    );
    assert!(!hold::is_enough(&wide, &counting(1)), "a sweep goes over one port");
    let windows = |fixed: &Report| {
        let moving = Report { holds: wide.to_vec(), ..there(counting(1)) };
        let rounds = rounds(fixed, &moving).rounds;
        rounds.iter().filter(|round| round.strategy == Strategy::Window).count()
    };
    assert!(windows(&fresh) == 1 && windows(&cone()) > 1);
}

#[test]
fn where_random_ports_meet_a_cone_the_budget_is_kept_and_a_path_is_as_good_as_sure() {
    for mapping in [Mapping::AddressDependent, Mapping::AddressAndPortDependent] {
        let mut cone = there(cone());
        cone.filtering = Filtering::AddressAndPortDependent;
        let plan = rounds(&random(mapping), &cone);
        let round = &plan.rounds[0];
        assert_eq!((round.strategy, plan.outlook), (Strategy::Scatter, Outlook::Good));
        let (Some(row), Some(scatter)) = (&round.caller, &round.called) else { panic!("both shoot") };
        let Sockets::Row(sockets) = row.sockets else { panic!("a row") };
        let Target::Draw { each, .. } = scatter.target else { panic!("draws") };
        assert!(sockets + scatter::ENTRIES_ASIDE <= 256 && each <= 2048);
        let miss = (1.0 - f64::from(each) / 64_512.0).powi(sockets as i32);
        assert!(miss < 1e-3, "{miss}");
    }
}

#[test]
fn an_open_filter_is_tried_before_anything_hard() {
    let mut open = there(cone());
    open.filtering = Filtering::EndpointIndependent;
    let plan = rounds(&random(Mapping::AddressAndPortDependent), &open);
    assert_eq!(plan.rounds[0].strategy, Strategy::Direct);
    assert!(!plan.rounds[0].is_hard());
}

#[test]
fn many_shots_leave_a_socket_that_nothing_which_came_through_the_gate_was_for() {
    let unused = 41_000;
    for (filtering, gate) in [(Filtering::Unknown, true), (Filtering::AddressAndPortDependent, false)] {
        let keeps = there(Report {
            filtering,
            fresh_port: Some(unused),
            ..report(Mapping::EndpointIndependent, Allocation::Preserving)
        });
        let tuple = keeps.tuple.expect("is known");
        let plan = rounds(&random(Mapping::AddressAndPortDependent), &keeps);
        let scatter = plan.rounds.iter().find(|round| round.strategy == Strategy::Scatter).expect("is random");
        let (row, shots) = (scatter.caller.as_ref().expect("opens"), scatter.called.as_ref().expect("shoots"));
        let (socket, port) = if gate { (Sockets::Fresh, unused) } else { (Sockets::Reported, tuple.port()) };
        assert_eq!(shots.sockets, socket, "{filtering:?}");
        assert_eq!(row.target, Target::one(SocketAddr::new(tuple.ip(), port)), "{filtering:?}");
    }
}

#[test]
fn a_machine_without_a_nat_may_overhear_the_first_shot_and_a_router_does_not() {
    for (mapping, first) in [(Mapping::None, Strategy::Direct), (Mapping::EndpointIndependent, Strategy::Scatter)] {
        let mut shut = report(mapping, Allocation::Preserving);
        shut.filtering = Filtering::AddressAndPortDependent;
        let random = random(Mapping::AddressAndPortDependent);
        for plan in [rounds(&random, &there(shut.clone())), rounds(&shut, &there(random))] {
            assert_eq!(plan.rounds[0].strategy, first, "{mapping:?}");
            assert!(plan.rounds.iter().any(|round| round.strategy == Strategy::Scatter));
        }
    }
}

#[test]
fn a_mapped_port_makes_a_side_fixed_whatever_its_nat_does_and_a_private_one_does_not() {
    let mapped = |ip: [u8; 4]| {
        let mut report = random(Mapping::AddressAndPortDependent);
        let address = SocketAddr::from((ip, 4275));
        report.candidates = vec![crate::proto::message_control::Candidate { kind: CandidateKind::Mapped, address }];
        port(&report)
    };
    assert!(matches!(mapped(OURS), Port::Fixed { from: Sockets::Main, .. }));
    assert!(matches!(mapped([100, 64, 0, 2]), Port::Random(_)));
}

#[test]
fn nothing_leaves_a_mapped_port_but_to_its_own_router() {
    let address = SocketAddr::from((THEIRS, 4275));
    let mapped = crate::proto::message_control::Candidate { kind: CandidateKind::Mapped, address };
    let mapped = Report { candidates: vec![mapped], ..there(random(Mapping::AddressAndPortDependent)) };
    let held = Report { holds: vec![hold(30_001, 4275)], ..counting(1) };
    for other in [cone(), counting(1), held, random(Mapping::AddressAndPortDependent)] {
        for plan in [rounds(&mapped, &other), rounds(&other, &mapped)] {
            let sides = plan.rounds.iter().flat_map(|round| [&round.caller, &round.called]).flatten();
            let from_there: Vec<_> = sides.filter(|side| side.sockets == Sockets::Main).collect();
            assert!(from_there.iter().all(|side| side.timing == Timing::Inside), "{from_there:?}");
        }
    }
}

#[test]
fn what_the_budget_can_not_give_is_said_with_what_would() {
    let by_port = random(Mapping::AddressAndPortDependent);
    assert!(matches!(rounds(&by_port, &there(by_port.clone())).outlook, Outlook::Poor(_)));
    assert!(matches!(rounds(&counting(1), &there(by_port.clone())).outlook, Outlook::Poor(_)));
    let by_address = random(Mapping::AddressDependent);
    let Outlook::Needs(Needs { probes: Some(needs), timeout: None, .. }) =
        rounds(&by_address, &there(by_address.clone())).outlook
    else {
        panic!("says so")
    };
    assert!(needs <= 300_000);
    let rich = Report { budget: Budget { probes: needs, entries: 1280, rate: rate(needs) }, ..by_address };
    assert_eq!(rounds(&rich, &there(rich.clone())).outlook, Outlook::Good);
    let row = there(Report { budget: rich.budget, ..counting(1) });
    assert!(rounds(&rich, &row).outlook.is_worth_a_try());
    assert!(rounds(&rich, &row).rounds.iter().all(|round| round.length < Duration::from_secs(20)));
}

#[test]
fn what_takes_longer_than_a_call_is_said_with_the_time_that_it_takes() {
    let random = random(Mapping::AddressDependent);
    let row = there(counting(1));
    let Outlook::Needs(needs) = rounds(&random, &row).outlook else { panic!("says so") };
    assert_eq!(needs.to_string(), "`probes = 350000` and `timeout = \"22s\"`");
    let rich = Budget { probes: 350_000, entries: 1280, rate: 25_000 };
    let (random, row) = (Report { budget: rich, ..random }, Report { budget: rich, ..row });
    let Outlook::Needs(needs) = rounds(&random, &row).outlook else { panic!("there is no time for it") };
    assert_eq!(needs.to_string(), "`timeout = \"22s\"`");
    assert!(Outlook::Needs(needs).is_worth_a_try());
    let few = Budget { entries: 100, ..rich };
    let (random, row) = (Report { budget: few, ..random }, Report { budget: few, ..row });
    let Outlook::Needs(needs) = rounds(&random, &row).outlook else { panic!("says so") };
    assert_eq!(needs.to_string(), "`entries = 1280` and `timeout = \"22s\"`");
    assert!(!Outlook::Needs(needs).is_worth_a_try());
}

#[test]
fn a_round_is_as_long_as_the_slower_side_needs() {
    let slow = Budget { probes: 2048, entries: 1280, rate: 250 };
    let mut cone = there(cone());
    cone.filtering = Filtering::AddressAndPortDependent;
    let length = |budget| {
        let random = Report { budget, ..random(Mapping::AddressAndPortDependent) };
        rounds(&random, &cone).rounds[0].length
    };
    assert!(length(cone.budget) < Duration::from_secs(3));
    assert!(length(slow) >= Duration::from_secs(8), "2,000 at 250 a second");
}

#[test]
fn a_nat_that_keeps_only_first_ports_counts_where_many_are_needed() {
    let rich = Budget { probes: 400_000, entries: 1280, rate: 25_000 };
    let random = Report { budget: rich, ..random(Mapping::AddressDependent) };
    let second = report(Mapping::AddressAndPortDependent, Allocation::SecondPriority { step: 2 });
    let second = Report { fresh_port: Some(20_000), budget: rich, ..second };
    let second_there = there(second.clone());
    for plan in [rounds(&random, &second_there), rounds(&second, &there(random.clone()))] {
        assert_eq!(plan.rounds[0].strategy, Strategy::Grid);
    }
    let Target::Draw { at, .. } = rounds(&random, &second_there).rounds[0].caller.clone().expect("shoots").target
    else {
        panic!("draws")
    };
    assert!((0..at.count).any(|nth| at.port(nth) == 40_002), "the next port of its sequence");
}

#[test]
fn a_row_begins_about_where_others_have_moved_the_counter_to() {
    let rich = Budget { probes: 400_000, entries: 1280, rate: 25_000 };
    let server_delay = Duration::from_millis(100);
    let random = Report { budget: rich, server_delay, ..random(Mapping::AddressDependent) };
    let first = |cross_traffic, calls| {
        let age = Duration::from_millis(400);
        let busy = there(Report { cross_traffic, budget: rich, server_delay, age, ..counting(1) });
        let plan = if calls { rounds(&busy, &random) } else { rounds(&random, &busy) };
        let round = plan.rounds.into_iter().next().expect("one is planned");
        let round = if calls { round } else { round.turned() };
        let Target::Draw { at, .. } = round.called.expect("shoots").target else { panic!("draws") };
        at.first
    };
    // A signal after an answer with that age, 150 came between, give or take 12, and another one after a call.
    let busy = Some(PerKilosecond { rate: 300_000, error: 0 });
    for (calls, ahead) in [(false, 100..150), (true, 130..180)] {
        let moved = first(busy, calls) - first(None, calls);
        assert!(ahead.contains(&moved), "{moved}");
    }
}

#[test]
fn a_row_is_no_hold_that_a_nearer_address_could_wait_for() {
    let rich = Budget { probes: 400_000, entries: 1280, rate: 25_000 };
    let address = "[2001:db8::7]:4275".parse().expect("address");
    let candidates = vec![crate::proto::message_control::Candidate { kind: CandidateKind::Ipv6, address }];
    let random = Report { budget: rich, candidates: candidates.clone(), ..random(Mapping::AddressDependent) };
    let row = there(Report { budget: rich, candidates, ..counting(1) });
    for plan in [rounds(&random, &row), rounds(&row, &random)] {
        let strategies: Vec<Strategy> = plan.rounds.iter().map(|round| round.strategy).collect();
        assert_eq!(strategies, [Strategy::Direct, Strategy::Grid]);
    }
}

#[test]
fn nearer_addresses_have_their_time_where_nothing_else_is_to_be_tried() {
    let address = "[2001:db8::7]:4275".parse().expect("address");
    let candidates = vec![crate::proto::message_control::Candidate { kind: CandidateKind::Ipv6, address }];
    let caller = Report { candidates: candidates.clone(), ..random(Mapping::AddressAndPortDependent) };
    let unheld = report(Mapping::AddressDependent, Allocation::Sequential { step: 1 });
    let plan = rounds(&caller, &there(Report { candidates, ..unheld }));
    assert!(!plan.rounds.is_empty(), "the call would be over before an answer can be there");
}

#[test]
fn two_blocks_are_tried_and_no_plan_is_longer_than_a_call() {
    let block = Report { range: Some((20_000, 20_511)), ..random(Mapping::AddressAndPortDependent) };
    let plan = rounds(&block, &there(block.clone()));
    assert_eq!((plan.rounds[0].strategy, plan.outlook), (Strategy::Cells, Outlook::Good));
}

proptest! {
    /// The oracle: give out the caller's ports one by one, others' in between, and look whether the held one is among them.
    #[test]
    fn a_sweep_goes_over_a_held_port_as_long_as_the_counter_is_where_it_is_expected_to_be(
        step in prop::sample::select(vec![1i32, 2, -1, 4, 256]),
        rate in prop::sample::select(vec![0u32, 20, 300, 1000, 3000]),
        wait in 100u64..400, age in 20u64..100,
        deviation in -1.5f64..1.5,
    ) {
        let mut caller = counting(step);
        caller.cross_traffic = Some(PerKilosecond { rate: rate * 1000, error: rate * 50 });
        let Port::Moving(moving) = port(&caller) else { panic!("moves") };
        let places = sweep::places(&moving, &caller, Duration::from_millis(wait));
        let holds: Vec<Hold> = places.iter().map(|place| hold(50_000, place.port())).collect();
        // Others took so many by the newest look, and then so many more.
        let looked = (f64::from(rate) * (wait - age.min(wait)) as f64 / 1000.0).round() as i64;
        let last = counter::after(30_000, step, looked, None);
        let rate = super::super::counter::Rate { per_s: f64::from(rate), error: f64::from(rate) / 20.0 };
        let ahead = counter::Ahead::after(Duration::from_millis(age), rate);
        let (aside, own) = (counter::Aside::Unknown, std::collections::BTreeSet::new());
        let course = counter::Course { last, step, range: None, aside, own };
        let Some(sweep::Aim { hold, shots, .. }) = sweep::aim(&holds, &course, ahead, if rate.per_s > 300.0 { 768 } else { 256 }) else {
            return Err(TestCaseError::fail("none is ahead"));
        };
        let others = (ahead.steps + deviation * ahead.error).max(0.0) as i64;
        let taken = (0..i64::from(shots)).map(|nth| counter::after(last, step, others + 1 + nth, None));
        prop_assert!(taken.into_iter().any(|port| port == hold.to), "{:?} {}", hold, shots);
    }

    #[test]
    fn a_window_holds_each_offset_once(low in -200i32..=0, high in 0i32..=200) {
        let mut all: Vec<i32> = window::offsets(low, high).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (low..=high).collect::<Vec<_>>());
    }

    #[test]
    fn a_shifted_window_holds_each_offset_once(low in 1i32..=100, width in 0i32..=100) {
        prop_assert_eq!(window::offsets(low, low + width).count() as i32, width + 1);
    }
}

#[test]
fn the_next_port_is_extrapolated_by_the_differential_and_by_time() {
    let mut report = counting(2);
    report.cross_traffic = Some(PerKilosecond { rate: 100_000, error: 0 });
    report.age = Duration::from_millis(50);
    let next = window::aim(&report, Duration::from_millis(50)).expect("is known");
    assert_eq!(next.port(), 30_000 + 2 * (1 + 10));
}

#[test]
fn a_private_or_a_carriers_address_is_not_global() {
    for (address, global) in [
        ("203.0.113.9", true),
        ("100.63.255.255", true),
        ("100.128.0.0", true),
        ("100.64.0.0", false),
        ("100.127.255.255", false),
        ("10.0.0.1", false),
        ("172.31.0.1", false),
        ("192.168.0.1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(is_global(address.parse().expect("an address")), global, "{address}");
    }
}

#[test]
fn what_no_probe_would_go_to_is_nothing_nearer() {
    let with = |report: Report, kind, address: &str| {
        let address = address.parse().expect("an address");
        Report { candidates: vec![Candidate { kind, address }], ..report }
    };
    let (a, b) = (counting(1), there(counting(1)));
    let mapped = |ip: &str| with(b.clone(), CandidateKind::Mapped, ip);
    let ipv6 = |report: &Report, ip: &str| with(report.clone(), CandidateKind::Ipv6, ip);
    assert!(has_nearer(&a, &mapped("203.0.113.6:4275")) && has_nearer(&mapped("203.0.113.6:4275"), &a));
    assert!(!has_nearer(&a, &mapped("100.64.0.7:4275")));
    let customer = with(a.clone(), CandidateKind::Mapped, "100.64.0.9:4275");
    assert!(has_nearer(&customer, &mapped("100.64.0.7:4275")));
    assert!(!has_nearer(&a, &ipv6(&b, "[2001:db8::7]:4275")));
    assert!(!has_nearer(&ipv6(&a, "[fe80::1]:4275"), &ipv6(&b, "[2001:db8::7]:4275")));
    assert!(has_nearer(&ipv6(&a, "[2001:db8::1]:4275"), &ipv6(&b, "[2001:db8::7]:4275")));
}
