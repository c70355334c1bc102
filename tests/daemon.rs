//! The shipped binary's start and stop, each test in a network namespace of its own: nothing is left behind, whatever ends
//! the daemon, and what others take away comes back. Needs root and `ip`; without root the tests that need it say so and pass.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_p2ptund");
/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const OWN: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const OTHER: &str = "GN8ylSDVlZNkMCVpLEiLWkhcxUhSGVAzBMRNEiBHxXM=";
const BERLIN: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PARIS: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

/// A network namespace, and a directory for config and control socket. Both go when dropped.
struct Site {
    name: String,
    dir: tempfile::TempDir,
}

impl Site {
    /// `None`, with a word about it, where we may not make one.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("p2pd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output().expect("iproute2 is installed");
        if !made.status.success() {
            eprintln!("not root, so not tested: {}", String::from_utf8_lossy(&made.stderr).trim());
            return None;
        }
        let site = Self { name, dir: tempfile::tempdir().expect("a directory") };
        site.ip("link set lo up");
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ip(&self, command: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.name]).args(command.split(' ')).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All that a daemon could leave in the kernel.
    fn trace(&self) -> String {
        ["-o link", "-o addr", "route show table all", "-6 route show table all", "rule", "-6 rule"]
            .map(|command| self.ip(command))
            .join("---\n")
    }

    fn write(&self, config: &str) {
        let path = self.path("config.toml");
        fs::write(&path, config).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions set");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, BINARY]).args(arguments);
        command.args(["--control".as_ref(), self.path("ctl.sock").as_os_str()]);
        command
    }

    fn up(&self) -> Daemon {
        self.up_with(&[])
    }

    fn up_with(&self, environment: &[(&str, &str)]) -> Daemon {
        let mut command = self.command(&["up", self.path("config.toml").to_str().expect("UTF-8")]);
        command.envs(environment.iter().copied()).stderr(Stdio::piped());
        Daemon(command.spawn().expect("the daemon starts"))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("runs")
    }

    fn is_up(&self) -> bool {
        self.ip("-o addr show dev p2p0").contains("10.77.0.1/24") && self.run(&["status"]).status.success()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A daemon in the foreground, killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// How it ended, and what it said on stderr.
    fn end(mut self) -> (ExitStatus, String) {
        let child = &mut self.0;
        eventually("the daemon ends", || child.try_wait().expect("waited").is_some());
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
        (child.wait().expect("ended"), said)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

fn config() -> String {
    format!(
        r#"
[interface]
name = "p2p0"
address = ["10.77.0.1/24", "fd77::1/64"]
private_key = "{OWN}"
listen_port = 4275

[discovery]
servers = ["198.51.100.7", "203.0.113.9"]
port_mapping = []

[[peer]]
name = "berlin"
public_key = "{BERLIN}"
allowed_ips = ["10.77.0.2/32", "192.168.20.0/24", "fd77:20::/64"]
endpoint = "192.0.2.7:4275"
"#
    )
}

fn paris(allowed_ips: &str) -> String {
    format!(
        r#"
[[peer]]
name = "paris"
public_key = "{PARIS}"
allowed_ips = [{allowed_ips}]
endpoint = "192.0.2.8:4275"
"#
    )
}

/// The same with a peer behind whom is everything else: that takes rules, which outlive an interface.
fn config_with_default_route() -> String {
    config() + &paris(r#""0.0.0.0/0", "::/0""#)
}

#[test]
fn sigterm_sigint_and_down_leave_nothing_behind() {
    let Some(site) = Site::new() else { return };
    let before = site.trace();
    site.write(&config_with_default_route());
    for end in ["-TERM", "-INT", "down"] {
        let daemon = site.up();
        eventually("up", || site.is_up());
        assert_ne!(site.trace(), before);
        assert!(site.ip("route").contains("192.168.20.0/24 dev p2p0"), "{}", site.ip("route"));
        if end == "down" {
            let output = site.run(&["down"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(site.trace(), before, "`down` returned before all was gone");
        } else {
            daemon.signal(end);
        }
        let (status, said) = daemon.end();
        assert_eq!(status.code(), Some(0), "{end}: {said}");
        assert_eq!(site.trace(), before, "after {end}");
        assert!(!site.path("ctl.sock").exists(), "after {end}");
    }
}

#[test]
fn after_sigkill_the_next_up_cleans_up_and_leaves_nothing_behind() {
    let Some(site) = Site::new() else { return };
    let before = site.trace();
    site.write(&config_with_default_route());
    for _ in 0..3 {
        let daemon = site.up();
        eventually("up", || site.is_up());
        daemon.signal("-KILL");
        daemon.end();
        assert!(site.path("ctl.sock").exists(), "SIGKILL leaves the socket, or this tests nothing");
    }
    site.write(&config());
    let daemon = site.up();
    eventually("up", || site.is_up());
    assert!(!site.ip("rule").contains("4275"), "the leftover rules are gone: {}", site.ip("rule"));
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
    assert_eq!(site.trace(), before);
}

#[test]
fn a_start_that_fails_says_why_in_one_sentence_and_leaves_nothing_behind() {
    let Some(site) = Site::new() else { return };
    let before = site.trace();
    site.write(&config());
    // A stranger has the port: the TUN device and the control socket are there by then, and must go again.
    let holder = Command::new("ip")
        .args(["netns", "exec", &site.name, "python3", "-c"])
        .arg("import socket, time; held = socket.socket(type=socket.SOCK_DGRAM); held.bind(('', 4275)); time.sleep(60)")
        .spawn()
        .expect("ip runs");
    let holder = Daemon(holder);
    let ss = || Command::new("ip").args(["netns", "exec", &site.name, "ss", "-lun"]).output().expect("ss runs").stdout;
    eventually("the port is taken", || String::from_utf8_lossy(&ss()).contains(":4275"));
    let (status, said) = site.up().end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("4275") && said.contains("listen_port"), "{said}");
    assert_eq!(site.trace(), before);
    assert!(!site.path("ctl.sock").exists());
    drop(holder);
}

#[test]
fn a_second_daemon_for_the_same_mesh_is_refused_and_the_first_goes_on() {
    let Some(site) = Site::new() else { return };
    site.write(&config());
    let first = site.up();
    eventually("up", || site.is_up());
    let (status, said) = site.up().end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(site.is_up());
    first.signal("-TERM");
    assert_eq!(first.end().0.code(), Some(0));
}

#[test]
fn without_the_right_to_make_an_interface_one_sentence_says_so() {
    let Some(site) = Site::new() else { return };
    // The build's directory may be root's alone, so the binary is copied to where nobody may run it.
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions set");
    let (binary, config_path) = (dir.path().join("p2ptund"), dir.path().join("config.toml"));
    fs::copy(BINARY, &binary).expect("copied");
    fs::write(&config_path, config()).expect("written");
    fs::set_permissions(&config_path, fs::Permissions::from_mode(0o600)).expect("permissions set");
    std::os::unix::fs::chown(&config_path, Some(65534), Some(65534)).expect("given away");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([binary.as_os_str(), "up".as_ref(), config_path.as_os_str()])
        .output()
        .expect("setpriv runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("root") && said.contains("CAP_NET_ADMIN"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    drop(site);
}

#[test]
fn routes_and_addresses_that_others_delete_are_back_within_a_second() {
    let Some(site) = Site::new() else { return };
    site.write(&config());
    let daemon = site.up();
    eventually("up", || site.is_up());
    let before = site.trace();
    for deletion in ["route flush dev p2p0", "addr del 10.77.0.1/24 dev p2p0", "link set p2p0 down"] {
        // Or it is back before anybody looks.
        daemon.signal("-STOP");
        site.ip(deletion);
        assert_ne!(site.trace(), before, "{deletion}");
        daemon.signal("-CONT");
        let took = eventually(deletion, || site.trace() == before);
        assert!(took < Duration::from_secs(1), "{deletion}: {took:?}");
    }
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
}

#[test]
fn a_deleted_interface_ends_the_daemon_with_a_sentence_and_status_1() {
    let Some(site) = Site::new() else { return };
    let before = site.trace();
    site.write(&config_with_default_route());
    let daemon = site.up();
    eventually("up", || site.is_up());
    site.ip("link del p2p0");
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("p2p0"), "{said}");
    assert_eq!(site.trace(), before);
}

#[test]
fn a_reload_applies_the_difference_or_nothing() {
    let Some(site) = Site::new() else { return };
    site.write(&config());
    let daemon = site.up();
    eventually("up", || site.is_up());
    let before = site.trace();

    for (refused, remedy) in [
        (config().replace("name = \"p2p0\"", "name = \"p2p9\""), "restart"),
        (config().replace("listen_port = 4275", "listen_port = 4276"), "restart"),
        (config().replace(OWN, OTHER), "restart"),
        (config().replace("address =", "adress ="), "address"),
    ] {
        site.write(&refused);
        let output = site.run(&["reload"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(remedy), "{said}");
        assert_eq!(site.trace(), before);
    }

    let added =
        format!("\n[[peer]]\nname = \"paris\"\npublic_key = \"{PARIS}\"\nallowed_ips = [\"192.168.30.0/24\"]\n");
    site.write(&(config().replace("listen_port = 4275", "listen_port = 4275\nmtu = 1380") + &added));
    let output = site.run(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(site.ip("route").contains("192.168.30.0/24 dev p2p0"));
    assert!(site.ip("link show dev p2p0").contains("mtu 1380"));

    site.write(&config());
    daemon.signal("-HUP");
    eventually("SIGHUP takes the peer away again", || site.trace() == before);
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
}

#[test]
fn a_member_carries_servers_and_a_reload_moves_only_those_that_changed() {
    let Some(site) = Site::new() else { return };
    let listens = |port: u16| {
        let output = Command::new("ip").args(["netns", "exec", &site.name, "ss", "-Hlun"]).output().expect("ss runs");
        String::from_utf8_lossy(&output.stdout).contains(&format!("127.0.0.1:{port} "))
    };
    let serve = format!(
        "\n[serve.discovery]\nlisten = [\"127.0.0.1\"]\n\n[serve.rendezvous]\nlisten = [\"127.0.0.1:4274\"]\n\
         private_key = \"{OTHER}\"\n"
    );
    site.write(&(config() + &serve));
    let daemon = site.up();
    eventually("up", || site.is_up());
    assert!((4270..=4274).all(listens), "all series' ports and the rendezvous server's");

    // What can't be had leaves the old ones in place.
    site.write(&(config() + &serve.replace("127.0.0.1\"", "192.0.2.99\"")));
    let output = site.run(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("192.0.2.99:4270") && said.contains("no such address"), "{said}");
    assert!((4270..=4274).all(listens));

    site.write(&(config() + &serve.replace("127.0.0.1\"", "127.0.0.1:5000\"")));
    assert!(site.run(&["reload"]).status.success());
    assert!(listens(5000) && listens(4274) && !listens(4270));
    site.write(&config());
    assert!(site.run(&["reload"]).status.success());
    assert!(!listens(5000) && !listens(4274));
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
}

/// What a supervisor hears; see sd_notify(3).
struct Supervisor(UnixDatagram);

impl Supervisor {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        Self(socket)
    }

    fn hears(&self, word: &str) {
        let mut buffer = [0; 4096];
        loop {
            let len = self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("{word} was not heard: {error}"));
            if String::from_utf8_lossy(&buffer[..len]).lines().any(|line| line.starts_with(word)) {
                return;
            }
        }
    }
}

#[test]
fn a_supervisor_hears_ready_watchdog_reloading_and_stopping() {
    let Some(site) = Site::new() else { return };
    site.write(&config());
    let supervisor = Supervisor::at(&site.path("notify"));
    let notify = site.path("notify");
    let daemon = site.up_with(&[("NOTIFY_SOCKET", notify.to_str().expect("UTF-8"))]);
    supervisor.hears("READY=1");
    assert!(site.is_up(), "READY means that the interface is up");
    daemon.signal("-HUP");
    supervisor.hears("RELOADING=1");
    supervisor.hears("READY=1");
    daemon.signal("-TERM");
    supervisor.hears("STOPPING=1");
    assert_eq!(daemon.end().0.code(), Some(0));

    // Without WATCHDOG_PID in the environment sd_watchdog_enabled(3) takes the watchdog to be another process's, so a shell
    // puts its own number there and becomes the daemon.
    let script = format!(
        "WATCHDOG_USEC=400000 WATCHDOG_PID=$$ exec ip netns exec {} {BINARY} up {} --control {}",
        site.name,
        site.path("config.toml").display(),
        site.path("ctl.sock").display()
    );
    let child = Command::new("sh")
        .args(["-c", &script])
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    let daemon = Daemon(child);
    supervisor.hears("READY=1");
    supervisor.hears("WATCHDOG=1");
    supervisor.hears("WATCHDOG=1");
    daemon.signal("-TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
}
