//! Our device's addresses, routes and rules, and what this machine's other devices have.
//!
//! ```text
//! wanted (Layout) ─┐
//!                  ├─ difference ── what is too much goes, what is missing comes
//! the kernel's ────┘
//! ```
//!
//! [`Links::apply`] always compares with what the kernel has, so it is at once the start, a reload, and the repair after
//! another daemon deleted something. What is ours is told by the device and by the protocol number [`PROTOCOL`].
//!
//! Routes so wide that they would swallow our own datagrams (`0.0.0.0/0`, `::/0`, `128.0.0.0/1`, …) go into a table of the
//! device's own, behind two rules, as `wg-quick` does:
//!
//! ```text
//! P      from all lookup main suppress_prefixlength 0      what main knows better than by its default route stays there
//! P + 1  not from all fwmark 4275 lookup T                 all the rest, but for our own marked datagrams
//! ```
//!
//! Device, addresses and routes go with the device, so SIGKILL leaves rules at most; [`clean_up`] takes them away by P, T and
//! [`PROTOCOL`], which all follow from the device's name.
//!
//! Assumption: where rp_filter is 1 (strict; Debian's default is 0 or 2), answers from the internet to marked datagrams
//! fail the kernel's reverse path check while a default route leads through the tunnel. The log says so.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

mod connected;
mod own;
mod rules;

pub use own::{Gateway, gateway, own_addresses};

/// What our routes and rules are marked with (`ip route` shows `proto 177`); not in iproute2's rt_protos, nor used by any
/// routing daemon there.
pub const PROTOCOL: u8 = 177;
/// Our routes' metric: worse than any that the system makes (IPv6's are 256 and 1024), so a network that this machine is
/// really in wins over a peer that claims the same one.
pub const METRIC: u32 = 4275;
/// From here down a route would catch addresses all over the internet, ours and the servers' among them. 10.0.0.0/8 and
/// fc00::/7 are the widest that sites use for themselves.
const NARROWEST_WIDE: (u8, u8) = (7, 6);
/// Packets that wait in the device until we read them: the kernel's DEFAULT_TX_QUEUE_LEN, which Ethernet has too. A TUN device
/// starts with half of it, drops the rest of a sender's burst, and TCP then sends 1 % of its segments again.
const QUEUE: u32 = 1000;
const MAIN: u32 = libc::RT_TABLE_MAIN as u32;

/// Why the device is not as wanted.
#[derive(Debug)]
pub enum LinkError {
    /// The device is gone: make it again.
    Gone(String),
    NoPermission,
    /// This one thing did not work; all else was done.
    Refused {
        what: String,
        error: io::Error,
    },
    /// Netlink itself does not work.
    Netlink(io::Error),
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(name) => write!(f, "the interface {name} is gone"),
            Self::NoPermission => {
                write!(f, "no permission to set addresses and routes: run as root or with CAP_NET_ADMIN")
            }
            Self::Refused { what, error } => write!(f, "{what}: {error}"),
            Self::Netlink(error) => write!(f, "the kernel's netlink interface does not answer: {error}"),
        }
    }
}

impl std::error::Error for LinkError {}

/// What the device is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub mtu: u16,
    pub addresses: Vec<IpNet>,
    /// All peers' `allowed_ips`. Those inside a network of `addresses` need no route of their own.
    pub routes: Vec<IpNet>,
}

/// Where a route belongs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Route {
    to: IpNet,
    table: u32,
}

/// One device of ours. Dropping it leaves the kernel as it is; [`Links::remove`] does not.
pub struct Links {
    handle: Handle,
    /// Checks its requests strictly, so that the kernel filters routes by device and a full routing table costs nothing.
    strict: Handle,
    name: String,
    index: u32,
}

impl Links {
    /// Of a device that exists. Removes what an earlier daemon for the same name left behind.
    pub async fn open(name: &str) -> Result<Self, LinkError> {
        let handle = connect(false)?;
        let index = index_of(&handle, name).await?.ok_or_else(|| LinkError::Gone(name.to_owned()))?;
        let links = Self { handle, strict: connect(true)?, name: name.to_owned(), index };
        rules::set(&links.handle, name, &[]).await?;
        Ok(links)
    }

    pub fn index(&self) -> u32 {
        self.index
    }

