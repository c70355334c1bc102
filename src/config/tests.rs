use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::proto::config::{Calls, Connect, Host, HostPort};

const VALID: &str = r#"[interface]
name = "p2p0"
address = ["10.77.0.1/24", "fd77::1/64"]
private_key_file = "private.key"
listen_port = 4275
mtu = 1420
cipher = "auto"

[discovery]
servers = ["198.51.100.7", "203.0.113.9:4270", "stun:stun.example.net:3478"]
port_mapping = ["upnp", "pcp", "nat-pmp"]

[[rendezvous]]
address = "rv.example.net:4274"
public_key = "{server}"

[[peer]]
name = "berlin"
public_key = "{berlin}"
allowed_ips = ["10.77.0.2/32", "192.168.20.0/24"]
endpoint = "berlin.example.net:4275"
preshared_key_file = "berlin.psk"
calls = "both"
connect = "always"

[[peer]]
name = "paris"
public_key = "{paris}"
allowed_ips = ["10.77.0.3/32"]
calls = "in"
connect = "on-demand"

[punch]
window = [-16, 32]
sockets = 256
probes = 2048
timeout = "10s"

[serve.discovery]
listen = ["198.51.100.1", "198.51.100.2:4270"]

[serve.rendezvous]
listen = ["198.51.100.1:4274"]
private_key_file = "private.key"
allow = ["{berlin}", "{paris}"]
"#;

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes([byte; 32])
}

fn valid() -> String {
    let public = |byte| key(byte).public().to_string();
    VALID.replace("{server}", &public(9)).replace("{berlin}", &public(2)).replace("{paris}", &public(3))
}

