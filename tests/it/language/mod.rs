//! Counts the banned habits of writing (`CONTRIBUTING.md`) in comments, messages, test names and documents.
//!
//! `CLIPGATE_LANGUAGE_ROOT` points the count at another tree, to compare two states of this one:
//! `cargo test --test it language -- --nocapture`.

mod habits;
mod passages;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use habits::{HABITS, Habit};
use passages::{Kind, Passage, passages};

/// Occurrences per 10,000 words that each area may have. By this count the comments of mini-redis have 1.1 noun clauses
/// and nothing else; those of quinn-proto 2.6 noun clauses, 2.6 clauses first and 0.3 `told`; of pingora-core 5.5, 2.0
/// and 2.9; of hyper-util 6.0, 0 and 0; of h2 2.7, 0.8 and 0.8; of tokio 2.1, 0.9 and 0.6.
const LIMITS: [(Habit, f64); 8] = [
    (Habit::NounClause, 4.0),
    (Habit::ClauseFirst, 3.0),
    (Habit::Told, 3.0),
    (Habit::Nobody, 0.0),
    (Habit::IsNo, 0.5),
    (Habit::SameBut, 0.0),
    (Habit::ItFirst, 0.5),
    (Habit::Private, 0.0),
];

/// The part of the tree that a passage belongs to: each is held to the limits on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Area {
    Source,
    /// Comments of tests, benches, examples and fuzz targets.
    Tests,
    Documents,
    /// String literals of `src/`: errors, log messages, pages.
    Messages,
    TestNames,
    /// Comments of configuration, scripts and the dashboard.
    Scripts,
}

const AREAS: [(Area, &str); 6] = [
    (Area::Source, "src"),
    (Area::Tests, "tests"),
    (Area::Documents, "documents"),
    (Area::Messages, "messages"),
    (Area::TestNames, "test names"),
    (Area::Scripts, "scripts"),
];

/// A habit at a place.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) area: Area,
    pub(crate) habit: Habit,
    path: PathBuf,
    line: usize,
    /// The whole line.
    text: String,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    words: BTreeMap<Area, usize>,
    pub(crate) hits: Vec<Hit>,
}

impl Report {
    /// Counts the files under these paths.
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        let mut report = Self::default();
        for path in paths {
            for file in files(path) {
                if let Ok(source) = fs::read_to_string(&file) {
                    report.add(&file, &source);
                }
            }
        }
        report
    }

    fn add(&mut self, path: &Path, source: &str) {
        let in_package = path.ancestors().skip(1).find(|folder| folder.join("Cargo.toml").exists());
        let name = in_package.and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(path);
        let is_source = name.starts_with("src");
        let is_test =
            name.iter().any(|part| ["tests", "simulation", "sweep", "tests.rs"].iter().any(|of| part == *of));
        let lines: Vec<&str> = source.lines().collect();
        for passage in passages(path, source) {
            let area = match passage.kind {
                Kind::Paragraph | Kind::Heading => Area::Documents,
                Kind::TestName => Area::TestNames,
                Kind::Message if is_source && !is_test => Area::Messages,
                Kind::Message => continue,
                _ if path.extension().is_none_or(|extension| extension != "rs") => Area::Scripts,
                _ if is_source => Area::Source,
                _ => Area::Tests,
            };
            let words = habits::words(&passage);
            *self.words.entry(area).or_default() += words.len();
            for (at, word) in words.iter().enumerate() {
                for (habit, _) in HABITS.iter().filter(|(habit, _)| habit.is_at(passage.kind, &words, at)) {
                    let text = lines.get(word.line - 1).map_or("", |line| line.trim()).to_owned();
                    self.hits.push(Hit { area, habit: *habit, path: path.to_owned(), line: word.line, text });
                }
            }
        }
    }

    fn count(&self, area: Area, habit: Habit) -> usize {
        self.hits.iter().filter(|hit| hit.area == area && hit.habit == habit).count()
    }

    /// Occurrences per 10,000 words.
    fn rate(&self, area: Area, habit: Habit) -> f64 {
        let words = self.words.get(&area).copied().unwrap_or_default();
        self.count(area, habit) as f64 * 10_000.0 / words.max(1) as f64
    }

    /// Occurrences per 10,000 words, and their number.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:18}", "per 10,000 words");
        for (_, name) in AREAS {
            write!(table, "{name:>16}").unwrap();
        }
        write!(table, "\n{:18}", "words").unwrap();
        for (area, _) in AREAS {
            write!(table, "{:>16}", self.words.get(&area).copied().unwrap_or_default()).unwrap();
        }
        for (habit, name) in HABITS {
            write!(table, "\n{name:18}").unwrap();
            for (area, _) in AREAS {
                let cell = format!("{:.1} ({})", self.rate(area, habit), self.count(area, habit));
                write!(table, "{cell:>16}").unwrap();
            }
        }
        table + "\n"
    }

    /// Whether the area has more of the habit than its limit.
    fn is_over(&self, area: Area, habit: Habit) -> bool {
        LIMITS.iter().any(|(limited, limit)| *limited == habit && self.rate(area, habit) > *limit)
    }

    /// The lines that hold a habit, those with the most first.
    pub(crate) fn places(&self, is_shown: impl Fn(&Hit) -> bool) -> Vec<String> {
        let mut lines: BTreeMap<(&Path, usize), Vec<&Hit>> = BTreeMap::new();
        for hit in self.hits.iter().filter(|hit| is_shown(hit)) {
            lines.entry((&hit.path, hit.line)).or_default().push(hit);
        }
        let mut lines: Vec<_> = lines.into_iter().collect();
        lines.sort_by_key(|(_, hits)| std::cmp::Reverse(hits.len()));
        let place = |((path, line), hits): ((&Path, usize), Vec<&Hit>)| {
            let names = HABITS.iter().filter(|(habit, _)| hits.iter().any(|hit| hit.habit == *habit));
            let names: Vec<_> = names.map(|(_, name)| *name).collect();
            format!("{}:{line}: [{}] {}", path.display(), names.join("; "), hits[0].text)
        };
        lines.into_iter().map(place).collect()
    }
}

