//! An IPv4 packet as a NAT sees it: addresses, ports, TTL, and the checksums that cover them.
//!
//! ```text
//! IPv4   version, length of header, … total length (2) … fragment (6) … TTL (8) protocol (9) checksum (10) from (12) to (16)
//! UDP    source port (0), destination port (2), length (4), checksum (6) over the addresses too; 0 is none
//! ICMP   type (0), checksum (2) over all of it, identifier of an echo (4); an error quotes the packet at fault from 8 on
//! ```
//!
//! Assumptions: whole packets only, as a NAT without reassembly has it, and no more options than the header's length says.

use std::net::{Ipv4Addr, SocketAddrV4};

pub const ICMP: u8 = 1;
pub const UDP: u8 = 17;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;

/// What a packet is to a NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Udp,
    /// An echo, its identifier in the ports' place.
    EchoRequest,
    EchoReply,
    /// About a UDP datagram that went the other way.
    Error,
}

/// Bytes that are a whole IPv4 packet with a whole header of what it carries.
pub struct Packet<'a> {
    bytes: &'a mut [u8],
    header: usize,
    pub kind: Kind,
}

impl<'a> Packet<'a> {
    /// `None`: nothing that this NAT translates.
    pub fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        let header = header_length(bytes)?;
        let total = usize::from(word(bytes, 2)?);
        let fragment = word(bytes, 6)? & 0x3fff;
        if fragment != 0 || total < header + 8 || bytes.len() < total {
            return None;
        }
        let kind = match (bytes[9], bytes[header]) {
            (UDP, _) => Kind::Udp,
            (ICMP, ECHO_REQUEST) => Kind::EchoRequest,
            (ICMP, ECHO_REPLY) => Kind::EchoReply,
            (ICMP, UNREACHABLE | TIME_EXCEEDED) => {
                let quoted = bytes.get(header + 8..total)?;
                let inner = header_length(quoted)?;
                if quoted[9] != UDP || quoted.len() < inner + 8 {
                    return None;
                }
                Kind::Error
            }
            _ => return None,
        };
        Some(Self { bytes: &mut bytes[..total], header, kind })
    }

    pub fn ttl(&self) -> u8 {
        self.bytes[8]
    }

    pub fn source(&self) -> SocketAddrV4 {
        let port = match self.kind {
            Kind::Udp => self.port(0),
            Kind::EchoRequest => self.port(4),
            Kind::EchoReply | Kind::Error => 0,
        };
        SocketAddrV4::new(address(self.bytes, 12), port)
    }

    pub fn destination(&self) -> SocketAddrV4 {
        let port = match self.kind {
            Kind::Udp => self.port(2),
            Kind::EchoReply => self.port(4),
            Kind::EchoRequest | Kind::Error => 0,
        };
        SocketAddrV4::new(address(self.bytes, 16), port)
    }

    /// Source and destination of the datagram that an error quotes.
    pub fn quoted(&self) -> (SocketAddrV4, SocketAddrV4) {
        let quoted = &self.bytes[self.header + 8..];
        let at = usize::from(quoted[0] & 15) * 4;
        let port = |offset| u16::from_be_bytes([quoted[at + offset], quoted[at + offset + 1]]);
        (SocketAddrV4::new(address(quoted, 12), port(0)), SocketAddrV4::new(address(quoted, 16), port(2)))
    }

    pub fn set_ttl(&mut self, ttl: u8) {
        self.bytes[8] = ttl;
        sum_header(self.bytes);
    }

    pub fn set_source(&mut self, to: SocketAddrV4) {
        self.set_end(12, 0, to);
    }

    pub fn set_destination(&mut self, to: SocketAddrV4) {
        self.set_end(16, 2, to);
    }

    /// Puts other ends into what an error quotes. A quoted checksum stays right, where it was quoted.
    pub fn set_quoted(&mut self, source: SocketAddrV4, destination: SocketAddrV4) {
        let quoted = &mut self.bytes[self.header + 8..];
        let at = usize::from(quoted[0] & 15) * 4;
        change_udp(quoted, at, 12, 0, source);
        change_udp(quoted, at, 16, 2, destination);
        sum_header(quoted);
        self.sum_icmp();
    }

    /// One end: the address at `at`, and UDP's port at `port`.
    fn set_end(&mut self, at: usize, port: usize, to: SocketAddrV4) {
        match self.kind {
            Kind::Udp => change_udp(self.bytes, self.header, at, port, to),
            Kind::EchoRequest | Kind::EchoReply => {
                let identifies = (self.kind == Kind::EchoRequest) == (at == 12);
                self.bytes[at..at + 4].copy_from_slice(&to.ip().octets());
                if identifies {
                    self.bytes[self.header + 4..self.header + 6].copy_from_slice(&to.port().to_be_bytes());
                    self.sum_icmp();
                }
            }
            Kind::Error => self.bytes[at..at + 4].copy_from_slice(&to.ip().octets()),
        }
        sum_header(self.bytes);
    }

    fn sum_icmp(&mut self) {
        let message = &mut self.bytes[self.header..];
        message[2..4].fill(0);
        let sum = !fold(message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }

    fn port(&self, offset: usize) -> u16 {
        let at = self.header + offset;
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

/// The length of a whole IPv4 header.
fn header_length(bytes: &[u8]) -> Option<usize> {
    let first = *bytes.first()?;
    let length = usize::from(first & 15) * 4;
    (first >> 4 == 4 && length >= 20 && bytes.len() >= length).then_some(length)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// Puts another address and UDP port into a packet, and mends UDP's checksum as RFC 1624 has it.
fn change_udp(bytes: &mut [u8], udp: usize, at: usize, port: usize, to: SocketAddrV4) {
    let old = fold(&bytes[at..at + 4]) as u32 + u32::from(word_at(bytes, udp + port));
    bytes[at..at + 4].copy_from_slice(&to.ip().octets());
    bytes[udp + port..udp + port + 2].copy_from_slice(&to.port().to_be_bytes());
    let new = fold(&bytes[at..at + 4]) as u32 + u32::from(word_at(bytes, udp + port));
    let sum = word_at(bytes, udp + 6);
    if sum != 0 {
        // Equation 3, HC' = ~(~HC + ~m + m'): the negative of a sum of two words is 0x1fffe less it.
        let mended = !carry(u32::from(!sum) + (0x1_fffe - old) + new);
        // A sum that comes out as zero is sent as its other form, for zero is none.
        let mended = if mended == 0 { 0xffff } else { mended };
        bytes[udp + 6..udp + 8].copy_from_slice(&mended.to_be_bytes());
    }
}

fn sum_header(bytes: &mut [u8]) {
    let length = usize::from(bytes[0] & 15) * 4;
    bytes[10..12].fill(0);
    let sum = !fold(&bytes[..length]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn word_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The ones' complement sum of 16-bit words (RFC 1071), an odd byte at the end as a word's upper half.
fn fold(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    carry(words.sum())
}

fn carry(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 11, 2), 4275);
    pub const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 102), 4275);
    pub const PUBLIC: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 101), 30_000);

    fn ip(protocol: u8, ttl: u8, from: Ipv4Addr, to: Ipv4Addr, content: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + content.len()).expect("is small");
        let mut bytes = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, ttl, protocol, 0, 0];
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes.extend(from.octets());
        bytes.extend(to.octets());
        sum_header(&mut bytes);
        bytes.extend(content);
        bytes
    }

    pub fn udp(from: SocketAddrV4, to: SocketAddrV4, ttl: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).expect("is small");
        let mut content = Vec::new();
        for field in [from.port(), to.port(), length, 0] {
            content.extend(field.to_be_bytes());
        }
        content.extend(payload);
        let mut bytes = ip(UDP, ttl, *from.ip(), *to.ip(), &content);
        let sum = udp_sum(&bytes);
        bytes[26..28].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
        bytes
    }

    /// UDP's checksum by the book, the field itself taken as zero.
    fn udp_sum(bytes: &[u8]) -> u16 {
        let mut covered = bytes[12..20].to_vec();
        covered.extend([0, UDP]);
        covered.extend(&bytes[24..26]);
        covered.extend(&bytes[20..26]);
        covered.extend([0, 0]);
        covered.extend(&bytes[28..]);
        !fold(&covered)
    }

    pub fn icmp(from: Ipv4Addr, to: Ipv4Addr, kind: [u8; 2], rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
        let mut content = vec![kind[0], kind[1], 0, 0];
        content.extend(rest);
        content.extend(quoted);
        let sum = !fold(&content);
        content[2..4].copy_from_slice(&sum.to_be_bytes());
        ip(ICMP, 64, from, to, &content)
    }

    /// Panics where a checksum of the packet, or of the one that it quotes, is wrong.
    pub fn check_sums(bytes: &[u8]) {
        assert_eq!(fold(&bytes[..20]), 0xffff, "IPv4's checksum");
        match bytes[9] {
            UDP if word_at(bytes, 26) != 0 => {
                let sum = udp_sum(bytes);
                assert_eq!(word_at(bytes, 26), if sum == 0 { 0xffff } else { sum }, "UDP's checksum");
            }
            ICMP => {
                assert_eq!(fold(&bytes[20..]), 0xffff, "ICMP's checksum");
                if bytes[20] == UNREACHABLE || bytes[20] == TIME_EXCEEDED {
                    assert_eq!(fold(&bytes[28..48]), 0xffff, "the quoted header's checksum");
                }
            }
            _ => {}
        }
    }

    #[test]
    fn a_datagram_with_other_ends_has_right_checksums() {
        // Payloads that bring the sum to every edge, odd lengths among them.
        for salt in 0..=u16::MAX {
            let mut payload = salt.to_be_bytes().to_vec();
            payload.extend(&[0xff; 5][..usize::from(salt % 6)]);
            let mut bytes = udp(HERE, THERE, 64, &payload);
            let mut packet = Packet::parse(&mut bytes).expect("is a packet");
            assert_eq!((packet.source(), packet.destination(), packet.ttl()), (HERE, THERE, 64));
            packet.set_source(PUBLIC);
            packet.set_ttl(63);
            assert_eq!((packet.source(), packet.destination(), packet.ttl()), (PUBLIC, THERE, 63));
            check_sums(&bytes);
        }
        let mut bytes = udp(THERE, PUBLIC, 9, b"back");
        Packet::parse(&mut bytes).expect("is a packet").set_destination(HERE);
        check_sums(&bytes);
        assert_eq!(bytes, udp(THERE, HERE, 9, b"back"));
    }

    #[test]
    fn a_datagram_without_a_checksum_gets_none() {
        let mut bytes = udp(HERE, THERE, 64, b"bare");
        bytes[26..28].fill(0);
        Packet::parse(&mut bytes).expect("is a packet").set_source(PUBLIC);
        assert_eq!(bytes[26..28], [0, 0]);
        check_sums(&bytes);
    }

    #[test]
    fn an_echo_is_known_by_its_identifier() {
        let mut bytes = icmp(*HERE.ip(), *THERE.ip(), [ECHO_REQUEST, 0], [1, 2, 0, 1], b"12345");
        let mut packet = Packet::parse(&mut bytes).expect("is a packet");
        assert_eq!((packet.kind, packet.source().port()), (Kind::EchoRequest, 0x0102));
        packet.set_source(PUBLIC);
        check_sums(&bytes);
        let mut bytes = icmp(*THERE.ip(), *PUBLIC.ip(), [ECHO_REPLY, 0], [0x75, 0x30, 0, 1], b"12345");
        let mut packet = Packet::parse(&mut bytes).expect("is a packet");
        assert_eq!((packet.kind, packet.destination()), (Kind::EchoReply, PUBLIC));
        packet.set_destination(HERE);
        check_sums(&bytes);
        assert_eq!(bytes[24..26], 4275u16.to_be_bytes());
    }

    #[test]
    fn an_error_gets_other_ends_inside_and_outside() {
        let router = Ipv4Addr::new(192, 0, 2, 1);
        let quoted = udp(PUBLIC, THERE, 1, b"lost");
        let mut bytes = icmp(router, *PUBLIC.ip(), [TIME_EXCEEDED, 0], [0; 4], &quoted[..28]);
        let mut packet = Packet::parse(&mut bytes).expect("is a packet");
        assert_eq!((packet.kind, packet.quoted()), (Kind::Error, (PUBLIC, THERE)));
        packet.set_quoted(HERE, THERE);
        packet.set_destination(HERE);
        assert_eq!(packet.quoted(), (HERE, THERE));
        assert_eq!(packet.destination().ip(), HERE.ip());
        check_sums(&bytes);
        // The quoted checksum is that of the datagram as it was sent.
        assert_eq!(bytes[48..56], udp(HERE, THERE, 1, b"lost")[20..28]);
    }

    #[test]
    fn what_is_no_whole_packet_is_left_alone() {
        let whole = udp(HERE, THERE, 64, b"whole");
        for length in 0..whole.len() {
            assert!(Packet::parse(&mut whole[..length].to_vec()).is_none(), "{length} bytes");
        }
        let mut fragment = whole.clone();
        fragment[7] = 1;
        assert!(Packet::parse(&mut fragment).is_none());
        let mut tcp = whole.clone();
        tcp[9] = 6;
        assert!(Packet::parse(&mut tcp).is_none());
        let quoted = udp(PUBLIC, THERE, 1, b"");
        let mut short = icmp(*THERE.ip(), *PUBLIC.ip(), [UNREACHABLE, 3], [0; 4], &quoted[..27]);
        assert!(Packet::parse(&mut short).is_none());
        // Whatever the first bytes say, nothing is read past the end.
        for first in 0..=255 {
            let mut bytes = whole.clone();
            bytes[0] = first;
            let _ = Packet::parse(&mut bytes);
        }
    }
}
