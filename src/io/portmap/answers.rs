//! What a router's answers say: bytes in, values out, no socket. Whoever is on the LAN can write all of them, so no input may
//! panic, loop or grow; `tests/fuzz/targets/portmap_*` holds that.
//!
//! ```text
//! NAT-PMP address   [0][128][result: u16][epoch: u32][address: 4]                       RFC 6886 section 3.2
//! PCP, any          [2][128 | opcode][0][result][lifetime: 4][epoch: 4][0; 12] …        RFC 6887 section 7.2
//! SSDP              a status or NOTIFY line, then NAME: VALUE lines                     UPnP Device Architecture 1.1, section 1
//! HTTP              a status line, NAME: VALUE lines, an empty line, a body by length, by chunks or to the end
//! description, SOAP XML, of which a few tags matter
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A router's description is 3 to 10 KiB.
pub const MAX_LEN: usize = 64 << 10;
/// The longest SOAP answer that we ask for has some 20.
const MAX_TAGS: usize = 128;

/// NAT-PMP's word about itself: how long the router has known its mappings, and its external address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    pub epoch: u32,
    pub external: Ipv4Addr,
}

/// The answer to NAT-PMP's question for the external address; `None` where it is none, or refuses.
pub fn natpmp_address(answer: &[u8]) -> Option<Address> {
    let answer = answer.first_chunk::<12>()?;
    let epoch = u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]);
    let external = Ipv4Addr::new(answer[8], answer[9], answer[10], answer[11]);
    (answer[..4] == [0, 128, 0, 0]).then_some(Address { epoch, external })
}

/// The epoch of any PCP answer. Refusing is speaking PCP; "unsupported version" is not.
pub fn pcp_epoch(answer: &[u8]) -> Option<u32> {
    /// RFC 6887 section 7.4.
    const UNSUPPORTED_VERSION: u8 = 1;
    let answer = answer.first_chunk::<24>()?;
    let speaks = answer[0] == 2 && answer[1] & 128 != 0 && answer[3] != UNSUPPORTED_VERSION;
    speaks.then(|| u32::from_be_bytes([answer[8], answer[9], answer[10], answer[11]]))
}

/// The epoch in what a router says unasked after a restart, by NAT-PMP or PCP (opcode ANNOUNCE).
pub fn announced_epoch(datagram: &[u8]) -> Option<u32> {
    match natpmp_address(datagram) {
        Some(address) => Some(address.epoch),
        None => pcp_epoch(datagram).filter(|_| datagram[1] == 128),
    }
}

/// What an SSDP NOTIFY says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The router is there; its boot id, another after each restart, where it has one (UPnP 1.1).
    Alive(Option<u32>),
    Other,
}

pub fn notice(text: &str) -> Notice {
    if !text.starts_with("NOTIFY ") || header(text, "nts") != Some("ssdp:alive") {
        return Notice::Other;
    }
    Notice::Alive(boot_id(text))
}

pub fn boot_id(text: &str) -> Option<u32> {
    header(text, "bootid.upnp.org")?.parse().ok()
}

/// A header of an SSDP message, by its name in lower case.
pub fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// `http://ADDRESS[:PORT]/PATH`, where the address is one and not a name, into address and path.
pub fn split_url(url: &str) -> Option<(SocketAddr, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let address = authority.parse().or_else(|_| authority.parse().map(|ip| SocketAddr::new(ip, 80))).ok()?;
    is_path(path).then_some((address, path))
}

/// Whether `path` can stand in a request line as it is.
pub fn is_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    path.starts_with('/') && path.len() <= 512 && path.bytes().all(plain)
}

/// Where a router's port mapping service takes requests: on the router itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    pub port: u16,
    pub path: String,
    pub service: Service,
}

/// The services that map ports. A request must name the one that it is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    WanIp1,
    /// Of an IGD 2; it has AddAnyPortMapping.
    WanIp2,
    WanPpp1,
}

impl Service {
    pub const ALL: [Self; 3] = [Self::WanIp2, Self::WanIp1, Self::WanPpp1];

    /// As it stands in `urn:schemas-upnp-org:service:NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::WanIp1 => "WANIPConnection:1",
            Self::WanIp2 => "WANIPConnection:2",
            Self::WanPpp1 => "WANPPPConnection:1",
        }
    }
}

