//! A mapped port on the router in front: UPnP first, PCP and NAT-PMP beside it.
//!
//! ```text
//! start ─ remove leftovers ─ find (all protocols side by side) ─ map ─┬─ half the lease: renew ──┐
//!                                   ▲                                 ├─ the router restarted ───┤
//!                                   │                                 └─ the network changed ────┤
//!                                   └────────────── nothing maps, or no longer ◄─────────────────┘
//! stop ─ remove the mapping (2 s at most)
//! ```
//!
//! The external port is the internal one where the router agrees (the patent's [0059]: a firewall that forbids the dynamic
//! ports may allow a low, equal one), otherwise any. Finding asks for nothing: only the protocol that is chosen is asked
//! to map, so the others leave nothing to remove and routers that share one table among them are not confused.
//!
//! The state file holds what was asked for before the router is asked, and is emptied after the removal: so the next start
//! removes what a SIGKILL left. Not being able to write it costs only that.
//!
//! What is assumed of the router: nothing. It is the default route's, in a network that this machine is directly in; only
//! answers from its address count; each is bounded in length, in nesting and in time ([`http`], [`upnp`]). Whether the
//! external address that it tells is of any use (a carrier's NAT's is not) the core decides.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::links::{self, Gateway};
use crate::proto::node::MappedPort;
use crate::proto::snapshot::PortMapping;

mod announce;
mod http;
mod pcp;
mod state;
mod upnp;

use announce::Announcements;
use state::{Record, StateFile};

/// A protocol that a router may speak. In order of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Upnp,
    Pcp,
    NatPmp,
}

impl From<Protocol> for PortMapping {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Upnp => Self::Upnp,
            Protocol::Pcp => Self::Pcp,
            Protocol::NatPmp => Self::NatPmp,
        }
    }
}

/// Half of what RFC 6886 recommends: a member that dies without a word is forgotten within the hour.
const LEASE: Duration = Duration::from_secs(3600);
/// How much longer UPnP may take than the first that answers, and still be preferred.
const UPNP_GRACE: Duration = Duration::from_millis(250);
/// When finding has failed. UPnP devices may take MX (1 s) and then three requests.
const FIND_TIMEOUT: Duration = Duration::from_secs(4);
/// For one mapping or renewal, all its requests together.
const MAP_TIMEOUT: Duration = Duration::from_secs(4);
/// For the removal at the end: a user waits for it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// For removing what an earlier run left; the new mapping waits for it.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Where nothing maps, the next tries come after these; then each hour. A new network is tried at once, so this only
/// helps where somebody switches the router's UPnP on.
const RETRIES: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];
/// The least time between two tries, whatever happens: netlink may storm, and announcements may be forged.
const LEAST_WAIT: Duration = Duration::from_secs(2);

/// How [`PortMapper::start_with`] maps.
#[derive(Clone, Debug)]
pub struct Options {
    pub enabled: Vec<Protocol>,
    /// The UDP port on this machine.
    pub local_port: u16,
    /// Where to record what was mapped; without it, a SIGKILL's leftovers stay until their lease ends.
    pub state_file: Option<PathBuf>,
    /// How long a lease to ask for; renewed at half of what was granted.
    pub lease: Duration,
}

/// What can be done for [`PortMapper`]'s task from outside.
enum Command {
    Refresh,
    Stop,
}

