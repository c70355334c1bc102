//! What it costs to find whose an address is, among 10,000 prefixes: `cargo bench --bench routes`. The target is 100 ns.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ipnet::IpNet;
use p2ptund::proto::allowed_ips::AllowedIps;

/// Each has a network of both families, so they are 10,000 prefixes.
const OFFICES: u32 = 5_000;
/// Addresses in turn, so that no branch is known by heart.
const ADDRESSES: usize = 4096;

/// Side by side in 10.0.0.0/8 and fd77::/16, as people number their offices.
fn side_by_side() -> AllowedIps<u32> {
    let mut table = AllowedIps::default();
    table.extend((0..OFFICES).flat_map(|office| {
        let v4 = Ipv4Addr::from((10 << 24) + (office << 8));
        let v6 = Ipv6Addr::from((0xfd77 << 112) + (u128::from(office) << 64));
        [(net(v4.into(), 24), office), (net(v6.into(), 64), office)]
    }));
    table
}

/// Anywhere, with default routes beneath them.
fn strewn() -> AllowedIps<u32> {
    let (mut table, mut state) = (AllowedIps::default(), 1);
    let defaults = ["0.0.0.0/0", "::/0"].map(|text| (text.parse().expect("parses"), OFFICES));
    table.extend(defaults.into_iter().chain((0..OFFICES).flat_map(|office| {
        let v4 = Ipv4Addr::from(next(&mut state));
        let v6 = Ipv6Addr::from((u128::from(next(&mut state)) << 96) + (u128::from(office) << 64));
        [(net(v4.into(), 24), office), (net(v6.into(), 64), office)]
    })));
    table
}

fn net(address: IpAddr, len: u8) -> IpNet {
    IpNet::new(address, len).expect("in range").trunc()
}

/// Numbers without a pattern, the same each time.
fn next(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

/// Hosts of prefixes that are in the table, in no order.
fn hosts(table: &AllowedIps<u32>, v4: bool) -> Vec<IpAddr> {
    let prefixes = table.iter().map(|(prefix, _)| prefix).filter(|prefix| prefix.addr().is_ipv4() == v4);
    let (prefixes, mut state): (Vec<IpNet>, _) = (prefixes.collect(), 7);
    let host = |_| {
        let (at, host) = (next(&mut state) as usize % prefixes.len(), next(&mut state));
        match prefixes[at].network() {
            IpAddr::V4(net) => Ipv4Addr::from(u32::from(net) | host & 0xff).into(),
            IpAddr::V6(net) => Ipv6Addr::from(u128::from(net) | u128::from(host)).into(),
        }
    };
    (0..ADDRESSES).map(host).collect()
}

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes");
    group.throughput(Throughput::Elements(1));
    for (how, table) in [("side by side", side_by_side()), ("strewn", strewn())] {
        for (family, v4) in [("IPv4", true), ("IPv6", false)] {
            let mut hosts = hosts(&table, v4).into_iter().cycle();
            group.bench_function(format!("{family}, {how}"), |bencher| {
                bencher.iter(|| table.lookup(black_box(hosts.next().expect("never ends"))));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = routes
}
criterion_main!(benches);
