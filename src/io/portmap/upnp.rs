//! UPnP: finds the router's port mapping service, maps and removes.
//!
//! ```text
//! M-SEARCH  UDP, to the group 239.255.255.250:1900 and to the router itself
//! answer    LOCATION: http://ROUTER:PORT/PATH, BOOTID.UPNP.ORG: N   ── GET ── description: a service's controlURL
//! SOAP      GetExternalIPAddress, AddPortMapping, DeletePortMapping  (igd-next writes and reads these)
//! ```
//!
//! Only the default route's router is listened to, and only addresses of its own are asked: any host on the LAN may answer a
//! search, and one that sent us elsewhere would have us make requests in its name.
//! igd-next's own search is not used: it believes any answer, and ignores the timeout that it is given while it fetches.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use igd_next::aio::{Gateway as Igd, Provider};
use igd_next::{AddPortError, PortMappingProtocol, RemovePortError, RequestError};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::http::{self, Bounded};
use super::state::Record;
use super::{Gateway, Grant, usable};

/// SSDP's group and port (UPnP Device Architecture 1.1, section 1).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
pub const PORT: u16 = 1900;
/// UDP loses packets, so a search is sent three times (the architecture says so too): at these times.
const SEARCHES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(1500)];
/// How long to wait for an answer after the last search: MX is 1 s.
const LAST_WAIT: Duration = Duration::from_millis(1500);
/// Answers that are looked at in one search; a router gives one for each of its services.
const MAX_ANSWERS: usize = 64;
/// Where 718 says that the equal port is taken, so many others are tried.
const OTHER_PORTS: usize = 5;
/// What a router's owner sees in the list of mappings.
const DESCRIPTION: &str = "p2ptund";

/// Where requests go: on the router itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    pub port: u16,
    pub path: String,
}

/// A router that maps ports.
pub struct Device {
    pub control: Control,
    /// Another number after each restart, where the router tells it.
    pub boot_id: Option<u32>,
}

/// Searches for the router's service. `None` after some 4 s without one.
pub async fn find(router: Gateway) -> Option<Device> {
    let socket = match search_socket(router.source) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "no UPnP search");
            return None;
        }
    };
    let mut last = None;
    let start = tokio::time::Instant::now();
    let mut answers = 0;
    for (i, at) in SEARCHES.iter().enumerate() {
        for to in [SocketAddr::from((GROUP, PORT)), SocketAddr::from((router.address, PORT))] {
            let search = format!(
                "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:{PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                 ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
            );
            if let Err(error) = socket.send_to(search.as_bytes(), to).await {
                tracing::debug!(%error, "sending a UPnP search");
            }
        }
        let until = start + SEARCHES.get(i + 1).copied().unwrap_or(*at + LAST_WAIT);
        let mut buffer = [0; 2048];
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buffer)).await {
            // ICMP's word that the router has no port 1900 is no reason not to wait for the group's answer.
            let Ok((len, from)) = received else { continue };
            if from.ip() != IpAddr::V4(router.address) {
                continue;
            }
            answers += 1;
            if answers > MAX_ANSWERS {
                return None;
            }
            let text = String::from_utf8_lossy(&buffer[..len]);
            let Some(location) = header(&text, "location").map(str::to_owned) else { continue };
            let boot_id = header(&text, "bootid.upnp.org").and_then(|id| id.parse().ok());
            // Each of the router's answers leads to the same place; asking there once is enough.
            if last.as_ref() == Some(&location) {
                continue;
            }
            if let Some(control) = describe(router.address, &location).await {
                return Some(Device { control, boot_id });
            }
            last = Some(location);
        }
    }
    None
}

