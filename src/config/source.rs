//! Raw values by key, from the file, the environment and the command line.
//!
//! ```text
//! file ──┐
//! env ───┼──► RawConfig: "server.listen" ──► LocatedValue { source, raw } ──► schema ──► Config
//! flags ─┘    a later source replaces the value of an earlier one
//! ```
//!
//! The schema passes the names of the keys in. Their meaning is unknown here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Source};
use super::value::{LocatedValue, RawValue};

/// Prefix of the variables that set a key.
pub(super) const PREFIX: &str = "CLIPGATE__";

/// Names of the keys that exist.
pub(super) struct KnownKeys {
    /// Full names such as `server.tls.cert`, in the order of `config.toml`.
    pub(super) names: Vec<&'static str>,
    /// Names of the keys of a route, none of which has a secret.
    pub(super) route_keys: Vec<&'static str>,
    /// Last parts of the names of keys whose values must not be shown.
    pub(super) secrets: Vec<&'static str>,
}

impl KnownKeys {
    fn find(&self, key: &str) -> Option<&'static str> {
        self.names.iter().copied().find(|name| *name == key)
    }

    fn is_section(&self, key: &str) -> bool {
        self.names.iter().any(|name| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Returns the section of each key, with repetitions.
    fn sections(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().filter_map(|name| name.rsplit_once('.')).map(|(section, _)| section)
    }

    fn first_of(&self, section: &str) -> &'static str {
        self.names.iter().find(|name| name.starts_with(section)).unwrap_or(&self.names[0])
    }

    /// Returns whether a line that sets this key, named without its section, may be shown.
    fn is_harmless(&self, key: &str) -> bool {
        let is_known = self.names.iter().filter_map(|name| name.split_once('.')).any(|(_, name)| name == key);
        (is_known || self.route_keys.contains(&key)) && !self.names_a_secret(key)
    }

    /// Returns whether the text contains the name of a key with a secret.
    fn names_a_secret(&self, text: &str) -> bool {
        self.secrets.iter().any(|secret| text.contains(secret))
    }
}

/// Values by key. Unknown keys become errors when they are added.
pub(super) struct RawConfig {
    known: KnownKeys,
    values: BTreeMap<&'static str, LocatedValue>,
}

impl RawConfig {
    pub(super) fn new(known: KnownKeys) -> Self {
        Self { known, values: BTreeMap::new() }
    }

    pub(super) fn get(&self, key: &str) -> Option<&LocatedValue> {
        self.values.get(key)
    }

    /// Returns the place of the first of these keys that is set.
    pub(super) fn source(&self, keys: &[&str]) -> Source {
        keys.iter().find_map(|key| self.get(key)).map_or(Source::Default, |item| item.source.clone())
    }

    /// Adds a file. Returns `Err` if the file is not TOML: then no key can be checked.
    pub(super) fn add_file(
        &mut self,
        path: &Path,
        errors: &mut Vec<ConfigError>,
    ) -> Result<(), Vec<ConfigError>> {
        let name: Arc<str> = path.display().to_string().into();
        let text = read(path).map_err(|problem| {
            let hint = "Correct this file or name another one with --config.".to_owned();
            vec![ConfigError { source: Source::File(name.clone()), key: String::new(), problem, hint }]
        })?;
        self.add_document(&text, &name, errors)
    }

    /// Adds a TOML document from a file of this name.
    pub(super) fn add_document(
        &mut self,
        text: &str,
        name: &Arc<str>,
        errors: &mut Vec<ConfigError>,
    ) -> Result<(), Vec<ConfigError>> {
        let (table, syntax_errors) = DeTable::parse_recoverable(text);
        if !syntax_errors.is_empty() {
            if let Some(error) = other_format(text, name) {
                return Err(vec![error]);
            }
            return Err(self.describe_syntax_errors(text, name, &syntax_errors));
        }
        let ends = LineEnds::of(text);
        let source = |offset: usize| Source::Line(name.clone(), ends.line(offset));
        for (key, value) in table_values(table.into_inner(), &source) {
            self.add(key, value, errors);
        }
        Ok(())
    }