/// The task that keeps the port mapped. Dropping it leaves the mapping as it is, as a SIGKILL would; [`PortMapper::stop`]
/// removes it.
pub struct PortMapper {
    mapped: watch::Receiver<Option<MappedPort>>,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl PortMapper {
    /// Starts mapping UDP port `local_port`. With nothing enabled it does nothing but remove leftovers.
    /// To be called within a tokio runtime.
    pub fn start(enabled: &[Protocol], local_port: u16, state_file: Option<PathBuf>) -> Self {
        Self::start_with(Options { enabled: enabled.to_vec(), local_port, state_file, lease: LEASE })
    }

    pub fn start_with(options: Options) -> Self {
        let (sender, mapped) = watch::channel(None);
        // One waiting command says all there is to say; a second refresh adds nothing to the first.
        let (commands, inbox) = mpsc::channel(4);
        let task = tokio::spawn(Keeper::new(options, sender).run(inbox));
        Self { mapped, commands, task }
    }

    /// The next change: `Some` is a mapped port, `None` that there is none any longer. Only the last of several changes is
    /// told. Waits for ever where nothing changes. Cancel-safe.
    pub async fn changed(&mut self) -> Option<MappedPort> {
        if self.mapped.changed().await.is_err() {
            // The task has ended, so nothing will change any more.
            std::future::pending::<()>().await;
        }
        *self.mapped.borrow_and_update()
    }

    /// The mapping as it is now.
    pub fn current(&self) -> Option<MappedPort> {
        *self.mapped.borrow()
    }

    /// The network changed (addresses, default route): looks at once whether there is another router now.
    pub fn refresh(&self) {
        let _ = self.commands.try_send(Command::Refresh);
    }

    /// Removes the mapping and ends. Takes 2 s at most.
    pub async fn stop(mut self) {
        let _ = self.commands.send(Command::Stop).await;
        let _ = tokio::time::timeout(STOP_TIMEOUT, &mut self.task).await;
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A router's answer to "is anybody there".
enum Found {
    Upnp(upnp::Device),
    Pcp,
    NatPmp,
}

impl Found {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Upnp(_) => Protocol::Upnp,
            Self::Pcp => Protocol::Pcp,
            Self::NatPmp => Protocol::NatPmp,
        }
    }
}

/// What a router granted.
struct Grant {
    external: SocketAddr,
    /// Until when it holds without a renewal. For a permanent mapping: until it is looked at again.
    lifetime: Duration,
}

/// A mapping that we hold.
struct Lease {
    record: Record,
    external: SocketAddr,
    router: Gateway,
    renew_at: Instant,
    expires_at: Instant,
}

/// Why a wait ended.
enum Woken {
    Due,
    /// The router said that it restarted.
    Restarted,
    Refresh,
    Stop,
}

/// The task's state.
struct Keeper {
    options: Options,
    state: StateFile,
    mapped: watch::Sender<Option<MappedPort>>,
}

impl Keeper {
    fn new(options: Options, mapped: watch::Sender<Option<MappedPort>>) -> Self {
        let state = StateFile::new(options.state_file.clone());
        Self { options, state, mapped }
    }

