//! Real members in a miniature world: they register, discover, call, connect and exchange packets, while the input decides
//! what becomes of each datagram, what time does, what the owner changes, and what a trusted peer who means ill says. The
//! world holds the members to their promises ([`super::miniature`]).
//!
//! The first three bytes are the members' config, the seed, and how long all goes well before the first step.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use p2ptund::proto::action::{Drop, SocketId};
use p2ptund::proto::config::{Calls, Config, Connect, Discovery, Host, HostPort, Peer, Punch, Rendezvous};
use p2ptund::proto::keys::{PresharedKey, PrivateKey};
use p2ptund::proto::node::{MappedPort, Node};
use p2ptund::proto::rendezvous::server::Server;
use p2ptund::proto::snapshot::PortMapping;
use p2ptund::proto::wire::Dudp;

use super::hostile::Hostile;
use super::input::{Input, bend};
use super::miniature::{DISCOVERY, Datagram, Member, RENDEZVOUS, World, inside, public};

const STEPS: usize = 100;
const NAMES: [&str; 3] = ["athens", "berlin", "cairo"];
/// Members' ports.
const PORT: u16 = 4275;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, seed) = (input.u8(), input.u8());
    let configs = [0, 1].map(|who| config(who, flags));
    let server_key = key(100);
    let hostile = Hostile::new(key(2), key(0).public(), rendezvous());
    let server = Server::new(server_key, None, [seed; 32]);
    let mut world = World::new(configs, hostile, server, seed);
    world.pass_time(Duration::from_millis(u64::from(input.u8()) * 16));
    for number in 0..STEPS as u64 {
        if input.is_empty() || world.is_spent() {
            break;
        }
        step(&mut world, &mut input, number);
    }
    for member in &world.members {
        serde_json::to_string(&member.node.snapshot(world.now)).expect("a status can be written");
    }
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number + 1; 32])
}

fn rendezvous() -> Rendezvous {
    let address = HostPort { host: Host::Ip(RENDEZVOUS.into()), port: 4274 };
    Rendezvous { address, public_key: key(100).public() }
}

/// The config of member `who`; zero is all that helps two members to find each other.
fn config(who: usize, flags: u8) -> Config {
    let is = |bit: u8| flags >> bit & 1 == 1;
    let endpoint = |host| Some(HostPort { host, port: PORT });
    let peer = |other: usize| Peer {
        name: NAMES[other].to_owned(),
        public_key: key(other as u8).public(),
        preshared_key: (is(0) && other != 2).then(|| PresharedKey::from_bytes([9; 32])),
        allowed_ips: vec![IpNet::new(inside(other).into(), 32).expect("is a prefix")],
        endpoint: match who {
            0 if is(1) && is(2) => endpoint(Host::Name("office.example.net".to_owned())),
            0 if is(1) => endpoint(Host::Ip(public(other))),
            _ => None,
        },
        calls: match who {
            0 => Calls::Both,
            _ if is(3) && is(4) => Calls::None,
            _ if is(3) => Calls::In,
            _ if is(4) => Calls::Out,
            _ => Calls::Both,
        },
        connect: if is(5) { Connect::OnDemand } else { Connect::Always },
    };
    let others: &[usize] = if who == 0 { &[1, 2] } else { &[0] };
    let host = |at: usize| Host::Ip(DISCOVERY[at].into());
    Config {
        interface: "p2p0".to_owned(),
        addresses: vec![IpNet::new(inside(who).into(), 24).expect("is a prefix")],
        mtu: 1420,
        private_key: key(who as u8),
        listen_port: PORT,
        introduce: true,
        aes: true,
        discovery: if is(6) {
            vec![Discovery::Stun(HostPort { host: host(0), port: 4270 })]
        } else {
            vec![Discovery::Series(host(0)), Discovery::Port(HostPort { host: host(1), port: 4271 })]
        },
        rendezvous: if is(7) { Vec::new() } else { vec![rendezvous()] },
        peers: others.iter().map(|other| peer(*other)).collect(),
        // Small, so that a run is short; all bounds follow from it.
        punch: Punch { window: (-4, 8), sockets: 16, probes: 128, timeout: Duration::from_secs(5), ..Punch::default() },
    }
}