/// Maps the record's port, or (not `fresh`) renews it; puts the granted port and whether it is for ever into the record.
pub async fn map(record: &mut Record, lease: Duration, fresh: bool) -> Option<Grant> {
    let igd = igd(record)?;
    let IpAddr::V4(external) = usable(igd.get_external_ip().await.ok()?)? else { return None };
    let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1);
    let local = SocketAddr::from((record.source, record.local_port));
    let mut port = record.external_port;
    let mut asked = if record.permanent { 0 } else { seconds };
    let mut others = if fresh { OTHER_PORTS } else { 0 };
    loop {
        match igd.add_port(PortMappingProtocol::UDP, port, local, asked, DESCRIPTION).await {
            Ok(()) => break,
            Err(AddPortError::OnlyPermanentLeasesSupported) if asked != 0 => asked = 0,
            // 402 and 501 come from routers that know no leases and do not say so with 725.
            Err(AddPortError::RequestError(RequestError::ErrorCode(402 | 501, _))) if asked != 0 => asked = 0,
            Err(AddPortError::PortInUse) if others > 0 => {
                others -= 1;
                port = random_port()?;
            }
            Err(error) => {
                tracing::debug!(error = %short(&error), "UPnP does not map the port");
                return None;
            }
        }
    }
    record.external_port = port;
    record.permanent = asked == 0;
    Some(Grant { external: SocketAddr::from((external, port)), lifetime: lease })
}

/// Removes the record's mapping; `true` where it is gone then. Where the router does not answer at the place of before, it
/// is looked for again: after a restart it may be at another.
pub async fn remove(record: &Record) -> bool {
    if let Some(gone) = remove_at(record).await {
        return gone;
    }
    let router = Gateway { address: record.gateway, source: record.source, interface: 0 };
    let Some(device) = find(router).await else { return false };
    let mut moved = record.clone();
    moved.control = Some(device.control);
    remove_at(&moved).await == Some(true)
}

/// `None`: nobody answers there.
async fn remove_at(record: &Record) -> Option<bool> {
    let Some(igd) = igd(record) else { return Some(false) };
    // The request to delete names the external port alone, and by now that may be another host's.
    match is_ours(&igd, record).await {
        Ok(true) => {}
        Ok(false) => return Some(true),
        Err(RequestError::IoError(_)) => return None,
        Err(_) => return Some(false),
    }
    match igd.remove_port(PortMappingProtocol::UDP, record.external_port).await {
        Ok(()) | Err(RemovePortError::NoSuchPortMapping) => Some(true),
        Err(RemovePortError::RequestError(RequestError::IoError(_))) => None,
        Err(_) => Some(false),
    }
}

/// Whether the external port leads to us (GetSpecificPortMappingEntry, section 2.4.15; igd-next lacks it).
async fn is_ours(igd: &Igd<Bounded>, record: &Record) -> Result<bool, RequestError> {
    let action = "\"urn:schemas-upnp-org:service:WANIPConnection:1#GetSpecificPortMappingEntry\"";
    let body = format!(
        "<?xml version=\"1.0\"?>\n<s:Envelope s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\" \
         xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
         <u:GetSpecificPortMappingEntry xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">\
         <NewRemoteHost></NewRemoteHost><NewExternalPort>{}</NewExternalPort><NewProtocol>UDP</NewProtocol>\
         </u:GetSpecificPortMappingEntry></s:Body></s:Envelope>",
        record.external_port
    );
    let answer = Bounded::send_async(&igd.to_string(), action, &body).await?;
    Ok(tag(&answer, "NewInternalClient").is_some_and(|client| client.parse() == Ok(record.source))
        && tag(&answer, "NewInternalPort").is_some_and(|port| port.parse() == Ok(record.local_port)))
}

/// igd-next's view of the router. The arguments and their order are the standard's (WANIPConnection:1, sections 2.4.16 and
/// 2.4.18), so the router's own description of them need not be fetched.
fn igd(record: &Record) -> Option<Igd<Bounded>> {
    let control = record.control.as_ref()?;
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let add = list(&[
        "NewRemoteHost",
        "NewExternalPort",
        "NewProtocol",
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ]);
    let delete = list(&["NewRemoteHost", "NewExternalPort", "NewProtocol"]);
    Some(Igd {
        addr: SocketAddr::from((record.gateway, control.port)),
        root_url: String::new(),
        control_url: control.path.clone(),
        control_schema_url: String::new(),
        control_schema: HashMap::from([("AddPortMapping".to_owned(), add), ("DeletePortMapping".to_owned(), delete)]),
        provider: Bounded,
    })
}

fn search_socket(source: Ipv4Addr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.set_multicast_if_v4(&source)?;
    // The architecture's default; the router is next door anyway.
    socket.set_multicast_ttl_v4(2)?;
    UdpSocket::from_std(socket.into())
}

/// A header of an SSDP message, by its name in lower case.
pub fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

