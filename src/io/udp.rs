//! All UDP sockets of a member or server, behind one descriptor, read and written in batches.
//!
//! ```text
//! sockets (2 main ones, up to 4,096 extra) ── epoll set ─┬─ one AsyncFd ── readable() ── recv_batch()     for a task
//!                                                        └─ Inlet ── wait() ── recv_batch()               for a thread
//! send_batch(): datagrams in order; each run for one socket is one sendmmsg                               for a task
//! get() ── UdpSocket ── send_segments(), send_many()                                                      for a thread
//! ```
//!
//! Receiving is either the task's or, from [`Sockets::inlet`] on, the thread's; opening, closing and [`Sockets::send_batch`]
//! stay where they are. Only an inlet's sockets give several datagrams in one buffer.
//!
//! Assumptions and choices:
//! - The extra sockets of a hard call cost the runtime nothing: it sees the epoll set's own descriptor only. The sets in
//!   it are served round robin, so that no socket starves another.
//! - No socket is connected and IP_RECVERR is off, so ICMP errors seldom reach us; where one does (or a firewall says
//!   EPERM, or a route is missing), it costs at most the datagram that met it, never the rest of a batch.
//! - The don't-fragment bit is off, as in the kernel's WireGuard: a path with a smaller MTU fragments instead of swallowing. Only
//!   what measures the path has it ([`Sockets::send_whole`]).
//! - A socket on a wildcard address answers from the address that the route chooses. A member's peers accept that (a path
//!   is proved in both directions, from whatever address comes); a server binds each of its addresses
//!   ([`Sockets::bind_one`]), and so always answers from the one that was asked.

mod inlet;
mod segmentation;
mod socket;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys::{self, Arrival, Epoll, MAX_BATCH};
use crate::proto::{Packet, SocketId};

use socket::{Pause, Run};

pub use super::sys::Outgoing;
pub use inlet::{GroBatch, Incoming, Inlet};
pub use socket::{Sent, UdpSocket};

/// The mark on each of our own datagrams (SO_MARK, so `ip rule … fwmark 4275`): our default listen port, as `wg-quick` uses
/// its own. Policy routing keeps marked datagrams out of the tunnel; see [`super::links`]. Needs CAP_NET_ADMIN.
pub const MARK: u32 = 4275;

/// Most extra sockets; a config may ask for 256 in a call, and 16 calls at once is more than the core ever makes.
const MAX_EXTRA: usize = 4096;
/// How often to look for a port that is free for both families, where any will do.
const PORT_TRIES: usize = 16;
/// After so many errors in one batch, the rest is left for the next: an error that stays must not hold the caller.
const MAX_ERRORS: usize = 8;
/// Most datagrams of one socket in a round while others wait.
const FAIR_SHARE: usize = 16;

/// One datagram to send. `ttl`: the IP time to live, where it is not the system's.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub socket: SocketId,
    pub to: SocketAddr,
    pub ttl: Option<u8>,
    pub payload: &'a [u8],
}

impl<'a> From<&'a crate::proto::Transmit> for Datagram<'a> {
    fn from(transmit: &'a crate::proto::Transmit) -> Self {
        Self { socket: transmit.socket, to: transmit.to, ttl: transmit.ttl, payload: &transmit.payload }
    }
}

/// What became of datagrams, since the start.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counters {
    pub received: u64,
    /// Longer than a buffer: nothing of ours is.
    pub oversized: u64,
    /// Errors of a socket's own while receiving; none ends anything.
    pub receive_errors: u64,
    pub sent: u64,
    /// The kernel, a firewall or a missing route refused these.
    pub refused: u64,
    /// The send buffer stayed full.
    pub overflowed: u64,
}

/// A received datagram: where, from whom, and in which of the batch's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub socket: SocketId,
    pub from: SocketAddr,
    pub index: usize,
}

/// Buffers for one batch, used again and again.
pub struct RecvBatch {
    packets: Vec<Packet>,
    received: Vec<Received>,
}

impl RecvBatch {
    /// `count` packets (at most 64) of `capacity` bytes each; a longer datagram is dropped.
    pub fn new(count: usize, capacity: usize) -> Self {
        let count = count.clamp(1, MAX_BATCH);
        Self {
            packets: (0..count).map(|_| Packet::with_capacity(capacity)).collect(),
            received: Vec::with_capacity(count),
        }
    }

    /// What the last [`Sockets::recv_batch`] brought.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// A packet by [`Received::index`].
    pub fn packet(&self, index: usize) -> &Packet {
        &self.packets[index]
    }

    /// What the last [`Sockets::recv_batch`] brought, each with its packet, in order of arrival.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Received, &mut Packet)> {
        let mut received = self.received.iter().copied().peekable();
        // Indices ascend, so one walk over the packets meets them all.
        self.packets.iter_mut().enumerate().filter_map(move |(index, packet)| {
            received.next_if(|received| received.index == index).map(|received| (received, packet))
        })
    }
}

