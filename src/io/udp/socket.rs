//! One UDP socket, for any task or thread, and what sending by it does about errors.
//!
//! ```text
//! send_segments   one buffer, one destination: one sendmsg with UDP_SEGMENT for each 64 datagrams or 65,507 bytes
//!                 refused: the same bytes by sendmmsg, at once; see `segmentation` for what is remembered
//! send_many       any destinations: one sendmmsg for each 64 datagrams
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::MARK;
use super::segmentation::Segmentation;
use crate::io::clock;
use crate::io::sys::{self, MAX_BATCH, Outgoing};

/// Wanted socket buffers: 4 MiB are 30 ms of a gigabit, longer than this process is ever kept off a processor. The kernel
/// may give less (net.core.rmem_max) where we are not root.
const BUFFER: usize = 4 << 20;
/// The longest payload that one IPv4 packet holds; the kernel builds one such packet before it cuts that up.
const MAX_BYTES: usize = 65_535 - 20 - 8;
/// UDP_MAX_SEGMENTS of the first kernels with UDP_SEGMENT; later ones take 128.
const MAX_SEGMENTS: usize = 64;
/// A full send buffer drains within a millisecond on any link worth a tunnel; after 20 the datagram is better lost.
pub(super) const FULL_WAIT: Duration = Duration::from_millis(1);
const FULL_TRIES: u32 = 20;

/// What became of datagrams.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Sent {
    pub sent: usize,
    /// The kernel, a firewall or a missing route refused these.
    pub refused: usize,
    /// The send buffer stayed full.
    pub overflowed: usize,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.refused += other.refused;
        self.overflowed += other.overflowed;
    }
}

/// An open socket. A handle stays good for sending after [`super::Sockets::close`]; the port is free when the last is dropped.
pub struct UdpSocket {
    socket: Socket,
    segmentation: Segmentation,
    is_v6: bool,
}

