//! What one run is like: the NATs, the links, and who is willing.

use std::time::Duration;

use p2ptund::proto::config::{Calls, Connect, Punch};

use crate::classes::Class;
use crate::dice::Dice;
use crate::nat::Profile;

#[derive(Clone, Debug)]
pub struct Terms {
    pub seed: u64,
    pub classes: [Class; 2],
    /// NATs in a row, the innermost first, given outright instead of the class's.
    pub nats: [Option<Vec<Profile>>; 2],
    /// Further members of the mesh.
    pub more: Vec<Class>,
    /// One way, between each office and the internet.
    pub delay: [Duration; 2],
    pub jitter: Duration,
    pub loss: f64,
    pub duplicate: f64,
    pub reorder: f64,
    /// When each member is started.
    pub up: [Duration; 2],
    pub cross_traffic: f64,
    pub server_delay: Duration,
    /// Whether the first discovery server has a second address to answer from.
    pub second_address: bool,
    pub layout: Layout,
    pub ipv6: bool,
    pub calls: [Calls; 2],
    pub connect: Connect,
    pub punch: [Punch; 2],
    /// Whether a stateful firewall runs on the member's own machine.
    pub host_firewall: [bool; 2],
    /// Whether the machine has AES and the owner lets it be used.
    pub aes: [bool; 2],
    /// Whether the router maps the member's port, and how long after the member's start it says so.
    pub port_mapping: [Option<Duration>; 2],
}

impl Terms {
    /// A well-behaved internet at `delay` one way, nothing left to chance but the NATs' ports.
    pub fn exact(classes: [Class; 2], delay: Duration, seed: u64) -> Self {
        Self {
            seed,
            classes,
            nats: [None, None],
            more: Vec::new(),
            delay: [delay; 2],
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            up: [Duration::ZERO; 2],
            cross_traffic: 0.0,
            server_delay: Duration::ZERO,
            second_address: true,
            layout: Layout::Apart,
            ipv6: false,
            calls: [Calls::Both; 2],
            connect: Connect::Always,
            punch: [Punch::default(); 2],
            host_firewall: [false; 2],
            aes: [true; 2],
            port_mapping: [None; 2],
        }
    }

    /// The internet as it is: all of it drawn.
    pub fn drawn(classes: [Class; 2], seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x7465_726d_7300_0000);
        let ms = Duration::from_millis;
        let mut delay = || dice.duration(ms(5), ms(60));
        let delay = [delay(), delay()];
        let up = if dice.chance(0.5) {
            [Duration::ZERO, dice.duration(ms(0), ms(300))]
        } else {
            [dice.duration(ms(0), ms(300)), Duration::ZERO]
        };
        Self {
            delay,
            up,
            jitter: dice.duration(ms(0), ms(3)),
            loss: dice.unit() * 0.02,
            duplicate: dice.unit() * 0.005,
            reorder: dice.unit() * 0.005,
            cross_traffic: dice.unit() * 20.0,
            server_delay: dice.duration(ms(0), ms(10)),
            second_address: dice.chance(0.5),
            layout: if dice.chance(0.25) { Layout::SameNumbers } else { Layout::Apart },
            ..Self::exact(classes, Duration::ZERO, seed)
        }
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.classes.len() + self.more.len()
    }

    pub fn class(&self, member: usize) -> Class {
        self.classes.into_iter().chain(self.more.iter().copied()).nth(member).expect("is a member")
    }

    /// A member's NATs in a row, the innermost first.
    pub fn profiles(&self, member: usize, dice: &mut Dice) -> Vec<Profile> {
        let given = self.nats.get(member).cloned().flatten();
        given.unwrap_or_else(|| self.class(member).profiles(self.cross_traffic, dice))
    }

    /// Further members are as the first two are, in turn.
    pub fn delay_of(&self, member: usize) -> Duration {
        self.delay[member % 2]
    }
}

/// How the two offices lie to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    Apart,
    /// Two sites, but both use the same private network, as many do, and even the same address in it.
    SameNumbers,
    /// Both in one LAN; the NATs are the first one's.
    SameLan,
    /// Both behind one router, in two private networks that it routes between.
    SameRouter,
    /// Each has a router of its own behind the carrier's, the outermost of the first one's NATs.
    SameCarrier,
}
