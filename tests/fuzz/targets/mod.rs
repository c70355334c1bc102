//! What the fuzzers run, and what `tests/corpus.rs` replays on stable Rust: one function a target, bytes in, a panic where
//! something does not hold. Nothing in here knows of libFuzzer.
//!
//! Parsers are held to three things: no input makes them panic, what they read writes back and reads again as the same, and
//! what they give keeps to its type's promises (an address that may be sent to, a length within the packet). The stateful
//! targets read their input as a list of steps ([`input::Input`]).

mod call;
mod config;
mod control;
mod discovery;
mod discovery_client;
mod discovery_server;
mod hostile;
mod input;
mod ip;
mod kind;
mod merge;
mod message_control;
mod miniature;
mod node;
mod noise;
mod portmap_http;
mod portmap_pcp;
mod portmap_soap;
mod portmap_ssdp;
mod probe;
mod rendezvous;
mod rendezvous_server;
mod split;
mod stun;

/// A target: its name, as in `fuzz_targets/` and `corpus/`, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target there is.
pub const ALL: [Target; 21] = [
    ("call", call::run),
    ("config", config::run),
    ("control", control::run),
    ("discovery", discovery::run),
    ("discovery_client", discovery_client::run),
    ("discovery_server", discovery_server::run),
    ("ip", ip::run),
    ("kind", kind::run),
    ("merge", merge::run),
    ("message_control", message_control::run),
    ("node", node::run),
    ("noise", noise::run),
    ("portmap_http", portmap_http::run),
    ("portmap_pcp", portmap_pcp::run),
    ("portmap_soap", portmap_soap::run),
    ("portmap_ssdp", portmap_ssdp::run),
    ("probe", probe::run),
    ("rendezvous", rendezvous::run),
    ("rendezvous_server", rendezvous_server::run),
    ("split", split::run),
    ("stun", stun::run),
];

/// Runs one target by its name. Panics where there is none of that name.
pub fn run(name: &str, data: &[u8]) {
    let target = ALL.iter().find(|(candidate, _)| *candidate == name);
    let (_, run) = target.expect("fuzz_targets/ holds only names of this list");
    run(data);
}