fn step(world: &mut World, input: &mut Input<'_>, number: u64) {
    let op = input.u8();
    let who = usize::from(op >> 7);
    match op % 16 {
        0..=1 => world.pass_time(Duration::from_millis(u64::from(input.u8()) * 4)),
        2 => world.pass_time(Duration::from_millis(u64::from(input.u16()) * 8)),
        3..=5 => disturb(world, input),
        6 => invent(world, input),
        7..=8 => {
            let packet = inner(who, 1 - who, number, input.u8().into());
            world.give_tun(who, &packet);
        }
        9 => odd_packet(world, input, who, number),
        10 => drop(world.with(who, |node, now| node.handle_ping(now, NAMES[1 - who]))),
        11 => own(world, input, who, number),
        _ => offend(world, input, number),
    }
}

/// An inner IPv4 packet that there is but once.
fn inner(from: usize, to: usize, number: u64, padding: usize) -> Vec<u8> {
    let mut packet = vec![0; 28 + padding];
    let len = u16::try_from(packet.len()).expect("is short");
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    // It is not to be cut into fragments: nobody here joins them.
    packet[6] = 0x40;
    packet[12..16].copy_from_slice(&inside(from).octets());
    packet[16..20].copy_from_slice(&inside(to).octets());
    packet[20..28].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Something happens to a datagram on the wire.
fn disturb(world: &mut World, input: &mut Input<'_>) {
    if world.wire.is_empty() {
        return;
    }
    let at = input.below(world.wire.len());
    let key = *world.wire.keys().nth(at).expect("is within the wire");
    let mut datagram = world.wire[&key].clone();
    match input.u8() % 8 {
        0 => drop(world.wire.remove(&key)),
        // Again, later; and late.
        1 => world.post(datagram),
        2 => {
            world.wire.remove(&key);
            world.post(datagram);
        }
        // At once, before all others.
        3 => {
            world.wire.remove(&key);
            world.arrive(datagram);
        }
        4 => {
            datagram.from = stranger(input);
            world.arrive(datagram);
        }
        // To where it was never meant to go.
        5 => {
            datagram.to =
                SocketAddr::new(input.pick(&[public(0), public(1), RENDEZVOUS.into()]), input.pick(&[PORT, 4274]));
            world.arrive(datagram);
        }
        _ => {
            bend(input, &mut datagram.payload);
            world.arrive(datagram);
        }
    }
}

fn stranger(input: &mut Input<'_>) -> SocketAddr {
    SocketAddr::new([192, 0, 2, input.u8()].into(), input.u16() | 1)
}

/// A datagram out of nothing.
fn invent(world: &mut World, input: &mut Input<'_>) {
    let at = input.u8();
    let from = if at & 4 == 0 { stranger(input) } else { SocketAddr::new(public(usize::from(at >> 4) % 3), PORT) };
    let payload = input.piece().to_vec();
    let to = match at & 3 {
        0 | 1 => SocketAddr::new(public(usize::from(at & 1)), PORT),
        2 => SocketAddr::new(RENDEZVOUS.into(), 4274),
        _ => SocketAddr::new(DISCOVERY[0].into(), 4270),
    };
    world.arrive(Datagram { from, to, payload });
}

/// The TUN device gives what is of no use, or nobody's.
fn odd_packet(world: &mut World, input: &mut Input<'_>, who: usize, number: u64) {
    let before = world.members[who].node.drops().of(Drop::NoRoute);
    match input.u8() % 4 {
        0 => world.give_tun(who, input.piece()),
        1 => {
            let large = inner(who, 1 - who, number, usize::from(input.u16()).min(65_000));
            world.give_tun(who, &large);
        }
        // From a source that is not ours: the peer is to drop it.
        2 => {
            let mut packet = inner(who, 1 - who, number, 0);
            packet[12..16].copy_from_slice(&input.array::<4>());
            world.give_tun(who, &packet);
        }
        _ => {
            let mut packet = inner(who, 1 - who, number, 0);
            packet[16..20].copy_from_slice(&[192, 0, 2, input.u8()]);
            world.give_tun(who, &packet);
            assert_eq!(world.members[who].node.drops().of(Drop::NoRoute), before + 1, "what goes nowhere is counted");
        }
    }
}

/// What a member's own machine or owner does.
fn own(world: &mut World, input: &mut Input<'_>, who: usize, number: u64) {
    let mode = input.u8();
    match mode % 8 {
        0 => {
            let addresses: Vec<IpNet> = (0..mode >> 6)
                .map(|_| IpNet::new(input.address().ip(), 8 + input.u8() % 17).expect("is a prefix"))
                .chain([IpNet::new(public(who), 24).expect("is a prefix")])
                .collect();
            world.with(who, |node, now| node.handle_addresses(now, &addresses));
        }
        1 => {
            let mapped = (mode & 0x80 == 0)
                .then(|| MappedPort { external: SocketAddr::new(public(who), input.u16() | 1), by: PortMapping::Upnp });
            world.with(who, |node, now| node.handle_port_mapping(now, mapped));
        }
        2 => {
            let mut changed = config(who, input.u8());
            let gone = usize::from(mode >> 6).min(changed.peers.len());
            changed.peers.drain(..gone);
            world.members[who].config.peers = changed.peers.clone();
            world.with(who, |node, now| node.handle_config(now, changed));
        }
        // Killed and started again: nothing is left but the config.
        3 => {
            let config = world.members[who].config.clone();
            // Randomness that no member had before, or else the test itself would have keys and nonces come again.
            let mut seed = [input.u8(); 32];
            seed[..8].copy_from_slice(&(number + 1).to_be_bytes());
            world.members[who] = Member::new(who, config, seed, world.now);
            world.with(who, |_, _| ());
        }
        4 => {
            let name = world.members[who].names.pop_front().unwrap_or_default();
            let addresses: Vec<IpAddr> =
                (0..mode >> 6).map(|_| input.address().ip()).chain([public(1 - who)]).collect();
            let addresses = if mode & 8 == 0 { addresses } else { Vec::new() };
            world.with(who, |node, now| node.handle_resolved(now, &name, &addresses));
        }
        5 => {
            let extra = world.members[who].sockets.keys().copied().find(|id| *id >= SocketId::FIRST_EXTRA);
            let id = extra.unwrap_or(SocketId(u32::from(input.u8())));
            world.with(who, |node, now| node.handle_socket_failed(now, id));
        }
        6 => {
            let seed = input.u8();
            world.rendezvous = Server::new(key(100), None, [seed; 32]);
        }
        _ => world.with(who, Node::handle_timeout),
    }
}

/// What the hostile peer does to member 0.
fn offend(world: &mut World, input: &mut Input<'_>, number: u64) {
    let (now, mode) = (world.now, input.u8());
    let to = SocketAddr::new(public(0), PORT);
    let port = if mode & 0x80 == 0 { PORT } else { input.u16() | 1 };
    match mode % 8 {
        0 | 1 => world.hostile.call(now, input.piece(), (mode & 0x40 != 0).then_some(to)),
        2 | 3 => world.hostile.answer(now, input.piece()),
        4 => {
            let mut body = [0; 32];
            let piece = input.take(32);
            body[..piece.len()].copy_from_slice(piece);
            world.hostile.probe(input.pick(&[Dudp::Ack, Dudp::Ack2]), &body, port, to);
        }
        5 => world.hostile.probe(input.pick(&[Dudp::Ack, Dudp::Ack2]), input.piece(), port, to),
        6 => {
            let packet = inner(2, 0, number, input.u8().into());
            if world.hostile.transport(&packet, port, to) {
                world.note_inner(2, &packet);
            }
        }
        // In another's name, or nothing that is a packet.
        _ => {
            let mut packet = inner(1, 0, number, 0);
            bend(input, &mut packet);
            world.hostile.transport(&packet, port, to);
            // If it is bent into one of the peer's own, it may arrive.
            let header = p2ptund::proto::ip::Header::parse(&packet).filter(|header| header.source == inside(2));
            if let Some(header) = header {
                world.note_inner(2, &packet[..header.len]);
            }
        }
    }
    world.collect_hostile();
}
