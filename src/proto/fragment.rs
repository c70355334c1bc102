//! Cuts an inner packet that its sender lets be cut into fragments that the path carries.
//!
//! ```text
//! IPv4 (RFC 791)    6  flags (don't fragment, more fragments), offset in 8 bytes (13 bits)
//! IPv6 (RFC 8200)   a header of its own: next header, 0, offset in 8 bytes (13 bits) and flags, identification (4)
//! ```
//!
//! The inner packet is cut and not the datagram around it: routers that say nothing of their MTU drop fragments of datagrams just
//! the same, as our kernel only cuts to what its own interface carries, and a fragment behind a NAT may have no port to go by.
//! Who puts an inner packet together again is the host that it is for.
//!
//! Deviation: RFC 8200 lets only a packet's source put a fragment header in. Section 5 asks of a link below 1,280 bytes
//! that it cuts and joins IPv6 packets by itself; this does that without a state at the other end. It costs an authentication header (RFC
//! 4302), which then does not match.

use super::ip::{self, FRAGMENT, Header, V4_HEADER, V6_HEADER};

/// Any fragment but the last has a multiple of this.
const UNIT: usize = 8;
const FRAGMENT_HEADER: usize = 8;
const MOST_OFFSET: usize = 0x1fff;
const V4_MORE: u16 = 0x2000;
const V6_MORE: u16 = 1;
/// IPv4's options: the end, one of no meaning, and the bit of those that every fragment has (RFC 791 section 3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const COPIED: u8 = 0x80;

/// The fragments, none longer than `limit`, in order. `id`: names this packet, where IPv6's source did not. `None`: it can't be
/// cut so short.
pub fn split(packet: &[u8], limit: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    let packet = &packet[..Header::parse(packet)?.len];
    if packet[0] >> 4 == 4 { split_v4(packet, limit) } else { split_v6(packet, limit, id) }
}

fn split_v4(packet: &[u8], limit: usize) -> Option<Vec<Vec<u8>>> {
    let (header, body) = packet.split_at_checked(usize::from(packet[0] & 0x0f) * 4)?;
    let field = u16::from_be_bytes([header[6], header[7]]);
    let (offset, is_inner) = (usize::from(field) & MOST_OFFSET, field & V4_MORE != 0);
    let fragments = pieces(body, limit.checked_sub(header.len())?)?.into_iter().map(|piece| {
        let mut fragment = if piece.at == 0 { header.to_vec() } else { with_copied_options(header) };
        let at = offset + piece.at / UNIT;
        let more = if piece.is_last && !is_inner { 0 } else { V4_MORE };
        let len = u16::try_from(header.len() + piece.bytes.len()).ok()?;
        fragment[2..4].copy_from_slice(&len.to_be_bytes());
        fragment[6..8].copy_from_slice(&(u16::try_from(at).ok().filter(|_| at <= MOST_OFFSET)? | more).to_be_bytes());
        fragment[10..12].fill(0);
        let sum = ip::checksum(&[&fragment]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        fragment.extend_from_slice(piece.bytes);
        Some(fragment)
    });
    fragments.collect()
}

/// A header as all fragments but the first have it: the other options mean nothing there.
fn with_copied_options(header: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    let mut at = V4_HEADER;
    while let Some(kind) = header.get(at).copied().filter(|kind| *kind != END) {
        let len = match (kind, header.get(at + 1)) {
            (NO_OPERATION, _) => 1,
            (_, Some(len)) if *len >= 2 => usize::from(*len),
            // What follows is not to be understood, so it is all left out.
            (_, _) => header.len() - at,
        };
        let end = header.len().min(at + len);
        if kind & COPIED == 0 {
            header[at..end].fill(NO_OPERATION);
        }
        at = end;
    }
    header
}

fn split_v6(packet: &[u8], limit: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    let (next_at, at) = unfragmentable(packet)?;
    let next = packet[next_at];
    let (head, body) = packet.split_at_checked(at)?;
    let is_fragment = next == FRAGMENT;
    // One that is a fragment already is cut on.
    let (header, body) = match is_fragment {
        true => body.split_first_chunk::<FRAGMENT_HEADER>().map(|(header, body)| (*header, body))?,
        false => {
            let [a, b, c, d] = id.to_be_bytes();
            ([next, 0, 0, 0, a, b, c, d], body)
        }
    };
    let field = u16::from_be_bytes([header[2], header[3]]);
    let fragments = pieces(body, limit.checked_sub(head.len() + FRAGMENT_HEADER)?)?.into_iter().map(|piece| {
        let mut fragment = [head, &header, piece.bytes].concat();
        let len = u16::try_from(fragment.len() - V6_HEADER).ok()?;
        fragment[4..6].copy_from_slice(&len.to_be_bytes());
        fragment[next_at] = FRAGMENT;
        let offset = usize::from(field >> 3) + piece.at / UNIT;
        let more = if piece.is_last { field & V6_MORE } else { V6_MORE };
        let field = (u16::try_from(offset).ok().filter(|_| offset <= MOST_OFFSET)? << 3) | more;
        fragment[head.len() + 2..head.len() + 4].copy_from_slice(&field.to_be_bytes());
        Some(fragment)
    });
    fragments.collect()
}

/// Where the part ends that each fragment has, and where the last next-header field of it is (RFC 8200 section 4.5): up to the last
/// hop-by-hop or routing header.
fn unfragmentable(packet: &[u8]) -> Option<(usize, usize)> {
    let mut part = (6, V6_HEADER);
    let (mut next_at, mut at) = part;
    while let next @ (ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION) = *packet.get(next_at)? {
        next_at = at;
        at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
        if next != ip::DESTINATION {
            part = (next_at, at);
        }
    }
    Some(part)
}

struct Piece<'a> {
    at: usize,
    bytes: &'a [u8],
    is_last: bool,
}

