//! Our tunnel against boringtun's, in memory: who wrote the other side can't have shared our misreadings.
//!
//! boringtun takes its time from the system, ours is a number, so only boringtun's own patience (seconds) is real here.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use p2ptund::proto::action::Drop;
use p2ptund::proto::cipher::Cipher;
use p2ptund::proto::cookie::{Gate, Verdict, reply_receiver};
use p2ptund::proto::keys::{PresharedKey, PrivateKey};
use p2ptund::proto::noise::timestamp::Timestamp;
use p2ptund::proto::noise::{Identity, Initiator, Received, Remote};
use p2ptund::proto::session::receiver_of;
use p2ptund::proto::tunnel::{Limits, Payload, Tunnel, TunnelEvent};
use p2ptund::proto::{Instant, Packet, Wall};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const OUR_KEY: [u8; 32] = [0x11; 32];
const THEIR_KEY: [u8; 32] = [0x22; 32];
const PSK: [u8; 32] = [0x33; 32];
const FROM_US: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

fn identity(key: [u8; 32]) -> Identity {
    Identity::new(PrivateKey::from_bytes(key))
}

/// An IPv4 packet of `len` bytes; `mark` tells it from others.
fn inner(len: usize, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; len];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 77, 0, 1, 10, 77, 0, 2]);
    packet
}

/// Both sides, and our side's clock.
struct Pair {
    ours: Tunnel,
    identity: Identity,
    theirs: Tunn,
    rng: ChaCha20Rng,
    now: Instant,
    next_index: u32,
}

impl Pair {
    fn new(psk: Option<[u8; 32]>) -> Self {
        let (us, them) = (identity(OUR_KEY), identity(THEIR_KEY));
        let mut ours = Tunnel::new(&us, them.public(), psk.map(PresharedKey::from_bytes), Limits::PAYLOAD);
        // What we offer goes unseen by who knows nothing of it.
        ours.set_aes(Instant::default(), true);
        let theirs = Tunn::new(THEIR_KEY.into(), x25519::PublicKey::from(us.public().0), psk, None, 9, None);
        let rng = ChaCha20Rng::from_seed([1; 32]);
        Self { ours, identity: us, theirs, rng, now: Instant::from_nanos(1_000_000_000), next_index: 100 }
    }

    fn wall(&self) -> Wall {
        Wall(Duration::from_secs(1_790_000_000) + self.now.since(Instant::default()))
    }

    fn start(&mut self) -> Vec<u8> {
        self.next_index += 1;
        let wall = self.wall();
        self.ours.start_handshake(self.now, wall, self.next_index, &mut self.rng).0.to_vec()
    }

    fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
        self.ours.handle_timeout(self.now);
    }

    /// What boringtun makes of a datagram: what it sends, or the inner packet.
    fn give_them(&mut self, datagram: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let mut out = [0; 2048];
        match self.theirs.decapsulate(Some(FROM_US), datagram, &mut out) {
            TunnResult::WriteToNetwork(bytes) => Ok(bytes.to_vec()),
            TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => Err(bytes.to_vec()),
            TunnResult::Done => Ok(Vec::new()),
            TunnResult::Err(error) => panic!("boringtun refuses: {error:?}"),
        }
    }

    /// A datagram of boringtun's to us: what we send back, or the inner packet.
    fn give_us(&mut self, datagram: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        match datagram[0] {
            1 => {
                let received = Received::open(&self.identity, datagram).expect("authentic");
                self.next_index += 1;
                let (response, _) = self
                    .ours
                    .handle_initiation(self.now, received, self.next_index, &mut self.rng)
                    .expect("neither a replay nor too soon");
                Ok(response.to_vec())
            }
            2 => {
                let index = receiver_of(datagram, 8).expect("long enough");
                self.ours.handle_response(self.now, index, datagram).expect("authentic");
                Ok(Vec::new())
            }
            3 => {
                let index = reply_receiver(datagram).expect("long enough");
                self.ours.handle_cookie(self.now, index, datagram).expect("authentic");
                Ok(Vec::new())
            }
            _ => {
                let mut packet = Packet::copy_from(datagram);
                let opened = self.ours.open(self.now, &mut packet).expect("authentic");
                match opened.payload {
                    Payload::Keepalive => Ok(Vec::new()),
                    Payload::Data(_) => Err(packet.bytes().to_vec()),
                }
            }
        }
    }

    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut packet = Packet::copy_from(inner);
        assert!(self.ours.seal(self.now, &mut packet), "there is a session");
        packet.bytes().to_vec()
    }

    fn they_seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut out = [0; 2048];
        match self.theirs.encapsulate(inner, &mut out) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("boringtun sends nothing: {other:?}"),
        }
    }

    fn exchange_pings(&mut self) {
        assert_eq!(self.ours.cipher(), Some(Cipher::ChaCha20Poly1305));
        for (len, mark) in [(20, 1), (21, 2), (84, 3), (1420, 4)] {
            let datagram = self.seal(&inner(len, mark));
            assert_eq!(self.give_them(&datagram), Err(inner(len, mark)));
            let datagram = self.they_seal(&inner(len, mark + 100));
            assert_eq!(self.give_us(&datagram), Err(inner(len, mark + 100)));
        }
    }

    fn connect_from_us(&mut self) {
        let initiation = self.start();
        let response = self.give_them(&initiation).expect("a response");
        assert_eq!(response.len(), 92);
        assert_eq!(self.give_us(&response), Ok(Vec::new()));
        let keepalive = self.seal(&[]);
        assert_eq!(keepalive.len(), 32);
        assert_eq!(self.give_them(&keepalive), Ok(Vec::new()));
    }

    /// boringtun begins, with a packet that waits for the session; `force` repeats a handshake that it thinks is going on.
    fn connect_from_them(&mut self) {
        let mut out = [0; 2048];
        let initiation = match self.theirs.format_handshake_initiation(&mut out, true) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("boringtun begins nothing: {other:?}"),
        };
        assert_eq!(initiation.len(), 148);
        let response = self.give_us(&initiation).expect("a response");
        assert!(!self.ours.is_established(self.now) || self.ours.current_index() != Some(self.next_index));
        let keepalive = self.give_them(&response).expect("a keepalive");
        assert_eq!(keepalive.len(), 32);
        assert_eq!(self.give_us(&keepalive), Ok(Vec::new()));
        assert_eq!(self.ours.current_index(), Some(self.next_index));
    }

    fn events(&mut self) -> Vec<TunnelEvent> {
        std::iter::from_fn(|| self.ours.poll_event()).collect()
    }
}

#[test]
fn we_initiate_and_both_carry_packets() {
    for psk in [None, Some(PSK)] {
        let mut pair = Pair::new(psk);
        pair.connect_from_us();
        pair.exchange_pings();
    }
}

#[test]
fn boringtun_initiates_and_both_carry_packets() {
    for psk in [None, Some(PSK)] {
        let mut pair = Pair::new(psk);
        pair.connect_from_them();
        pair.exchange_pings();
    }
}

#[test]
fn another_preshared_key_on_either_side_makes_no_session() {
    let mut pair = Pair::new(None);
    let us = identity(OUR_KEY);
    pair.theirs = Tunn::new(THEIR_KEY.into(), x25519::PublicKey::from(us.public().0), Some(PSK), None, 9, None);
    let initiation = pair.start();
    let response = pair.give_them(&initiation).expect("a response");
    let result = pair.ours.handle_response(pair.now, pair.next_index, &response);
    assert_eq!(result.err(), Some(Drop::Unauthentic));
    assert!(!pair.ours.is_established(pair.now));
}

#[test]
fn our_rekey_after_120_s_goes_through_and_the_old_session_opens_what_is_on_its_way() {
    let mut pair = Pair::new(Some(PSK));
    pair.connect_from_us();
    pair.exchange_pings();
    pair.events();
    let late = pair.they_seal(&inner(60, 7));
    pair.advance(Duration::from_secs(120));
    assert!(!pair.events().contains(&TunnelEvent::WantHandshake { retry: false }), "nothing is said, nothing is sent");
    let datagram = pair.seal(&inner(60, 8));
    assert_eq!(pair.give_them(&datagram), Err(inner(60, 8)));
    assert!(pair.events().contains(&TunnelEvent::WantHandshake { retry: false }));
    let before = pair.ours.current_index();
    pair.connect_from_us();
    assert_ne!(pair.ours.current_index(), before);
    assert_eq!(pair.give_us(&late), Err(inner(60, 7)));
    pair.exchange_pings();
}

