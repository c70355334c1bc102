//! A member's discovery among servers that lie: each question is answered with any address, late, twice, or not at all, and
//! what is made of it is arithmetic on their numbers.

use std::time::Duration;

use p2ptund::proto::config::{Discovery, Host, HostPort};
use p2ptund::proto::discovery::client::Client;
use p2ptund::proto::discovery::{PubInfo, Reply, Start};
use p2ptund::proto::nat::Made;
use p2ptund::proto::{Action, Instant, SocketId, stun};

use super::input::{Input, bend};

const STEPS: usize = 200;
/// A survey asks at most three servers at two ports, and a filter three more questions; sixteen scouts may be due at once.
const MOST_AT_ONCE: usize = 128;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let port = |host, port| HostPort { host, port };
    let name = Host::Name("discovery.example.net".into());
    let mut servers = vec![
        Discovery::Series(Host::Ip([198, 51, 100, 7].into())),
        Discovery::Port(port(Host::Ip([192, 0, 2, 7].into()), 4270)),
        Discovery::Stun(port(Host::Ip([192, 0, 2, 8].into()), 3478)),
        Discovery::Series(name.clone()),
        Discovery::Stun(port(name, 3478)),
    ];
    servers.rotate_left(input.below(5));
    servers.truncate(input.below(6));
    let mut client = Client::new(servers, [9; 32]);
    let own = [[192, 168, 1, 2].into()];
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut asked: Vec<Vec<u8>> = Vec::new();
    let mut socket = SocketId::FIRST_EXTRA;
    client.start(now, 4275, &own, socket);
    drain(&mut client, &mut asked);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0..=3 => answer(&mut input, &mut client, now, &asked),
            4 => {
                let due = client.poll_timeout().filter(|_| input.u8() & 1 == 0);
                now = due.unwrap_or(now + Duration::from_millis(u64::from(input.u16()))).max(now);
                client.handle_timeout(now);
                assert!(client.poll_timeout().is_none_or(|due| due > now), "all that was due is done");
            }
            5 => {
                socket = SocketId(socket.0 + 1);
                client.scout(now, socket, u32::MAX);
            }
            6 => match input.u8() % 4 {
                0 => client.start(now, 4275, &own, socket),
                1 => client.again(now),
                2 => client.forget_scout(socket),
                _ => {
                    let made = u64::from(input.u16());
                    client.note_mappings(Made { sockets: made, by_address: made, by_port: made });
                }
            },
            _ => {
                let addresses: Vec<_> = (0..input.u8() % 8).map(|_| input.address().ip()).collect();
                client.handle_resolved(now, "discovery.example.net", &addresses);
            }
        }
        drain(&mut client, &mut asked);
        for view in [client.view(now, SocketId::MAIN_V4), client.view(now, socket)] {
            assert!(view.allocation.step() != Some(0), "a step is a step");
        }
        let nat = client.nat(now);
        assert!(nat.cross_traffic_per_s.is_none_or(|rate| rate.is_finite() && rate >= 0.0));
        client.is_ready(now, socket);
        client.moves();
    }
}

/// Answers one of the questions, with the address that the input says.
fn answer(input: &mut Input<'_>, client: &mut Client, now: Instant, asked: &[Vec<u8>]) {
    if asked.is_empty() {
        return;
    }
    let question = input.pick(asked);
    let mode = input.u8();
    // Near each other, as one NAT's are, or anything.
    let public = if mode & 1 == 0 { ([203, 0, 113, 1], input.u16()).into() } else { input.address() };
    let mut datagram = if let Some(start) = Start::parse(&question) {
        let reply = if mode & 2 == 0 { start.reply } else { Reply::Same };
        PubInfo { transaction: start.transaction, reply, public }.encode()
    } else {
        let transaction = stun::parse_request(&question).expect("what is asked is a DUDP_START or a STUN request");
        stun::response(&transaction, public)
    };
    if mode & 0x80 != 0 {
        bend(input, &mut datagram);
    }
    client.handle_datagram(now, &datagram);
}

fn drain(client: &mut Client, asked: &mut Vec<Vec<u8>>) {
    let mut count = 0;
    while let Some(transmit) = client.poll_transmit() {
        asked.push(transmit.payload);
        count += 1;
    }
    while let Some(action) = client.poll_action() {
        count += 1;
        assert!(!matches!(action, Action::OpenSocket { id, .. } if id < SocketId::FIRST_EXTRA));
    }
    assert!(count <= MOST_AT_ONCE, "{count} things at once");
    // The latest ones are those that may still be answered.
    asked.drain(..asked.len().saturating_sub(MOST_AT_ONCE));
}
