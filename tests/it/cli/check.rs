//! `clipgate check`: valid and invalid files.

use std::path::Path;
use std::process::{Command, Output};

fn check(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_clipgate"))
        .arg("check")
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("XDG_CONFIG_HOME", dir.join("xdg"))
        .output()
        .expect("clipgate starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is UTF-8")
}

#[test]
fn a_valid_file_exits_with_0_and_a_summary_on_stdout() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let dir = tempfile::tempdir().unwrap();
    let output = check(dir.path(), &["--config", default]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("the configuration is valid\n"));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn an_invalid_file_exits_with_2_and_all_errors_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.toml"), "[wait]\nlinger = 2\ntimout = \"1s\"\n").unwrap();
    let output = check(dir.path(), &["--config", "bad.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let expected = "error: the configuration has 2 errors\n\n\
        bad.toml:2: wait.linger: missing unit: 2\n    \
        Use \"2s\" for seconds. Other units are ms, m, h and d.\n\
        bad.toml:3: wait.timout: unknown key\n    \
        The nearest known key is wait.timeout, written `timeout = ...` under [wait].\n";
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn the_default_file_is_read_and_one_in_the_working_directory_is_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), "not = \"read\"\n").unwrap();
    std::fs::create_dir_all(dir.path().join("xdg/clipgate")).unwrap();
    let default = dir.path().join("xdg/clipgate/config.toml");
    std::fs::write(&default, "[server]\nlisten = \"127.0.0.1:7\"\n").unwrap();
    let output = check(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(&format!("  file      {}\n", default.display())));
    assert!(text(&output.stdout).contains("  listen    127.0.0.1:7\n"));
}

#[test]
fn missing_certificates_and_an_invalid_rust_log_are_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[server.tls]\ncert = \"no.pem\"\nkey = \"no.key\"\n";
    std::fs::write(dir.path().join("tls.toml"), config).unwrap();
    for command in ["check", "serve"] {
        let output = Command::new(env!("CARGO_BIN_EXE_clipgate"))
            .args([command, "--config", "tls.toml"])
            .current_dir(dir.path())
            .env_clear()
            .env("RUST_LOG", "clipgate=loud")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}");
        let errors = text(&output.stderr);
        assert!(errors.starts_with("error: the configuration has 3 errors\n\n"), "{errors}");
        for part in ["RUST_LOG", "server.tls.cert: no.pem", "server.tls.key: no.key"] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
}

#[test]
fn missing_certificates_are_reported_beside_errors_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "[server]\nlistn = \"x\"\ntls = { cert = \"no.crt\", key = \"no.key\" }\n";
    std::fs::write(dir.path().join("bad.toml"), toml).unwrap();
    let output = check(dir.path(), &["--config", "bad.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let errors = text(&output.stderr);
    for part in
        ["has 3 errors", "bad.toml:2: server.listn", "server.tls.cert: no.crt", "server.tls.key: no.key"]
    {
        assert!(errors.contains(part), "{errors}");
    }
}

#[test]
fn an_unknown_variable_is_a_warning_with_the_nearest_name() {
    let dir = tempfile::tempdir().unwrap();
    let warnings = |name: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        let output =
            command.arg("check").current_dir(dir.path()).env_clear().env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        text(&output.stderr).to_owned()
    };
    let rows = [
        ("CLIPGATE_WAIT_TIMEOUT", "CLIPGATE__WAIT__TIMEOUT"),
        ("CLIPGATE_LISTEN", "CLIPGATE__SERVER__LISTEN"),
        ("CLIPGATE_CONFG", "CLIPGATE_CONFIG"),
    ];
    for (name, nearest) in rows {
        let expected =
            format!("warning: the environment variable {name} is not read. Did you mean {nearest}?\n");
        assert_eq!(warnings(name, "x"), expected);
    }
    assert_eq!(rows.len(), 3);
    // Kubernetes sets these for a service called clipgate.
    assert_eq!(warnings("CLIPGATE_SERVICE_HOST", "10.0.0.1"), "");
    assert_eq!(warnings("CLIPGATE_PORT", "tcp://10.0.0.1:80"), "");
}

#[test]
fn a_file_in_another_format_is_one_error_that_names_the_format() {
    let dir = tempfile::tempdir().unwrap();
    for (content, format) in [("# a\nserver:\n  listen: x\n", "YAML"), ("{\"server\": 1}", "JSON")] {
        std::fs::write(dir.path().join("other"), content).unwrap();
        let output = check(dir.path(), &["-c", "other"]);
        assert_eq!(output.status.code(), Some(2));
        let errors = text(&output.stderr);
        assert!(errors.contains("1 error\n") && errors.contains(&format!("looks like {format}")), "{errors}");
    }
}

#[test]
fn the_values_in_force_have_their_places_and_no_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[wait]\ntimeout = \"60s\"\n[upstream]\napi_key = \"sk-secret\"\n";
    std::fs::write(dir.path().join("c.toml"), config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_clipgate"))
        .args(["config", "--effective", "-c", "c.toml"])
        .current_dir(dir.path())
        .env_clear()
        .env("CLIPGATE__WAIT__MAX_JOBS", "3")
        .output()
        .unwrap();
    let lines = text(&output.stdout);
    let rows = [
        ("wait.timeout = \"60s\"", "# c.toml:2"),
        ("wait.max_jobs = 3", "# CLIPGATE__WAIT__MAX_JOBS"),
        ("wait.linger = \"2s\"", "# default"),
        ("upstream.api_key = (a secret)", "# c.toml:4"),
    ];
    for (start, end) in rows {
        assert!(lines.lines().any(|line| line.starts_with(start) && line.ends_with(end)), "{start}: {lines}");
    }
    assert_eq!(rows.len(), 4);
    assert!(!lines.contains("sk-secret"));
}

#[test]
fn the_default_configuration_is_printed() {
    let output = Command::new(env!("CARGO_BIN_EXE_clipgate")).arg("config").output().unwrap();
    assert_eq!(text(&output.stdout), include_str!("../../../config.toml"));
}

#[test]
fn an_address_of_serve_may_lack_its_host() {
    let dir = tempfile::tempdir().unwrap();
    for address in ["8085", ":8085", "localhost:8085", "127.0.0.1:8085"] {
        let config = format!("server.listen = \"{address}\"\n");
        std::fs::write(dir.path().join("c.toml"), config).unwrap();
        let output = check(dir.path(), &["-c", "c.toml"]);
        assert!(text(&output.stdout).contains("  listen    127.0.0.1:8085\n"), "{address}");
    }
}
