//! Single values: hosts, ports, prefixes, durations, names and keys, from the text that a user wrote.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::fault::{Wrong, quote};
use crate::proto::config::{Discovery, Host, HostPort, RENDEZVOUS_PORT, STUN_PORT};
use crate::proto::keys::{KeyError, PublicKey};

/// Linux's IFNAMSIZ, less the final zero.
const MAX_INTERFACE_NAME: usize = 15;
/// A peer's name stands in tables and log lines.
const MAX_PEER_NAME: usize = 64;
/// RFC 1035 section 2.3.4.
const MAX_HOST_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// `HOST` or `HOST:PORT`; IPv6 in brackets where a port follows. Without a port it is `default`, and an error where that is
/// `None`.
pub(super) fn host_port(text: &str, default: Option<u16>) -> Result<HostPort, Wrong> {
    let (host, port) = split_port(text)?;
    let host = self::host(host)?;
    let missing = || Wrong::new(format!("{} has no port", quote(text)), format!("Write {}.", with_port(&host, 4275)));
    let port = port.or(default).ok_or_else(missing)?;
    Ok(HostPort { host, port })
}

/// One of `[discovery] servers`.
pub(super) fn discovery(text: &str) -> Result<Discovery, Wrong> {
    if let Some(stun) = text.strip_prefix("stun:") {
        return host_port(stun, Some(STUN_PORT)).map(Discovery::Stun);
    }
    if let Some((scheme, rest)) = ["stuns:", "turn:", "turns:", "http:", "https:", "udp:"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme).map(|rest| (scheme, rest)))
    {
        return Err(Wrong::new(
            format!("{scheme} servers can't be asked"),
            format!(
                "Write a plain STUN server as {}, or the address of a p2ptund server.",
                quote(&format!("stun:{rest}"))
            ),
        ));
    }
    let (host, port) = split_port(text)?;
    let host = self::host(host)?;
    Ok(match port {
        Some(port) => Discovery::Port(HostPort { host, port }),
        None => Discovery::Series(host),
    })
}

/// `[[rendezvous]] address`.
pub(super) fn rendezvous(text: &str) -> Result<HostPort, Wrong> {
    host_port(text, Some(RENDEZVOUS_PORT))
}

/// An address to listen at, and its port where one is written.
pub(super) fn listen(text: &str) -> Result<(IpAddr, Option<u16>), Wrong> {
    let (host, port) = split_port(text)?;
    let address = host.parse::<IpAddr>().map_err(|_| {
        Wrong::new(
            format!("{} is not an IP address", quote(text)),
            "Write one of this machine's own addresses, such as \"198.51.100.7\".",
        )
    })?;
    match address {
        address if address.is_multicast() || is_broadcast(&address) => Err(Wrong::new(
            format!("{address} is a multicast or broadcast address"),
            "Write one of this machine's own addresses.",
        )),
        address => Ok((address, port)),
    }
}

/// An IP address with a prefix length; without one it is the address alone (/32 or /128).
pub(super) fn network(text: &str) -> Result<IpNet, Wrong> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| {
        Wrong::new(
            format!("{} is not an IP address with a prefix length", quote(text)),
            "Write ADDRESS/LENGTH, such as \"10.77.0.2/32\" or \"fd77::/64\".",
        )
    })
}

/// One of `[interface] address`: a host's own address and the length of its network.
pub(super) fn own_address(text: &str) -> Result<IpNet, Wrong> {
    let net = network(text)?;
    let address = net.addr();
    let unfit = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_loopback() {
        "a loopback address"
    } else if address.is_multicast() || is_broadcast(&address) {
        "a multicast or broadcast address"
    } else {
        return Ok(net);
    };
    Err(Wrong::new(
        format!("{address} is {unfit}"),
        "Write an address of a private network, such as \"10.77.0.1/24\" or \"fd77::1/64\".",
    ))
}

/// One of `[[peer]] allowed_ips`: a network without host bits.
pub(super) fn allowed_ip(text: &str) -> Result<IpNet, Wrong> {
    let net = network(text)?;
    if net.trunc() != net {
        let remedy = format!("Write {} for the network, or {} for the one host.", net.trunc(), IpNet::from(net.addr()));
        return Err(Wrong::new(format!("{net} has bits set beyond its prefix length"), remedy));
    }
    // Only prefixes that lie wholly in such a range: 0.0.0.0/0 is a default route.
    let whole = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(&net));
    if ["127.0.0.0/8", "224.0.0.0/4", "::1/128", "ff00::/8", "255.255.255.255/32", "0.0.0.0/32", "::/128"]
        .iter()
        .any(|range| whole(range))
    {
        return Err(Wrong::new(
            format!(
                "{net} is no network that a peer can be reached in (loopback, multicast, broadcast or unspecified)"
            ),
            "Write the peer's virtual address, such as \"10.77.0.2/32\", and the networks behind it.",
        ));
    }
    Ok(net)
}

