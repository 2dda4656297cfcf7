//! Request targets: parses those of clients in every spelling, and builds those of polls.
//!
//! ```text
//! target ── parse ──▶ Wait   the gateway understands every parameter: a poll can replace the request
//!                     Other  unknown parameter or spelling: passed through unchanged, the upstream decides
//!                     Bad    understood, and invalid for any upstream: 400
//! ```
//!
//! | a parameter is | and another one is | result |
//! | --- | --- | --- |
//! | valid | valid | `Wait` |
//! | invalid | valid | `Bad`, with the first error |
//! | unknown | valid or invalid | `Other`: the gateway never rejects a request that it does not understand |
//!
//! Names are compared after percent-decoding and are case-sensitive. The module has no state and no HTTP library.
//! Parsing is one pass over the query; `max_jobs` bounds the memory that it keeps.

mod identity;
mod target;

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str};

use self::identity::{Colons, IdentityParams, path_identity};
pub use self::identity::{acted_on, named};
pub use self::target::build_target;
use crate::core::job::{BadId, JobId, JobSet, MAX_ID_BYTES, RouteIndex};
use crate::core::route::{Form, Goal, ListForm, PathMatch, Route, Routes, has_broken_escape};

/// Longest accepted id in a query, in bytes. A wait with a longer one gets 400.
pub const MAX_QUERY_ID_BYTES: usize = 128;

/// Result of parsing the target of a GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A wait on jobs.
    Wait(WaitQuery),
    /// Any other request, to be passed through: another path, or a parameter that the gateway does not understand.
    Other,
    /// A wait that no upstream could answer: 400.
    Bad(BadQuery),
}

/// A parsed wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitQuery {
    /// Route of the jobs.
    pub route: RouteIndex,
    /// Endpoint of the request.
    pub form: Form,
    /// At least one job, without repetition, in the client's order.
    pub asked: Vec<JobId>,
    /// State that ends the wait.
    pub goal: Goal,
    /// Time for which the client asks to be held, in the parameter of the route for it.
    pub hold: Option<Duration>,
}

impl WaitQuery {
    /// Returns the jobs as a set.
    pub fn jobs(&self) -> JobSet {
        JobSet::new(self.asked.iter().cloned())
    }
}

/// Error in a wait. `Display` writes the sentence that the client gets; it never repeats a text of the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// The query has no id.
    #[error("`{param}` is missing: name a job, as in `{param}=ID`")]
    NoId {
        /// The parameter of the ids.
        param: String,
    },
    /// An id is empty.
    #[error("`{param}` is empty: give it the id of a job")]
    EmptyId {
        /// The parameter of the ids.
        param: String,
    },
    /// An id has more than [`MAX_QUERY_ID_BYTES`].
    #[error("`{param}` is longer than {MAX_QUERY_ID_BYTES} bytes: give it the id of a job")]
    LongId {
        /// The parameter of the ids.
        param: String,
    },
    /// An id is not UTF-8.
    #[error("`{param}` is not UTF-8 once its percent-escapes are read: give it the id of a job")]
    NotUtf8 {
        /// The parameter of the ids.
        param: String,
    },
    /// The query has more ids than a request may have.
    #[error("`{param}` is given more than {limit} times: ask for the other jobs in another request")]
    TooManyIds {
        /// The parameter of the ids.
        param: String,
        /// Maximum number of ids in a request.
        limit: usize,
    },
    /// The status is on the ladder, but clients cannot wait for it.
    #[error("`{param}` cannot be `{word}`: ask for {askable}")]
    NotAskable {
        /// The parameter of the status.
        param: String,
        /// Name of the rung.
        word: String,
        /// Status words that clients can wait for.
        askable: String,
    },
    /// A `%` in the value of a parameter is not followed by two hex digits.
    #[error(
        "`{param}` has a `%` without two hex digits after it: write a `%` that stands for itself as `%25`"
    )]
    BrokenEscape {
        /// Name of the parameter.
        param: String,
    },
    /// A `%` in the name of a parameter is not followed by two hex digits.
    #[error("a parameter's name has a `%` without two hex digits after it: write its letters as they are")]
    BrokenName,
}

impl BadQuery {
    /// Returns the token for `Cache-Status` and the log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoId { .. } => "no-id",
            Self::EmptyId { .. } => "empty-id",
            Self::LongId { .. } => "long-id",
            Self::NotUtf8 { .. } => "id-not-utf8",
            Self::TooManyIds { .. } => "too-many-ids",
            Self::NotAskable { .. } => "status-not-askable",
            Self::BrokenEscape { .. } | Self::BrokenName => "broken-escape",
        }
    }
}

