//! PCP (RFC 6887) and NAT-PMP (RFC 6886), by crab_nat; and whether the router speaks either, by two probes of our own that
//! ask for nothing.
//!
//! ```text
//! NAT-PMP probe   [0][0]                                              answered with its epoch and external address
//! PCP probe       [2][0 ANNOUNCE][0; 2][lifetime 0: 4][client: 16]    answered with its epoch
//! ```
//!
//! crab_nat connects its sockets to the router, reads into fixed buffers and checks nonce, opcode and port. A router that has
//! the mapping for our port already answers with that, whatever port we suggest; so another port is asked for only after the
//! mapping was removed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::pcp::{BaseMapRequest, DropMappingRange, Nonce};
use crab_nat::{GATEWAY_PORT, InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::answers::{self, Address, usable};
use super::epoch::Epoch;
use super::state::{Record, is_low};
use super::{Asked, Gateway, Grant};

/// 250 ms, doubled up to 16 s, as RFC 6886 section 3.1 has it, though not up to its 64 s: an answer that takes 31 s is lost.
const PATIENT: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 6, max_retry_timeout: None };
/// For the removal at the end, which a user waits for: 250 ms, 500 ms, 1 s.
const BRIEF: TimeoutConfig = TimeoutConfig { max_retries: 2, ..PATIENT };
/// A probe is sent again after these.
const WAITS: [Duration; 7] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Where the router gives a dynamic port, others are asked for as long as this: a slow router's mapping is taken as it is.
const HAGGLING: Duration = Duration::from_millis(500);
/// Packets looked at in one wait; a router answers with one.
const MAX_ANSWERS: usize = 8;

/// The router's external address, as NAT-PMP tells it; `None` where it does not speak that.
pub async fn external_address(router: Gateway) -> Option<Address> {
    probe(router, &[0, 0], answers::natpmp_address).await
}

/// PCP's epoch; `None` where the router does not speak PCP.
pub async fn epoch(router: Gateway) -> Option<Epoch> {
    let mut request = [0; 24];
    request[0] = 2;
    request[8..].copy_from_slice(&router.source.to_ipv6_mapped().octets());
    probe(router, &request, answers::pcp_epoch).await.map(Epoch::now)
}

