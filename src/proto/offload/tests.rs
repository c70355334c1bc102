//! Packets made field by field, to hold [`super::split`] and [`super::merge`] against; and that either undoes the other.

use std::io::IoSlice;

use proptest::prelude::*;

use super::merge::{Accepts, Merger};
use super::split::Split;
use super::virtio::{self, Header, Kind, Partial, Segments};

pub const EVERYTHING: Accepts = Accepts { tcp4: true, tcp6: true, udp: true };

/// A packet's fields. Knows nothing of the code that it tests.
#[derive(Clone, Debug)]
pub struct Made {
    pub is_v4: bool,
    pub is_udp: bool,
    pub traffic_class: u8,
    pub ttl: u8,
    pub id: u16,
    /// DF, MF and the offset in IPv4; the flow label in IPv6.
    pub flags_or_label: u16,
    pub host: u8,
    pub port: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Of TCP, in words of four bytes.
    pub options: Vec<u8>,
    /// IPv4: options, in words; IPv6: how many bytes of destination options behind the first eight, in words of eight.
    pub extension: Option<u8>,
    pub payload: Vec<u8>,
}

pub fn tcp4(payload: &[u8]) -> Made {
    Made {
        is_v4: true,
        is_udp: false,
        traffic_class: 0,
        ttl: 64,
        id: 1000,
        flags_or_label: 0x4000,
        host: 2,
        port: 5201,
        sequence: 0xffff_f000,
        acknowledgment: 77,
        flags: 0x10,
        window: 502,
        urgent: 0,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        extension: None,
        payload: payload.to_vec(),
    }
}

pub fn tcp6(payload: &[u8]) -> Made {
    Made { is_v4: false, ..tcp4(payload) }
}

pub fn udp4(payload: &[u8]) -> Made {
    Made { is_udp: true, ..tcp4(payload) }
}

pub fn udp6(payload: &[u8]) -> Made {
    Made { is_v4: false, ..udp4(payload) }
}

impl Made {
    fn protocol(&self) -> u8 {
        if self.is_udp { 17 } else { 6 }
    }