    /// Adds the `CLIPGATE__SECTION__KEY` variables.
    pub(super) fn add_environment(&mut self, env: &BTreeMap<String, String>, errors: &mut Vec<ConfigError>) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let key = rest.split("__").map(quote_key).collect::<Vec<_>>().join(".");
            let source = Source::Variable(name.clone());
            self.add(key.to_ascii_lowercase(), from_text(source, value), errors);
        }
    }

    pub(super) fn add_flag(
        &mut self,
        flag: &'static str,
        key: &str,
        value: &str,
        errors: &mut Vec<ConfigError>,
    ) {
        self.add(key.to_owned(), from_text(Source::Flag(flag), value), errors);
    }

    /// Stores the value of a key, or the values of a section's keys.
    fn add(&mut self, key: String, value: LocatedValue, errors: &mut Vec<ConfigError>) {
        if let Some(known) = self.known.find(&key) {
            self.values.insert(known, value);
            return;
        }
        match value.raw {
            RawValue::Table(inner) if self.known.is_section(&key) => {
                for (name, value) in inner {
                    self.add(format!("{key}.{name}"), value, errors);
                }
            }
            _ if self.known.is_section(&key) => errors.push(ConfigError {
                problem: format!("expected a section, found {}", value.raw.kind()),
                hint: match &value.source {
                    Source::Variable(_) => format!(
                        "Set each key of the section, such as {}.",
                        spelling(&value.source, self.known.first_of(&key))
                    ),
                    _ => format!("Write [{key}] on its own line and the keys below."),
                },
                source: value.source,
                key,
            }),
            RawValue::Table(_) => {
                let nearest = nearest(&key, self.known.sections());
                let hint = nearest.map_or(String::new(), |nearest| match &value.source {
                    Source::Variable(_) => format!(
                        "The nearest known key is {}.",
                        spelling(&value.source, self.known.first_of(nearest))
                    ),
                    _ => format!("The nearest known section is [{nearest}]."),
                });
                errors.push(ConfigError {
                    source: value.source,
                    key,
                    problem: "unknown section".to_owned(),
                    hint,
                });
            }
            _ => errors.push(unknown_key(value.source, key, self.known.names.iter().copied())),
        }
    }

    /// Converts the parser's errors, the first of each line, and shows each line with a caret below it.
    fn describe_syntax_errors(
        &self,
        text: &str,
        name: &Arc<str>,
        syntax_errors: &[toml::de::Error],
    ) -> Vec<ConfigError> {
        let mut errors: Vec<ConfigError> = Vec::new();
        for error in syntax_errors {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let (line, column) = position(text, start);
            let source = Source::Line(name.clone(), line);
            if errors.iter().any(|error| error.source == source) {
                continue;
            }
            let mut hint = String::new();
            let shown = self.redact_line(text.lines().nth(line - 1).unwrap_or_default());
            let margin = line.to_string();
            let _ = writeln!(hint, "{margin} | {shown}");
            let _ = writeln!(hint, "{:1$} | {2:>3$}", "", margin.len(), "^", column);
            hint.push_str(match error.message().contains("duplicate") {
                true => "Each key and each [section] may occur once. Remove the duplicate.",
                false => "Text needs quotes (\"...\"), a list is [\"a\", \"b\"], a section is [name].",
            });
            let problem = format!("column {column}: invalid TOML: {}", error.message().trim_end());
            errors.push(ConfigError { source, key: String::new(), problem, hint });
        }
        if let Some(last) = errors.last_mut() {
            last.hint.push_str("\nThe values are checked once the file is valid TOML.");
        }
        errors
    }

    /// Hides letters and digits of a line that may hold a secret. Shown in full are the head of a section and a known
    /// key without a secret. Anywhere else a file that is not TOML may have its secrets.
    fn redact_line(&self, line: &str) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | '[' | ']');
        let is_head = line.trim_start().starts_with('[') && line.chars().all(is_plain);
        let name = line.split('=').next().unwrap_or_default();
        let has_harmless_key = self.known.is_harmless(name.trim());
        if is_head || (has_harmless_key && !line.contains('@') && !self.known.names_a_secret(line)) {
            return line.replace('\t', " ");
        }
        let has_known_key = line.contains('=') && (self.known.names_a_secret(name) || has_harmless_key);
        let (shown, hidden) = line.split_at(if has_known_key { name.len() } else { 0 });
        let hide = |c: char| if c.is_alphanumeric() || !c.is_ascii() { '*' } else { c };
        shown.chars().chain(hidden.chars().map(hide)).collect::<String>().replace('\t', " ")
    }
}

