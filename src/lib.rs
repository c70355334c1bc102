//! p2ptund: a tunnel daemon that finds a direct, encrypted UDP path between offices behind firewalls that nobody will
//! reconfigure.
//!
//! This page is the map. The program is a pure core, [`proto`], to which time, randomness and datagrams are arguments, and a
//! thin shell around it, everything else, which has the sockets, the clock and the files. [`driver`] is the loop that
//! joins them; the simulator in `tests/sim` is another, so what it tries is what runs.
//!
//! # A packet's walk
//!
//! Between members that are connected, in two threads, up to 64 packets at a time:
//!
//! ```text
//! out   io::tun              one inner super-packet from the kernel
//!       proto::offload       cut into packets, each complete
//!       carrier::outward     whose they are (proto::allowed_ips), and that peer's lane (proto::lane)
//!       proto::volley        laid into the send buffer, and sealed there: proto::session
//!       io::udp              all of them in one send
//!
//! in    io::udp              a batch of datagrams, from any socket, many to a buffer
//!       carrier::inward      the lane that they are for, by the receiver's index
//!       proto::session       opened in place; proto::replay: never twice
//!       proto::allowed_ips   may this peer send from this inner address? if not, dropped and counted
//!       proto::offload       packets of one flow joined
//!       io::tun              in one write
//! ```
//!
//! What no lane takes goes packet by packet, through the core, which decides:
//!
//! ```text
//! out   driver ─► proto::node ─► proto::peer         has it a path? if not, the packet waits in the tunnel, and a call begins
//!                                proto::tunnel       the session in use; a handshake where there is none: proto::noise
//! in    driver ─► proto::wire ─► proto::node         what it is, by its first bytes; whose, by the receiver's index
//!                                proto::peer         a new source is noted and challenged before payload follows it: proto::path
//! both            proto::peer::lanes                 once there is a session and a path, lanes are handed out
//!                 proto::mtu, proto::oversize        how long a packet may be, and what becomes of a longer one
//! ```
//!
//! # A call's walk
//!
//! How two members that know only each other's keys get a path: the patent's method.
//!
//! ```text
//!  1  io::portmap                     asks the router for a port (UPnP, PCP, NAT-PMP), from the start on
//!  2  proto::discovery                DUDP_START to two addresses and two ports, DUDP_PUBINFO back
//!     proto::stun                     the same with anybody's STUN server
//!  3  proto::nat, proto::counter      from what they saw: mapping, filtering, allocation, step, others' traffic
//!  4  proto::rendezvous::client       registered, by key, since the start
//!  5  proto::peer::calling            the caller's second tuple and differential, sealed: proto::message_control
//!  6  proto::rendezvous::server       passes it on, and can't read it; proto::introduction: a third member does, where no server can
//!  7  proto::peer::called             refuses, or answers with its own, and with its terms
//!     proto::peer::holding            where ports move: mappings towards the other, made before anybody shoots
//!  8  proto::plan                     who shoots from which sockets at which ports, the same on both sides: a file a strategy
//!  9  proto::punch, proto::budget     opens sockets and fires, in rounds, within the budgets
//! 10  proto::probe                    DUDP_ACK finds, DUDP_ACK2 proves
//! 11  proto::path                     the one in use; payload goes
//!     proto::peer::recovering         where it breaks, or the member moves: a call beside it
//! ```
//!
//! # Modules
//!
//! | module      | what it has                                                                                   |
//! | ----------- | --------------------------------------------------------------------------------------------- |
//! | [`cli`]     | the commands                                                                                  |
//! | [`config`]  | TOML in, checked types out, or every fault at once                                            |
//! | [`daemon`]  | start, reload and stop, in order; signals; what systemd is told                               |
//! | [`driver`]  | the core's loop: io → core → io                                                               |
//! | [`carrier`] | the two threads that carry packets                                                            |
//! | [`io`]      | TUN device, UDP sockets, routes, port mapping, resolver, and the only clock                   |
//! | [`control`] | the socket by which `status`, `ping`, `reload` and `down` reach a daemon                      |
//! | [`status`]  | what the core knows, for people                                                               |
//! | [`netcheck`] | what the NATs in front of this machine do                                                    |
//! | [`serve`]   | discovery and rendezvous servers around the core's two                                        |
//! | [`logging`] | the logs                                                                                      |
//! | [`proto`]   | the core                                                                                      |
//!
//! and in the core, inside out:
//!
//! - packets, WireGuard's transport byte for byte: [`proto::noise`], [`proto::cipher`], [`proto::session`], [`proto::replay`], [`proto::cookie`],
//!   and [`proto::tunnel`], which joins them
//! - many inner packets at once, cut from and joined to what the kernel takes with one call: [`proto::offload`]
//! - paths, proved before they are used: [`proto::path`], [`proto::probe`], [`proto::peer::recovering`]
//! - what a path carries, and what becomes of longer packets: [`proto::mtu`], [`proto::oversize`], [`proto::fragment`],
//!   [`proto::mss`]
//! - calls: [`proto::peer`], [`proto::message_control`], [`proto::nat`], [`proto::counter`],
//!   [`proto::plan`], [`proto::punch`], [`proto::budget`]
//! - servers, and a member's side of them: [`proto::discovery`], [`proto::stun`], [`proto::rendezvous`],
//!   [`proto::introduction`]
//! - one member, whole, and who gets which datagram: [`proto::node`], [`proto::allowed_ips`], [`proto::wire`]
//! - the core's border: [`proto::action`], [`proto::snapshot`], [`proto::config`], [`proto::time`]
//!
//! Each module opens with its flow or its wire layout and what it assumes. `src/proto/FIREWALL.md` says how all of it looks
//! from a router.

#![deny(unsafe_code)]

pub mod carrier;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod driver;
pub mod io;
pub mod logging;
pub mod netcheck;
pub mod proto;
pub mod serve;
pub mod status;
