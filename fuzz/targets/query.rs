//! Parses any target, without a panic, and compares the result with that of a second parser.
//!
//! The second parser is `form_urlencoded`, which accepts every query. Where the gateway understands every parameter, or
//! reports an error, the two must agree.

#![no_main]

use arbitrary::Arbitrary;
use clipgate::core::job::{JobId, JobSet};
use clipgate::core::query::{self, BadQuery, MAX_QUERY_ID_BYTES, Query, WaitQuery};
use clipgate::core::route::{Form, Goal, Route};
use libfuzzer_sys::fuzz_target;

/// Maximum number of jobs in a request.
const MAX_JOBS: usize = 6;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// A query, not decoded.
    Query { is_single: bool, query: &'a str },
    /// The ids of a poll, and the position of its goal on the ladder.
    Poll { goal: u8, ids: Vec<&'a str> },
}

fuzz_target!(|input: Input<'_>| {
    let route = Route::suno();
    match input {
        Input::Query { is_single, query } => {
            let form = if is_single { Form::Single } else { Form::Multi };
            parse(&route, form, query);
        }
        Input::Poll { goal, ids } => build(&route, goal, &ids),
    }
});

fn parse(route: &Route, form: Form, query: &str) {
    let path = match form {
        Form::Single => &route.single_path,
        Form::Multi => &route.multi_path,
    };
    let second = SecondParser::parse(route, form, query);
    match query::parse(route, path, Some(query), MAX_JOBS) {
        Query::Wait(wait) => {
            assert_eq!(wait.form, form);
            assert!(wait.asked.iter().map(JobId::as_str).eq(&second.ids), "the second parser has {second:?}");
            assert_eq!(second.unknown, 0, "the second parser has {second:?}");
            match (wait.goal, &second.status[..]) {
                (Goal::Now, []) => {}
                (Goal::Rung(rung), [word]) => assert_eq!(route.ladder.rung(word), Some(rung)),
                other => panic!("the second parser has {other:?}"),
            }
            check_bounds(&wait);
            check_round_trip(route, &wait);
        }
        Query::Other => {}
        Query::Bad(bad) => {
            let has = |is: &dyn Fn(&str) -> bool| second.ids.iter().any(|id| is(id));
            let is_true = match bad {
                BadQuery::NoId { .. } => second.ids.is_empty(),
                BadQuery::EmptyId { .. } => has(&str::is_empty),
                BadQuery::LongId { .. } => has(&|id| id.len() > MAX_QUERY_ID_BYTES),
                BadQuery::NotUtf8 { .. } => has(&|id| id.contains(char::REPLACEMENT_CHARACTER)),
                BadQuery::TooManyIds { .. } => second.ids.len() > MAX_JOBS,
                BadQuery::NotAskable { .. } => second.status.iter().any(|word| word == "error"),
                BadQuery::BrokenEscape { .. } | BadQuery::BrokenName => has_broken_escape(query),
            };
            assert!(is_true, "{bad:?}, but the second parser has {second:?}");
        }
    }
}

/// Result of the second parser.
#[derive(Debug, Default)]
struct SecondParser {
    ids: Vec<String>,
    status: Vec<String>,
    unknown: usize,
}

impl SecondParser {
    fn parse(route: &Route, form: Form, query: &str) -> Self {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_id = match form {
                Form::Single => name == route.single_param,
                Form::Multi => name.strip_prefix(&route.multi_param).is_some_and(is_index),
            };
            if is_id {
                parsed.ids.push(value.into_owned());
            } else if name == route.status_param {
                parsed.status.push(value.into_owned());
            } else {
                parsed.unknown += 1;
            }
        }
        parsed
    }
}

fn is_index(suffix: &str) -> bool {
    let inner = suffix.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    suffix.is_empty() || inner.is_some_and(|inner| inner.bytes().all(|byte| byte.is_ascii_digit()))
}

fn has_broken_escape(query: &str) -> bool {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    !query.split('%').skip(1).all(is_escape)
}

fn check_bounds(wait: &WaitQuery) {
    let max_jobs = match wait.form {
        Form::Single => 1,
        Form::Multi => MAX_JOBS,
    };
    assert!((1..=max_jobs).contains(&wait.asked.len()), "{wait:?}");
    assert_eq!(wait.jobs().len(), wait.asked.len(), "a repeated id: {wait:?}");
    assert!(wait.asked.iter().all(|id| (1..=MAX_QUERY_ID_BYTES).contains(&id.as_str().len())), "{wait:?}");
}

/// Builds the target of a poll for the wait. It parses to the same wait, and builds the same target again.
fn check_round_trip(route: &Route, wait: &WaitQuery) {
    let target = query::build_target(route, wait.form, &wait.jobs(), wait.goal);
    assert!(target.is_ascii(), "{target}");
    let (path, query) = target.split_once('?').expect("a poll has a query");
    let Query::Wait(parsed) = query::parse(route, path, Some(query), wait.asked.len()) else {
        panic!("{target} does not parse as a wait");
    };
    assert_eq!((parsed.form, parsed.goal, parsed.jobs()), (wait.form, wait.goal, wait.jobs()));
    assert_eq!(query::build_target(route, parsed.form, &parsed.jobs(), parsed.goal), target);
}

fn build(route: &Route, goal: u8, ids: &[&str]) {
    let askable: Vec<_> = route.ladder.rungs().filter(|&rung| route.ladder.is_askable(rung)).collect();
    let goal = askable.get(usize::from(goal)).map_or(Goal::Now, |&rung| Goal::Rung(rung));
    let jobs = JobSet::new(ids.iter().filter_map(|id| JobId::new(id).ok()));
    for form in [Form::Single, Form::Multi] {
        if !jobs.is_empty() && (form == Form::Multi || jobs.len() == 1) {
            check_round_trip(route, &WaitQuery { form, asked: jobs.iter().cloned().collect(), goal });
        }
    }
}
