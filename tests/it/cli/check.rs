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
    let expected = "clipgate: the configuration has 2 errors\n\n\
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
