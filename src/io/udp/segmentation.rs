//! Where one socket may leave the cutting of a long buffer to the kernel (UDP_SEGMENT).
//!
//! - A kernel without it (before 4.18) is asked once, when the socket is opened.
//! - EMSGSIZE (EINVAL before Linux 6.13): the segments don't fit that path's MTU. Without segmentation the kernel sends them
//!   in fragments, so segments of this length and longer are sent one by one to that destination, and shorter ones are tried.
//! - EIO: the route's device has no checksum offload, or an IPsec policy is on it. No segments to that destination.
//! - Anything that says "no such option": none by this socket, for good.
//!
//! What was refused for a destination is tried again after a minute: routes and path MTUs change, and a try costs one system
//! call and loses nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::proto::Instant;

const TRY_AGAIN: Duration = Duration::from_secs(60);
/// A machine with refusals for more destinations than this has them because of its own devices: then what was refused for
/// any of them is not tried for all.
const MAX_DESTINATIONS: usize = 16;

pub struct Segmentation {
    possible: AtomicBool,
    /// Whether there are any in the list, so that its lock is taken only where something was refused.
    refused_any: AtomicBool,
    refused: Mutex<Vec<Refused>>,
}

struct Refused {
    /// `None`: everywhere.
    to: Option<SocketAddr>,
    /// This length and longer.
    segment: usize,
    until: Instant,
}

impl Segmentation {
    pub fn new(possible: bool) -> Self {
        Self {
            possible: AtomicBool::new(possible),
            refused_any: AtomicBool::new(false),
            refused: Mutex::new(Vec::new()),
        }
    }

    pub fn allows(&self, now: impl FnOnce() -> Instant, to: SocketAddr, segment: usize) -> bool {
        if !self.possible.load(Ordering::Relaxed) {
            return false;
        }
        if !self.refused_any.load(Ordering::Relaxed) {
            return true;
        }
        let (mut refused, now) = (self.lock(), now());
        refused.retain(|refused| refused.until > now);
        self.refused_any.store(!refused.is_empty(), Ordering::Relaxed);
        !refused.iter().any(|refused| refused.to.is_none_or(|there| there == to) && segment >= refused.segment)
    }

    /// Whether an error of a segmented send is about the segmentation; then it is remembered, and the same bytes are to be
    /// sent one by one.
    pub fn handle_error(&self, now: Instant, to: SocketAddr, segment: usize, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE | libc::EINVAL) => self.refuse(now, to, segment),
            Some(libc::EIO) => self.refuse(now, to, 0),
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => self.possible.store(false, Ordering::Relaxed),
            _ => return false,
        }
        true
    }

    fn refuse(&self, now: Instant, to: SocketAddr, segment: usize) {
        let mut list = self.lock();
        let mut new = Refused { to: Some(to), segment, until: now + TRY_AGAIN };
        if let Some(known) = list.iter_mut().find(|known| known.to == new.to) {
            new.segment = segment.min(known.segment);
            *known = new;
        } else if list.len() < MAX_DESTINATIONS {
            list.push(new);
        } else {
            new.to = None;
            new.segment = list.iter().map(|known| known.segment).fold(segment, usize::min);
            *list = vec![new];
        }
        self.refused_any.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Refused>> {
        // Each change of the list is whole at any time.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn error(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn segments_too_long_for_a_path_are_refused_there_only_and_for_a_minute() {
        let segmentation = Segmentation::new(true);
        assert!(segmentation.handle_error(NOW, address(1), 1452, &error(libc::EMSGSIZE)));
        let allows = |now, port, segment| segmentation.allows(|| now, address(port), segment);
        assert!(!allows(NOW, 1, 1452) && !allows(NOW, 1, 1453));
        assert!(allows(NOW, 1, 1451) && allows(NOW, 2, 1452));
        assert!(segmentation.handle_error(NOW, address(1), 1300, &error(libc::EINVAL)));
        assert!(!allows(NOW, 1, 1300) && allows(NOW, 1, 1299));
        assert!(segmentation.handle_error(NOW, address(2), 1300, &error(libc::EIO)));
        assert!(!allows(NOW, 2, 1));
        assert!(allows(NOW + TRY_AGAIN, 1, 1452) && allows(NOW + TRY_AGAIN, 2, 1));
    }

    #[test]
    fn errors_that_are_not_about_segments_change_nothing() {
        let segmentation = Segmentation::new(true);
        for code in [libc::EAGAIN, libc::ENOBUFS, libc::EPERM, libc::ENETUNREACH, libc::ECONNREFUSED, libc::EINTR] {
            assert!(!segmentation.handle_error(NOW, address(1), 1452, &error(code)), "{code}");
        }
        assert!(segmentation.allows(|| NOW, address(1), 1452));
    }

    #[test]
    fn a_kernel_without_it_is_not_asked_again() {
        assert!(!Segmentation::new(false).allows(|| NOW, address(1), 1));
        let segmentation = Segmentation::new(true);
        assert!(segmentation.handle_error(NOW, address(1), 1452, &error(libc::ENOPROTOOPT)));
        assert!(!segmentation.allows(|| NOW + TRY_AGAIN, address(2), 1));
    }

    #[test]
    fn what_more_than_a_few_destinations_refuse_is_tried_nowhere_for_a_minute() {
        let segmentation = Segmentation::new(true);
        for port in 0..=MAX_DESTINATIONS as u16 {
            assert!(segmentation.allows(|| NOW, address(port), 1452));
            let segment = 1452 - usize::from(port % 3);
            assert!(segmentation.handle_error(NOW, address(port), segment, &error(libc::EMSGSIZE)));
        }
        let allows = |now, segment| segmentation.allows(|| now, address(9_999), segment);
        assert!(!allows(NOW, 1450) && allows(NOW, 1449) && allows(NOW + TRY_AGAIN, 1450));
        for port in 0..1000 {
            segmentation.handle_error(NOW, address(port), 1, &error(libc::EIO));
            assert!(segmentation.lock().len() <= MAX_DESTINATIONS);
        }
        assert!(!allows(NOW, 1));
    }
}