    /// Makes the device have exactly this, and up. Idempotent; does only what is missing or too much, and gives how many
    /// things that were. One thing that fails does not keep the others from being done; the first failure is the result.
    pub async fn apply(&self, wanted: &Layout) -> Result<usize, LinkError> {
        let link = link_of(&self.handle, &self.name).await?;
        match link {
            Some(link) if link.header.index == self.index => self.set_link(&link, wanted.mtu).await?,
            _ => return Err(LinkError::Gone(self.name.clone())),
        }
        let mut first = None;
        let mut changes = 0;
        let mut note = |result: Result<(), LinkError>| match result {
            Ok(()) => changes += 1,
            Err(error) => {
                tracing::warn!(%error, "setting up the interface");
                first.get_or_insert(error);
            }
        };

        let (mut missing, extra) = self.compare_addresses(&wanted.addresses).await?;
        for message in extra {
            note(named("removing an address", self.handle.address().del(message).execute().await));
        }
        // In the order of the config: the first is the one that packets of this machine's own come from.
        for address in missing.drain(..) {
            let mut request = self.handle.address().add(self.index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                // Nobody else is on the link: duplicate detection would only delay the first packet.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            note(named(&format!("adding the address {address}"), request.execute().await));
        }

        for route in self.missing_networks(&wanted.addresses).await? {
            note(named("adding the route to an address's own network", self.handle.route().add(route).execute().await));
        }

        let routes = routes_for(wanted, rules::table_of(&self.name));
        let (missing, extra) = self.compare_routes(&routes).await?;
        for message in extra {
            note(named("removing a route", self.handle.route().del(message).execute().await));
        }
        for route in missing {
            let request = self.handle.route().add(self.route_message(route));
            note(named(&format!("adding the route to {}", route.to), request.execute().await));
        }

        let families: Vec<IpVersion> = [(true, IpVersion::V4), (false, IpVersion::V6)]
            .into_iter()
            .filter(|(v4, _)| routes.iter().any(|route| route.table != MAIN && route.to.addr().is_ipv4() == *v4))
            .map(|(_, version)| version)
            .collect();
        match rules::set(&self.handle, &self.name, &families).await {
            Ok(count) => {
                changes += count;
                // Once, not at each look.
                if count > 0 && families.contains(&IpVersion::V4) {
                    rules::warn_of_strict_rp_filter();
                }
            }
            Err(error) => drop(first.get_or_insert(error)),
        }
        match first {
            None => Ok(changes),
            Some(error) => Err(error),
        }
    }

    /// Takes away what would outlive the device: the rules. Its addresses and routes go with it.
    pub async fn remove(self) -> Result<(), LinkError> {
        rules::set(&self.handle, &self.name, &[]).await.map(drop)
    }

    async fn set_link(&self, link: &LinkMessage, mtu: u16) -> Result<(), LinkError> {
        let mtu = u32::from(mtu);
        let has = link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Mtu(has) if *has == mtu));
        if has && link.header.flags.contains(LinkFlags::Up) {
            return Ok(());
        }
        let mut message = LinkUnspec::new_with_index(self.index).mtu(mtu).up();
        // Once, so that what an administrator sets later stays.
        if !link.header.flags.contains(LinkFlags::Up) {
            message = message.append_extra_attribute(LinkAttribute::TxQueueLen(QUEUE));
            // No link-local address, so that the kernel sends no router solicitations to nobody. Best effort: a machine
            // without IPv6 has no such file, and a read-only /proc does no harm.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", self.name), "1");
        }
        named(
            &format!("setting {} up with an MTU of {mtu}", self.name),
            self.handle.link().set(message.build()).execute().await,
        )
    }

    async fn compare_addresses(&self, wanted: &[IpNet]) -> Result<(Vec<IpNet>, Vec<AddressMessage>), LinkError> {
        let mut there = self.handle.address().get().set_link_index_filter(self.index).execute();
        let mut missing = wanted.to_vec();
        let mut extra = Vec::new();
        while let Some(message) = there.try_next().await.map_err(netlink)? {
            let Some(address) = own::address_of(&message) else { continue };
            if let Some(at) = missing.iter().position(|wanted| *wanted == address) {
                missing.remove(at);
            } else if !wanted.contains(&address) && !own::is_link_local(address.addr()) {
                extra.push(message);
            }
        }
        Ok((missing, extra))
    }

    async fn compare_routes(&self, wanted: &BTreeSet<Route>) -> Result<(Vec<Route>, Vec<RouteMessage>), LinkError> {
        let mut missing = wanted.clone();
        let mut extra = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::from(PROTOCOL);
            filter.attributes.push(RouteAttribute::Oif(self.index));
            let mut there = self.strict.route().get(filter).execute();
            loop {
                let message = match there.try_next().await {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    // No IPv6 in this kernel. Where the layout wants some, adding it says so.
                    Err(_) if family == AddressFamily::Inet6 => break,
                    Err(error) => return Err(netlink(error)),
                };
                // A kernel that does not filter gives all routes.
                if message.header.protocol != RouteProtocol::from(PROTOCOL) || output(&message) != Some(self.index) {
                    continue;
                }
                let Some(to) = destination(&message) else { continue };
                if !missing.remove(&Route { to, table: table(&message) })
                    && !wanted.contains(&Route { to, table: table(&message) })
                {
                    extra.push(message);
                }
            }
        }
        Ok((missing.into_iter().collect(), extra))
    }

    fn route_message(&self, route: Route) -> RouteMessage {
        let common = |message: &mut RouteMessage| {
            message.header.protocol = RouteProtocol::from(PROTOCOL);
            // The other end is the device itself: nothing to go through (only IPv4 tells scopes apart).
            message.header.scope = if route.to.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
            message.header.kind = RouteType::Unicast;
        };
        match route.to {
            IpNet::V4(to) => {
                let mut builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .destination_prefix(to.network(), to.prefix_len())
                    .output_interface(self.index)
                    .priority(METRIC)
                    .table_id(route.table);
                common(builder.get_mut());
                builder.build()
            }
            IpNet::V6(to) => {
                let mut builder = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                    .destination_prefix(to.network(), to.prefix_len())
                    .output_interface(self.index)
                    .priority(METRIC)
                    .table_id(route.table);
                common(builder.get_mut());
                builder.build()
            }
        }
    }
}

