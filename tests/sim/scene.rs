//! Two offices, two discovery servers and a rendezvous server: the patent's FIG. 1, to be played in.
//!
//! ```text
//! 203.0.113.1 ─ NAT(s) ─ LAN ─ a (10.77.0.1, fd77::1)        discovery 198.51.100.7 (and .8, in some), 192.0.2.7
//! 203.0.113.2 ─ NAT(s) ─ LAN ─ b (10.77.0.2, fd77::2)        rendezvous 198.51.100.9
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use ipnet::IpNet;
use p2ptund::proto::Instant;
use p2ptund::proto::config::{
    Config, Discovery as DiscoveryAt, Host as Name, HostPort, MEMBER_PORT, Peer, RENDEZVOUS_PORT,
    Rendezvous as RendezvousAt,
};
use p2ptund::proto::keys::{PresharedKey, PrivateKey};
use p2ptund::proto::node::MappedPort;
use p2ptund::proto::snapshot::PortMapping;

use crate::dice::Dice;
use crate::firewall::Firewall;
use crate::link::Link;
use crate::machines::Any;
use crate::member::Member;
use crate::nat::Profile;
use crate::servers::{Discovery, Rendezvous};
use crate::terms::{Layout, Terms};
use crate::world::{HostId, INTERNET, NatId, NetId, START, World};

pub struct Scene {
    pub world: World<Any>,
    pub members: Vec<HostId>,
    pub discovery: [HostId; 2],
    pub rendezvous: HostId,
    /// Each member's NATs, the innermost first.
    pub nats: Vec<Vec<NatId>>,
    pub rendezvous_key: PrivateKey,
}

