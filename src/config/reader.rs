//! Reads typed values out of a TOML table, and notes each that has the wrong type or is not known.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::fault::{At, Log, Wrong, quote};
use super::schema::{Shape, nearest, remedy_for_unknown};

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// One table of the file, whose keys are known to be ours.
pub(super) struct Section<'d, 'i> {
    table: &'d DeTable<'i>,
    shape: Shape,
    /// Where the table starts.
    pub at: usize,
}

impl<'d, 'i> Section<'d, 'i> {
    pub fn new(table: &'d DeTable<'i>, at: usize, shape: Shape, log: &mut Log) -> Self {
        for (key, _) in table {
            let name: &str = key.get_ref();
            if !shape.keys.iter().any(|known| known.name == name) {
                let remedy = remedy_for_unknown(&shape, name);
                let shown: String = name.escape_debug().take(60).collect();
                log.fault(key.span().start, format!("unknown key `{shown}` in {}", shape.name), remedy);
            }
        }
        Self { table, shape, at }
    }

    fn of_value(value: &'d Value<'i>, name: &str, shape: Shape, example: &str, log: &mut Log) -> Option<Self> {
        let at = value.span().start;
        match value.get_ref().as_table() {
            Some(table) => Some(Self::new(table, at, shape, log)),
            None => {
                wrong_type(log, value, name, "a table", example);
                None
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    pub fn value(&self, name: &str) -> Option<&'d Value<'i>> {
        self.table.get(name)
    }

    /// Whether `name` is a list of nothing.
    pub fn is_empty(&self, name: &str) -> bool {
        self.value(name).and_then(|value| value.get_ref().as_array()).is_some_and(|items| items.is_empty())
    }

    /// Where `name` stands, or else the table.
    pub fn at_key(&self, name: &str) -> usize {
        self.table.get_key_value(name).map_or(self.at, |(key, _)| key.span().start)
    }

    /// Notes that `name` must be there.
    pub fn require(&self, name: &str, log: &mut Log) {
        if !self.has(name) {
            let remedy = format!("Write {}.", self.shape.example(name));
            log.absent(self.at, format!("`{name}` is missing in {}", self.shape.name), remedy);
        }
    }

    pub fn text(&self, name: &str, log: &mut Log) -> Option<At<&'d str>> {
        let value = self.value(name)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            wrong_type(log, value, name, "text in quotes", self.shape.example(name));
        }
        text.map(|text| At { value: text, at: value.span().start })
    }

    /// The texts of an array. A single text counts as an array of one, as `wg`'s users write it.
    pub fn texts(&self, name: &str, log: &mut Log) -> Option<Vec<At<&'d str>>> {
        let value = self.value(name)?;
        let example = self.shape.example(name);
        let items = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            DeValue::String(_) => vec![value],
            _ => {
                wrong_type(log, value, name, "a list of texts", example);
                return None;
            }
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref().as_str() {
                Some(text) => texts.push(At { value: text, at: item.span().start }),
                None => wrong_type(log, item, name, "a list of texts", example),
            }
        }
        Some(texts)
    }

    pub fn integer(&self, name: &str, range: RangeInclusive<i64>, log: &mut Log) -> Option<At<i64>> {
        let value = self.value(name)?;
        match value.get_ref() {
            DeValue::Integer(integer) => self.in_range(name, value, integer, range, log),
            _ => {
                wrong_type(log, value, name, "a whole number", self.shape.example(name));
                None
            }
        }
    }

    pub fn truth(&self, name: &str, log: &mut Log) -> Option<bool> {
        let value = self.value(name)?;
        let truth = value.get_ref().as_bool();
        if truth.is_none() {
            wrong_type(log, value, name, "true or false", self.shape.example(name));
        }
        truth
    }

    /// The integers of an array, each within `range`; `None` where any of them is not.
    pub fn integers(&self, name: &str, range: RangeInclusive<i64>, log: &mut Log) -> Option<At<Vec<i64>>> {
        let value = self.value(name)?;
        let Some(items) = value.get_ref().as_array() else {
            wrong_type(log, value, name, "a list of whole numbers", self.shape.example(name));
            return None;
        };
        let mut numbers = Vec::with_capacity(items.len());
        let mut all_right = true;
        for item in items.iter() {
            let number = match item.get_ref() {
                DeValue::Integer(integer) => self.in_range(name, item, integer, range.clone(), log),
                _ => {
                    wrong_type(log, item, name, "a list of whole numbers", self.shape.example(name));
                    None
                }
            };
            match number {
                Some(number) => numbers.push(number.value),
                None => all_right = false,
            }
        }
        all_right.then(|| At { value: numbers, at: value.span().start })
    }

    /// A table within this one.
    pub fn section(&self, name: &str, shape: Shape, log: &mut Log) -> Option<Section<'d, 'i>> {
        let value = self.value(name)?;
        Section::of_value(value, name, shape, self.shape.example(name), log)
    }

    /// The tables of an array of tables.
    pub fn sections(&self, name: &str, shape: Shape, log: &mut Log) -> Vec<Section<'d, 'i>> {
        let Some(value) = self.value(name) else { return Vec::new() };
        let example = self.shape.example(name);
        let Some(items) = value.get_ref().as_array() else {
            let remedy = format!("Write {example}, with two brackets on each side, above each of them.");
            log.fault(value.span().start, format!("`{name}` is {}, not a list of tables", kind(value)), remedy);
            return Vec::new();
        };
        items.iter().filter_map(|item| Section::of_value(item, name, shape, example, log)).collect()
    }

    /// The networks of an array that must not be empty nor name one twice; `None` where it is missing or any of them is wrong.
    pub fn nets(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<IpNet, Wrong>,
        log: &mut Log,
    ) -> Option<Vec<At<IpNet>>> {
        let texts = self.texts(name, log)?;
        if self.is_empty(name) {
            log.fault(self.at_key(name), format!("`{name}` is empty"), "Write at least one address.");
        }
        let read: Vec<_> = texts.iter().filter_map(|text| log.take(text.at, name, read(text.value))).collect();
        if super::distinct(read.iter().map(|net| net.value)) < read.len() {
            log.fault(self.at_key(name), format!("`{name}` has the same address twice"), "Remove one of both.");
        }
        Some(read)
    }

    /// The value that a word stands for; the default where there is none, or a wrong one, which is noted.
    pub fn choice<T: Copy + Default>(&self, name: &str, words: &[(&str, T)], log: &mut Log) -> T {
        let Some(text) = self.text(name, log) else { return T::default() };
        match words.iter().find(|(word, _)| *word == text.value) {
            Some((_, value)) => *value,
            None => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                unknown_word(&text, name, &words, log);
                T::default()
            }
        }
    }

    fn in_range(
        &self,
        name: &str,
        value: &Value<'i>,
        integer: &DeInteger<'i>,
        range: RangeInclusive<i64>,
        log: &mut Log,
    ) -> Option<At<i64>> {
        let at = value.span().start;
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|n| range.contains(n));
        if number.is_none() {
            let shown: String = integer.to_string().chars().take(40).collect();
            let remedy =
                format!("Write a number from {} to {}: {}.", range.start(), range.end(), self.shape.example(name));
            log.fault(at, format!("`{name}`: {shown} is out of range"), remedy);
        }
        number.map(|value| At { value, at })
    }
}

pub(super) fn wrong_type(log: &mut Log, value: &Value<'_>, name: &str, wanted: &str, example: &str) {
    log.fault(value.span().start, format!("`{name}` is {}, not {wanted}", kind(value)), format!("Write {example}."));
}

fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Notes that a word is none of `words`.
pub(super) fn unknown_word(text: &At<&str>, name: &str, words: &[&str], log: &mut Log) {
    let all: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    let remedy = match nearest(text.value, words) {
        Some(word) => format!("Did you mean \"{word}\"?"),
        None => format!("Write one of {}.", all.join(", ")),
    };
    log.fault(text.at, format!("`{name}`: {} is not known", quote(text.value)), remedy);
}
