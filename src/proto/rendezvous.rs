//! Rendezvous: members register with a server by key, and it passes their sealed calls.
pub mod server;
