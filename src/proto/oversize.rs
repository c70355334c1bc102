//! What becomes of an inner packet that is longer than the path carries.
//!
//! ```text
//! IPv4, don't fragment     dropped; ICMP 3/4 says how long one may be (RFC 792, RFC 1191, RFC 1812 section 4.3)
//! IPv6 beyond 1,280        dropped; ICMPv6 2 says so (RFC 4443 section 3.2), and never less than 1,280 (RFC 8200 section 5)
//! any other                cut into fragments: super::fragment
//!
//! reply   IPv4 20 | 3, 4, checksum, 0 0, MTU (2) | the packet, up to 576 in all
//!         IPv6 40 | 2, 0, checksum, MTU (4)      | the packet, up to 1,280 in all
//! ```
//!
//! The reply bears the address that the packet was for, not ours: Linux drops what comes from a device with one of its
//! own addresses as a source, and whoever sent the packet learns the same from either.

use std::net::IpAddr;

use super::ip::{self, Header, Part, Upper, V4_HEADER, V6_HEADER};

const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;
const V4_DONT_FRAGMENT: u8 = 0x40;
/// Most of an error (RFC 1812 section 4.3.2.3; RFC 4443 section 2.4).
const V4_MOST: usize = 576;
const V6_LEAST_MTU: u16 = 1280;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Fits,
    /// It is to be dropped; `reply`, if it deserves one, goes to the TUN device.
    TooBig {
        reply: Option<Vec<u8>>,
    },
    /// It is to go in fragments.
    Cut,
}

/// Judges a packet that [`Header::parse`] took. `longest`: its own length, or, of a super-packet that the kernel left to be
/// segmented, its longest segment's. `limit`: the longest that the path carries.
pub fn judge(packet: &[u8], longest: usize, limit: u16) -> Verdict {
    if longest <= usize::from(limit) {
        return Verdict::Fits;
    }
    match packet.first().map(|first| first >> 4) {
        _ if may_be_cut(packet, longest) => Verdict::Cut,
        Some(6) => Verdict::TooBig { reply: reply(packet, limit.max(V6_LEAST_MTU)) },
        _ => Verdict::TooBig { reply: reply(packet, limit) },
    }
}

/// Whether a packet that is too long, or has segments that are, may go in fragments.
pub fn may_be_cut(packet: &[u8], longest: usize) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(6).is_some_and(|flags| flags & V4_DONT_FRAGMENT == 0),
        _ => longest <= usize::from(V6_LEAST_MTU),
    }
}

/// `None`: no error may answer this packet (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4), or it says not who sent it.
fn reply(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = Header::parse(packet)?;
    // Its later fragments have no ports to tell whose they are, and the first one is as long.
    let upper = Upper::find(packet)?;
    if packet[0] >> 4 == 4 && upper.part == Part::Later {
        return None;
    }
    let is_error = upper.part != Part::Later
        && match (upper.protocol, packet.get(upper.at)) {
            (ICMP, Some(kind)) => !matches!(kind, 0 | 8 | 13 | 14),
            (ICMP6, Some(kind)) => *kind < 128 || *kind == 137,
            _ => false,
        };
    if is_error || !is_one_host(header.source) || !is_one_host(header.destination) {
        return None;
    }
    let packet = &packet[..header.len.min(packet.len())];
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let quoted = &packet[..packet.len().min(V4_MOST - V4_HEADER - ICMP_HEADER)];
            let [high, low] = mtu.to_be_bytes();
            let mut icmp = [&[3, 4, 0, 0, 0, 0, high, low], quoted].concat();
            let sum = ip::checksum(&[&icmp]);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            let [high, low] = u16::try_from(V4_HEADER + icmp.len()).ok()?.to_be_bytes();
            let mut reply = vec![0x45, 0, high, low, 0, 0, V4_DONT_FRAGMENT, 0, TTL, ICMP, 0, 0];
            reply.extend(destination.octets());
            reply.extend(source.octets());
            let sum = ip::checksum(&[&reply]);
            reply[10..12].copy_from_slice(&sum.to_be_bytes());
            reply.extend(icmp);
            Some(reply)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let quoted = &packet[..packet.len().min(usize::from(V6_LEAST_MTU) - V6_HEADER - ICMP_HEADER)];
            let [high, low] = mtu.to_be_bytes();
            let mut icmp = [&[2, 0, 0, 0, 0, 0, high, low], quoted].concat();
            let [len_high, len_low] = u16::try_from(icmp.len()).ok()?.to_be_bytes();
            let pseudo = [0, 0, len_high, len_low, 0, 0, 0, ICMP6];
            let sum = ip::checksum(&[&destination.octets(), &source.octets(), &pseudo, &icmp]);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut reply = vec![0x60, 0, 0, 0, len_high, len_low, ICMP6, TTL];
            reply.extend(destination.octets());
            reply.extend(source.octets());
            reply.extend(icmp);
            Some(reply)
        }
        _ => None,
    }
}

