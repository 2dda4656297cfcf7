//! The keys of `[[routes]]`, and the parsers of their values.

use std::time::Duration;

use crate::config::error::{InvalidValue, invalid};
use crate::config::parse::quoted;
use crate::config::presets::{Preset, preset};
use crate::config::schema::row::{ConfigKey, ReloadEffect, read_keys};
use crate::config::value::{AllowedValues, LocatedValue, RawValue, ValueReader};
use crate::core::query::MAX_NAME_BYTES;
use crate::core::route::{BadTemplate, JsonPointer, ListForm, PathTemplate, StatusSource};

/// A new route, or another ladder, needs new machines.
const RELOAD: ReloadEffect = ReloadEffect::Restart(|old, new| old.routes != new.routes);

const HOUR: Duration = Duration::from_secs(3600);
const TTL: AllowedValues = AllowedValues::Duration(Duration::ZERO..=Duration::from_secs(365 * 24 * 3600));
const PACE: AllowedValues = AllowedValues::Duration(Duration::from_millis(1)..=HOUR);
const POINTER: AllowedValues = AllowedValues::Described("a JSON Pointer such as \"/data/id\"");
const PARAMETER: AllowedValues = AllowedValues::Described("the name of a query parameter");
const WORDS: AllowedValues = AllowedValues::Described("a list of words");

/// A route while its keys are read.
pub(in crate::config) struct RouteBuilder {
    pub(super) name: Option<String>,
    pub(super) preset: Option<&'static Preset>,
    pub(super) path: Option<PathTemplate>,
    pub(super) id_param: Option<String>,
    pub(super) params: Vec<String>,
    pub(super) list: Option<ListBuilder>,
    pub(super) id: Option<JsonPointer>,
    pub(super) status: StatusSource,
    pub(super) pending: Vec<Vec<String>>,
    pub(super) succeeded: Vec<String>,
    pub(super) failed: Vec<String>,
    pub(super) error: Option<JsonPointer>,
    pub(super) hold: Duration,
    pub(super) wait_param: Option<String>,
    pub(super) hold_param: Option<String>,
    pub(super) pace: Duration,
    pub(super) max_pace: Option<Duration>,
    pub(super) default_wait: Duration,
    pub(super) completed_ttl: Duration,
    pub(super) error_ttl: Option<Duration>,
    pub(super) live_ttl: Option<Duration>,
    pub(super) actions: Vec<PathTemplate>,
}

impl Default for RouteBuilder {
    fn default() -> Self {
        let pointer = |text| JsonPointer::parse(text).expect("the pointer is valid");
        Self {
            name: None,
            preset: None,
            path: None,
            id_param: None,
            params: Vec::new(),
            list: None,
            id: Some(pointer("/id")),
            status: StatusSource::Body(pointer("/status")),
            pending: Vec::new(),
            succeeded: Vec::new(),
            failed: Vec::new(),
            error: None,
            hold: Duration::ZERO,
            wait_param: None,
            hold_param: None,
            pace: Duration::from_secs(2),
            max_pace: None,
            default_wait: Duration::ZERO,
            completed_ttl: Duration::from_secs(600),
            error_ttl: None,
            live_ttl: None,
            actions: Vec::new(),
        }
    }
}

/// The endpoint for several jobs while its keys are read.
pub(in crate::config) struct ListBuilder {
    pub(super) path: Option<PathTemplate>,
    pub(super) param: Option<String>,
    pub(super) form: ListForm,
    pub(super) max: usize,
}

