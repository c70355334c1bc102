use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("run").join("p2p0.sock");
    (dir, path)
}

/// A daemon that answers `count` requests: pings after `delay`.
fn daemon(mut server: Server, delay: Duration) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let (request, reply) = server.next_request().await;
            match request {
                Request::Status => reply.fail("the status is not ready"),
                Request::Ping { peer, .. } if peer == "nobody" => reply.fail("no peer is named \"nobody\""),
                Request::Ping { .. } => {
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        reply.pong(Duration::from_micros(12_300));
                    });
                }
                Request::Reload => drop(reply),
                Request::Down => {
                    reply.send(&());
                    // The daemon takes its time to clean up, and then drops the server.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return;
                }
            }
        }
    })
}

/// Writes `bytes` and reads until the server closes, or has answered with a line.
async fn raw(path: &Path, bytes: &[u8]) -> String {
    let mut stream = tokio::net::UnixStream::connect(path).await.expect("connects");
    stream.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n") && stream.read(&mut byte).await.is_ok_and(|n| n == 1) {
        answer.push(byte[0]);
    }
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn requests_reach_the_daemon_and_its_answers_the_client() {
    let (_dir, path) = socket();
    let running = daemon(Server::bind(&path).expect("binds"), Duration::ZERO);
    let mut client = Client::connect(&path).await.expect("connects");
    assert_eq!(
        client.ping("berlin", Duration::from_secs(1)).await.expect("answers"),
        Some(Duration::from_micros(12_300))
    );
    let wrong = client.ping("nobody", Duration::from_secs(1)).await.expect_err("no such peer").to_string();
    assert_eq!(wrong, "no peer is named \"nobody\"");
    assert_eq!(client.status().await.expect_err("refused").to_string(), "the status is not ready");
    assert_eq!(client.reload().await.expect_err("dropped").to_string(), "the daemon gave no answer");
    client.down().await.expect("stops");
    assert!(!path.exists(), "the socket's file is gone once `down` returns");
    running.await.expect("ended");
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_nothing_answers_ends_with_no_time() {
    let (_dir, path) = socket();
    let _running = daemon(Server::bind(&path).expect("binds"), Duration::from_secs(3600));
    let mut client = Client::connect(&path).await.expect("connects");
    assert_eq!(client.ping("berlin", Duration::from_secs(2)).await.expect("an answer"), None);
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_its_file_goes_with_the_server() {
    let (_dir, path) = socket();
    let server = Server::bind(&path).expect("binds");
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
    let (_dir, path) = socket();
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    let server = Server::bind(&path).expect("replaces a stale one");
    let live = Server::bind(&path).err().expect("refused").to_string();
    assert!(live.contains("already running"), "{live}");
    drop(server);
    fs::write(&path, "precious").expect("written");
    let file = Server::bind(&path).err().expect("refused").to_string();
    assert!(file.contains("is not a socket"), "{file}");
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[tokio::test]
async fn what_is_no_request_gets_an_error_and_harms_nothing() {
    let (_dir, path) = socket();
    let _running = daemon(Server::bind(&path).expect("binds"), Duration::ZERO);
    for bytes in
        [&b"\n"[..], b"{}\n", b"{\"command\":\"explode\"}\n", b"\xff\xff\n", b"{\"command\":\"ping\"}\n", &[b'['; 9000]]
    {
        let answer = raw(&path, bytes).await;
        // One that is too long may find the connection closed before it has written all.
        assert!(answer.contains("\"error\"") || bytes.len() > 4096, "{answer}");
    }
    let mut client = Client::connect(&path).await.expect("still answers");
    assert!(client.ping("berlin", Duration::from_secs(1)).await.expect("answers").is_some());
}

#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_make_room_for_others_after_5_seconds() {
    let (_dir, path) = socket();
    let _running = daemon(Server::bind(&path).expect("binds"), Duration::ZERO);
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(tokio::net::UnixStream::connect(&path).await.expect("connects"));
    }
    let mut client = Client::connect(&path).await.expect("waits in the backlog");
    assert!(client.ping("berlin", Duration::from_secs(1)).await.expect("answers").is_some());
}

#[tokio::test]
async fn where_nothing_runs_there_is_one_clear_sentence() {
    let (dir, path) = socket();
    let missing = Client::connect(&path).await.err().expect("refused").to_string();
    assert!(missing.starts_with("no p2ptund is running at "), "{missing}");
    let none = only_one_in(dir.path()).expect_err("none").to_string();
    assert!(none.contains("nothing answers"), "{none}");
}

#[tokio::test]
async fn the_only_mesh_is_found_and_several_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    drop(std::os::unix::net::UnixListener::bind(path("stale.sock")).expect("binds"));
    fs::write(path("notes.txt"), "").expect("written");
    let _first = Server::bind(&path("p2p0.sock")).expect("binds");
    assert_eq!(only_one_in(dir.path()).expect("one"), path("p2p0.sock"));
    let _second = Server::bind(&path("p2p1.sock")).expect("binds");
    let several = only_one_in(dir.path()).expect_err("two").to_string();
    assert!(several.contains("p2p0, p2p1") && several.contains("-i NAME"), "{several}");
    assert_eq!(locate(Some("x"), None).expect("a path"), Path::new("/run/p2ptund/x.sock"));
}

#[test]
fn messages_are_the_documented_lines() {
    let ping = Request::Ping { peer: "berlin".into(), wait_ms: 2000 };
    assert_eq!(json!(ping), json!({"command": "ping", "peer": "berlin", "wait_ms": 2000}));
    assert_eq!(json!(Request::Down), json!({"command": "down"}));
    assert_eq!(json!(Response::Ok(json!(null))), json!({"ok": null}));
    assert_eq!(json!(Response::Error("no".into())), json!({"error": "no"}));
}
