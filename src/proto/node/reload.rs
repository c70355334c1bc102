//! A changed config, taken over while the member runs.
//!
//! ```text
//! new config ─► peers that are gone, or have another preshared key, are removed
//!            ─► peers that stay are changed, new ones added; then servers, then discovery
//! ```
//!
//! The shell refuses what takes a restart before any of this is done, so nothing here can fail half-way.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Action, Config, Instant, Node, Order, PeerId, PublicKey, config, new_discovery, rendezvous};

impl Node {
    /// Takes over a changed config. Peers that did not change keep their tunnels. The private key, the interface's name and
    /// the listen port must be the ones of before: the shell refuses such a reload as a whole.
    pub fn handle_config(&mut self, now: Instant, config: Config) {
        let discovery_changed = config.discovery != self.config.discovery;
        let servers_changed = config.rendezvous != self.config.rendezvous;
        self.local.inside = config.addresses.iter().map(ipnet::IpNet::trunc).collect();
        self.local.punch = config.punch;
        self.local.aes = config.aes;
        let wanted: BTreeMap<PublicKey, config::Peer> =
            config.peers.iter().map(|peer| (peer.public_key, peer.clone())).collect();
        let gone: Vec<PeerId> = self
            .peers
            .values()
            .filter(|peer| {
                // A changed preshared key is another tunnel.
                wanted.get(&peer.config.public_key).is_none_or(|new| new.preshared_key != peer.config.preshared_key)
            })
            .map(|peer| peer.id)
            .collect();
        for id in gone {
            self.remove_peer(id);
        }
        for (key, peer) in wanted {
            match self.by_key.get(&key).copied() {
                Some(id) => self.change_peer(now, id, peer, config.mtu),
                None => self.add_peer(now, peer),
            }
        }
        self.config = config;
        if let Some(orders) = &mut self.local.orders {
            orders.push_back(Order::Routes(Arc::new(self.routes.clone())));
        }
        self.each_peer(|peer, local| peer.handle_cipher(now, local));
        if servers_changed {
            let kept = |new: &config::Rendezvous, old: &mut Vec<rendezvous::client::Client>| {
                let at = old.iter().position(|client| client.server() == new)?;
                Some(old.swap_remove(at))
            };
            let mut old = std::mem::take(&mut self.local.servers);
            for server in &self.config.rendezvous {
                let client = kept(server, &mut old)
                    .unwrap_or_else(|| rendezvous::client::Client::new(now, &self.local.identity, server.clone()));
                self.local.servers.push(client);
            }
            self.keepalive = None;
        }
        if discovery_changed {
            self.local.discovery.close();
            self.local.lifetime.close();
            self.settle(now);
            self.local.discovery = new_discovery(&self.config, &mut self.local.rng);
            self.on_network_changed(now);
            self.each_peer(|peer, local| peer.hurry(now, local));
        }
        self.stirred = true;
        self.handle_timeout(now);
    }

    fn remove_peer(&mut self, id: PeerId) {
        let Some(mut peer) = self.peers.remove(&id) else { return };
        peer.close(&mut self.local);
        self.by_key.remove(&peer.config.public_key);
        self.local.introducers.remove(&id);
        self.routes.remove(id);
        if let Some(due) = peer.scheduled {
            self.deadlines.remove(&(due, id));
        }
        self.local.hard_calls.remove(&id);
        self.local.note_punching(id, false);
    }

    fn change_peer(&mut self, now: Instant, id: PeerId, config: config::Peer, mtu: u16) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.handle_mtu(mtu);
        if peer.config == config {
            return;
        }
        self.routes.remove(id);
        for prefix in &config.allowed_ips {
            self.routes.insert(*prefix, id);
        }
        peer.reconfigure(now, config);
        if let Some(name) = peer.endpoint_name() {
            self.local.act(Action::Resolve { name: name.to_owned() });
        }
        self.schedule(id);
    }
}
