//! The shipped binary as its users run it: servers and members with config files, in a lab's hosts.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::lab::{Lab, said, text, within};

pub const BINARY: &str = env!("CARGO_BIN_EXE_p2ptund");
/// The servers' addresses as a member's config lists them.
pub const DISCOVERY: &str = r#"["198.51.100.7", "203.0.113.9"]"#;
pub const RENDEZVOUS: &str = "192.0.2.10:4274";
/// How long a daemon may take to remove all that it made.
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Keys {
    pub private: String,
    pub public: String,
}

impl Keys {
    /// By the binary's own `genkey` and `pubkey`.
    pub fn fresh() -> Self {
        let private = output_of(Command::new(BINARY).arg("genkey"));
        let public = output_of(Command::new("sh").args(["-c", &format!("printf %s '{private}' | {BINARY} pubkey")]));
        Self { private, public }
    }
}

/// What a command that must succeed prints, on one line.
pub fn output_of(command: &mut Command) -> String {
    let output = command.output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    text(&output.stdout).trim().to_owned()
}

/// A process in a lab; its log is shown where the test fails.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let out = file.try_clone().expect("the log can be written twice");
        let child = command.env("RUST_LOG", "p2ptund=debug").stdout(out).stderr(file).spawn();
        Self { child: child.expect("the program can be started"), log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `TERM`, `INT`, `HUP` or `KILL`.
    pub fn signal(&self, name: &str) {
        let _ = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status();
    }

    /// Waits for the end; `None` where it does not come.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let mut status = None;
        within(FAREWELL, || {
            status = self.child.try_wait().expect("our own child");
            status.is_some()
        });
        status
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- {}, its last lines:\n{tail}\n---", self.log.display());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two discovery servers and the rendezvous server.
pub struct Servers {
    daemons: Vec<Daemon>,
    pub keys: Keys,
    /// Goes after the daemons, whose logs are in it.
    dir: TempDir,
}

impl Servers {
    const HOSTS: [&str; 3] = ["discovery1", "discovery2", "rendezvous"];

    pub fn start(lab: &Lab) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let keys = Keys::fresh();
        secret(&dir.path().join("server.key"), &keys.private);
        let rendezvous = format!("[rendezvous]\nlisten = [\"{RENDEZVOUS}\"]\nprivate_key_file = \"server.key\"\n");
        for (host, config) in Self::HOSTS.iter().zip([
            "[discovery]\nlisten = [\"198.51.100.7\", \"198.51.100.8\"]\n",
            "[discovery]\nlisten = [\"203.0.113.9\", \"203.0.113.10\"]\n",
            &rendezvous,
        ]) {
            secret(&dir.path().join(format!("{host}.toml")), config);
        }
        let mut servers = Self { dir, keys, daemons: Vec::new() };
        servers.start_again(lab);
        servers
    }

    pub fn kill(&mut self) {
        self.daemons.clear();
    }

    /// The discovery servers go on.
    pub fn kill_rendezvous(&mut self) {
        self.daemons.truncate(Self::HOSTS.len() - 1);
    }

    pub fn start_again(&mut self, lab: &Lab) {
        for host in Self::HOSTS {
            let mut command = lab.command(host, BINARY);
            command.arg("serve").arg(self.dir.path().join(format!("{host}.toml")));
            self.daemons.push(Daemon::start(command, self.dir.path().join(format!("{host}.log"))));
        }
        for (host, port) in Self::HOSTS.iter().zip([":4273", ":4273", ":4274"]) {
            let listens = within(Duration::from_secs(5), || lab.expect(host, "ss -Hlun").contains(port));
            assert!(listens, "the server at {host} does not listen on {port}");
        }
    }

    pub fn all_run(&mut self) -> bool {
        self.daemons.iter_mut().all(Daemon::is_running)
    }
}

/// A file that only its owner can read.
pub fn secret(path: &std::path::Path, content: &str) {
    fs::write(path, content).expect("the file can be written");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("our own file");
}

/// A mesh member: who it is, its config, and the daemon while it runs.
pub struct Member {
    pub daemon: Option<Daemon>,
    pub host: String,
    /// Its name in the others' configs is that of its host.
    pub keys: Keys,
    pub interface: String,
    pub address4: String,
    pub address6: String,
    /// Prefixes behind it, which the others route to it.
    pub lans: Vec<String>,
    pub discovery: String,
    pub rendezvous_key: String,
    pub listen_port: u16,
    /// Lines for the end of its `[interface]` table.
    pub interface_lines: String,
    /// Lines for the end of its `[discovery]` table.
    pub discovery_lines: String,
    peers: Vec<String>,
    /// Goes after the daemon, whose log is in it.
    pub dir: TempDir,
}

impl Member {
    /// Number `number` of the mesh, 10.77.0.`number`, in a host of the lab.
    pub fn new(servers: &Servers, host: &str, number: u8) -> Self {
        // All namespaces share one /run, where the control sockets are: so each interface has a name of its own.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let interface = format!("p{}n{}", std::process::id() % 1_000_000, COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = TempDir::new().expect("a temporary directory");
        let keys = Keys::fresh();
        secret(&dir.path().join("private.key"), &keys.private);
        Self {
            host: host.to_owned(),
            keys,
            interface,
            address4: format!("10.77.0.{number}"),
            address6: format!("fd77::{number}"),
            lans: Vec::new(),
            discovery: DISCOVERY.to_owned(),
            rendezvous_key: servers.keys.public.clone(),
            listen_port: 4275,
            interface_lines: String::new(),
            discovery_lines: String::new(),
            peers: Vec::new(),
            dir,
            daemon: None,
        }
    }