async fn describe(router: Ipv4Addr, location: &str) -> Option<Control> {
    let (address, path) = http::split_url(location)?;
    if address.ip() != IpAddr::V4(router) {
        tracing::debug!(%address, "a UPnP answer points away from the router");
        return None;
    }
    match http::fetch(address, path).await {
        Ok(description) => control_of(&description, address),
        Err(error) => {
            tracing::debug!(%error, "the router's UPnP description can't be read");
            None
        }
    }
}

/// The control URL of the first service that maps ports. A scan for the few tags that matter: the rest of a description is
/// of no use, and often not quite XML.
fn control_of(description: &str, location: SocketAddr) -> Option<Control> {
    description.split("<service>").skip(1).find_map(|service| {
        let service = service.split("</service>").next()?;
        let kind = tag(service, "serviceType")?;
        let maps = ["WANIPConnection:", "WANPPPConnection:"]
            .iter()
            .any(|name| kind.strip_prefix("urn:schemas-upnp-org:service:").is_some_and(|kind| kind.starts_with(name)));
        let url = tag(service, "controlURL").filter(|_| maps)?;
        let (address, path) = if url.starts_with("http:") {
            let (address, path) = http::split_url(url)?;
            (address, path.to_owned())
        } else if url.starts_with('/') {
            (location, url.to_owned())
        } else {
            (location, format!("/{url}"))
        };
        (address.ip() == location.ip() && http::is_path(&path)).then(|| Control { port: address.port(), path })
    })
}

/// What stands between `<NAME …>` and `</NAME>`, the first time.
fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}"))?;
    let (attributes, rest) = rest.split_once('>')?;
    let whole = attributes.is_empty() || attributes.starts_with(|first: char| first.is_ascii_whitespace());
    Some(rest.split_once(&format!("</{name}>"))?.0.trim()).filter(|_| whole)
}

/// A port that needs no privilege; 718 told that the equal one is taken, so any is as good as another.
fn random_port() -> Option<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).ok()?;
    Some(1024 + u16::from_ne_bytes(bytes) % (u16::MAX - 1024))
}

