//! What the threads that carry packets do for a member, without threads: its lanes, kept and used as `p2ptund::carrier` does.
//! Half of all members here carry their packets so, and the other half leaves each to the core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use p2ptund::proto::action::Drop as Reason;
use p2ptund::proto::context::PeerId;
use p2ptund::proto::ip::Header;
use p2ptund::proto::lane::{DropCounts, InwardLane, Order, OutwardLane};
use p2ptund::proto::node::{Node, Routes};
use p2ptund::proto::path::Way;
use p2ptund::proto::session::receiver_of;
use p2ptund::proto::{Instant, Packet, mss};

/// How often the core looks at what was carried, as the daemon's loop has it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a lane made of a datagram.
pub enum Opened {
    /// It is the core's.
    NotOurs,
    /// Nothing for the TUN device.
    Done,
    Inner(Packet),
}

pub struct Lanes {
    routes: Arc<Routes>,
    outward: BTreeMap<PeerId, OutwardLane>,
    inward: BTreeMap<u32, InwardLane>,
    drops: Arc<DropCounts>,
    look_at: Option<Instant>,
    looked: Instant,
    /// Packets that went by lanes, either way.
    pub carried: u64,
}

impl Lanes {
    pub fn of(node: &mut Node) -> Self {
        Self {
            routes: Arc::default(),
            outward: BTreeMap::new(),
            inward: BTreeMap::new(),
            drops: node.hand_out(),
            look_at: None,
            looked: Instant::default(),
            carried: 0,
        }
    }

    pub fn take(&mut self, order: Order) {
        match order {
            Order::Routes(routes) => self.routes = routes,
            Order::Outward { peer, lane: Some(lane) } => drop(self.outward.insert(peer, lane)),
            Order::Outward { peer, lane: None } => drop(self.outward.remove(&peer)),
            Order::Inward { index, lane: Some(lane) } => drop(self.inward.insert(index, lane)),
            Order::Inward { index, lane: None } => drop(self.inward.remove(&index)),
        }
    }

    /// Seals an inner packet in place, where there is a lane for it.
    pub fn seal(&mut self, now: Instant, packet: &mut Packet) -> Option<Way> {
        let peer = self.routes.lookup(Header::parse(packet.bytes())?.destination)?;
        let lane = self.outward.get(&peer).filter(|lane| now < lane.until)?;
        if packet.bytes().len() > usize::from(lane.limit) {
            return None;
        }
        mss::clamp(packet.bytes_mut(), lane.limit);
        let longest = packet.bytes().len();
        lane.sealer.seal(packet, lane.limit.into())?;
        let is_news = lane.traffic.note_sent(now, packet.bytes().len(), 1, longest);
        let way = lane.way;
        self.carried += 1;
        self.note(now, is_news);
        Some(way)
    }

    pub fn open(&mut self, now: Instant, way: Way, packet: &mut Packet) -> Opened {
        let index = receiver_of(packet.bytes(), 4).filter(|_| packet.bytes().starts_with(&[4, 0, 0, 0]));
        let lane = index.and_then(|index| self.inward.get(&index));
        let Some(lane) = lane.filter(|lane| lane.way == way && now < lane.until).cloned() else {
            return Opened::NotOurs;
        };
        let len = packet.bytes().len();
        if let Err(reason) = lane.opener.open(packet) {
            self.drops.count(reason);
            return Opened::Done;
        }
        self.carried += 1;
        let is_data = !packet.bytes().is_empty();
        self.note(now, lane.traffic.note_received(now, len, usize::from(is_data)));
        if !is_data {
            return Opened::Done;
        }
        match Header::parse(packet.bytes()) {
            Some(header) if self.routes.lookup(header.source) == Some(lane.peer) => {
                packet.narrow(0, header.len);
                mss::clamp(packet.bytes_mut(), lane.limit);
                Opened::Inner(packet.clone())
            }
            Some(_) => {
                self.drops.count(Reason::ForeignSource);
                Opened::Done
            }
            None => {
                self.drops.count(Reason::NoRoute);
                Opened::Done
            }
        }
    }

    fn note(&mut self, now: Instant, is_news: bool) {
        if is_news {
            self.look_at.get_or_insert(now.max(self.looked + LOOK_EVERY));
        }
    }

    pub fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether the core is to look now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.look_at.take_if(|due| *due <= now).is_some();
        if due {
            self.looked = now;
        }
        due
    }
}
