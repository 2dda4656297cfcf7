//! What an operator may rely on, tried through [`Config::load`].

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

const DEFAULT: &str = include_str!("../../config.toml");
const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn load(toml: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, toml).unwrap();
    Config::load(Some(&path), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

/// Each fault as `LINE KEY` or `VARIABLE KEY`.
fn places(faults: &ConfigErrors) -> Vec<String> {
    let of = |fault: &ConfigError| match &fault.source {
        Source::Line(_, line) => format!("{line} {}", fault.key),
        other => format!("{other} {}", fault.key),
    };
    faults.iter().map(of).collect()
}

fn told(toml: &str) -> String {
    load(toml, &[]).unwrap_err().to_string()
}

/// A line of `config.toml` that sets a key, in force or behind a `#`.
struct ReferenceLine {
    key: String,
    set: bool,
    about: String,
}

/// The keys of `config.toml` with the comment above each; a member's keys are not told apart.
fn lines() -> Vec<ReferenceLine> {
    let (mut section, mut about, mut found) = (String::new(), String::new(), Vec::new());
    for line in DEFAULT.lines() {
        let (text, set) = match line.strip_prefix("# ") {
            Some(text) => (text, false),
            None => (line, true),
        };
        let name = text.split(" = ").next().unwrap_or_default();
        let is_key = text.contains(" = ")
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'2' || b.is_ascii_digit());
        if text.starts_with("[[team.members]]") {
            "team.members".clone_into(&mut section);
            found.push(ReferenceLine { key: section.clone(), set, about: std::mem::take(&mut about) });
        } else if set && text.starts_with('[') {
            text.trim_matches(['[', ']']).clone_into(&mut section);
            about.clear();
        } else if is_key && !section.is_empty() {
            found.push(ReferenceLine {
                key: format!("{section}.{name}"),
                set,
                about: std::mem::take(&mut about),
            });
        } else if text.is_empty() {
            about.clear();
        } else {
            about.push_str(text);
        }
    }
    found
}

#[test]
fn config_toml_says_what_the_defaults_are() {
    assert_eq!(load(DEFAULT, &[]).unwrap(), Config::default());
    assert_eq!(load("", &[]).unwrap(), Config::default());
    assert_eq!(Config::load(None, []).unwrap(), Config::default());
}

#[test]
fn config_toml_has_every_key_with_a_comment_and_its_default() {
    let lines = lines();
    let written: BTreeSet<&str> = lines.iter().map(|line| line.key.as_str()).collect();
    let members = team::names().map(|name| format!("team.members.{name}"));
    let known: Vec<String> = schema::names().map(str::to_owned).chain(members).collect();
    let (tls, others): (Vec<String>, Vec<String>) =
        known.into_iter().partition(|key| key.starts_with("server.tls."));
    assert_eq!((tls.len(), others.len()), (3, 53));
    let expected: BTreeSet<&str> = others.iter().map(String::as_str).chain(["server.tls"]).collect();
    assert_eq!(written, expected);
    for key in &tls {
        let name = key.rsplit('.').next().unwrap();
        assert!(DEFAULT.contains(&format!("{name} = \"")), "{key}");
    }
    let unset: Vec<&str> = lines.iter().filter(|line| !line.set).map(|line| line.key.as_str()).collect();
    let without_default = ["server.tls", "admin.token", "upstream.api_key", "team.members"];
    assert_eq!(unset[..4], without_default);
    assert!(unset[4..].iter().all(|key| key.starts_with("team.members.")));
    for line in &lines {
        let one_for_many = line.key.starts_with("team.members.");
        assert!(one_for_many || !line.about.is_empty(), "{} has no comment", line.key);
    }
}

#[test]
fn what_stands_behind_a_hash_works_without_it() {
    let team = "mode = \"team\"";
    let live = DEFAULT
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(text) if text.starts_with("[[") || text.split(' ').nth(1) == Some("=") => text,
            _ if line.starts_with("mode = ") => team,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    let env = [("CLIPGATE_ADMIN_TOKEN", "a"), ("AIMLAPI_KEY", "b"), ("ALICE_AIMLAPI_KEY", "c")];
    let config = load(&live, &env).unwrap();
    assert!(config.server.tls.is_some() && config.admin.token.is_some() && config.upstream.api_key.is_some());
    let AuthConfig::Team(members) = &config.auth else { panic!("{:?}", config.auth) };
    assert_eq!(members[0].upstream_key.expose(), "c");
    assert_eq!(members[0].burst, Some(400));
}

