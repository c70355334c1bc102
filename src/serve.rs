//! Discovery and rendezvous servers: as a process of their own (`p2ptund serve`), and inside a mesh member
//! (`[serve.discovery]`, `[serve.rendezvous]`).
//!
//! ```text
//! all listeners ── one batch a turn ── discovery (stateless) or rendezvous ── answers of the batch ── one send a socket
//! ```
//!
//! Each listener is bound to the address that was written, so an answer leaves from where it was asked for. A listener's
//! number is its [`SocketId`]: discovery's first, rendezvous's behind them.

mod limit;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, trace};

use crate::config::{Serve, ServerConfig};
use crate::daemon::notify::{self, Watchdog};
use crate::io::clock;
use crate::io::udp::{Datagram, RecvBatch, Sockets};
use crate::proto::{Instant, SocketId, Transmit, discovery, rendezvous};

use limit::Limit;

/// Datagrams that one turn takes: what one system call takes.
const BATCH: usize = 64;
/// Payload of an Ethernet frame: no request, ours or STUN's, is longer.
const LONGEST: usize = 1500;
/// tokio's timers stand still while the machine sleeps and the core's clock does not; so it is looked at this often.
const MAX_SLEEP: Duration = Duration::from_secs(5);
/// How often the number of members in `systemctl status` may change.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Runs the servers of `config` until SIGTERM or SIGINT.
///
/// # Errors
/// One sentence for the user: an address that can't be listened on, with what to do about it.
pub async fn run(config: ServerConfig) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be caught")?;
    let mut servers = Servers::bind(&config.serve)?;
    servers.supervise();
    notify::ready(&servers.status());
    tokio::select! {
        never = servers.run() => match never {},
        _ = terminate.recv() => info!("SIGTERM: the servers stop"),
        _ = interrupt.recv() => info!("SIGINT: the servers stop"),
    }
    notify::stopping();
    Ok(())
}

/// All listeners and the two machines behind them.
pub struct Servers {
    sockets: Sockets,
    discovery: discovery::server::Server,
    /// How many of the listeners are discovery's: the first ones.
    discovery_listeners: usize,
    rendezvous: Option<rendezvous::server::Server>,
    limit: Limit,
    batch: RecvBatch,
    answers: Vec<Transmit>,
    /// systemd's, where the servers are the whole process; inside a member its own loop feeds it.
    supervision: Option<Supervision>,
}

struct Supervision {
    watchdog: Watchdog,
    status_next: Instant,
    members: usize,
}

impl Servers {
    /// Binds every listener and says, at INFO, what listens where. To be called within a tokio runtime.
    ///
    /// # Errors
    /// One sentence that names the address and the remedy.
    pub fn bind(config: &Serve) -> Result<Self> {
        let mut sockets = Sockets::new()?;
        let mut bind = |id: usize, address: SocketAddr, table: &str| {
            let id = SocketId(u32::try_from(id)?);
            sockets.bind_one(id, address).map_err(|error| refusal(address, table, &error))
        };
        let mut discovery = Vec::new();
        for address in config.discovery.iter().flat_map(|discovery| &discovery.listen) {
            discovery.push(bind(discovery.len(), *address, "discovery")?);
        }
        let mut rendezvous = None;
        if let Some(config) = &config.rendezvous {
            for (at, address) in config.listen.iter().enumerate() {
                let bound = bind(discovery.len() + at, *address, "rendezvous")?;
                info!(address = %bound, "rendezvous server listens");
            }
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
            rendezvous = Some(rendezvous::server::Server::new(config.private_key.clone(), config.allow.clone(), seed));
        }
        for address in &discovery {
            info!(%address, "discovery server listens");
        }
        Ok(Self {
            sockets,
            discovery_listeners: discovery.len(),
            discovery: discovery::server::Server::new(discovery),
            rendezvous,
            limit: Limit::new(),
            batch: RecvBatch::new(BATCH, LONGEST),
            answers: Vec::with_capacity(BATCH),
            supervision: None,
        })
    }

    /// From now on this loop tells systemd that it lives, and how many members it knows.
    fn supervise(&mut self) {
        let now = clock::now();
        self.supervision = Some(Supervision { watchdog: Watchdog::from_env(now), status_next: now, members: 0 });
    }

    fn status(&self) -> String {
        match &self.rendezvous {
            Some(server) => format!("{} members registered", server.members()),
            None => "discovery only".to_owned(),
        }
    }

