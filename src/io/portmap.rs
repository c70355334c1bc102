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
//! The external port is the internal one where the router agrees (the patent's paragraph 0059: a firewall that forbids the dynamic
//! ports may allow a low, equal one), otherwise any. Finding asks for nothing: only the protocol that is chosen is asked
//! to map, so the others leave nothing to remove and routers that share one table among them are not confused.
//!
//! The state file holds what was asked for before the router is asked, and is emptied after the removal: so the next start
//! removes what a SIGKILL left. Not being able to write it costs only that.
//!
//! What is assumed of the router: nothing. It is the default route's, in a network that this machine is directly in; only
//! answers from its address count; each is bounded in length, in nesting and in time (`http`, `upnp`). Whether the
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
/// Where nothing maps, the next tries come after these. A new network is tried at once, and a router that starts anew says so
/// by itself, so this only helps where somebody switches UPnP on in silence; and where nothing is said, nothing is to be sent.
const RETRIES: [Duration; 1] = [Duration::from_secs(3600)];
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

/// The task's state.
struct Keeper {
    options: Options,
    state: StateFile,
    announcements: Announcements,
    lease: Option<Lease>,
    mapped: watch::Sender<Option<MappedPort>>,
}

impl Keeper {
    fn new(options: Options, mapped: watch::Sender<Option<MappedPort>>) -> Self {
        let state = StateFile::new(options.state_file.clone());
        Self { options, state, announcements: Announcements::default(), lease: None, mapped }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        if let Some(record) = self.state.load() {
            let removed = matches!(tokio::time::timeout(LEFTOVER_TIMEOUT, remove(&record)).await, Ok(true));
            tracing::debug!(port = record.external_port, by = ?record.by, removed, "a leftover port mapping");
            self.state.store(None);
        }
        if self.options.enabled.is_empty() || self.options.local_port == 0 {
            return;
        }
        while let Some(command) = self.keep(&mut inbox).await {
            match command {
                Command::Refresh => tracing::debug!("looking at the port mapping: the network or the router changed"),
                Command::Stop => break,
            }
        }
        // Not the lease's record: a request may have been cut off whose answer would have become one.
        if let Some(record) = self.state.last().cloned()
            && remove(&record).await
        {
            self.state.store(None);
        }
    }

    /// Keeps the port mapped until somebody wants something else; `None` when nobody can any longer.
    async fn keep(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Option<Command> {
        let mut failures = 0;
        loop {
            let mut again = false;
            {
                let advance = self.advance();
                tokio::pin!(advance);
                loop {
                    tokio::select! {
                        () = &mut advance => break,
                        command = inbox.recv() => match command {
                            Some(Command::Refresh) => again = true,
                            // The user does not wait for what is under way.
                            Some(Command::Stop) | None => return command,
                        },
                    }
                }
            }
            self.tell();
            let now = Instant::now();
            let mut due = match &self.lease {
                Some(lease) => lease.renew_at,
                None => now + RETRIES[failures.min(RETRIES.len() - 1)],
            };
            failures = if self.lease.is_some() { 0 } else { failures + 1 };
            let earliest = now + LEAST_WAIT;
            due = if again { earliest } else { due.max(earliest) };
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                command = wait_for(inbox, earliest) => return command,
                () = async {
                    self.announcements.restarted().await;
                    tokio::time::sleep_until(earliest).await;
                } => failures = 0,
            }
        }
    }

    /// One step: renews the lease, or finds and maps where there is none or the renewal failed.
    async fn advance(&mut self) {
        let router = match links::gateway().await {
            Ok(router) => router,
            Err(error) => {
                tracing::debug!(%error, "no default gateway is known");
                None
            }
        };
        let Some(router) = router else {
            // The old router can't be reached: its lease ends by itself, and the record stays for the next start.
            self.lease = None;
            return;
        };
        self.announcements.listen(router);
        let same = self.lease.as_ref().is_some_and(|held| held.router == router);
        if let Some(held) = self.lease.as_ref().filter(|_| same) {
            let mut record = held.record.clone();
            match tokio::time::timeout(MAP_TIMEOUT, ask(&mut record, self.options.lease, false)).await {
                Ok(Some(grant)) => return self.hold(record, router, &grant),
                Ok(None) | Err(_) => tracing::debug!("the port mapping could not be renewed"),
            }
        }
        if self.find_and_map(router).await {
            return;
        }
        // A router that is silent for a moment may still hold the mapping.
        let now = Instant::now();
        self.lease = self.lease.take().filter(|held| same && now < held.expires_at);
        if let Some(held) = &mut self.lease {
            held.renew_at = now + held.expires_at.saturating_duration_since(now) / 2;
        }
    }

    /// `true` where something maps.
    async fn find_and_map(&mut self, router: Gateway) -> bool {
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
                    self.announcements.set_boot_id(device.boot_id);
                }
                if self.map(router, one).await {
                    return true;
                }
            }
        }
        false
    }

    /// Asks one protocol to map, at the equal port first; `true` where it does.
    async fn map(&mut self, router: Gateway, found: Found) -> bool {
        let by = found.protocol();
        let mut record = Record::new(by, router, self.options.local_port, self.options.lease);
        match found {
            Found::Upnp(device) => record.control = Some(device.control),
            Found::Pcp => match pcp::new_nonce() {
                None => return false,
                nonce => record.nonce = nonce,
            },
            Found::NatPmp => {}
        }
        let before = self.state.last().cloned();
        self.state.store(Some(&record));
        match tokio::time::timeout(MAP_TIMEOUT, ask(&mut record, self.options.lease, true)).await {
            Ok(Some(grant)) => {
                self.hold(record, router, &grant);
                true
            }
            Ok(None) | Err(_) => {
                tracing::debug!(?by, "the router does not map the port");
                self.state.store(before.as_ref());
                false
            }
        }
    }

    fn hold(&mut self, mut record: Record, router: Gateway, grant: &Grant) {
        // A router may grant less, down to nothing, or ages.
        let lifetime = grant.lifetime.clamp(LEAST_WAIT * 2, self.options.lease.max(LEAST_WAIT * 2));
        record.external_port = grant.external.port();
        record.expires_in(lifetime);
        self.state.store(Some(&record));
        let now = Instant::now();
        let (renew_at, expires_at) = (now + lifetime / 2, now + lifetime);
        self.lease = Some(Lease { record, external: grant.external, router, renew_at, expires_at });
    }

    fn tell(&self) {
        let mapped = self.lease.as_ref().map(|held| MappedPort { external: held.external, by: held.record.by.into() });
        self.mapped.send_if_modified(|told| {
            let changed = *told != mapped;
            *told = mapped;
            changed
        });
    }
}

/// The next command; a refresh not before `earliest`, a stop at once.
async fn wait_for(inbox: &mut mpsc::Receiver<Command>, earliest: Instant) -> Option<Command> {
    let mut refresh = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(earliest), if refresh => return Some(Command::Refresh),
            command = inbox.recv() => match command {
                Some(Command::Refresh) => refresh = true,
                other => return other,
            },
        }
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
