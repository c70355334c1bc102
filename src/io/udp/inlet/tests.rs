//! Over loopback and veth pairs, in network namespaces of the tests' own where they change a device.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use socket2::SockRef;

use super::*;
use crate::io::sys::tests::{enter_own_namespace, run, thread_id};
use crate::io::udp::{Datagram, Outgoing, RecvBatch, Sent, Sockets, UdpSocket};

const V4: SocketId = SocketId::MAIN_V4;
const V6: SocketId = SocketId::MAIN_V6;
const SECOND: Option<Duration> = Some(Duration::from_secs(1));

/// Both ends; `from` sends as threads do.
struct Ends {
    from: Sockets,
    to: Sockets,
    inlet: Inlet,
}

fn ends() -> Ends {
    let mut to = Sockets::bind(0).expect("binds");
    let inlet = to.inlet().expect("the first one");
    Ends { from: Sockets::bind(0).expect("binds"), to, inlet }
}

fn at(ip: &str, sockets: &Sockets, id: SocketId) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), sockets.local_address(id).expect("is open").port())
}

#[derive(Debug, PartialEq, Eq)]
struct Got {
    socket: SocketId,
    from: SocketAddr,
    tos: u8,
    payload: Vec<u8>,
}

/// Receives until `count` datagrams came or a second passed without any; with how many buffers they took.
fn collect(inlet: &mut Inlet, count: usize) -> (Vec<Got>, usize) {
    let mut batch = GroBatch::new(16);
    let (mut all, mut buffers) = (Vec::new(), 0);
    while all.len() < count && inlet.wait(SECOND).expect("waits").readable {
        buffers += inlet.recv_batch(&mut batch);
        all.extend(batch.iter_mut().map(|Incoming { socket, from, tos, payload }| Got {
            socket,
            from,
            tos,
            payload: payload.to_vec(),
        }));
    }
    (all, buffers)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn all_sent(count: usize) -> Sent {
    Sent { sent: count, ..Sent::default() }
}

/// Sends a buffer and checks that it arrives byte for byte, cut where it should be; gives how many buffers it came in.
fn passes(socket: &UdpSocket, to: SocketAddr, inlet: &mut Inlet, len: usize, segment: usize) -> usize {
    let buffer = bytes(len);
    let expected: Vec<&[u8]> = buffer.chunks(segment).collect();
    assert_eq!(socket.send_segments(to, 0, &buffer, segment), all_sent(expected.len()), "{len}/{segment}");
    let (got, buffers) = collect(inlet, expected.len());
    assert_eq!(got.len(), expected.len(), "{len}/{segment}");
    assert!(got.iter().map(|got| got.payload.as_slice()).eq(expected), "{len}/{segment}");
    buffers
}

#[tokio::test]
async fn segments_of_every_size_arrive_merged_and_byte_for_byte() {
    let Ends { from, to, mut inlet } = ends();
    for (id, ip) in [(V4, "127.0.0.1"), (V6, "::1")] {
        let (socket, to) = (from.get(id).expect("open"), at(ip, &to, id));
        assert_eq!(passes(&socket, to, &mut inlet, 45 * 1452 - 3, 1452), 1, "one buffer takes all");
        assert_eq!(passes(&socket, to, &mut inlet, 64 * 80, 80), 1);
        // More than 64, and more bytes than a packet holds: the calls are split.
        for (len, segment) in [
            (1, 1),
            (1, 1452),
            (1452, 1452),
            (1453, 1452),
            (700, 5),
            (200_001, 1420),
            (131_014, 32_753),
            (65_507, 65_507),
        ] {
            passes(&socket, to, &mut inlet, len, segment);
        }
        assert_eq!(socket.send_segments(to, 0, &[], 1452), Sent::default());
        assert_eq!(socket.send_segments(to, 0, &bytes(10), 0), all_sent(1));
        assert_eq!(collect(&mut inlet, 1).0[0].payload, bytes(10));
        let long = bytes(140_000);
        let expected = Sent { sent: 0, refused: 2, overflowed: 0 };
        assert_eq!(socket.send_segments(to, 0, &long, 70_000), expected, "no datagram is that long");
        assert_eq!(passes(&socket, to, &mut inlet, 3000, 1000), 1, "which says nothing about others");
    }
}

#[tokio::test]
async fn senders_are_told_apart_and_the_sockets_too() {
    let Ends { from, mut to, mut inlet } = ends();
    let extra = to.open(SocketId(7), 0).expect("opened after the inlet, and heard");
    let extra = SocketAddr::from(([127, 0, 0, 1], extra));
    let (v4, v6) = (from.get(V4).expect("open"), from.get(V6).expect("open"));
    let main = at("127.0.0.1", &to, V4);
    let outgoing = |to, payload| Outgoing { to, ttl: Some(9), tos: 0, payload };
    let many = [outgoing(main, b"1".as_slice()), outgoing(extra, b"2"), outgoing(main, b"3"), outgoing(extra, b"4")];
    assert_eq!(v4.send_many(&many), all_sent(4));
    assert_eq!(v6.send_many(&[outgoing(at("::1", &to, V6), b"5")]), all_sent(1));
    let (mut got, _) = collect(&mut inlet, 5);
    got.sort_by(|a, b| a.payload.cmp(&b.payload));
    assert_eq!(got.iter().map(|got| got.socket).collect::<Vec<_>>(), [V4, SocketId(7), V4, SocketId(7), V6]);
    assert_eq!(got[0].from, at("127.0.0.1", &from, V4));
    assert_eq!(got[4].from, at("::1", &from, V6));
    assert_eq!(inlet.counters().received, 5);
    assert_eq!(passes(&v4, extra, &mut inlet, 20 * 1000, 1000), 1, "a later socket's are merged too");

    let held = to.get(SocketId(7)).expect("open");
    held.enlarge_buffers();
    let room = |socket: &UdpSocket| SockRef::from(socket).recv_buffer_size().expect("a socket");
    assert_eq!(room(&held), room(&to.get(V4).expect("open")));

    to.close(SocketId(7));
    v4.send_many(&[outgoing(extra, b"late"), outgoing(main, b"main")]);
    let (got, _) = collect(&mut inlet, 2);
    assert_eq!(got.iter().map(|got| got.payload.as_slice()).collect::<Vec<_>>(), [b"main"], "{got:?}");
    let start = Instant::now();
    assert_eq!(inlet.wait(Some(Duration::from_millis(50))).expect("waits"), Ready::default());
    assert!(start.elapsed() >= Duration::from_millis(50), "a socket that only senders hold does not keep it awake");
    assert_eq!(held.send_many(&[outgoing(main, b"still sends")]), all_sent(1));
    assert_eq!(collect(&mut inlet, 1).0[0].from, extra);
}

#[tokio::test]
async fn a_socket_opened_while_the_thread_waits_is_heard() {
    let Ends { from, mut to, mut inlet } = ends();
    let receiver = thread::spawn(move || {
        let mut batch = GroBatch::new(4);
        while inlet.recv_batch(&mut batch) == 0 {
            assert!(inlet.wait(SECOND).expect("waits").readable, "nothing came");
        }
        batch.iter_mut().map(|got| (got.socket, got.payload.to_vec())).collect::<Vec<_>>()
    });
    thread::sleep(Duration::from_millis(50));
    let port = to.open(SocketId(5), 0).expect("opens");
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    from.get(V4).expect("open").send_segments(to, 0, b"hello", 5);
    assert_eq!(receiver.join().expect("no panic"), [(SocketId(5), b"hello".to_vec())]);
}

#[tokio::test]
async fn sockets_may_come_and_go_while_a_thread_receives_and_others_send() {
    const DATAGRAMS: usize = 20_000;
    let Ends { from, mut to, mut inlet } = ends();
    let (socket, main) = (from.get(V4).expect("open"), at("127.0.0.1", &to, V4));
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut batch, mut next) = (GroBatch::new(16), 0u32);
            while next < DATAGRAMS as u32 && inlet.wait(SECOND).expect("waits").readable {
                inlet.recv_batch(&mut batch);
                for got in batch.iter_mut().filter(|got| got.socket == V4) {
                    assert_eq!(*got.payload, next.to_be_bytes());
                    next += 1;
                }
            }
            next
        });
        let sender = scope.spawn(|| {
            let numbers: Vec<u8> = (0..DATAGRAMS as u32).flat_map(u32::to_be_bytes).collect();
            for part in numbers.chunks(4 * 50) {
                assert_eq!(socket.send_segments(main, 0, part, 4), all_sent(50));
                // Loopback has no brake.
                thread::sleep(Duration::from_micros(100));
            }
        });
        while !sender.is_finished() {
            for id in 2..10 {
                let port = to.open(SocketId(id), 0).expect("opens");
                socket.send_segments(SocketAddr::from(([127, 0, 0, 1], port)), 0, b"probe", 5);
            }
            for id in 2..10 {
                to.close(SocketId(id));
            }
        }
        assert_eq!(receiver.join().expect("no panic"), DATAGRAMS as u32);
    });
}

