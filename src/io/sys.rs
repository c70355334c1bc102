//! The one module with `unsafe`: system calls that std, tokio and socket2 do not have. Everything it exports is safe to call
//! with any argument; a wrong one gives an error.
//!
//! ```text
//! batch     many datagrams by one call: sendmmsg, recvmmsg, and sendmsg of one buffer that the kernel cuts up
//! address   a socket's address, and
//! control   a message's control data, in the kernel's form
//! wait      epoll, poll and eventfd
//! tun       what makes and feeds a TUN device
//! ```
//!
//! Each call that takes pointers builds all of its structures on its own stack, for as long as the call lasts, from slices
//! whose lengths it takes itself. No pointer leaves its file.

#![allow(unsafe_code)] // The island: raw system calls; each block says why it is sound.

mod address;
mod batch;
mod control;
mod tun;
mod wait;

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use batch::{Arrival, MAX_BATCH, Outgoing, receive, send, send_segmented};
pub use tun::{attach_tun, set_tun_header, set_tun_offloads, tun_takes_header, write_pieces};
pub use wait::{Epoll, EventFd, wait_readable, wait_writable};

/// Nanoseconds since boot, time asleep included.
pub fn boottime_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to write. CLOCK_BOOTTIME exists since Linux 2.6.39, so it can't fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Has the kernel schedule the calling thread as SCHED_BATCH (sched(7)). Needs no privilege. Errors: a system call filter.
pub fn schedule_as_batch() -> io::Result<()> {
    // SAFETY: A sched_param is made of integers, more of them with musl than with glibc.
    let none: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a valid sched_param for the call to read; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The index of a network device; `None` where there is none of that name.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Lets tokio wait for any of a set of descriptors to become readable. To be called within a tokio runtime.
pub fn watch_set(set: Arc<Epoll>) -> io::Result<AsyncFd<Arc<Epoll>>> {
    // SAFETY: an Epoll is an OwnedFd that nobody can take out of it, and the registration holds it by an Arc.
    unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// Lets tokio wait for a socket to become readable. To be called within a tokio runtime.
pub fn watch_socket(socket: Arc<Socket>) -> io::Result<AsyncFd<Arc<Socket>>> {
    // SAFETY: a Socket is an OwnedFd that nobody can take out of it while the registration holds it by an Arc.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(|error| error.into_parts().1)
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
    done(result)
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

/// What a call that gives nothing but its success says.
fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
pub mod tests {
    use std::mem::zeroed;
    use std::os::fd::AsFd;
    use std::process::Command;

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

    /// Runs a command, which must succeed, and gives what it prints.
    pub fn run(command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        let output = Command::new(words[0]).args(&words[1..]).output().expect("can be started");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// This thread as `ip link set … netns` wants it.
    pub fn thread_id() -> String {
        let link = std::fs::read_link("/proc/thread-self").expect("/proc is there");
        link.file_name().expect("PID/task/TID").to_string_lossy().into_owned()
    }

    /// Receives one datagram and gives the TTL or hop limit that it came with.
    pub fn receive_ttl(socket: &std::net::UdpSocket) -> i32 {
        let mut control = control::Control::empty();
        let mut byte = [0u8; 16];
        let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        control.lend(&mut message);
        // SAFETY: every pointer in the message is to a local that outlives the call.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
        assert!(received >= 0, "{}", io::Error::last_os_error());
        let mut ttl = None;
        control.each(message.msg_controllen as _, |_, _, data| {
            ttl = data.try_into().ok().map(i32::from_ne_bytes);
        });
        ttl.expect("a TTL came along")
    }

    #[test]
    fn a_device_name_that_the_kernel_could_not_hold_is_refused() {
        let file = std::net::UdpSocket::bind("127.0.0.1:0").expect("any descriptor will do");
        for name in ["", "a name of sixteen+", "nul\0"] {
            assert_eq!(attach_tun(file.as_fd(), name, false).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
        }
        assert!(interface_index("lo").is_some());
        assert_eq!(interface_index("no-such-dev"), None);
    }
}
