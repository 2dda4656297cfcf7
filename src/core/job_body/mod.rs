//! Upstream bodies: split into jobs by id, and joined again byte for byte.
//!
//! ```text
//!               ┌ Jobs      each job's own bytes, as a slice of the body
//! body ─ split ─┤ Unsplit   JSON, but not exactly the requested jobs: delivered unchanged, not cached
//!               └ Invalid   not JSON: the attempt has failed
//!
//! jobs ─ join ─▶ body   in the client's order, in the upstream's outer shape
//! ```
//!
//! Jobs are matched by id, never by position. No body is built from parsed values: a client gets the bytes that the
//! upstream sent (P8). The parser reads the outer shape, and the id and status of each job. It skips deeper values
//! without recursion, at any depth. The module has no state and does not know HTTP.

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::value::RawValue;

use crate::core::job::{JobId, JobSet};
use crate::core::route::{Form, JsonPointer, Route, Rung, StatusSource};

/// One job in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSlice {
    /// Id of the job.
    pub id: JobId,
    /// Rung of the job; `None` if the ladder does not have its status.
    pub rung: Option<Rung>,
    /// The job's own bytes, a slice of the body.
    pub body: Bytes,
}

/// Maximum length of the name in [`ListShape::Wrapped`], in bytes: the gateway stores the shape for each key. A body
/// with a longer name is [`SplitBody::Unsplit`].
pub const MAX_NAME_BYTES: usize = 128;

/// Outer shape of a body with several jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListShape {
    /// `[job, …]`
    #[default]
    Array,
    /// `{"NAME": [job, …]}`, with a name of at most [`MAX_NAME_BYTES`].
    Wrapped(String),
    /// `{"ID": job, …}`
    Map,
}

/// Result of splitting a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitBody {
    /// Exactly the requested jobs, each once.
    Jobs {
        /// The jobs, in the order of the set.
        jobs: Vec<JobSlice>,
        /// Outer shape; `None` at the single endpoint, whose body is the job itself.
        shape: Option<ListShape>,
    },
    /// JSON, but not exactly the requested jobs.
    Unsplit,
    /// Not JSON.
    Invalid,
}

/// Splits the body of a 2xx response with this HTTP status to a poll for these jobs.
pub fn split(route: &Route, form: Form, requested: &JobSet, http_status: u16, body: &Bytes) -> SplitBody {
    if route.status == StatusSource::HttpStatus
        && let [id] = requested.iter().as_slice()
    {
        let rung = route.ladder.rung(&http_status.to_string());
        let job = JobSlice { id: id.clone(), rung, body: body.clone() };
        return SplitBody::Jobs { jobs: vec![job], shape: None };
    }
    let Ok(text) = str::from_utf8(body) else { return SplitBody::Invalid };
    // RFC 8259 section 8.1 lets a parser skip a byte order mark. The body of a single job keeps it (P8).
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let splitter = Splitter { route, requested, body };
    let jobs = match form {
        Form::Single => splitter.split_single(text),
        Form::Multi => splitter.split_multi(text),
    };
    match jobs {
        Some(jobs) => jobs,
        None if serde_json::from_str::<IgnoredAny>(text).is_ok() => SplitBody::Unsplit,
        None => SplitBody::Invalid,
    }
}

/// Returns the status word in the body of one job, or of a response with this HTTP status. `None` if it is not a word.
pub fn status_text(route: &Route, http_status: u16, body: &Bytes) -> Option<String> {
    let StatusSource::Body(pointer) = &route.status else { return Some(http_status.to_string()) };
    let text = str::from_utf8(body).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let [status, ..] = parse(ValuesSeed([Some(pointer.tokens()), None, None]), text)?.values;
    status_word(status).map(Cow::into_owned)
}

/// Joins jobs into one body, in this order and shape.
pub fn join<'a>(shape: &ListShape, jobs: impl IntoIterator<Item = (&'a JobId, &'a Bytes)>) -> Bytes {
    let mut out = BytesMut::new();
    match shape {
        ListShape::Array => out.put_u8(b'['),
        ListShape::Wrapped(name) => {
            out.put_u8(b'{');
            put_string(&mut out, name);
            out.put_slice(b":[");
        }
        ListShape::Map => out.put_u8(b'{'),
    }
    for (position, (id, body)) in jobs.into_iter().enumerate() {
        if position > 0 {
            out.put_u8(b',');
        }
        match shape {
            ListShape::Array | ListShape::Wrapped(_) => {}
            ListShape::Map => {
                put_string(&mut out, id.as_str());
                out.put_u8(b':');
            }
        }
        out.put_slice(body);
    }
    out.put_slice(match shape {
        ListShape::Array => b"]",
        ListShape::Wrapped(_) => b"]}",
        ListShape::Map => b"}",
    });
    out.freeze()
}

fn put_string(out: &mut BytesMut, text: &str) {
    serde_json::to_writer(out.writer(), text)
        .expect("a string is valid JSON, and a buffer in memory accepts every write");
}