    /// Adds `other` to the config, with more `lines` in its table.
    pub fn knows_with(&mut self, other: &Member, lines: &str) {
        let mut allowed = vec![format!("{}/32", other.address4), format!("{}/128", other.address6)];
        allowed.extend(other.lans.iter().cloned());
        self.knows_key(&other.host, &other.keys.public, &allowed, lines);
    }

    pub fn knows(&mut self, other: &Member) {
        self.knows_with(other, "");
    }

    pub fn knows_key(&mut self, name: &str, key: &str, allowed: &[String], lines: &str) {
        self.peers
            .push(format!("[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nallowed_ips = {allowed:?}\n{lines}\n"));
        self.write_config();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    pub fn write_config(&self) {
        let text = format!(
            "[interface]\nname = \"{}\"\naddress = [\"{}/24\", \"{}/64\"]\nprivate_key_file = \"private.key\"\n\
             listen_port = {}\n{}\n[discovery]\nservers = {}\n{}\n\
             [[rendezvous]]\naddress = \"{RENDEZVOUS}\"\npublic_key = \"{}\"\n\n{}",
            self.interface,
            self.address4,
            self.address6,
            self.listen_port,
            self.interface_lines,
            self.discovery,
            self.discovery_lines,
            self.rendezvous_key,
            self.peers.concat()
        );
        secret(&self.config(), &text);
    }

    pub fn start(&mut self, lab: &Lab) {
        let mut command = lab.command(&self.host, BINARY);
        command.arg("up").arg(self.config());
        self.daemon = Some(Daemon::start(command, self.dir.path().join(format!("{}.log", self.host))));
    }

    /// Ends the daemon by a signal and tells how it ended.
    pub fn stop(&mut self, signal: &str) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("the member runs");
        daemon.signal(signal);
        let status = daemon.ended();
        status.unwrap_or_else(|| panic!("{} goes on after SIG{signal}", self.host))
    }

    /// Runs a subcommand that speaks to the running daemon.
    pub fn control(&self, lab: &Lab, arguments: &[&str]) -> Output {
        let mut command = lab.command(&self.host, BINARY);
        command.args(arguments).args(["-i", &self.interface]);
        command.output().expect("the binary can be started")
    }

    /// `status --json`; `None` while nobody answers.
    pub fn status(&self, lab: &Lab) -> Option<Value> {
        let output = self.control(lab, &["status", "--json"]);
        if !output.status.success() {
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output))))
    }

    pub fn expect_status(&self, lab: &Lab) -> Value {
        self.status(lab)
            .unwrap_or_else(|| panic!("{} does not answer: {}", self.host, said(&self.control(lab, &["status"]))))
    }

    /// What `status --json` says about the peer.
    pub fn peer(&self, lab: &Lab, name: &str) -> Value {
        let status = self.expect_status(lab);
        let peers = status["peers"].as_array().expect("peers is an array");
        let peer = peers.iter().find(|peer| peer["name"] == name);
        peer.unwrap_or_else(|| panic!("no peer {name} in {status}")).clone()
    }

    /// What tells why nobody is reached, in a line that a summary can show: [`Member::status`] has all of it.
    pub fn in_short(&self, lab: &Lab) -> String {
        let Some(status) = self.status(lab) else { return format!("{} does not answer", self.host) };
        let peers = status["peers"].as_array().expect("peers is an array");
        let peers: Vec<_> =
            peers.iter().map(|peer| format!("{} {} {}", peer["name"], peer["state"], peer["why"])).collect();
        let nat = ["mapping", "filtering", "allocation"].map(|word| status["nat"][word].to_string()).join(" ");
        format!("{}: {}; rendezvous {}; nat {nat}", self.host, peers.join(", "), status["rendezvous"])
    }

    /// How many packets were dropped for a reason, where `status` counts those.
    pub fn drops(&self, lab: &Lab, reason: &str) -> u64 {
        self.expect_status(lab)["drops"][reason].as_u64().unwrap_or(0)
    }
}

/// The usual mesh: servers, and a member at left and right each, not yet started.
pub fn pair(lab: &Lab) -> (Servers, Member, Member) {
    let servers = Servers::start(lab);
    let mut left = Member::new(&servers, "left", 1);
    let mut right = Member::new(&servers, "right", 2);
    left.knows(&right);
    right.knows(&left);
    (servers, left, right)
}

/// Pings both ways by virtual IPv4 and IPv6, once a path is there.
pub fn ping_both_ways(lab: &Lab, left: &Member, right: &Member, limit: Duration) -> Duration {
    let time = lab.pings_within(&left.host, &right.address4, limit);
    let time =
        time.unwrap_or_else(|| panic!("no ping within {limit:?}; {}; {}", left.in_short(lab), right.in_short(lab)));
    for (from, to) in [(left, right), (right, left)] {
        for address in [&to.address4, &to.address6] {
            assert!(lab.pings(&from.host, address), "pings from {} to {address} are lost", from.host);
        }
    }
    time
}