/// Returns the error of a file whose first line is YAML or JSON.
fn other_format(text: &str, name: &Arc<str>) -> Option<ConfigError> {
    let is_content = |line: &str| !line.is_empty() && !line.starts_with('#');
    let (at, first) = (1..).zip(text.lines().map(str::trim)).find(|(_, line)| is_content(line))?;
    let is_word =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let format = match first.split_once(':') {
        _ if first == "---" => "YAML",
        _ if first.starts_with('{') => "JSON",
        Some((key, rest)) if is_word(key) && (rest.is_empty() || rest.starts_with(' ')) => "YAML",
        _ => return None,
    };
    Some(ConfigError {
        source: Source::Line(name.clone(), at),
        key: String::new(),
        problem: format!("the file looks like {format}, but a configuration is TOML"),
        hint: "Write [server] on its own line and listen = \"127.0.0.1:8080\" below. `clipgate config` prints a file to \
               start with."
            .to_owned(),
    })
}

/// Returns the error of an unknown key, with the nearest known one as the hint.
pub(super) fn unknown_key<'a>(
    source: Source,
    key: String,
    known: impl Iterator<Item = &'a str>,
) -> ConfigError {
    let hint = nearest(&key, known)
        .map_or(String::new(), |nearest| format!("The nearest known key is {}.", spelling(&source, nearest)));
    ConfigError { source, key, problem: "unknown key".to_owned(), hint }
}

/// Returns the most similar name. An equal last part in another section beats any similarity; of two equal
/// similarities the earlier name wins.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |name: &str| {
        let similarity = match key.contains('.') {
            true => strsim::normalized_damerau_levenshtein(name, key),
            false => strsim::normalized_damerau_levenshtein(&last(name), key),
        };
        (last(name) == last(key), similarity)
    };
    let mut best: Option<((bool, f64), &str)> = None;
    for name in known {
        if best.is_none_or(|(highest, _)| score(name) > highest) {
            best = Some((score(name), name));
        }
    }
    best.map(|(_, name)| name)
}

/// Returns the most similar variable that is read, for a name that begins with `CLIPGATE_`.
pub(super) fn nearest_variable(name: &str, known: &KnownKeys, others: &[&str]) -> String {
    let words = |name: &str| name.trim_start_matches("CLIPGATE").replace(['_', '.'], "").to_ascii_lowercase();
    let wanted = words(name);
    let keys = known.names.iter().map(|key| {
        // The section is often left out.
        let last = key.rsplit('.').next().unwrap_or_default();
        let variable = format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"));
        (variable, [words(key), words(last)])
    });
    let others = others.iter().map(|other| ((*other).to_owned(), [words(other), words(other)]));
    let mut best = (f64::MIN, String::new());
    for (variable, spellings) in keys.chain(others) {
        for spelling in spellings {
            let similarity = strsim::normalized_damerau_levenshtein(&spelling, &wanted);
            if similarity > best.0 {
                best = (similarity, variable.clone());
            }
        }
    }
    best.1
}

/// Formats a value as TOML. A table is described: a value inside may be a secret.
pub(super) fn describe(raw: &RawValue) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    match raw {
        RawValue::Bare(text) if text.parse::<i128>().is_ok() => text.clone(),
        RawValue::Text(text) | RawValue::Bare(text) => quote(&without_userinfo(text)),
        RawValue::Integer(number) => number.to_string(),
        RawValue::Boolean(is_set) => is_set.to_string(),
        RawValue::List(values) if values.iter().any(|value| matches!(value.raw, RawValue::Table(_))) => {
            format!("({} tables)", values.len())
        }
        RawValue::List(values) => {
            let values: Vec<_> = values.iter().map(|value| describe(&value.raw)).collect();
            format!("[{}]", values.join(", "))
        }
        RawValue::Table(_) | RawValue::Other(_) => format!("({})", raw.kind()),
    }
}

