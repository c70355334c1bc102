//! cross-traffic: other users of a NAT, who take new ports at a steady rate.
//!
//! ```text
//! cross-traffic RATE [SEED]
//! ```
//!
//! Sends one small datagram for each new mapping, at the instants of a Poisson process of RATE a second, each to another address
//! and port of 198.18.0.0/15 (the benchmarks' network, RFC 2544), which the lab's internet drops without a word. So each is a flow that
//! a NAT by address and port, or by address, has not seen. Ends when it is ended.

#[path = "../sim/dice.rs"]
#[allow(dead_code)]
mod dice;
mod timers;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::ExitCode;
use std::time::Instant;

use dice::Dice;

fn main() -> ExitCode {
    match send(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cross-traffic: {message}");
            ExitCode::FAILURE
        }
    }
}

fn send(arguments: &[String]) -> Result<(), String> {
    let rate: f64 = arguments.first().and_then(|rate| rate.parse().ok()).ok_or("the first argument is the rate")?;
    if !(0.001..=100_000.0).contains(&rate) {
        return Err(format!("not a rate: {rate}"));
    }
    let seed = arguments.get(1).map_or(Ok(1), |seed| seed.parse()).map_err(|_| "the second argument is the seed")?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| format!("socket: {error}"))?;
    let mut dice = Dice::new(seed);
    timers::precise_timers();
    let start = Instant::now();
    let mut due = std::time::Duration::ZERO;
    for flow in 0u32.. {
        due += dice.gap(rate);
        // What a late wake-up missed is sent at once, so that the rate holds.
        if let Some(left) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(left);
        }
        // The network's size, 2¹⁷ addresses: the first comes again after 44 s at 3,000 a second, with another port.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) | (flow & 0x1_ffff));
        let port = 9 + (flow >> 17) as u16;
        // A router whose table is full refuses; the next one may do.
        let _ = socket.send_to(b"x", SocketAddrV4::new(address, port));
    }
    Ok(())
}
