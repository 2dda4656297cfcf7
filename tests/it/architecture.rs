//! Checks the sources against the design: layers of imports, crates and words that only some modules may name, and the
//! length of files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::language::{Text, comments_and_documents};

/// Layers, the lowest first. A module may import modules of lower rows and its own children.
const LAYERS: [&[&str]; 11] = [
    &["core", "clock", "printable", "secret", "socket", "tls_roots"],
    &["protocol"],
    &["config"],
    &["telemetry"],
    &["auth", "cache", "cluster", "limits", "upstream", "sim"],
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
    found.retain(|source| !TEST_MODULES.iter().any(|tests| is_under(&source.name, tests)));
    assert!((50..=400).contains(&found.len()), "{} sources", found.len());
    found
}

/// Modules that their parents declare with `#[cfg(test)]`.
const TEST_MODULES: [&str; 4] =
    ["core/coalescer/simulation", "core/siblings/simulation", "core/simulation", "core/sweep"];

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
    let strays = strays(&["core/route", "sim/vendors"], |line| {
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

/// Type names that may occur more than once in `src/`.
const REPEATED_TYPES: [&str; 1] = [
    "Args", // clap's arguments of a command, one file each
];

/// Returns the name of the type that the line defines. Associated types are indented and do not count.
fn defined_type(line: &str) -> Option<&str> {
    let mut item = line.trim_start();
    if let Some(public) = item.strip_prefix("pub") {
        item = public
            .strip_prefix('(')
            .and_then(|scope| scope.split_once(')'))
            .map_or(public, |(_, item)| item)
            .trim_start();
    }
    let (keyword, rest) = item.split_once(' ')?;
    let is_type =
        matches!(keyword, "struct" | "enum" | "trait") || (keyword == "type" && !line.starts_with(' '));
    is_type.then(|| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
}

/// The names of the files that a line such as `mod simulation;` makes part of the tests.
fn test_files(sources: &[Source]) -> Vec<String> {
    let mut files = Vec::new();
    for source in sources {
        for lines in source.code.windows(2).filter(|lines| lines[0].trim() == "#[cfg(test)]") {
            let module = lines[1].trim().strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
            let folder = if matches!(source.name.as_str(), "lib" | "main") { "" } else { &source.name };
            files
                .extend(module.map(|module| format!("{folder}/{module}").trim_start_matches('/').to_owned()));
        }
    }
    files
}

#[test]
fn a_type_name_occurs_once() {
    let sources = sources();
    let tests = test_files(&sources);
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !tests.iter().any(|of| is_under(&source.name, of))) {
        for name in source.code.iter().filter_map(|line| defined_type(line)) {
            places.entry(name).or_default().push(&source.name);
        }
    }
    assert!(places.len() > 200, "{} types", places.len());
    places.retain(|name, places| places.len() > 1 && !REPEATED_TYPES.contains(name));
    assert!(places.is_empty(), "{} names: {places:#?}", places.len());
}

#[test]
fn type_definitions_are_recognized() {
    assert_eq!(defined_type("pub(crate) struct Poll<'a> {"), Some("Poll"));
    assert_eq!(defined_type("    enum Phase {"), Some("Phase"));
    assert_eq!(defined_type("pub trait Clock: Send {"), Some("Clock"));
    assert_eq!(defined_type("pub(in crate::core) type Jobs = Vec<Job>;"), Some("Jobs"));
    assert_eq!(defined_type("    type Response = Body;"), None);
    assert_eq!(defined_type("use super::Poll;"), None);
    assert_eq!(defined_type("pub fn struct_of() {"), None);
}

#[test]
fn the_readme_is_short() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let lines = readme.lines().count();
    assert!(lines <= 170, "README.md has {lines} lines: details belong to docs/");
}

/// Returns the numbers of guarantees that a text cites: `P2`, not `P256` or `HTTP2`.
fn cited_guarantees(text: &str) -> Vec<u8> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_');
    let numbers = words.filter_map(|word| word.trim_end_matches("'s").strip_prefix('P'));
    numbers.filter(|number| number.len() <= 2).filter_map(|number| number.parse().ok()).collect()
}

