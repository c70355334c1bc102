//! Cookies: who floods us with handshakes must first show that it receives at the address it sends from (whitepaper
//! sections 5.3 and 5.4.7).
//!
//! ```text
//! cookie reply, 64 bytes
//!  0  type 3, three zero bytes
//!  4  receiver's index, little-endian: the sender's of the message that it answers
//!  8  nonce, 24 bytes
//! 32  cookie, sealed with XChaCha20-Poly1305: 16 bytes and a tag; additional data: the mac1 of that message
//! ```
//!
//! A [`Gate`] stands before the handshakes of one socket's worth of traffic: nothing of it is consulted until more come a second
//! than [`Gate::new`] was told. From then on a message needs a mac2 made with the cookie for its source address, and each
//! source has 20 a second. A [`Jar`] keeps the cookie that one peer gave us.

pub mod rate;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;
use subtle::ConstantTimeEq;

use self::rate::{Load, Sources};
use super::action::Drop;
use super::keys::PublicKey;
use super::noise::primitive::{MAC_LEN, Secret, hash, mac};
use super::noise::{INITIATION_LEN, INITIATION_TYPE, Identity, MACS_LEN, RESPONSE_LEN, RESPONSE_TYPE};
use super::session::receiver_of;
use super::time::Instant;

pub const COOKIE_REPLY_LEN: usize = 64;
pub const COOKIE_REPLY_TYPE: [u8; 4] = [3, 0, 0, 0];
/// WireGuard's life of the secret that cookies are made with, and so of a cookie.
const SECRET_LIFE: Duration = Duration::from_secs(120);
/// Who holds a cookie stops using it so long before its maker does (WireGuard's allowance for the way between them).
const COOKIE_LATENCY: Duration = Duration::from_secs(5);
const LABEL_COOKIE: &[u8] = b"cookie--";

type Cookie = [u8; MAC_LEN];

/// What is to become of a handshake message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Pass,
    Drop(Drop),
    /// Send this back, and nothing more.
    Reply([u8; COOKIE_REPLY_LEN]),
}

/// The responder's side.
pub struct Gate {
    reply_key: [u8; 32],
    secret: Option<(Secret, Instant)>,
    load: Load,
    sources: Sources,
}

impl Gate {
    /// `busy_per_s`: more handshake messages a second than this, and proof of address is asked for.
    pub fn new(local: PublicKey, busy_per_s: u32, rng: &mut ChaCha20Rng) -> Self {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        Self { reply_key: reply_key(&local), secret: None, load: Load::new(busy_per_s), sources: Sources::new(key) }
    }

    /// Judges an initiation or response (a datagram that is neither is malformed) that came from `from`. `Pass` includes that
    /// mac1 is right.
    pub fn judge(
        &mut self,
        now: Instant,
        local: &Identity,
        from: SocketAddr,
        message: &[u8],
        rng: &mut ChaCha20Rng,
    ) -> Verdict {
        let shape = (message.first_chunk::<4>(), message.len());
        if !matches!(shape, (Some(&INITIATION_TYPE), INITIATION_LEN) | (Some(&RESPONSE_TYPE), RESPONSE_LEN)) {
            return Verdict::Drop(Drop::Malformed);
        }
        if !local.checks_mac1(message) {
            return Verdict::Drop(Drop::Unauthentic);
        }
        if !self.load.handle_arrival(now) {
            return Verdict::Pass;
        }
        if !self.checks_mac2(now, from, message) {
            return Verdict::Reply(self.reply(now, from, message, rng));
        }
        if self.sources.admits(now, from.ip().to_canonical()) { Verdict::Pass } else { Verdict::Drop(Drop::Overload) }
    }

    fn checks_mac2(&self, now: Instant, from: SocketAddr, message: &[u8]) -> bool {
        let Some((secret, born)) = &self.secret else { return false };
        let (body, mac2) = message.split_at(message.len() - MAC_LEN);
        now.since(*born) < SECRET_LIFE && mac(&cookie_for(secret, from), &[body]).ct_eq(mac2).into()
    }

