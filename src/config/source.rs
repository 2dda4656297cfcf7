//! The raw form: what the file, the environment and the command line say, key by key, not yet understood.
//!
//! ```text
//! file ──┐
//! env ───┼──► Entries: "server.listen" ──► Item { place, raw } ──► keys ──► Config
//! flags ─┘    the later one wins
//! ```
//!
//! It knows which keys there are, not what they mean. A raw value may be a secret, so nothing here has `Debug`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Source};
use super::schema;

/// What every variable that sets a key begins with.
pub(super) const PREFIX: &str = "CLIPGATE__";

/// A value and where it was set.
pub(super) struct LocatedValue {
    pub(super) source: Source,
    pub(super) raw: RawValue,
}

/// A value as TOML has it.
pub(super) enum RawValue {
    Text(String),
    /// Text from the environment or the command line, where a number has no other form.
    Bare(String),
    /// Saturating where it is out of all bounds.
    Integer(i128),
    List(Vec<LocatedValue>),
    Table(BTreeMap<String, LocatedValue>),
    /// What no key is ever written as.
    Other(&'static str),
}

impl RawValue {
    /// What a person would call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            RawValue::Text(_) | RawValue::Bare(_) => "text",
            RawValue::Integer(_) => "a number",
            RawValue::List(_) => "a list",
            RawValue::Table(_) => "a table",
            RawValue::Other(kind) => kind,
        }
    }
}

/// The values by key; only known keys are in it.
#[derive(Default)]
pub(super) struct RawConfig(BTreeMap<&'static str, LocatedValue>);

impl RawConfig {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&LocatedValue> {
        self.0.get(key)
    }

    /// Where the first of these keys that is set at all was set.
    pub(super) fn place(&self, keys: &[&str]) -> Source {
        keys.iter().find_map(|key| self.get(key)).map_or(Source::Default, |item| item.source.clone())
    }

    /// Takes in the file; `Err` if it cannot be read as TOML, when nothing else can be judged.
    pub(super) fn file(
        &mut self,
        path: &Path,
        faults: &mut Vec<ConfigError>,
    ) -> Result<(), Vec<ConfigError>> {
        let name: Arc<str> = path.display().to_string().into();
        let text = read(path).map_err(|problem| {
            let hint = "name another file with --config, or mend this one".to_owned();
            vec![ConfigError { source: Source::File(name.clone()), key: String::new(), problem, hint }]
        })?;
        self.document(&text, &name, faults)
    }

    /// Takes in a TOML document that is called `name`.
    pub(super) fn document(
        &mut self,
        text: &str,
        name: &Arc<str>,
        faults: &mut Vec<ConfigError>,
    ) -> Result<(), Vec<ConfigError>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(syntax_faults(text, name, &errors));
        }
        let place = |offset: usize| Source::Line(name.clone(), line_of(text, offset));
        for (key, item) in table_items(table.into_inner(), &place) {
            self.put(key, item, faults);
        }
        Ok(())
    }

    /// Takes in what `CLIPGATE__SECTION__KEY` variables say.
    pub(super) fn environment(&mut self, env: &BTreeMap<String, String>, faults: &mut Vec<ConfigError>) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let key = rest.split("__").map(bare_key).collect::<Vec<_>>().join(".");
            let place = Source::Variable(name.clone());
            self.put(key.to_ascii_lowercase(), outside(place, value), faults);
        }
    }

    /// Takes in what a flag of the command line says of a key.
    pub(super) fn flag(&mut self, flag: &'static str, key: &str, value: &str, faults: &mut Vec<ConfigError>) {
        self.put(key.to_owned(), outside(Source::Flag(flag), value), faults);
    }

    /// Keeps the value, or goes into it where it is a section.
    fn put(&mut self, key: String, item: LocatedValue, faults: &mut Vec<ConfigError>) {
        if let Some(known) = schema::find(&key) {
            self.0.insert(known, item);
            return;
        }
        match item.raw {
            RawValue::Table(inner) if schema::is_section(&key) => {
                for (name, item) in inner {
                    self.put(format!("{key}.{name}"), item, faults);
                }
            }
            _ if schema::is_section(&key) => faults.push(ConfigError {
                problem: format!("is a section, not {}", item.raw.kind()),
                hint: match &item.source {
                    Source::Variable(_) => {
                        format!(
                            "set its keys one by one, such as {}",
                            spelt(&item.source, schema::first_of(&key))
                        )
                    }
                    _ => format!("write [{key}] on a line of its own, and its keys below"),
                },
                source: item.source,
                key,
            }),
            RawValue::Table(_) => {
                let near = nearest(&key, schema::sections());
                let fix = near.map_or(String::new(), |near| match &item.source {
                    Source::Variable(_) => {
                        format!("the nearest known key is {}", spelt(&item.source, schema::first_of(near)))
                    }
                    _ => format!("the nearest known section is [{near}]"),
                });
                faults.push(ConfigError {
                    source: item.source,
                    key,
                    problem: "there is no such section".to_owned(),
                    hint: fix,
                });
            }
            _ => faults.push(unknown(item.source, key, schema::names())),
        }
    }
}

/// The fault of a key that does not exist, with the nearest of those that do.
pub(super) fn unknown<'a>(place: Source, key: String, known: impl Iterator<Item = &'a str>) -> ConfigError {
    let near = nearest(&key, known);
    let fix = near.map_or(String::new(), |near| format!("the nearest known key is {}", spelt(&place, near)));
    ConfigError { source: place, key, problem: "there is no such key".to_owned(), hint: fix }
}

