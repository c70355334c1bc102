//! The simulator: real members and servers, NATs of RFC 4787's kinds, one clock and one seed.
//!
//! ```text
//! pairs, mesh, transitions, after,
//! introductions, hostile              what is tried, and what must come of it
//!   scene, terms, classes, table      two offices and their servers; what a run is like; the NATs; the matrix as text
//!     member, servers, pinger, crook  the shells of the real `Node` and the real servers, and who sends pings; a bad peer
//!       world, nat, link              the network, which knows nothing of p2ptund (world_tests, nat/tests)
//!         dice, watch                 chance, the transcript, and the detector of machines that never rest
//! ```
//!
//! - `cargo test --test sim` runs everything, 30 seeds a pair; `-- pairs --nocapture` prints the matrix.
//! - `SEEDS=1000 cargo test --test sim pairs::connects -- --nocapture` is the full matrix.
//! - `PAIR="4A x masquerade" SEED=17 cargo test --test sim pairs::one -- --nocapture` replays one run, datagram by datagram
//!   (`>` sent, `<` received, `x` dropped at a NAT, `!` injected); `EXACT=1` takes the undisturbed internet of the medians.
//!
//! Broken invariants gather in `World::faults`; a test that ends without looking at them proves half of what it could.

mod after;
mod classes;
mod crook;
mod dice;
mod firewall;
mod hostile;
mod inner;
mod introductions;
mod link;
mod machines;
mod matrix;
mod member;
mod mesh;
mod nat;
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
