//! The control socket: how `status`, `ping`, `reload` and `down` talk to a running daemon.
//!
//! A stream socket of the UNIX kind, one JSON value a line. The client sends a [`Request`], the server one [`Response`] to each
//! in turn:
//!
//! ```text
//! {"command":"status"}                               {"ok":{"interface":"p2p0",…}}
//! {"command":"ping","peer":"berlin","wait_ms":2000}  {"ok":{"rtt_ms":12.3}}        (null: no answer in that time)
//! {"command":"reload"}                               {"ok":"2 peers changed"}
//! {"command":"down"}                                 {"ok":null}, and the end of the stream once all is gone
//! anything else                                      {"error":"one sentence"}
//! ```
//!
//! Who may connect is decided by the socket's mode, 0660. Of those, root and the daemon's own user may do everything; members
//! of the socket's group may look (`status`, `ping`).

mod client;
mod server;

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::Client;
pub use server::{Reply, Server};

/// Where the control sockets are, one a mesh.
pub const RUN_DIR: &str = "/run/p2ptund";

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// The whole [`crate::proto::snapshot::Snapshot`].
    Status,
    /// Time the path to a peer, by name or public key, once; wait so long for it at most.
    Ping { peer: String, wait_ms: u64 },
    /// Apply the changed config. The answer is a text that says what changed.
    Reload,
    /// Stop, and leave nothing behind.
    Down,
}

impl Request {
    /// Whether it only looks, so that the socket's group may.
    fn only_looks(&self) -> bool {
        match self {
            Self::Status | Self::Ping { .. } => true,
            Self::Reload | Self::Down => false,
        }
    }
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Ok(Value),
    /// One sentence, for a person.
    Error(String),
}

/// The daemon's answer to [`Request::Ping`].
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// `None`: nothing answered in time.
    pub rtt_ms: Option<f64>,
}

/// The control socket of the mesh on `interface`.
pub fn path_for(interface: &str) -> PathBuf {
    Path::new(RUN_DIR).join(format!("{interface}.sock"))
}

/// The socket to talk to: `control` if given, that of `interface` if given, or else that of the only mesh that runs.
pub fn locate(interface: Option<&str>, control: Option<&Path>) -> anyhow::Result<PathBuf> {
    match (control, interface) {
        (Some(control), _) => Ok(control.to_owned()),
        (None, Some(interface)) => Ok(path_for(interface)),
        (None, None) => only_one_in(Path::new(RUN_DIR)),
    }
}

fn only_one_in(dir: &Path) -> anyhow::Result<PathBuf> {
    let nothing =
        || format!("no p2ptund is running: nothing answers in {}. Start one with `p2ptund up`", dir.display());
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(nothing()),
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", dir.display())),
    };
    let mut sockets: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sockets.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    sockets.sort();
    // One that may not be connected to still runs; the attempt to use it says why it failed.
    sockets.retain(|path| match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    });
    match &sockets[..] {
        [] => bail!(nothing()),
        [only] => Ok(only.clone()),
        several => {
            let names: Vec<_> = several.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
            bail!("several meshes run here: {}. Say which one with -i NAME", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