#[tokio::test]
async fn a_wake_ends_a_wait_and_is_seen_while_there_is_much_to_do() {
    let Ends { from, to, mut inlet } = ends();
    let waker = inlet.waker();
    let woken = Ready { readable: false, woken: true };
    waker.wake();
    waker.wake();
    assert_eq!(inlet.wait(SECOND).expect("waits"), woken);
    assert_eq!(inlet.wait(Some(Duration::ZERO)).expect("waits"), Ready::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            waker.wake();
        });
        assert_eq!(inlet.wait(SECOND).expect("waits"), woken);
    });
    from.get(V4).expect("open").send_segments(at("127.0.0.1", &to, V4), 0, b"hello", 5);
    assert!(inlet.wait(SECOND).expect("waits").readable);
    waker.wake();
    let both = Ready { readable: true, woken: true };
    assert_eq!(inlet.wait(SECOND).expect("waits"), both, "the round is not over, so it does not ask the kernel");
    assert_eq!(collect(&mut inlet, 1).0.len(), 1);
    // The event was raised for a wake that is taken already.
    assert!(inlet.wait(Some(Duration::ZERO)).is_ok_and(|ready| !ready.readable));
    assert_eq!(inlet.wait(Some(Duration::ZERO)).expect("waits"), Ready::default());
}