async fn probe<T>(router: Gateway, request: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let socket = UdpSocket::bind(SocketAddr::from((router.source, 0))).await.ok()?;
    socket.connect(SocketAddr::from((router.address, GATEWAY_PORT))).await.ok()?;
    for wait in WAITS {
        let until = Instant::now() + wait;
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

/// One answer to a request for a mapping.
struct Offer {
    port: u16,
    lifetime: Duration,
    epoch: Epoch,
    /// PCP tells it with the mapping.
    external: Option<IpAddr>,
}

impl Offer {
    fn of(mapping: &crab_nat::PortMapping) -> Self {
        let external = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => Some(external_ip),
            PortMappingType::NatPmp => None,
        };
        Self {
            port: mapping.external_port().get(),
            lifetime: Duration::from_secs(mapping.lifetime().into()),
            epoch: Epoch::now(mapping.gateway_epoch()),
            external,
        }
    }
}

/// Maps or renews by NAT-PMP: the same request does both.
pub async fn map_by_natpmp(record: &mut Record, lease: Duration) -> Asked {
    let (external, offer) = tokio::join!(external_address(record.router()), haggle(record, lease));
    match offer {
        Ok(offer) => settle(record, offer, external.map(|address| address.external.into())).await,
        Err(asked) => asked,
    }
}

/// Maps or renews by PCP: the same request, with the same nonce, does both.
pub async fn map_by_pcp(record: &mut Record, lease: Duration) -> Asked {
    match haggle(record, lease).await {
        Ok(offer) => {
            let external = offer.external;
            settle(record, offer, external).await
        }
        Err(asked) => asked,
    }
}

async fn settle(record: &mut Record, offer: Offer, external: Option<IpAddr>) -> Asked {
    record.granted(offer.port);
    let Some(external) = external.and_then(|address| usable(address, record.source, record.gateway)) else {
        tracing::debug!(by = ?record.by, ?external, "the router's external address can't be one");
        remove(record).await;
        return Asked::Refused;
    };
    let external = SocketAddr::from((external, offer.port));
    Asked::Granted(Grant { external, lifetime: offer.lifetime, epoch: Some(offer.epoch) })
}

/// Asks for the record's ports one after the other, until the router gives one below the dynamic ones; else takes what it gives.
async fn haggle(record: &Record, lease: Duration) -> Result<Offer, Asked> {
    let until = Instant::now() + HAGGLING;
    let mut ports = record.ports().peekable();
    while let Some(port) = ports.next() {
        let offer = request(record, port, lease).await?;
        let good = is_low(offer.port) || offer.port == port;
        if good || ports.peek().is_none() || Instant::now() > until || !remove(record).await {
            return Ok(offer);
        }
        tracing::debug!(by = ?record.by, asked = port, given = offer.port, "the router gives a dynamic port");
    }
    Err(Asked::Refused)
}

async fn request(record: &Record, port: u16, lease: Duration) -> Result<Offer, Asked> {
    let options = PortMappingOptions {
        external_port: NonZeroU16::new(port),
        lifetime_seconds: Some(u32::try_from(lease.as_secs()).unwrap_or(u32::MAX).max(1)),
        timeout_config: Some(PATIENT),
    };
    let internal = NonZeroU16::new(record.local_port).ok_or(Asked::Refused)?;
    let mapped = match record.nonce {
        Some(nonce) => {
            let base =
                BaseMapRequest::new(record.gateway.into(), record.source.into(), InternetProtocol::Udp, internal);
            pcp::port_mapping(base, Some(nonce), None, options).await.map_err(Failure::from)
        }
        None => natpmp::port_mapping(record.gateway.into(), InternetProtocol::Udp, internal, options)
            .await
            .map_err(Failure::from),
    };
    match mapped {
        Ok(mapping) => Ok(Offer::of(&mapping)),
        Err(failure) => {
            tracing::debug!(by = ?record.by, error = failure.what, "the router does not map the port");
            if failure.lie {
                remove(record).await;
            }
            Err(if failure.silent { Asked::Silent } else { Asked::Refused })
        }
    }
}

/// What both protocols' failures come to.
struct Failure {
    what: String,
    /// Nothing came: something may be mapped.
    silent: bool,
    /// What came makes no sense: something may be mapped.
    lie: bool,
}

impl From<pcp::Failure> for Failure {
    fn from(failure: pcp::Failure) -> Self {
        let lie = matches!(failure, pcp::Failure::InvalidResponse(_) | pcp::Failure::Nonce);
        Self { what: failure.to_string(), silent: matches!(failure, pcp::Failure::Timeout), lie }
    }
}

impl From<natpmp::Failure> for Failure {
    fn from(failure: natpmp::Failure) -> Self {
        let lie = matches!(failure, natpmp::Failure::InvalidResponse(_));
        Self { what: failure.to_string(), silent: matches!(failure, natpmp::Failure::Timeout), lie }
    }
}

/// Removes the record's mapping; `true` where the router agreed.
pub async fn remove(record: &Record) -> bool {
    let Some(internal_port) = NonZeroU16::new(record.local_port) else { return false };
    let protocol = InternetProtocol::Udp;
    match record.nonce {
        Some(nonce) => {
            let range = DropMappingRange::Single { protocol, internal_port };
            pcp::try_drop_mapping(record.gateway.into(), record.source.into(), nonce, range, Some(BRIEF)).await.is_ok()
        }
        None => {
            natpmp::try_drop_mapping(record.gateway.into(), protocol, Some(internal_port), Some(BRIEF)).await.is_ok()
        }
    }
}

/// Whether the mapping is as it was told: the router did not forget it, and has the same address; `None`: nobody answers.
pub async fn holds(record: &Record, external: Ipv4Addr, epoch: Option<Epoch>) -> Option<bool> {
    let (now, same) = match record.nonce {
        Some(_) => (self::epoch(record.router()).await?, true),
        None => {
            let told = external_address(record.router()).await?;
            (Epoch::now(told.epoch), told.external == external)
        }
    };
    Some(same && !epoch.is_some_and(|before| before.is_lost(now)))
}
