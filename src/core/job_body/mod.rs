//! Upstream answers cut into jobs by id, and put together again byte for byte.
//!
//! ```text
//!               ┌ Jobs    each job's own bytes, a slice of the answer's
//! body ─ slice ─┤ Whole    JSON, but not just the jobs asked for: to be passed on as it came, not kept
//!               └ Garbled  no JSON: no answer
//!
//! jobs ─ assemble ─► body   in the order asked for, in the outer shape that the upstream used
//! ```
//!
//! Jobs are told by id, never by place. No body is built anew from values: what a client gets of a job are the
//! bytes that came. Of the JSON only the outer shape and each job's id and status are read; what lies deeper is
//! walked over without recursion, however deep it is. Knows nothing of HTTP, and keeps no state.

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::core::job::{JobId, JobSet};
use crate::core::route::{Form, Route, Rung};

/// One job of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSlice {
    /// Which job.
    pub id: JobId,
    /// Where it stands; `None` for a status word that is on no ladder, for a status that is no word and for none.
    pub rung: Option<Rung>,
    /// Its own bytes, a slice of the answer's.
    pub body: Bytes,
}

/// The longest name that a list may be wrapped in: the shape of each key's lists is remembered. An answer with a longer
/// one is passed on whole.
pub const MAX_NAME_BYTES: usize = 128;

/// How an answer with several jobs holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListShape {
    /// `[job, …]`
    #[default]
    Array,
    /// `{"NAME": [job, …]}`, with the member's name, which has [`MAX_NAME_BYTES`] at most.
    Wrapped(String),
    /// `{"ID": job, …}`
    Map,
}

/// What an answer is to those who wait on its jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitBody {
    /// Exactly the jobs asked for, each once.
    Jobs {
        /// The jobs, in the order of the set.
        jobs: Vec<JobSlice>,
        /// What held them; `None` for the answer with one job, which is the job itself.
        shape: Option<ListShape>,
    },
    /// JSON, but something else.
    Unsplit,
    /// No JSON.
    Invalid,
}

/// Cuts the body of a 2xx that was asked for these jobs.
pub fn split(route: &Route, form: Form, asked: &JobSet, body: &Bytes) -> SplitBody {
    let Ok(text) = str::from_utf8(body) else { return SplitBody::Invalid };
    // RFC 8259 §8.1 lets a parser skip a byte order mark. A single job keeps it: its body is passed on as it came.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let cutter = Splitter { route, asked, body };
    let sliced = match form {
        Form::Single => cutter.single(text),
        Form::Multi => cutter.multi(text),
    };
    match sliced {
        Some(sliced) => sliced,
        None if serde_json::from_str::<IgnoredAny>(text).is_ok() => SplitBody::Unsplit,
        None => SplitBody::Invalid,
    }
}

