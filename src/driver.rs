//! The core's loop: io → [`Node`] → io.
//!
//! ```text
//! one turn:  due timeouts → actions, then transmits → one bounded batch of what no lane took → again
//!            from the TUN   → handle_tun (sealed in place)      → one send a batch
//!            from UDP       → handle_datagram (opened in place) → the TUN
//!            inputs         → addresses, port mapping, names, control socket, signals
//! nothing ready: sleep until Node::poll_timeout, or the watchdog
//! ```
//!
//! Packets of peers that are connected don't come here: two threads carry them ([`crate::carrier`]), by lanes that the core hands
//! out, and tell what they carried. What comes here is what needs a decision, and goes packet by packet.
//!
//! Every source gives at most one batch a turn, so none starves another: a flood of strangers' datagrams leaves the TUN, the
//! control socket and the timers their share. After a turn that found work the runtime gets one too, for the tasks that send
//! [`Input`]. A packet that can't be handled or sent is dropped and counted; it ends neither its batch nor the loop.
//!
//! The loop holds no policy: what concerns more than packets (a stop, a reload, a lost device) ends [`Driver::run`] with an
//! [`Exit`], and the daemon decides.

mod journal;
mod pings;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::anyhow;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tracing::{debug, info, trace};

use crate::carrier::{Carrier, Inbound, Outbound, Outer};
use crate::control::{Reply, Request};
use crate::daemon::notify::Watchdog;
use crate::io::overhear::Ear;
use crate::io::tun::{Tun, WriteError};
use crate::io::udp::{Datagram, Sockets};
use crate::io::{clock, resolve};
use crate::proto::config::Config;
use crate::proto::lane::Order;
use crate::proto::node::{MappedPort, Node};
use crate::proto::{Action, Event, Instant, Packet, SocketId, Transmit};

use journal::Journal;
use pings::Pings;

/// Packets that one source gives in a turn. 64 packets of 1,420 bytes take about 100 µs to seal: short enough that a timer
/// or the other direction does not notice, long enough to share each system call's cost.
const BATCH: usize = 64;
/// Inputs besides packets that one turn takes; they are rare, but a reload may follow a burst of resolved names.
const INPUTS_A_TURN: usize = 16;
/// How often the core looks at what was carried beside it: a WireGuard timer's shortest time is a hundred times as long, and a
/// path's first question is asked after eight of these.
const LOOK_EVERY: Duration = Duration::from_millis(50);
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
    /// A probe reached this machine, and maybe not our socket.
    Overheard { from: SocketAddr, probe: Vec<u8> },
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
    carrier: Carrier,
    inputs: mpsc::Receiver<Input>,
    /// For the tasks that the loop starts itself.
    sender: mpsc::Sender<Input>,
    journal: Journal,
    pings: Pings<Reply>,
    watchdog: Watchdog,
    /// While a punch goes on.
    ear: Option<Ear>,
    /// What ended a sleep.
    woken_by: Option<Wake>,
    /// When what was carried is to be looked at, and when it was last.
    look_at: Option<Instant>,
    looked: Instant,
    /// The core's own datagrams.
    transmits: Vec<Transmit>,
    /// Lanes for the way out, until what came before them is sent.
    lanes: Vec<Order>,
}

/// What ends a sleep.
enum Wake {
    Inner(Packet),
    Outer(Outer),
    Input(Input),
    News,
    Gone(io::Error),
}

