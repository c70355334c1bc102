//! `ping`: times the direct path to a peer, once a second, and says how that path was found.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::{MeshArgs, print};
use crate::control::Client;
use crate::proto::snapshot::{Peer, Snapshot};
use crate::status::{Style, json, milliseconds, path_of, plain};

const INTERVAL: Duration = Duration::from_secs(1);
/// Where there is no path, the first ping places a call. One has the 10 s of `[punch] timeout`, and a second one may be needed
/// where the other end has just started.
const FIRST_WAIT: Duration = Duration::from_secs(15);
/// Where there is one, an answer takes as long as the internet is wide.
const WAIT: Duration = Duration::from_secs(2);

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    peer: &'a str,
    sent: u64,
    received: u64,
    loss_percent: f64,
    min_ms: Option<f64>,
    avg_ms: Option<f64>,
    max_ms: Option<f64>,
    replies: &'a [Answered],
    /// As in `status --json`: `endpoint`, `method` and `why` say how the path was found.
    path: Option<Peer>,
}

#[derive(Serialize)]
struct Answered {
    seq: u64,
    rtt_ms: f64,
    endpoint: Option<String>,
}

struct Run<'a> {
    name: &'a str,
    quiet: bool,
    sent: u64,
    replies: Vec<Answered>,
    path: Option<Peer>,
}

pub(super) async fn run(
    mesh: &MeshArgs,
    name: &str,
    count: u32,
    wait: Option<Duration>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut client = mesh.connect().await?;
    let mut run = Run { name, quiet: as_json, sent: 0, replies: Vec::new(), path: None };
    tokio::select! {
        ended = run.pings(&mut client, count, wait) => ended?,
        // Interrupted: the summary is what the user wants to see then.
        _ = tokio::signal::ctrl_c() => {}
    }
    let answered = !run.replies.is_empty();
    print(&if as_json { json(&run.report(), Style::of_stdout())? } else { run.summary() })?;
    Ok(if answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Run<'_> {
    async fn pings(&mut self, client: &mut Client, count: u32, wait: Option<Duration>) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while count == 0 || self.sent < u64::from(count) {
            tick.tick().await;
            self.sent += 1;
            let usual = if self.sent == 1 { FIRST_WAIT } else { WAIT };
            let rtt = client.ping(self.name, wait.unwrap_or(usual)).await?;
            self.path = find(client.status().await?, self.name);
            let endpoint = self.path.as_ref().and_then(|peer| peer.endpoint);
            let endpoint = endpoint.map(|endpoint| endpoint.to_string());
            let seq = self.sent;
            let line = match rtt {
                Some(rtt) => {
                    let rtt_ms = rtt.as_secs_f64() * 1000.0;
                    let from = endpoint.clone().unwrap_or_else(|| "the peer".to_owned());
                    self.replies.push(Answered { seq, rtt_ms, endpoint });
                    format!("reply from {} ({from}): seq={seq} time={}\n", plain(self.name), milliseconds(rtt_ms))
                }
                None => {
                    let why = self.path.as_ref().map(path_of).unwrap_or_else(|| "no such peer any more".to_owned());
                    format!("no reply from {}: seq={seq} ({why})\n", plain(self.name))
                }
            };
            if !self.quiet {
                print(&line)?;
            }
        }
        Ok(())
    }

    fn report(&self) -> Report<'_> {
        let times = || self.replies.iter().map(|reply| reply.rtt_ms);
        let received = self.replies.len() as u64;
        Report {
            peer: self.name,
            sent: self.sent,
            received,
            loss_percent: 100.0 * self.sent.saturating_sub(received) as f64 / self.sent.max(1) as f64,
            min_ms: times().reduce(f64::min),
            avg_ms: (received > 0).then(|| times().sum::<f64>() / received as f64),
            max_ms: times().reduce(f64::max),
            replies: &self.replies,
            path: self.path.clone(),
        }
    }

    fn summary(&self) -> String {
        let report = self.report();
        let mut text = format!(
            "\n--- {} ---\n{} sent, {} received, {:.0}% lost",
            plain(self.name),
            report.sent,
            report.received,
            report.loss_percent
        );
        if let (Some(min), Some(avg), Some(max)) = (report.min_ms, report.avg_ms, report.max_ms) {
            text.push_str(&format!(", round trip min/avg/max {min:.2}/{avg:.2}/{max:.2} ms"));
        }
        if let Some(peer) = &self.path {
            text.push_str(&format!("\n{}", path_of(peer)));
        }
        text + "\n"
    }
}

fn find(snapshot: Snapshot, name: &str) -> Option<Peer> {
    snapshot.peers.into_iter().find(|peer| peer.name == name || peer.public_key == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_was_lost_and_says_nothing_of_times_without_a_reply() {
        let mut run = Run { name: "berlin", quiet: false, sent: 4, replies: Vec::new(), path: None };
        assert_eq!(run.summary(), "\n--- berlin ---\n4 sent, 0 received, 100% lost\n");
        for (seq, rtt_ms) in [(1, 10.0), (2, 20.0), (4, 60.0)] {
            run.replies.push(Answered { seq, rtt_ms, endpoint: None });
        }
        let summary = run.summary();
        assert!(
            summary.contains("4 sent, 3 received, 25% lost, round trip min/avg/max 10.00/30.00/60.00 ms"),
            "{summary}"
        );
        assert_eq!(run.report().loss_percent, 25.0);
    }
}