/// `body` in pieces of at most `room` bytes. `None`: there is no room for one, or nothing to cut.
fn pieces(body: &[u8], room: usize) -> Option<Vec<Piece<'_>>> {
    let room = room / UNIT * UNIT;
    if room == 0 || body.is_empty() {
        return None;
    }
    let last = body.len().div_ceil(room) - 1;
    let piece = |(number, bytes)| Piece { at: number * room, bytes, is_last: number == last };
    Some(body.chunks(room).enumerate().map(piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Puts fragments together as the host does that they are for: gives what is carried, and its protocol.
    fn join(fragments: &[Vec<u8>]) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        let (mut protocol, mut ended) = (0, false);
        for fragment in fragments {
            let header = Header::parse(fragment).expect("each is a packet");
            assert_eq!(header.len, fragment.len());
            let (offset, more, at) = if fragment[0] >> 4 == 4 {
                let at = usize::from(fragment[0] & 0x0f) * 4;
                assert_eq!(ip::checksum(&[&fragment[..at]]), 0);
                protocol = fragment[9];
                let field = u16::from_be_bytes([fragment[6], fragment[7]]);
                (field & 0x1fff, field & V4_MORE != 0, at)
            } else {
                let (next_at, at) = unfragmentable(fragment).expect("is whole");
                assert_eq!((fragment[next_at], &fragment[at + 4..at + 8]), (FRAGMENT, &[0, 0, 0, 77][..]));
                protocol = fragment[at];
                let field = u16::from_be_bytes([fragment[at + 2], fragment[at + 3]]);
                (field >> 3, field & V6_MORE != 0, at + FRAGMENT_HEADER)
            };
            assert_eq!((usize::from(offset) * UNIT, ended), (body.len(), false));
            body.extend_from_slice(&fragment[at..]);
            ended = !more;
        }
        assert!(ended);
        (protocol, body)
    }

    fn v4(options: &[u8], body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45 + options.len() as u8 / 4, 0, 0, 0, 0x12, 0x34, 0, 0, 64, 17, 0, 0];
        packet.extend([10, 77, 0, 1, 10, 77, 0, 2]);
        packet.extend_from_slice(options);
        packet.extend_from_slice(body);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet
    }

    fn v6(next: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
        packet.extend([0xfd; 32]);
        packet.extend_from_slice(body);
        packet
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|number| (number * 7 + number / 256) as u8).collect()
    }

    #[test]
    fn only_the_first_fragment_has_the_options_that_are_not_copied() {
        // Record route, and after it a security option, which is copied.
        let options = [7, 3, 4, 0x82, 4, 9, 9, 0];
        let fragments = split(&v4(&options, &bytes(100)), 68, 0).expect("can be cut");
        assert_eq!(fragments.len(), 3);
        assert_eq!(fragments[0][20..28], options);
        assert_eq!(fragments[1][20..28], [1, 1, 1, 0x82, 4, 9, 9, 0]);
        assert_eq!(join(&fragments), (17, bytes(100)));
    }

    #[test]
    fn routing_stays_in_front_and_options_for_the_destination_are_cut() {
        let extensions =
            [[ip::ROUTING, 0, 1, 4, 0, 0, 0, 0], [ip::DESTINATION, 0, 4, 0, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]];
        let packet = v6(ip::HOP_BY_HOP, &[extensions.concat(), bytes(300)].concat());
        let fragments = split(&packet, 200, 77).expect("can be cut");
        assert!(fragments.iter().all(|fragment| fragment[40..48] == extensions[0]));
        let (protocol, body) = join(&fragments);
        assert_eq!((protocol, &body[..8], &body[8..]), (ip::DESTINATION, &extensions[2][..], &bytes(300)[..]));
    }

    #[test]
    fn what_is_cut_can_be_cut_again() {
        for packet in [v4(&[], &bytes(1200)), v6(17, &bytes(1200))] {
            let once = split(&packet, 700, 77).expect("can be cut");
            let twice: Vec<Vec<u8>> =
                once.iter().flat_map(|fragment| split(fragment, 300, 99).expect("again")).collect();
            assert!(twice.len() > once.len());
            assert_eq!(join(&twice), (17, bytes(1200)));
        }
    }

    #[test]
    fn no_room_is_no_fragments() {
        assert_eq!(split(&v4(&[], &bytes(100)), 27, 0), None);
        assert_eq!(split(&v6(17, &bytes(100)), 55, 0), None);
    }

    proptest! {
        #[test]
        fn what_is_cut_fits_and_joins_to_what_it_was(is_v6: bool, len in 1usize..3000, limit in 68usize..1500) {
            let packet = if is_v6 { v6(17, &bytes(len)) } else { v4(&[], &bytes(len)) };
            let fragments = split(&packet, limit, 77).expect("there is room");
            prop_assert!(fragments.iter().all(|fragment| fragment.len() <= limit));
            prop_assert_eq!(join(&fragments), (17, bytes(len)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), limit in 0usize..200, is_v6: bool) {
            let mut packet = if is_v6 { v6(0, &bytes) } else { v4(&[], &bytes) };
            split(&packet, limit, 0);
            if let Some(byte) = bytes.first() {
                packet[0] = *byte;
            }
            split(&packet, limit, 0);
            split(&bytes, limit, 0);
        }
    }
}
