//! Checks the sources against the design: layers of imports, crates and words that only some modules may name, and the
//! length of files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Layers, the lowest first. A module may import modules of lower rows and its own children.
const LAYERS: [&[&str]; 11] = [
    &["core", "clock", "printable", "secret", "socket"],
    &["protocol"],
    &["config"],
    &["telemetry"],
    &["auth", "cache", "limits", "upstream", "sim"],
    &["hub"],
    &["gateway"],
    &["server"],
    &["admin"],
    &["cli"],
    &["main"],
];
/// Modules that may name hyper. All others use the `http` crates.
const HYPER: [&str; 7] = [
    "upstream/client",
    "gateway/passthrough",
    "gateway/event_stream",
    "server",
    "admin",
    "sim",
    "telemetry/trace/otlp",
];
/// Modules that may spawn tasks.
const SPAWN: [&str; 4] = ["hub", "server", "admin", "cli/serve"];
/// Words that only name a state. `error` and `complete` have other uses as well.
const STATUS: [&str; 4] = ["submitted", "queued", "streaming", "completed"];

struct Source {
    /// Path under `src/` without the extension.
    name: String,
    /// Lines without comments and without the tests at the end.
    code: Vec<String>,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut dirs, mut found) = (vec![root.clone()], Vec::new());
    while let Some(dir) = dirs.pop() {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.filter(|path| !path.ends_with("tests") && !path.ends_with("tests.rs")) {
            match path.extension() {
                Some(ending) if ending == "rs" => found.push(source(&root, path)),
                _ if path.is_dir() => dirs.push(path),
                _ => {}
            }
        }
    }
    found.retain(|source| !TEST_MODULES.contains(&source.name.as_str()));
    assert!((50..=200).contains(&found.len()), "{} sources", found.len());
    found
}

/// Modules that their parents declare with `#[cfg(test)]`.
const TEST_MODULES: [&str; 1] = ["core/coalescer/simulation"];

fn source(root: &Path, path: PathBuf) -> Source {
    let text = std::fs::read_to_string(&path).unwrap();
    let without_tests = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = without_tests.lines();
    let code = lines.clone().filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect();
    let name = path.strip_prefix(root).unwrap().with_extension("").to_str().unwrap().replace("/mod", "");
    Source { name, code, lines: lines.count() }
}

/// Returns whether the name is this module or one under it.
fn is_under(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the matching lines of all files outside of the allowed modules.
fn strays(allowed: &[&str], has: impl Fn(&str) -> bool) -> Vec<String> {
    let mut strays = Vec::new();
    for source in sources().iter().filter(|source| !allowed.iter().any(|of| is_under(&source.name, of))) {
        let lines = source.code.iter().filter(|line| has(line));
        strays.extend(lines.map(|line| format!("{}: {}", source.name, line.trim())));
    }
    strays
}

/// Returns whether the text contains the word, not as a part of another word.
fn has_word(text: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word))
}

#[test]
fn a_file_imports_its_own_children_and_lower_layers() {
    let height: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(row, names)| names.iter().map(move |name| (*name, row)))
        .collect();
    let mut imports = 0;
    for source in sources().iter().filter(|source| source.name != "lib" && source.name != "main") {
        let own = source.name.split('/').next().unwrap();
        let row = *height.get(own).unwrap_or_else(|| panic!("src/{own} has no layer: add it to LAYERS"));
        for line in &source.code {
            for rest in line.split("crate::").skip(1) {
                let other = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                let other_row = *height.get(other).unwrap_or_else(|| panic!("{}: {line}", source.name));
                assert!(other == own || other_row < row, "{} imports a higher layer: {line}", source.name);
                imports += 1;
            }
        }
    }
    assert!(imports > 100, "{imports} imports");
}

#[test]
fn hyper_is_named_only_by_modules_that_speak_http() {
    let strays = strays(&HYPER, |line| line.contains("hyper::") || line.contains("hyper_util::"));
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn tasks_are_spawned_only_by_their_owners() {
    let strays = strays(&SPAWN, |line| line.contains("tokio::spawn") || line.contains("task::spawn"));
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn only_the_route_names_status_words() {
    let strays = strays(&["core/route"], |line| {
        let texts = line.split('"').skip(1).step_by(2);
        // A line inside a string literal of several lines has no quotes.
        let text = if line.contains('"') { texts.collect::<Vec<_>>().join(" ") } else { line.to_owned() };
        STATUS.iter().any(|word| has_word(&text, word))
    });
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn no_file_is_longer_than_500_lines_without_its_tests() {
    for source in sources() {
        assert!(source.lines <= 500, "src/{}.rs has {}", source.name, source.lines);
    }
}
