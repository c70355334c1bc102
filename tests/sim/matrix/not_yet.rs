//! What is left to do. The list must only shrink.

/// Rows that the core does not reach yet. One that it does reach must be taken out: the test fails else.
pub const NOT_YET: &[&str] = &[
    "port-restricted × 4B +2, λ 300",
    "random × masquerade, poisonable",
    "random × 4B +1 by address, λ 300",
    "4B +1 in 4B +1 × port-restricted, λ 300",
    "random × random, same router, no hairpin",
    "4B +1 × 4B +1, IPv6 with stateful firewalls",
    "random × 4A +1, a port mapped, λ 300",
];
