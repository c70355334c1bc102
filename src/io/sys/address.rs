//! A socket's address in the kernel's form.

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A socket's address as the kernel writes it. Both variants are plain bytes, and any bytes are valid ones.
#[repr(C)]
#[derive(Clone, Copy)]
pub union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub fn zero() -> Self {
        // SAFETY: all-zero bytes are a valid value of both variants.
        unsafe { zeroed() }
    }

    pub fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::zero();
        match address {
            SocketAddr::V4(v4) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(v6) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// `None` for a family that is neither. IPv4-mapped addresses come out as IPv4.
    pub fn to_address(self) -> Option<SocketAddr> {
        // SAFETY: the family is at the same place in both variants, and any bytes are a valid value of each.
        unsafe {
            match libc::c_int::from(self.v4.sin_family) {
                libc::AF_INET => Some(SocketAddr::V4(SocketAddrV4::new(
                    Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes()),
                    u16::from_be(self.v4.sin_port),
                ))),
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(match IpAddr::V6(ip).to_canonical() {
                        IpAddr::V4(v4) => SocketAddr::from((v4, port)),
                        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, self.v6.sin6_scope_id)),
                    })
                }
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["192.0.2.1:65535", "[2001:db8::1]:1", "[fe80::1%3]:4275"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(RawAddress::new(address).0.to_address(), Some(address));
        }
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:7".parse().expect("an address");
        assert_eq!(RawAddress::new(mapped).0.to_address(), Some("192.0.2.1:7".parse().expect("an address")));
        assert_eq!(RawAddress::zero().to_address(), None);
    }
}
