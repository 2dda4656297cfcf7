//! Checks between the keys of a route, and between routes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::keys::RouteBuilder;
use super::{ConfiguredRoute, RouteTable};
use crate::config::error::{ConfigError, Source};
use crate::config::parse::quoted;
use crate::config::value::{LocatedValue, ValueReader};
use crate::core::route::{PathTemplate, StatusSource};

/// Recorder of a route's errors. An error between keys is recorded only if none of them has an error of its own.
pub(super) struct RouteErrors<'a> {
    route_key: &'a str,
    start: &'a Source,
    own: &'a BTreeMap<String, LocatedValue>,
    invalid: Vec<String>,
    errors: &'a mut Vec<ConfigError>,
}

impl<'a> RouteErrors<'a> {
    /// Creates the recorder. The reader's errors from `errors_before` on are those of the route's keys.
    pub(super) fn new(
        own: &'a BTreeMap<String, LocatedValue>,
        reader: &'a mut ValueReader<'_>,
        errors_before: usize,
    ) -> Self {
        let name = |error: &ConfigError| error.key.split(' ').nth(2).map(str::to_owned);
        let invalid = reader.errors[errors_before..].iter().filter_map(name).collect();
        Self {
            route_key: &reader.key,
            start: &reader.value.source,
            own,
            invalid,
            errors: &mut *reader.errors,
        }
    }

    fn is_invalid(&self, key: &str) -> bool {
        self.invalid.iter().any(|invalid| invalid == key)
    }

    /// Records an error between these keys, at the first of them that the route sets itself.
    fn push(&mut self, keys: &[&str], problem: impl Into<String>, hint: impl Into<String>) {
        if keys.iter().any(|key| self.is_invalid(key)) {
            return;
        }
        let set = keys.iter().find_map(|key| Some((*key, &self.own.get(*key)?.source)));
        let (key, source) = match set {
            Some((key, source)) => (format!("{} {key}", self.route_key), source),
            None => (self.route_key.to_owned(), self.start),
        };
        let (problem, hint) = (problem.into(), hint.into());
        self.errors.push(ConfigError { source: source.clone(), key, problem, hint });
    }
}

pub(super) fn check_route(route: &RouteBuilder, table: &RouteTable<'_>, errors: &mut RouteErrors<'_>) {
    // The keys of an unknown preset are unknown too.
    if !errors.is_invalid("preset") {
        let examples = [
            ("name", "\"jobs\""),
            ("path", "\"/v1/jobs/{id}\""),
            ("pending", "[\"waiting\", \"running\"]"),
            ("succeeded", "[\"done\"]"),
        ];
        for (key, example) in examples.into_iter().filter(|(key, _)| !table.contains_key(key)) {
            errors.push(&[], format!("{key} is missing"), format!("Add {key} = {example} to this route."));
        }
    }
    check_paths(route, errors);
    check_params(route, errors);
    check_list(route, errors);
    check_states(route, table, errors);
    check_code(route, table, errors);
    check_times(route, table, errors);
}

fn check_paths(route: &RouteBuilder, errors: &mut RouteErrors<'_>) {
    let Some(path) = &route.path else { return };
    match (&route.id_param, path.has_id()) {
        (None, false) => errors.push(
            &["path", "id_param"],
            format!("the route has no id: {path} has no {{id}}, and id_param is not set"),
            "Write {id} for the segment with the id, or set id_param to the query parameter with the id.",
        ),
        (Some(param), true) => errors.push(
            &["id_param", "path"],
            format!("the route has two ids: {{id}} in {path}, and the parameter {}", quoted(param)),
            "Remove id_param, or {id} from path.",
        ),
        (Some(_), false) | (None, true) => {}
    }
    if path.has_verb() {
        errors.push(
            &["path"],
            format!("a variable of {path} is followed by a verb"),
            "Only paths in `actions` may end with a verb such as \":cancel\".",
        );
    }
    for action in &route.actions {
        let missing =
            path.variables().chain(["id"]).find(|name| !action.variables().any(|other| other == *name));
        if let Some(name) = missing {
            errors.push(
                &["actions", "path"],
                format!("the action {action} has no {{{name}}}, so it does not say which job it changes"),
                format!("Write {{{name}}} for its segment, or remove the action."),
            );
        }
    }
}

