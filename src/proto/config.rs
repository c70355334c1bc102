//! What the core needs to know to start, already parsed and checked: nothing in here can be wrong by itself.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::keys::{PresharedKey, PrivateKey, PublicKey};
use super::plan;

/// The discovery servers' well-known series of ports (patent \[0058\]; the contract's 4270 to 4273).
pub const DISCOVERY_PORTS: [u16; 4] = [4270, 4271, 4272, 4273];
/// A rendezvous server's default port.
pub const RENDEZVOUS_PORT: u16 = 4274;
/// A member's default `listen_port`.
pub const MEMBER_PORT: u16 = 4275;
/// STUN's port (RFC 8489 section 18.6).
pub const STUN_PORT: u16 = 3478;

/// A mesh member's part of the config that the core acts on.
#[derive(Clone, Debug)]
pub struct Config {
    pub interface: String,
    pub addresses: Vec<IpNet>,
    pub mtu: u16,
    /// Whether transport data may be sealed with AES-256-GCM: this machine is fast at it, and its owner does not forbid it.
    pub aes: bool,
    pub private_key: PrivateKey,
    /// The port that the main sockets are really bound to.
    pub listen_port: u16,
    /// Whether calls between peers are passed on.
    pub introduce: bool,
    pub discovery: Vec<Discovery>,
    pub rendezvous: Vec<Rendezvous>,
    pub peers: Vec<Peer>,
    pub punch: Punch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Ip(IpAddr),
    /// The shell resolves it when the core asks ([`super::Action::Resolve`]).
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub host: Host,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A server of ours on all of [`DISCOVERY_PORTS`].
    Series(Host),
    /// A server of ours on one port.
    Port(HostPort),
    /// Any RFC 8489 server.
    Stun(HostPort),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    pub address: HostPort,
    pub public_key: PublicKey,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub allowed_ips: Vec<IpNet>,
    pub endpoint: Option<HostPort>,
    pub calls: Calls,
    pub connect: Connect,
}

/// Whom this member lets call whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Calls {
    /// Either may call the other.
    #[default]
    Both,
    /// Only we call; the peer's calls are refused.
    Out,
    /// Only the peer calls; we wait.
    In,
    /// Neither: the peer's calls are refused, and we make none.
    None,
}

impl Calls {
    pub fn may_call(self) -> bool {
        matches!(self, Self::Both | Self::Out)
    }

    pub fn answers(self) -> bool {
        matches!(self, Self::Both | Self::In)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Connect {
    /// From the start, and again whenever the path is lost.
    #[default]
    Always,
    /// When the first packet for the peer comes out of the TUN device.
    OnDemand,
}

/// `[punch]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Punch {
    /// The window around the predicted port: how many steps below (at most 0) and above (at least 0). Patent \[0038\]: −16, +32.
    pub window: (i32, i32),
    /// Most local sockets, so NAT entries, that one hard call may open.
    pub sockets: u32,
    /// Most probes that one call may send.
    pub probes: u32,
    /// Most entries in our NAT's table that one call may make.
    pub entries: u32,
    /// Most probes a second, but for a volley. `None`: as many as send a call's probes in eight of its ten seconds, 1,000 to 25,000.
    pub rate: Option<u32>,
    /// Most peers with whom a hard call may be going on at the same time.
    pub hard_calls: u32,
    /// Then the call has failed; it is tried again with back-off.
    pub timeout: Duration,
}

impl Punch {
    /// Probes a second.
    pub fn pace(&self) -> u32 {
        self.rate.unwrap_or_else(|| plan::rate(self.probes))
    }
}

impl Default for Punch {
    fn default() -> Self {
        Self {
            window: (-16, 32),
            sockets: 256,
            probes: 2048,
            // What the costliest plan asks of one side: random by address against a sequence.
            entries: 1280,
            rate: None,
            hard_calls: 1,
            timeout: Duration::from_secs(10),
        }
    }
}
