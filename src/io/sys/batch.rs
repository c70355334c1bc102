//! Many datagrams by one system call.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::RawAddress;
use super::control::Control;
use super::done;

/// Most datagrams in one system call: beyond 64 the saving per datagram is below what can be measured.
pub const MAX_BATCH: usize = 64;

/// The fewer structures, the sooner they are cleared; most calls bring or take no more than these.
const FEW: usize = 8;

/// What came into one buffer.
#[derive(Clone, Copy, Default, Debug)]
pub struct Arrival {
    /// `None` where the datagram did not fit or came from no IP address, and is to be dropped.
    pub from: Option<SocketAddr>,
    pub len: usize,
    /// The buffer holds datagrams of this length, the last may be shorter (UDP_GRO); `None`: it holds one.
    pub segment: Option<usize>,
    /// The byte of DSCP and ECN, where the socket was asked to give it; else 0.
    pub tos: u8,
}

/// Receives up to [`MAX_BATCH`] datagrams, one into each buffer, without waiting, and says of each in `arrivals` what it is.
/// Gives how many were received. Errors are the socket's; `WouldBlock` where nothing waits.
pub fn receive<'a>(
    fd: BorrowedFd<'_>,
    buffers: impl ExactSizeIterator<Item = &'a mut [u8]>,
    arrivals: &mut [Arrival],
) -> io::Result<usize> {
    match buffers.len().min(arrivals.len()) {
        0..=FEW => receive_up_to::<FEW>(fd, buffers, arrivals),
        _ => receive_up_to::<MAX_BATCH>(fd, buffers, arrivals),
    }
}

fn receive_up_to<'a, const MOST: usize>(
    fd: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    arrivals: &mut [Arrival],
) -> io::Result<usize> {
    let most = arrivals.len().min(MOST);
    let mut names = [RawAddress::zero(); MOST];
    let mut controls = [Control::empty(); MOST];
    // SAFETY: iovec and mmsghdr are plain data for which all-zero bytes (null pointers, zero lengths) are valid.
    let (mut vectors, mut messages): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) = unsafe { (zeroed(), zeroed()) };
    let mut count = 0;
    for (i, room) in buffers.take(most).enumerate() {
        vectors[i] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let header = &mut messages[i].msg_hdr;
        header.msg_name = (&raw mut names[i]).cast();
        header.msg_namelen = size_of::<RawAddress>() as libc::socklen_t;
        header.msg_iov = &raw mut vectors[i];
        header.msg_iovlen = 1;
        controls[i].lend(header);
        count = i + 1;
    }
    // SAFETY: the first `count` headers point at names, controls and vectors on this stack frame, and the vectors at `count`
    // different buffers, borrowed mutably for 'a, which outlives the call; every length is the buffer's own.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    let received = (received as usize).min(count);
    for i in 0..received {
        let header = &messages[i].msg_hdr;
        let whole = header.msg_flags & libc::MSG_TRUNC == 0;
        let arrival = &mut arrivals[i];
        *arrival = Arrival {
            from: if whole { names[i].to_address() } else { None },
            len: (messages[i].msg_len as usize).min(vectors[i].iov_len),
            segment: None,
            tos: 0,
        };
        controls[i].each(header.msg_controllen as _, |level, kind, data| match (level, kind, data) {
            (libc::IPPROTO_IP, libc::IP_TOS, [tos, ..]) => arrival.tos = *tos,
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, data) => arrival.tos = int(data) as u8,
            (libc::IPPROTO_UDP, libc::UDP_GRO, data) => {
                arrival.segment = usize::try_from(int(data)).ok().filter(|segment| *segment > 0);
            }
            _ => {}
        });
    }
    Ok(received)
}

fn int(data: &[u8]) -> libc::c_int {
    data.try_into().map_or(0, libc::c_int::from_ne_bytes)
}

/// One datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub to: SocketAddr,
    /// The IP time to live, where it is not the system's.
    pub ttl: Option<u8>,
    /// The byte of DSCP and ECN; 0 is the socket's own.
    pub tos: u8,
    pub payload: &'a [u8],
}

/// Sends up to [`MAX_BATCH`] datagrams in order, without waiting. Gives how many the kernel took: at least one, and fewer
/// than given where it did not want the next. An error is the first datagram's, and nothing was sent.
pub fn send(fd: BorrowedFd<'_>, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
    // Clearing the structures for 64 would take longer than filling those for one.
    match datagrams.len() {
        0 => Ok(0),
        1 => send_up_to::<1>(fd, datagrams),
        2..=FEW => send_up_to::<FEW>(fd, datagrams),
        _ => send_up_to::<MAX_BATCH>(fd, datagrams),
    }
}

fn send_up_to<const MOST: usize>(fd: BorrowedFd<'_>, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
    let count = datagrams.len().min(MOST);
    let mut names = [RawAddress::zero(); MOST];
    let mut controls = [Control::empty(); MOST];
    // SAFETY: iovec and mmsghdr are plain data for which all-zero bytes (null pointers, zero lengths) are valid.
    let (mut vectors, mut messages): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) = unsafe { (zeroed(), zeroed()) };
    for (i, datagram) in datagrams[..count].iter().enumerate() {
        let (name, name_len) = RawAddress::new(datagram.to);
        names[i] = name;
        vectors[i] = reading(datagram.payload);
        let header = &mut messages[i].msg_hdr;
        header.msg_name = (&raw mut names[i]).cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut vectors[i];
        header.msg_iovlen = 1;
        push_ip(&mut controls[i], datagram.to, datagram.ttl, datagram.tos);
        controls[i].attach(header);
    }
    // SAFETY: the first `count` headers point at names, vectors and controls on this stack frame, and the vectors at payloads
    // that `datagrams` borrows until after the call; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Sends `payload` as datagrams of `segment` bytes, the last maybe shorter, without waiting: all of them, or an error and
/// none. The kernel refuses more than 64, more bytes than fit one IP packet, and segments that don't fit the path's MTU.
/// A kernel without UDP_SEGMENT would send one long datagram: ask it before (`setsockopt`).
pub fn send_segmented(fd: BorrowedFd<'_>, to: SocketAddr, tos: u8, payload: &[u8], segment: u16) -> io::Result<()> {
    let (mut name, name_len) = RawAddress::new(to);
    let mut control = Control::empty();
    push_ip(&mut control, to, None, tos);
    control.push(libc::IPPROTO_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    let mut vector = reading(payload);
    // SAFETY: msghdr is plain data for which all-zero bytes are valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    control.attach(&mut message);
    // SAFETY: the message points at a name, a control and a vector on this stack frame, and the vector at `payload`, which is
    // borrowed until after the call; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    done(if sent < 0 { -1 } else { 0 })
}

/// The kernel only reads through this pointer; the type has no const variant.
fn reading(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn push_ip(control: &mut Control, to: SocketAddr, ttl: Option<u8>, tos: u8) {
    let (level, ttl_kind, tos_kind) = match to {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
    };
    if let Some(ttl) = ttl {
        control.push(level, ttl_kind, &libc::c_int::from(ttl).to_ne_bytes());
    }
    if tos != 0 {
        control.push(level, tos_kind, &libc::c_int::from(tos).to_ne_bytes());
    }
}
