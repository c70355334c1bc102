//! Where an inner packet's transport header is, and its fields by offset.
//!
//! ```text
//! IPv4 (RFC 791)                          IPv6 (RFC 8200)
//!  0  version 4, header length in words    0  version 6, traffic class, flow label
//!  1  type of service                      4  payload length, without these 40 bytes
//!  2  total length                         6  next header
//!  4  identification                       7  hop limit
//!  6  flags (DF 0x4000, MF 0x2000),        8  source
//!     fragment offset                     24  destination
//!  8  time to live                        40  extension headers, each with the next one's number first
//!  9  protocol
//! 10  checksum of this header
//! 12  source, 16 destination, 20 options
//!
//! TCP (RFC 9293)                          UDP (RFC 768)
//!  0  source port, 2 destination port      0  source port, 2 destination port
//!  4  sequence, 8 acknowledgment           4  length, with these 8 bytes
//! 12  header length in words (high half)   6  checksum
//! 13  CWR ECE URG ACK PSH RST SYN FIN
//! 14  window, 16 checksum, 18 urgent
//! 20  options
//! ```

pub const V4_LEN: usize = 20;
pub const V6_LEN: usize = 40;
pub const TCP_LEN: usize = 20;
/// The longest: 15 words.
pub const TCP_MAX_LEN: usize = 60;
pub const UDP_LEN: usize = 8;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const DF: u16 = 0x4000;
/// MF and the fragment offset: 0 in a whole packet.
pub const FRAGMENT: u16 = 0x3fff;

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

// IPv6 extension headers that a transport header may follow (RFC 8200 section 4, RFC 4302, RFC 7401, RFC 5533).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT_HEADER: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// The two that can be cut and joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// Where the checksum is in its header.
    pub fn checksum(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    /// How long the header is that `bytes` begin with; `None`: it is cut, or lies.
    pub fn header_len(self, bytes: &[u8]) -> Option<usize> {
        let (least, len) = match self {
            Self::Tcp => (TCP_LEN, usize::from(bytes.get(12)? >> 4) * 4),
            Self::Udp => (UDP_LEN, UDP_LEN),
        };
        (least..=bytes.len()).contains(&len).then_some(len)
    }
}

/// What an IP packet carries, behind all its headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper {
    pub protocol: u8,
    /// Its first byte.
    pub at: usize,
    /// Only a part of it is here, and perhaps not the first.
    pub is_fragment: bool,
}

impl Upper {
    /// `None`: an IP header is cut. `packet` begins with 4 or 6.
    pub fn find(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 {
            let header: &[u8; V4_LEN] = packet.first_chunk()?;
            let at = usize::from(header[0] & 0x0f) * 4;
            let is_fragment = word(header, 6) & FRAGMENT != 0;
            return (V4_LEN..=packet.len()).contains(&at).then_some(Self { protocol: header[9], at, is_fragment });
        }
        let mut upper = Self { protocol: *packet.get(6)?, at: V6_LEN, is_fragment: false };
        loop {
            let [next, len] = *packet.get(upper.at..)?.first_chunk::<2>().unwrap_or(&[0, 0]);
            let len = match upper.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION | HIP | SHIM6 => (usize::from(len) + 1) * 8,
                AUTHENTICATION => (usize::from(len) + 2) * 4,
                FRAGMENT_HEADER => {
                    upper.is_fragment = true;
                    8
                }
                _ => return Some(upper),
            };
            upper.protocol = next;
            upper.at += len;
        }
    }
}

/// Source and destination, as they stand in the header of a packet that begins with 4 or 6 and has all of it.
pub fn addresses(packet: &[u8]) -> &[u8] {
    if is_v4(packet) { &packet[12..V4_LEN] } else { &packet[8..V6_LEN] }
}

pub fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// The number of two bytes at `at`, which the caller knows to be there.
pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The number of four bytes at `at`, which the caller knows to be there.
pub fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; V6_LEN];
        (packet[0], packet[6]) = (0x60, next);
        packet.extend_from_slice(rest);
        packet
    }

    #[test]
    fn ipv4_options_and_ipv6_extension_headers_are_stepped_over() {
        let mut packet = vec![0; 24];
        (packet[0], packet[9]) = (0x46, TCP);
        assert_eq!(Upper::find(&packet), Some(Upper { protocol: TCP, at: 24, is_fragment: false }));

        let mut extensions = vec![DESTINATION, 0, 0, 0, 0, 0, 0, 0];
        extensions.extend([AUTHENTICATION, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        extensions.extend([UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            Upper::find(&v6(HOP_BY_HOP, &extensions)),
            Some(Upper { protocol: UDP, at: 40 + 8 + 16 + 12, is_fragment: false })
        );
    }

    #[test]
    fn a_fragment_is_known_as_one() {
        let mut packet = vec![0; 20];
        (packet[0], packet[7], packet[9]) = (0x45, 1, UDP);
        assert_eq!(Upper::find(&packet), Some(Upper { protocol: UDP, at: 20, is_fragment: true }));
        let packet = v6(FRAGMENT_HEADER, &[TCP, 0, 0, 8, 0, 0, 0, 1]);
        assert_eq!(Upper::find(&packet), Some(Upper { protocol: TCP, at: 48, is_fragment: true }));
    }

    #[test]
    fn headers_that_are_cut_lead_nowhere() {
        assert_eq!(Upper::find(&[]), None);
        assert_eq!(Upper::find(&[0x45; 19]), None);
        assert_eq!(Upper::find(&[0x46; 20]), None);
        assert_eq!(Upper::find(&[0x60; 39]), None);
        assert_eq!(Upper::find(&v6(HOP_BY_HOP, &[TCP])), None);
        assert_eq!(Upper::find(&v6(HOP_BY_HOP, &[TCP, 1, 0, 0, 0, 0, 0, 0])), None);
    }
}
