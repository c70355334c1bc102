//! Keys for what travels beside a handshake message: the sealed call, its abort, its answer, and the probes. And for transport
//! data, where that is not WireGuard's ([`crate::proto::cipher`]).
//!
//! # Why this takes nothing from WireGuard
//!
//! WireGuard goes on from a chaining key `C` with `HMAC(C, X)`, where `X` is a public key of 32 bytes after the initiation, and
//! empty after the response. We take `HMAC(C, label)` beside it, with labels that are neither empty nor 32 bytes long (checked
//! when this is compiled). HMAC under a secret key is a pseudo-random function: its values at different inputs tell nothing
//! of each other, so whoever learns every exported key learns nothing of WireGuard's keys, and the reverse. `C` and the
//! transcript hash are only read: no byte on the wire, and no key of WireGuard's, is any different for it. (The Noise
//! specification's extension for additional symmetric keys does the same.)
//!
//! # What each key is worth
//!
//! - `call` and `abort` come from `C` after the initiation, so from the static-static and the ephemeral-static agreement.
//!   Only the two members can have it. As with the initiation itself: who steals the called member's private key can read
//!   recorded calls and make up callers; the preshared key does not yet play a part; a replay is refused by the timestamp.
//! - `answer` and the probe keys come from the last `C`: forward-secret, and bound to the preshared key.
//! - Each is used with the transcript hash of its moment as additional data, so a text belongs to one handshake alone.
//!
//! # One nonce
//!
//! The nonce is always zero, so each key seals once: [`SealOnce::seal`] consumes the key. A repeat over a second server, or
//! after a loss, repeats the bytes.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};

use super::primitive::{Secret, derive};
use crate::proto::cipher::Cipher;

const CALL_LABEL: &[u8] = b"p2ptund MESSAGE_CONTROL call v1";
const ANSWER_LABEL: &[u8] = b"p2ptund MESSAGE_CONTROL answer v1";
/// Also what a response that takes the offer has in its transcript.
pub(super) const AES_LABEL: &[u8] = b"p2ptund transport data AES-256-GCM v1";
const _: () = assert!(CALL_LABEL.len() != 32 && !CALL_LABEL.is_empty());
const _: () = assert!(ANSWER_LABEL.len() != 32 && !ANSWER_LABEL.is_empty());
const _: () = assert!(AES_LABEL.len() != 32 && !AES_LABEL.is_empty());

/// Seals one text, then is gone.
pub struct SealOnce {
    key: Secret,
    aad: [u8; 32],
}

impl SealOnce {
    /// `plaintext`, sealed: 16 bytes longer.
    pub fn seal(self, plaintext: &[u8]) -> Vec<u8> {
        ChaCha20Poly1305::new((&*self.key).into())
            .encrypt(&Nonce::default(), Payload { msg: plaintext, aad: &self.aad })
            .expect("a call is shorter than the cipher's 256 GB")
    }
}

/// Opens what the other side's [`SealOnce`] sealed; as often as need be, for repeats and forgeries come too.
pub struct Open {
    key: Secret,
    aad: [u8; 32],
}

impl Open {
    /// The text; `None` where it is not the other side's.
    pub fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        ChaCha20Poly1305::new((&*self.key).into())
            .decrypt(&Nonce::default(), Payload { msg: sealed, aad: &self.aad })
            .ok()
    }
}

impl fmt::Debug for SealOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealOnce(…)")
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open(…)")
    }
}

/// What the caller (the handshake's initiator) gets from its initiation.
#[derive(Debug)]
pub struct CallerKeys {
    pub call: SealOnce,
    pub abort: Open,
}

/// What the called member (the handshake's responder) gets from the same initiation. One of `abort` and the answer goes back.
#[derive(Debug)]
pub struct CalledKeys {
    pub call: Open,
    pub abort: SealOnce,
}

/// From the final chaining key, before they are given to the two sides.
pub(super) struct FinalKeys {
    pub answer: Secret,
    pub probe_initiator_to_responder: Secret,
    pub probe_responder_to_initiator: Secret,
}

fn call_keys(chaining: &[u8; 32]) -> (Secret, Secret) {
    let [call, abort] = derive(chaining, CALL_LABEL);
    (call, abort)
}

impl CallerKeys {
    pub(super) fn derive(chaining: &[u8; 32], hash: [u8; 32]) -> Self {
        let (call, abort) = call_keys(chaining);
        Self { call: SealOnce { key: call, aad: hash }, abort: Open { key: abort, aad: hash } }
    }
}

impl CalledKeys {
    pub(super) fn derive(chaining: &[u8; 32], hash: [u8; 32]) -> Self {
        let (call, abort) = call_keys(chaining);
        Self { call: Open { key: call, aad: hash }, abort: SealOnce { key: abort, aad: hash } }
    }
}

impl FinalKeys {
    pub(super) fn derive(chaining: &[u8; 32]) -> Self {
        let [answer, probe_initiator_to_responder, probe_responder_to_initiator] = derive(chaining, ANSWER_LABEL);
        Self { answer, probe_initiator_to_responder, probe_responder_to_initiator }
    }
}

/// Transport data's keys, from the final chaining key: to the responder, and to the initiator.
pub(super) fn transport_keys(chaining: &[u8; 32], cipher: Cipher) -> [Secret; 2] {
    match cipher {
        Cipher::ChaCha20Poly1305 => derive(chaining, &[]),
        Cipher::Aes256Gcm => derive(chaining, AES_LABEL),
    }
}

/// The answer's key for the side that seals it.
pub(super) fn answer_seal(key: Secret, hash: [u8; 32]) -> SealOnce {
    SealOnce { key, aad: hash }
}

/// The answer's key for the side that opens it.
pub(super) fn answer_open(key: Secret, hash: [u8; 32]) -> Open {
    Open { key, aad: hash }
}
