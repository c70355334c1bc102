use super::*;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex")).collect()
}

fn keys(initiator: bool) -> Keys {
    let secret = |byte: u8| Zeroizing::new([byte; 32]);
    let (a, b, c, d) = if initiator { (1, 2, 3, 4) } else { (2, 1, 4, 3) };
    Keys {
        local_index: if initiator { 7 } else { 8 },
        remote_index: if initiator { 8 } else { 7 },
        initiator,
        cipher: Cipher::ChaCha20Poly1305,
        send: secret(a),
        receive: secret(b),
        probe_send: secret(c),
        probe_receive: secret(d),
    }
}

pub fn pair() -> (Session, Session) {
    (Session::new(keys(true), Instant::default(), 128), Session::new(keys(false), Instant::default(), 128))
}

#[test]
fn in_place_and_the_portable_cipher_agree_on_transport_data() {
    use chacha20poly1305::aead::{Aead, KeyInit};
    let (us, _) = pair();
    let mut packet = Packet::copy_from(b"first");
    us.sealer.seal(&mut packet, 0).expect("seals");
    let mut packet = Packet::copy_from(b"inner packet of 24 bytes");
    us.sealer.seal(&mut packet, 0).expect("seals");
    let datagram = packet.bytes();
    assert_eq!(datagram[..16], hex("04000000 08000000 0100000000000000"));
    let nonce: [u8; 12] = hex("00000000 0100000000000000").try_into().expect("12 bytes");
    let opened = chacha20poly1305::ChaCha20Poly1305::new(&[1; 32].into()).decrypt(&nonce.into(), &datagram[16..]);
    assert_eq!(opened.expect("opens"), b"inner packet of 24 bytes\0\0\0\0\0\0\0\0");
}

#[test]
fn padding_goes_to_sixteen_but_not_beyond_the_mtu() {
    assert_eq!(padding(0, 1420), 0);
    assert_eq!(padding(1, 1420), 15);
    assert_eq!(padding(16, 1420), 0);
    assert_eq!(padding(1417, 1420), 3);
    assert_eq!(padding(1420, 1420), 0);
    assert_eq!(padding(1417, 0), 7);
    assert_eq!(padding(1421, 1420), 15);
    assert_eq!(padding(2840, 1420), 0);
}

