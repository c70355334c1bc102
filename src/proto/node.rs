//! A mesh member: composes the machines and tells datagrams apart.

use std::net::{IpAddr, SocketAddr};

use super::action::Drops;
use super::config::Config;
use super::snapshot::{PortMapping, Snapshot};
use super::{Action, Instant, Packet, SocketId, Transmit, Wall};

/// One mesh member, whole. Single owner, no locks; see [`crate::proto`] for how it is driven.
pub struct Node {}

/// Where a sealed packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    pub socket: SocketId,
    pub to: SocketAddr,
}

/// A port mapping that a router granted, for the main IPv4 socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedPort {
    pub external: SocketAddr,
    pub by: PortMapping,
}

impl Node {
    /// A member that starts at `now`; `seed` is 32 bytes of the system's best randomness.
    pub fn new(config: Config, seed: [u8; 32], now: Instant, wall: Wall) -> Self {
        todo!()
    }

    /// A datagram came in on `socket`. `true`: `packet` now is an inner IP packet for the TUN device.
    pub fn handle_datagram(&mut self, now: Instant, socket: SocketId, from: SocketAddr, packet: &mut Packet) -> bool {
        todo!()
    }

    /// The TUN device gave an inner packet. `Some`: `packet` now is a datagram to send there.
    /// `None`: it was kept until there is a path, or dropped.
    pub fn handle_tun(&mut self, now: Instant, packet: &mut Packet) -> Option<Route> {
        todo!()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }

    /// This machine's own unicast addresses (no loopback, no link-local, not the tunnel's own) are these. To be called once
    /// at the start and whenever they, or the default route, changed.
    pub fn handle_addresses(&mut self, now: Instant, addresses: &[ipnet::IpNet]) {
        todo!()
    }

    pub fn handle_resolved(&mut self, now: Instant, name: &str, addresses: &[IpAddr]) {
        todo!()
    }

    pub fn handle_socket_failed(&mut self, now: Instant, id: SocketId) {
        todo!()
    }

    /// A router mapped the main port, or (`None`) does no longer.
    pub fn handle_port_mapping(&mut self, now: Instant, mapped: Option<MappedPort>) {
        todo!()
    }

    /// Times the path to a peer once; [`super::Event::Pong`] with the token answers, if anything does.
    /// Places a call first where there is no path. `Err` names no such peer.
    pub fn handle_ping(&mut self, now: Instant, peer: &str) -> Result<u64, String> {
        todo!()
    }

    /// Takes over a changed config. Peers that did not change keep their tunnels. The private key, the interface's name and
    /// the listen port must be the ones of before: the shell refuses such a reload as a whole.
    pub fn handle_config(&mut self, now: Instant, config: Config) {
        todo!()
    }

    /// Datagrams to send now, in order. `None` where an action must be carried out first: drain both in turn until both are
    /// empty, actions first.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        todo!()
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        todo!()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// Inner packets that wait for the TUN device because they came out of a queue rather than a datagram (none today but
    /// ICMP errors for packets that could not be sent).
    pub fn poll_tun(&mut self) -> Option<Packet> {
        todo!()
    }

    pub fn snapshot(&self, now: Instant) -> Snapshot {
        todo!()
    }

    pub fn drops(&self) -> Drops {
        todo!()
    }
}
