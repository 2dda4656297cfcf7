//! Any answer: cutting it never panics, however deep it is, and jobs are slices of it that can be put together
//! again.

#![no_main]

use std::ops::Range;

use arbitrary::Arbitrary;
use bytes::Bytes;
use clipgate::core::job_body::{self, JobSlice, ListShape, SplitBody};
use clipgate::core::job::{JobId, JobSet};
use clipgate::core::route::{Form, Route};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

/// What may be asked for.
const IDS: [&str; 4] = ["a", "b", "clip-1", "é\""];

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    is_single: bool,
    /// Which of [`IDS`], a bit each.
    asked: u8,
    /// Zero, which is seldom: there are lists around it, so many, which is slow.
    is_deep: u8,
    depth: u16,
    outer: Outer,
    body: &'a [u8],
}

/// What the bytes of an input make.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Outer {
    /// Themselves.
    Bytes,
    /// Jobs, a member of one each, in this shape.
    Alone,
    List,
    Wrapped,
    Map,
}

/// The members of jobs. The empty one ends a job.
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
        let named = || jobs.iter().zip(IDS.iter().cycle()).map(|(job, id)| format!("{id:?}:{job}"));
        let text = match self {
            Outer::Bytes => return bytes.to_vec(),
            Outer::Alone => jobs.join("\n"),
            Outer::List => format!("[{}]", jobs.join(", ")),
            Outer::Wrapped => format!("{{\"clips\":[{}]}}", jobs.join(",")),
            Outer::Map => format!("{{{}}}", named().collect::<Vec<_>>().join(",")),
        };
        text.into_bytes()
    }
}

fuzz_target!(|input: Input<'_>| {
    let route = Route::suno();
    let form = if input.is_single { Form::Single } else { Form::Multi };
    let ids = IDS.iter().enumerate().filter(|(bit, _)| input.asked & 1 << bit != 0).map(|(_, id)| id);
    let mut asked = JobSet::new(ids.map(|id| JobId::new(id).expect("it has a length")));
    if asked.is_empty() || input.is_single {
        asked = JobSet::new(asked.iter().next().cloned().or_else(|| JobId::new(IDS[0]).ok()));
    }
    let body = input.outer.make(input.body);
    if input.is_deep == 0 {
        for body in deep(input.depth, &body) {
            // Not put together again, which is slow and no deeper.
            let _ = job_body::split(&route, form, &asked, &Bytes::from(body));
        }
    }
    check(&route, form, &asked, &Bytes::from(body));
});

/// The text with lists around it, alone and as a member of a job.
fn deep(depth: u16, text: &[u8]) -> [Vec<u8>; 2] {
    let (open, close) = (b"[".repeat(depth.into()), b"]".repeat(depth.into()));
    let list = [&open, text, &close].concat();
    [[br#"{"id":"a","x":"#, &list[..], br#","status":"queued"}"#].concat(), list]
}

fn check(route: &Route, form: Form, asked: &JobSet, body: &Bytes) {
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok() && str::from_utf8(body).is_ok();
    match job_body::split(route, form, asked, body) {
        SplitBody::Jobs { jobs, shape } => {
            assert!(is_json && shape.is_some() == (form == Form::Multi));
            assert!(jobs.iter().map(|cut| &cut.id).eq(asked), "{jobs:?}");
            let within = body.as_ptr_range();
            for cut in &jobs {
                is_slice(cut, &within);
                is_what_others_read(route, cut);
            }
            let shapes = shape.into_iter().chain([
                ListShape::Array,
                ListShape::Map,
                ListShape::Wrapped("clips".to_owned()),
                ListShape::Wrapped("a".to_owned()),
            ]);
            for shape in shapes {
                is_cut_again(route, asked, &jobs, shape);
            }
        }
        SplitBody::Unsplit => assert!(is_json),
        SplitBody::Invalid => assert!(!is_json),
    }
}

fn is_slice(cut: &JobSlice, within: &Range<*const u8>) {
    let own = cut.body.as_ptr_range();
    assert!(within.start <= own.start && own.end <= within.end, "a copy: {cut:?}");
}

/// Of a job that a plain reader can read.
fn is_what_others_read(route: &Route, cut: &JobSlice) {
    // It reads no number that is out of bounds, no half of a pair and nothing deep.
    let Ok(value) = serde_json::from_slice::<Value>(&cut.body) else { return };
    assert!(value.get("id").is_none_or(|id| id == cut.id.as_str()), "{cut:?}");
    let rung = value.get("status").and_then(Value::as_str).and_then(|word| route.ladder.rung(word));
    assert_eq!(cut.rung, rung, "{cut:?}");
}

/// Put together, the jobs are JSON, and cut again they are the same.
fn is_cut_again(route: &Route, asked: &JobSet, jobs: &[JobSlice], shape: ListShape) {
    let all = job_body::join(&shape, jobs.iter().map(|cut| (&cut.id, &cut.body)));
    assert!(serde_json::from_slice::<IgnoredAny>(&all).is_ok(), "{all:?}");
    let has_ids = jobs.iter().all(|cut| {
        let head = serde_json::from_slice::<Value>(&cut.body);
        head.is_ok_and(|head| head.get("id").is_some())
    });
    match job_body::split(route, Form::Multi, asked, &all) {
        SplitBody::Jobs { jobs: again, shape: again_in } => {
            assert_eq!(again_in, Some(shape));
            for (cut, again) in jobs.iter().zip(&again) {
                assert_eq!(
                    (&cut.id, cut.rung, cut.body.trim_ascii()),
                    (&again.id, again.rung, &again.body[..])
                );
            }
        }
        // A map's jobs need no ids of their own; a list's do.
        other => assert!(!has_ids && shape != ListShape::Map, "{other:?} of {all:?}"),
    }
}
