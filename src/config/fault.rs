//! What is wrong with a config file, where, and what to write instead.
//!
//! Everything that reads the file adds to one [`Log`] and goes on, so that all faults are told at once.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Longest piece of a user's text that a message repeats, in characters.
const MAX_QUOTE: usize = 60;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The file is refused.
    Fault,
    /// The file is right, but a key file that it names is not there yet: nothing can be run from it, and `check` says so without
    /// finding fault with the file.
    Missing,
    /// The file is accepted, but this is seldom meant.
    Note,
}

/// One thing that is wrong. Shown as `file:line: what. remedy`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub file: PathBuf,
    /// From 1; `None` where it is the file itself that is wrong.
    pub line: Option<usize>,
    pub severity: Severity,
    /// What is wrong, without a full stop.
    pub what: String,
    /// What to do about it: one sentence or two, with their full stops.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        let note = if self.severity == Severity::Note { " note:" } else { "" };
        write!(f, "{note} {}. {}", self.what, self.remedy)
    }
}

/// A config that was refused, with every fault in it (and the notes), in the order of the lines. Shown one a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected(pub Vec<Fault>);

impl Rejected {
    /// Only the faults that refuse the file.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter().filter(|fault| fault.severity != Severity::Note)
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejected {}

/// What is wrong with one value, before it is known where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wrong {
    pub what: String,
    pub remedy: String,
    severity: Severity,
}

impl Wrong {
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), severity: Severity::Fault }
    }

    /// Nothing is wrong with the value: what it names is yet to be made.
    pub fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Missing, ..Self::new(what, remedy) }
    }
}

/// A value and the byte of the file at which it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub at: usize,
}

/// Collects what is wrong with one file.
pub(super) struct Log {
    file: PathBuf,
    /// The byte at which each line but the first starts.
    starts: Vec<usize>,
    found: Vec<Fault>,
    /// Lines that are not TOML. What was made of them is a guess, and so are the faults in it.
    broken: BTreeSet<usize>,
}

impl Log {
    pub fn new(file: &Path, text: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(i, _)| i + 1).collect();
        Self { file: file.to_owned(), starts, found: Vec::new(), broken: BTreeSet::new() }
    }

    /// The number of the line, from 1, that holds the byte `at`.
    pub fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at) + 1
    }

    /// The text is not TOML at `at`.
    pub fn syntax(&mut self, at: usize, what: &str) {
        let line = self.line(at);
        if self.broken.insert(line) {
            let remedy = match what {
                "duplicate key" => "Remove one of both.",
                _ => "Correct the TOML: a line is `key = value`, `[table]` or `[[table]]`, and text stands in quotes.",
            };
            self.push(Some(line), Severity::Fault, format!("not TOML: {what}"), remedy.into());
        }
    }

    pub fn fault(&mut self, at: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.at_line(at, Severity::Fault, what.into(), remedy.into());
    }

    pub fn note(&mut self, at: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.at_line(at, Severity::Note, what.into(), remedy.into());
    }

    /// Something is not there that should be. In a file that is not TOML it may only not have been understood.
    pub fn absent(&mut self, at: usize, what: impl Into<String>, remedy: impl Into<String>) {
        if self.broken.is_empty() {
            self.fault(at, what, remedy);
        }
    }

    /// Something about the file as a whole.
    pub fn whole(&mut self, severity: Severity, what: impl Into<String>, remedy: impl Into<String>) {
        self.push(None, severity, what.into(), remedy.into());
    }

    /// Takes the value out of a result, or notes what is wrong with it.
    pub fn take<T>(&mut self, at: usize, key: &str, result: Result<T, Wrong>) -> Option<At<T>> {
        match result {
            Ok(value) => Some(At { value, at }),
            Err(wrong) => {
                self.at_line(at, wrong.severity, format!("`{key}`: {}", wrong.what), wrong.remedy);
                None
            }
        }
    }

    /// Nothing could be made of the file: that is a fault, should no other have been noted.
    pub fn otherwise_unreadable(&mut self) {
        if !self.found.iter().any(|fault| fault.severity != Severity::Note) {
            self.whole(Severity::Fault, "this is no config", "Compare it with the examples in config/.");
        }
    }

    /// The notes where there is no fault, or everything.
    pub fn finish(mut self) -> Result<Vec<Fault>, Rejected> {
        self.found.sort_by_key(|fault| (fault.line, fault.severity));
        let refused = self.found.iter().any(|fault| fault.severity != Severity::Note);
        if refused { Err(Rejected(self.found)) } else { Ok(self.found) }
    }

    fn at_line(&mut self, at: usize, severity: Severity, what: String, remedy: String) {
        let line = self.line(at);
        if !self.broken.contains(&line) {
            self.push(Some(line), severity, what, remedy);
        }
    }

    fn push(&mut self, line: Option<usize>, severity: Severity, what: String, remedy: String) {
        self.found.push(Fault { file: self.file.clone(), line, severity, what, remedy });
    }
}

/// A user's text in quotes, on one line, and not too much of it.
pub(super) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTE).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTE).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_told_by_the_line_that_holds_it() {
        let log = Log::new(Path::new("x"), "a\nbc\n\nd");
        let lines: Vec<_> = [0, 1, 2, 4, 5, 6, 99].map(|at| log.line(at)).into();
        assert_eq!(lines, [1, 1, 2, 2, 3, 4, 4]);
    }

    #[test]
    fn a_line_that_is_no_toml_is_told_once_and_hides_what_was_guessed_from_it() {
        let mut log = Log::new(Path::new("x"), "a = \nb = 1\n");
        log.syntax(4, "no value");
        log.fault(0, "a guess", "None.");
        log.absent(0, "something", "None.");
        log.fault(5, "b is wrong", "None.");
        let rejected = log.finish().expect_err("faults");
        assert_eq!(rejected.0.len(), 2);
        assert!(rejected.to_string().ends_with("x:2: b is wrong. None."), "{rejected}");
    }

    #[test]
    fn a_quoted_text_stays_short_and_on_one_line() {
        assert_eq!(quote("a\n\u{1b}[31m\""), "\"a\\n\\u{1b}[31m\\\"\"");
        assert!(quote(&"x".repeat(1000)).chars().count() <= MAX_QUOTE + 3);
    }
}
