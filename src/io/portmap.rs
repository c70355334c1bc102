//! A mapped port on the router in front: by UPnP, PCP or NAT-PMP, whichever is there first.
//!
//! ```text
//! start ─ take over or remove leftovers ─ find (all protocols side by side) ─ map ─┬─ half the lease: renew ────────────┐
//!                                           ▲                                      ├─ every 2 min: look; lost: renew ───┤
//!                                           │                                      ├─ the router restarted: renew ──────┤
//!                                           │                                      └─ the network changed ──────────────┤
//!                                           └──────────────────── nothing maps, or no longer ◄──────────────────────────┘
//! stop ─ remove the mapping (2 s at most)
//! ```
//!
//! The external port is the internal one where the router agrees, else some other below the dynamic ports, else any: the patent's
//! paragraphs 0041 and 0059, a firewall at the other side may forbid UDP to the dynamic ports. Finding asks for nothing: only the
//! protocol that is chosen is asked to map, so the others leave nothing to remove and routers that share one table among them are
//! not confused. The first to answer is asked: PCP and NAT-PMP take 2 ms where UPnP takes 60, and a call that is placed before
//! the mapping is there can't tell of it.
//!
//! Nothing here waits for a router (`keeper`): one that answers after 10 s has its answer taken then. Where another protocol
//! was quicker, the late mapping is removed again.
//!
//! The state file holds what was asked for before the router is asked, and is emptied after the removal: so the next start
//! takes over, or removes, what a SIGKILL left. Not being able to write it costs only that.
//!
//! What is assumed of the router: nothing. It is the default route's, in a network that this machine is directly in; only
//! answers from its address count; each is bounded in length, in nesting and in time (`answers`, `http`). Whether the
//! external address that it tells is of any use (a carrier's NAT's is not, far away) the core decides.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::links::{self, Gateway};
use crate::proto::node::MappedPort;
use crate::proto::snapshot::PortMapping;

mod announce;
pub mod answers;
mod epoch;
mod http;
mod keeper;
mod pcp;
mod state;
mod upnp;

use epoch::Epoch;
use keeper::Keeper;
use state::Record;

/// A protocol that a router may speak. In order of preference, among those that answered.
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
/// What a router lost without a word is missed no longer than this. Two small packets on the LAN.
const CHECK: Duration = Duration::from_secs(120);
/// For the removal at the end: a user waits for it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// How often the router is asked whether it still holds the mapping.
    pub check: Duration,
}

impl Default for Options {
    /// Nothing enabled.
    fn default() -> Self {
        Self { enabled: Vec::new(), local_port: 0, state_file: None, lease: LEASE, check: CHECK }
    }
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
    speaks: Arc<AtomicBool>,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl PortMapper {
    /// Starts mapping UDP port `local_port`. With nothing enabled it does nothing but remove leftovers.
    /// To be called within a tokio runtime.
    pub fn start(enabled: &[Protocol], local_port: u16, state_file: Option<PathBuf>) -> Self {
        Self::start_with(Options { enabled: enabled.to_vec(), local_port, state_file, ..Options::default() })
    }

    pub fn start_with(options: Options) -> Self {
        let (sender, mapped) = watch::channel(None);
        // One waiting command says all there is to say; a second refresh adds nothing to the first.
        let (commands, inbox) = mpsc::channel(4);
        let speaks = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(Keeper::new(options, sender, speaks.clone()).run(inbox));
        Self { mapped, speaks, commands, task }
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

    /// Whether a router has answered by any protocol, though it may not have mapped anything yet.
    pub fn speaks(&self) -> bool {
        self.speaks.load(Ordering::Relaxed)
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

/// What a router granted.
struct Grant {
    external: SocketAddr,
    /// Until when it holds without a renewal. For a permanent mapping: until it is looked at again.
    lifetime: Duration,
    /// UPnP has none.
    epoch: Option<Epoch>,
}

/// What became of a request to map.
enum Asked {
    Granted(Grant),
    /// No, or a lie; nothing is mapped.
    Refused,
    /// No answer, so it may be mapped.
    Silent,
}

/// Asks the record's router for the mapping, or for another while of it. Changes the record to what was granted.
async fn ask(record: &mut Record, lease: Duration) -> Asked {
    match record.by {
        Protocol::Upnp => upnp::map(record, lease).await,
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
        Protocol::Pcp | Protocol::NatPmp => pcp::remove(record).await,
    }
}
