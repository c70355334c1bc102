//! UPnP: finds the router's port mapping service, maps and removes.
//!
//! ```text
//! M-SEARCH  UDP, to the group 239.255.255.250:1900 and to the router itself, for an IGD 1 and an IGD 2
//! answer    LOCATION: http://ROUTER:PORT/PATH, BOOTID.UPNP.ORG: N   ── GET ── description: a service's controlURL
//! SOAP      AddPortMapping, GetExternalIPAddress, DeletePortMapping  (igd-next writes and reads these)
//!           GetSpecificPortMappingEntry; AddAnyPortMapping, of an IGD 2 (igd-next has none, or asks for a dynamic port)
//! ```
//!
//! Only the default route's router is listened to, and only addresses of its own are asked: any host on the LAN may answer a
//! search, and one that sent us elsewhere would have us make requests in its name.
//! igd-next's own search is not used: it believes any answer, and ignores the timeout that it is given while it fetches.
//!
//! What the router says it mapped is looked up in its table: some say yes, and leave the port to who had it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use igd_next::aio::{Gateway as Igd, Provider};
use igd_next::{AddPortError, PortMappingProtocol, RemovePortError, RequestError};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::answers::{Control, Service, boot_id, control_of, header, split_url, tag, usable};
use super::http::{self, Bounded};
use super::state::Record;
use super::{Asked, Gateway, Grant};

/// SSDP's group and port (UPnP Device Architecture 1.1, section 1).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
pub const PORT: u16 = 1900;
/// UDP loses packets, so a search is sent three times (the architecture says so too): at these times.
const SEARCHES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(1500)];
/// How long to wait for an answer after the last search. MX is 1 s, and a router may be slow.
const LAST_WAIT: Duration = Duration::from_secs(20);
/// Every IGD 2 answers a search for an IGD 1, but not every one knows that.
const DEVICES: [&str; 2] = ["InternetGatewayDevice:1", "InternetGatewayDevice:2"];
/// Answers that are looked at in one search; a router gives one for each of its services.
const MAX_ANSWERS: usize = 64;
/// What is mapped is known by then; a slow router's table is not waited for.
const LOOK_UP: Duration = Duration::from_millis(500);
/// What a router's owner sees in the list of mappings.
const DESCRIPTION: &str = "p2ptund";

/// A router that maps ports.
pub struct Device {
    pub control: Control,
    /// Another number after each restart, where the router tells it.
    pub boot_id: Option<u32>,
}

