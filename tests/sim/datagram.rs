//! What goes over the simulated network, and past the lab's own NAT: of IP and UDP, what a router looks at.

use std::net::SocketAddr;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    /// The don't-fragment bit.
    pub whole: bool,
    pub payload: Vec<u8>,
}

impl Datagram {
    /// Of the whole IP packet.
    pub fn len(&self) -> usize {
        self.payload.len() + if self.dst.is_ipv4() { 20 + 8 } else { 40 + 8 }
    }
}