fn check_params(route: &RouteBuilder, errors: &mut RouteErrors<'_>) {
    let single = [
        ("id_param", route.id_param.as_ref()),
        ("wait_param", route.wait_param.as_ref()),
        ("hold_param", route.hold_param.as_ref()),
    ];
    let list = route.list.as_ref().and_then(|list| list.param.as_ref());
    let single = single.into_iter().filter_map(|(key, param)| Some((key, param?)));
    let names = single.chain(list.map(|param| ("list", param)));
    let names: Vec<(&str, &String)> =
        names.chain(route.params.iter().map(|param| ("params", param))).collect();
    for (n, (key, name)) in names.iter().enumerate() {
        // Two endpoints may name their ids alike.
        let are_ids = |other: &str| *key == "list" && other == "id_param";
        let earlier = names[..n].iter().find(|(other, earlier)| earlier == name && !are_ids(other));
        if let Some((other, _)) = earlier {
            let problem = match key == other {
                true => format!("{key} has the parameter {} twice", quoted(name)),
                false => format!("the parameter {} is named twice: in {other} and in {key}", quoted(name)),
            };
            errors.push(&[key, other], problem, "Give each meaning a parameter of its own.");
        }
    }
}

fn check_list(route: &RouteBuilder, errors: &mut RouteErrors<'_>) {
    let Some(list) = &route.list else { return };
    if let Some(path) = list.path.as_ref().filter(|path| path.variables().next().is_some()) {
        errors.push(
            &["list"],
            format!("the path of the list has a variable: {path}"),
            "Use a path without variables: its ids are in the query.",
        );
    }
    if let Some(name) = route.path.iter().flat_map(PathTemplate::variables).find(|name| *name != "id") {
        errors.push(
            &["list", "path"],
            format!("a list cannot say {{{name}}} of path for each of its jobs"),
            "Remove the list.",
        );
    }
    if route.id.is_none() && route.status != StatusSource::HttpStatus {
        errors.push(
            &["list", "id"],
            "the jobs of a list are matched by the id in the body, but id is \"\"",
            "Set id to the place of the id, or remove the list.",
        );
    }
    if let (Some(path), Some(list)) = (&route.path, &list.path)
        && let Some(both) = path.overlap(list)
    {
        errors.push(
            &["list", "path"],
            format!("path and the path of the list both take {both}"),
            "Use the upstream's path for several jobs, or remove the list.",
        );
    }
}

fn check_states(route: &RouteBuilder, table: &RouteTable<'_>, errors: &mut RouteErrors<'_>) {
    for (key, is_empty) in [("pending", route.pending.is_empty()), ("succeeded", route.succeeded.is_empty())]
    {
        if is_empty && table.contains_key(key) {
            errors.push(&[key], format!("{key} has no words"), "Add the upstream's words for this state.");
        }
    }
    let pending = route.pending.iter().map(|words| ("pending", words));
    let states: Vec<(&str, &Vec<String>)> =
        pending.chain([("succeeded", &route.succeeded), ("failed", &route.failed)]).collect();
    let mut seen: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (n, (key, words)) in states.iter().enumerate() {
        if words.first().is_some_and(String::is_empty) {
            errors.push(
                &[key],
                "the first word of a state is its name, but it is empty",
                "Put a name before it, as in [\"running\", \"\"].",
            );
        }
        for word in *words {
            match seen.insert(word, (n, key)) {
                Some((earlier, other)) if earlier != n => errors.push(
                    &[key, other],
                    format!("the word {} is in two states, of {other} and of {key}", quoted(word)),
                    "Keep it in one of them.",
                ),
                Some(_) => errors.push(
                    &[key],
                    format!("the word {} is twice in a state of {key}", quoted(word)),
                    "Remove one of them.",
                ),
                None => {}
            }
        }
    }
    if route.error.is_some() && route.failed.is_empty() {
        errors.push(
            &["error", "failed"],
            "error is set, but no state stands for a failed job",
            "Set failed to a word for it, such as [\"failed\"]. The upstream need not use this word.",
        );
    }
}