    /// Serves until dropped. Nothing that the network sends ends it.
    pub async fn run(&mut self) -> Infallible {
        loop {
            let now = clock::now();
            let due = self.rendezvous.as_ref().and_then(|server| server.poll_timeout());
            if let Some(server) = self.rendezvous.as_mut().filter(|_| due.is_some_and(|due| due <= now)) {
                server.handle_timeout(now);
            }
            let count = self.take_batch(now);
            self.send_answers().await;
            self.tell_systemd(now);
            if count > 0 {
                tokio::task::yield_now().await;
            } else {
                self.sleep().await;
            }
        }
    }

    fn take_batch(&mut self, now: Instant) -> usize {
        let count = self.sockets.recv_batch(&mut self.batch);
        for (received, packet) in self.batch.iter_mut() {
            let listener = received.socket.0 as usize;
            if let Some(at) = listener.checked_sub(self.discovery_listeners) {
                if let Some(server) = &mut self.rendezvous {
                    server.handle_datagram(now, at, received.from, packet.bytes_mut());
                }
                continue;
            }
            let answer = self.discovery.handle_datagram(listener, received.from, packet.bytes());
            let Some((listener, to, bytes)) = answer else { continue };
            if bytes.len() > packet.bytes().len() && !self.limit.allows(now, received.from.ip()) {
                trace!(from = %received.from, "too many requests of one source");
                continue;
            }
            self.answers.push(transmit(listener, to, bytes));
        }
        count
    }

    async fn send_answers(&mut self) {
        loop {
            while self.answers.len() < BATCH {
                let Some((listener, to, bytes)) = self.rendezvous.as_mut().and_then(|server| server.poll_transmit())
                else {
                    break;
                };
                self.answers.push(transmit(self.discovery_listeners + listener, to, bytes));
            }
            if self.answers.is_empty() {
                return;
            }
            self.sockets.send_batch(datagrams(&self.answers)).await;
            self.answers.clear();
        }
    }

    fn tell_systemd(&mut self, now: Instant) {
        let status = self.status();
        let members = self.rendezvous.as_ref().map_or(0, |server| server.members());
        let Some(supervision) = &mut self.supervision else { return };
        supervision.watchdog.handle_turn(now);
        if members != supervision.members && now >= supervision.status_next {
            supervision.members = members;
            supervision.status_next = now + STATUS_EVERY;
            debug!(members, "members registered");
            notify::status(&status);
        }
    }

    async fn sleep(&self) {
        let core = self.rendezvous.as_ref().and_then(|server| server.poll_timeout());
        let watchdog = self.supervision.as_ref().and_then(|supervision| supervision.watchdog.poll_timeout());
        let deadline = core.into_iter().chain(watchdog).min();
        let pause = deadline.map_or(MAX_SLEEP, |deadline| clock::until(deadline).min(MAX_SLEEP));
        tokio::select! {
            // An error here comes again when the sockets are read, and costs one datagram there.
            _ = self.sockets.readable() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// With a name of its own, because rustc can't yet prove that a future which holds the closure may go to another thread.
fn datagrams(answers: &[Transmit]) -> impl Iterator<Item = Datagram<'_>> + Send {
    answers.iter().map(Datagram::from)
}

fn transmit(listener: usize, to: SocketAddr, payload: Vec<u8>) -> Transmit {
    // Listeners were numbered by a u32 when they were bound.
    let socket = SocketId(u32::try_from(listener).unwrap_or(u32::MAX));
    Transmit { socket, to, ttl: None, whole: false, payload }
}

/// Why `address` can't be listened on, and what to do.
fn refusal(address: SocketAddr, table: &str, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another process has it: stop that, or write another ADDRESS:PORT in [{table}] listen")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address: write one that `ip address` shows in [{table}] listen")
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need CAP_NET_BIND_SERVICE: write a higher one in [{table}] listen")
        }
        _ => format!("check [{table}] listen"),
    };
    anyhow!("can't listen on {address} ({error}); {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_listener_is_named_with_its_remedy() {
        let address: SocketAddr = "192.0.2.9:4270".parse().expect("an address");
        for (kind, remedy) in [
            (io::ErrorKind::AddrInUse, "another process has it"),
            (io::ErrorKind::AddrNotAvailable, "no such address"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
        ] {
            let sentence = refusal(address, "discovery", &io::Error::from(kind)).to_string();
            assert!(sentence.contains("192.0.2.9:4270") && sentence.contains(remedy), "{sentence}");
            assert!(sentence.contains("[discovery] listen"), "{sentence}");
        }
    }
}
