//! The simulator: real members and servers, NATs of RFC 4787's kinds, one clock and one seed.
//!
//! ```text
//! pairs, mesh, transitions, hostile   what is tried, and what must come of it
//!   scene, terms, classes, table      two offices and their servers; what a run is like; the NATs; the matrix as text
//!     member, servers, pinger         the shells of the real `Node` and the real servers, and who sends pings
//!       world, nat, link              the network, which knows nothing of p2ptund (world_tests, nat/tests)
//!         dice, watch                 chance, the transcript, and the detector of machines that never rest
//!           own_nat                   nothing of the simulator's: the same NAT with real packets, whose tests need `nat`
//! ```
//!
//! - `cargo test --test sim` runs everything, 30 seeds a pair; `-- pairs --nocapture` prints the matrix.
//! - `SEEDS=1000 cargo test --test sim pairs::connects -- --nocapture` is the full matrix.
//! - `PAIR="4A x masquerade" SEED=17 cargo test --test sim pairs::one -- --nocapture` replays one run, datagram by datagram
//!   (`>` sent, `<` received, `x` dropped at a NAT, `!` injected); `EXACT=1` takes the undisturbed internet of the medians.
//!
//! Broken invariants gather in `World::faults`; a test that ends without looking at them proves half of what it could.

mod classes;
mod datagram;
mod dice;
mod hostile;
mod inner;
mod link;
mod machines;
mod member;
mod mesh;
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
mod servers;
mod table;
mod terms;
mod transitions;
mod watch;
mod world;
mod world_tests;
