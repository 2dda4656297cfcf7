//! What a request's target asks for, in every spelling, and how polls spell it.
//!
//! ```text
//! target ── read ──► Wait   understood to the last parameter: a poll can stand for it
//!                    Other  not understood: passed through as it came, the upstream is the judge
//!                    Bad    understood, and wrong whoever is the judge
//! ```
//!
//! `Other` weighs more than `Bad`: what is not understood is not called wrong. Names are compared letter for
//! letter, after percent-decoding. Knows nothing of HTTP libraries, and keeps no state. The work is one pass
//! over the query, and what is kept of it is bounded by the ids that may be asked for.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::core::job::{BadId, JobId, JobSet, MAX_ID_BYTES};
use crate::core::route::{Form, Goal, Route};

/// What the target of a GET is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A wait on jobs.
    Wait(WaitQuery),
    /// No wait, or none that is fully understood: to be passed through.
    Other,
    /// A wait that no upstream could answer: 400.
    Bad(BadQuery),
}

/// What a wait asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitQuery {
    /// At which of the two endpoints.
    pub form: Form,
    /// Different jobs, at least one, in the order asked for.
    pub asked: Vec<JobId>,
    /// Until when.
    pub goal: Goal,
}

impl WaitQuery {
    /// The jobs, whatever their order.
    pub fn jobs(&self) -> JobSet {
        JobSet::new(self.asked.iter().cloned())
    }
}

/// What is wrong with a wait; displayed, it is the sentence that a client sees. None of its words are the client's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// No job is named.
    #[error("`{param}` is missing: name a clip, as in `{param}=ID`")]
    NoId {
        /// The parameter of the ids.
        param: String,
    },
    /// An id has no bytes.
    #[error("`{param}` is empty: give it the id of a clip")]
    EmptyId {
        /// The parameter of the ids.
        param: String,
    },
    /// An id has more than [`MAX_ID_BYTES`].
    #[error("`{param}` is longer than {MAX_ID_BYTES} bytes: give it the id of a clip")]
    LongId {
        /// The parameter of the ids.
        param: String,
    },
    /// An id is not UTF-8.
    #[error("`{param}` is not UTF-8 once its percent-escapes are read: give it the id of a clip")]
    NotUtf8 {
        /// The parameter of the ids.
        param: String,
    },
    /// More jobs are named than a request may ask for.
    #[error("`{param}` is given more than {most} times: ask for the other clips in another request")]
    TooManyIds {
        /// The parameter of the ids.
        param: String,
        /// How many jobs a request may ask for.
        most: usize,
    },
    /// The status is of the ladder, but cannot be waited for.
    #[error("`{param}` cannot be `{word}`: ask for {askable}")]
    NotAskable {
        /// The parameter of the status.
        param: String,
        /// The rung's name.
        word: String,
        /// The words that can be asked for.
        askable: String,
    },
    /// A `%` in the value of a parameter is not followed by two hex digits.
    #[error(
        "`{param}` has a `%` without two hex digits after it: write a `%` that stands for itself as `%25`"
    )]
    BrokenEscape {
        /// Which parameter.
        param: String,
    },
    /// A `%` in the name of a parameter is not followed by two hex digits.
    #[error("a parameter's name has a `%` without two hex digits after it: write its letters as they are")]
    BrokenName,
}

impl BadQuery {
    /// A token for `Cache-Status` and the log.
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

/// What a GET asks for. `path` and `query` are as they stand in the target; `max_jobs` is the most that a request
/// for several jobs may name.
pub fn parse(route: &Route, path: &str, query: Option<&str>, max_jobs: usize) -> Query {
    let Some(form) = route.form(path) else { return Query::Other };
    let mut asked = IdList { ids: Vec::new(), named: 0, spelling: None };
    let (mut goal, mut has_status) = (Goal::Now, false);
    let mut bad = None;
    // Empty parameters (`&&`, a `&` at the end) say nothing to any reader.
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        // One without `=` has an empty value.
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let verdict = match Param::parse(route, form, name) {
            Ok(Param::Id(spelling)) => asked.take(route, form, spelling, value, max_jobs),
            Ok(Param::Status) if std::mem::replace(&mut has_status, true) => Err(ParamError::Unknown),
            Ok(Param::Status) => read_goal(route, value).map(|read| goal = read),
            Err(doubt) => Err(doubt),
        };
        match verdict {
            Ok(()) => {}
            Err(ParamError::Unknown) => return Query::Other,
            Err(ParamError::Wrong(first)) => drop(bad.get_or_insert(first)),
        }
    }
    if asked.has_repeated_id() {
        return Query::Other;
    }
    if asked.named == 0 {
        bad.get_or_insert_with(|| BadQuery::NoId { param: id_param(route, form) });
    }
    match bad {
        Some(bad) => Query::Bad(bad),
        None => Query::Wait(WaitQuery { form, asked: asked.ids, goal }),
    }
}

