//! The config of a mesh member and of a server: TOML in, checked types out, or every fault at once.
//!
//! A file is parsed into a tree that knows where in the text each piece stands. `member` and `server` walk that tree once;
//! they add to a log whatever is wrong and go on with the rest. A value that comes out can't be wrong by itself, so nothing
//! behind this module checks again. Paths in a config are relative to the config file.

mod fault;
mod keyfile;
mod member;
mod peers;
mod reader;
mod routes;
mod schema;
mod server;
mod value;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeTable;

pub use fault::{Fault, Rejected, Severity};

use crate::proto;
use crate::proto::config::{Discovery, Peer, Punch, Rendezvous};
use crate::proto::keys::{PrivateKey, PublicKey};
use fault::Log;

/// Where `up` and `netcheck` look where no config is named.
pub const DEFAULT_MEMBER: &str = "/etc/p2ptund/config.toml";
/// Where `serve` looks.
pub const DEFAULT_SERVER: &str = "/etc/p2ptund/server.toml";
/// The interface of a mesh that does not name one.
pub const DEFAULT_INTERFACE: &str = "p2p0";
/// What `mtu = "auto"` and no `mtu` mean: Ethernet's 1500, less the most that a tunnelled packet grows by (40 bytes of IPv6, 8
/// of UDP, 32 of WireGuard). It is what WireGuard itself takes, so both ends agree without asking. The interface keeps it whatever a path
/// turns out to carry: each peer's packets have a limit of their own, below this one ([`crate::proto::mtu`]).
pub const AUTO_MTU: u16 = 1420;

/// A config file is read into memory, so it has an end: 1,000 peers take some 300 KiB.
const MAX_CONFIG: u64 = 4 << 20;

/// A mesh member's whole config.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The file it came from.
    pub path: PathBuf,
    pub interface: String,
    /// Virtual addresses, each with the length of its network.
    pub addresses: Vec<IpNet>,
    pub private_key: PrivateKey,
    /// UDP; 0 is any.
    pub listen_port: u16,
    pub mtu: u16,
    pub cipher: CipherChoice,
    /// Whether calls between peers are passed on.
    pub introduce: bool,
    pub discovery: Vec<Discovery>,
    /// Which protocols to ask a router by, in this order; empty for none.
    pub port_mapping: Vec<Mapper>,
    pub rendezvous: Vec<Rendezvous>,
    pub peers: Vec<Peer>,
    pub punch: Punch,
    /// `[serve.…]`: the servers that this member carries.
    pub serve: Serve,
    /// What is accepted but seldom meant.
    pub notes: Vec<Fault>,
}

/// `[interface] cipher`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CipherChoice {
    /// AES-256-GCM where both members agree that it is faster, or else WireGuard's own.
    #[default]
    Auto,
    /// WireGuard's own, always.
    ChaCha20Poly1305,
}

/// A protocol by which a router maps a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapper {
    Upnp,
    Pcp,
    NatPmp,
}

impl Mapper {
    pub const ALL: [Mapper; 3] = [Mapper::Upnp, Mapper::Pcp, Mapper::NatPmp];
}

/// The servers that one process carries.
#[derive(Clone, Debug, Default)]
pub struct Serve {
    pub discovery: Option<ServeDiscovery>,
    pub rendezvous: Option<ServeRendezvous>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeDiscovery {
    /// One socket each, all different; an address without a port stands for its whole series.
    pub listen: Vec<SocketAddr>,
}

#[derive(Clone, Debug)]
pub struct ServeRendezvous {
    /// One socket each, all different.
    pub listen: Vec<SocketAddr>,
    pub private_key: PrivateKey,
    /// Only these members; `None` is any.
    pub allow: Option<Vec<PublicKey>>,
}

/// A server's whole config.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The file it came from.
    pub path: PathBuf,
    /// At least one of both.
    pub serve: Serve,
    /// What is accepted but seldom meant.
    pub notes: Vec<Fault>,
}

/// Checks the name of an interface as the config does; an error is one sentence or two.
pub fn interface_name(text: &str) -> Result<String, String> {
    value::interface_name(text).map_err(|wrong| format!("{}. {}", wrong.what, wrong.remedy))
}

/// What `netcheck` needs of a member's config: nothing that takes a key.
#[derive(Clone, Debug)]
pub struct Lookout {
    pub listen_port: u16,
    pub servers: Vec<Discovery>,
    pub port_mapping: Vec<Mapper>,
    pub punch: Punch,
}

impl Mesh {
    /// Reads and checks a member's config and the key files that it names.
    pub fn load(path: &Path) -> Result<Mesh, Rejected> {
        load(path, member::read, |mesh, notes| mesh.notes = notes)
    }

    /// As [`Mesh::load`], with another name for the interface where one is given.
    pub fn load_as(path: &Path, interface: Option<&str>) -> Result<Mesh, Rejected> {
        let mut mesh = Self::load(path)?;
        if let Some(interface) = interface {
            mesh.interface = interface.to_owned();
        }
        Ok(mesh)
    }

