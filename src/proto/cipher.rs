//! The ciphers that seal transport data, and how the two sides of a handshake agree on one.
//!
//! WireGuard has ChaCha20-Poly1305 and nothing else. Two members whose processors have AES seal with AES-256-GCM instead, at a
//! third of the time. Everything else stays: the handshake, the layout of transport data, the counters as nonces, the replay
//! window.
//!
//! # The agreement
//!
//! ```text
//! initiation   the timestamp's low three bytes, which WireGuard leaves zero, read "AES"      offered
//! response     AES_LABEL is mixed into the transcript before "nothing" is sealed             taken
//!              it is not                                                                     ChaCha20-Poly1305
//! keys         HMAC(C, AES_LABEL) in the place of HMAC(C, empty)                  [`super::noise::export`]
//! ```
//!
//! Who starts a handshake offers AES if its machine has it and its owner lets it. Who answers takes the offer on the same terms.
//! The initiator opens the response as one that takes the offer, then as one that does not; one of the two is authentic. So
//! both know the cipher before there is a session, and it is the session's to its end: no packet says it, nothing is tried on
//! packets, nothing is remembered from one session to the next.
//!
//! It is the handshake that agrees, not a field beside it in the call, because a session is rekeyed every two minutes by a
//! handshake that rides in no call, and a peer with an `endpoint` is never called at all. A call carries an initiation and its
//! answer a response, so a call agrees too.
//!
//! # Why it holds
//!
//! - **Nobody else can change it.** The timestamp is sealed under keys from both static keys; the response's seal covers the
//!   transcript. To turn the offer or the choice, one has to make an authentic initiation or response: the handshake's own
//!   security. Without an authentic response there is no session, so nothing can be cut off that only carried the choice.
//! - **Both sides always agree.** The choice is a function of the one response that made the session. Handshakes that cross, are
//!   lost, repeated or late each have their own choice; a restart forgets the choice with the keys. What the other side is able to do
//!   is asked anew each time, so a peer that came back without AES, by its config or on another machine, is never sent any.
//! - **Stock WireGuard sees nothing.** To it a timestamp is a number that grows, whatever its low bits, and it answers without the
//!   label. It could offer by accident only where it does not clear those bits, once in 2^24 handshakes; that handshake fails,
//!   and the next has another timestamp.
//! - **The handshake loses nothing.** Mixing a constant that both know into the transcript is what a Noise prologue is. No
//!   chaining key is any different for it, and the AES keys come beside WireGuard's own: HMAC under the last chaining key is a
//!   pseudo-random function, so they tell nothing of each other.
//! - **No nonce repeats.** One key, one counter, one cipher a direction.
//!
//! # How much one key may seal
//!
//! RFC 9001 (appendix B.1.1) bounds AES-GCM's advantage by 2 (q l)^2 / 2^128 for q packets of l blocks of 16 bytes, and asks for
//! q l ≤ 2^35: 2^28 packets of up to 2^11 bytes, 2^23 of up to 2^16. Here a key seals nothing after half of each, so that a mix of both
//! sizes is within the bound as well, and a new session is wanted after an eighth of that: 2^24 packets, or 19 s at 10 Gb/s in
//! packets of 1,420 bytes, for an advantage of 2^-65. That leaves seven times as long for the rekey, and most sessions end by time.
//!
//! The same RFC (appendix B.1.2) bounds forgeries at 2^52 tries for the largest packets; ChaCha20-Poly1305's bound (section 6.6) is 2^36.
//! A session opens nothing after 180 s: some 2^31 tries at ten million a second. So they need not be counted.
//!
//! # The library
//!
//! ring's, for both. Measured at 1,420 bytes on an EPYC with AVX-512, sealing in place, nanoseconds a packet: AES-256-GCM 274 with the
//! key kept expanded, 403 with it expanded for each; ChaCha20-Poly1305 740 and 752. aws-lc-rs takes 272 and 751; OpenSSL 3.0.19, which
//! was faster elsewhere, 511 and 933; graviola 0.3 takes 335 and 2,020; the chacha20poly1305 crate 2,520 at the default target, and 963 built
//! for this processor with its AVX-512 code. Intel's ipsec-mb 1.3 takes 504 where packets are queued as jobs: it would save 13 % of a member's
//! time, but only by a C library whose structures have no stable layout, so it is not used. So an AES
//! key stays expanded for as long as its session, and ChaCha20's is bytes, given to ring for each packet: no copy of it
//! outlives the packet but on the stack, where the next one overwrites it.

