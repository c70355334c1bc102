//! With real devices, in network namespaces of the tests' own: two of them joined by a thread that carries what one device
//! gives to the other, headers and all, so that the kernel itself says whether they are right.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::*;
use crate::io::sys::tests::{enter_own_namespace, run};
use crate::io::wake::Waker;

const SECOND: Option<Duration> = Some(Duration::from_secs(1));
const MTU: usize = 1420;

/// Makes the device, perhaps in the place of one that has just gone: a process that another test starts holds our descriptors
/// for the moment until it is another program.
pub fn create_again(wanted: Offloads) -> Tun {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match Tun::create("p2ptest", 1420, wanted) {
            Err(TunError::Busy(_)) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            made => return made.expect("a device"),
        }
    }
}

fn device(number: u8, wanted: Offloads) -> Tun {
    let queue = create_again(wanted);
    run(&format!("ip addr add 10.77.0.{number}/24 dev p2ptest"));
    run(&format!("ip addr add fd77::{number}/64 dev p2ptest nodad"));
    run("ip link set p2ptest up mtu 1420");
    // Checked in its own time even where nobody is to be asked; the kernel drops what comes for it before.
    while !run("ip -6 route show table local").contains(&format!("local fd77::{number} ")) {
        thread::sleep(Duration::from_millis(10));
    }
    queue
}

