//! Cuts what the kernel hands over into the packets that go on the wire, each with complete headers.
//!
//! ```text
//! read      | IP | TCP | payload, up to 64 KiB                       |
//!
//! segment 0 | IP | TCP | payload |        IP: its own length, IPv4 also identification + i and checksum
//! segment 1 | IP | TCP | payload |        TCP: sequence + i · size; CWR only in the first, PSH and FIN only in the last
//! segment n | IP | TCP | rest |           UDP: its own length; both: a checksum of its own
//! ```
//!
//! A [`Split`] is a plan: it checks everything once and holds the few sums that all segments share. [`Split::write`] then
//! writes any segment, in any order, to where it is to be sealed. A packet that is not to be cut is one segment.
//!
//! What the virtio-net header says of the headers' length is not looked at: it is read from the packet. In a packet whose
//! checksum is to be completed the field holds the pseudo header's sum for the length of the whole; so a segment's differs from
//! it by its length alone, which is right behind a routing header too, where the addresses are not those of the IP header.

use std::ops::Range;

use super::super::ip::{self, Part, Upper, V6_HEADER};
use super::Fault;
use super::checksum::{copy, finish, finish_udp, pseudo_header, sum};
use super::headers::{CWR, FIN, PSH, TCP, Transport, UDP, addresses, is_v4, long, put_word, word};
use super::virtio::{Header, Kind, Partial, Segments};

/// One packet of the kernel's, and how it is cut.
#[derive(Clone, Debug)]
pub struct Split<'a> {
    packet: &'a [u8],
    header: ip::Header,
    plan: Plan,
}

#[derive(Clone, Debug)]
enum Plan {
    /// One segment, complete.
    Whole,
    /// One segment, whose checksum, over all from `start`, goes to `at`.
    Sum {
        start: usize,
        at: usize,
    },
    Cut(Cut),
}

/// How the two or more segments of a packet come about.
#[derive(Clone, Debug)]
struct Cut {
    transport: Transport,
    transport_at: usize,
    payload_at: usize,
    /// Bytes of payload in each but the last.
    size: usize,
    count: usize,
    /// The IPv4 header without what differs: its length, identification and checksum.
    ip_sum: u32,
    /// The pseudo header and the transport header, without what differs: lengths, sequence, flags and the checksum.
    transport_sum: u32,
}

impl<'a> Split<'a> {
    /// `packet` is what stood behind `virtio`. What follows its end by its own IP header is left out.
    pub fn new(virtio: &Header, packet: &'a [u8]) -> Result<Self, Fault> {
        let header = ip::Header::parse(packet).ok_or(Fault::NotIp)?;
        let packet = &packet[..header.len];
        let cut = virtio.segments.map(|segments| Cut::new(segments, virtio.partial, packet)).transpose()?;
        let plan = match (cut.flatten(), virtio.partial) {
            (Some(cut), _) => Plan::Cut(cut),
            (None, Some(partial)) => {
                let (start, at) = place(partial);
                if at + 2 > packet.len() {
                    return Err(Fault::Checksum);
                }
                Plan::Sum { start, at }
            }
            (None, None) => Plan::Whole,
        };
        Ok(Self { packet, header, plan })
    }

    /// Where all of it comes from and goes to.
    pub fn header(&self) -> &ip::Header {
        &self.header
    }

    /// All of it, with its headers as they were handed over.
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Whether it is one segment, as long as what was read.
    pub fn is_whole(&self) -> bool {
        self.segments() == 1
    }

    /// How many packets it becomes, at least one.
    pub fn segments(&self) -> usize {
        match &self.plan {
            Plan::Whole | Plan::Sum { .. } => 1,
            Plan::Cut(cut) => cut.count,
        }
    }

    /// Bytes of the packet that `index` becomes; 0 where there is none. None is longer than the first.
    pub fn segment_len(&self, index: usize) -> usize {
        match &self.plan {
            _ if index >= self.segments() => 0,
            Plan::Whole | Plan::Sum { .. } => self.packet.len(),
            Plan::Cut(cut) => cut.payload_at + cut.payload(index, self.packet.len()).len(),
        }
    }

    /// Writes packet `index` to the front of `out` and gives its length; 0, where there is no such packet or no room for it.
    pub fn write(&self, index: usize, out: &mut [u8]) -> usize {
        let len = self.segment_len(index);
        let Some(out) = out.get_mut(..len) else { return 0 };
        match &self.plan {
            _ if len == 0 => {}
            Plan::Whole => out.copy_from_slice(self.packet),
            Plan::Sum { start, at } => {
                out.copy_from_slice(self.packet);
                // Never zero, whatever the protocol: what the kernel does where a device can't sum.
                put_word(out, *at, finish_udp(sum(&self.packet[*start..])));
            }
            Plan::Cut(cut) => cut.write(index, self.packet, out),
        }
        len
    }
}

