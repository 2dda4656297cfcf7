//! Splits a file into passages: the comments, messages, test names and paragraphs that people read.

use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `///` and `//!`.
    DocComment,
    Comment,
    /// A string literal of three words or more, outside of tests.
    Message,
    TestName,
    Paragraph,
    /// A heading of a document, or a list item that links to one.
    Heading,
}

/// Lines that belong together: a comment block, a paragraph, one literal.
#[derive(Debug)]
pub(crate) struct Passage {
    pub(crate) kind: Kind,
    /// Line numbers start at 1.
    pub(crate) lines: Vec<(usize, String)>,
}

impl Passage {
    fn new(kind: Kind, line: usize, text: &str) -> Self {
        Self {
            kind,
            lines: text.split('\n').enumerate().map(|(at, text)| (line + at, text.to_owned())).collect(),
        }
    }

    /// Whether a comment of this kind on this line continues the block.
    fn continues(&self, kind: Kind, line: usize) -> bool {
        self.kind == kind && self.lines.last().is_some_and(|(last, _)| last + 1 == line)
    }
}

/// Returns the passages of a file, or nothing for a format without comments that this module reads.
pub(crate) fn passages(path: &Path, source: &str) -> Vec<Passage> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => rust(source),
        Some("md") => markdown(source),
        Some("js" | "mjs" | "css") => line_comments(source, "//"),
        Some("toml" | "yml" | "yaml" | "sh" | "py" | "mk" | "service" | "socket" | "cfg" | "conf") => {
            line_comments(source, "#")
        }
        None if matches!(name, "Makefile" | "Dockerfile") || source.starts_with("#!") => {
            line_comments(source, "#")
        }
        _ => Vec::new(),
    }
}

/// A scan of Rust source that knows comments, literals and attributes, and nothing of the grammar.
struct Scan<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    passages: Vec<Passage>,
    /// A comment stands alone on its line, so that the next line may continue it.
    is_open_block: bool,
    is_test_next: bool,
    is_in_tests: bool,
}

pub(crate) fn rust(source: &str) -> Vec<Passage> {
    let mut scan = Scan {
        source,
        at: 0,
        line: 1,
        passages: Vec::new(),
        is_open_block: false,
        is_test_next: false,
        is_in_tests: false,
    };
    while let Some(next) = scan.rest().chars().next() {
        scan.step(next);
    }
    scan.passages
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
        passed
    }

    fn step(&mut self, next: char) {
        let rest = self.rest();
        match next {
            '/' if rest.starts_with("//") => self.line_comment(),
            '/' if rest.starts_with("/*") => self.block_comment(),
            '"' => self.string(1),
            '\'' => self.quote(),
            '#' if rest.starts_with("#[") => self.attribute(),
            c if c.is_alphanumeric() || c == '_' => self.identifier(),
            c => {
                self.advance(c.len_utf8());
            }
        }
    }

    fn line_comment(&mut self) {
        let line = self.line;
        let before = self.source[..self.at].rsplit('\n').next().unwrap_or_default();
        let stands_alone = before.trim().is_empty();
        let comment = self.advance(self.rest().find('\n').unwrap_or(self.rest().len()));
        let is_doc =
            comment.starts_with("//!") || (comment.starts_with("///") && !comment.starts_with("////"));
        let kind = if is_doc { Kind::DocComment } else { Kind::Comment };
        let text = comment.trim_start_matches('/').trim_start_matches('!');
        match self.passages.last_mut() {
            Some(last) if stands_alone && self.is_open_block && last.continues(kind, line) => {
                last.lines.push((line, text.to_owned()));
            }
            _ => self.passages.push(Passage::new(kind, line, text)),
        }
        self.is_open_block = stands_alone;
    }

    fn block_comment(&mut self) {
        let rest = self.rest();
        let mut depth = 0;
        let mut end = 0;
        while end < rest.len() {
            if rest[end..].starts_with("/*") {
                depth += 1;
                end += 2;
            } else if rest[end..].starts_with("*/") {
                depth -= 1;
                end += 2;
                if depth == 0 {
                    break;
                }
            } else {
                end += rest[end..].chars().next().map_or(1, char::len_utf8);
            }
        }
        let line = self.line;
        let text = self.advance(end).trim_start_matches("/*").trim_end_matches("*/");
        self.passages.push(Passage::new(Kind::Comment, line, text));
    }

    /// Reads a literal whose first quote is the last of `opening` bytes.
    fn string(&mut self, opening: usize) {
        let start = self.line;
        let prefix = self.advance(opening);
        let rest = self.rest();
        let text;
        if prefix.contains('r') {
            let close = format!("\"{}", "#".repeat(prefix.matches('#').count()));
            let end = rest.find(&close).unwrap_or(rest.len());
            text = rest[..end].to_owned();
            self.advance((end + close.len()).min(rest.len()));
        } else {
            let mut end = 0;
            while let Some(next) = rest[end..].chars().next().filter(|next| *next != '"') {
                end += next.len_utf8();
                if next == '\\' {
                    end += rest[end..].chars().next().map_or(0, char::len_utf8);
                }
            }
            text = rest[..end].replace("\\n", " . ").replace("\\\"", "\"").replace("\\\n", "\n");
            self.advance((end + 1).min(rest.len()));
        }
        let letters = |word: &&str| word.chars().all(|c| c.is_alphabetic() || ",.;:'".contains(c));
        if !self.is_in_tests && text.split_whitespace().filter(letters).count() >= 3 {
            self.passages.push(Passage::new(Kind::Message, start, &hide_placeholders(&text)));
        }
    }

    /// Passes a character literal, or the first quote of a lifetime.
    fn quote(&mut self) {
        let mut chars = self.rest().char_indices().skip(1);
        let bytes = match (chars.next(), chars.next()) {
            (Some((_, '\\')), Some((at, escaped))) => {
                let after = at + escaped.len_utf8();
                after + self.rest()[after..].find('\'').map_or(0, |end| end + 1)
            }
            (Some(_), Some((at, '\''))) => at + 1,
            _ => 1,
        };
        self.advance(bytes);
    }

    fn attribute(&mut self) {
        let rest = &self.rest()[2..];
        let path =
            rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap_or_default();
        self.is_test_next |= path == "test" || path.ends_with("::test");
        if let Some(item) = rest.strip_prefix("cfg(test)]") {
            let item = item.trim_start().lines().next().unwrap_or_default();
            self.is_in_tests |= item.starts_with("mod ") && item.ends_with('{');
        }
        self.advance(2);
    }

    fn identifier(&mut self) {
        let rest = self.rest();
        let is_other = |c: char| !c.is_alphanumeric() && c != '_';
        let name = &rest[..rest.find(is_other).unwrap_or(rest.len())];
        if matches!(name, "r" | "b" | "br" | "c" | "cr") {
            let hashes = rest[name.len()..].chars().take_while(|c| *c == '#').count();
            if rest[name.len() + hashes..].starts_with('"') && (hashes == 0 || name.contains('r')) {
                return self.string(name.len() + hashes + 1);
            }
        }
        self.advance(name.len());
        if name == "fn" && std::mem::take(&mut self.is_test_next) {
            let name = self.rest().trim_start().split(is_other).next().unwrap_or_default();
            self.passages.push(Passage::new(Kind::TestName, self.line, &name.replace('_', " ")));
        }
    }
}

