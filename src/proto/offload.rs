//! Many inner packets in one system call: Linux's segmentation offload, as plain functions of bytes.
//!
//! ```text
//! out   the kernel hands over one super-packet of up to 64 KiB behind a virtio-net header:     virtio
//!       it is cut into the packets that go on the wire, each complete:                         split
//! in    packets of one batch that are pieces of one stream are joined into a super-packet,
//!       which the kernel takes with one call and never cuts again unless it forwards it:       merge
//! ```
//!
//! A checksum goes along half done: the field holds the sum of the pseudo header, and whoever cuts the packet, or sends it
//! where a checksum matters, completes it ([`checksum`]). So the payload's bytes are summed once on either side.
//!
//! What is assumed:
//!
//! - The device gives IP packets with nothing in front but the virtio-net header of 10 bytes, in the machine's own byte
//!   order: Linux's default for TUN.
//! - A super-packet has at most 65,535 bytes. Longer ones (BIG TCP) come only to devices that ask for them.
//! - Splitting and merging are each other's reverse: what a [`merge::Merger`] joins, a [`split::Split`] cuts into the same
//!   packets, byte for byte. The one thing let go is the IPv4 identification of packets that can't be fragmented, which
//!   nobody may look at (RFC 6864 section 4.1).

pub mod checksum;
mod headers;
pub mod merge;
pub mod split;
pub mod virtio;

/// Why what the kernel handed over can't be cut. It is one packet's fault; the next may be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Shorter than a virtio-net header.
    NoHeader,
    /// A kind of segmentation that we did not ask for.
    UnknownKind(u8),
    /// Not an IP packet, or one that is longer than what was read.
    NotIp,
    /// Not of the protocol that its virtio-net header names.
    OtherProtocol,
    /// A fragment: it has no transport header of its own to repeat.
    Fragment,
    /// The transport header is cut, or lies about its length.
    Transport,
    /// To be cut into pieces of no bytes.
    NoSize,
    /// The checksum is said to be where it can't be.
    Checksum,
}

#[cfg(test)]
pub(super) mod tests;
