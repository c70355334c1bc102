//! The only loop: io → [`Node`] → io.
//!
//! ```text
//! one turn:  due timeouts → actions, then transmits → one bounded batch from each ready source → again
//!            TUN    → handle_tun (sealed in place)      → one send a batch
//!            UDP    → handle_datagram (opened in place) → one write to the TUN a batch
//!            inputs → addresses, port mapping, names, control socket, signals
//! nothing ready: sleep until Node::poll_timeout, or the watchdog
//! ```
//!
//! Every source gives at most one batch a turn, so none starves another: a flood on UDP leaves the TUN, the control socket
//! and the timers their share. After a turn that found work the runtime gets one too, for the tasks that send [`Input`].
//! A packet that can't be handled or sent is dropped and counted; it ends neither its batch nor the loop.
//!
//! The loop holds no policy: what concerns more than packets (a stop, a reload, a lost device) ends [`Driver::run`] with an
//! [`Exit`], and the daemon decides.

mod journal;
mod pings;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::anyhow;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tracing::{debug, info, trace};

use crate::control::{Reply, Request};
use crate::daemon::notify::Watchdog;
use crate::io::tun::Tun;
use crate::io::udp::{Datagram, RecvBatch, Sockets};
use crate::io::{clock, resolve};
use crate::proto::config::Config;
use crate::proto::node::{MappedPort, Node, Route};
use crate::proto::packet::{HEADROOM, TAILROOM};
use crate::proto::{Action, Event, Instant, Packet, Transmit};

use journal::Journal;
use pings::Pings;

/// Packets that one source gives in a turn. 64 packets of 1,420 bytes take about 100 µs to seal: short enough that a timer
/// or the other direction does not notice, long enough to share each system call's cost.
const BATCH: usize = 64;
/// Inputs besides packets that one turn takes; they are rare, but a reload may follow a burst of resolved names.
const INPUTS_A_TURN: usize = 16;
/// Payload of an Ethernet frame: no control message, ours or STUN's, is longer.
const ETHERNET: usize = 1500;
/// How many inputs may wait; senders wait behind that.
pub const INPUTS: usize = 64;
/// tokio's timers stand still while the machine sleeps and the core's clock does not; so the loop looks at the latter at
/// least this often, and a session too old after a resume is seen to be within this time.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// What reaches the loop besides packets and time.
#[derive(Debug)]
pub enum Input {
    /// This machine's own addresses are these now.
    Addresses(Vec<IpNet>),
    /// A router mapped the main port, or (`None`) does no longer.
    PortMapping(Option<MappedPort>),
    /// A name was looked up; no addresses where that failed.
    Resolved { name: String, addresses: Vec<IpAddr> },
    /// A user of the control socket asks.
    Control(Request, Reply),
    /// The daemon must decide.
    Exit(Exit),
}

/// Why [`Driver::run`] returned.
#[derive(Debug)]
pub enum Exit {
    /// A signal or a user says so.
    Stop,
    /// The config is to be read again; `answer` is a user who waits for what comes of it.
    Reload { answer: Option<Reply> },
    /// Something that the daemon can't do without is gone.
    Failed(anyhow::Error),
}

/// Sends without waiting: the loop may be waiting for this very task (a reload) and take no inputs meanwhile.
pub fn tell(inputs: &mpsc::Sender<Input>, input: Input) {
    let inputs = inputs.clone();
    tokio::spawn(async move {
        // The loop has ended where this fails.
        let _ = inputs.send(input).await;
    });
}

/// The loop with all that it owns.
pub struct Driver {
    node: Node,
    tun: Tun,
    sockets: Sockets,
    inputs: mpsc::Receiver<Input>,
    /// For the tasks that the loop starts itself.
    sender: mpsc::Sender<Input>,
    journal: Journal,
    pings: Pings<Reply>,
    watchdog: Watchdog,
    /// One batch from the TUN device; those to send are moved to the front, each with its route at the same index.
    inner: Vec<Packet>,
    routes: Vec<Route>,
    /// One batch from the sockets, and which of its packets are for the TUN device.
    outer: RecvBatch,
    opened: Vec<usize>,
    /// The core's own datagrams.
    transmits: Vec<Transmit>,
}