impl Cut {
    /// `None`: all fits into one segment.
    fn new(segments: Segments, partial: Option<Partial>, packet: &[u8]) -> Result<Option<Self>, Fault> {
        let upper = Upper::find(packet).ok_or(Fault::Transport)?;
        if upper.part != Part::Whole {
            return Err(Fault::Fragment);
        }
        let transport = match (segments.kind, upper.protocol, is_v4(packet)) {
            (Kind::TcpV4 { .. }, TCP, true) | (Kind::TcpV6 { .. }, TCP, false) => Transport::Tcp,
            (Kind::Udp, UDP, _) => Transport::Udp,
            (Kind::TcpV4 { .. } | Kind::TcpV6 { .. } | Kind::Udp, _, _) => return Err(Fault::OtherProtocol),
        };
        let transport_at = upper.at;
        let rest = &packet[transport_at..];
        let header_len = transport.header_len(rest).ok_or(Fault::Transport)?;
        let checksum = transport.checksum();
        if partial.is_some_and(|partial| place(partial) != (transport_at, transport_at + checksum)) {
            return Err(Fault::Checksum);
        }
        let size = usize::from(segments.size);
        if size == 0 {
            return Err(Fault::NoSize);
        }
        let payload_at = transport_at + header_len;
        let count = (packet.len() - payload_at).div_ceil(size);
        if count < 2 {
            return Ok(None);
        }
        let pseudo = match partial {
            // The length differs: it is taken off by adding its complement.
            Some(_) => u32::from(word(rest, checksum)) + u32::from(!(rest.len() as u16)),
            None => pseudo_header(addresses(packet), upper.protocol, 0),
        };
        let header = &rest[..header_len];
        let transport_sum = match transport {
            Transport::Tcp => sum(&header[..4]) + sum(&header[8..12]) + sum(&header[14..16]) + sum(&header[18..]),
            Transport::Udp => sum(&header[..4]),
        };
        let ip_sum =
            if is_v4(packet) { sum(&packet[..2]) + sum(&packet[6..10]) + sum(&packet[12..transport_at]) } else { 0 };
        let transport_sum = pseudo + transport_sum;
        Ok(Some(Self { transport, transport_at, payload_at, size, count, ip_sum, transport_sum }))
    }

    fn payload(&self, index: usize, end: usize) -> Range<usize> {
        let start = self.payload_at + index * self.size;
        start..end.min(start + self.size)
    }

    fn write(&self, index: usize, packet: &[u8], out: &mut [u8]) {
        let len = out.len();
        let (headers, payload) = out.split_at_mut(self.payload_at);
        headers.copy_from_slice(&packet[..self.payload_at]);
        let payload_sum = copy(&packet[self.payload(index, packet.len())], payload);

        let (ip, transport) = headers.split_at_mut(self.transport_at);
        if is_v4(ip) {
            let id = word(ip, 4).wrapping_add(index as u16);
            put_word(ip, 2, len as u16);
            put_word(ip, 4, id);
            put_word(ip, 10, finish(self.ip_sum + len as u32 + u32::from(id)));
        } else {
            put_word(ip, 4, (len - V6_HEADER) as u16);
        }

        let transport_len = len - self.transport_at;
        let sum = self.transport_sum + transport_len as u32 + payload_sum;
        match self.transport {
            Transport::Tcp => {
                let sequence = long(transport, 4).wrapping_add((index * self.size) as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if index > 0 {
                    transport[13] &= !CWR;
                }
                if index + 1 < self.count {
                    transport[13] &= !(FIN | PSH);
                }
                let differs = (sequence >> 16) + (sequence & 0xffff) + u32::from(word(transport, 12));
                put_word(transport, self.transport.checksum(), finish(sum + differs));
            }
            Transport::Udp => {
                put_word(transport, 4, transport_len as u16);
                put_word(transport, self.transport.checksum(), finish_udp(sum + transport_len as u32));
            }
        }
    }
}

/// Where a checksum starts and where it goes, from the packet's first byte.
fn place(partial: Partial) -> (usize, usize) {
    let start = usize::from(partial.start);
    (start, start + usize::from(partial.offset))
}

#[cfg(test)]
mod tests;
