//! One value of a key: its raw form, the values that the key allows, and the reader from one to the other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use super::error::{ConfigError, InvalidValue, Source, invalid};
use super::parse::{quoted, secret};
use crate::secret::Secret;

/// A raw value and the place where it was set. It may be a secret, so it has no `Debug`.
pub(super) struct LocatedValue {
    pub(super) source: Source,
    pub(super) raw: RawValue,
}

/// A value of TOML.
pub(super) enum RawValue {
    Text(String),
    /// Text of the environment or the command line, where numbers are text too.
    Bare(String),
    /// Numbers beyond the type are `i128::MIN` or `i128::MAX`.
    Integer(i128),
    Boolean(bool),
    List(Vec<LocatedValue>),
    Table(BTreeMap<String, LocatedValue>),
    /// A type that no key has, with its name.
    Other(&'static str),
}

impl RawValue {
    /// Returns the name of the type for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            RawValue::Text(_) | RawValue::Bare(_) => "text",
            RawValue::Integer(_) => "a number",
            RawValue::Boolean(_) => "true or false",
            RawValue::List(_) => "a list",
            RawValue::Table(_) => "a table",
            RawValue::Other(kind) => kind,
        }
    }
}

/// The values that a key allows. The text is the one of docs/configuration.md and of hints.
pub(super) enum AllowedValues {
    Number(RangeInclusive<u64>),
    Duration(RangeInclusive<Duration>),
    /// In bytes.
    Size(RangeInclusive<u64>),
    Secret,
    /// Checked by a parser; with a description.
    Described(&'static str),
}

impl fmt::Display for AllowedValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllowedValues::Number(range) => write!(f, "{} to {}", range.start(), range.end()),
            AllowedValues::Duration(range) => {
                write!(f, "{} to {}", duration_text(*range.start()), duration_text(*range.end()))
            }
            AllowedValues::Size(range) => {
                write!(f, "{} to {}", size_text(*range.start()), size_text(*range.end()))
            }
            AllowedValues::Secret => f.write_str("secret"),
            AllowedValues::Described(text) => f.write_str(text),
        }
    }
}

/// Formats a duration with one unit. humantime would write 365 days as 11 months, 30 days and some hours.
fn duration_text(duration: Duration) -> String {
    const UNITS: [(&str, u128); 4] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let millis = duration.as_millis();
    let unit =
        UNITS.into_iter().find(|(unit, size)| millis.is_multiple_of(*size) && (millis > 0 || *unit == "s"));
    unit.map_or_else(|| format!("{millis}ms"), |(name, size)| format!("{}{name}", millis / size))
}

/// Formats a size with one unit.
fn size_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.into_iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    unit.map_or_else(|| format!("{bytes}B"), |(name, size)| format!("{}{name}", bytes / size))
}

/// Reader of one value. Each method fills a slot; on an error it leaves the slot as it was and records the error, so
/// that one run reports all errors.
pub(super) struct ValueReader<'a> {
    pub(super) key: String,
    pub(super) value: &'a LocatedValue,
    pub(super) allowed: &'a AllowedValues,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) errors: &'a mut Vec<ConfigError>,
}

