//! The commands: what a user types, and which part of the program answers.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage. Results go to standard output, errors and logs to standard error.

mod background;
mod init;
mod keys;
mod manual;
mod ping;
mod status;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use tokio::sync::oneshot;

use crate::config::{self, Lookout, Mesh, ServerConfig};
use crate::control::{self, Client};
use crate::daemon::{self, UpOptions};
use crate::logging::{self, Format, Level};
use crate::status::Style;
use crate::{netcheck, serve};

/// A tunnel daemon that finds a direct, encrypted UDP path between offices behind firewalls that nobody will reconfigure
#[derive(Parser, Debug)]
#[command(
    name = "p2ptund",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Args, Debug)]
struct LogArgs {
    /// What to log; goes before the environment's RUST_LOG
    #[arg(long, value_enum, global = true, value_name = "LEVEL", help_heading = "Logs")]
    log_level: Option<Level>,
    /// How to log: text and json to standard error, or to the systemd journal
    #[arg(long, value_enum, global = true, value_name = "FORMAT", help_heading = "Logs")]
    log_format: Option<Format>,
    /// Where `up -b` has its daemon log to.
    #[arg(long, global = true, hide = true)]
    log_file: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Join the mesh, in the foreground, until SIGTERM or SIGINT
    Up {
        /// The config of this member
        #[arg(default_value = config::DEFAULT_MEMBER)]
        config: PathBuf,
        /// Return once the interface is up, and leave the daemon running
        #[arg(short, long)]
        background: bool,
        #[command(flatten)]
        mesh: MeshArgs,
        /// Report on standard output that the interface is up, for the parent of `-b`.
        #[arg(long, hide = true)]
        report: bool,
    },
    /// Stop a running daemon and leave nothing behind
    Down {
        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Apply a changed config without dropping tunnels that did not change
    Reload {
        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Show what is up, by which path, how well
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show it anew each second
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Time the direct path to a peer and say how it was found
    Ping {
        /// The peer's name or public key
        peer: String,
        /// How often; 0 is until interrupted
        #[arg(short, long, value_name = "N", default_value_t = 4)]
        count: u32,
        /// How long to wait for each reply, in seconds (default: 15 for the first, which may have to find a path, then 2)
        #[arg(short = 'W', long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
        wait: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        mesh: MeshArgs,
    },
    /// Show what the NATs in front of this machine do, without a TUN device and without root
    Netcheck {
        /// The config of this member; only its discovery table is used, and no key file is opened
        #[arg(default_value = config::DEFAULT_MEMBER)]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Validate the config of a member or a server: every fault with file, line and what to write instead
    Check {
        /// The config
        config: PathBuf,
    },
    /// Run a discovery and rendezvous server
    Serve {
        /// The config of this server
        #[arg(default_value = config::DEFAULT_SERVER)]
        config: PathBuf,
    },
    /// Write a first config and its key, and say what to do next; overwrites nothing
    Init {
        /// The config to write; its private key goes beside it
        #[arg(default_value = config::DEFAULT_MEMBER)]
        config: PathBuf,
        /// This machine's address in the mesh, with the length of the mesh's network
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        address: Option<ipnet::IpNet>,
    },
    /// Print a new private key
    Genkey,
    /// Read a private key on standard input, print its public key
    Pubkey,
    /// Print a new preshared key
    Genpsk,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Which mesh, where several run on one machine.
#[derive(Args, Debug)]
struct MeshArgs {
    /// The interface of the mesh; needed only where several run on this machine, or to give `up` another than the config's
    #[arg(short, long, value_name = "NAME", value_parser = config::interface_name)]
    interface: Option<String>,
    /// The control socket, where it is not /run/p2ptund/NAME.sock
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl MeshArgs {
    fn locate(&self) -> anyhow::Result<PathBuf> {
        control::locate(self.interface.as_deref(), self.control.as_deref())
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.locate()?).await
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // clap prints its own errors and exits with 2, or 0 after --help.
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        // Whoever read standard output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let text = match error.downcast_ref::<config::Rejected>() {
                // These lines begin with the file's name, as a compiler's do.
                Some(rejected) => format!("{rejected}\n"),
                None => format!("p2ptund: {}\n", crate::status::plain(&format!("{error:#}"))),
            };
            // Nobody is left to tell that standard error is closed.
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self) -> anyhow::Result<ExitCode> {
        let log = self.log;
        match self.command {
            Command::Up { config, background: true, mesh, .. } => {
                let (_, control) = load_member(&config, &mesh)?;
                background::start(&config, &mesh, &control, &log)?;
            }
            Command::Up { config, mesh, report, background: false } => {
                let started = log.init().and_then(|()| load_member(&config, &mesh));
                let result = started.and_then(|(loaded, control)| up(loaded, mesh.interface, control, report));
                if report {
                    return background::report_end(result);
                }
                result?;
            }
            Command::Down { mesh } => block_on(async { mesh.connect().await?.down().await })??,
            Command::Reload { mesh } => {
                let changed = block_on(async { mesh.connect().await?.reload().await })??;
                print(&format!("{}\n", crate::status::plain(&changed)))?;
            }
            Command::Status { json, watch, mesh } => block_on(status::run(&mesh, json, watch))??,
            Command::Ping { peer, count, wait, json, mesh } => {
                let wait = wait.map(Duration::from_secs);
                return block_on(ping::run(&mesh, &peer, count, wait, json))?;
            }
            Command::Netcheck { config, json } => {
                log.init()?;
                let found = block_on(netcheck::run(Lookout::load(&config)?))??;
                print(&if json { crate::status::json(&found.nat, Style::of_stdout())? } else { found.to_string() })?;
            }
            Command::Check { config } => return check(&config),
            Command::Serve { config } => {
                log.init()?;
                let config = ServerConfig::load(&config)?;
                warn_of(&config.notes);
                if let Some(rendezvous) = &config.serve.rendezvous {
                    let listen: Vec<_> = rendezvous.listen.iter().map(SocketAddr::to_string).collect();
                    let key = rendezvous.private_key.public();
                    print(&format!("rendezvous at {}: public key {key}\n", listen.join(", ")))?;
                }
                block_on(serve::run(config))??;
            }
            Command::Init { config, address } => print(&init::run(&config, address)?)?,
            Command::Genkey => print(&keys::new_private()?)?,
            Command::Pubkey => print(&keys::public_of_stdin()?)?,
            Command::Genpsk => print(&keys::new_preshared()?)?,
            Command::Completions { shell } => print(&manual::completions(shell))?,
            Command::Man => print(&manual::page()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl LogArgs {
    fn init(&self) -> anyhow::Result<()> {
        logging::init(self.log_level, self.log_format.unwrap_or_default(), self.log_file.as_deref())
    }
}

fn load_member(path: &Path, args: &MeshArgs) -> anyhow::Result<(Mesh, PathBuf)> {
    let mesh = Mesh::load_as(path, args.interface.as_deref())?;
    let control = args.control.clone().unwrap_or_else(|| control::path_for(&mesh.interface));
    Ok((mesh, control))
}

fn up(mesh: Mesh, interface: Option<String>, control: PathBuf, report: bool) -> anyhow::Result<()> {
    warn_of(&mesh.notes);
    let (ready, is_ready) = oneshot::channel();
    let options = UpOptions { interface, control, ready };
    block_on(async {
        let mut daemon = std::pin::pin!(daemon::up(mesh, options));
        tokio::select! {
            ended = &mut daemon => return ended,
            ready = is_ready => if report && ready.is_ok() { background::report_ready()? },
        }
        daemon.await
    })?
}

fn check(path: &Path) -> anyhow::Result<ExitCode> {
    match config::check(path) {
        Ok((summary, notes)) => {
            let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
            print(&format!("{notes}{}: {summary}\n", path.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(rejected) => {
            print(&format!("{rejected}\n"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn warn_of(notes: &[config::Fault]) {
    for note in notes {
        tracing::warn!("{note}");
    }
}

/// Runs a command that waits.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the system refuses what an event loop needs")?;
    let result = runtime.block_on(future);
    // A name that the system's resolver still looks up must not hold up the end.
    runtime.shutdown_background();
    Ok(result)
}

/// Writes to standard output.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Fills `bytes` from the system's randomness.
fn randomness(bytes: &mut [u8]) -> anyhow::Result<()> {
    match getrandom::fill(bytes) {
        Ok(()) => Ok(()),
        Err(error) => bail!("the system gives no randomness: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contracts_command_lines_are_understood() {
        for line in [
            "up",
            "up mesh.toml -b",
            "up --background -i p2p1 --control /tmp/x.sock",
            "down -i p2p0",
            "reload --interface p2p0",
            "status --json --watch",
            "ping berlin -c 3 --json",
            "netcheck mesh.toml --json",
            "check mesh.toml",
            "serve",
            "serve server.toml",
            "init",
            "init mesh.toml --address 10.77.0.3/24",
            "genkey",
            "pubkey",
            "genpsk",
            "completions bash",
            "man",
            "--log-level debug up",
            "up --log-format journald",
            "status --log-format json --control x.sock",
        ] {
            let words = std::iter::once("p2ptund").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn other_command_lines_are_wrong_usage() {
        for line in [
            "",
            "init x --address here",
            "check",
            "ping",
            "up -i toolonginterfacename",
            "ping x -c -1",
            "up --log-level loud",
        ] {
            let words = std::iter::once("p2ptund").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert_eq!(Cli::try_parse_from(words).map_err(|error| error.exit_code()).err(), Some(2), "{line}");
        }
    }
}