/// A directory with a config and the key files that it names.
fn directory(config: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in [("private.key", key(1).to_base64() + "\n"), ("berlin.psk", key(7).to_base64())] {
        write(&dir.path().join(name), &text, 0o600);
    }
    let path = dir.path().join("config.toml");
    write(&path, config, 0o600);
    (dir, path)
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

fn faults(config: &str) -> Vec<String> {
    let (dir, path) = directory(config);
    let rejected = match check(&path) {
        Ok(_) => Vec::new(),
        Err(rejected) => rejected.0,
    };
    let here = format!("{}/", dir.path().display());
    rejected.iter().map(|fault| fault.to_string().replace(&here, "")).collect()
}

/// Exactly one fault, in the line that holds `line`'s text, and it says each of `words`.
#[track_caller]
fn one_fault(config: &str, line: &str, words: &[&str]) {
    let faults = faults(config);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    let number = config.lines().position(|text| text.contains(line)).expect("the line is there") + 1;
    assert!(faults[0].starts_with(&format!("config.toml:{number}: ")), "line {number}: {}", faults[0]);
    for word in words {
        assert!(faults[0].contains(word), "{word}: {}", faults[0]);
    }
}

/// The valid config with `from` replaced has one fault, in the line that now holds `to`.
#[track_caller]
fn broken(from: &str, to: &str, words: &[&str]) {
    let config = valid();
    assert!(config.contains(from), "{from}");
    one_fault(&config.replacen(from, to, 1), to.lines().next().unwrap_or_default(), words);
}

#[test]
fn a_whole_config_is_read_with_every_key() {
    let (_dir, path) = directory(&valid());
    let mesh = Mesh::load(&path).expect("valid");
    assert!(mesh.notes.is_empty(), "{:?}", mesh.notes);
    assert_eq!(mesh.private_key.public(), key(1).public());
    assert_eq!((mesh.listen_port, mesh.mtu, mesh.cipher), (4275, 1420, CipherChoice::Auto));
    assert_eq!(mesh.port_mapping, Mapper::ALL);
    assert_eq!(mesh.discovery.len(), 3);
    let [berlin, paris] = &mesh.peers[..] else { panic!("two peers") };
    let endpoint = HostPort { host: Host::Name("berlin.example.net".into()), port: 4275 };
    assert_eq!(berlin.endpoint.as_ref(), Some(&endpoint));
    assert!(berlin.preshared_key.is_some() && paris.preshared_key.is_none());
    assert_eq!((paris.calls, paris.connect), (Calls::In, Connect::OnDemand));
    let listen: Vec<SocketAddr> = mesh.serve.discovery.as_ref().expect("serves").listen.clone();
    assert_eq!(listen.len(), 5);
    assert_eq!(mesh.serve.rendezvous.as_ref().and_then(|r| r.allow.as_ref()).map(Vec::len), Some(2));
    let core = mesh.core(40_000, true);
    assert_eq!((core.listen_port, core.punch.timeout), (40_000, Duration::from_secs(10)));
    assert!(core.aes && !mesh.core(40_000, false).aes);
    let (_dir, path) = directory(&valid().replace("cipher = \"auto\"", "cipher = \"chacha20poly1305\""));
    assert!(!Mesh::load(&path).expect("valid").core(40_000, true).aes);
}

#[test]
fn what_is_left_out_takes_the_defaults_of_the_contract() {
    let (_dir, path) = directory("[interface]\naddress = \"10.77.0.1/24\"\nprivate_key_file = \"private.key\"\n");
    let mesh = Mesh::load(&path).expect("valid");
    assert_eq!((mesh.interface.as_str(), mesh.listen_port, mesh.mtu), ("p2p0", 4275, 1420));
    assert_eq!((mesh.punch, mesh.port_mapping), (Punch::default(), Mapper::ALL.to_vec()));
    assert!(mesh.peers.is_empty() && mesh.serve.discovery.is_none());
}

#[test]
fn every_fault_is_told_at_once_in_the_order_of_the_lines() {
    let config = valid()
        .replace("name = \"p2p0\"", "name = \"p2p0\"\nlisten = 4275")
        .replace("listen_port = 4275", "listen_port = 65536")
        .replace("mtu = 1420", "mtu = true")
        .replace("calls = \"in\"", "calls = \"inn\"")
        .replace("sockets = 256", "sockets = 0")
        .replace("private_key_file = \"private.key\"\nallow", "allow");
    let faults = faults(&config);
    assert_eq!(faults.len(), 6, "{faults:#?}");
    let lines: Vec<usize> = faults.iter().filter_map(|fault| fault.split(':').nth(1)?.parse().ok()).collect();
    assert!(lines.is_sorted() && lines.len() == 6, "{faults:#?}");
}

#[test]
fn keys_that_are_not_known_are_told_with_what_was_meant() {
    broken("listen_port =", "listen-port =", &["unknown key `listen-port`", "Did you mean `listen_port`"]);
    broken("cipher = \"auto\"", "servers = []", &["unknown key `servers`", "belongs in [discovery]"]);
    broken("[punch]", "[punsh]", &["unknown key `punsh`", "[punch]"]);
    broken("connect = \"always\"", "\"a\\nb\" = 1", &["unknown key `a\\nb`", "[[peer]] knows"]);
}

#[test]
fn values_of_a_wrong_type_are_told_with_the_line_to_write() {
    broken("listen_port = 4275", "listen_port = \"4275\"", &["is a text, not a whole number", "listen_port = 4275"]);
    broken("name = \"berlin\"", "name = 7", &["`name` is a whole number, not text in quotes"]);
    broken("mtu = 1420", "mtu = \"big\"", &["\"auto\""]);
    broken("window = [-16, 32]", "window = [-16, \"32\"]", &["`window` is a text"]);
    broken("address = [\"10.77.0.1/24\", \"fd77::1/64\"]", "address = [1]", &["a list of texts"]);
    broken(
        "[punch]\nwindow = [-16, 32]\nsockets = 256\nprobes = 2048\ntimeout = \"10s\"",
        "[[punch]]",
        &["a list, not a table"],
    );
    broken("[[rendezvous]]", "[rendezvous]", &["not a list of tables", "[[rendezvous]]"]);
}

#[test]
fn numbers_out_of_range_are_told_with_their_range() {
    broken("listen_port = 4275", "listen_port = 65536", &["65536 is out of range", "0 to 65535"]);
    broken("listen_port = 4275", "listen_port = -1", &["-1 is out of range"]);
    broken("listen_port = 4275", "listen_port = 99999999999999999999999", &["out of range"]);
    broken("mtu = 1420", "mtu = 1279", &["1280 to 9000"]);
    broken("mtu = 1420", "mtu = 9001", &["out of range"]);
    broken("window = [-16, 32]", "window = [16, 32]", &["not a pair around 0"]);
    broken("window = [-16, 32]", "window = [-16]", &["not a pair around 0"]);
    broken("window = [-16, 32]", "window = [-4097, 32]", &["-4096 to 4096"]);
    broken("sockets = 256", "sockets = 1025", &["1 to 1024"]);
    broken("probes = 2048", "probes = 0", &["1 to 1000000"]);
    broken("timeout = \"10s\"", "timeout = \"0s\"", &["out of range", "1 to 600 s"]);
    broken("timeout = \"10s\"", "timeout = \"10\"", &["not a time with its unit"]);
    broken("berlin.example.net:4275", "berlin.example.net:0", &["port", "out of range"]);
    broken("203.0.113.9:4270", "203.0.113.9:70000", &["port", "out of range"]);
}

#[test]
fn keys_that_are_no_keys_are_told_and_never_repeated() {
    let berlin = key(2).public().to_string();
    let config = valid().replacen(&berlin, "tooshort=", 1);
    one_fault(&config, "tooshort=", &["`public_key`", "44 characters"]);
    assert!(!faults(&config).concat().contains("tooshort"));
    let zero = "A".repeat(43) + "=";
    one_fault(&valid().replacen(&berlin, &zero, 1), &zero, &["all-zero"]);
}

#[test]
fn a_peer_that_is_oneself_or_stands_twice_is_a_fault() {
    let (own, berlin, paris) = (key(1).public().to_string(), key(2).public().to_string(), key(3).public().to_string());
    one_fault(&valid().replacen(&berlin, &own, 1), &own, &["this member's own"]);
    let twice = valid().replacen(&paris, &berlin, 1);
    let faults = faults(&twice);
    assert!(faults.len() == 1 && faults[0].starts_with("config.toml:28: the same peer twice"), "{faults:?}");
    broken("name = \"paris\"", "name = \"berlin\" # again", &["two peers are named \"berlin\"", "line 18"]);
}

#[test]
fn allowed_ips_that_overlap_or_are_no_networks_are_faults() {
    let paris = "allowed_ips = [\"10.77.0.3/32\"]";
    broken(paris, "allowed_ips = [ \"10.77.0.2/32\" ]", &["overlaps 10.77.0.2/32", "line 20"]);
    broken(paris, "allowed_ips = [\"192.168.0.0/16\"]", &["overlaps 192.168.20.0/24"]);
    broken(paris, "allowed_ips = [\"10.77.0.3/24\"]", &["bits set", "10.77.0.0/24"]);
    broken(paris, "allowed_ips = [\"10.77.0.1/32\"]", &["this member's own address"]);
    broken(paris, "allowed_ips = []", &["`allowed_ips` is empty"]);
    broken(paris, "allowed_ips = [\"10.77.0.3/32\", \"10.77.0.3\"]", &["the same address twice"]);
    broken(paris, "allowed_ips = [\"127.0.0.1/32\"]", &["loopback"]);
    assert!(faults(&valid().replace(paris, "allowed_ips = [\"10.77.0.3/32\", \"0.0.0.0/0\", \"::/0\"]")).is_empty());
}

#[test]
fn fewer_than_two_discovery_addresses_are_a_fault() {
    let servers = "servers = [\"198.51.100.7\", \"203.0.113.9:4270\", \"stun:stun.example.net:3478\"]";
    for few in ["servers = [\"198.51.100.7\"]", "servers = [\"198.51.100.7:4270\", \"198.51.100.7:4271\"]"] {
        broken(servers, few, &["only one discovery address", "at least two"]);
    }
    broken(servers, "servers = [ ]", &["no discovery address", "at least two"]);
    let twice = faults(&valid().replace(servers, "servers = [\"198.51.100.7\", \"198.51.100.7\"]"));
    assert!(twice.len() == 2 && twice[0].contains("listed twice") && twice[1].contains("only one"), "{twice:?}");
}

#[test]
fn a_member_that_knows_its_peers_endpoints_needs_no_server() {
    let config = valid();
    let from = config.find("[discovery]").expect("there");
    let to = config.find("[[peer]]").expect("there");
    let without = config[..from].to_owned() + &config[to..];
    assert!(faults(&without).is_empty(), "{:?}", faults(&without));
    let waits = without.replace("endpoint = \"berlin.example.net:4275\"\n", "");
    let (_dir, path) = directory(&waits);
    let notes = Mesh::load(&path).expect("a peer may come to us").notes;
    assert!(notes.len() == 1 && notes[0].what.contains("only be waited for"), "{notes:?}");
    let out = waits.replace("calls = \"both\"", "calls = \"out\"");
    assert!(faults(&out).concat().contains("can't be called"), "{:?}", faults(&out));
}

#[test]
fn a_key_file_that_is_not_there_yet_is_told_by_check_and_refused_by_whoever_would_run_from_it() {
    let (_dir, path) = directory(&valid().replace("\"private.key\"\nlisten", "\"none.key\"\nlisten"));
    let told = |text: &str| text.contains("none.key can't be read") && text.contains("p2ptund genkey");
    let (summary, notes) = check(&path).expect("the file itself is right");
    assert!(summary.contains("once the key files"), "{summary}");
    assert!(notes.len() == 1 && told(&notes[0].to_string()), "{notes:?}");
    let rejected = Mesh::load(&path).expect_err("it can't be run");
    assert!(rejected.faults().count() == 1 && told(&rejected.to_string()), "{rejected}");
}

#[test]
fn a_key_file_that_is_readable_by_others_or_no_key_is_a_fault() {
    broken("\"private.key\"\nlisten", "\".\"\nlisten", &["is not a file"]);
    let (dir, path) = directory(&valid());
    for (mode, refused) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o644, true), (0o620, true)]
    {
        fs::set_permissions(dir.path().join("berlin.psk"), fs::Permissions::from_mode(mode)).expect("mode");
        match check(&path) {
            Ok(_) => assert!(!refused, "{mode:o}"),
            Err(rejected) => {
                assert!(refused && rejected.0.len() == 1, "{mode:o}: {rejected}");
                assert!(rejected.to_string().contains("chmod 600"), "{rejected}");
                assert_eq!(rejected.0[0].line, Some(22));
            }
        }
    }
    for content in [&b""[..], b"\xff\xfe", b"hello\n"] {
        let psk = dir.path().join("berlin.psk");
        fs::write(&psk, content).expect("written");
        fs::set_permissions(&psk, fs::Permissions::from_mode(0o600)).expect("mode");
        let rejected = check(&path).expect_err("no key");
        assert!(rejected.0.len() == 1 && rejected.to_string().contains("genpsk"), "{rejected}");
    }
}

