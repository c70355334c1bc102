//! From the TUN device to the sockets.
//!
//! ```text
//! read ─► Split ─► route ─► lane ─► volley: | header | packet 0 | tag | header | packet 1 | tag | …  ─► sealed, sent
//!                             └─ none, or longer than the path carries: each packet to the core
//! ```
//!
//! A volley ([`crate::proto::volley`]) leaves when it is full or the device has nothing more to read, so waiting for company costs
//! a lone packet nothing.

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
use crate::proto::lane::OutwardLane;
use crate::proto::node::Routes;
use crate::proto::offload::split::Split;
use crate::proto::offload::virtio;
use crate::proto::oversize;
use crate::proto::session::OVERHEAD;
use crate::proto::volley::{self, Volley};
use crate::proto::{Instant, Packet};

/// Most reads before orders are looked at again: with 64 KiB each, some milliseconds.
const READS: usize = 64;

struct Lane {
    lane: OutwardLane,
    socket: Arc<UdpSocket>,
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
        let volley = Volley::default();
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
        let target = volley::target(peer, split);
        for index in 0..split.segments() {
            if !self.volley.load(target, limit, split, index) {
                self.flush();
                // An empty one takes anything.
                let _ = self.volley.load(target, limit, split, index);
            }
        }
    }

    /// Seals and sends the volley.
    fn flush(&mut self) {
        let Some(target) = self.volley.target() else { return };
        let drops = &self.desk.drops;
        let Some(lane) = self.lanes.get(&target.peer) else {
            // Taken back since; the next packet goes to the core.
            return drops.add(Reason::Overload, self.volley.drop_all());
        };
        let Some(sealed) = self.volley.seal(&lane.lane.sealer) else {
            // The key is used up, which the core sees too: it makes another.
            return drops.count(Reason::Overload);
        };
        let sent = lane.socket.send_segments(lane.lane.way.remote, target.ecn, sealed.bytes, sealed.segment);
        drops.add(Reason::Overload, sent.refused + sent.overflowed);
        let (len, longest) = (sealed.bytes.len(), sealed.segment - OVERHEAD);
        let is_news = lane.lane.traffic.note_sent(self.now, len, sealed.count, longest);
        self.desk.tell(is_news);
    }
}