/// The keys of one route.
pub(in crate::config) const ROUTE_KEYS: &[ConfigKey<RouteBuilder>] = &[
    ConfigKey {
        name: "name",
        default: None,
        allowed: AllowedValues::Described("a lower-case letter, then at most 31 letters, digits and hyphens"),
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.name, route_name),
        doc: "required, or that of the preset; name in logs, metrics and on the dashboard",
    },
    ConfigKey {
        name: "preset",
        default: None,
        allowed: AllowedValues::Described("a name that `clipgate presets` lists"),
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.preset, |name| preset(name).map(Some)),
        doc: "API whose keys are the defaults of this route",
    },
    ConfigKey {
        name: "path",
        default: None,
        allowed: AllowedValues::Described("a path such as \"/v1/jobs/{id}\""),
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.path, |text| template(text).map(Some)),
        doc: "required; path of the GET that reads one job. `{id}` is the job's id. Other variables are one segment each, and belong to the identity of the job",
    },
    ConfigKey {
        name: "id_param",
        default: None,
        allowed: PARAMETER,
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.id_param, optional_parameter),
        doc: "query parameter with the id, where `path` has no `{id}`",
    },
    ConfigKey {
        name: "params",
        default: Some("[]"),
        allowed: AllowedValues::Described("a list of query parameters"),
        reload: RELOAD,
        read: |b, r| r.list(&mut b.params, parameter),
        doc: "other query parameters that belong to the identity of a job. A request with any other parameter is passed through",
    },
    ConfigKey {
        name: "list",
        default: None,
        allowed: AllowedValues::Described("a table with the keys below"),
        reload: RELOAD,
        read: |b, r| read_list(&mut b.list, r),
        doc: "endpoint for several jobs",
    },
    ConfigKey {
        name: "id",
        default: Some(r#""/id""#),
        allowed: AllowedValues::Described(
            "a JSON Pointer such as \"/data/id\", or \"\" where the body has no id",
        ),
        reload: RELOAD,
        read: |b, r| {
            r.parsed(&mut b.id, |text| if text.is_empty() { Ok(None) } else { pointer(text).map(Some) });
        },
        doc: "place of the id in the body",
    },
    ConfigKey {
        name: "status",
        default: Some(r#""/status""#),
        allowed: AllowedValues::Described(
            "a JSON Pointer such as \"/data/status\", or \":code\" for the HTTP status",
        ),
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.status, status_source),
        doc: "place of the state. Booleans and numbers count as their JSON text, an absent value and null as an empty word",
    },
    ConfigKey {
        name: "pending",
        default: None,
        allowed: AllowedValues::Described("a list of words, or of lists of words for one state"),
        reload: RELOAD,
        read: |b, r| read_states(&mut b.pending, r),
        doc: "required; the states of an unfinished job in their order, at most 64. The first word of a state is its name",
    },
    ConfigKey {
        name: "succeeded",
        default: None,
        allowed: WORDS,
        reload: RELOAD,
        read: |b, r| r.list(&mut b.succeeded, state_word),
        doc: "required; words of a successful job",
    },
    ConfigKey {
        name: "failed",
        default: Some("[]"),
        allowed: WORDS,
        reload: RELOAD,
        read: |b, r| r.list(&mut b.failed, state_word),
        doc: "words of a failed job; clients cannot wait for them",
    },
    ConfigKey {
        name: "error",
        default: None,
        allowed: POINTER,
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.error, |text| pointer(text).map(Some)),
        doc: "place of an error. Where its value is present and not null, a successful job counts as failed",
    },
    ConfigKey {
        name: "hold",
        default: Some(r#""0s""#),
        allowed: AllowedValues::Duration(Duration::ZERO..=HOUR),
        reload: RELOAD,
        read: |b, r| r.duration(&mut b.hold),
        doc: "time for which the upstream holds a request; 0s: the upstream never holds, and the gateway polls at `pace`",
    },
    ConfigKey {
        name: "wait_param",
        default: None,
        allowed: PARAMETER,
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.wait_param, optional_parameter),
        doc: "query parameter for the state to wait for. The gateway sends it upstream only where `hold` is not 0s",
    },
    ConfigKey {
        name: "hold_param",
        default: None,
        allowed: PARAMETER,
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.hold_param, optional_parameter),
        doc: "query parameter for the seconds for which the upstream holds the request. Without `wait_param` all states of `pending` count as one",
    },
    ConfigKey {
        name: "pace",
        default: Some(r#""2s""#),
        allowed: PACE,
        reload: RELOAD,
        read: |b, r| r.duration(&mut b.pace),
        doc: "shortest time between two polls of a job; only where `hold` is 0s",
    },
    ConfigKey {
        name: "max_pace",
        default: None,
        allowed: PACE,
        reload: RELOAD,
        read: |b, r| optional_duration(&mut b.max_pace, r),
        doc: "longest time between two polls of a job, not below `pace`, which is its default. Between the two it is a tenth of the job's age",
    },
    ConfigKey {
        name: "default_wait",
        default: Some(r#""0s""#),
        allowed: AllowedValues::Duration(Duration::ZERO..=HOUR),
        reload: RELOAD,
        read: |b, r| r.duration(&mut b.default_wait),
        doc: "time for which a plain GET is held for the next state; only where `hold` is 0s. Keep it below the read timeout of the clients; 8s is below that of common SDKs",
    },
    ConfigKey {
        name: "completed_ttl",
        default: Some(r#""10m""#),
        allowed: TTL,
        reload: RELOAD,
        read: |b, r| r.duration(&mut b.completed_ttl),
        doc: "lifetime of a successful job in the cache; shorter than that of the links in its body. 0s: not cached",
    },
    ConfigKey {
        name: "error_ttl",
        default: None,
        allowed: TTL,
        reload: RELOAD,
        read: |b, r| optional_duration(&mut b.error_ttl, r),
        doc: "lifetime of a failed job; by default `cache.error_ttl`. 0s: not cached",
    },
    ConfigKey {
        name: "live_ttl",
        default: None,
        allowed: TTL,
        reload: RELOAD,
        read: |b, r| optional_duration(&mut b.live_ttl, r),
        doc: "lifetime of an unfinished job's state; by default `pace`, or `cache.live_ttl` where `hold` is not 0s. 0s: not cached",
    },
    ConfigKey {
        name: "actions",
        default: Some("[]"),
        allowed: AllowedValues::Described("a list of paths such as \"/v1/jobs/{id}:cancel\""),
        reload: RELOAD,
        read: |b, r| r.list(&mut b.actions, template),
        doc: "paths of other requests that change the job, with the variables of `path`. Any method but GET, HEAD and OPTIONS counts. `path` and all paths below it always count",
    },
];

/// The keys of `list`.
pub(in crate::config) const LIST_KEYS: &[ConfigKey<ListBuilder>] = &[
    ConfigKey {
        name: "path",
        default: None,
        allowed: AllowedValues::Described("a path such as \"/v1/jobs\""),
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.path, |text| template(text).map(Some)),
        doc: "required; path without variables",
    },
    ConfigKey {
        name: "param",
        default: None,
        allowed: PARAMETER,
        reload: RELOAD,
        read: |b, r| r.parsed(&mut b.param, optional_parameter),
        doc: "required; query parameter with the ids, without brackets",
    },
    ConfigKey {
        name: "form",
        default: Some(r#""brackets""#),
        allowed: AllowedValues::Described("\"brackets\", \"repeat\" or \"comma\""),
        reload: RELOAD,
        read: |b, r| r.choice(&mut b.form, LIST_FORMS),
        doc: "spelling of several ids: `ids[]=a&ids[]=b`, `ids=a&ids=b` or `ids=a,b`",
    },
    ConfigKey {
        name: "max",
        default: Some("6"),
        allowed: AllowedValues::Number(1..=100),
        reload: RELOAD,
        read: |b, r| r.number(&mut b.max),
        doc: "most ids in one request",
    },
];

const LIST_FORMS: &[(&str, ListForm)] =
    &[("brackets", ListForm::Brackets), ("repeat", ListForm::Repeat), ("comma", ListForm::Comma)];

fn read_list(slot: &mut Option<ListBuilder>, reader: &mut ValueReader<'_>) {
    let RawValue::Table(table) = &reader.value.raw else {
        let problem = format!("expected a table, found {}", reader.value.raw.kind());
        let hint = "Use { path = \"/v1/jobs\", param = \"ids\", form = \"comma\", max = 20 }.".to_owned();
        return reader.error(reader.value.source.clone(), InvalidValue { problem, hint });
    };
    let mut list = ListBuilder { path: None, param: None, form: ListForm::Brackets, max: 6 };
    let values = table.iter().map(|(name, value)| (name.as_str(), value)).collect();
    read_keys(LIST_KEYS, &mut list, &values, reader);
    for name in ["path", "param"].into_iter().filter(|name| !table.contains_key(*name)) {
        let (problem, hint) = (format!("{name} is missing"), format!("Add {name} = \"...\" to the list."));
        reader.error(reader.value.source.clone(), InvalidValue { problem, hint });
    }
    *slot = Some(list);
}

/// Reads a list whose elements are words, or lists of words of one state.
fn read_states(slot: &mut Vec<Vec<String>>, reader: &mut ValueReader<'_>) {
    const MAX_STATES: usize = 64;
    let single = std::slice::from_ref(reader.value);
    let elements =
        if let RawValue::List(elements) = &reader.value.raw { elements.as_slice() } else { single };
    let mut states = Vec::with_capacity(elements.len());
    for element in elements {
        let mut words = Vec::new();
        let is_list = matches!(&element.raw, RawValue::List(words) if words.is_empty());
        if is_list {
            let problem = "a state has no words".to_owned();
            let hint = "Remove the empty list, or add the words of the state.".to_owned();
            reader.error(element.source.clone(), InvalidValue { problem, hint });
        }
        element_reader(reader, element).list(&mut words, state_word);
        if !words.is_empty() {
            states.push(words);
        }
    }
    if states.len() > MAX_STATES {
        let problem = format!("{} states, but a job has at most {MAX_STATES}", states.len());
        let hint = "Put words that mean the same to your clients into one state: [\"a\", \"b\"].".to_owned();
        reader.error(reader.value.source.clone(), InvalidValue { problem, hint });
    }
    *slot = states;
}

fn element_reader<'r>(reader: &'r mut ValueReader<'_>, element: &'r LocatedValue) -> ValueReader<'r> {
    ValueReader {
        key: reader.key.clone(),
        value: element,
        allowed: reader.allowed,
        env: reader.env,
        errors: &mut *reader.errors,
    }
}

