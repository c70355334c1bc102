use std::collections::HashSet;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::*;

const V4: SocketId = SocketId::MAIN_V4;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn port(sockets: &Sockets, id: SocketId) -> u16 {
    sockets.local_address(id).expect("is open").port()
}

/// Receives until `count` datagrams came or a second passed without any.
async fn collect(sockets: &mut Sockets, count: usize) -> Vec<(SocketId, SocketAddr, Vec<u8>)> {
    let mut batch = RecvBatch::new(64, 2048);
    let mut all = Vec::new();
    while all.len() < count {
        if sockets.recv_batch(&mut batch) == 0 {
            match tokio::time::timeout(Duration::from_secs(1), sockets.readable()).await {
                Ok(ready) => ready.expect("the set is alive"),
                Err(_) => break,
            }
        }
        all.extend(batch.iter_mut().map(|(got, packet)| (got.socket, got.from, packet.bytes().to_vec())));
    }
    all
}

#[tokio::test]
async fn both_main_sockets_share_a_port_and_speak_their_own_family() {
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    assert_eq!(port(&a, V4), port(&a, SocketId::MAIN_V6), "this machine has IPv6");
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port(&b, V4)));
    a.send_batch([
        Datagram { socket: V4, to: loopback(port(&b, V4)), ttl: None, payload: b"four" },
        Datagram { socket: SocketId::MAIN_V6, to: v6, ttl: None, payload: b"six" },
    ])
    .await;
    let mut got = collect(&mut b, 2).await;
    got.sort();
    assert_eq!(got[0], (V4, loopback(port(&a, V4)), b"four".to_vec()));
    assert_eq!((got[1].0, got[1].2.as_slice()), (SocketId::MAIN_V6, b"six".as_slice()));
    assert!(got[1].1.is_ipv6());
}

