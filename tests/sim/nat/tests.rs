use super::*;

const START: Instant = Instant::from_nanos(1_000_000_000);
const HERE: SocketAddr = endpoint([192, 168, 1, 2], 4275);
const THERE: SocketAddr = endpoint([203, 0, 113, 9], 5000);
const THERE_ELSEWHERE: SocketAddr = endpoint([203, 0, 113, 9], 5001);
const YONDER: SocketAddr = endpoint([198, 51, 100, 7], 4270);

const fn endpoint(ip: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]), port))
}

struct Bench {
    nat: Nat,
    dice: Dice,
    now: Instant,
}

impl Bench {
    fn new(profile: Profile) -> Self {
        let mut dice = Dice::new(7);
        Self { nat: Nat::new(Ipv4Addr::new(203, 0, 113, 1), profile, &mut dice), dice, now: START }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    fn out_ttl(&mut self, src: SocketAddr, dst: SocketAddr, ttl: u8) -> Result<u16, Loss> {
        let mut datagram = Datagram { src, dst, ttl, whole: false, payload: Vec::new() };
        self.nat.outbound(self.now, &mut self.dice, &mut datagram)?;
        assert_eq!(datagram.src.ip(), IpAddr::V4(self.nat.wan));
        assert_eq!(datagram.ttl, ttl - 1);
        Ok(datagram.src.port())
    }

    fn out(&mut self, src: SocketAddr, dst: SocketAddr) -> u16 {
        self.out_ttl(src, dst, 64).expect("goes out")
    }

    fn back(&mut self, from: SocketAddr, port: u16) -> Result<SocketAddr, Loss> {
        let dst = SocketAddr::V4(SocketAddrV4::new(self.nat.wan, port));
        let mut datagram = Datagram { src: from, dst, ttl: 64, whole: false, payload: Vec::new() };
        self.nat.inbound(self.now, &mut datagram).map(|()| datagram.dst)
    }
}

fn bench(mapping: Scope, filtering: Scope, allocation: Allocation) -> Bench {
    Bench::new(Profile::new(mapping, filtering, allocation))
}

#[test]
fn a_mapping_depends_on_as_much_of_the_remote_as_its_scope_says() {
    for (scope, same_address, same_everything) in
        [(Scope::Endpoint, true, true), (Scope::Address, true, false), (Scope::AddressAndPort, false, false)]
    {
        let mut bench = bench(scope, Scope::AddressAndPort, Allocation::Random);
        let first = bench.out(HERE, THERE);
        assert_eq!(bench.out(HERE, THERE), first);
        assert_eq!(bench.out(HERE, THERE_ELSEWHERE) == first, same_address, "{scope:?}");
        assert_eq!(bench.out(HERE, YONDER) == first, same_everything, "{scope:?}");
    }
}

#[test]
fn a_filter_asks_for_as_much_of_the_remote_as_its_scope_says() {
    for (scope, same_address, anybody) in
        [(Scope::Endpoint, true, true), (Scope::Address, true, false), (Scope::AddressAndPort, false, false)]
    {
        let mut bench = bench(Scope::Endpoint, scope, Allocation::Random);
        let port = bench.out(HERE, THERE);
        assert_eq!(bench.back(THERE, port), Ok(HERE));
        assert_eq!(bench.back(THERE_ELSEWHERE, port).is_ok(), same_address, "{scope:?}");
        assert_eq!(bench.back(YONDER, port).is_ok(), anybody, "{scope:?}");
        assert_eq!(bench.back(THERE, port ^ 1), Err(Loss::Filtered));
    }
}

#[test]
fn fig_4a_keeps_the_port_of_the_first_mapping_only() {
    let mut bench = bench(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::SecondPriority { step: 1 });
    assert_eq!(bench.out(HERE, THERE), 4275);
    let second = bench.out(HERE, YONDER);
    assert_ne!(second, 4275);
    assert_eq!(bench.out(HERE, THERE_ELSEWHERE), second + 1);
    let neighbour = endpoint([192, 168, 1, 3], 4275);
    assert_eq!(bench.out(neighbour, YONDER), second + 2, "the port was taken already");
    bench.wait(31);
    assert_eq!(bench.out(HERE, THERE_ELSEWHERE), 4275, "all had expired, so this was a first one again");
}

#[test]
fn a_sequential_nat_counts_by_its_step_and_wraps_at_the_ends_of_its_range() {
    for step in [1, 2, 4, -1, -4, 256, -300] {
        let mut profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step });
        profile.range = (30_000, 30_999);
        let mut bench = Bench::new(profile);
        let ports: Vec<u16> = (1..=500).map(|remote| bench.out(HERE, endpoint([203, 0, 113, 9], remote))).collect();
        for pair in ports[..9].windows(2) {
            let distance = i32::from(pair[1]) - i32::from(pair[0]) - step;
            assert_eq!(distance % 1000, 0, "step {step}: {pair:?}");
        }
        assert!(ports.iter().all(|port| (30_000..31_000).contains(port)));
        let distinct: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), 500, "a circle that closes early is left, step {step}");
    }
}

