//! One key epoch of a tunnel: sealing and opening, counters, and the limits on both.
//!
//! ```text
//! transport data                      a control message or probe of ours
//!  0  type 4, three zero bytes         0  prefix: whatever our codec puts first
//!  4  receiver's index, LE             p  receiver's index, LE
//!  8  counter, LE                    p+4  counter, LE
//! 16  sealed packet, then tag       p+12  sealed body, then tag
//! ```
//!
//! Transport data is WireGuard's to the byte: padded to 16 bytes but not beyond the MTU, no additional data, and sealed in place,
//! for [`Packet`] leaves room on both sides. A control message goes out under the same key and the same counter, so no nonce
//! repeats, and through the same replay window; its additional data is everything before the body, while transport data has
//! none, so neither can pass for the other. Probes have keys, a counter and a window of their own: a lost or forged one
//! touches nothing of the session's.
//!
//! The cipher is the one that the handshake agreed on ([`super::cipher`]); a probe's is always ChaCha20-Poly1305.
//!
//! [`Sealer`] and [`Opener`] know nothing of tunnels or time, and a clone is the same half of the same session: threads that
//! carry packets hold one each, beside the core's. Counter and replay window are atomic, so none of them waits for another.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::action::Drop;
use super::cipher::{Cipher, REJECT_AFTER_MESSAGES, TransportKey};
use super::noise::Keys;
use super::noise::primitive::TAG_LEN;
use super::packet::Packet;
use super::replay::{PROBE_WORDS, Window};
use super::time::Instant;

pub const TRANSPORT_TYPE: [u8; 4] = [4, 0, 0, 0];
/// Bytes before the sealed packet.
pub const HEADER_LEN: usize = 16;
/// Bytes that transport data adds to a padded packet.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Receiver's index and counter, behind the prefix of a control message.
pub const ADDRESS_LEN: usize = 12;
/// Inner packets are padded to a multiple of this (whitepaper section 5.4.6).
const PADDING: usize = 16;

/// The sending half of a session.
#[derive(Clone)]
pub struct Sealer(Arc<Sealing>);

struct Sealing {
    key: TransportKey,
    receiver: u32,
    counter: AtomicU64,
}

impl Sealer {
    fn new(key: TransportKey, receiver: u32) -> Self {
        Self(Arc::new(Sealing { key, receiver, counter: AtomicU64::new(0) }))
    }

    #[cfg(test)]
    pub fn skip_to(&self, counter: u64) {
        self.0.counter.store(counter, Ordering::Relaxed);
    }

    pub fn cipher(&self) -> Cipher {
        self.0.key.cipher()
    }

    /// How many messages were sealed, or had a counter reserved.
    pub fn sealed(&self) -> u64 {
        self.0.counter.load(Ordering::Relaxed)
    }

    /// Whether the key seals no message of `len` bytes any more.
    pub fn is_used_up(&self, len: usize) -> bool {
        self.sealed() >= self.cipher().reject_after_messages(len)
    }

    /// Counters for `count` messages of up to `len` bytes: this one and those after it. `None` where the key is used up.
    pub fn reserve(&self, count: usize, len: usize) -> Option<u64> {
        // Looked at first: what is only ever added to would one day begin anew.
        if self.is_used_up(len) {
            return None;
        }
        let first = self.0.counter.fetch_add(count as u64, Ordering::Relaxed);
        (first < self.cipher().reject_after_messages(len)).then_some(first)
    }

    /// Seals in place what is, and stays, one datagram: [`HEADER_LEN`] bytes of room, an inner packet with its padding
    /// ([`padding`]), [`TAG_LEN`] bytes of room. `counter`: one that was reserved, once. `None`: too short for that.
    pub fn seal_datagram(&self, counter: u64, datagram: &mut [u8]) -> Option<()> {
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER_LEN>()?;
        let (body, tail) = rest.split_last_chunk_mut::<TAG_LEN>()?;
        header[..4].copy_from_slice(&TRANSPORT_TYPE);
        header[4..8].copy_from_slice(&self.0.receiver.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        *tail = self.0.key.seal(counter, &[], body)?;
        Some(())
    }

    /// Turns an inner packet into transport data, in place. An empty one becomes a keepalive. `None`, and the packet as it
    /// was, where the key is used up or the packet has not the room. `mtu`: padding ends there; 0: no such bound.
    pub fn seal(&self, packet: &mut Packet, mtu: usize) -> Option<()> {
        let len = packet.bytes().len();
        if self.is_used_up(len) {
            return None;
        }
        packet.grow(HEADER_LEN, padding(len, mtu) + TAG_LEN)?;
        self.seal_datagram(self.reserve(1, len)?, packet.bytes_mut())
    }

    /// A control message or probe: `prefix`, receiver, counter, sealed `body`. `None` where the key is used up.
    pub fn seal_message(&self, prefix: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        let counter = self.reserve(1, body.len())?;
        let mut message = Vec::with_capacity(prefix.len() + ADDRESS_LEN + body.len() + TAG_LEN);
        message.extend_from_slice(prefix);
        message.extend_from_slice(&self.0.receiver.to_le_bytes());
        message.extend_from_slice(&counter.to_le_bytes());
        message.extend_from_slice(body);
        let (header, sealed) = message.split_at_mut(prefix.len() + ADDRESS_LEN);
        let tag = self.0.key.seal(counter, header, sealed)?;
        message.extend_from_slice(&tag);
        Some(message)
    }
}

/// The receiving half of a session.
#[derive(Clone)]
pub struct Opener(Arc<Receiving>);

struct Receiving {
    key: TransportKey,
    window: Window,
}

impl Opener {
    fn new(key: TransportKey, words: usize) -> Self {
        Self(Arc::new(Receiving { key, window: Window::new(words) }))
    }

