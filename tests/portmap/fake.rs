//! A router of our own, on real sockets, for what no real one does on demand: it lies, is late, refuses, or forgets in silence.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::enter::enter;
use super::lab::Router;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const HTTP: u16 = 5000;

/// How it behaves. The default is a good router that speaks nothing.
#[derive(Clone)]
pub struct Manner {
    pub natpmp: bool,
    pub pcp: bool,
    /// The service, as in a description.
    pub upnp: Option<&'static str>,
    pub external: Ipv4Addr,
    /// Which port PCP and NAT-PMP give for the one asked for.
    pub given: fn(u16) -> u16,
    /// The result code of PCP's and NAT-PMP's answers to a request to map.
    pub result: u8,
    /// What AddPortMapping answers for a port and a lease; 0 is success.
    pub error: fn(u16, u32) -> u16,
    /// Whom the table has at a port, where that is not who asked last.
    pub owner: fn(u16) -> Option<Ipv4Addr>,
    /// How late PCP and NAT-PMP map, and UPnP does anything by SOAP.
    pub late: [Duration; 3],
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            natpmp: false,
            pcp: false,
            upnp: None,
            external: Ipv4Addr::new(203, 0, 113, 9),
            given: |asked| asked,
            result: 0,
            error: |_, _| 0,
            owner: |_| None,
            late: [Duration::ZERO; 3],
        }
    }
}

