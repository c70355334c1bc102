//! The manual page and shell completions, made from the command line itself.

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;
use crate::config::{DEFAULT_MEMBER, DEFAULT_SERVER};

pub(super) fn completions(shell: clap_complete::Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "p2ptund", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// One page with every command and its options.
pub(super) fn page() -> anyhow::Result<String> {
    let mut root = Cli::command();
    root.build();
    let mut page = Vec::new();
    let man = Man::new(root.clone()).section("8").manual("p2ptund manual");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut heading = Roff::new();
    heading.control("SH", ["COMMANDS"]);
    heading.to_writer(&mut page)?;
    for command in root.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        render_command(command, &mut page)?;
    }
    for (title, entries) in SECTIONS {
        let mut section = Roff::new();
        section.control("SH", [*title]);
        for (term, text) in *entries {
            section.control("TP", []);
            section.text([bold(*term)]);
            section.text([roman(*text)]);
        }
        section.to_writer(&mut page)?;
    }
    man.render_version_section(&mut page)?;
    String::from_utf8(page).context("the manual page is text")
}

fn render_command(command: &clap::Command, page: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut section = Roff::new();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).trim().to_owned();
    section.control("SS", [usage.as_str()]);
    if let Some(about) = command.get_about() {
        section.text([roman(format!("{about}."))]);
    }
    // Those of the whole program stand under OPTIONS.
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_global_set()) {
        if ["help", "version"].contains(&arg.get_id().as_str()) {
            continue;
        }
        let mut names: Vec<String> = Vec::new();
        names.extend(arg.get_short().map(|short| format!("-{short}")));
        names.extend(arg.get_long().map(|long| format!("--{long}")));
        let value = match arg.get_value_names() {
            Some([value, ..]) if arg.get_action().takes_values() => value.to_string(),
            _ => String::new(),
        };
        let term = if names.is_empty() { format!("[{value}]") } else { format!("{} {value}", names.join(", ")) };
        section.control("TP", []);
        section.text([bold(term.trim())]);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let is_flag = !arg.get_action().takes_values();
        let default =
            if is_flag || default.is_empty() { String::new() } else { format!(" (default: {})", default.join(" ")) };
        section.text([roman(format!("{help}{default}."))]);
    }
    section.to_writer(page)?;
    Ok(())
}

const SECTIONS: &[(&str, &[(&str, &str)])] = &[
    (
        "EXIT STATUS",
        &[
            ("0", "Done. For ping: at least one reply came."),
            ("1", "Failed; the reason is on standard error (for check, the faults are on standard output)."),
            ("2", "The command line is wrong."),
        ],
    ),
    (
        "FILES",
        &[
            (DEFAULT_MEMBER, "The config of a mesh member, where up and netcheck name none."),
            (DEFAULT_SERVER, "The config of a server, where serve names none."),
            ("/etc/p2ptund/NAME.toml", "The config of the mesh that systemd runs as p2ptund@NAME.service."),
            (
                "/run/p2ptund/NAME.sock",
                "The control socket of the mesh on interface NAME, mode 0660: root and the daemon's user may do everything, members of its group may use status and ping.",
            ),
            (
                "/run/p2ptund/NAME.log",
                "The log of up -b where there is no systemd journal and standard error is not a file. It starts over at 4 MiB.",
            ),
            ("/dev/net/tun", "Makes the interface. up needs it, and CAP_NET_ADMIN."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("RUST_LOG", "What to log, such as info or p2ptund::proto=debug, where --log-level is not given."),
            ("NO_COLOR", "If set and not empty, status and logs have no colours."),
            ("NOTIFY_SOCKET, WATCHDOG_USEC", "Set by systemd: up says when it is ready, and that it is alive."),
            (
                "CREDENTIALS_DIRECTORY",
                "Set by systemd: key files in it may be readable by the group, which is how systemd hands them over.",
            ),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT",
                "up removes interface, routes, port mappings and control socket, and ends with status 0.",
            ),
            ("SIGHUP", "up applies the changed config, as reload does. A config that check refuses changes nothing."),
        ],
    ),
    (
        "EXAMPLES",
        &[
            (
                "(umask 077; p2ptund genkey > private.key); p2ptund pubkey < private.key",
                "Makes this machine's key pair; the peers are told the public key.",
            ),
            ("p2ptund check /etc/p2ptund/config.toml", "Says everything that is wrong with a config."),
            ("sudo p2ptund up -b && p2ptund ping berlin", "Joins the mesh and times the direct path to a peer."),
        ],
    ),
    ("SEE ALSO", &[("wg(8), systemd.unit(5)", "Sessions and keys are WireGuard's.")]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_every_command_and_every_promised_section() {
        let page = page().expect("a page");
        for word in [
            "netcheck",
            "genpsk",
            "completions",
            "EXIT STATUS",
            "FILES",
            "ENVIRONMENT",
            "RUST_LOG",
            "background",
            "interface",
            "control",
            "log\\-format",
            "/run/p2ptund/NAME.sock",
        ] {
            assert!(page.contains(word), "{word} in\n{page}");
        }
        assert!(!page.contains("report") && !page.contains("log\\-file"));
    }

    #[test]
    fn every_shell_gets_completions() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            assert!(completions(shell).contains("netcheck"));
        }
    }
}