#[test]
fn cross_traffic_moves_the_counter_as_often_as_it_says() {
    let mut profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step: 1 });
    profile.cross_traffic = 20.0;
    profile.range = (1, 65535);
    let mut bench = Bench::new(profile);
    let first = bench.out(HERE, THERE);
    bench.wait(100);
    let moved = bench.out(HERE, YONDER).wrapping_sub(first);
    assert!((1850..2150).contains(&moved), "moved by {moved}");
}

#[test]
fn cross_traffic_is_exact_at_a_carriers_rate_too() {
    for step in [1, 256] {
        let mut profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step });
        profile.cross_traffic = 3000.0;
        profile.range = (1, 65535);
        let mut bench = Bench::new(profile);
        let mut last = bench.out(HERE, THERE);
        let mut others = 0;
        for remote in 1..=4000 {
            bench.now = bench.now + Duration::from_millis(5);
            let port = bench.out(HERE, endpoint([203, 0, 113, 9], remote));
            others += (0..).find(|others| moved(last, step * (others + 1)) == port).expect("is a number of steps");
            last = port;
        }
        // 20 s of a Poisson process: 60,000 on average, 245 to either side.
        assert!((58_500..61_500).contains(&others), "step {step}: {others}");
    }
}

/// A port in the range from 1 to 65,535, `by` further.
fn moved(port: u16, by: i32) -> u16 {
    u16::try_from((i64::from(port) - 1 + i64::from(by)).rem_euclid(65_535) + 1).expect("is a port")
}

#[test]
fn of_several_public_addresses_a_host_keeps_one_or_gets_any() {
    for pooling in [Pooling::Paired, Pooling::Arbitrary] {
        let profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step: 1 });
        let more_addresses = vec![Ipv4Addr::new(203, 0, 113, 201), Ipv4Addr::new(203, 0, 113, 202)];
        let mut bench = Bench::new(Profile { more_addresses, pooling, ..profile });
        let mut outsides = std::collections::BTreeSet::new();
        for remote in 1..=60 {
            let remote = endpoint([203, 0, 113, 9], remote);
            let mut datagram = Datagram { src: HERE, dst: remote, ttl: 64, whole: false, payload: Vec::new() };
            bench.nat.outbound(bench.now, &mut bench.dice, &mut datagram).expect("goes out");
            assert!(bench.nat.owns(datagram.src.ip()));
            outsides.insert(datagram.src.ip());
            let mut answer = Datagram { src: remote, dst: datagram.src, ttl: 64, whole: false, payload: Vec::new() };
            assert_eq!(bench.nat.inbound(bench.now, &mut answer).map(|()| answer.dst), Ok(HERE));
        }
        assert_eq!(outsides.len(), if pooling == Pooling::Paired { 1 } else { 3 });
    }
}

#[test]
fn the_router_knows_whose_flow_an_error_is_about() {
    let mut bench = bench(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Random);
    let port = bench.out(HERE, THERE);
    let v4 = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(_) => panic!("is IPv4"),
    };
    let outside = SocketAddrV4::new(bench.nat.wan, port);
    assert_eq!(bench.nat.inside_of(bench.now, outside, v4(THERE)), Some(v4(HERE)));
    assert_eq!(bench.nat.inside_of(bench.now, outside, v4(YONDER)), None);
    assert_eq!(bench.nat.outside_of(bench.now, v4(HERE), v4(THERE)), Some(outside));
    assert_eq!(bench.nat.outside_of(bench.now, v4(HERE), v4(YONDER)), None);
}

#[test]
fn a_block_keeps_to_itself() {
    let mut bench = bench(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Block { size: 512 });
    let ports: Vec<u16> = (1..=400).map(|remote| bench.out(HERE, endpoint([203, 0, 113, 9], remote))).collect();
    let (low, high) = (ports.iter().min().expect("some"), ports.iter().max().expect("some"));
    assert!(high - low < 512);
    assert_eq!((low - 1024) / 512, (high - 1024) / 512);
}