    /// What the core acts on, with the port that the main sockets are really bound to. `has_aes`: the processor is fast at it.
    pub fn core(&self, listen_port: u16, has_aes: bool) -> proto::config::Config {
        proto::config::Config {
            interface: self.interface.clone(),
            addresses: self.addresses.clone(),
            introduce: self.introduce,
            mtu: self.mtu,
            aes: has_aes && self.cipher == CipherChoice::Auto,
            private_key: self.private_key.clone(),
            listen_port,
            discovery: self.discovery.clone(),
            rendezvous: self.rendezvous.clone(),
            peers: self.peers.clone(),
            punch: self.punch,
        }
    }
}

impl ServerConfig {
    /// Reads and checks a server's config and the key file that it names.
    pub fn load(path: &Path) -> Result<ServerConfig, Rejected> {
        load(path, server::read, |server, notes| server.notes = notes)
    }
}

impl Lookout {
    /// Reads and checks `[discovery]` of a member's config; opens no key file, so any user may.
    pub fn load(path: &Path) -> Result<Lookout, Rejected> {
        load(path, member::read_lookout, |_, _| {})
    }
}

/// Checks the config of a member or a server, whichever it is. `Ok` is one line that says what it holds, and the notes. A key file
/// that is not there yet is one of those: a config may be written, and checked, before its keys are made, or elsewhere.
pub fn check(path: &Path) -> Result<(String, Vec<Fault>), Rejected> {
    let summary = |source: &Source, root: &Spanned<DeTable<'_>>, log: &mut Log| match Kind::of(root.get_ref()) {
        Some(Kind::Member) | None => member::read(source, root, log).map(|mesh| member::summary(&mesh)),
        Some(Kind::Server) => server::read(source, root, log).map(|server| server::summary(&server)),
    };
    let mut notes = Vec::new();
    match load(path, summary, |_, found| notes = found) {
        Ok(summary) => Ok((summary, notes)),
        Err(Rejected(found)) if found.iter().all(|fault| fault.severity != Severity::Fault) && !found.is_empty() => {
            Ok(("right; it can be used once the key files above are there".to_owned(), found))
        }
        Err(rejected) => Err(rejected),
    }
}

/// Whose config a file is, told by the tables that only one of both has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Member,
    Server,
}

impl Kind {
    fn of(root: &DeTable<'_>) -> Option<Kind> {
        let has = |table: &str, key: &str| {
            root.get(table).and_then(|table| table.get_ref().as_table()).is_some_and(|table| table.contains_key(key))
        };
        let of_member = ["interface", "peer", "punch", "serve"].iter().any(|key| root.contains_key(*key))
            || has("discovery", "servers")
            || has("discovery", "port_mapping");
        let of_server = has("discovery", "listen")
            || ["listen", "private_key_file", "private_key", "allow"].iter().any(|key| has("rendezvous", key));
        match (of_member, of_server) {
            (true, _) => Some(Kind::Member),
            (false, true) => Some(Kind::Server),
            (false, false) => None,
        }
    }
}

/// A config file as it was read.
struct Source {
    path: PathBuf,
    /// The file's permission bits.
    mode: u32,
}

impl Source {
    /// Where paths in the config start.
    fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

fn load<T>(
    path: &Path,
    read: impl FnOnce(&Source, &Spanned<DeTable<'_>>, &mut Log) -> Option<T>,
    keep_notes: impl FnOnce(&mut T, Vec<Fault>),
) -> Result<T, Rejected> {
    let (text, mode) = read_file(path)?;
    let source = Source { path: path.to_owned(), mode };
    let mut log = Log::new(path, &text);
    let value = parse(&source, &text, read, &mut log);
    if mode & 0o002 != 0 {
        let remedy = format!("Run `chmod o-w {}`.", path.display());
        log.whole(Severity::Note, format!("every user of this machine can change this file (mode {mode:04o})"), remedy);
    }
    if value.is_none() {
        log.otherwise_unreadable();
    }
    let notes = log.finish()?;
    // A reader that gives nothing has noted a fault, so that `finish` has returned already.
    let mut value = value.ok_or(Rejected(Vec::new()))?;
    keep_notes(&mut value, notes);
    Ok(value)
}

fn parse<T>(
    source: &Source,
    text: &str,
    read: impl FnOnce(&Source, &Spanned<DeTable<'_>>, &mut Log) -> Option<T>,
    log: &mut Log,
) -> Option<T> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        log.syntax(error.span().map_or(0, |span| span.start), &error.message().replace('\n', ", "));
    }
    read(source, &root, log)
}

/// The text of the file and its permission bits.
fn read_file(path: &Path) -> Result<(String, u32), Rejected> {
    let refuse = |what: String, remedy: &str| {
        let mut log = Log::new(path, "");
        log.whole(Severity::Fault, what, remedy);
        log.finish().expect_err("a fault was noted just now")
    };
    let unreadable = |error: std::io::Error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::NotFound => "Name a config that exists.",
            std::io::ErrorKind::PermissionDenied => "Run this as a user who may read it, such as root.",
            _ => "Name a config file.",
        };
        refuse(format!("can't be read: {}", keyfile::plain(&error)), remedy)
    };
    // Without blocking, because the path may name a pipe that nobody writes to.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(refuse(format!("is larger than {} MiB", MAX_CONFIG >> 20), "Name a config file."));
    }
    let text = String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 text".into(), "Save it as UTF-8."))?;
    Ok((text, mode & 0o7777))
}

/// How many different ones there are.
fn distinct<T: Ord>(items: impl IntoIterator<Item = T>) -> usize {
    items.into_iter().collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests;
