//! A router's word that it restarted, and so forgot its mappings. Routers say so unasked, to everybody on the LAN:
//!
//! ```text
//! NAT-PMP and PCP   from port 5351 to 224.0.0.1:5350, at the start and when the external address changes
//! UPnP              NOTIFY to 239.255.255.250:1900 every few minutes, with another BOOTID.UPNP.ORG after a restart
//! ```
//!
//! An announcement is sent up to ten times; that it is the same shows in its epoch.
//! A UPnP 1.0 router has no boot id, so its word says only that it is there, which is a reason to look.
//! Listening sends nothing but one IGMP report. Whoever forges an announcement gets us to renew the mapping early, no
//! oftener than the keeper lets through. Where a port is taken by another program that does not share it, restarts show
//! at the next look.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

use super::answers::{Notice, announced_epoch, notice};
use super::epoch::Epoch;
use super::{Gateway, upnp};

/// RFC 6886 section 3.2.1 and RFC 6887 section 14.1.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const CLIENT_PORT: u16 = 5350;

/// What a router's announcement means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// It has forgotten its mappings.
    Restarted,
    /// It is there; whether it restarted can't be told from this.
    Alive,
}

/// The sockets that listen, once a router is known.
#[derive(Default)]
pub struct Announcements {
    router: Option<Gateway>,
    pcp: Option<UdpSocket>,
    ssdp: Option<UdpSocket>,
    boot_id: Option<u32>,
    epoch: Option<Epoch>,
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
            epoch: None,
        };
    }

    /// What the router's answer to a search told.
    pub fn set_boot_id(&mut self, boot_id: Option<u32>) {
        self.boot_id = boot_id.or(self.boot_id);
    }

    /// What the router's answer to a request told.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
    }

    /// The router's next word; never, where nothing listens. Cancel-safe.
    pub async fn next(&mut self) -> Word {
        let Some(router) = self.router else { return std::future::pending().await };
        let (mut pcp, mut ssdp) = ([0; 64], [0; 2048]);
        loop {
            tokio::select! {
                received = receive(self.pcp.as_ref(), &mut pcp) => {
                    let Ok((len, from)) = received else { continue };
                    if from.ip() == IpAddr::V4(router.address)
                        && let Some(seconds) = announced_epoch(&pcp[..len])
                    {
                        return self.judge(Epoch::now(seconds));
                    }
                }
                received = receive(self.ssdp.as_ref(), &mut ssdp) => {
                    let Ok((len, from)) = received else { continue };
                    if from.ip() != IpAddr::V4(router.address) {
                        continue;
                    }
                    if let Some(word) = self.read(&String::from_utf8_lossy(&ssdp[..len])) {
                        return word;
                    }
                }
            }
        }
    }

    fn judge(&mut self, epoch: Epoch) -> Word {
        match self.epoch.replace(epoch) {
            Some(before) if !before.is_lost(epoch) => Word::Alive,
            _ => Word::Restarted,
        }
    }

    fn read(&mut self, text: &str) -> Option<Word> {
        match notice(text) {
            Notice::Alive(None) => Some(Word::Alive),
            Notice::Alive(Some(boot_id)) => match self.boot_id.replace(boot_id) {
                None => Some(Word::Alive),
                Some(before) => (before != boot_id).then_some(Word::Restarted),
            },
            Notice::Other => None,
        }
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
        let notify =
            |id: &str| format!("NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\n{id}LOCATION: http://192.0.2.1/\r\n\r\n");
        let boot = |id: u32| notify(&format!("BOOTID.UPNP.ORG: {id}\r\n"));
        let mut announcements = Announcements::default();
        assert_eq!(announcements.read(&boot(1)), Some(Word::Alive), "it may have been another before");
        assert_eq!(announcements.read(&boot(1)), None);
        assert_eq!(announcements.read(&boot(2)), Some(Word::Restarted));
        assert_eq!(announcements.read(&boot(2)), None);
        assert_eq!(announcements.read(&notify("")), Some(Word::Alive));
        assert_eq!(announcements.read(&boot(3).replace("alive", "byebye")), None);
        assert_eq!(announcements.read("M-SEARCH * HTTP/1.1\r\n\r\n"), None);
        announcements.set_boot_id(Some(9));
        assert_eq!(announcements.read(&boot(2)), Some(Word::Restarted));
    }

    #[test]
    fn only_an_epoch_that_does_not_go_on_is_a_restart() {
        let mut announcements = Announcements::default();
        assert_eq!(announcements.judge(Epoch::now(0)), Word::Restarted);
        assert_eq!(announcements.judge(Epoch::now(1)), Word::Alive, "the same, sent again");
        announcements.set_epoch(Epoch::now(5000));
        assert_eq!(announcements.judge(Epoch::now(1)), Word::Restarted);
    }
}
