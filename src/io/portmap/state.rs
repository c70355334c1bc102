//! What was asked of routers, in a file, for the next start to take over or remove after a SIGKILL. A JSON list of at most eight
//! records, or no file.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answers::Control;
use super::{Gateway, Protocol};

/// More than eight records can be: the longest thing in one is a path of 512 bytes.
const MAX_LEN: u64 = 16384;
/// Three protocols, at the routers of two networks, and what was left before.
const MAX_RECORDS: usize = 8;
/// Ports from here on are the dynamic ones of most systems; a firewall may forbid them (the patent's paragraph 0041).
const DYNAMIC: u16 = 32768;
/// So many ports besides the equal one are asked for: a router where six in a row are taken gives none.
const OTHER_PORTS: usize = 5;

/// One mapping: enough to renew and to remove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub by: Protocol,
    pub gateway: Ipv4Addr,
    pub source: Ipv4Addr,
    pub local_port: u16,
    /// The one that is mapped; before it is, the first to be asked for.
    pub external_port: u16,
    /// What is asked for next, where that one is not to be had. Here, so that a start after a SIGKILL knows what may be mapped.
    pub others: Vec<u16>,
    /// Unix seconds; after it, the mapping is not ours. A permanent one never gets there.
    expires: u64,
    pub permanent: bool,
    /// PCP: proves that a request comes from who made the mapping.
    #[serde(default)]
    pub nonce: Option<[u32; 3]>,
    /// UPnP: where to send requests.
    #[serde(default)]
    pub control: Option<Control>,
}

impl Record {
    /// Of a mapping that is about to be asked for: at the equal port, then at some below the dynamic ones. Where the equal one
    /// is dynamic itself, it comes last.
    pub fn new(by: Protocol, router: Gateway, local_port: u16, lease: Duration) -> Self {
        let mut ports: Vec<u16> = std::iter::from_fn(low_port).take(OTHER_PORTS).collect();
        ports.insert(if is_low(local_port) { 0 } else { ports.len() }, local_port);
        Self {
            by,
            gateway: router.address,
            source: router.source,
            local_port,
            external_port: ports[0],
            others: ports[1..].to_vec(),
            expires: unix_seconds() + lease.as_secs(),
            permanent: false,
            nonce: None,
            control: None,
        }
    }

    pub fn router(&self) -> Gateway {
        Gateway { address: self.gateway, source: self.source, interface: 0 }
    }

    /// Whether a request for the one is a request for the other: a router holds one mapping for both.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |record: &Self| (record.by, record.gateway, record.source, record.local_port);
        key(self) == key(other)
    }

    /// It is mapped at this port, and nowhere else.
    pub fn granted(&mut self, external_port: u16) {
        self.external_port = external_port;
        self.others.clear();
    }

    /// Everywhere where it may be mapped.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.external_port).chain(self.others.iter().copied())
    }

    pub fn expires_in(&mut self, lifetime: Duration) {
        self.expires = unix_seconds() + lifetime.as_secs();
    }

    pub fn has_expired(&self) -> bool {
        !self.permanent && unix_seconds() > self.expires
    }
}

/// Whether a firewall that forbids the dynamic ports lets packets to this one pass.
pub fn is_low(port: u16) -> bool {
    port < DYNAMIC
}

/// A port that needs no privilege and is not dynamic. `None` where the system has no randomness.
fn low_port() -> Option<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).ok()?;
    Some(1024 + u16::from_ne_bytes(bytes) % (DYNAMIC - 1024))
}

fn unix_seconds() -> u64 {
    crate::io::clock::wall().0.as_secs()
}

/// The file, if there is to be one, and what it holds. Failing to write it is no reason not to map.
pub struct StateFile {
    path: Option<PathBuf>,
    records: Vec<Record>,
}