/// Turns `{…}` of a format string into code, which has no words.
fn hide_placeholders(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        shown.push_str(before);
        let Some(end) = after.find('}') else { break };
        shown.push_str("`x`");
        rest = &after[end + 1..];
    }
    shown + rest
}

/// Paragraphs, list items, headings and table rows, without code blocks.
pub(crate) fn markdown(source: &str) -> Vec<Passage> {
    let mut passages: Vec<Passage> = Vec::new();
    let mut is_code = false;
    let mut is_apart = true;
    for (at, text) in source.lines().enumerate() {
        let trimmed = text.trim_start();
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            is_code = !is_code;
            is_apart = true;
            continue;
        }
        if is_code {
            continue;
        }
        let is_heading = trimmed.starts_with('#');
        let is_item = ["- ", "* ", "+ ", "|", ">"].iter().any(|mark| trimmed.starts_with(mark))
            || trimmed.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
        let kind = if is_heading || trimmed.starts_with("- [") && trimmed.ends_with(')') {
            Kind::Heading
        } else {
            Kind::Paragraph
        };
        match passages.last_mut() {
            Some(last) if !(is_apart || is_heading || is_item || trimmed.is_empty()) => {
                last.lines.push((at + 1, text.to_owned()));
            }
            _ if !trimmed.is_empty() => passages.push(Passage::new(kind, at + 1, text)),
            _ => {}
        }
        is_apart = trimmed.is_empty() || is_heading;
    }
    passages
}

/// Comments that run from `mark` to the end of a line.
pub(crate) fn line_comments(source: &str, mark: &str) -> Vec<Passage> {
    let mut passages: Vec<Passage> = Vec::new();
    let mut is_open_block = false;
    for (at, text) in source.lines().enumerate() {
        let trimmed = text.trim_start();
        let stands_alone = trimmed.starts_with(mark) && !trimmed.starts_with("#!");
        let comment = match text.split_once(&format!(" {mark} ")) {
            _ if stands_alone => Some(trimmed.trim_start_matches(mark)),
            Some((_, comment)) => Some(comment),
            None => None,
        };
        if let Some(comment) = comment {
            match passages.last_mut() {
                Some(last) if stands_alone && is_open_block && last.continues(Kind::Comment, at + 1) => {
                    last.lines.push((at + 1, comment.to_owned()));
                }
                _ => passages.push(Passage::new(Kind::Comment, at + 1, comment)),
            }
        }
        is_open_block = stands_alone;
    }
    passages
}
