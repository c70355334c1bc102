use proptest::prelude::*;

use super::super::tests::{EVERYTHING, Made, merge, slow_sum, split_again, tcp4, tcp6, udp4, udp6};
use super::*;

/// What a flow sends next, as packets with so much payload each.
fn stream(start: &Made, sizes: &[usize]) -> Vec<Made> {
    let mut next = start.clone();
    let packet = |size: &usize| {
        next.payload = vec![*size as u8; *size];
        let packet = next.clone();
        next.sequence = next.sequence.wrapping_add(*size as u32);
        next.id = next.id.wrapping_add(1);
        packet
    };
    sizes.iter().map(packet).collect()
}

fn packets(made: &[Made]) -> Vec<Vec<u8>> {
    made.iter().map(Made::packet).collect()
}

/// How many packets each write of a batch has.
fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    merge(EVERYTHING, packets).iter().map(|write| split_again(write).len()).collect()
}

/// Makes the checksums of an IPv4 packet without options right again.
fn resum(packet: &mut [u8]) {
    let checksum_at = if packet[9] == 17 { 26 } else { 36 };
    packet[10..12].fill(0);
    packet[checksum_at..checksum_at + 2].fill(0);
    let pseudo = [&packet[12..20], &[0, packet[9]], &(packet.len() as u16 - 20).to_be_bytes()].concat();
    let (header, transport) = (!slow_sum(&packet[..20]), !slow_sum(&[&pseudo, &packet[20..]].concat()));
    put_word(packet, 10, header);
    put_word(packet, checksum_at, transport);
}

fn kinds() -> [Made; 4] {
    [tcp4(&[]), tcp6(&[]), udp4(&[]), udp6(&[])]
}

#[test]
fn a_burst_becomes_one_write_that_is_cut_into_the_same_packets() {
    for kind in kinds() {
        let packets = packets(&stream(&kind, &[1300; 44]));
        let writes = merge(EVERYTHING, &packets);
        assert_eq!(writes.len(), 1);
        assert_eq!(split_again(&writes[0]), packets);
    }
}

#[test]
fn payloads_stay_where_they_are() {
    let packets = packets(&stream(&tcp4(&[]), &[1000, 1000, 10]));
    let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    Merger::new(EVERYTHING).merge(&slices, |pieces| {
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces[0].len(), HEADER_LEN + 52);
        for (piece, packet) in pieces[1..].iter().zip(&slices) {
            assert_eq!(piece.as_ptr_range(), packet[52..].as_ptr_range());
        }
    });
}

#[test]
fn the_kernel_is_told_where_the_checksum_is_half_done() {
    for kind in kinds() {
        let writes = merge(EVERYTHING, &packets(&stream(&kind, &[200, 200, 100])));
        let whole = Made { payload: [vec![200; 400], vec![100; 100]].concat(), ..kind };
        let (header, packet) = whole.unfinished(Some(200));
        assert_eq!(Header::parse(&writes[0]), Ok(header));
        assert_eq!(&writes[0][HEADER_LEN..], packet);
    }
}

#[test]
fn what_does_not_merge_goes_out_as_it_came() {
    let mut packets = packets(&[tcp4(&[1]), udp6(&[2])]);
    packets.push(b"no IP packet".to_vec());
    packets.push(Vec::new());
    let writes = merge(EVERYTHING, &packets);
    let alone = |packet: &Vec<u8>| [&[0; HEADER_LEN], packet.as_slice()].concat();
    for packet in &packets {
        assert!(writes.contains(&alone(packet)));
    }
    assert_eq!(writes.len(), 4);
}

#[test]
fn a_shorter_packet_ends_a_run_and_a_longer_one_begins_another() {
    assert_eq!(counts(&packets(&stream(&tcp4(&[]), &[100, 100, 60, 60, 60]))), [3, 2]);
    assert_eq!(counts(&packets(&stream(&udp4(&[]), &[100, 100, 200, 200, 0, 200]))), [2, 2, 1, 1]);
}

#[test]
fn psh_ends_a_run() {
    let mut stream = stream(&tcp6(&[]), &[100; 5]);
    stream[2].flags |= PSH;
    let packets = packets(&stream);
    let writes = merge(EVERYTHING, &packets);
    assert_eq!(writes.len(), 2);
    assert_eq!(split_again(&writes[0]), packets[..3]);
    assert_eq!(split_again(&writes[1]), packets[3..]);
}

#[test]
fn a_flag_that_is_about_one_packet_keeps_it_alone() {
    for flag in [0x01, 0x02, 0x04, 0x20, 0x80] {
        let mut stream = stream(&tcp4(&[]), &[100; 5]);
        stream[2].flags |= flag;
        assert_eq!(counts(&packets(&stream)), [2, 1, 2], "{flag:#x}");
    }
    let mut stream = stream(&tcp4(&[]), &[100; 4]);
    stream.iter_mut().for_each(|made| made.flags |= ECE);
    assert_eq!(counts(&packets(&stream)), [4]);
    stream[0].flags &= !ACK;
    assert_eq!(counts(&packets(&stream)), [1, 3]);
}

