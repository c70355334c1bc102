//! own-nat: the NATs that a kernel can't be, on a router of the lab.
//!
//! ```text
//! own-nat DEVICE --inside PREFIX --commands FIFO --counts FILE KIND ADDRESS…
//! ```
//!
//! The router's namespace routes what comes from inside to outside, and the other way, into the TUN device DEVICE (which must
//! exist); what is written back, the kernel routes on. None of the ADDRESSes may be the kernel's own. The first is in use, the
//! others are for a pool, and for a router that gets another. KIND is in the words of `own_nat/kind.rs`; the model is the
//! simulator's (`tests/sim/nat.rs`), with the true time and real packets.
//!
//! It reads commands from a FIFO, a line each:
//!
//! ```text
//! counts              writes what it counted into the file, as JSON (another file first, then renamed: nobody reads a half)
//! reboot [renumber]   forgets every mapping, gives ports from elsewhere on, and has the next public address
//! lambda RATE         other users make so many mappings a second from now on
//! ```
//!
//! One thread, one `poll`. Prints `ready` once packets are carried, and ends when the device goes away.

mod own_nat {
    pub mod gateway;
    pub mod kind;
    pub mod packet;
}
// The model is the simulator's, which uses more of it.
#[allow(dead_code)]
#[path = "../sim"]
mod sim {
    pub mod datagram;
    pub mod dice;
    pub mod nat;
}
mod tun;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnet::Ipv4Net;
use own_nat::gateway::Gateway;
use own_nat::kind;
use p2ptund::proto::Instant;
use sim::{datagram, dice, nat};

/// Packets carried before the commands are looked at again.
const BATCH: usize = 256;
/// A command is a word or two.
const MAX_COMMANDS: usize = 4096;

struct Options {
    device: String,
    inside: Ipv4Net,
    commands: PathBuf,
    counts: PathBuf,
    kind: String,
    addresses: Vec<Ipv4Addr>,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| carry(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("own-nat: {message}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let device = arguments.next().ok_or("the first argument is the TUN device")?;
    let mut option = |name: &str| match arguments.next() {
        Some(given) if given == name => arguments.next().ok_or(format!("{name} needs a value")),
        _ => Err(format!("{name} is missing")),
    };
    let inside = option("--inside")?;
    let (commands, counts) = (option("--commands")?.into(), option("--counts")?.into());
    let kind = arguments.next().ok_or("the kind of NAT is missing")?;
    let addresses: Vec<Ipv4Addr> = arguments
        .map(|address| address.parse().map_err(|_| format!("not an IPv4 address: {address}")))
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err("the public address is missing".into());
    }
    let inside = inside.parse().map_err(|_| format!("not an IPv4 prefix: {inside}"))?;
    Ok(Options { device, inside, commands, counts, kind, addresses })
}

fn carry(options: &Options) -> Result<(), String> {
    let kind = kind::parse(&options.kind, &options.addresses[1..])?;
    let mut gateway = Gateway::new(options.inside, options.addresses.clone(), kind.profile, kind.seed);
    let mut tun = tun::attach(&options.device)?;
    // Open for writing too, so that it does not end with the first who wrote.
    let mut commands = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&options.commands)
        .map_err(|error| format!("{}: {error}", options.commands.display()))?;
    println!("ready");

    let start = std::time::Instant::now();
    let mut buffer = vec![0; tun::MAX_PACKET];
    loop {
        tun::wait([tun.as_raw_fd(), commands.as_raw_fd()], None)?;
        for _ in 0..BATCH {
            let length = match tun.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // The lab was taken down, and the device with it.
                Err(_) => return Ok(()),
            };
            // Asked for each, for other users' mappings are counted to the instant.
            let elapsed = u64::try_from(start.elapsed().as_nanos()).map_err(|_| "has run for centuries")?;
            if gateway.handle_packet(Instant::from_nanos(elapsed), &mut buffer[..length]) {
                // The kernel refuses what it can't route: that packet is lost, as behind a real router.
                let _ = tun.write(&buffer[..length]);
            }
        }
        obey(&mut commands, &mut gateway, &options.counts)?;
    }
}

/// Does what the commands say that are there.
fn obey(commands: &mut File, gateway: &mut Gateway, counts: &Path) -> Result<(), String> {
    let mut buffer = [0; MAX_COMMANDS];
    let length = match commands.read(&mut buffer) {
        Ok(length) => length,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
        Err(error) => return Err(format!("commands: {error}")),
    };
    for line in String::from_utf8_lossy(&buffer[..length]).lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["counts"] => write_counts(gateway, counts)?,
            ["reboot"] => gateway.reboot(false),
            ["reboot", "renumber"] => gateway.reboot(true),
            ["lambda", text] => match kind::rate(text) {
                Some(rate) => gateway.set_cross_traffic(rate),
                None => eprintln!("own-nat: not a rate: {text}"),
            },
            _ => eprintln!("own-nat: not a command: {line}"),
        }
    }
    Ok(())
}

fn write_counts(gateway: &Gateway, path: &Path) -> Result<(), String> {
    let written = path.with_extension("new");
    let mut text = gateway.counts().to_string();
    text.push('\n');
    std::fs::write(&written, text)
        .and_then(|()| std::fs::rename(&written, path))
        .map_err(|error| format!("{}: {error}", path.display()))
}