/// Parses the target of a GET. `path` and `query` are not decoded yet; `max_jobs` is the maximum number of ids in a
/// request for several jobs. Where a configured list takes more, that is the maximum.
pub fn parse(routes: &Routes, path: &str, query: Option<&str>, max_jobs: usize) -> Query {
    match routes.endpoint(path) {
        Some((index, found)) => parse_at(routes, index, &found, query, max_jobs),
        None => Query::Other,
    }
}

/// Like [`parse`], for a path whose endpoint was found already.
pub fn parse_at(
    routes: &Routes,
    index: RouteIndex,
    found: &PathMatch<'_>,
    query: Option<&str>,
    max_jobs: usize,
) -> Query {
    let (route, form) = (routes.get(index), found.form);
    let Some(identity) = path_identity(route, found) else { return Query::Other };
    if identity.colons == Colons::Mixed {
        return Query::Other;
    }
    let max_jobs = match &route.list {
        Some(list) if !route.is_built_in => max_jobs.max(list.max),
        Some(_) | None => max_jobs,
    };
    let mut ids = IdList { index, route, form, max_jobs, ids: Vec::new(), count: 0, spelling: None };
    let mut params = IdentityParams::new(route);
    let (mut goal, mut has_status, mut hold) = (None, false, None);
    let mut first_error = None;
    for (name, value) in parameters(query) {
        let result = match Param::parse(route, form, name) {
            Ok(Param::Id(spelling)) => ids.push(spelling, value),
            Ok(Param::Status) if has_status => Err(ParamError::Unknown),
            Ok(Param::Status) => {
                has_status = true;
                parse_goal(route, value).map(|parsed| goal = Some(parsed))
            }
            Ok(Param::Hold) if hold.is_some() => Err(ParamError::Unknown),
            Ok(Param::Hold) => parse_seconds(value).map(|parsed| hold = Some(parsed)),
            Ok(Param::Identity(at)) => params.push(at, value),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {}
            Err(ParamError::Unknown) => return Query::Other,
            Err(ParamError::Invalid(error)) => drop(first_error.get_or_insert(error)),
        }
    }
    if ids.has_repeated_id() {
        return Query::Other;
    }
    let rest = params.append_to(identity.rest, identity.colons);
    if let Some(id) = identity.id {
        let Ok(job) = JobId::with_rest(index, &id, &rest) else { return Query::Other };
        ids.ids.push(job);
    } else if ids.count == 0 && !route.is_built_in {
        // The path may be that of a collection: the upstream knows the meaning.
        return Query::Other;
    } else if ids.count == 0 {
        first_error.get_or_insert_with(|| BadQuery::NoId { param: id_param(route, form) });
    } else if !rest.is_empty() {
        let with_rest = ids.ids.iter().map(|job| JobId::with_rest(index, job.as_str(), &rest));
        let Ok(jobs) = with_rest.collect() else { return Query::Other };
        ids.ids = jobs;
    }
    // Seconds without a state mean the end of the job.
    let goal = match (goal, hold) {
        (Some(goal), _) => goal,
        (None, Some(_)) => Goal::Rung(route.ladder.highest_askable()),
        (None, None) => Goal::Now,
    };
    match first_error {
        Some(error) => Query::Bad(error),
        None => Query::Wait(WaitQuery { route: index, form, asked: ids.ids, goal, hold }),
    }
}

/// Splits a query into names and values, not decoded. A parameter without `=` has an empty value. Empty parameters
/// (`&&`, a `&` at the end) are skipped, as every parser does.
fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let parameters = query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty());
    parameters.map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

/// Removes the parameter of this name from a query. Returns the rest unchanged, and the decoded value; `None` if the
/// parameter is missing, repeated or cannot be decoded.
pub fn take(query: &str, name: &str) -> Option<(String, String)> {
    let (mut rest, mut found) = (String::with_capacity(query.len()), None);
    for parameter in query.split('&') {
        let (raw_name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if decode(raw_name, name.len()).is_ok_and(|decoded| *decoded == *name) {
            if found.replace(decode(value, MAX_VALUE_BYTES).ok()?.into_owned()).is_some() {
                return None;
            }
            continue;
        }
        if !rest.is_empty() {
            rest.push('&');
        }
        rest.push_str(parameter);
    }
    found.map(|value| (rest, value))
}

/// Maximum size of a value that [`take`] decodes, in bytes.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// All characters but the unreserved ones of RFC 3986 section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Reason why a parameter is not part of a wait.
enum ParamError {
    /// The gateway does not know the parameter, or parsers disagree on it.
    Unknown,
    /// The gateway knows the parameter, and its value is invalid.
    Invalid(BadQuery),
}

/// Collects the ids of a query, parameter by parameter.
struct IdList<'r> {
    index: RouteIndex,
    route: &'r Route,
    form: Form,
    max_jobs: usize,
    ids: Vec<JobId>,
    /// Id parameters so far, including invalid ones and those beyond `max_jobs`.
    count: usize,
    /// Spelling of the newest id parameter.
    spelling: Option<Spelling>,
}

