//! What netcheck found, in plain words: each property in one sentence, below it the observations that it was read from.

use std::fmt::Write as _;

use crate::proto::snapshot::{Allocation, Behaviour, Nat, Observation, PortMapping};

/// The whole report. `mapping` says what became of asking the router for a mapping.
pub fn report(nat: &Nat, mapping: &str) -> String {
    let mut text = String::new();
    let mapping_seen: Vec<&Observation> = nat.observations.iter().filter(|seen| !is_filtering(seen)).collect();
    let filtering_seen: Vec<&Observation> = nat.observations.iter().filter(|seen| is_filtering(seen)).collect();

    section(&mut text, "Public address", &public(nat));
    section(&mut text, "Mapping", mapping_words(nat));
    for seen in &mapping_seen {
        observation(&mut text, seen);
    }
    section(&mut text, "Ports", &allocation_words(nat));
    section(&mut text, "Filtering", filtering_words(nat));
    for seen in &filtering_seen {
        observation(&mut text, seen);
    }
    section(&mut text, "Port mapping", mapping);
    section(&mut text, "So", outlook(nat));
    text
}

/// How the purposes of the observations begin that filtering was read from.
const FILTERING: &str = "filtering";
/// Width of the longest heading, "Public address", and its colon.
const HEADING: usize = 15;

fn section(text: &mut String, heading: &str, words: &str) {
    let heading = format!("{heading}:");
    // Writing into a String can't fail.
    let _ = writeln!(text, "{heading:HEADING$} {words}");
}

fn observation(text: &mut String, seen: &Observation) {
    let answer = match (seen.public, seen.rtt_ms) {
        (Some(public), Some(rtt)) => format!("saw {public} after {rtt:.1} ms"),
        (Some(public), None) => format!("saw {public}"),
        (None, _) => "no answer".to_owned(),
    };
    let purpose = match seen.purpose.strip_prefix(FILTERING) {
        Some(purpose) => format!(" ({})", purpose.trim_start_matches([':', ' '])),
        None => String::new(),
    };
    let _ = writeln!(text, "{:HEADING$}   {} from local port {}{purpose}: {answer}", "", seen.server, seen.local_port);
}

fn is_filtering(seen: &Observation) -> bool {
    seen.purpose.starts_with(FILTERING)
}

fn public(nat: &Nat) -> String {
    if nat.public.is_empty() {
        return "unknown: no discovery server answered".to_owned();
    }
    nat.public.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn mapping_words(nat: &Nat) -> &'static str {
    match nat.mapping {
        Behaviour::None => "none: servers see this machine's own address and port",
        Behaviour::EndpointIndependent => {
            "endpoint-independent (cone): every server sees the same public port, and so will peers"
        }
        Behaviour::AddressDependent => "address-dependent (symmetric): another public port for each address sent to",
        Behaviour::AddressAndPortDependent => {
            "address-and-port-dependent (symmetric): another public port for each address and port sent to"
        }
        Behaviour::Unknown => "unknown: two answers from servers at different addresses are needed to tell",
    }
}

fn filtering_words(nat: &Nat) -> &'static str {
    match nat.filtering {
        Behaviour::None => "none: whoever knows the port gets through",
        Behaviour::EndpointIndependent => "endpoint-independent: once a port is open, whoever knows it gets through",
        Behaviour::AddressDependent => "address-dependent: only addresses that were sent to get through, from any port",
        Behaviour::AddressAndPortDependent => {
            "address-and-port-dependent (port-restricted): only an address and port that were sent to get through"
        }
        Behaviour::Unknown => {
            "unknown: only servers of p2ptund's own can be asked to answer from another port or address"
        }
    }
}

fn allocation_words(nat: &Nat) -> String {
    let mut words = match (nat.allocation, nat.delta) {
        (Allocation::Preserving, _) => "preserving: the public port is the local one".to_owned(),
        (Allocation::Sequential, Some(step)) => {
            format!("sequential: each new mapping's port is {step:+} from the last")
        }
        (Allocation::Sequential, None) => "sequential".to_owned(),
        (Allocation::Random, _) => "random: one port says nothing about the next".to_owned(),
        (Allocation::Unknown, _) => "unknown".to_owned(),
    };
    if nat.second_priority == Some(true) {
        words.push_str("; only the first mapping of a local port keeps that port (the patent's FIG. 4A)");
    }
    if let Some(rate) = nat.cross_traffic_per_s {
        let _ = write!(words, "; other users of the NAT take about {rate:.1} ports a second");
    }
    words
}

