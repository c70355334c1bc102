//! The protocol, pure: time, randomness and datagrams are arguments.
//!
//! # Contract of every machine in here
//!
//! - A method that takes input is `handle_…`, one that gives output is `poll_…`. After any `handle_…`, drain every `poll_…`
//!   to `None`, then sleep until `poll_timeout` or the next input, whichever comes first. `poll_timeout` accounts for all
//!   work that waits for time; work that does not wait for time is in the queues already.
//! - No clock, no socket, no thread, no ambient randomness: an [`Instant`] comes with each input, and one seed came with
//!   the constructor. The same inputs give the same outputs, to the byte. `scripts/check-border` holds this in CI.
//! - A packet that is wrong is dropped and counted ([`action::Drop`]); it never is an error of the caller's.
//! - Everything that the network can make grow has a cap, and the cap is a named constant.

pub mod action;
pub mod allowance;
pub mod allowed_ips;
pub mod budget;
pub mod cipher;
pub mod codec;
pub mod config;
pub mod context;
pub mod cookie;
pub mod counter;
pub mod discovery;
pub mod fragment;
pub mod introduction;
pub mod ip;
pub mod keys;
pub mod lane;
pub mod memory;
pub mod message_control;
pub mod mss;
pub mod mtu;
pub mod nat;
pub mod node;
pub mod noise;
pub mod offload;
pub mod oversize;
pub mod packet;
pub mod path;
pub mod peer;
pub mod plan;
pub mod probe;
pub mod punch;
pub mod rendezvous;
pub mod replay;
pub mod session;
pub mod snapshot;
pub mod stun;
pub mod time;
pub mod tunnel;
pub mod volley;
pub mod wire;

pub use action::{Action, Event, SocketId, Transmit};
pub use packet::Packet;
pub use time::{Instant, Wall};
