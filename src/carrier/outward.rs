//! From the TUN device to the sockets.
//!
//! ```text
//! read ─► Split ─► route ─► lane ─► volley: | header | packet 0 | tag | header | packet 1 | tag | …  ─► sealed, sent
//!                             └─ none, or longer than the path carries: each packet to the core
//! ```
//!
//! A volley is what one UDP_SEGMENT send takes: datagrams of one length to one address, the last of which may be shorter. One
//! super-packet fills it, or many small packets do; it leaves when the device has nothing more to read, so waiting for company
//! costs a lone packet nothing.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc as orders;

use tokio::sync::mpsc;

use super::{Desk, Outbound};
use crate::io::clock;
use crate::io::tun::{READ_LEN, Tun};
use crate::io::udp::UdpSocket;
use crate::io::wake::Wait;
use crate::proto::action::Drop as Reason;
use crate::proto::context::PeerId;
use crate::proto::ip;
use crate::proto::lane::OutwardLane;
use crate::proto::mss;
use crate::proto::node::Routes;
use crate::proto::offload::split::Split;
use crate::proto::offload::virtio;
use crate::proto::oversize;
use crate::proto::session::{HEADER_LEN, OVERHEAD, padding};
use crate::proto::{Instant, Packet};

/// Most reads before orders are looked at again: with 64 KiB each, some milliseconds.
const READS: usize = 64;
/// What one UDP_SEGMENT send may have: 64 datagrams in kernels before 6.9, in one UDP payload of IPv4.
const VOLLEY_COUNT: usize = 64;
const VOLLEY_LEN: usize = 65_507;

struct Lane {
    lane: OutwardLane,
    socket: Arc<UdpSocket>,
}

/// Datagrams that leave together; nothing where `count` is 0.
struct Volley {
    peer: PeerId,
    tos: u8,
    buffer: Box<[u8]>,
    len: usize,
    /// Of each but the last.
    segment: usize,
    count: usize,
    /// The last one is shorter, so no more can follow.
    closed: bool,
}

impl Volley {
    fn takes(&self, peer: PeerId, tos: u8, len: usize) -> bool {
        self.count == 0
            || (self.peer == peer
                && self.tos == tos
                && !self.closed
                && len <= self.segment
                && self.count < VOLLEY_COUNT
                && self.len + len <= VOLLEY_LEN)
    }
}

/// The thread's own.
pub struct Outward {
    tun: Tun,
    wait: Wait,
    desk: Desk<Packet>,
    routes: Arc<Routes>,
    lanes: HashMap<PeerId, Lane>,
    volley: Volley,
    now: Instant,
}

impl Outward {
    pub fn new(tun: Tun, wait: Wait, desk: Desk<Packet>) -> Self {
        let volley = Volley {
            peer: 0,
            tos: 0,
            // A packet longer than a UDP payload can't be sent, but it must not panic here.
            buffer: vec![0; READ_LEN + OVERHEAD].into_boxed_slice(),
            len: 0,
            segment: 0,
            count: 0,
            closed: false,
        };
        Self { tun, wait, desk, routes: Arc::default(), lanes: HashMap::new(), volley, now: clock::now() }
    }

    /// Until nobody gives orders any more, or the device is gone.
    pub fn run(mut self, orders: &orders::Receiver<Outbound>, gone: &mpsc::Sender<io::Error>) {
        let mut buffer = vec![0; READ_LEN].into_boxed_slice();
        while self.take(orders) {
            self.now = clock::now();
            let read = self.read(&mut buffer);
            self.flush();
            let waited = match read {
                Ok(true) => Ok(()),
                Ok(false) => self.tun.wait(&self.wait, None).map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                // Where nobody listens any more, all this is ending.
                let _ = gone.try_send(error);
                return;
            }
        }
    }