#[test]
fn a_key_stands_in_a_file_or_in_the_config_and_not_in_both() {
    let inline = format!("private_key = \"{}\"", key(1).to_base64());
    let file = "private_key_file = \"private.key\"\nlisten";
    let (_dir, path) = directory(&valid().replacen("private_key_file = \"private.key\"", &inline, 1));
    assert!(Mesh::load(&path).expect("valid").notes.is_empty());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
    assert!(Mesh::load(&path).expect("valid").notes[0].what.contains("others can read"));
    broken(file, &format!("{inline}\nprivate_key_file = \"private.key\"\nlisten"), &["both"]);
    let neither = valid().replacen(file, "listen", 1);
    one_fault(&neither, "[interface]", &["`private_key_file` is missing", "p2ptund genkey"]);
}

#[test]
fn toml_that_is_none_is_told_along_with_the_faults_of_other_lines() {
    let config = valid().replace("mtu = 1420", "mtu = ").replace("sockets = 256", "sockets = 0");
    let faults = faults(&config);
    assert!(faults.len() == 2 && faults[0].contains(":6: not TOML"), "{faults:#?}");
    let twice = valid().replace("name = \"paris\"", "name = \"paris\"\nname = \"rome\"");
    one_fault(&twice, "name = \"rome\"", &["duplicate key", "Remove one of both"]);
}