/// The name most like this one; the same name in another section beats a look-alike in this one, and the
/// earlier of two beats the later.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |name: &str| {
        let likeness = match key.contains('.') {
            true => strsim::normalized_damerau_levenshtein(name, key),
            false => strsim::normalized_damerau_levenshtein(&last(name), key),
        };
        (last(name) == last(key), likeness)
    };
    let mut best: Option<((bool, f64), &str)> = None;
    for name in known {
        if best.is_none_or(|(most, _)| score(name) > most) {
            best = Some((score(name), name));
        }
    }
    best.map(|(_, name)| name)
}

/// How a key is written where the fault stands.
fn spelt(place: &Source, key: &str) -> String {
    match place {
        Source::Variable(_) => format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__")),
        _ => match key.rsplit_once('.') {
            Some(("team", name)) => format!("{key}, written [[team.{name}]]"),
            Some((section, name)) => format!("{key}, written `{name} = ...` under [{section}]"),
            None => key.to_owned(),
        },
    }
}

/// A value from outside the file. What begins like a TOML list, table or quoted text is read as one; all else
/// is text as it stands.
fn outside(place: Source, value: &str) -> LocatedValue {
    let parsed = value.starts_with(['[', '{', '"', '\'']).then(|| DeValue::parse(value).ok()).flatten();
    match parsed {
        Some(parsed) => LocatedValue { raw: raw(parsed.into_inner(), &|_| place.clone()), source: place },
        None => LocatedValue { source: place, raw: RawValue::Bare(value.to_owned()) },
    }
}

fn raw(value: DeValue<'_>, place: &dyn Fn(usize) -> Source) -> RawValue {
    match value {
        DeValue::String(text) => RawValue::Text(text.into_owned()),
        DeValue::Integer(number) => {
            let (text, radix) = (number.as_str(), number.radix());
            let out_of_bounds = if text.starts_with('-') { i128::MIN } else { i128::MAX };
            RawValue::Integer(i128::from_str_radix(text, radix).unwrap_or(out_of_bounds))
        }
        DeValue::Float(_) => RawValue::Other("a number with a point"),
        DeValue::Boolean(_) => RawValue::Other("true or false"),
        DeValue::Datetime(_) => RawValue::Other("a date"),
        DeValue::Array(values) => RawValue::List(
            values
                .into_iter()
                .map(|value: Spanned<DeValue<'_>>| LocatedValue {
                    source: place(value.span().start),
                    raw: raw(value.into_inner(), place),
                })
                .collect(),
        ),
        DeValue::Table(table) => RawValue::Table(table_items(table, place).collect()),
    }
}

fn table_items<'a>(
    table: DeTable<'a>,
    place: &'a dyn Fn(usize) -> Source,
) -> impl Iterator<Item = (String, LocatedValue)> + 'a {
    table.into_iter().map(move |(key, value)| {
        let item = LocatedValue { source: place(key.span().start), raw: raw(value.into_inner(), place) };
        (bare_key(key.get_ref()), item)
    })
}

/// A key that would need quotes is shown in them; so a dot in a name is no section's.
fn bare_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { format!("{key:?}") }
}

/// The whole file, within reason.
fn read(path: &Path) -> Result<String, String> {
    const MOST: u64 = 1 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MOST {
        return Err("is larger than 1 MiB, which no configuration is".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        format!("is not UTF-8 text (line {line})")
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// What the TOML parser says, the first of each line, the line and a caret below it.
fn syntax_faults(text: &str, name: &Arc<str>, errors: &[toml::de::Error]) -> Vec<ConfigError> {
    let mut faults: Vec<ConfigError> = Vec::new();
    for error in errors {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let (line, column) = position(text, start);
        let place = Source::Line(name.clone(), line);
        if faults.iter().any(|fault| fault.source == place) {
            continue;
        }
        let mut fix = String::new();
        let shown = shown_line(text.lines().nth(line - 1).unwrap_or_default());
        let margin = line.to_string();
        let _ = writeln!(fix, "{margin} | {shown}");
        let _ = writeln!(fix, "{:1$} | {2:>3$}", "", margin.len(), "^", column);
        fix.push_str(match error.message().contains("duplicate") {
            true => "each key and each [section] stands in the file once; take one out",
            false => "text stands in quotes (\"...\"), a list is [\"a\", \"b\"], a section is [name]",
        });
        let wrong = format!("column {column}: this is no TOML: {}", error.message().trim_end());
        faults.push(ConfigError { source: place, key: String::new(), problem: wrong, hint: fix });
    }
    if let Some(last) = faults.last_mut() {
        last.hint.push_str("\nthe values themselves are checked once the file is TOML");
    }
    faults
}

/// Line and column of a byte, both from 1; the column counts characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (line_of(text, offset), 1 + before[start..].chars().count())
}

/// The line, if it can hold no secret: a section's head or a known key that is none. Else its letters are
/// hidden, for a file that is no TOML may have its secrets anywhere.
fn shown_line(line: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | '[' | ']');
    let head = line.trim_start().starts_with('[') && line.chars().all(plain);
    let name = line.split('=').next().unwrap_or_default();
    let harmless = schema::is_harmless(name.trim()) && !line.contains('@') && !schema::names_a_secret(line);
    if head || harmless {
        return line.replace('\t', " ");
    }
    let known = line.contains('=') && (schema::names_a_secret(name) || schema::is_harmless(name.trim()));
    let kept = if known { name.len() } else { 0 };
    let (kept, hidden) = line.split_at(kept);
    let hide = |c: char| if c.is_alphanumeric() || !c.is_ascii() { '*' } else { c };
    kept.chars().chain(hidden.chars().map(hide)).collect::<String>().replace('\t', " ")
}
