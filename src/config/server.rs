//! A server's config, and the same two tables inside a member's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use toml::Spanned;
use toml::de::DeTable;

use super::fault::{At, Log};
use super::reader::Section;
use super::schema::{LISTEN_DISCOVERY, LISTEN_RENDEZVOUS, SERVER};
use super::{Kind, Serve, ServeDiscovery, ServeRendezvous, ServerConfig, Source, keyfile, value};
use crate::proto::config::{DISCOVERY_PORTS, RENDEZVOUS_PORT};

/// The sockets that are spoken for already, each with its line.
pub(super) type Taken = BTreeMap<SocketAddr, usize>;

pub(super) fn read(source: &Source, root: &Spanned<DeTable<'_>>, log: &mut Log) -> Option<ServerConfig> {
    if Kind::of(root.get_ref()) == Some(Kind::Member) {
        log.fault(0, "this is a member's config", "Start it with `p2ptund up`.");
        return None;
    }
    let root = Section::new(root.get_ref(), 0, SERVER, log);
    let serve = tables(source, &root, &mut Taken::new(), log);
    if !root.has("discovery") && !root.has("rendezvous") {
        log.absent(0, "there is nothing to serve", "Write [discovery], [rendezvous] or both.");
        return None;
    }
    serve.map(|serve| ServerConfig { path: source.path.clone(), serve, notes: Vec::new() })
}

/// `[discovery]` and `[rendezvous]` in `parent`, which is a server's whole file or a member's `[serve]`.
pub(super) fn tables(source: &Source, parent: &Section<'_, '_>, taken: &mut Taken, log: &mut Log) -> Option<Serve> {
    let discovery = parent.section("discovery", LISTEN_DISCOVERY, log).map(|table| discovery(&table, taken, log));
    let rendezvous =
        parent.section("rendezvous", LISTEN_RENDEZVOUS, log).map(|table| rendezvous(source, &table, taken, log));
    // A table that is there and came to nothing is a fault, noted already; one that is not there is none.
    let (discovery, rendezvous) =
        (discovery.map_or(Some(None), |d| d.map(Some)), rendezvous.map_or(Some(None), |r| r.map(Some)));
    Some(Serve { discovery: discovery?, rendezvous: rendezvous? })
}

pub(super) fn summary(config: &ServerConfig) -> String {
    let mut parts = Vec::new();
    if let Some(discovery) = &config.serve.discovery {
        let addresses = super::distinct(discovery.listen.iter().map(SocketAddr::ip));
        parts.push(format!("discovery on {} sockets at {addresses} address(es)", discovery.listen.len()));
    }
    if let Some(rendezvous) = &config.serve.rendezvous {
        let who = rendezvous.allow.as_ref().map_or("any member".into(), |allow| format!("{} members", allow.len()));
        let listen: Vec<_> = rendezvous.listen.iter().map(SocketAddr::to_string).collect();
        parts.push(format!("rendezvous for {who} at {}", listen.join(", ")));
    }
    format!("a server: {}", parts.join("; "))
}

fn discovery(table: &Section<'_, '_>, taken: &mut Taken, log: &mut Log) -> Option<ServeDiscovery> {
    let listen = sockets(table, &DISCOVERY_PORTS, taken, log)?;
    Some(ServeDiscovery { listen })
}

fn rendezvous(source: &Source, table: &Section<'_, '_>, taken: &mut Taken, log: &mut Log) -> Option<ServeRendezvous> {
    let listen = sockets(table, &[RENDEZVOUS_PORT], taken, log);
    let names = ("private_key_file", "private_key");
    let private_key = keyfile::secret(table, names, true, "p2ptund genkey", source.base(), log);
    let allow = table.texts("allow", log).map(|keys| {
        if table.is_empty("allow") {
            log.note(
                table.at_key("allow"),
                "`allow` is empty, so no member may register",
                "Leave it out to allow any.",
            );
        }
        let mut seen = BTreeMap::new();
        for text in keys {
            let key = log.take(text.at, "allow", value::public_key(text.value, "`p2ptund pubkey`"));
            if let Some(key) = key
                && let Some(earlier) = seen.insert(key.value, key.at)
            {
                let what = format!("`allow` has the same key twice, first in line {}", log.line(earlier));
                log.fault(key.at, what, "Remove one of both.");
            }
        }
        seen.into_keys().collect()
    });
    Some(ServeRendezvous { listen: listen?, private_key: private_key?.value, allow })
}

/// The sockets of `listen`; an address without a port stands for one at each of `ports`.
fn sockets(table: &Section<'_, '_>, ports: &[u16], taken: &mut Taken, log: &mut Log) -> Option<Vec<SocketAddr>> {
    table.require("listen", log);
    let texts = table.texts("listen", log)?;
    if table.is_empty("listen") {
        log.fault(
            table.at_key("listen"),
            "`listen` is empty",
            "Write the addresses to listen at, or remove the table.",
        );
    }
    let mut sockets = Vec::new();
    for text in texts {
        let Some(listen) = log.take(text.at, "listen", value::listen(text.value)) else { continue };
        let (address, port) = listen.value;
        if address.is_unspecified() && ports.len() > 1 {
            let remedy = "Write the machine's addresses one by one.";
            log.note(
                text.at,
                "with a wildcard address an answer may leave from another address than was asked",
                remedy,
            );
        }
        let one;
        let ports = match port {
            Some(port) => {
                one = [port];
                &one[..]
            }
            None => ports,
        };
        for port in ports {
            let socket = SocketAddr::new(address, *port);
            if claim(At { value: socket, at: text.at }, taken, log) {
                sockets.push(socket);
            }
        }
    }
    Some(sockets)
}

/// Takes a socket, or notes who has it.
pub(super) fn claim(socket: At<SocketAddr>, taken: &mut Taken, log: &mut Log) -> bool {
    let wildcard = |address: &IpAddr| address.is_unspecified();
    let clash = taken.iter().find(|(other, _)| {
        other.port() == socket.value.port()
            && other.is_ipv4() == socket.value.is_ipv4()
            && (other.ip() == socket.value.ip() || wildcard(&other.ip()) || wildcard(&socket.value.ip()))
    });
    if let Some((other, at)) = clash {
        let what = format!("{} is taken by {other} of line {}", socket.value, log.line(*at));
        log.fault(socket.at, what, "Write each address and port once; no two servers share one.");
        return false;
    }
    taken.insert(socket.value, socket.at);
    true
}