/// Returns whether a text cites a numbered promise, row or section of a page that is not in the repository.
fn cites_other_page(text: &str) -> bool {
    let text = text.to_lowercase();
    let words: Vec<_> =
        text.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric())).collect();
    let is_row =
        |number: &str| number.split_once('.').is_some_and(|(table, row)| is_number(table) && is_number(row));
    words.windows(2).enumerate().any(|(at, pair)| match pair[0] {
        "promise" | "promises" => is_number(pair[1].trim_end_matches("'s")),
        "row" | "rows" => is_row(pair[1]),
        // Sections of standards are cited by their name.
        "section" | "sections" if pair[1].starts_with(|c: char| c.is_ascii_digit()) => {
            !words[at.saturating_sub(3)..at].iter().any(|word| matches!(*word, "rfc" | "standard"))
        }
        _ => false,
    })
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_digit())
}

#[test]
fn every_cited_guarantee_is_one_of_the_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guarantees.md");
    let page = std::fs::read_to_string(path).expect("docs/guarantees.md");
    let headings =
        page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_matches(['#', ' ']));
    let names =
        headings.filter(|heading| heading.starts_with('P')).filter_map(|heading| heading.split(' ').next());
    let documented: Vec<u8> = names.flat_map(cited_guarantees).collect();
    assert_eq!(documented, (1..=12).collect::<Vec<u8>>());

    let (mut in_code, mut wrong) = (BTreeSet::new(), Vec::new());
    for Text { place, text } in comments_and_documents() {
        let cited = cited_guarantees(&text);
        let is_code = place.contains("/src/");
        if cited.iter().any(|number| !documented.contains(number))
            || (place.contains(".rs:") && cites_other_page(&text))
        {
            wrong.push(format!("{place}: {text}"));
        }
        in_code.extend(cited.into_iter().filter(|_| is_code));
    }
    assert!(wrong.is_empty(), "{} places: {wrong:#?}", wrong.len());
    assert_eq!(in_code.into_iter().collect::<Vec<_>>(), documented, "the guarantees that src/ cites");
}

#[test]
fn citations_are_recognized() {
    assert_eq!(cited_guarantees("P2, `P11`: P12's, not HTTP2, P256, P-3 or p99"), [2, 11, 12]);
    assert_eq!(cited_guarantees("(P1 to P13)"), [1, 13]);
    assert!(cited_guarantees("the 99th percentile").is_empty());
    for text in ["Promise 4.", "promises 1 and 2", "Row 2.6:", "(contract, section 9)", "contract section 9"]
    {
        assert!(cites_other_page(text), "{text}");
    }
    for text in ["RFC 9112, section 6.3", "HTML Standard, section 9.2", "the first row", "keeps its promise"]
    {
        assert!(!cites_other_page(text), "{text}");
    }
}

/// Each link of ARCHITECTURE.md to a line leads to the item that it names.
#[test]
fn the_links_of_the_architecture_page_lead_to_the_lines_that_they_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut links = 0;
    for (before, after) in page.match_indices("](src/").map(|(at, _)| (&page[..at], &page[at + 2..])) {
        let target = after.split(')').next().unwrap();
        let Some((path, line)) = target.split_once("#L") else { panic!("no line in {target}") };
        let name = before.rsplit('[').next().unwrap().trim_matches('`');
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let found = text.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap_or_default();
        let lines: Vec<usize> =
            text.lines().enumerate().filter(|(_, line)| has_word(line, name)).map(|(at, _)| at + 1).collect();
        assert!(has_word(found, name), "{target} is not the line of {name}, which is on {lines:?}: {found}");
        links += 1;
    }
    assert!(links >= 15, "{links} links");
}
