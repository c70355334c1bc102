//! What netcheck found, in plain words: a line for each property, with how sure it is and from how many observations; a line for each
//! socket, with what the servers saw of it; and what all that means for calls.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::proto::plan::prospect::Kind;
use crate::proto::plan::{Outlook, Strategy};
use crate::proto::snapshot::{Allocation, Behaviour, Nat, Observation, PortMapping, Sure};

/// What a call to a peer of that kind would come to.
pub type Prospect = (Kind, (Strategy, Outlook));

/// The whole report. `mapping` says what became of asking the router for a mapping.
pub fn report(nat: &Nat, mapping: &str, prospects: &[Prospect]) -> String {
    let sure = &nat.confidence;
    let mut page = Page::default();
    page.line("Public address", &public(nat), sure.paired);
    page.line("Mapping", mapping_words(nat), sure.mapping);
    page.line("Ports", &allocation_words(nat), sure.allocation);
    if let Some(offset) = nat.port_offset {
        page.line("", &format!("{}: it follows the local port", far(offset)), sure.port_offset);
    }
    if let Some(range) = range_words(nat) {
        page.line("", &range, sure.ports);
    }
    match nat.parity_kept {
        Some(true) => page.line("", "parity is kept: even for even local ports, odd for odd ones", sure.parity_kept),
        Some(false) => page.line("", "parity is not kept", sure.parity_kept),
        None => {}
    }
    if let Some(rate) = nat.cross_traffic_per_s {
        let error = nat.cross_traffic_error_per_s.map(|error| format!(" ± {error:.1}")).unwrap_or_default();
        page.line("", &format!("other users of the NAT take {rate:.1}{error} of them a second"), None);
    }
    page.line("Filtering", filtering_words(nat), sure.filtering);
    page.line("Port mapping", mapping, None);
    page.seen(&nat.observations);
    page.outlook(nat, prospects);
    page.text
}

/// How the purposes of the observations begin that filtering was read from.
const FILTERING: &str = "filtering";
/// Width of the longest heading, "Public address", and its colon.
const HEADING: usize = 15;
/// Less than this is called a guess, and more than that is called certain.
const LIKELY: f64 = 0.9;
const CERTAIN: f64 = 0.9995;

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, heading: &str, words: &str, sure: Option<Sure>) {
        let heading = if heading.is_empty() { String::new() } else { format!("{heading}:") };
        let sure = sure.map(|sure| format!(" [{}]", how_sure(sure))).unwrap_or_default();
        // Writing into a String can't fail.
        let _ = writeln!(self.text, "{heading:HEADING$} {words}{sure}");
    }

    /// What the servers saw, a line for each socket.
    fn seen(&mut self, observations: &[Observation]) {
        let mut sockets: Vec<u16> = Vec::new();
        for seen in observations {
            if !sockets.contains(&seen.local_port) {
                sockets.push(seen.local_port);
            }
        }
        for (nth, socket) in sockets.into_iter().enumerate() {
            let mut last = None;
            let of_socket = observations.iter().filter(|seen| seen.local_port == socket);
            let answers: Vec<String> = of_socket.map(|seen| answer(seen, &mut last)).collect();
            let heading = if nth == 0 { "Seen" } else { "" };
            self.line(heading, &format!("from {socket}: {}", answers.join(", ")), None);
        }
    }

    /// What this means for calls, a line for each outcome.
    fn outlook(&mut self, nat: &Nat, prospects: &[Prospect]) {
        if prospects.is_empty() || (nat.mapping == Behaviour::Unknown && nat.port_mapping == PortMapping::None) {
            return self.line(
                "So",
                "too little is known; check that UDP to the discovery servers is allowed out",
                None,
            );
        }
        let outcomes = prospects.iter().map(|(_, (_, outlook))| *outlook);
        let mut heading = "So";
        let mut told: Vec<Outlook> = Vec::new();
        for outcome in outcomes {
            if told.contains(&outcome) {
                continue;
            }
            told.push(outcome);
            let peers = prospects.iter().filter(|(_, (_, outlook))| *outlook == outcome);
            let names: Vec<_> = peers.map(|(kind, (strategy, _))| peer(*kind, *strategy, outcome)).collect();
            let names = listed(&names);
            let words = match outcome {
                Outlook::Good => format!("a direct path is found to peers behind {names}"),
                Outlook::Needs(needs) => format!("behind {names}: with {needs} in [punch] at both sides"),
                Outlook::Poor(why) => format!(
                    "behind {names}: hardly ever, as {why}; a port mapped on either router, or IPv6 at both sides, is what helps"
                ),
            };
            self.line(heading, &words, None);
            heading = "";
        }
    }
}

