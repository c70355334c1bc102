//! What came of a row's runs: its line of the table, and whether that is what the issue wants.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Outcome;
use super::rows::Row;

pub struct Tally {
    runs: usize,
    good: usize,
    /// Runs that went beyond the row's probes or entries.
    over: usize,
    median: Option<Duration>,
    p95: Option<Duration>,
    /// Median and most of each run's larger side.
    probes: (u64, u64),
    entries: (u64, u64),
}

pub const HEAD: &str = "\
| pair | wanted | success | 95 % interval | median | 95th | probes: median, most, budget | entries: median, most, budget | over | met |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

impl Tally {
    pub fn of(row: &Row, outcomes: &BTreeMap<u64, Outcome>) -> Self {
        let runs = || outcomes.values();
        // A call that never came through took longer than any that did.
        let mut took: Vec<Duration> = runs().map(|run| run.took.unwrap_or(Duration::MAX)).collect();
        took.sort_unstable();
        let quantile = |percent: usize| {
            let at = took.len().checked_sub(1)? * percent / 100;
            took.get(at).copied().filter(|time| *time < Duration::MAX)
        };
        Self {
            runs: outcomes.len(),
            good: runs().filter(|run| run.good).count(),
            over: runs().filter(|run| is_over(row, run)).count(),
            median: quantile(50),
            p95: quantile(95),
            probes: middle_and_most(runs().map(|run| run.probes.into_iter().max().unwrap_or(0).into())),
            entries: middle_and_most(runs().map(|run| run.entries.into_iter().max().unwrap_or(0))),
        }
    }

    /// Not even at the optimistic end of the interval is the row's success below what is wanted, and nothing else is amiss.
    pub fn is_met(&self, row: &Row) -> bool {
        let (_, high) = wilson(self.good, self.runs);
        let soon = row.goal.median.is_none_or(|wanted| self.median.is_some_and(|median| median <= wanted));
        100.0 * high >= row.goal.percent && soon && self.over == 0
    }

    /// A line of the Markdown table.
    pub fn line(&self, row: &Row) -> String {
        let seconds = |time: Option<Duration>| match time {
            Some(time) if time < Duration::from_secs(1) => format!("{} ms", time.as_millis()),
            Some(time) => format!("{:.2} s", time.as_secs_f64()),
            None => "–".to_owned(),
        };
        let goal = &row.goal;
        let (low, high) = wilson(self.good, self.runs);
        let told = if goal.or_said.is_some() { " or told" } else { "" };
        let median = goal.median.map_or(String::new(), |median| format!(", median {}", seconds(Some(median))));
        let budget = match goal.entries {
            [Some(one), Some(other)] if one == other => one.to_string(),
            [Some(one), Some(other)] => format!("{one} and {other}"),
            _ => "–".to_owned(),
        };
        format!(
            "| {} | {} %{told} in {}{median} | {}/{} | {:.1} – {:.1} % | {} | {} | {}, {}, {} | {}, {}, {budget} | {} | {} |",
            row.name,
            goal.percent,
            seconds(Some(goal.within)),
            self.good,
            self.runs,
            100.0 * low,
            100.0 * high,
            seconds(self.median),
            seconds(self.p95),
            self.probes.0,
            self.probes.1,
            goal.probes,
            self.entries.0,
            self.entries.1,
            self.over,
            if self.is_met(row) { "yes" } else { "**no**" },
        )
    }
}

/// Whether a run went beyond its row's budgets.
pub fn is_over(row: &Row, run: &Outcome) -> bool {
    let mut entries = row.goal.entries.iter().zip(run.entries);
    run.probes.iter().any(|probes| *probes > row.goal.probes)
        || entries.any(|(budget, used)| budget.is_some_and(|budget| used > budget))
}

/// The 95 % interval of a proportion (E. B. Wilson, 1927): right for few runs and close to all or none, too.
pub fn wilson(good: usize, runs: usize) -> (f64, f64) {
    /// The normal distribution's 97.5th percentile.
    const Z: f64 = 1.959_964;
    if runs == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (runs as f64, good as f64 / runs as f64);
    let center = p + Z * Z / (2.0 * n);
    let reach = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    // At the ends it is exact, which rounding must not blur: all of them is what 100 % wants.
    let low = if good == 0 { 0.0 } else { (center - reach) / scale };
    let high = if good == runs { 1.0 } else { (center + reach) / scale };
    (low, high)
}

fn middle_and_most(values: impl Iterator<Item = u64>) -> (u64, u64) {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    (values.get(last / 2).copied().unwrap_or(0), values.last().copied().unwrap_or(0))
}

#[test]
fn the_interval_is_wilsons() {
    // Newcombe 1998, table I: 81 of 263, and 15 of 148.
    let close = |(low, high): (f64, f64), (a, b): (f64, f64)| (low - a).abs() < 5e-5 && (high - b).abs() < 5e-5;
    assert!(close(wilson(81, 263), (0.2553, 0.3662)));
    assert!(close(wilson(15, 148), (0.0624, 0.1605)));
    assert_eq!(wilson(30, 30).1, 1.0);
    assert!(wilson(999, 1000).1 < 1.0 && wilson(29, 30).1 < 0.999);
}
