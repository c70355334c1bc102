//! Keeps the interface as the config wants it: at the start, after a reload, and whenever somebody else changed it.
//!
//! ```text
//! netmon: something changed ──► what is missing of ours comes back ──► own addresses changed? the core is told
//! daemon: a new layout      ──► the difference is applied
//! ```
//!
//! A task of its own, so that packets don't wait for netlink. It never fights: what is put back is what is missing, at most
//! once in [`PAUSE`], and an interface that was deleted is not made again here but ends the daemon, whose TUN descriptor is
//! dead then; the supervisor's restart is the clean way back.

use std::time::Duration;

use anyhow::anyhow;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::driver::{self, Exit, Input};
use crate::io::links::{self, Gateway, Layout, LinkError, Links};
use crate::io::netmon::Monitor;

use super::mapper::Refresh;

/// Between two repairs. With the monitor's own 200 ms a deleted route is back within half a second; and should another
/// daemon delete it each time, that is what two netlink requests a second cost.
const PAUSE: Duration = Duration::from_millis(250);

/// The running task.
pub struct Keeper {
    orders: mpsc::Sender<Order>,
    task: JoinHandle<Links>,
}

struct Order {
    layout: Layout,
    answer: oneshot::Sender<Result<(), LinkError>>,
}

impl Keeper {
    /// Takes over `links`, to which `layout` has been applied. `monitor` has listened since before that, so that nothing is
    /// missed in between. The first [`Input::Addresses`] is sent at once.
    /// `refresh` hears of each change of addresses or default route.
    pub fn start(
        links: Links,
        name: String,
        monitor: Monitor,
        layout: Layout,
        inputs: mpsc::Sender<Input>,
        refresh: Refresh,
    ) -> Self {
        let (orders, received) = mpsc::channel(1);
        let surroundings = Surroundings { name, inputs, refresh, told: None };
        let task = tokio::spawn(keep(links, monitor, layout, surroundings, received));
        Self { orders, task }
    }

    /// Makes the interface like `layout`, and keeps it so from now on.
    ///
    /// # Errors
    /// The first thing that did not work; all else was done. The keeper goes on trying at each change.
    pub async fn apply(&self, layout: Layout) -> Result<(), LinkError> {
        let gone = || LinkError::Gone("that was kept".to_owned());
        let (answer, applied) = oneshot::channel();
        self.orders.send(Order { layout, answer }).await.map_err(|_| gone())?;
        applied.await.map_err(|_| gone())?
    }

    /// Ends the task and takes away what would outlive the interface.
    ///
    /// # Errors
    /// What could not be taken away.
    pub async fn stop(self) -> Result<(), LinkError> {
        drop(self.orders);
        match self.task.await {
            Ok(links) => links.remove().await,
            // It panicked or was cancelled; the next start cleans up.
            Err(error) => Err(LinkError::Netlink(std::io::Error::other(error))),
        }
    }
}

/// Until `orders` is closed.
async fn keep(
    links: Links,
    mut monitor: Monitor,
    mut layout: Layout,
    mut surroundings: Surroundings,
    mut orders: mpsc::Receiver<Order>,
) -> Links {
    loop {
        surroundings.tell().await;
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return links };
                let result = links.apply(&order.layout).await.map(drop);
                layout = order.layout;
                // The daemon waits for it, unless it is on its way out.
                let _ = order.answer.send(result);
            }
            changed = monitor.changed() => {
                debug!(?changed, "the kernel says that something changed");
                match links.apply(&layout).await {
                    Ok(0) => {}
                    Ok(count) => info!(count, "put back what another program had taken away"),
                    Err(LinkError::Gone(name)) => {
                        let error = anyhow!("the interface {name} was deleted by another program");
                        driver::tell(&surroundings.inputs, Input::Exit(Exit::Failed(error)));
                        return links;
                    }
                    // Told by `links` already; the next change tries again.
                    Err(error) => debug!(%error, "not all could be put back"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What of this machine matters to others, and who hears when it changes.
struct Surroundings {
    /// Our own interface, which does not count.
    name: String,
    inputs: mpsc::Sender<Input>,
    refresh: Refresh,
    /// Own addresses, and the router to the rest, as told last.
    told: Option<(Vec<IpNet>, Option<Gateway>)>,
}

impl Surroundings {
    /// Tells the core this machine's own addresses, if they or the default route are not what they were.
    async fn tell(&mut self) {
        let (addresses, gateway) = match (links::own_addresses(&self.name).await, links::gateway().await) {
            (Ok(addresses), gateway) => (addresses, gateway.ok().flatten()),
            (Err(error), _) => {
                debug!(%error, "own addresses can't be listed");
                return;
            }
        };
        let now = Some((addresses, gateway));
        if self.told == now {
            return;
        }
        if self.told.is_some() {
            self.refresh.refresh();
        }
        self.told = now;
        if let Some((addresses, gateway)) = &self.told {
            debug!(count = addresses.len(), router = gateway.is_some(), "own addresses");
            driver::tell(&self.inputs, Input::Addresses(addresses.clone()));
        }
    }
}
