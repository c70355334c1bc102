//! The discovery server: stateless, answers DUDP_START and plain STUN with the address that the request came from.
//!
//! It listens on a series of well-known ports at each of its addresses (patent \[0058\]), so that a client can ask the same
//! address twice from two ports' view, and can ask for an answer from a socket that it never sent to. A DUDP_START is as long
//! as its answer. A bare STUN request is 20 bytes and its answer 32 or 44: that can't be had otherwise, so the caller of this
//! server limits how many such answers one source is sent.

use std::net::SocketAddr;

use super::{PubInfo, Reply, Start};
use crate::proto::stun;
use crate::proto::wire::{Dudp, Kind};

/// The server's own sockets, by the shell's count.
pub struct Server {
    listeners: Vec<SocketAddr>,
}

impl Server {
    /// `listeners`: the addresses that the shell's sockets are bound to, in the shell's order.
    pub fn new(listeners: Vec<SocketAddr>) -> Self {
        Self { listeners }
    }

    /// The answer to a datagram that came in on `listener` from `from`: from which listener, to where (always `from`'s address),
    /// and the bytes. `None`: it was no request.
    pub fn handle_datagram(
        &self,
        listener: usize,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Option<(usize, SocketAddr, Vec<u8>)> {
        match Kind::of(datagram)? {
            Kind::Stun => {
                let transaction = stun::parse_request(datagram)?;
                Some((listener, from, stun::response(&transaction, from)))
            }
            Kind::Dudp(Dudp::Start) => {
                let start = Start::parse(datagram)?;
                let to = match start.reply {
                    Reply::ToPort(port) => SocketAddr::new(from.ip(), port),
                    Reply::Same | Reply::OtherPort | Reply::OtherAddress => from,
                };
                let (listener, reply) = match self.other(listener, start.reply) {
                    Some(other) => (other, start.reply),
                    None if to != from => (listener, start.reply),
                    None => (listener, Reply::Same),
                };
                let info = PubInfo { transaction: start.transaction, reply, public: from };
                Some((listener, to, info.encode()))
            }
            _ => None,
        }
    }

    /// The last listener that differs as asked: clients begin with the first ports of the series, so the last is the one that
    /// they have most likely not sent to.
    fn other(&self, asked: usize, reply: Reply) -> Option<usize> {
        let here = self.listeners.get(asked)?;
        self.listeners.iter().rposition(|there| {
            let family = there.is_ipv4() == here.is_ipv4();
            match reply {
                Reply::Same | Reply::ToPort(_) => false,
                Reply::OtherPort => family && there.ip() == here.ip() && there.port() != here.port(),
                Reply::OtherAddress => family && there.ip() != here.ip(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        let listeners = ["198.51.100.7:4270", "198.51.100.7:4271", "198.51.100.8:4270", "198.51.100.8:4271"];
        Server::new(listeners.iter().map(|text| text.parse().expect("address")).collect())
    }

    fn ask(server: &Server, listener: usize, reply: Reply) -> (usize, PubInfo) {
        let from = "203.0.113.9:30001".parse().expect("address");
        let request = Start { transaction: *b"abcdefgh", reply }.encode();
        let answer = server.handle_datagram(listener, from, &request).expect("answers");
        let (listener, to, bytes) = answer;
        assert_eq!(to, from);
        assert!(bytes.len() <= request.len());
        (listener, PubInfo::parse(&bytes).expect("is a PUBINFO"))
    }

    #[test]
    fn answers_with_the_address_that_the_request_came_from() {
        let (listener, info) = ask(&server(), 2, Reply::Same);
        assert_eq!((listener, info.reply), (2, Reply::Same));
        assert_eq!(info.public, "203.0.113.9:30001".parse().expect("address"));
    }

    #[test]
    fn answers_from_another_port_or_address_where_it_has_one() {
        assert_eq!(ask(&server(), 0, Reply::OtherPort).0, 1);
        assert_eq!(ask(&server(), 0, Reply::OtherAddress).0, 3);
        let single = Server::new(vec!["198.51.100.7:4270".parse().expect("address")]);
        let (listener, info) = ask(&single, 0, Reply::OtherAddress);
        assert_eq!((listener, info.reply), (0, Reply::Same));
    }

    #[test]
    fn answers_to_another_port_of_who_asks_and_of_nobody_else() {
        let from: SocketAddr = "203.0.113.9:30001".parse().expect("address");
        let request = Start { transaction: *b"abcdefgh", reply: Reply::ToPort(30002) }.encode();
        let (listener, to, bytes) = server().handle_datagram(3, from, &request).expect("answers");
        assert_eq!((listener, to), (3, "203.0.113.9:30002".parse().expect("address")));
        assert!(bytes.len() <= request.len());
        let info = PubInfo::parse(&bytes).expect("is a PUBINFO");
        assert_eq!((info.reply, info.public), (Reply::ToPort(30002), from));
    }

    #[test]
    fn is_silent_to_anything_else() {
        let from = "203.0.113.9:30001".parse().expect("address");
        assert_eq!(server().handle_datagram(0, from, b"hello"), None);
        assert_eq!(server().handle_datagram(0, from, &Dudp::Start.header()), None);
        let info = PubInfo { transaction: [0; 8], reply: Reply::Same, public: from };
        assert_eq!(server().handle_datagram(0, from, &info.encode()), None, "two servers can't be set upon each other");
    }
}
