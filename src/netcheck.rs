//! `p2ptund netcheck`: what the NATs in front of this machine do, as the core's own discovery sees it, without a TUN device
//! and without root.
//!
//! Discovery asks from the config's `listen_port`, because a NAT may treat low ports and high ones differently; where a
//! daemon has that port, from any. Meanwhile the router is asked to map *another* local port, because a mapping of the asking
//! one would hide the very behaviour that is looked for. That mapping is removed again.

mod mapping;
mod words;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::future::join_all;

use crate::config::Lookout;
use crate::io::udp::{Datagram, RecvBatch, Sockets};
use crate::io::{clock, links, resolve};
use crate::proto::discovery::client::Client;
use crate::proto::snapshot::Nat;
use crate::proto::{Action, SocketId, Transmit};

use mapping::Mapping;

/// The client gives up on its questions long before; this is for a machine that was asleep in between.
const LONGEST: Duration = Duration::from_secs(30);
/// Payload of an Ethernet frame: no answer is longer.
const ETHERNET: usize = 1500;
/// Sixteen questions are under way at most.
const BATCH: usize = 16;

/// What was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The `nat` object of `status --json`, with the observations behind it.
    pub nat: Nat,
    mapping: Mapping,
}

impl fmt::Display for Findings {
    /// In plain words: each property in one line, its observations below.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words::report(&self.nat, &self.mapping.words))
    }
}

/// Asks the discovery servers and the router. Tells on stderr what it is waiting for.
///
/// # Errors
/// One sentence for the user: no socket can be had.
pub async fn run(lookout: Lookout) -> Result<Findings> {
    let (nat, mapping) = tokio::join!(discover(&lookout), mapping::probe(&lookout.port_mapping));
    Ok(Findings { nat: Nat { port_mapping: mapping.by, ..nat? }, mapping })
}

/// The survey of the core's discovery client, carried out.
async fn discover(lookout: &Lookout) -> Result<Nat> {
    let (mut sockets, port) = bind(lookout.listen_port)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
    let mut client = Client::new(lookout.servers.clone(), seed);
    look_up(&mut client).await;
    eprintln!("Asking {} discovery servers from UDP port {port} …", lookout.servers.len());

    let own: Vec<IpAddr> = links::own_addresses("").await.unwrap_or_default().iter().map(|net| net.addr()).collect();
    let start = clock::now();
    client.start(start, port, &own, SocketId::FIRST_EXTRA);
    let mut batch = RecvBatch::new(BATCH, ETHERNET);
    loop {
        let now = clock::now();
        client.handle_timeout(now);
        carry_out(&mut client, &mut sockets).await;
        if client.is_finished() || now.since(start) > LONGEST {
            return Ok(client.nat(now));
        }
        let due = client.poll_timeout().unwrap_or(start + LONGEST);
        tokio::select! {
            readable = sockets.readable() => readable.context("the sockets can't be waited for")?,
            () = tokio::time::sleep(clock::until(due).min(LONGEST)) => {}
        }
        let now = clock::now();
        sockets.recv_batch(&mut batch);
        for (_, packet) in batch.iter_mut() {
            // What answers none of our questions is anybody's.
            let _ = client.handle_datagram(now, packet.bytes());
        }
    }
}

/// Sockets on `listen_port`, or on any port where a daemon has that one; and the port that it came to.
fn bind(listen_port: u16) -> Result<(Sockets, u16)> {
    let sockets = match Sockets::bind(listen_port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && listen_port != 0 => {
            eprintln!("UDP port {listen_port} is in use, most likely by a running daemon; another one is taken.");
            Sockets::bind(0)
        }
        bound => bound,
    };
    let sockets = sockets.context("no UDP socket can be had")?;
    let port = sockets.local_address(SocketId::MAIN_V4).map_or(0, |address| address.port());
    Ok((sockets, port))
}

/// Looks up the names of servers, all at once, before any is asked: the survey's questions belong close together.
async fn look_up(client: &mut Client) {
    let mut names = Vec::new();
    while let Some(action) = client.poll_action() {
        if let Action::Resolve { name } = action {
            names.push(name);
        }
    }
    if names.is_empty() {
        return;
    }
    eprintln!("Looking up {} …", names.join(", "));
    let found = join_all(names.iter().map(|name| resolve::resolve(name))).await;
    for (name, addresses) in names.iter().zip(found) {
        if addresses.is_empty() {
            eprintln!("{name} does not resolve; it is not asked.");
        }
        client.handle_resolved(clock::now(), name, &addresses);
    }
}

async fn carry_out(client: &mut Client, sockets: &mut Sockets) {
    while let Some(action) = client.poll_action() {
        match action {
            Action::OpenSocket { id, port } => {
                if let Err(error) = sockets.open(id, port) {
                    eprintln!("No socket for the filtering test: {error}.");
                }
            }
            Action::CloseSocket { id } => sockets.close(id),
            // A name that could not be looked up a moment ago is not waited for.
            Action::Resolve { .. } | Action::Event(_) => {}
        }
    }
    let transmits: Vec<Transmit> = std::iter::from_fn(|| client.poll_transmit()).collect();
    sockets.send_batch(transmits.iter().map(Datagram::from)).await;
}