/// The first service of a description that maps ports; of several kinds, IGD 2's. A scan for the few tags that matter: the
/// rest of a description is of no use, and often not quite XML.
pub fn control_of(description: &str, location: SocketAddr) -> Option<Control> {
    let services = description.split("<service>").skip(1).filter_map(|service| {
        let service = service.split("</service>").next()?;
        let name = tag(service, "serviceType")?.strip_prefix("urn:schemas-upnp-org:service:")?;
        let kind = *Service::ALL.iter().find(|kind| kind.name() == name)?;
        let url = tag(service, "controlURL")?;
        let (address, path) = if url.starts_with("http:") {
            let (address, path) = split_url(url)?;
            (address, path.to_owned())
        } else if url.starts_with('/') {
            (location, url.to_owned())
        } else {
            (location, format!("/{url}"))
        };
        let on_router = address.ip() == location.ip() && is_path(&path);
        on_router.then_some(Control { port: address.port(), path, service: kind })
    });
    services.min_by_key(|control| Service::ALL.iter().position(|kind| *kind == control.service))
}

/// What stands between `<NAME …>` and `</NAME>`, the first time.
pub fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}"))?;
    let (attributes, rest) = rest.split_once('>')?;
    let whole = attributes.is_empty() || attributes.starts_with(|first: char| first.is_ascii_whitespace());
    Some(rest.split_once(&format!("</{name}>"))?.0.trim()).filter(|_| whole)
}

/// Whether an XML reader that calls itself for each level is safe with this.
pub fn is_plain(text: &str) -> bool {
    !text.contains("<!") && text.matches('<').count() <= MAX_TAGS
}

pub fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Where the body starts, how long it is to be (if told), and whether it comes in chunks.
struct Head {
    body: usize,
    length: Option<usize>,
    chunked: bool,
}

