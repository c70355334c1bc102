//! The commands against a daemon: the shipped binary on one side, the control socket's real server with a made-up mesh behind
//! it on the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use p2ptund::control::{Request, Server};
use p2ptund::proto::snapshot::{
    Allocation, Behaviour, Confidence, Method, Nat, Peer, PortMapping, Punch, Snapshot, State,
};

fn peer(name: &str, state: State) -> Peer {
    let connected = state == State::Connected;
    Peer {
        name: name.into(),
        public_key: format!("{name}="),
        state,
        endpoint: connected.then(|| "203.0.113.102:30007".parse().expect("an address")),
        method: connected.then_some(Method::Punch),
        why: Some("both NATs were asked".into()),
        cipher: None,
        path_mtu: None,
        inner_mtu: 1420,
        rtt_ms: None,
        connect_ms: connected.then_some(340),
        probes_sent: 1,
        sockets_used: 1,
        entries_used: 4,
        tx_bytes: 0,
        rx_bytes: 0,
        last_handshake: None,
        allowed_ips: vec!["10.77.0.2/32".into()],
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        interface: "p2p0".into(),
        public_key: "own=".into(),
        listen_port: 4275,
        addresses: vec!["10.77.0.1/24".into()],
        mtu: 1420,
        nat: Nat {
            mapping: Behaviour::AddressAndPortDependent,
            filtering: Behaviour::Unknown,
            allocation: Allocation::Sequential,
            delta: Some(1),
            cross_traffic_per_s: None,
            cross_traffic_error_per_s: None,
            ports: None,
            parity_kept: None,
            port_offset: None,
            paired: None,
            public: Vec::new(),
            mapping_lifetime_s: None,
            keepalive_s: None,
            port_mapping: PortMapping::None,
            second_priority: None,
            low_ttl: None,
            confidence: Confidence::default(),
            observations: Vec::new(),
        },
        punch: Punch {
            window: (-16, 32),
            sockets: 256,
            probes: 2048,
            entries: 1280,
            rate: 1000,
            timeout_s: 10.0,
            hard_calls: 1,
            hard_calls_now: 0,
        },
        rendezvous: Vec::new(),
        peers: vec![peer("berlin", State::Connected), peer("paris", State::Failed)],
        drops: BTreeMap::new(),
    }
}

/// Answers until `down`.
async fn mesh(mut server: Server) {
    loop {
        let (request, reply) = server.next_request().await;
        match request {
            Request::Status => reply.send(&snapshot()),
            Request::Ping { peer, .. } if peer == "berlin" => reply.pong(Duration::from_micros(12_300)),
            // What a node does that has no path: the answer never comes, and the client's time runs out.
            Request::Ping { peer, .. } if peer == "paris" => std::mem::forget(reply),
            Request::Ping { peer, .. } => reply.fail(format!("no peer is named {peer}")),
            Request::Reload => reply.send(&"1 peer changed"),
            Request::Down => return reply.send(&()),
        }
    }
}

async fn run(control: &Path, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_p2ptund"));
    command.args(args).arg("--control").arg(control).stdin(Stdio::null());
    command.output().await.expect("the binary runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn every_command_shows_what_the_daemon_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = dir.path().join("p2p0.sock");
    let running = tokio::spawn(mesh(Server::bind(&control).expect("binds")));

    let status = run(&control, &["status"]).await;
    assert!(status.status.success() && out(&status).contains("peer: berlin (connected)\n"), "{}", out(&status));
    assert!(!out(&status).contains('\u{1b}'), "no colours into a pipe");
    let json = run(&control, &["status", "--json"]).await;
    let read: Snapshot = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(read, snapshot());

    let ping = run(&control, &["ping", "berlin", "-c", "2"]).await;
    let text = out(&ping);
    assert_eq!(ping.status.code(), Some(0), "{text}");
    assert!(text.starts_with("reply from berlin (203.0.113.102:30007): seq=1 time=12.3 ms\n"), "{text}");
    assert!(text.contains("2 sent, 2 received, 0% lost, round trip min/avg/max 12.30/12.30/12.30 ms\n"), "{text}");
    assert!(
        text.ends_with("direct path to 203.0.113.102:30007, found by punch in 340 ms: both NATs were asked\n"),
        "{text}"
    );
    let json = run(&control, &["ping", "berlin", "-c", "1", "--json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&report["received"], &report["path"]["method"]), (&1.into(), &"punch".into()), "{report}");

    let unknown = run(&control, &["ping", "rome"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&unknown.stderr), "p2ptund: no peer is named rome\n");

    let reload = run(&control, &["reload"]).await;
    assert_eq!((reload.status.code(), out(&reload).as_str()), (Some(0), "1 peer changed\n"));
    let down = run(&control, &["down"]).await;
    assert!(down.status.success() && !control.exists());
    running.await.expect("ended");
}

#[tokio::test]
async fn a_ping_that_nothing_answers_says_why_and_is_status_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = dir.path().join("p2p0.sock");
    let _running = tokio::spawn(mesh(Server::bind(&control).expect("binds")));
    let ping = run(&control, &["ping", "paris", "-c", "1", "-W", "1"]).await;
    let text = out(&ping);
    assert_eq!(ping.status.code(), Some(1), "{text}");
    assert!(text.starts_with("no reply from paris: seq=1 (no path: failed: both NATs were asked)\n"), "{text}");
    assert!(text.contains("1 sent, 0 received, 100% lost\n"), "{text}");
}

/// Needs root, to become another user; a member of the socket's group, whom its mode lets in.
#[tokio::test]
async fn another_user_may_look_but_not_stop_the_daemon() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().expect("a directory");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody).expect("mode");
    let control = dir.path().join("p2p0.sock");
    let _running = tokio::spawn(mesh(Server::bind(&control).expect("binds")));
    let group = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(&control).expect("there"));
    // A copy, because another user may not reach the build directory.
    let binary = dir.path().join("p2ptund");
    std::fs::copy(env!("CARGO_BIN_EXE_p2ptund"), &binary).expect("copied");
    let as_nobody = async |word: &str| {
        let mut command = tokio::process::Command::new(&binary);
        command.arg(word).arg("--control").arg(&control).uid(NOBODY).gid(group).stdin(Stdio::null()).output().await
    };
    let Ok(status) = as_nobody("status").await else {
        eprintln!("SKIPPED: only root can try this as another user");
        return;
    };
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    for word in ["down", "reload"] {
        let refused = as_nobody(word).await.expect("the binary runs");
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{word}");
        assert!(stderr.contains("only root and the daemon's own user"), "{stderr}");
    }
    assert!(run(&control, &["status"]).await.status.success(), "it runs still");
}
