//! Any target: reading it never panics, and what is read as a wait is what others read there, too.
//!
//! The other reader is `form_urlencoded`, which takes everything for something. Where the gateway is certain, to the
//! last parameter or of what is wrong, the two must agree.

#![no_main]

use arbitrary::Arbitrary;
use clipgate::core::job::{JobId, JobSet, MAX_ID_BYTES};
use clipgate::core::query::{self, BadQuery, Query, WaitQuery};
use clipgate::core::route::{Form, Goal, Route};
use libfuzzer_sys::fuzz_target;

/// The most jobs that a request may name.
const MOST: usize = 6;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// A query as it stands in a target.
    Query { is_single: bool, query: &'a str },
    /// The ids of a poll, and the place of its goal on the ladder.
    Poll { goal: u8, ids: Vec<&'a str> },
}

fuzz_target!(|input: Input<'_>| {
    let route = Route::suno();
    match input {
        Input::Query { is_single, query } => {
            let form = if is_single { Form::Single } else { Form::Multi };
            read(&route, form, query);
        }
        Input::Poll { goal, ids } => write(&route, goal, &ids),
    }
});

fn read(route: &Route, form: Form, query: &str) {
    let path = match form {
        Form::Single => &route.single_path,
        Form::Multi => &route.multi_path,
    };
    let others = Others::read(route, form, query);
    match query::parse(route, path, Some(query), MOST) {
        Query::Wait(wait) => {
            assert_eq!(wait.form, form);
            assert!(wait.asked.iter().map(JobId::as_str).eq(&others.ids), "others read {others:?}");
            assert_eq!(others.unknown, 0, "others read {others:?}");
            match (wait.goal, &others.status[..]) {
                (Goal::Now, []) => {}
                (Goal::Rung(rung), [word]) => assert_eq!(route.ladder.rung(word), Some(rung)),
                other => panic!("others read {other:?}"),
            }
            is_possible(&wait);
            is_read_again(route, &wait);
        }
        Query::Other => {}
        Query::Bad(bad) => {
            let has = |what: &dyn Fn(&str) -> bool| others.ids.iter().any(|id| what(id));
            let is_so = match bad {
                BadQuery::NoId { .. } => others.ids.is_empty(),
                BadQuery::EmptyId { .. } => has(&str::is_empty),
                BadQuery::LongId { .. } => has(&|id| id.len() > MAX_ID_BYTES),
                BadQuery::NotUtf8 { .. } => has(&|id| id.contains(char::REPLACEMENT_CHARACTER)),
                BadQuery::TooManyIds { .. } => others.ids.len() > MOST,
                BadQuery::NotAskable { .. } => others.status.iter().any(|word| word == "error"),
                BadQuery::BrokenEscape { .. } | BadQuery::BrokenName => has_broken_escape(query),
            };
            assert!(is_so, "{bad:?}, others read {others:?}");
        }
    }
}

/// What others read in a query.
#[derive(Debug, Default)]
struct Others {
    ids: Vec<String>,
    status: Vec<String>,
    unknown: usize,
}

impl Others {
    fn read(route: &Route, form: Form, query: &str) -> Self {
        let mut others = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_id = match form {
                Form::Single => name == route.single_param,
                Form::Multi => name.strip_prefix(&route.multi_param).is_some_and(is_index),
            };
            if is_id {
                others.ids.push(value.into_owned());
            } else if name == route.status_param {
                others.status.push(value.into_owned());
            } else {
                others.unknown += 1;
            }
        }
        others
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

fn is_possible(wait: &WaitQuery) {
    let most = match wait.form {
        Form::Single => 1,
        Form::Multi => MOST,
    };
    assert!((1..=most).contains(&wait.asked.len()), "{wait:?}");
    assert_eq!(wait.jobs().len(), wait.asked.len(), "an id twice: {wait:?}");
    assert!(wait.asked.iter().all(|id| (1..=MAX_ID_BYTES).contains(&id.as_str().len())), "{wait:?}");
}

/// What a poll asks for a wait is read as the same wait, and written the same again.
fn is_read_again(route: &Route, wait: &WaitQuery) {
    let target = query::build_target(route, wait.form, &wait.jobs(), wait.goal);
    assert!(target.is_ascii(), "{target}");
    let (path, query) = target.split_once('?').expect("a poll has a query");
    let Query::Wait(again) = query::parse(route, path, Some(query), wait.asked.len()) else {
        panic!("{target} is no wait");
    };
    assert_eq!((again.form, again.goal, again.jobs()), (wait.form, wait.goal, wait.jobs()));
    assert_eq!(query::build_target(route, again.form, &again.jobs(), again.goal), target);
}

fn write(route: &Route, goal: u8, ids: &[&str]) {
    let askable: Vec<_> = route.ladder.rungs().filter(|&rung| route.ladder.is_askable(rung)).collect();
    let goal = askable.get(usize::from(goal)).map_or(Goal::Now, |&rung| Goal::Rung(rung));
    let jobs = JobSet::new(ids.iter().filter_map(|id| JobId::new(id).ok()));
    for form in [Form::Single, Form::Multi] {
        if !jobs.is_empty() && (form == Form::Multi || jobs.len() == 1) {
            is_read_again(route, &WaitQuery { form, asked: jobs.iter().cloned().collect(), goal });
        }
    }
}