/// Returns the jobs that a target names, whatever else it asks for and whether or not it is a wait; at most as many as
/// `wait.max_jobs` can be. None where the path is not one that jobs are asked for at.
pub fn named(route: &Route, path: &str, query: Option<&str>) -> Vec<JobId> {
    let Some(form) = route.form(path) else { return Vec::new() };
    let parameters = query.unwrap_or_default().split('&').filter_map(|parameter| parameter.split_once('='));
    let values = parameters
        .filter(|(name, _)| matches!(Param::parse(route, form, name), Ok(Param::Id(_))))
        // The upstream may read one id here or several.
        .flat_map(|(_, value)| {
            std::iter::once(value).chain(value.split([',', ';']).skip_while(move |id| *id == value))
        });
    let ids = values.filter_map(|value| JobId::new(&decode(value, MAX_ID_BYTES).ok()?).ok());
    ids.take(MAX_NAMED).collect()
}

/// The largest `wait.max_jobs`.
const MAX_NAMED: usize = 1000;
/// Takes the parameter of this name out of a query. Returns the rest as it stands and the decoded value; `None` if the
/// parameter is missing, repeated or cannot be decoded.
pub fn take(query: &str, name: &str) -> Option<(String, String)> {
    let (mut rest, mut taken) = (String::with_capacity(query.len()), None);
    for parameter in query.split('&') {
        let (written, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if decode(written, name.len()).is_ok_and(|written| *written == *name) {
            if taken.replace(decode(value, MAX_VALUE_BYTES).ok()?.into_owned()).is_some() {
                return None;
            }
            continue;
        }
        if !rest.is_empty() {
            rest.push('&');
        }
        rest.push_str(parameter);
    }
    taken.map(|value| (rest, value))
}

/// The most bytes of a value that [`take`] reads.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// The path and query by which a poll asks: the documented spelling, without a status for [`Goal::Now`].
///
/// The brackets of the repeated parameter are percent-encoded, as browsers' `URLSearchParams` and the usual clients
/// send them. That is the same name to every reader of queries, while a bare `[` is no query character
/// (RFC 3986 §3.4): lenient parsers let it pass, strict servers answer 400.
///
/// [`Form::Single`] asks for one job; `jobs` has just that.
pub fn build_target(route: &Route, form: Form, jobs: &JobSet, goal: Goal) -> String {
    debug_assert!(form == Form::Multi || jobs.len() == 1, "a single poll asks for one clip");
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
        Goal::Now => {}
        Goal::Rung(rung) => parameter(&route.status_param, "", route.ladder.name(rung)),
    }
    target
}

/// `[]`, encoded.
const BRACKETS: &str = "%5B%5D";

/// All that RFC 3986 §2.3 does not call unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a parameter is no part of a wait.
enum ParamError {
    /// It is not understood.
    Unknown,
    /// It is understood, and wrong.
    Wrong(BadQuery),
}

/// The ids so far.
struct IdList {
    ids: Vec<JobId>,
    /// How many parameters named one, the wrong and the superfluous included.
    named: usize,
    /// How the latest was spelled.
    spelling: Option<Spelling>,
}

