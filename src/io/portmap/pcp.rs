//! PCP (RFC 6887) and NAT-PMP (RFC 6886), by crab_nat; and whether the router speaks either, by two probes of our own that
//! ask for nothing.
//!
//! ```text
//! NAT-PMP probe   [0][0]                                              answer [0][128][result: u16][epoch: u32][address: 4]
//! PCP probe       [2][0 ANNOUNCE][0; 2][lifetime 0: 4][client: 16]    answer [2][128][0][result][lifetime: 4][epoch: 4][0; 12]
//! ```
//!
//! crab_nat connects its sockets to the router, reads into fixed buffers and checks nonce, opcode and port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::pcp::{BaseMapRequest, DropMappingRange, Nonce};
use crab_nat::{GATEWAY_PORT, InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use tokio::net::UdpSocket;

use super::state::Record;
use super::{Gateway, Grant, usable};

/// 250 ms, 500 ms, 1 s: RFC 6886's start, and an end that a starting daemon can wait for.
const TIMEOUTS: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };
/// The same for the probes.
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1)];
/// Packets looked at in one wait; a router answers with one.
const MAX_ANSWERS: usize = 8;

/// The router's external address, as NAT-PMP tells it; `None` where it does not speak that.
pub async fn external_address(router: Gateway) -> Option<IpAddr> {
    probe(router, &[0, 0], |answer| {
        let answer = answer.first_chunk::<12>()?;
        let address = Ipv4Addr::new(answer[8], answer[9], answer[10], answer[11]);
        (answer[..4] == [0, 128, 0, 0]).then_some(IpAddr::V4(address))
    })
    .await
    .and_then(usable)
}

/// Whether the router speaks PCP. Refusing the announcement is speaking it; "unsupported version" is not.
pub async fn answers_pcp(router: Gateway) -> bool {
    let mut request = [0; 24];
    request[0] = 2;
    request[8..].copy_from_slice(&router.source.to_ipv6_mapped().octets());
    /// RFC 6887 section 7.4.
    const UNSUPPORTED_VERSION: u8 = 1;
    probe(router, &request, |answer| {
        let answer = answer.first_chunk::<24>()?;
        (answer[0] == 2 && answer[1] & 128 != 0 && answer[3] != UNSUPPORTED_VERSION).then_some(())
    })
    .await
    .is_some()
}

async fn probe<T>(router: Gateway, request: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let socket = UdpSocket::bind(SocketAddr::from((router.source, 0))).await.ok()?;
    socket.connect(SocketAddr::from((router.address, GATEWAY_PORT))).await.ok()?;
    for wait in WAITS {
        let until = tokio::time::Instant::now() + wait;
        // A refusal (ICMP) of the last one comes out here; a router that starts may answer the next.
        let _ = socket.send(request).await;
        let mut buffer = [0; 128];
        for _ in 0..MAX_ANSWERS {
            match tokio::time::timeout_at(until, socket.recv(&mut buffer)).await {
                Ok(Ok(len)) => {
                    if let Some(found) = read(&buffer[..len]) {
                        return Some(found);
                    }
                }
                Ok(Err(_)) => {}
                Err(_) => break,
            }
        }
        tokio::time::sleep_until(until).await;
    }
    None
}

/// What tells our PCP mapping from another's. `None` where the system has no randomness.
pub fn new_nonce() -> Option<Nonce> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).ok()?;
    let word = |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    Some([word(0), word(4), word(8)])
}

fn options(record: &Record, lease: Duration) -> PortMappingOptions {
    PortMappingOptions {
        external_port: NonZeroU16::new(record.external_port),
        lifetime_seconds: Some(u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1)),
        timeout_config: Some(TIMEOUTS),
    }
}

/// Maps or renews by NAT-PMP: the same request does both.
pub async fn map_by_natpmp(record: &mut Record, lease: Duration) -> Option<Grant> {
    let router = Gateway { address: record.gateway, source: record.source, interface: 0 };
    let port = NonZeroU16::new(record.local_port)?;
    let external = external_address(router).await?;
    match natpmp::port_mapping(record.gateway.into(), InternetProtocol::Udp, port, options(record, lease)).await {
        Ok(mapping) => {
            record.external_port = mapping.external_port().get();
            Some(Grant {
                external: SocketAddr::new(external, record.external_port),
                lifetime: Duration::from_secs(mapping.lifetime().into()),
            })
        }
        Err(error) => {
            tracing::debug!(%error, "NAT-PMP does not map the port");
            None
        }
    }
}

/// Maps or renews by PCP: the same request, with the same nonce, does both.
pub async fn map_by_pcp(record: &mut Record, lease: Duration) -> Option<Grant> {
    let port = NonZeroU16::new(record.local_port)?;
    let base = BaseMapRequest::new(record.gateway.into(), record.source.into(), InternetProtocol::Udp, port);
    match pcp::port_mapping(base, record.nonce, None, options(record, lease)).await {
        Ok(mapping) => {
            let PortMappingType::Pcp { external_ip, .. } = mapping.mapping_type() else { return None };
            record.external_port = mapping.external_port().get();
            Some(Grant {
                external: SocketAddr::new(usable(external_ip)?, record.external_port),
                lifetime: Duration::from_secs(mapping.lifetime().into()),
            })
        }
        Err(error) => {
            tracing::debug!(%error, "PCP does not map the port");
            None
        }
    }
}

/// Removes what [`map_by_natpmp`] mapped.
pub async fn remove_by_natpmp(record: &Record) -> bool {
    let Some(port) = NonZeroU16::new(record.local_port) else { return false };
    natpmp::try_drop_mapping(record.gateway.into(), InternetProtocol::Udp, Some(port), Some(TIMEOUTS)).await.is_ok()
}

/// Removes what [`map_by_pcp`] mapped.
pub async fn remove_by_pcp(record: &Record) -> bool {
    let (Some(internal_port), Some(nonce)) = (NonZeroU16::new(record.local_port), record.nonce) else { return false };
    let range = DropMappingRange::Single { protocol: InternetProtocol::Udp, internal_port };
    pcp::try_drop_mapping(record.gateway.into(), record.source.into(), nonce, range, Some(TIMEOUTS)).await.is_ok()
}
