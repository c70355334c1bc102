//! The side of the commands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Pong, Request, Response};
use crate::proto::snapshot::Snapshot;

/// A daemon with 1,000 peers answers in some 600 KiB.
const MAX_RESPONSE: u64 = 16 << 20;
/// The daemon answers from memory; one that does not is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Removing port mappings waits for routers.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a running daemon.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Errors are sentences for the user.
    pub async fn connect(path: &Path) -> anyhow::Result<Client> {
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                anyhow!("no p2ptund is running at {}. Start one with `p2ptund up`", path.display())
            }
            io::ErrorKind::PermissionDenied => {
                anyhow!("{} may be used by root and by its group only. Run this with sudo", path.display())
            }
            _ => anyhow!("{}: {error}", path.display()),
        })?;
        Ok(Client { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    pub async fn status(&mut self) -> anyhow::Result<Snapshot> {
        self.request(&Request::Status, ANSWER_TIMEOUT).await
    }

    /// Times the path to `peer` once; `None` where nothing answered within `wait`.
    pub async fn ping(&mut self, peer: &str, wait: Duration) -> anyhow::Result<Option<Duration>> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let pong: Pong = self.request(&Request::Ping { peer: peer.to_owned(), wait_ms }, wait + ANSWER_TIMEOUT).await?;
        let rtt = pong.rtt_ms.map(|ms| Duration::try_from_secs_f64(ms / 1000.0));
        rtt.transpose().context("the daemon's answer makes no sense")
    }

    /// What changed, in words.
    pub async fn reload(&mut self) -> anyhow::Result<String> {
        self.request(&Request::Reload, ANSWER_TIMEOUT).await
    }

    /// Returns once the daemon has left nothing behind.
    pub async fn down(mut self) -> anyhow::Result<()> {
        let () = self.request(&Request::Down, ANSWER_TIMEOUT).await?;
        let mut rest = [0; 64];
        // The daemon closes the stream last of all; how it ends does not matter then.
        let end = async { while matches!(self.stream.read(&mut rest).await, Ok(1..)) {} };
        timeout(STOP_TIMEOUT, end)
            .await
            .map_err(|_| anyhow!("the daemon at {} is still stopping after 20 s", self.path.display()))
    }

    async fn request<T: DeserializeOwned>(&mut self, request: &Request, wait: Duration) -> anyhow::Result<T> {
        let answer = timeout(wait, self.exchange(request)).await;
        let line = answer.map_err(|_| anyhow!("the daemon at {} does not answer", self.path.display()))??;
        match serde_json::from_slice(&line).context("the daemon's answer makes no sense")? {
            Response::Ok(value) => serde_json::from_value(value).context("the daemon is of another version"),
            Response::Error(sentence) => bail!(sentence),
        }
    }

    async fn exchange(&mut self, request: &Request) -> anyhow::Result<Vec<u8>> {
        let closed = || format!("the daemon at {} closed the connection", self.path.display());
        let mut line = serde_json::to_vec(request).context("a request is JSON")?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.with_context(closed)?;
        line.clear();
        (&mut self.stream).take(MAX_RESPONSE).read_until(b'\n', &mut line).await.with_context(closed)?;
        if line.last() != Some(&b'\n') {
            bail!(closed());
        }
        Ok(line)
    }
}
