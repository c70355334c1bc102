//! What was mapped, in a file, for the next start to remove after a SIGKILL. One JSON object, at most 4 KiB, or no file.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::upnp::Control;
use super::{Gateway, Protocol};

/// More than a record can be.
const MAX_LEN: u64 = 4096;

/// One mapping: enough to renew and to remove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub by: Protocol,
    pub gateway: Ipv4Addr,
    pub source: Ipv4Addr,
    pub local_port: u16,
    pub external_port: u16,
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
    /// Of a mapping that is about to be asked for, at the equal port.
    pub fn new(by: Protocol, router: Gateway, local_port: u16, lease: Duration) -> Self {
        Self {
            by,
            gateway: router.address,
            source: router.source,
            local_port,
            external_port: local_port,
            expires: unix_seconds() + lease.as_secs(),
            permanent: false,
            nonce: None,
            control: None,
        }
    }

    pub fn expires_in(&mut self, lifetime: Duration) {
        self.expires = unix_seconds() + lifetime.as_secs();
    }

    pub fn has_expired(&self) -> bool {
        !self.permanent && unix_seconds() > self.expires
    }
}

fn unix_seconds() -> u64 {
    crate::io::clock::wall().0.as_secs()
}

/// The file, if there is to be one, and what it holds. Failing to write it is no reason not to map.
pub struct StateFile {
    path: Option<PathBuf>,
    last: Option<Record>,
}

impl StateFile {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, last: None }
    }

    /// What was stored last in this run.
    pub fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// The last run's record. Anything unreadable is nothing.
    pub fn load(&self) -> Option<Record> {
        let file = std::fs::File::open(self.path.as_ref()?).ok()?;
        let mut text = String::new();
        file.take(MAX_LEN).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Replaces the record, whole or not at all; `None` removes the file.
    pub fn store(&mut self, record: Option<&Record>) {
        self.last = record.cloned();
        let Some(path) = &self.path else { return };
        let result = match record {
            None => match std::fs::remove_file(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
            Some(record) => {
                let mut draft = path.clone().into_os_string();
                draft.push(".new");
                let write = |text: String| {
                    let mut options = std::fs::OpenOptions::new();
                    options.write(true).create(true).truncate(true).mode(0o600);
                    options.open(&draft)?.write_all(text.as_bytes())?;
                    std::fs::rename(&draft, path)
                };
                serde_json::to_string(record).map_err(std::io::Error::from).and_then(write)
            }
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
    fn a_record_is_read_back_until_it_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = StateFile::new(Some(directory.path().join("state")));
        assert_eq!(file.load(), None);
        file.store(Some(&record()));
        assert_eq!(file.load(), Some(record()));
        file.store(None);
        assert_eq!(file.load(), None);
    }

    #[test]
    fn rubbish_in_the_file_is_nothing_and_no_place_to_write_is_no_fault() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        for rubbish in ["", "{", "[]", "{\"by\":\"Upnp\"}", "\u{1F98A}"] {
            std::fs::write(&path, rubbish).expect("writes");
            assert_eq!(StateFile::new(Some(path.clone())).load(), None);
        }
        StateFile::new(Some(directory.path().join("no/such/place"))).store(Some(&record()));
        StateFile::new(None).store(Some(&record()));
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
