//! The discovery server: stateless, answers DUDP_START and plain STUN with the address that the request came from.

use std::net::SocketAddr;

/// The server's own sockets, by the shell's count, and how it answers.
pub struct Server {}

impl Server {
    /// `listeners`: the addresses that the shell's sockets are bound to, in the shell's order.
    pub fn new(listeners: Vec<SocketAddr>) -> Self {
        todo!()
    }

    /// The answer to a request that came in on `listener`: from which listener, and the bytes, never more than came in for a
    /// DUDP_START. It goes to `from`.
    pub fn handle_datagram(&self, listener: usize, from: SocketAddr, datagram: &[u8]) -> Option<(usize, Vec<u8>)> {
        todo!()
    }
}
