//! The daemon of a mesh member.

use std::path::PathBuf;

use tokio::sync::oneshot;

use crate::config::Mesh;

/// What `up` was told beside the config.
pub struct UpOptions {
    /// The name that `-i` gave the interface in place of the config's; a reload keeps it ([`Mesh::load_as`]).
    pub interface: Option<String>,
    /// The path of the control socket.
    pub control: PathBuf,
    /// To be told once the interface is up, with its addresses and routes.
    pub ready: oneshot::Sender<()>,
}

/// Joins the mesh until SIGTERM, SIGINT or `down`.
pub async fn up(_mesh: Mesh, _options: UpOptions) -> anyhow::Result<()> {
    anyhow::bail!("not in this build")
}
