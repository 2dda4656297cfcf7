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

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::core::job::{BadId, JobId, JobSet};
use crate::core::route::{Form, Goal, Route};

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
    /// Endpoint of the request.
    pub form: Form,
    /// At least one job, without repetition, in the client's order.
    pub asked: Vec<JobId>,
    /// State that ends the wait.
    pub goal: Goal,
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
/// request for several jobs.
pub fn parse(route: &Route, path: &str, query: Option<&str>, max_jobs: usize) -> Query {
    let Some(form) = route.form(path) else { return Query::Other };
    let mut ids = IdList { route, form, max_jobs, ids: Vec::new(), count: 0, spelling: None };
    let (mut goal, mut has_status) = (Goal::Now, false);
    let mut first_error = None;
    for (name, value) in parameters(query) {
        let result = match Param::parse(route, form, name) {
            Ok(Param::Id(spelling)) => ids.push(spelling, value),
            Ok(Param::Status) if has_status => Err(ParamError::Unknown),
            Ok(Param::Status) => {
                has_status = true;
                parse_goal(route, value).map(|parsed| goal = parsed)
            }
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
    if ids.count == 0 {
        first_error.get_or_insert_with(|| BadQuery::NoId { param: id_param(route, form) });
    }
    match first_error {
        Some(error) => Query::Bad(error),
        None => Query::Wait(WaitQuery { form, asked: ids.ids, goal }),
    }
}

/// Splits a query into names and values, not decoded. A parameter without `=` has an empty value. Empty parameters
/// (`&&`, a `&` at the end) are skipped, as every parser does.
fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let parameters = query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty());
    parameters.map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

/// Returns all job ids in a target, also where the request is passed through; at most 1000, and none on other paths.
pub fn named(route: &Route, path: &str, query: Option<&str>) -> Vec<JobId> {
    let Some(form) = route.form(path) else { return Vec::new() };
    let parameters = query.unwrap_or_default().split('&').filter_map(|parameter| parameter.split_once('='));
    let values = parameters
        .filter(|(name, _)| matches!(Param::parse(route, form, name), Ok(Param::Id(_))))
        // An upstream may parse `a,b` as one id or as two: both readings count.
        .flat_map(|(_, value)| {
            std::iter::once(value).chain(value.split([',', ';']).skip_while(move |id| *id == value))
        });
    let ids = values.filter_map(|value| JobId::new(&decode(value, MAX_QUERY_ID_BYTES).ok()?).ok());
    ids.take(MAX_NAMED).collect()
}

/// The largest `wait.max_jobs` that the configuration accepts.
const MAX_NAMED: usize = 1000;

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

/// Builds the path and query of a poll in the upstream's documented spelling; [`Goal::Now`] has no status parameter.
///
/// The brackets of the repeated parameter are percent-encoded, as browsers' `URLSearchParams` and common clients send
/// them. Every parser decodes that to the same name. RFC 3986 section 3.4 does not allow a bare `[` in a query: lenient
/// parsers accept it, strict servers answer 400.
///
/// With [`Form::Single`], `jobs` has exactly one id.
pub fn build_target(route: &Route, form: Form, jobs: &JobSet, goal: Goal) -> String {
    debug_assert!(form == Form::Multi || jobs.len() == 1, "a poll at the single endpoint has one job");
    let (path, param, brackets) = match form {
        Form::Single => (&route.single_path, &route.single_param, ""),
        Form::Multi => (&route.multi_path, &route.multi_param, BRACKETS),
    };
    let mut target = String::with_capacity(path.len() + 32 + jobs.len() * (param.len() + 48));
    target.push_str(path);
    let mut parameter = |name: &str, brackets: &str, value: &str| {
        target.push(if target.len() == path.len() { '?' } else { '&' });
        target.extend(utf8_percent_encode(name, RESERVED));
        target.push_str(brackets);
        target.push('=');
        target.extend(utf8_percent_encode(value, RESERVED));
    };
    for id in jobs {
        parameter(param, brackets, id.as_str());
    }
    match goal {
        Goal::Now | Goal::Not(_) => {}
        Goal::Rung(rung) => parameter(&route.status_param, "", route.ladder.name(rung)),
    }
    target
}

/// `[]`, percent-encoded.
const BRACKETS: &str = "%5B%5D";

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
        if !self.may_follow(spelling) || value.bytes().any(|byte| AMBIGUOUS.contains(&byte)) {
            return Err(ParamError::Unknown);
        }
        self.spelling = Some(spelling);
        self.count += 1;
        if self.form == Form::Multi && self.count > self.max_jobs {
            let (param, limit) = (id_param(self.route, self.form), self.max_jobs);
            return Err(ParamError::Invalid(BadQuery::TooManyIds { param, limit }));
        }
        let id = decode(value, MAX_QUERY_ID_BYTES).and_then(|id| match id.len() {
            0..=MAX_QUERY_ID_BYTES => JobId::new(&id).map_err(DecodeError::from),
            _ => Err(DecodeError::TooLong),
        });
        self.ids.push(id.map_err(|error| {
            let param = id_param(self.route, self.form);
            ParamError::Invalid(match error {
                DecodeError::Empty => BadQuery::EmptyId { param },
                DecodeError::TooLong => BadQuery::LongId { param },
                DecodeError::NotUtf8 => BadQuery::NotUtf8 { param },
                DecodeError::InvalidEscape => BadQuery::BrokenEscape { param },
            })
        })?);
        Ok(())
    }

    /// Returns whether all parsers add an id in this spelling to the list so far. The single endpoint takes one id;
    /// a list keeps one spelling, with ascending indexes.
    fn may_follow(&self, spelling: Spelling) -> bool {
        match (self.form, self.spelling, spelling) {
            (_, None, _) => true,
            (Form::Single, Some(_), _) => false,
            (Form::Multi, Some(Spelling::Index(last)), Spelling::Index(this)) => last < this,
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

/// Characters in an id that parsers disagree on: `+` may be a space, `;` may end the parameter, `,` may end the id.
/// Percent-encoded, they are unambiguous.
const AMBIGUOUS: [u8; 3] = [b'+', b';', b','];

/// A known parameter.
enum Param {
    Id(Spelling),
    Status,
}

/// Spelling of an id parameter: `clip_ids`, `clip_ids[]` or `clip_ids[7]`. Parsers agree on lists in one spelling, and
/// disagree on mixtures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Plain,
    Brackets,
    Index(u32),
}

impl Param {
    fn parse(route: &Route, form: Form, name: &str) -> Result<Self, ParamError> {
        let param = match form {
            Form::Single => &route.single_param,
            Form::Multi => &route.multi_param,
        };
        let name = decode(name, param.len().max(route.status_param.len()) + MAX_INDEX_BYTES);
        let name = name.map_err(|error| match error {
            DecodeError::InvalidEscape => ParamError::Invalid(BadQuery::BrokenName),
            DecodeError::Empty | DecodeError::TooLong | DecodeError::NotUtf8 => ParamError::Unknown,
        })?;
        if *name == route.status_param {
            return Ok(Self::Status);
        }
        let suffix = name.strip_prefix(param.as_str()).ok_or(ParamError::Unknown)?;
        match form {
            Form::Single if suffix.is_empty() => Ok(Self::Id(Spelling::Plain)),
            Form::Single => Err(ParamError::Unknown),
            Form::Multi => Spelling::parse(suffix).map(Self::Id).ok_or(ParamError::Unknown),
        }
    }
}

/// Length of the longest index with its brackets, in bytes.
const MAX_INDEX_BYTES: usize = "[4294967295]".len();

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

fn parse_goal(route: &Route, value: &str) -> Result<Goal, ParamError> {
    let word = decode(value, MAX_STATUS_BYTES).map_err(|error| match error {
        DecodeError::InvalidEscape => {
            ParamError::Invalid(BadQuery::BrokenEscape { param: route.status_param.clone() })
        }
        DecodeError::Empty | DecodeError::TooLong | DecodeError::NotUtf8 => ParamError::Unknown,
    })?;
    let rung = route.ladder.rung(&word).ok_or(ParamError::Unknown)?;
    if route.ladder.is_askable(rung) {
        return Ok(Goal::Rung(rung));
    }
    let words: Vec<_> = route.ladder.askable_words().map(|word| format!("`{word}`")).collect();
    Err(ParamError::Invalid(BadQuery::NotAskable {
        param: route.status_param.clone(),
        word: route.ladder.name(rung).to_owned(),
        askable: words.join(" or "),
    }))
}

/// Maximum length of a decoded status word, in bytes; no ladder has a longer word.
const MAX_STATUS_BYTES: usize = 128;

/// Returns the documented name of the id parameter.
fn id_param(route: &Route, form: Form) -> String {
    match form {
        Form::Single => route.single_param.clone(),
        Form::Multi => format!("{}[]", route.multi_param),
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
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(is_escape) {
        return Err(DecodeError::InvalidEscape);
    }
    percent_decode_str(text).decode_utf8().map_err(|_| DecodeError::NotUtf8)
}

#[cfg(test)]
mod tests;
