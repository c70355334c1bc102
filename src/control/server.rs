//! The side of the daemon: takes requests from clients, bounded in number, size and time, and hands them to the daemon.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{Pong, Request, Response};

/// Clients at one time; more of them wait in the kernel's backlog.
const MAX_CLIENTS: usize = 16;
/// A peer's name and little else.
const MAX_REQUEST: u64 = 4096;
/// How long a client may take for a request, and to read the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any call: `[punch] timeout` may be a minute and more, but nobody waits for a ping so long.
const MAX_PING: Duration = Duration::from_secs(60);
/// The owner and the group may connect.
const MODE: u32 = 0o660;

/// The listening control socket. Dropping it ends all connections and removes the socket's file, so it should be the last
/// thing that a stopping daemon drops: `p2ptund down` waits for that.
pub struct Server {
    path: PathBuf,
    /// The file that is ours, should another one have taken its place.
    inode: u64,
    requests: mpsc::Receiver<(Request, Reply)>,
    acceptor: JoinHandle<()>,
}

/// Where the answer to one request goes. Dropping it answers with an error.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<Value, String>>);

impl Reply {
    pub fn send(self, value: &impl Serialize) {
        let answer = serde_json::to_value(value).map_err(|error| error.to_string());
        // A client that went away needs no answer.
        let _ = self.0.send(answer);
    }

    /// Answers with one sentence that says what is wrong.
    pub fn fail(self, sentence: impl Into<String>) {
        let _ = self.0.send(Err(sentence.into()));
    }

    /// Answers a ping.
    pub fn pong(self, rtt: Duration) {
        self.send(&Pong { rtt_ms: Some(rtt.as_secs_f64() * 1000.0) });
    }

    /// Nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

impl Server {
    /// Listens at `path`, within a tokio runtime. A stale socket there is replaced; a live one, or anything that is not a
    /// socket, is an error.
    pub fn bind(path: &Path) -> anyhow::Result<Server> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
        }
        make_room(path)?;
        let socket = listen(path).with_context(|| format!("{} can't be listened at", path.display()))?;
        let metadata = fs::symlink_metadata(path)?;
        // The daemon made the file just now, so it carries the daemon's own user.
        let uid = metadata.uid();
        let listener = UnixListener::from_std(socket.into())?;
        let (sender, requests) = mpsc::channel(MAX_CLIENTS);
        let acceptor = tokio::spawn(accept(listener, sender, uid));
        Ok(Server { path: path.to_owned(), inode: metadata.ino(), requests, acceptor })
    }

    /// The next request, and where its answer goes. Waits for ever where none comes; may be cancelled.
    pub async fn next_request(&mut self) -> (Request, Reply) {
        match self.requests.recv().await {
            Some(request) => request,
            // The acceptor is gone only where this server is being dropped.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.acceptor.abort();
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // What can't be removed is stale, and replaced by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make_room(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("{shown} can't be looked at"))?,
    };
    if !metadata.file_type().is_socket() {
        bail!("{shown} is there already and is not a socket. Remove it, or choose another path with --control");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("the stale socket {shown} can't be removed"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => bail!(
            "a p2ptund is already running at {shown}. Stop it with `p2ptund down`, or, for a second mesh, give this one \
             another [interface] name or a --control path of its own"
        ),
    }
}

/// The mode is set between bind and listen: nobody can connect before.
fn listen(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    socket.set_nonblocking(true)?;
    socket.listen(i32::try_from(MAX_CLIENTS).unwrap_or(i32::MAX))?;
    Ok(socket)
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<(Request, Reply)>, uid: u32) {
    let free = Arc::new(Semaphore::new(MAX_CLIENTS));
    // Connections end with the acceptor.
    let mut clients = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&free).acquire_owned().await else { return };
        while clients.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                clients.spawn(async move {
                    // A client that breaks off, or is too slow, has only itself to answer to.
                    if let Err(error) = serve(stream, requests, uid).await {
                        tracing::debug!(%error, "control client");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, as a rule: others will be closed.
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, requests: mpsc::Sender<(Request, Reply)>, own: u32) -> anyhow::Result<()> {
    let client = stream.peer_cred()?.uid();
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        timeout(CLIENT_TIMEOUT, (&mut stream).take(MAX_REQUEST).read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        let request = serde_json::from_slice::<Request>(&line).ok().filter(|_| whole);
        let stopping = request == Some(Request::Down);
        let response = match request {
            None => Response::Error("this is no request that p2ptund knows".into()),
            Some(request) if !request.only_looks() && client != 0 && client != own => {
                Response::Error("only root and the daemon's own user may do that. Run this with sudo".into())
            }
            Some(request) => answer(request, &requests).await,
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        timeout(CLIENT_TIMEOUT, stream.get_mut().write_all(&text)).await??;
        if !whole {
            return Ok(());
        }
        if stopping && matches!(response, Response::Ok(_)) {
            // The client takes the end of the stream as the daemon's end.
            return std::future::pending().await;
        }
    }
}

async fn answer(request: Request, requests: &mpsc::Sender<(Request, Reply)>) -> Response {
    let ping = match &request {
        Request::Ping { wait_ms, .. } => Some(Duration::from_millis(*wait_ms).min(MAX_PING)),
        Request::Status | Request::Reload | Request::Down => None,
    };
    let (reply, answer) = oneshot::channel();
    if requests.send((request, Reply(reply))).await.is_err() {
        return Response::Error("the daemon is stopping".into());
    }
    let answer = match ping {
        Some(wait) => match timeout(wait, answer).await {
            Ok(answer) => answer,
            Err(_) => return Response::Ok(serde_json::json!(Pong { rtt_ms: None })),
        },
        None => answer.await,
    };
    match answer {
        Ok(Ok(value)) => Response::Ok(value),
        Ok(Err(sentence)) => Response::Error(sentence),
        Err(_) => Response::Error("the daemon gave no answer".into()),
    }
}
