//! Port mapping against a real miniupnpd, which speaks UPnP, PCP and NAT-PMP, in network namespaces:
//!
//! ```text
//! client 192.168.77.2 ── veth ── 192.168.77.1 router (miniupnpd) 198.51.100.7 ── veth ── nobody
//! ```
//!
//! The router claims the external address 11.0.0.5, because miniupnpd refuses the ones kept for documentation; nothing leaves
//! the namespaces. Each test runs itself again inside its client namespace. Needs root and miniupnpd, and says so loudly where it is skipped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p2ptund::io::portmap::{Options, PortMapper, Protocol};
use p2ptund::proto::node::MappedPort;
use p2ptund::proto::snapshot::PortMapping;

const INSIDE: &str = "P2PTUND_TEST_LAB";
const ALL: [Protocol; 3] = [Protocol::Upnp, Protocol::Pcp, Protocol::NatPmp];

fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("can be started");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Two namespaces and a directory; gone when dropped.
struct Lab {
    name: String,
    directory: PathBuf,
}

impl Lab {
    /// `None` inside the client namespace: the test goes on there. Outside, the test is done when this returns a lab.
    fn enter(test: &str, body: impl AsyncFnOnce(Router)) {
        if let Ok(name) = std::env::var(INSIDE) {
            let directory = std::env::temp_dir().join(&name);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { body(Router::start(name, directory)).await });
            return;
        }
        let have = |command: &str| Command::new(command).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if run("id -u").trim() != "0" || have("miniupnpd").is_err() || have("nft").is_err() {
            eprintln!("SKIPPED {test}: needs root, miniupnpd and nft");
            return;
        }
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
struct Router {
    name: String,
    directory: PathBuf,
    daemon: Option<Child>,
}

impl Router {
    fn start(name: String, directory: PathBuf) -> Self {
        let mut router = Self { name, directory, daemon: None };
        router.restart("");
        router
    }

    fn inside(&self, command: &str) -> String {
        run(&format!("ip netns exec {}r {command}", self.name))
    }

