//! What watches a run: the transcript, and the detector of machines that never come to rest.

use std::fmt;
use std::time::Duration;

use p2ptund::proto::Instant;

use crate::world::Datagram;

/// A hash over everything that happened (FNV-1a, but eight bytes at a time: a large search has millions of datagrams), and the text of it where asked for.
pub struct Transcript {
    hash: u64,
    /// Prints each line as it happens.
    pub loud: bool,
}

impl Default for Transcript {
    fn default() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, loud: false }
    }
}

impl Transcript {
    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn datagram(&mut self, now: Instant, sign: char, datagram: &Datagram) {
        self.feed(&now.as_nanos().to_le_bytes());
        self.feed(&[sign as u8, datagram.ttl]);
        for end in [datagram.src, datagram.dst] {
            match end.ip() {
                std::net::IpAddr::V4(ip) => self.feed(&ip.octets()),
                std::net::IpAddr::V6(ip) => self.feed(&ip.octets()),
            }
            self.feed(&end.port().to_le_bytes());
        }
        self.feed(&datagram.payload);
        if self.loud {
            let Datagram { src, dst, ttl, whole: _, payload } = datagram;
            let head: String = payload.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            println!("{} {sign} {src} → {dst} ttl {ttl} {} bytes {head}", Clock(now), payload.len());
        }
    }

    pub fn note(&mut self, now: Instant, text: &str) {
        self.feed(&now.as_nanos().to_le_bytes());
        self.feed(text.as_bytes());
        if self.loud {
            println!("{} · {text}", Clock(now));
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    /// The turn brings the high bits, which a product takes no further, back down.
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(23) ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

struct Clock(Instant);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:10.6}", self.0.since(crate::world::START).as_secs_f64())
    }
}

/// Finds a machine whose deadline lies in the past again and again, or that wakes without end.
#[derive(Default)]
pub struct Busy {
    at: Instant,
    same: u32,
    since: Instant,
    wakes: u32,
}

/// A machine that has something to do at one instant does it in one go; some slack for several timers that fall together.
const MOST_AT_ONCE: u32 = 100;
/// A volley of 2,048 shots, each at its own time, twice over, leaves this much room.
const MOST_A_SECOND: u32 = 20_000;

impl Busy {
    pub fn woke(&mut self, now: Instant) -> Result<(), String> {
        if self.at == now {
            self.same += 1;
        } else {
            (self.at, self.same) = (now, 1);
        }
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.since, self.wakes) = (now, 0);
        }
        self.wakes += 1;
        if self.same > MOST_AT_ONCE {
            return Err(format!("woke {MOST_AT_ONCE} times at one instant: its deadline stays in the past"));
        }
        if self.wakes > MOST_A_SECOND {
            return Err(format!("woke {MOST_A_SECOND} times within a second"));
        }
        Ok(())
    }
}
