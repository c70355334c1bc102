//! p2ptund: a tunnel daemon that finds a direct, encrypted UDP path between offices behind firewalls that nobody will
//! reconfigure.

#![deny(unsafe_code)]

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