use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use super::action::Drop;
use super::noise::primitive::{Secret, TAG_LEN};

/// What a session's transport data is sealed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cipher {
    ChaCha20Poly1305,
    Aes256Gcm,
}

/// WireGuard's REJECT_AFTER_MESSAGES: 2^64 − 2^13 − 1.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// WireGuard's REKEY_AFTER_MESSAGES.
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// The packet sizes that RFC 9001 gives AES-GCM's limits for are up to this, and up to 2^16.
const AES_SMALL: usize = 1 << 11;
/// Half of what RFC 9001 allows for each.
const AES_REJECT_SMALL: u64 = 1 << 27;
const AES_REJECT_LARGE: u64 = 1 << 22;
/// After such a part of them a new session is wanted.
const AES_REKEY_PART: u64 = 8;

impl Cipher {
    /// A key that has sealed so many messages seals none of `len` bytes any more.
    pub fn reject_after_messages(self, len: usize) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => REJECT_AFTER_MESSAGES,
            Self::Aes256Gcm if len <= AES_SMALL => AES_REJECT_SMALL,
            Self::Aes256Gcm => AES_REJECT_LARGE,
        }
    }

    /// After so many messages of up to `len` bytes a new session is wanted.
    pub fn rekey_after_messages(self, len: usize) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => REKEY_AFTER_MESSAGES,
            Self::Aes256Gcm => self.reject_after_messages(len) / AES_REKEY_PART,
        }
    }
}

/// A key for many packets, wiped when dropped.
pub enum TransportKey {
    ChaCha20Poly1305(Secret),
    Aes256Gcm(AesKey),
}

impl TransportKey {
    pub fn new(cipher: Cipher, secret: Secret) -> Self {
        match cipher {
            Cipher::ChaCha20Poly1305 => Self::ChaCha20Poly1305(secret),
            Cipher::Aes256Gcm => Self::Aes256Gcm(AesKey(Box::new(expand(&AES_256_GCM, &secret)))),
        }
    }

    pub fn cipher(&self) -> Cipher {
        match self {
            Self::ChaCha20Poly1305(_) => Cipher::ChaCha20Poly1305,
            Self::Aes256Gcm(_) => Cipher::Aes256Gcm,
        }
    }

    pub fn seal(&self, counter: u64, aad: &[u8], body: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        self.seal_with(nonce(counter), aad, body)
    }

    /// `sealed`: body and tag. On success the body is its plaintext.
    pub fn open(&self, counter: u64, aad: &[u8], sealed: &mut [u8]) -> Result<(), Drop> {
        self.open_with(nonce(counter), aad, sealed)
    }

    fn seal_with(&self, nonce: Nonce, aad: &[u8], body: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let seal = |key: &LessSafeKey| key.seal_in_place_separate_tag(nonce, Aad::from(aad), body).ok();
        let tag = match self {
            Self::ChaCha20Poly1305(secret) => seal(&expand(&CHACHA20_POLY1305, secret)),
            Self::Aes256Gcm(key) => seal(&key.0),
        };
        tag?.as_ref().try_into().ok()
    }

    fn open_with(&self, nonce: Nonce, aad: &[u8], sealed: &mut [u8]) -> Result<(), Drop> {
        let open = |key: &LessSafeKey| key.open_in_place(nonce, Aad::from(aad), sealed).map(|_| ());
        let opened = match self {
            Self::ChaCha20Poly1305(secret) => open(&expand(&CHACHA20_POLY1305, secret)),
            Self::Aes256Gcm(key) => open(&key.0),
        };
        opened.map_err(|_| Drop::Unauthentic)
    }
}

/// An AES key with its round keys and GHASH's table, 544 bytes in one place. ring never wipes them, so this does: another
/// key is put where they were. What making it left on the stack, later calls overwrite.
pub struct AesKey(Box<LessSafeKey>);

impl AesKey {
    fn wipe(&mut self) {
        *self.0 = expand(&AES_256_GCM, &Secret::default());
        // Else the compiler may leave out a write that nobody reads.
        black_box(&mut self.0);
    }
}

impl std::ops::Drop for AesKey {
    fn drop(&mut self) {
        self.wipe();
    }
}

fn expand(algorithm: &'static Algorithm, secret: &Secret) -> LessSafeKey {
    let key = UnboundKey::new(algorithm, secret.as_slice());
    LessSafeKey::new(key.expect("32 bytes are what both ciphers take"))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests;
