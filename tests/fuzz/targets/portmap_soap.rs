//! A router's SOAP answer, given to igd-next as every answer that we ask for, once it has passed our own bounds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use igd_next::aio::{Gateway, Provider};
use igd_next::{PortMappingProtocol, RequestError};
use p2ptund::io::portmap::answers::{is_plain, tag, usable};

thread_local! {
    static ANSWER: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Brings the fuzzer's text, whatever is asked.
struct Canned;

impl Provider for Canned {
    fn send_async<'url, 'action, 'body, 'out>(
        _: &'url str,
        _: &'action str,
        _: &'body str,
    ) -> Pin<Box<dyn Future<Output = Result<String, RequestError>> + Send + 'out>>
    where
        'url: 'out,
        'action: 'out,
        'body: 'out,
    {
        Box::pin(std::future::ready(Ok(ANSWER.with_borrow(Clone::clone))))
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing is waited for"),
    }
}

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for name in ["NewInternalClient", "NewInternalPort", "NewReservedPort", "errorCode"] {
        if let Some(value) = tag(text, name) {
            assert!(text.contains(value));
        }
    }
    if !is_plain(text) {
        return;
    }
    ANSWER.set(text.to_owned());
    let igd = Gateway {
        addr: SocketAddr::from(([192, 0, 2, 1], 5000)),
        root_url: String::new(),
        control_url: "/ctl".to_owned(),
        control_schema_url: String::new(),
        control_schema: HashMap::from(
            ["AddPortMapping", "DeletePortMapping"].map(|name| (name.to_owned(), Vec::new())),
        ),
        provider: Canned,
    };
    if let Ok(address) = now(igd.get_external_ip()) {
        let (own, router) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 1));
        if let Some(external) = usable(address, own, router) {
            assert!(!external.is_unspecified() && !external.is_loopback() && !external.is_multicast());
            assert!(external != own && external != router && IpAddr::V4(external) == address.to_canonical());
        }
    }
    let local = SocketAddr::from(([192, 0, 2, 7], 4275));
    let _ = now(igd.add_port(PortMappingProtocol::UDP, 4275, local, 60, "p2ptund"));
    let _ = now(igd.remove_port(PortMappingProtocol::UDP, 4275));
}
