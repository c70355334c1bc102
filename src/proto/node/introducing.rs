//! A member's part in introductions: it passes on for its peers, takes what is passed to it, and knows whom it can ask
//! ([`crate::proto::introduction`]).

use super::Node;
use crate::proto::Instant;
use crate::proto::action::Drop;
use crate::proto::context::PeerId;
use crate::proto::introduction::{IN_ALL, Introducer, Introduction, Via};
use crate::proto::keys::PublicKey;
use crate::proto::path::Way;

impl Node {
    /// MESSAGE_CONTROL from peer `id`.
    pub(super) fn handle_control(&mut self, now: Instant, way: Way, id: PeerId, datagram: &[u8]) -> Result<(), Drop> {
        let peer = self.peers.get_mut(&id).ok_or(Drop::Unknown)?;
        let word = peer.handle_control(now, &mut self.local, way, datagram);
        self.schedule(id);
        match word? {
            Introduction::Forward { to, passed } => self.introduce(now, id, to, passed),
            Introduction::Deliver { from, delay, passed } => {
                // Nobody introduces itself.
                let other = self.by_key.get(&from).copied().filter(|other| *other != id).ok_or(Drop::Unauthentic)?;
                let via = Via::Member { id, delay };
                self.with_peer(other, |peer, local| peer.handle_passed(now, local, via, &passed))
            }
            Introduction::Absent { to } => {
                let other = self.by_key.get(&to).copied().ok_or(Drop::Unknown)?;
                let via = Via::Member { id, delay: std::time::Duration::ZERO };
                self.with_peer(other, |peer, local| {
                    peer.handle_absent(now, local, via, false);
                    Ok(())
                })
            }
        }
    }

    /// Passes to one peer what another gave for it.
    fn introduce(&mut self, now: Instant, from: PeerId, to: PublicKey, passed: Vec<u8>) -> Result<(), Drop> {
        if !self.introductions.take(now, IN_ALL) {
            return Err(Drop::Overload);
        }
        let giver = self.peers.get(&from).ok_or(Drop::Unknown)?;
        let delay = giver.standing().and_then(|standing| standing.rtt).unwrap_or_default();
        let deliver = Introduction::Deliver { from: giver.config.public_key, delay, passed };
        let target = self.by_key.get(&to).copied().filter(|target| *target != from && self.config.introduce);
        if target.is_some_and(|target| self.send_control(now, target, &deliver)) {
            return Ok(());
        }
        self.send_control(now, from, &Introduction::Absent { to });
        Ok(())
    }

    fn send_control(&mut self, now: Instant, id: PeerId, word: &Introduction) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let sent = peer.send_control(now, &mut self.local, word);
        self.schedule(id);
        sent
    }

    /// Gives introducers what calls want passed.
    pub(super) fn run_errands(&mut self, now: Instant) {
        while let Some(errand) = self.local.errands.pop_front() {
            let word = Introduction::Forward { to: errand.to, passed: errand.passed };
            self.send_control(now, errand.introducer, &word);
        }
    }

    /// Keeps the list of those that can introduce us.
    pub(super) fn note_standing(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let standing = peer.standing();
        if peer.listed == standing {
            return;
        }
        // A call may have waited for just that.
        self.stirred |= peer.listed.is_none_or(|before| before.seen.is_none());
        peer.listed = standing;
        match standing {
            Some(standing) => {
                let name = peer.config.name.clone();
                self.local.introducers.insert(id, Introducer { name, standing });
            }
            None => {
                self.local.introducers.remove(&id);
            }
        }
    }
}