fn optional_duration(slot: &mut Option<Duration>, reader: &mut ValueReader<'_>) {
    let earlier = reader.errors.len();
    let mut duration = Duration::ZERO;
    reader.duration(&mut duration);
    if reader.errors.len() == earlier {
        *slot = Some(duration);
    }
}

fn route_name(text: &str) -> Result<Option<String>, InvalidValue> {
    let is_valid = (1..=32).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_valid {
        return Ok(Some(text.to_owned()));
    }
    invalid(
        format!("not a valid name: {}", quoted(text)),
        "Use a lower-case letter, then at most 31 lower-case letters, digits and hyphens, as in \"video-jobs\".",
    )
}

fn template(text: &str) -> Result<PathTemplate, InvalidValue> {
    let (problem, hint) = match PathTemplate::parse(text) {
        Ok(template) => return Ok(template),
        Err(BadTemplate::NotAPath) => (
            "not a valid path",
            "Begin with a slash, and use no query, no empty or dot segments and no percent-escapes: \"/v1/jobs/{id}\".",
        ),
        Err(BadTemplate::PartOfSegment) => (
            "a variable is only a part of its segment",
            "A variable is a whole segment, as in \"/v1/jobs/{id}\". Only in `actions` a verb may follow: \"{id}:cancel\".",
        ),
        Err(BadTemplate::BadName) => {
            ("a variable has an invalid name", "Use letters, digits and underscores, as in \"{job_id}\".")
        }
        Err(BadTemplate::Repeated) => {
            ("two variables have the same name", "Give each variable its own name.")
        }
    };
    invalid(format!("{problem}: {}", quoted(text)), hint)
}

