//! A client and a router, each in a namespace of its own, for the length of one test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use p2ptund::io::portmap::{Options, PortMapper, Protocol};
use p2ptund::proto::node::MappedPort;
use p2ptund::proto::snapshot::PortMapping;

const INSIDE: &str = "P2PTUND_TEST_LAB";
pub const ALL: [Protocol; 3] = [Protocol::Upnp, Protocol::Pcp, Protocol::NatPmp];

pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("can be started");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Two namespaces and a directory; gone when dropped.
pub struct Lab {
    name: String,
    directory: PathBuf,
}

/// Labs at once. With twelve, two cores are late by seconds, and leases here are of seconds.
const LABS: usize = 2;
static LABS_THERE: Mutex<usize> = Mutex::new(0);
static LAB_WENT: Condvar = Condvar::new();

struct Turn;

impl Turn {
    fn take() -> Self {
        let there = LABS_THERE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut there = LAB_WENT.wait_while(there, |there| *there >= LABS).unwrap_or_else(PoisonError::into_inner);
        *there += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *LABS_THERE.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LAB_WENT.notify_one();
    }
}

impl Lab {
    /// `None` inside the client namespace: the test goes on there. Outside, the test is done when this returns a lab.
    pub fn enter(test: &str, body: impl AsyncFnOnce(Router)) {
        if let Ok(name) = std::env::var(INSIDE) {
            let directory = std::env::temp_dir().join(&name);
            let own = std::fs::File::create(directory.join("own-log")).expect("writes");
            tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).with_writer(own).init();
            // A thread for what is tested: the test's own waits for `nft` and `ip`, which may take seconds where a dozen
            // namespaces change at once, must not make it late.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async { body(Router::start(name, directory)).await });
            return;
        }
        let have = |command: &str| Command::new(command).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if run("id -u").trim() != "0" || have("miniupnpd").is_err() || have("nft").is_err() {
            eprintln!("SKIPPED {test}: needs root, miniupnpd and nft");
            return;
        }
        let _turn = Turn::take();
        let lab = Lab::build(test);
        let status = Command::new("ip")
            .args(["netns", "exec", &format!("{}c", lab.name)])
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, &lab.name)
            .status()
            .expect("ip can be started");
        assert!(status.success(), "{test}, inside its namespace");
    }

    fn build(test: &str) -> Self {
        let tag = test.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 10_000;
        let name = format!("pm{}x{tag}", std::process::id() % 100_000);
        let directory = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let lab = Lab { name, directory };
        let (client, router) = (format!("{}c", lab.name), format!("{}r", lab.name));
        run(&format!("ip netns add {client}"));
        run(&format!("ip netns add {router}"));
        run(&format!("ip -n {router} link add lan type veth peer name eth0 netns {client}"));
        run(&format!("ip -n {router} link add wan type veth peer name wanpeer"));
        for (namespace, device, address) in [
            (&client, "eth0", Some("192.168.77.2/24")),
            (&router, "lan", Some("192.168.77.1/24")),
            (&router, "wan", Some("198.51.100.7/24")),
            (&router, "wanpeer", None),
            (&router, "lo", None),
        ] {
            if let Some(address) = address {
                run(&format!("ip -n {namespace} addr add {address} dev {device}"));
            }
            run(&format!("ip -n {namespace} link set {device} up"));
        }
        run(&format!("ip -n {client} route add default via 192.168.77.1"));
        lab
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for end in ["c", "r"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{end}", self.name)]).status();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The router's miniupnpd, seen from the client's namespace.
pub struct Router {
    name: String,
    directory: PathBuf,
    daemon: Option<Child>,
}

impl Router {
    pub fn start(name: String, directory: PathBuf) -> Self {
        let mut router = Self { name, directory, daemon: None };
        router.restart("");
        router
    }

    pub fn inside(&self, command: &str) -> String {
        run(&format!("ip netns exec {}r {command}", self.name))
    }

    /// Starts miniupnpd anew, with nothing mapped.
    pub fn restart(&mut self, more: &str) {
        self.stop();
        let rules = self.directory.join("nft");
        std::fs::write(
            &rules,
            "flush ruleset
table inet filter {
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain forward { type filter hook forward priority 0; jump miniupnpd; }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; }
}
",
        )
        .expect("writes");
        self.inside(&format!("nft -f {}", rules.display()));
        let config = self.directory.join("conf");
        std::fs::write(
            &config,
            format!(
                "ext_ifname=wan\nlistening_ip=lan\next_ip=11.0.0.5\nenable_natpmp=yes\nenable_upnp=yes\nsecure_mode=yes\n\
                 system_uptime=no\nmin_lifetime=4\nmax_lifetime=86400\nipv6_disable=yes\nuuid=233276fb-1064-4722-be19-0a54f3f568c7\n\
                 http_port=0\n{more}\nallow 1024-65535 192.168.77.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
            ),
        )
        .expect("writes");
        let log = std::fs::File::create(self.directory.join("log")).expect("writes");
        let daemon = Command::new("ip")
            .args(["netns", "exec", &format!("{}r", self.name), "miniupnpd", "-d", "-f"])
            .arg(&config)
            .arg("-P")
            .arg(self.directory.join("pid"))
            .stdout(Stdio::from(log.try_clone().expect("a log")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("miniupnpd can be started");
        self.daemon = Some(daemon);
    }

    /// Waits until it listens.
    pub async fn up(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        while ![":5351", ":1900"].iter().any(|port| self.inside("ss -lun").contains(port)) {
            assert!(Instant::now() < until, "miniupnpd does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the router printed since it started, and what we did since the test did.
    pub fn log(&self) -> String {
        let [router, own] =
            ["log", "own-log"].map(|name| std::fs::read_to_string(self.directory.join(name)).unwrap_or_default());
        format!("{router}\nour side, now {:?}:\n{own}", std::time::SystemTime::now())
    }

    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // SIGKILL: a router that loses power says no goodbye.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// The kernel's rule that leads the external port to the client; `None` where there is none.
    pub fn rule(&self, external: u16) -> Option<String> {
        let rules = self.inside("nft list chain inet filter prerouting_miniupnpd");
        rules.lines().find(|line| line.contains(&format!("dport {external} "))).map(str::to_owned)
    }

    pub fn rules(&self) -> usize {
        self.inside("nft list chain inet filter prerouting_miniupnpd").matches("dport").count()
    }

    /// The namespace that the router is in.
    pub fn namespace(&self) -> String {
        format!("{}r", self.name)
    }

    pub fn state(&self) -> PathBuf {
        self.directory.join("portmap.json")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn options(enabled: &[Protocol], local_port: u16, state: &Path, lease: u64) -> Options {
    Options {
        enabled: enabled.to_vec(),
        local_port,
        state_file: Some(state.to_owned()),
        lease: Duration::from_secs(lease),
        ..Options::default()
    }
}

pub async fn next(mapper: &mut PortMapper, router: &Router, within: u64) -> Option<MappedPort> {
    tokio::time::timeout(Duration::from_secs(within), mapper.changed())
        .await
        .unwrap_or_else(|_| panic!("nothing happened in {within} s; the router's log:\n{}", router.log()))
}

pub fn mapped(external: &str, by: PortMapping) -> Option<MappedPort> {
    Some(MappedPort { external: external.parse().expect("an address"), by })
}
