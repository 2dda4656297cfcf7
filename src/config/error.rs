//! Errors of a configuration: place, key, problem and hint.
//!
//! All of it is shown to operators, so the value of a secret must never be in it.

use std::fmt;
use std::sync::Arc;

use super::types::TlsConfig;

/// Place where a value was set. The order of the variants is the order in which errors are reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Default,
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

/// Error of one value, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidValue {
    pub problem: String,
    /// Advice on a valid value, as sentences.
    pub hint: String,
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}", self.problem, self.hint)
    }
}

impl std::error::Error for InvalidValue {}

pub(super) fn invalid<T>(problem: impl Into<String>, hint: impl Into<String>) -> Result<T, InvalidValue> {
    Err(InvalidValue { problem: problem.into(), hint: hint.into() })
}

/// One error of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub source: Source,
    /// The key, `section.name`; empty for an error of the whole file.
    pub key: String,
    pub problem: String,
    /// Advice, with several lines if it shows a line of the file.
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

/// All errors of a configuration in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    tls: Option<TlsConfig>,
}

impl ConfigErrors {
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by(|a, b| a.source.cmp(&b.source));
        Self { errors, tls: None }
    }

    /// Adds `server.tls` of the invalid configuration.
    pub(super) fn with_tls(self, tls: Option<TlsConfig>) -> Self {
        Self { tls, ..self }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.errors.iter()
    }

    /// Returns `server.tls`, if it has no error itself: its files can be checked in the same run.
    pub(crate) fn tls(&self) -> Option<&TlsConfig> {
        self.tls.as_ref()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errors.len() {
            1 => writeln!(f, "the configuration has 1 error")?,
            n => writeln!(f, "the configuration has {n} errors")?,
        }
        self.errors.iter().try_for_each(|error| write!(f, "\n{error}"))
    }
}

impl std::error::Error for ConfigErrors {}