    /// Turns transport data for this session into the padded inner packet, in place. After an error the packet is of no use.
    pub fn open(&self, packet: &mut Packet) -> Result<(), Drop> {
        let inner = self.open_datagram(packet.bytes_mut())?;
        packet.narrow(inner.start, inner.len());
        Ok(())
    }

    /// Opens transport data in place, and says where in it the padded inner packet is now. After an error the datagram is of no
    /// use.
    pub fn open_datagram(&self, datagram: &mut [u8]) -> Result<Range<usize>, Drop> {
        let (header, sealed) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(Drop::Malformed)?;
        let inner_len = sealed.len().checked_sub(TAG_LEN).ok_or(Drop::Malformed)?;
        if header[..4] != TRANSPORT_TYPE {
            return Err(Drop::Malformed);
        }
        let counter = self.admit(&header[8..])?;
        self.0.key.open(counter, &[], sealed)?;
        self.note(counter)?;
        Ok(HEADER_LEN..HEADER_LEN + inner_len)
    }

    /// Opens a control message or probe that has a prefix of `prefix` bytes.
    pub fn open_message(&self, prefix: usize, message: &[u8]) -> Result<Vec<u8>, Drop> {
        let (header, sealed) = message.split_at_checked(prefix + ADDRESS_LEN).ok_or(Drop::Malformed)?;
        let len = sealed.len().checked_sub(TAG_LEN).ok_or(Drop::Malformed)?;
        let counter = self.admit(&header[prefix + 4..])?;
        let mut body = sealed.to_vec();
        self.0.key.open(counter, header, &mut body)?;
        self.note(counter)?;
        body.truncate(len);
        Ok(body)
    }

    /// The counter, if it is worth deciphering for.
    fn admit(&self, counter: &[u8]) -> Result<u64, Drop> {
        let counter = u64::from_le_bytes(counter.try_into().map_err(|_| Drop::Malformed)?);
        if counter >= REJECT_AFTER_MESSAGES || !self.0.window.admits(counter) {
            return Err(Drop::Replayed);
        }
        Ok(counter)
    }

    /// Another thread may have opened the same packet meanwhile.
    fn note(&self, counter: u64) -> Result<(), Drop> {
        if self.0.window.mark(counter) { Ok(()) } else { Err(Drop::Replayed) }
    }

    fn is_fresh(&self) -> bool {
        self.0.window.is_fresh()
    }
}

/// One key epoch.
pub struct Session {
    pub local_index: u32,
    pub remote_index: u32,
    pub created: Instant,
    pub initiator: bool,
    pub sealer: Sealer,
    pub opener: Opener,
    pub probe_sealer: Sealer,
    pub probe_opener: Opener,
}

impl Session {
    /// `words`: how wide the replay window is ([`super::replay`]).
    pub fn new(keys: Keys, created: Instant, words: usize) -> Self {
        let data_key = |secret| TransportKey::new(keys.cipher, secret);
        let probe_key = |secret| TransportKey::new(Cipher::ChaCha20Poly1305, secret);
        Self {
            local_index: keys.local_index,
            remote_index: keys.remote_index,
            created,
            initiator: keys.initiator,
            sealer: Sealer::new(data_key(keys.send), keys.remote_index),
            opener: Opener::new(data_key(keys.receive), words),
            probe_sealer: Sealer::new(probe_key(keys.probe_send), keys.remote_index),
            probe_opener: Opener::new(probe_key(keys.probe_receive), PROBE_WORDS),
        }
    }

    /// Whether nothing of the other side's was opened yet, probes aside.
    pub fn is_fresh(&self) -> bool {
        self.opener.is_fresh()
    }
}

/// The receiver's index of transport data (`prefix` 4), or of a control message or probe with so long a prefix.
pub fn receiver_of(datagram: &[u8], prefix: usize) -> Option<u32> {
    let index = datagram.get(prefix..prefix.checked_add(4)?)?;
    index.try_into().ok().map(u32::from_le_bytes)
}

/// The zeros behind an inner packet of `len` bytes; `mtu` as in [`Sealer::seal`].
pub fn padding(len: usize, mtu: usize) -> usize {
    // A packet of several segments is padded by its last one, as WireGuard does.
    let last = if mtu == 0 || len <= mtu { len } else { len % mtu };
    let padded = last.next_multiple_of(PADDING);
    if mtu == 0 { padded - last } else { padded.min(mtu) - last }
}

#[cfg(test)]
pub(super) mod tests;
