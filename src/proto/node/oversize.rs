//! Inner packets that are longer than the path to their peer carries.
//!
//! ```text
//! TUN ─► handle_tun ─► too long: judged ─► dropped, and its sender told through the TUN device
//!                                       └► in fragments to the peer
//! ```

use super::{Action, Drop, Instant, Node, Packet, PeerId};
use crate::proto::allowance::Rate;
use crate::proto::fragment;
use crate::proto::oversize::{Verdict, judge};

use rand_chacha::rand_core::RngCore;

/// Errors to our own side. A host needs one for each destination in ten minutes, so this is for a hundred that begin in one
/// second; Linux allows as many a second to one host as the rest here (net.ipv4.icmp_ratelimit).
pub(super) const ERRORS: Rate = Rate { burst: 100, per_s: 10 };

impl Node {
    /// An inner packet that [`crate::proto::peer::Peer::is_oversize`] calls too long.
    pub(super) fn handle_oversize(&mut self, now: Instant, id: PeerId, packet: &Packet) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let limit = peer.inner_limit();
        match judge(packet.bytes(), packet.bytes().len(), limit) {
            Verdict::Fits => {}
            Verdict::TooBig { reply } => {
                self.drops.count(Drop::TooBig);
                if let Some(packet) = reply
                    && self.too_big.take(now, ERRORS)
                {
                    self.local.act(Action::Inject { packet });
                }
            }
            Verdict::Cut => {
                let id = self.local.rng.next_u32();
                let Some(fragments) = fragment::split(packet.bytes(), limit.into(), id) else {
                    self.drops.count(Drop::TooBig);
                    return;
                };
                for fragment in fragments {
                    let mut packet = Packet::copy_from(&fragment);
                    if let Some(way) = peer.handle_packet(now, &mut self.local, &mut packet) {
                        self.local.send_packet(way, &packet);
                    }
                }
            }
        }
    }
}
