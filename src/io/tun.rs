//! The TUN device: inner IP packets from and to the kernel, in batches.
//!
//! A small `ioctl` of our own rather than the `tun` crate, which was measured and audited as unfit here: no segmentation
//! offload, addresses by IPv4-only `ioctl`s, one packet at a time, and much undocumented `unsafe`. Addresses, MTU and routes
//! go through netlink ([`super::links`]).
//!
//! The device is not persistent: it goes with the last descriptor, so SIGKILL leaves none behind.
//!
//! ```text
//! TunQueue   for a packet thread: blocking waits, super-packets behind a virtio-net header
//! Tun        for a task: one packet is one `read` or `write`, with nothing in front of it (IFF_NO_PI)
//! ```

mod queue;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;
use crate::proto::Packet;

pub use queue::{HEADER_LEN, MAX_PIECES, Offloads, READ_LEN, TunQueue, WriteError};

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

/// A TUN device of ours, without offloads, for tasks. Goes when dropped.
pub struct Tun {
    fd: AsyncFd<Arc<OwnedFd>>,
    queue: TunQueue,
}

impl Tun {
    /// Makes the device `name`: see [`TunQueue::create`]. To be called within a tokio runtime.
    pub fn create(name: &str, mtu: u16) -> Result<Self, TunError> {
        let queue = TunQueue::create(name, mtu, Offloads::NONE)?;
        let fd = sys::watch(queue.fd.clone()).map_err(TunError::Other)?;
        Ok(Self { fd, queue })
    }

    pub fn name(&self) -> &str {
        self.queue.name()
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
            match self.queue.write_packet(packet) {
                Ok(()) => written.packets += 1,
                Err(WriteError::Gone(error)) => return Err(error),
                Err(WriteError::Refused(_) | WriteError::Segmentation(_)) => written.refused += 1,
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests;