    async fn run(self, mut inbox: mpsc::Receiver<Command>) {
        if let Some(record) = self.state.load() {
            let removed = tokio::time::timeout(LEFTOVER_TIMEOUT, remove(&record)).await;
            tracing::debug!(port = record.external_port, by = ?record.by, ok = matches!(removed, Ok(true)), "removing a leftover port mapping");
        }
        self.state.store(None);
        if self.options.enabled.is_empty() || self.options.local_port == 0 {
            return;
        }
        let mut announcements = Announcements::default();
        let mut lease: Option<Lease> = None;
        let mut failures = 0;
        loop {
            lease = self.advance(lease, &mut announcements).await;
            self.tell(lease.as_ref());
            let wait = match &lease {
                Some(lease) => {
                    failures = 0;
                    lease.renew_at.saturating_duration_since(Instant::now()).max(LEAST_WAIT)
                }
                None => {
                    let wait = RETRIES[failures.min(RETRIES.len() - 1)];
                    failures += 1;
                    wait
                }
            };
            let began = Instant::now();
            let woken = tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Refresh) => Woken::Refresh,
                    Some(Command::Stop) | None => Woken::Stop,
                },
                () = announcements.restarted() => Woken::Restarted,
                () = tokio::time::sleep(wait) => Woken::Due,
            };
            match woken {
                Woken::Stop => {
                    if let Some(lease) = &lease
                        && remove(&lease.record).await
                    {
                        self.state.store(None);
                    }
                    return;
                }
                Woken::Due => {}
                Woken::Refresh | Woken::Restarted => {
                    tracing::debug!("looking at the port mapping: the network or the router changed");
                    failures = 0;
                    if let Some(lease) = &mut lease {
                        lease.renew_at = Instant::now();
                    }
                    let early = LEAST_WAIT.saturating_sub(began.elapsed());
                    // A stop must not wait for this; it is found in the next select.
                    tokio::time::sleep(early.min(LEAST_WAIT)).await;
                }
            }
        }
    }

    /// One step: renews the lease, or finds and maps where there is none or the renewal failed.
    async fn advance(&self, lease: Option<Lease>, announcements: &mut Announcements) -> Option<Lease> {
        let router = match links::gateway().await {
            Ok(router) => router,
            Err(error) => {
                tracing::debug!(%error, "no default gateway is known");
                None
            }
        };
        let Some(router) = router else {
            // The old router can't be reached: its lease ends by itself, and the record stays for the next start.
            return None;
        };
        announcements.listen(router);
        if let Some(held) = &lease {
            let same = held.router == router;
            if same {
                match tokio::time::timeout(MAP_TIMEOUT, self.renew(held)).await {
                    Ok(Some(renewed)) => return Some(renewed),
                    Ok(None) | Err(_) => tracing::debug!("the port mapping could not be renewed"),
                }
            }
            if let Some(found) = self.find_and_map(router, announcements).await {
                return Some(found);
            }
            // A router that is silent for a moment may still hold the mapping.
            return lease.filter(|held| same && Instant::now() < held.expires_at).map(|held| {
                let left = held.expires_at.saturating_duration_since(Instant::now());
                Lease { renew_at: Instant::now() + left / 2, ..held }
            });
        }
        self.find_and_map(router, announcements).await
    }

    async fn find_and_map(&self, router: Gateway, announcements: &mut Announcements) -> Option<Lease> {
        let end = Instant::now() + FIND_TIMEOUT;
        let mut finding = JoinSet::new();
        for protocol in &self.options.enabled {
            match protocol {
                Protocol::Upnp => drop(finding.spawn(async move { upnp::find(router).await.map(Found::Upnp) })),
                Protocol::Pcp => {
                    drop(finding.spawn(async move { pcp::answers_pcp(router).await.then_some(Found::Pcp) }));
                }
                Protocol::NatPmp => {
                    let probe = async move { pcp::external_address(router).await.map(|_| Found::NatPmp) };
                    drop(finding.spawn(probe));
                }
            }
        }
        while !finding.is_empty() && Instant::now() < end {
            let mut found: Vec<Found> = Vec::new();
            let mut until = end;
            while let Ok(Some(result)) = tokio::time::timeout_at(until, finding.join_next()).await {
                let Ok(Some(one)) = result else { continue };
                // The first to answer opens the grace in which UPnP is waited for; UPnP itself ends it.
                until = match one.protocol() {
                    Protocol::Upnp => Instant::now(),
                    _ => until.min(Instant::now() + UPNP_GRACE),
                };
                found.push(one);
            }
            found.sort_by_key(Found::protocol);
            for one in found {
                if let Found::Upnp(device) = &one {
                    announcements.set_boot_id(device.boot_id);
                }
                if let Some(lease) = self.map(router, one).await {
                    return Some(lease);
                }
            }
        }
        None
    }

    /// Asks one protocol to map; at the equal port first.
    async fn map(&self, router: Gateway, found: Found) -> Option<Lease> {
        let by = found.protocol();
        let mut record = Record::new(by, router, self.options.local_port, self.options.lease);
        if let Found::Upnp(device) = found {
            record.control = Some(device.control);
        }
        if by == Protocol::Pcp {
            record.nonce = Some(pcp::new_nonce()?);
        }
        self.state.store(Some(&record));
        let grant = match tokio::time::timeout(MAP_TIMEOUT, ask(&mut record, self.options.lease, true)).await {
            Ok(Some(grant)) => grant,
            Ok(None) | Err(_) => {
                tracing::debug!(?by, "the router does not map the port");
                return None;
            }
        };
        Some(self.lease(record, router, grant))
    }

    async fn renew(&self, held: &Lease) -> Option<Lease> {
        let mut record = held.record.clone();
        let grant = ask(&mut record, self.options.lease, false).await?;
        Some(self.lease(record, held.router, grant))
    }

    fn lease(&self, mut record: Record, router: Gateway, grant: Grant) -> Lease {
        // A router may grant less, down to nothing, or ages.
        let lifetime = grant.lifetime.clamp(LEAST_WAIT * 2, self.options.lease.max(LEAST_WAIT * 2));
        record.external_port = grant.external.port();
        record.expires_in(lifetime);
        self.state.store(Some(&record));
        let now = Instant::now();
        Lease { record, external: grant.external, router, renew_at: now + lifetime / 2, expires_at: now + lifetime }
    }

    fn tell(&self, lease: Option<&Lease>) {
        let mapped = lease.map(|lease| MappedPort { external: lease.external, by: lease.record.by.into() });
        self.mapped.send_if_modified(|told| {
            let changed = *told != mapped;
            *told = mapped;
            changed
        });
    }
}

/// Asks the record's router for the mapping, or for another while of it. Changes the record to what was granted.
async fn ask(record: &mut Record, lease: Duration, fresh: bool) -> Option<Grant> {
    match record.by {
        Protocol::Upnp => upnp::map(record, lease, fresh).await,
        Protocol::Pcp => pcp::map_by_pcp(record, lease).await,
        Protocol::NatPmp => pcp::map_by_natpmp(record, lease).await,
    }
}

/// Removes what the record says; `true` where the router agreed or there was nothing.
async fn remove(record: &Record) -> bool {
    // A mapping past its lease may be somebody else's by now, and a router that is not ours now must not be asked.
    if record.has_expired() || !matches!(links::gateway().await, Ok(Some(now)) if now.address == record.gateway) {
        return false;
    }
    match record.by {
        Protocol::Upnp => upnp::remove(record).await,
        Protocol::Pcp => pcp::remove_by_pcp(record).await,
        Protocol::NatPmp => pcp::remove_by_natpmp(record).await,
    }
}

/// What a router tells as its external address, if it is one at all.
fn usable(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    let useless = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    (!useless && address != IpAddr::from([255; 4])).then_some(address)
}