impl IdList<'_> {
    fn push(&mut self, spelling: Spelling, value: &str) -> Result<(), ParamError> {
        if !self.may_follow(spelling) {
            return Err(ParamError::Unknown);
        }
        self.spelling = Some(spelling);
        match spelling {
            Spelling::Comma => split_at_commas(value).try_for_each(|id| self.push_id(id)),
            Spelling::Plain | Spelling::Brackets | Spelling::Index(_) => self.push_id(value),
        }
    }

    fn push_id(&mut self, value: &str) -> Result<(), ParamError> {
        if value.bytes().any(|byte| AMBIGUOUS.contains(&byte)) {
            return Err(ParamError::Unknown);
        }
        self.count += 1;
        if self.form == Form::Multi && self.count > self.max_jobs {
            let (param, limit) = (id_param(self.route, self.form), self.max_jobs);
            return Err(ParamError::Invalid(BadQuery::TooManyIds { param, limit }));
        }
        let limit = if self.route.is_built_in { MAX_QUERY_ID_BYTES } else { MAX_ID_BYTES };
        let id = decode(value, limit).and_then(|id| match id.len() > limit {
            true => Err(DecodeError::TooLong),
            false => JobId::with_rest(self.index, &id, "").map_err(DecodeError::from),
        });
        let id = id.map_err(|error| {
            let param = id_param(self.route, self.form);
            match error {
                DecodeError::Empty | DecodeError::TooLong if !self.route.is_built_in => ParamError::Unknown,
                DecodeError::Empty => ParamError::Invalid(BadQuery::EmptyId { param }),
                DecodeError::TooLong => ParamError::Invalid(BadQuery::LongId { param }),
                DecodeError::NotUtf8 => ParamError::Invalid(BadQuery::NotUtf8 { param }),
                DecodeError::InvalidEscape => ParamError::Invalid(BadQuery::BrokenEscape { param }),
            }
        })?;
        if self.spelling == Some(Spelling::Comma) && id.as_str().contains(',') {
            return Err(ParamError::Unknown);
        }
        self.ids.push(id);
        Ok(())
    }

    /// Returns whether all parsers add an id in this spelling to the list so far. The single endpoint takes one id;
    /// a list keeps one spelling, with ascending indexes.
    fn may_follow(&self, spelling: Spelling) -> bool {
        match (self.form, self.spelling, spelling) {
            (_, None, _) => true,
            (Form::Single, Some(_), _) => false,
            (Form::Multi, Some(Spelling::Index(last)), Spelling::Index(this)) => last < this,
            (Form::Multi, Some(Spelling::Comma), _) => false,
            (Form::Multi, Some(last), this) => last == this,
        }
    }

    fn has_repeated_id(&self) -> bool {
        if self.ids.len() < 2 {
            return false;
        }
        let mut sorted: Vec<&JobId> = self.ids.iter().collect();
        sorted.sort_unstable();
        sorted.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// Splits a value at its commas, as they are and percent-encoded: browsers' `URLSearchParams` encodes them, and servers
/// decode a value before they split it.
fn split_at_commas(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').flat_map(|part| part.split("%2C")).flat_map(|part| part.split("%2c"))
}

/// Characters in an id that parsers disagree on: `+` may be a space, `;` may end the parameter, `,` may end the id.
/// Percent-encoded, they are unambiguous.
const AMBIGUOUS: [u8; 3] = [b'+', b';', b','];

/// A known parameter.
enum Param {
    Id(Spelling),
    Status,
    Hold,
    /// Position in [`Route::params`].
    Identity(usize),
}

/// Spelling of an id parameter: `clip_ids`, `clip_ids[]`, `clip_ids[7]`, or several ids in one value. Parsers agree on
/// lists in one spelling, and disagree on mixtures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Plain,
    Comma,
    Brackets,
    Index(u32),
}

