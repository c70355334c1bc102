//! A mesh member's config.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{At, Log, quote};
use super::peers::Own;
use super::reader::{Section, wrong_type};
use super::schema::{DISCOVERY, INTERFACE, MEMBER, PUNCH, SERVE};
use super::server::{Taken, claim};
use super::{AUTO_MTU, CipherChoice, DEFAULT_INTERFACE, Kind, Lookout, Mapper, Mesh, Serve, Source};
use super::{keyfile, peers, reader, server, value};
use crate::proto::config::{Discovery, HostPort, MEMBER_PORT, Punch};
use crate::proto::keys::PrivateKey;

/// From what every IPv4 host must take (RFC 791) to where jumbo frames end.
const MTU: RangeInclusive<i64> = 576..=9000;
/// What every IPv6 link must carry (RFC 8200 section 5).
const MIN_IPV6_MTU: i64 = 1280;
/// Either side of the predicted port. Beyond this a port is found sooner by drawing at random.
const MAX_WINDOW: i64 = 4096;
/// A home router's whole NAT table may be 1024 entries.
const MAX_SOCKETS: i64 = 1024;
/// Fifteen times over all ports there are.
const MAX_PROBES: i64 = 1_000_000;
/// All the ports that a NAT has.
const MAX_ENTRIES: i64 = 65_536;
/// Some 80 Mbit/s: more would be an attack.
const MAX_RATE: i64 = 100_000;
const MAX_HARD_CALLS: i64 = 16;
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

pub(super) fn read(source: &Source, root: &Spanned<DeTable<'_>>, log: &mut Log) -> Option<Mesh> {
    let root = member_root(root, log)?;
    let mut taken = Taken::new();
    let interface = interface(source, &root, &mut taken, log);
    let discovery = discovery(&root, log);
    let own = Own {
        key: interface.private_key.as_ref().map(PrivateKey::public),
        addresses: interface.addresses.as_deref().unwrap_or_default(),
    };
    let rendezvous = peers::rendezvous(&root, &own, log);
    let peers = peers::read(source, &root, &own, log);
    let punch = punch(&root, log);
    let serve = match root.section("serve", SERVE, log) {
        Some(table) => server::tables(source, &table, &mut taken, log),
        None => Some(Serve::default()),
    };
    let (discovery, port_mapping) = discovery;
    Some(Mesh {
        path: source.path.clone(),
        interface: interface.name?,
        addresses: interface.addresses?,
        private_key: interface.private_key?,
        listen_port: interface.listen_port,
        mtu: interface.mtu?,
        cipher: interface.cipher,
        introduce: interface.introduce,
        discovery,
        port_mapping,
        rendezvous: rendezvous?,
        peers: peers?,
        punch,
        serve: serve?,
        notes: Vec::new(),
    })
}

/// Only what `netcheck` needs.
pub(super) fn read_lookout(_: &Source, root: &Spanned<DeTable<'_>>, log: &mut Log) -> Option<Lookout> {
    let root = member_root(root, log)?;
    let listen_port = match root.section("interface", INTERFACE, log) {
        Some(table) => listen_port(&table, log),
        None => MEMBER_PORT,
    };
    let (servers, port_mapping) = discovery(&root, log);
    if servers.is_empty() {
        log.absent(root.at, "there is no discovery server to ask", FEWER_THAN_TWO);
    }
    let punch = punch(&root, log);
    Some(Lookout { listen_port, servers, port_mapping, punch })
}

pub(super) fn summary(mesh: &Mesh) -> String {
    let routes: usize = mesh.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    format!(
        "a member: interface {}, {} peer(s) with {routes} route(s), {} discovery and {} rendezvous server(s)",
        mesh.interface,
        mesh.peers.len(),
        mesh.discovery.len(),
        mesh.rendezvous.len(),
    )
}

const FEWER_THAN_TWO: &str = "Write at least two servers at different addresses in [discovery] servers: only the difference \
                              between what two of them see tells how the NAT chooses ports.";

