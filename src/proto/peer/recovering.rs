//! What follows a connection: a path that stopped answering, another network, and a nearer path.
//!
//! ```text
//! doubted   the servers are told where we are now: our own NAT may have forgotten them too, and then no call gets in
//! suspect   a call is placed, through the server, beside the path, which stays in use until the call has found another
//! lost      there is no path; payload waits for the call
//! ```
//!
//! A member that moved suspects at once every path that its old addresses may have carried. One that got another address looks
//! for nearer paths beside those in use, by candidates alone. What is on its way by a path that was left still arrives: its
//! socket lingers.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Call, Peer, Purpose};
use crate::proto::context::Local;
use crate::proto::{Instant, SocketId};

impl Peer {
    /// The path in use did not answer for a while.
    pub(super) fn on_suspect(&mut self, now: Instant, local: &mut Local) {
        if !std::mem::replace(&mut self.broke, true) {
            self.silence = self.paths.silence();
        }
        if !self.config.calls.may_call() || local.connected_server().is_none() {
            // The peer can call, or the path is lost and everything else is tried.
            return;
        }
        let idle = match &self.call {
            Call::Idle | Call::Resting { .. } | Call::Surveying { purpose: Purpose::Better, .. } => true,
            Call::Calling(calling) => calling.beside,
            // What it found is what is suspect now.
            Call::Punching(punching) => punching.punch.is_stopped() || punching.parties.beside,
            Call::Knocking { .. } | Call::Surveying { .. } => false,
        };
        if idle {
            local.step(&self.config.name, "the path is silent: calls beside it".to_owned());
            self.end_call(local, None);
            self.call_began = None;
            self.absent = false;
            self.begin_call(now, local);
        }
    }

    /// How long a path may be silent was learned anew.
    pub fn handle_keepalive(&mut self, now: Instant, interval: Duration) {
        if self.paths.current().is_some() {
            self.tunnel.set_keepalive(now, Some(interval));
        }
    }

    /// Another cipher may have been allowed or forbidden: a session that has the old one is replaced at once.
    pub fn handle_cipher(&mut self, now: Instant, local: &mut Local) {
        self.tunnel.set_aes(now, local.aes);
        self.drive(now, local);
    }

    /// A call for a nearer path, beside the one in use.
    pub(super) fn look_for_better(&mut self, now: Instant, local: &mut Local) {
        let can_call = self.config.calls.may_call() && local.connected_server().is_some();
        if can_call && self.is_member && self.paths.can_improve() {
            local.step(&self.config.name, "looks for a nearer path".to_owned());
            self.claims_hard = false;
            self.call = Call::Surveying { socket: SocketId::MAIN_V4, purpose: Purpose::Better };
            self.drive_call(now, local);
        }
    }

    /// Closes the sockets of paths that were left long enough ago.
    pub(super) fn close_lingering(&mut self, now: Instant, local: &mut Local) {
        for (socket, _) in self.lingering.extract_if(.., |(_, until)| now >= *until) {
            local.close_socket(socket);
        }
    }

    /// Our own addresses changed, or the route to the rest.
    pub fn handle_network(&mut self, now: Instant, local: &mut Local, change: &Change) {
        if let Some(path) = self.paths.current() {
            self.wants_better |= change.is_more;
            if self.is_member && change.may_break(path.way.remote) {
                // It may well go on from the new address, so it is asked; the call does not wait for that.
                self.paths.suspect();
                self.mtu.stop();
            }
        }
        self.hurry(now, local);
    }
}

/// What became of our own addresses.
pub struct Change {
    /// In which families there are fewer of them, or other ones.
    gone_v4: bool,
    gone_v6: bool,
    /// There are some that were not there before.
    is_more: bool,
}

impl Change {
    pub fn between(old: &[IpNet], new: &[IpNet]) -> Self {
        let gone = |is_v4: bool| old.iter().any(|net| net.addr().is_ipv4() == is_v4 && !new.contains(net));
        let is_more = new.iter().any(|net| !old.contains(net));
        Self { gone_v4: gone(true), gone_v6: gone(false), is_more }
    }

    /// Whether a path to `remote` may have gone by what is gone. Where no address changed, the default route did.
    fn may_break(&self, remote: SocketAddr) -> bool {
        let gone = if remote.is_ipv4() { self.gone_v4 } else { self.gone_v6 };
        gone || (!self.is_more && !self.gone_v4 && !self.gone_v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaks(old: &[&str], new: &[&str], remote: &str) -> bool {
        let nets = |all: &[&str]| all.iter().map(|text| text.parse().expect("is a prefix")).collect::<Vec<IpNet>>();
        Change::between(&nets(old), &nets(new)).may_break(remote.parse().expect("is an address"))
    }

    #[test]
    fn only_a_loss_in_its_own_family_or_another_route_may_break_a_path() {
        let (v4, v6) = ("203.0.113.5:4275", "[2001:db8::5]:4275");
        assert!(breaks(&["192.168.1.2/24"], &["10.0.0.2/24"], v4));
        assert!(breaks(&["192.168.1.2/24"], &[], v4));
        assert!(breaks(&["192.168.1.2/24"], &["192.168.1.2/24"], v4), "the route changed");
        assert!(!breaks(&["192.168.1.2/24"], &["192.168.1.2/24", "10.0.0.2/24"], v4));
        assert!(
            !breaks(&["192.168.1.2/24", "2001:db8:1::2/64"], &["192.168.1.2/24"], v4),
            "a short-lived IPv6 address"
        );
        assert!(breaks(&["192.168.1.2/24", "2001:db8:1::2/64"], &["192.168.1.2/24"], v6));
    }
}