fn is_one_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(flags: u8, protocol: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, flags, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet.resize(len, 8);
        packet
    }

    fn v6(len: usize) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
        packet.extend("fd77::1".parse::<std::net::Ipv6Addr>().expect("parses").octets());
        packet.extend("fd77::2".parse::<std::net::Ipv6Addr>().expect("parses").octets());
        packet.resize(len, 0x5a);
        packet
    }

    #[test]
    fn what_fits_goes_and_what_may_be_cut_is_cut() {
        assert_eq!(judge(&v4(V4_DONT_FRAGMENT, 17, 1220), 1220, 1220), Verdict::Fits);
        assert_eq!(judge(&v4(0, 17, 1221), 1221, 1220), Verdict::Cut);
        assert_eq!(judge(&v6(1280), 1280, 1220), Verdict::Cut, "IPv6 may count on 1,280 bytes");
    }

    #[test]
    fn a_host_that_forbids_fragments_is_told_how_long_one_may_be() {
        let packet = v4(V4_DONT_FRAGMENT, 17, 1400);
        let Verdict::TooBig { reply: Some(reply) } = judge(&packet, 1400, 1220) else { panic!("is told") };
        let header = Header::parse(&reply).expect("a packet");
        assert_eq!(
            (header.source.to_string(), header.destination.to_string()),
            ("10.77.0.2".into(), "10.77.0.1".into())
        );
        assert_eq!((reply.len(), header.len, reply[9]), (576, 576, ICMP));
        assert_eq!((ip::checksum(&[&reply[..20]]), ip::checksum(&[&reply[20..]])), (0, 0));
        assert_eq!((&reply[20..22], &reply[26..28]), (&[3, 4][..], &1220u16.to_be_bytes()[..]));
        assert_eq!(reply[28..], packet[..548]);
    }

    #[test]
    fn ipv6_is_told_too_and_never_less_than_its_least() {
        for (limit, told) in [(1300, 1300u32), (1220, 1280)] {
            let packet = v6(1400);
            let Verdict::TooBig { reply: Some(reply) } = judge(&packet, 1400, limit) else { panic!("is told") };
            let header = Header::parse(&reply).expect("a packet");
            assert_eq!(
                (header.source.to_string(), header.destination.to_string()),
                ("fd77::2".into(), "fd77::1".into())
            );
            assert_eq!((reply.len(), header.len), (1280, 1280));
            let pseudo = [&[0, 0], &((reply.len() - 40) as u16).to_be_bytes()[..], &[0, 0, 0, ICMP6]].concat();
            assert_eq!(ip::checksum(&[&reply[8..40], &pseudo, &reply[40..]]), 0);
            assert_eq!((&reply[40..42], &reply[44..48]), (&[2, 0][..], &told.to_be_bytes()[..]));
            assert_eq!(reply[48..], packet[..1232]);
        }
    }

    #[test]
    fn of_a_super_packet_its_segments_count() {
        let packet = v4(V4_DONT_FRAGMENT, 6, 40_000);
        assert_eq!(judge(&packet, 1220, 1220), Verdict::Fits);
        assert!(matches!(judge(&packet, 1420, 1220), Verdict::TooBig { reply: Some(_) }));
    }

    #[test]
    fn no_error_answers_an_error_a_crowd_or_the_rest_of_a_packet() {
        let dropped = |packet: &[u8]| judge(packet, packet.len(), 1220) == Verdict::TooBig { reply: None };
        let mut error = v4(V4_DONT_FRAGMENT, ICMP, 1400);
        assert!(!dropped(&error), "an echo is none");
        error[20] = 3;
        assert!(dropped(&error));
        let mut crowd = v4(V4_DONT_FRAGMENT, 17, 1400);
        crowd[16] = 224;
        assert!(dropped(&crowd));
        let mut rest = v4(V4_DONT_FRAGMENT, 17, 1400);
        rest[7] = 1;
        assert!(dropped(&rest));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), limit: u16, is_v6: bool) {
            judge(&bytes, 65535, limit);
            if let Some(first) = bytes.first_mut() {
                *first = if is_v6 { 0x60 } else { 0x45 };
            }
            judge(&bytes, 65535, limit);
        }
    }
}