/// An answer with several jobs: these, in this order, in this shape.
pub fn join<'a>(shape: &ListShape, jobs: impl IntoIterator<Item = (&'a JobId, &'a Bytes)>) -> Bytes {
    let mut out = BytesMut::new();
    match shape {
        ListShape::Array => out.put_u8(b'['),
        ListShape::Wrapped(name) => {
            out.put_u8(b'{');
            put_text(&mut out, name);
            out.put_slice(b":[");
        }
        ListShape::Map => out.put_u8(b'{'),
    }
    for (place, (id, body)) in jobs.into_iter().enumerate() {
        if place > 0 {
            out.put_u8(b',');
        }
        match shape {
            ListShape::Array | ListShape::Wrapped(_) => {}
            ListShape::Map => {
                put_text(&mut out, id.as_str());
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

fn put_text(out: &mut BytesMut, text: &str) {
    serde_json::to_writer(out.writer(), text).expect("a text is JSON, and memory takes all bytes");
}

/// Cuts one answer. `None` where it cannot be cut, JSON or not.
struct Splitter<'a> {
    route: &'a Route,
    asked: &'a JobSet,
    body: &'a Bytes,
}

impl<'a> Splitter<'a> {
    fn single(&self, text: &'a str) -> Option<SplitBody> {
        let head = self.head(text)?;
        let mut asked = self.asked.iter();
        let id = asked.next().filter(|id| head.id.as_deref() == Some(id.as_str()))?;
        if asked.next().is_some() {
            return None;
        }
        let cut = JobSlice { id: id.clone(), rung: head.rung, body: self.body.clone() };
        Some(SplitBody::Jobs { jobs: vec![cut], shape: None })
    }

    /// A wrapped list and a map by id cannot be mistaken for each other, whatever the ids: the values of the one
    /// are a list, those of the other are objects.
    fn multi(&self, text: &'a str) -> Option<SplitBody> {
        let (jobs, shape) = match self.outer(text)? {
            Outer::List(items) => (self.list(&items)?, ListShape::Array),
            Outer::Object(members) => match members.as_slice() {
                [(name, value)] if value.get().starts_with('[') && name.len() <= MAX_NAME_BYTES => {
                    let Outer::List(items) = self.outer(value.get())? else { return None };
                    (self.list(&items)?, ListShape::Wrapped(name.clone().into_owned()))
                }
                _ => (self.map(&members)?, ListShape::Map),
            },
        };
        Some(SplitBody::Jobs { jobs, shape: Some(shape) })
    }

    fn list(&self, items: &[&'a RawValue]) -> Option<Vec<JobSlice>> {
        self.cut(items.iter().map(|item| {
            let head = self.head(item.get())?;
            Some((head.id?, head.rung, *item))
        }))
    }

    fn map(&self, members: &[(Cow<'a, str>, &'a RawValue)]) -> Option<Vec<JobSlice>> {
        self.cut(members.iter().map(|(key, value)| {
            let head = self.head(value.get())?;
            head.id.is_none_or(|id| id == *key).then(|| (key.clone(), head.rung, *value))
        }))
    }

    /// The jobs, if they are exactly those asked for.
    fn cut(
        &self,
        found: impl Iterator<Item = Option<(Cow<'a, str>, Option<Rung>, &'a RawValue)>>,
    ) -> Option<Vec<JobSlice>> {
        let mut places: Vec<Option<JobSlice>> = vec![None; self.asked.len()];
        for job in found {
            let (id, rung, raw) = job?;
            let asked = self.asked.iter().as_slice();
            let place = asked.binary_search_by(|asked| asked.as_str().cmp(&id)).ok()?;
            let body = self.body.slice_ref(raw.get().as_bytes());
            if places[place].replace(JobSlice { id: asked[place].clone(), rung, body }).is_some() {
                return None;
            }
        }
        places.into_iter().collect::<Option<Vec<_>>>().filter(|jobs| !jobs.is_empty())
    }

    fn outer(&self, text: &'a str) -> Option<Outer<'a>> {
        parse(OuterSeed { most: self.asked.len() }, text)
    }

    fn head(&self, text: &'a str) -> Option<Head<'a>> {
        parse(HeadSeed { route: self.route }, text)
    }
}

fn parse<'a, S: DeserializeSeed<'a>>(seed: S, text: &'a str) -> Option<S::Value> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(value)
}

/// What holds the jobs, its items not yet looked at.
enum Outer<'a> {
    List(Vec<&'a RawValue>),
    Object(Vec<(Cow<'a, str>, &'a RawValue)>),
}

/// Reads an [`Outer`] and gives up after `most` items, so that what is kept is bounded.
struct OuterSeed {
    most: usize,
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
        write!(f, "at most {} clips", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Outer<'de>, A::Error> {
        let mut items = Vec::with_capacity(self.most);
        while let Some(item) = seq.next_element()? {
            if items.len() == self.most {
                return Err(A::Error::invalid_length(items.len() + 1, &self));
            }
            items.push(item);
        }
        Ok(Outer::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outer<'de>, A::Error> {
        let mut members = Vec::with_capacity(self.most);
        while let Some(name) = map.next_key_seed(TextSeed)? {
            if members.len() == self.most {
                return Err(A::Error::invalid_length(members.len() + 1, &self));
            }
            members.push((name, map.next_value()?));
        }
        Ok(Outer::Object(members))
    }
}

/// What is read of a job.
struct Head<'a> {
    id: Option<Cow<'a, str>>,
    rung: Option<Rung>,
}

/// Reads a [`Head`]. An id that is no text is an error, and so is either member given twice: which one counts is
/// the reader's choice, and not every client's is the same.
struct HeadSeed<'r> {
    route: &'r Route,
}

impl<'de> DeserializeSeed<'de> for HeadSeed<'_> {
    type Value = Head<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Head<'de>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeadSeed<'_> {
    type Value = Head<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a clip")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Head<'de>, A::Error> {
        let mut id = None;
        let mut status: Option<&RawValue> = None;
        while let Some(name) = map.next_key_seed(TextSeed)? {
            if name == self.route.id_field {
                if id.replace(map.next_value_seed(TextSeed)?).is_some() {
                    return Err(A::Error::custom("two ids"));
                }
            } else if name == self.route.status_field {
                if status.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom("two statuses"));
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        let word = status.and_then(|status| parse(TextSeed, status.get()));
        Ok(Head { id, rung: word.and_then(|word| self.route.ladder.rung(&word)) })
    }
}

/// Reads a text, borrowed unless it has escapes.
struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Cow<'de, str>, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
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