/// "a, b and c".
fn listed(names: &[String]) -> String {
    match names {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        names => names.concat(),
    }
}

fn peer(kind: Kind, strategy: Strategy, outlook: Outlook) -> String {
    let name = match kind {
        Kind::Open => "no NAT",
        Kind::Cone => "a cone NAT",
        Kind::Counting => "one that counts its ports",
        Kind::RandomByAddress => "one with a random port for each address",
        Kind::Random => "one with a random port for each destination",
    };
    let how = match strategy {
        _ if outlook != Outlook::Good => "",
        Strategy::Scatter | Strategy::Grid | Strategy::Cells => " (with many probes)",
        Strategy::Direct | Strategy::Wait | Strategy::Hold | Strategy::Sweep | Strategy::Window => "",
    };
    format!("{name}{how}")
}

/// "certain, 20 looks".
fn how_sure(sure: Sure) -> String {
    let looks = match sure.observations {
        1 => "1 look".to_owned(),
        looks => format!("{looks} looks"),
    };
    let percent = sure.chance * 100.0;
    match sure.chance {
        chance if chance >= CERTAIN => format!("certain, {looks}"),
        chance if chance >= 0.99 => format!("{percent:.1} % sure, {looks}"),
        chance if chance >= LIKELY => format!("{percent:.0} % sure, {looks}"),
        _ => format!("a guess, {looks}"),
    }
}

/// One answer: its server, shortened where the one before was at the same address, and the public port.
fn answer(seen: &Observation, last: &mut Option<(IpAddr, IpAddr)>) -> String {
    let known = *last;
    let server = match known {
        Some((ip, _)) if ip == seen.server.ip() => format!(":{}", seen.server.port()),
        _ => seen.server.to_string(),
    };
    let purpose = match seen.purpose.strip_prefix(FILTERING) {
        Some(purpose) => format!(" ({})", purpose.trim_start_matches([':', ' '])),
        None => String::new(),
    };
    let public = match (seen.public, known) {
        (Some(public), Some((_, ip))) if ip == public.ip() => format!(":{}", public.port()),
        (Some(public), _) => public.to_string(),
        (None, _) => "no answer".to_owned(),
    };
    let shown = seen.public.map(|public| public.ip()).or(known.map(|(_, ip)| ip));
    *last = shown.map(|shown| (seen.server.ip(), shown));
    format!("{server}{purpose} → {public}")
}

fn public(nat: &Nat) -> String {
    if nat.public.is_empty() {
        return "unknown: no discovery server answered".to_owned();
    }
    let mut last = None;
    let shortened = nat.public.iter().map(|public| {
        let same = last.replace(public.ip()) == Some(public.ip());
        if same { format!(":{}", public.port()) } else { public.to_string() }
    });
    let all = shortened.collect::<Vec<_>>().join(", ");
    match nat.paired {
        Some(true) => format!("{all}; one address for all mappings"),
        Some(false) => format!("{all}; another address of a pool now and then"),
        None => all,
    }
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
        (Allocation::Unknown, _) if nat.port_offset.is_some() => "neither kept, nor a sequence, nor random".to_owned(),
        (Allocation::Unknown, _) => "unknown".to_owned(),
    };
    if nat.second_priority == Some(true) {
        words.push_str("; only the first mapping of a local port keeps that port (the patent's FIG. 4A)");
    }
    words
}

fn far(offset: i32) -> String {
    let way = if offset < 0 { "below" } else { "above" };
    format!("the public port is {} {way} the local one", offset.unsigned_abs())
}

/// The ports that the NAT gives out; where that is no block, those that were seen, so that one can judge.
fn range_words(nat: &Nat) -> Option<String> {
    match (nat.allocation, nat.ports) {
        (Allocation::Random, Some((low, high))) => {
            let length = u32::from(high.saturating_sub(low)) + 1;
            Some(format!("from a block of {length}, about {low} to {high}"))
        }
        (_, Some((low, high))) => Some(format!("from {low} to {high}, then anew")),
        (Allocation::Random, None) => {
            let seen = || nat.observations.iter().filter_map(|seen| seen.public).map(|public| public.port());
            let (low, high) = (seen().min()?, seen().max()?);
            Some(format!("from no block: {low} to {high} were seen"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
