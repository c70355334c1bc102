//! The virtio-net header in front of every packet of a TUN device (virtio 1.3 section 5.1.6; `linux/virtio_net.h`).
//!
//! ```text
//! 0       1          2               4              6                8                 10
//! | flags | GSO type | header length | segment size | checksum start | checksum offset | packet …
//! ```
//!
//! Numbers are in the machine's own byte order. Flags: 1, the checksum is to be completed. GSO types: 0 none, 1 TCP over
//! IPv4, 4 TCP over IPv6, 5 UDP; and 0x80 beside either TCP, where the first segment alone carries CWR.
//! The header length is a hint of the sender's, and wrong in some kernels, so nobody may rely on it.

use super::Fault;

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;

/// Checksums say where they start and where they go; the field holds the pseudo header's sum.
const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What is still to be done to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Header {
    pub partial: Option<Partial>,
    pub segments: Option<Segments>,
    /// Bytes in front of the payload, as the sender says. Written for the kernel, which puts so much into one piece.
    pub header_len: u16,
}

/// A checksum that is to be completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partial {
    /// The first byte that is summed: the transport header's.
    pub start: u16,
    /// Where, from there, the checksum is.
    pub offset: u16,
}

/// A packet that is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segments {
    pub kind: Kind,
    /// Bytes of payload in each but the last.
    pub size: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `cwr`: congestion window reduced, in the first segment.
    TcpV4 {
        cwr: bool,
    },
    TcpV6 {
        cwr: bool,
    },
    Udp,
}

impl Header {
    /// What a read of the device begins with.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Fault::NoHeader)?;
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let partial = (bytes[0] & NEEDS_CSUM != 0).then(|| Partial { start: number(6), offset: number(8) });
        let cwr = bytes[1] & GSO_ECN != 0;
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Kind::TcpV4 { cwr }),
            GSO_TCPV6 => Some(Kind::TcpV6 { cwr }),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => return Err(Fault::UnknownKind(bytes[1])),
        };
        Ok(Self { partial, segments: kind.map(|kind| Segments { kind, size: number(4) }), header_len: number(2) })
    }

    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut number = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        number(2, self.header_len);
        if let Some(segments) = self.segments {
            number(4, segments.size);
        }
        if let Some(partial) = self.partial {
            number(6, partial.start);
            number(8, partial.offset);
            bytes[0] = NEEDS_CSUM;
        }
        let ecn = |cwr: bool| if cwr { GSO_ECN } else { 0 };
        bytes[1] = match self.segments.map(|segments| segments.kind) {
            None => GSO_NONE,
            Some(Kind::TcpV4 { cwr }) => GSO_TCPV4 | ecn(cwr),
            Some(Kind::TcpV6 { cwr }) => GSO_TCPV6 | ecn(cwr),
            Some(Kind::Udp) => GSO_UDP_L4,
        };
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_super_packet_of_the_kernels_is_read_as_it_means() {
        let mut bytes = [1, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0x45];
        for (at, value) in [(2, 52u16), (4, 1368), (6, 20), (8, 16)] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        let header = Header::parse(&bytes).expect("parses");
        assert_eq!(header.partial, Some(Partial { start: 20, offset: 16 }));
        assert_eq!(header.segments, Some(Segments { kind: Kind::TcpV4 { cwr: true }, size: 1368 }));
        assert_eq!(header.header_len, 52);
        assert_eq!(header.to_bytes(), bytes[..HEADER_LEN]);
    }

    #[test]
    fn zeroes_ask_for_nothing() {
        assert_eq!(Header::parse(&[0; HEADER_LEN]), Ok(Header::default()));
        assert_eq!(Header::default().to_bytes(), [0; HEADER_LEN]);
    }

    #[test]
    fn a_header_that_is_cut_and_a_kind_that_nobody_asked_for_are_refused() {
        assert_eq!(Header::parse(&[0; HEADER_LEN - 1]), Err(Fault::NoHeader));
        // 3: IP fragments of a UDP datagram, which Linux no longer gives.
        assert_eq!(Header::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Fault::UnknownKind(3)));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes: [u8; HEADER_LEN]) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
            }
        }
    }
}