/// A router's error may carry its whole answer; a log line needs the start.
fn short(error: &AddPortError) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "<root><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>\
         <controlURL>/wrong</controlURL></service><service>\n<serviceType>urn:schemas-upnp-org:service:WANIPConnection:2\
         </serviceType><controlURL>URL</controlURL></service></root>";

    fn control(url: &str) -> Option<Control> {
        control_of(&SERVICE.replace(">URL<", &format!(">{url}<")), location())
    }

    fn location() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 5000))
    }

    fn at(port: u16, path: &str) -> Option<Control> {
        Some(Control { port, path: path.to_owned() })
    }

    #[test]
    fn the_control_url_is_the_port_mapping_services_and_on_the_router() {
        assert_eq!(control("/ctl/IP"), at(5000, "/ctl/IP"));
        assert_eq!(control("ctl"), at(5000, "/ctl"));
        assert_eq!(control("http://192.0.2.1:80/x"), at(80, "/x"));
        for bad in ["http://203.0.113.9/x", "http://localhost/x", "/a b", "/\r\nHost: x"] {
            assert_eq!(control(bad), None, "{bad}");
        }
        for cut in 0..SERVICE.len() {
            control_of(&SERVICE[..cut], location());
        }
        assert_eq!(control_of(&SERVICE.replace("WANIPConnection", "WANCommon"), location()), None);
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let text = "HTTP/1.1 200 OK\r\nLocation: http://192.0.2.1:5000/d.xml\r\nBOOTID.UPNP.ORG:7\r\n\r\n";
        assert_eq!(header(text, "location"), Some("http://192.0.2.1:5000/d.xml"));
        assert_eq!(header(text, "bootid.upnp.org"), Some("7"));
        assert_eq!(header(text, "st"), None);
    }

    /// A router on the loopback that answers each request by `answer(SOAP action, body)`; its record.
    async fn router(answer: impl Fn(&str, &str) -> String + Send + 'static) -> Record {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 8192];
                let mut len = 0;
                while !String::from_utf8_lossy(&request[..len]).trim_end().ends_with("Envelope>") {
                    len += stream.read(&mut request[len..]).await.expect("reads");
                }
                let text = String::from_utf8_lossy(&request[..len]).into_owned();
                let action = header(&text, "soapaction").and_then(|value| value.split('#').nth(1)).expect("an action");
                let body = answer(action.trim_end_matches('"'), &text);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.expect("writes");
            }
        });
        let local = Ipv4Addr::LOCALHOST;
        let router = Gateway { address: local, source: local, interface: 1 };
        let mut record = Record::new(super::super::Protocol::Upnp, router, 4275, Duration::from_secs(60));
        record.control = Some(Control { port, path: "/ctl".to_owned() });
        record
    }

    fn soap(inner: &str) -> String {
        format!("<s:Envelope xmlns:s=\"s\"><s:Body>{inner}</s:Body></s:Envelope>")
    }

    fn fault(code: u16) -> String {
        soap(&format!(
            "<s:Fault><detail><UPnPError><errorCode>{code}</errorCode><errorDescription>no</errorDescription>\
             </UPnPError></detail></s:Fault>"
        ))
    }

    fn external(address: &str) -> String {
        soap(&format!(
            "<u:GetExternalIPAddressResponse xmlns:u=\"u\"><NewExternalIPAddress>{address}</NewExternalIPAddress>\
             </u:GetExternalIPAddressResponse>"
        ))
    }

    fn done(action: &str) -> String {
        soap(&format!("<u:{action}Response xmlns:u=\"u\"></u:{action}Response>"))
    }

    #[tokio::test]
    async fn a_router_that_knows_no_leases_maps_for_ever() {
        for code in [725, 402, 501] {
            let mut record = router(move |action, body| match action {
                "GetExternalIPAddress" => external("100.64.0.9"),
                _ if body.contains("<NewLeaseDuration>0<") => done(action),
                _ => fault(code),
            })
            .await;
            let grant = map(&mut record, Duration::from_secs(60), true).await.expect("maps");
            assert_eq!(grant.external.to_string(), "100.64.0.9:4275", "a carrier's address is told as it is");
            assert!(record.permanent, "{code}");
            assert!(!record.has_expired());
            assert!(map(&mut record, Duration::from_secs(60), false).await.is_some());
        }
    }

    #[tokio::test]
    async fn a_hostile_router_maps_nothing_and_harms_nothing() {
        let deep = format!("{}{}", "<a>".repeat(20_000), "</a>".repeat(20_000));
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\">]><a>&b;</a>".to_owned();
        for bad in [external("0.0.0.0"), external("224.0.0.1"), external("::1"), deep, bomb, String::new(), fault(606)]
        {
            let mut record = router(move |_, _| bad.clone()).await;
            assert!(map(&mut record, Duration::from_secs(60), true).await.is_none());
            remove(&record).await;
        }
        let nested = soap(&"<a>".repeat(60)) + &"</a>".repeat(60);
        let mut record = router(move |_, _| nested.clone()).await;
        assert!(map(&mut record, Duration::from_secs(60), true).await.is_none());
    }

    #[tokio::test]
    async fn taken_ports_are_tried_a_few_times_and_no_more() {
        let tried = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = tried.clone();
        let mut record = router(move |action, _| {
            if action == "GetExternalIPAddress" {
                return external("203.0.113.9");
            }
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            fault(718)
        })
        .await;
        assert!(map(&mut record, Duration::from_secs(60), true).await.is_none());
        assert_eq!(tried.load(std::sync::atomic::Ordering::Relaxed), 1 + OTHER_PORTS);
    }

    #[tokio::test]
    async fn another_hosts_mapping_is_not_removed() {
        for (client, ours) in [("127.0.0.1", true), ("127.0.0.2", false)] {
            let deleted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let note = deleted.clone();
            let record = router(move |action, _| {
                if action == "DeletePortMapping" {
                    note.store(true, std::sync::atomic::Ordering::Relaxed);
                    return done(action);
                }
                soap(&format!(
                    "<u:R xmlns:u=\"u\"><NewInternalPort>4275</NewInternalPort>\
                     <NewInternalClient dt=\"string\">{client}</NewInternalClient></u:R>"
                ))
            })
            .await;
            assert!(remove(&record).await);
            assert_eq!(deleted.load(std::sync::atomic::Ordering::Relaxed), ours);
        }
    }

    #[tokio::test]
    async fn an_answer_that_points_away_from_the_router_is_not_followed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let away = format!("http://{}/d.xml", listener.local_addr().expect("bound"));
        assert!(describe(Ipv4Addr::new(192, 0, 2, 1), &away).await.is_none());
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "nobody was asked");
    }
}
