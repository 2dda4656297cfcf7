//! The words of `check` about routes and about the answer for one job.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::RETRY_AFTER;
use serde_json::Value;

use super::probe::Finding;
use crate::cli::job_client::message;
use crate::core::job::{JobId, JobSet, RouteIndex};
use crate::core::job_body::{self, SplitBody};
use crate::core::query::{self, Query};
use crate::core::route::{Form, JsonPointer, Ladder, Route, Routes, Rung, StatusSource};

/// Answers of an upstream that never holds take less time.
const SLOW: Duration = Duration::from_secs(5);

/// Returns one line about a route: its path, whether the upstream holds, its pace, and its states.
pub(super) fn route_line(route: &Route) -> String {
    let time = humantime::format_duration;
    let mut line = format!("{}: {}", route.name, route.path);
    if let Some(param) = &route.id_param {
        let _ = write!(line, "?{param}={{id}}");
    }
    let _ = match (route.never_holds(), route.pace == route.max_pace) {
        (false, _) => write!(line, ", holds for {}", time(route.hold)),
        (true, true) => write!(line, ", never holds, polled every {}", time(route.pace)),
        (true, false) => {
            write!(line, ", never holds, polled every {} to {}", time(route.pace), time(route.max_pace))
        }
    };
    let ladder = &route.ladder;
    let names = |is: fn(&Ladder, Rung) -> bool| {
        let rungs = ladder.rungs().filter(|rung| is(ladder, *rung));
        rungs.map(|rung| ladder.name(rung)).collect::<Vec<_>>().join(", ")
    };
    let _ = write!(line, "; {}", names(|ladder, rung| !ladder.is_terminal(rung)));
    let _ =
        write!(line, ", then {}", names(|ladder, rung| ladder.is_terminal(rung) && ladder.is_askable(rung)));
    if ladder.rungs().any(|rung| ladder.is_failure(rung)) {
        let _ = write!(line, " or {}", names(Ladder::is_failure));
    }
    line
}

/// Returns the position of the route with this name; without a name that of the first route.
pub(super) fn route_index(routes: &Routes, name: Option<&str>) -> Result<RouteIndex, String> {
    let Some(name) = name else { return Ok(RouteIndex::default()) };
    let found = routes.iter().find(|(_, route)| route.name == name).map(|(index, _)| index);
    found.ok_or_else(|| {
        let names: Vec<&str> = routes.iter().map(|(_, route)| route.name.as_str()).collect();
        format!("--route: no route has this name. The configuration has {}.", names.join(", "))
    })
}

/// Returns the job that `--id` names: an id, or the path and query of the GET that reads the job.
pub(super) fn named_job(routes: &Routes, index: RouteIndex, text: &str) -> Result<JobId, String> {
    let route = routes.get(index);
    if text.starts_with('/') {
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        return match query::parse(routes, path, query, 1) {
            Query::Wait(wait) if wait.route == index && wait.asked.len() == 1 => Ok(wait.asked[0].clone()),
            Query::Wait(_) | Query::Other => {
                let query = route.id_param.as_ref().map(|param| format!("?{param}=ID")).unwrap_or_default();
                Err(format!(
                    "--id: the route {} does not take this path. Use {}{query}.",
                    route.name, route.path
                ))
            }
            Query::Bad(error) => Err(format!("--id: {error}")),
        };
    }
    if route.path.variables().any(|name| name != "id") {
        return Err(format!(
            "--id: an id alone does not name a job of the route {}. Use the whole path, {} with your values.",
            route.name, route.path
        ));
    }
    JobId::with_rest(index, text, "").map_err(|error| format!("--id: the id {error}"))
}

