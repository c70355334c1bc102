//! Lanes: when the threads that carry packets may go on by themselves, and what their traffic means here ([`crate::proto::lane`]).

use super::Peer;
use crate::proto::Instant;
use crate::proto::context::Local;
use crate::proto::lane::{Carried, InwardLane, Order, OutwardLane};
use crate::proto::path::Way;

/// What was handed out: enough to tell when it is out of date.
#[derive(Default)]
pub(super) struct HandedOut {
    outward: Option<Outward>,
    inward: Vec<Inward>,
}

/// A session's index, the way that it is to come by, and how long its packets may be.
type Inward = (u32, Way, u16);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Outward {
    index: u32,
    way: Way,
    limit: u16,
}

impl Peer {
    /// Hands out what changed since the last time.
    pub fn hand_out(&mut self, local: &mut Local) {
        let Some(orders) = &mut local.orders else { return };
        let (way, limit) = (self.way(), self.mtu.inner_limit());
        let sessions = self.tunnel.carrying();
        let outward =
            way.zip(sessions.first()).map(|(way, session)| Outward { index: session.local_index, way, limit });
        if outward != self.handed_out.outward {
            let lane = outward.zip(sessions.first()).map(|(key, session)| OutwardLane {
                way: key.way,
                sealer: session.sealer.clone(),
                until: session.until,
                limit,
                traffic: self.traffic.clone(),
            });
            orders.push_back(Order::Outward { peer: self.id, lane });
            self.handed_out.outward = outward;
        }
        let is_same = |handed: &[Inward]| {
            let keys = sessions.iter().filter_map(|session| way.map(|way| (session.local_index, way, limit)));
            keys.eq(handed.iter().copied())
        };
        if is_same(&self.handed_out.inward) {
            return;
        }
        let before = std::mem::take(&mut self.handed_out.inward);
        for (index, ..) in
            before.iter().filter(|(index, ..)| sessions.iter().all(|session| session.local_index != *index))
        {
            orders.push_back(Order::Inward { index: *index, lane: None });
        }
        for session in &sessions {
            let index = session.local_index;
            let lane = way.map(|way| InwardLane {
                peer: self.id,
                way,
                opener: session.opener.clone(),
                until: session.until,
                limit,
                traffic: self.traffic.clone(),
            });
            let key = way.map(|way| (index, way, limit));
            self.handed_out.inward.extend(key);
            let was = before.iter().find(|(handed, ..)| *handed == index).copied();
            if was != key {
                orders.push_back(Order::Inward { index, lane });
            }
        }
    }

    /// Takes back whatever was handed out.
    pub(super) fn take_back(&mut self, local: &mut Local) {
        let handed_out = std::mem::take(&mut self.handed_out);
        let Some(orders) = &mut local.orders else { return };
        if handed_out.outward.is_some() {
            orders.push_back(Order::Outward { peer: self.id, lane: None });
        }
        for (index, ..) in handed_out.inward {
            orders.push_back(Order::Inward { index, lane: None });
        }
    }

    /// Hears of what was carried beside the core. `true` where something was.
    pub fn handle_traffic(&mut self, now: Instant, local: &mut Local) -> bool {
        let [sent, received] = self.traffic.take();
        match (sent, received) {
            (None, None) => return false,
            // Timers care which came last.
            (Some(sent), Some(received)) if sent.last < received.last => {
                self.note_sent_beside(sent);
                self.note_received_beside(received);
            }
            (sent, received) => {
                received.into_iter().for_each(|received| self.note_received_beside(received));
                sent.into_iter().for_each(|sent| self.note_sent_beside(sent));
            }
        }
        self.drive(now, local);
        true
    }

    fn note_sent_beside(&mut self, sent: Carried) {
        let before = self.tunnel.last_sent();
        self.tunnel.note_sent(sent);
        self.note_inner_sent(sent.longest);
        if sent.data > 0 {
            self.paths.note_sent(sent.last, before);
        }
    }

    fn note_received_beside(&mut self, received: Carried) {
        self.tunnel.note_received(received);
        let Some(way) = self.way() else { return };
        self.paths.note_heard(received.last, way);
        if received.data > 0 {
            self.paths.note_flow(received.last, way, received.data);
        }
    }
}