#[test]
fn masquerade_shares_a_port_while_the_remotes_differ_and_draws_another_where_not() {
    let mut bench = Bench::new(Profile::masquerade());
    let neighbour = endpoint([192, 168, 1, 3], 4275);
    assert_eq!(bench.out(HERE, THERE), 4275);
    assert_eq!(bench.out(neighbour, YONDER), 4275);
    assert_ne!(bench.out(neighbour, THERE), 4275);
    assert_eq!(bench.back(YONDER, 4275), Ok(neighbour));
    assert_eq!(bench.back(THERE, 4275), Ok(HERE));
}

#[test]
fn an_unsolicited_datagram_poisons_a_masquerade_for_thirty_seconds_from_the_last_one() {
    let mut bench = Bench::new(Profile::masquerade());
    assert_eq!(bench.back(THERE, 4275), Err(Loss::Filtered));
    bench.wait(20);
    assert_eq!(bench.back(THERE, 4275), Err(Loss::Filtered));
    bench.wait(29);
    let port = bench.out(HERE, THERE);
    assert_ne!(port, 4275, "the 5-tuple is taken");
    assert_eq!(bench.back(THERE, port), Ok(HERE));
    assert_eq!(bench.back(THERE, 4275), Err(Loss::Filtered), "the entry still leads nowhere");
}

#[test]
fn once_a_masquerade_gave_a_flow_another_port_it_gives_that_to_the_endpoints_next_ones_too() {
    let mut bench = Bench::new(Profile::masquerade());
    assert_eq!(bench.out(HERE, THERE_ELSEWHERE), 4275);
    assert_eq!(bench.back(THERE, 4275), Err(Loss::Filtered));
    let other = bench.out(HERE, THERE);
    assert_ne!(other, 4275);
    assert_eq!(bench.out(HERE, YONDER), other);
    assert_eq!(bench.out(HERE, THERE_ELSEWHERE), 4275, "a flow that there is stays as it is");
    let beside = endpoint([192, 168, 1, 2], 4276);
    assert_eq!(bench.out(beside, YONDER), 4276);
}

#[test]
fn a_masquerade_that_was_sent_through_first_is_not_poisoned() {
    let mut bench = Bench::new(Profile::masquerade());
    assert_eq!(bench.out(HERE, THERE), 4275);
    assert_eq!(bench.back(THERE, 4275), Ok(HERE));
    assert_eq!(bench.back(THERE_ELSEWHERE, 4275), Err(Loss::Filtered));
    bench.wait(31);
    assert_eq!(bench.out(HERE, THERE_ELSEWHERE), 4275, "that poison has worn off");
}

#[test]
fn a_poisoned_sequential_nat_drops_the_datagram_and_counts_on() {
    let profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step: 1 });
    let mut bench = Bench::new(Profile { poisonable: true, ..profile });
    let port = bench.out(HERE, YONDER);
    assert_eq!(bench.back(THERE, port + 1), Err(Loss::Filtered));
    assert_eq!(bench.out_ttl(HERE, THERE, 64), Err(Loss::PortTaken));
    assert_eq!(bench.out_ttl(HERE, THERE, 64), Ok(port + 2));
}

#[test]
fn a_ttl_that_ends_at_the_router_makes_no_mapping() {
    let mut bench = bench(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step: 1 });
    assert_eq!(bench.out_ttl(HERE, THERE, 1), Err(Loss::Ttl));
    assert_eq!(bench.nat.created, 0);
    let port = bench.out_ttl(HERE, THERE, 2).expect("passes one router");
    let mut last_hop =
        Datagram { src: THERE, dst: endpoint([203, 0, 113, 1], port), ttl: 1, whole: false, payload: Vec::new() };
    assert_eq!(bench.nat.inbound(bench.now, &mut last_hop), Err(Loss::Ttl));
}

#[test]
fn a_mapping_lives_longer_once_it_was_answered() {
    let mut bench = bench(Scope::Endpoint, Scope::AddressAndPort, Allocation::Random);
    let port = bench.out(HERE, THERE);
    bench.wait(31);
    assert_eq!(bench.back(THERE, port), Err(Loss::Filtered));
    let port = bench.out(HERE, THERE);
    assert_eq!(bench.back(THERE, port), Ok(HERE));
    bench.wait(119);
    assert_eq!(bench.back(THERE, port), Ok(HERE));
    bench.wait(121);
    assert_eq!(bench.back(THERE, port), Err(Loss::Filtered));
}

