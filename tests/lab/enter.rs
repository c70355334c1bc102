//! Moves a thread into a network namespace, so that a test can open sockets there itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The calling thread's sockets are in `namespace` (a name of `ip netns`) from now on. For threads made for it only: there
/// is no way back.
pub fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    // SAFETY: the descriptor is open for the length of the call, which changes nothing but the thread's own namespace.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
