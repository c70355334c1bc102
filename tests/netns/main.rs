//! The shipped binary, in network namespaces, behind real NATs, by the outward contract alone.
//!
//! Needs root, and the Debian packages iproute2, nftables, iputils-ping, conntrack, wireguard-go, wireguard-tools, miniupnpd
//! and coturn: `scripts/test` installs them. At most two labs work at the same time; the tests that wait for minutes wait side
//! by side, given `--test-threads 12`.

mod after;
mod contract;
mod elsewhere;
#[path = "../lab/enter.rs"]
mod enter;
mod interop;
mod introductions;
mod lab;
mod lab_itself;
mod lifecycle;
mod member;
mod narrow;
mod pairs;
mod portmap;
mod traffic;
