//! Datagrams that leave together: what one UDP_SEGMENT send takes, sealed where they lie.
//!
//! ```text
//! | header 16 | packet 0, padding | tag 16 | header 16 | packet 1, padding | tag 16 | …
//! ```
//!
//! All go to one peer, with one ECN field, and have one length; the last may be shorter. One super-packet fills a volley, or many
//! small packets do. What comes out is, byte for byte, what sealing each packet by itself would give.

use super::context::PeerId;
use super::ip;
use super::mss;
use super::offload::split::Split;
use super::session::{HEADER_LEN, OVERHEAD, Sealer, padding};

/// What one UDP_SEGMENT send may have: 64 datagrams in kernels before 6.9, in one UDP payload of IPv4.
const MOST: usize = 64;
const MOST_BYTES: usize = 65_507;
/// A packet longer than a UDP payload can't be sent, but must not panic here either.
const ROOM: usize = u16::MAX as usize + OVERHEAD + 16;

/// To whom, and with which ECN field.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Target {
    pub peer: PeerId,
    pub ecn: u8,
}

/// Nothing where `count` is 0.
pub struct Volley {
    target: Target,
    buffer: Box<[u8]>,
    len: usize,
    /// Of each datagram but the last.
    segment: usize,
    count: usize,
    /// The last one is shorter, so no more can follow.
    closed: bool,
}

/// A volley, sealed: datagrams of `segment` bytes, but for the last.
pub struct Sealed<'a> {
    pub bytes: &'a [u8],
    pub segment: usize,
    pub count: usize,
}

impl Default for Volley {
    fn default() -> Self {
        let buffer = vec![0; ROOM.max(MOST_BYTES)].into_boxed_slice();
        Self { target: Target::default(), buffer, len: 0, segment: 0, count: 0, closed: false }
    }
}

impl Volley {
    /// To whom it goes; `None`: it is empty.
    pub fn target(&self) -> Option<Target> {
        (self.count > 0).then_some(self.target)
    }

    /// Puts packet `index` of `split` behind the others, with its MSS clamped to what fits `limit`, and padded, but not beyond that.
    /// `false`, and nothing done: this volley has to leave first.
    #[must_use]
    pub fn load(&mut self, target: Target, limit: u16, split: &Split<'_>, index: usize) -> bool {
        let inner = split.segment_len(index);
        let padding = padding(inner, limit.into());
        let len = OVERHEAD + inner + padding;
        let fits = self.target == target
            && !self.closed
            && len <= self.segment
            && self.count < MOST
            && self.len + len <= MOST_BYTES;
        if self.count > 0 && !fits {
            return false;
        }
        if self.count == 0 {
            (self.target, self.segment) = (target, len);
        }
        let datagram = &mut self.buffer[self.len..self.len + len];
        let (packet, rest) = datagram[HEADER_LEN..].split_at_mut(inner);
        split.write(index, packet);
        mss::clamp(packet, limit);
        rest[..padding].fill(0);
        self.closed = len < self.segment;
        self.len += len;
        self.count += 1;
        true
    }

    /// Seals all of it, and is empty then. `None`: there is nothing, or the key is used up, and what there was is lost.
    pub fn seal(&mut self, sealer: &Sealer) -> Option<Sealed<'_>> {
        let (count, len) = (std::mem::take(&mut self.count), std::mem::take(&mut self.len));
        if count == 0 {
            return None;
        }
        let first = sealer.reserve(count, self.segment)?;
        let bytes = &mut self.buffer[..len];
        for (counter, datagram) in (first..).zip(bytes.chunks_mut(self.segment)) {
            sealer.seal_datagram(counter, datagram)?;
        }
        Some(Sealed { bytes, segment: self.segment, count })
    }

    /// How many datagrams it has, which are lost with this.
    pub fn drop_all(&mut self) -> usize {
        self.len = 0;
        std::mem::take(&mut self.count)
    }
}

