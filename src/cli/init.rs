//! `init`: a first config and its key, and what to do next.
//!
//! Nothing that is there is overwritten: a key is kept and used, a config is a reason to stop before anything is made.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::keys;
use crate::proto::keys::PrivateKey;

/// What is written, and the address in it that the user's takes the place of.
const CONFIG: &str = include_str!("../../config/first.toml");
const ADDRESS: &str = "10.77.0.1/24";
/// Where the config has its key.
const KEY_FILE: &str = "private.key";

/// Makes `path`, the key beside it, and their directory; gives what to say.
pub(super) fn run(path: &Path, address: Option<IpNet>) -> anyhow::Result<String> {
    if path.exists() {
        bail!("{} is there already, and init overwrites nothing: edit it, or name another file", path.display());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("{} can't be made", directory.display()))?;
    let key_path = directory.join(KEY_FILE);
    let key = match std::fs::read_to_string(&key_path).map(Zeroizing::new) {
        Ok(key) => key,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = keys::new_private()?;
            write_new(&key_path, key.as_bytes())?;
            key
        }
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", key_path.display())),
    };
    let public = match key.parse::<PrivateKey>() {
        Ok(key) => key.public(),
        Err(error) => bail!("{} is {error}: move it away, and init makes another", key_path.display()),
    };
    let config = match address {
        Some(address) => CONFIG.replace(ADDRESS, &address.to_string()),
        None => CONFIG.to_owned(),
    };
    write_new(path, config.as_bytes())?;
    let (config, key) = (path.display(), key_path.display());
    Ok(format!(
        "{config}: a first config; write the servers and the peers into it\n{key}: its private key, for nobody else to read\n\
         public key, for the other members: {public}\nthen: p2ptund check {config}; sudo p2ptund up {config}\n"
    ))
}

fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes)).with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config;

    #[test]
    fn what_it_writes_is_a_valid_config_with_a_key_that_nobody_else_may_read() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("mesh/config.toml");
        let said = run(&path, Some("10.9.0.7/16".parse().expect("an address"))).expect("writes");
        let mode = |path: &Path| path.metadata().expect("is there").permissions().mode() & 0o777;
        let key = path.with_file_name(KEY_FILE);
        assert_eq!((mode(&path), mode(&key), mode(&place.path().join("mesh"))), (0o600, 0o600, 0o700));
        let (summary, notes) = config::check(&path).expect("is valid");
        assert!(notes.is_empty() && summary.contains("a member"), "{summary} {notes:?}");
        let mesh = config::Mesh::load_as(&path, None).expect("is valid");
        assert_eq!(mesh.addresses, ["10.9.0.7/16".parse().expect("an address")]);
        assert!(said.contains(&mesh.private_key.public().to_string()), "{said}");
    }

    #[test]
    fn what_is_there_is_kept() {
        let place = tempfile::tempdir().expect("a directory");
        let (path, key) = (place.path().join("config.toml"), place.path().join(KEY_FILE));
        run(&path, None).expect("writes");
        let before = std::fs::read_to_string(&key).expect("is there");
        let refused = run(&path, None).expect_err("a config is there").to_string();
        assert!(refused.contains("overwrites nothing"), "{refused}");
        std::fs::remove_file(&path).expect("goes");
        run(&path, None).expect("writes");
        assert_eq!(std::fs::read_to_string(&key).expect("is there"), before, "the key stays");
        std::fs::remove_file(&path).expect("goes");
        std::fs::write(&key, "no key").expect("writes");
        assert!(run(&path, None).is_err());
        assert!(!path.exists() && std::fs::read_to_string(&key).expect("is there") == "no key");
    }
}