/// Describes the answer for a job, as the configuration reads it.
pub(super) fn describe(route: &Route, id: &JobId, response: &Response<Bytes>, elapsed: Duration) -> Finding {
    let status = response.status();
    let seconds = format!("{:.1} s", elapsed.as_secs_f64());
    if !status.is_success() {
        let reason = message(status, response.body());
        return Finding::error("job", format_args!("{} after {seconds}: {reason}", route.name));
    }
    let problem = |text: String| {
        Finding::error(
            "job",
            format_args!("{}: HTTP {} after {seconds}, but {text}", route.name, status.as_u16()),
        )
    };
    let word = match &route.status {
        StatusSource::HttpStatus => status.as_str().to_owned(),
        StatusSource::Body(pointer) => {
            let Ok(body) = serde_json::from_slice::<Value>(response.body()) else {
                return problem("the body is not JSON. Check path, or use status = \":code\".".to_owned());
            };
            if let Some(pointer) = &route.id
                && let Err(text) = check_id(&body, pointer, id)
            {
                return problem(text);
            }
            word_of(find(&body, pointer))
        }
    };
    let place = match &route.status {
        StatusSource::HttpStatus => "the HTTP status".to_owned(),
        StatusSource::Body(pointer) => pointer_text(pointer),
    };
    let jobs = JobSet::new([id.clone()]);
    let job = match job_body::split(route, Form::Single, &jobs, status.as_u16(), response.body()) {
        SplitBody::Jobs { mut jobs, .. } => jobs.pop(),
        SplitBody::Unsplit | SplitBody::Invalid => None,
    };
    let Some(job) = job else { return problem("the body is not that of one job.".to_owned()) };
    let Some(rung) = job.rung else {
        return problem(format!(
            "the word {word:?} at {place} is in no state of the route. Add it to pending, succeeded or failed, or correct \
             status."
        ));
    };
    let ladder = &route.ladder;
    let kind = match (ladder.is_terminal(rung), ladder.is_failure(rung)) {
        (false, _) => "unfinished",
        (true, false) => "succeeded",
        (true, true) => "failed",
    };
    let id_text = match &route.id {
        Some(pointer) => format!("id {:?} at {}", id.as_str(), pointer_text(pointer)),
        None => "no id read".to_owned(),
    };
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after =
        retry_after.map_or("no Retry-After".to_owned(), |value| format!("Retry-After: {value}"));
    let text = format!(
        "{}: HTTP {} after {seconds}, {id_text}, word {word:?} at {place} is state {:?} ({kind}), {retry_after}",
        route.name,
        status.as_u16(),
        ladder.name(rung)
    );
    if route.never_holds() && elapsed > SLOW {
        return Finding::warning(
            "job",
            format_args!("{text}. The upstream may hold requests: then set hold to its longest time."),
        );
    }
    Finding::good("job", text)
}

fn check_id(body: &Value, pointer: &JsonPointer, id: &JobId) -> Result<(), String> {
    let place = pointer_text(pointer);
    let found = match find(body, pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(number @ Value::Number(_)) => number.to_string(),
        Some(_) => return Err(format!("the value at {place} is not an id. Correct id.")),
        None => return Err(format!("the body has nothing at {place}. Correct id, or set it to \"\".")),
    };
    if found == id.as_str() {
        return Ok(());
    }
    Err(format!("the id at {place} is {found:?}, not {:?}. Correct id, or set it to \"\".", id.as_str()))
}

