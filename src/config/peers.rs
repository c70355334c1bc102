//! The peers and rendezvous servers of a member's config.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::fault::{At, Log, quote};
use super::reader::Section;
use super::routes::{Claim, overlaps};
use super::schema::{PEER, RENDEZVOUS};
use super::{Source, keyfile, value};
use crate::proto::config::{Calls, Connect, Host, HostPort, Peer, Rendezvous};
use crate::proto::keys::{PresharedKey, PublicKey};

/// What no peer may claim; what is not known because it is wrong itself is left out.
pub(super) struct Own<'a> {
    pub key: Option<PublicKey>,
    pub addresses: &'a [IpNet],
}

/// Every `[[rendezvous]]`. `None` where any of them is wrong.
pub(super) fn rendezvous(root: &Section<'_, '_>, own: &Own<'_>, log: &mut Log) -> Option<Vec<Rendezvous>> {
    let mut seen: BTreeMap<HostPort, usize> = BTreeMap::new();
    let mut all = Some(Vec::new());
    for table in root.sections("rendezvous", RENDEZVOUS, log) {
        table.require("address", log);
        table.require("public_key", log);
        let address = table.text("address", log);
        let address = address.and_then(|text| log.take(text.at, "address", value::rendezvous(text.value)));
        let key = table.text("public_key", log);
        let key = key.and_then(|text| {
            log.take(text.at, "public_key", value::public_key(text.value, "the server, when it starts,"))
        });
        if let Some(address) = &address {
            note_loopback(&address.value.host, address.at, log);
            if let Some(earlier) = seen.insert(address.value.clone(), address.at) {
                let shown = value::with_port(&address.value.host, address.value.port);
                let what = format!("rendezvous server {shown} is listed twice, first in line {}", log.line(earlier));
                log.fault(address.at, what, "Remove one of both.");
            }
        }
        if let Some(key) = key.as_ref().filter(|key| Some(key.value) == own.key) {
            let remedy = "Write the key that the server prints when it starts; it has a key pair of its own.";
            log.fault(key.at, "`public_key` is this member's own", remedy);
        }
        match (address, key, &mut all) {
            (Some(address), Some(key), Some(list)) => {
                list.push(Rendezvous { address: address.value, public_key: key.value });
            }
            _ => all = None,
        }
    }
    all
}

/// Every `[[peer]]`, and what is wrong between them. `None` where any of them is wrong.
pub(super) fn read(source: &Source, root: &Section<'_, '_>, own: &Own<'_>, log: &mut Log) -> Option<Vec<Peer>> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut keys: BTreeMap<PublicKey, usize> = BTreeMap::new();
    let mut claims = Vec::new();
    let mut all = Some(Vec::new());
    let has_rendezvous = root.has("rendezvous");
    for (number, table) in root.sections("peer", PEER, log).iter().enumerate() {
        let name = peer_name(table, &mut names, log);
        let key = peer_key(table, own.key.as_ref(), &mut keys, log);
        table.require("allowed_ips", log);
        let nets = table.nets("allowed_ips", value::allowed_ip, log);
        for net in nets.iter().flatten() {
            if own.addresses.iter().any(|own| IpNet::from(own.addr()) == net.value) {
                let what = format!("`allowed_ips`: {} is this member's own address", net.value);
                log.fault(net.at, what, "Write the peer's virtual address.");
            }
            claims.push(Claim { net: net.value, peer: number, at: net.at });
        }
        let endpoint = table.text("endpoint", log);
        let endpoint =
            endpoint.map(|text| log.take(text.at, "endpoint", value::host_port(text.value, None)).map(|at| at.value));
        let names = ("preshared_key_file", "preshared_key");
        let wants_psk = table.has(names.0) || table.has(names.1);
        let psk: Option<At<PresharedKey>> = keyfile::secret(table, names, false, "p2ptund genpsk", source.base(), log);
        let words = [("both", Calls::Both), ("out", Calls::Out), ("in", Calls::In), ("none", Calls::None)];
        let calls = table.choice("calls", &words, log);
        let words = [("always", Connect::Always), ("on-demand", Connect::OnDemand)];
        let connect = table.choice("connect", &words, log);
        if !has_rendezvous && !table.has("endpoint") {
            note_unreachable(table, calls, log);
        }
        let complete = endpoint != Some(None) && wants_psk == psk.is_some();
        match (name, key, nets, complete, &mut all) {
            (Some(name), Some(public_key), Some(nets), true, Some(list)) => list.push(Peer {
                name,
                public_key,
                preshared_key: psk.map(|psk| psk.value),
                allowed_ips: nets.into_iter().map(|net| net.value).collect(),
                endpoint: endpoint.flatten(),
                calls,
                connect,
            }),
            _ => all = None,
        }
    }
    for (later, earlier) in overlaps(&claims) {
        let (what, line) = (later.net, log.line(earlier.at));
        let what = format!("`allowed_ips`: {what} overlaps {} of another peer, in line {line}", earlier.net);
        log.fault(later.at, what, "Give each address to one peer only; packets to it can't go to both.");
    }
    all
}

fn peer_name(table: &Section<'_, '_>, names: &mut BTreeMap<String, usize>, log: &mut Log) -> Option<String> {
    table.require("name", log);
    let text = table.text("name", log)?;
    let name = log.take(text.at, "name", value::peer_name(text.value))?;
    if let Some(earlier) = names.insert(name.value.clone(), name.at) {
        let what = format!("two peers are named {}, first in line {}", quote(&name.value), log.line(earlier));
        log.fault(name.at, what, "Give each peer a name of its own, or remove one of both.");
    }
    Some(name.value)
}

fn peer_key(
    table: &Section<'_, '_>,
    own: Option<&PublicKey>,
    keys: &mut BTreeMap<PublicKey, usize>,
    log: &mut Log,
) -> Option<PublicKey> {
    table.require("public_key", log);
    let text = table.text("public_key", log)?;
    let key = log.take(text.at, "public_key", value::public_key(text.value, "`p2ptund pubkey` on the peer"))?;
    if Some(&key.value) == own {
        let remedy = "Write the peer's public key, or remove the peer if it is this machine.";
        log.fault(key.at, "`public_key` is this member's own", remedy);
    }
    if let Some(earlier) = keys.insert(key.value, key.at) {
        let what = format!("the same peer twice: `public_key` stands in line {} already", log.line(earlier));
        log.fault(key.at, what, "Remove one of both, and put all its allowed_ips in the other.");
    }
    Some(key.value)
}

/// Without a rendezvous server and without an endpoint, a peer comes to us, as to a stock WireGuard server, or not at all.
fn note_unreachable(table: &Section<'_, '_>, calls: Calls, log: &mut Log) {
    let what = "this peer has no `endpoint` and there is no [[rendezvous]]";
    match calls {
        Calls::In | Calls::None => {}
        Calls::Out => log.absent(
            table.at,
            format!("{what}, so it can't be called, and calls = \"out\" forbids it to call"),
            "Write an endpoint, or a [[rendezvous]].",
        ),
        Calls::Both => log.note(
            table.at,
            format!("{what}, so it can only be waited for"),
            "Write an endpoint, or a [[rendezvous]], or calls = \"in\" if that is meant.",
        ),
    }
}

/// Notes a server at a loopback address.
pub(super) fn note_loopback(host: &Host, at: usize, log: &mut Log) {
    if let Host::Ip(address) = host
        && address.is_loopback()
    {
        log.note(at, format!("{address} is this machine itself"), "Write an address that the peers see too.");
    }
}
