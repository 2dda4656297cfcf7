//! Parses any target, without a panic, and compares the result with that of a second parser.
//!
//! The second parser is `form_urlencoded`, which accepts every query. Where the gateway understands every parameter, or
//! reports an error, the two must agree.

#![no_main]

use arbitrary::Arbitrary;
use clipgate::core::job::{JobId, JobSet, RouteIndex};
use clipgate::core::query::{self, BadQuery, MAX_QUERY_ID_BYTES, Query, WaitQuery};
use clipgate::core::route::{
    Form, Goal, JsonPointer, Ladder, Lifetimes, PathTemplate, Route, Routes, RungSpec, StatusSource,
    SunoEndpoints,
};
use libfuzzer_sys::fuzz_target;

/// Maximum number of jobs in a request.
const MAX_JOBS: usize = 6;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// A query, not decoded.
    Query { is_single: bool, query: &'a str },
    /// Parts of a target for a route with variables in its path.
    Template { owner: &'a str, id: &'a str, query: Option<&'a str> },
    /// A job of that route: its id, a variable of its path, and a value of the parameter that belongs to its identity.
    TemplateJob { owner: &'a str, id: &'a str, value: Option<&'a str> },
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
        Input::Template { owner, id, query } => parse_template(owner, id, query),
        Input::TemplateJob { owner, id, value } => build_template(owner, id, value),
    }
});

/// Returns a route whose jobs have an id and another variable in the path, and a parameter that belongs to their identity.
fn template_route() -> Route {
    let rung = |name: &str, terminal| RungSpec {
        name: name.to_owned(),
        aliases: Vec::new(),
        terminal,
        askable: true,
    };
    Route {
        name: "template".to_owned(),
        path: PathTemplate::parse("/{owner}/requests/{id}/status").expect("a valid template"),
        id_param: None,
        params: vec!["logs".to_owned()],
        list: None,
        id: None,
        status: StatusSource::Body(JsonPointer::parse("/status").expect("a valid pointer")),
        error: None,
        ladder: Ladder::new(vec![rung("running", false), rung("done", true)]),
        hold: std::time::Duration::ZERO,
        wait_param: Some("until".to_owned()),
        hold_param: None,
        pace: std::time::Duration::from_secs(1),
        max_pace: std::time::Duration::from_secs(1),
        default_wait: std::time::Duration::ZERO,
        lifetimes: Lifetimes::default(),
        actions: vec![PathTemplate::parse("/{owner}/requests/{id}:cancel").expect("a valid template")],
        is_built_in: false,
    }
}

/// Parses a target. A job that it names has a canonical target, which names the same job.
fn parse_template(owner: &str, id: &str, query: Option<&str>) {
    let route = template_route();
    let routes = Routes::from(route.clone());
    let path = format!("/{owner}/requests/{id}/status");
    let _ = query::acted_on(&routes, &path, query);
    let _ = query::named(&routes, &path, query);
    if let Query::Wait(wait) = query::parse(&routes, &path, query, MAX_JOBS) {
        let [job] = &wait.asked[..] else { panic!("{wait:?}") };
        assert!(!matches!(job.as_str(), "" | "." | "..") && !job.as_str().contains(['/', '\\']), "{job:?}");
        check_template_target(&route, job);
        assert!(query::acted_on(&routes, &path, None).iter().any(|acted| acted.as_str() == job.as_str()));
    }
}

/// Builds the target of a job from decoded parts.
fn build_template(owner: &str, id: &str, value: Option<&str>) {
    let encode =
        |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
    let path = format!("/{}/requests/{}/status", encode(owner), encode(id));
    let query = value.map(|value| format!("logs={}", encode(value)));
    if let Query::Wait(wait) = query::parse(&template_route().into(), &path, query.as_deref(), MAX_JOBS) {
        assert_eq!(wait.asked[0].as_str(), id);
        check_template_target(&template_route(), &wait.asked[0]);
    }
}

fn check_template_target(route: &Route, job: &JobId) {
    let jobs = JobSet::new([job.clone()]);
    let target = query::build_target(route, Form::Single, &jobs, Goal::Now);
    assert!(target.is_ascii(), "{target}");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target.as_str(), None),
    };
    let Query::Wait(parsed) = query::parse(&route.clone().into(), path, query, 1) else {
        panic!("{target} does not parse as a wait");
    };
    assert_eq!(parsed.asked, [job.clone()], "{target}");
    assert_eq!(query::build_target(route, Form::Single, &parsed.jobs(), Goal::Now), target);
}

fn parse(route: &Route, form: Form, query: &str) {
    let endpoints = SunoEndpoints::default();
    let path = match form {
        Form::Single => &endpoints.single_path,
        Form::Multi => &endpoints.multi_path,
    };
    let second = SecondParser::parse(&endpoints, form, query);
    match query::parse(&route.clone().into(), path, Some(query), MAX_JOBS) {
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
    fn parse(endpoints: &SunoEndpoints, form: Form, query: &str) -> Self {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_id = match form {
                Form::Single => name == endpoints.single_param,
                Form::Multi => name.strip_prefix(&endpoints.multi_param).is_some_and(is_index),
            };
            if is_id {
                parsed.ids.push(value.into_owned());
            } else if name == endpoints.status_param {
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
    let Query::Wait(parsed) = query::parse(&route.clone().into(), path, Some(query), wait.asked.len()) else {
        panic!("{target} does not parse as a wait");
    };
    assert_eq!((parsed.form, parsed.goal, parsed.jobs()), (wait.form, wait.goal, wait.jobs()));
    assert_eq!(query::build_target(route, parsed.form, &parsed.jobs(), parsed.goal), target);
}

fn build(route: &Route, goal: u8, ids: &[&str]) {
    let askable: Vec<_> = route.ladder.rungs().filter(|&rung| route.ladder.is_askable(rung)).collect();
    let goal = askable.get(usize::from(goal)).map_or(Goal::Now, |&rung| Goal::Rung(rung));
    // The built-in route takes no longer ids.
    let ids = ids.iter().filter(|id| id.len() <= MAX_QUERY_ID_BYTES);
    let jobs = JobSet::new(ids.filter_map(|id| JobId::new(id).ok()));
    for form in [Form::Single, Form::Multi] {
        if !jobs.is_empty() && (form == Form::Multi || jobs.len() == 1) {
            let asked = jobs.iter().cloned().collect();
            check_round_trip(
                route,
                &WaitQuery { route: RouteIndex::default(), form, asked, goal, hold: None },
            );
        }
    }
}
