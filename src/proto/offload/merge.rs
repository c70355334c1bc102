//! Joins packets of one batch that are pieces of one stream into super-packets, so that the kernel takes each with one call
//! and walks its stack once for all of them.
//!
//! ```text
//! opened, in order of arrival     | IP | TCP | a |   | IP | TCP | b |   | IP | TCP | c |
//! written, in pieces              | virtio-net | IP | TCP |, | a |, | b |, | c |
//! ```
//!
//! The headers are the first packet's, with the whole's length; the payloads stay where they were opened. The checksum's
//! field gets the pseudo header's sum, and the kernel takes what it covers as correct: so nothing is joined whose own
//! checksums were not found right.
//!
//! Two packets are joined only where cutting the result ([`super::split`]) gives back the very same two. Hence:
//!
//! - Every header byte is equal, but for what cutting writes anew: lengths, checksums, the TCP sequence, which has to go on
//!   without a gap, and PSH, which ends a run.
//! - All have as much payload as the first. One with less ends a run, and one with none is in no run.
//! - TCP has ACK, perhaps ECE, and no flag besides. A SYN, FIN, RST, URG or CWR is a word about the one packet that it is in.
//! - The IPv4 identification counts up by one, unless DF is set: then the packet is an atomic datagram, whose identification
//!   means nothing and has to be ignored (RFC 6864 sections 4.1 and 4.3). Many systems send zeroes or random numbers there.
//! - Checksums have the one of their two forms of zero that cutting writes.
//! - No IPv4 options, IPv6 extension headers or fragments: rare, and the kernel joins none of the first and last either.
//!
//! Packets of one flow (addresses, ports and protocol) leave in the order in which they came: what can't go on its flow's run
//! ends that run first. Flows may overtake each other within a batch. A packet that does not show its flow ends all runs.
//! Nothing is held beyond the batch.

use std::io::IoSlice;

use super::super::ip::{self, Part, Upper, V4_HEADER, V6_HEADER};
use super::checksum::{finish, fold, pseudo_header, sum};
use super::headers::{ACK, DF, ECE, PSH, TCP, TCP_MAX_LEN, Transport, UDP, addresses, is_v4, long, put_word, word};
use super::virtio::{HEADER_LEN, Header, Kind, Partial, Segments};

/// Most packets in one super-packet: 48 of 1,360 bytes fill it. Smaller ones gain little beyond.
pub const MAX_SEGMENTS: usize = 64;
/// Most bytes in one, headers included: what an IPv4 length can say, and what a write to a TUN device may have.
const MAX_LEN: usize = 65_535;
/// Flows that are joined side by side. A batch has 64 packets or a few times that; of more flows there would be little to join.
const MAX_RUNS: usize = 16;

/// What the device was said to take; the rest is written packet by packet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Accepts {
    pub tcp4: bool,
    pub tcp6: bool,
    /// Over either (Linux 6.2).
    pub udp: bool,
}

/// Joins the packets of a batch. Kept for the room that it has; nothing of a batch stays in it.
pub struct Merger {
    accepts: Accepts,
    /// The first `open` hold packets.
    runs: [Run; MAX_RUNS],
    open: usize,
}

/// Packets of one flow that go on without a gap, by their index in the batch.
#[derive(Clone, Copy)]
struct Run {
    members: [usize; MAX_SEGMENTS],
    count: usize,
    /// The first packet's headers.
    shape: Shape,
    /// Source and destination port, to find a flow by a glance.
    ports: u32,
    /// Payload of each packet but perhaps the last.
    size: usize,
    /// Bytes of headers and all payloads.
    len: usize,
    /// Whether the first packet's checksums were found right; the others' were before they came in.
    is_verified: bool,
}

/// How a packet's headers lie.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    is_v4: bool,
    transport: Transport,
    payload_at: usize,
}

/// A packet of a flow that may have runs.
#[derive(Clone, Copy)]
struct Piece<'a> {
    /// Without what follows its end by its own IP header.
    packet: &'a [u8],
    shape: Shape,
    /// Whether its flags and fields, by themselves, let it be in a run.
    can_join: bool,
}

