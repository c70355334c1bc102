//! Waiting for descriptors: epoll, poll and eventfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::{MAX_BATCH, done};

/// A set of descriptors to wait on, itself one descriptor.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    /// Tells of `fd` by `token` whenever it is readable (level-triggered). Closing the last descriptor of the same socket
    /// takes it out again.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token)
    }

    /// Tells of `fd` no more.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0)
    }

    fn control(&self, operation: libc::c_int, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` is valid for the call, which copies it.
        done(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })
    }

    /// The tokens of descriptors that are readable, up to [`MAX_BATCH`], each handed to `found`; waits for the first of them
    /// for `timeout` (`None`: for ever).
    pub fn ready(&self, timeout: Option<Duration>, mut found: impl FnMut(u64)) -> io::Result<usize> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX_BATCH];
        // SAFETY: `events` has room for as many as the call is told, and outlives it.
        let count = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), MAX_BATCH as libc::c_int, millis(timeout))
        };
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

/// A counter of the kernel's that is readable while it is not zero.
pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(Self)
    }

    /// Makes it readable.
    pub fn raise(&self) {
        // It fails only where the counter is at its limit, and then it is readable already.
        let _ = super::write(self.borrow(), &1u64.to_ne_bytes());
    }

    /// Makes it unreadable.
    pub fn clear(&self) {
        // It fails only where it is unreadable already.
        let _ = super::read(self.borrow(), &mut [0; 8]);
    }

    pub fn borrow(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}

/// Waits until one of `fds` is readable or broken, and says of each whether it is. All `false`: `timeout` passed (`None`:
/// for ever), or a signal came.
pub fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    poll(fds, libc::POLLIN, timeout)
}

/// Waits until `fd` can be written to or is broken, at most for `timeout`.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    poll([fd], libc::POLLOUT, Some(timeout)).map(|[writable]| writable)
}

fn poll<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    events: libc::c_short,
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
    // SAFETY: the pointer is to as many structures as the call is told, which outlive it.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis(timeout)) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(polled.map(|polled| polled.revents != 0))
}

/// Rounded up, for a wait that ends too early would be made again at once.
fn millis(timeout: Option<Duration>) -> libc::c_int {
    timeout.map_or(-1, |timeout| timeout.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX))
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a descriptor that a call has just given is open and ours alone.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}