impl Driver {
    /// `inputs` is the other end of `sender`. Nothing is sent or read before [`Driver::run`].
    pub fn new(
        node: Node,
        tun: Tun,
        sockets: Sockets,
        (sender, inputs): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        peers: usize,
        mtu: u16,
    ) -> Self {
        Self {
            node,
            tun,
            sockets,
            inputs,
            sender,
            journal: Journal::new(peers, clock::now()),
            pings: Pings::new(),
            watchdog: Watchdog::from_env(clock::now()),
            inner: inner_room(mtu),
            routes: Vec::with_capacity(BATCH),
            outer: outer_room(mtu),
            opened: Vec::with_capacity(BATCH),
            transmits: Vec::with_capacity(BATCH),
        }
    }

    /// Drives until the daemon must decide something. Call it again to go on.
    pub async fn run(&mut self) -> Exit {
        loop {
            let now = clock::now();
            self.watchdog.handle_turn(now);
            if self.node.poll_timeout().is_some_and(|due| due <= now) {
                self.node.handle_wall_clock(now, clock::wall());
                self.node.handle_timeout(now);
            }
            self.journal.handle_drops(now, self.node.drops());
            self.drain(now).await;

            let mut busy = false;
            match (self.take_tun().await, self.take_udp().await) {
                (Ok(tun), Ok(udp)) => busy |= tun | udp,
                (Err(error), _) | (_, Err(error)) => return Exit::Failed(self.lost(&error)),
            }
            for _ in 0..INPUTS_A_TURN {
                let Ok(input) = self.inputs.try_recv() else { break };
                busy = true;
                if let Some(exit) = self.handle_input(input).await {
                    return exit;
                }
            }
            if busy {
                tokio::task::yield_now().await;
            } else if let Some(exit) = self.sleep().await {
                return exit;
            }
        }
    }

    /// Takes over a changed config: see [`Node::handle_config`].
    pub async fn handle_config(&mut self, config: Config) {
        self.inner = inner_room(config.mtu);
        self.outer = outer_room(config.mtu);
        self.journal.handle_peers(config.peers.iter().map(|peer| peer.name.as_str()));
        let now = clock::now();
        self.node.handle_config(now, config);
        self.drain(now).await;
    }

    /// One line for `systemctl status`.
    pub fn status(&self) -> String {
        self.journal.status()
    }

    /// Waits for the first of: a packet, an input, the core's deadline, the watchdog's.
    async fn sleep(&mut self) -> Option<Exit> {
        let deadline = self.node.poll_timeout().into_iter().chain(self.watchdog.poll_timeout()).min();
        let pause = deadline.map_or(MAX_SLEEP, |deadline| clock::until(deadline).min(MAX_SLEEP));
        let input = tokio::select! {
            // An error here comes again, and is dealt with, when the source is read.
            _ = self.tun.readable() => None,
            _ = self.sockets.readable() => None,
            input = self.inputs.recv() => input,
            () = tokio::time::sleep(pause) => None,
        };
        match input {
            Some(input) => self.handle_input(input).await,
            None => None,
        }
    }

    /// Carries out what the core wants done: actions before transmits, until there is neither.
    async fn drain(&mut self, now: Instant) {
        loop {
            let mut idle = true;
            while let Some(action) = self.node.poll_action() {
                idle = false;
                self.carry_out(now, action);
            }
            while let Some(transmit) = self.node.poll_transmit() {
                trace!(to = %transmit.to, socket = transmit.socket.0, len = transmit.payload.len(), "sent");
                if transmit.whole {
                    idle = false;
                    self.sockets.send_whole(Datagram::from(&transmit)).await;
                    continue;
                }
                self.transmits.push(transmit);
                if self.transmits.len() == BATCH {
                    break;
                }
            }
            if !self.transmits.is_empty() {
                idle = false;
                self.sockets.send_batch(self.transmits.iter().map(Datagram::from)).await;
                self.transmits.clear();
            }
            if idle {
                return;
            }
        }
    }