/// Where the packets of `split` go, for this peer.
pub fn target(peer: PeerId, split: &Split<'_>) -> Target {
    Target { peer, ecn: ip::ecn(split.packet()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::Packet;
    use crate::proto::offload::tests::{Made, made, split as packets_of, udp4};
    use crate::proto::offload::virtio::Header;
    use crate::proto::session::tests::pair;

    const LIMIT: u16 = 1420;

    /// As the daemon's thread does it: all datagrams, in order.
    fn in_volleys(sealer: &Sealer, supers: &[(Header, Vec<u8>)]) -> (Vec<Vec<u8>>, Vec<usize>) {
        let (mut volley, mut datagrams, mut counts) = (Volley::default(), Vec::new(), Vec::new());
        let mut leave = |volley: &mut Volley| {
            if let Some(sealed) = volley.seal(sealer) {
                assert_eq!(sealed.bytes.chunks(sealed.segment).count(), sealed.count);
                assert!(sealed.bytes.len() <= MOST_BYTES && sealed.count <= MOST);
                counts.push(sealed.count);
                datagrams.extend(sealed.bytes.chunks(sealed.segment).map(<[u8]>::to_vec));
            }
        };
        for (header, packet) in supers {
            let split = Split::new(header, packet).expect("can be cut");
            for index in 0..split.segments() {
                if !volley.load(target(1, &split), LIMIT, &split, index) {
                    leave(&mut volley);
                    assert!(volley.load(target(1, &split), LIMIT, &split, index), "an empty one takes anything");
                }
            }
        }
        leave(&mut volley);
        (datagrams, counts)
    }

    /// Packet by packet, as the core does it.
    fn one_by_one(sealer: &Sealer, supers: &[(Header, Vec<u8>)]) -> Vec<Vec<u8>> {
        let packets = supers.iter().flat_map(|(header, packet)| packets_of(header, packet));
        let seal = |bytes: Vec<u8>| {
            let mut packet = Packet::copy_from(&bytes);
            mss::clamp(packet.bytes_mut(), LIMIT);
            sealer.seal(&mut packet, LIMIT.into()).expect("a fresh key");
            packet.bytes().to_vec()
        };
        packets.map(seal).collect()
    }

    proptest! {
        #[test]
        fn a_volley_is_what_the_packets_are_one_by_one(
            supers in prop::collection::vec((made(), 500u16..1300), 1..8),
        ) {
            let short = |(made, size): (Made, u16)| made.unfinished((made.payload.len() > 100).then_some(size));
            let supers: Vec<_> = supers.into_iter().map(short).collect();
            let ((us, them), (again, _)) = (pair(), pair());
            let (datagrams, _) = in_volleys(&us.sealer, &supers);
            let expected = one_by_one(&again.sealer, &supers);
            prop_assert_eq!(&datagrams, &expected);
            // And the other side finds the same packets in them, in place or not.
            let (_, twin) = pair();
            for mut datagram in datagrams {
                let mut packet = Packet::copy_from(&datagram);
                twin.opener.open(&mut packet).expect("authentic");
                let inner = them.opener.open_datagram(&mut datagram).expect("authentic");
                prop_assert_eq!(&datagram[inner], packet.bytes());
            }
        }
    }

    #[test]
    fn packets_of_one_length_share_a_volley_until_a_shorter_one_ends_it() {
        let (us, _) = pair();
        let of = |len: usize| udp4(&vec![7; len]).unfinished(None);
        let small = vec![of(64); 100];
        assert_eq!(in_volleys(&us.sealer, &small).1, [64, 36]);
        assert_eq!(in_volleys(&us.sealer, &[of(1000), of(1000), of(64), of(64), of(1000)]).1, [3, 1, 1]);
        let full = vec![of(1392); 100];
        assert_eq!(in_volleys(&us.sealer, &full).1, [45, 45, 10], "as many as a UDP payload holds");
    }

    #[test]
    fn another_peer_or_another_ecn_field_is_another_volley() {
        let (header, packet) = udp4(&[7; 64]).unfinished(None);
        let split = Split::new(&header, &packet).expect("a packet");
        let mut volley = Volley::default();
        assert_eq!(volley.target(), None);
        let to = Target { peer: 1, ecn: 0 };
        assert!(volley.load(to, LIMIT, &split, 0));
        assert!(!volley.load(Target { peer: 2, ..to }, LIMIT, &split, 0));
        assert!(!volley.load(Target { ecn: 2, ..to }, LIMIT, &split, 0));
        assert_eq!((volley.target(), volley.drop_all(), volley.target()), (Some(to), 1, None));
    }
}
