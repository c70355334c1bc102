//! From the sockets to the TUN device.
//!
//! ```text
//! receive ─► index ─► lane, and by its own way? ─► opened where it lies ─► source's route ─► merged with its flow ─► write
//!                       └─ no: to the core
//! ```
//!
//! What is merged is cut again by the kernel only where it must be; where the device turns out not to take super-packets, the
//! one that it refused is cut here, so nothing is lost, and nothing is merged from then on.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::mpsc as orders;

use tokio::sync::mpsc;

use super::{Desk, Inbound, Outer};
use crate::io::clock;
use crate::io::tun::{Tun, WriteError};
use crate::io::udp::{GroBatch, Incoming, Inlet};
use crate::proto::action::Drop as Reason;
use crate::proto::ip::{self, Header};
use crate::proto::lane::InwardLane;
use crate::proto::mss;
use crate::proto::node::Routes;
use crate::proto::offload::merge::{Accepts, Merger};
use crate::proto::offload::split::Split;
use crate::proto::offload::virtio;
use crate::proto::path::Way;
use crate::proto::session::{OVERHEAD, TRANSPORT_TYPE, receiver_of};
use crate::proto::wire::Kind;
use crate::proto::{Instant, Packet};

/// Buffers of 64 KiB for one batch: volleys of a sender's that this thread was too slow for. Only those that are used take memory.
const BUFFERS: usize = 32;

/// The thread's own.
pub struct Inward {
    inlet: Inlet,
    desk: Desk<Outer>,
    routes: Arc<Routes>,
    lanes: HashMap<u32, InwardLane>,
    exit: Exit,
}

/// The device's end.
struct Exit {
    tun: Tun,
    merger: Merger,
    /// The device did not take what was merged.
    refuses: bool,
    gone: Option<io::Error>,
}

/// What was opened of one lane's, for its traffic.
#[derive(Default)]
struct Count {
    index: Option<u32>,
    bytes: usize,
    data: usize,
}

impl Inward {
    pub fn new(tun: Tun, inlet: Inlet, desk: Desk<Outer>) -> Self {
        let offloads = tun.offloads();
        let accepts = Accepts { tcp4: offloads.tcp, tcp6: offloads.tcp, udp: offloads.udp };
        let exit = Exit { tun, merger: Merger::new(accepts), refuses: false, gone: None };
        Self { inlet, desk, routes: Arc::default(), lanes: HashMap::new(), exit }
    }

    /// Until nobody gives orders any more, or the device is gone.
    pub fn run(mut self, orders: &orders::Receiver<Inbound>, gone: &mpsc::Sender<io::Error>) {
        let mut batch = GroBatch::new(BUFFERS);
        loop {
            if let Err(error) = self.inlet.wait(None) {
                self.exit.gone = Some(error);
            }
            loop {
                let received = self.inlet.recv_batch(&mut batch);
                // After receiving: a lane is handed out before anything can come by it.
                if !self.take(orders) {
                    return;
                }
                if received == 0 {
                    break;
                }
                self.carry(clock::now(), &mut batch);
            }
            if let Some(error) = self.exit.gone.take() {
                // Where nobody listens any more, all this is ending.
                let _ = gone.try_send(error);
                return;
            }
        }
    }