/// What this means for calls.
fn outlook(nat: &Nat) -> &'static str {
    let symmetric = matches!(nat.mapping, Behaviour::AddressDependent | Behaviour::AddressAndPortDependent);
    match (nat.mapping, nat.allocation) {
        _ if nat.port_mapping != PortMapping::None => "peers behind any NAT can reach the mapped port",
        (Behaviour::None, _) => "peers behind any NAT can reach this machine, unless a firewall on it forbids UDP",
        (Behaviour::EndpointIndependent, _) => "direct paths are found to peers behind nearly any NAT",
        (_, Allocation::Random) if symmetric => {
            "hard: paths are found to peers with no NAT, a cone NAT or a mapped port; \
             between two NATs of this kind a mapped port or IPv6 on one side is what helps"
        }
        (_, Allocation::Sequential | Allocation::Preserving) if symmetric => {
            "ports can be predicted, so direct paths are found to peers behind cone NATs and others of this kind"
        }
        _ => "too little is known; check that UDP to the discovery servers is allowed out",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat() -> Nat {
        Nat {
            mapping: Behaviour::AddressAndPortDependent,
            filtering: Behaviour::AddressAndPortDependent,
            allocation: Allocation::Sequential,
            delta: Some(2),
            cross_traffic_per_s: Some(12.0),
            public: vec!["203.0.113.101:30001".parse().expect("an address")],
            mapping_lifetime_s: None,
            keepalive_s: None,
            port_mapping: PortMapping::None,
            second_priority: Some(false),
            observations: vec![
                Observation {
                    server: "198.51.100.7:4270".parse().expect("an address"),
                    local_port: 4275,
                    public: "203.0.113.101:30001".parse().ok(),
                    rtt_ms: Some(12.34),
                    purpose: "mapping".to_owned(),
                },
                Observation {
                    server: "198.51.100.7:4271".parse().expect("an address"),
                    local_port: 4275,
                    public: None,
                    rtt_ms: None,
                    purpose: "filtering: an answer from another port".to_owned(),
                },
            ],
        }
    }

    #[test]
    fn every_property_has_its_line_and_its_observations_below() {
        let text = report(&nat(), "no router answered");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Public address: 203.0.113.101:30001");
        assert!(lines[1].starts_with("Mapping:        address-and-port-dependent (symmetric)"), "{text}");
        assert_eq!(lines[2].trim(), "198.51.100.7:4270 from local port 4275: saw 203.0.113.101:30001 after 12.3 ms");
        assert!(
            lines[3].contains("is +2 from the last; other users of the NAT take about 12.0 ports a second"),
            "{text}"
        );
        assert!(lines[4].starts_with("Filtering:      address-and-port-dependent"), "{text}");
        assert_eq!(lines[5].trim(), "198.51.100.7:4271 from local port 4275 (an answer from another port): no answer");
        assert_eq!(lines[6], "Port mapping:   no router answered");
        assert!(lines[7].contains("can be predicted"), "{text}");
    }

    #[test]
    fn what_helps_is_said_where_ports_are_random_and_not_where_a_port_is_mapped() {
        let random = Nat { allocation: Allocation::Random, delta: None, ..nat() };
        assert!(report(&random, "none").contains("IPv6 on one side is what helps"));
        let mapped = Nat { port_mapping: PortMapping::Pcp, ..random };
        assert!(report(&mapped, "pcp").contains("can reach the mapped port"));
    }

    #[test]
    fn silence_of_all_servers_is_not_taken_for_a_finding() {
        let silent = Nat {
            mapping: Behaviour::Unknown,
            filtering: Behaviour::Unknown,
            allocation: Allocation::Unknown,
            delta: None,
            cross_traffic_per_s: None,
            public: Vec::new(),
            second_priority: None,
            ..nat()
        };
        let text = report(&silent, "none");
        assert!(text.contains("no discovery server answered"), "{text}");
        assert!(text.contains("too little is known"), "{text}");
    }
}