impl Param {
    fn parse(route: &Route, form: Form, name: &str) -> Result<Self, ParamError> {
        let name = decode(name, MAX_NAME_BYTES).map_err(|error| match error {
            DecodeError::InvalidEscape => ParamError::Invalid(BadQuery::BrokenName),
            DecodeError::Empty | DecodeError::TooLong | DecodeError::NotUtf8 => ParamError::Unknown,
        })?;
        let is = |param: &Option<String>| param.as_deref() == Some(&*name);
        if is(&route.wait_param) {
            return Ok(Self::Status);
        }
        if is(&route.hold_param) {
            return Ok(Self::Hold);
        }
        let list = route.list.as_ref().filter(|_| form == Form::Multi);
        match list {
            None if is(&route.id_param) => Ok(Self::Id(Spelling::Plain)),
            None => {
                let at = route.params.iter().position(|param| *param == name);
                at.map(Self::Identity).ok_or(ParamError::Unknown)
            }
            Some(list) if list.form == ListForm::Comma => {
                if *name == list.param {
                    Ok(Self::Id(Spelling::Comma))
                } else {
                    Err(ParamError::Unknown)
                }
            }
            Some(list) => {
                let suffix = name.strip_prefix(list.param.as_str()).ok_or(ParamError::Unknown)?;
                Spelling::parse(suffix).map(Self::Id).ok_or(ParamError::Unknown)
            }
        }
    }
}

/// Longest decoded name of a parameter, in bytes; no route has a longer one.
pub const MAX_NAME_BYTES: usize = 128;

impl Spelling {
    fn parse(suffix: &str) -> Option<Self> {
        match suffix {
            "" => Some(Self::Plain),
            "[]" => Some(Self::Brackets),
            _ => {
                let digits = suffix.strip_prefix('[')?.strip_suffix(']')?;
                // Some parsers take `01` and `+1` for keys of a map.
                let is_index =
                    digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
                if is_index { digits.parse().ok().map(Self::Index) } else { None }
            }
        }
    }
}

/// Parses a number of seconds. Another text is for the upstream to judge.
fn parse_seconds(value: &str) -> Result<Duration, ParamError> {
    let is_number = (1..=6).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = value.parse().ok().filter(|_| is_number).ok_or(ParamError::Unknown)?;
    Ok(Duration::from_secs(seconds))
}

fn parse_goal(route: &Route, value: &str) -> Result<Goal, ParamError> {
    let param = || route.wait_param.clone().unwrap_or_default();
    let word = decode(value, MAX_STATUS_BYTES).map_err(|error| match error {
        DecodeError::InvalidEscape => ParamError::Invalid(BadQuery::BrokenEscape { param: param() }),
        DecodeError::Empty | DecodeError::TooLong | DecodeError::NotUtf8 => ParamError::Unknown,
    })?;
    let rung = route.ladder.rung(&word).ok_or(ParamError::Unknown)?;
    if route.ladder.is_askable(rung) {
        return Ok(Goal::Rung(rung));
    }
    let words: Vec<_> = route.ladder.askable_words().map(|word| format!("`{word}`")).collect();
    Err(ParamError::Invalid(BadQuery::NotAskable {
        param: param(),
        word: route.ladder.name(rung).to_owned(),
        askable: words.join(" or "),
    }))
}

/// Maximum length of a decoded status word, in bytes; no ladder has a longer word.
const MAX_STATUS_BYTES: usize = 128;

/// Returns the documented name of the id parameter.
fn id_param(route: &Route, form: Form) -> String {
    match (form, &route.list) {
        (Form::Multi, Some(list)) if list.form == ListForm::Brackets => format!("{}[]", list.param),
        (Form::Multi, Some(list)) => list.param.clone(),
        (Form::Single | Form::Multi, _) => route.id_param.clone().unwrap_or_default(),
    }
}

/// Reason why a name or value cannot be decoded.
enum DecodeError {
    Empty,
    TooLong,
    NotUtf8,
    InvalidEscape,
}

impl From<BadId> for DecodeError {
    fn from(bad: BadId) -> Self {
        match bad {
            BadId::Empty => Self::Empty,
            BadId::TooLong => Self::TooLong,
        }
    }
}

/// Decodes percent-escapes, and leaves `+` alone.
///
/// A text that decodes to more than `limit` bytes in any case is rejected unread, which bounds the work. The decoded
/// text may still be longer than `limit`.
fn decode(text: &str, limit: usize) -> Result<Cow<'_, str>, DecodeError> {
    if text.len() > limit * "%00".len() {
        return Err(DecodeError::TooLong);
    }
    if !text.as_bytes().contains(&b'%') {
        return Ok(Cow::Borrowed(text));
    }
    if has_broken_escape(text) {
        return Err(DecodeError::InvalidEscape);
    }
    percent_decode_str(text).decode_utf8().map_err(|_| DecodeError::NotUtf8)
}

#[cfg(test)]
mod tests;