#[tokio::test]
async fn a_taken_listen_port_is_an_error_and_a_taken_extra_port_is_not() {
    let first = Sockets::bind(0).expect("binds");
    let taken = port(&first, V4);
    assert_eq!(Sockets::bind(taken).err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
    let mut other = Sockets::bind(0).expect("binds");
    let got = other.open(SocketId(2), taken).expect("any other port will do");
    assert_ne!(got, taken);
    other.close(SocketId(2));
    assert_eq!(other.local_address(SocketId(2)), None);
    assert_eq!(other.open(SocketId(3), got).expect("opens"), got, "a closed socket's port is free again");
}

#[tokio::test]
async fn a_datagram_carries_its_own_ttl_and_only_that_one() {
    let mut a = Sockets::bind(0).expect("binds");
    let b = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    b.bind(&loopback(0).into()).expect("binds");
    sys::set_int_option(b.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, 1).expect("TTLs can be asked for");
    let to = b.local_addr().expect("bound").as_socket().expect("IPv4");
    let send = |ttl, payload| Datagram { socket: V4, to, ttl, payload };
    a.send_batch([send(Some(3), b"a".as_slice()), send(None, b"b"), send(Some(200), b"c")]).await;
    let b: std::net::UdpSocket = b.into();
    b.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    let ttls: Vec<i32> = (0..3).map(|_| sys::tests::receive_ttl(&b)).collect();
    assert_eq!((ttls[0], ttls[2]), (3, 200));
    assert!(ttls[1] >= 32 && ttls[1] != 200, "the system's own: {}", ttls[1]);
}

#[tokio::test]
async fn an_ipv6_datagram_carries_its_hop_limit() {
    let mut a = Sockets::bind(0).expect("binds");
    let b = std::net::UdpSocket::bind("[::1]:0").expect("binds");
    b.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    sys::set_int_option(b.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1).expect("can be asked for");
    let to = b.local_addr().expect("bound");
    a.send_batch([Datagram { socket: SocketId::MAIN_V6, to, ttl: Some(5), payload: b"a" }]).await;
    assert_eq!(sys::tests::receive_ttl(&b), 5);
}

#[tokio::test]
async fn datagrams_to_closed_ports_and_nowhere_do_not_end_a_batch() {
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    let closed = {
        let gone = Sockets::bind(0).expect("binds");
        port(&gone, V4)
    };
    let good = loopback(port(&b, V4));
    let too_long = vec![0; 70_000];
    for round in 0..20u8 {
        let payload = [round];
        let send = |to, payload| Datagram { socket: V4, to, ttl: None, payload };
        a.send_batch([
            send(loopback(closed), payload.as_slice()),
            send(good, &payload),
            send(good, &too_long),
            send(SocketAddr::from((Ipv4Addr::BROADCAST, 9)), &payload),
            send("[::1]:9".parse().expect("an address"), &payload),
            send(good, &payload),
            Datagram { socket: SocketId(77), to: good, ttl: None, payload: &payload },
            send(good, &payload),
        ])
        .await;
    }
    assert_eq!(collect(&mut b, 60).await.len(), 60);
    assert!(a.counters().refused >= 80, "{:?}", a.counters());
    assert_eq!(a.recv_batch(&mut RecvBatch::new(64, 2048)), 0);
}

#[tokio::test]
async fn a_refused_connected_socket_still_receives() {
    let mut a = Sockets::bind(0).expect("binds");
    let b = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let peer = b.local_addr().expect("bound");
    drop(b);
    // The harshest case: on a connected socket the kernel does report ECONNREFUSED, at the next call, whatever that is.
    SockRef::from(&a.get(V4).expect("open")).connect(&peer.into()).expect("connects");
    let send = |payload| Datagram { socket: V4, to: peer, ttl: None, payload };
    a.send_batch([send(b"1".as_slice())]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(a.recv_batch(&mut RecvBatch::new(64, 2048)), 0);
    let b = std::net::UdpSocket::bind(peer).expect("the port is free again");
    b.send_to(b"hello", ("127.0.0.1", port(&a, V4))).expect("sends");
    assert_eq!(collect(&mut a, 1).await.len(), 1);
    assert!(a.counters().receive_errors + a.counters().sent >= 1);
}

#[tokio::test]
async fn two_hundred_and_fifty_six_extra_sockets_are_all_heard_and_all_answer() {
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    for i in 0..256 {
        a.open(SocketId(2 + i), 0).expect("opens");
    }
    let to = loopback(port(&b, V4));
    a.send_batch((0..256).map(|i| Datagram { socket: SocketId(2 + i), to, ttl: Some(64), payload: b"probe" })).await;
    let heard = collect(&mut b, 256).await;
    let sources: Vec<SocketAddr> = heard.iter().map(|(_, from, _)| *from).collect();
    assert_eq!(sources.iter().collect::<HashSet<_>>().len(), 256);
    b.send_batch(sources.iter().map(|to| Datagram { socket: V4, to: *to, ttl: None, payload: b"answer" })).await;
    let answered: HashSet<SocketId> = collect(&mut a, 256).await.iter().map(|(socket, ..)| *socket).collect();
    assert_eq!(answered.len(), 256);
    for i in 0..256 {
        a.close(SocketId(2 + i));
    }
    b.send_batch(sources.iter().map(|to| Datagram { socket: V4, to: *to, ttl: None, payload: b"late" })).await;
    assert_eq!(a.recv_batch(&mut RecvBatch::new(64, 2048)), 0);
}

#[tokio::test]
async fn a_busy_socket_does_not_starve_a_quiet_one() {
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    let quiet = b.open(SocketId(2), 0).expect("opens");
    let busy = loopback(port(&b, V4));
    a.send_batch((0..500).map(|_| Datagram { socket: V4, to: busy, ttl: None, payload: b"x" })).await;
    a.send_batch([Datagram { socket: V4, to: loopback(quiet), ttl: None, payload: b"y" }]).await;
    b.readable().await.expect("readable");
    let mut batch = RecvBatch::new(64, 2048);
    assert!(b.recv_batch(&mut batch) > 0);
    assert!(batch.received().iter().any(|got| got.socket == SocketId(2)));
}

#[tokio::test]
async fn ten_thousand_datagrams_arrive_in_order_and_whole() {
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    let to = loopback(port(&b, V4));
    let mut next = 0u32;
    for _ in 0..20 {
        let payloads: Vec<Vec<u8>> = (0..500).map(|i| (next + i).to_be_bytes().repeat(300)).collect();
        a.send_batch(payloads.iter().map(|payload| Datagram { socket: V4, to, ttl: None, payload })).await;
        for (_, _, payload) in collect(&mut b, 500).await {
            assert_eq!(payload, next.to_be_bytes().repeat(300));
            next += 1;
        }
    }
    assert_eq!(next, 10_000);
    assert_eq!(a.counters().sent, 10_000);
    assert_eq!(b.counters().received, 10_000);
}

#[tokio::test]
async fn a_datagram_that_does_not_fit_is_counted_and_its_neighbours_stay() {
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    let to = loopback(port(&b, V4));
    let long = vec![1; 3000];
    let send = |payload| Datagram { socket: V4, to, ttl: None, payload };
    a.send_batch([send(b"a".as_slice()), send(&long), send(b"b")]).await;
    let got = collect(&mut b, 2).await;
    assert_eq!(got.iter().map(|(.., payload)| payload.as_slice()).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(b.counters().oversized, 1);
}

#[tokio::test]
async fn a_server_socket_answers_from_the_address_that_it_was_bound_to() {
    let mut server = Sockets::new().expect("an epoll set");
    let second = server.bind_one(SocketId(1), "127.0.0.2:0".parse().expect("an address")).expect("binds");
    server.bind_one(SocketId(0), "127.0.0.1:0".parse().expect("an address")).expect("binds");
    let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    client.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    client.send_to(b"?", second).expect("sends");
    let (socket, from, _) = collect(&mut server, 1).await.remove(0);
    server.send_batch([Datagram { socket, to: from, ttl: None, payload: b"!" }]).await;
    assert_eq!(client.recv_from(&mut [0; 8]).expect("an answer").1, second);
}

#[tokio::test]
async fn only_a_sounding_must_not_be_cut() {
    if !sys::tests::enter_own_namespace() {
        return;
    }
    let ready = std::process::Command::new("ip").args(["link", "set", "lo", "mtu", "1280", "up"]).status();
    assert!(ready.is_ok_and(|status| status.success()), "ip sets the MTU");
    let mut a = Sockets::bind(0).expect("binds");
    let mut b = Sockets::bind(0).expect("binds");
    let (fits, too_long) = (vec![1; 1232], vec![2; 1400]);
    for (socket, to) in [(V4, loopback(port(&b, V4))), (SocketId::MAIN_V6, (Ipv6Addr::LOCALHOST, port(&b, V4)).into())]
    {
        let send = |payload| Datagram { socket, to, ttl: None, payload };
        a.send_whole(send(&fits)).await;
        a.send_whole(send(&too_long)).await;
        a.send_batch([send(&too_long)]).await;
        let lengths: Vec<usize> = collect(&mut b, 2).await.iter().map(|(_, _, payload)| payload.len()).collect();
        assert_eq!(lengths, [1232, 1400], "the last one came in fragments");
    }
    assert_eq!((a.counters().sent, a.counters().refused), (4, 2));
}
