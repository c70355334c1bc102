//! The kernel's word that something about addresses, links, routes or rules changed.
//!
//! A burst (a cable pulled out is a dozen messages) is one [`Changed`], 200 ms after its first message. Who hears it asks the
//! kernel how things are now ([`super::links::own_addresses`]) and puts back what was ours ([`super::links::Links::apply`], which
//! changes nothing where nothing is missing, so that our own changes do not go round for ever). So somebody else's
//! deleting our route is undone in 200 ms and the time of a few requests.
//!
//! Only the type of each message is read; what it says is asked for anew, so a lost message (ENOBUFS) is a change like any.

use std::io;
use std::time::Duration;

use rtnetlink::constants::{
    RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_LINK,
};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::time::Instant;

/// Long enough for a burst to end, short enough for a user not to notice.
const SETTLE: Duration = Duration::from_millis(200);
/// RTNLGRP_IPV6_RULE (linux/rtnetlink.h) as a bit; rtnetlink does not name it.
const RTMGRP_IPV6_RULE: u32 = 1 << 18;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// What changed, by kind.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Changed {
    pub addresses: bool,
    pub links: bool,
    /// Routes or rules.
    pub routes: bool,
}

impl Changed {
    const ALL: Changed = Changed { addresses: true, links: true, routes: true };

    fn any(self) -> bool {
        self.addresses || self.links || self.routes
    }

    fn add(&mut self, other: Changed) {
        self.addresses |= other.addresses;
        self.links |= other.links;
        self.routes |= other.routes;
    }
}

/// Listens from [`Monitor::open`] on.
pub struct Monitor {
    socket: TokioSocket,
    changed: Changed,
    due: Option<Instant>,
}

impl Monitor {
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = RTMGRP_LINK
            | RTMGRP_IPV4_IFADDR
            | RTMGRP_IPV6_IFADDR
            | RTMGRP_IPV4_ROUTE
            | RTMGRP_IPV6_ROUTE
            | RTMGRP_IPV4_RULE
            | RTMGRP_IPV6_RULE;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, changed: Changed::default(), due: None })
    }

    /// The next change. Cancel-safe.
    pub async fn changed(&mut self) -> Changed {
        loop {
            let message = match self.due {
                Some(due) => match tokio::time::timeout_at(due, self.socket.recv_from_full()).await {
                    Ok(message) => message,
                    Err(_) => {
                        self.due = None;
                        return std::mem::take(&mut self.changed);
                    }
                },
                None => self.socket.recv_from_full().await,
            };
            let changed = match message {
                // Only the kernel (port 0) knows; any process may send us a message.
                Ok((bytes, from)) if from.port_number() == 0 => kinds(&bytes),
                Ok(_) => Changed::default(),
                // ENOBUFS: messages were lost.
                Err(error) => {
                    tracing::debug!(%error, "netlink messages were lost");
                    // Whatever is wrong, it must not keep the processor busy.
                    tokio::time::sleep(SETTLE / 4).await;
                    Changed::ALL
                }
            };
            self.changed.add(changed);
            if self.changed.any() && self.due.is_none() {
                self.due = Some(Instant::now() + SETTLE);
            }
        }
    }
}

/// What the messages in one datagram are about: `[len: u32][type: u16]…`, each padded to 4.
fn kinds(mut bytes: &[u8]) -> Changed {
    let mut changed = Changed::default();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            libc::RTM_NEWADDR | libc::RTM_DELADDR => changed.addresses = true,
            libc::RTM_NEWLINK | libc::RTM_DELLINK => changed.links = true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE | libc::RTM_NEWRULE | libc::RTM_DELRULE => changed.routes = true,
            _ => {}
        }
        if len < HEADER {
            break;
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; (len as usize).max(HEADER).next_multiple_of(4)];
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn reads_the_types_of_all_messages_and_stops_at_a_bad_length() {
        let both = [message(libc::RTM_NEWADDR, 21), message(libc::RTM_DELROUTE, 16)].concat();
        assert_eq!(kinds(&both), Changed { addresses: true, routes: true, links: false });
        for len in [0, 3, 15, u32::MAX] {
            let bad = [message(libc::RTM_NEWLINK, 16), message(0, 16), message(libc::RTM_NEWADDR, 16)].concat();
            let mut bad = bad;
            bad[16..20].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(kinds(&bad), Changed { links: true, ..Changed::default() });
        }
        for len in 0..both.len() {
            kinds(&both[..len]);
        }
    }
}