/// Splits one body. Its methods return `None` if the body is not exactly the requested jobs, or not JSON.
struct Splitter<'a> {
    route: &'a Route,
    requested: &'a JobSet,
    body: &'a Bytes,
}

impl<'a> Splitter<'a> {
    fn split_single(&self, text: &'a str) -> Option<SplitBody> {
        let fields = self.job_fields(text)?;
        let mut requested = self.requested.iter();
        let is_named = |id: &&JobId| self.route.id.is_none() || fields.id.as_deref() == Some(id.as_str());
        let id = requested.next().filter(is_named)?;
        if requested.next().is_some() {
            return None;
        }
        let job = JobSlice { id: id.clone(), rung: fields.rung, body: self.body.clone() };
        Some(SplitBody::Jobs { jobs: vec![job], shape: None })
    }

    /// Splits a body of the multi endpoint. A wrapped list and a map are distinct for any ids: the value in the first
    /// is a list, the values in the second are objects.
    fn split_multi(&self, text: &'a str) -> Option<SplitBody> {
        let (jobs, shape) = match self.outer(text)? {
            Outer::List(items) => (self.split_list(&items)?, ListShape::Array),
            Outer::Object(members) => match members.as_slice() {
                [(name, value)] if value.get().starts_with('[') && name.len() <= MAX_NAME_BYTES => {
                    let Outer::List(items) = self.outer(value.get())? else { return None };
                    (self.split_list(&items)?, ListShape::Wrapped(name.clone().into_owned()))
                }
                _ => (self.split_map(&members)?, ListShape::Map),
            },
        };
        Some(SplitBody::Jobs { jobs, shape: Some(shape) })
    }

    fn split_list(&self, items: &[&'a RawValue]) -> Option<Vec<JobSlice>> {
        self.collect(items.iter().map(|item| {
            let fields = self.job_fields(item.get())?;
            Some((fields.id?, fields.rung, *item))
        }))
    }

    fn split_map(&self, members: &[(Cow<'a, str>, &'a RawValue)]) -> Option<Vec<JobSlice>> {
        self.collect(members.iter().map(|(key, value)| {
            let fields = self.job_fields(value.get())?;
            fields.id.is_none_or(|id| id == *key).then(|| (key.clone(), fields.rung, *value))
        }))
    }

    /// Collects the jobs, if they are exactly the requested ones.
    fn collect(
        &self,
        found: impl Iterator<Item = Option<(Cow<'a, str>, Option<Rung>, &'a RawValue)>>,
    ) -> Option<Vec<JobSlice>> {
        let mut jobs: Vec<Option<JobSlice>> = vec![None; self.requested.len()];
        for job in found {
            let (id, rung, raw) = job?;
            let requested = self.requested.iter().as_slice();
            let position = requested.binary_search_by(|job| job.as_str().cmp(&id)).ok()?;
            let body = self.body.slice_ref(raw.get().as_bytes()); // P8
            if jobs[position].replace(JobSlice { id: requested[position].clone(), rung, body }).is_some() {
                return None;
            }
        }
        jobs.into_iter().collect::<Option<Vec<_>>>().filter(|jobs| !jobs.is_empty())
    }

    fn outer(&self, text: &'a str) -> Option<Outer<'a>> {
        parse(OuterSeed { limit: self.requested.len() }, text)
    }

    fn job_fields(&self, text: &'a str) -> Option<JobFields<'a>> {
        let Route { id, status, error, ladder, .. } = self.route;
        let StatusSource::Body(status) = status else { return None };
        let pointers = [id.as_ref(), Some(status), error.as_ref()];
        let [id, status, error] =
            parse(ValuesSeed(pointers.map(|pointer| pointer.map(JsonPointer::tokens))), text)?.values;
        let id = match id {
            Some(id) => Some(id_text(id, self.route)?),
            None => None,
        };
        let rung = status_word(status).and_then(|word| ladder.rung(&word));
        let has_error = error.is_some_and(|error| error.get() != "null");
        let failed = ladder.rungs().find(|rung| ladder.is_failure(*rung));
        let rung = rung.map(|rung| match failed {
            Some(failed) if has_error && ladder.is_terminal(rung) => failed,
            Some(_) | None => rung,
        });
        Some(JobFields { id, rung })
    }
}

/// Returns the id in a body. A number counts as its JSON text on configured routes.
fn id_text<'a>(id: &'a RawValue, route: &Route) -> Option<Cow<'a, str>> {
    let is_number = id.get().starts_with(|first: char| first == '-' || first.is_ascii_digit());
    if is_number && !route.is_built_in {
        return Some(Cow::Borrowed(id.get()));
    }
    parse(StringSeed, id.get())
}

/// Returns the word of a state: a string, the JSON text of a boolean or a number, or an empty word for no value and null.
fn status_word(status: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let Some(status) = status else { return Some(Cow::Borrowed("")) };
    match status.get().as_bytes().first()? {
        b'"' => parse(StringSeed, status.get()),
        b'n' => Some(Cow::Borrowed("")),
        b'{' | b'[' => None,
        _ => Some(Cow::Borrowed(status.get())),
    }
}

fn parse<'a, S: DeserializeSeed<'a>>(seed: S, text: &'a str) -> Option<S::Value> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(value)
}

/// The outer value of a body; its items are not parsed yet.
enum Outer<'a> {
    List(Vec<&'a RawValue>),
    Object(Vec<(Cow<'a, str>, &'a RawValue)>),
}

/// Reads an [`Outer`], and fails after `limit` items, which bounds the memory.
struct OuterSeed {
    limit: usize,
}

impl<'de> DeserializeSeed<'de> for OuterSeed {
    type Value = Outer<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Outer<'de>, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OuterSeed {
    type Value = Outer<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} jobs", self.limit)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Outer<'de>, A::Error> {
        let mut items = Vec::with_capacity(self.limit);
        while let Some(item) = seq.next_element()? {
            if items.len() == self.limit {
                return Err(A::Error::invalid_length(items.len() + 1, &self));
            }
            items.push(item);
        }
        Ok(Outer::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outer<'de>, A::Error> {
        let mut members = Vec::with_capacity(self.limit);
        while let Some(name) = map.next_key_seed(StringSeed)? {
            if members.len() == self.limit {
                return Err(A::Error::invalid_length(members.len() + 1, &self));
            }
            members.push((name, map.next_value()?));
        }
        Ok(Outer::Object(members))
    }
}

