//! What goes over the simulated network, and past the lab's own NAT: of IP and UDP, what a router looks at.

use std::net::SocketAddr;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    pub payload: Vec<u8>,
}