/// Removes what a daemon that was killed left behind for the device `name`; nothing where there is nothing.
pub async fn clean_up(name: &str) -> Result<(), LinkError> {
    rules::set(&connect(false)?, name, &[]).await.map(drop)
}

/// Which routes the layout needs, and in which table.
fn routes_for(layout: &Layout, own_table: u32) -> BTreeSet<Route> {
    layout
        .routes
        .iter()
        .map(IpNet::trunc)
        .filter(|to| !layout.addresses.iter().any(|address| address.trunc().contains(to)))
        .map(|to| Route { to, table: if is_wide(&to) { own_table } else { MAIN } })
        .collect()
}

fn is_wide(to: &IpNet) -> bool {
    to.prefix_len() <= if to.addr().is_ipv4() { NARROWEST_WIDE.0 } else { NARROWEST_WIDE.1 }
}

fn table(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(message.header.table))
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// A default route carries no destination.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let len = message.header.destination_prefix_length;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let address = match (address, message.header.address_family) {
        (Some(address), _) => address,
        (None, AddressFamily::Inet) => IpAddr::from([0; 4]),
        (None, AddressFamily::Inet6) => IpAddr::from([0; 16]),
        (None, _) => return None,
    };
    IpNet::new(address, len).ok()
}

fn connect(strict: bool) -> Result<Handle, LinkError> {
    let (mut connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Netlink)?;
    if strict {
        // Linux before 4.20 has no such option; then we filter ourselves.
        let _ = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true);
    }
    // Ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

async fn link_of(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, LinkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(error) if code(&error) == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(netlink(error)),
    }
}

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>, LinkError> {
    Ok(link_of(handle, name).await?.map(|link| link.header.index))
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn netlink(error: rtnetlink::Error) -> LinkError {
    LinkError::Netlink(io_error(error))
}

/// Turns one request's result into ours. What is there already, or gone already, is as it should be.
fn named(what: &str, result: Result<(), rtnetlink::Error>) -> Result<(), LinkError> {
    let Err(error) = result else { return Ok(()) };
    let error = io_error(error);
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Err(LinkError::NoPermission),
        Some(libc::ESRCH | libc::EADDRNOTAVAIL) if what.starts_with("removing") => Ok(()),
        Some(libc::EEXIST) => Err(LinkError::Refused {
            what: what.to_owned(),
            error: io::Error::new(io::ErrorKind::AlreadyExists, "another interface or daemon has the same one"),
        }),
        _ => Err(LinkError::Refused { what: what.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests;
