//! Splits any body, without a panic at any depth. The jobs are slices of the body, and join to a body that splits
//! again.

#![no_main]

use std::ops::Range;

use arbitrary::Arbitrary;
use bytes::Bytes;
use clipgate::core::job::{JobId, JobSet};
use clipgate::core::job_body::{self, JobSlice, ListShape, SplitBody};
use clipgate::core::route::{Form, Route};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Ids that an input may request.
const IDS: [&str; 4] = ["a", "b", "clip-1", "é\""];

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    is_single: bool,
    /// Requested ids: one bit for each of [`IDS`].
    requested: u8,
    /// Zero wraps the body in `depth` lists. Other values are the usual case, because deep bodies are slow.
    nesting: u8,
    depth: u16,
    outer: Outer,
    body: &'a [u8],
}

/// Body that the bytes of an input make.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Outer {
    /// The bytes themselves.
    Bytes,
    /// Jobs in this shape; each byte is one of [`MEMBERS`].
    Alone,
    List,
    Wrapped,
    Map,
}

/// Members of jobs. The empty one ends a job.
const MEMBERS: [&str; 16] = [
    "",
    "\"id\":\"a\"",
    "\"id\":\"b\"",
    "\"id\":\"clip-1\"",
    "\"id\":\"é\\\"\"",
    " \"\\u0069d\" : \"\\u0061\" ",
    "\"id\":null",
    "\"status\":\"queued\"",
    "\"status\":\"complete\"",
    "\"status\":\"error\"",
    "\"status\":\"odd\"",
    "\"status\":3",
    "\"x\":\"}],[{\"",
    "\"x\":{\"id\":\"b\",\"status\":\"error\"}",
    "\"\":1e9",
    "x",
];

impl Outer {
    fn make(self, bytes: &[u8]) -> Vec<u8> {
        let members: Vec<&str> =
            bytes.iter().map(|&byte| MEMBERS[usize::from(byte) % MEMBERS.len()]).collect();
        let jobs = members.split(|member| member.is_empty());
        let jobs: Vec<String> = jobs.map(|members| format!("{{{}}}", members.join(","))).collect();
        let map_entries = || jobs.iter().zip(IDS.iter().cycle()).map(|(job, id)| format!("{id:?}:{job}"));
        let text = match self {
            Outer::Bytes => return bytes.to_vec(),
            Outer::Alone => jobs.join("\n"),
            Outer::List => format!("[{}]", jobs.join(", ")),
            Outer::Wrapped => format!("{{\"clips\":[{}]}}", jobs.join(",")),
            Outer::Map => format!("{{{}}}", map_entries().collect::<Vec<_>>().join(",")),
        };
        text.into_bytes()
    }
}

fuzz_target!(|input: Input<'_>| {
    let route = Route::suno();
    let form = if input.is_single { Form::Single } else { Form::Multi };
    let ids = IDS.iter().enumerate().filter(|(bit, _)| input.requested & 1 << bit != 0).map(|(_, id)| id);
    let mut requested = JobSet::new(ids.map(|id| JobId::new(id).expect("a valid id")));
    if requested.is_empty() || input.is_single {
        requested = JobSet::new(requested.iter().next().cloned().or_else(|| JobId::new(IDS[0]).ok()));
    }
    let body = input.outer.make(input.body);
    if input.nesting == 0 {
        for body in nest(input.depth, &body) {
            // No round trip: that is slow, and tests no greater depth.
            let _ = job_body::split(&route, form, &requested, 200, &Bytes::from(body));
        }
    }
    check(&route, form, &requested, &Bytes::from(body));
});

/// Returns the text wrapped in lists, alone and as a member of a job.
fn nest(depth: u16, text: &[u8]) -> [Vec<u8>; 2] {
    let (open, close) = (b"[".repeat(depth.into()), b"]".repeat(depth.into()));
    let list = [&open, text, &close].concat();
    [[br#"{"id":"a","x":"#, &list[..], br#","status":"queued"}"#].concat(), list]
}

fn check(route: &Route, form: Form, requested: &JobSet, body: &Bytes) {
    let is_json =
        serde_json::from_slice::<IgnoredAny>(without_mark(body)).is_ok() && str::from_utf8(body).is_ok();
    match job_body::split(route, form, requested, 200, body) {
        SplitBody::Jobs { jobs, shape } => {
            assert!(is_json && shape.is_some() == (form == Form::Multi));
            assert!(jobs.iter().map(|job| &job.id).eq(requested), "{jobs:?}");
            let within = body.as_ptr_range();
            for job in &jobs {
                check_slice(job, &within);
                check_fields(route, job);
            }
            let shapes = shape.into_iter().chain([
                ListShape::Array,
                ListShape::Map,
                ListShape::Wrapped("clips".to_owned()),
                ListShape::Wrapped("a".to_owned()),
            ]);
            for shape in shapes {
                check_round_trip(route, requested, &jobs, shape);
            }
        }
        SplitBody::Unsplit => assert!(is_json),
        SplitBody::Invalid => assert!(!is_json),
    }
}

/// Returns the text without a byte order mark, which the gateway skips (RFC 8259 section 8.1).
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

fn check_slice(job: &JobSlice, within: &Range<*const u8>) {
    let slice = job.body.as_ptr_range();
    assert!(within.start <= slice.start && slice.end <= within.end, "a copy: {job:?}");
}

/// Compares id and rung with those that `serde_json` reads.
fn check_fields(route: &Route, job: &JobSlice) {
    // `serde_json` rejects numbers out of range, lone surrogates and deep values.
    let Ok(value) = serde_json::from_slice::<Value>(without_mark(&job.body)) else { return };
    assert!(value.get("id").is_none_or(|id| id == job.id.as_str()), "{job:?}");
    let rung = value.get("status").and_then(Value::as_str).and_then(|word| route.ladder.rung(word));
    assert_eq!(job.rung, rung, "{job:?}");
}

/// Joins the jobs: the body is JSON, and splits into the same jobs.
fn check_round_trip(route: &Route, requested: &JobSet, jobs: &[JobSlice], shape: ListShape) {
    let joined = job_body::join(&shape, jobs.iter().map(|job| (&job.id, &job.body)));
    assert!(serde_json::from_slice::<IgnoredAny>(&joined).is_ok(), "{joined:?}");
    let has_ids = jobs.iter().all(|job| {
        let value = serde_json::from_slice::<Value>(without_mark(&job.body));
        value.is_ok_and(|value| value.get("id").is_some())
    });
    match job_body::split(route, Form::Multi, requested, 200, &joined) {
        SplitBody::Jobs { jobs: split_jobs, shape: split_shape } => {
            assert_eq!(split_shape, Some(shape));
            for (job, split_job) in jobs.iter().zip(&split_jobs) {
                assert_eq!(
                    (&job.id, job.rung, without_mark(&job.body).trim_ascii()),
                    (&split_job.id, split_job.rung, &split_job.body[..])
                );
            }
        }
        // Jobs in a list need an id, jobs in a map do not.
        other => assert!(!has_ids && shape != ListShape::Map, "{other:?} of {joined:?}"),
    }
}
