//! What comes out of the core: datagrams to send, things for the shell to do, and things worth telling.

use std::net::SocketAddr;
use std::time::Duration;

/// A local UDP socket of the shell's, by a number that the core gives out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The socket on `listen_port`, IPv4. The shell opens it before the first input.
    pub const MAIN_V4: SocketId = SocketId(0);
    /// The socket on `listen_port`, IPv6; sends on it fail quietly where the machine has no IPv6.
    pub const MAIN_V6: SocketId = SocketId(1);
    /// The first of those that [`Action::OpenSocket`] asks for.
    pub const FIRST_EXTRA: SocketId = SocketId(2);

    /// The main socket of `address`'s family.
    pub fn main_for(address: &SocketAddr) -> SocketId {
        if address.is_ipv4() { Self::MAIN_V4 } else { Self::MAIN_V6 }
    }
}

/// One datagram to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    pub socket: SocketId,
    pub to: SocketAddr,
    /// The IP time to live, where it is not the system's own: a low one opens one's own NAT and never reaches the other's.
    pub ttl: Option<u8>,
    /// It is to be lost rather than cut into fragments, here or on the way: a sounding ([`super::mtu`]).
    pub whole: bool,
    pub payload: Vec<u8>,
}

/// Something that the shell must do. Carried out in the order in which it came, before later transmits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Bind a UDP socket (IPv4, the wildcard address) to `port`, or to any where that is 0 or taken. Where none can be had,
    /// answer with `Node::handle_socket_failed`.
    OpenSocket { id: SocketId, port: u16 },
    /// Close it; datagrams still on their way to it are dropped.
    CloseSocket { id: SocketId },
    /// Resolve a host name; answer with `Node::handle_resolved`, with no addresses where it failed.
    Resolve { name: String },
    /// From now on (`on`), or no longer, tell `Node::handle_overheard` of the probes that reach this machine for the main port,
    /// whether a firewall of its own lets them in or not. Best effort.
    Overhear { on: bool },
    /// Give the TUN device this inner packet of our own making: an ICMP error about one that it gave.
    Inject { packet: Vec<u8> },
    /// Something happened that a log, a user who waits, or a test wants to know.
    Event(Event),
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Eq)]
pub enum Event {
    /// A rendezvous server knows us now.
    Registered { server: String },
    /// A rendezvous server stopped answering.
    Unregistered { server: String },
    /// The NAT in front of us is now known to behave so (one line for a log).
    NatChanged { summary: String },
    /// One step on the way to a peer, for a user who watches (`DEBUG` in a log).
    Step { peer: String, text: String },
    /// Payload can flow.
    Connected { peer: String, endpoint: SocketAddr, method: crate::proto::snapshot::Method, after: Duration },
    /// Payload can't flow any more; the daemon goes on trying.
    Lost { peer: String, why: String },
    /// A call ended without a path; `why` says what was tried and what would help.
    CallFailed { peer: String, why: String },
    /// The answer to one `Node::handle_ping`.
    Pong { token: u64, rtt: Duration },
}

/// Why a packet was dropped. Each is counted; none ends a batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum Drop {
    /// Not a datagram of any kind that we know, or not of its kind's length.
    Malformed,
    /// The right shape, but no key of ours opens it.
    Unauthentic,
    /// Seen before, or too old to tell.
    Replayed,
    /// For a session, call or request that is not, or no longer, there.
    Unknown,
    /// An inner packet from a source address outside the peer's `allowed_ips`.
    ForeignSource,
    /// An inner packet for which no peer has a route, or that is no IP packet.
    NoRoute,
    /// A queue or a table is full, or a rate limit was reached.
    Overload,
    /// An inner packet that is longer than the path carries, and that must not be cut: its sender was told.
    TooBig,
}

impl Drop {
    pub const ALL: [(Drop, &'static str); 8] = [
        (Drop::Malformed, "malformed"),
        (Drop::Unauthentic, "unauthentic"),
        (Drop::Replayed, "replayed"),
        (Drop::Unknown, "unknown"),
        (Drop::ForeignSource, "foreign_source"),
        (Drop::NoRoute, "no_route"),
        (Drop::Overload, "overload"),
        (Drop::TooBig, "too_big"),
    ];
}

/// How many packets were dropped, by reason.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Drops([u64; Drop::ALL.len()]);

impl Drops {
    pub fn count(&mut self, reason: Drop) {
        self.add(reason, 1);
    }

    pub fn add(&mut self, reason: Drop, count: u64) {
        let slot = &mut self.0[reason as usize];
        *slot = slot.saturating_add(count);
    }

    pub fn of(&self, reason: Drop) -> u64 {
        self.0[reason as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every reason by its name in `status --json`, with its count.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Drop::ALL.iter().map(|(reason, name)| (*name, self.of(*reason)))
    }
}
