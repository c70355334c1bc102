//! MSS clamping: no TCP connection through the tunnel uses segments that are longer than the path carries.
//!
//! ```text
//! TCP   0 ports   4 numbers   12 length of header, flags   16 checksum   20 options …
//! MSS   kind 2, length 4, the longest segment that the sender of this SYN takes (RFC 9293 section 3.7.1)
//! ```
//!
//! An ICMP error does the same, where the sender gets it: firewalls drop them, and Linux takes no length below 552
//! (`net.ipv4.route.min_pmtu`). A connection that says nothing of its MSS, so takes 536 bytes (1,220 by IPv6), is left so.
//!
//! Assumption: the checksum is complete. A packet of which the kernel left it to the device (a virtio-net header with
//! NEEDS_CSUM) has it filled in first.

use super::ip::{Part, Upper, V4_HEADER, V6_HEADER};
use super::offload::checksum::finish;

const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const SYN: u8 = 0x02;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: usize = 4;

/// Lowers the MSS in a SYN or SYN-ACK, of either direction, to what fits into inner packets of `limit` bytes. Whether it did;
/// any other packet stays as it is.
pub fn clamp(packet: &mut [u8], limit: u16) -> bool {
    let Some((checksum_at, mss_at)) = find(packet) else { return false };
    let header = if packet[0] >> 4 == 4 { V4_HEADER } else { V6_HEADER };
    let most = limit.saturating_sub((header + TCP_HEADER) as u16);
    let old = [packet[mss_at], packet[mss_at + 1]];
    if u16::from_be_bytes(old) <= most {
        return false;
    }
    let new = most.to_be_bytes();
    packet[mss_at..mss_at + 2].copy_from_slice(&new);
    // RFC 1624, equation 3. Where the option begins at an odd byte, each of its bytes counts in the other half of a word.
    let is_odd = (mss_at - checksum_at) % 2 == 1;
    let word = |bytes: [u8; 2]| if is_odd { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
    let checksum = u16::from_be_bytes([packet[checksum_at], packet[checksum_at + 1]]);
    let sum = u32::from(!checksum) + u32::from(!word(old)) + u32::from(word(new));
    packet[checksum_at..checksum_at + 2].copy_from_slice(&finish(sum).to_be_bytes());
    true
}

/// Where the checksum and the MSS of a SYN are.
fn find(packet: &[u8]) -> Option<(usize, usize)> {
    let Upper { protocol: TCP, at, part: Part::Whole | Part::First } = Upper::find(packet)? else { return None };
    let header = packet.get(at..)?;
    if header.get(13)? & SYN == 0 {
        return None;
    }
    let len = usize::from(header[12] >> 4) * 4;
    let mut next = TCP_HEADER;
    let options = header.get(..len)?;
    loop {
        match (*options.get(next)?, options.get(next + 1).copied().map(usize::from)) {
            (END, _) => return None,
            (NO_OPERATION, _) => next += 1,
            (MSS, Some(MSS_LEN)) => return (next + MSS_LEN <= len).then_some((at + 16, at + next + 2)),
            (_, Some(len)) if len >= 2 => next += len,
            (_, _) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ip::checksum;
    use proptest::prelude::*;

    /// A TCP packet with right checksums. `options`: a multiple of four bytes.
    fn tcp(is_v6: bool, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x12, 0x34, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0, flags, 0xff, 0xff, 0, 0, 0, 0];
        segment[12] = ((TCP_HEADER + options.len()) as u8 / 4) << 4;
        segment.extend_from_slice(options);
        segment.extend_from_slice(payload);
        let len = segment.len() as u16;
        let mut packet =
            if is_v6 { vec![0x60, 0, 0, 0, 0, 0, TCP, 64] } else { vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0] };
        if is_v6 {
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            packet.extend([0xfd; 32]);
        } else {
            packet[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            packet.extend([10, 77, 0, 1, 10, 77, 0, 2]);
        }
        let sum = tcp_checksum(&packet, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        packet.extend(segment);
        packet
    }

    fn tcp_checksum(header: &[u8], segment: &[u8]) -> u16 {
        let addresses = if header[0] >> 4 == 4 { &header[12..20] } else { &header[8..40] };
        let pseudo = [&[0, TCP], &(segment.len() as u16).to_be_bytes()[..]].concat();
        checksum(&[addresses, &pseudo, segment])
    }

    fn mss_of(packet: &[u8]) -> Option<u16> {
        find(packet).map(|(_, at)| u16::from_be_bytes([packet[at], packet[at + 1]]))
    }

    #[test]
    fn a_syn_is_lowered_to_what_fits_and_never_raised() {
        let options = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        for (is_v6, fits) in [(false, 1180), (true, 1160)] {
            let mut syn = tcp(is_v6, SYN, &options, &[]);
            assert!(clamp(&mut syn, 1220));
            assert_eq!(mss_of(&syn), Some(fits));
            assert!(!clamp(&mut syn, 1220) && !clamp(&mut syn, 1420));
        }
    }

    #[test]
    fn what_is_no_syn_or_says_nothing_of_its_mss_stays_as_it_is() {
        let with_mss = [2, 4, 0x05, 0xb4];
        for (flags, options) in
            [(0x10, &with_mss[..]), (SYN, &[]), (SYN, &[0, 2, 4, 5]), (SYN, &[3, 0, 0, 0]), (SYN, &[1, 1, 2, 4])]
        {
            let packet = tcp(false, flags, options, b"payload");
            let mut clamped = packet.clone();
            assert!(!clamp(&mut clamped, 600) && clamped == packet, "{options:?}");
        }
        let mut fragment = tcp(false, SYN, &with_mss, &[]);
        fragment[7] = 1;
        assert!(!clamp(&mut fragment, 600), "what looks like a header is the middle of something");
    }

    proptest! {
        #[test]
        fn the_checksum_stays_right_wherever_the_option_is(
            is_v6: bool,
            before in 0usize..8,
            mss: u16,
            limit in 100u16..9000,
            ack: bool,
            payload in prop::collection::vec(any::<u8>(), 0..33),
        ) {
            let mut options = vec![NO_OPERATION; before];
            options.extend([MSS, 4]);
            options.extend(mss.to_be_bytes());
            options.resize(options.len().next_multiple_of(4), END);
            let mut packet = tcp(is_v6, if ack { 0x12 } else { SYN }, &options, &payload);
            let header = if is_v6 { V6_HEADER } else { V4_HEADER };
            let before = packet.clone();
            let most = limit - (header + TCP_HEADER) as u16;
            prop_assert_eq!(clamp(&mut packet, limit), mss > most);
            prop_assert_eq!(mss_of(&packet), Some(mss.min(most)));
            // The sum over a segment with a right checksum in it is zero.
            prop_assert_eq!(tcp_checksum(&packet[..header], &packet[header..]), 0);
            prop_assert_eq!(packet.iter().zip(&before).filter(|(a, b)| a != b).count() <= 4, true);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), limit: u16, version in 0u8..3) {
            if let Some(first) = bytes.first_mut() {
                *first = [0x45, 0x60, *first][usize::from(version)];
            }
            clamp(&mut bytes, limit);
        }
    }
}