#[test]
fn servers_may_not_share_a_socket_with_one_another_or_with_the_member() {
    broken("listen = [\"198.51.100.1:4274\"]", "listen = [\"198.51.100.2:4270\"]", &["taken", "line "]);
    broken("listen = [\"198.51.100.1:4274\"]", "listen = [\"198.51.100.1:4275\"]", &["taken by 0.0.0.0:4275"]);
}

#[test]
fn a_servers_config_is_told_from_a_members() {
    let server = "[rendezvous]\nlisten = [\"[2001:db8::1]\"]\nprivate_key_file = \"private.key\"\n";
    let (_dir, path) = directory(server);
    let (summary, _) = check(&path).expect("valid");
    assert_eq!(summary, "a server: rendezvous for any member at [2001:db8::1]:4274");
    assert!(ServerConfig::load(&path).is_ok());
    let wrong = Mesh::load(&path).expect_err("a server's").to_string();
    assert!(wrong.contains("p2ptund serve"), "{wrong}");
    let (_dir, path) = directory(&valid());
    let wrong = ServerConfig::load(&path).expect_err("a member's").to_string();
    assert!(wrong.contains("p2ptund up"), "{wrong}");
    assert!(faults("[discovery]\nlisten = []\n").concat().contains("`listen` is empty"));
    assert!(faults("[rendezvous]\nallow = []\n").len() == 3);
}

