//! What cutting and joining cost, for each super-packet of the most that IPv4 holds in packets of 1,420 bytes:
//! `cargo bench --bench offload`.

use std::hint::black_box;
use std::io::IoSlice;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use p2ptund::proto::offload::checksum;
use p2ptund::proto::offload::merge::{Accepts, Merger};
use p2ptund::proto::offload::split::Split;
use p2ptund::proto::offload::virtio::{Header, Kind, Partial, Segments};

/// IPv4 and TCP with timestamps.
const HEADERS: usize = 52;
const MTU: usize = 1420;
const SEGMENTS: usize = 47;

/// TCP over IPv4, as the kernel hands it over.
fn super_packet() -> (Header, Vec<u8>) {
    let len = HEADERS + SEGMENTS * (MTU - HEADERS);
    let mut packet: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    (packet[32], packet[33]) = (0x80, 0x10);
    let pseudo = checksum::pseudo_header(&packet[12..20], 6, len - 20);
    packet[36..38].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let header = Header {
        partial: Some(Partial { start: 20, offset: 16 }),
        segments: Some(Segments { kind: Kind::TcpV4 { cwr: false }, size: (MTU - HEADERS) as u16 }),
        header_len: HEADERS as u16,
    };
    (header, packet)
}

fn split(criterion: &mut Criterion) {
    let (header, packet) = super_packet();
    let mut out = vec![0; SEGMENTS * MTU];
    let mut group = criterion.benchmark_group("split");
    group.throughput(Throughput::Bytes(packet.len() as u64));
    group.bench_function("64 KiB of TCP into packets of 1,420 bytes", |bencher| {
        bencher.iter(|| {
            let split = Split::new(black_box(&header), black_box(&packet)).expect("can be cut");
            for (index, out) in out.chunks_mut(MTU).enumerate() {
                assert_eq!(split.write(index, out), MTU);
            }
        });
    });
    group.finish();
}

fn merge(criterion: &mut Criterion) {
    let (header, packet) = super_packet();
    let split = Split::new(&header, &packet).expect("can be cut");
    let packets: Vec<Vec<u8>> = (0..SEGMENTS)
        .map(|index| {
            let mut out = vec![0; MTU];
            split.write(index, &mut out);
            out
        })
        .collect();
    let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Bytes(packet.len() as u64));
    for (name, accepts) in [
        ("47 packets of 1,420 bytes into one", Accepts { tcp4: true, tcp6: true, udp: true }),
        ("47 packets, one by one", Accepts::default()),
    ] {
        let mut merger = Merger::new(accepts);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                merger.merge(black_box(&packets), |pieces: &[IoSlice<'_>]| {
                    black_box(pieces);
                });
            });
        });
    }
    group.finish();
}

fn sum(criterion: &mut Criterion) {
    let bytes = vec![0x5a; 1 << 16];
    let mut to = vec![0; 1 << 16];
    let mut group = criterion.benchmark_group("checksum");
    for len in [60, 1368, 1 << 16] {
        group.throughput(Throughput::Bytes(len as u64));
        group
            .bench_function(format!("{len} bytes"), |bencher| bencher.iter(|| checksum::sum(black_box(&bytes[..len]))));
        group.bench_function(format!("{len} bytes, copied as well"), |bencher| {
            bencher.iter(|| checksum::copy(black_box(&bytes[..len]), &mut to[..len]));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = split, merge, sum
}
criterion_main!(benches);
