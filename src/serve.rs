//! The servers of `p2ptund serve`.

use crate::config::ServerConfig;

/// Serves until SIGTERM or SIGINT.
pub async fn run(_config: ServerConfig) -> anyhow::Result<()> {
    anyhow::bail!("not in this build")
}