fn member_root<'d, 'i>(root: &'d Spanned<DeTable<'i>>, log: &mut Log) -> Option<Section<'d, 'i>> {
    if Kind::of(root.get_ref()) == Some(Kind::Server) {
        log.fault(0, "this is a server's config", "Start it with `p2ptund serve`.");
        return None;
    }
    Some(Section::new(root.get_ref(), 0, MEMBER, log))
}

/// What is `None` was wrong, and is noted; the rest still serves to check the peers.
#[derive(Default)]
struct Interface {
    name: Option<String>,
    addresses: Option<Vec<IpNet>>,
    private_key: Option<PrivateKey>,
    listen_port: u16,
    mtu: Option<u16>,
    cipher: CipherChoice,
    introduce: bool,
}

fn interface(source: &Source, root: &Section<'_, '_>, taken: &mut Taken, log: &mut Log) -> Interface {
    root.require("interface", log);
    let Some(table) = root.section("interface", INTERFACE, log) else { return Interface::default() };
    let name = match table.text("name", log) {
        Some(text) => log.take(text.at, "name", value::interface_name(text.value)).map(|name| name.value),
        None => Some(DEFAULT_INTERFACE.to_owned()),
    };
    table.require("address", log);
    let addresses = table.nets("address", value::own_address, log);
    let names = ("private_key_file", "private_key");
    let private_key: Option<At<PrivateKey>> =
        keyfile::secret(&table, names, true, "p2ptund genkey", source.base(), log);
    if table.has("private_key") && source.mode & 0o077 != 0 {
        let what = format!("the private key stands in a file that others can read (mode {:04o})", source.mode);
        log.note(table.at_key("private_key"), what, format!("Run `chmod 600 {}`.", source.path.display()));
    }
    let listen_port = listen_port(&table, log);
    if listen_port != 0 {
        for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
            let socket = SocketAddr::new(address, listen_port);
            claim(At { value: socket, at: table.at_key("listen_port") }, taken, log);
        }
    }
    let has_ipv6 = addresses.iter().flatten().any(|net| matches!(net.value, IpNet::V6(_)));
    let mtu = mtu(&table, has_ipv6, log);
    let ciphers = [("auto", CipherChoice::Auto), ("chacha20poly1305", CipherChoice::ChaCha20Poly1305)];
    let cipher = table.choice("cipher", &ciphers, log);
    let introduce = table.truth("introduce", log).unwrap_or(true);
    Interface {
        name,
        addresses: addresses.map(|nets| nets.into_iter().map(|net| net.value).collect()),
        private_key: private_key.map(|key| key.value),
        listen_port,
        mtu,
        cipher,
        introduce,
    }
}

fn listen_port(table: &Section<'_, '_>, log: &mut Log) -> u16 {
    let port = table.integer("listen_port", 0..=i64::from(u16::MAX), log);
    port.and_then(|port| u16::try_from(port.value).ok()).unwrap_or(MEMBER_PORT)
}

fn mtu(table: &Section<'_, '_>, has_ipv6: bool, log: &mut Log) -> Option<u16> {
    let Some(value) = table.value("mtu") else { return Some(AUTO_MTU) };
    match value.get_ref() {
        DeValue::String(text) if text == "auto" => Some(AUTO_MTU),
        DeValue::Integer(_) => {
            let least = if has_ipv6 { MIN_IPV6_MTU } else { *MTU.start() };
            let mtu = table.integer("mtu", least..=*MTU.end(), log)?;
            u16::try_from(mtu.value).ok()
        }
        _ => {
            wrong_type(log, value, "mtu", "a whole number or \"auto\"", "mtu = 1420, or mtu = \"auto\"");
            None
        }
    }
}