    /// `false` where nobody gives orders any more.
    fn take(&mut self, orders: &orders::Receiver<Outbound>) -> bool {
        loop {
            match orders.try_recv() {
                Ok(Outbound::Routes(routes)) => self.routes = routes,
                Ok(Outbound::Lane { peer, lane: Some((lane, socket)) }) => {
                    self.desk.catch_up();
                    self.lanes.insert(peer, Lane { lane, socket });
                }
                Ok(Outbound::Lane { peer, lane: None }) => {
                    self.lanes.remove(&peer);
                }
                Err(orders::TryRecvError::Empty) => return true,
                Err(orders::TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// `false`: nothing more waits. An error means that the device is gone.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        for _ in 0..READS {
            match self.tun.read(buffer) {
                Ok(len) => self.carry(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn carry(&mut self, read: &[u8]) {
        let split = if self.tun.offloads().vnet_header {
            virtio::Header::parse(read).and_then(|header| Split::new(&header, &read[virtio::HEADER_LEN..]))
        } else {
            Split::new(&virtio::Header::default(), read)
        };
        let split = match split {
            Ok(split) => split,
            Err(fault) => {
                tracing::trace!(?fault, len = read.len(), "what the device gave is of no use");
                return self.desk.drops.count(Reason::NoRoute);
            }
        };
        let Some(peer) = self.routes.lookup(split.header().destination) else {
            return self.desk.drops.count(Reason::NoRoute);
        };
        let longest = split.segment_len(0);
        match self.lanes.get(&peer).filter(|lane| self.now < lane.lane.until) {
            Some(lane) if longest <= usize::from(lane.lane.limit) => self.load(peer, lane.lane.limit, &split),
            Some(_) if !oversize::may_be_cut(split.packet(), longest) => {
                // The core tells its sender, once for all segments.
                self.give(&split, 1);
                for _ in 1..split.segments() {
                    self.desk.drops.count(Reason::TooBig);
                }
            }
            Some(_) | None => self.give(&split, split.segments()),
        }
    }

    /// The first `count` packets go to the core.
    fn give(&mut self, split: &Split<'_>, count: usize) {
        for index in 0..count {
            let mut packet = Packet::with_capacity(split.segment_len(index));
            let len = split.write(index, packet.spare_mut());
            packet.set_len(len);
            self.desk.give(packet);
        }
    }

    fn load(&mut self, peer: PeerId, limit: u16, split: &Split<'_>) {
        let tos = ip::ecn(split.packet());
        for index in 0..split.segments() {
            let inner = split.segment_len(index);
            let padding = padding(inner, limit.into());
            let len = OVERHEAD + inner + padding;
            if !self.volley.takes(peer, tos, len) {
                self.flush();
            }
            let volley = &mut self.volley;
            let datagram = &mut volley.buffer[volley.len..volley.len + len];
            let (packet, rest) = datagram[HEADER_LEN..].split_at_mut(inner);
            split.write(index, packet);
            mss::clamp(packet, limit);
            rest[..padding].fill(0);
            if volley.count == 0 {
                (volley.peer, volley.tos, volley.segment, volley.closed) = (peer, tos, len, false);
            }
            volley.closed = len < volley.segment;
            volley.len += len;
            volley.count += 1;
        }
    }

    /// Seals and sends the volley.
    fn flush(&mut self) {
        let volley = &mut self.volley;
        let (count, len) = (std::mem::take(&mut volley.count), std::mem::take(&mut volley.len));
        if count == 0 {
            return;
        }
        let lane = self.lanes.get(&volley.peer);
        let Some((lane, first)) = lane.and_then(|lane| Some((lane, lane.lane.sealer.reserve(count, volley.segment)?)))
        else {
            // The key is used up, which the core sees too: it makes another.
            return self.desk.drops.count(Reason::Overload);
        };
        let datagrams = &mut volley.buffer[..len];
        for (counter, datagram) in (first..).zip(datagrams.chunks_mut(volley.segment)) {
            if lane.lane.sealer.seal_datagram(counter, datagram).is_none() {
                return self.desk.drops.count(Reason::Overload);
            }
        }
        let sent = lane.socket.send_segments(lane.lane.way.remote, volley.tos, datagrams, volley.segment);
        for _ in 0..sent.refused + sent.overflowed {
            self.desk.drops.count(Reason::Overload);
        }
        let is_news = lane.lane.traffic.note_sent(self.now, len, count, volley.segment - OVERHEAD);
        self.desk.tell(is_news);
    }
}
