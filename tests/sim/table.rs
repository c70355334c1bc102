//! The table of a matrix: how often, how fast, at what cost.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::classes::Class;
use crate::pairs::Outcome;

pub struct Row {
    pub name: String,
    pub runs: usize,
    pub good: usize,
    pub median: Option<Duration>,
    pub p95: Option<Duration>,
    /// The median of each run's larger side.
    pub probes: u32,
    pub sockets: u32,
    pub entries: u64,
    pub sent: u64,
}

impl Row {
    pub fn of(class: Class, other: Class, outcomes: &BTreeMap<u64, Outcome>) -> Self {
        let took: Vec<Duration> = sorted(outcomes.values().filter_map(|outcome| outcome.took));
        let runs = || outcomes.values();
        Self {
            name: format!("{} x {}", class.name(), other.name()),
            runs: outcomes.len(),
            good: runs().filter(|outcome| outcome.fault.is_none()).count(),
            median: quantile(&took, 50),
            p95: quantile(&took, 95),
            probes: middle(runs().map(|run| run.usage[0].probes.max(run.usage[1].probes))),
            sockets: middle(runs().map(|run| run.usage[0].sockets.max(run.usage[1].sockets))),
            entries: middle(runs().map(|run| run.entries[0].max(run.entries[1]))),
            sent: middle(runs().map(|run| run.sent[0].max(run.sent[1]))),
        }
    }

    /// At most three of them, the smallest seeds first.
    pub fn failures(&self, outcomes: &BTreeMap<u64, Outcome>) -> Vec<String> {
        let failed = outcomes.iter().filter_map(|(seed, outcome)| {
            outcome.fault.as_ref().map(|fault| format!("PAIR=\"{}\" SEED={seed}: {fault}", self.name))
        });
        failed.take(3).collect()
    }
}

pub struct Table {
    title: String,
    rows: Vec<Row>,
}

impl Table {
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), rows: Vec::new() }
    }

    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.title)?;
        writeln!(
            f,
            "{:<38} {:>9} {:>8} {:>8} {:>7} {:>7} {:>7} {:>6}",
            "pair", "success", "median", "p95", "probes", "sockets", "entries", "sent"
        )?;
        for row in &self.rows {
            let seconds =
                |time: Option<Duration>| time.map_or("never".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
            writeln!(
                f,
                "{:<38} {:>4}/{:<4} {:>8} {:>8} {:>7} {:>7} {:>7} {:>6}",
                row.name,
                row.good,
                row.runs,
                seconds(row.median),
                seconds(row.p95),
                row.probes,
                row.sockets,
                row.entries,
                row.sent,
            )?;
        }
        Ok(())
    }
}

fn sorted<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values
}

fn quantile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    Some(sorted[last * percent / 100])
}

fn middle<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    quantile(&sorted(values), 50).unwrap_or_default()
}