#[test]
fn rekeys_begun_by_each_side_in_turn_go_through() {
    let mut pair = Pair::new(None);
    for _ in 0..3 {
        pair.connect_from_us();
        pair.exchange_pings();
        pair.advance(Duration::from_secs(121));
        pair.connect_from_them();
        pair.exchange_pings();
        pair.advance(Duration::from_secs(121));
    }
}

#[test]
fn boringtun_under_load_gets_its_proof_of_address_from_us() {
    let mut pair = Pair::new(None);
    let mut cookie = None;
    // It thinks itself under load from the tenth handshake in a second on.
    for _ in 0..40 {
        pair.advance(Duration::from_secs(6));
        let initiation = pair.start();
        let answer = pair.give_them(&initiation).expect("an answer");
        if answer.len() == 64 {
            cookie = Some(answer);
            break;
        }
    }
    pair.give_us(&cookie.expect("a cookie reply")).expect("taken");
    pair.advance(Duration::from_secs(6));
    let initiation = pair.start();
    assert_ne!(initiation[132..], [0; 16], "mac2 is there");
    let response = pair.give_them(&initiation).expect("an answer");
    assert_eq!(response.len(), 92, "the proof was accepted");
}

#[test]
fn we_under_load_get_our_proof_of_address_from_boringtun() {
    let mut pair = Pair::new(None);
    let from: SocketAddr = "198.51.100.2:51820".parse().expect("parses");
    let mut gate = Gate::new(pair.identity.public(), 0, &mut pair.rng);
    let begin = |pair: &mut Pair| {
        let mut out = [0; 2048];
        match pair.theirs.format_handshake_initiation(&mut out, true) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("boringtun begins nothing: {other:?}"),
        }
    };
    let initiation = begin(&mut pair);
    let Verdict::Reply(reply) = gate.judge(pair.now, &pair.identity, from, &initiation, &mut pair.rng) else {
        panic!("a cookie reply is due");
    };
    assert_eq!(pair.give_them(&reply), Ok(Vec::new()));
    let initiation = begin(&mut pair);
    assert_eq!(gate.judge(pair.now, &pair.identity, from, &initiation, &mut pair.rng), Verdict::Pass);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

/// The handshake's bytes from fixed keys and fixed randomness, as a file: a change of theirs is a change of the protocol.
/// boringtun answers the initiation, so they are WireGuard's.
#[test]
fn the_golden_handshake_is_still_made_to_the_byte_and_boringtun_answers_it() {
    let (us, them) = (identity(OUR_KEY), identity(THEIR_KEY));
    let psk = PresharedKey::from_bytes(PSK);
    let remote = Remote::new(&us, them.public());
    let stamp = Timestamp::after(Timestamp::default(), Wall(Duration::from_secs(1_790_000_000)));
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    let (initiator, initiation, caller) = Initiator::start(&us, &remote, Some(&psk), 0x0403_0201, stamp, &mut rng);
    let received = Received::open(&them, &initiation).expect("opens");
    let call = caller.call.seal(b"call");
    assert_eq!(received.exports.call.open(&call).as_deref(), Some(&b"call"[..]));
    let (response, theirs, answer) = received.respond(Some(&psk), 0x0807_0605, &mut rng);
    let answer = answer.seal(b"answer");
    let (ours, open) = initiator.finish(&response).expect("finishes");
    assert_eq!(open.open(&answer).as_deref(), Some(&b"answer"[..]));
    assert_eq!(ours.send, theirs.receive);

    let made = [
        ("initiation", hex(&initiation)),
        ("call", hex(&call)),
        ("response", hex(&response)),
        ("answer", hex(&answer)),
        ("initiator_sends", hex(&*ours.send)),
        ("responder_sends", hex(&*ours.receive)),
        ("initiator_probes", hex(&*ours.probe_send)),
        ("responder_probes", hex(&*ours.probe_receive)),
    ];
    let made: String = made.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
    let golden: String = include_str!("vectors/handshake.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(made, golden);

    let mut pair = Pair::new(Some(PSK));
    assert_eq!(pair.give_them(&initiation).expect("a response").len(), 92);
}