#[test]
fn traffic_from_outside_refreshes_only_where_the_profile_says_so() {
    for refresh in [true, false] {
        let mut profile = Profile::new(Scope::Endpoint, Scope::AddressAndPort, Allocation::Random);
        (profile.lifetime, profile.unreplied) = (Duration::from_secs(20), Duration::from_secs(20));
        profile.inbound_refresh = refresh;
        let mut bench = Bench::new(profile);
        let port = bench.out(HERE, THERE);
        bench.wait(15);
        assert_eq!(bench.back(THERE, port), Ok(HERE));
        bench.wait(15);
        assert_eq!(bench.back(THERE, port).is_ok(), refresh);
    }
}

#[test]
fn a_full_table_takes_no_new_mapping_and_keeps_the_old_ones() {
    let profile = Profile::new(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Random);
    let mut bench = Bench::new(Profile { limit: 1, ..profile });
    let port = bench.out(HERE, THERE);
    assert_eq!(bench.out_ttl(HERE, YONDER, 64), Err(Loss::Full));
    assert_eq!(bench.out(HERE, THERE), port);
}

#[test]
fn a_port_map_lets_anybody_in_and_its_answers_leave_from_it() {
    let mut bench = bench(Scope::AddressAndPort, Scope::AddressAndPort, Allocation::Sequential { step: 1 });
    let SocketAddr::V4(inside) = HERE else { panic!("is IPv4") };
    assert!(bench.nat.forward_port(START, 4275, inside));
    assert!(!bench.nat.forward_port(START, 4275, SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 3), 4275)));
    assert_eq!(bench.back(THERE, 4275), Ok(HERE));
    assert_eq!(bench.out(HERE, THERE), 4275);
    assert_ne!(bench.out(HERE, YONDER), 4275);
    bench.nat.remove_forward(4275);
    assert_eq!(bench.back(YONDER, 4275), Err(Loss::Filtered));
}

#[test]
fn a_reboot_forgets_and_counts_from_elsewhere() {
    let mut bench = bench(Scope::Endpoint, Scope::Endpoint, Allocation::Sequential { step: 1 });
    let port = bench.out(HERE, THERE);
    bench.nat.reboot(&mut bench.dice);
    assert_eq!(bench.back(THERE, port), Err(Loss::Filtered));
    assert_ne!(bench.out(HERE, THERE), port + 1);
    assert_eq!(bench.nat.created, 2);
}

#[test]
fn ipv6_is_filtered_by_address_and_port_and_not_translated() {
    let v6 = |host: u16, port: u16| -> SocketAddr { format!("[2001:db8::{host:x}]:{port}").parse().expect("parses") };
    let mut bench = Bench::new(Profile::masquerade());
    let inward = |bench: &mut Bench, from| {
        let mut datagram = Datagram { src: from, dst: v6(1, 4275), ttl: 64, whole: false, payload: Vec::new() };
        bench.nat.inbound(bench.now, &mut datagram)
    };
    assert_eq!(inward(&mut bench, v6(2, 4275)), Err(Loss::Filtered));
    let mut out = Datagram { src: v6(1, 4275), dst: v6(2, 4275), ttl: 64, whole: false, payload: Vec::new() };
    bench.nat.outbound(bench.now, &mut bench.dice, &mut out).expect("goes out");
    assert_eq!(out.src, v6(1, 4275));
    assert_eq!(inward(&mut bench, v6(2, 4275)), Ok(()));
    assert_eq!(inward(&mut bench, v6(2, 4276)), Err(Loss::Filtered));
}

#[test]
fn nothing_goes_out_to_ports_that_are_forbidden() {
    let profile = Profile::new(Scope::Endpoint, Scope::Endpoint, Allocation::Random);
    let mut bench = Bench::new(Profile { forbids_from: Some(THERE_ELSEWHERE.port()), ..profile });
    assert_eq!(bench.out_ttl(HERE, THERE_ELSEWHERE, 64), Err(Loss::Forbidden));
    assert_eq!(bench.nat.created, 0);
    bench.out(HERE, THERE);
}

#[test]
fn mappings_of_others_move_the_counter_and_are_not_counted() {
    let profile = Profile::new(Scope::AddressAndPort, Scope::Endpoint, Allocation::Sequential { step: 1 });
    let mut bench = Bench::new(Profile { cross_traffic: 1000.0, ..profile });
    let first = bench.out(HERE, THERE);
    bench.wait(1);
    let way = bench.out(HERE, THERE_ELSEWHERE).wrapping_sub(first);
    assert!((800..1200).contains(&way), "{way}");
    assert_eq!(bench.nat.created, 2);
    assert_eq!(bench.nat.created_for[&Ipv4Addr::new(192, 168, 1, 2)], 2);
}
