//! The daemon's life: start in order, drive, stop in the opposite order. A start that fails half-way stops the same way, so
//! nothing is left half-applied.
//!
//! ```text
//! start   TUN device (root? /dev/net/tun?) → control socket (one daemon a mesh) → UDP sockets → addresses, routes, rules
//!         → servers of [serve] → port mapping → core → READY=1 → the loop
//! stop    port mapping → servers → rules → interface, and with it addresses and routes → control socket
//! ```
//!
//! After a SIGKILL the kernel has taken back the interface and the sockets. What it has not, the next start finds by name:
//! rules, the note of a port mapping, the control socket.

mod keeper;
mod mapper;
pub mod notify;
mod reload;
mod signals;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::config::{Mesh, Serve};
use crate::control;
use crate::driver::{Driver, Exit, INPUTS, Input};
use crate::io::clock;
use crate::io::cpu;
use crate::io::links::{Layout, Links};
use crate::io::netmon::Monitor;
use crate::io::tun::{Offloads, Tun};
use crate::io::udp::Sockets;
use crate::proto::SocketId;
use crate::proto::node::Node;
use crate::serve::Servers;

use keeper::Keeper;
use mapper::Mapper;
pub use mapper::protocols;

/// A router that does not answer when its mapping is removed must not hold up a shutdown: the lease ends by itself.
const UNMAP_WAIT: Duration = Duration::from_secs(2);

/// What `up` was told beside the config.
pub struct UpOptions {
    /// The name that `-i` gave the interface in place of the config's; a reload keeps it ([`Mesh::load_as`]).
    pub interface: Option<String>,
    /// The path of the control socket.
    pub control: PathBuf,
    /// To be told once the interface is up, with its addresses and routes.
    pub ready: oneshot::Sender<()>,
}

/// Joins the mesh and stays until SIGTERM, SIGINT or `p2ptund down`.
///
/// # Errors
/// One sentence for the user: what of the start failed, with everything undone; or what the running daemon can't go on without.
pub async fn up(mesh: Mesh, options: UpOptions) -> Result<()> {
    let mut held = Held::default();
    let mut daemon = match Daemon::start(mesh, options.interface, &options.control, &mut held).await {
        Ok(daemon) => daemon,
        Err(error) => {
            held.give_back(None).await;
            return Err(error);
        }
    };
    notify::ready(&daemon.driver.status());
    // Who started us may have stopped waiting.
    let _ = options.ready.send(());
    let outcome = daemon.drive(&mut held).await;
    notify::stopping();
    held.give_back(Some(daemon.driver)).await;
    outcome
}

/// What a daemon has of the system's and must give back, each as soon as it is had.
#[derive(Default)]
struct Held {
    control: Option<JoinHandle<()>>,
    keeper: Option<Keeper>,
    servers: Option<JoinHandle<()>>,
    mapper: Option<Mapper>,
}

impl Held {
    /// The stop, in order. What can't be taken away is said and does not keep the rest.
    async fn give_back(&mut self, driver: Option<Driver>) {
        if let Some(mapper) = self.mapper.take()
            && tokio::time::timeout(UNMAP_WAIT, mapper.stop()).await.is_err()
        {
            debug!("the router did not answer; its mapping ends by itself");
        }
        if let Some(servers) = self.servers.take() {
            servers.abort();
        }
        if let Some(keeper) = self.keeper.take()
            && let Err(error) = keeper.stop().await
        {
            warn!(%error, "not all rules could be removed");
        }
        // With it goes the TUN device, and its addresses and routes with that.
        drop(driver);
        if let Some(control) = self.control.take() {
            // Its user of `p2ptund down` sees the stream end, and the socket goes.
            control.abort();
            let _ = control.await;
        }
    }
}

/// A running daemon.
struct Daemon {
    mesh: Mesh,
    /// The name that the user gave the interface in place of the config's.
    interface: Option<String>,
    /// What the main sockets are bound to.
    port: u16,
    driver: Driver,
}

