//! The tables of keys against the defaults, config.toml and docs/configuration.md.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::config::schema::{ConfigKey, LIST_KEYS, MEMBER_KEYS, ROUTE_KEYS, ReloadEffect, keys};
use crate::config::value::AllowedValues;

const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");

/// The facts of a row that documents repeat.
struct DocumentedKey {
    name: String,
    default: Option<&'static str>,
    allowed: String,
    reload: &'static str,
    doc: &'static str,
}

fn documented_keys() -> Vec<DocumentedKey> {
    fn document<T>(prefix: &str, key: &ConfigKey<T>) -> DocumentedKey {
        DocumentedKey {
            name: format!("{prefix}{}", key.name),
            default: key.default,
            allowed: key.allowed.to_string(),
            reload: match key.reload {
                ReloadEffect::Applied | ReloadEffect::AppliedUnless(_) => "yes",
                ReloadEffect::Restart(_) => "no",
            },
            doc: key.doc,
        }
    }
    let members = MEMBER_KEYS.iter().map(|key| document("team.members.", key));
    let lists = LIST_KEYS.iter().map(|key| document("routes.list.", key));
    let routes = ROUTE_KEYS.iter().map(|key| document("routes.", key));
    keys().map(|key| document("", key)).chain(members).chain(routes).chain(lists).collect()
}

/// Sets one key, in a file or an inline table.
fn set(name: &str, value: &str) -> String {
    format!("{name} = {value}\n")
}

#[test]
fn the_default_of_each_row_is_the_default_of_the_configuration() {
    let mut defaults = 0;
    for key in keys() {
        let Some(default) = key.default else { continue };
        assert_eq!(load(&set(key.name, default), &[]).as_ref(), Ok(&Config::default()), "{}", key.name);
        defaults += 1;
    }
    let without: Vec<&str> = keys().filter(|key| key.default.is_none()).map(|key| key.name).collect();
    let expected = [
        "server.tls.cert",
        "server.tls.key",
        "server.tls.client_ca",
        "admin.token",
        "upstream.api_key",
        "routes",
        "team.members",
        "cluster.url",
        "cluster.secret",
        "cluster.master",
    ];
    assert_eq!(without, expected);
    assert_eq!(defaults + without.len(), keys().count());
    assert_eq!(Config::load(None, []).unwrap(), Config::default());
    assert_eq!(load("", &[]).unwrap(), Config::default());
}

#[test]
fn each_range_includes_its_bounds_and_nothing_outside() {
    let mut ranges = 0;
    // (accepted, rejected)
    let mut check = |name: &str, accepted: [String; 2], rejected: Vec<String>, hint: &str| {
        // A longer default wait needs a longer maximum.
        let other = if name == "wait.timeout" { "wait.max_timeout = \"1d\"\n" } else { "" };
        for value in accepted {
            let toml = format!("{other}{}", set(name, &value));
            let errors = load(&toml, &[]).err().map(|errors| errors.to_string()).unwrap_or_default();
            let is_cross_error =
                name == "wait.max_timeout" && errors.contains("shorter than the default wait");
            assert!(errors.is_empty() || is_cross_error, "{name} = {value}: {errors}");
        }
        for value in rejected {
            let errors = load(&set(name, &value), &[]).unwrap_err().to_string();
            assert!(errors.contains(&format!(": {name}: out of range: ")), "{errors}");
            assert!(errors.contains(hint), "{errors}");
        }
        ranges += 1;
    };
    for key in keys() {
        match &key.allowed {
            AllowedValues::Number(range) => {
                let rejected = [i128::from(*range.start()) - 1, i128::from(*range.end()) + 1];
                let accepted = [range.start().to_string(), range.end().to_string()];
                let hint = format!("Use an integer from {} to {}.", range.start(), range.end());
                check(key.name, accepted, rejected.iter().map(ToString::to_string).collect(), &hint);
            }
            AllowedValues::Size(range) => {
                let rejected = [i128::from(*range.start()) - 1, i128::from(*range.end()) + 1];
                let accepted = [range.start().to_string(), range.end().to_string()];
                let hint = format!("Use a size from {}.", key.allowed);
                check(key.name, accepted, rejected.iter().map(ToString::to_string).collect(), &hint);
            }
            AllowedValues::Duration(range) => {
                let text = |duration: Duration| format!("\"{}ms\"", duration.as_millis());
                let above = *range.end() + Duration::from_millis(1);
                let below = range.start().checked_sub(Duration::from_millis(1)).map(text);
                let accepted = [text(*range.start()), text(*range.end())];
                let hint = format!("Use a duration from {}.", key.allowed);
                check(key.name, accepted, below.into_iter().chain([text(above)]).collect(), &hint);
            }
            AllowedValues::Secret | AllowedValues::Described(_) => {}
        }
    }
    assert_eq!(ranges, 42);
    let texts: BTreeSet<String> = keys().map(|key| key.allowed.to_string()).collect();
    for text in ["0s to 1h", "1ms to 1d", "1s to 1d", "0s to 365d", "0B to 1TiB", "1B to 1TiB", "0 to 100"] {
        assert!(texts.contains(text), "{text}");
    }
}