/// What is mapped: protocol (`pcp`, `nat-pmp`, `upnp`) and external port.
pub type Table = BTreeMap<(&'static str, u16), String>;

struct Inner {
    manner: Manner,
    table: Table,
    start: Instant,
    /// Every request to map: by which protocol, at which port.
    asked: Vec<(&'static str, u16)>,
}

#[derive(Clone)]
pub struct Fake(Arc<Mutex<Inner>>);

impl Fake {
    /// In the place of the lab's miniupnpd.
    pub fn start(router: &mut Router, manner: Manner) -> Self {
        router.stop();
        let start = Instant::now();
        let fake = Self(Arc::new(Mutex::new(Inner { manner, table: Table::new(), start, asked: Vec::new() })));
        fake.grow_old();
        let (ready, started) = std::sync::mpsc::channel();
        let (namespace, router) = (router.namespace(), fake.clone());
        thread::spawn(move || {
            enter(&namespace).expect("the router's namespace can be entered");
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5351)).expect("PCP's port");
            let ssdp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 1900)).expect("SSDP's port");
            let http = TcpListener::bind((ADDRESS, HTTP)).expect("the HTTP port");
            let (by_udp, by_ssdp) = (router.clone(), router.clone());
            thread::spawn(move || by_udp.serve_udp(&udp));
            thread::spawn(move || by_ssdp.serve_ssdp(&ssdp));
            ready.send(()).expect("the test waits");
            for stream in http.incoming().flatten() {
                let router = router.clone();
                thread::spawn(move || router.serve_http(stream));
            }
        });
        started.recv().expect("the router starts");
        fake
    }

    pub fn table(&self) -> Table {
        self.0.lock().expect("no panic").table.clone()
    }

    pub fn asked(&self) -> Vec<(&'static str, u16)> {
        self.0.lock().expect("no panic").asked.clone()
    }

    /// It has been up for a while.
    pub fn grow_old(&self) {
        let start = Instant::now().checked_sub(Duration::from_secs(600));
        self.0.lock().expect("no panic").start = start.expect("the machine is up for longer");
    }

    /// Forgets everything, and says nothing.
    pub fn reboot(&self) {
        let mut inner = self.0.lock().expect("no panic");
        inner.table.clear();
        inner.start = Instant::now();
    }

    pub fn behave(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.0.lock().expect("no panic").manner);
    }

    fn manner(&self) -> Manner {
        self.0.lock().expect("no panic").manner.clone()
    }

    fn epoch(&self) -> [u8; 4] {
        let seconds = self.0.lock().expect("no panic").start.elapsed().as_secs();
        u32::try_from(seconds).expect("not long").to_be_bytes()
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 1100];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let (fake, request) = (self.clone(), buffer[..len].to_vec());
            let socket = socket.try_clone().expect("a socket");
            thread::spawn(move || {
                if let Some(answer) = fake.answer(&request) {
                    let _ = socket.send_to(&answer, from);
                }
            });
        }
    }

    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let manner = self.manner();
        match request {
            [0, 0] if manner.natpmp => Some([&[0, 128, 0, 0], &self.epoch()[..], &manner.external.octets()].concat()),
            [0, 1, ..] if manner.natpmp && request.len() == 12 => {
                let lease = u32::from_be_bytes(request[8..12].try_into().expect("four"));
                let given = self.map("nat-pmp", word(request, 6), lease, manner.late[1]);
                let result = [0, if lease == 0 { 0 } else { manner.result }];
                Some(
                    [&[0, 129], &result[..], &self.epoch(), &request[4..6], &given.to_be_bytes(), &request[8..12]]
                        .concat(),
                )
            }
            [2, 0, ..] if manner.pcp => Some([&[2, 128, 0, 0, 0, 0, 0, 0], &self.epoch()[..], &[0; 12]].concat()),
            [2, 1, ..] if manner.pcp && request.len() == 60 => {
                let lease = u32::from_be_bytes(request[4..8].try_into().expect("four"));
                let given = self.map("pcp", word(request, 42), lease, manner.late[0]);
                let result = if lease == 0 { 0 } else { manner.result };
                let external = manner.external.to_ipv6_mapped().octets();
                let head = [&[2, 129, 0, result], &request[4..8], &self.epoch(), &[0; 12]].concat();
                Some([&head, &request[24..42], &given.to_be_bytes(), &external[..]].concat())
            }
            _ => None,
        }
    }

    /// One client, one internal port: so one mapping for each protocol.
    fn map(&self, by: &'static str, asked: u16, lease: u32, late: Duration) -> u16 {
        thread::sleep(late);
        let mut inner = self.0.lock().expect("no panic");
        let known = inner.table.keys().find(|(known, _)| *known == by).copied();
        if lease == 0 {
            inner.table.retain(|(known, _), _| *known != by);
            return 0;
        }
        inner.asked.push((by, asked));
        if inner.manner.result != 0 {
            return 0;
        }
        let given = known.map_or_else(|| (inner.manner.given)(asked), |(_, port)| port);
        inner.table.insert((by, given), String::new());
        given
    }

    fn serve_ssdp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            if self.manner().upnp.is_some() {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                     LOCATION: http://{ADDRESS}:{HTTP}/d.xml\r\n\r\n"
                );
                let _ = socket.send_to(answer.as_bytes(), from);
            }
        }
    }

    fn serve_http(&self, mut stream: TcpStream) {
        let (mut request, mut part) = (String::new(), [0; 4096]);
        while !(request.ends_with("Envelope>") || request.starts_with("GET") && request.ends_with("\r\n\r\n")) {
            match stream.read(&mut part) {
                Ok(len) if len > 0 => request.push_str(&String::from_utf8_lossy(&part[..len])),
                _ => return,
            }
        }
        let manner = self.manner();
        let Some(service) = manner.upnp else { return };
        let urn = format!("urn:schemas-upnp-org:service:{service}");
        let body = if request.starts_with("GET") {
            format!("<root><service><serviceType>{urn}</serviceType><controlURL>/ctl</controlURL></service></root>")
        } else {
            thread::sleep(manner.late[2]);
            let action = request.split_once(&format!("SOAPAction: \"{urn}#")).map(|(_, rest)| rest.split('"').next());
            // A strict router: a request for another service than its own is none.
            let answer = match action.flatten() {
                Some(action) => self
                    .soap(action, &request)
                    .map(|inner| format!("<u:{action}Response xmlns:u=\"{urn}\">{inner}</u:{action}Response>")),
                None => Err(401),
            };
            let inner = answer.unwrap_or_else(|code| {
                format!(
                    "<s:Fault><faultcode>s:Client</faultcode><detail><UPnPError><errorCode>{code}</errorCode>\
                     <errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
                )
            });
            format!(
                "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{inner}</s:Body></s:Envelope>"
            )
        };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }

    fn soap(&self, action: &str, request: &str) -> Result<String, u16> {
        let argument = |name: &str| {
            let (_, rest) = request.split_once(&format!("<{name}>"))?;
            Some(rest.split_once('<')?.0.to_owned())
        };
        let number = |name: &str| argument(name).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        let port = u16::try_from(number("NewExternalPort")).unwrap_or_default();
        let mut inner = self.0.lock().expect("no panic");
        match action {
            "GetExternalIPAddress" => {
                Ok(format!("<NewExternalIPAddress>{}</NewExternalIPAddress>", inner.manner.external))
            }
            "AddPortMapping" => {
                inner.asked.push(("upnp", port));
                let error = (inner.manner.error)(port, number("NewLeaseDuration"));
                if error != 0 {
                    return Err(error);
                }
                let owner = (inner.manner.owner)(port).map(|owner| owner.to_string());
                inner.table.insert(("upnp", port), owner.or(argument("NewInternalClient")).unwrap_or_default());
                Ok(String::new())
            }
            "AddAnyPortMapping" if inner.manner.upnp == Some("WANIPConnection:2") => {
                inner.table.insert(("upnp", port), argument("NewInternalClient").unwrap_or_default());
                Ok(format!("<NewReservedPort>{port}</NewReservedPort>"))
            }
            "DeletePortMapping" => inner.table.remove(&("upnp", port)).map(|_| String::new()).ok_or(714),
            "GetSpecificPortMappingEntry" => {
                let client = inner.table.get(&("upnp", port)).ok_or(714_u16)?;
                Ok(format!("<NewInternalPort>4275</NewInternalPort><NewInternalClient>{client}</NewInternalClient>"))
            }
            _ => Err(401),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The address that a peer would send to.
pub fn external(port: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], port))
}