/// `10s`, `1500ms` or `2m`.
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, Wrong> {
    let remedy = format!("Write a time from {} to {} s, such as \"10s\".", least.as_secs_f32(), most.as_secs_f32());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: Option<u64> = number.parse().ok();
    let duration = match (number, unit.trim_start()) {
        (Some(number), "ms") => Duration::from_millis(number),
        (Some(number), "s") => Duration::from_secs(number),
        (Some(number), "m" | "min") => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(Wrong::new(format!("{} is not a time with its unit (ms, s or m)", quote(text)), remedy)),
    };
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(Wrong::new(format!("{} is out of range", quote(text)), remedy))
    }
}

pub(super) fn interface_name(text: &str) -> Result<String, Wrong> {
    const REMEDY: &str = "Write 1 to 15 letters, digits, `-`, `_` or `.`, such as \"p2p0\".";
    if text.is_empty() || text.len() > MAX_INTERFACE_NAME {
        return Err(Wrong::new(format!("{} has not 1 to {MAX_INTERFACE_NAME} characters", quote(text)), REMEDY));
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Wrong::new(format!("{} has characters that an interface name can't have", quote(text)), REMEDY));
    }
    // The kernel has "all" and "default" beside interfaces in /proc/sys/net, and "lo" of its own.
    if [".", "..", "all", "default", "lo"].contains(&text) || text.starts_with('-') {
        return Err(Wrong::new(format!("{} can't name an interface of ours", quote(text)), REMEDY));
    }
    Ok(text.to_owned())
}

pub(super) fn peer_name(text: &str) -> Result<String, Wrong> {
    const REMEDY: &str = "Write a short name for people to read, such as \"berlin\".";
    if text.trim().is_empty() {
        return Err(Wrong::new("an empty name", REMEDY));
    }
    if text.chars().count() > MAX_PEER_NAME {
        return Err(Wrong::new(format!("{} has more than {MAX_PEER_NAME} characters", quote(text)), REMEDY));
    }
    if text.chars().any(char::is_control) {
        return Err(Wrong::new(format!("{} has control characters", quote(text)), REMEDY));
    }
    Ok(text.to_owned())
}

pub(super) fn public_key(text: &str, printed_by: &str) -> Result<PublicKey, Wrong> {
    text.parse().map_err(|error| key_error(error, printed_by))
}

/// Never repeats the text: it may be a private key in the wrong place.
pub(super) fn key_error(error: KeyError, printed_by: &str) -> Wrong {
    let what = match error {
        KeyError::NotBase64 => "not a key (44 characters of base64 that stand for 32 bytes)",
        KeyError::Weak => "an all-zero key, which protects nothing",
    };
    Wrong::new(what, format!("Write the 44 characters that {printed_by} prints."))
}

/// Why nothing can be sent to `address`, if so.
pub(super) fn unreachable(address: &IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address, at which nobody can be reached")
    } else if address.is_multicast() || is_broadcast(address) {
        Some("a multicast or broadcast address")
    } else if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        Some("a link-local address, which is not unique to one link")
    } else {
        None
    }
}

fn is_broadcast(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), Wrong> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((host, "")) => Ok((host, None)),
            Some((host, after)) if after.starts_with(':') => Ok((host, Some(port(text, &after[1..])?))),
            _ => Err(Wrong::new(format!("{} has an unclosed bracket", quote(text)), "Write \"[2001:db8::7]:4275\".")),
        };
    }
    match text.rsplit_once(':') {
        Some((host, digits)) => Ok((host, Some(port(text, digits)?))),
        None => Ok((text, None)),
    }
}

fn port(text: &str, digits: &str) -> Result<u16, Wrong> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let wrong = if all_digits {
        format!("the port of {} is out of range", quote(text))
    } else {
        format!("{} has no number for a port", quote(text))
    };
    digits
        .parse()
        .ok()
        .filter(|port| all_digits && *port != 0)
        .ok_or_else(|| Wrong::new(wrong, "Write a port from 1 to 65535 after the colon."))
}

