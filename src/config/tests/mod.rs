//! Tests of the configuration through [`Config::load`].

mod cluster;
mod presets;
mod reference;
mod routes;

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::secret::TokenHash;

const DEFAULT: &str = include_str!("../../../config.toml");
const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn load(toml: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, toml).unwrap();
    Config::load(Some(&path), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

/// Returns each error as `LINE KEY` or `VARIABLE KEY`.
fn places(errors: &ConfigErrors) -> Vec<String> {
    let place = |error: &ConfigError| match &error.source {
        Source::Line(_, line) => format!("{line} {}", error.key),
        other => format!("{other} {}", error.key),
    };
    errors.iter().map(place).collect()
}

fn errors_of(toml: &str) -> String {
    load(toml, &[]).unwrap_err().to_string()
}

#[test]
fn each_key_sets_its_own_field_from_the_file_and_from_the_environment() {
    // (key, value as TOML, value as a variable)
    let cases = [
        ("server.listen", r#"["127.0.0.1:1", "unix:a.sock"]"#, r#"["127.0.0.1:1", "unix:a.sock"]"#),
        ("server.drain_timeout", r#""11s""#, "11s"),
        ("server.max_connections", "11", "11"),
        ("server.max_headers", "111", "111"),
        ("server.header_timeout", r#""11s""#, "11s"),
        ("server.idle_timeout", r#""11s""#, "11s"),
        ("server.tls", r#"{ cert = "c", key = "k" }"#, r#"{ cert = "c", key = "k" }"#),
        ("server.cors_origins", r#"["https://a.example"]"#, "https://a.example"),
        ("server.allowed_hosts", r#"["jobs.example", ".internal"]"#, r#"["jobs.example", ".internal"]"#),
        ("server.trusted_proxies", r#"["10.0.0.0/8", "::1"]"#, r#"["10.0.0.0/8", "::1"]"#),
        ("admin.listen", r#""""#, ""),
        ("admin.token", r#""t""#, "t"),
        ("upstream.base_url", r#""http://localhost:1/p""#, "http://localhost:1/p"),
        ("upstream.api_key", r#""12345""#, "12345"),
        ("upstream.poll_timeout", r#""11s""#, "11s"),
        ("upstream.request_timeout", r#""11s""#, "11s"),
        ("upstream.connect_timeout", r#""11s""#, "11s"),
        ("upstream.connection_max_age", r#""11s""#, "11s"),
        ("upstream.max_jobs", "11", "11"),
        ("upstream.max_polls", "11", "11"),
        ("upstream.requests_per_second", "11", "11"),
        ("upstream.requests_per_second_per_key", "11", "11"),
        ("upstream.retries", "11", "11"),
        ("upstream.retry_for", r#""11s""#, "11s"),
        ("upstream.breaker_failures", "11", "11"),
        ("upstream.breaker_cooldown", r#""11s""#, "11s"),
        ("auth.headers", r#"["x-key", "Authorization"]"#, r#"["x-key", "authorization"]"#),
        ("auth.with_key", r#"["X-Version"]"#, r#"["x-version"]"#),
        ("auth.send", r#""x-key: {key}""#, "x-key: {key}"),
        ("wait.timeout", r#""11s""#, "11s"),
        ("wait.max_timeout", r#""1h""#, "1h"),
        ("wait.linger", r#""0s""#, "0s"),
        ("wait.watch_idle", r#""11s""#, "11s"),
        ("wait.max_jobs", "11", "11"),
        ("cache.max_bytes", r#""1KiB""#, "1024"),
        ("cache.completed_ttl", r#""1h 30m""#, "5400s"),
        ("cache.error_ttl", r#""11s""#, "11s"),
        ("cache.live_ttl", r#""250ms""#, "250ms"),
        ("cache.proven_ttl", r#""0s""#, "0s"),
        ("cache.key_recheck_interval", r#""11s""#, "11s"),
        ("limits.requests_per_second", "11", "11"),
        ("limits.burst", "11", "11"),
        ("limits.calls_per_second", "11", "11"),
        ("limits.calls_burst", "11", "11"),
        ("limits.max_waits_per_key", "11", "11"),
        ("limits.max_waits", "11", "11"),
        ("limits.max_passthrough_per_key", "11", "11"),
        ("limits.max_passthrough", "11", "11"),
        ("limits.max_body", "2048", "2KiB"),
        ("log.format", r#""json""#, "json"),
        ("log.level", r#""debug""#, "debug"),
        ("telemetry.otlp_endpoint", r#""http://collector:4318""#, "http://collector:4318"),
        ("telemetry.sample_percent", "11", "11"),
    ];
    let mut seen = Vec::new();
    for (key, toml, text) in cases {
        let (section, name) = key.split_once('.').unwrap();
        let from_file = load(&format!("[{section}]\n{name} = {toml}\n"), &[]).unwrap();
        let variable = format!("CLIPGATE__{}", key.replace('.', "__").to_uppercase());
        assert_eq!(load("", &[(&variable, text)]).unwrap(), from_file, "{variable}={text}");
        let shown = format!("{from_file:?}");
        let default = format!("{:?}", Config::default());
        // The first difference is in the field of this name.
        let differs = shown.bytes().zip(default.bytes()).take_while(|(a, b)| a == b).count();
        let field =
            shown[..differs].rfind(&format!("{name}: ")).unwrap_or_else(|| panic!("{key} sets nothing"));
        assert!(
            !shown[field + name.len() + 2..differs].contains(", ") || name == "listen",
            "{key} sets another"
        );
        assert_ne!(from_file, Config::default(), "{key}");
        assert!(!seen.contains(&from_file), "{key} sets the field of another key");
        let row =
            schema::keys().find(|row| row.name == key || row.name.starts_with(&format!("{key}."))).unwrap();
        let restart = match row.reload {
            schema::ReloadEffect::Applied => vec![],
            schema::ReloadEffect::AppliedUnless(_) | schema::ReloadEffect::Restart(_) => vec![row.name],
        };
        assert_eq!(from_file.needs_restart(&Config::default()), restart, "{key}");
        seen.push(from_file);
    }
    // All keys but auth.mode, team.members and routes; server.tls is three keys. Those of a cluster need two others.
    let own = schema::keys().filter(|key| !key.name.starts_with("cluster."));
    assert_eq!(cases.len(), own.count() - 5);
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "[wait]\ntimeout = \"1s\"\nlinger = \"1s\"\nmax_jobs = 1\n").unwrap();
    let env = [("CLIPGATE__WAIT__LINGER", "2s"), ("CLIPGATE__WAIT__MAX_JOBS", "2")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let flag = |value: &str| Flag {
        flag: "--jobs",
        key: "wait.max_jobs",
        value: value.to_owned(),
        is_fallback: false,
    };
    let wait = Config::load_with(Some(&path), env.clone(), [flag("3")]).unwrap().wait;
    let secs = Duration::from_secs;
    assert_eq!((wait.timeout, wait.linger, wait.max_jobs), (secs(1), secs(2), 3));
    let errors = Config::load_with(Some(&path), env, [flag("x")]).unwrap_err();
    assert_eq!(places(&errors), ["--jobs wait.max_jobs"]);
}

#[test]
fn an_invalid_value_is_reported_with_line_key_and_hint() {
    // (section, line, part of the error)
    let cases = [
        ("server", "listen = []", "server.listen: the list is empty"),
        ("server", "listen = 8080", "server.listen: expected text, found a number"),
        ("server", "listen = \"jobs:80\"", "\"127.0.0.1:80\" for this machine only"),
        ("server", "listen = \"*:80\"", "\"0.0.0.0:80\" for all interfaces"),
        ("server", "listen = \"::1:80\"", "Use \"[::1]:80\""),
        ("server", "listen = \"127.0.0.1\"", "an IP address and a port"),
        ("server", "listen = \"unix:\"", "\"unix:\" has no path"),
        ("server", "listen = [\"unix:a\", \"unix:a\"]", "unix:a is listed twice"),
        (
            "server",
            "listen = \"127.0.0.1:9090\"",
            "Use different addresses for server.listen and admin.listen",
        ),
        ("server", "drain_timeout = 10", "missing unit: 10\n"),
        ("server", "drain_timeout = \"10\"", "Use \"10s\""),
        ("server", "drain_timeout = \"\"", "not a valid duration: \"\""),
        ("server", "drain_timeout = \"-1s\"", "not a valid duration: \"-1s\""),
        ("server", "drain_timeout = \"2h\"", "out of range: 2h"),
        ("server", "header_timeout = \"0s\"", "from 1ms to 1h"),
        ("server", "max_connections = 0", "from 1 to 10000000"),
        ("server", "max_connections = \"5\"", "Remove the quotes"),
        ("server", "max_connections = true", "expected a number, found true or false"),
        (
            "server",
            "max_connections = 99999999999999999999999999999999999999999",
            "out of range: a number of more than 38 digits",
        ),
        ("server", "tls = { cert = \"c\" }", "Set server.tls.key too"),
        ("server", "tls = { key = \"c\" }", "Set server.tls.cert too"),
        ("server", "tls = { client_ca = \"c\" }", "Set server.tls.cert and server.tls.key too"),
        ("server", "tls = \"c\"", "server.tls: expected a section, found text"),
        ("server", "cors_origins = [\"https://a/\"]", "without a path"),
        ("server", "allowed_hosts = [\"a.example:80\"]", "the host name has a port"),
        ("server", "trusted_proxies = [\"10.0.0.0/33\"]", "not a valid network"),
        ("admin", "listen = \"90900\"", "not a valid listen address"),
        ("admin", "token = 12345", "expected a secret, found a number"),
        ("upstream", "base_url = \"api.aimlapi.com\"", "not a valid http:// or https:// URL"),
        ("upstream", "base_url = \"ftp://a\"", "not a valid http:// or https:// URL"),
        ("upstream", "base_url = \"https://u:p@a\"", "the URL has a user name or a password"),
        ("upstream", "base_url = \"https://a?b=c\"", "Use \"https://a\" alone"),
        ("upstream", "base_url = \"https://a#b\"", "Use \"https://a\" alone"),
        ("upstream", "base_url = \"https://a:99999\"", "an invalid port"),
        ("upstream", "base_url = \"https://\"", "not a valid http:// or https:// URL"),
        ("upstream", "api_key = \"\"", "the secret is empty"),
        ("upstream", "api_key = \"env:NOT_SET\"", "environment variable NOT_SET is not set"),
        ("upstream", "api_key = \"file:/no/such\"", "cannot read file /no/such"),
        ("upstream", "max_jobs = 0", "from 1 to 100"),
        ("upstream", "requests_per_second = -1", "out of range: -1"),
        ("auth", "mode = \"teem\"", "Use \"passthrough\", \"sidecar\", \"team\" or \"open\""),
        ("auth", "mode = \"sidecar\"", "Set upstream.api_key"),
        ("auth", "headers = []", "For an upstream without keys set auth.mode to \"open\""),
        ("auth", "headers = [\"x-key\", \"X-Key\"]", "x-key is listed twice"),
        ("auth", "headers = [\"connection\"]", "connection is a field of the connection"),
        (
            "auth",
            "headers = [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]",
            "Name at most 8 fields",
        ),
        ("auth", "send = \"x-key\"", "the field has no `:` after its name"),
        ("auth", "send = \"x-key: k\"", "exactly one {key}"),
        ("auth", "mode = \"team\"", "Add a [[team.members]]"),
        ("wait", "timeout = \"11m\"", "Set wait.max_timeout to at least wait.timeout"),
        ("wait", "max_timeout = \"1m\"", "(1m) is shorter than the default wait (2m)"),
        ("wait", "linger = \"1day\"", "from 0s to 1h"),
        ("cache", "max_bytes = \"1 lump\"", "Use a size such as \"64KiB\""),
        ("cache", "max_bytes = -1", "out of range: -1"),
        ("limits", "max_body = \"2TiB\"", "out of range: 2.0 TiB"),
        ("log", "level = \"warning\"", "Use \"error\", \"warn\""),
        ("team", "members = [1]", "team.members #1: expected a member, found a number"),
        ("team", "members = 1", "expected a list of members, found a number"),
    ];
    for (section, line, expected) in cases {
        let errors = load(&format!("[{section}]\n{line}\n"), &[]).unwrap_err();
        let text = errors.to_string();
        assert!(text.contains(expected), "{line}\n{text}");
        assert!(text.contains("c.toml:2: "), "{line}\n{text}");
        assert!(errors.iter().all(|error| !error.hint.is_empty() && !error.key.is_empty()), "{line}\n{text}");
        assert_eq!(errors.iter().count(), 1, "{line}\n{text}");
    }
    assert_eq!(cases.len(), 58);
}

#[test]
fn all_errors_are_reported_at_once_in_the_order_of_the_file() {
    let toml = "listen = \"127.0.0.1:80\"\n[wait]\ntimout = \"1s\"\nlinger = 2\n[upstraem]\nretries = 1\n\
        [cache]\nlive_ttl = \"x\"\n[auth]\nmode = \"sidecar\"\n";
    let env = [("CLIPGATE__LOG__LEVEL", "loud"), ("CLIPGATE__LOG__LEVLE", "info")];
    let errors = load(toml, &env).unwrap_err();
    let expected = [
        "1 listen",
        "3 wait.timout",
        "4 wait.linger",
        "5 upstraem",
        "8 cache.live_ttl",
        "10 auth.mode",
        "CLIPGATE__LOG__LEVEL log.level",
        "CLIPGATE__LOG__LEVLE log.levle",
    ];
    assert_eq!(places(&errors), expected);
    assert!(errors.to_string().starts_with("the configuration has 8 errors\n\n"));
}

#[test]
fn an_unknown_key_is_reported_with_the_nearest_known_one() {
    let cases = [
        (
            "[wait]\ntimout = \"1s\"",
            "The nearest known key is wait.timeout, written `timeout = ...` under [wait]",
        ),
        ("\nlisten = \"a\"", "The nearest known key is server.listen"),
        ("\ntimeout = \"a\"", "The nearest known key is wait.timeout"),
        ("[upstream]\ntimeout = \"a\"", "The nearest known key is wait.timeout"),
        ("[server]\nbase_url = \"a\"", "The nearest known key is upstream.base_url"),
        ("[server]\ntls = { kee = \"a\" }", "The nearest known key is server.tls.key"),
        ("\n[upstreem]\nretries = 1", "The nearest known section is [upstream]"),
        ("\n\"wait.timeout\" = \"1s\"", "\"wait.timeout\": unknown key"),
        (
            "\n[[team.member]]\nname = \"a\"",
            "The nearest known key is team.members, written [[team.members]]",
        ),
        ("\nserver = 1", "Write [server] on its own line"),
        ("[server]\nlisten.tcp = \"a\"", "server.listen: expected text, found a table"),
        ("\n[[server]]\nlisten = \"a\"", "server: expected a section, found a list"),
    ];
    for (toml, expected) in cases {
        let text = errors_of(toml);
        assert!(text.contains(expected), "{toml}\n{text}");
        assert!(text.contains("c.toml:2: "), "{toml}\n{text}");
    }
    assert_eq!(cases.len(), 12);
    let text = load("", &[("CLIPGATE__UPSTREAM__API_KYE", "sk-1")]).unwrap_err().to_string();
    assert!(text.contains("The nearest known key is CLIPGATE__UPSTREAM__API_KEY"), "{text}");
    assert!(load("", &[("CLIPGATE_CONFIG", "x"), ("CLIPGATE_ADMIN_TOKEN", "x")]).is_ok());
}

#[test]
fn invalid_toml_is_reported_with_line_column_and_caret() {
    let text = errors_of("[server]\nlisten = 127.0.0.1:8080\n");
    assert!(text.contains("c.toml:2: column 15: invalid TOML"), "{text}");
    assert!(text.contains("\n    2 | listen = 127.0.0.1:8080\n      |               ^\n"), "{text}");
    assert!(text.contains("Text needs quotes"), "{text}");
    let text = load("[wait]\ntimeout = \"1s\"\ntimeout = \"2s\"\n[server\n", &[]).unwrap_err();
    assert_eq!(places(&text), ["3 ", "4 "]);
}

#[test]
fn an_unreadable_file_is_an_error() {
    let errors = Config::load(Some(Path::new("/no/such/c.toml")), []).unwrap_err().to_string();
    assert!(errors.contains("/no/such/c.toml: cannot read the file: "), "{errors}");
    let dir = tempfile::tempdir().unwrap();
    assert!(Config::load(Some(dir.path()), []).is_err());
    let path = dir.path().join("c.toml");
    std::fs::write(&path, b"[wait]\n# \xff\n").unwrap();
    assert!(
        Config::load(Some(&path), [])
            .unwrap_err()
            .to_string()
            .contains("the file is not UTF-8 text (line 2)")
    );
    std::fs::write(&path, vec![b'\n'; 2 << 20]).unwrap();
    assert!(Config::load(Some(&path), []).unwrap_err().to_string().contains("the file is larger than 1 MiB"));
}

#[test]
fn a_secret_is_literal_or_from_a_variable_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "sk-file\r\n").unwrap();
    let file = format!("file:{}", path.display());
    let cases = [("sk-self", "sk-self"), ("env:KEY", "sk-env"), (file.as_str(), "sk-file")];
    for (written, expected) in cases {
        let config = load(&format!("[upstream]\napi_key = {written:?}"), &[("KEY", "sk-env")]).unwrap();
        assert_eq!(config.upstream.api_key.unwrap().expose(), expected);
        let env = [("CLIPGATE__UPSTREAM__API_KEY", written), ("KEY", "sk-env")];
        assert_eq!(load("", &env).unwrap().upstream.api_key.unwrap().expose(), expected);
    }
    assert_eq!(cases.len(), 3);
    for bad in ["", "\n", "a b", "Bearer x", "a\u{7}", "schl\u{fc}ssel", "a\nb"] {
        std::fs::write(&path, bad).unwrap();
        assert!(load(&format!("[upstream]\napi_key = {file:?}"), &[]).is_err(), "{bad:?}");
        assert!(load("[upstream]\napi_key = \"env:KEY\"", &[("KEY", bad)]).is_err(), "{bad:?}");
    }
}

#[test]
fn errors_and_debug_output_never_contain_a_secret() {
    let mark = "HUSHHUSH";
    let cases = [
        "[upstream]\napi_key = \"HUSHHUSH x\"",
        "[upstream]\napi_key = \"env:HUSHHUSH-\"",
        "[upstream]\napi_key = \"file:HUSHHUSH\"",
        "[upstream]\napi_kye = \"HUSHHUSH\"",
        "[upstream]\napi_key = HUSHHUSH",
        "[upstream]\napi_key = \"HUSHHUSH",
        "[upstream]\napi_key = 'HUSHHUSH\nretries = 1",
        "[upstream]\napi_key = \"\"\"\nHUSHHUSH\"\" \\q",
        "[upstream]\napi_kye = \"HUSHHUSH\\q\"",
        "[upstream]\nretries = 4 api_key = \"HUSHHUSH\"",
        "[upstream]\nHUSHHUSH",
        "[upstream]\nbase_url = \"https://u:HUSHHUSH@a\"",
        "[upstream]\nbase_url = \"https://u:HUSHHUSH@a",
        "api_key = \"HUSHHUSH\"",
        "[upstream]\napi_key = [\"HUSHHUSH\"]",
        "[upstream.api_key]\nkey = \"HUSHHUSH\"",
        "[[team.members]]\nname = \"a\"\ntoken_sha256 = \"HUSHHUSH\"\nupstream_key = \"HUSHHUSH\"",
        "team.members = [{ name = \"a\", upstream_key = \"HUSHHUSH\" \"",
        "[[team.members]]\nkey = \"HUSHHUSH\"\nname = 1",
    ];
    for toml in cases {
        let errors = load(toml, &[]).unwrap_err();
        assert!(!format!("{errors} {errors:?}").contains(mark), "{toml}\n{errors}");
    }
    assert_eq!(cases.len(), 19);
    let env = [("CLIPGATE__UPSTREAM__API_KEY", "HUSHHUSH"), ("CLIPGATE__AUTH__MODE", "sidecar")];
    let config = load("", &env).unwrap();
    assert!(!format!("{config:?} {:?}", config.warnings()).contains(mark));
    for name in ["CLIPGATE__UPSTREAM__API_KEY", "CLIPGATE__ADMIN__TOKEN", "CLIPGATE__UPSTREAM__API_KYE"] {
        for value in ["HUSHHUSH x", "[\"HUSHHUSH\"]", "{ a = \"HUSHHUSH\" }", "\"HUSHHUSH\u{1}\""] {
            let errors = load("", &[(name, value)]).unwrap_err();
            assert!(!format!("{errors} {errors:?}").contains(mark), "{name}={value}\n{errors}");
        }
    }
}

#[test]
fn a_team_is_read_and_duplicate_members_are_rejected() {
    let member = |name: &str, digit: char| {
        let hash = HASH.replace('0', &digit.to_string());
        format!("[[team.members]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nupstream_key = \"k\"\n")
    };
    let mode = "[auth]\nmode = \"team\"\n";
    let config = load(&format!("{mode}{}{}burst = 3\n", member("a", '0'), member("b", 'F')), &[]).unwrap();
    let AuthMode::Team(members) = config.auth.mode else { panic!("no team") };
    assert_eq!(members[1].token_sha256, TokenHash([0xff; 32]));
    let shown = format!("{members:?}");
    assert!(!shown.contains("255, 255") && !shown.contains("\"k\""), "{shown}");
    assert_eq!((members[0].burst, members[1].burst), (None, Some(3)));

    let cases = [
        (format!("{mode}{}{}", member("a", '0'), member("a", '1')), "8 team.members #2"),
        (format!("{mode}{}{}", member("a", '0'), member("b", '0')), "9 team.members #2"),
        (
            format!("{mode}[[team.members]]\n{}", &member("a", '0')[17..]).replace("name", "nmae"),
            "3 team.members #1",
        ),
        (format!("{mode}{}burst = 0\n", member("a", '0')), "7 team.members #1 burst"),
        (format!("{mode}{}", member("", '0')), "4 team.members #1 name"),
        (member("a", '0'), "1 team.members"),
    ];
    for (toml, expected) in &cases {
        let errors = load(toml, &[]).unwrap_err();
        assert_eq!(places(&errors)[0], *expected, "{toml}\n{errors}");
    }
    assert_eq!(cases.len(), 6);
    let list = format!(r#"[{{ name = "a", token_sha256 = "{HASH}", upstream_key = "env:K" }}]"#);
    let env = [("CLIPGATE__TEAM__MEMBERS", list.as_str()), ("CLIPGATE__AUTH__MODE", "team"), ("K", "k")];
    assert!(matches!(load("", &env).unwrap().auth.mode, AuthMode::Team(members) if members.len() == 1));
}

#[test]
fn a_base_url_keeps_its_path_without_the_final_slash() {
    let url = load("[upstream]\nbase_url = \"HTTPS://a.example:8443/gate/\"", &[]).unwrap().upstream.base_url;
    assert_eq!(url.to_string(), "https://a.example:8443/gate");
}

#[test]
fn odd_toml_never_panics() {
    let seeds = [
        DEFAULT,
        "",
        "\u{feff}[wait]\ntimeout = \"1s\"",
        "[[[[[[",
        "a.b.c.d = 1\na = 2",
        "[server]\nlisten = [[[[1]], {}], {a = {b = []}}]",
        "[[team.members]]\n[[team.members]]\nname = {}\n[team.members.x]",
        "[server.tls]\ncert = 1979-05-27T07:32:00Z\nkey = nan\nclient_ca = -inf",
        "[wait]\ntimeout = \"99999999999999999999y\"\nlinger = \"0.0000000000000001ns\"",
        "[cache]\nmax_bytes = \"99999999999999999999EiB\"\ncompleted_ttl = \"584542046090 years\"",
        "[limits]\nburst = 0xffffffffffffffffffffffffffffffffff\nmax_body = 0o7_7\nmax_waits = 0b",
        "[upstream]\nbase_url = \"http://[::1\"\napi_key = \"env:\"\r\n",
        "[upstream]\nbase_url = \"http://:80/\"\nretries = +1_000",
        "\u{0}\u{1}\u{7f}",
        "[server]\nlisten = \"\u{1f3b5}\" \u{1f3b5} = 1",
        "[\"\u{1f3b5}\"]\n\"\" = 1\n'a.b' = 2",
    ];
    let mut tried = 0;
    for seed in seeds {
        let _ = load(seed, &[]).map(|config| config.warnings());
        let _ = load("", &[("CLIPGATE__SERVER__LISTEN", &seed.replace('\0', ""))]);
        // The seed cut off anywhere, and with one character replaced.
        let step = 1 + seed.len() / 60;
        for (at, _) in seed.char_indices().step_by(step) {
            for odd in ["", "\"", "[", "]", "=", "\n", "\u{e9}", "{", "'''", "."] {
                let rest = seed[at..].chars().next().map_or("", |c| &seed[at + c.len_utf8()..]);
                let toml = format!("{}{odd}{rest}", &seed[..at]);
                let mut raw = source::RawConfig::new(schema::known_keys());
                let mut errors = Vec::new();
                match raw.add_document(&toml, &"odd".into(), &mut errors) {
                    Ok(()) => drop(schema::build(&raw, &BTreeMap::new(), &mut errors)),
                    Err(syntax) => errors.extend(syntax),
                }
                let _ = ConfigErrors::new(errors).to_string();
                tried += 1;
            }
        }
    }
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(load(&deep, &[]).is_err());
    assert!(load("", &[("CLIPGATE__SERVER__LISTEN", &"[".repeat(100_000))]).is_err());
    assert!(tried > 4000, "{tried}");
}
