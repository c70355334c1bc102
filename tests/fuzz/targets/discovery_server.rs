//! A discovery server, asked anything by anybody.

use std::net::SocketAddr;

use p2ptund::proto::discovery::server::Server;

use super::input::Input;

/// A bare STUN request has 20 bytes and its answer up to 44: the one answer that is longer than what was asked.
const LONGEST_OF_STUN: usize = 44;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let ips = ["198.51.100.7", "198.51.100.8", "2001:db8::7", "2001:db8::8"];
    let all = ips.iter().flat_map(|ip| [4270, 4271].map(|port| (ip, port)));
    let some = input.u8();
    let listeners: Vec<SocketAddr> = all
        .enumerate()
        .filter(|(at, _)| some >> at & 1 == 0)
        .map(|(_, (ip, port))| SocketAddr::new(ip.parse().expect("is an address"), port))
        .collect();
    let server = Server::new(listeners.clone());
    // One that is not there, too.
    let (listener, from) = (input.below(listeners.len() + 1), input.address());
    let datagram = input.take(usize::MAX);
    let Some((at, to, answer)) = server.handle_datagram(listener, from, datagram) else { return };
    assert!(answer.len() <= datagram.len().max(LONGEST_OF_STUN), "nobody is amplified");
    assert_eq!(to.ip(), from.ip(), "nobody is answered who did not ask");
    assert!(at == listener || at < listeners.len());
    if let (Some(here), Some(there)) = (listeners.get(listener), listeners.get(at)) {
        assert_eq!(here.is_ipv4(), there.is_ipv4(), "an IPv4 question is answered by IPv4");
    }
    assert_eq!(server.handle_datagram(at, from, &answer), None, "two servers can't be set upon each other");
}
