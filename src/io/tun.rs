//! The TUN device: inner IP packets from and to the kernel, up to 64 KiB at a time.
//!
//! ```text
//! with a virtio-net header (10 bytes, fields in this machine's byte order) each read and write is
//!   flags | gso_type | hdr_len : u16 | gso_size : u16 | csum_start : u16 | csum_offset : u16 | IP packet, up to 65,535 bytes
//! without: IP packet, up to the MTU
//! ```
//!
//! - The kernel gives packets longer than the MTU, for us to cut up, only of the kinds in [`Offloads`]; with any of these, a
//!   packet of any kind may come with its checksum left to us (VIRTIO_NET_HDR_F_NEEDS_CSUM).
//! - It takes such packets from us whenever there is a header, and cuts them up itself where it must.
//! - The device is not persistent: it goes with the last descriptor, so SIGKILL leaves none behind.
//!
//! A small `ioctl` of our own rather than the `tun` crate, which was measured and audited as unfit here: no segmentation
//! offload, addresses by IPv4-only `ioctl`s, one packet at a time, and much undocumented `unsafe`. Addresses, MTU and routes
//! go through netlink ([`super::links`]).

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use super::sys;
use super::wake::{Ready, Wait};

const DEVICE: &str = "/dev/net/tun";

/// Why there is no TUN device; each is one sentence for the user.
#[derive(Debug)]
pub enum TunError {
    NoDevice,
    NoPermission,
    /// The name is no device's name that Linux takes.
    BadName(String),
    /// Another process holds a TUN device of that name.
    Busy(String),
    /// A device of another kind has that name.
    Taken(String),
    Other(io::Error),
}

impl std::fmt::Display for TunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoDevice => {
                write!(f, "{DEVICE} is not there: load the kernel module `tun`, or give the container the device")
            }
            Self::NoPermission => {
                write!(f, "no permission to make a network interface: run as root or with CAP_NET_ADMIN")
            }
            Self::BadName(name) => write!(f, "\"{name}\" can't name a network interface: 1 to 15 characters, no slash"),
            Self::Busy(name) => {
                write!(f, "the interface {name} is in use by another process: is a daemon for it running already?")
            }
            Self::Taken(name) => {
                write!(f, "there is a network interface {name} already, and it is not ours: choose another name")
            }
            Self::Other(error) => write!(f, "the TUN device can't be made: {error}"),
        }
    }
}

impl std::error::Error for TunError {}

/// Length of `struct virtio_net_hdr` without the field for merged buffers, which a TUN device has no use for.
pub const HEADER_LEN: usize = 10;
/// Room for every read: the header, and the longest IP packet.
pub const READ_LEN: usize = HEADER_LEN + 65_535;
/// Most pieces in one write (UIO_MAXIOV of linux/uio.h).
pub const MAX_PIECES: usize = 1024;

/// What is in front of packets, and the kinds of super-packets that the kernel gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// A virtio-net header is in front of every packet. The other two are nothing without it.
    pub vnet_header: bool,
    /// TCP over IPv4 and IPv6, those with ECN too.
    pub tcp: bool,
    /// UDP over IPv4 and IPv6 (Linux 6.2 and later).
    pub udp: bool,
}

impl Offloads {
    pub const NONE: Self = Self { vnet_header: false, tcp: false, udp: false };
    pub const ALL: Self = Self { vnet_header: true, tcp: true, udp: true };
}

/// Why a packet was not written.
#[derive(Debug)]
pub enum WriteError {
    /// No valid IP packet, or the device is down: this packet is lost, the next one may not be.
    Refused(io::Error),
    /// The kernel does not take this super-packet. What it holds may be written packet by packet; where that succeeds,
    /// the kernel does not take such super-packets at all.
    Segmentation(io::Error),
    /// The device is no more.
    Gone(io::Error),
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "the TUN device refused a packet: {error}"),
            Self::Segmentation(error) => write!(f, "the TUN device refused a super-packet: {error}"),
            Self::Gone(error) => write!(f, "the TUN device is gone: {error}"),
        }
    }
}

impl std::error::Error for WriteError {}

/// A TUN device of ours, for any thread. Clones are the same device; it goes when the last one is dropped.
#[derive(Clone)]
pub struct Tun {
    fd: Arc<OwnedFd>,
    name: Arc<str>,
    offloads: Offloads,
}