#[tokio::test]
async fn each_datagram_has_the_ecn_and_dscp_that_it_was_sent_with() {
    let Ends { from, to, mut inlet } = ends();
    for (id, ip) in [(V4, "127.0.0.1"), (V6, "::1")] {
        let (socket, to) = (from.get(id).expect("open"), at(ip, &to, id));
        for tos in [0, 1, 2, 3, 0xb8, 0xb9] {
            assert_eq!(socket.send_segments(to, tos, &bytes(5000), 1000), all_sent(5));
            assert_eq!(socket.send_segments(to, tos, &bytes(10), 1000), all_sent(1));
            assert_eq!(socket.send_many(&[Outgoing { to, ttl: None, tos, payload: b"x" }]), all_sent(1));
        }
        let (got, _) = collect(&mut inlet, 6 * 7);
        let expected = [0, 1, 2, 3, 0xb8, 0xb9].into_iter().flat_map(|tos| [tos; 7]);
        assert!(got.iter().map(|got| got.tos).eq(expected), "{ip}: {:?}", got.iter().map(|got| got.tos));
    }
}

#[tokio::test]
async fn a_busy_socket_does_not_starve_a_quiet_one() {
    let Ends { from, mut to, mut inlet } = ends();
    let quiet = SocketAddr::from(([127, 0, 0, 1], to.open(SocketId(2), 0).expect("opens")));
    let (socket, busy) = (from.get(V4).expect("open"), at("127.0.0.1", &to, V4));
    let flood = Outgoing { to: busy, ttl: None, tos: 0, payload: b"x" };
    assert_eq!(socket.send_many(&[flood; 500]), all_sent(500));
    assert_eq!(socket.send_segments(quiet, 0, b"y", 1), all_sent(1));
    let mut batch = GroBatch::new(64);
    assert!(inlet.wait(SECOND).expect("waits").readable);
    assert!(inlet.recv_batch(&mut batch) > 1);
    assert!(batch.iter_mut().any(|got| got.socket == SocketId(2)));
    assert_eq!(collect(&mut inlet, 500 - 16).0.len(), 500 - 16, "all else follows");
}

