//! An inner packet's fields by offset. Where its transport header is, [`super::super::ip::Upper`] says.
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

use super::super::ip::{V4_HEADER, V6_HEADER};

pub const TCP_LEN: usize = 20;
/// The longest: 15 words.
pub const TCP_MAX_LEN: usize = 60;
pub const UDP_LEN: usize = 8;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const DF: u16 = 0x4000;

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

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

/// Source and destination, as they stand in the header of a packet that begins with 4 or 6 and has all of it.
pub fn addresses(packet: &[u8]) -> &[u8] {
    if is_v4(packet) { &packet[12..V4_HEADER] } else { &packet[8..V6_HEADER] }
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