/// Hides user and password of a URL.
fn without_userinfo(text: &str) -> Cow<'_, str> {
    let parts = text.split_once("://").and_then(|(scheme, rest)| {
        let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        Some((scheme, rest.get(rest[..authority].rfind('@')?..)?))
    });
    parts.map_or(Cow::Borrowed(text), |(scheme, rest)| Cow::Owned(format!("{scheme}://(hidden){rest}")))
}

/// Returns how a key is written in this source.
fn spelling(source: &Source, key: &str) -> String {
    match source {
        Source::Variable(_) => format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__")),
        _ => match key.rsplit_once('.') {
            Some(("team", name)) => format!("{key}, written [[team.{name}]]"),
            None if key == "routes" => "routes, written [[routes]]".to_owned(),
            Some((section, name)) => format!("{key}, written `{name} = ...` under [{section}]"),
            None => key.to_owned(),
        },
    }
}

/// Converts the value of a variable or a flag. Text that starts like a TOML list, table or string is parsed as TOML;
/// other text is the value itself.
fn from_text(source: Source, value: &str) -> LocatedValue {
    let parsed = value.starts_with(['[', '{', '"', '\'']).then(|| DeValue::parse(value).ok()).flatten();
    match parsed {
        Some(parsed) => LocatedValue { raw: raw(parsed.into_inner(), &|_| source.clone()), source },
        None => LocatedValue { source, raw: RawValue::Bare(value.to_owned()) },
    }
}

fn raw(value: DeValue<'_>, source: &dyn Fn(usize) -> Source) -> RawValue {
    match value {
        DeValue::String(text) => RawValue::Text(text.into_owned()),
        DeValue::Integer(number) => {
            let (text, radix) = (number.as_str(), number.radix());
            let out_of_range = if text.starts_with('-') { i128::MIN } else { i128::MAX };
            RawValue::Integer(i128::from_str_radix(text, radix).unwrap_or(out_of_range))
        }
        DeValue::Float(_) => RawValue::Other("a number with a point"),
        DeValue::Boolean(value) => RawValue::Boolean(value),
        DeValue::Datetime(_) => RawValue::Other("a date"),
        DeValue::Array(values) => RawValue::List(
            values
                .into_iter()
                .map(|value: Spanned<DeValue<'_>>| LocatedValue {
                    source: source(value.span().start),
                    raw: raw(value.into_inner(), source),
                })
                .collect(),
        ),
        DeValue::Table(table) => RawValue::Table(table_values(table, source).collect()),
    }
}

fn table_values<'a>(
    table: DeTable<'a>,
    source: &'a dyn Fn(usize) -> Source,
) -> impl Iterator<Item = (String, LocatedValue)> + 'a {
    table.into_iter().map(move |(key, value)| {
        let value = LocatedValue { source: source(key.span().start), raw: raw(value.into_inner(), source) };
        (quote_key(key.get_ref()), value)
    })
}

/// Returns the tables of a document that is a part of the program.
///
/// # Panics
/// Panics if the document is not TOML.
pub(super) fn embedded_document(text: &str, name: &Arc<str>) -> Vec<(String, LocatedValue)> {
    let table = DeTable::parse(text).expect("the document is TOML");
    let ends = LineEnds::of(text);
    table_values(table.into_inner(), &|offset| Source::Line(name.clone(), ends.line(offset))).collect()
}

/// Quotes a key that is not a bare key of TOML, so that a dot in it does not separate a section.
fn quote_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare { key.to_owned() } else { format!("{key:?}") }
}

fn read(path: &Path) -> Result<String, String> {
    const MAX_BYTES: u64 = 1 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read the file: {error}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("the file is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        format!("the file is not UTF-8 text (line {line})")
    })
}

/// Where the lines of a document end. Without it each value counts the lines before it: that was nine tenths of the
/// instructions of a start.
struct LineEnds(Vec<usize>);

impl LineEnds {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// Returns the line of a byte, from 1.
    fn line(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|end| *end < offset)
    }
}

/// Returns the line and the column of a byte, both from 1. The column counts characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (LineEnds::of(text).line(offset), 1 + before[start..].chars().count())
}
