//! The threads that carry packets, one a direction, with what the core hands out to them ([`crate::proto::lane`]).
//!
//! ```text
//! outward   TUN ─► split into packets ─► route, lane ─► sealed in the send buffer ─► one UDP_SEGMENT send
//! inward    UDP_GRO receive ─► lane ─► opened in place ─► source's route ─► merged ─► one TUN write
//!
//!           core ── orders ──► both          both ── what has no lane, news of traffic ──► core
//! ```
//!
//! Each thread owns its table of lanes and takes changes of it between two batches; it takes no lock for a packet, and waits for
//! nobody but the kernel. What it can't carry goes to the core whole, by a queue with an end: what does not fit is dropped and
//! counted, so a flood of strangers' datagrams costs the core no more than that queue.

mod inward;
mod outward;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as orders;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use crate::io::schedule;
use crate::io::tun::Tun;
use crate::io::udp::{Inlet, UdpSocket};
use crate::io::wake::{Wait, Waker};
use crate::proto::action::Drop as Reason;
use crate::proto::context::PeerId;
use crate::proto::lane::{DropCounts, InwardLane, OutwardLane};
use crate::proto::node::Routes;
use crate::proto::{Packet, SocketId};

use inward::Inward;
use outward::Outward;

/// Datagrams that wait for the core: two of its turns, and four of the largest volley of probes that a call may answer.
const OUTER_QUEUE: usize = 1024;
/// Inner packets that wait for it: one super-packet's worth for each of a few peers that are being called. What a peer's tunnel keeps
/// is less.
const INNER_QUEUE: usize = 256;
/// How long a thread waits for the core to be done with what it was given, before a new lane is used; it takes microseconds, and
/// where the core is slower a packet may overtake.
const CATCH_UP: Duration = Duration::from_millis(2);

/// A datagram that no lane takes.
pub struct Outer {
    pub socket: SocketId,
    pub from: SocketAddr,
    pub packet: Packet,
}

/// What a thread is to take over; see [`crate::proto::lane::Order`].
pub enum Outbound {
    Routes(Arc<Routes>),
    Lane { peer: PeerId, lane: Option<(OutwardLane, Arc<UdpSocket>)> },
}

pub enum Inbound {
    Routes(Arc<Routes>),
    Lane { index: u32, lane: Option<InwardLane> },
}

/// The way from a thread to the core.
struct Desk<T> {
    queue: mpsc::Sender<T>,
    /// How much was put in, and how much the core is done with.
    given: u64,
    done: Arc<AtomicU64>,
    news: Arc<Notify>,
    drops: Arc<DropCounts>,
}

impl<T> Desk<T> {
    fn give(&mut self, item: T) {
        match self.queue.try_send(item) {
            Ok(()) => self.given += 1,
            // Full; or closed, and then this thread ends as well.
            Err(_) => self.drops.count(Reason::Overload),
        }
    }

    /// Waits until the core is done with all that it was given.
    fn catch_up(&self) {
        let end = Instant::now() + CATCH_UP;
        while self.done.load(Ordering::Acquire) < self.given && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn tell(&self, is_news: bool) {
        if is_news {
            self.news.notify_one();
        }
    }
}

/// A thread, by what it is told with. It ends when this is dropped.
struct Worker<T> {
    orders: Option<orders::Sender<T>>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(name: &str, waker: Waker, run: impl FnOnce(orders::Receiver<T>) + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = orders::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            schedule::as_batch();
            run(receiver);
        })?;
        Ok(Self { orders: Some(sender), waker, thread: Some(thread) })
    }

    fn tell(&self, order: T) {
        // The thread has ended where this fails: its device is gone, which the core hears of.
        if self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok()) {
            self.waker.wake();
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.orders = None;
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that carries packets panicked");
        }
    }
}

/// Both threads, and the core's end of what they give it.
pub struct Carrier {
    outward: Worker<Outbound>,
    inward: Worker<Inbound>,
    /// Inner packets without a lane, in order.
    pub inner: mpsc::Receiver<Packet>,
    /// Datagrams without a lane, in order.
    pub outer: mpsc::Receiver<Outer>,
    /// Something was carried to or from a peer that had been quiet.
    pub news: Arc<Notify>,
    /// The device is gone.
    pub gone: mpsc::Receiver<io::Error>,
    inner_done: Arc<AtomicU64>,
    outer_done: Arc<AtomicU64>,
}

impl Carrier {
    /// Starts both. Errors: out of threads or descriptors.
    pub fn start(tun: &Tun, inlet: Inlet, drops: Arc<DropCounts>) -> io::Result<Self> {
        let (give_inner, inner) = mpsc::channel(INNER_QUEUE);
        let (give_outer, outer) = mpsc::channel(OUTER_QUEUE);
        let (tell_gone, gone) = mpsc::channel(2);
        let news = Arc::new(Notify::new());
        let (inner_done, outer_done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let inner_desk =
            Desk { queue: give_inner, given: 0, done: inner_done.clone(), news: news.clone(), drops: drops.clone() };
        let outer_desk = Desk { queue: give_outer, given: 0, done: outer_done.clone(), news: news.clone(), drops };
        let wait = Wait::new()?;
        let outward = {
            let (tun, tell_gone, waker) = (tun.clone(), tell_gone.clone(), wait.waker());
            Worker::start("outward", waker, move |orders| Outward::new(tun, wait, inner_desk).run(&orders, &tell_gone))?
        };
        let inward = {
            let (tun, waker) = (tun.clone(), inlet.waker());
            Worker::start("inward", waker, move |orders| Inward::new(tun, inlet, outer_desk).run(&orders, &tell_gone))?
        };
        Ok(Self { outward, inward, inner, outer, news, gone, inner_done, outer_done })
    }

    pub fn tell_outward(&self, order: Outbound) {
        self.outward.tell(order);
    }

    pub fn tell_inward(&self, order: Inbound) {
        self.inward.tell(order);
    }

    /// What came of so many of [`Carrier::inner`] was sent, or is kept.
    pub fn inner_done(&self, count: usize) {
        self.inner_done.fetch_add(count as u64, Ordering::Release);
    }

    /// What came of so many of [`Carrier::outer`] was written to the device.
    pub fn outer_done(&self, count: usize) {
        self.outer_done.fetch_add(count as u64, Ordering::Release);
    }
}
