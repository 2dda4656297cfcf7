//! Tests of `[[routes]]`: defaults, the ladder, and each error with its line and fix.

use super::*;
use crate::core::route::{Lifetimes, Route, Routes};

/// A valid route without its name and path.
const WORDS: &str = "pending = [\"waiting\", \"running\"]\nsucceeded = [\"done\"]\n";

fn route_of(keys: &str) -> Route {
    let mut config =
        load(&format!("[[routes]]\n{keys}"), &[]).unwrap_or_else(|errors| panic!("{keys}{errors}"));
    config.routes.pop().unwrap()
}

fn words(route: &Route) -> Vec<(&str, bool, bool)> {
    let ladder = &route.ladder;
    ladder
        .rungs()
        .map(|rung| (ladder.name(rung), ladder.is_terminal(rung), ladder.is_askable(rung)))
        .collect()
}

#[test]
fn a_route_has_the_documented_defaults() {
    let route = route_of(&format!("name = \"a\"\npath = \"/v1/jobs/{{id}}\"\n{WORDS}"));
    let secs = Duration::from_secs;
    assert_eq!(
        (route.hold, route.pace, route.max_pace, route.default_wait),
        (secs(0), secs(2), secs(2), secs(0))
    );
    let lifetimes = Lifetimes { success: Some(secs(600)), failure: None, live: Some(secs(2)) };
    assert_eq!((route.lifetimes, route.is_built_in, route.proves()), (lifetimes, false, false));
    assert_eq!(words(&route), [("waiting", false, true), ("running", false, true), ("done", true, true)]);
    assert_eq!(route.id.unwrap().tokens(), ["id"]);
    let held = route_of(&format!(
        "name = \"a\"\npath = \"/j\"\nid_param = \"id\"\nhold = \"9s\"\nwait_param = \"until\"\nfailed = \"bad\"\n{WORDS}"
    ));
    assert_eq!((held.hold, held.pace, held.max_pace, held.proves()), (secs(9), secs(0), secs(0), true));
    assert_eq!(held.lifetimes, Lifetimes { live: None, ..lifetimes });
    assert_eq!(words(&held)[3], ("bad", true, false));
}

#[test]
fn routes_can_be_set_by_a_variable() {
    let value = "[{ name = \"a\", path = \"/v1/{id}\", pending = [\"b\"], succeeded = [\"c\"] }]";
    let config = load("", &[("CLIPGATE__ROUTES", value)]).unwrap();
    assert_eq!(config.routes().iter().map(|(_, route)| route.name.as_str()).collect::<Vec<_>>(), ["a"]);
    let errors = load("", &[("CLIPGATE__ROUTES", "[{ name = \"A\" }]")]).unwrap_err();
    assert_eq!(places(&errors)[0], "CLIPGATE__ROUTES routes #1 name");
}

#[test]
fn a_new_route_needs_a_restart() {
    let route = route_of(&format!("name = \"a\"\npath = \"/v1/{{id}}\"\n{WORDS}"));
    let changed = Config { routes: vec![route], ..Config::default() };
    assert_eq!(changed.needs_restart(&Config::default()), ["routes"]);
}

#[test]
fn without_a_parameter_for_the_state_all_pending_words_are_one_state() {
    let keys =
        format!("name = \"a\"\npath = \"/v1/{{id}}\"\nhold = \"60s\"\nhold_param = \"seconds\"\n{WORDS}");
    let route = route_of(&keys);
    assert_eq!(words(&route), [("waiting", false, true), ("done", true, true)]);
    assert_eq!(route.ladder.rung("running"), route.ladder.rung("waiting"));
    assert!(!route.proves());
    let named = route_of(&format!("{keys}wait_param = \"until\"\n"));
    assert_eq!((words(&named).len(), named.proves()), (3, true));
}

#[test]
fn keys_beside_a_preset_replace_its_keys() {
    let secs = Duration::from_secs;
    let route = route_of("preset = \"replicate\"\nname = \"r\"\nmax_pace = \"9s\"\n");
    assert_eq!((route.name.as_str(), route.pace, route.max_pace), ("r", secs(1), secs(9)));
    assert_eq!(route_of("preset = \"replicate\"\n").name, "replicate");
    // What contradicts an own key gives way.
    let slow = route_of("preset = \"replicate\"\npace = \"10s\"\n");
    assert_eq!((slow.pace, slow.max_pace), (secs(10), secs(10)));
    let held = route_of("preset = \"replicate\"\nhold = \"10s\"\n");
    assert_eq!((held.hold, held.pace), (secs(10), secs(0)));
    for never in ["hold = \"0s\"", "pace = \"3s\""] {
        let route = route_of(&format!("preset = \"apify\"\n{never}\n"));
        assert_eq!((route.hold, route.hold_param.as_deref(), route.never_holds()), (secs(0), None, true));
    }
    let moved = route_of("preset = \"bfl\"\npath = \"/v1/results/{id}\"\n");
    assert_eq!((moved.id_param, moved.path.has_id()), (None, true));
}

