//! What is wrong with a configuration: where, which key, what, and how to mend it.
//!
//! Everything in here is shown to people, so no value of a secret may ever come in.

use std::fmt;
use std::sync::Arc;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nowhere: it is the default.
    Default,
    /// The file as a whole.
    File(Arc<str>),
    /// A line of the file, counted from 1.
    Line(Arc<str>, usize),
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("the defaults"),
            Source::File(file) => f.write_str(file),
            Source::Line(file, line) => write!(f, "{file}:{line}"),
            Source::Variable(name) => f.write_str(name),
            Source::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands.
    pub source: Source,
    /// The key, `section.name`; empty if the fault is no key's.
    pub key: String,
    /// What is wrong, continuing "KEY: ".
    pub problem: String,
    /// What to do, several lines where a line of the file is shown.
    pub hint: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)?;
        self.hint.lines().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Everything that is wrong, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// Sorts them by place.
    pub(super) fn new(mut faults: Vec<ConfigError>) -> Self {
        faults.sort_by(|a, b| a.source.cmp(&b.source));
        Self(faults)
    }

    /// One after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has a fault")?,
            n => writeln!(f, "the configuration has {n} faults")?,
        }
        self.0.iter().try_for_each(|fault| write!(f, "\n{fault}"))
    }
}

impl std::error::Error for ConfigErrors {}
