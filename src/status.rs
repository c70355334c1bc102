//! What the core knows, for people: the text of `status`, in the manner of `wg show`.
//!
//! Names come from config files and sentences from the network's other end, so every text is stripped of what a terminal would
//! act on.

use std::fmt::{Display, Write};
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::proto::snapshot::{Allocation, Behaviour, Cipher, Method, Nat, Peer, PortMapping, Punch, Snapshot, State};

/// Whether to colour, and to break JSON into lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    pub colour: bool,
    pub terminal: bool,
}

impl Style {
    pub const PLAIN: Style = Style { colour: false, terminal: false };

    /// For standard output: colours on a terminal only, and not where NO_COLOR is set (no-color.org).
    pub fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { terminal, colour: terminal && !unwanted }
    }

    fn paint(self, colour: Colour, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Bold => "1",
            Colour::Good => "1;32",
            Colour::Busy => "1;33",
            Colour::Bad => "1;31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

#[derive(Clone, Copy)]
enum Colour {
    Bold,
    Good,
    Busy,
    Bad,
}

/// On one line for machines, or broken into lines on a terminal.
pub fn json(value: &impl Serialize, style: Style) -> serde_json::Result<String> {
    let text = if style.terminal { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map(|text| text + "\n")
}

/// The text of `p2ptund status`; `now` dates the handshakes.
pub fn text(snapshot: &Snapshot, now: SystemTime, style: Style) -> String {
    let mut page = Page { out: String::new(), style };
    page.title("interface", &snapshot.interface, None);
    page.field("public key", &snapshot.public_key);
    page.field("addresses", snapshot.addresses.join(", "));
    page.field("listening port", snapshot.listen_port);
    page.field("mtu", snapshot.mtu);
    page.nat(&snapshot.nat);
    page.punch(&snapshot.punch);
    for server in &snapshot.rendezvous {
        let state = if server.connected { "connected" } else { "not connected" };
        let rtt = server.rtt_ms.map(|ms| format!(", {}", milliseconds(ms))).unwrap_or_default();
        page.field("rendezvous", format!("{}, {state}{rtt}", server.address));
    }
    let dropped: Vec<_> = snapshot
        .drops
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(why, n)| format!("{n} {}", why.replace('_', " ")))
        .collect();
    if !dropped.is_empty() {
        page.field("packets dropped", dropped.join(", "));
    }
    for peer in &snapshot.peers {
        page.peer(peer, now);
    }
    page.out
}

/// One sentence on how a peer's path was found, for `ping`.
pub fn path_of(peer: &Peer) -> String {
    let mut text = match (peer.state, peer.endpoint, peer.method) {
        (State::Connected, Some(endpoint), Some(method)) => {
            let took = peer.connect_ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
            format!("direct path to {endpoint}, found by {}{took}", method_name(method))
        }
        (State::Connected, Some(endpoint), None) => format!("direct path to {endpoint}"),
        (state, ..) => format!("no path: {}", state_name(state)),
    };
    if let Some(why) = &peer.why {
        text = format!("{text}: {}", plain(why));
    }
    text
}

/// `text` without what a terminal would act on: control characters and those that turn the direction of writing.
pub fn plain(text: &str) -> String {
    let acts = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Milliseconds with as many digits as mean something.
pub fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.1} ms") }
}

struct Page {
    out: String,
    style: Style,
}

impl Page {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn title(&mut self, kind: &str, name: &str, state: Option<State>) {
        let mut line = format!("{}: {}", self.style.paint(Colour::Bold, kind), plain(name));
        if let Some(state) = state {
            let colour = match state {
                State::Connected => Colour::Good,
                State::Calling | State::Punching => Colour::Busy,
                State::Failed => Colour::Bad,
                State::Idle => Colour::Bold,
            };
            line = format!("{line} ({})", self.style.paint(colour, state_name(state)));
        }
        self.line(&line);
    }

    fn field(&mut self, name: &str, value: impl Display) {
        let value = plain(&value.to_string());
        // Writing to a string can't fail.
        let _ = writeln!(self.out, "  {}: {value}", self.style.paint(Colour::Bold, name));
    }