#[test]
fn each_error_of_a_route_is_reported_with_line_and_fix() {
    // (keys of the route beside name and words, place, part of the error, part of the hint)
    let path = "path = \"/v1/jobs/{id}\"";
    let cases: &[(&str, &str, &str, &str)] = &[
        ("path = \"/v1/jobs\"", "5 routes #1 path", "has no {id}", "set id_param"),
        (&format!("{path}\nid_param = \"id\""), "6 routes #1 id_param", "has two ids", "Remove id_param"),
        ("path = \"v1/{id}\"", "5 routes #1 path", "not a valid path", "Begin with a slash"),
        ("path = \"/v1/x{id}\"", "5 routes #1 path", "only a part of its segment", "\"/v1/jobs/{id}\""),
        ("path = \"/v1/{id}:get\"", "5 routes #1 path", "followed by a verb", "`actions`"),
        ("path = \"/v1/{i-d}\"", "5 routes #1 path", "invalid name", "letters, digits"),
        ("path = \"/{id}/{id}\"", "5 routes #1 path", "two variables", "its own name"),
        (
            &format!("{path}\nstatus = \"data.status\""),
            "6 routes #1 status",
            "not a JSON Pointer",
            "\"/data/status\"",
        ),
        (&format!("{path}\nid = \"$.data[0].id\""), "6 routes #1 id", "not a JSON Pointer", "\"/data/0/id\""),
        (&format!("{path}\nerror = \"\""), "6 routes #1 error", "not a JSON Pointer", "a place inside"),
        (&format!("{path}\nstatus = \":status\""), "6 routes #1 status", "not a place", "\":code\""),
        (&format!("{path}\nhold = \"9s\"\npace = \"1s\""), "7 routes #1 pace", "pace is set", "Remove pace"),
        (
            &format!("{path}\nhold = \"9s\"\ndefault_wait = \"1s\""),
            "7 routes #1 default_wait",
            "is set",
            "Remove",
        ),
        (&format!("{path}\nhold_param = \"s\""), "6 routes #1 hold_param", "hold is 0s", "Set hold"),
        (
            &format!("{path}\npace = \"2s\"\nmax_pace = \"1s\""),
            "7 routes #1 max_pace",
            "shorter than pace",
            "at least",
        ),
        (&format!("{path}\nparams = [\"a\", \"a\"]"), "6 routes #1 params", "twice", "of its own"),
        (
            &format!("{path}\nparams = [\"a\"]\nwait_param = \"a\""),
            "6 routes #1 params",
            "in wait_param and in params",
            "own",
        ),
        (&format!("{path}\nactions = [\"/v1/cancel\"]"), "6 routes #1 actions", "has no {id}", "Write {id}"),
        (
            "path = \"/{app}/jobs/{id}\"\nactions = [\"/cancel/{id}\"]",
            "6 routes #1 actions",
            "has no {app}",
            "Write {app}",
        ),
        (
            "path = \"/{app}/jobs/{id}\"\nlist = { path = \"/jobs\", param = \"ids\" }",
            "6 routes #1 list",
            "cannot say {app}",
            "Remove the list",
        ),
        (
            &format!("{path}\nid = \"\"\nlist = {{ path = \"/jobs\", param = \"ids\" }}"),
            "7 routes #1 list",
            "but id is \"\"",
            "Set id",
        ),
        (
            &format!("{path}\nlist = {{ path = \"/v1/jobs/all\", param = \"ids\" }}"),
            "6 routes #1 list",
            "both take /v1/jobs/all",
            "Use the upstream's path",
        ),
        (
            &format!("{path}\nlist = {{ path = \"/jobs\" }}"),
            "6 routes #1 list",
            "param is missing",
            "Add param",
        ),
        (
            &format!("{path}\nlist = {{ pth = \"/jobs\", param = \"i\" }}"),
            "6 routes #1 list pth",
            "unknown key",
            "path",
        ),
        (&format!("{path}\nlist = [\"/jobs\"]"), "6 routes #1 list", "expected a table", "Use {"),
        (
            &format!("{path}\nfailed = [\"done\"]"),
            "6 routes #1 failed",
            "\"done\" is in two states",
            "one of them",
        ),
        (&format!("{path}\nfailed = [\"x\", \"x\"]"), "6 routes #1 failed", "twice in a state", "Remove one"),
        (&format!("{path}\nerror = \"/error\""), "6 routes #1 error", "no state stands", "Set failed"),
        (&format!("{path}\nid = \"\"\nstatus = \":code\""), "7 routes #1 status", "no word is", "\"202\""),
        (
            &format!("{path}\nid = \"/id\"\nstatus = \":code\""),
            "6 routes #1 id",
            "id reads the body",
            "Remove id",
        ),
        (&format!("{path}\npce = \"1s\""), "6 routes #1 pce", "unknown key", "nearest known key is pace"),
        (&format!("{path}\npreset = \"replicat\""), "6 routes #1 preset", "not a preset", "are replicate,"),
        (&format!("{path}\ncompleted_ttl = 5"), "6 routes #1 completed_ttl", "missing unit", "\"5s\""),
        (
            &format!("{path}\ndefault_wait = \"20m\""),
            "6 routes #1 default_wait",
            "longer than wait.max_timeout",
            "at most",
        ),
    ];
    for (keys, place, problem, hint) in cases {
        let errors = load(&format!("[[routes]]\nname = \"a\"\n{WORDS}{keys}\n"), &[]).unwrap_err();
        let found = places(&errors).iter().any(|found| found == place);
        let (error, of_place) = (errors.to_string(), errors.iter().count());
        assert!(found && error.contains(problem) && error.contains(hint), "{keys}\n{place}\n{error}");
        assert!(of_place <= 2, "{keys}\n{error}");
    }
    assert_eq!(cases.len(), 34);
}

