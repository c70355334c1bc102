//! What a tunnel does when time passes, and what sets its timers: WireGuard's section 6, event by event.

use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::timers::{KEEPALIVE_TIMEOUT, MAX_JITTER_MS, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, Timer};
use super::{Tunnel, TunnelEvent};
use crate::proto::packet::Packet;
use crate::proto::time::Instant;

impl Tunnel {
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Retry => self.on_unanswered(now),
                Timer::PassiveKeepalive => self.events.push_back(TunnelEvent::WantKeepalive),
                Timer::Silence => self.want_handshake(now),
                Timer::Forget => self.forget_keys(),
                Timer::PersistentKeepalive => {
                    if let Some(interval) = self.keepalive {
                        // Set again here, for nobody need send it.
                        self.timers.set(timer, now + interval);
                        self.events.push_back(TunnelEvent::WantKeepalive);
                    }
                }
            }
        }
    }

    pub(super) fn on_unanswered(&mut self, now: Instant) {
        let since = *self.wanted_since.get_or_insert(now);
        if now.since(since) < REKEY_ATTEMPT_TIME {
            self.timers.set(Timer::Retry, now + REKEY_TIMEOUT + self.jitter);
            self.events.push_back(TunnelEvent::WantHandshake { retry: true });
            return;
        }
        self.wanted_since = None;
        self.forget_initiation();
        self.queue.clear();
        self.timers.stop(Timer::PassiveKeepalive);
        self.events.push_back(TunnelEvent::HandshakeExpired);
    }

    pub(super) fn on_sent(&mut self, now: Instant, len: usize) {
        self.tx_bytes += len as u64;
        self.last_sent = Some(now);
        self.timers.stop(Timer::PassiveKeepalive);
        if let Some(interval) = self.keepalive {
            self.timers.set(Timer::PersistentKeepalive, now + interval);
        }
    }

    pub(super) fn on_sealed(&mut self, now: Instant, is_data: bool, len: usize) {
        self.on_sent(now, len);
        if is_data {
            self.timers.begin(Timer::Silence, now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter);
        }
        let limits = self.limits;
        let largest = if self.mtu == 0 { usize::MAX } else { self.mtu };
        if self.slots.current_ref().is_some_and(|session| limits.wants_rekey_on_send(session, now, largest)) {
            self.want_handshake(now);
        }
    }

    pub(super) fn on_unsealed(&mut self, now: Instant, data: Option<&Packet>) {
        if let Some(packet) = data {
            self.hold(packet);
            // Somebody wants the peer now, so the 90 s begin now (whitepaper section 6.4).
            if let Some(since) = &mut self.wanted_since {
                *since = now;
            }
        }
        self.want_handshake(now);
    }

    pub(super) fn on_received(&mut self, now: Instant, len: usize) {
        self.rx_bytes += len as u64;
        self.last_received = Some(now);
        self.timers.stop(Timer::Silence);
    }

    /// A packet or control message of the session with local index `index` was opened.
    pub(super) fn on_authentic(&mut self, now: Instant, index: u32) {
        self.confirm(now, index);
        let limits = self.limits;
        if self.slots.current_ref().is_some_and(|session| limits.wants_rekey_on_receive(session, now)) {
            self.want_handshake(now);
        }
    }

    pub(super) fn on_data_received(&mut self, now: Instant) {
        self.timers.begin(Timer::PassiveKeepalive, now + KEEPALIVE_TIMEOUT);
    }

    pub(super) fn confirm(&mut self, now: Instant, index: u32) {
        if let Some(gone) = self.slots.confirm(index) {
            self.retire(gone);
            self.on_established(now, false, None);
        }
    }

    pub(super) fn on_established(&mut self, now: Instant, initiator: bool, handshake_rtt: Option<Duration>) {
        self.wanted_since = None;
        self.timers.stop(Timer::Retry);
        self.last_handshake = Some(now);
        self.events.push_back(TunnelEvent::Established { initiator, handshake_rtt });
    }

    pub(super) fn want_handshake(&mut self, now: Instant) {
        if self.wanted_since.is_none() {
            self.wanted_since = Some(now);
            self.timers.set(Timer::Retry, now + REKEY_TIMEOUT + self.jitter);
            self.events.push_back(TunnelEvent::WantHandshake { retry: false });
        }
    }

    pub(super) fn forget_keys(&mut self) {
        let slots = std::mem::take(&mut self.slots);
        for index in slots.indices() {
            self.retire(Some(index));
        }
        // An initiation that is being retried is younger than these keys, and has its own end.
        if self.wanted_since.is_none() {
            self.forget_initiation();
        }
    }

    pub(super) fn forget_initiation(&mut self) {
        let gone = self.initiation.take().map(|initiation| initiation.initiator.local_index());
        self.retire(gone);
    }

    pub(super) fn retire(&mut self, index: Option<u32>) {
        self.events.extend(index.map(TunnelEvent::Retired));
    }

    pub(super) fn draw_jitter(&mut self, rng: &mut ChaCha20Rng) {
        self.jitter = Duration::from_millis(u64::from(rng.next_u32() % MAX_JITTER_MS));
    }
}
