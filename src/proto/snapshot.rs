//! What the core knows, as values: the shape of `status --json` and `netcheck --json`. Scripts rely on these names: they are fixed.
//! A field that is not known is `null`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use super::cipher::Cipher;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub interface: String,
    pub public_key: String,
    pub listen_port: u16,
    pub addresses: Vec<String>,
    pub mtu: u16,
    pub nat: Nat,
    pub punch: Punch,
    pub rendezvous: Vec<Rendezvous>,
    pub peers: Vec<Peer>,
    /// Packets dropped since the start, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// What the NATs in front of this machine do, in RFC 4787's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nat {
    pub mapping: Behaviour,
    pub filtering: Behaviour,
    pub allocation: Allocation,
    /// The step between two ports that the NAT gives out one after the other.
    pub delta: Option<i32>,
    /// How many new mappings a second other users of the same NAT make.
    pub cross_traffic_per_s: Option<f64>,
    /// One standard deviation of that.
    pub cross_traffic_error_per_s: Option<f64>,
    /// Lowest and highest port that the NAT gives out, where it was seen to have ends: a block of random ports, or a sequence
    /// that started anew.
    pub ports: Option<(u16, u16)>,
    /// Whether public ports are even where local ones are, though the number is not kept; `null` where it is.
    pub parity_kept: Option<bool>,
    /// How far each socket's public port is from its local one, where it is as far for all of them; `null` where the number is kept.
    pub port_offset: Option<i32>,
    /// Whether all our mappings have one public address; `false`: any of a pool (RFC 4787 section 4.1).
    pub paired: Option<bool>,
    pub public: Vec<SocketAddr>,
    /// The longest silence after which the NAT is known to have remembered a mapping; 34 s is the longest that is tried, 0 says
    /// that not even the shortest was outlived.
    pub mapping_lifetime_s: Option<f64>,
    /// How long a path may be silent before it is kept open by a packet.
    pub keepalive_s: Option<f64>,
    pub port_mapping: PortMapping,
    /// Whether the first mapping of a local port keeps that port and later ones do not (the patent's FIG. 4A).
    pub second_priority: Option<bool>,
    /// So many hops take a packet past our own NATs, as far as was learned.
    pub low_ttl: Option<u8>,
    pub confidence: Confidence,
    /// What was asked and answered, in order.
    pub observations: Vec<Observation>,
}

/// How sure each property is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    pub mapping: Option<Sure>,
    pub filtering: Option<Sure>,
    pub allocation: Option<Sure>,
    pub ports: Option<Sure>,
    pub parity_kept: Option<Sure>,
    pub port_offset: Option<Sure>,
    pub paired: Option<Sure>,
}

/// The chance that a property is as it was read, and how many observations it was read from; [`super::nat::evidence`] has
/// the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sure {
    pub chance: f64,
    pub observations: u32,
}

/// One request to a discovery server and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub server: SocketAddr,
    pub local_port: u16,
    /// The public address that the server saw; `null` where no answer came.
    pub public: Option<SocketAddr>,
    pub rtt_ms: Option<f64>,
    /// What the request was for: "mapping", "filtering from another port", "filtering from another address".
    pub purpose: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    None,
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    Preserving,
    Sequential,
    Random,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMapping {
    Upnp,
    Pcp,
    NatPmp,
    None,
}

/// What a call may cost (`[punch]` in the config), and what is going on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Punch {
    pub window: (i32, i32),
    /// Most of each that one call may use.
    pub sockets: u32,
    pub probes: u32,
    pub entries: u32,
    /// Most probes a second, but for a volley.
    pub rate: u32,
    pub timeout_s: f64,
    /// Most hard calls at the same time, and how many there are now.
    pub hard_calls: u32,
    pub hard_calls_now: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rendezvous {
    pub address: String,
    pub connected: bool,
    pub rtt_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub public_key: String,
    pub state: State,
    pub endpoint: Option<SocketAddr>,
    pub method: Option<Method>,
    /// One sentence: what was tried and, where it failed, what would help.
    pub why: Option<String>,
    pub cipher: Option<Cipher>,
    /// The longest IP packet that the path in use was seen to carry, and the longest inner one that is to go by it.
    pub path_mtu: Option<u16>,
    pub inner_mtu: u16,
    pub rtt_ms: Option<f64>,
    /// From the first packet of the call to the first authentic packet on the path.
    pub connect_ms: Option<u64>,
    pub probes_sent: u64,
    pub sockets_used: u32,
    /// Entries that this call, or else the last one, made in our NAT's table, its surveys' among them.
    pub entries_used: u32,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    /// Unix seconds.
    pub last_handshake: Option<u64>,
    pub allowed_ips: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Idle,
    Calling,
    Punching,
    Connected,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Endpoint,
    Lan,
    Ipv6,
    PortMapping,
    Punch,
    Shotgun,
    Roamed,
}
