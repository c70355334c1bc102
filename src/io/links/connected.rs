//! The route to each address's own network, which the kernel makes with the address and never again: `ip route flush dev p2p0`
//! takes it away for good, and with it every peer whose address lies in that network.
//!
//! What is put back is the kernel's own route to the letter (`proto kernel`, its scope, source and metric), so the kernel takes
//! it away with the address as if it had made it.

use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};

use super::{LinkError, Links, MAIN, destination, netlink, output, table};

/// IP6_RT_PRIO_ADDRCONF (include/net/ip6_route.h in the kernel).
const IPV6_METRIC: u32 = 256;

impl Links {
    /// The routes to networks of `addresses` that the kernel had made and that are gone.
    pub(super) async fn missing_networks(&self, addresses: &[IpNet]) -> Result<Vec<RouteMessage>, LinkError> {
        let mut there = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::Kernel;
            filter.attributes.push(RouteAttribute::Oif(self.index));
            let mut routes = self.strict.route().get(filter).execute();
            while let Some(route) = routes.try_next().await.map_err(netlink)? {
                if output(&route) == Some(self.index) && table(&route) == MAIN {
                    there.extend(destination(&route));
                }
            }
        }
        let mut missing = Vec::new();
        for address in addresses.iter().filter(|address| address.prefix_len() < address.max_prefix_len()) {
            let network = address.trunc();
            if !there.contains(&network) {
                missing.push(self.network_route(address));
                // A second address in it needs no second route.
                there.push(network);
            }
        }
        Ok(missing)
    }

    fn network_route(&self, address: &IpNet) -> RouteMessage {
        let mut route = match address {
            IpNet::V4(address) => {
                let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(address.network(), address.prefix_len())
                    .output_interface(self.index)
                    .pref_source(address.addr())
                    .build();
                route.header.scope = RouteScope::Link;
                route
            }
            IpNet::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address.network(), address.prefix_len())
                .output_interface(self.index)
                .priority(IPV6_METRIC)
                .build(),
        };
        route.header.protocol = RouteProtocol::Kernel;
        route
    }
}
