//! A TUN device that is there already, for the lab's programs.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// The largest packet of a device without offloads.
pub const MAX_PACKET: usize = 65_535;

/// Opens the TUN device, non-blocking, packets without a header of the device's own.
pub fn attach(device: &str) -> Result<File, String> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| format!("/dev/net/tun: {error}"))?;

    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.is_empty() || device.len() >= request.ifr_name.len() {
        return Err(format!("not a device's name: {device}"));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(format!("{device}: {}", std::io::Error::last_os_error()));
    }
    Ok(tun)
}

/// Sleeps until one of the descriptors can be read, or for `longest`.
pub fn wait<const N: usize>(descriptors: [RawFd; N], longest: Option<Duration>) -> Result<(), String> {
    let mut watched = descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let timeout = longest.map(|longest| libc::timespec {
        tv_sec: longest.as_secs() as libc::time_t,
        tv_nsec: longest.subsec_nanos() as libc::c_long,
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: N `pollfd`s are passed as N, and they and the timeout outlive the call; no signal mask is set.
    if unsafe { libc::ppoll(watched.as_mut_ptr(), N as libc::nfds_t, timeout, std::ptr::null()) } < 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(format!("poll: {error}"));
        }
    }
    Ok(())
}