/// The next packet that is no neighbour or multicast business of the kernel's own.
fn next(queue: &Tun, wait: &Wait, buffer: &mut [u8]) -> Option<usize> {
    let header = if queue.offloads().vnet_header { HEADER_LEN } else { 0 };
    loop {
        match queue.read(buffer) {
            Ok(len) if is_multicast(&buffer[header..len]) => {}
            Ok(len) => return Some(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if queue.wait(wait, SECOND).expect("waits") != (Ready { readable: true, woken: false }) {
                    return None;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_multicast(packet: &[u8]) -> bool {
    if packet[0] >> 4 == 6 { packet[24] == 0xff } else { packet[16] >= 224 }
}

/// What a carrier saw.
#[derive(Default, Debug)]
struct Carried {
    packets: usize,
    longest: usize,
    /// By gso_type without the ECN bit: 1 TCP over IPv4, 4 over IPv6, 5 UDP.
    merged: [usize; 8],
}

/// Carries from one device to the other until woken.
fn carry(from: &Tun, to: &Tun, wait: &Wait) -> Carried {
    let mut buffer = vec![0; READ_LEN];
    let mut carried = Carried::default();
    let header = if from.offloads().vnet_header { HEADER_LEN } else { 0 };
    while let Ok(Ready { woken: false, .. }) = from.wait(wait, None) {
        while let Ok(len) = from.read(&mut buffer) {
            if is_multicast(&buffer[header..len]) {
                continue;
            }
            carried.packets += 1;
            carried.longest = carried.longest.max(len - header);
            let written = if to.offloads().vnet_header {
                carried.merged[usize::from(buffer[1] & 7)] += 1;
                // In three pieces, as what is put together of several packets comes.
                let (front, back) = buffer[..len].split_at(HEADER_LEN + 20);
                let (middle, back) = back.split_at(back.len() / 2);
                to.write(&[front, middle, back].map(IoSlice::new))
            } else {
                to.write_packet(&buffer[header..len])
            };
            written.expect("the kernel takes what the kernel gave");
        }
    }
    carried
}

/// Ends the carriers, after a panic too: they are waited for.
struct Stop([Waker; 2]);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.iter().for_each(Waker::wake);
    }
}

/// Two namespaces with a device each, joined. `near` runs in the first, `far` in the second until `near` is done. `None`
/// without the permission, else what went from near to far.
fn joined(wanted: Offloads, near: impl FnOnce(), far: impl FnOnce() + Send) -> Option<(Carried, Offloads)> {
    if !enter_own_namespace() {
        return None;
    }
    let here = device(1, wanted);
    let offloads = here.offloads();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let far = scope.spawn(move || {
            assert!(enter_own_namespace(), "a second time");
            sender.send(device(2, wanted)).expect("is waited for");
            far();
        });
        let there = receiver.recv().expect("the other device");
        let (out, back) = (Wait::new().expect("an eventfd"), Wait::new().expect("an eventfd"));
        let stop = Stop([out.waker(), back.waker()]);
        let outward = scope.spawn({
            let (here, there) = (here.clone(), there.clone());
            move || carry(&here, &there, &out)
        });
        scope.spawn(move || carry(&there, &here, &back));
        near();
        far.join().expect("no panic");
        drop(stop);
        Some((outward.join().expect("no panic"), offloads))
    })
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// A megabyte by TCP from near to far.
fn tcp(address: &'static str, wanted: Offloads) -> Option<(Carried, Offloads)> {
    let sent = bytes(1 << 20);
    let (listens, there) = mpsc::channel();
    let near = || {
        there.recv().expect("the other end listens");
        TcpStream::connect((address, 7000)).expect("connects").write_all(&bytes(1 << 20)).expect("sends");
    };
    let far = move || {
        let listener = TcpListener::bind((address, 7000)).expect("the address is there");
        listens.send(()).expect("is waited for");
        let mut got = Vec::new();
        listener.accept().expect("a connection").0.read_to_end(&mut got).expect("receives");
        assert!(got == sent, "{} bytes", got.len());
    };
    joined(wanted, near, far)
}

#[test]
fn tcp_over_ipv4_goes_in_super_packets_and_arrives_whole() {
    let Some((carried, offloads)) = tcp("10.77.0.2", Offloads::ALL) else { return };
    assert!(offloads.vnet_header && offloads.tcp, "{offloads:?}");
    assert!(carried.merged[1] > 0 && carried.longest > 10 * MTU, "{carried:?}");
    assert!(carried.packets < 400, "it would be 760 one by one: {carried:?}");
}

#[test]
fn tcp_over_ipv6_goes_in_super_packets_and_arrives_whole() {
    let Some((carried, _)) = tcp("fd77::2", Offloads::ALL) else { return };
    assert!(carried.merged[4] > 0 && carried.longest > 10 * MTU, "{carried:?}");
}

#[test]
fn without_offloads_no_packet_is_longer_than_the_mtu_and_all_arrives() {
    let header_only = Offloads { vnet_header: true, ..Offloads::NONE };
    let udp_only = Offloads { tcp: false, ..Offloads::ALL };
    for (wanted, header) in [(Offloads::NONE, false), (header_only, true), (udp_only, true)] {
        let Some((carried, offloads)) = tcp("10.77.0.2", wanted) else { return };
        assert!(offloads.vnet_header == header && !offloads.tcp, "{offloads:?}");
        assert!(carried.longest == MTU && carried.packets > 740, "{carried:?}");
        assert_eq!(carried.merged[1], 0);
    }
}

#[test]
fn udp_segments_pass_in_one_super_packet_where_the_kernel_has_that() {
    for (address, len) in [("10.77.0.2", 1392), ("fd77::2", 1372)] {
        let sent = bytes(20 * len);
        let (port, there) = mpsc::channel();
        let near = || {
            let to = (address, there.recv().expect("the other end listens"));
            let socket = UdpSocket::bind(if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" }).expect("binds");
            let level = libc::IPPROTO_UDP;
            sys::set_int_option(socket.as_fd(), level, libc::UDP_SEGMENT, len as libc::c_int).expect("Linux 4.18");
            socket.send_to(&bytes(20 * len), to).expect("sends");
        };
        let far = move || {
            let socket = UdpSocket::bind((address, 0)).expect("the address is there");
            socket.set_read_timeout(SECOND).expect("a socket");
            port.send(socket.local_addr().expect("bound").port()).expect("is waited for");
            let mut buffer = [0; 2000];
            for part in sent.chunks(len) {
                let (got, _) = socket.recv_from(&mut buffer).expect("each arrives");
                assert!(&buffer[..got] == part, "{got} bytes");
            }
        };
        let Some((carried, offloads)) = joined(Offloads::ALL, near, far) else { return };
        let longest = if offloads.udp { 20 * len + MTU - len } else { MTU };
        assert_eq!(carried.longest, longest, "{offloads:?} {carried:?}");
        assert_eq!(carried.merged[5] == 1, offloads.udp, "{carried:?}");
    }
}

#[test]
fn a_super_packet_that_the_kernel_refuses_is_told_apart_and_the_device_goes_on() {
    if !enter_own_namespace() {
        return;
    }
    let queue = device(1, Offloads::ALL);
    let packet = [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1][..], &[0; 20]].concat();
    let mut header = [0; HEADER_LEN];
    header[1] = 1; // TCP over IPv4, of segments without a length
    let refused = queue.write(&[IoSlice::new(&header), IoSlice::new(&packet)]);
    assert!(matches!(refused, Err(WriteError::Segmentation(_))), "{refused:?}");
    assert!(matches!(queue.write_packet(b"\xff no packet"), Err(WriteError::Refused(_))));
    assert!(matches!(queue.write(&vec![IoSlice::new(&packet); MAX_PIECES + 1]), Err(WriteError::Refused(_))));
    queue.write_packet(&packet).expect("a whole one is taken");
    run("ip link set p2ptest down");
    assert!(matches!(queue.write_packet(&packet), Err(WriteError::Refused(_))));
    run("ip link set p2ptest up");
    queue.write_packet(&packet).expect("and is taken again");
}

#[test]
fn whole_packets_pass_with_and_without_a_header() {
    if !enter_own_namespace() {
        return;
    }
    for wanted in [Offloads::NONE, Offloads { vnet_header: true, ..Offloads::NONE }, Offloads::ALL] {
        let queue = device(1, wanted);
        let wait = Wait::new().expect("an eventfd");
        // An echo from a peer: the kernel answers it.
        let mut echo = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0x66, 0x45, 10, 77, 0, 2, 10, 77, 0, 1];
        echo.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        queue.write_packet(&echo).expect("is taken");
        let mut buffer = vec![0xee; READ_LEN];
        let len = next(&queue, &wait, &mut buffer).expect("an answer");
        let at = if wanted.vnet_header { HEADER_LEN } else { 0 };
        assert_eq!(len, at + 28);
        assert_eq!(&buffer[at + 12..at + 21], [10, 77, 0, 1, 10, 77, 0, 2, 0], "an echo's answer");
    }
}

#[test]
fn a_device_that_somebody_deletes_ends_the_wait_and_says_so() {
    if !enter_own_namespace() {
        return;
    }
    let queue = device(1, Offloads::ALL);
    let wait = Wait::new().expect("an eventfd");
    let mut buffer = vec![0; READ_LEN];
    while queue.read(&mut buffer).is_ok() {}
    thread::scope(|scope| {
        let deleted = scope.spawn(|| {
            loop {
                match queue.read(&mut buffer) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        assert!(queue.wait(&wait, Some(Duration::from_secs(5))).expect("waits").readable, "not told");
                    }
                    Err(error) => return error.raw_os_error(),
                }
            }
        });
        thread::sleep(Duration::from_millis(50));
        run("ip link del p2ptest");
        assert_eq!(deleted.join().expect("no panic"), Some(libc::EBADFD));
    });
    assert!(matches!(queue.write_packet(&[0x45; 20]), Err(WriteError::Gone(_))));
}

#[test]
fn a_wake_ends_the_wait_for_a_packet() {
    if !enter_own_namespace() {
        return;
    }
    let queue = device(1, Offloads::ALL);
    let wait = Wait::new().expect("an eventfd");
    let mut buffer = vec![0; READ_LEN];
    assert_eq!(next(&queue, &wait, &mut buffer), None, "nobody speaks");
    wait.waker().wake();
    assert_eq!(queue.wait(&wait, SECOND).expect("waits"), Ready { readable: false, woken: true });
    wait.waker().wake();
    let socket = UdpSocket::bind("10.77.0.1:0").expect("the address is there");
    socket.send_to(b"x", "10.77.0.2:9").expect("the route is there");
    assert_eq!(queue.wait(&wait, SECOND).expect("waits"), Ready { readable: true, woken: true });
}
