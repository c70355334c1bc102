//! What it costs to seal and to open a packet of 1,420 bytes, by cipher: `cargo bench --bench seal`.

use std::time::{Duration, Instant as Clock};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use p2ptund::proto::keys::PrivateKey;
use p2ptund::proto::noise::timestamp::Timestamp;
use p2ptund::proto::noise::{Identity, Initiator, Received, Remote};
use p2ptund::proto::session::{OVERHEAD, Session};
use p2ptund::proto::{Instant, Packet, Wall};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const LEN: usize = 1420;
/// As WireGuard's replay window: 8,192 packets.
const WORDS: usize = 128;

/// Both ends of a session, by a handshake.
fn sessions(aes: bool) -> (Session, Session) {
    let [ours, theirs] = [1, 2].map(|byte| Identity::new(PrivateKey::from_bytes([byte; 32])));
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let towards = Remote::new(&ours, theirs.public());
    let wall = Wall(Duration::from_secs(1));
    let timestamp = if aes { Timestamp::offering_aes } else { Timestamp::after }(Timestamp::default(), wall);
    let (initiator, initiation, _) = Initiator::start(&ours, &towards, None, 7, timestamp, &mut rng);
    let mut received = Received::open(&theirs, &initiation).expect("is for them");
    received.accept_aes();
    let (response, their_keys, _) = received.respond(None, 8, &mut rng);
    let (our_keys, _) = initiator.finish(&response).expect("is for us");
    (Session::new(our_keys, Instant::default(), WORDS), Session::new(their_keys, Instant::default(), WORDS))
}

fn seal(criterion: &mut Criterion) {
    for (cipher, aes) in [("ChaCha20-Poly1305", false), ("AES-256-GCM", true)] {
        let (ours, theirs) = sessions(aes);
        let mut group = criterion.benchmark_group(cipher);
        group.throughput(Throughput::Bytes(LEN as u64));
        let mut datagram = vec![0; LEN + OVERHEAD];
        group.bench_function("seal 1,420 bytes", |bencher| {
            bencher.iter(|| {
                let counter = ours.sealer.reserve(1, LEN).expect("not used up");
                ours.sealer.seal_datagram(counter, &mut datagram)
            });
        });
        // Each packet opens once only, so it is sealed while the clock stands still.
        group.bench_function("open 1,420 bytes", |bencher| {
            bencher.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    let mut packet = Packet::copy_from(&[0; LEN]);
                    ours.sealer.seal(&mut packet, LEN).expect("not used up");
                    let start = Clock::now();
                    theirs.opener.open_datagram(packet.bytes_mut()).expect("is authentic");
                    took += start.elapsed();
                }
                took
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = seal
}
criterion_main!(benches);
