//! The one module with `unsafe`: system calls that std, tokio and socket2 do not have. Everything it exports is safe to call
//! with any argument; a wrong one gives an error.
//!
//! Each call that takes pointers builds all of its structures on its own stack, for as long as the call lasts, from slices
//! whose lengths it takes itself. No pointer leaves this file.
//!
//! ```text
//! sendmmsg control data, per datagram:  [cmsghdr IP_TTL | IPV6_HOPLIMIT : int]   ([UDP_SEGMENT : u16] goes behind it)
//! recvmmsg control data:                none today                             (UDP_GRO : int is where it goes)
//! ```

#![allow(unsafe_code)] // The island: raw system calls; each block says why it is sound.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::proto::Packet;

/// Most datagrams in one system call: beyond 64 the saving per datagram is below what can be measured.
pub const MAX_BATCH: usize = 64;

/// Room for one `int` of control data, and for the `u16` of UDP_SEGMENT when that is used.
const CONTROL_LEN: usize = 64;

/// Nanoseconds since boot, time asleep included.
pub fn boottime_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to write. CLOCK_BOOTTIME exists since Linux 2.6.39, so it can't fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// The index of a network device; `None` where there is none of that name.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// A socket's address as the kernel writes it. Both variants are plain bytes, and any bytes are valid ones.
#[repr(C)]
#[derive(Clone, Copy)]
union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    fn zero() -> Self {
        // SAFETY: all-zero bytes are a valid value of both variants.
        unsafe { zeroed() }
    }

    fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::zero();
        match address {
            SocketAddr::V4(v4) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(v6) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// `None` for a family that is neither. IPv4-mapped addresses come out as IPv4.
    fn to_address(self) -> Option<SocketAddr> {
        // SAFETY: the family is at the same place in both variants, and any bytes are a valid value of each.
        unsafe {
            match libc::c_int::from(self.v4.sin_family) {
                libc::AF_INET => Some(SocketAddr::V4(SocketAddrV4::new(
                    Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes()),
                    u16::from_be(self.v4.sin_port),
                ))),
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(match IpAddr::V6(ip).to_canonical() {
                        IpAddr::V4(v4) => SocketAddr::from((v4, port)),
                        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, self.v6.sin6_scope_id)),
                    })
                }
                _ => None,
            }
        }
    }
}

/// Control data of one message, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// Receives up to [`MAX_BATCH`] datagrams, one into each packet, without waiting.
///
/// `from[i]` is the sender of `packets[i]`; `None` where that datagram did not fit or came from no IP address, and is to be
/// dropped. Gives how many were received. Errors are the socket's; `WouldBlock` where nothing waits.
pub fn receive(fd: BorrowedFd<'_>, packets: &mut [Packet], from: &mut [Option<SocketAddr>]) -> io::Result<usize> {
    let count = packets.len().min(from.len()).min(MAX_BATCH);
    let mut names = [RawAddress::zero(); MAX_BATCH];
    // SAFETY: iovec and mmsghdr are plain data for which all-zero bytes (null pointers, zero lengths) are valid.
    let (mut vectors, mut messages): ([libc::iovec; MAX_BATCH], [libc::mmsghdr; MAX_BATCH]) =
        unsafe { (zeroed(), zeroed()) };
    for (i, packet) in packets[..count].iter_mut().enumerate() {
        let room = packet.spare_mut();
        vectors[i] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let header = &mut messages[i].msg_hdr;
        header.msg_name = (&raw mut names[i]).cast();
        header.msg_namelen = size_of::<RawAddress>() as libc::socklen_t;
        header.msg_iov = &raw mut vectors[i];
        header.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers point at names and vectors on this stack frame, and the vectors at `count` different
    // packets' buffers, which `packets` borrows mutably until after the call; every length is the buffer's own.
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
        let whole = messages[i].msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        from[i] = if whole { names[i].to_address() } else { None };
        packets[i].set_len(messages[i].msg_len as usize);
    }
    Ok(received)
}

/// One datagram to send.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    pub to: SocketAddr,
    pub ttl: Option<u8>,
    pub payload: &'a [u8],
}

/// Sends up to [`MAX_BATCH`] datagrams in order, without waiting. Gives how many the kernel took: at least one, and fewer
/// than given where it did not want the next. An error is the first datagram's, and nothing was sent.
pub fn send(fd: BorrowedFd<'_>, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
    // Clearing the structures for 64 would take longer than filling those for one.
    match datagrams.len() {
        0 => Ok(0),
        1 => send_up_to::<1>(fd, datagrams),
        2..=8 => send_up_to::<8>(fd, datagrams),
        _ => send_up_to::<MAX_BATCH>(fd, datagrams),
    }
}

