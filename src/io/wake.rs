//! Ending a packet thread's wait from another thread or task.
//!
//! ```text
//! any thread:   put the work where the waiter looks, then Waker::wake()
//! the waiter:   wait for (its descriptor | woken), then look at the work
//! ```
//!
//! A wake before the wait ends that at once; many wakes before the waiter looks are one, and cost one atomic operation each
//! but the first.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::sys::{self, EventFd};

/// What a wait ended for. Neither: the time was over, or a signal came.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, or an error to be read.
    pub readable: bool,
    /// Somebody woke us since the last wait.
    pub woken: bool,
}

struct Shared {
    event: EventFd,
    woken: AtomicBool,
}

/// Wakes the thread that waits with the [`Wait`] that it came from. Clones wake the same one.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Never waits.
    pub fn wake(&self) {
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            self.0.event.raise();
        }
    }
}

/// One thread's end.
pub struct Wait(Arc<Shared>);

impl Wait {
    /// Errors: out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared { event: EventFd::new()?, woken: AtomicBool::new(false) })))
    }

    pub fn waker(&self) -> Waker {
        Waker(self.0.clone())
    }

    /// Whether somebody woke us since the last time; asks no kernel. For a thread that is too busy to wait.
    pub fn take(&self) -> bool {
        self.take_after(false)
    }

    /// Waits until `fd` is readable or broken, or we are woken, for `timeout` (`None`: for ever).
    pub fn wait(&self, fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<Ready> {
        let [readable, raised] = sys::wait_readable([fd, self.0.event.borrow()], timeout)?;
        Ok(Ready { readable, woken: self.take_after(raised) })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.borrow()
    }

    /// `raised`: the event was seen to be readable. It is made unreadable first and the mark is taken off then: a wake in
    /// between raises nothing, and is answered by the look at the work that follows. (The other way round, it would be
    /// cleared while its mark stays, and all later ones would be lost.)
    pub(super) fn take_after(&self, raised: bool) -> bool {
        if !raised && !self.0.woken.load(Ordering::Acquire) {
            return false;
        }
        self.0.event.clear();
        self.0.woken.swap(false, Ordering::AcqRel);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(5));
    const WOKEN: Ready = Ready { readable: false, woken: true };

    #[test]
    fn a_wake_ends_a_wait_and_many_wakes_are_one() {
        let quiet = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        let wait = Wait::new().expect("an eventfd");
        let waker = wait.waker();
        for _ in 0..3 {
            waker.wake();
            waker.clone().wake();
            assert_eq!(wait.wait(quiet.as_fd(), LONG).expect("waits"), WOKEN);
            assert_eq!(wait.wait(quiet.as_fd(), Some(Duration::ZERO)).expect("waits"), Ready::default());
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                waker.wake();
            });
            assert_eq!(wait.wait(quiet.as_fd(), LONG).expect("waits"), WOKEN, "woken while it waits");
        });
        waker.wake();
        assert!(wait.take() && !wait.take());
        assert_eq!(wait.wait(quiet.as_fd(), Some(Duration::ZERO)).expect("waits"), Ready::default());
    }

    #[test]
    fn no_wake_is_lost_between_busy_threads() {
        const EACH: usize = 20_000;
        let quiet = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        let wait = Wait::new().expect("an eventfd");
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..2 {
                let (sender, waker) = (sender.clone(), wait.waker());
                scope.spawn(move || {
                    for item in 0..EACH {
                        sender.send(item).expect("the other end is there");
                        waker.wake();
                    }
                });
            }
            let mut seen = 0;
            while seen < 2 * EACH {
                assert!(wait.wait(quiet.as_fd(), LONG).expect("waits").woken, "lost after {seen}");
                seen += receiver.try_iter().count();
            }
        });
    }
}
