//! The servers' shells: the real discovery and rendezvous servers of the core, on the addresses of one machine.

use std::net::{IpAddr, SocketAddr};

use p2ptund::proto::config::{DISCOVERY_PORTS, RENDEZVOUS_PORT};
use p2ptund::proto::discovery::Reply;
use p2ptund::proto::keys::{PrivateKey, PublicKey};
use p2ptund::proto::{Instant, discovery, rendezvous};

use crate::world::{Datagram, Machine, Moment};

/// The time to live that systems give to a datagram where nobody asks for another.
const TTL: u8 = 64;

pub struct Discovery {
    listeners: Vec<SocketAddr>,
    server: discovery::server::Server,
    pub silent: bool,
    /// Knows nothing of answers to another port.
    pub is_old: bool,
}

impl Discovery {
    /// On all the well-known ports of each of `addresses`.
    pub fn new(addresses: &[IpAddr]) -> Self {
        let on = |address: &IpAddr| DISCOVERY_PORTS.map(|port| SocketAddr::new(*address, port));
        let listeners: Vec<SocketAddr> = addresses.iter().flat_map(on).collect();
        Self { server: discovery::server::Server::new(listeners.clone()), listeners, silent: false, is_old: false }
    }
}

impl Machine for Discovery {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, datagram: Datagram) {
        let Some(listener) = self.listeners.iter().position(|at| *at == datagram.dst) else { return };
        let to_another_port =
            discovery::Start::parse(&datagram.payload).is_some_and(|start| matches!(start.reply, Reply::ToPort(_)));
        if self.silent || (self.is_old && to_another_port) {
            return;
        }
        if let Some((from, dst, payload)) = self.server.handle_datagram(listener, datagram.src, &datagram.payload) {
            // No rendezvous or discovery server is to amplify, but for bare STUN (20 bytes asked, 32 to 44 answered).
            if payload.len() > datagram.payload.len().max(44) {
                moment.faults.push(format!("a discovery server answers {} bytes", payload.len()));
            }
            match self.listeners.get(from) {
                Some(src) => moment.sent.push(Datagram { src: *src, dst, ttl: TTL, whole: false, payload }),
                None => {
                    moment.faults.push(format!("a discovery server answers from listener {from}, which it has not"))
                }
            }
        }
    }

    fn handle_timeout(&mut self, _: &mut Moment<'_>) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// How a rendezvous server may misbehave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Manners {
    #[default]
    Honest,
    /// Passes only so many of a hundred datagrams.
    Drops(u8),
    /// Bends one byte of so many of a hundred datagrams.
    Bends(u8),
    /// Says everything twice, and once more what it said before.
    Repeats,
}

pub struct Rendezvous {
    address: SocketAddr,
    server: rendezvous::server::Server,
    pub silent: bool,
    pub manners: Manners,
    before: Option<Datagram>,
}

impl Rendezvous {
    pub fn new(address: IpAddr, key: PrivateKey, allow: Option<Vec<PublicKey>>, seed: [u8; 32]) -> Self {
        Self {
            address: SocketAddr::new(address, RENDEZVOUS_PORT),
            server: rendezvous::server::Server::new(key, allow, seed),
            silent: false,
            manners: Manners::Honest,
            before: None,
        }
    }

    pub fn members(&self) -> usize {
        self.server.members()
    }

    fn drain(&mut self, moment: &mut Moment<'_>) {
        while let Some((_, dst, payload)) = self.server.poll_transmit() {
            let mut datagram = Datagram { src: self.address, dst, ttl: TTL, whole: false, payload };
            match self.manners {
                Manners::Honest => {}
                Manners::Drops(percent) if moment.dice.chance(f64::from(percent) / 100.0) => continue,
                Manners::Bends(percent) if moment.dice.chance(f64::from(percent) / 100.0) => {
                    let last = datagram.payload.len() as u64 - 1;
                    let at = usize::try_from(moment.dice.between(0, last)).expect("is a length");
                    datagram.payload[at] ^= 1 << moment.dice.between(0, 7);
                }
                Manners::Drops(_) | Manners::Bends(_) => {}
                Manners::Repeats => {
                    moment.sent.extend(self.before.replace(datagram.clone()));
                    moment.sent.push(datagram.clone());
                }
            }
            moment.sent.push(datagram);
        }
    }
}

impl Machine for Rendezvous {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, mut datagram: Datagram) {
        if self.silent || datagram.dst != self.address {
            return;
        }
        self.server.handle_datagram(moment.now, 0, datagram.src, &mut datagram.payload);
        self.drain(moment);
    }

    fn handle_timeout(&mut self, moment: &mut Moment<'_>) {
        self.server.handle_timeout(moment.now);
        self.drain(moment);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.server.poll_timeout()
    }
}
