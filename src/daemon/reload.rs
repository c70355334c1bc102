//! What a changed config changes: refused as a whole where a running daemon can't take it over, else the least that has to
//! be done, so that what did not change is not touched.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::config::{Mesh, Serve};
use crate::proto::config::Peer;
use crate::proto::keys::PublicKey;

/// What is to be done besides telling the core, which finds its own difference.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    /// Addresses, MTU or the peers' routes.
    pub links: bool,
    pub port_mapping: bool,
    pub serve: bool,
    /// For the user, one line.
    pub summary: String,
}

/// Compares the running config with the one just read, which has passed the same check as at the start.
///
/// # Errors
/// One sentence for each thing that only a restart can change.
pub fn changes(old: &Mesh, new: &Mesh) -> Result<Changes, Vec<String>> {
    let mut refusals = Vec::new();
    let mut fixed = |key: &str, same: bool| {
        if !same {
            refusals.push(format!("`{key}` changed, which takes a restart: `p2ptund down`, then `p2ptund up`"));
        }
    };
    fixed("name", old.interface == new.interface);
    fixed("listen_port", old.listen_port == new.listen_port);
    fixed("private_key", old.private_key.public() == new.private_key.public());
    if !refusals.is_empty() {
        return Err(refusals);
    }

    let mut words = peer_words(&old.peers, &new.peers);
    let mut changed = |what: &str, differs: bool| {
        if differs {
            words.push(format!("{what} changed"));
        }
        differs
    };
    let addresses = changed("addresses", old.addresses != new.addresses);
    let mtu = changed("mtu", old.mtu != new.mtu);
    changed("cipher", old.cipher != new.cipher);
    changed("discovery servers", old.discovery != new.discovery);
    changed("rendezvous servers", old.rendezvous != new.rendezvous);
    changed("punch", old.punch != new.punch);
    let port_mapping = changed("port_mapping", old.port_mapping != new.port_mapping);
    let serve = changed("served tables", !same_serve(&old.serve, &new.serve));
    let summary = if words.is_empty() { "nothing changed".to_owned() } else { words.join(", ") };
    Ok(Changes { links: addresses || mtu || routes(old) != routes(new), port_mapping, serve, summary })
}

/// What the kernel is to route into the device: every peer's `allowed_ips`, each once.
pub fn routes(mesh: &Mesh) -> BTreeSet<IpNet> {
    mesh.peers.iter().flat_map(|peer| &peer.allowed_ips).map(IpNet::trunc).collect()
}

fn peer_words(old: &[Peer], new: &[Peer]) -> Vec<String> {
    let by_key = |peers: &[Peer]| -> BTreeMap<PublicKey, Peer> {
        peers.iter().map(|peer| (peer.public_key, peer.clone())).collect()
    };
    let (old, new) = (by_key(old), by_key(new));
    let added = new.keys().filter(|key| !old.contains_key(key)).count();
    let removed = old.keys().filter(|key| !new.contains_key(key)).count();
    let altered = new.iter().filter(|(key, peer)| old.get(key).is_some_and(|before| before != *peer)).count();
    [(added, "added"), (removed, "removed"), (altered, "changed")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} peer{} {what}", if count == 1 { "" } else { "s" }))
        .collect()
}

fn same_serve(old: &Serve, new: &Serve) -> bool {
    let rendezvous = match (&old.rendezvous, &new.rendezvous) {
        (Some(old), Some(new)) => {
            old.listen == new.listen && old.allow == new.allow && old.private_key.public() == new.private_key.public()
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    rendezvous && old.discovery == new.discovery
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const OWN: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const OTHER: &str = "GN8ylSDVlZNkMCVpLEiLWkhcxUhSGVAzBMRNEiBHxXM=";
    const BERLIN: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const PARIS: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

    /// A config in which each change is one replaced text.
    fn text() -> String {
        format!(
            r#"
[interface]
name = "p2p0"
address = ["10.77.0.1/24"]
private_key = "{OWN}"
listen_port = 4275
mtu = 1420

[discovery]
servers = ["198.51.100.7", "203.0.113.9"]
port_mapping = ["upnp"]

[[peer]]
name = "berlin"
public_key = "{BERLIN}"
allowed_ips = ["10.77.0.2/32", "192.168.20.0/24"]
"#
        )
    }

    fn mesh(text: &str) -> Mesh {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions set");
        Mesh::load(Path::new(&path)).expect("a right config")
    }

    fn after(from: &str, to: &str) -> Result<Changes, Vec<String>> {
        let new = text().replace(from, to);
        assert_ne!(new, text());
        changes(&mesh(&text()), &mesh(&new))
    }

    #[test]
    fn an_unchanged_config_changes_nothing() {
        let same = changes(&mesh(&text()), &mesh(&text())).expect("taken");
        assert_eq!(same, Changes { summary: "nothing changed".into(), ..Changes::default() });
    }

    #[test]
    fn name_port_and_private_key_are_refused_together_with_the_word_restart() {
        let new = text().replace("p2p0", "p2p1").replace("4275", "4276").replace(OWN, OTHER);
        let refusals = changes(&mesh(&text()), &mesh(&new)).expect_err("refused");
        assert_eq!(refusals.len(), 3);
        assert!(refusals.iter().all(|sentence| sentence.contains("restart")), "{refusals:?}");
    }

    #[test]
    fn a_new_peer_is_new_routes_too() {
        let peer =
            format!("\n[[peer]]\nname = \"paris\"\npublic_key = \"{PARIS}\"\nallowed_ips = [\"10.77.0.3/32\"]\n");
        let new = changes(&mesh(&text()), &mesh(&(text() + &peer))).expect("taken");
        assert_eq!(new, Changes { links: true, summary: "1 peer added".into(), ..Changes::default() });
    }

    #[test]
    fn a_peer_with_another_endpoint_leaves_the_links_alone() {
        let new = after("name = \"berlin\"", "name = \"berlin\"\nendpoint = \"192.0.2.7:4275\"").expect("taken");
        assert_eq!(new, Changes { summary: "1 peer changed".into(), ..Changes::default() });
    }

    #[test]
    fn addresses_and_mtu_are_the_links_and_port_mapping_is_not() {
        assert!(after("10.77.0.1/24", "10.77.0.9/24").expect("taken").links);
        assert!(after("mtu = 1420", "mtu = 1380").expect("taken").links);
        let mapping = after("[\"upnp\"]", "[]").expect("taken");
        assert!(mapping.port_mapping && !mapping.links && !mapping.serve);
        assert_eq!(mapping.summary, "port_mapping changed");
    }

    #[test]
    fn served_tables_are_restarted_only_when_they_changed() {
        let serve = "\n[serve.discovery]\nlisten = [\"127.0.0.1:4270\"]\n";
        let with = text() + serve;
        assert!(changes(&mesh(&text()), &mesh(&with)).expect("taken").serve);
        assert!(!changes(&mesh(&with), &mesh(&with.replace("mtu = 1420", "mtu = 1400"))).expect("taken").serve);
    }
}
