//! Inner packets: ICMP echo (RFC 792) and ICMPv6 echo (RFC 4443) with right headers and checksums, and the way back from
//! bytes, strict, so that a packet that a tunnel bent does not pass for one.
//!
//! ```text
//! IPv4 20 / IPv6 40 | type 1, code 1, checksum 2, identifier 2, sequence 2 | number 8, filling
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Echo {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub reply: bool,
    /// Ours: never twice in a run.
    pub number: u64,
    /// Bytes behind ICMP's header, the number among them.
    pub payload: usize,
}

const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// What `ping` sends where it is not told: 56 bytes.
pub const PAYLOAD: usize = 56;
const ICMP_HEADER: usize = 8;
const FILLING: u8 = 0x5a;

impl Echo {
    pub fn answer(&self) -> Self {
        Self { src: self.dst, dst: self.src, reply: true, ..*self }
    }

    pub fn encode(&self) -> Vec<u8> {
        let kind = match (self.src.is_ipv4(), self.reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        };
        let mut icmp = vec![FILLING; ICMP_HEADER + self.payload];
        icmp[..8].copy_from_slice(&[kind, 0, 0, 0, 0x12, 0x34, 0, 1]);
        icmp[8..16].copy_from_slice(&self.number.to_be_bytes());
        let sum = checksum(&self.pseudo_header(), &icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => header_v4(src, dst, icmp.len()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => header_v6(src, dst, icmp.len()),
            _ => panic!("both ends are of one family"),
        };
        packet.extend_from_slice(&icmp);
        packet
    }

    pub fn decode(packet: &[u8]) -> Option<Self> {
        let (src, dst, header): (IpAddr, IpAddr, usize) = match packet.first()? >> 4 {
            4 => {
                let at = |from: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(from..from + 4)?).ok()?));
                (at(12)?.into(), at(16)?.into(), 20)
            }
            6 => {
                let at = |from: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(from..from + 16)?).ok()?));
                (at(8)?.into(), at(24)?.into(), 40)
            }
            _ => return None,
        };
        let icmp = packet.get(header..)?;
        let reply = matches!(icmp.first()?, 0 | 129);
        let number = u64::from_be_bytes(icmp.get(8..16)?.try_into().ok()?);
        let echo = Self { src, dst, reply, number, payload: icmp.len() - ICMP_HEADER };
        (echo.encode() == packet).then_some(echo)
    }

    fn pseudo_header(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut pseudo = [src.octets(), dst.octets()].concat();
                pseudo.extend_from_slice(&((ICMP_HEADER + self.payload) as u32).to_be_bytes());
                pseudo.extend_from_slice(&[0, 0, 0, ICMP6]);
                pseudo
            }
            _ => Vec::new(),
        }
    }
}

/// An ICMP error about a packet of `echo`'s sender that was too long, and how long one may be.
pub fn too_big(packet: &[u8]) -> Option<(IpAddr, u16)> {
    let (header, mtu_at, addresses) = match packet.first()? >> 4 {
        4 => (20, 26, 4),
        _ => (40, 46, 16),
    };
    let (sender, icmp) = (packet.get(header - addresses..header)?, packet.get(header..)?);
    let kind = if addresses == 4 { [3, 4] } else { [2, 0] };
    // Whose packet was too long is in the quoted one, where the error's receiver is in its own header.
    let quoted = packet.get(header + 8..)?;
    let source = quoted.get(header - 2 * addresses..header - addresses)?;
    let mut pseudo = Vec::new();
    if addresses == 16 {
        pseudo.extend_from_slice(&packet[8..40]);
        pseudo.extend_from_slice(&(icmp.len() as u32).to_be_bytes());
        pseudo.extend_from_slice(&[0, 0, 0, ICMP6]);
    }
    if icmp[..2] != kind || sender != source || checksum(&pseudo, icmp) != 0 {
        return None;
    }
    let mtu = u16::from_be_bytes([*packet.get(mtu_at)?, *packet.get(mtu_at + 1)?]);
    let sender = match addresses {
        4 => IpAddr::from(<[u8; 4]>::try_from(sender).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(sender).ok()?),
    };
    Some((sender, mtu))
}

fn header_v4(src: Ipv4Addr, dst: Ipv4Addr, icmp: usize) -> Vec<u8> {
    let [high, low] = ((20 + icmp) as u16).to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, ICMP, 0, 0];
    header.extend_from_slice(&src.octets());
    header.extend_from_slice(&dst.octets());
    let sum = checksum(&[], &header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn header_v6(src: Ipv6Addr, dst: Ipv6Addr, icmp: usize) -> Vec<u8> {
    let [high, low] = (icmp as u16).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, high, low, ICMP6, 64];
    header.extend_from_slice(&src.octets());
    header.extend_from_slice(&dst.octets());
    header
}

/// RFC 1071; the first part is of even length.
fn checksum(pseudo: &[u8], bytes: &[u8]) -> u16 {
    let words = pseudo
        .chunks(2)
        .chain(bytes.chunks(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_survives_its_bytes_and_a_bent_one_does_not() {
        for (src, dst) in [("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2")] {
            let (src, dst) = (src.parse().expect("parses"), dst.parse().expect("parses"));
            let echo = Echo { src, dst, reply: false, number: 77, payload: PAYLOAD };
            let bytes = echo.encode();
            assert_eq!(Echo::decode(&bytes), Some(echo));
            assert_eq!(Echo::decode(&echo.answer().encode()), Some(echo.answer()));
            for at in 0..bytes.len() {
                let mut bent = bytes.clone();
                bent[at] ^= 0x11;
                assert_ne!(Echo::decode(&bent), Some(echo), "byte {at}");
            }
            assert_eq!(Echo::decode(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(&[], &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