    fn reply(
        &mut self,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        rng: &mut ChaCha20Rng,
    ) -> [u8; COOKIE_REPLY_LEN] {
        if self.secret.as_ref().is_some_and(|(_, born)| now.since(*born) >= SECRET_LIFE) {
            self.secret = None;
        }
        let (secret, _) = self.secret.get_or_insert_with(|| {
            let mut secret = Secret::default();
            rng.fill_bytes(secret.as_mut_slice());
            (secret, now)
        });
        let cookie = cookie_for(secret, from);
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let mac1 = &message[message.len() - MACS_LEN..message.len() - MAC_LEN];
        let sealed = XChaCha20Poly1305::new(&self.reply_key.into())
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: &cookie, aad: mac1 })
            .expect("16 bytes are less than the cipher's 256 GB");
        let mut reply = [0; COOKIE_REPLY_LEN];
        reply[..4].copy_from_slice(&COOKIE_REPLY_TYPE);
        reply[4..8].copy_from_slice(&message[4..8]);
        reply[8..32].copy_from_slice(&nonce);
        reply[32..].copy_from_slice(&sealed);
        reply
    }
}

/// The initiator's side (and the responder's, whose response may be answered with a cookie too): one peer's cookie.
pub struct Jar {
    reply_key: [u8; 32],
    /// The mac1 of the last message, until a cookie came for it.
    last_mac1: Option<Cookie>,
    cookie: Option<(Cookie, Instant)>,
}

impl Jar {
    pub fn new(remote: PublicKey) -> Self {
        Self { reply_key: reply_key(&remote), last_mac1: None, cookie: None }
    }

    /// Puts mac2 on an initiation or response for the peer where it gave us a cookie. Its mac1 must be there already.
    pub fn stamp(&mut self, now: Instant, message: &mut [u8]) {
        let Some(split) = message.len().checked_sub(MAC_LEN) else { return };
        let (body, mac2) = message.split_at_mut(split);
        self.last_mac1 = body.last_chunk().copied();
        if let Some((cookie, _)) = self.cookie.filter(|(_, came)| now.since(*came) < SECRET_LIFE - COOKIE_LATENCY) {
            mac2.copy_from_slice(&mac(&cookie, &[body]));
        }
    }

    /// Takes a cookie reply. The message that it answers is not repeated at once: the next one, when it is due, has the mac2.
    pub fn handle_reply(&mut self, now: Instant, reply: &[u8]) -> Result<(), Drop> {
        if reply.len() != COOKIE_REPLY_LEN || reply[..4] != COOKIE_REPLY_TYPE {
            return Err(Drop::Malformed);
        }
        let mac1 = self.last_mac1.ok_or(Drop::Unknown)?;
        let (nonce, sealed) = reply[8..].split_at(24);
        let cookie = XChaCha20Poly1305::new(&self.reply_key.into())
            .decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &mac1 })
            .map_err(|_| Drop::Unauthentic)?;
        let cookie = cookie.try_into().map_err(|_| Drop::Malformed)?;
        self.last_mac1 = None;
        self.cookie = Some((cookie, now));
        Ok(())
    }
}

/// To whom a cookie reply is addressed: the index of the handshake that it answers.
pub fn reply_receiver(reply: &[u8]) -> Option<u32> {
    if reply.len() == COOKIE_REPLY_LEN { receiver_of(reply, 4) } else { None }
}

fn reply_key(public: &PublicKey) -> [u8; 32] {
    hash(&[LABEL_COOKIE, public.as_bytes()])
}

fn cookie_for(secret: &Secret, from: SocketAddr) -> Cookie {
    let port = from.port().to_be_bytes();
    match from.ip().to_canonical() {
        IpAddr::V4(ip) => mac(secret.as_slice(), &[&ip.octets(), &port]),
        IpAddr::V6(ip) => mac(secret.as_slice(), &[&ip.octets(), &port]),
    }
}

#[cfg(test)]
mod tests;
