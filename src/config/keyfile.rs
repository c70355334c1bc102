//! Keys that stand in a file of their own, which nobody else may read, or, less well, in the config itself.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use super::fault::{At, Log, Wrong};
use super::reader::Section;
use super::value::key_error;
use crate::proto::keys::KeyError;

/// A key file holds 44 characters and perhaps a line end; one that is longer than this is something else.
const MAX_KEY_FILE: u64 = 4096;
/// Everybody but the owner.
const OTHERS: u32 = 0o077;

/// The secret of `section` in `inline` or in the file that `file` names. Where `required`, one of both must be there; both
/// never may. `made_by` is the command that makes one.
pub(super) fn secret<K: FromStr<Err = KeyError>>(
    section: &Section<'_, '_>,
    (file, inline): (&str, &str),
    required: bool,
    made_by: &str,
    base: &Path,
    log: &mut Log,
) -> Option<At<K>> {
    let (path, text) = (section.text(file, log), section.text(inline, log));
    if section.has(file) && section.has(inline) {
        let remedy = format!("Keep `{file}`, which keeps the key out of the config, and remove `{inline}`.");
        log.fault(section.at_key(inline), format!("both `{file}` and `{inline}` are written"), remedy);
    }
    if required && !section.has(file) && !section.has(inline) {
        let remedy = format!("Make one with `{made_by} > FILE` under umask 077, and write {file} = \"FILE\".");
        log.absent(section.at, format!("`{file}` is missing"), remedy);
    }
    if let Some(path) = path {
        return log.take(path.at, file, from_file(&base.join(path.value), made_by));
    }
    let text = text?;
    log.take(text.at, inline, text.value.parse().map_err(|error| key_error(error, &format!("`{made_by}`"))))
}

fn from_file<K: FromStr<Err = KeyError>>(path: &Path, made_by: &str) -> Result<K, Wrong> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        if error.kind() == ErrorKind::NotFound {
            let remedy = format!("Make it with `(umask 077; {made_by} > {shown})`, or correct the path.");
            return Wrong::missing(format!("{shown} can't be read: {}", plain(&error)), remedy);
        }
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => "Run this as the user who owns the file, or as root.".to_owned(),
            _ => "Correct the path; it is relative to the config file.".to_owned(),
        };
        Wrong::new(format!("{shown} can't be read: {}", plain(&error)), remedy)
    };
    // Without blocking, because a path may name a pipe that nobody writes to.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Wrong::new(format!("{shown} is not a file"), "Name the file that holds the key."));
    }
    let forbidden = if is_credential(path) { OTHERS & 0o007 } else { OTHERS };
    if metadata.mode() & forbidden != 0 {
        return Err(Wrong::new(
            format!("{shown} can be read or written by others (mode {:04o})", metadata.mode() & 0o7777),
            format!("Run `chmod 600 {shown}`, and make a new key if others may have read this one."),
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => content(KeyError::NotBase64, path, made_by),
        _ => unreadable(error),
    })?;
    text.parse().map_err(|error| content(error, path, made_by))
}

fn content(error: KeyError, path: &Path, made_by: &str) -> Wrong {
    let wrong = key_error(error, made_by);
    let shown = path.display();
    Wrong::new(format!("{shown} holds {}", wrong.what), format!("Make a key with `(umask 077; {made_by} > {shown})`."))
}

/// Whether systemd put the file there for this service alone. It grants the service's user access by an ACL, which shows as a
/// group's mode bits.
fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).is_some_and(|credentials| {
        !credentials.as_os_str().is_empty() && path.parent().is_some_and(|parent| parent == credentials)
    })
}

/// The system's words without its number.
pub(super) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
