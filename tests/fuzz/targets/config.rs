//! A config file's text, as a member's, a server's, and for `netcheck`; and that a core can start from whatever is accepted.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use p2ptund::config::{Fault, Lookout, Mesh, Rejected, ServerConfig, Severity, check};
use p2ptund::proto::node::Node;
use p2ptund::proto::{Instant, Wall};

/// A key file beside the config, so that an input can get past it: 32 times "A", in base64.
const KEY: &str = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\n";

pub fn run(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory can be made");
    write(&dir.path().join("private.key"), KEY.as_bytes());
    let path = dir.path().join("config.toml");
    write(&path, data);
    let lines = data.split(|byte| *byte == b'\n').count();

    let (checked, mesh, server) = (check(&path), Mesh::load(&path), ServerConfig::load(&path));
    let lookout = Lookout::load(&path);
    for rejected in [checked.as_ref().err(), mesh.as_ref().err(), server.as_ref().err(), lookout.as_ref().err()] {
        rejected.into_iter().for_each(|rejected| explains(rejected, lines));
    }
    // A key file that is not there yet is the one thing that `check` passes and nothing can be run from.
    let waits = |notes: &[Fault]| notes.iter().any(|note| note.severity == Severity::Missing);
    let complete = checked.as_ref().is_ok_and(|(_, notes)| !waits(notes));
    assert_eq!(complete, mesh.is_ok() || server.is_ok(), "`up` and `serve` refuse what `check` refuses");
    if let Ok(mesh) = mesh {
        let now = Instant::from_nanos(1_000_000_000);
        let wall = Wall(Duration::from_secs(1_790_000_000));
        let mut node = Node::new(mesh.core(mesh.listen_port, true), [7; 32], now, wall);
        node.handle_addresses(now, &["192.0.2.1/24".parse().expect("is a prefix")]);
        while node.poll_action().is_some() || node.poll_transmit().is_some() {}
        node.snapshot(now);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).expect("a file can be written");
}

fn explains(rejected: &Rejected, lines: usize) {
    assert!(rejected.faults().next().is_some(), "what is refused is refused for a reason");
    for fault in &rejected.0 {
        assert!(fault.line.is_none_or(|line| (1..=lines).contains(&line)), "{fault}: no such line");
        assert!(!fault.what.is_empty() && !fault.remedy.is_empty());
        assert!(!fault.to_string().contains('\0'), "a terminal is shown no control characters");
    }
}
