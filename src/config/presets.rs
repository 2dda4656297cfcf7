//! Presets of `[[routes]]`: routes of known APIs, in `presets.toml`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::error::{InvalidValue, invalid};
use super::key_fields::{key_field, key_template};
use super::parse::quoted;
use super::source::embedded_document;
use super::types::{AuthConfig, AuthMode, KeyTemplate};
use super::value::{LocatedValue, RawValue};

const TEXT: &str = include_str!("presets.toml");

/// A route of a known API.
pub struct Preset {
    pub name: String,
    /// One line for the list.
    pub about: String,
    /// Address of the API.
    pub base_url: String,
    /// Host names of the API; with a leading dot, all names below. Empty: any host.
    hosts: Vec<String>,
    /// Settings of `[auth]` that the API needs.
    pub(super) auth: PresetAuth,
    /// Values of the route by key.
    pub(super) route: BTreeMap<String, LocatedValue>,
}

/// Settings of `[auth]`.
pub(super) struct PresetAuth {
    pub(super) headers: Vec<HeaderName>,
    pub(super) with_key: Vec<HeaderName>,
    pub(super) send: KeyTemplate,
}

static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let mut tables = embedded_document(TEXT, &Arc::from("presets.toml"));
    tables.sort_by(|(_, one), (_, two)| one.source.cmp(&two.source));
    tables.into_iter().map(|(name, table)| Preset::new(name, table)).collect()
});

/// Returns all presets, in the order of the file.
pub fn presets() -> &'static [Preset] {
    &PRESETS
}

/// Returns the preset of this name.
pub fn preset(name: &str) -> Result<&'static Preset, InvalidValue> {
    let known = presets().iter().find(|preset| preset.name == name);
    known.map_or_else(|| invalid(format!("not a preset: {}", quoted(name)), nearest_names(name)), Ok)
}

fn nearest_names(name: &str) -> String {
    const SHOWN: usize = 3;
    let mut names: Vec<&str> = presets().iter().map(|preset| preset.name.as_str()).collect();
    let distance = |other: &&str| 1.0 - strsim::normalized_damerau_levenshtein(other, name);
    names.sort_by(|one, two| distance(one).total_cmp(&distance(two)));
    let names = names[..SHOWN].join(", ");
    format!("The nearest names are {names}. `clipgate presets` lists all.")
}

impl PresetAuth {
    fn new(mut table: BTreeMap<String, LocatedValue>) -> Self {
        let mut fields = |key: &str| {
            let names = table.remove(key).map(into_list)?;
            let names = names.into_iter().map(|name| key_field(&into_text(name)));
            Some(names.collect::<Result<Vec<_>, _>>().expect("each preset has valid fields"))
        };
        let (headers, with_key) = (fields("headers"), fields("with_key"));
        let send = table.remove("send").map(into_text);
        Self {
            headers: headers.unwrap_or_else(|| vec![AUTHORIZATION]),
            with_key: with_key.unwrap_or_default(),
            send: send.map_or_else(KeyTemplate::default, |text| {
                key_template(&text).expect("each preset has a valid field for keys")
            }),
        }
    }

    /// Returns the lines that this configuration lacks. Fields of a client's key matter only where clients send one, and
    /// the field of a key of the gateway's own only where there is one.
    pub(super) fn lines_missing_in(&self, auth: &AuthConfig) -> Vec<String> {
        let (is_lent, is_open) = match auth.mode {
            AuthMode::Passthrough => (false, false),
            AuthMode::Sidecar | AuthMode::Team(_) => (true, false),
            AuthMode::Open => (false, true),
        };
        let list = |names: &[HeaderName]| {
            let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            names.join(", ")
        };
        let has = |name: &HeaderName| auth.headers.contains(name);
        let goes_up = |name: &HeaderName| auth.with_key.contains(name) || (!is_lent && has(name));
        let mut lines = Vec::new();
        if is_open {
            return lines;
        }
        if !is_lent && !self.headers.iter().all(has) {
            lines.push(format!("headers = [{}]", list(&self.headers)));
        }
        if !self.with_key.iter().all(goes_up) {
            lines.push(format!("with_key = [{}]", list(&self.with_key)));
        }
        if is_lent && self.send != auth.send {
            lines.push(format!("send = \"{}\"", self.send));
        }
        lines
    }
}

