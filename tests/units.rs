//! The systemd units are understood by systemd, and as closed as they promise to be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const UNITS: [(&str, f64); 2] = [("p2ptund@.service", 2.0), ("p2ptund-server.service", 1.2)];

fn analyze(args: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(args).env("LC_ALL", "C").output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("SKIPPED: systemd-analyze is not here");
            None
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A copy that starts the binary just built, which need not be installed.
fn copy_of(unit: &str, dir: &Path) -> PathBuf {
    let unit_text = fs::read_to_string(Path::new("systemd").join(unit)).expect("text");
    let start = format!("ExecStart={} ", env!("CARGO_BIN_EXE_p2ptund"));
    assert_eq!(unit_text.matches("ExecStart=p2ptund ").count(), 1, "{unit}");
    let copy = dir.join(unit);
    fs::write(&copy, unit_text.replace("ExecStart=p2ptund ", &start)).expect("written");
    copy
}

#[test]
fn systemd_understands_the_units() {
    let dir = tempfile::tempdir().expect("a directory");
    for (unit, _) in UNITS {
        let copy = copy_of(unit, dir.path());
        let Some(output) = analyze(&["verify", copy.to_str().expect("a path")]) else { return };
        // A setting that is not understood is only a line of output, with status 0.
        assert!(output.status.success() && text(&output).trim().is_empty(), "{unit}: {}", text(&output));
    }
}

#[test]
fn the_units_expose_no_more_than_they_promise() {
    for (unit, most) in UNITS {
        let path = Path::new("systemd").join(unit);
        let Some(output) = analyze(&["security", "--offline=true", path.to_str().expect("a path")]) else { return };
        let text = text(&output);
        let line = text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default();
        let exposure = line.split_whitespace().find_map(|word| word.parse::<f64>().ok());
        assert!(exposure.is_some_and(|exposure| exposure <= most), "{unit}: {text}");
    }
}
