//! slow-wire: the delay, loss and extra hops of a lab's internet, for kernels without netem.
//!
//! ```text
//! slow-wire DEVICE [--seed N] [--hops N] PREFIX=DELAY_MS[,LOSS_PERCENT] …
//! ```
//!
//! The internet namespace routes every packet that it forwards into the TUN device DEVICE (which must exist). Each is held for
//! the sum of its source's and its destination's delay, lost with the odds of either, taken `--hops` times off its TTL, and
//! written back for the kernel to route on. Packets of one pair of sites keep their order.
//!
//! One thread, one heap, one `poll` with a deadline: idle when the wire is. Prints `ready` once packets are carried, and
//! ends when the device goes away.

mod timers;
mod tun;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use timers::precise_timers;
use tun::{MAX_PACKET, attach, wait};

/// Packets on the wire at most: 20,000 packets a second for three seconds. What comes on top is lost, as on a real one.
const CAPACITY: usize = 60_000;
/// Packets read in one go before those that are due are written, so that a flood in can't starve the way out.
const BATCH: usize = 64;

struct Site {
    prefix: IpNet,
    delay: Duration,
    /// In thousandths of a percent, so that it is compared with a whole random number.
    loss: u32,
}

struct Options {
    device: String,
    seed: u64,
    hops: u8,
    sites: Vec<Site>,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| carry(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("slow-wire: {message}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let device = arguments.next().ok_or("the first argument is the TUN device")?;
    let mut options = Options { device, seed: 1, hops: 0, sites: Vec::new() };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seed" => options.seed = number(arguments.next())?,
            "--hops" => options.hops = number(arguments.next())?,
            site => options.sites.push(parse_site(site)?),
        }
    }
    Ok(options)
}

fn number<T: std::str::FromStr>(text: Option<String>) -> Result<T, String> {
    let text = text.ok_or("an option's number is missing")?;
    text.parse().map_err(|_| format!("not a number that fits: {text}"))
}

fn parse_site(text: &str) -> Result<Site, String> {
    let fault = || format!("not PREFIX=DELAY_MS[,LOSS_PERCENT]: {text}");
    let (prefix, rest) = text.split_once('=').ok_or_else(fault)?;
    let (delay, loss) = rest.split_once(',').unwrap_or((rest, "0"));
    let delay: f64 = delay.parse().map_err(|_| fault())?;
    let loss: f64 = loss.parse().map_err(|_| fault())?;
    Ok(Site {
        prefix: prefix.parse().map_err(|_| fault())?,
        delay: Duration::try_from_secs_f64(delay / 1000.0).map_err(|_| fault())?,
        loss: (loss * 1000.0) as u32,
    })
}

/// A packet on its way. Ordered by when it is due, then by when it came.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Instant,
    order: u64,
    packet: Vec<u8>,
}

fn carry(options: &Options) -> Result<(), String> {
    let mut tun = attach(&options.device)?;
    precise_timers();
    println!("ready");

    let mut dice = Dice(options.seed);
    let mut wire: BinaryHeap<Reverse<Held>> = BinaryHeap::new();
    let mut buffer = vec![0; MAX_PACKET];
    let mut order = 0;
    loop {
        let due = wire.peek().map(|Reverse(held)| held.due.saturating_duration_since(Instant::now()));
        wait([tun.as_raw_fd()], due)?;
        for _ in 0..BATCH {
            let packet = match tun.read(&mut buffer) {
                Ok(length) => &mut buffer[..length],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // The lab was taken down, and the device with it.
                Err(_) => return Ok(()),
            };
            let Some(delay) = passage(packet, options, &mut dice) else { continue };
            if wire.len() < CAPACITY {
                order += 1;
                wire.push(Reverse(Held { due: Instant::now() + delay, order, packet: packet.to_vec() }));
            }
        }
        let now = Instant::now();
        while wire.peek().is_some_and(|Reverse(held)| held.due <= now) {
            if let Some(Reverse(held)) = wire.pop() {
                // The kernel refuses what it can't route: that packet is lost, as on a real wire.
                let _ = tun.write(&held.packet);
            }
        }
    }
}

/// How long a packet takes, with its TTL made smaller; `None` where it is lost on the way.
fn passage(packet: &mut [u8], options: &Options, dice: &mut Dice) -> Option<Duration> {
    let (from, to) = addresses(packet)?;
    let mut delay = Duration::ZERO;
    for site in &options.sites {
        for end in [from, to] {
            if site.prefix.contains(&end) {
                delay += site.delay;
                if site.loss > 0 && dice.below(100_000) < site.loss {
                    return None;
                }
            }
        }
    }
    pass_hops(packet, options.hops)?;
    Some(delay)
}

fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    fn part<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
        packet.get(at..at + N)?.try_into().ok()
    }
    match packet.first()? >> 4 {
        4 => Some((Ipv4Addr::from(part::<4>(packet, 12)?).into(), Ipv4Addr::from(part::<4>(packet, 16)?).into())),
        6 => Some((Ipv6Addr::from(part::<16>(packet, 8)?).into(), Ipv6Addr::from(part::<16>(packet, 24)?).into())),
        _ => None,
    }
}

/// Takes `hops` off the TTL or hop limit, and mends IPv4's checksum; `None` where the packet does not live that long.
fn pass_hops(packet: &mut [u8], hops: u8) -> Option<()> {
    if hops == 0 {
        return Some(());
    }
    let version = packet.first()? >> 4;
    let at = if version == 4 { 8 } else { 7 };
    let ttl = packet.get_mut(at)?;
    *ttl = ttl.checked_sub(hops).filter(|left| *left > 0)?;
    if version == 4 {
        // RFC 1624, equation 3: the TTL is the upper half of its 16-bit word, so the sum grows by `hops` in the upper half.
        let sum = packet.get_mut(10..12)?;
        let grown = u32::from(u16::from_be_bytes([sum[0], sum[1]])) + (u32::from(hops) << 8);
        let folded = ((grown & 0xffff) + (grown >> 16)) as u16;
        sum.copy_from_slice(&folded.to_be_bytes());
    }
    Some(())
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to lose packets by.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % u64::from(limit)) as u32
    }
}
