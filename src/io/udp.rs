//! All UDP sockets of a member or server, behind one descriptor, read and written in batches.
//!
//! ```text
//! sockets (2 main ones, up to 4,096 extra) ── epoll set ── one AsyncFd ── readable() ── recv_batch()
//! send_batch(): datagrams in order; each run for one socket is one sendmmsg
//! ```
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

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys::{self, Epoll, MAX_BATCH, Outgoing};
use crate::proto::{Packet, SocketId};

/// The mark on each of our own datagrams (SO_MARK, so `ip rule … fwmark 4275`): our default listen port, as `wg-quick` uses
/// its own. Policy routing keeps marked datagrams out of the tunnel; see [`super::links`]. Needs CAP_NET_ADMIN.
pub const MARK: u32 = 4275;

/// Wanted socket buffers: 4 MiB are 30 ms of a gigabit, longer than this process is ever kept off a processor. The kernel
/// may give less (net.core.rmem_max) where we are not root.
const BUFFER: usize = 4 << 20;
/// Most extra sockets; a config may ask for 256 in a call, and 16 calls at once is more than the core ever makes.
const MAX_EXTRA: usize = 4096;
/// How often to look for a port that is free for both families, where any will do.
const PORT_TRIES: usize = 16;
/// A full send buffer drains within a millisecond on any link worth a tunnel; after 20 the datagram is better lost.
const FULL_WAIT: Duration = Duration::from_millis(1);
const FULL_TRIES: u32 = 20;
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

/// The sockets, by [`SocketId`].
pub struct Sockets {
    epoll: AsyncFd<Epoll>,
    sockets: HashMap<SocketId, Socket>,
    /// Readable sockets of the current round, each served once before the set is asked again.
    ready: VecDeque<SocketId>,
    counters: Counters,
}

impl Sockets {
    /// None yet. Errors: out of descriptors, or no tokio runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: sys::watch_set(Epoll::new()?)?,
            sockets: HashMap::new(),
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
        let socket = open_socket(address)?;
        // The forced variants are for root; the others are cut to the system's limit. Small buffers still work.
        let (level, size) = (libc::SOL_SOCKET, BUFFER as libc::c_int);
        if sys::set_int_option(socket.as_fd(), level, libc::SO_RCVBUFFORCE, size).is_err() {
            let _ = socket.set_recv_buffer_size(BUFFER);
        }
        if sys::set_int_option(socket.as_fd(), level, libc::SO_SNDBUFFORCE, size).is_err() {
            let _ = socket.set_send_buffer_size(BUFFER);
        }
        self.adopt(id, socket)
    }

    /// An extra IPv4 socket on all addresses and `port`, or any port where that is 0 or taken. Gives its real port.
    /// Errors: out of descriptors, or more than 4,096 extra sockets.
    pub fn open(&mut self, id: SocketId, port: u16) -> io::Result<u16> {
        if self.sockets.len() >= MAX_EXTRA + 2 {
            return Err(io::Error::other("too many sockets are open"));
        }
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = match open_socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))) {
            Err(_) if port != 0 => open_socket(any)?,
            result => result?,
        };
        Ok(self.adopt(id, socket)?.port())
    }

    /// Closes a socket; what was on its way to it is dropped. Nothing happens where it is not open.
    pub fn close(&mut self, id: SocketId) {
        self.sockets.remove(&id);
    }

    /// The address that a socket is bound to.
    pub fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        self.sockets.get(&id)?.local_addr().ok()?.as_socket()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Waits until [`Sockets::recv_batch`] may bring something. Cancel-safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.epoll.readable().await.map(|mut guard| guard.retain_ready())
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
            let Some(socket) = self.sockets.get(&id) else { continue };
            let share = if self.ready.is_empty() { MAX_BATCH } else { FAIR_SHARE };
            let end = batch.packets.len().min(filled + share);
            let mut from = [None; MAX_BATCH];
            match sys::receive(socket.as_fd(), &mut batch.packets[filled..end], &mut from) {
                Ok(count) => {
                    for (offset, from) in from[..count].iter().enumerate() {
                        match *from {
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
            match self.sockets.get(&first.socket) {
                Some(socket) => send_run(socket, &run, &mut self.counters).await,
                // Closed since, or a machine without IPv6.
                None => self.counters.refused += run.len() as u64,
            }
        }
    }

    /// Sends one datagram with the don't-fragment bit, whatever the kernel thinks of the path: a sounding. What our own interface
    /// does not carry is counted as refused. The bit is the socket's and not a datagram's, so it is set for just this one; what
    /// another thread sends meanwhile has it too, which only a path that makes fragments sees.
    pub async fn send_whole(&mut self, datagram: Datagram<'_>) {
        let Some(socket) = self.sockets.get(&datagram.socket) else {
            self.counters.refused += 1;
            return;
        };
        let is_v6 = datagram.to.is_ipv6();
        set_whole(socket, is_v6, true);
        send_run(socket, &[outgoing(&datagram)], &mut self.counters).await;
        set_whole(socket, is_v6, false);
    }

    fn adopt(&mut self, id: SocketId, socket: Socket) -> io::Result<SocketAddr> {
        let address = socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("the kernel gave a socket of another family"))?;
        self.sockets.remove(&id);
        self.epoll.get_ref().add(socket.as_fd(), u64::from(id.0))?;
        self.sockets.insert(id, socket);
        Ok(address)
    }

    /// Starts a new round; `false` where no socket is readable.
    fn ask_for_ready(&mut self) -> bool {
        let ready = &mut self.ready;
        let asked = self.epoll.try_io(Interest::READABLE, |epoll| {
            // Only ids that fit were put in.
            match epoll.ready(|token| ready.push_back(SocketId(token as u32)))? {
                // Tells tokio to wait for the next edge of the set's own descriptor.
                0 => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                count => Ok(count),
            }
        });
        asked.is_ok()
    }
}

