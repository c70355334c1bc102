//! Port mapping against a real miniupnpd, which speaks UPnP, PCP and NAT-PMP, in network namespaces:
//!
//! ```text
//! client 192.168.77.2 ── veth ── 192.168.77.1 router (miniupnpd) 198.51.100.7 ── veth ── nobody
//! ```
//!
//! The router claims the external address 11.0.0.5, because miniupnpd refuses the ones kept for documentation; nothing leaves
//! the namespaces. Each test runs itself again inside its client namespace. Needs root and miniupnpd, and says so loudly where it is skipped.
//!
//! [`real`] has the tests against miniupnpd; [`odd`] those against a router of our own in its place, which lies, is late or refuses.

#[path = "../lab/enter.rs"]
mod enter;
mod fake;
mod lab;
mod odd;
mod real;
