//! Templates of paths: literal segments, and variables such as `{id}`.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::core::job::MAX_ID_BYTES;

/// Name of the variable that has the id of the job.
pub const ID: &str = "id";

/// A path with variables, each of which is one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    text: String,
    /// Empty for a path without variables: such a path is compared as one text.
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// `suffix` is empty or a verb such as `:cancel`.
    Variable {
        name: String,
        suffix: String,
    },
}

/// Error in a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// The text does not begin with a slash, or has an empty segment, a dot segment, a query or a fragment.
    #[error("is not a path such as \"/v1/jobs/{{id}}\"")]
    NotAPath,
    /// A brace is open, or a variable is only a part of its segment.
    #[error("has a variable that is not a whole segment; write \"/{{name}}/\"")]
    PartOfSegment,
    /// The name of a variable is empty or has other characters than letters, digits and underscores.
    #[error("has a variable without a name of letters, digits and underscores")]
    BadName,
    /// Two variables have the same name.
    #[error("names a variable twice")]
    Repeated,
}

impl PathTemplate {
    /// Parses a template. `{name}:verb` is one segment too.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let path = text.strip_prefix('/').ok_or(BadTemplate::NotAPath)?;
        let is_path =
            text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\' | b'%'));
        if !is_path {
            return Err(BadTemplate::NotAPath);
        }
        let segments = path.split('/').map(Segment::parse).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<&str> = segments.iter().filter_map(Segment::name).collect();
        if names.iter().enumerate().any(|(n, name)| names[..n].contains(name)) {
            return Err(BadTemplate::Repeated);
        }
        let segments = if names.is_empty() { Vec::new() } else { segments };
        Ok(Self { text: text.to_owned(), segments })
    }

    /// Returns the template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Iterates over the names of the variables, in the order of the path.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// Returns whether the template has the variable `{id}`.
    pub fn has_id(&self) -> bool {
        self.variables().any(|name| name == ID)
    }

    /// Returns whether a variable is followed by a verb.
    pub fn has_verb(&self) -> bool {
        self.segments
            .iter()
            .any(|segment| matches!(segment, Segment::Variable { suffix, .. } if !suffix.is_empty()))
    }

    /// Returns the raw value of each variable, in the order of the path, if this path has the form of the template.
    /// Literal segments are compared letter for letter.
    pub fn captures<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        if self.segments.is_empty() {
            return (path == self.text).then(Vec::new);
        }
        let mut values = Vec::new();
        let mut found = path.strip_prefix('/')?.split('/');
        for segment in &self.segments {
            let text = found.next()?;
            match segment {
                Segment::Literal(literal) if literal == text => {}
                Segment::Literal(_) => return None,
                Segment::Variable { suffix, .. } => values.push(text.strip_suffix(suffix.as_str())?),
            }
        }
        found.next().is_none().then_some(values)
    }

    /// Returns the captures of the beginning of a path, and the rest of it: empty, or from the slash or colon on that ends
    /// the template's part.
    pub fn captures_prefix<'p>(&self, path: &'p str) -> Option<(Vec<&'p str>, &'p str)> {
        let count = self.text.matches('/').count();
        let end = path.match_indices('/').nth(count).map_or(path.len(), |(at, _)| at);
        let (begin, below) = path.split_at(end);
        if let Some(values) = self.captures(begin) {
            return Some((values, below));
        }
        let (begin, _) = begin.rsplit_once(':')?;
        Some((self.captures(begin)?, &path[begin.len()..]))
    }

    /// Writes the path with these values, each encoded already.
    pub fn write<'v>(&self, out: &mut String, mut value: impl FnMut(&str) -> Cow<'v, str>) {
        if self.segments.is_empty() {
            return out.push_str(&self.text);
        }
        for segment in &self.segments {
            out.push('/');
            match segment {
                Segment::Literal(literal) => out.push_str(literal),
                Segment::Variable { name, suffix } => {
                    out.push_str(&value(name));
                    out.push_str(suffix);
                }
            }
        }
    }

    /// Returns a path that both templates take, if there is one.
    pub fn overlap(&self, other: &Self) -> Option<String> {
        let (one, two) = (self.all_segments(), other.all_segments());
        if one.len() != two.len() {
            return None;
        }
        let mut path = String::new();
        for (one, two) in one.iter().zip(&two) {
            path.push('/');
            path.push_str(&match (one, two) {
                (Segment::Literal(one), Segment::Literal(two)) if one == two => one.clone(),
                (Segment::Literal(_), Segment::Literal(_)) => return None,
                (Segment::Literal(literal), Segment::Variable { suffix, .. })
                | (Segment::Variable { suffix, .. }, Segment::Literal(literal)) => {
                    literal.strip_suffix(suffix.as_str())?;
                    literal.clone()
                }
                (Segment::Variable { name, suffix: one }, Segment::Variable { suffix: two, .. }) => {
                    let longer = if one.len() > two.len() { one } else { two };
                    (one.ends_with(two.as_str()) || two.ends_with(one.as_str())).then_some(())?;
                    format!("{}{longer}", name.to_uppercase())
                }
            });
        }
        Some(path)
    }

    fn all_segments(&self) -> Vec<Segment> {
        if !self.segments.is_empty() {
            return self.segments.clone();
        }
        self.text.split('/').skip(1).map(|text| Segment::Literal(text.to_owned())).collect()
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, BadTemplate> {
        let Some(rest) = text.strip_prefix('{') else {
            return match text {
                "" | "." | ".." => Err(BadTemplate::NotAPath),
                _ if text.contains(['{', '}']) => Err(BadTemplate::PartOfSegment),
                _ => Ok(Self::Literal(text.to_owned())),
            };
        };
        let (name, suffix) = rest.split_once('}').ok_or(BadTemplate::PartOfSegment)?;
        if !suffix.is_empty() && (!suffix.starts_with(':') || suffix.len() < 2 || suffix.contains(['{', '}']))
        {
            return Err(BadTemplate::PartOfSegment);
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(BadTemplate::BadName);
        }
        Ok(Self::Variable { name: name.to_owned(), suffix: suffix.to_owned() })
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Variable { name, .. } => Some(name),
        }
    }
}

