//! A router's word that it restarted, and so forgot its mappings. Routers say so unasked, to everybody on the LAN:
//!
//! ```text
//! NAT-PMP and PCP   from port 5351 to 224.0.0.1:5350, at the start and when the external address changes
//! UPnP              NOTIFY to 239.255.255.250:1900 every few minutes, with another BOOTID.UPNP.ORG after a restart
//! ```
//!
//! Listening sends nothing but one IGMP report. Whoever forges an announcement gets us to renew the mapping early, no
//! oftener than the keeper lets through. Where a port is taken by another program that does not share it, restarts show
//! at the next renewal.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::{Gateway, upnp};

/// RFC 6886 section 3.2.1 and RFC 6887 section 14.1.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const CLIENT_PORT: u16 = 5350;

/// The sockets that listen, once a router is known.
#[derive(Default)]
pub struct Announcements {
    router: Option<Gateway>,
    pcp: Option<UdpSocket>,
    ssdp: Option<UdpSocket>,
    boot_id: Option<u32>,
}

impl Announcements {
    /// Listens to this router from now on, and to no other.
    pub fn listen(&mut self, router: Gateway) {
        if self.router == Some(router) {
            return;
        }
        let open = |group, port| match open(group, port, router.source) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::debug!(%error, port, "not listening to the router's announcements");
                None
            }
        };
        *self = Self {
            router: Some(router),
            pcp: open(GROUP, CLIENT_PORT),
            ssdp: open(upnp::GROUP, upnp::PORT),
            boot_id: None,
        };
    }

    /// What the router's answer to a search told.
    pub fn set_boot_id(&mut self, boot_id: Option<u32>) {
        self.boot_id = boot_id.or(self.boot_id);
    }

    /// Waits until the router says that it restarted; for ever where nothing listens. Cancel-safe.
    pub async fn restarted(&mut self) {
        let Some(router) = self.router else { return std::future::pending().await };
        let (mut pcp, mut ssdp) = ([0; 64], [0; 2048]);
        loop {
            tokio::select! {
                received = receive(self.pcp.as_ref(), &mut pcp) => {
                    // Only the start is said this way, so what it says in detail does not matter.
                    if matches!(received, Ok((len, from)) if len >= 12 && from.ip() == IpAddr::V4(router.address)) {
                        return;
                    }
                }
                received = receive(self.ssdp.as_ref(), &mut ssdp) => {
                    if let Ok((len, from)) = received
                        && from.ip() == IpAddr::V4(router.address)
                        && self.is_restart(&String::from_utf8_lossy(&ssdp[..len]))
                    {
                        return;
                    }
                }
            }
        }
    }

    fn is_restart(&mut self, text: &str) -> bool {
        let alive = text.starts_with("NOTIFY ") && upnp::header(text, "nts") == Some("ssdp:alive");
        let Some(boot_id) = upnp::header(text, "bootid.upnp.org").and_then(|id| id.parse().ok()).filter(|_| alive)
        else {
            return false;
        };
        let before = self.boot_id.replace(boot_id);
        before.is_some_and(|before| before != boot_id)
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

/// Bound to the group itself, so that only what was sent to the group arrives, and shared with other programs.
fn open(group: Ipv4Addr, port: u16, interface: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((group, port)).into())?;
    socket.join_multicast_v4(&group, &interface)?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_id_is_a_restart() {
        let notify = |id: u32| {
            format!(
                "NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\nBOOTID.UPNP.ORG: {id}\r\nLOCATION: http://192.0.2.1/\r\n\r\n"
            )
        };
        let mut announcements = Announcements::default();
        assert!(!announcements.is_restart(&notify(1)));
        assert!(!announcements.is_restart(&notify(1)));
        assert!(announcements.is_restart(&notify(2)));
        assert!(!announcements.is_restart(&notify(2)));
        assert!(!announcements.is_restart(&notify(3).replace("alive", "byebye")));
        assert!(!announcements.is_restart("M-SEARCH * HTTP/1.1\r\n\r\n"));
        announcements.set_boot_id(Some(9));
        assert!(announcements.is_restart(&notify(2)));
    }
}
