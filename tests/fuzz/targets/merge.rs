//! A batch of inner packets, joined for a TUN device: cut again, it is the same packets, and each flow's are in order.
//!
//! The input is a list of steps. Most send the next packets of one of a few flows, a little bent perhaps.

use p2ptund::proto::ip;
use p2ptund::proto::offload::checksum::{finish, finish_udp, fold, pseudo_header, sum};
use p2ptund::proto::offload::merge::{Accepts, Merger};
use p2ptund::proto::offload::split::Split;
use p2ptund::proto::offload::virtio::{HEADER_LEN, Header};

use super::input::{Input, bend};

/// A few times what a system call brings.
const MOST_PACKETS: usize = 256;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let accepts = input.u8();
    let accepts = Accepts { tcp4: accepts & 1 == 0, tcp6: accepts & 2 == 0, udp: accepts & 4 == 0 };
    let mut flows: Vec<_> = (0..=input.u8() % 24).map(|number| Flow::new(number, input.u8())).collect();
    let mut packets = Vec::new();
    // Of which flow each packet is, where it was not bent.
    let mut senders = Vec::new();
    while !input.is_empty() && packets.len() < MOST_PACKETS {
        let sender = input.below(flows.len());
        let step = input.u8();
        let len = usize::from(input.u8());
        for _ in 0..=step >> 5 {
            let mut packet = flows[sender].next(len);
            let is_bent = step & 7 == 7;
            match step & 7 {
                4 => flows[sender].id = input.u16(),
                5 => flows[sender].flags = input.u8(),
                6 => packet.extend_from_slice(&[0; 15][..usize::from(step >> 4)]),
                7 => bend(&mut input, &mut packet),
                _ => {}
            }
            packets.push(packet);
            senders.push((!is_bent).then_some(sender));
        }
    }

    let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut left: Vec<_> = packets.iter().map(|packet| Some(visible(packet))).collect();
    let mut newest = vec![None; flows.len()];
    Merger::new(accepts).merge(&slices, |pieces| {
        let write: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        for packet in cut(&write) {
            let packet = visible(&packet);
            let index = left.iter().position(|left| left.as_ref() == Some(&packet));
            let index = index.expect("nothing comes out that did not go in, and nothing twice");
            left[index] = None;
            if let Some(sender) = senders[index] {
                assert!(newest[sender] < Some(index), "a packet overtook one of its flow");
                newest[sender] = Some(index);
            }
        }
    });
    assert!(left.iter().all(Option::is_none), "nothing is lost");
}

/// What the kernel does where it forwards the packet.
fn cut(write: &[u8]) -> Vec<Vec<u8>> {
    let header = Header::parse(write).expect("a header is written");
    let packet = &write[HEADER_LEN..];
    if header == Header::default() {
        return vec![packet.to_vec()];
    }
    let split = Split::new(&header, packet).expect("what is joined can be cut");
    assert!(!split.is_whole() && split.header().len == packet.len());
    let segment = |index| {
        let mut out = vec![0; split.segment_len(index)];
        assert_eq!(split.write(index, &mut out), out.len());
        out
    };
    (0..split.segments()).map(segment).collect()
}

/// Without padding, and without the identification that nobody may look at (RFC 6864), which the header's checksum is over.
fn visible(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(header) = ip::Header::parse(&packet) {
        packet.truncate(header.len);
        if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
            let is_right = fold(sum(&packet[..20])) == 0xffff;
            packet[4..6].fill(0);
            packet[10..12].fill(u8::from(is_right));
        }
    }
    packet
}

struct Flow {
    number: u8,
    is_v4: bool,
    is_udp: bool,
    df: bool,
    sequence: u32,
    id: u16,
    flags: u8,
}

impl Flow {
    fn new(number: u8, kind: u8) -> Self {
        let [is_v4, is_udp, df] = [1, 2, 4].map(|bit| kind & bit == 0);
        Self { number, is_v4, is_udp, df, sequence: u32::MAX - 1000, id: 0xfffe, flags: 0x10 }
    }

    /// The packet that goes on the flow without a gap.
    fn next(&mut self, len: usize) -> Vec<u8> {
        let mut transport = vec![0, self.number % 4, 1, 187];
        let front = if self.is_udp { 8 } else { 20 };
        transport.resize(front + len, self.sequence as u8);
        if self.is_udp {
            transport[4..6].copy_from_slice(&((front + len) as u16).to_be_bytes());
        } else {
            transport[4..8].copy_from_slice(&self.sequence.to_be_bytes());
            (transport[12], transport[13]) = (5 << 4, self.flags);
        }
        let checksum_at = if self.is_udp { 6 } else { 16 };
        transport[checksum_at..checksum_at + 2].fill(0);

        let protocol = if self.is_udp { 17 } else { 6 };
        let mut packet = vec![if self.is_v4 { 0x45 } else { 0x60 }, 0, 0, 0];
        if self.is_v4 {
            packet[2..4].copy_from_slice(&((20 + transport.len()) as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([
                if self.df { 0x40 } else { 0 },
                0,
                64,
                protocol,
                0,
                0,
                10,
                77,
                0,
                self.number / 4,
                10,
                77,
                0,
                9,
            ]);
            let checksum = finish(sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend([[self.number / 4; 16], [9; 16]].concat());
        }
        let addresses = if self.is_v4 { &packet[12..20] } else { &packet[8..40] };
        let total = pseudo_header(addresses, protocol, transport.len()) + sum(&transport);
        let checksum = if self.is_udp { finish_udp(total) } else { finish(total) };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(transport);
        self.sequence = self.sequence.wrapping_add(len as u32);
        self.id = self.id.wrapping_add(1);
        packet
    }
}
