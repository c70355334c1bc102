//! Whether the router in front maps ports, and how: asks for one and gives it back.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use crate::config::Mapper;
use crate::daemon::protocols;
use crate::io::portmap::PortMapper;
use crate::proto::snapshot::PortMapping;

/// The port mapper looks for a router for 4 s and gives it 4 s to map; then there is none.
const WAIT: Duration = Duration::from_secs(9);

/// What became of it.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub by: PortMapping,
    pub words: String,
}

/// Maps a port that nobody uses by the first of `enabled` that works, and removes the mapping again.
pub async fn probe(enabled: &[Mapper]) -> Mapping {
    let none = |words: String| Mapping { by: PortMapping::None, words };
    if enabled.is_empty() {
        return none("not asked for, because the config says `port_mapping = []`".to_owned());
    }
    // Held until the end, so that the mapping leads to no other program.
    let socket = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        Ok(socket) => socket,
        Err(error) => return none(format!("not asked for: no UDP socket can be had ({error})")),
    };
    let Ok(port) = socket.local_addr().map(|address| address.port()) else {
        return none("not asked for: the socket has no port".to_owned());
    };
    eprintln!("Asking the router for a port mapping …");
    let mut mapper = PortMapper::start(&protocols(enabled), port, None);
    let mapped = tokio::time::timeout(WAIT, mapper.changed()).await.ok().flatten();
    mapper.stop().await;
    match mapped {
        Some(mapped) => {
            let equal = if mapped.external.port() == port { "the equal port" } else { "another port" };
            let by = name(mapped.by);
            Mapping {
                by: mapped.by,
                words: format!("{by}: UDP port {port} came to be {equal}, {}; it was removed again", mapped.external),
            }
        }
        None => none(format!("no router answered and mapped ({} tried)", names(enabled))),
    }
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