#[test]
fn a_field_that_cutting_would_not_bring_back_parts_two_runs() {
    let changes: [fn(&mut Made); 9] = [
        |made| made.acknowledgment += 1,
        |made| made.window += 1,
        |made| made.urgent += 1,
        |made| made.options[11] += 1,
        |made| made.sequence += 1,
        |made| made.ttl -= 1,
        |made| made.traffic_class = 3,
        |made| made.flags_or_label ^= 0x8000,
        |made| made.flags ^= ECE,
    ];
    for kind in [tcp4(&[]), tcp6(&[])] {
        for change in changes {
            let mut stream = stream(&kind, &[100; 4]);
            stream[2..].iter_mut().for_each(change);
            assert_eq!(counts(&packets(&stream)), [2, 2]);
        }
    }
}

#[test]
fn identifications_count_up_unless_nobody_may_look_at_them() {
    for kind in [tcp4(&[]), udp4(&[])] {
        let mut stream = stream(&Made { flags_or_label: 0, id: 0xfffe, ..kind }, &[100; 4]);
        assert_eq!(counts(&packets(&stream)), [4]);
        stream[2].id += 1;
        assert_eq!(counts(&packets(&stream)), [2, 1, 1]);
        stream.iter_mut().for_each(|made| (made.flags_or_label, made.id) = (0x4000, 0));
        assert_eq!(counts(&packets(&stream)), [4]);
    }
}

#[test]
fn a_wrong_checksum_goes_on_unchanged_and_alone() {
    for (kind, at) in [(tcp4(&[]), 60), (tcp4(&[]), 11), (tcp6(&[]), 100), (udp4(&[]), 60), (udp6(&[]), 60)] {
        for wrong in 0..4 {
            let mut packets = packets(&stream(&kind, &[100; 4]));
            packets[wrong][at] ^= 1;
            let writes = merge(EVERYTHING, &packets);
            let alone = [&[0; HEADER_LEN], packets[wrong].as_slice()].concat();
            assert!(writes.contains(&alone), "packet {wrong}, byte {at}");
            assert_eq!(writes.iter().flat_map(|write| split_again(write)).collect::<Vec<_>>(), packets);
        }
    }
}

#[test]
fn a_bit_that_tcp_keeps_for_later_parts_two_runs() {
    let mut packets = packets(&stream(&tcp4(&[]), &[100; 4]));
    for packet in &mut packets[2..] {
        packet[32] |= 1;
        resum(packet);
    }
    assert_eq!(counts(&packets), [2, 2]);
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut some = packets(&stream(&udp4(&[]), &[100; 2]));
    some.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(counts(&some), [1, 1]);

    // Where zero would be right by itself.
    let mut made = udp4(&[0; 100]);
    let checksum = word(&made.packet(), 26);
    made.payload[..2].copy_from_slice(&checksum.to_be_bytes());
    let mut some = packets(&[made.clone(), made]);
    assert_eq!(&some[0][26..28], [0xff, 0xff]);
    assert_eq!(counts(&some), [2]);
    some[0][26..28].fill(0);
    assert_eq!(counts(&some), [1, 1]);
}

#[test]
fn a_udp_length_that_lies_keeps_its_packet_alone() {
    let mut packets = packets(&stream(&udp4(&[]), &[100; 3]));
    packets[1][25] -= 1;
    resum(&mut packets[1]);
    assert_eq!(counts(&packets), [1, 1, 1]);
}

#[test]
fn a_zero_of_the_other_form_is_not_rewritten() {
    // A payload that makes the sum come out as zero, whose other form a sender may write as well.
    let mut made = tcp4(&[0; 100]);
    let checksum = word(&made.packet(), 36);
    made.payload[..2].copy_from_slice(&checksum.to_be_bytes());
    let next = Made { sequence: made.sequence.wrapping_add(100), ..made.clone() };
    let mut packets = packets(&[made, next]);
    assert_eq!(&packets[0][36..38], [0, 0]);
    assert_eq!(counts(&packets), [2]);
    packets[0][36..38].fill(0xff);
    assert_eq!(counts(&packets), [1, 1]);
}

#[test]
fn nor_is_one_in_the_ipv4_header() {
    let mut made = tcp4(&[0; 100]);
    made.id = made.id.wrapping_add(word(&made.packet(), 10));
    let next = Made { sequence: made.sequence.wrapping_add(100), ..made.clone() };
    let mut packets = packets(&[made, next]);
    assert_eq!(&packets[0][10..12], [0, 0]);
    assert_eq!(counts(&packets), [2]);
    packets[0][10..12].fill(0xff);
    assert_eq!(slow_sum(&packets[0][..20]), 0xffff);
    assert_eq!(counts(&packets), [1, 1]);
}

#[test]
fn only_what_the_device_takes_is_merged() {
    for (kind, accepts) in kinds().iter().zip([
        Accepts { tcp4: false, ..EVERYTHING },
        Accepts { tcp6: false, ..EVERYTHING },
        Accepts { udp: false, ..EVERYTHING },
        Accepts { udp: false, ..EVERYTHING },
    ]) {
        let packets = packets(&stream(kind, &[100; 3]));
        assert_eq!(merge(accepts, &packets).len(), 3);
    }
}

