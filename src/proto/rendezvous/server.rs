//! The rendezvous server, pure, so that the simulator runs it too.

use std::net::SocketAddr;

use crate::proto::keys::{PrivateKey, PublicKey};
use crate::proto::{Instant, Wall};

/// Knows members by key and passes MESSAGE_CONTROL between them. Holds no state that a restart loses for good.
pub struct Server {}

impl Server {
    pub fn new(
        private_key: PrivateKey,
        allow: Option<Vec<PublicKey>>,
        seed: [u8; 32],
        now: Instant,
        wall: Wall,
    ) -> Self {
        todo!()
    }

    /// A datagram came in on listening socket number `listener` (the shell's own count, from 0).
    pub fn handle_datagram(&mut self, now: Instant, listener: usize, from: SocketAddr, datagram: &mut [u8]) {
        todo!()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }

    pub fn poll_transmit(&mut self) -> Option<(usize, SocketAddr, Vec<u8>)> {
        todo!()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// How many members are registered.
    pub fn members(&self) -> usize {
        todo!()
    }
}
