//! Signals as inputs of the loop: SIGTERM and SIGINT stop, SIGHUP reloads.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;

use crate::driver::{Exit, Input};

/// Catches them from now on, so that one that comes during the start stops in order, too.
///
/// # Errors
/// The system's, where a handler can't be installed.
pub fn forward(inputs: mpsc::Sender<Input>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let (name, exit) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", Exit::Stop),
                _ = interrupt.recv() => ("SIGINT", Exit::Stop),
                _ = hangup.recv() => ("SIGHUP", Exit::Reload { answer: None }),
            };
            info!(signal = name, "signal");
            if inputs.send(Input::Exit(exit)).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