impl UdpSocket {
    /// Bound to `address`, with the mark, without the don't-fragment bit.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        // Without CAP_NET_ADMIN (netcheck, a server) there is no tunnel to be kept out of.
        let _ = socket.set_mark(MARK);
        if address.is_ipv6() {
            // An IPv4 peer has the IPv4 socket, so mapped addresses never appear.
            socket.set_only_v6(true)?;
        }
        // 0 is "off", which each socket is: only the answer counts.
        let possible = sys::set_int_option(socket.as_fd(), libc::IPPROTO_UDP, libc::UDP_SEGMENT, 0).is_ok();
        socket.bind(&address.into())?;
        let socket = Self { socket, segmentation: Segmentation::new(possible), is_v6: address.is_ipv6() };
        socket.set_whole(false);
        Ok(socket)
    }

    /// Whether datagrams go with the don't-fragment bit and none is cut here, or without.
    pub(super) fn set_whole(&self, whole: bool) {
        let (level, option, value) = match (self.is_v6, whole) {
            (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
            (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
            (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        };
        let _ = sys::set_int_option(self.socket.as_fd(), level, option, value);
    }

    /// Makes the buffers as large as traffic needs, or as we may: for the main sockets, and for an extra one once a path goes
    /// by it (hundreds of those may be open at once, and most only ever probe).
    pub fn enlarge_buffers(&self) {
        let (fd, size) = (self.socket.as_fd(), BUFFER as libc::c_int);
        // The forced variants are for root; the others are cut to the system's limit. Small buffers still work.
        if sys::set_int_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size).is_err() {
            let _ = self.socket.set_recv_buffer_size(BUFFER);
        }
        if sys::set_int_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size).is_err() {
            let _ = self.socket.set_send_buffer_size(BUFFER);
        }
    }

    /// For an [`super::Inlet`]: several datagrams of one sender in one buffer, and each with its TOS. Best effort: a kernel
    /// that has neither gives single datagrams and TOS 0.
    pub(super) fn receive_merged(&self) {
        let fd = self.socket.as_fd();
        let tos = match self.local_address() {
            Some(SocketAddr::V6(_)) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
            _ => (libc::IPPROTO_IP, libc::IP_RECVTOS),
        };
        let _ = sys::set_int_option(fd, tos.0, tos.1, 1);
        let _ = sys::set_int_option(fd, libc::IPPROTO_UDP, libc::UDP_GRO, 1);
    }

    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// Sends `buffer` as datagrams of `segment` bytes each, the last maybe shorter, in order, all with `tos` (DSCP and ECN; 0:
    /// the system's). For a thread: waits while the send buffer is full, at most 20 ms for those in a row. Nothing is lost
    /// where the kernel refuses to cut the buffer up.
    pub fn send_segments(&self, to: SocketAddr, tos: u8, buffer: &[u8], segment: usize) -> Sent {
        let mut sent = Sent::default();
        // 0 would be no progress; of longer ones than fit any datagram there is one a call, which the kernel refuses.
        let segment = if segment == 0 { MAX_BYTES } else { segment };
        let most = (MAX_BYTES / segment).clamp(1, MAX_SEGMENTS);
        let mut patience = Patience::default();
        for part in buffer.chunks(most * segment) {
            let count = part.len().div_ceil(segment);
            match u16::try_from(segment) {
                Ok(short) if count > 1 && self.segmentation.allows(clock::now, to, segment) => {
                    match self.send_whole(to, tos, part, short, &mut patience) {
                        Some(Outcome::Sent) => sent.sent += count,
                        Some(Outcome::Refused) => sent.refused += count,
                        Some(Outcome::Overflowed) => sent.overflowed += count,
                        None => sent += self.send_singly(to, tos, part, segment, &mut patience),
                    }
                }
                _ => sent += self.send_singly(to, tos, part, segment, &mut patience),
            }
        }
        sent
    }

    /// Sends all in order. What can't be sent is counted and the rest goes on. For a thread: waits as
    /// [`UdpSocket::send_segments`] does.
    pub fn send_many(&self, datagrams: &[Outgoing<'_>]) -> Sent {
        let mut run = Run::new(datagrams);
        while let Some(pause) = run.step(self) {
            self.wait(pause);
        }
        run.sent
    }

    /// `None` where the kernel does not want to cut `part` up: nothing of it was sent.
    fn send_whole(
        &self,
        to: SocketAddr,
        tos: u8,
        part: &[u8],
        segment: u16,
        patience: &mut Patience,
    ) -> Option<Outcome> {
        loop {
            let error = match sys::send_segmented(self.socket.as_fd(), to, tos, part, segment) {
                Ok(()) => {
                    *patience = Patience::default();
                    return Some(Outcome::Sent);
                }
                Err(error) => error,
            };
            if self.segmentation.handle_error(clock::now(), to, segment.into(), &error) {
                tracing::debug!(%to, segment, %error, "the kernel does not segment");
                return None;
            }
            match patience.handle_error(&error) {
                Next::Again => {}
                Next::Wait(pause) => self.wait(pause),
                Next::Skip(outcome) => {
                    tracing::trace!(%to, %error, "sending segments");
                    return Some(outcome);
                }
            }
        }
    }

    fn send_singly(&self, to: SocketAddr, tos: u8, part: &[u8], segment: usize, patience: &mut Patience) -> Sent {
        let mut datagrams = [Outgoing { to, ttl: None, tos, payload: &[] }; MAX_SEGMENTS];
        let mut count = 0;
        for (datagram, payload) in datagrams.iter_mut().zip(part.chunks(segment)) {
            datagram.payload = payload;
            count += 1;
        }
        let mut run = Run { rest: &datagrams[..count], sent: Sent::default(), patience: *patience };
        while let Some(pause) = run.step(self) {
            self.wait(pause);
        }
        *patience = run.patience;
        run.sent
    }

    fn wait(&self, pause: Pause) {
        match pause {
            Pause::None => {}
            // An error here comes again at the next try.
            Pause::Buffer => drop(sys::wait_writable(self.socket.as_fd(), FULL_WAIT)),
            Pause::Device => std::thread::sleep(FULL_WAIT),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Datagrams that are being sent; the same for those who block and those who don't.
pub(super) struct Run<'r, 'a> {
    rest: &'r [Outgoing<'a>],
    pub sent: Sent,
    patience: Patience,
}

impl<'r, 'a> Run<'r, 'a> {
    pub fn new(datagrams: &'r [Outgoing<'a>]) -> Self {
        Self { rest: datagrams, sent: Sent::default(), patience: Patience::default() }
    }

    /// One system call; then the pause before the next one, or `None` where all is done.
    pub fn step(&mut self, socket: &UdpSocket) -> Option<Pause> {
        let first = self.rest.first()?;
        match sys::send(socket.as_fd(), &self.rest[..self.rest.len().min(MAX_BATCH)]) {
            Ok(sent) => {
                self.sent.sent += sent;
                self.rest = &self.rest[sent.min(self.rest.len())..];
                self.patience = Patience::default();
            }
            Err(error) => match self.patience.handle_error(&error) {
                Next::Again => {}
                Next::Wait(pause) => return Some(pause),
                Next::Skip(outcome) => {
                    tracing::trace!(to = %first.to, %error, "sending");
                    match outcome {
                        Outcome::Overflowed => self.sent.overflowed += 1,
                        Outcome::Sent | Outcome::Refused => self.sent.refused += 1,
                    }
                    self.rest = &self.rest[1..];
                }
            },
        }
        if self.rest.is_empty() { None } else { Some(Pause::None) }
    }
}

/// What to wait for before the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    None,
    /// The socket's own buffer is full: it says when it is not.
    Buffer,
    /// A device's queue is full, which nobody tells of.
    Device,
}

enum Outcome {
    Sent,
    Refused,
    Overflowed,
}

enum Next {
    Again,
    Wait(Pause),
    Skip(Outcome),
}

/// How much was borne since the last success.
#[derive(Clone, Copy, Default)]
struct Patience {
    full: u32,
    failed: bool,
}

impl Patience {
    fn handle_error(&mut self, error: &io::Error) -> Next {
        if error.kind() == io::ErrorKind::Interrupted {
            return Next::Again;
        }
        let pause = match error.raw_os_error() {
            Some(libc::ENOBUFS) => Pause::Device,
            _ if error.kind() == io::ErrorKind::WouldBlock => Pause::Buffer,
            // An error may be a leftover of an earlier datagram's (ICMP); then the same one goes out at the second try.
            _ if !self.failed => {
                self.failed = true;
                return Next::Again;
            }
            _ => {
                self.failed = false;
                return Next::Skip(Outcome::Refused);
            }
        };
        self.full = self.full.saturating_add(1);
        if self.full > FULL_TRIES {
            // Those behind it are not waited for: a link that stands still must not hold the whole loop up.
            return Next::Skip(Outcome::Overflowed);
        }
        Next::Wait(pause)
    }
}