/// The open sockets. The lock is held for a look-up, or for one batch of an [`Inlet`]'s.
#[derive(Clone, Default)]
struct Table(Arc<RwLock<HashMap<SocketId, Arc<UdpSocket>>>>);

impl Table {
    // Each change is one insertion or removal, so whoever panicked left the map whole.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<SocketId, Arc<UdpSocket>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<SocketId, Arc<UdpSocket>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets, by [`SocketId`].
pub struct Sockets {
    set: Arc<Epoll>,
    /// tokio's end of the set; `None` where it is an [`Inlet`]'s.
    watched: Option<AsyncFd<Arc<Epoll>>>,
    sockets: Table,
    /// Readable sockets of the current round, each served once before the set is asked again.
    ready: VecDeque<SocketId>,
    counters: Counters,
}

impl Sockets {
    /// None yet. Errors: out of descriptors, or no tokio runtime.
    pub fn new() -> io::Result<Self> {
        let set = Arc::new(Epoll::new()?);
        Ok(Self {
            watched: Some(sys::watch_set(set.clone())?),
            set,
            sockets: Table::default(),
            ready: VecDeque::new(),
            counters: Counters::default(),
        })
    }

    /// The main sockets, [`SocketId::MAIN_V4`] and [`SocketId::MAIN_V6`], on all addresses and the same port; 0: any that is
    /// free for both. A machine without IPv6 gets the first only. Errors: the port is taken.
    pub fn bind(listen_port: u16) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..if listen_port == 0 { PORT_TRIES } else { 1 } {
            let mut sockets = Self::new()?;
            let v4 = sockets.bind_one(SocketId::MAIN_V4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen_port)))?;
            match sockets.bind_one(SocketId::MAIN_V6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, v4.port()))) {
                Ok(_) => return Ok(sockets),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => {
                    tracing::debug!(%error, "no IPv6 socket");
                    return Ok(sockets);
                }
            }
        }
        Err(last)
    }

    /// One socket on exactly this address, with large buffers and the mark. Gives the address with its real port. A socket
    /// of the same id is closed first. Errors: the address is taken, or not this machine's.
    pub fn bind_one(&mut self, id: SocketId, address: SocketAddr) -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind(address)?;
        socket.enlarge_buffers();
        self.adopt(id, socket)
    }

    /// An extra IPv4 socket on all addresses and `port`, or any port where that is 0 or taken. Gives its real port.
    /// Errors: out of descriptors, or more than 4,096 extra sockets.
    pub fn open(&mut self, id: SocketId, port: u16) -> io::Result<u16> {
        if self.sockets.read().len() >= MAX_EXTRA + 2 {
            return Err(io::Error::other("too many sockets are open"));
        }
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = match UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))) {
            Err(_) if port != 0 => UdpSocket::bind(any)?,
            result => result?,
        };
        Ok(self.adopt(id, socket)?.port())
    }

    /// Closes a socket; what was on its way to it is dropped. Nothing happens where it is not open. Its port is free once
    /// nobody holds it by [`Sockets::get`] any more.
    pub fn close(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.write().remove(&id) {
            // Others may hold it: it would be told of for ever. The kernel knows every socket that is in the table.
            let _ = self.set.remove(socket.as_fd());
        }
    }

    /// An open socket, to send by from any thread.
    pub fn get(&self, id: SocketId) -> Option<Arc<UdpSocket>> {
        self.sockets.read().get(&id).cloned()
    }

    /// Hands receiving over to a thread, for all sockets, now and later. [`Sockets::readable`] waits for ever from then on, and
    /// [`Sockets::recv_batch`] brings nothing. The sockets close when both are dropped. Errors: done before, or out of
    /// descriptors.
    pub fn inlet(&mut self) -> io::Result<Inlet> {
        if self.watched.is_none() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let inlet = Inlet::new(self.set.clone(), self.sockets.clone())?;
        self.watched = None;
        self.ready.clear();
        for socket in self.sockets.read().values() {
            socket.receive_merged();
        }
        Ok(inlet)
    }

    /// The address that a socket is bound to.
    pub fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        self.sockets.read().get(&id)?.local_address()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Waits until [`Sockets::recv_batch`] may bring something. Cancel-safe.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.watched {
            Some(set) => set.readable().await.map(|mut guard| guard.retain_ready()),
            None => std::future::pending().await,
        }
    }

    /// Fills `batch` with what waits on any socket, fairly, and gives how many datagrams it holds then; 0 where nothing
    /// waits (then [`Sockets::readable`] waits again). Never waits itself.
    pub fn recv_batch(&mut self, batch: &mut RecvBatch) -> usize {
        batch.received.clear();
        let (mut filled, mut errors) = (0, 0);
        while filled < batch.packets.len() && errors < MAX_ERRORS {
            if self.ready.is_empty() && !self.ask_for_ready() {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            let Some(socket) = self.get(id) else { continue };
            let share = if self.ready.is_empty() { MAX_BATCH } else { FAIR_SHARE };
            let end = batch.packets.len().min(filled + share);
            let packets = &mut batch.packets[filled..end];
            let mut arrivals = [Arrival::default(); MAX_BATCH];
            match sys::receive(socket.as_fd(), packets.iter_mut().map(Packet::spare_mut), &mut arrivals) {
                Ok(count) => {
                    for (offset, (arrival, packet)) in arrivals[..count].iter().zip(packets).enumerate() {
                        packet.set_len(arrival.len);
                        match arrival.from {
                            Some(from) => batch.received.push(Received { socket: id, from, index: filled + offset }),
                            None => self.counters.oversized += 1,
                        }
                    }
                    self.counters.received += count as u64;
                    filled += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Reading the error took it off the socket. What waits behind it is found in the next round.
                Err(error) => {
                    errors += 1;
                    self.counters.receive_errors += 1;
                    tracing::trace!(%error, "receiving");
                }
            }
        }
        batch.received.len()
    }

    /// Sends all datagrams in order, each run for one socket in as few system calls as can be. A datagram that can't be
    /// sent is counted ([`Counters::refused`], [`Counters::overflowed`]) and the rest goes on. Waits only while a send
    /// buffer is full, at most 20 ms for those in a row of one socket.
    pub async fn send_batch<'a>(&mut self, datagrams: impl IntoIterator<Item = Datagram<'a>>) {
        let mut datagrams = datagrams.into_iter().peekable();
        let mut run: Vec<Outgoing<'a>> = Vec::with_capacity(MAX_BATCH.min(datagrams.size_hint().0.max(1)));
        while let Some(first) = datagrams.next() {
            run.clear();
            run.push(outgoing(&first));
            while run.len() < MAX_BATCH {
                match datagrams.next_if(|next| next.socket == first.socket) {
                    Some(next) => run.push(outgoing(&next)),
                    None => break,
                }
            }
            match self.get(first.socket) {
                Some(socket) => {
                    let mut run = Run::new(&run);
                    while let Some(pause) = run.step(&socket) {
                        if pause != Pause::None {
                            tokio::time::sleep(socket::FULL_WAIT).await;
                        }
                    }
                    self.counters.sent += run.sent.sent as u64;
                    self.counters.refused += run.sent.refused as u64;
                    self.counters.overflowed += run.sent.overflowed as u64;
                }
                // Closed since, or a machine without IPv6.
                None => self.counters.refused += run.len() as u64,
            }
        }
    }

    /// Sends one datagram with the don't-fragment bit, whatever the kernel thinks of the path: a sounding. What our own interface
    /// does not carry is counted as refused. The bit is the socket's and not a datagram's, so it is set for just this one; what
    /// another thread sends meanwhile has it too, which only a path that makes fragments sees.
    pub async fn send_whole(&mut self, datagram: Datagram<'_>) {
        let Some(socket) = self.get(datagram.socket) else {
            self.counters.refused += 1;
            return;
        };
        socket.set_whole(true);
        self.send_batch([datagram]).await;
        socket.set_whole(false);
    }

    fn adopt(&mut self, id: SocketId, socket: UdpSocket) -> io::Result<SocketAddr> {
        let address =
            socket.local_address().ok_or_else(|| io::Error::other("the kernel gave a socket of another family"))?;
        if self.watched.is_none() {
            socket.receive_merged();
        }
        self.close(id);
        // In the table first: an inlet that hears of it looks there.
        let socket = Arc::new(socket);
        self.sockets.write().insert(id, socket.clone());
        if let Err(error) = self.set.add(socket.as_fd(), u64::from(id.0)) {
            self.sockets.write().remove(&id);
            return Err(error);
        }
        Ok(address)
    }

    /// Starts a new round; `false` where no socket is readable.
    fn ask_for_ready(&mut self) -> bool {
        let (Some(set), ready) = (&self.watched, &mut self.ready) else { return false };
        let asked = set.try_io(Interest::READABLE, |set| {
            // Only ids that fit were put in.
            match set.ready(Some(Duration::ZERO), |token| ready.push_back(SocketId(token as u32)))? {
                // Tells tokio to wait for the next edge of the set's own descriptor.
                0 => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                count => Ok(count),
            }
        });
        asked.is_ok()
    }
}

fn outgoing<'a>(datagram: &Datagram<'a>) -> Outgoing<'a> {
    Outgoing { to: datagram.to, ttl: datagram.ttl, tos: 0, payload: datagram.payload }
}

#[cfg(test)]
mod tests;
