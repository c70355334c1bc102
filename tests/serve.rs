//! `p2ptund serve` as its users meet it: on loopback, without root.

use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
/// RFC 8489 section 6: a binding request without attributes.
const STUN_REQUEST: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

struct Server {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server.toml");
        fs::write(&path, config).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions set");
        let child = Command::new(env!("CARGO_BIN_EXE_p2ptund"))
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        Self { child, _dir: dir }
    }

    fn terminate(&self) {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Exit status, stdout and stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().expect("piped").read_to_string(&mut out).expect("UTF-8");
        self.child.stderr.take().expect("piped").read_to_string(&mut err).expect("UTF-8");
        (self.child.wait().expect("ended").code(), out, err)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// Asks until the server, which may still be starting, answers.
fn ask(socket: &UdpSocket, port: u16) -> Vec<u8> {
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
    let (start, mut buffer) = (Instant::now(), [0; 1500]);
    loop {
        socket.send_to(&STUN_REQUEST, ("127.0.0.1", port)).expect("sent");
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                assert_eq!(from.port(), port, "an answer comes from where it was asked for");
                return buffer[..len].to_vec();
            }
            Err(_) => assert!(start.elapsed() < Duration::from_secs(20), "no answer on port {port}"),
        }
    }
}

#[test]
fn answers_on_each_listener_prints_its_key_and_ends_at_sigterm() {
    let (first, second, rendezvous) = (free_port(), free_port(), free_port());
    let server = Server::start(&format!(
        "[discovery]\nlisten = [\"127.0.0.1:{first}\", \"127.0.0.1:{second}\"]\n\
         [rendezvous]\nlisten = [\"127.0.0.1:{rendezvous}\"]\nprivate_key = \"{KEY}\"\n"
    ));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    for port in [first, second] {
        let answer = ask(&socket, port);
        assert_eq!(answer[..2], [1, 1], "a STUN success");
        assert_eq!(answer[8..20], STUN_REQUEST[8..20], "of this very request");
    }
    server.terminate();
    let (status, out, err) = server.end();
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains(PUBLIC), "{out}");
    assert!(!(out + &err).contains(KEY));
}

#[test]
fn one_source_is_sent_only_so_many_answers_that_are_longer_than_their_request() {
    let port = free_port();
    let _server = Server::start(&format!("[discovery]\nlisten = [\"127.0.0.1:{port}\"]\n"));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    ask(&socket, port);
    for _ in 0..1000 {
        socket.send_to(&STUN_REQUEST, ("127.0.0.1", port)).expect("sent");
    }
    let mut answers = 0;
    while socket.recv(&mut [0; 1500]).is_ok() {
        answers += 1;
    }
    // A burst of 64, and 10 a second for as long as this took.
    assert!((32..=128).contains(&answers), "{answers}");
}

#[test]
fn a_listener_that_can_t_be_had_is_named_with_what_to_do() {
    let holder = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let taken = holder.local_addr().expect("an address");
    for (listen, remedy) in
        [(taken.to_string(), "another process has it"), ("192.0.2.99:4270".to_owned(), "no such address")]
    {
        let (status, _, err) = Server::start(&format!("[discovery]\nlisten = [\"{listen}\"]\n")).end();
        assert_eq!(status, Some(1), "{err}");
        assert!(err.contains(&listen) && err.contains(remedy), "{err}");
    }
}
