//! The little of STUN (RFC 8489) that discovery needs: a Binding request and the address in its answer.
//!
//! ```text
//! 0      2        4              8                    20
//! | type | length | 21 12 a4 42  | transaction id (12) | attributes: type, length, value, padded to 4 …
//! ```
//!
//! No authentication, no fingerprint, no other method: what is not understood is skipped, as section 14 says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::codec::{Reader, Writer};

pub const TRANSACTION_LEN: usize = 12;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const SOFTWARE: u16 = 0x8022;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

pub type Transaction = [u8; TRANSACTION_LEN];

/// A Binding request. It carries a SOFTWARE attribute (section 14.14), which makes it no shorter than our own server's
/// answer, so that nobody is amplified by it.
pub fn request(transaction: &Transaction) -> Vec<u8> {
    let software = b"p2ptund\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let attributes = Writer::default().u16(SOFTWARE).u16(software.len() as u16).bytes(software).finish();
    message(BINDING_REQUEST, transaction, &attributes)
}

/// The transaction of a Binding request; `None` where it is none.
pub fn parse_request(datagram: &[u8]) -> Option<Transaction> {
    let (kind, transaction, _) = parse(datagram)?;
    (kind == BINDING_REQUEST).then_some(transaction)
}

/// The answer to a request that came from `source`.
pub fn response(transaction: &Transaction, source: SocketAddr) -> Vec<u8> {
    let xored = xor(source, transaction);
    let writer = Writer::default().u16(XOR_MAPPED_ADDRESS);
    let attributes = match xored.ip() {
        IpAddr::V4(ip) => writer.u16(8).u8(0).u8(FAMILY_IPV4).u16(xored.port()).bytes(&ip.octets()),
        IpAddr::V6(ip) => writer.u16(20).u8(0).u8(FAMILY_IPV6).u16(xored.port()).bytes(&ip.octets()),
    };
    message(BINDING_SUCCESS, transaction, &attributes.finish())
}

/// The transaction and the mapped address of a Binding success response. XOR-MAPPED-ADDRESS wins; MAPPED-ADDRESS is what
/// servers of RFC 3489 give.
pub fn parse_response(datagram: &[u8]) -> Option<(Transaction, SocketAddr)> {
    let (kind, transaction, attributes) = parse(datagram)?;
    if kind != BINDING_SUCCESS {
        return None;
    }
    let mut reader = Reader::new(attributes);
    let mut plain = None;
    while !reader.is_empty() {
        let kind = reader.u16()?;
        let len = usize::from(reader.u16()?);
        let value = reader.take(len)?;
        reader.take(len.next_multiple_of(4) - len)?;
        match kind {
            XOR_MAPPED_ADDRESS => return Some((transaction, xor(address(value)?, &transaction))),
            MAPPED_ADDRESS => plain = address(value),
            _ => {}
        }
    }
    plain.map(|address| (transaction, address))
}

fn message(kind: u16, transaction: &Transaction, attributes: &[u8]) -> Vec<u8> {
    Writer::default()
        .u16(kind)
        .u16(attributes.len() as u16)
        .u32(MAGIC_COOKIE)
        .bytes(transaction)
        .bytes(attributes)
        .finish()
}

fn parse(datagram: &[u8]) -> Option<(u16, Transaction, &[u8])> {
    let mut reader = Reader::new(datagram);
    let kind = reader.u16()?;
    let len = usize::from(reader.u16()?);
    let cookie = reader.u32()?;
    let transaction = reader.array()?;
    let attributes = reader.rest();
    (cookie == MAGIC_COOKIE && attributes.len() == len && len % 4 == 0).then_some((kind, transaction, attributes))
}

fn address(value: &[u8]) -> Option<SocketAddr> {
    let mut reader = Reader::new(value);
    reader.u8()?;
    let family = reader.u8()?;
    let port = reader.u16()?;
    let ip = match family {
        FAMILY_IPV4 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)),
        FAMILY_IPV6 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)),
        _ => return None,
    };
    reader.is_empty().then_some(SocketAddr::new(ip, port))
}

/// Section 14.2: the port with the cookie's high half, the address with the cookie, and for IPv6 with the transaction too.
fn xor(address: SocketAddr, transaction: &Transaction) -> SocketAddr {
    let port = address.port() ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match address.ip() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip) ^ MAGIC_COOKIE)),
        IpAddr::V6(ip) => {
            let mut mask = [0; 16];
            mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
            mask[4..].copy_from_slice(transaction);
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) ^ u128::from_be_bytes(mask)))
        }
    };
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 section 2.2, without the attributes that need its password.
    #[test]
    fn reads_the_sample_ipv4_response_of_rfc_5769() {
        let mut datagram = vec![0x01, 0x01, 0x00, 0x1c, 0x21, 0x12, 0xa4, 0x42];
        let transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        datagram.extend(transaction);
        datagram.extend([0x80, 0x22, 0x00, 0x0b]);
        datagram.extend(*b"test vector\x20");
        datagram.extend([0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        assert_eq!(parse_response(&datagram), Some((transaction, "192.0.2.1:32853".parse().expect("address"))));
    }

    /// RFC 5769 section 2.3: the XOR-MAPPED-ADDRESS of the sample IPv6 response.
    #[test]
    fn reads_the_sample_ipv6_response_of_rfc_5769() {
        let mut datagram = vec![0x01, 0x01, 0x00, 0x18, 0x21, 0x12, 0xa4, 0x42];
        let transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        datagram.extend(transaction);
        datagram.extend([0x00, 0x20, 0x00, 0x14, 0x00, 0x02, 0xa1, 0x47]);
        datagram
            .extend([0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9]);
        let address = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().expect("address");
        assert_eq!(parse_response(&datagram), Some((transaction, address)));
    }

    #[test]
    fn a_request_is_no_shorter_than_our_answer_to_it() {
        let transaction = [7; TRANSACTION_LEN];
        let source = "[2001:db8::1]:9".parse().expect("address");
        let answer = response(&transaction, source);
        assert!(request(&transaction).len() >= answer.len());
        assert_eq!(parse_response(&answer), Some((transaction, source)));
        assert_eq!(parse_request(&request(&transaction)), Some(transaction));
    }

    #[test]
    fn a_response_cut_at_any_length_is_refused() {
        let answer = response(&[7; TRANSACTION_LEN], "192.0.2.1:9".parse().expect("address"));
        for len in 0..answer.len() {
            assert_eq!(parse_response(&answer[..len]), None, "{len}");
        }
    }
}