#[test]
fn each_key_sets_its_own_field_from_the_file_and_from_the_environment() {
    // (key, value as TOML, value as a variable)
    let cases = [
        ("server.listen", r#"["127.0.0.1:1", "unix:a.sock"]"#, r#"["127.0.0.1:1", "unix:a.sock"]"#),
        ("server.drain_timeout", r#""11s""#, "11s"),
        ("server.max_connections", "11", "11"),
        ("server.header_timeout", r#""11s""#, "11s"),
        ("server.idle_timeout", r#""11s""#, "11s"),
        ("server.tls", r#"{ cert = "c", key = "k" }"#, r#"{ cert = "c", key = "k" }"#),
        ("server.cors_origins", r#"["https://a.example"]"#, "https://a.example"),
        ("server.allowed_hosts", r#"["clips.example", ".internal"]"#, r#"["clips.example", ".internal"]"#),
        ("server.trusted_proxies", r#"["10.0.0.0/8", "::1"]"#, r#"["10.0.0.0/8", "::1"]"#),
        ("admin.listen", r#""""#, ""),
        ("admin.token", r#""t""#, "t"),
        ("upstream.base_url", r#""http://localhost:1/p""#, "http://localhost:1/p"),
        ("upstream.api_key", r#""12345""#, "12345"),
        ("upstream.poll_timeout", r#""11s""#, "11s"),
        ("upstream.connect_timeout", r#""11s""#, "11s"),
        ("upstream.connection_max_age", r#""11s""#, "11s"),
        ("upstream.max_jobs", "11", "11"),
        ("upstream.max_polls", "11", "11"),
        ("upstream.requests_per_second", "11", "11"),
        ("upstream.retries", "11", "11"),
        ("upstream.retry_for", r#""11s""#, "11s"),
        ("upstream.breaker_failures", "11", "11"),
        ("upstream.breaker_cooldown", r#""11s""#, "11s"),
        ("wait.timeout", r#""11s""#, "11s"),
        ("wait.max_timeout", r#""1h""#, "1h"),
        ("wait.linger", r#""0s""#, "0s"),
        ("wait.max_jobs", "11", "11"),
        ("cache.max_bytes", r#""1KiB""#, "1024"),
        ("cache.completed_ttl", r#""1h 30m""#, "5400s"),
        ("cache.error_ttl", r#""11s""#, "11s"),
        ("cache.live_ttl", r#""250ms""#, "250ms"),
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
        // what is different stands under the field's own name
        let differs = shown.bytes().zip(default.bytes()).take_while(|(a, b)| a == b).count();
        let field =
            shown[..differs].rfind(&format!("{name}: ")).unwrap_or_else(|| panic!("{key} sets nothing"));
        assert!(
            !shown[field + name.len() + 2..differs].contains(", ") || name == "listen",
            "{key} sets another"
        );
        assert_ne!(from_file, Config::default(), "{key}");
        assert!(!seen.contains(&from_file), "{key} sets what another key sets");
        seen.push(from_file);
    }
    // but for auth.mode and team.members, and tls, which is three keys
    assert_eq!(cases.len(), schema::names().count() - 4);
}

#[test]
fn the_command_line_outdoes_the_environment_and_that_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "[wait]\ntimeout = \"1s\"\nlinger = \"1s\"\nmax_jobs = 1\n").unwrap();
    let env = [("CLIPGATE__WAIT__LINGER", "2s"), ("CLIPGATE__WAIT__MAX_JOBS", "2")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let flag = |value: &str| Flag { flag: "--jobs", key: "wait.max_jobs", value: value.to_owned() };
    let wait = Config::load_with(Some(&path), env.clone(), [flag("3")]).unwrap().wait;
    let secs = Duration::from_secs;
    assert_eq!((wait.timeout, wait.linger, wait.max_jobs), (secs(1), secs(2), 3));
    let faults = Config::load_with(Some(&path), env, [flag("x")]).unwrap_err();
    assert_eq!(places(&faults), ["--jobs wait.max_jobs"]);
}

#[test]
fn a_bad_value_is_told_with_its_line_its_key_and_a_fix() {
    // (section, line, what the fault says)
    let cases = [
        ("server", "listen = []", "server.listen: is empty"),
        ("server", "listen = 8080", "server.listen: is a number where text belongs"),
        ("server", "listen = \"localhost:80\"", "write \"127.0.0.1:80\""),
        ("server", "listen = \":80\"", "\"0.0.0.0:80\" for all"),
        ("server", "listen = \"::1:80\"", "write \"[::1]:80\""),
        ("server", "listen = \"127.0.0.1\"", "an IP address and a port"),
        ("server", "listen = \"unix:\"", "names no path"),
        ("server", "listen = [\"unix:a\", \"unix:a\"]", "unix:a is listed twice"),
        ("server", "listen = \"127.0.0.1:9090\"", "give server.listen and admin.listen an address each"),
        ("server", "drain_timeout = 10", "10 has no unit"),
        ("server", "drain_timeout = \"10\"", "write \"10s\""),
        ("server", "drain_timeout = \"\"", "\"\" is no duration"),
        ("server", "drain_timeout = \"-1s\"", "\"-1s\" is no duration"),
        ("server", "drain_timeout = \"2h\"", "is 2h, which is out of bounds"),
        ("server", "header_timeout = \"0s\"", "from 1ms to 1h"),
        ("server", "max_connections = 0", "from 1 to 10000000"),
        ("server", "max_connections = \"5\"", "write it without them"),
        ("server", "max_connections = true", "is true or false where a number belongs"),
        ("server", "max_connections = 99999999999999999999999999999999999999999", "out of all bounds"),
        ("server", "tls = { cert = \"c\" }", "set server.tls.key too"),
        ("server", "tls = { key = \"c\" }", "set server.tls.cert too"),
        ("server", "tls = { client_ca = \"c\" }", "set server.tls.cert and server.tls.key too"),
        ("server", "tls = \"c\"", "server.tls: is a section, not text"),
        ("server", "cors_origins = [\"https://a/\"]", "without a path"),
        ("server", "allowed_hosts = [\"a.example:80\"]", "has a port"),
        ("server", "trusted_proxies = [\"10.0.0.0/33\"]", "is no network"),
        ("admin", "listen = \"9090\"", "is no address to listen on"),
        ("admin", "token = 12345", "is a number where a secret belongs"),
        ("upstream", "base_url = \"api.aimlapi.com\"", "is no http:// or https:// URL"),
        ("upstream", "base_url = \"ftp://a\"", "is no http:// or https:// URL"),
        ("upstream", "base_url = \"https://u:p@a\"", "a name or password stands in the URL"),
        ("upstream", "base_url = \"https://a?b=c\"", "write \"https://a\" alone"),
        ("upstream", "base_url = \"https://a#b\"", "write \"https://a\" alone"),
        ("upstream", "base_url = \"https://a:99999\"", "a port that is none"),
        ("upstream", "base_url = \"https://\"", "is no http:// or https:// URL"),
        ("upstream", "api_key = \"\"", "the secret is empty"),
        ("upstream", "api_key = \"env:NOT_SET\"", "the environment variable NOT_SET is not set"),
        ("upstream", "api_key = \"file:/no/such\"", "the file /no/such cannot be read"),
        ("upstream", "max_jobs = 0", "from 1 to 100"),
        ("upstream", "requests_per_second = -1", "is -1, which is out of bounds"),
        ("auth", "mode = \"teem\"", "write one of \"passthrough\", \"sidecar\", \"team\""),
        ("auth", "mode = \"sidecar\"", "set upstream.api_key"),
        ("auth", "mode = \"team\"", "add a [[team.members]]"),
        ("wait", "timeout = \"11m\"", "make wait.max_timeout at least wait.timeout"),
        ("wait", "max_timeout = \"1m\"", "(1m) is shorter than the usual one (2m)"),
        ("wait", "linger = \"1day\"", "from 0s to 1h"),
        ("cache", "max_bytes = \"1 lump\"", "write it as \"64KiB\""),
        ("cache", "max_bytes = -1", "is out of all bounds"),
        ("limits", "max_body = \"2TiB\"", "is 2.0 TiB, which is out of bounds"),
        ("log", "level = \"warning\"", "write one of \"error\", \"warn\""),
        ("team", "members = [1]", "team.members #1: is a number where a member belongs"),
        ("team", "members = 1", "is a number where a list of members belongs"),
    ];
    for (section, line, expected) in cases {
        let faults = load(&format!("[{section}]\n{line}\n"), &[]).unwrap_err();
        let told = faults.to_string();
        assert!(told.contains(expected), "{line}\n{told}");
        assert!(told.contains("c.toml:2: "), "{line}\n{told}");
        assert!(faults.iter().all(|fault| !fault.hint.is_empty() && !fault.key.is_empty()), "{line}\n{told}");
        assert_eq!(faults.iter().count(), 1, "{line}\n{told}");
    }
    assert_eq!(cases.len(), 52);
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_file() {
    let toml = "listen = \"127.0.0.1:80\"\n[wait]\ntimout = \"1s\"\nlinger = 2\n[upstraem]\nretries = 1\n\
        [cache]\nlive_ttl = \"x\"\n[auth]\nmode = \"sidecar\"\n";
    let env = [("CLIPGATE__LOG__LEVEL", "loud"), ("CLIPGATE__LOG__LEVLE", "info")];
    let faults = load(toml, &env).unwrap_err();
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
    assert_eq!(places(&faults), expected);
    assert!(faults.to_string().starts_with("the configuration has 8 faults\n\n"));
}

#[test]
fn an_unknown_key_is_told_with_the_nearest_known_one() {
    let cases = [
        (
            "[wait]\ntimout = \"1s\"",
            "nearest known key is wait.timeout, written `timeout = ...` under [wait]",
        ),
        ("\nlisten = \"a\"", "nearest known key is server.listen"),
        ("\ntimeout = \"a\"", "nearest known key is wait.timeout"),
        ("[upstream]\ntimeout = \"a\"", "nearest known key is wait.timeout"),
        ("[server]\nbase_url = \"a\"", "nearest known key is upstream.base_url"),
        ("[server]\ntls = { kee = \"a\" }", "nearest known key is server.tls.key"),
        ("\n[upstreem]\nretries = 1", "nearest known section is [upstream]"),
        ("\n\"wait.timeout\" = \"1s\"", "\"wait.timeout\": there is no such key"),
        ("\n[[team.member]]\nname = \"a\"", "nearest known key is team.members, written [[team.members]]"),
        ("\nserver = 1", "write [server] on a line of its own"),
        ("[server]\nlisten.tcp = \"a\"", "server.listen: is a table where text belongs"),
        ("\n[[server]]\nlisten = \"a\"", "server: is a section, not a list"),
    ];
    for (toml, expected) in cases {
        let told = told(toml);
        assert!(told.contains(expected), "{toml}\n{told}");
        assert!(told.contains("c.toml:2: "), "{toml}\n{told}");
    }
    assert_eq!(cases.len(), 12);
    let told = load("", &[("CLIPGATE__UPSTREAM__API_KYE", "sk-1")]).unwrap_err().to_string();
    assert!(told.contains("the nearest known key is CLIPGATE__UPSTREAM__API_KEY"), "{told}");
    assert!(load("", &[("CLIPGATE_CONFIG", "x"), ("CLIPGATE_ADMIN_TOKEN", "x")]).is_ok());
}

#[test]
fn what_is_no_toml_is_told_with_line_column_and_caret() {
    let told = told("[server]\nlisten = 127.0.0.1:8080\n");
    assert!(told.contains("c.toml:2: column 15: this is no TOML"), "{told}");
    assert!(told.contains("\n    2 | listen = 127.0.0.1:8080\n      |               ^\n"), "{told}");
    assert!(told.contains("text stands in quotes"), "{told}");
    let told = load("[wait]\ntimeout = \"1s\"\ntimeout = \"2s\"\n[server\n", &[]).unwrap_err();
    assert_eq!(places(&told), ["3 ", "4 "]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let faults = Config::load(Some(Path::new("/no/such/c.toml")), []).unwrap_err().to_string();
    assert!(faults.contains("/no/such/c.toml: cannot be read: "), "{faults}");
    let dir = tempfile::tempdir().unwrap();
    assert!(Config::load(Some(dir.path()), []).is_err());
    let path = dir.path().join("c.toml");
    std::fs::write(&path, b"[wait]\n# \xff\n").unwrap();
    assert!(Config::load(Some(&path), []).unwrap_err().to_string().contains("is not UTF-8 text (line 2)"));
    std::fs::write(&path, vec![b'\n'; 2 << 20]).unwrap();
    assert!(Config::load(Some(&path), []).unwrap_err().to_string().contains("is larger than 1 MiB"));
}

#[test]
fn a_secret_comes_from_itself_a_variable_or_a_file() {
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
fn no_secret_is_ever_shown() {
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
        let faults = load(toml, &[]).unwrap_err();
        assert!(!format!("{faults} {faults:?}").contains(mark), "{toml}\n{faults}");
    }
    assert_eq!(cases.len(), 19);
    let env = [("CLIPGATE__UPSTREAM__API_KEY", "HUSHHUSH"), ("CLIPGATE__AUTH__MODE", "sidecar")];
    let config = load("", &env).unwrap();
    assert!(!format!("{config:?} {:?}", config.warnings()).contains(mark));
    for name in ["CLIPGATE__UPSTREAM__API_KEY", "CLIPGATE__ADMIN__TOKEN", "CLIPGATE__UPSTREAM__API_KYE"] {
        for value in ["HUSHHUSH x", "[\"HUSHHUSH\"]", "{ a = \"HUSHHUSH\" }", "\"HUSHHUSH\u{1}\""] {
            let faults = load("", &[(name, value)]).unwrap_err();
            assert!(!format!("{faults} {faults:?}").contains(mark), "{name}={value}\n{faults}");
        }
    }
}

#[test]
fn a_team_is_read_and_its_members_told_apart() {
    let member = |name: &str, digit: char| {
        let hash = HASH.replace('0', &digit.to_string());
        format!("[[team.members]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nupstream_key = \"k\"\n")
    };
    let mode = "[auth]\nmode = \"team\"\n";
    let config = load(&format!("{mode}{}{}burst = 3\n", member("a", '0'), member("b", 'F')), &[]).unwrap();
    let AuthConfig::Team(members) = config.auth else { panic!("no team") };
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
        let faults = load(toml, &[]).unwrap_err();
        assert_eq!(places(&faults)[0], *expected, "{toml}\n{faults}");
    }
    assert_eq!(cases.len(), 6);
    let list = format!(r#"[{{ name = "a", token_sha256 = "{HASH}", upstream_key = "env:K" }}]"#);
    let env = [("CLIPGATE__TEAM__MEMBERS", list.as_str()), ("CLIPGATE__AUTH__MODE", "team"), ("K", "k")];
    assert!(matches!(load("", &env).unwrap().auth, AuthConfig::Team(members) if members.len() == 1));
}

#[test]
fn an_address_with_a_path_keeps_it_without_its_last_slash() {
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
        // cut off anywhere, and with one character turned into another
        let step = 1 + seed.len() / 60;
        for (at, _) in seed.char_indices().step_by(step) {
            for odd in ["", "\"", "[", "]", "=", "\n", "\u{e9}", "{", "'''", "."] {
                let rest = seed[at..].chars().next().map_or("", |c| &seed[at + c.len_utf8()..]);
                let toml = format!("{}{odd}{rest}", &seed[..at]);
                let mut entries = source::RawConfig::default();
                let mut faults = Vec::new();
                match entries.document(&toml, &"odd".into(), &mut faults) {
                    Ok(()) => drop(schema::build(&entries, &BTreeMap::new(), &mut faults)),
                    Err(syntax) => faults.extend(syntax),
                }
                let _ = ConfigErrors::new(faults).to_string();
                tried += 1;
            }
        }
    }
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(load(&deep, &[]).is_err());
    assert!(load("", &[("CLIPGATE__SERVER__LISTEN", &"[".repeat(100_000))]).is_err());
    assert!(tried > 4000, "{tried}");
}