impl StateFile {
    /// With the last run's records. Anything unreadable is nothing.
    pub fn open(path: Option<PathBuf>) -> Self {
        let read = |path: &PathBuf| {
            let mut text = String::new();
            std::fs::File::open(path).ok()?.take(MAX_LEN).read_to_string(&mut text).ok()?;
            serde_json::from_str::<Vec<Record>>(&text).ok()
        };
        let mut records = path.as_ref().and_then(read).unwrap_or_default();
        records.truncate(MAX_RECORDS);
        Self { path, records }
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Notes a record in the place of what was known of the same mapping.
    pub fn note(&mut self, record: &Record) {
        self.records.retain(|known| !known.is_same(record) && !known.has_expired());
        if self.records.len() >= MAX_RECORDS {
            self.records.remove(0);
        }
        self.records.push(record.clone());
        self.write();
    }

    /// The mapping is gone.
    pub fn forget(&mut self, record: &Record) {
        self.records.retain(|known| !known.is_same(record));
        self.write();
    }

    /// Replaces the file, whole or not at all; no records, no file.
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let result = if self.records.is_empty() {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        } else {
            let mut draft = path.clone().into_os_string();
            draft.push(".new");
            let write = |text: String| {
                let mut options = std::fs::OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                options.open(&draft)?.write_all(text.as_bytes())?;
                std::fs::rename(&draft, path)
            };
            serde_json::to_string(&self.records).map_err(std::io::Error::from).and_then(write)
        };
        if let Err(error) = result {
            tracing::debug!(%error, path = %path.display(), "the port mapping's state file can't be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let router =
            Gateway { address: Ipv4Addr::new(192, 0, 2, 1), source: Ipv4Addr::new(192, 0, 2, 7), interface: 3 };
        Record::new(Protocol::NatPmp, router, 4275, Duration::from_secs(60))
    }

    #[test]
    fn records_are_read_back_until_they_are_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        let mut file = StateFile::open(Some(path.clone()));
        let (one, mut other) = (record(), record());
        other.local_port += 1;
        file.note(&one);
        file.note(&other);
        other.granted(9);
        file.note(&other);
        let again = StateFile::open(Some(path.clone()));
        assert_eq!(again.records(), [one.clone(), other.clone()]);
        file.forget(&one);
        file.forget(&other);
        assert!(!path.exists());
        for port in 1..100 {
            file.note(&Record { local_port: port, ..record() });
        }
        assert_eq!(StateFile::open(Some(path)).records().len(), MAX_RECORDS);
    }

    #[test]
    fn rubbish_in_the_file_is_nothing_and_no_place_to_write_is_no_fault() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        for rubbish in ["", "{", "[{}]", "[{\"by\":\"Upnp\"}]", "\u{1F98A}"] {
            std::fs::write(&path, rubbish).expect("writes");
            assert_eq!(StateFile::open(Some(path.clone())).records(), []);
        }
        StateFile::open(Some(directory.path().join("no/such/place"))).note(&record());
        StateFile::open(None).note(&record());
    }

    #[test]
    fn the_equal_port_is_asked_for_first_unless_it_is_a_dynamic_one() {
        assert_eq!(record().external_port, 4275);
        let ports: Vec<u16> = record().ports().collect();
        assert_eq!(ports.len(), 1 + OTHER_PORTS);
        assert!(ports.iter().all(|port| (1024..DYNAMIC).contains(port)), "{ports:?}");
        let ports: Vec<u16> = Record::new(Protocol::Pcp, record().router(), 50_000, Duration::ZERO).ports().collect();
        assert!(ports[..OTHER_PORTS].iter().all(|port| is_low(*port)), "{ports:?}");
        assert_eq!(ports[OTHER_PORTS], 50_000);
    }

    #[test]
    fn a_record_expires_with_its_lease_unless_it_is_permanent() {
        let mut record = record();
        assert!(!record.has_expired());
        record.expires = unix_seconds() - 1;
        assert!(record.has_expired());
        record.permanent = true;
        assert!(!record.has_expired());
    }
}