#[test]
fn a_reload_names_the_changed_keys_that_need_a_restart() {
    let running = Config::default();
    assert_eq!(running.needs_restart(&running), [""; 0]);
    let mut changed = running.clone();
    changed.server.max_connections = 1;
    changed.server.cors_origins.push("*".to_owned());
    changed.upstream.retries = 0;
    changed.wait.max_jobs = 7;
    assert_eq!(changed.needs_restart(&running), ["server.max_connections", "upstream.retries"]);
}

#[test]
fn new_certificates_need_no_restart_but_turning_tls_on_or_off_does() {
    let tls = |cert: &str| load(&format!("server.tls = {{ cert = \"{cert}\", key = \"k\" }}"), &[]).unwrap();
    assert_eq!(tls("a").needs_restart(&tls("b")), [""; 0]);
    assert_eq!(tls("a").needs_restart(&Config::default()), ["server.tls.cert"]);
    assert_eq!(Config::default().needs_restart(&tls("a")), ["server.tls.cert"]);
}

/// A line of config.toml that sets a key, or would without its `#`.
struct ReferenceLine {
    key: String,
    value: String,
    is_set: bool,
    comment: String,
}

/// Returns the keys of config.toml with the comment above each.
fn reference_lines() -> Vec<ReferenceLine> {
    let (mut section, mut comment, mut found) = (String::new(), String::new(), Vec::new());
    for line in DEFAULT.lines() {
        let (text, is_set) = match line.strip_prefix("# ") {
            Some(text) => (text, false),
            None => (line, true),
        };
        let (name, value) = text.split_once(" = ").unwrap_or_default();
        let is_key = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
        let value = value.to_owned();
        let list = text.strip_prefix("[[").and_then(|text| text.strip_suffix("]]"));
        if let Some(list) = list {
            list.clone_into(&mut section);
            let comment = std::mem::take(&mut comment);
            found.push(ReferenceLine { key: section.clone(), value, is_set, comment });
        } else if is_set && text.starts_with('[') {
            text.trim_matches(['[', ']']).clone_into(&mut section);
            comment.clear();
        } else if is_key && !section.is_empty() {
            let comment = std::mem::take(&mut comment);
            found.push(ReferenceLine { key: format!("{section}.{name}"), value, is_set, comment });
        } else if text.is_empty() {
            comment.clear();
        } else {
            comment.push_str(text);
        }
    }
    found
}

#[test]
fn config_toml_sets_the_defaults() {
    assert_eq!(load(DEFAULT, &[]).unwrap(), Config::default());
}

