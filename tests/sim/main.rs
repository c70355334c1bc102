//! The simulator: real members and servers, NATs of RFC 4787's kinds, one clock and one seed.

mod classes;
mod dice;
mod hostile;
mod inner;
mod link;
mod machines;
mod member;
mod nat;
mod pairs;
mod pinger;
mod scene;
mod servers;
mod table;
mod transitions;
mod watch;
mod world;
mod world_tests;
