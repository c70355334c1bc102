//! The logs: to standard error as text or JSON, or to journald.
//!
//! What is logged is decided by `--log-level`, or else RUST_LOG, or else it is `info`. Dependencies are heard from `warn` on.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A log file of `up -b` starts over at this size: it lies in memory, under /run.
const MAX_LOG_FILE: u64 = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// One line for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
    /// Straight to the systemd journal, with its fields
    Journald,
}

/// Starts logging. Errors where journald is asked for and not there, where RUST_LOG can't be understood, or where `file` can't
/// be written.
pub fn init(level: Option<Level>, format: Format, file: Option<&Path>) -> anyhow::Result<()> {
    let filter = filter(level, std::env::var("RUST_LOG").ok().as_deref())?;
    let registry = tracing_subscriber::registry().with(filter);
    let ansi = file.is_none() && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let writer = match file {
        Some(path) => BoxMakeWriter::new(Mutex::new(LogFile::open(path)?)),
        None => BoxMakeWriter::new(io::stderr),
    };
    let text = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    let started = match format {
        Format::Text => registry.with(text.compact().with_target(false)).try_init(),
        Format::Json => registry.with(text.json()).try_init(),
        Format::Journald => {
            let journald = tracing_journald::layer().context(
                "the systemd journal is not there; leave out --log-format journald to log to standard error",
            )?;
            registry.with(journald).try_init()
        }
    };
    started.context("logging was started twice")
}

fn filter(level: Option<Level>, rust_log: Option<&str>) -> anyhow::Result<EnvFilter> {
    let level = match (level, rust_log.map(str::trim)) {
        (None, Some(directives)) if !directives.is_empty() => {
            return EnvFilter::try_new(directives).map_err(|error| anyhow!("RUST_LOG can't be understood: {error}"));
        }
        (Some(Level::Error), _) => "error",
        (Some(Level::Warn), _) => "warn",
        (Some(Level::Info), _) | (None, _) => "info",
        (Some(Level::Debug), _) => "debug",
        (Some(Level::Trace), _) => "trace",
    };
    let others = if level == "error" { "error" } else { "warn" };
    // That crate warns of each attribute that a newer kernel has added, at every look at the links.
    EnvFilter::try_new(format!("{others},netlink_packet_route=error,p2ptund={level}")).context("a level is a filter")
}

/// A log file that starts over instead of growing without end.
struct LogFile {
    file: File,
    written: u64,
}

impl LogFile {
    fn open(path: &Path) -> anyhow::Result<Self> {
        // Appending, so that what others write through standard error stays in order with it.
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("the log file {} can't be written", path.display()))?;
        let written = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self { file, written })
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written > MAX_LOG_FILE {
            self.file.set_len(0)?;
            self.written = 0;
        }
        let written = self.file.write(bytes)?;
        self.written = self.written.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where a daemon in the background logs to, beside its control socket.
pub fn file_beside(control: &Path) -> PathBuf {
    control.with_extension("log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_environment_and_dependencies_are_quiet() {
        let shown = |level, rust_log| filter(level, rust_log).expect("a filter").to_string();
        assert_eq!(shown(None, None), "netlink_packet_route=error,p2ptund=info,warn");
        assert_eq!(shown(Some(Level::Debug), Some("trace")), "netlink_packet_route=error,p2ptund=debug,warn");
        assert_eq!(shown(None, Some("p2ptund::proto=trace")), "p2ptund::proto=trace");
        assert_eq!(shown(None, Some(" ")), "netlink_packet_route=error,p2ptund=info,warn");
        assert!(filter(None, Some("a=b=c")).is_err());
    }

    #[test]
    fn a_log_file_starts_over_instead_of_growing_without_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("p2p0.log");
        let mut log = LogFile::open(&path).expect("opened");
        let block = vec![b'x'; 1 << 20];
        for _ in 0..12 {
            log.write_all(&block).expect("written");
        }
        let size = std::fs::metadata(&path).expect("there").len();
        assert!((1..=MAX_LOG_FILE + (1 << 20)).contains(&size), "{size}");
    }
}