pub const NAMES: [&str; 6] = ["athens", "berlin", "cairo", "dublin", "essen", "faro"];
const DISCOVERY: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(192, 0, 2, 7)];
const DISCOVERY_SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
pub const RENDEZVOUS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// One virtual address of a member: `family` 0 is IPv4, 1 is IPv6.
pub fn virtual_address(member: usize, family: usize) -> IpAddr {
    let number = u8::try_from(member + 1).expect("is small");
    match family {
        0 => IpAddr::from([10, 77, 0, number]),
        _ => IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

impl Scene {
    pub fn new(terms: &Terms) -> Self {
        let mut world = World::new(terms.seed);
        let rendezvous_key = PrivateKey::from_bytes(world.dice.bytes());
        let link = Link::of_delay(terms.server_delay);
        let mut first: Vec<IpAddr> = vec![DISCOVERY[0].into()];
        if terms.second_address {
            first.push(DISCOVERY_SECOND.into());
        }
        let second: Vec<IpAddr> = vec![DISCOVERY[1].into()];
        let discovery = [first, second].map(|addresses| {
            let server = Any::Discovery(Discovery::new(&addresses));
            world.add_host(INTERNET, &addresses, link.clone(), server)
        });
        let server_seed = world.dice.bytes();
        let server = Rendezvous::new(RENDEZVOUS.into(), rendezvous_key.clone(), None, server_seed);
        let rendezvous = world.add_host(INTERNET, &[RENDEZVOUS.into()], link, Any::Rendezvous(Box::new(server)));

        let configs = configs(terms, &rendezvous_key, &mut world.dice);
        let mut nats = vec![Vec::new(); terms.members()];
        let mut members = Vec::new();
        for (side, config) in configs.into_iter().enumerate() {
            let (addresses, network, link) = build_site(&mut world, terms, side, &mut nats);
            let servers: BTreeSet<IpAddr> =
                [DISCOVERY[0], DISCOVERY[1], DISCOVERY_SECOND, RENDEZVOUS].into_iter().map(IpAddr::V4).collect();
            let seed = world.dice.bytes();
            let plain: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
            let starts = START + terms.up[side % 2];
            let mut member = Member::new(config, addresses, servers, seed, starts);
            member.firewall = terms.host_firewall[side % 2].then(Firewall::default);
            member.mapping =
                map_port(&mut world, &nats[side], &plain, terms.port_mapping[side % 2].map(|it| starts + it));
            members.push(world.add_host(network, &plain, link, Any::Member(Box::new(member))));
        }
        Self { world, members, discovery, rendezvous, nats, rendezvous_key }
    }

    pub fn member(&self, side: usize) -> &Member {
        self.world.machine(self.members[side]).member()
    }

    pub fn member_mut(&mut self, side: usize) -> &mut Member {
        self.world.host_mut(self.members[side]).machine.member_mut()
    }

    pub fn rendezvous_mut(&mut self) -> &mut Rendezvous {
        match &mut self.world.host_mut(self.rendezvous).machine {
            Any::Rendezvous(server) => server,
            _ => panic!("the rendezvous server is one"),
        }
    }

    pub fn discovery_mut(&mut self, which: usize) -> &mut Discovery {
        match &mut self.world.host_mut(self.discovery[which]).machine {
            Any::Discovery(server) => server,
            _ => panic!("the discovery server is one"),
        }
    }

    /// Puts other NATs in the place of both offices', before anything was sent.
    pub fn replace_nats(&mut self, profile: &Profile) {
        for id in self.nats.clone().into_iter().flatten() {
            let nat = &mut self.world.router_mut(id).nat;
            nat.profile = profile.clone();
            self.world.reboot(id);
        }
    }

    /// Runs until all members say that they are connected.
    pub fn run_to_connected(&mut self, within: Duration) -> bool {
        let (until, members) = (self.world.now + within, self.members.clone());
        self.world.run(until, |world| members.iter().all(|id| world.machine(*id).member().is_connected()))
    }

    /// A member is killed and started again.
    pub fn restart(&mut self, side: usize) {
        let seed = self.world.dice.bytes();
        let fresh = self.member(side).restarted(seed, self.world.now);
        self.world.replace(self.members[side], Any::Member(Box::new(fresh)));
    }

    /// The rendezvous server is killed and started again; it remembers its key and nothing else.
    pub fn restart_rendezvous(&mut self) {
        let (seed, key) = (self.world.dice.bytes(), self.rendezvous_key.clone());
        let server = Rendezvous::new(RENDEZVOUS.into(), key, None, seed);
        self.world.replace(self.rendezvous, Any::Rendezvous(Box::new(server)));
    }

    /// Panics where an invariant was broken, or the core said that it lost the path.
    pub fn check(&self) {
        assert!(self.world.faults.is_empty(), "{:?}", &self.world.faults[..self.world.faults.len().min(5)]);
    }

    /// The link over which an office, or a member without NAT, hangs on the internet.
    pub fn uplink_mut(&mut self, side: usize) -> &mut Link {
        match self.nats[side].last() {
            Some(outermost) => &mut self.world.router_mut(*outermost).link,
            None => &mut self.world.host_mut(self.members[side]).link,
        }
    }

    /// Lets member `side` ping all others, both families in turn.
    pub fn ping(&mut self, side: usize, every: Duration) {
        let others = (0..self.members.len()).filter(|other| *other != side);
        let both = |other: usize| [0, 1].map(|family| (virtual_address(side, family), virtual_address(other, family)));
        let pairs: Vec<(IpAddr, IpAddr)> = others.flat_map(both).collect();
        let from = self.world.now;
        let number = (from.as_nanos() << 3) | side as u64;
        self.world.act(self.members[side], |machine, _| {
            machine.member_mut().pinger.start(pairs, number << 14, every, from);
        });
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.world.now + time;
        self.world.run(until, |_| false);
    }

    /// Runs until a ping of `side`'s that is sent from now on is answered.
    pub fn run_to_answer(&mut self, side: usize, within: Duration) -> Option<Instant> {
        self.ping(side, Duration::from_millis(50));
        let until = self.world.now + within;
        let id = self.members[side];
        self.world.run(until, |world| world.machine(id).member().pinger.first_answer.is_some());
        self.member(side).pinger.first_answer
    }

    /// New mappings at one side's NATs, most of all of them.
    pub fn nat_entries(&mut self, side: usize) -> u64 {
        let mut inside = self.world.host(self.members[side]).address_v4();
        let mut most = 0;
        for id in self.nats[side].clone() {
            let nat = &self.world.router_mut(id).nat;
            most = most.max(inside.and_then(|inside| nat.created_for.get(&inside)).copied().unwrap_or(0));
            inside = Some(nat.wan);
        }
        most
    }
}

/// The router in front of a member maps its port from the start; what the member is told, and when.
fn map_port(
    world: &mut World<Any>,
    nats: &[NatId],
    own: &[IpAddr],
    at: Option<Instant>,
) -> Option<(Instant, MappedPort)> {
    let (at, [router], Some(IpAddr::V4(inside))) = (at?, nats, own.first()) else { return None };
    let nat = &mut world.router_mut(*router).nat;
    assert!(nat.forward_port(START, MEMBER_PORT, SocketAddrV4::new(*inside, MEMBER_PORT)), "nothing was sent yet");
    let external = SocketAddr::new(nat.wan.into(), MEMBER_PORT);
    Some((at, MappedPort { external, by: PortMapping::Upnp }))
}

fn build_site(
    world: &mut World<Any>,
    terms: &Terms,
    side: usize,
    nats: &mut [Vec<NatId>],
) -> (Vec<IpNet>, NetId, Link) {
    let number = u8::try_from(side).expect("is small");
    let wan = Ipv4Addr::new(203, 0, 113, 1 + number);
    let uplink = Link {
        jitter: terms.jitter,
        loss: terms.loss,
        duplicate: terms.duplicate,
        reorder: terms.reorder,
        ..Link::of_delay(terms.delay_of(side))
    };
    let mut profiles = terms.profiles(side, &mut world.dice);
    let mut network = INTERNET;
    if side == 1 {
        let shared = match terms.layout {
            Layout::Apart | Layout::SameNumbers => 0,
            Layout::SameLan | Layout::SameRouter => nats[0].len(),
            Layout::SameCarrier => 1,
        };
        for id in nats[0].clone().into_iter().rev().take(shared) {
            nats[side].insert(0, id);
            network = world.router_mut(id).inside;
            profiles.pop();
        }
    }
    for profile in profiles.into_iter().rev() {
        let (wan, link) = if network == INTERNET {
            (wan, uplink.clone())
        } else {
            (Ipv4Addr::new(100, 64, 0, 2 + number), Link::of_delay(Duration::from_millis(1)))
        };
        let (id, inside) = world.add_nat(network, wan, profile, link);
        nats[side].insert(0, id);
        network = inside;
    }
    let own = match terms.layout {
        _ if network == INTERNET => wan,
        Layout::Apart | Layout::SameRouter | Layout::SameCarrier => Ipv4Addr::new(192, 168, 1 + number, 2),
        Layout::SameNumbers => Ipv4Addr::new(192, 168, 1, 2),
        Layout::SameLan => Ipv4Addr::new(192, 168, 1, 2 + number),
    };
    let mut addresses = vec![IpNet::new(own.into(), 24).expect("is a prefix")];
    if terms.ipv6 {
        addresses.push(format!("2001:db8:{}::2/64", 1 + side).parse().expect("is an address"));
    }
    (addresses, network, if network == INTERNET { uplink } else { Link::lan() })
}

fn configs(terms: &Terms, rendezvous_key: &PrivateKey, dice: &mut Dice) -> Vec<Config> {
    let keys: Vec<PrivateKey> = (0..terms.members()).map(|_| PrivateKey::from_bytes(dice.bytes())).collect();
    let preshared = dice.chance(0.5).then(|| PresharedKey::from_bytes(dice.bytes()));
    let host = |address: Ipv4Addr| Name::Ip(address.into());
    let nets = |of: usize, bits: [u8; 2]| {
        [0, 1].map(|family| IpNet::new(virtual_address(of, family), bits[family]).expect("is a prefix")).to_vec()
    };
    let config = |side: usize| Config {
        interface: "p2p0".to_owned(),
        addresses: nets(side, [24, 64]),
        mtu: 1420,
        aes: terms.aes[side % 2],
        private_key: keys[side].clone(),
        listen_port: MEMBER_PORT,
        introduce: true,
        discovery: DISCOVERY.map(|address| DiscoveryAt::Series(host(address))).to_vec(),
        rendezvous: vec![RendezvousAt {
            address: HostPort { host: host(RENDEZVOUS), port: RENDEZVOUS_PORT },
            public_key: rendezvous_key.public(),
        }],
        peers: (0..keys.len())
            .filter(|other| *other != side)
            .map(|other| Peer {
                name: NAMES[other].to_owned(),
                public_key: keys[other].public(),
                preshared_key: preshared.clone(),
                allowed_ips: nets(other, [32, 128]),
                endpoint: None,
                calls: terms.calls[side % 2],
                connect: terms.connect,
            })
            .collect(),
        punch: terms.punch[side % 2],
    };
    (0..keys.len()).map(config).collect()
}
