//! `genkey`, `pubkey` and `genpsk`, as `wg` has them.

use std::io::{self, IsTerminal, Read};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::randomness;
use crate::proto::keys::{KEY_LEN, PrivateKey};

/// A key is 44 characters; whoever pipes in more has piped the wrong thing.
const MAX_INPUT: u64 = 4096;

pub(super) fn new_private() -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    randomness(&mut *bytes)?;
    Ok(Zeroizing::new(PrivateKey::from_bytes(*bytes).to_base64() + "\n"))
}

pub(super) fn new_preshared() -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    randomness(&mut *bytes)?;
    Ok(Zeroizing::new(STANDARD.encode(*bytes) + "\n"))
}

pub(super) fn public_of_stdin() -> anyhow::Result<String> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        bail!("pubkey reads a private key on standard input: p2ptund pubkey < private.key");
    }
    let mut text = Zeroizing::new(String::new());
    let read = stdin.lock().take(MAX_INPUT).read_to_string(&mut text);
    read.context("standard input is no text")?;
    match text.parse::<PrivateKey>() {
        Ok(key) => Ok(format!("{}\n", key.public())),
        Err(error) => bail!("standard input is {error}"),
    }
}
