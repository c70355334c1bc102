//! A lab of `scripts/lab`, for the length of one test.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::enter::enter;

/// Labs that may work at the same time: the tests measure time, and a test machine has two cores.
const BUSY_LABS: usize = 2;

static COUNT: AtomicU32 = AtomicU32::new(0);
static BUSY: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// Whether the tests that need root can run; says so, past libtest's capture, where they can't.
pub fn has_root(test: &str) -> bool {
    static SKIPPED: AtomicU32 = AtomicU32::new(0);
    // The owner of our own entry in /proc is our effective user.
    let root = std::fs::metadata("/proc/self").is_ok_and(|entry| std::os::unix::fs::MetadataExt::uid(&entry) == 0);
    if !root {
        let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = writeln!(std::io::stderr(), "SKIPPED (needs root): {test} (number {count})");
    }
    root
}

/// Returns from a test that needs root where there is none, loudly.
macro_rules! needs_root {
    () => {
        if !crate::lab::has_root(std::thread::current().name().unwrap_or("a test")) {
            return;
        }
    };
}
pub(crate) use needs_root;

/// The right to keep the processors busy.
pub struct Slot(());

impl Slot {
    pub fn take() -> Self {
        let mut busy = BUSY.lock().expect("no test panics while it holds the count");
        while *busy >= BUSY_LABS {
            busy = FREED.wait(busy).expect("no test panics while it holds the count");
        }
        *busy += 1;
        Self(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *BUSY.lock().expect("no test panics while it holds the count") -= 1;
        FREED.notify_one();
    }
}

pub struct Lab {
    pub name: String,
    slot: Option<Slot>,
}

impl Lab {
    /// Lays out a lab with `scripts/lab`'s options, as one would write them in a shell.
    pub fn new(options: &str) -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_labs_of_the_dead);
        let slot = Some(Slot::take());
        let name = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { name, slot };
        lab.script("up", options);
        lab
    }

    /// Runs `scripts/lab COMMAND NAME ARGUMENTS`; what it prints.
    pub fn script(&self, command: &str, arguments: &str) -> String {
        let output = script().arg(command).arg(&self.name).args(arguments.split_whitespace()).output();
        let output = output.expect("scripts/lab can be started");
        assert!(output.status.success(), "scripts/lab {command} {arguments}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Waits without keeping other tests from their work.
    pub fn idle(&mut self, time: Duration) {
        self.slot = None;
        std::thread::sleep(time);
        self.slot = Some(Slot::take());
    }

    pub fn namespace(&self, host: &str) -> String {
        format!("lab-{}-{host}", self.name)
    }

    /// A program in one of the lab's hosts.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), program]).stdin(Stdio::null());
        command
    }

    /// What a line of shell prints in one of the lab's hosts, and whether it succeeded.
    pub fn shell(&self, host: &str, line: &str) -> (bool, String) {
        let output = self.command(host, "sh").args(["-c", line]).output().expect("sh can be started");
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    /// The same, for a line that must succeed.
    pub fn expect(&self, host: &str, line: &str) -> String {
        let (success, output) = self.shell(host, line);
        assert!(success, "at {host}: {line}: {output}");
        output
    }

    /// Adds a table with one chain of rules (a rule a line) to a host or router: `hook` is nft's, as in `input priority 0`.
    pub fn nft(&self, host: &str, table: &str, hook: &str, rules: &str) {
        let chain = format!("chain rules {{\ntype filter hook {hook};\n{rules}\n}}");
        self.expect(host, &format!("nft -f - <<'END'\ntable {table} {{\n{chain}\n}}\nEND"));
    }

    /// Whether `address` answers pings from `host`: all of a few.
    pub fn pings(&self, host: &str, address: &str) -> bool {
        self.shell(host, &format!("ping -q -n -c 3 -i 0.1 -W 2 {address}")).1.contains(" 0% packet loss")
    }

    /// Tries one ping after the other until one is answered; how long that took.
    pub fn pings_within(&self, host: &str, address: &str, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if self.shell(host, &format!("ping -q -n -c 1 -W 0.5 {address}")).0 {
                return Some(start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// Runs `work` on a thread whose sockets are in the host's namespace.
    pub fn inside<T: Send + 'static>(&self, host: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = self.namespace(host);
        std::thread::spawn(move || {
            enter(&namespace).expect("the lab's namespace can be entered");
            work()
        })
    }

    /// [`Lab::traces`], once the host's own IPv6 addresses have settled.
    pub fn settled_traces(&self, host: &str) -> String {
        let settled = within(Duration::from_secs(5), || {
            let addresses = self.expect(host, "ip -6 -o addr show dev eth0");
            addresses.contains("fe80") && !addresses.contains("tentative")
        });
        assert!(settled, "the host's own addresses do not settle");
        self.traces(host)
    }

    /// Everything in a host that a daemon might leave behind, as text to compare.
    pub fn traces(&self, host: &str) -> String {
        self.expect(
            host,
            // Which namespace a link leads to is left out: ip reads all their names, and complains when another lab goes.
            "ip -o link 2>/dev/null | sed 's/^[0-9]*: //; s/ link-netns.*//'; ip -4 route show table all; ip -6 route show table all; ip -4 rule; ip -6 rule
             ss -Haun; ss -Hlx; nft list ruleset",
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = script().args(["down", &self.name]).output().expect("scripts/lab can be started");
        if !output.status.success() {
            eprintln!("scripts/lab down: {}", text(&output.stderr));
        }
    }
}

/// A test run that was killed could not remove its labs; the next one does.
fn remove_labs_of_the_dead() {
    let Ok(labs) = std::fs::read_dir("/run/p2ptund-lab") else { return };
    for lab in labs.flatten() {
        let name = lab.file_name().to_string_lossy().into_owned();
        let Some((pid, _)) = name.strip_prefix('t').and_then(|rest| rest.split_once('x')) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = script().args(["down", &name]).output();
        }
    }
}

fn script() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lab"));
    command.stdin(Stdio::null());
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks once in a while until `condition` holds; `false` where it does not within `limit`.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(40));
    }
}

/// A program's output, for a message.
pub fn said(output: &Output) -> String {
    format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr))
}
