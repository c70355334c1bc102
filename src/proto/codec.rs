//! Reading and writing of message bodies: big-endian, never past the end, never by an untrusted length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Takes bytes off the front of a message. `None` from any method: the message is malformed.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// 19 bytes: 4 or 6, the port, the address in 16 bytes (an IPv4 address in the first four).
    pub fn address(&mut self) -> Option<SocketAddr> {
        let family = self.u8()?;
        let port = self.u16()?;
        let bytes: [u8; 16] = self.array()?;
        let ip = match family {
            4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
            6 => IpAddr::V6(Ipv6Addr::from(bytes)),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Puts a message together.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn with(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub fn i32(self, value: i32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// As [`Reader::address`] reads it.
    pub fn address(self, address: SocketAddr) -> Self {
        let mut bytes = [0; 16];
        let family = match address.ip() {
            IpAddr::V4(ip) => {
                bytes[..4].copy_from_slice(&ip.octets());
                4
            }
            IpAddr::V6(ip) => {
                bytes = ip.octets();
                6
            }
        };
        self.u8(family).u16(address.port()).bytes(&bytes)
    }

    /// Zeroes up to a length of `len`.
    pub fn pad_to(mut self, len: usize) -> Self {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_address_reads_back_as_it_was_written(ip: IpAddr, port: u16) {
            let bytes = Writer::default().address(SocketAddr::new(ip, port)).finish();
            prop_assert_eq!(bytes.len(), 19);
            prop_assert_eq!(Reader::new(&bytes).address(), Some(SocketAddr::new(ip, port)));
        }

        #[test]
        fn no_input_reads_past_its_end(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.address().is_some() && reader.u64().is_some() {}
            prop_assert!(reader.rest().len() <= bytes.len());
        }
    }
}
