//! What this machine has besides our device: its addresses, and the router that its default route leads to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};

use super::{LinkError, MAIN, connect, netlink, output, table};

/// Most addresses that are told: each becomes a candidate, and a machine with more is a hosting server.
const MAX_ADDRESSES: usize = 32;

/// The router of this machine's IPv4 default route, in a network that the machine is directly in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub address: Ipv4Addr,
    /// This machine's own address in the router's network.
    pub source: Ipv4Addr,
    /// The index of the device towards it.
    pub interface: u32,
}

/// This machine's own unicast addresses with their networks, in the kernel's order: of devices that are up, but no loopback
/// device and not `exclude`; no link-local ones, none tentative, failed or deprecated. At most 32.
pub async fn own_addresses(exclude: &str) -> Result<Vec<IpNet>, LinkError> {
    let handle = connect(false)?;
    let mut usable = HashMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(netlink)? {
        let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == exclude);
        let up = link.header.flags.contains(LinkFlags::Up) && !link.header.flags.contains(LinkFlags::Loopback);
        usable.insert(link.header.index, up && !link.attributes.iter().any(named));
    }
    let mut addresses = Vec::new();
    let mut there = handle.address().get().execute();
    while let Some(message) = there.try_next().await.map_err(netlink)? {
        if usable.get(&message.header.index) != Some(&true) || !is_settled(&message) {
            continue;
        }
        let Some(address) = address_of(&message) else { continue };
        let ip = address.addr();
        let odd = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local(ip);
        if !odd && !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// The default route's router; the one with the least metric where there are several. `None` where there is none, or it is
/// not in a network that the machine is directly in: then nothing may be asked of it.
pub async fn gateway() -> Result<Option<Gateway>, LinkError> {
    let handle = connect(false)?;
    let mut best: Option<(u32, Ipv4Addr, u32)> = None;
    // Asks strictly, so that a full routing table is not read; default routes still must be picked out.
    let strict = connect(true)?;
    let mut filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
    filter.header.protocol = 0.into();
    filter.header.scope = 0.into();
    let mut routes = strict.route().get(filter).execute();
    while let Some(route) = routes.try_next().await.map_err(netlink)? {
        let ours = route.header.destination_prefix_length == 0
            && route.header.kind == RouteType::Unicast
            && table(&route) == MAIN;
        if !ours {
            continue;
        }
        let (mut metric, mut via) = (0, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
                _ => {}
            }
        }
        if let (Some(via), Some(interface)) = (via, output(&route))
            && best.is_none_or(|(best, ..)| metric < best)
        {
            best = Some((metric, via, interface));
        }
    }
    let Some((_, address, interface)) = best else { return Ok(None) };
    let mut there = handle.address().get().set_link_index_filter(interface).execute();
    let mut source = None;
    while let Some(message) = there.try_next().await.map_err(netlink)? {
        if let Some(IpNet::V4(own)) = address_of(&message)
            && source.is_none()
            && is_beside(own, address)
        {
            source = Some(own.addr());
        }
    }
    Ok(source.map(|source| Gateway { address, source, interface }))
}

/// Whether `address` is another host in `own`'s network.
fn is_beside(own: Ipv4Net, address: Ipv4Addr) -> bool {
    own.contains(&address) && address != own.addr() && !address.is_unspecified() && !address.is_loopback()
}

pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // IFA_LOCAL is our own end of a point-to-point link, where IFA_ADDRESS is the other's.
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => any = Some(*address),
            _ => {}
        }
    }
    IpNet::new(local.or(any)?, message.header.prefix_len).ok()
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_settled(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let long = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = long.unwrap_or(AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    // Optimistic addresses are tentative and yet usable (RFC 4429).
    !flags.intersects(unusable) || flags.contains(AddressFlags::Optimistic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_host_of_the_own_network_is_a_gateway() {
        let own: Ipv4Net = "192.168.1.7/24".parse().expect("a network");
        assert!(is_beside(own, Ipv4Addr::new(192, 168, 1, 1)));
        assert!(!is_beside(own, Ipv4Addr::new(192, 168, 1, 7)));
        assert!(!is_beside(own, Ipv4Addr::new(192, 168, 2, 1)));
    }
}