fn outgoing<'a>(datagram: &Datagram<'a>) -> Outgoing<'a> {
    Outgoing { to: datagram.to, ttl: datagram.ttl, payload: datagram.payload }
}

fn open_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    // Without CAP_NET_ADMIN (netcheck, a server) there is no tunnel to be kept out of.
    let _ = socket.set_mark(MARK);
    if address.is_ipv6() {
        // An IPv4 peer has the IPv4 socket, so mapped addresses never appear.
        socket.set_only_v6(true)?;
    }
    set_whole(&socket, address.is_ipv6(), false);
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Whether datagrams go with the don't-fragment bit and none is cut here, or without.
fn set_whole(socket: &Socket, is_v6: bool, whole: bool) {
    let (level, option, value) = match (is_v6, whole) {
        (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
    };
    let _ = sys::set_int_option(socket.as_fd(), level, option, value);
}

async fn send_run(socket: &Socket, mut run: &[Outgoing<'_>], counters: &mut Counters) {
    let (mut full, mut failed) = (0, false);
    while !run.is_empty() {
        match sys::send(socket.as_fd(), run) {
            Ok(sent) => {
                counters.sent += sent as u64;
                run = &run[sent.min(run.len())..];
                (full, failed) = (0, false);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_full(&error) => {
                full += 1;
                if full > FULL_TRIES {
                    // Those behind it are not waited for: a link that stands still must not hold the whole loop up.
                    counters.overflowed += 1;
                    run = &run[1..];
                } else {
                    tokio::time::sleep(FULL_WAIT).await;
                }
            }
            // An error may be a leftover of an earlier datagram's (ICMP); then the same one goes out at the second try.
            Err(_) if !failed => failed = true,
            Err(error) => {
                tracing::trace!(to = %run[0].to, %error, "sending");
                counters.refused += 1;
                run = &run[1..];
                failed = false;
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

#[cfg(test)]
mod tests;
