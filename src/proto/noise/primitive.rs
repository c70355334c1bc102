//! The four functions that Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s is made of: hash, MAC, key derivation, AEAD.
//!
//! Every AEAD key in a handshake is used for one message, so its nonce is always zero (whitepaper section 5.4).

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use zeroize::Zeroizing;

/// A secret of 32 bytes, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// Bytes that an AEAD adds (RFC 8439).
pub const TAG_LEN: usize = 16;
/// Bytes of a mac1 or mac2.
pub const MAC_LEN: usize = 16;
/// BLAKE2s works in blocks of so many bytes (RFC 7693); HMAC pads its key to one.
const BLOCK_LEN: usize = 64;

/// HASH of the parts, one after the other.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        Digest::update(&mut state, part);
    }
    state.finalize().into()
}

/// Keyed BLAKE2s with 16 bytes of output.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut state =
        <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("keys here are 16 or 32 bytes, of 32 allowed");
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize_fixed().into()
}

/// HMAC (RFC 2104) over BLAKE2s.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let pad = |byte: u8| {
        let mut block = Zeroizing::new([byte; BLOCK_LEN]);
        for (padded, key) in block.iter_mut().zip(key) {
            *padded ^= key;
        }
        block
    };
    let mut inner = Blake2s256::new();
    Digest::update(&mut inner, pad(0x36));
    for part in parts {
        Digest::update(&mut inner, part);
    }
    let inner: Secret = Zeroizing::new(inner.finalize().into());
    Zeroizing::new(hash(&[pad(0x5c).as_slice(), inner.as_slice()]))
}

/// The whitepaper's KDF with `N` outputs (HKDF, RFC 5869, with `chaining` as salt); `N` is 1 to 3.
pub fn derive<const N: usize>(chaining: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let extracted = hmac(chaining, &[input]);
    let mut counter = 0u8;
    let mut last: Option<Secret> = None;
    std::array::from_fn(|_| {
        counter += 1;
        let output = match &last {
            None => hmac(&extracted, &[&[counter]]),
            Some(last) => hmac(&extracted, &[last.as_slice(), &[counter]]),
        };
        last = Some(output.clone());
        output
    })
}

/// Seals `plaintext` into `out`, which is [`TAG_LEN`] longer.
pub fn seal(key: &[u8; 32], aad: &[u8], plaintext: &[u8], out: &mut [u8]) {
    let (body, tag) = out.split_at_mut(plaintext.len());
    body.copy_from_slice(plaintext);
    let made = ChaCha20Poly1305::new(key.into())
        .encrypt_in_place_detached(&Nonce::default(), aad, body)
        .expect("a handshake field is shorter than the cipher's 256 GB");
    tag.copy_from_slice(&made);
}

/// Opens `sealed` into `out`, which is [`TAG_LEN`] shorter. `None`, and nothing of use in `out`, where the tag is wrong.
pub fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Option<()> {
    let (body, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_LEN)?)?;
    if body.len() != out.len() {
        return None;
    }
    out.copy_from_slice(body);
    ChaCha20Poly1305::new(key.into()).decrypt_in_place_detached(&Nonce::default(), aad, out, Tag::from_slice(tag)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_keyed_blake2s_and_not_a_hash_of_key_and_message() {
        assert_ne!(mac(&[1; 32], &[b"message"])[..], hash(&[&[1; 32], b"message"])[..16]);
        assert_eq!(mac(&[1; 32], &[b"mess", b"age"]), mac(&[1; 32], &[b"message"]));
        assert_ne!(mac(&[1; 16], &[b"message"]), mac(&[1; 32], &[b"message"]));
    }

    #[test]
    fn fewer_outputs_are_a_prefix_of_more() {
        let one: [Secret; 1] = derive(&[7; 32], b"input");
        let three: [Secret; 3] = derive(&[7; 32], b"input");
        assert_eq!(one[0], three[0]);
        assert_ne!(three[0], three[1]);
        assert_ne!(three[1], three[2]);
    }

    #[test]
    fn a_sealed_text_opens_only_under_its_own_key_and_aad() {
        let mut sealed = [0; 9 + TAG_LEN];
        seal(&[3; 32], b"aad", b"plaintext", &mut sealed);
        let mut out = [0; 9];
        assert_eq!(open(&[3; 32], b"aad", &sealed, &mut out), Some(()));
        assert_eq!(&out, b"plaintext");
        assert_eq!(open(&[4; 32], b"aad", &sealed, &mut out), None);
        assert_eq!(open(&[3; 32], b"other", &sealed, &mut out), None);
        assert_eq!(open(&[3; 32], b"aad", &sealed[..8], &mut out), None);
    }
}
