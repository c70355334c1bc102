//! `p2ptund netcheck`: what the NATs in front of this machine do, as the core's own discovery sees it, without a TUN device
//! and without root.
//!
//! Discovery asks from the config's `listen_port`, because a NAT may treat low ports and high ones differently; where a
//! daemon has that port, from any. Meanwhile the router is asked to map *another* local port, because a mapping of the asking
//! one would hide the very behaviour that is looked for. That mapping is removed again.

mod inquiry;
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
use crate::proto::config::Punch;
use crate::proto::discovery::client::Client;
use crate::proto::message_control::Report;
use crate::proto::plan::prospect::{Kind, prospect};
use crate::proto::snapshot::Nat;
use crate::proto::{Action, Instant, SocketId, Transmit};

use inquiry::Inquiry;
use mapping::Mapping;

/// Who waits longer than this is told for what.
const PATIENCE: Duration = Duration::from_secs(1);
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
    prospects: Vec<words::Prospect>,
}

impl fmt::Display for Findings {
    /// In plain words: each property in one line, with how sure it is; what was seen; and what it means for calls.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words::report(&self.nat, &self.mapping.words, &self.prospects))
    }
}

/// Asks the discovery servers and the router. Tells on stderr what it is waiting for.
///
/// # Errors
/// One sentence for the user: no socket can be had.
pub async fn run(lookout: Lookout) -> Result<Findings> {
    let router = told("the router, whether it maps ports", mapping::probe(&lookout.port_mapping));
    let (found, mapping) = tokio::join!(told("the discovery servers", discover(&lookout)), router);
    let (inquiry, now) = found?;
    let nat = Nat { port_mapping: mapping.by, ..inquiry.nat(now) };
    let prospects = prospects(&inquiry.report(now, mapping.external), &lookout.punch);
    Ok(Findings { nat, mapping, prospects })
}

/// Says what it is that takes so long.
async fn told<T>(whom: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    match tokio::time::timeout(PATIENCE, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            eprintln!("Waiting for {whom} …");
            work.await
        }
    }
}

/// What a call would come to, for each kind of peer.
fn prospects(ours: &Report, punch: &Punch) -> Vec<words::Prospect> {
    Kind::ALL.iter().filter_map(|kind| Some((*kind, prospect(ours, *kind, punch)?))).collect()
}

/// The inquiry, carried out to its end, and when that was.
async fn discover(lookout: &Lookout) -> Result<(Inquiry, Instant)> {
    let (mut sockets, port) = bind(lookout.listen_port)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
    let mut client = Client::new(lookout.servers.clone(), seed);
    look_up(&mut client).await;
    eprintln!("Asking {} discovery servers from UDP port {port} …", lookout.servers.len());

    let own: Vec<IpAddr> = links::own_addresses("").await.unwrap_or_default().iter().map(|net| net.addr()).collect();
    let start = clock::now();
    client.start(start, port, &own, SocketId::FIRST_EXTRA);
    let mut inquiry = Inquiry::new(start, client, port);
    let mut batch = RecvBatch::new(BATCH, ETHERNET);
    loop {
        let now = clock::now();
        let done = inquiry.advance(now);
        carry_out(inquiry.client(), &mut sockets).await;
        if done {
            return Ok((inquiry, now));
        }
        tokio::select! {
            readable = sockets.readable() => readable.context("the sockets can't be waited for")?,
            () = tokio::time::sleep(clock::until(inquiry.poll_timeout(now))) => {}
        }
        let now = clock::now();
        sockets.recv_batch(&mut batch);
        for (_, packet) in batch.iter_mut() {
            // What answers none of our questions is anybody's.
            let _ = inquiry.client().handle_datagram(now, packet.bytes());
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
                    eprintln!("No further socket to ask from: {error}.");
                }
            }
            Action::CloseSocket { id } => sockets.close(id),
            // A name that could not be looked up a moment ago is not waited for.
            Action::Resolve { .. } | Action::Inject { .. } | Action::Overhear { .. } | Action::Event(_) => {}
        }
    }
    let transmits: Vec<Transmit> = std::iter::from_fn(|| client.poll_transmit()).collect();
    sockets.send_batch(transmits.iter().map(Datagram::from)).await;
}
