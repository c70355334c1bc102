use proptest::prelude::*;

use super::super::tests::{Made, slow_sum, split, tcp4, tcp6, udp4, udp6};
use super::*;

/// Where the TCP header of a made packet without options of IP is.
const TCP_AT: usize = 20;

fn fault(header: Header, packet: &[u8]) -> Fault {
    Split::new(&header, packet).expect_err("can't be cut")
}

#[test]
fn cwr_stays_in_the_first_segment_and_psh_and_fin_in_the_last() {
    let made = Made { flags: CWR | FIN | PSH | 0x10, ..tcp4(&[7; 250]) };
    let (header, packet) = made.unfinished(Some(100));
    let flags: Vec<u8> = split(&header, &packet).iter().map(|segment| segment[TCP_AT + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
}

#[test]
fn sequence_and_identification_wrap() {
    let made = Made { id: 0xffff, sequence: u32::MAX - 99, ..tcp4(&[7; 250]) };
    let (header, packet) = made.unfinished(Some(100));
    let segments = split(&header, &packet);
    assert_eq!(segments, made.cut(100).iter().map(Made::packet).collect::<Vec<_>>());
    assert_eq!((word(&segments[1], 4), long(&segments[1], TCP_AT + 4)), (0, 0));
    assert_eq!((word(&segments[2], 4), long(&segments[2], TCP_AT + 4)), (1, 100));
}

#[test]
fn as_much_as_a_device_can_give_is_cut() {
    let payload: Vec<u8> = (0..65_535 - 52).map(|byte| (byte * 7) as u8).collect();
    for (made, size) in [(tcp4(&payload), 1368), (tcp4(&payload), 1), (udp4(&payload), 1392)] {
        let (header, packet) = made.unfinished(Some(size));
        assert_eq!(split(&header, &packet), made.cut(usize::from(size)).iter().map(Made::packet).collect::<Vec<_>>());
    }
    // IPv6 does not count its own header.
    let made = tcp6(&vec![1; 65_535 - 32]);
    let (header, packet) = made.unfinished(Some(1348));
    assert_eq!(packet.len(), 65_575);
    assert_eq!(split(&header, &packet), made.cut(1348).iter().map(Made::packet).collect::<Vec<_>>());
}

#[test]
fn what_fits_into_one_segment_is_one() {
    for payload in [0, 1, 100] {
        let made = tcp6(&vec![9; payload]);
        let (header, packet) = made.unfinished(Some(100));
        assert!(Split::new(&header, &packet).expect("can be cut").is_whole());
        assert_eq!(split(&header, &packet), [made.packet()]);
    }
    let (header, packet) = tcp6(&[9; 101]).unfinished(Some(100));
    assert!(!Split::new(&header, &packet).expect("can be cut").is_whole());
}

#[test]
fn where_it_goes_is_told_without_cutting_it() {
    let (header, packet) = udp6(&[9; 300]).unfinished(Some(100));
    let split = Split::new(&header, &packet).expect("can be cut");
    assert_eq!(split.header().destination, "fd20::9".parse::<std::net::IpAddr>().expect("parses"));
    assert_eq!(split.header().len, 348);
    assert_eq!((split.segments(), split.segment_len(0), split.segment_len(2), split.segment_len(3)), (3, 148, 148, 0));
}

#[test]
fn a_header_length_that_lies_changes_nothing() {
    let made = tcp4(&[9; 300]);
    let (header, packet) = made.unfinished(Some(100));
    for header_len in [0, 1, u16::MAX] {
        assert_eq!(split(&Header { header_len, ..header }, &packet), split(&header, &packet));
    }
}

#[test]
fn a_super_packet_that_came_with_a_finished_checksum_is_cut_alike() {
    // As from a network card that joined it: the kernel passes it on so, and says no more than that it was right.
    for made in [tcp4(&[9; 300]), tcp6(&[9; 300]), udp4(&[9; 300]), udp6(&[9; 300])] {
        let (header, _) = made.unfinished(Some(100));
        let segments = split(&Header { partial: None, ..header }, &made.packet());
        assert_eq!(segments, made.cut(100).iter().map(Made::packet).collect::<Vec<_>>());
    }
}

#[test]
fn behind_a_routing_header_the_checksum_is_for_where_the_packet_ends_up() {
    let (header, mut packet) = Made { extension: Some(2), ..tcp6(&[9; 300]) }.unfinished(Some(100));
    let at = usize::from(header.partial.expect("unfinished").start);
    let last_stop = [0xfe; 16];
    packet[6] = 43;
    packet[43] = 1;
    packet[48..64].copy_from_slice(&last_stop);
    let pseudo = |len: usize| [&packet[8..24], &last_stop, &[0, 6], &(len as u16).to_be_bytes()].concat();
    let (whole, piece) = (slow_sum(&pseudo(packet.len() - at)), pseudo(32 + 100));
    put_word(&mut packet, at + 16, whole);
    for segment in split(&header, &packet) {
        assert_eq!(slow_sum(&[&piece, &segment[at..]].concat()), 0xffff);
    }
}

#[test]
fn what_follows_the_packet_is_left_out() {
    let made = tcp4(&[9; 300]);
    let (header, mut packet) = made.unfinished(Some(100));
    packet.extend([1; 5]);
    assert_eq!(split(&header, &packet), made.cut(100).iter().map(Made::packet).collect::<Vec<_>>());
    let (header, mut packet) = made.unfinished(None);
    packet.extend([1; 5]);
    assert_eq!(split(&header, &packet), [made.packet()]);
}

#[test]
fn without_room_nothing_is_written() {
    let (header, packet) = tcp4(&[9; 300]).unfinished(Some(100));
    let split = Split::new(&header, &packet).expect("can be cut");
    let mut out = [0xee; 151];
    assert_eq!(split.write(0, &mut out), 0);
    assert_eq!(split.write(3, &mut out), 0);
    assert_eq!(split.write(usize::MAX, &mut out), 0);
    assert_eq!(out, [0xee; 151]);
    let whole = Split::new(&Header::default(), &packet).expect("is whole");
    assert_eq!(whole.write(0, &mut out), 0);
    assert_eq!(whole.write(1, &mut [0; 1000]), 0);
}

#[test]
fn a_checksum_that_is_said_to_be_elsewhere_is_refused() {
    let (header, packet) = tcp4(&[9; 300]).unfinished(Some(100));
    for (start, offset) in [(24, 16), (20, 6), (0, 36), (u16::MAX, u16::MAX)] {
        let partial = Some(Partial { start, offset });
        assert_eq!(fault(Header { partial, ..header }, &packet), Fault::Checksum);
    }
    let whole = |start, offset| Header { partial: Some(Partial { start, offset }), ..Header::default() };
    let len = packet.len() as u16;
    assert!(Split::new(&whole(len - 2, 0), &packet).is_ok());
    for (start, offset) in [(len - 1, 0), (len, 0), (20, len), (u16::MAX, 0), (u16::MAX, u16::MAX)] {
        assert_eq!(fault(whole(start, offset), &packet), Fault::Checksum);
    }
}

#[test]
fn what_can_not_be_cut_says_why() {
    let (header, packet) = tcp4(&[9; 300]).unfinished(Some(100));
    assert_eq!(fault(header, &[]), Fault::NotIp);
    assert_eq!(fault(header, &packet[..packet.len() - 1]), Fault::NotIp);
    assert_eq!(fault(tcp4(&[9; 300]).unfinished(Some(0)).0, &packet), Fault::NoSize);
    assert_eq!(fault(tcp6(&[9; 300]).unfinished(Some(100)).0, &packet), Fault::OtherProtocol);
    assert_eq!(fault(udp4(&[9; 300]).unfinished(Some(100)).0, &packet), Fault::OtherProtocol);

    let (header, fragment) = Made { flags_or_label: 0x2000, ..tcp4(&[9; 300]) }.unfinished(Some(100));
    assert_eq!(fault(header, &fragment), Fault::Fragment);

    for words in [4, 15] {
        let (header, mut packet) = tcp4(&[9; 20]).unfinished(Some(10));
        packet[TCP_AT + 12] = words << 4;
        assert_eq!(fault(header, &packet), Fault::Transport);
    }
    let (header, mut packet) = Made { extension: Some(0), ..tcp6(&[9; 20]) }.unfinished(Some(10));
    packet[41] = 0xff;
    assert_eq!(fault(header, &packet), Fault::Transport);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        header: [u8; 10], first in prop::sample::select(vec![0x45, 0x46, 0x4f, 0x60, 0x00]), protocol: u8,
        bytes in prop::collection::vec(any::<u8>(), 12..200), transport: bool,
    ) {
        let mut packet = bytes;
        let len = packet.len() as u16;
        packet[0] = first;
        let protocol = if transport { 6 + 11 * (protocol & 1) } else { protocol };
        if first == 0x60 {
            put_word(&mut packet, 4, len.saturating_sub(40));
            packet[6] = protocol;
        } else {
            put_word(&mut packet, 2, len);
            packet[9] = protocol;
        }
        if let Ok(header) = Header::parse(&header)
            && let Ok(plan) = Split::new(&header, &packet)
        {
            let mut out = [0; 200];
            for index in 0..plan.segments() {
                prop_assert_eq!(plan.write(index, &mut out), plan.segment_len(index));
                prop_assert!((1..=plan.segment_len(0)).contains(&plan.segment_len(index)));
            }
        }
    }
}