#[tokio::test]
async fn a_tasks_sockets_never_get_merged_datagrams_and_an_inlet_is_given_once() {
    let Ends { from, mut to, inlet } = ends();
    assert_eq!(to.inlet().err().map(|error| error.kind()), Some(io::ErrorKind::AlreadyExists));
    let mut task = Sockets::bind(0).expect("binds");
    let socket = from.get(V4).expect("open");
    assert_eq!(socket.send_segments(at("127.0.0.1", &task, V4), 0, &bytes(20_000), 1000), all_sent(20));
    let mut batch = RecvBatch::new(64, 2048);
    task.readable().await.expect("readable");
    assert_eq!(task.recv_batch(&mut batch), 20);
    assert!(batch.iter_mut().all(|(_, packet)| packet.bytes().len() == 1000));

    // The inlet's own sockets still send for tasks, and tasks hear nothing of them.
    let datagram = Datagram { socket: V4, to: at("127.0.0.1", &to, V4), ttl: None, payload: b"to itself" };
    to.send_batch([datagram]).await;
    assert_eq!(to.counters().sent, 1);
    assert!(tokio::time::timeout(Duration::from_millis(20), to.readable()).await.is_err());
    assert_eq!(to.recv_batch(&mut batch), 0);
    drop(inlet);
}

#[tokio::test]
async fn what_does_not_fit_the_device_goes_in_fragments_and_the_rest_in_segments() {
    if !enter_own_namespace() {
        return;
    }
    run("ip link set lo up mtu 1300");
    let Ends { from, to, mut inlet } = ends();
    for (id, ip) in [(V4, "127.0.0.1"), (V6, "::1")] {
        let (socket, to) = (from.get(id).expect("open"), at(ip, &to, id));
        for _ in 0..3 {
            assert_eq!(passes(&socket, to, &mut inlet, 20_000, 1452), 14, "one by one");
        }
        assert_eq!(passes(&socket, to, &mut inlet, 20_000, 1240), 1, "these fit");
        assert_eq!(passes(&socket, to, &mut inlet, 20_000, 1452), 14);
    }
}

#[tokio::test]
async fn a_socket_without_checksums_is_refused_segmentation_and_loses_nothing() {
    let Ends { from, to, mut inlet } = ends();
    let (socket, to) = (from.get(V4).expect("open"), at("127.0.0.1", &to, V4));
    // EINVAL, whatever the length: the kernel's segmentation needs UDP checksums.
    sys::set_int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).expect("an option of Linux");
    for _ in 0..3 {
        assert_eq!(passes(&socket, to, &mut inlet, 90_000, 1452), 62);
    }
}

/// Runs `sender` in a namespace of its own, joined to this thread's by a veth pair: 192.0.2.1 (`outer`) is its address,
/// 192.0.2.2 is ours.
fn beyond_veth<T: Send>(
    sender: impl FnOnce(mpsc::Receiver<SocketAddr>) -> T + Send,
    receiver: impl FnOnce(mpsc::Sender<SocketAddr>),
) -> Option<T> {
    if !enter_own_namespace() {
        return None;
    }
    let (ready, there) = mpsc::channel();
    let (address, addresses) = mpsc::channel();
    let (go, start) = mpsc::channel();
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            assert!(enter_own_namespace(), "a second time");
            ready.send(thread_id()).expect("is waited for");
            start.recv().expect("is told");
            run("ip addr add 192.0.2.1/24 dev outer");
            bring_up("outer");
            sender(addresses)
        });
        let there = there.recv().expect("the other namespace");
        run("ip link add inner type veth peer name outer");
        run(&format!("ip link set outer netns {there}"));
        run("ip addr add 192.0.2.2/24 dev inner");
        go.send(()).expect("is waited for");
        bring_up("inner");
        receiver(address);
        Some(sender.join().expect("no panic"))
    })
}