    /// Starts miniupnpd anew, with nothing mapped.
    fn restart(&mut self, more: &str) {
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
    async fn up(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        while ![":5351", ":1900"].iter().any(|port| self.inside("ss -lun").contains(port)) {
            assert!(Instant::now() < until, "miniupnpd does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // SIGKILL: a router that loses power says no goodbye.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// The kernel's rule that leads the external port to the client; `None` where there is none.
    fn rule(&self, external: u16) -> Option<String> {
        let rules = self.inside("nft list chain inet filter prerouting_miniupnpd");
        rules.lines().find(|line| line.contains(&format!("dport {external} "))).map(str::to_owned)
    }

    fn rules(&self) -> usize {
        self.inside("nft list chain inet filter prerouting_miniupnpd").matches("dport").count()
    }

    fn state(&self) -> PathBuf {
        self.directory.join("portmap.json")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop();
    }
}

fn options(enabled: &[Protocol], local_port: u16, state: &Path, lease: u64) -> Options {
    Options {
        enabled: enabled.to_vec(),
        local_port,
        state_file: Some(state.to_owned()),
        lease: Duration::from_secs(lease),
    }
}

async fn next(mapper: &mut PortMapper, router: &Router, within: u64) -> Option<MappedPort> {
    tokio::time::timeout(Duration::from_secs(within), mapper.changed())
        .await
        .unwrap_or_else(|_| panic!("nothing happened in {within} s; the router's log:\n{}", router.log()))
}

fn mapped(external: &str, by: PortMapping) -> Option<MappedPort> {
    Some(MappedPort { external: external.parse().expect("an address"), by })
}

#[test]
fn upnp_is_preferred_maps_the_equal_port_and_stop_removes_it() {
    Lab::enter("upnp_is_preferred_maps_the_equal_port_and_stop_removes_it", async |router| {
        router.up().await;
        let mut mapper = PortMapper::start(&ALL, 4275, Some(router.state()));
        assert_eq!(next(&mut mapper, &router, 5).await, mapped("11.0.0.5:4275", PortMapping::Upnp));
        let rule = router.rule(4275).expect("the kernel has the rule");
        assert!(rule.contains("192.168.77.2:4275"), "{rule}");
        assert_eq!(router.rules(), 1, "one protocol was asked");
        assert!(router.state().exists());
        let began = Instant::now();
        mapper.stop().await;
        assert!(began.elapsed() < Duration::from_millis(2500));
        assert_eq!(router.rules(), 0);
        assert!(!router.state().exists());
    });
}

/// By each protocol alone, on a router that speaks it alone, and by all on one that speaks all.
#[test]
fn a_mapping_is_there_within_a_quarter_of_a_second() {
    Lab::enter("a_mapping_is_there_within_a_quarter_of_a_second", async |mut router| {
        let cases: [(&str, &[Protocol], &str); 5] = [
            ("upnp", &[Protocol::Upnp], "enable_natpmp=no"),
            ("pcp", &[Protocol::Pcp], "enable_upnp=no"),
            ("nat-pmp", &[Protocol::NatPmp], "enable_upnp=no"),
            ("all, of a router without UPnP", &ALL, "enable_upnp=no"),
            ("all", &ALL, ""),
        ];
        for (name, enabled, more) in cases {
            router.restart(more);
            router.up().await;
            let mut times = Vec::new();
            for _ in 0..20 {
                let began = Instant::now();
                let mut mapper = PortMapper::start(enabled, 4275, Some(router.state()));
                assert!(next(&mut mapper, &router, 5).await.is_some(), "{name}");
                times.push(began.elapsed());
                mapper.stop().await;
            }
            times.sort();
            eprintln!("{name}: median {:?}, slowest {:?}", times[10], times[19]);
            assert!(times[10] < Duration::from_millis(250), "{name}: {times:?}");
        }
    });
}

#[test]
fn pcp_alone_maps_and_removes() {
    Lab::enter("pcp_alone_maps_and_removes", async |router| {
        router.up().await;
        let mut mapper = PortMapper::start(&[Protocol::Pcp], 4275, Some(router.state()));
        assert_eq!(next(&mut mapper, &router, 5).await, mapped("11.0.0.5:4275", PortMapping::Pcp));
        assert!(router.rule(4275).is_some());
        mapper.stop().await;
        assert_eq!(router.rules(), 0);
    });
}

#[test]
fn nat_pmp_alone_maps_and_removes() {
    Lab::enter("nat_pmp_alone_maps_and_removes", async |router| {
        router.up().await;
        let mut mapper = PortMapper::start(&[Protocol::NatPmp], 4275, Some(router.state()));
        assert_eq!(next(&mut mapper, &router, 5).await, mapped("11.0.0.5:4275", PortMapping::NatPmp));
        assert!(router.rule(4275).is_some());
        mapper.stop().await;
        assert_eq!(router.rules(), 0);
    });
}

#[test]
fn a_router_without_upnp_is_mapped_by_pcp() {
    Lab::enter("a_router_without_upnp_is_mapped_by_pcp", async |mut router| {
        router.restart("enable_upnp=no");
        router.up().await;
        let mut mapper = PortMapper::start(&ALL, 4275, Some(router.state()));
        assert_eq!(next(&mut mapper, &router, 5).await, mapped("11.0.0.5:4275", PortMapping::Pcp));
        mapper.stop().await;
        assert_eq!(router.rules(), 0);
    });
}

#[test]
fn a_taken_port_gives_another() {
    Lab::enter("a_taken_port_gives_another", async |router| {
        router.up().await;
        let become_host = |last: u8| {
            run("ip addr flush dev eth0");
            run(&format!("ip addr add 192.168.77.{last}/24 dev eth0"));
            run("ip route replace default via 192.168.77.1");
        };
        for by in ALL {
            // Another host of the LAN took the equal port before.
            become_host(3);
            let mut first = PortMapper::start(&[by], 4275, None);
            assert_eq!(next(&mut first, &router, 5).await.expect("mapped").external.port(), 4275);
            become_host(2);
            let mut second = PortMapper::start(&[by], 4275, Some(router.state()));
            let port = next(&mut second, &router, 5).await.expect("mapped").external.port();
            assert_ne!(port, 4275, "{by:?}");
            let rule = router.rule(port).expect("the kernel has the rule");
            assert!(rule.contains("192.168.77.2:4275"), "{rule}");
            second.stop().await;
            assert_eq!(router.rules(), 1, "{by:?}: the other host's stays");
            become_host(3);
            first.stop().await;
            assert_eq!(router.rules(), 0, "{by:?}");
        }
    });
}

#[test]
fn a_lease_is_renewed_before_it_ends() {
    Lab::enter("a_lease_is_renewed_before_it_ends", async |router| {
        router.up().await;
        for by in ALL {
            let mut mapper = PortMapper::start_with(options(&[by], 4275, &router.state(), 6));
            assert!(next(&mut mapper, &router, 5).await.is_some(), "{by:?}");
            // Twice the lease.
            let until = Instant::now() + Duration::from_secs(12);
            while Instant::now() < until {
                assert!(router.rule(4275).is_some(), "{by:?}: the router forgot it; its log:\n{}", router.log());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            assert!(mapper.current().is_some());
            mapper.stop().await;
            assert_eq!(router.rules(), 0, "{by:?}");
        }
    });
}

#[test]
fn the_next_start_removes_what_an_abrupt_end_left() {
    Lab::enter("the_next_start_removes_what_an_abrupt_end_left", async |router| {
        router.up().await;
        for by in ALL {
            let mut mapper = PortMapper::start_with(options(&[by], 4275, &router.state(), 3600));
            assert!(next(&mut mapper, &router, 5).await.is_some(), "{by:?}");
            drop(mapper);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(router.rule(4275).is_some(), "{by:?}");
            // Another port this time, and nothing enabled in between.
            let mut mapper = PortMapper::start_with(options(&[by], 5000, &router.state(), 3600));
            assert_eq!(next(&mut mapper, &router, 8).await.expect("mapped").external.port(), 5000);
            assert!(router.rule(4275).is_none(), "{by:?}");
            drop(mapper);
            let mapper = PortMapper::start_with(options(&[], 5000, &router.state(), 3600));
            let until = Instant::now() + Duration::from_secs(3);
            while router.rules() > 0 {
                assert!(Instant::now() < until, "{by:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            mapper.stop().await;
        }
    });
}

#[test]
fn a_router_that_restarts_is_asked_again() {
    Lab::enter("a_router_that_restarts_is_asked_again", async |mut router| {
        router.up().await;
        for by in [Protocol::NatPmp, Protocol::Upnp] {
            let mut mapper = PortMapper::start_with(options(&[by], 4275, &router.state(), 3600));
            assert!(next(&mut mapper, &router, 5).await.is_some(), "{by:?}");
            // A boot id is a second's number.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            router.restart("");
            let until = Instant::now() + Duration::from_secs(15);
            while router.rule(4275).is_none() {
                assert!(Instant::now() < until, "{by:?}: {}", router.log());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            mapper.stop().await;
            assert_eq!(router.rules(), 0, "{by:?}");
        }
    });
}

#[test]
fn losing_the_network_is_told_and_its_return_maps_again() {
    Lab::enter("losing_the_network_is_told_and_its_return_maps_again", async |router| {
        router.up().await;
        let mut mapper = PortMapper::start(&ALL, 4275, Some(router.state()));
        assert!(next(&mut mapper, &router, 5).await.is_some());
        run("ip link set eth0 down");
        mapper.refresh();
        assert_eq!(next(&mut mapper, &router, 5).await, None);
        run("ip link set eth0 up");
        run("ip route replace default via 192.168.77.1");
        mapper.refresh();
        assert!(next(&mut mapper, &router, 12).await.is_some());
        mapper.stop().await;
        assert_eq!(router.rules(), 0);
    });
}

#[test]
fn a_stop_at_any_moment_leaves_nothing() {
    Lab::enter("a_stop_at_any_moment_leaves_nothing", async |router| {
        router.up().await;
        for by in ALL {
            for after in [0, 2, 5, 10, 20, 40, 80] {
                let mapper = PortMapper::start(&[by], 4275, Some(router.state()));
                tokio::time::sleep(Duration::from_millis(after)).await;
                mapper.refresh();
                mapper.stop().await;
                assert_eq!(router.rules(), 0, "{by:?} after {after} ms");
            }
        }
    });
}

#[test]
fn a_network_without_any_such_router_is_no_fault() {
    Lab::enter("a_network_without_any_such_router_is_no_fault", async |mut router| {
        router.stop();
        let mut mapper = PortMapper::start(&ALL, 4275, Some(router.state()));
        let none = tokio::time::timeout(Duration::from_secs(6), mapper.changed()).await;
        assert!(none.is_err(), "nothing is told because nothing changed");
        let began = Instant::now();
        mapper.stop().await;
        assert!(began.elapsed() < Duration::from_millis(2500));
    });
}