/// The files under a path in the order of their names, without build output and hidden folders other than `.ci`.
fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let mut entries: Vec<_> =
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let is_left_out = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        path.is_dir()
            && (matches!(name, "target" | "node_modules") || (name.starts_with('.') && name != ".ci"))
    };
    entries.retain(|path| !is_left_out(path));
    entries.iter().flat_map(|path| files(path)).collect()
}

/// A comment block of Rust or a paragraph of Markdown, with its file and first line.
pub(crate) struct Text {
    pub(crate) place: String,
    pub(crate) text: String,
}

/// Returns the comments and documents of the tree.
pub(crate) fn comments_and_documents() -> Vec<Text> {
    let is_comment = |passage: &Passage| !matches!(passage.kind, Kind::Message | Kind::TestName);
    let mut texts = Vec::new();
    let is_read =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs" || extension == "md");
    for file in files(&root()).into_iter().filter(is_read) {
        let source = fs::read_to_string(&file).unwrap();
        for passage in passages(&file, &source).into_iter().filter(is_comment) {
            let lines: Vec<_> = passage.lines.iter().map(|(_, line)| line.trim()).collect();
            texts.push(Text {
                place: format!("{}:{}", file.display(), passage.lines[0].0),
                text: lines.join(" "),
            });
        }
    }
    texts
}

fn root() -> PathBuf {
    let root = std::env::var_os("CLIPGATE_LANGUAGE_ROOT").map(PathBuf::from);
    root.or_else(|| option_env!("CARGO_MANIFEST_DIR").map(PathBuf::from)).unwrap_or_else(|| ".".into())
}

/// Counts a text as if it were the file.
fn count(file: &str, text: &str) -> Vec<(Area, Habit)> {
    let mut report = Report::default();
    report.add(Path::new(file), text);
    report.hits.iter().map(|hit| (hit.area, hit.habit)).collect()
}

/// Counts a text as one doc comment.
fn habits_of(comment: &str) -> Vec<Habit> {
    let comment: Vec<_> = comment.lines().map(|line| format!("/// {line}\n")).collect();
    count("src/a.rs", &comment.concat()).iter().map(|(_, habit)| *habit).collect()
}

#[test]
fn each_habit_is_counted_where_it_shows() {
    for (comment, habit) in [
        ("What the hub works with.", Habit::NounClause),
        ("Keeps what came.", Habit::NounClause),
        ("Keeps what\ncame.", Habit::NounClause),
        ("Keeps whatever comes.", Habit::NounClause),
        ("The answer to who asks for it.", Habit::NounClause),
        ("The key of those who wait.", Habit::NounClause),
        ("Whose certificates are valid.", Habit::NounClause),
        ("Is it late? What came is kept.", Habit::NounClause),
        ("Where the log goes.", Habit::ClauseFirst),
        ("How long a wait lasts.", Habit::ClauseFirst),
        ("The client is told the state.", Habit::Told),
        ("It tells.", Habit::ItFirst),
        ("Shared with nobody.", Habit::Nobody),
        ("Somebody's poll.", Habit::Nobody),
        ("Shared with no one.", Habit::Nobody),
        ("A head that is no HTTP.", Habit::IsNo),
        ("The same, but later.", Habit::SameBut),
        ("Its place.", Habit::ItFirst),
        ("The wait leans on a poll.", Habit::Private),
    ] {
        assert!(habits_of(comment).contains(&habit), "{comment}: {:?}", habits_of(comment));
    }
}

