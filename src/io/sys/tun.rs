//! What makes and feeds a TUN device.

use std::io::{self, IoSlice};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::done;

/// Makes of an open `/dev/net/tun` the layer-3 device `name`, without packet information in front of packets; with a
/// virtio-net header there, if `header`.
pub fn attach_tun(fd: BorrowedFd<'_>, name: &str, header: bool) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all-zero bytes are valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // One byte stays zero: the kernel wants the name terminated.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | if header { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
}

/// Whether this kernel knows of a virtio-net header at all: an old one takes the flag and puts none in front.
pub fn tun_takes_header(fd: BorrowedFd<'_>) -> bool {
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES as _, &raw mut features) };
    result >= 0 && features & libc::IFF_VNET_HDR as libc::c_uint != 0
}

/// Sets the length of the virtio-net header.
pub fn set_tun_header(fd: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) })
}

/// Tells the kernel which work on packets it may leave to us (`TUN_F_…`).
pub fn set_tun_offloads(fd: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value, and no pointer.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) })
}

/// Writes all of `pieces` to `fd` as one.
pub fn write_pieces(fd: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = libc::c_int::try_from(pieces.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: IoSlice is promised to have the layout of iovec; pointer and length are of one slice, borrowed for the call.
    let written = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr().cast(), count) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(written as usize) }
}