    fn carry_out(&mut self, now: Instant, action: Action) {
        match action {
            Action::OpenSocket { id, port } => {
                if let Err(error) = self.sockets.open(id, port) {
                    debug!(socket = id.0, port, %error, "no socket could be had");
                    self.node.handle_socket_failed(now, id);
                }
            }
            Action::CloseSocket { id } => self.sockets.close(id),
            Action::Resolve { name } => {
                let sender = self.sender.clone();
                tokio::spawn(async move {
                    let addresses = resolve::resolve(&name).await;
                    // The loop has ended where this fails, and needs no name any more.
                    let _ = sender.send(Input::Resolved { name, addresses }).await;
                });
            }
            Action::Inject { packet } => {
                // A device that is gone shows when it is read.
                let _ = self.tun.send_batch([packet.as_slice()]);
            }
            Action::Event(event) => {
                self.journal.handle_event(&event);
                if let Event::Pong { token, rtt } = event
                    && let Some(reply) = self.pings.handle_pong(token)
                {
                    reply.pong(rtt);
                }
            }
        }
    }

    /// One batch from the TUN device: sealed in place, sent together. An error means that the device is gone.
    async fn take_tun(&mut self) -> io::Result<bool> {
        let count = self.tun.recv_batch(&mut self.inner)?;
        if count == 0 {
            return Ok(false);
        }
        let now = clock::now();
        self.routes.clear();
        for at in 0..count {
            if let Some(route) = self.node.handle_tun(now, &mut self.inner[at]) {
                self.inner.swap(self.routes.len(), at);
                self.routes.push(route);
            }
        }
        self.drain(now).await;
        let sealed = self.inner.iter().zip(&self.routes);
        let datagrams = sealed.map(|(packet, route)| Datagram {
            socket: route.socket,
            to: route.to,
            ttl: None,
            payload: packet.bytes(),
        });
        self.sockets.send_batch(datagrams).await;
        trace!(count, sealed = self.routes.len(), "TUN batch");
        Ok(true)
    }

    /// One batch from the sockets: opened in place, given to the TUN device together. An error means that it is gone.
    async fn take_udp(&mut self) -> io::Result<bool> {
        let count = self.sockets.recv_batch(&mut self.outer);
        if count == 0 {
            return Ok(false);
        }
        let now = clock::now();
        self.opened.clear();
        for (received, packet) in self.outer.iter_mut() {
            if self.node.handle_datagram(now, received.socket, received.from, packet) {
                self.opened.push(received.index);
            }
        }
        let written = self.tun.send_batch(self.opened.iter().map(|index| self.outer.packet(*index).bytes()))?;
        trace!(count, opened = self.opened.len(), refused = written.refused, "UDP batch");
        self.drain(now).await;
        Ok(true)
    }

    async fn handle_input(&mut self, input: Input) -> Option<Exit> {
        let now = clock::now();
        match input {
            Input::Addresses(addresses) => self.node.handle_addresses(now, &addresses),
            Input::PortMapping(mapped) => self.node.handle_port_mapping(now, mapped),
            Input::Resolved { name, addresses } => self.node.handle_resolved(now, &name, &addresses),
            Input::Control(request, reply) => {
                if let Some(exit) = self.handle_request(now, request, reply) {
                    return Some(exit);
                }
            }
            Input::Exit(exit) => return Some(exit),
        }
        self.drain(now).await;
        None
    }

    fn handle_request(&mut self, now: Instant, request: Request, reply: Reply) -> Option<Exit> {
        match request {
            Request::Status => reply.send(&self.node.snapshot(now)),
            Request::Ping { peer, .. } => match self.node.handle_ping(now, &peer) {
                // The control socket's own task gives up for the user when the time is over.
                Ok(token) => self.pings.handle_ping(token, reply, Reply::is_abandoned),
                Err(sentence) => reply.fail(sentence),
            },
            Request::Reload => return Some(Exit::Reload { answer: Some(reply) }),
            Request::Down => {
                info!("told to stop by `p2ptund down`");
                reply.send(&());
                return Some(Exit::Stop);
            }
        }
        None
    }

    fn lost(&self, error: &io::Error) -> anyhow::Error {
        anyhow!("the interface {} is gone: something else deleted it ({error})", self.tun.name())
    }
}

/// Buffers for inner packets: none is longer than the device's MTU.
fn inner_room(mtu: u16) -> Vec<Packet> {
    (0..BATCH).map(|_| Packet::with_capacity(mtu.into())).collect()
}

/// Buffers for datagrams: a full inner packet, sealed, or any control message (those fit an Ethernet frame).
fn outer_room(mtu: u16) -> RecvBatch {
    RecvBatch::new(BATCH, ETHERNET.max(usize::from(mtu) + HEADROOM + TAILROOM))
}