#[test]
fn netcheck_reads_a_config_whose_keys_it_may_not_open() {
    let (dir, path) = directory(&valid());
    fs::remove_file(dir.path().join("private.key")).expect("removed");
    assert_eq!(Lookout::load(&path).expect("valid").servers.len(), 3);
    assert!(Mesh::load(&path).is_err());
}

#[test]
fn a_file_that_can_not_be_read_is_one_fault_without_a_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = check(&dir.path().join("none.toml")).expect_err("missing");
    assert!(missing.to_string().ends_with("can't be read: no such file or directory. Name a config that exists."));
    assert!(check(dir.path()).is_err());
    let path = dir.path().join("binary.toml");
    fs::write(&path, b"\xff").expect("written");
    assert!(check(&path).expect_err("binary").to_string().contains("UTF-8"));
    assert!(check(Path::new("/dev/zero")).expect_err("endless").to_string().contains("MiB"));
}

#[test]
fn a_config_that_everybody_can_change_gets_a_note() {
    let (_dir, path) = directory(&valid());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("mode");
    let (_, notes) = check(&path).expect("valid");
    assert!(notes.len() == 1 && notes[0].to_string().contains("note: every user"), "{notes:?}");
}

/// Whatever is read, there is a config or at least one fault, and no panic.
fn reads_or_refuses(dir: &TempDir, text: &str) {
    let path = dir.path().join("config.toml");
    fs::write(&path, text).expect("written");
    for rejected in
        [check(&path).err(), Mesh::load(&path).err(), ServerConfig::load(&path).err(), Lookout::load(&path).err()]
            .into_iter()
            .flatten()
    {
        assert!(rejected.faults().count() > 0, "{rejected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        reads_or_refuses(&tempfile::tempdir().expect("a directory"), &text);
    }

    #[test]
    fn any_mutation_of_a_valid_config_is_read_or_refused(
        cuts in prop::collection::vec((0usize..2000, 0usize..30, "[\\[\\]\"'=,.{}\n0-9a-zA-Z_:/-]{0,12}"), 1..6)
    ) {
        let (dir, _) = directory("");
        let mut text: Vec<char> = valid().chars().collect();
        for (at, len, put) in cuts {
            let at = at.min(text.len());
            let end = (at + len).min(text.len());
            text.splice(at..end, put.chars());
        }
        reads_or_refuses(&dir, &text.into_iter().collect::<String>());
    }
}