fn send_up_to<const MOST: usize>(fd: BorrowedFd<'_>, datagrams: &[Outgoing<'_>]) -> io::Result<usize> {
    let count = datagrams.len().min(MOST);
    let mut names = [RawAddress::zero(); MOST];
    let mut controls = [Control([0; CONTROL_LEN]); MOST];
    // SAFETY: iovec and mmsghdr are plain data for which all-zero bytes (null pointers, zero lengths) are valid.
    let (mut vectors, mut messages): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) = unsafe { (zeroed(), zeroed()) };
    for (i, datagram) in datagrams[..count].iter().enumerate() {
        let (name, name_len) = RawAddress::new(datagram.to);
        names[i] = name;
        // The kernel only reads through this pointer; the type has no const variant.
        vectors[i] =
            libc::iovec { iov_base: datagram.payload.as_ptr().cast_mut().cast(), iov_len: datagram.payload.len() };
        let header = &mut messages[i].msg_hdr;
        header.msg_name = (&raw mut names[i]).cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut vectors[i];
        header.msg_iovlen = 1;
        if let Some(ttl) = datagram.ttl {
            header.msg_control = controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN as _;
            let (level, kind) = match datagram.to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
            };
            // SAFETY: the control buffer is aligned and longer than one header and an int, so CMSG_FIRSTHDR is not null
            // and the header and its data lie within it.
            unsafe {
                let control = libc::CMSG_FIRSTHDR(header);
                (*control).cmsg_level = level;
                (*control).cmsg_type = kind;
                (*control).cmsg_len = libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as _;
                libc::CMSG_DATA(control).cast::<libc::c_int>().write_unaligned(libc::c_int::from(ttl));
                header.msg_controllen = libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as _;
            }
        }
    }
    // SAFETY: the first `count` headers point at names, vectors and controls on this stack frame, and the vectors at payloads
    // that `datagrams` borrows until after the call; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// A set of descriptors to wait on, itself one descriptor.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; a descriptor that comes back is new and ours alone.
        unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(OwnedFd::from_raw_fd(fd))) }
        }
    }

    /// Tells of `fd` by `token` whenever it is readable (level-triggered). Closing the descriptor takes it out again.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` is valid for the call, which copies it.
        let result =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The tokens of descriptors that are readable now, up to [`MAX_BATCH`], each handed to `found`. Never waits.
    pub fn ready(&self, mut found: impl FnMut(u64)) -> io::Result<usize> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX_BATCH];
        // SAFETY: `events` has room for as many as the call is told, and outlives it.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), MAX_BATCH as libc::c_int, 0) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = (count as usize).min(MAX_BATCH);
        for event in &events[..count] {
            found(event.u64);
        }
        Ok(count)
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Lets tokio wait for a descriptor to become readable. To be called within a tokio runtime.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, and stays the same descriptor, until it is dropped, which is after its registration.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// The same for a set of descriptors.
pub fn watch_set(set: Epoll) -> io::Result<AsyncFd<Epoll>> {
    // SAFETY: an Epoll is an OwnedFd that nobody can take out of it.
    unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// Sets an integer option of a socket's that socket2 has no name for. Best effort: the kernel's answer is the result.
pub fn set_int_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer is to an int that outlives the call, and the length is an int's.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes of an open `/dev/net/tun` the layer-3 device `name`, without packet information in front of packets.
pub fn attach_tun(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all-zero bytes are valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // One byte stays zero: the kernel wants the name terminated.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads once from `fd` into `buffer`.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of one slice, borrowed mutably for the call.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Writes `bytes` to `fd` once.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of one slice, borrowed for the call.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

#[cfg(test)]
pub mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Moves this thread, and what it starts, into a network namespace of its own with nothing but a loopback device.
    /// `false`, loudly, without the permission.
    pub fn enter_own_namespace() -> bool {
        // SAFETY: takes no pointers, and changes only what this thread's later system calls see.
        let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        if !entered {
            eprintln!("SKIPPED: this test needs root for a network namespace: {}", io::Error::last_os_error());
        }
        entered
    }

    /// Receives one datagram and gives the TTL or hop limit that it came with.
    pub fn receive_ttl(socket: &std::net::UdpSocket) -> i32 {
        let mut control = Control([0; CONTROL_LEN]);
        let mut byte = [0u8; 16];
        let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
        // SAFETY: every pointer is to a local that outlives the call; the control header is read where the kernel put one.
        unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL_LEN as _;
            assert!(libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) >= 0, "{}", io::Error::last_os_error());
            let header = libc::CMSG_FIRSTHDR(&message);
            assert!(!header.is_null(), "no TTL came along");
            libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned()
        }
    }

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["192.0.2.1:65535", "[2001:db8::1]:1", "[fe80::1%3]:4275"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(RawAddress::new(address).0.to_address(), Some(address));
        }
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:7".parse().expect("an address");
        assert_eq!(RawAddress::new(mapped).0.to_address(), Some("192.0.2.1:7".parse().expect("an address")));
        assert_eq!(RawAddress::zero().to_address(), None);
    }

    #[test]
    fn a_device_name_that_the_kernel_could_not_hold_is_refused() {
        let file = std::net::UdpSocket::bind("127.0.0.1:0").expect("any descriptor will do");
        for name in ["", "a name of sixteen+", "nul\0"] {
            assert_eq!(attach_tun(file.as_fd(), name).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
        }
        assert!(interface_index("lo").is_some());
        assert_eq!(interface_index("no-such-dev"), None);
    }
}