impl Tun {
    /// Makes the device `name`, with those of the `wanted` offloads that the kernel has: see [`Tun::offloads`]. Its MTU
    /// is set, best effort, by [`super::links::Links`]; here it only is checked.
    pub fn create(name: &str, mtu: u16, wanted: Offloads) -> Result<Self, TunError> {
        // IPv4's least (RFC 791): the kernel takes no smaller one.
        if mtu < 68 {
            return Err(TunError::Other(io::Error::other("the MTU is below 68")));
        }
        // The kernel takes `%d` as "number it yourself", and then the name is not the one asked for.
        if name.is_empty()
            || name.len() > 15
            || name == "."
            || name == ".."
            || name.contains(['/', '%', ':'])
            || name.bytes().any(|byte| byte.is_ascii_whitespace() || byte == 0)
        {
            return Err(TunError::BadName(name.to_owned()));
        }
        let with_header = if wanted.vnet_header { attach_with_header(name)? } else { None };
        let (fd, offloads) = match with_header {
            Some(fd) => {
                let offloads = set_offloads(&fd, wanted);
                (fd, offloads)
            }
            None => {
                let fd = open()?;
                attach(&fd, name, false)?;
                (fd, Offloads::NONE)
            }
        };
        Ok(Self { fd: Arc::new(fd), name: name.into(), offloads })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What there is of what was wanted.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads one packet, with its header where there is one, and gives the length of both. What does not fit is cut off:
    /// [`READ_LEN`] holds all. Never waits. Errors: `WouldBlock` where none waits; every other but `Interrupted` means that
    /// the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        sys::read(self.fd.as_fd(), buffer)
    }

    /// Writes one packet in pieces, at most [`MAX_PIECES`], the first of which starts with the whole header where there is
    /// one.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), WriteError> {
        // gso_type is the second byte; 0 is none.
        let merged =
            self.offloads.vnet_header && pieces.first().and_then(|first| first.get(1)).is_some_and(|kind| *kind != 0);
        again(|| sys::write_pieces(self.fd.as_fd(), pieces)).map_err(|error| match error.raw_os_error() {
            Some(libc::EBADFD) => WriteError::Gone(error),
            // EIO is a device that is down, which would not take the parts either.
            Some(libc::EINVAL) if merged => WriteError::Segmentation(error),
            _ => WriteError::Refused(error),
        })
    }

    /// Writes one whole packet that needs nothing done, with a header that says so where one is wanted.
    pub fn write_packet(&self, packet: &[u8]) -> Result<(), WriteError> {
        if self.offloads.vnet_header {
            self.write(&[IoSlice::new(&[0; HEADER_LEN]), IoSlice::new(packet)])
        } else {
            self.write(&[IoSlice::new(packet)])
        }
    }

    /// Waits until [`Tun::read`] may bring something (a packet, or that the device is gone) or `wait` is woken, for
    /// `timeout` (`None`: for ever).
    pub fn wait(&self, wait: &Wait, timeout: Option<Duration>) -> io::Result<Ready> {
        wait.wait(self.fd.as_fd(), timeout)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open() -> Result<OwnedFd, TunError> {
    let options = libc::O_NONBLOCK | libc::O_CLOEXEC;
    match OpenOptions::new().read(true).write(true).custom_flags(options).open(DEVICE) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
            Some(libc::EACCES | libc::EPERM) => TunError::NoPermission,
            _ => TunError::Other(error),
        }),
    }
}

fn attach(fd: &OwnedFd, name: &str, header: bool) -> Result<(), TunError> {
    let there = sys::interface_index(name).is_some();
    sys::attach_tun(fd.as_fd(), name, header).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => TunError::Busy(name.to_owned()),
        Some(libc::EINVAL | libc::EPERM) if there => TunError::Taken(name.to_owned()),
        Some(libc::EPERM | libc::EACCES) => TunError::NoPermission,
        Some(libc::EINVAL) => TunError::BadName(name.to_owned()),
        _ => TunError::Other(error),
    })
}

/// `None` where the kernel has no such header; the device that was made to find out is gone then.
fn attach_with_header(name: &str) -> Result<Option<OwnedFd>, TunError> {
    let fd = open()?;
    if !sys::tun_takes_header(fd.as_fd()) {
        return Ok(None);
    }
    match attach(&fd, name, true) {
        Ok(()) => Ok(sys::set_tun_header(fd.as_fd(), HEADER_LEN as libc::c_int).is_ok().then_some(fd)),
        // EINVAL. Names that can be bad were sorted out before, so it is about the header; where not, it comes again.
        Err(TunError::BadName(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks for less and less until the kernel takes it.
fn set_offloads(fd: &OwnedFd, wanted: Offloads) -> Offloads {
    for (tcp, udp) in [(true, true), (true, false), (false, true)] {
        let (tcp, udp) = (tcp && wanted.tcp, udp && wanted.udp);
        let tcp_bits = if tcp { libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN } else { 0 };
        let udp_bits = if udp { libc::TUN_F_USO4 | libc::TUN_F_USO6 } else { 0 };
        let bits = libc::TUN_F_CSUM | tcp_bits | udp_bits;
        if (tcp || udp) && sys::set_tun_offloads(fd.as_fd(), bits).is_ok() {
            return Offloads { vnet_header: true, tcp, udp };
        }
    }
    Offloads { vnet_header: true, tcp: false, udp: false }
}

fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod offload_tests;
#[cfg(test)]
mod tests;
