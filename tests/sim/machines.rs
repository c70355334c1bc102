//! Every kind of machine that a scene is made of.

use p2ptund::proto::Instant;

use crate::crook::Crook;
use crate::member::Member;
use crate::servers::{Discovery, Rendezvous};
use crate::world::{Datagram, Machine, Moment};

pub enum Any {
    Member(Box<Member>),
    Crook(Box<Crook>),
    Discovery(Discovery),
    Rendezvous(Box<Rendezvous>),
}

impl Any {
    pub fn member(&self) -> &Member {
        match self {
            Any::Member(member) => member,
            _ => panic!("this machine is no member"),
        }
    }

    pub fn member_mut(&mut self) -> &mut Member {
        match self {
            Any::Member(member) => member,
            _ => panic!("this machine is no member"),
        }
    }

    pub fn crook_mut(&mut self) -> &mut Crook {
        match self {
            Any::Crook(crook) => crook,
            _ => panic!("this machine is no crook"),
        }
    }

    fn machine(&mut self) -> &mut dyn Machine {
        match self {
            Any::Member(member) => member.as_mut(),
            Any::Crook(crook) => crook.as_mut(),
            Any::Discovery(server) => server,
            Any::Rendezvous(server) => server.as_mut(),
        }
    }
}

impl Machine for Any {
    fn handle_datagram(&mut self, moment: &mut Moment<'_>, datagram: Datagram) {
        self.machine().handle_datagram(moment, datagram);
    }

    fn handle_timeout(&mut self, moment: &mut Moment<'_>) {
        self.machine().handle_timeout(moment);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Any::Member(member) => member.poll_timeout(),
            Any::Crook(crook) => crook.poll_timeout(),
            Any::Discovery(server) => server.poll_timeout(),
            Any::Rendezvous(server) => server.poll_timeout(),
        }
    }

    /// Servers answer whoever asks, so whom a test let ask.
    fn is_honest(&self) -> bool {
        matches!(self, Any::Member(_))
    }
}