impl Preset {
    fn new(name: String, table: LocatedValue) -> Self {
        let mut table = into_table(table);
        let mut take = |key: &str| table.remove(key).expect("each preset has this key");
        let mut upstream = into_table(take("upstream"));
        let base_url = upstream.remove("base_url").expect("each preset has a base_url");
        let auth = PresetAuth::new(table.remove("auth").map(into_table).unwrap_or_default());
        let mut take = |key: &str| table.remove(key).expect("each preset has this key");
        let route = into_list(take("routes")).pop().expect("each preset has a route");
        Self {
            name,
            about: into_text(take("about")),
            base_url: into_text(base_url),
            hosts: into_list(take("hosts")).into_iter().map(into_text).collect(),
            auth,
            route: into_table(route),
        }
    }

    /// Returns the lines of a configuration file: `[upstream]`, `[auth]` and the route, with their comments.
    pub fn lines(&self) -> String {
        let own = |line: &str| {
            let head = line.trim_start_matches('[');
            head.strip_prefix(self.name.as_str()).is_some_and(|rest| rest.starts_with(['.', ']']))
        };
        let block = TEXT.lines().skip_while(|line| *line != format!("[{}]", self.name));
        let block = block.take_while(|line| !line.starts_with('[') || own(line));
        let printed = block.skip_while(|line| !line.starts_with("hosts = ")).skip(1);
        let dotted = format!("[{}.", self.name);
        let mut text: String = printed.map(|line| line.replacen(&dotted, "[", 1) + "\n").collect();
        text.truncate(text.trim_end().len());
        text + "\n"
    }

    /// Returns whether the API has this host.
    pub fn is_for_host(&self, host: &str) -> bool {
        let is_host = |own: &String| match own.strip_prefix('.') {
            Some(suffix) => {
                host.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            None => host == own,
        };
        self.hosts.is_empty() || self.hosts.iter().any(is_host)
    }

    /// Returns the keys of the route for a table with these keys. A key that contradicts one of the table gives way.
    pub(super) fn defaults_for<'a>(
        &'a self,
        own: &'a BTreeMap<String, LocatedValue>,
    ) -> impl Iterator<Item = (&'a str, &'a LocatedValue)> {
        let text = |key| match own.get(key).map(|value| &value.raw) {
            Some(RawValue::Text(text) | RawValue::Bare(text)) => Some(text.as_str()),
            Some(_) | None => None,
        };
        let never_holds =
            text("hold").and_then(|hold| humantime::parse_duration(hold).ok()).map(|hold| hold.is_zero());
        let has_pace = own.contains_key("pace") || own.contains_key("max_pace");
        let has_id = text("path").is_some_and(|path| path.contains("{id}"));
        let gives_way = move |key: &str| match key {
            "pace" | "max_pace" | "default_wait" if never_holds == Some(false) => true,
            "max_pace" => own.contains_key("pace"),
            "hold_param" if never_holds == Some(true) => true,
            "hold" | "hold_param" => has_pace && never_holds.is_none(),
            "id_param" => has_id,
            _ => false,
        };
        let values = self.route.iter().map(|(key, value)| (key.as_str(), value));
        values.filter(move |(key, _)| !own.contains_key(*key) && !gives_way(key))
    }
}

fn into_table(value: LocatedValue) -> BTreeMap<String, LocatedValue> {
    let RawValue::Table(table) = value.raw else { unreachable!("a table of presets.toml") };
    table
}

fn into_list(value: LocatedValue) -> Vec<LocatedValue> {
    let RawValue::List(list) = value.raw else { unreachable!("a list of presets.toml") };
    list
}

fn into_text(value: LocatedValue) -> String {
    let RawValue::Text(text) = value.raw else { unreachable!("a text of presets.toml") };
    text
}