impl Driver {
    /// `inputs` is the other end of `sender`. The threads begin to read at once; nothing is sent before [`Driver::run`].
    /// Errors: out of threads or descriptors.
    pub fn new(
        mut node: Node,
        tun: Tun,
        mut sockets: Sockets,
        (sender, inputs): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        peers: usize,
    ) -> io::Result<Self> {
        let carrier = Carrier::start(&tun, sockets.inlet()?, node.hand_out())?;
        Ok(Self {
            node,
            tun,
            sockets,
            carrier,
            inputs,
            sender,
            journal: Journal::new(peers, clock::now()),
            pings: Pings::new(),
            watchdog: Watchdog::from_env(clock::now()),
            ear: None,
            woken_by: None,
            look_at: None,
            looked: clock::now(),
            transmits: Vec::with_capacity(BATCH),
            lanes: Vec::new(),
        })
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
            if self.look_at.is_some_and(|due| due <= now) {
                self.look(now);
            }
            self.journal.handle_drops(now, self.node.drops());
            self.drain(now).await;

            let (mut inner, mut outer) = (None, None);
            match self.woken_by.take() {
                Some(Wake::Inner(packet)) => inner = Some(packet),
                Some(Wake::Outer(datagram)) => outer = Some(datagram),
                Some(Wake::Input(input)) => {
                    if let Some(exit) = self.handle_input(input).await {
                        return exit;
                    }
                }
                Some(Wake::News) => {
                    let due = now.max(self.looked + LOOK_EVERY);
                    self.look_at.get_or_insert(due);
                }
                Some(Wake::Gone(error)) => return Exit::Failed(self.lost(&error)),
                None => {}
            }
            let mut busy = self.take_inner(inner).await;
            match self.take_outer(outer).await {
                Ok(took) => busy |= took,
                Err(error) => return Exit::Failed(self.lost(&error)),
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
            } else {
                self.woken_by = self.sleep().await;
            }
        }
    }

    /// Hears of what was carried beside the core.
    fn look(&mut self, now: Instant) {
        (self.look_at, self.looked) = (None, now);
        self.node.handle_traffic(now);
    }

    /// Takes over a changed config: see [`Node::handle_config`].
    pub async fn handle_config(&mut self, config: Config) {
        self.journal.handle_peers(config.peers.iter().map(|peer| peer.name.as_str()));
        let now = clock::now();
        self.node.handle_config(now, config);
        self.drain(now).await;
    }

    /// One line for `systemctl status`.
    pub fn status(&self) -> String {
        self.journal.status()
    }

    /// Waits for the first of: a packet, an input, news, the core's deadline, the watchdog's.
    async fn sleep(&mut self) -> Option<Wake> {
        let deadlines = [self.node.poll_timeout(), self.watchdog.poll_timeout(), self.look_at];
        let pause = deadlines.into_iter().flatten().min().map_or(MAX_SLEEP, clock::until).min(MAX_SLEEP);
        let carrier = &mut self.carrier;
        tokio::select! {
            Some(packet) = carrier.inner.recv() => Some(Wake::Inner(packet)),
            Some(datagram) = carrier.outer.recv() => Some(Wake::Outer(datagram)),
            Some(input) = self.inputs.recv() => Some(Wake::Input(input)),
            Some(error) = carrier.gone.recv() => Some(Wake::Gone(error)),
            () = carrier.news.notified() => Some(Wake::News),
            () = tokio::time::sleep(pause) => None,
        }
    }

    /// Carries out what the core wants done: actions before transmits, until there is neither.
    async fn drain(&mut self, now: Instant) {
        loop {
            let mut idle = true;
            while let Some(order) = self.node.poll_order() {
                self.hand_over(order);
            }
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
                break;
            }
        }
        for order in std::mem::take(&mut self.lanes) {
            if let Order::Outward { peer, lane } = order {
                let lane = lane.and_then(|lane| self.sockets.get(lane.way.socket).map(|socket| (lane, socket)));
                if let Some((_, socket)) = &lane {
                    socket.enlarge_buffers();
                }
                self.carrier.tell_outward(Outbound::Lane { peer, lane });
            }
        }
    }

    /// At once for the way in; for the way out once all is sent that came before.
    fn hand_over(&mut self, order: Order) {
        match order {
            Order::Routes(routes) => {
                self.carrier.tell_outward(Outbound::Routes(routes.clone()));
                self.carrier.tell_inward(Inbound::Routes(routes));
            }
            Order::Inward { index, lane } => self.carrier.tell_inward(Inbound::Lane { index, lane }),
            Order::Outward { peer, lane: None } => {
                self.lanes.retain(|held| !matches!(held, Order::Outward { peer: held, .. } if *held == peer));
                self.carrier.tell_outward(Outbound::Lane { peer, lane: None });
            }
            Order::Outward { .. } => self.lanes.push(order),
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
            Action::Overhear { on } => {
                let port = self.sockets.local_address(SocketId::MAIN_V4).filter(|_| on).map(|main| main.port());
                let sender = self.sender.clone();
                self.ear = port.map(|port| {
                    Ear::open(port, move |from, probe| {
                        // Where the loop has its hands full, a later one is as good.
                        let _ = sender.try_send(Input::Overheard { from, probe: probe.to_vec() });
                    })
                });
            }
            Action::Inject { packet } => {
                // A device that is gone shows when it is read.
                let _ = self.tun.write_packet(&packet);
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

    /// One batch of inner packets that no lane took: sealed in place, sent together.
    async fn take_inner(&mut self, first: Option<Packet>) -> bool {
        let now = clock::now();
        let (mut count, mut sealed) = (0, Vec::new());
        let mut next = first.or_else(|| self.carrier.inner.try_recv().ok());
        while let Some(mut packet) = next {
            count += 1;
            let route = self.node.handle_tun(now, &mut packet);
            sealed.extend(route.map(|route| (route, packet)));
            next = if count < BATCH { self.carrier.inner.try_recv().ok() } else { None };
        }
        if count == 0 {
            return false;
        }
        self.drain(now).await;
        let datagrams = sealed.iter().map(|(route, packet)| Datagram {
            socket: route.socket,
            to: route.to,
            ttl: None,
            payload: packet.bytes(),
        });
        self.sockets.send_batch(datagrams).await;
        // A lane that was handed out meanwhile is used from here on.
        self.carrier.inner_done(count);
        trace!(count, sealed = sealed.len(), "inner packets without a lane");
        true
    }

    /// One batch of datagrams that no lane took: opened in place, given to the TUN device. An error means that it is gone.
    async fn take_outer(&mut self, first: Option<Outer>) -> io::Result<bool> {
        let now = clock::now();
        let mut count = 0;
        let mut next = first.or_else(|| self.carrier.outer.try_recv().ok());
        while let Some(Outer { socket, from, mut packet }) = next {
            count += 1;
            if self.node.handle_datagram(now, socket, from, &mut packet) {
                match self.tun.write_packet(packet.bytes()) {
                    Ok(()) => {}
                    Err(WriteError::Gone(error)) => return Err(error),
                    Err(WriteError::Refused(error) | WriteError::Segmentation(error)) => {
                        trace!(%error, "the device refused a packet");
                    }
                }
            }
            next = if count < BATCH { self.carrier.outer.try_recv().ok() } else { None };
        }
        if count == 0 {
            return Ok(false);
        }
        // What was written, not what is still to be sent: the thread waits for no more.
        self.carrier.outer_done(count);
        trace!(count, "datagrams without a lane");
        self.drain(now).await;
        Ok(true)
    }

    async fn handle_input(&mut self, input: Input) -> Option<Exit> {
        let now = clock::now();
        match input {
            Input::Addresses(addresses) => self.node.handle_addresses(now, &addresses),
            Input::PortMapping(mapped) => self.node.handle_port_mapping(now, mapped),
            Input::Resolved { name, addresses } => self.node.handle_resolved(now, &name, &addresses),
            Input::Overheard { from, probe } => self.node.handle_overheard(now, from, &probe),
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
            Request::Status => {
                self.look(now);
                reply.send(&self.node.snapshot(now));
            }
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
