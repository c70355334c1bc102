//! Every config that is shipped passes `p2ptund check`, with the key files that it names beside it; and it tells every key there
//! is.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn p2ptund(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_p2ptund"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that does not read it may be gone already.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn shipped(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("config/ is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(shipped(&path));
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found
}

/// A copy of `config` in `dir`, with the key files that it names. Those that are only mentioned in a comment are made too.
fn copy_with_keys(config: &Path, text: &str, dir: &Path) -> PathBuf {
    for line in text.lines().filter(|line| line.contains("_key_file = ")) {
        let name = line.split('"').nth(1).expect("a name in quotes");
        let path = dir.join(name);
        fs::write(&path, p2ptund(&["genkey"], "").stdout).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    }
    let copy = dir.join(config.file_name().expect("a name"));
    fs::write(&copy, text).expect("written");
    copy
}

fn assert_passes(config: &Path, text: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = copy_with_keys(config, text, dir.path());
    let output = p2ptund(&["check", copy.to_str().expect("a path")], "");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}:\n{stdout}", config.display());
    assert_eq!(stdout.lines().count(), 1, "no notes either: {stdout}");
}

#[test]
fn every_shipped_config_passes() {
    let configs = shipped(Path::new("config"));
    assert!(configs.len() >= 5, "{configs:?}");
    for config in configs {
        assert_passes(&config, &fs::read_to_string(&config).expect("text"));
    }
}

/// The annotated examples promise every key with its default. With the commented lines made real they must pass still, so that
/// none is misspelt.
#[test]
fn the_annotated_examples_pass_with_every_commented_key_made_real() {
    for (name, keys) in [
        (
            "config/member.toml",
            &[
                "name",
                "listen_port",
                "mtu",
                "cipher",
                "port_mapping",
                "endpoint",
                "preshared_key_file",
                "calls",
                "connect",
                "window",
                "sockets",
                "probes",
                "timeout",
                "listen",
                "allow",
            ][..],
        ),
        ("config/server.toml", &["allow"]),
    ] {
        let text = fs::read_to_string(name).expect("text");
        let mut real = Vec::new();
        let mut seen = Vec::new();
        for line in text.lines() {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            let key = bare.split(" = ").next().unwrap_or_default();
            let is_key = bare.contains(" = ") && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let is_setting = !bare.contains('…') && (is_key || bare.starts_with("[serve"));
            if is_setting && is_key {
                seen.push(key.to_owned());
            }
            real.push(if is_setting { bare } else { line });
        }
        for key in keys {
            assert!(seen.iter().any(|seen| seen == key), "{name} does not show `{key}`: {seen:?}");
        }
        assert_passes(Path::new(name), &real.join("\n"));
    }
}

#[test]
fn faults_are_printed_one_a_line_and_the_status_is_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("bad.toml");
    fs::write(&config, "[interface]\nadress = \"10.77.0.1/24\"\nlisten_port = 70000\n").expect("written");
    let path = config.to_str().expect("a path");
    let output = p2ptund(&["check", path], "");
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{stdout}");
    assert!(lines.iter().all(|line| line.starts_with(path)), "{stdout}");
    assert!(stdout.contains(":2: unknown key `adress`") && stdout.contains(":3: `listen_port`: 70000"), "{stdout}");
    for command in ["up", "serve"] {
        let refused = p2ptund(&[command, path], "");
        assert_eq!(refused.status.code(), Some(1), "{command}");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        if command == "up" {
            assert_eq!(stderr, stdout, "`up` refuses with the same lines");
        }
        assert!(stderr.starts_with(path), "{stderr}");
    }
}

/// The mode of a credential shows the access list by which systemd lets the service's user read it.
#[test]
fn a_key_that_systemd_hands_over_may_show_a_group_mode() {
    let text = "[rendezvous]\nlisten = [\"198.51.100.7\"]\nprivate_key_file = \"server.key\"\n";
    let dir = tempfile::tempdir().expect("a directory");
    let config = copy_with_keys(Path::new("server.toml"), text, dir.path());
    fs::set_permissions(dir.path().join("server.key"), fs::Permissions::from_mode(0o440)).expect("mode");
    let check = |credentials: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_p2ptund"));
        command.arg("check").arg(&config).env("CREDENTIALS_DIRECTORY", credentials);
        command.output().expect("the binary runs").status.code()
    };
    assert_eq!(check(dir.path()), Some(0));
    assert_eq!(check(Path::new("/nowhere")), Some(1));
    assert_eq!(check(Path::new("")), Some(1));
}