fn host(text: &str) -> Result<Host, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return match unreachable(&address) {
            None => Ok(Host::Ip(address)),
            Some(why) => Err(Wrong::new(format!("{address} is {why}"), "Write the address of one machine.")),
        };
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > MAX_HOST_NAME || !name.split('.').all(label) || numeric_end {
        return Err(Wrong::new(
            format!("{} is neither an IP address nor a host name", quote(text)),
            "Write an address such as \"198.51.100.7\" or \"[2001:db8::7]\", or a name such as \"rv.example.net\".",
        ));
    }
    Ok(Host::Name(name.to_ascii_lowercase()))
}

/// As a user writes it.
pub(super) fn with_port(host: &Host, port: u16) -> String {
    match host {
        Host::Ip(address) => SocketAddr::new(*address, port).to_string(),
        Host::Name(name) => format!("{name}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Host {
        Host::Ip(text.parse().expect("an address"))
    }

    #[test]
    fn hosts_and_ports_are_told_apart_in_both_families() {
        let port = |host, port| Ok(HostPort { host, port });
        assert_eq!(host_port("198.51.100.7:1", None), port(ip("198.51.100.7"), 1));
        assert_eq!(host_port("[2001:db8::7]:65535", None), port(ip("2001:db8::7"), 65535));
        assert_eq!(host_port("2001:db8::7", Some(9)), port(ip("2001:db8::7"), 9));
        assert_eq!(host_port("[2001:db8::7]", Some(9)), port(ip("2001:db8::7"), 9));
        assert_eq!(host_port("Berlin.example.net.", Some(9)), port(Host::Name("berlin.example.net".into()), 9));
    }

    #[test]
    fn what_is_no_host_or_port_is_refused() {
        for text in [
            "",
            ":",
            ":1",
            "a:",
            "a:b",
            "a:0",
            "a:65536",
            "a:+1",
            "a b:1",
            "1.2.3:1",
            "1.2.3.4.5:1",
            "256.1.1.1:1",
            "-a:1",
            "a..b:1",
            "[::1:1",
            "[::1]1",
            "[]:1",
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "fe80::1",
            "ff02::1",
            "[fe80::1%eth0]:1",
            "ä:1",
            "http://a:1",
        ] {
            assert!(host_port(text, None).is_err(), "{text}");
        }
    }

    #[test]
    fn a_discovery_server_is_a_series_a_port_or_stun() {
        assert_eq!(discovery("198.51.100.7"), Ok(Discovery::Series(ip("198.51.100.7"))));
        assert_eq!(discovery("[::1]:4270"), Ok(Discovery::Port(HostPort { host: ip("::1"), port: 4270 })));
        let stun = |port| Ok(Discovery::Stun(HostPort { host: Host::Name("stun.example.net".into()), port }));
        assert_eq!(discovery("stun:stun.example.net"), stun(3478));
        assert_eq!(discovery("stun:stun.example.net:19302"), stun(19302));
        assert!(discovery("stuns:stun.example.net").is_err());
    }

    #[test]
    fn a_prefix_with_host_bits_is_refused_and_its_network_is_told() {
        let wrong = allowed_ip("10.0.0.1/24").expect_err("host bits");
        assert!(wrong.remedy.contains("10.0.0.0/24") && wrong.remedy.contains("10.0.0.1/32"), "{}", wrong.remedy);
        assert_eq!(allowed_ip("10.0.0.1").map(|net| net.to_string()), Ok("10.0.0.1/32".into()));
        assert!(allowed_ip("0.0.0.0/0").is_ok() && allowed_ip("::/0").is_ok());
        for text in ["127.0.0.0/8", "224.0.0.0/24", "ff02::/16", "10.0.0.0/33", "10.0.0/24", ""] {
            assert!(allowed_ip(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_carry_their_unit_and_stay_in_range() {
        let read = |text| duration(text, Duration::from_secs(1), Duration::from_secs(600)).ok();
        assert_eq!(read("10s"), Some(Duration::from_secs(10)));
        assert_eq!(read("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(read("10m"), Some(Duration::from_secs(600)));
        for text in ["10", "s", "", "0s", "601s", "-1s", "99999999999999999999m", "18446744073709551615m", "1h"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn interface_names_are_those_that_the_kernel_takes() {
        for text in ["p2p0", "a", "wg-office.1", "abcdefghijklmno"] {
            assert!(interface_name(text).is_ok(), "{text}");
        }
        for text in ["", "abcdefghijklmnop", "a b", "a/b", "..", "a%d", "lo", "all", "ä"] {
            assert!(interface_name(text).is_err(), "{text}");
        }
    }
}