fn discovery(root: &Section<'_, '_>, log: &mut Log) -> (Vec<Discovery>, Vec<Mapper>) {
    let table = root.section("discovery", DISCOVERY, log);
    let mapping = table.as_ref().and_then(|table| port_mapping(table, log)).unwrap_or(Mapper::ALL.to_vec());
    let texts = table.as_ref().and_then(|table| table.texts("servers", log)).unwrap_or_default();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut servers = Vec::new();
    let mut hosts = BTreeSet::new();
    let mut unread = 0;
    for text in &texts {
        if let Some(earlier) = seen.insert(text.value, text.at) {
            let what = format!("{} is listed twice, first in line {}", quote(text.value), log.line(earlier));
            log.fault(text.at, what, "Remove one of both.");
            continue;
        }
        match log.take(text.at, "servers", value::discovery(text.value)) {
            Some(server) => {
                let (Discovery::Series(host)
                | Discovery::Port(HostPort { host, .. })
                | Discovery::Stun(HostPort { host, .. })) = &server.value;
                peers::note_loopback(host, text.at, log);
                hosts.insert(host.clone());
                servers.push(server.value);
            }
            None => unread += 1,
        }
    }
    let addresses = hosts.len() + unread;
    let rendezvous = root.has("rendezvous");
    if addresses == 1 || (addresses == 0 && rendezvous) {
        let at = match &table {
            Some(table) => table.at_key("servers"),
            None => root.at_key("rendezvous"),
        };
        let count = if addresses == 1 { "only one discovery address" } else { "no discovery address" };
        log.absent(at, count, FEWER_THAN_TWO);
    }
    (servers, mapping)
}

fn port_mapping(table: &Section<'_, '_>, log: &mut Log) -> Option<Vec<Mapper>> {
    const WORDS: [(&str, Mapper); 3] = [("upnp", Mapper::Upnp), ("pcp", Mapper::Pcp), ("nat-pmp", Mapper::NatPmp)];
    let mut mappers = Vec::new();
    for text in table.texts("port_mapping", log)? {
        match WORDS.iter().find(|(word, _)| *word == text.value) {
            Some((word, mapper)) if mappers.contains(mapper) => {
                log.fault(text.at, format!("`port_mapping` has {} twice", quote(word)), "Remove one of both.");
            }
            Some((_, mapper)) => mappers.push(*mapper),
            None => reader::unknown_word(&text, "port_mapping", &WORDS.map(|(word, _)| word), log),
        }
    }
    Some(mappers)
}

fn punch(root: &Section<'_, '_>, log: &mut Log) -> Punch {
    let default = Punch::default();
    let Some(table) = root.section("punch", PUNCH, log) else { return default };
    let window = table.integers("window", -MAX_WINDOW..=MAX_WINDOW, log);
    let window = window.and_then(|window| match window.value[..] {
        [low, high] if low <= 0 && high >= 0 => Some((i32::try_from(low).ok()?, i32::try_from(high).ok()?)),
        _ => {
            let remedy = "Write two numbers, how far below (0 or less) and above (0 or more): window = [-16, 32].";
            log.fault(window.at, "`window` is not a pair around 0", remedy);
            None
        }
    });
    let number = |name, most, default: u32, log: &mut Log| {
        table.integer(name, 1..=most, log).and_then(|n| u32::try_from(n.value).ok()).unwrap_or(default)
    };
    let sockets = number("sockets", MAX_SOCKETS, default.sockets, log);
    let probes = number("probes", MAX_PROBES, default.probes, log);
    let entries = number("entries", MAX_ENTRIES, default.entries, log);
    let rate = table.integer("rate", 1..=MAX_RATE, log).and_then(|n| u32::try_from(n.value).ok());
    let hard_calls = number("hard_calls", MAX_HARD_CALLS, default.hard_calls, log);
    let timeout = table
        .text("timeout", log)
        .and_then(|text| log.take(text.at, "timeout", value::duration(text.value, *TIMEOUT.start(), *TIMEOUT.end())));
    // What was written and is wrong has been noted, so a default in its place never comes to be used.
    Punch {
        window: window.unwrap_or(default.window),
        sockets,
        probes,
        entries,
        rate,
        hard_calls,
        timeout: timeout.map_or(default.timeout, |timeout| timeout.value),
    }
}
