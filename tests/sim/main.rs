//! The simulator: real members and servers, NATs of RFC 4787's kinds, one clock and one seed.
//!
//! ```text
//! pairs, matrix, mesh, transitions,
//! after, introductions, hostile,
//! ciphers                             what is tried, and what must come of it (grid: what the NATs allow at best)
//!   scene, terms, classes, table      two offices and their servers; what a run is like; the NATs; the matrix as text
//!     member, servers, pinger         the shells of the real `Node` and the real servers, and who sends pings
//!     crook, firewall                 a bad peer; a member's own firewall
//!       world, nat, link              the network, which knows nothing of p2ptund (world_tests, nat/tests)
//!         dice, watch                 chance, the transcript, and the detector of machines that never rest
//!           own_nat                   nothing of the simulator's: the same NAT with real packets, whose tests need `nat`
//! ```
//!
//! - `cargo test --test sim` runs everything, 30 seeds a pair; `-- pairs --nocapture` prints the matrix.
//! - `SEEDS=1000 cargo test --test sim pairs::connects -- --nocapture` is the full matrix.
//! - The table of all pairs against their targets is [`matrix`]'s; its own words say how to run it.
//! - `PAIR="4A x masquerade" SEED=17 cargo test --test sim pairs::one -- --nocapture` replays one run, datagram by datagram
//!   (`>` sent, `<` received, `x` dropped at a NAT, `!` injected); `EXACT=1` takes the undisturbed internet of the medians.
//!
//! Broken invariants gather in `World::faults`; a test that ends without looking at them proves half of what it could.

mod after;
mod ciphers;
mod classes;
mod crook;
mod datagram;
mod dice;
mod firewall;
mod grid;
mod hostile;
mod inner;
mod introductions;
mod lanes;
mod link;
mod machines;
mod matrix;
mod member;
mod mesh;
mod mtu;
mod nat;
#[path = "../lab/own_nat"]
mod own_nat {
    mod gateway;
    mod kind;
    mod packet;
}
mod pairs;
mod pinger;
mod scene;
mod seeds;
mod servers;
mod starts;
mod strangers;
mod table;
mod terms;
mod transitions;
mod watch;
mod world;
mod world_tests;
