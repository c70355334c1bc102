//! Control data: what goes with a message besides its bytes.
//!
//! ```text
//! sent       [IP_TTL | IPV6_HOPLIMIT : int] [IP_TOS | IPV6_TCLASS : int] [UDP_SEGMENT : u16]
//! received   [IP_TOS : u8 | IPV6_TCLASS : int] [UDP_GRO : int]
//! each       header (length, level, kind), data, padding to the alignment of a header
//! ```

use std::mem::{size_of, zeroed};

use libc::{c_int, cmsghdr};

/// Room for four of the longest: one more than ever go together.
const ROOM: usize = 96;

/// Control data of one message, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Control {
    bytes: [u8; ROOM],
    len: usize,
}

impl Control {
    pub const fn empty() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }

    /// Puts one behind what is there. One that does not fit is left off.
    pub fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let (front, space) = (front(), space(data.len()));
        let Some(room) = self.bytes.get_mut(self.len..self.len + space) else { return };
        // SAFETY: cmsghdr is plain data for which all-zero bytes are valid.
        let mut header: cmsghdr = unsafe { zeroed() };
        header.cmsg_len = (front + data.len()) as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        // SAFETY: `room` is at least `front` long, which is at least a header, and the write needs no alignment.
        unsafe { room.as_mut_ptr().cast::<cmsghdr>().write_unaligned(header) };
        room[front..front + data.len()].copy_from_slice(data);
        self.len += space;
    }

    /// Hands out what was put in, for sending. The message holds a pointer to `self` then.
    pub fn attach(&mut self, message: &mut libc::msghdr) {
        if self.len > 0 {
            message.msg_control = self.bytes.as_mut_ptr().cast();
            message.msg_controllen = self.len as _;
        }
    }

    /// Hands out all of the room, for receiving. The message holds a pointer to `self` then.
    pub fn lend(&mut self, message: &mut libc::msghdr) {
        message.msg_control = self.bytes.as_mut_ptr().cast();
        message.msg_controllen = ROOM as _;
    }

    /// Gives level, kind and data of each that the kernel wrote; `len` is what it says of their length.
    pub fn each(&self, len: usize, mut found: impl FnMut(c_int, c_int, &[u8])) {
        let front = front();
        let mut rest = &self.bytes[..len.min(ROOM)];
        while rest.len() >= front {
            // SAFETY: `rest` is at least `front` long, which is at least a header; the read needs no alignment, and any
            // bytes are a valid header.
            let header = unsafe { rest.as_ptr().cast::<cmsghdr>().read_unaligned() };
            let end: usize = header.cmsg_len as _; // libcs differ in its type
            let Some(data) = rest.get(front..end) else { return };
            found(header.cmsg_level, header.cmsg_type, data);
            rest = rest.get(space(data.len())..).unwrap_or_default();
        }
    }
}

/// Bytes in front of the data.
fn front() -> usize {
    // SAFETY: only computes.
    let front = unsafe { libc::CMSG_LEN(0) } as usize;
    debug_assert!(front >= size_of::<cmsghdr>());
    front
}

/// Bytes that one takes with its padding.
fn space(len: usize) -> usize {
    // SAFETY: only computes. What is in here is at most a few bytes long.
    unsafe { libc::CMSG_SPACE(len as u32) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out_and_what_does_not_fit_is_left_off() {
        let mut control = Control::empty();
        for kind in 0..9u8 {
            control.push(7, kind.into(), &[kind; 3]);
        }
        let mut seen = Vec::new();
        control.each(control.len, |level, kind, data| seen.push((level, kind, data.to_vec())));
        assert_eq!(seen, [0, 1, 2, 3].map(|kind: u8| (7, c_int::from(kind), vec![kind; 3])));
    }

    #[test]
    fn control_data_that_lies_about_its_length_ends_the_reading() {
        for len in [0usize, 1, 15, 97, usize::MAX] {
            let mut control = Control::empty();
            control.bytes[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            control.each(usize::MAX, |_, _, _| panic!("{len}"));
        }
    }
}