    /// `false` where nobody gives orders any more.
    fn take(&mut self, orders: &orders::Receiver<Inbound>) -> bool {
        loop {
            match orders.try_recv() {
                Ok(Inbound::Routes(routes)) => self.routes = routes,
                Ok(Inbound::Lane { index, lane: Some(lane) }) => {
                    self.desk.catch_up();
                    self.lanes.insert(index, lane);
                }
                Ok(Inbound::Lane { index, lane: None }) => {
                    self.lanes.remove(&index);
                }
                Err(orders::TryRecvError::Empty) => return true,
                Err(orders::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn carry(&mut self, now: Instant, batch: &mut GroBatch) {
        let mut opened: Vec<&[u8]> = Vec::with_capacity(64);
        let mut count = Count::default();
        for incoming in batch.iter_mut() {
            let way = Way { socket: incoming.socket, remote: incoming.from };
            let index = index_of(incoming.payload);
            let lane = index.and_then(|index| self.lanes.get(&index));
            let Some(lane) = lane.filter(|lane| lane.way == way && now < lane.until) else {
                // The core would do no more, and a flood of such is not to fill its queue.
                if Kind::of(incoming.payload).is_none() {
                    self.desk.drops.count(Reason::Malformed);
                    continue;
                }
                let Incoming { socket, from, payload, .. } = incoming;
                self.desk.give(Outer { socket, from, packet: Packet::copy_from(payload) });
                continue;
            };
            if count.index != index {
                self.tell(now, &std::mem::replace(&mut count, Count { index, ..Count::default() }));
            }
            let bytes = incoming.payload.len();
            match open(lane, &self.routes, incoming) {
                Ok(inner) => {
                    count.bytes += bytes;
                    count.data += usize::from(inner.is_some());
                    opened.extend(inner);
                }
                Err(reason) => {
                    // It was authentic, whatever is inside of it.
                    if matches!(reason, Reason::NoRoute | Reason::ForeignSource) {
                        count.bytes += bytes;
                        count.data += 1;
                    }
                    self.desk.drops.count(reason);
                }
            }
        }
        self.exit.write(&opened);
        self.tell(now, &count);
    }

    fn tell(&self, now: Instant, count: &Count) {
        let lane = count.index.and_then(|index| self.lanes.get(&index));
        if let Some(lane) = lane.filter(|_| count.bytes > 0) {
            self.desk.tell(lane.traffic.note_received(now, count.bytes, count.data));
        }
    }
}

/// The session of what may be transport data.
fn index_of(datagram: &[u8]) -> Option<u32> {
    let is_transport = datagram.len() >= OVERHEAD && datagram[..4] == TRANSPORT_TYPE;
    if is_transport { receiver_of(datagram, 4) } else { None }
}

/// The inner packet; `None` for a keepalive.
fn open<'a>(lane: &InwardLane, routes: &Routes, incoming: Incoming<'a>) -> Result<Option<&'a [u8]>, Reason> {
    let inner = lane.opener.open_datagram(incoming.payload)?;
    let inner = &mut incoming.payload[inner];
    if inner.is_empty() {
        return Ok(None);
    }
    let header = Header::parse(inner).ok_or(Reason::NoRoute)?;
    if routes.lookup(header.source) != Some(lane.peer) {
        return Err(Reason::ForeignSource);
    }
    let inner = &mut inner[..header.len];
    ip::mark_congestion(inner, incoming.tos);
    mss::clamp(inner, lane.limit);
    Ok(Some(inner))
}

impl Exit {
    fn write(&mut self, opened: &[&[u8]]) {
        let Self { tun, merger, refuses, gone } = self;
        merger.merge(opened, |pieces| {
            let pieces = if tun.offloads().vnet_header { pieces } else { &pieces[1..] };
            match tun.write(pieces) {
                Ok(()) => {}
                Err(WriteError::Gone(error)) => *gone = Some(error),
                Err(WriteError::Refused(error)) => tracing::trace!(%error, "the device refused a packet"),
                Err(WriteError::Segmentation(error)) => {
                    tracing::debug!(%error, "the device takes no super-packets");
                    *refuses = true;
                    write_singly(tun, pieces);
                }
            }
        });
        if std::mem::take(refuses) {
            *merger = Merger::new(Accepts::default());
        }
    }
}

/// Writes the packets of a super-packet one by one.
fn write_singly(tun: &Tun, pieces: &[IoSlice<'_>]) {
    let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
    let split = virtio::Header::parse(&whole).and_then(|header| Split::new(&header, &whole[virtio::HEADER_LEN..]));
    let Ok(split) = split else { return };
    let mut packet = vec![0; split.segment_len(0)];
    for index in 0..split.segments() {
        let len = split.write(index, &mut packet);
        if let Err(error) = tun.write_packet(&packet[..len]) {
            tracing::trace!(%error, "the device refused a packet");
        }
    }
}
