//! The fuzzer's bytes, taken off the front as numbers and pieces. At their end everything is zero or empty, so that every
//! input means something and a shorter one means less.

use std::net::{IpAddr, SocketAddr};

pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let piece = self.take(N);
        array[..piece.len()].copy_from_slice(piece);
        array
    }

    /// At most `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// A piece whose length, up to 255, stands before it.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.u8());
        self.take(len)
    }

    /// A number below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        let byte = usize::from(self.u8());
        if count > 256 { (byte << 8 | usize::from(self.u8())) % count } else { byte % count }
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub fn address(&mut self) -> SocketAddr {
        let ip = if self.u8() & 1 == 0 { IpAddr::from(self.array::<4>()) } else { IpAddr::from(self.array::<16>()) };
        SocketAddr::new(ip, self.u16())
    }
}

/// Bends a datagram in one of the ways in which a network, or somebody in it, does.
pub fn bend(input: &mut Input<'_>, datagram: &mut Vec<u8>) {
    match input.u8() % 6 {
        0..=1 => {
            for _ in 0..=input.u8() % 4 {
                let (at, by) = (input.below(datagram.len().max(1)), input.u8());
                if let Some(byte) = datagram.get_mut(at) {
                    *byte ^= by;
                }
            }
        }
        2 => datagram.truncate(input.below(datagram.len() + 1)),
        3 => datagram.extend_from_slice(input.piece()),
        4 => {
            let (at, piece) = (input.below(datagram.len().max(1)), input.piece());
            for (byte, new) in datagram.iter_mut().skip(at).zip(piece) {
                *byte = *new;
            }
        }
        _ => *datagram = input.piece().to_vec(),
    }
}
