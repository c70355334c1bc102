//! What is taken for a probe, by us and by the kernel's filter.

use std::net::UdpSocket;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::super::sys::tests::{enter_own_namespace, run};
use super::*;

const PORT: u16 = 4275;

fn probe() -> Vec<u8> {
    let mut probe = Dudp::Ack.header().to_vec();
    probe.extend(probe.len() as u8..probe::LEN as u8);
    probe
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let len = (UDP_HEADER + payload.len()) as u16;
    [&40000u16.to_be_bytes()[..], &PORT.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

fn v4(words: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; usize::from(words) * 4];
    packet[0] = 0x40 | words;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&[203, 0, 113, 7]);
    packet.extend(udp(payload));
    packet
}

fn v6(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; V6_HEADER];
    (packet[0], packet[6], packet[8], packet[23]) = (0x60, UDP, 0x20, 7);
    packet.extend(udp(payload));
    packet
}

#[test]
fn a_probe_for_our_port_is_found_with_its_source_behind_a_header_of_any_length() {
    let probe = probe();
    for packet in [v4(5, &probe), v4(15, &probe)] {
        assert_eq!(probe_in(&packet, PORT), Some(("203.0.113.7:40000".parse().unwrap(), &probe[..])));
        assert!(packet.len() <= LONGEST, "all of it is read");
    }
    assert_eq!(probe_in(&v6(&probe), PORT), Some(("[2000::7]:40000".parse().unwrap(), &probe[..])));
    let merged = [&probe[..], &probe].concat();
    assert_eq!(probe_in(&v4(5, &merged)[..LONGEST], PORT).map(|(_, probe)| probe), Some(&probe[..]));
}

#[test]
fn anything_else_is_none() {
    let packet = v4(5, &probe());
    assert_eq!(probe_in(&packet, PORT + 1), None);
    for (at, byte) in [(0, 0x50), (0, 0x4f), (6, 0x20), (7, 1), (9, 6), (28, b'd'), (32, 5)] {
        let mut other = packet.clone();
        other[at] = byte;
        assert_eq!(probe_in(&other, PORT), None, "byte {at} is {byte:#x}");
    }
    assert_eq!(probe_in(&v4(5, &[probe(), vec![0]].concat()), PORT), None, "a sounding");
    for len in 0..packet.len() {
        assert_eq!(probe_in(&packet[..len], PORT), None);
    }
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..LONGEST + 9), version in 0u8..16) {
        let mut packet = bytes;
        if let Some(first) = packet.first_mut() {
            *first = *first & 0x0f | version << 4;
        }
        let _ = probe_in(&packet, PORT);
    }
}

/// The kernel's own: what the filter lets through, and what a firewall on the machine has no say in.
#[tokio::test]
async fn a_probe_that_the_firewall_drops_is_overheard_and_other_datagrams_are_not() {
    if !enter_own_namespace() {
        return;
    }
    run("ip link set lo up");
    run("nft add table inet shut");
    run("nft add chain inet shut input { type filter hook input priority 0 ; policy drop ; }");
    let (sender, mut heard) = mpsc::channel(16);
    let ear = Ear::open(PORT, move |from, probe| sender.try_send((from, probe.to_vec())).expect("room"));
    assert_eq!(ear.sockets.len(), 2);
    for (own, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let socket = UdpSocket::bind(own).expect("a socket");
        let send = |bytes: &[u8], port: u16| socket.send_to(bytes, (to, port)).expect("sent");
        let mut answer = probe();
        answer[..Dudp::Ack2.header().len()].copy_from_slice(&Dudp::Ack2.header());
        send(&answer, PORT);
        send(&probe(), PORT + 1);
        send(b"DUD", PORT);
        send(&probe(), PORT);
        let first = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await.expect("in time");
        assert_eq!(first, Some((socket.local_addr().expect("bound"), probe())));
    }
    drop(ear);
    assert_eq!(heard.recv().await, None, "nothing else came, and the sockets' tasks have ended");
}
