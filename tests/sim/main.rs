//! The simulator: real members and servers, NATs of RFC 4787's kinds, one clock and one seed.

mod dice;
mod link;
mod nat;
mod watch;
mod world;
mod world_tests;
