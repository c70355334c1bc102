//! The port mapping's task: tells the loop what the router granted, looks again when the network changed, and removes the
//! mapping at the end.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::info;

use crate::config;
use crate::driver::{self, Input};
use crate::io::portmap::{PortMapper, Protocol};

/// Orders are few, and one that finds the queue full says nothing that those before it do not.
const ORDERS: usize = 4;

#[derive(Debug)]
enum Order {
    Refresh,
    Enable(Vec<Protocol>),
    Stop,
}

/// The running task.
pub struct Mapper {
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

/// Says that the network changed; for whoever notices first.
#[derive(Clone)]
pub struct Refresh(mpsc::Sender<Order>);

impl Refresh {
    /// Looks at once whether there is another router now.
    pub fn refresh(&self) {
        // Full or gone: the task looks anyway, or not any more.
        let _ = self.0.try_send(Order::Refresh);
    }
}

impl Mapper {
    /// Maps UDP port `port` by the first of `enabled` that works, and first removes what the run before left according to
    /// `note`.
    pub fn start(enabled: &[config::Mapper], port: u16, note: PathBuf, inputs: mpsc::Sender<Input>) -> Self {
        let (orders, received) = mpsc::channel(ORDERS);
        let task = tokio::spawn(keep(protocols(enabled), port, note, inputs, received));
        Self { orders, task }
    }

    pub fn refresher(&self) -> Refresh {
        Refresh(self.orders.clone())
    }

    /// Other protocols from now on: the old mapping goes, another is asked for.
    pub async fn enable(&self, enabled: &[config::Mapper]) {
        // The task ends with the daemon only.
        let _ = self.orders.send(Order::Enable(protocols(enabled))).await;
    }

    /// Removes the mapping. Takes as long as [`PortMapper::stop`], so 2 s at most, if the task is not busy with the router;
    /// the caller bounds the whole.
    pub async fn stop(self) {
        let _ = self.orders.send(Order::Stop).await;
        let _ = self.task.await;
    }
}

/// The config's word for each protocol in the port mapper's own.
pub fn protocols(enabled: &[config::Mapper]) -> Vec<Protocol> {
    let protocol = |mapper: &config::Mapper| match mapper {
        config::Mapper::Upnp => Protocol::Upnp,
        config::Mapper::Pcp => Protocol::Pcp,
        config::Mapper::NatPmp => Protocol::NatPmp,
    };
    enabled.iter().map(protocol).collect()
}

async fn keep(
    enabled: Vec<Protocol>,
    port: u16,
    note: PathBuf,
    inputs: mpsc::Sender<Input>,
    mut orders: mpsc::Receiver<Order>,
) {
    let start = |enabled: &[Protocol]| PortMapper::start(enabled, port, Some(note.clone()));
    let mut mapper = start(&enabled);
    loop {
        tokio::select! {
            mapped = mapper.changed() => {
                match &mapped {
                    // The external address is for those who debug.
                    Some(mapped) => info!(by = ?mapped.by, port = mapped.external.port(), "the router mapped our port"),
                    None => info!("the router does not map our port any more"),
                }
                driver::tell(&inputs, Input::PortMapping(mapped));
            }
            order = orders.recv() => match order {
                Some(Order::Refresh) => mapper.refresh(),
                Some(Order::Enable(enabled)) => {
                    mapper.stop().await;
                    driver::tell(&inputs, Input::PortMapping(None));
                    mapper = start(&enabled);
                }
                Some(Order::Stop) | None => {
                    mapper.stop().await;
                    return;
                }
            },
        }
    }
}