fn find<'a>(body: &'a Value, pointer: &JsonPointer) -> Option<&'a Value> {
    pointer.tokens().iter().try_fold(body, |value, token| match value {
        Value::Object(members) => members.get(token),
        Value::Array(elements) => elements.get(token.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

/// Returns the word of a state, as the gateway reads it.
fn word_of(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn pointer_text(pointer: &JsonPointer) -> String {
    pointer.tokens().iter().map(|token| format!("/{}", token.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::probe::Severity;
    use crate::config::Config;

    fn routes() -> Routes {
        let value = "[{ preset = \"fal\" }, { preset = \"replicate\" }, { preset = \"bfl\" }, { preset = \"apify\" }]";
        let env = [("CLIPGATE__ROUTES".to_owned(), value.to_owned())];
        Config::load(None, env).unwrap().routes()
    }

    #[test]
    fn each_route_has_one_line() {
        let lines: Vec<String> = routes().iter().map(|(_, route)| route_line(route)).collect();
        assert_eq!(
            lines,
            [
                "fal: /{owner}/{app}/requests/{id}/status, never holds, polled every 500ms to 2s; IN_QUEUE, IN_PROGRESS, \
                 then COMPLETED or FAILED",
                "replicate: /v1/predictions/{id}, never holds, polled every 1s to 5s; starting, processing, then \
                 succeeded or failed",
                "bfl: /v1/get_result?id={id}, never holds, polled every 1s to 3s; Pending, then Ready or Error",
                "apify: /v2/actor-runs/{id}, holds for 1m; READY, then SUCCEEDED or FAILED",
            ]
        );
        assert_eq!(
            route_line(&Route::suno()),
            "suno: /v2/generate/audio/suno-ai/clip?clip_id={id}, holds for 2m; submitted, queued, streaming, then \
             completed or error"
        );
    }

    #[test]
    fn a_job_is_named_by_its_id_or_by_its_whole_path() {
        let routes = routes();
        let index = |name: &str| route_index(&routes, Some(name)).unwrap();
        let job = |name: &str, text| named_job(&routes, index(name), text);
        assert_eq!(job("replicate", "a").unwrap().as_str(), "a");
        let fal = job("fal", "/fal-ai/flux/requests/a/status?logs=1").unwrap();
        assert_eq!((fal.as_str(), fal.rest(), fal.route()), ("a", "fal-ai/flux?logs=1", index("fal")));
        assert!(
            job("fal", "a").unwrap_err().contains("Use the whole path, /{owner}/{app}/requests/{id}/status")
        );
        assert!(job("bfl", "/v1/predictions/a").unwrap_err().contains("does not take this path"));
        assert!(job("bfl", "/v1/get_result").unwrap_err().contains("Use /v1/get_result?id=ID."));
        let error = route_index(&routes, Some("x")).unwrap_err();
        assert!(error.contains("The configuration has fal, replicate, bfl, apify."), "{error}");
    }

    #[test]
    fn an_answer_is_described_in_plain_words() {
        let routes = routes();
        let replicate = routes.get(RouteIndex(1));
        let id = JobId::with_rest(RouteIndex(1), "a", "").unwrap();
        // (HTTP status, body, severity, part of the message)
        let rows = [
            (
                200,
                r#"{"id":"a","status":"processing"}"#,
                Severity::Good,
                "replicate: HTTP 200 after 0.1 s, id \"a\" at /id, word \"processing\" at /status is state \
                 \"processing\" (unfinished), Retry-After: 7",
            ),
            (
                200,
                r#"{"id":"a","status":"canceled"}"#,
                Severity::Good,
                "word \"canceled\" at /status is state \"failed\" (failed)",
            ),
            (
                200,
                r#"{"id":"a","status":"odd"}"#,
                Severity::Error,
                "the word \"odd\" at /status is in no state of the route",
            ),
            (200, r#"{"id":"b","status":"starting"}"#, Severity::Error, "the id at /id is \"b\", not \"a\""),
            (200, r#"{"status":"starting"}"#, Severity::Error, "the body has nothing at /id"),
            (200, "<html>", Severity::Error, "the body is not JSON"),
            (404, r#"{"title":"Not here"}"#, Severity::Error, "404 Not Found: Not here"),
        ];
        for (status, body, severity, expected) in rows {
            let response = Response::builder().status(status).header(RETRY_AFTER, "7");
            let response = response.body(Bytes::from_static(body.as_bytes())).unwrap();
            let finding = describe(replicate, &id, &response, Duration::from_millis(80));
            assert_eq!((finding.subject, finding.severity), ("job", severity), "{}", finding.message);
            assert!(finding.message.contains(expected), "{}", finding.message);
        }
        let response = Response::new(Bytes::from_static(br#"{"id":"a","status":"starting"}"#));
        let slow = describe(replicate, &id, &response, Duration::from_secs(9));
        assert!(
            slow.severity == Severity::Warning && slow.message.contains("may hold requests"),
            "{}",
            slow.message
        );
    }
}