#[test]
fn a_packet_opens_once() {
    let (us, them) = pair();
    let mut packet = Packet::copy_from(b"inner");
    us.sealer.seal(&mut packet, 0).expect("seals");
    let mut again = packet.clone();
    assert!(them.is_fresh());
    assert_eq!(them.opener.open(&mut packet), Ok(()));
    assert!(!them.is_fresh());
    assert_eq!(packet.bytes(), b"inner\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(them.opener.open(&mut again), Err(Drop::Replayed));
}

#[test]
fn a_forged_packet_does_not_use_up_its_counter() {
    let (us, them) = pair();
    let mut packet = Packet::copy_from(b"inner");
    us.sealer.seal(&mut packet, 0).expect("seals");
    let mut forged = packet.clone();
    forged.bytes_mut()[20] ^= 1;
    assert_eq!(them.opener.open(&mut forged), Err(Drop::Unauthentic));
    assert_eq!(them.opener.open(&mut packet), Ok(()));
}

#[test]
fn a_control_message_shares_the_counter_and_can_not_pass_for_data() {
    let (us, them) = pair();
    let prefix = [0x20, 0, 0, 0];
    let message = us.sealer.seal_message(&prefix, b"body").expect("seals");
    assert_eq!(message[..16], hex("20000000 08000000 0000000000000000"));
    let mut data = Packet::copy_from(b"data");
    us.sealer.seal(&mut data, 0).expect("seals");
    assert_eq!(data.bytes()[8], 1, "the counter went on");

    let mut disguised = message.clone();
    disguised[0] = 4;
    assert_eq!(them.opener.open(&mut Packet::copy_from(&disguised)), Err(Drop::Unauthentic));
    let mut disguised = data.bytes().to_vec();
    disguised[0] = 0x20;
    assert_eq!(them.opener.open_message(4, &disguised), Err(Drop::Unauthentic));

    assert_eq!(them.opener.open(&mut data), Ok(()));
    assert_eq!(them.opener.open_message(4, &message).as_deref(), Ok(&b"body"[..]));
    assert_eq!(them.opener.open_message(4, &message), Err(Drop::Replayed));
}

#[test]
fn a_probe_has_its_own_counter_and_window() {
    let (us, them) = pair();
    let probe = us.probe_sealer.seal_message(b"ACK", b"port").expect("seals");
    assert_eq!(them.opener.open_message(3, &probe), Err(Drop::Unauthentic));
    assert_eq!(them.probe_opener.open_message(3, &probe).as_deref(), Ok(&b"port"[..]));
    assert_eq!(us.sealer.sealed(), 0);
    assert!(them.is_fresh());
}

#[test]
fn a_used_up_key_seals_nothing_and_leaves_the_packet_as_it_was() {
    let (us, them) = pair();
    us.sealer.skip_to(REJECT_AFTER_MESSAGES - 1);
    let mut last = Packet::copy_from(b"last");
    assert_eq!(us.sealer.seal(&mut last, 0), Some(()));
    let mut late = Packet::copy_from(b"late");
    assert_eq!(us.sealer.seal(&mut late, 0), None);
    assert_eq!(us.sealer.seal_message(b"", b"late"), None);
    assert_eq!(late.bytes(), b"late");
    assert_eq!(them.opener.open(&mut last), Ok(()));
    let mut beyond = Packet::copy_from(&[[4, 0, 0, 0].as_slice(), &[0xff; 28]].concat());
    assert_eq!(them.opener.open(&mut beyond), Err(Drop::Replayed));
}

#[test]
fn a_truncated_message_is_refused_at_every_length() {
    let (us, them) = pair();
    let mut packet = Packet::copy_from(&[9; 40]);
    us.sealer.seal(&mut packet, 0).expect("seals");
    let message = us.sealer.seal_message(&[1, 2, 3], b"body").expect("seals");
    for len in 0..packet.bytes().len() {
        assert!(them.opener.open(&mut Packet::copy_from(&packet.bytes()[..len])).is_err(), "{len}");
    }
    for len in 0..message.len() {
        assert!(them.opener.open_message(3, &message[..len]).is_err(), "{len}");
    }
    assert_eq!(receiver_of(&message[..6], 3), None);
    assert_eq!(receiver_of(&message, usize::MAX), None);
    assert_eq!(receiver_of(&message, 3), Some(8));
}

proptest! {
    #[test]
    fn every_packet_comes_out_as_it_went_in(inner in prop::collection::vec(any::<u8>(), 0..200), mtu in 0usize..200) {
        let (us, them) = pair();
        let mut packet = Packet::copy_from(&inner);
        us.sealer.seal(&mut packet, mtu).expect("seals");
        them.opener.open(&mut packet).expect("opens");
        prop_assert_eq!(&packet.bytes()[..inner.len()], &inner[..]);
        prop_assert!(packet.bytes()[inner.len()..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn clones_of_a_half_share_its_counter_and_its_window() {
    let (us, them) = pair();
    let (mut mine, mut theirs) = (Packet::copy_from(b"mine"), Packet::copy_from(b"theirs"));
    us.sealer.seal(&mut mine, 0).expect("a fresh key");
    us.sealer.clone().seal(&mut theirs, 0).expect("a fresh key");
    assert_eq!((mine.bytes()[8], theirs.bytes()[8]), (0, 1), "no counter twice");
    assert_eq!(us.sealer.reserve(10, 0), Some(2));
    assert_eq!(us.sealer.sealed(), 12);
    let mut again = mine.clone();
    assert_eq!(them.opener.clone().open(&mut mine), Ok(()));
    assert_eq!(them.opener.open(&mut again), Err(Drop::Replayed));
}

#[test]
fn a_datagram_sealed_where_it_lies_is_what_a_packet_would_be() {
    let (us, them) = pair();
    let mut datagram = vec![0; HEADER_LEN + 16 + TAG_LEN];
    datagram[HEADER_LEN..HEADER_LEN + 5].copy_from_slice(b"inner");
    let counter = us.sealer.reserve(1, 0).expect("a fresh key");
    us.sealer.seal_datagram(counter, &mut datagram).expect("long enough");
    let inner = them.opener.open_datagram(&mut datagram).expect("authentic");
    assert_eq!(&datagram[inner], b"inner\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(us.sealer.seal_datagram(1, &mut [0; HEADER_LEN + TAG_LEN - 1]), None);
}