/// The kernel looks at new links once a second, and drops what is sent before.
fn bring_up(name: &str) {
    run(&format!("ip link set {name} up"));
    let start = Instant::now();
    while !run(&format!("ip link show {name}")).contains("state UP") {
        assert!(start.elapsed() < Duration::from_secs(5), "{name} stays down");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A runtime for the sockets of a thread that is no task.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn segments_cross_a_veth_pair_merged_and_a_device_that_can_t_segment_is_no_matter() {
    const ROUNDS: usize = 30;
    let buffer = bytes(40 * 1400);
    let receiver = |address: mpsc::Sender<SocketAddr>| {
        let runtime = runtime();
        let _guard = runtime.enter();
        let mut sockets = Sockets::bind(0).expect("binds");
        let mut inlet = sockets.inlet().expect("the first");
        address.send(at("192.0.2.2", &sockets, V4)).expect("is waited for");
        for (way, most) in [("merged", ROUNDS), ("one by one", ROUNDS * 40)] {
            let (got, buffers) = collect(&mut inlet, ROUNDS * 40);
            assert_eq!(got.len(), ROUNDS * 40, "{way}");
            assert!(got.chunks(40).all(|round| round.iter().flat_map(|got| &got.payload).eq(&buffer)), "{way}");
            assert!(buffers <= most, "{way}: {buffers} buffers");
            address.send(at("192.0.2.2", &sockets, V4)).expect("is waited for");
        }
    };
    let sender = |addresses: mpsc::Receiver<SocketAddr>| {
        let runtime = runtime();
        let _guard = runtime.enter();
        let sockets = Sockets::bind(0).expect("binds");
        let socket = sockets.get(V4).expect("open");
        for segments in [64, 1] {
            let to = addresses.recv().expect("an address");
            run(&format!("ip link set outer gso_max_segs {segments}"));
            for _ in 0..ROUNDS {
                assert_eq!(socket.send_segments(to, 0, &buffer, 1400), all_sent(40), "{segments}");
            }
        }
        addresses.recv().expect("all arrived");
    };
    beyond_veth(sender, receiver);
}

#[test]
fn a_buffer_that_stays_full_is_waited_for_once_and_not_for_long() {
    let sender = |addresses: mpsc::Receiver<SocketAddr>| {
        let runtime = runtime();
        let _guard = runtime.enter();
        let sockets = Sockets::bind(0).expect("binds");
        let socket = sockets.get(V4).expect("open");
        let to = addresses.recv().expect("an address");
        // Holds 10 s of what it lets through; what it holds counts against the socket's buffer.
        run("tc qdisc add dev outer root tbf rate 800kbit burst 3000 limit 1000000");
        SockRef::from(&socket).set_send_buffer_size(100_000).expect("can be made small");
        let start = Instant::now();
        let mut sent = Sent::default();
        for _ in 0..4 {
            sent += socket.send_segments(to, 0, &bytes(56_000), 1400);
        }
        let single = bytes(1400);
        let flood = Outgoing { to, ttl: None, tos: 0, payload: &single };
        sent += socket.send_many(&[flood; 40]);
        let took = start.elapsed();
        assert_eq!(sent.sent + sent.overflowed, 5 * 40, "{sent:?}");
        assert!(sent.sent >= 40 && sent.overflowed >= 40, "{sent:?}");
        assert!(took >= Duration::from_millis(20) && took < Duration::from_millis(800), "{took:?}");
    };
    beyond_veth(sender, |address| {
        let _ = address.send(SocketAddr::from(([192, 0, 2, 2], 9)));
    });
}