#[test]
fn all_errors_of_all_routes_are_reported_at_once() {
    let toml = "[[routes]]\nname = \"Bad\"\npath = \"/v1/jobs\"\n[[routes]]\nstatus = \"s\"\npending = []\nsucceeded = \
        [[\"a\"]]\n[[routes]]\npreset = \"nothing\"\n[routes.list]\n";
    let errors = load(toml, &[]).unwrap_err();
    assert_eq!(
        places(&errors),
        [
            "1 routes #1",
            "1 routes #1",
            "2 routes #1 name",
            "3 routes #1 path",
            "4 routes #2",
            "4 routes #2",
            "5 routes #2 status",
            "6 routes #2 pending",
            "7 routes #2 succeeded",
            "9 routes #3 preset",
            "10 routes #3 list",
            "10 routes #3 list",
        ],
        "{errors}"
    );
}

#[test]
fn a_line_of_a_route_that_is_not_toml_is_shown() {
    let errors = errors_of("[[routes]]\nname = \"a\"\npending = [\"waiting\", running]\n");
    assert!(errors.contains("3 | pending = [\"waiting\", running]\n"), "{errors}");
}

#[test]
fn two_routes_have_no_path_and_no_name_in_common() {
    let route = |name: &str, keys: &str| format!("[[routes]]\nname = \"{name}\"\n{WORDS}{keys}\n");
    let two = |one: &str, two: &str| load(&(route("a", one) + &route("b", two)), &[]);
    let errors = two("path = \"/v1/{kind}/{id}\"", "path = \"/v1/jobs/{id}\"").unwrap_err();
    assert_eq!(places(&errors), ["10 routes #2 path"]);
    assert!(
        errors.to_string().contains("/v1/jobs/ID belongs to this route and to routes #1 (a)"),
        "{errors}"
    );
    let list = "path = \"/j\"\nid_param = \"id\"\nlist = { path = \"/v1/jobs\", param = \"id\" }";
    let errors = two("path = \"/v1/{id}\"", list).unwrap_err();
    assert!(errors.to_string().contains("/v1/jobs belongs to this route"), "{errors}");
    let actions = "path = \"/v1/{id}\"\nactions = [\"/v2/{id}\"]";
    assert_eq!(two(actions, "path = \"/v2/{id}\"").unwrap().routes.len(), 2);
    let same = route("a", "path = \"/v1/{id}\"") + &route("a", "path = \"/v2/{id}\"");
    assert_eq!(places(&load(&same, &[]).unwrap_err()), ["7 routes #2 name"]);
    let many = |count: usize| -> String {
        (0..count).map(|n| route(&format!("r{n}"), &format!("path = \"/v{n}/{{id}}\""))).collect()
    };
    assert_eq!(load(&many(32), &[]).unwrap().routes.len(), 32);
    let errors = load(&many(33), &[]).unwrap_err();
    assert_eq!(places(&errors), ["161 routes"]);
    assert!(errors.to_string().contains("33 routes, but a gateway has at most 32"), "{errors}");
}

#[test]
fn the_built_in_route_stands_without_routes() {
    let config = load("upstream.poll_timeout = \"9s\"\nroutes = []\n", &[]).unwrap();
    assert_eq!(config.routes(), Routes::from(Route::suno_held_for(Duration::from_secs(9))));
    let errors = load("[routes]\nname = \"a\"\n", &[]).unwrap_err();
    assert!(errors.to_string().contains("Write [[routes]]"), "{errors}");
    let errors = load("[[route]]\nname = \"a\"\n", &[]).unwrap_err();
    assert!(errors.to_string().contains("routes, written [[routes]]"), "{errors}");
}
