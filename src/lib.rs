//! p2ptund: a tunnel daemon that finds a direct, encrypted UDP path between offices behind firewalls that nobody will
//! reconfigure.

#![deny(unsafe_code)]

pub mod config;
pub mod io;
pub mod proto;
