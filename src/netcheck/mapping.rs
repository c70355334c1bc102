//! Whether the router in front maps ports, and how: asks for one and gives it back.
//!
//! The port asked for is a low one, as a member's is: routers, and firewalls of others, treat the dynamic ones differently.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::config::Mapper;
use crate::daemon::protocols;
use crate::io::portmap::{Options, PortMapper};
use crate::proto::snapshot::PortMapping;

/// A healthy router has answered by then: a UPnP device may take MX, 1 s.
const SEARCH: Duration = Duration::from_secs(2);
/// One that has answered may take so much longer to map.
const WAIT: Duration = Duration::from_secs(12);
/// What can't be removed, because the router is too slow for that, ends soon.
const LEASE: Duration = Duration::from_secs(120);
/// Ports that are tried before any is taken.
const TRIES: usize = 16;

/// What became of it.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub by: PortMapping,
    /// What it came to be.
    pub external: Option<SocketAddr>,
    pub words: String,
}

/// Maps a port that nobody uses by the first of `enabled` that works, and removes the mapping again.
pub async fn probe(enabled: &[Mapper]) -> Mapping {
    let none = |words: String| Mapping { by: PortMapping::None, external: None, words };
    if enabled.is_empty() {
        return none("not asked for, because the config says `port_mapping = []`".to_owned());
    }
    // Held until the end, so that the mapping leads to no other program.
    let socket = match bind() {
        Ok(socket) => socket,
        Err(error) => return none(format!("not asked for: no UDP socket can be had ({error})")),
    };
    let Ok(port) = socket.local_addr().map(|address| address.port()) else {
        return none("not asked for: the socket has no port".to_owned());
    };
    let options = Options { enabled: protocols(enabled), local_port: port, lease: LEASE, ..Options::default() };
    let mut mapper = PortMapper::start_with(options);
    let mut mapped = tokio::time::timeout(SEARCH, mapper.changed()).await.ok().flatten();
    let speaks = mapper.speaks();
    if mapped.is_none() && speaks {
        mapped = tokio::time::timeout(WAIT, mapper.changed()).await.ok().flatten();
    }
    mapper.stop().await;
    match mapped {
        Some(mapped) => {
            let equal = if mapped.external.port() == port { "the equal port" } else { "another port" };
            let by = name(mapped.by);
            Mapping {
                by: mapped.by,
                external: Some(mapped.external),
                words: format!("{by}: UDP port {port} came to be {equal}, {}; it was removed again", mapped.external),
            }
        }
        None if speaks => none(format!("the router answered, and mapped nothing ({} tried)", names(enabled))),
        None => none(format!("no router answered ({} tried)", names(enabled))),
    }
}

/// On a free port that needs no privilege and is not dynamic, if one is found soon.
fn bind() -> std::io::Result<UdpSocket> {
    let mut bytes = [0; 2 * TRIES];
    if getrandom::fill(&mut bytes).is_ok() {
        let ports = bytes.chunks_exact(2).map(|two| 1024 + u16::from_ne_bytes([two[0], two[1]]) % (32768 - 1024));
        for port in ports {
            if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
                return Ok(socket);
            }
        }
    }
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn name(by: PortMapping) -> &'static str {
    match by {
        PortMapping::Upnp => "UPnP",
        PortMapping::Pcp => "PCP",
        PortMapping::NatPmp => "NAT-PMP",
        PortMapping::None => "none",
    }
}

fn names(enabled: &[Mapper]) -> String {
    let names = enabled.iter().map(|mapper| match mapper {
        Mapper::Upnp => "UPnP",
        Mapper::Pcp => "PCP",
        Mapper::NatPmp => "NAT-PMP",
    });
    names.collect::<Vec<_>>().join(", ")
}