fn parameter(text: &str) -> Result<String, InvalidValue> {
    if text.is_empty() || text.len() > MAX_NAME_BYTES || text.chars().any(char::is_control) {
        return invalid(
            format!("not the name of a query parameter: {}", quoted(text)),
            format!("Use the decoded name, of 1 to {MAX_NAME_BYTES} bytes."),
        );
    }
    Ok(text.to_owned())
}

fn optional_parameter(text: &str) -> Result<Option<String>, InvalidValue> {
    parameter(text).map(Some)
}

fn pointer(text: &str) -> Result<JsonPointer, InvalidValue> {
    if let Some(pointer) = JsonPointer::parse(text) {
        return Ok(pointer);
    }
    let hint = if text.is_empty() {
        "The whole body has no place. Use a place inside, such as \"/status\".".to_owned()
    } else if text.starts_with('/') {
        "In a JSON Pointer a `~` in a name is written `~0`, and a `/` is written `~1`.".to_owned()
    } else {
        let tokens = text.trim_start_matches(['$', '.']).replace(['.', '['], "/").replace(']', "");
        format!("Use \"/{tokens}\".")
    };
    invalid(format!("not a JSON Pointer: {}", quoted(text)), hint)
}

fn status_source(text: &str) -> Result<StatusSource, InvalidValue> {
    match text {
        ":code" => Ok(StatusSource::HttpStatus),
        _ if text.starts_with(':') => invalid(
            format!("not a place of the state: {}", quoted(text)),
            "Use \":code\" for the HTTP status, or a JSON Pointer such as \"/status\".",
        ),
        _ => pointer(text).map(StatusSource::Body),
    }
}

/// Longest word of a state, in bytes; the length that queries decode.
const MAX_WORD_BYTES: usize = 128;

fn state_word(text: &str) -> Result<String, InvalidValue> {
    if text.len() > MAX_WORD_BYTES || text.chars().any(char::is_control) {
        return invalid(
            format!("not a word of a state: {}", quoted(text)),
            format!("Use at most {MAX_WORD_BYTES} bytes without control characters."),
        );
    }
    Ok(text.to_owned())
}
