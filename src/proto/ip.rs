//! As much of an inner packet's IP header as routing needs, and where what it carries begins.
//!
//! ```text
//! IPv4 (RFC 791)                           IPv6 (RFC 8200)
//!  0  version 4, header length in words     0  version 6
//!  2  total length                          4  payload length, without these 40 bytes
//! 12  source, 16 destination                8  source, 24 destination
//! ```
//!
//! An address of IPv4 mapped into IPv6 (`::ffff:0:0/96`) has no place on a wire (RFC 4942 section 2.2) and could pass for an
//! IPv4 source further up, so a packet with one is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::offload::checksum::{finish, fold, sum};

pub const V4_HEADER: usize = 20;
pub const V6_HEADER: usize = 40;
/// Congestion experienced, and the mask of the field.
const ECN: u8 = 3;

// IPv6's extension headers that what is carried may stand behind (RFC 8200 section 4, RFC 4302, RFC 7401, RFC 5533).
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub const DESTINATION: u8 = 60;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// What an IP packet carries, behind all its headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper {
    pub protocol: u8,
    /// Its first byte, or that of the part that is here.
    pub at: usize,
    pub part: Part,
}

/// How much of it is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Whole,
    /// The first fragment, with what its header says.
    First,
    /// What looks like a header is the middle of something.
    Later,
}

impl Part {
    fn of(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

impl Upper {
    /// `None`: a header is cut off.
    pub fn find(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 {
            let header: &[u8; V4_HEADER] = packet.first_chunk()?;
            let at = usize::from(header[0] & 0x0f) * 4;
            let field = u16::from_be_bytes([header[6], header[7]]);
            let part = Part::of(field & 0x1fff, field & 0x2000 != 0);
            return (V4_HEADER..=packet.len()).contains(&at).then_some(Self { protocol: header[9], at, part });
        }
        let mut upper = Self { protocol: *packet.get(6)?, at: V6_HEADER, part: Part::Whole };
        loop {
            let header = packet.get(upper.at..)?;
            let [next, len] = *header.first_chunk().unwrap_or(&[0, 0]);
            let len = match upper.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION | HIP | SHIM6 => (usize::from(len) + 1) * 8,
                AUTHENTICATION => (usize::from(len) + 2) * 4,
                FRAGMENT => {
                    let field = u16::from_be_bytes([*header.get(2)?, *header.get(3)?]);
                    upper.part = Part::of(field >> 3, field & 1 != 0);
                    8
                }
                _ => return Some(upper),
            };
            if upper.part == Part::Later {
                return (upper.at + len <= packet.len()).then_some(Self {
                    protocol: next,
                    at: upper.at + len,
                    ..upper
                });
            }
            upper.protocol = next;
            upper.at += len;
        }
    }
}

/// The internet checksum (RFC 1071) of parts that follow each other; all but the last have an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    finish(parts.iter().map(|part| u32::from(fold(sum(part)))).sum())
}

/// Where an inner packet comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Bytes of the whole packet; padding may follow.
    pub len: usize,
}

impl Header {
    /// `None`: not an IP packet, or one that is longer than `packet`.
    pub fn parse(packet: &[u8]) -> Option<Header> {
        let header = match packet.first()? >> 4 {
            4 => Self::parse_v4(packet.first_chunk()?),
            6 => Self::parse_v6(packet.first_chunk()?),
            _ => None,
        }?;
        (header.len <= packet.len()).then_some(header)
    }

    fn parse_v4(header: &[u8; V4_HEADER]) -> Option<Header> {
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        (header_len >= V4_HEADER && len >= header_len).then(|| Header {
            source: address(12),
            destination: address(16),
            len,
        })
    }

    fn parse_v6(header: &[u8; V6_HEADER]) -> Option<Header> {
        let len = V6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| header[at + i]));
        let (source, destination) = (address(8), address(24));
        if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
            return None;
        }
        Some(Header { source: source.into(), destination: destination.into(), len })
    }
}

/// The ECN field (RFC 3168 section 5) of an inner packet, which its datagram bears as well (RFC 6040 section 4.1). 0, not
/// capable, where the packet is none.
pub fn ecn(packet: &[u8]) -> u8 {
    match *packet {
        [first, second, ..] if first >> 4 == 4 => second & ECN,
        [first, second, ..] if first >> 4 == 6 => (first << 4 | second >> 4) & ECN,
        _ => 0,
    }
}

