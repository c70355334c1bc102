//! WireGuard's handshake, Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, byte for byte (whitepaper section 5.4).
//!
//! ```text
//! initiation, 148 bytes                    response, 92 bytes
//!   0  type 1, three zero bytes              0  type 2, three zero bytes
//!   4  sender's index, little-endian         4  sender's index
//!   8  ephemeral key                         8  receiver's index
//!  40  static key, sealed                   12  ephemeral key
//!  88  timestamp (TAI64N), sealed           44  nothing, sealed
//! 116  mac1                                 60  mac1
//! 132  mac2                                 76  mac2
//! ```
//!
//! The flow: [`Initiator::start`], then [`Received::open`] and [`Received::respond`] on the other side, then
//! [`Initiator::finish`]. In passing, both agree on the cipher of what follows: [`super::cipher`] has how. mac2 is left zero here; [`super::cookie::Jar`] fills it in. What we add, keys for calls and probes,
//! changes none of these bytes: see [`export`].
//!
//! Assumed: a member's private key is nowhere but here; an index is unused by any other session or handshake of its member.

pub mod export;
pub mod primitive;
pub mod timestamp;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use self::export::{
    AES_LABEL, CalledKeys, CallerKeys, FinalKeys, Open, SealOnce, answer_open, answer_seal, transport_keys,
};
use self::primitive::{MAC_LEN, Secret, TAG_LEN, derive, hash, mac, open, seal};
use self::timestamp::{TIMESTAMP_LEN, Timestamp};
use super::action::Drop;
use super::cipher::Cipher;
use super::keys::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};

pub const INITIATION_LEN: usize = 148;
pub const RESPONSE_LEN: usize = 92;
pub const INITIATION_TYPE: [u8; 4] = [1, 0, 0, 0];
pub const RESPONSE_TYPE: [u8; 4] = [2, 0, 0, 0];
/// Both messages end in mac1 and mac2.
pub const MACS_LEN: usize = 2 * MAC_LEN;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LABEL_MAC1: &[u8] = b"mac1----";

/// A member's own static key, with what follows from it.
#[derive(Clone)]
pub struct Identity {
    private: PrivateKey,
    public: PublicKey,
    mac1_key: [u8; 32],
}

impl Identity {
    pub fn new(private: PrivateKey) -> Self {
        let public = private.public();
        Self { private, public, mac1_key: mac1_key(&public) }
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// Whether `message`, an initiation or response, has a mac1 made for us: its sender at least knows our public key.
    /// Costs one hash; what fails it deserves no more work.
    pub fn checks_mac1(&self, message: &[u8]) -> bool {
        let Some(body) = message.len().checked_sub(MACS_LEN) else { return false };
        let (body, macs) = message.split_at(body);
        mac(&self.mac1_key, &[body]).ct_eq(&macs[..MAC_LEN]).into()
    }
}

/// The other side's static key, with what follows from it and from ours.
#[derive(Clone)]
pub struct Remote {
    public: PublicKey,
    mac1_key: [u8; 32],
    /// `None`: the key is a point of low order, which is nobody's.
    shared: Option<Secret>,
}

impl Remote {
    pub fn new(local: &Identity, public: PublicKey) -> Self {
        let shared = local.private.agree(&public).map(Zeroizing::new);
        Self { public, mac1_key: mac1_key(&public), shared }
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }
}

/// What a finished handshake leaves: the keys of one session, named from this side's view.
pub struct Keys {
    pub local_index: u32,
    pub remote_index: u32,
    pub initiator: bool,
    /// Of transport data.
    pub cipher: Cipher,
    pub send: Secret,
    pub receive: Secret,
    pub probe_send: Secret,
    pub probe_receive: Secret,
}

/// The chaining key and the transcript hash.
#[derive(Clone)]
struct Transcript {
    chaining: Secret,
    hash: [u8; 32],
}

impl Transcript {
    fn new(responder: &PublicKey) -> Self {
        let chaining = hash(&[CONSTRUCTION]);
        let identified = hash(&[&chaining, IDENTIFIER]);
        Self { chaining: Zeroizing::new(chaining), hash: hash(&[&identified, responder.as_bytes()]) }
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = hash(&[&self.hash, bytes]);
    }

    fn mix_ephemeral(&mut self, ephemeral: &PublicKey) {
        self.mix_chaining(ephemeral.as_bytes());
        self.mix_hash(ephemeral.as_bytes());
    }

    fn mix_chaining(&mut self, input: &[u8]) {
        let [chaining] = derive(&self.chaining, input);
        self.chaining = chaining;
    }

    fn mix_shared(&mut self, shared: &Secret) -> Secret {
        let [chaining, key] = derive(&self.chaining, shared.as_slice());
        self.chaining = chaining;
        key
    }

    fn mix_psk(&mut self, psk: Option<&PresharedKey>) -> Secret {
        let psk = psk.map_or(&[0; KEY_LEN], PresharedKey::as_bytes);
        let [chaining, hashed, key] = derive(&self.chaining, psk);
        self.chaining = chaining;
        self.mix_hash(hashed.as_slice());
        key
    }

