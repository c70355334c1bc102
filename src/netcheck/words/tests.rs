use super::*;
use crate::proto::plan::Needs;
use crate::proto::snapshot::Confidence;

fn seen(server: &str, public: Option<&str>, purpose: &str) -> Observation {
    Observation {
        server: server.parse().expect("an address"),
        local_port: 4275,
        public: public.map(|public| public.parse().expect("an address")),
        rtt_ms: public.map(|_| 12.34),
        purpose: purpose.to_owned(),
    }
}

fn nat() -> Nat {
    let sure = |chance| Some(Sure { chance, observations: 20 });
    Nat {
        mapping: Behaviour::AddressAndPortDependent,
        filtering: Behaviour::AddressAndPortDependent,
        allocation: Allocation::Sequential,
        delta: Some(2),
        cross_traffic_per_s: Some(12.0),
        cross_traffic_error_per_s: Some(4.56),
        ports: Some((30_000, 39_999)),
        parity_kept: Some(false),
        port_offset: None,
        paired: Some(true),
        public: vec!["203.0.113.101:30001".parse().expect("an address")],
        mapping_lifetime_s: None,
        keepalive_s: None,
        port_mapping: PortMapping::None,
        second_priority: Some(false),
        low_ttl: None,
        confidence: Confidence {
            mapping: sure(0.9996),
            filtering: sure(0.99),
            allocation: sure(0.95),
            ports: None,
            parity_kept: sure(1.0),
            port_offset: None,
            paired: sure(0.5),
        },
        observations: vec![
            seen("198.51.100.7:4270", Some("203.0.113.101:30001"), "mapping"),
            seen("198.51.100.7:4271", Some("203.0.113.101:30003"), "mapping"),
            seen("203.0.113.9:4271", None, "filtering: an answer from another port"),
        ],
    }
}

const GOOD: (Strategy, Outlook) = (Strategy::Hold, Outlook::Good);

#[test]
fn every_property_has_a_line_that_says_how_sure_it_is() {
    let text = report(&nat(), "no router answered", &[(Kind::Open, GOOD), (Kind::Cone, GOOD)]);
    let expected = "\
Public address: 203.0.113.101:30001; one address for all mappings [a guess, 20 looks]
Mapping:        address-and-port-dependent (symmetric): another public port for each address and port sent to [certain, 20 looks]
Ports:          sequential: each new mapping's port is +2 from the last [95 % sure, 20 looks]
                from 30000 to 39999, then anew
                parity is not kept [certain, 20 looks]
                other users of the NAT take 12.0 ± 4.6 of them a second
Filtering:      address-and-port-dependent (port-restricted): only an address and port that were sent to get through [99.0 % sure, 20 looks]
Port mapping:   no router answered
Seen:           from 4275: 198.51.100.7:4270 → 203.0.113.101:30001, :4271 → :30003, 203.0.113.9:4271 (an answer from another port) → no answer
So:             a direct path is found to peers behind no NAT and a cone NAT
";
    assert_eq!(text, expected);
}

#[test]
fn each_outcome_has_its_line_and_says_what_helps() {
    let prospects = [
        (Kind::Open, GOOD),
        (Kind::Cone, (Strategy::Scatter, Outlook::Good)),
        (Kind::RandomByAddress, (Strategy::Grid, Outlook::Needs(Needs { probes: Some(200_000), ..Needs::default() }))),
        (Kind::Random, (Strategy::Cells, Outlook::Poor("both NATs pick random ports for each destination"))),
    ];
    let text = report(&nat(), "none", &prospects);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[lines.len() - 3..],
        [
            "So:             a direct path is found to peers behind no NAT and a cone NAT (with many probes)",
            "                behind one with a random port for each address: with `probes = 200000` in [punch] at both sides",
            "                behind one with a random port for each destination: hardly ever, as both NATs pick random ports for each destination; a port mapped on either router, or IPv6 at both sides, is what helps",
        ]
    );
}

#[test]
fn silence_of_all_servers_is_not_taken_for_a_finding() {
    let silent = Nat {
        mapping: Behaviour::Unknown,
        filtering: Behaviour::Unknown,
        allocation: Allocation::Unknown,
        delta: None,
        cross_traffic_per_s: None,
        ports: None,
        parity_kept: None,
        paired: None,
        public: Vec::new(),
        second_priority: None,
        confidence: Confidence::default(),
        ..nat()
    };
    let text = report(&silent, "none", &[]);
    assert!(text.contains("no discovery server answered"), "{text}");
    assert!(
        text.ends_with("So:             too little is known; check that UDP to the discovery servers is allowed out\n")
    );
}