/// Checks a route whose states are HTTP statuses.
fn check_code(route: &RouteBuilder, table: &RouteTable<'_>, errors: &mut RouteErrors<'_>) {
    if route.status != StatusSource::HttpStatus {
        return;
    }
    let readers =
        [("id", route.id.is_some()), ("error", route.error.is_some()), ("list", route.list.is_some())];
    for (key, reads_body) in readers {
        if reads_body {
            errors.push(
                &[key, "status"],
                format!("{key} reads the body, but with status = \":code\" the body can be anything"),
                if key == "id" {
                    "Remove id, or set it to \"\"."
                } else {
                    "Remove it, or use a state in the body."
                },
            );
        }
    }
    let is_code =
        |word: &String| word.len() == 3 && word.starts_with('2') && word.bytes().all(|b| b.is_ascii_digit());
    let has_code = route.pending.iter().flatten().chain(&route.succeeded).any(is_code);
    if !has_code && table.contains_key("pending") && table.contains_key("succeeded") {
        errors.push(
            &["status", "pending", "succeeded"],
            "the HTTP status is the state, but no word is a successful HTTP status",
            "Add the statuses to the words, as in pending = [[\"running\", \"202\"]] and succeeded = [\"done\", \"200\"].",
        );
    }
}

fn check_times(route: &RouteBuilder, table: &RouteTable<'_>, errors: &mut RouteErrors<'_>) {
    let time = humantime::format_duration;
    if !route.hold.is_zero() {
        for key in ["pace", "max_pace"].into_iter().filter(|key| table.contains_key(key)) {
            errors.push(
                &[key, "hold"],
                format!("{key} is set, but the upstream holds requests for {}", time(route.hold)),
                format!("Remove {key}, or hold if the upstream answers at once."),
            );
        }
        if !route.default_wait.is_zero() {
            errors.push(
                &["default_wait", "hold"],
                format!("default_wait is set, but the upstream holds requests for {}", time(route.hold)),
                "Remove default_wait: it is for upstreams that answer at once.",
            );
        }
    } else if route.hold_param.is_some() {
        errors.push(
            &["hold_param", "hold"],
            "hold_param is set, but hold is 0s: the upstream never holds a request",
            "Set hold to the longest time that the upstream accepts, or remove hold_param.",
        );
    }
    if let Some(max_pace) = route.max_pace.filter(|max_pace| *max_pace < route.pace) {
        errors.push(
            &["max_pace", "pace"],
            format!("max_pace ({}) is shorter than pace ({})", time(max_pace), time(route.pace)),
            "Set max_pace to at least pace.",
        );
    }
    if route.hold_param.is_some() && route.hold > Duration::ZERO && route.hold < Duration::from_secs(1) {
        errors.push(
            &["hold", "hold_param"],
            format!("hold is {}, but hold_param has whole seconds", time(route.hold)),
            "Set hold to at least 1s.",
        );
    }
}

/// Checks the name and the paths of a route against those of the earlier routes.
pub(super) fn check_against(route: &RouteBuilder, earlier: &[ConfiguredRoute], errors: &mut RouteErrors<'_>) {
    for other in earlier {
        if route.name.is_some() && route.name == other.name {
            errors.push(
                &["name", "preset"],
                format!("{} has the same name", other.key),
                "Give each route a different name.",
            );
        }
        let title = match &other.name {
            Some(name) => format!("{} ({name})", other.key),
            None => other.key.clone(),
        };
        let own_paths = route.paths();
        let overlaps =
            own_paths.iter().flat_map(|path| other.paths.iter().map(move |other| path.overlap(other)));
        if let Some(both) = overlaps.flatten().next() {
            errors.push(
                &["path", "list", "preset"],
                format!("the path {both} belongs to this route and to {title}"),
                "Remove one of the routes, or write a segment in which they differ.",
            );
        }
    }
}