/// Searches for the router's service.
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
            for device in DEVICES {
                let search = format!(
                    "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:{PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                     ST: urn:schemas-upnp-org:device:{device}\r\n\r\n"
                );
                if let Err(error) = socket.send_to(search.as_bytes(), to).await {
                    tracing::debug!(%error, "sending a UPnP search");
                }
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
            let boot_id = boot_id(&text);
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

/// Maps one of the record's ports, or renews its one; puts the granted port and whether it is for ever into the record.
pub async fn map(record: &mut Record, lease: Duration) -> Asked {
    let Some(igd) = igd(record) else { return Asked::Refused };
    let added = match add(&igd, record, lease).await {
        Ok(added) => added,
        Err(asked) => return asked,
    };
    let port = added.port;
    record.granted(port);
    record.permanent = added.permanent;
    let external = match igd.get_external_ip().await {
        Ok(address) => usable(address, record.source, record.gateway),
        Err(_) => None,
    };
    match external {
        Some(external) => {
            let external = SocketAddr::from((external, port));
            Asked::Granted(Grant { external, lifetime: lease, epoch: None })
        }
        None => {
            tracing::debug!("the router tells no external address that can be one");
            remove(record).await;
            Asked::Refused
        }
    }
}

/// What the router mapped.
struct Added {
    port: u16,
    permanent: bool,
}

/// AddPortMapping at one port after the other (sections 2.4.16 and, for the errors, 2.4.16.4 of WANIPConnection:1); then, of
/// an IGD 2, AddAnyPortMapping.
async fn add(igd: &Igd<Bounded>, record: &Record, lease: Duration) -> Result<Added, Asked> {
    let local = SocketAddr::from((record.source, record.local_port));
    let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1);
    let mut asked = if record.permanent { 0 } else { seconds };
    let mut ports: Vec<u16> = record.ports().collect();
    ports.reverse();
    while let Some(port) = ports.pop() {
        match igd.add_port(PortMappingProtocol::UDP, port, local, asked, DESCRIPTION).await {
            Ok(()) => {
                let ours = tokio::time::timeout(LOOK_UP, is_ours(igd, record, port)).await;
                if !matches!(ours, Ok(Ok(false))) {
                    return Ok(Added { port, permanent: asked == 0 });
                }
                tracing::debug!(port, "the router said that it maps the port, and does not");
            }
            Err(AddPortError::OnlyPermanentLeasesSupported) if asked != 0 => {
                asked = 0;
                ports.push(port);
            }
            // 402 and 501 come from routers that know no leases and do not say so with 725.
            Err(AddPortError::RequestError(RequestError::ErrorCode(402 | 501, _))) if asked != 0 => {
                asked = 0;
                ports.push(port);
            }
            // 729, of an IGD 2, is 718 where another protocol has the port.
            Err(AddPortError::PortInUse | AddPortError::RequestError(RequestError::ErrorCode(729, _))) => {}
            // No other port needs asking for.
            Err(AddPortError::SamePortValuesRequired) => ports.retain(|other| *other == record.local_port),
            Err(error) => {
                tracing::debug!(error = %short(&error), "UPnP does not map the port");
                return Err(match error {
                    AddPortError::RequestError(error) if is_away(&error) => Asked::Silent,
                    _ => Asked::Refused,
                });
            }
        }
    }
    match record.others.last() {
        // Not for a renewal: that is of one port.
        Some(wish) if record.control.as_ref().is_some_and(|control| control.service == Service::WanIp2) => {
            add_any(igd, record, *wish, asked).await
        }
        _ => Err(Asked::Refused),
    }
}

/// AddAnyPortMapping (section 2.5.19 of WANIPConnection:2): the router picks, near what we wish where it likes.
async fn add_any(igd: &Igd<Bounded>, record: &Record, wish: u16, lease: u32) -> Result<Added, Asked> {
    let arguments = [
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", wish.to_string()),
        ("NewProtocol", "UDP".to_owned()),
        ("NewInternalPort", record.local_port.to_string()),
        ("NewInternalClient", record.source.to_string()),
        ("NewEnabled", "1".to_owned()),
        ("NewPortMappingDescription", DESCRIPTION.to_owned()),
        ("NewLeaseDuration", lease.to_string()),
    ];
    let answer = call(igd, "AddAnyPortMapping", &arguments).await.map_err(|_| Asked::Silent)?;
    let port = tag(&answer, "NewReservedPort").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    match port {
        Some(port) => Ok(Added { port, permanent: lease == 0 }),
        None => {
            tracing::debug!(error = tag(&answer, "errorCode"), "UPnP maps no port");
            Err(Asked::Refused)
        }
    }
}

/// Removes the record's mapping; `true` where it is gone then. Where the router does not answer at the place of before, it
/// is looked for again: after a restart it may be at another.
pub async fn remove(record: &Record) -> bool {
    if let Some(gone) = remove_at(record).await {
        return gone;
    }
    let Some(device) = find(record.router()).await else { return false };
    let mut moved = record.clone();
    moved.control = Some(device.control);
    remove_at(&moved).await == Some(true)
}

/// `None`: nobody answers there.
async fn remove_at(record: &Record) -> Option<bool> {
    let Some(igd) = igd(record) else { return Some(false) };
    let mut all = true;
    for port in record.ports() {
        // The request to delete names the external port alone, and by now that may be another host's.
        match is_ours(&igd, record, port).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) if is_away(&error) => return None,
            // A router without that request; what it granted within the lease is most likely still ours.
            Err(_) if record.others.is_empty() => {}
            Err(_) => {
                all = false;
                continue;
            }
        }
        match igd.remove_port(PortMappingProtocol::UDP, port).await {
            Ok(()) | Err(RemovePortError::NoSuchPortMapping) => {}
            Err(RemovePortError::RequestError(error)) if is_away(&error) => return None,
            Err(_) => all = false,
        }
    }
    Some(all)
}