    /// The responder's choice; WireGuard's own cipher leaves no trace.
    fn mix_cipher(&mut self, cipher: Cipher) {
        match cipher {
            Cipher::ChaCha20Poly1305 => {}
            Cipher::Aes256Gcm => self.mix_hash(AES_LABEL),
        }
    }

    fn seal(&mut self, key: &Secret, plaintext: &[u8], out: &mut [u8]) {
        seal(key, &self.hash, plaintext, out);
        self.mix_hash(out);
    }

    fn open(&mut self, key: &Secret, sealed: &[u8], out: &mut [u8]) -> Result<(), Drop> {
        open(key, &self.hash, sealed, out).ok_or(Drop::Unauthentic)?;
        self.mix_hash(sealed);
        Ok(())
    }

    /// Ends the handshake. Also the answer's key and its additional data.
    fn split(self, initiator: bool, local_index: u32, remote_index: u32, cipher: Cipher) -> (Keys, Secret, [u8; 32]) {
        let exported = FinalKeys::derive(&self.chaining);
        let [to_responder, to_initiator] = transport_keys(&self.chaining, cipher);
        let (probe_to_responder, probe_to_initiator) =
            (exported.probe_initiator_to_responder, exported.probe_responder_to_initiator);
        let keys = if initiator {
            Keys {
                local_index,
                remote_index,
                initiator,
                cipher,
                send: to_responder,
                receive: to_initiator,
                probe_send: probe_to_responder,
                probe_receive: probe_to_initiator,
            }
        } else {
            Keys {
                local_index,
                remote_index,
                initiator,
                cipher,
                send: to_initiator,
                receive: to_responder,
                probe_send: probe_to_initiator,
                probe_receive: probe_to_responder,
            }
        };
        (keys, exported.answer, self.hash)
    }
}

/// An initiation that waits for its response.
pub struct Initiator {
    local: PrivateKey,
    local_index: u32,
    ephemeral: PrivateKey,
    psk: Option<PresharedKey>,
    offers_aes: bool,
    transcript: Transcript,
}

impl Initiator {
    /// Makes an initiation. `index` is what the response will be addressed to; `timestamp` may offer AES-256-GCM.
    pub fn start(
        local: &Identity,
        remote: &Remote,
        psk: Option<&PresharedKey>,
        index: u32,
        timestamp: Timestamp,
        rng: &mut ChaCha20Rng,
    ) -> (Self, [u8; INITIATION_LEN], CallerKeys) {
        let ephemeral = fresh_key(rng);
        let ephemeral_public = ephemeral.public();
        // Towards a key that is nobody's, a secret that is nobody's: the handshake stays unanswered, and nothing leaks.
        let mut or_random = |shared: Option<Secret>| shared.unwrap_or_else(|| random(rng));
        let ephemeral_static = or_random(ephemeral.agree(&remote.public).map(Zeroizing::new));
        let static_static = or_random(remote.shared.clone());

        let mut message = [0; INITIATION_LEN];
        message[..4].copy_from_slice(&INITIATION_TYPE);
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..40].copy_from_slice(ephemeral_public.as_bytes());
        let mut transcript = Transcript::new(&remote.public);
        transcript.mix_ephemeral(&ephemeral_public);
        let key = transcript.mix_shared(&ephemeral_static);
        transcript.seal(&key, local.public.as_bytes(), &mut message[40..88]);
        let key = transcript.mix_shared(&static_static);
        transcript.seal(&key, &timestamp.0, &mut message[88..116]);
        put_mac1(&remote.mac1_key, &mut message);

        let exports = CallerKeys::derive(&transcript.chaining, transcript.hash);
        let (local, offers_aes) = (local.private.clone(), timestamp.offers_aes());
        (Self { local, local_index: index, ephemeral, psk: psk.cloned(), offers_aes, transcript }, message, exports)
    }

    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Takes the response (its mac1 checked or not: the seal inside it is the stronger proof). On an error the initiation still
    /// waits for the right one. Also gives the key that opens a call's answer.
    pub fn finish(&self, response: &[u8]) -> Result<(Keys, Open), Drop> {
        let response: &[u8; RESPONSE_LEN] = response.try_into().map_err(|_| Drop::Malformed)?;
        if response[..4] != RESPONSE_TYPE {
            return Err(Drop::Malformed);
        }
        if u32_at(response, 8) != self.local_index {
            return Err(Drop::Unknown);
        }
        let ephemeral = PublicKey(bytes_at(response, 12));
        let mut transcript = self.transcript.clone();
        transcript.mix_ephemeral(&ephemeral);
        transcript.mix_chaining(agree(&self.ephemeral, &ephemeral)?.as_slice());
        transcript.mix_chaining(agree(&self.local, &ephemeral)?.as_slice());
        let key = transcript.mix_psk(self.psk.as_ref());
        let offered = self.offers_aes.then_some(Cipher::Aes256Gcm);
        let (transcript, cipher) = offered
            .into_iter()
            .chain([Cipher::ChaCha20Poly1305])
            .find_map(|cipher| {
                let mut transcript = transcript.clone();
                transcript.mix_cipher(cipher);
                transcript.open(&key, &response[44..60], &mut []).ok()?;
                Some((transcript, cipher))
            })
            .ok_or(Drop::Unauthentic)?;
        let (keys, answer, hash) = transcript.split(true, self.local_index, u32_at(response, 4), cipher);
        Ok((keys, answer_open(answer, hash)))
    }
}