fn head(answer: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = str::from_utf8(&answer[..end]).map_err(|_| invalid("not a header"))?;
    let mut lines = text.split("\r\n");
    if !lines.next().is_some_and(|status| status.starts_with("HTTP/1.")) {
        return Err(invalid("not HTTP"));
    }
    // The status does not matter: a SOAP fault comes with 500, and its body says more.
    let mut head = Head { body: end + 4, length: None, chunked: false };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.trim().parse().map_err(|_| invalid("no length"))?;
            if length > MAX_LEN {
                return Err(invalid("the answer is too long"));
            }
            head.length = Some(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    Ok(Some(head))
}

/// The body, once all of it is there; `None` where more must come.
///
/// # Errors
/// What came is no HTTP that we read.
pub fn whole_body(answer: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let Some(head) = head(answer)? else { return Ok(None) };
    let body = &answer[head.body..];
    if head.chunked {
        return unchunk(body);
    }
    Ok(head.length.and_then(|length| body.get(..length)).map(<[u8]>::to_vec))
}

/// The body, when the connection has ended.
///
/// # Errors
/// It ended too soon, or what came is no HTTP that we read.
pub fn body_at_end(answer: &[u8]) -> io::Result<Vec<u8>> {
    match head(answer)? {
        Some(Head { body, length: None, chunked: false }) => Ok(answer[body..].to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// `SIZE-IN-HEX[;…]CRLF BYTES CRLF …` until a size of 0 (RFC 9112 section 7.1).
fn unchunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let line = str::from_utf8(&rest[..end]).map_err(|_| invalid("no chunk"))?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| invalid("no chunk"))?;
        if size > MAX_LEN {
            return Err(invalid("the answer is too long"));
        }
        if size == 0 {
            return Ok(Some(body));
        }
        let start = end + 2;
        let (Some(chunk), Some(next)) = (rest.get(start..start + size), rest.get(start + size + 2..)) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        rest = next;
    }
}

/// What a router tells as its external address, if it can be one: not this machine's own, nor the router's in our network.
pub fn usable(address: IpAddr, own: Ipv4Addr, router: Ipv4Addr) -> Option<Ipv4Addr> {
    let IpAddr::V4(address) = address.to_canonical() else { return None };
    let nowhere =
        address.octets()[0] == 0 || address.is_loopback() || address.is_multicast() || address.octets()[0] >= 240;
    (!nowhere && !address.is_link_local() && address != own && address != router).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTION: &str = "<root><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>\
         <controlURL>/wrong</controlURL></service><service>\n<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
         </serviceType><controlURL>URL</controlURL></service></root>";

    fn control(url: &str) -> Option<Control> {
        control_of(&DESCRIPTION.replace(">URL<", &format!(">{url}<")), location())
    }

    fn location() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 5000))
    }

    fn at(port: u16, path: &str) -> Option<Control> {
        Some(Control { port, path: path.to_owned(), service: Service::WanIp1 })
    }

    #[test]
    fn the_control_url_is_the_port_mapping_services_and_on_the_router() {
        assert_eq!(control("/ctl/IP"), at(5000, "/ctl/IP"));
        assert_eq!(control("ctl"), at(5000, "/ctl"));
        assert_eq!(control("http://192.0.2.1:80/x"), at(80, "/x"));
        for bad in ["http://203.0.113.9/x", "http://localhost/x", "/a b", "/a#b", "/\r\nHost: x"] {
            assert_eq!(control(bad), None, "{bad}");
        }
        for cut in 0..DESCRIPTION.len() {
            control_of(&DESCRIPTION[..cut], location());
        }
        assert_eq!(control_of(&DESCRIPTION.replace("WANIPConnection", "WANCommon"), location()), None);
    }

    #[test]
    fn of_several_services_igd_2s_is_asked() {
        let service = |name: &str| {
            format!(
                "<service><serviceType>urn:schemas-upnp-org:service:{name}</serviceType>\
                 <controlURL>/{name}</controlURL></service>"
            )
        };
        let of = |names: [&str; 2]| control_of(&names.map(service).concat(), location()).expect("one").service;
        assert_eq!(of(["WANPPPConnection:1", "WANIPConnection:2"]), Service::WanIp2);
        assert_eq!(of(["WANPPPConnection:1", "WANIPConnection:1"]), Service::WanIp1);
        assert_eq!(of(["WANPPPConnection:1", "WANIPConnection:9"]), Service::WanPpp1);
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let text = "HTTP/1.1 200 OK\r\nLocation: http://192.0.2.1:5000/d.xml\r\nBOOTID.UPNP.ORG:7\r\n\r\n";
        assert_eq!(header(text, "location"), Some("http://192.0.2.1:5000/d.xml"));
        assert_eq!(boot_id(text), Some(7));
        assert_eq!(header(text, "st"), None);
    }

    #[test]
    fn only_an_address_and_a_plain_path_make_a_url() {
        let split = |url| split_url(url).map(|(address, path)| (address.to_string(), path.to_owned()));
        assert_eq!(split("http://192.0.2.1:5000/a?b"), Some(("192.0.2.1:5000".to_owned(), "/a?b".to_owned())));
        assert_eq!(split("http://192.0.2.1"), Some(("192.0.2.1:80".to_owned(), "/".to_owned())));
        for bad in ["https://192.0.2.1/", "http://router/", "http://1.2.3.4/a b", "http://1.2.3.4/\r\nX: y", "", "/"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_carriers_address_is_an_external_one_and_our_own_network_is_not() {
        let (own, router) = (Ipv4Addr::new(192, 168, 1, 7), Ipv4Addr::new(192, 168, 1, 1));
        let usable = |text: &str| usable(text.parse().expect("an address"), own, router);
        for good in ["203.0.113.9", "100.64.0.9", "10.0.0.9", "::ffff:203.0.113.9"] {
            assert!(usable(good).is_some(), "{good}");
        }
        for bad in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1", "192.168.1.7"] {
            assert_eq!(usable(bad), None, "{bad}");
        }
        assert_eq!((usable("192.168.1.1"), usable("::1"), usable("2001:db8::1")), (None, None, None));
    }

    #[test]
    fn announcements_are_told_from_rubbish() {
        assert_eq!(announced_epoch(&[0, 128, 0, 0, 0, 0, 0, 1, 203, 0, 113, 9]), Some(1));
        let mut pcp = [0; 24];
        (pcp[0], pcp[1], pcp[11]) = (2, 128, 7);
        assert_eq!(announced_epoch(&pcp), Some(7));
        pcp[1] = 129;
        assert_eq!(announced_epoch(&pcp), None, "an answer to somebody's request");
        for bad in [&[][..], &[0; 24], &[2; 24], &[0, 128, 0, 0]] {
            assert_eq!(announced_epoch(bad), None);
        }
    }
}