enum Class<'a> {
    /// Of no flow that has runs: another protocol, or one that the device does not take joined; or not IP.
    Apart,
    /// Of a flow that may have runs, but it does not show which.
    Unclear,
    Of(Piece<'a>),
}

impl Merger {
    pub fn new(accepts: Accepts) -> Self {
        Self { accepts, runs: [Run::EMPTY; MAX_RUNS], open: 0 }
    }

    /// Gives each write of a batch to `emit`: the virtio-net header first, then the rest in as many pieces as it has. Every
    /// packet is in exactly one. What is in `packets` may be followed by padding, which a packet that is joined loses.
    pub fn merge(&mut self, packets: &[&[u8]], mut emit: impl FnMut(&[IoSlice<'_>])) {
        for (index, packet) in packets.iter().enumerate() {
            match Class::of(packet, self.accepts) {
                Class::Apart => write_alone(packet, &mut emit),
                Class::Unclear => {
                    self.end_all(packets, &mut emit);
                    write_alone(packet, &mut emit);
                }
                Class::Of(piece) => self.add(index, &piece, packets, &mut emit),
            }
        }
        self.end_all(packets, &mut emit);
    }

    fn add(&mut self, index: usize, piece: &Piece<'_>, packets: &[&[u8]], emit: &mut impl FnMut(&[IoSlice<'_>])) {
        let run = self.runs[..self.open].iter().position(|run| run.is_of_flow(piece, packets));
        if let Some(run) = run {
            if piece.can_join && self.runs[run].admits(piece, packets) {
                let is_last = piece.payload_len() < self.runs[run].size || piece.is_pushed();
                self.runs[run].push(index, piece);
                if is_last {
                    self.end(run, packets, emit);
                }
                return;
            }
            self.end(run, packets, emit);
        }
        if piece.can_join && !piece.is_pushed() && self.open < MAX_RUNS {
            self.runs[self.open].start(index, piece);
            self.open += 1;
        } else {
            write_alone(packets[index], emit);
        }
    }

