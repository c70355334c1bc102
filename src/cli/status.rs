//! `status`: asks the daemon and shows what it says.

use std::time::{Duration, SystemTime};

use super::{MeshArgs, print};
use crate::status::{Style, json, text};

const INTERVAL: Duration = Duration::from_secs(1);
/// Moves to the top left corner and clears what is below (ECMA-48).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

pub(super) async fn run(mesh: &MeshArgs, as_json: bool, watch: bool) -> anyhow::Result<()> {
    let mut style = Style::of_stdout();
    let clear = watch && style.terminal && !as_json;
    // Who watches JSON reads one object a line.
    style.terminal &= !watch;
    let mut client = mesh.connect().await?;
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let snapshot = client.status().await?;
        let page = if as_json { json(&snapshot, style)? } else { text(&snapshot, SystemTime::now(), style) };
        match (watch, clear) {
            (false, _) => return Ok(print(&page)?),
            (true, true) => print(&format!("{CLEAR}{page}"))?,
            (true, false) => print(&page)?,
        }
    }
}