/// The fields of a job that the gateway reads.
struct JobFields<'a> {
    id: Option<Cow<'a, str>>,
    rung: Option<Rung>,
}

/// Values of a job: its id, its status and its error.
#[derive(Default)]
struct FoundValues<'a> {
    values: [Option<&'a RawValue>; 3],
    is_visited: [bool; 3],
}

const REPEATED: &str = "a name on the way to a value is repeated";

impl<'a> FoundValues<'a> {
    /// Records that the first token of a pointer was found.
    fn visit(&mut self, at: usize) -> Result<(), &'static str> {
        if std::mem::replace(&mut self.is_visited[at], true) { Err(REPEATED) } else { Ok(()) }
    }

    fn put(&mut self, at: usize, value: &'a RawValue) -> Result<(), &'static str> {
        self.visit(at)?;
        self.values[at] = Some(value);
        Ok(())
    }
}

/// Reads [`FoundValues`] by the tokens of their pointers. A repeated name on the way is an error: JSON parsers disagree on
/// which value counts, and so may clients.
struct ValuesSeed<'r>([Option<&'r [String]>; 3]);

impl ValuesSeed<'_> {
    /// Takes a value whose name or position begins some of the pointers.
    fn take<'a>(
        &self,
        name: &str,
        value: &'a RawValue,
        found: &mut FoundValues<'a>,
    ) -> Result<(), &'static str> {
        let mut below = [None; 3];
        for (at, tokens) in self.0.iter().enumerate() {
            match tokens {
                Some([token]) if token == name => found.put(at, value)?,
                Some([token, rest @ ..]) if token == name => {
                    found.visit(at)?;
                    below[at] = Some(rest);
                }
                Some(_) | None => {}
            }
        }
        if below.iter().all(Option::is_none) || !value.get().starts_with(['{', '[']) {
            return Ok(());
        }
        let inner = parse(ValuesSeed(below), value.get()).ok_or(REPEATED)?;
        for (at, value) in inner.values.into_iter().enumerate().filter(|(at, _)| below[*at].is_some()) {
            found.values[at] = value;
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.0.iter().flatten().any(|tokens| tokens.first().is_some_and(|token| token == name))
    }
}

impl<'de> DeserializeSeed<'de> for ValuesSeed<'_> {
    type Value = FoundValues<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<FoundValues<'de>, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValuesSeed<'_> {
    type Value = FoundValues<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a job")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FoundValues<'de>, A::Error> {
        let mut found = FoundValues::default();
        while let Some(name) = map.next_key_seed(StringSeed)? {
            if self.wants(&name) {
                self.take(&name, map.next_value()?, &mut found).map_err(A::Error::custom)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FoundValues<'de>, A::Error> {
        let is_index = |token: &String| token.bytes().all(|byte| byte.is_ascii_digit());
        if !self.0.iter().flatten().any(|tokens| tokens.first().is_some_and(is_index)) {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        let mut found = FoundValues::default();
        let mut at = 0_usize;
        while let Some(value) = seq.next_element::<&RawValue>()? {
            self.take(&at.to_string(), value, &mut found).map_err(A::Error::custom)?;
            at += 1;
        }
        Ok(found)
    }
}

/// Reads a string, borrowed unless it has escapes.
struct StringSeed;

impl<'de> DeserializeSeed<'de> for StringSeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Cow<'de, str>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for StringSeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests;
