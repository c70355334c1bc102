//! `up -b`: runs the daemon as a process of its own, and returns once its interface is up.
//!
//! The program starts itself anew with `--report`; a fork would copy a process of several threads. The daemon's standard output
//! is a pipe to the parent, on which it says `up` once, or why it failed. Its standard error goes to a file only if the
//! parent's does: a terminal would fill with logs, and a pipe's reader would wait for the daemon's end. Otherwise it logs to the
//! systemd journal, or, where there is none, to NAME.log beside the control socket.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};

use super::{LogArgs, MeshArgs, is_broken_pipe, print};
use crate::config::Rejected;
use crate::logging::{Format, file_beside};

const JOURNAL: &str = "/run/systemd/journal/socket";
const UP: &str = "up";
/// Addresses of peers stand in it.
const LOG_MODE: u32 = 0o640;
/// Before the sentence that says why it failed.
const FAILED: &str = "failed: ";
/// A daemon that refuses a config names all its faults.
const MAX_REPORT: u64 = 1 << 20;

/// Starts the daemon and waits until its interface is up. Errors are the daemon's.
pub(super) fn start(config: &Path, mesh: &MeshArgs, control: &Path, log: &LogArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let mut command = Command::new(program);
    command.arg("up").arg("--report").arg("--control").arg(control);
    if let Some(interface) = &mesh.interface {
        command.arg("--interface").arg(interface);
    }
    if let Some(level) = log.log_level {
        command.arg("--log-level").arg(word(level));
    }
    let place = set_log(&mut command, control, log)?;
    // Not the terminal's group: an interrupt typed there is not meant for the daemon.
    command.arg("--").arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut daemon = command.spawn().context("the daemon can't be started")?;
    let report = daemon.stdout.take().context("the daemon has a standard output")?;
    let mut report = BufReader::new(report.take(MAX_REPORT));
    let mut line = String::new();
    report.read_line(&mut line).context("the daemon's report can't be read")?;
    if line.trim_end() == UP {
        return Ok(());
    }
    let _ = report.read_to_string(&mut line);
    let _ = daemon.wait();
    match line.strip_prefix(FAILED) {
        Some(sentence) => bail!(sentence.trim_end().to_owned()),
        None => bail!("the daemon ended before its interface was up; see {place}"),
    }
}

/// Tells the parent that the interface is up. A parent that is gone is no reason to stop.
pub(super) fn report_ready() -> anyhow::Result<()> {
    match print(&format!("{UP}\n")).map_err(anyhow::Error::from) {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Tells the parent, if it still waits, how the daemon ended.
pub(super) fn report_end(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let Err(error) = result else { return Ok(ExitCode::SUCCESS) };
    let sentence = match error.downcast_ref::<Rejected>() {
        Some(rejected) => rejected.to_string(),
        None => format!("{error:#}"),
    };
    if print(&format!("{FAILED}{sentence}\n")).is_err() {
        // The interface was up, and the parent is gone.
        tracing::error!("{sentence}");
    }
    Ok(ExitCode::FAILURE)
}

/// Where the daemon's logs go; in words for the user.
fn set_log(command: &mut Command, control: &Path, log: &LogArgs) -> anyhow::Result<String> {
    if let Some(format) = log.log_format {
        command.arg("--log-format").arg(word(format));
    }
    if log.log_format == Some(Format::Journald) || (log.log_format.is_none() && Path::new(JOURNAL).exists()) {
        if log.log_format.is_none() {
            command.arg("--log-format").arg(word(Format::Journald));
        }
        command.stderr(Stdio::null());
        return Ok("the systemd journal".to_owned());
    }
    if fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stderr.is_file()) {
        return Ok("standard error".to_owned());
    }
    let path = file_beside(control);
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(LOG_MODE).open(&path);
    let file = file.with_context(|| format!("the log file {} can't be written", path.display()))?;
    command.arg("--log-file").arg(&path).stderr(file);
    Ok(path.display().to_string())
}

/// As the command line spells it.
fn word(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
