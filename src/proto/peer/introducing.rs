//! What goes between us and a connected peer so that it introduces us to others, or others to us
//! ([`crate::proto::introduction`]).

use super::{Call, Peer, words};
use crate::proto::Instant;
use crate::proto::action::Drop;
use crate::proto::context::Local;
use crate::proto::introduction::{Errand, Introduction, PER_PEER, Standing};
use crate::proto::path::Way;
use crate::proto::wire::{Dudp, HEADER_LEN};

impl Peer {
    /// MESSAGE_CONTROL under one of our sessions.
    pub fn handle_control(
        &mut self,
        now: Instant,
        local: &mut Local,
        way: Way,
        datagram: &[u8],
    ) -> Result<Introduction, Drop> {
        let body = self.tunnel.open_control(now, HEADER_LEN, datagram);
        if body.is_ok() {
            self.note_member();
            self.note_authentic(now, local, way);
        }
        self.drive(now, local);
        let body = body?;
        if !self.introductions.take(now, PER_PEER) {
            return Err(Drop::Overload);
        }
        Introduction::parse(&body).ok_or(Drop::Malformed)
    }

    /// Sends one to the peer; `false` where it is not connected, or speaks WireGuard alone.
    pub fn send_control(&mut self, now: Instant, local: &mut Local, word: &Introduction) -> bool {
        let Some(way) = self.way().filter(|_| self.is_member) else { return false };
        let before = self.tunnel.last_sent();
        let message = self.tunnel.seal_control(now, &Dudp::MessageControl.header(), &word.encode());
        if let Some(message) = &message {
            local.send(way, message.clone());
            self.paths.note_sent(now, before);
        }
        self.drive(now, local);
        message.is_some()
    }

    /// Whether it can introduce us to others, and how it stands.
    pub fn standing(&self) -> Option<Standing> {
        // A session that is too old shows when something is to be sealed.
        let can = self.is_member && self.paths.current().is_some() && self.tunnel.current_index().is_some();
        can.then(|| Standing { rtt: self.paths.rtt(), seen: self.seen })
    }

    /// Gives the call that is out to introducers.
    pub(super) fn ask_introducers(&mut self, local: &mut Local) {
        let Call::Calling(calling) = &mut self.call else { return };
        let introducers = calling.passers.ask(&local.introducers, self.id);
        if introducers.is_empty() {
            return;
        }
        let text = format!("calling through {}", words::names(local, &introducers));
        for introducer in introducers {
            let errand = Errand { introducer, to: self.config.public_key, passed: calling.passed.clone() };
            local.errands.push_back(errand);
        }
        local.step(&self.config.name, text);
    }
}