/// Tells an inner packet that its datagram met congestion, by `tos`, the datagram's byte of DSCP and ECN (RFC 6040 section 4.2).
/// A packet that is not capable of ECN stays as it is: WireGuard drops it, but what it carries came through.
pub fn mark_congestion(packet: &mut [u8], tos: u8) {
    let is_capable = matches!(ecn(packet), 1 | 2);
    if tos & ECN != ECN || !is_capable {
        return;
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= ECN << 4;
    } else if packet.len() >= V4_HEADER {
        // RFC 1624: only this byte changes, so the checksum changes by as much, the other way.
        let added = u32::from(ECN - (packet[1] & ECN));
        packet[1] |= ECN;
        let sum = u32::from(!u16::from_be_bytes([packet[10], packet[11]])) + added;
        packet[10..12].copy_from_slice(&finish(sum).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(total_len: u16) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total_len.to_be_bytes());
        packet[12..16].copy_from_slice(&[10, 77, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 77, 0, 2]);
        packet
    }

    fn v6(source: &str, payload_len: u16) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
        packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().expect("parses").octets());
        packet[39] = 1;
        packet
    }

    #[test]
    fn reads_both_families_and_leaves_padding_out() {
        let mut packet = v4(20);
        packet.extend([0; 12]);
        let header = Header::parse(&packet).expect("parses");
        assert_eq!(header.source, "10.77.0.1".parse::<IpAddr>().expect("parses"));
        assert_eq!(header.destination, "10.77.0.2".parse::<IpAddr>().expect("parses"));
        assert_eq!(header.len, 20);

        let header = Header::parse(&v6("fd77::1", 0)).expect("parses");
        assert_eq!(header.source, "fd77::1".parse::<IpAddr>().expect("parses"));
        assert_eq!((header.destination, header.len), ("::1".parse().expect("parses"), 40));
    }

    #[test]
    fn congestion_on_the_way_is_told_to_those_who_understand_it() {
        let sum = |packet: &[u8]| checksum(&[&packet[..V4_HEADER]]);
        for inner in 0..=3u8 {
            let mut packet = v4(20);
            packet[1] = 0x48 | inner;
            let complete = sum(&packet).to_be_bytes();
            packet[10..12].copy_from_slice(&complete);
            assert_eq!((ecn(&packet), sum(&packet)), (inner, 0));
            let before = packet.clone();
            mark_congestion(&mut packet, 2);
            assert_eq!(packet, before, "no congestion was met");
            mark_congestion(&mut packet, 0xb8 | 3);
            let is_capable = inner == 1 || inner == 2;
            assert_eq!((packet[1], sum(&packet)), (if is_capable { 0x4b } else { 0x48 | inner }, 0), "{inner}");
        }
        let mut packet = v6("fd77::1", 0);
        packet[..2].copy_from_slice(&[0x64, 0x9a]);
        assert_eq!(ecn(&packet), 1);
        mark_congestion(&mut packet, 3);
        assert_eq!((ecn(&packet), &packet[..2]), (3, &[0x64, 0xba][..]), "the flow label stays");
        mark_congestion(&mut [], 3);
        assert_eq!((ecn(&[]), ecn(&[0x45])), (0, 0));
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        assert_eq!(Header::parse(&v4(21)), None);
        assert_eq!(Header::parse(&v4(19)), None);
        assert_eq!(Header::parse(&v6("fd77::1", 1)), None);
        let mut short_header = v4(20);
        short_header[0] = 0x44;
        assert_eq!(Header::parse(&short_header), None);
    }

    fn upper(protocol: u8, at: usize, part: Part) -> Option<Upper> {
        Some(Upper { protocol, at, part })
    }

    fn carrying(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = v6("fd77::1", u16::try_from(rest.len()).expect("is short"));
        packet[6] = next;
        packet.extend_from_slice(rest);
        packet
    }

    #[test]
    fn what_a_packet_carries_is_found_behind_options_and_extension_headers() {
        let mut packet = v4(32);
        (packet[0], packet[9]) = (0x46, 17);
        packet.extend([0; 12]);
        assert_eq!(Upper::find(&packet), upper(17, 24, Part::Whole));

        let mut extensions = vec![DESTINATION, 0, 1, 4, 0, 0, 0, 0];
        extensions.extend([AUTHENTICATION, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        extensions.extend([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Upper::find(&carrying(HOP_BY_HOP, &extensions)), upper(6, 40 + 8 + 16 + 12, Part::Whole));
    }

    #[test]
    fn a_fragment_is_known_as_one() {
        let mut packet = v4(20);
        packet[9] = 17;
        for (field, part) in [(0x4000, Part::Whole), (0x2000, Part::First), (0x2001, Part::Later), (1, Part::Later)] {
            packet[6..8].copy_from_slice(&u16::to_be_bytes(field));
            assert_eq!(Upper::find(&packet), upper(17, 20, part), "{field:x}");
        }
        for (field, part) in [(0, Part::Whole), (1, Part::First), (9, Part::Later), (8, Part::Later)] {
            let packet = carrying(FRAGMENT, &[6, 0, 0, field, 0, 0, 0, 1]);
            assert_eq!(Upper::find(&packet), upper(6, 48, part), "{field:x}");
        }
        // Behind a later fragment's header there is no header, whatever it looks like.
        let packet = carrying(FRAGMENT, &[HOP_BY_HOP, 0, 0, 8, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Upper::find(&packet), upper(HOP_BY_HOP, 48, Part::Later));
    }

    #[test]
    fn headers_that_are_cut_lead_nowhere() {
        let cut = [vec![], vec![0x45; 19], vec![0x46; 20], vec![0x60; 39]];
        let extensions = [vec![6], vec![6, 1, 0, 0, 0, 0, 0, 0]].map(|rest| carrying(HOP_BY_HOP, &rest));
        let fragments = [vec![6], vec![6, 0, 0, 8]].map(|rest| carrying(FRAGMENT, &rest));
        for packet in cut.into_iter().chain(extensions).chain(fragments) {
            assert_eq!(Upper::find(&packet), None, "{packet:x?}");
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0xff; 3]]), 0x00ff);
    }

    #[test]
    fn an_ipv4_address_mapped_into_ipv6_is_refused() {
        assert_eq!(Header::parse(&v6("::ffff:10.77.0.1", 0)), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.len <= bytes.len());
                prop_assert!(Upper::find(&bytes).is_none_or(|upper| upper.at <= bytes.len()));
            }
        }
    }
}