    fn nat(&mut self, nat: &Nat) {
        self.field("nat mapping", behaviour(nat.mapping));
        self.field("nat filtering", behaviour(nat.filtering));
        let mut ports = match nat.allocation {
            Allocation::Preserving => "kept".to_owned(),
            Allocation::Sequential => "given out one after the other".to_owned(),
            Allocation::Random => "given out at random".to_owned(),
            Allocation::Unknown => "not known".to_owned(),
        };
        if nat.second_priority == Some(true) {
            ports.push_str(", the first mapping of a port keeps it");
        }
        if let Some(delta) = nat.delta {
            let _ = write!(ports, ", step {delta}");
        }
        if let Some(rate) = nat.cross_traffic_per_s {
            let _ = write!(ports, ", {rate:.1} taken by others each second");
        }
        self.field("nat ports", ports);
        if !nat.public.is_empty() {
            let public: Vec<_> = nat.public.iter().map(ToString::to_string).collect();
            self.field("public", public.join(", "));
        }
        if let Some(interval) = nat.keepalive_s {
            let why = match nat.mapping_lifetime_s {
                Some(lived) if lived > 0.0 => format!(": the nat remembers for {lived:.0} s at least"),
                Some(_) => ": the nat forgets soon".to_owned(),
                None => String::new(),
            };
            self.field("keepalives", format!("after {interval:.0} s of silence{why}"));
        }
        let mapping = match nat.port_mapping {
            PortMapping::Upnp => "by UPnP",
            PortMapping::Pcp => "by PCP",
            PortMapping::NatPmp => "by NAT-PMP",
            PortMapping::None => "none",
        };
        self.field("port mapping", mapping);
    }

    fn punch(&mut self, punch: &Punch) {
        let (probes, rate, timeout) = (punch.probes, punch.rate, punch.timeout_s);
        let entries = count(punch.entries.into(), "nat entry");
        let sockets = count(punch.sockets.into(), "socket");
        let limits = format!("{probes} probes ({rate} a second), {entries}, {sockets}, {timeout:.0} s");
        let (now, most) = (punch.hard_calls_now, punch.hard_calls);
        self.field("punch", format!("a call may use {limits}; hard calls now: {now} of {most}"));
    }

    fn peer(&mut self, peer: &Peer, now: SystemTime) {
        self.line("");
        self.title("peer", &peer.name, Some(peer.state));
        self.field("public key", &peer.public_key);
        if let Some(endpoint) = peer.endpoint {
            self.field("endpoint", endpoint);
        }
        if let Some(method) = peer.method {
            let took = peer.connect_ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
            let effort = match peer.probes_sent {
                0 => String::new(),
                _ => format!(" with {}", effort(peer)),
            };
            self.field("found by", format!("{}{took}{effort}", method_name(method)));
        } else if peer.probes_sent > 0 {
            self.field("tried", effort(peer));
        }
        if let Some(why) = &peer.why {
            self.field("why", why);
        }
        if let Some(rtt) = peer.rtt_ms {
            self.field("round trip", milliseconds(rtt));
        }
        if let Some(mtu) = peer.path_mtu {
            self.field("path mtu", format!("{mtu}, {} inside", peer.inner_mtu));
        }
        self.field("allowed ips", peer.allowed_ips.join(", "));
        if let Some(at) = peer.last_handshake {
            self.field("latest handshake", ago(now, at));
        }
        if let Some(cipher) = peer.cipher {
            self.field(
                "cipher",
                match cipher {
                    Cipher::ChaCha20Poly1305 => "chacha20poly1305",
                    Cipher::Aes256Gcm => "aes256gcm",
                },
            );
        }
        if peer.rx_bytes > 0 || peer.tx_bytes > 0 {
            self.field("transfer", format!("{} received, {} sent", bytes(peer.rx_bytes), bytes(peer.tx_bytes)));
        }
    }
}

fn behaviour(behaviour: Behaviour) -> &'static str {
    match behaviour {
        Behaviour::None => "none",
        Behaviour::EndpointIndependent => "endpoint-independent",
        Behaviour::AddressDependent => "address-dependent",
        Behaviour::AddressAndPortDependent => "address-and-port-dependent",
        Behaviour::Unknown => "not known",
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Calling => "calling",
        State::Punching => "punching",
        State::Connected => "connected",
        State::Failed => "failed",
    }
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Endpoint => "endpoint",
        Method::Lan => "lan",
        Method::Ipv6 => "ipv6",
        Method::PortMapping => "port-mapping",
        Method::Punch => "punch",
        Method::Shotgun => "shotgun",
        Method::Roamed => "roamed",
    }
}

fn effort(peer: &Peer) -> String {
    let entries = match peer.entries_used {
        0 => String::new(),
        entries => format!(", {}", count(entries.into(), "nat entry")),
    };
    format!("{} from {}{entries}", count(peer.probes_sent, "probe"), count(peer.sockets_used.into(), "socket"))
}

fn count(number: u64, what: &str) -> String {
    match (number, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {what}s"),
    }
}

/// As `wg` counts: powers of 1024.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.2} {unit}")
}

fn ago(now: SystemTime, unix: u64) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let Some(seconds) = now.checked_sub(unix) else { return "in the future: this machine's clock was set".into() };
    let parts = [
        (seconds / 86_400, "day"),
        (seconds / 3600 % 24, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ];
    let mut words = Vec::new();
    for (number, unit) in parts {
        match number {
            0 => {}
            1 => words.push(format!("1 {unit}")),
            _ => words.push(format!("{number} {unit}s")),
        }
    }
    if words.is_empty() { "now".into() } else { format!("{} ago", words.join(", ")) }
}

#[cfg(test)]
mod tests;
