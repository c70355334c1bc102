//! A peer's packets and handshakes: sealed and opened by its tunnel, on their way by its paths.
//!
//! ```text
//! out   handle_packet ─► tunnel seals ─► the path in use; kept where there is none: flush, later
//! in    handle_transport ─► tunnel opens ─► note_authentic: by the path in use? a new address is challenged first
//! ```
//!
//! This is the way packet by packet; what lanes carry is told by [`super::lanes`].

use std::net::SocketAddr;

use super::{Call, Peer};
use crate::proto::action::Drop;
use crate::proto::context::Local;
use crate::proto::noise::Received;
use crate::proto::path::{Goal, Way};
use crate::proto::snapshot::Method;
use crate::proto::tunnel::timers::REKEY_TIMEOUT;
use crate::proto::tunnel::{Opened, Payload};
use crate::proto::{Instant, Packet};

impl Peer {
    /// An inner packet for this peer. `Some`: it now is a datagram, to go there.
    pub fn handle_packet(&mut self, now: Instant, local: &mut Local, packet: &mut Packet) -> Option<Way> {
        self.note_inner_sent(packet.bytes().len());
        let before = self.tunnel.last_sent();
        let sealed = match self.paths.current() {
            Some(path) => self.tunnel.seal(now, packet).then_some(path.way),
            None => match self.hope(now) {
                Some(way) => self.tunnel.seal(now, packet).then_some(way),
                None => {
                    self.tunnel.hold(packet);
                    None
                }
            },
        };
        match sealed {
            Some(way) => {
                self.note_payload_sent();
                self.paths.note_sent(now, before);
                Some(way)
            }
            None => {
                self.wanted = true;
                self.drive(now, local);
                None
            }
        }
    }

    /// Transport data on one of our sessions. `Some`: an inner packet, whose source is yet to be checked.
    pub fn handle_transport(
        &mut self,
        now: Instant,
        local: &mut Local,
        way: Way,
        packet: &mut Packet,
    ) -> Result<Option<crate::proto::ip::Header>, Drop> {
        let opened = self.tunnel.open(now, packet);
        // A packet that was authentic, whatever is inside it, says where the peer is.
        if matches!(opened, Ok(_) | Err(Drop::NoRoute)) {
            self.note_authentic(now, local, way);
        }
        if let Ok(Opened { payload: Payload::Data(_), .. }) = opened {
            self.paths.note_payload(now, way);
        }
        self.drive(now, local);
        match opened?.payload {
            Payload::Keepalive => Ok(None),
            Payload::Data(header) => Ok(Some(header)),
        }
    }

    pub(super) fn note_authentic(&mut self, now: Instant, local: &mut Local, way: Way) {
        if self.paths.is_current(way) {
            self.paths.note_heard(now, way);
            return;
        }
        if self.is_settled() && self.paths.was_left(now, way) {
            return;
        }
        if self.is_punching() {
            // The first packet after the punch may be payload.
            let method = self.punch_method(way);
            return self.hear(now, local, way, method, false);
        }
        let confirmed = self.handshake_from.take_if(|from| *from == way).is_some();
        if self.paths.current().is_none() || (confirmed && !self.is_member) {
            // It came on a session whose handshake went to and fro here, or there is nothing to lose.
            let method = if self.is_endpoint(way.remote) { Method::Endpoint } else { Method::Roamed };
            self.adopt(now, local, way, method, confirmed);
        } else if self.is_member {
            self.challenge(now, local, way, Goal::Move(Method::Roamed));
        } else if self.followed.is_none_or(|(to, at)| to != way || now.since(at) >= REKEY_TIMEOUT) {
            // Stock WireGuard answers no probe, but it answers a handshake; the answer proves the new address. Another
            // handshake before that one is answered would undo it.
            self.followed = Some((way, now));
            self.initiate(now, local, way);
        }
    }

    pub(super) fn is_endpoint(&self, address: SocketAddr) -> bool {
        self.endpoints.contains(&address)
    }

    /// A handshake initiation that came by `way` itself, not in a call.
    pub fn handle_initiation(
        &mut self,
        now: Instant,
        local: &mut Local,
        way: Way,
        received: Received,
    ) -> Result<(), Drop> {
        let index = local.new_index(self.id);
        match self.tunnel.handle_initiation(now, received, index, &mut local.rng) {
            Ok((response, _)) => {
                self.handshake_from = Some(way);
                local.send(way, response.to_vec());
                self.drive(now, local);
                Ok(())
            }
            Err(reason) => {
                local.indices.remove(&index);
                Err(reason)
            }
        }
    }

    /// A handshake response that came by `way`.
    pub fn handle_response(
        &mut self,
        now: Instant,
        local: &mut Local,
        way: Way,
        index: u32,
        message: &[u8],
    ) -> Result<(), Drop> {
        if matches!(&self.call, Call::Calling(calling) if calling.index == index) {
            // The answer to a call comes through the server, sealed: a server that sends its half of it from elsewhere lies.
            return Err(Drop::Unknown);
        }
        self.tunnel.handle_response(now, index, message)?;
        if self.paths.is_current(way) {
            self.paths.note_heard(now, way);
        } else {
            let method = if self.is_endpoint(way.remote) { Method::Endpoint } else { Method::Roamed };
            self.adopt(now, local, way, method, true);
        }
        self.drive(now, local);
        Ok(())
    }

    /// Sends what waited for a session and a path.
    pub(super) fn flush(&mut self, now: Instant, local: &mut Local) {
        let before = self.tunnel.last_sent();
        let mut sent = false;
        while let Some(way) = self.way().or_else(|| self.hope(now))
            && let Some(mut packet) = self.tunnel.poll_queued(now)
        {
            if self.tunnel.seal(now, &mut packet) {
                local.send_packet(way, &packet);
                self.note_payload_sent();
                sent = true;
            }
        }
        if sent {
            self.paths.note_sent(now, before);
        }
    }

    pub(super) fn send_keepalive(&mut self, now: Instant, local: &mut Local) {
        let Some(way) = self.way() else { return };
        let mut packet = Packet::with_capacity(0);
        // Where the session is too old, this raises the handshake that makes a new one.
        if self.tunnel.seal(now, &mut packet) {
            local.send_packet(way, &packet);
        }
    }

    /// Sends a handshake initiation by `way`.
    pub(super) fn initiate(&mut self, now: Instant, local: &mut Local, way: Way) {
        let index = local.new_index(self.id);
        let wall = local.wall(now);
        let (message, _) = self.tunnel.start_handshake(now, wall, index, &mut local.rng);
        local.send(way, message.to_vec());
    }
}
