//! The TUN device: inner IP packets from and to the kernel, in batches.
//!
//! A small `ioctl` of our own rather than the `tun` crate, which was measured and audited as unfit here: no segmentation
//! offload, addresses by IPv4-only `ioctl`s, one packet at a time, and much undocumented `unsafe`. Addresses, MTU and routes
//! go through netlink ([`super::links`]).
//!
//! The device is not persistent: it goes with the last descriptor, so SIGKILL leaves none behind.
//! One packet is one `read` or `write` (IFF_NO_PI: nothing in front of it). Batches are what a virtio-net header and several
//! queues will need later; the interface stays the same.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;
use crate::proto::Packet;

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

/// What became of a batch's packets.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Written {
    pub packets: usize,
    /// No valid IP packet, or the device is down.
    pub refused: usize,
}

/// A TUN device of ours. Goes when dropped.
pub struct Tun {
    fd: AsyncFd<OwnedFd>,
    name: String,
}

impl Tun {
    /// Makes the device `name`. Its MTU is set, best effort, by [`super::links::Links`]; here it only is checked.
    /// To be called within a tokio runtime.
    pub fn create(name: &str, mtu: u16) -> Result<Self, TunError> {
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
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE);
        let fd: OwnedFd = match file {
            Ok(file) => file.into(),
            Err(error) => {
                return Err(match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
                    Some(libc::EACCES | libc::EPERM) => TunError::NoPermission,
                    _ => TunError::Other(error),
                });
            }
        };
        let there = sys::interface_index(name).is_some();
        if let Err(error) = sys::attach_tun(fd.as_fd(), name) {
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY) => TunError::Busy(name.to_owned()),
                Some(libc::EINVAL | libc::EPERM) if there => TunError::Taken(name.to_owned()),
                Some(libc::EPERM | libc::EACCES) => TunError::NoPermission,
                Some(libc::EINVAL) => TunError::BadName(name.to_owned()),
                _ => TunError::Other(error),
            });
        }
        let fd = sys::watch(fd).map_err(TunError::Other)?;
        Ok(Self { fd, name: name.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until [`Tun::recv_batch`] may bring something. Cancel-safe. The kernel does not end this wait when somebody
    /// deletes the device: [`super::netmon`] tells, and [`super::links::Links::apply`] says that it is gone.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Reads packets into the first of `packets` until none waits or all are full; gives how many. Never waits.
    /// A packet longer than its buffer is cut, so the buffers must hold the MTU. An error means that the device is gone.
    pub fn recv_batch(&self, packets: &mut [Packet]) -> io::Result<usize> {
        let mut count = 0;
        while let Some(packet) = packets.get_mut(count) {
            match self.fd.try_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), packet.spare_mut())) {
                Ok(len) => {
                    packet.set_len(len);
                    count += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was read before is worth having; the error comes again.
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Gives packets to the kernel in order. What it refuses is counted and the rest goes on. An error means that the
    /// device is gone.
    pub fn send_batch<'a>(&self, packets: impl IntoIterator<Item = &'a [u8]>) -> io::Result<Written> {
        let mut written = Written::default();
        for packet in packets {
            loop {
                match sys::write(self.fd.get_ref().as_fd(), packet) {
                    Ok(_) => written.packets += 1,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(error),
                    Err(_) => written.refused += 1,
                }
                break;
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests;