/// An authentic initiation. It may be a replay: only the tunnel of [`Received::peer`] can tell.
pub struct Received {
    /// Who sent it.
    pub peer: PublicKey,
    pub timestamp: Timestamp,
    /// The sender's index, to which the response is addressed.
    pub index: u32,
    /// Opens the call that came with it, and seals an abort.
    pub exports: CalledKeys,
    cipher: Cipher,
    ephemeral: PublicKey,
    transcript: Transcript,
}

impl Received {
    /// Opens an initiation, checking mac1 first.
    pub fn open(local: &Identity, message: &[u8]) -> Result<Self, Drop> {
        let message: &[u8; INITIATION_LEN] = message.try_into().map_err(|_| Drop::Malformed)?;
        if message[..4] != INITIATION_TYPE {
            return Err(Drop::Malformed);
        }
        if !local.checks_mac1(message) {
            return Err(Drop::Unauthentic);
        }
        let ephemeral = PublicKey(bytes_at(message, 8));
        let mut transcript = Transcript::new(&local.public);
        transcript.mix_ephemeral(&ephemeral);
        let key = transcript.mix_shared(&agree(&local.private, &ephemeral)?);
        let mut peer = PublicKey([0; KEY_LEN]);
        transcript.open(&key, &message[40..88], &mut peer.0)?;
        let key = transcript.mix_shared(&agree(&local.private, &peer)?);
        let mut timestamp = Timestamp([0; TIMESTAMP_LEN]);
        transcript.open(&key, &message[88..116], &mut timestamp.0)?;
        let exports = CalledKeys::derive(&transcript.chaining, transcript.hash);
        let cipher = Cipher::ChaCha20Poly1305;
        Ok(Self { peer, timestamp, index: u32_at(message, 4), exports, cipher, ephemeral, transcript })
    }

    /// Takes AES-256-GCM for transport data, if it is offered.
    pub fn accept_aes(&mut self) {
        if self.timestamp.offers_aes() {
            self.cipher = Cipher::Aes256Gcm;
        }
    }

    /// Makes the response. Also gives the key that seals a call's answer.
    pub fn respond(
        self,
        psk: Option<&PresharedKey>,
        index: u32,
        rng: &mut ChaCha20Rng,
    ) -> ([u8; RESPONSE_LEN], Keys, SealOnce) {
        const CHECKED: &str = "`open` agreed on a secret with this key already, so it is no point of low order";
        let ephemeral = fresh_key(rng);
        let ephemeral_public = ephemeral.public();
        let mut message = [0; RESPONSE_LEN];
        message[..4].copy_from_slice(&RESPONSE_TYPE);
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&self.index.to_le_bytes());
        message[12..44].copy_from_slice(ephemeral_public.as_bytes());
        let mut transcript = self.transcript;
        transcript.mix_ephemeral(&ephemeral_public);
        transcript.mix_chaining(agree(&ephemeral, &self.ephemeral).expect(CHECKED).as_slice());
        transcript.mix_chaining(agree(&ephemeral, &self.peer).expect(CHECKED).as_slice());
        let key = transcript.mix_psk(psk);
        transcript.mix_cipher(self.cipher);
        transcript.seal(&key, &[], &mut message[44..44 + TAG_LEN]);
        put_mac1(&mac1_key(&self.peer), &mut message);
        let (keys, answer, hash) = transcript.split(false, index, self.index, self.cipher);
        (message, keys, answer_seal(answer, hash))
    }
}

fn agree(private: &PrivateKey, public: &PublicKey) -> Result<Secret, Drop> {
    private.agree(public).map(Zeroizing::new).ok_or(Drop::Unauthentic)
}

fn random(rng: &mut ChaCha20Rng) -> Secret {
    let mut bytes = Zeroizing::new([0; 32]);
    rng.fill_bytes(bytes.as_mut_slice());
    bytes
}

fn fresh_key(rng: &mut ChaCha20Rng) -> PrivateKey {
    PrivateKey::from_bytes(*random(rng))
}

fn mac1_key(public: &PublicKey) -> [u8; 32] {
    hash(&[LABEL_MAC1, public.as_bytes()])
}

fn put_mac1(key: &[u8; 32], message: &mut [u8]) {
    let (body, macs) = message.split_at_mut(message.len() - MACS_LEN);
    macs[..MAC_LEN].copy_from_slice(&mac(key, &[body]));
}

fn u32_at<const N: usize>(message: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(message, at))
}

/// Both messages have a fixed length, so `at` is a constant within it, never the network's.
fn bytes_at<const N: usize, const M: usize>(message: &[u8; N], at: usize) -> [u8; M] {
    std::array::from_fn(|i| message[at + i])
}

#[cfg(test)]
mod tests;