impl ValueReader<'_> {
    pub(super) fn number<T: TryFrom<u64>>(&mut self, slot: &mut T) {
        let hint = format!("Use an integer from {}.", self.allowed);
        let number = match &self.value.raw {
            RawValue::Integer(number) => Ok(*number),
            RawValue::Bare(text) => text
                .trim()
                .parse()
                .or_else(|_| invalid(format!("not a valid number: {}", quoted(text)), &hint)),
            RawValue::Text(text) if text.parse::<i128>().is_ok() => {
                invalid("expected a number, found a number in quotes", "Remove the quotes.")
            }
            other => invalid(format!("expected a number, found {}", other.kind()), &hint),
        };
        let read = number.and_then(|number| {
            let within = u64::try_from(number).ok().filter(|number| match self.allowed {
                AllowedValues::Number(range) => range.contains(number),
                _ => false,
            });
            match within.and_then(|number| T::try_from(number).ok()) {
                Some(number) => Ok(number),
                None if number == i128::MAX || number == i128::MIN => {
                    invalid("out of range: a number of more than 38 digits", &hint)
                }
                None => invalid(format!("out of range: {number}"), &hint),
            }
        });
        self.fill(slot, read);
    }

    pub(super) fn duration(&mut self, slot: &mut Duration) {
        let read = match &self.value.raw {
            RawValue::Integer(number) => missing_unit(number, number),
            raw => self.text(raw, "a duration", DURATION_HINT),
        };
        let read = read.and_then(parse_duration).and_then(|duration| match self.allowed {
            AllowedValues::Duration(range) if range.contains(&duration) => Ok(duration),
            allowed => invalid(
                format!("out of range: {}", humantime::format_duration(duration)),
                format!("Use a duration from {allowed}."),
            ),
        });
        self.fill(slot, read);
    }

    /// Reads a number of bytes.
    pub(super) fn size(&mut self, slot: &mut u64) {
        const HINT: &str = "Use a size such as \"64KiB\", \"256MiB\" or \"1GiB\".";
        let out_of_range = |size: String| {
            invalid(format!("out of range: {size}"), format!("Use a size from {}.", self.allowed))
        };
        let read = match &self.value.raw {
            RawValue::Integer(number) => u64::try_from(*number).or_else(|_| out_of_range(number.to_string())),
            raw => self.text(raw, "a size", HINT).and_then(|text| {
                let size = ByteSize::from_str(text.trim());
                size.map(|size| size.0)
                    .or_else(|_| invalid(format!("not a valid size: {}", quoted(text)), HINT))
            }),
        };
        let read = read.and_then(|size| match self.allowed {
            AllowedValues::Size(range) if range.contains(&size) => Ok(size),
            _ => out_of_range(ByteSize(size).display().iec().to_string()),
        });
        self.fill(slot, read);
    }

    /// Reads one of a few words.
    pub(super) fn choice<T: Clone>(&mut self, slot: &mut T, words: &[(&str, T)]) {
        let hint = self.allowed_hint();
        let read = self.text(&self.value.raw, "text", &hint).and_then(|text| {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, value)) => Ok(value.clone()),
                None => invalid(format!("not a valid value: {}", quoted(text)), &hint),
            }
        });
        self.fill(slot, read);
    }

    /// Reads a text with a parser.
    pub(super) fn parsed<T>(&mut self, slot: &mut T, parse: fn(&str) -> Result<T, InvalidValue>) {
        let read = self.text(&self.value.raw, "text", &self.allowed_hint()).and_then(parse);
        self.fill(slot, read);
    }

    /// Reads a list of texts with a parser of one, or a single such text.
    pub(super) fn list<T>(&mut self, slot: &mut Vec<T>, parse: fn(&str) -> Result<T, InvalidValue>) {
        if let RawValue::Bare(text) = &self.value.raw
            && text.trim().is_empty()
        {
            // A variable needs a spelling of the empty list.
            *slot = Vec::new();
            return;
        }
        let hint = self.allowed_hint();
        let single = std::slice::from_ref(self.value);
        let elements =
            if let RawValue::List(elements) = &self.value.raw { elements.as_slice() } else { single };
        let mut values = Vec::with_capacity(elements.len());
        for element in elements {
            let read = self.text(&element.raw, "text", &hint).and_then(parse);
            match (read, &element.raw) {
                (Ok(value), _) => values.push(value),
                (Err(_), RawValue::Bare(text)) if text.starts_with('[') => {
                    let problem = "not a valid list".to_owned();
                    let hint = "Use the form [\"a\", \"b\"], each element in quotes.".to_owned();
                    self.error(element.source.clone(), InvalidValue { problem, hint });
                }
                (Err(error), _) => self.error(element.source.clone(), error),
            }
        }
        *slot = values;
    }

    /// Reads true or false.
    pub(super) fn switch(&mut self, slot: &mut bool) {
        const HINT: &str = "Use true or false, without quotes.";
        let read = match &self.value.raw {
            RawValue::Boolean(value) => Ok(*value),
            RawValue::Bare(text) => text.trim().parse().or_else(|_| invalid("not true or false", HINT)),
            other => invalid(format!("expected true or false, found {}", other.kind()), HINT),
        };
        self.fill(slot, read);
    }

    /// Reads a list of texts that may be secrets, or a single one, with a parser of one.
    pub(super) fn secret_list<T>(&mut self, slot: &mut Vec<T>, parse: fn(&str) -> Result<T, InvalidValue>) {
        let hint = self.allowed_hint();
        let single = std::slice::from_ref(self.value);
        let elements =
            if let RawValue::List(elements) = &self.value.raw { elements.as_slice() } else { single };
        let mut values = Vec::with_capacity(elements.len());
        for element in elements {
            let text = self.text(&element.raw, "text", &hint).and_then(|text| secret(text, self.env));
            match text.and_then(|text| parse(text.expose())) {
                Ok(value) => values.push(value),
                Err(error) => self.error(element.source.clone(), error),
            }
        }
        *slot = values;
    }

    pub(super) fn secret(&mut self, slot: &mut Option<Secret>) {
        const HINT: &str = "Use \"env:NAME\", \"file:PATH\" or the secret itself.";
        let read = self.text(&self.value.raw, "a secret", HINT).and_then(|text| secret(text, self.env));
        self.fill(slot, read.map(Some));
    }

    /// Records an error of this key.
    pub(super) fn error(&mut self, source: Source, InvalidValue { problem, hint }: InvalidValue) {
        self.errors.push(ConfigError { source, key: self.key.clone(), problem, hint });
    }

    fn allowed_hint(&self) -> String {
        format!("Use {}.", self.allowed)
    }

    fn text<'r>(&self, raw: &'r RawValue, expected: &str, hint: &str) -> Result<&'r str, InvalidValue> {
        match raw {
            RawValue::Text(text) | RawValue::Bare(text) => Ok(text),
            other => invalid(format!("expected {expected}, found {}", other.kind()), hint),
        }
    }

    fn fill<T>(&mut self, slot: &mut T, read: Result<T, InvalidValue>) {
        match read {
            Ok(value) => *slot = value,
            Err(error) => self.error(self.value.source.clone(), error),
        }
    }
}

const DURATION_HINT: &str = "Use a duration such as \"500ms\", \"10s\", \"2m\" or \"1h 30m\".";

fn parse_duration(text: &str) -> Result<Duration, InvalidValue> {
    let text = text.trim();
    // humantime accepts a bare 0. The gateway requires a unit for every number.
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return missing_unit(quoted(text), text);
    }
    humantime::parse_duration(text)
        .or_else(|_| invalid(format!("not a valid duration: {}", quoted(text)), DURATION_HINT))
}

fn missing_unit<T>(shown: impl fmt::Display, number: impl fmt::Display) -> Result<T, InvalidValue> {
    invalid(
        format!("missing unit: {shown}"),
        format!("Use \"{number}s\" for seconds. Other units are ms, m, h and d."),
    )
}
