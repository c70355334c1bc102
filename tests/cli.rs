//! The shipped binary as a user sees it: output, errors and exit statuses.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2ptund"));
    command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `program` prints when `input` is on its standard input.
fn piped(mut program: Command, input: &[u8]) -> Output {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(input).expect("written");
    child.wait_with_output().expect("it ends")
}

#[test]
fn keys_are_those_of_wg() {
    let private = run(&["genkey"]);
    assert!(private.status.success() && private.stdout.len() == 45);
    assert_ne!(private.stdout, run(&["genkey"]).stdout, "each is another");
    let public = piped(command(&["pubkey"]), &private.stdout);
    assert!(public.status.success(), "{}", stderr(&public));
    assert_eq!(run(&["genpsk"]).stdout.len(), 45);
    if Command::new("wg").arg("--version").output().is_err() {
        eprintln!("skipped: wg is not here to compare with");
        return;
    }
    let mut wg = Command::new("wg");
    wg.arg("pubkey");
    assert_eq!(stdout(&piped(wg, &private.stdout)), stdout(&public));
}

#[test]
fn pubkey_refuses_what_is_no_key_and_does_not_repeat_it() {
    let output = piped(command(&["pubkey"]), b"secret but no key\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("p2ptund: standard input is not a key"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("secret"));
}

#[test]
fn wrong_usage_is_status_2_and_help_is_status_0() {
    for args in
        [&[][..], &["init", "--address", "here"], &["check"], &["ping"], &["up", "--nonsense"], &["up", "-i", "a/b"]]
    {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    for args in [&["--help"][..], &["--version"], &["up", "--help"]] {
        assert_eq!(run(args).status.code(), Some(0), "{args:?}");
    }
    assert!(!stdout(&run(&["up", "--help"])).contains("--report"));
}

#[test]
fn commands_for_a_daemon_that_does_not_run_are_status_1_with_one_sentence() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock");
    let socket = socket.to_str().expect("a path");
    for args in [&["status"][..], &["down"], &["reload"], &["ping", "berlin"]] {
        let output = run(&[args, &["--control", socket]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = stderr(&output);
        assert!(text.starts_with("p2ptund: no p2ptund is running at ") && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    for args in [&["man"][..], &["completions", "bash"], &["genkey"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command(args).stdout(writer).output().expect("runs");
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn the_manual_page_and_the_completions_have_no_faults() {
    let page = run(&["man"]);
    assert!(page.status.success() && stdout(&page).contains(".TH p2ptund 8"), "{}", stdout(&page));
    let completions = run(&["completions", "bash"]);
    assert!(completions.status.success());
    let mut bash = Command::new("bash");
    bash.arg("-n");
    let parsed = piped(bash, &completions.stdout);
    assert!(parsed.status.success(), "{}", stderr(&parsed));
    assert_eq!(run(&["completions", "elvish-like"]).status.code(), Some(2));
    let mut groff = Command::new("groff");
    groff.args(["-man", "-ww", "-z", "-Tutf8"]);
    if Command::new("groff").arg("--version").output().is_err() {
        eprintln!("skipped: groff is not here to read the page");
        return;
    }
    let read = piped(groff, &page.stdout);
    assert!(read.status.success() && read.stderr.is_empty(), "{}", stderr(&read));
}

#[test]
fn a_log_filter_that_can_not_be_understood_is_one_sentence() {
    let output = command(&["netcheck", "/dev/null"]).env("RUST_LOG", "a=b=c").output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("p2ptund: RUST_LOG can't be understood"), "{}", stderr(&output));
}

#[test]
fn a_background_daemon_that_fails_says_why_and_is_status_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = member(&dir);
    let control = dir.path().join("run").join("x.sock");
    // A file where the socket should be: refused with or without root.
    fs::create_dir_all(control.parent().expect("a parent")).expect("made");
    fs::write(&control, "precious").expect("written");
    let args = [
        "up",
        "-b",
        config.to_str().expect("a path"),
        "--control",
        control.to_str().expect("a path"),
        "-i",
        "p2pclitest",
    ];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("p2ptund: ") && stderr(&output).lines().count() == 1, "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&control).expect("still there"), "precious");
    let missing = run(&["up", "-b", dir.path().join("none.toml").to_str().expect("a path")]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("none.toml: can't be read: no such file"), "{}", stderr(&missing));
}

/// A valid config, and its key.
fn member(dir: &tempfile::TempDir) -> PathBuf {
    let key = dir.path().join("private.key");
    fs::write(&key, run(&["genkey"]).stdout).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mode");
    let config = dir.path().join("config.toml");
    let text = "[interface]\naddress = [\"10.77.0.1/24\"]\nprivate_key_file = \"private.key\"\nlisten_port = 0\n";
    fs::write(&config, text).expect("written");
    config
}