    fn end(&mut self, run: usize, packets: &[&[u8]], emit: &mut impl FnMut(&[IoSlice<'_>])) {
        self.runs[run].write(packets, emit);
        self.open -= 1;
        self.runs.swap(run, self.open);
    }

    fn end_all(&mut self, packets: &[&[u8]], emit: &mut impl FnMut(&[IoSlice<'_>])) {
        for run in &self.runs[..self.open] {
            run.write(packets, emit);
        }
        self.open = 0;
    }
}

impl Run {
    const EMPTY: Self = Self {
        members: [0; MAX_SEGMENTS],
        count: 0,
        shape: Shape { is_v4: true, transport: Transport::Tcp, payload_at: 0 },
        ports: 0,
        size: 0,
        len: 0,
        is_verified: false,
    };

    fn start(&mut self, index: usize, piece: &Piece<'_>) {
        self.members[0] = index;
        self.count = 1;
        self.shape = piece.shape;
        self.ports = piece.ports();
        self.size = piece.payload_len();
        self.len = piece.packet.len();
        self.is_verified = false;
    }

    fn push(&mut self, index: usize, piece: &Piece<'_>) {
        self.members[self.count] = index;
        self.count += 1;
        self.len += piece.payload_len();
    }

    fn first<'a>(&self, packets: &[&'a [u8]]) -> Piece<'a> {
        let packet = &packets[self.members[0]][..self.shape.payload_at + self.size];
        Piece { packet, shape: self.shape, can_join: true }
    }

    fn is_of_flow(&self, piece: &Piece<'_>, packets: &[&[u8]]) -> bool {
        self.ports == piece.ports()
            && self.shape.is_v4 == piece.shape.is_v4
            && self.shape.transport == piece.shape.transport
            && piece.has_addresses_of(packets[self.members[0]])
    }

    /// Whether `piece`, of this flow, is the very packet that cutting would make next.
    fn admits(&mut self, piece: &Piece<'_>, packets: &[&[u8]]) -> bool {
        let first = self.first(packets);
        let follows = piece.shape == self.shape
            && piece.payload_len() <= self.size
            && self.count < MAX_SEGMENTS
            && self.len + piece.payload_len() <= MAX_LEN
            && piece.follows(&first, self.count, self.size);
        // Summing comes last, and not before there is something to join.
        if follows && !self.is_verified {
            self.is_verified = first.is_correct();
        }
        follows && self.is_verified && piece.is_correct()
    }

    fn write(&self, packets: &[&[u8]], emit: &mut impl FnMut(&[IoSlice<'_>])) {
        let Shape { transport, payload_at, .. } = self.shape;
        let members = &self.members[..self.count];
        let [head, .., last] = members else {
            return members.iter().for_each(|member| write_alone(packets[*member], emit));
        };
        let mut front = [0; HEADER_LEN + V6_HEADER + TCP_MAX_LEN];
        let front = &mut front[..HEADER_LEN + payload_at];
        front[..HEADER_LEN].copy_from_slice(&self.virtio().to_bytes());
        let headers = &mut front[HEADER_LEN..];
        headers.copy_from_slice(&packets[*head][..payload_at]);
        let transport_at = self.shape.transport_at();
        let transport_len = self.len - transport_at;
        if self.shape.is_v4 {
            put_word(headers, 2, self.len as u16);
            put_word(headers, 10, 0);
            let checksum = finish(sum(&headers[..V4_HEADER]));
            put_word(headers, 10, checksum);
        } else {
            put_word(headers, 4, transport_len as u16);
        }
        match transport {
            Transport::Tcp => headers[transport_at + 13] |= packets[*last][transport_at + 13] & PSH,
            Transport::Udp => put_word(headers, transport_at + 4, transport_len as u16),
        }
        let pseudo = pseudo_header(addresses(headers), transport.protocol(), transport_len);
        put_word(headers, transport_at + transport.checksum(), fold(pseudo));

        let mut pieces = [IoSlice::new(&[]); 1 + MAX_SEGMENTS];
        pieces[0] = IoSlice::new(front);
        let mut left = self.len - payload_at;
        for (piece, member) in pieces[1..].iter_mut().zip(members) {
            let len = left.min(self.size);
            *piece = IoSlice::new(&packets[*member][payload_at..payload_at + len]);
            left -= len;
        }
        emit(&pieces[..=self.count]);
    }

    fn virtio(&self) -> Header {
        let Shape { is_v4, transport, payload_at } = self.shape;
        // CWR would be a flag that no run has.
        let kind = match (transport, is_v4) {
            (Transport::Tcp, true) => Kind::TcpV4 { cwr: false },
            (Transport::Tcp, false) => Kind::TcpV6 { cwr: false },
            (Transport::Udp, _) => Kind::Udp,
        };
        let partial = Partial { start: self.shape.transport_at() as u16, offset: transport.checksum() as u16 };
        Header {
            partial: Some(partial),
            segments: Some(Segments { kind, size: self.size as u16 }),
            header_len: payload_at as u16,
        }
    }
}

impl Shape {
    fn transport_at(&self) -> usize {
        if self.is_v4 { V4_HEADER } else { V6_HEADER }
    }
}

impl Piece<'_> {
    fn transport(&self) -> &[u8] {
        &self.packet[self.shape.transport_at()..]
    }

    fn ports(&self) -> u32 {
        long(self.transport(), 0)
    }

    /// Of `other`, which is of the same IP version.
    fn has_addresses_of(&self, other: &[u8]) -> bool {
        // As in `addresses`, by lengths that the compiler sees.
        if self.shape.is_v4 { self.packet[12..20] == other[12..20] } else { self.packet[8..40] == other[8..40] }
    }

    fn payload_len(&self) -> usize {
        self.packet.len() - self.shape.payload_at
    }

    /// Whether it ends its run: the sender had no more to say just then.
    fn is_pushed(&self) -> bool {
        match self.shape.transport {
            Transport::Tcp => self.transport()[13] & PSH != 0,
            Transport::Udp => false,
        }
    }

    /// Whether its headers, checksums aside, are those that cutting would write into packet `index` of a run whose first
    /// packet, with `size` bytes of payload, is `first`. Both are of one shape and one flow.
    fn follows(&self, first: &Self, index: usize, size: usize) -> bool {
        let (ours, theirs) = (self.packet, first.packet);
        let ip = if self.shape.is_v4 {
            let is_atomic = word(ours, 6) & DF != 0;
            ours[..2] == theirs[..2]
                && ours[6..10] == theirs[6..10]
                && (is_atomic || word(ours, 4) == word(theirs, 4).wrapping_add(index as u16))
        } else {
            ours[..4] == theirs[..4] && ours[6..8] == theirs[6..8]
        };
        ip && match self.shape.transport {
            Transport::Udp => true,
            Transport::Tcp => {
                let options = self.shape.transport_at() + 18..self.shape.payload_at;
                let at = (index * size) as u32;
                let (ours, theirs) = (self.transport(), first.transport());
                long(ours, 4) == long(theirs, 4).wrapping_add(at)
                    && ours[8..13] == theirs[8..13]
                    && ours[13] & !PSH == theirs[13] & !PSH
                    && ours[14..16] == theirs[14..16]
                    && self.packet[options.clone()] == first.packet[options]
            }
        }
    }

    fn is_correct(&self) -> bool {
        let transport = self.transport();
        let pseudo = pseudo_header(addresses(self.packet), self.shape.transport.protocol(), transport.len());
        (!self.shape.is_v4 || fold(sum(&self.packet[..V4_HEADER])) == 0xffff) && fold(pseudo + sum(transport)) == 0xffff
    }
}

impl<'a> Class<'a> {
    fn of(packet: &'a [u8], accepts: Accepts) -> Self {
        let Some(header) = ip::Header::parse(packet) else { return Self::Apart };
        let packet = &packet[..header.len];
        let Some(upper) = Upper::find(packet) else { return Self::Unclear };
        let is_v4 = is_v4(packet);
        let transport = match upper.protocol {
            TCP => Transport::Tcp,
            UDP => Transport::Udp,
            // Which protocol it is was said in the first fragment.
            _ if upper.part != Part::Whole => return Self::Unclear,
            _ => return Self::Apart,
        };
        let is_accepted = match (transport, is_v4) {
            (Transport::Tcp, true) => accepts.tcp4,
            (Transport::Tcp, false) => accepts.tcp6,
            (Transport::Udp, _) => accepts.udp,
        };
        if !is_accepted {
            return Self::Apart;
        }
        let plain_at = if is_v4 { V4_HEADER } else { V6_HEADER };
        let bytes = &packet[upper.at..];
        let Some(len) = transport.header_len(bytes) else { return Self::Unclear };
        if upper.part != Part::Whole || upper.at != plain_at {
            return Self::Unclear;
        }
        // Zero has two forms; that which cutting never writes is refused. In UDP it also says that there is no checksum.
        let checksum = word(bytes, transport.checksum());
        let can_join = bytes.len() > len
            && (!is_v4 || word(packet, 10) != 0xffff)
            && match transport {
                Transport::Tcp => bytes[13] & !(PSH | ECE) == ACK && checksum != 0xffff,
                Transport::Udp => usize::from(word(bytes, 4)) == bytes.len() && checksum != 0,
            };
        Self::Of(Piece { packet, shape: Shape { is_v4, transport, payload_at: upper.at + len }, can_join })
    }
}

/// Writes a packet as it is.
fn write_alone(packet: &[u8], emit: &mut impl FnMut(&[IoSlice<'_>])) {
    emit(&[IoSlice::new(&[0; HEADER_LEN]), IoSlice::new(packet)]);
}

#[cfg(test)]
mod tests;
