//! A packet's buffer, with room in front for the transport header and behind for padding and tag, so that sealing and
//! opening happen in place.
//!
//! ```text
//! 0           16                                  16 + len
//! | head room | inner packet, or what is left of it | tail room |
//! ```

/// Bytes kept free in front of an inner packet: a WireGuard transport header is 16.
pub const HEADROOM: usize = 16;
/// Bytes kept free behind it: padding to 16 (at most 15) and the tag (16).
pub const TAILROOM: usize = 32;
/// The largest inner packet: what a TUN device can carry.
pub const MAX_INNER: usize = 65535;

/// One datagram or inner packet, owned, with room on both sides.
#[derive(Clone)]
pub struct Packet {
    buf: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Packet {
    /// An empty packet that can hold `capacity` bytes besides its head and tail room.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buf: vec![0; HEADROOM + capacity + TAILROOM].into_boxed_slice(), start: HEADROOM, len: 0 }
    }

    /// A packet that holds `bytes`.
    pub fn copy_from(bytes: &[u8]) -> Self {
        let mut packet = Self::with_capacity(bytes.len());
        packet.spare_mut()[..bytes.len()].copy_from_slice(bytes);
        packet.set_len(bytes.len());
        packet
    }

    /// Where a reader writes a fresh packet. Empties the packet.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        self.start = HEADROOM;
        self.len = 0;
        let end = self.buf.len() - TAILROOM;
        &mut self.buf[HEADROOM..end]
    }

    /// How many bytes the reader wrote into [`Packet::spare_mut`]; more than fit are cut.
    pub fn set_len(&mut self, len: usize) {
        self.start = HEADROOM;
        self.len = len.min(self.buf.len() - TAILROOM - HEADROOM);
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.start..self.start + self.len]
    }

    /// Drops `front` bytes at the front and keeps `len` of the rest (a transport header and a tag come off).
    pub fn narrow(&mut self, front: usize, len: usize) {
        let front = front.min(self.len);
        self.start += front;
        self.len = len.min(self.len - front);
    }

    /// Grows by `front` bytes at the front and `back` at the end, both zeroed; `None` where there is no room.
    pub fn grow(&mut self, front: usize, back: usize) -> Option<()> {
        let start = self.start.checked_sub(front)?;
        let end = self.start + self.len;
        if end + back > self.buf.len() {
            return None;
        }
        self.buf[start..self.start].fill(0);
        self.buf[end..end + back].fill(0);
        self.start = start;
        self.len += front + back;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_into_its_head_and_tail_room_and_no_further() {
        let mut packet = Packet::copy_from(b"inner");
        assert_eq!(packet.grow(16, 27), Some(()));
        assert_eq!(packet.bytes().len(), 48);
        assert_eq!(&packet.bytes()[16..21], b"inner");
        assert_eq!(packet.grow(1, 0), None);
        assert_eq!(packet.grow(0, 6), None);
        packet.narrow(16, 5);
        assert_eq!(packet.bytes(), b"inner");
    }
}