impl Daemon {
    /// All that must be given back is put into `held` as soon as it is had.
    async fn start(mesh: Mesh, interface: Option<String>, control_path: &Path, held: &mut Held) -> Result<Self> {
        let (sender, inputs) = mpsc::channel(INPUTS);
        signals::forward(sender.clone()).context("signals can't be caught")?;
        let tun = Tun::create(&mesh.interface, mesh.mtu, Offloads::ALL)?;
        held.control = Some(listen(control::Server::bind(control_path)?, sender.clone()));
        let sockets = Sockets::bind(mesh.listen_port).map_err(|error| port_refusal(mesh.listen_port, &error))?;
        let port = sockets.local_address(SocketId::MAIN_V4).map_or(mesh.listen_port, |address| address.port());

        let monitor = Monitor::open().context("the kernel's netlink interface can't be listened to")?;
        let links = Links::open(&mesh.interface).await?;
        if let Err(error) = links.apply(&layout(&mesh)).await {
            // The sentence that matters is why the start failed.
            let _ = links.remove().await;
            return Err(error.into());
        }
        let mapper = Mapper::start(
            &mesh.port_mapping,
            port,
            control_path.with_file_name(format!("{}.portmap", mesh.interface)),
            sender.clone(),
        );
        let keeper =
            Keeper::start(links, mesh.interface.clone(), monitor, layout(&mesh), sender.clone(), mapper.refresher());
        held.keeper = Some(keeper);
        held.mapper = Some(mapper);
        held.servers = serve(&mesh.serve)?;

        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
        let now = clock::now();
        let node = Node::new(mesh.core(port, cpu::has_aes()), seed, now, clock::wall());
        let driver = Driver::new(node, tun, sockets, (sender, inputs), mesh.peers.len())
            .context("the threads that carry packets can't be started")?;
        info!(
            interface = %mesh.interface, port, public_key = %mesh.private_key.public(), peers = mesh.peers.len(), "up"
        );
        Ok(Self { mesh, interface, port, driver })
    }

    /// Until a stop (`Ok`) or the loss of something that can't be done without.
    async fn drive(&mut self, held: &mut Held) -> Result<()> {
        loop {
            match self.driver.run().await {
                Exit::Stop => return Ok(()),
                Exit::Reload { answer } => {
                    notify::reloading();
                    let outcome = self.reload(held).await;
                    match &outcome {
                        Ok(summary) => info!(%summary, "reloaded"),
                        Err(faults) => warn!(%faults, "reload refused; the old config goes on"),
                    }
                    notify::ready(&self.driver.status());
                    match (answer, outcome) {
                        (Some(answer), Ok(summary)) => answer.send(&summary),
                        (Some(answer), Err(faults)) => answer.fail(faults),
                        (None, _) => {}
                    }
                }
                Exit::Failed(error) => return Err(error),
            }
        }
    }

    /// Takes the changed config over, or nothing of it. What is most likely to fail comes first, and is taken back.
    async fn reload(&mut self, held: &mut Held) -> Result<String, String> {
        let new = Mesh::load_as(&self.mesh.path, self.interface.as_deref()).map_err(|faults| faults.to_string())?;
        let changes = reload::changes(&self.mesh, &new).map_err(|refusals| refusals.join("\n"))?;
        if changes.serve {
            replace_servers(held, &new.serve, &self.mesh.serve).await.map_err(|error| format!("{error:#}"))?;
        }
        if changes.links
            && let Some(keeper) = &held.keeper
            && let Err(error) = keeper.apply(layout(&new)).await
        {
            let _ = keeper.apply(layout(&self.mesh)).await;
            if changes.serve {
                let _ = replace_servers(held, &self.mesh.serve, &new.serve).await;
            }
            return Err(error.to_string());
        }
        if changes.port_mapping
            && let Some(mapper) = &held.mapper
        {
            mapper.enable(&new.port_mapping).await;
        }
        self.driver.handle_config(new.core(self.port, cpu::has_aes())).await;
        self.mesh = new;
        Ok(changes.summary)
    }
}

/// Hands what users ask at the control socket to the loop.
fn listen(mut server: control::Server, inputs: mpsc::Sender<Input>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (request, reply) = server.next_request().await;
            if inputs.send(Input::Control(request, reply)).await.is_err() {
                return;
            }
        }
    })
}

fn layout(mesh: &Mesh) -> Layout {
    Layout { mtu: mesh.mtu, addresses: mesh.addresses.clone(), routes: reload::routes(mesh).into_iter().collect() }
}

/// The servers of `[serve]` as a task; `None` where there are none.
fn serve(config: &Serve) -> Result<Option<JoinHandle<()>>> {
    if config.discovery.is_none() && config.rendezvous.is_none() {
        return Ok(None);
    }
    let mut servers = Servers::bind(config)?;
    if let Some(rendezvous) = &config.rendezvous {
        info!(public_key = %rendezvous.private_key.public(), "members need this rendezvous server's public key");
    }
    Ok(Some(tokio::spawn(async move { match servers.run().await {} })))
}

/// Old and new may share listeners, so the old ones end first; they come back where the new ones can't be had.
async fn replace_servers(held: &mut Held, new: &Serve, old: &Serve) -> Result<()> {
    if let Some(servers) = held.servers.take() {
        servers.abort();
        // Its sockets are closed once it has ended, which is how an aborted task ends.
        let _ = servers.await;
    }
    match serve(new) {
        Ok(servers) => held.servers = servers,
        Err(error) => {
            held.servers = serve(old).context("the old servers could not be started again")?;
            return Err(error);
        }
    }
    Ok(())
}

fn port_refusal(port: u16, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "UDP port {port} is in use by another process: stop that, or write another listen_port in [interface]"
        ),
        _ => anyhow!("no UDP socket on port {port} can be had: {error}"),
    }
}
