//! A peer's path is sounded: which one, when, and what follows from what it carries ([`crate::proto::mtu`]).

use rand_chacha::rand_core::RngCore;

use super::Peer;
use crate::proto::Instant;
use crate::proto::context::Local;
use crate::proto::mtu::{Sounding, headers};
use crate::proto::path::Way;
use crate::proto::probe::encode_sounding;
use crate::proto::wire::Dudp;

impl Peer {
    /// The longest inner packet that is to go to this peer; what is longer is for [`super::super::oversize`].
    pub fn inner_limit(&self) -> u16 {
        self.mtu.inner_limit()
    }

    /// Whether an inner packet of `len` bytes, which the interface let pass, is longer than the path carries.
    pub fn is_oversize(&self, len: usize) -> bool {
        self.mtu.is_narrow() && len > usize::from(self.mtu.inner_limit())
    }

    /// An inner packet of `len` bytes was sent to this peer; of several, the longest.
    pub fn note_inner_sent(&mut self, len: usize) {
        self.mtu.note_sent(len);
    }

    /// The interface's MTU is another.
    pub fn handle_mtu(&mut self, mtu: u16) {
        self.mtu.set_most(mtu);
        self.tunnel.set_mtu(self.mtu.inner_limit());
    }

    /// Sounds the path in use, once it is settled on.
    pub(super) fn drive_soundings(&mut self, now: Instant, local: &mut Local) {
        match self.paths.current() {
            None => self.mtu.stop(),
            Some(path) if !self.mtu.is_on(path.way) => {
                let is_settled = self.paths.is_proved() && !self.is_punching();
                if self.is_member && is_settled && self.tunnel.is_established(now) {
                    self.mtu.begin(now, path.way);
                }
            }
            Some(_) => {}
        }
        if self.mtu.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        if let Some(way) = self.way() {
            for sounding in self.mtu.handle_timeout(now, self.paths.rtt(), || local.rng.next_u64()) {
                self.sound(now, local, way, sounding);
            }
        }
        // Padding must not make of a packet that fits one that does not.
        self.tunnel.set_mtu(self.mtu.inner_limit());
    }

    fn sound(&mut self, now: Instant, local: &mut Local, way: Way, sounding: Sounding) {
        let Some(index) = self.probe_index() else { return };
        let datagram = sounding.len - headers(way.remote.is_ipv6());
        let body = encode_sounding(sounding.token, datagram.into());
        if let Some(payload) = self.tunnel.seal_probe(now, index, &Dudp::Ack.header(), &body) {
            local.send_whole(way, payload);
        }
    }
}