#[test]
fn no_super_packet_is_longer_than_a_device_takes() {
    assert_eq!(counts(&packets(&stream(&udp4(&[]), &[1; 150]))), [64, 64, 22]);
    assert_eq!(counts(&packets(&stream(&tcp4(&[]), &[2000; 40]))), [32, 8]);
    // The very last byte: 65,535 = 52 + 47 · 1,393 + 12.
    let mut sizes = vec![1393; 47];
    sizes.push(12);
    assert_eq!(counts(&packets(&stream(&tcp4(&[]), &sizes))), [48]);
    sizes[47] = 13;
    assert_eq!(counts(&packets(&stream(&tcp4(&[]), &sizes))), [47, 1]);
}

#[test]
fn flows_that_come_mixed_are_merged_side_by_side() {
    let flows: Vec<_> = (0..MAX_RUNS + 2).map(|port| Made { port: port as u16, ..tcp4(&[]) }).collect();
    let streams: Vec<_> = flows.iter().map(|flow| packets(&stream(flow, &[100; 3]))).collect();
    let mixed: Vec<_> = (0..3).flat_map(|turn| streams.iter().map(move |stream| stream[turn].clone())).collect();
    let mut counts = counts(&mixed);
    counts.sort_unstable();
    // What there is no room for is passed on.
    assert_eq!(counts, [[1; 6].as_slice(), &[3; MAX_RUNS]].concat());
}

#[test]
fn flows_differ_by_any_part_of_their_addresses_and_ports() {
    for other in [Made { host: 3, ..tcp4(&[]) }, Made { port: 9, ..tcp4(&[]) }, udp4(&[]), tcp6(&[])] {
        let (one, two) = (packets(&stream(&tcp4(&[]), &[100; 3])), packets(&stream(&other, &[100; 3])));
        let mixed: Vec<_> = one.into_iter().zip(two).flat_map(|(one, two)| [one, two]).collect();
        assert_eq!(counts(&mixed), [3, 3]);
    }
}

#[test]
fn a_fragment_overtakes_nothing_that_came_before_it() {
    let mut stream = stream(&udp4(&[]), &[100; 4]);
    stream.iter_mut().for_each(|made| made.flags_or_label = 0);
    stream[2].flags_or_label = 0x2000;
    assert_eq!(counts(&packets(&stream)), [2, 1, 1]);
    stream[2].flags_or_label = 0;
    stream[2].extension = Some(1);
    assert_eq!(counts(&packets(&stream)), [2, 1, 1]);
}

#[test]
fn a_later_fragment_of_ipv6_is_of_any_flow() {
    let mut packets = packets(&stream(&udp6(&[]), &[100; 3]));
    // What it says to be is behind the first fragment's header: here are 8 bytes from the middle of something.
    let mut fragment = packets[1][..40].to_vec();
    (fragment[5], fragment[6]) = (16, 44);
    fragment.extend([60, 0, 0, 9, 0, 0, 0, 1, 59, 0, 0, 0, 0, 0, 0, 0]);
    packets.insert(1, fragment);
    assert_eq!(counts(&packets), [1, 1, 2]);
}

#[test]
fn padding_is_no_part_of_a_packet() {
    let expected = packets(&stream(&tcp4(&[]), &[100, 100, 30]));
    let mut padded = expected.clone();
    padded.iter_mut().for_each(|packet| packet.resize(packet.len().next_multiple_of(16), 0));
    let writes = merge(EVERYTHING, &padded);
    assert_eq!(writes.len(), 1);
    assert_eq!(split_again(&writes[0]), expected);
}

#[test]
fn nothing_of_a_batch_is_left_for_the_next() {
    let packets = packets(&stream(&tcp4(&[]), &[100; 6]));
    let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut merger = Merger::new(EVERYTHING);
    for batch in slices.chunks(3) {
        let mut writes = 0;
        merger.merge(batch, |pieces| {
            assert_eq!(pieces.len(), 4);
            writes += 1;
        });
        assert_eq!(writes, 1);
    }
    merger.merge(&[], |_| panic!("there is nothing to write"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        packets in prop::collection::vec(
            (prop::sample::select(vec![0x45, 0x46, 0x60, 0x00]), prop::collection::vec(any::<u8>(), 0..100)), 0..20
        ),
        udp: bool,
    ) {
        let packets: Vec<_> = packets.into_iter().map(|(first, mut packet)| {
            let len = packet.len() as u16;
            if packet.len() >= 10 {
                let protocol = if udp { 17 } else { 6 };
                packet[0] = first;
                let (len_at, len, protocol_at) = if first == 0x60 { (4, len.saturating_sub(40), 6) } else { (2, len, 9) };
                put_word(&mut packet, len_at, len);
                packet[protocol_at] = protocol;
            }
            packet
        }).collect();
        prop_assert!(merge(EVERYTHING, &packets).len() <= packets.len());
    }
}