/// Returns the decoded value of a variable. `None` if servers disagree about it: a slash, a dot segment, a path parameter,
/// a control character, or more than [`MAX_ID_BYTES`].
pub fn decode_segment(raw: &str) -> Option<Cow<'_, str>> {
    if raw.is_empty() || raw.len() > MAX_ID_BYTES * "%00".len() || raw.contains(';') {
        return None;
    }
    if has_broken_escape(raw) {
        return None;
    }
    let value = percent_decode_str(raw).decode_utf8().ok()?;
    let is_certain = value.len() <= MAX_ID_BYTES
        && !matches!(&*value, "." | "..")
        && !value.contains(['/', '\\'])
        && !value.chars().any(char::is_control);
    is_certain.then_some(value)
}

/// Returns whether a `%` is not followed by two hex digits.
pub(crate) fn has_broken_escape(text: &str) -> bool {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    !text.split('%').skip(1).all(is_escape)
}

/// Encodes the value of a variable: as RFC 3986 section 3.3 writes a segment, with the fewest escapes.
pub fn encode_segment(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, OUTSIDE_SEGMENT).into()
}

/// All characters but those of a segment (`pchar`). A semicolon is escaped, because some servers end the segment there.
const OUTSIDE_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> PathTemplate {
        PathTemplate::parse(text).unwrap()
    }

    #[test]
    fn a_variable_is_one_whole_segment() {
        for (text, error) in [
            ("v1/jobs/{id}", BadTemplate::NotAPath),
            ("/v1//{id}", BadTemplate::NotAPath),
            ("/v1/../{id}", BadTemplate::NotAPath),
            ("/v1/{id}?x=1", BadTemplate::NotAPath),
            ("/v1/jobs/", BadTemplate::NotAPath),
            ("/v1/x{id}", BadTemplate::PartOfSegment),
            ("/v1/{id}x", BadTemplate::PartOfSegment),
            ("/v1/{id", BadTemplate::PartOfSegment),
            ("/v1/{}", BadTemplate::BadName),
            ("/v1/{a-b}", BadTemplate::BadName),
            ("/{id}/{id}", BadTemplate::Repeated),
        ] {
            assert_eq!(PathTemplate::parse(text), Err(error), "{text}");
        }
        assert!(template("/v1/{id}:cancel").has_verb());
    }

    #[test]
    fn a_template_takes_paths_with_as_many_segments_and_the_same_literals() {
        let fal = template("/{owner}/{app}/requests/{id}/status");
        assert_eq!(fal.captures("/fal-ai/flux/requests/a%20b/status"), Some(vec!["fal-ai", "flux", "a%20b"]));
        for path in
            ["/fal-ai/flux/requests/a", "/fal-ai/flux/requests/a/status/", "/fal-ai/flux/Requests/a/status"]
        {
            assert_eq!(fal.captures(path), None, "{path}");
        }
        assert_eq!(template("/v1/{id}:cancel").captures("/v1/a:cancel"), Some(vec!["a"]));
        assert_eq!(template("/v1/jobs").captures("/v1/jobs"), Some(vec![]));
    }

    #[test]
    fn a_path_below_a_job_or_with_a_verb_begins_with_the_template() {
        let jobs = template("/v1/jobs/{id}");
        for (path, expected) in [
            ("/v1/jobs/a", Some((vec!["a"], ""))),
            ("/v1/jobs/a/cancel", Some((vec!["a"], "/cancel"))),
            ("/v1/jobs/a:cancel", Some((vec!["a:cancel"], ""))),
            ("/v1/job/a", None),
        ] {
            assert_eq!(jobs.captures_prefix(path), expected, "{path}");
        }
    }

    #[test]
    fn only_a_segment_that_all_servers_read_alike_is_decoded() {
        for raw in
            ["", ".", "..", "%2E%2e", "a%2Fb", "a%5Cb", "a;b", "a%0Ab", "%zz", "%", "%ff", &"x".repeat(513)]
        {
            assert_eq!(decode_segment(raw), None, "{raw}");
        }
        assert_eq!(decode_segment("a%3Ab").as_deref(), Some("a:b"));
        assert_eq!(encode_segment("a:b/c d;e"), "a:b%2Fc%20d%3Be");
    }

    #[test]
    fn two_templates_that_take_one_path_show_it() {
        let overlap = |one, two| template(one).overlap(&template(two));
        assert_eq!(overlap("/v1/{id}", "/{kind}/jobs"), Some("/v1/jobs".to_owned()));
        assert_eq!(overlap("/v1/{id}", "/v1/{job}"), Some("/v1/ID".to_owned()));
        assert_eq!(overlap("/v1/{id}", "/v2/{id}"), None);
        assert_eq!(overlap("/v1/{id}", "/v1/{id}/status"), None);
    }
}