impl IdList {
    fn take(
        &mut self,
        route: &Route,
        form: Form,
        spelling: Spelling,
        value: &str,
        max_jobs: usize,
    ) -> Result<(), ParamError> {
        let goes_on = match (form, self.spelling, spelling) {
            (_, None, _) => true,
            (Form::Single, Some(_), _) => false,
            (Form::Multi, Some(Spelling::Index(last)), Spelling::Index(this)) => last < this,
            (Form::Multi, Some(last), this) => last == this,
        };
        if !goes_on || value.bytes().any(|byte| AMBIGUOUS.contains(&byte)) {
            return Err(ParamError::Unknown);
        }
        self.spelling = Some(spelling);
        self.named += 1;
        if form == Form::Multi && self.named > max_jobs {
            return Err(ParamError::Wrong(BadQuery::TooManyIds {
                param: id_param(route, form),
                most: max_jobs,
            }));
        }
        let id = decode(value, MAX_ID_BYTES).and_then(|id| JobId::new(&id).map_err(DecodeError::from));
        self.ids.push(id.map_err(|unread| {
            let param = id_param(route, form);
            ParamError::Wrong(match unread {
                DecodeError::Empty => BadQuery::EmptyId { param },
                DecodeError::TooLong => BadQuery::LongId { param },
                DecodeError::NotUtf8 => BadQuery::NotUtf8 { param },
                DecodeError::Broken => BadQuery::BrokenEscape { param },
            })
        })?);
        Ok(())
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

/// What readers of queries disagree on where it stands bare in an id: a space or a plus, the end of a parameter or a
/// semicolon, the end of an id or a comma. Encoded, each is itself.
const AMBIGUOUS: [u8; 3] = [b'+', b';', b','];

/// A parameter that is understood.
enum Param {
    Id(Spelling),
    Status,
}

/// How the parameter of an id is written: `clip_ids`, `clip_ids[]` or `clip_ids[7]`. Readers of queries agree on
/// lists in one spelling, not on mixtures.
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
        let name = name.map_err(|unread| match unread {
            DecodeError::Broken => ParamError::Wrong(BadQuery::BrokenName),
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

/// The most bytes of an index with its brackets.
const MAX_INDEX_BYTES: usize = "[4294967295]".len();

impl Spelling {
    fn parse(suffix: &str) -> Option<Self> {
        match suffix {
            "" => Some(Self::Plain),
            "[]" => Some(Self::Brackets),
            _ => {
                let digits = suffix.strip_prefix('[')?.strip_suffix(']')?;
                // `01` and `+1` are keys of a map to some readers.
                let plain =
                    digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
                if plain { digits.parse().ok().map(Self::Index) } else { None }
            }
        }
    }
}

fn read_goal(route: &Route, value: &str) -> Result<Goal, ParamError> {
    let word = decode(value, MAX_STATUS_BYTES).map_err(|unread| match unread {
        DecodeError::Broken => {
            ParamError::Wrong(BadQuery::BrokenEscape { param: route.status_param.clone() })
        }
        DecodeError::Empty | DecodeError::TooLong | DecodeError::NotUtf8 => ParamError::Unknown,
    })?;
    let rung = route.ladder.rung(&word).ok_or(ParamError::Unknown)?;
    if route.ladder.is_askable(rung) {
        return Ok(Goal::Rung(rung));
    }
    let words: Vec<_> = route.ladder.askable_words().map(|word| format!("`{word}`")).collect();
    Err(ParamError::Wrong(BadQuery::NotAskable {
        param: route.status_param.clone(),
        word: route.ladder.name(rung).to_owned(),
        askable: words.join(" or "),
    }))
}

/// No status word of any ladder is longer.
const MAX_STATUS_BYTES: usize = 128;

/// The parameter of the ids as it is documented.
fn id_param(route: &Route, form: Form) -> String {
    match form {
        Form::Single => route.single_param.clone(),
        Form::Multi => format!("{}[]", route.multi_param),
    }
}

/// Why a text is not read.
enum DecodeError {
    Empty,
    TooLong,
    NotUtf8,
    Broken,
}

impl From<BadId> for DecodeError {
    fn from(bad: BadId) -> Self {
        match bad {
            BadId::Empty => Self::Empty,
            BadId::TooLong => Self::TooLong,
        }
    }
}

/// Reads percent-escapes and nothing else. What must be longer than `most` bytes is not looked at, so that the work
/// is bounded; what is read may still be longer.
fn decode(text: &str, most: usize) -> Result<Cow<'_, str>, DecodeError> {
    if text.len() > most * "%00".len() {
        return Err(DecodeError::TooLong);
    }
    if !text.as_bytes().contains(&b'%') {
        return Ok(Cow::Borrowed(text));
    }
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(is_escape) {
        return Err(DecodeError::Broken);
    }
    percent_decode_str(text).decode_utf8().map_err(|_| DecodeError::NotUtf8)
}

#[cfg(test)]
mod tests;