    /// Both addresses, as in either IP header.
    fn addresses(&self) -> Vec<u8> {
        if self.is_v4 {
            return vec![10, 77, 0, self.host, 192, 168, 20, 9];
        }
        let mut addresses = vec![0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.host];
        addresses.extend([0xfd, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        addresses
    }

    pub fn transport_at(&self) -> usize {
        match (self.is_v4, self.extension) {
            (true, words) => 20 + usize::from(words.unwrap_or(0) % 11) * 4,
            (false, None) => 40,
            (false, Some(words)) => 48 + usize::from(words) * 8,
        }
    }

    pub fn payload_at(&self) -> usize {
        self.transport_at() + if self.is_udp { 8 } else { 20 + self.options.len() }
    }

    fn pseudo_sum(&self, transport_len: usize) -> u16 {
        let mut bytes = self.addresses();
        bytes.extend((transport_len as u32).to_be_bytes());
        bytes.extend([0, self.protocol()]);
        slow_sum(&bytes)
    }

    /// The packet without its transport checksum.
    fn headless(&self) -> Vec<u8> {
        let mut transport = self.port.to_be_bytes().to_vec();
        transport.extend(443u16.to_be_bytes());
        if self.is_udp {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgment.to_be_bytes());
            transport.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.options);
        }
        transport.extend(&self.payload);

        let mut packet = Vec::new();
        let transport_at = self.transport_at();
        if self.is_v4 {
            packet.extend([0x40 | (transport_at / 4) as u8, self.traffic_class]);
            packet.extend(((transport_at + transport.len()) as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend(self.flags_or_label.to_be_bytes());
            packet.extend([self.ttl, self.protocol(), 0, 0]);
            packet.extend(self.addresses());
            packet.resize(transport_at, 1);
            let checksum = !slow_sum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet.extend([0x60 | self.traffic_class >> 4, self.traffic_class << 4]);
            packet.extend(self.flags_or_label.to_be_bytes());
            packet.extend(((transport_at - 40 + transport.len()) as u16).to_be_bytes());
            packet.extend([if self.extension.is_some() { 60 } else { self.protocol() }, self.ttl]);
            packet.extend(self.addresses());
            if let Some(words) = self.extension {
                packet.extend([self.protocol(), words, 1, (transport_at - 44) as u8]);
                packet.resize(transport_at, 0);
            }
        }
        packet.extend(transport);
        packet
    }

    fn checksum_at(&self) -> usize {
        self.transport_at() + if self.is_udp { 6 } else { 16 }
    }

    /// The packet, complete.
    pub fn packet(&self) -> Vec<u8> {
        let mut packet = self.headless();
        let transport = &packet[self.transport_at()..];
        let pseudo = self.pseudo_sum(transport.len());
        let checksum = match !slow_sum(&[transport, &[0][..transport.len() % 2], &pseudo.to_be_bytes()].concat()) {
            0 if self.is_udp => 0xffff,
            checksum => checksum,
        };
        let at = self.checksum_at();
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// As the kernel hands it over: to be cut into pieces of `size`, its checksum half done.
    pub fn unfinished(&self, size: Option<u16>) -> (Header, Vec<u8>) {
        let mut packet = self.headless();
        let pseudo = self.pseudo_sum(packet.len() - self.transport_at());
        let at = self.checksum_at();
        packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let kind = match (self.is_udp, self.is_v4) {
            (true, _) => Kind::Udp,
            (false, true) => Kind::TcpV4 { cwr: self.flags & 0x80 != 0 },
            (false, false) => Kind::TcpV6 { cwr: self.flags & 0x80 != 0 },
        };
        let (start, offset) = (self.transport_at() as u16, (at - self.transport_at()) as u16);
        let header = Header {
            partial: Some(Partial { start, offset }),
            segments: size.map(|size| Segments { kind, size }),
            header_len: self.payload_at() as u16,
        };
        (header, packet)
    }

    /// What it has to be cut into, each made by itself.
    pub fn cut(&self, size: usize) -> Vec<Made> {
        let pieces: Vec<_> = self.payload.chunks(size).collect();
        let piece = |(index, payload): (usize, &&[u8])| {
            let mut flags = self.flags;
            if index > 0 {
                flags &= !0x80;
            }
            if index + 1 < pieces.len() {
                flags &= !0x09;
            }
            Made {
                id: self.id.wrapping_add(index as u16),
                sequence: self.sequence.wrapping_add((index * size) as u32),
                flags,
                payload: payload.to_vec(),
                ..self.clone()
            }
        };
        pieces.iter().enumerate().map(piece).collect()
    }
}

/// RFC 1071, word by word.
pub fn slow_sum(bytes: &[u8]) -> u16 {
    let sum: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
    (1..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xffff)) as u16
}

/// All segments of what the kernel handed over.
pub fn split(header: &Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let split = Split::new(header, packet).expect("can be cut");
    let write = |index| {
        let mut out = vec![0xee; split.segment_len(index) + 3];
        let len = split.write(index, &mut out);
        assert_eq!(len, split.segment_len(index));
        assert_eq!(out.split_off(len), [0xee; 3], "nothing is written behind a segment");
        out
    };
    (0..split.segments()).map(write).collect()
}

/// Every write of a batch, in one piece.
pub fn merge(accepts: Accepts, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut writes = Vec::new();
    Merger::new(accepts).merge(&packets, |pieces: &[IoSlice<'_>]| {
        writes.push(pieces.iter().flat_map(|piece| piece.iter().copied()).collect());
    });
    writes
}

/// What becomes of a write if the kernel cuts it again.
pub fn split_again(write: &[u8]) -> Vec<Vec<u8>> {
    let header = Header::parse(write).expect("has a header");
    let packet = &write[virtio::HEADER_LEN..];
    if header == Header::default() { vec![packet.to_vec()] } else { split(&header, packet) }
}

/// Any packet that can be cut: no fragment.
pub fn made() -> impl Strategy<Value = Made> {
    let ip = any::<(bool, bool, u8, u8, u16, u16, u8, u16)>();
    let tcp = (any::<(u32, u32, u8, u16, u16)>(), prop::collection::vec(any::<[u8; 4]>(), 0..=10));
    let rest = (prop::option::of(0u8..20), prop::collection::vec(any::<u8>(), 0..6000));
    (ip, tcp, rest).prop_map(|(ip, (tcp, options), (extension, payload))| {
        let (is_v4, is_udp, traffic_class, ttl, id, flags_or_label, host, port) = ip;
        let (sequence, acknowledgment, flags, window, urgent) = tcp;
        let flags_or_label = if is_v4 { flags_or_label & 0xc000 } else { flags_or_label };
        let options = options.concat();
        Made {
            is_v4,
            is_udp,
            traffic_class,
            ttl,
            id,
            flags_or_label,
            host,
            port,
            sequence,
            acknowledgment,
            flags,
            window,
            urgent,
            options,
            extension,
            payload,
        }
    })
}

/// How a packet of a batch differs from the one that would go on its flow.
#[derive(Clone, Debug)]
enum Change {
    None,
    Flags(u8),
    Window,
    Acknowledgment,
    Options,
    Urgent,
    TrafficClass,
    Ttl,
    Gap,
    Id,
    Fragment,
    Extension(u8),
    /// A byte that is another than the checksums say.
    Byte(usize),
    Padding(usize),
    Cut(usize),
    Junk(Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        40 => Just(Change::None),
        4 => any::<u8>().prop_map(Change::Flags),
        2 => Just(Change::Flags(0x18)),
        1 => Just(Change::Window),
        1 => Just(Change::Acknowledgment),
        1 => Just(Change::Options),
        1 => Just(Change::Urgent),
        1 => Just(Change::TrafficClass),
        1 => Just(Change::Ttl),
        1 => Just(Change::Gap),
        1 => Just(Change::Id),
        1 => Just(Change::Fragment),
        1 => (0u8..3).prop_map(Change::Extension),
        2 => any::<usize>().prop_map(Change::Byte),
        2 => (1usize..16).prop_map(Change::Padding),
        1 => any::<usize>().prop_map(Change::Cut),
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Change::Junk),
    ]
}

/// A batch: the packets, and which flow each is of, where it shows.
fn batch() -> impl Strategy<Value = Vec<(Option<usize>, Vec<u8>)>> {
    let flow = (any::<bool>(), any::<bool>(), any::<bool>(), 0usize..3);
    let step = (any::<prop::sample::Index>(), change(), prop_oneof![6 => Just(100usize), 1 => 0usize..101], 1usize..9);
    (prop::collection::vec(flow, 1..24), prop::collection::vec(step, 0..60)).prop_map(|(flows, steps)| {
        let new = |(number, (is_v4, is_udp, df, options)): (usize, (bool, bool, bool, usize))| Made {
            is_v4,
            is_udp,
            flags_or_label: if df { 0x4000 } else { 0 },
            // Some flows differ by an address alone, some by a port alone.
            host: (number / 4) as u8,
            port: 1000 + (number % 4) as u16,
            options: vec![1; options * 4],
            ..tcp4(&[])
        };
        let mut flows: Vec<_> = flows.into_iter().enumerate().map(new).collect();
        let mut batch = Vec::new();
        for (index, change, len, repeat) in steps {
            let flow = index.index(flows.len());
            for _ in 0..repeat {
                let next = &mut flows[flow];
                next.payload = (0..len).map(|byte| (byte + batch.len()) as u8).collect();
                let packet = changed(next, &change);
                let shows = match change {
                    Change::Byte(at) => at % packet.len() >= next.transport_at() + 4,
                    Change::Cut(_) | Change::Junk(_) => false,
                    _ => true,
                };
                batch.push((shows.then_some(flow), packet));
                next.sequence = next.sequence.wrapping_add(len as u32);
                next.id = next.id.wrapping_add(1);
            }
        }
        batch
    })
}

/// The next packet of a flow, with one change; what is no field of this packet alone is so from then on.
fn changed(next: &mut Made, change: &Change) -> Vec<u8> {
    match change {
        Change::Window => next.window += 1,
        Change::Acknowledgment => next.acknowledgment += 1,
        Change::Options => next.options.iter_mut().for_each(|byte| *byte ^= 1),
        Change::Gap => next.sequence = next.sequence.wrapping_add(1),
        Change::Id => next.id += 5,
        _ => {}
    }
    let mut once = next.clone();
    match change {
        Change::Flags(flags) => once.flags = *flags,
        Change::Urgent => once.urgent = 1,
        Change::TrafficClass => once.traffic_class ^= 3,
        Change::Ttl => once.ttl -= 1,
        Change::Fragment => once.flags_or_label |= 0x2000,
        Change::Extension(words) => once.extension = Some(*words),
        _ => {}
    }
    let mut packet = once.packet();
    match change {
        Change::Byte(at) => {
            let at = at % packet.len();
            packet[at] ^= 0x10;
        }
        Change::Padding(len) => packet.resize(packet.len() + len, 0),
        Change::Cut(len) => packet.truncate(len % packet.len()),
        Change::Junk(junk) => packet = junk.clone(),
        _ => {}
    }
    packet
}

/// A packet as far as anybody may look at it: without padding, and without the identification that RFC 6864 calls
/// meaningless, which the header's checksum is over.
fn visible(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(header) = super::super::ip::Header::parse(&packet) {
        packet.truncate(header.len);
        if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
            assert!(packet.len() >= 20);
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
    }
    packet
}

proptest! {
    #[test]
    fn each_segment_is_the_packet_that_would_be_made_by_itself(made in made(), size in 1u16..3000) {
        let (header, packet) = made.unfinished(Some(size));
        let segments = split(&header, &packet);
        if made.payload.len() > usize::from(size) {
            let expected: Vec<_> = made.cut(usize::from(size)).iter().map(Made::packet).collect();
            prop_assert_eq!(segments, expected);
        } else {
            prop_assert_eq!(segments, vec![made.packet()]);
        }
    }

    #[test]
    fn one_packet_gets_its_checksum(made in made()) {
        let (header, packet) = made.unfinished(None);
        prop_assert_eq!(split(&header, &packet), vec![made.packet()]);
        prop_assert_eq!(split(&Header::default(), &packet), vec![packet]);
    }

    #[test]
    fn what_was_merged_is_cut_into_the_same_packets_in_order(batch in batch()) {
        let (flows, packets): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut left: Vec<_> = packets.iter().map(|packet| Some(visible(packet))).collect();
        let mut newest = vec![None; 24];
        for write in merge(EVERYTHING, &packets) {
            let again = split_again(&write);
            for packet in &again {
                if again.len() > 1 && packet[0] >> 4 == 4 {
                    prop_assert_eq!(slow_sum(&packet[..20]), 0xffff);
                }
                let packet = visible(packet);
                let index = left.iter().position(|left| left.as_ref() == Some(&packet));
                let index = index.expect("nothing comes out that did not go in, and nothing twice");
                left[index] = None;
                if let Some(flow) = flows[index] {
                    prop_assert!(newest[flow] < Some(index), "a packet overtook one of its flow");
                    newest[flow] = Some(index);
                }
            }
        }
        prop_assert!(left.iter().all(Option::is_none), "something was lost");
    }
}