/// Whether the mapping is as it was told; `None`: the router does not say.
pub async fn holds(record: &Record, external: Ipv4Addr) -> Option<bool> {
    let igd = igd(record)?;
    match is_ours(&igd, record, record.external_port).await {
        Ok(true) => Some(igd.get_external_ip().await.ok()? == IpAddr::V4(external)),
        Ok(false) => Some(false),
        // A restart may have moved the service; renewing looks for it.
        Err(RequestError::IoError(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Some(false),
        Err(_) => None,
    }
}

/// Whether nobody answers there, or not in time; rubbish is an answer.
fn is_away(error: &RequestError) -> bool {
    matches!(error, RequestError::IoError(error) if error.kind() != std::io::ErrorKind::InvalidData)
}

/// Whether the external port leads to us (GetSpecificPortMappingEntry, section 2.4.15 of WANIPConnection:1).
async fn is_ours(igd: &Igd<Bounded>, record: &Record, port: u16) -> Result<bool, RequestError> {
    let arguments =
        [("NewRemoteHost", String::new()), ("NewExternalPort", port.to_string()), ("NewProtocol", "UDP".to_owned())];
    let answer = call(igd, "GetSpecificPortMappingEntry", &arguments).await?;
    match (tag(&answer, "NewInternalClient"), tag(&answer, "NewInternalPort")) {
        (Some(client), Some(port)) => Ok(client.parse() == Ok(record.source) && port.parse() == Ok(record.local_port)),
        // 714: no such mapping.
        _ if tag(&answer, "errorCode") == Some("714") => Ok(false),
        _ => Err(RequestError::InvalidResponse(String::new())),
    }
}

/// A request in igd-next's manner; the answer as it is, a fault too.
async fn call(igd: &Igd<Bounded>, action: &str, arguments: &[(&str, String)]) -> Result<String, RequestError> {
    let service = format!("urn:schemas-upnp-org:service:{}", Service::WanIp1.name());
    let arguments: String = arguments.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
    let body = format!(
        "<?xml version=\"1.0\"?>\n<s:Envelope s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\" \
         xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
         <u:{action} xmlns:u=\"{service}\">{arguments}</u:{action}></s:Body></s:Envelope>"
    );
    Bounded::send_async(&igd.to_string(), &format!("\"{service}#{action}\""), &body).await
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
        control_url: format!("{}#{}", control.path, control.service.name()),
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

async fn describe(router: Ipv4Addr, location: &str) -> Option<Control> {
    let (address, path) = split_url(location)?;
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

/// A router's error may carry its whole answer; a log line needs the start.
fn short(error: &AddPortError) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        record.control = Some(Control { port, path: "/ctl".to_owned(), service: Service::WanIp1 });
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

    fn granted(asked: Asked) -> Option<Grant> {
        match asked {
            Asked::Granted(grant) => Some(grant),
            Asked::Refused | Asked::Silent => None,
        }
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
            let grant = granted(map(&mut record, Duration::from_secs(60)).await).expect("maps");
            assert_eq!(grant.external.to_string(), "100.64.0.9:4275", "a carrier's address is told as it is");
            assert!(record.permanent, "{code}");
            assert!(!record.has_expired());
            assert!(granted(map(&mut record, Duration::from_secs(60)).await).is_some());
        }
    }

    #[tokio::test]
    async fn a_hostile_router_maps_nothing_and_harms_nothing() {
        let deep = format!("{}{}", "<a>".repeat(20_000), "</a>".repeat(20_000));
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\">]><a>&b;</a>".to_owned();
        for bad in [external("0.0.0.0"), external("224.0.0.1"), external("::1"), deep, bomb, String::new(), fault(606)]
        {
            let mut record = router(move |_, _| bad.clone()).await;
            assert!(granted(map(&mut record, Duration::from_secs(60)).await).is_none());
            remove(&record).await;
        }
        let nested = soap(&"<a>".repeat(60)) + &"</a>".repeat(60);
        let mut record = router(move |_, _| nested.clone()).await;
        assert!(granted(map(&mut record, Duration::from_secs(60)).await).is_none());
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
        assert!(granted(map(&mut record, Duration::from_secs(60)).await).is_none());
        assert_eq!(tried.load(std::sync::atomic::Ordering::Relaxed), record.ports().count());
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