#[test]
fn plain_english_is_not_counted() {
    for comment in [
        "Returns whether the client may ask. The client, who waits, closes.",
        "Returns the client whose key is known, and a client who waits.",
        "What is the state of the job?",
        "Decides what to do and what happens next.",
        "Returns how long the poll was held, and where the log goes.",
        "There is no poll. The poll is no longer held. The size must be no larger than 5.",
        "There may be no polls. No one of them is held.",
        "Calls `what is`, `told` and `nobody`.",
        "The poll is held. It ends. Its wait ends.",
        "If you wish to wait, use the trailing dot.",
        "```\nwhat is told to nobody\n```",
        "",
    ] {
        assert_eq!(habits_of(comment), [], "{comment}");
    }
}

#[test]
fn only_text_for_people_is_counted() {
    let source = r##"
//! Text // told
fn told(nobody: &'static str) -> char { '"' } // told at the end
/* told /* and */ told */
#[error("nobody was here today: {told}")]
const SHORT: &str = "nobody here";
const RAW: &str = r#"nobody "was" here \ today"#;
const LONG: &str = "one two three \" \
    // nobody four";
#[tokio::test]
async fn it_is_told() { let what = b"told"; }
#[cfg(test)]
mod tests {
    #[test]
    fn told_again() { assert!(true, "nobody was here today"); }
}
"##;
    let told = |area| (area, Habit::Told);
    let nobody = (Area::Messages, Habit::Nobody);
    let comments = [told(Area::Source); 4];
    let expected: Vec<_> =
        comments.into_iter().chain([nobody; 3]).chain([told(Area::TestNames); 2]).collect();
    assert_eq!(count("src/a.rs", source), expected);
    assert_eq!(count("benches/a.rs", "// told"), [told(Area::Tests)]);
    assert_eq!(
        count("src/core/tests/a.rs", "// told\nconst A: &str = \"nobody was here today\";"),
        [told(Area::Source)]
    );
    assert_eq!(count("config.toml", "told = \"told\"\n# told\na = 1 # told"), [told(Area::Scripts); 2]);

    let document = "# Told\n\nA [told](told.html) line\nof text.\n\n```\ntold\n```\n- `told`\n- told\n";
    assert_eq!(count("README.md", document), [told(Area::Documents); 3]);
    let headings = "## What is cached\n- [What is cached](#what-is-cached)\n\n| what | why |\n| whom | what is cached |\n";
    assert_eq!(count("README.md", headings), [(Area::Documents, Habit::NounClause); 2]);
}

#[test]
fn rates_are_per_ten_thousand_words_and_the_worst_lines_come_first() {
    let mut report = Report::default();
    report.add(Path::new("src/a.rs"), "// told of two\n\n// nobody told\n");
    assert_eq!(report.rate(Area::Source, Habit::Told), 4_000.0);
    assert_eq!(report.rate(Area::Tests, Habit::Told), 0.0);
    let places = report.places(|_| true);
    let expected = [
        "src/a.rs:3: [told, tell; nobody, whoever] // nobody told",
        "src/a.rs:1: [told, tell] // told of two",
    ];
    assert_eq!(places, expected);
}

#[test]
fn limits_are_per_area_and_allow_no_more_than_models_have() {
    let mut report = Report::default();
    report.add(Path::new("src/a.rs"), &format!("// {}told told told", "word ".repeat(9_997)));
    report.add(Path::new("benches/a.rs"), &format!("// {}told told told told", "word ".repeat(9_996)));
    report.add(Path::new("README.md"), "nobody");
    assert!(!report.is_over(Area::Source, Habit::Told));
    assert!(report.is_over(Area::Tests, Habit::Told));
    assert!(report.is_over(Area::Documents, Habit::Nobody));
    assert!(HABITS.iter().all(|(habit, _)| LIMITS.iter().any(|(limited, _)| limited == habit)));
}

#[test]
fn the_tree_is_written_in_plain_words() {
    let root = root();
    let report = Report::of(std::slice::from_ref(&root));
    println!("{}", report.table());
    assert!(report.words.get(&Area::Source).is_some_and(|words| *words > 1_000), "no sources there");
    let over = report.places(|hit| report.is_over(hit.area, hit.habit));
    let worst: Vec<_> =
        over.iter().take(20).map(|line| line.replace(&format!("{}/", root.display()), "")).collect();
    assert!(over.is_empty(), "{}\n{} lines, the worst:\n{}", report.table(), over.len(), worst.join("\n"));
}