#[test]
fn config_toml_has_every_key_in_order_with_a_comment_and_its_default() {
    let lines = reference_lines();
    let is_inline =
        |key: &DocumentedKey| ["server.tls.", "routes.list."].iter().any(|t| key.name.starts_with(t));
    let (inline, others): (Vec<_>, Vec<_>) = documented_keys().into_iter().partition(is_inline);
    assert_eq!((inline.len(), others.len()), (3 + LIST_KEYS.len(), 73 + ROUTE_KEYS.len()));
    for key in &inline {
        let (table, name) = key.name.rsplit_once('.').unwrap();
        let table = format!("# {} = {{ ", table.rsplit('.').next().unwrap());
        let line = DEFAULT.lines().find(|line| line.starts_with(&table)).unwrap();
        assert!(line.contains(&format!(" {name} = ")), "{}", key.name);
    }
    let written: BTreeSet<&str> = lines.iter().map(|line| line.key.as_str()).collect();
    let expected: BTreeSet<&str> = others.iter().map(|key| key.name.as_str()).chain(["server.tls"]).collect();
    assert_eq!(written, expected);
    // The three examples of routes have some keys in common.
    let is_route = |key: &str| key == "routes" || key.starts_with("routes.");
    let (of_routes, once): (Vec<&str>, Vec<&str>) = expected.iter().partition(|key| is_route(key));
    assert_eq!(lines.iter().filter(|line| !is_route(&line.key)).count(), once.len(), "each key occurs once");
    assert_eq!(of_routes.len(), 1 + ROUTE_KEYS.len());
    let of_sections =
        |key: &&str| *key != "server.tls" && !key.starts_with("team.members.") && !is_route(key);
    let order: Vec<&str> = lines.iter().map(|line| line.key.as_str()).filter(of_sections).collect();
    assert_eq!(order, others.iter().map(|key| key.name.as_str()).filter(of_sections).collect::<Vec<_>>());
    for line in &lines {
        let default = others.iter().find(|key| key.name == line.key).and_then(|key| key.default);
        // Routes have examples, all of them behind a `#`.
        let default = default.filter(|_| !is_route(&line.key));
        assert_eq!(line.is_set.then_some(line.value.as_str()), default, "{}", line.key);
        // One comment covers the quotas of a member, or several keys of a route.
        assert!(
            line.key.starts_with("team.members.") || is_route(&line.key) || !line.comment.is_empty(),
            "{} has no comment",
            line.key
        );
    }
}

#[test]
fn the_documentation_has_the_row_of_every_key_and_no_other() {
    let is_row = |line: &&str| {
        let name = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).unwrap_or_default();
        let section = name.split('.').next().filter(|section| !section.is_empty());
        let is_documented = name.contains('.') || name == "routes";
        is_documented && keys().any(|key| section.is_some_and(|section| key.name.starts_with(section)))
    };
    let written: Vec<&str> = DOCUMENTATION.lines().filter(is_row).collect();
    let mut rows = documented_keys();
    // The page has the members below auth.mode.
    rows.sort_by_key(|key| {
        let first = key.name.split('.').next().unwrap();
        let section = if first == "team" { "auth" } else { first };
        keys().position(|other| other.name.starts_with(section))
    });
    let row = |key: &DocumentedKey| {
        let default = key.default.map_or("none".to_owned(), |default| format!("`{default}`"));
        format!("| `{}` | {default} | {} | {} | {} |", key.name, key.allowed, key.reload, key.doc)
    };
    let expected: Vec<String> = rows.iter().map(row).collect();
    assert_eq!(written, expected, "the rows of docs/configuration.md should be:\n{}", expected.join("\n"));
}

#[test]
fn config_toml_is_valid_without_the_hashes() {
    let team = "mode = \"team\"";
    let all_keys = DEFAULT
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // For another mode.
            Some(text) if text.starts_with("master = ") => "",
            Some(text) if text.starts_with("[[") || text.split(' ').nth(1) == Some("=") => text,
            _ if line == "mode = \"passthrough\"" => team,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    let env = [("CLIPGATE_ADMIN_TOKEN", "a"), ("AIMLAPI_KEY", "b"), ("ALICE_AIMLAPI_KEY", "c")];
    let secret = "x".repeat(32);
    let env = [&env[..], &[("CLIPGATE_CLUSTER_SECRET", &secret)]].concat();
    let config = load(&all_keys, &env).unwrap();
    assert!(config.server.tls.is_some() && config.admin.token.is_some() && config.upstream.api_key.is_some());
    let AuthMode::Team(members) = &config.auth.mode else { panic!("{:?}", config.auth) };
    assert_eq!(members[0].upstream_key.expose(), "c");
    assert_eq!(members[0].burst, Some(400));
    assert_eq!(config.routes.len(), 3);
    assert!(config.cluster.is_some());
}
