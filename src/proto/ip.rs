//! As much of an inner packet's IP header as routing needs.
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

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// Congestion experienced, and the mask of the field.
const ECN: u8 = 3;

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
        let folded = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
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
    fn a_length_that_lies_is_refused() {
        assert_eq!(Header::parse(&v4(21)), None);
        assert_eq!(Header::parse(&v4(19)), None);
        assert_eq!(Header::parse(&v6("fd77::1", 1)), None);
        let mut short_header = v4(20);
        short_header[0] = 0x44;
        assert_eq!(Header::parse(&short_header), None);
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
            }
        }
    }
}
