//! Reads one raw value as what its key means, or says what is wrong with it.
//!
//! Each method fills a slot and leaves it as it was where the value is wrong; the fault is noted, so that one
//! run finds all of them. What a secret says, and what stands where one may have been put by mistake, is never
//! repeated in a fault.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use http::Uri;
use ipnet::IpNet;

use super::Listen;
use super::error::{ConfigError, Source};
use super::source::{LocatedValue, RawValue};
use crate::secret::Secret;

/// What is wrong with a text, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidValue {
    /// What is wrong, continuing "KEY: ".
    pub problem: String,
    /// What to write.
    pub hint: String,
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.hint)
    }
}

impl std::error::Error for InvalidValue {}

pub(super) fn invalid<T>(what: impl Into<String>, fix: impl Into<String>) -> Result<T, InvalidValue> {
    Err(InvalidValue { problem: what.into(), hint: fix.into() })
}

/// One value under its key.
pub(super) struct ValueReader<'a> {
    pub(super) key: String,
    pub(super) item: &'a LocatedValue,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) faults: &'a mut Vec<ConfigError>,
}

impl ValueReader<'_> {
    /// A whole number.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, slot: &mut T, range: RangeInclusive<u64>) {
        let fix = format!("write a whole number from {} to {}", range.start(), range.end());
        let number = match &self.item.raw {
            RawValue::Integer(number) => Ok(*number),
            RawValue::Bare(text) => {
                text.trim().parse().or_else(|_| invalid(format!("{} is no number", quoted(text)), &fix))
            }
            RawValue::Text(text) if text.parse::<i128>().is_ok() => {
                invalid("is a number in quotes", "write it without them")
            }
            other => invalid(format!("is {} where a number belongs", other.kind()), &fix),
        };
        let read = number.and_then(|number| {
            let within = u64::try_from(number).ok().filter(|number| range.contains(number));
            match within.and_then(|number| T::try_from(number).ok()) {
                Some(number) => Ok(number),
                None if number == i128::MAX || number == i128::MIN => invalid("is out of all bounds", &fix),
                None => invalid(format!("is {number}, which is out of bounds"), &fix),
            }
        });
        self.fill(slot, read);
    }

    /// A duration, which has a unit.
    pub(super) fn duration(&mut self, slot: &mut Duration, range: RangeInclusive<Duration>) {
        let read = match &self.item.raw {
            RawValue::Integer(number) => invalid(
                format!("{number} has no unit, so it is no duration"),
                format!("write \"{number}s\" for seconds, or use ms, m, h or d"),
            ),
            raw => {
                self.text(raw, "a duration belongs", "write it as \"500ms\", \"10s\", \"2m\" or \"1h 30m\"")
            }
        };
        let read = read.and_then(|text| duration(text, &range));
        self.fill(slot, read);
    }

    /// A number of bytes.
    pub(super) fn size(&mut self, slot: &mut u64, range: RangeInclusive<u64>) {
        const FIX: &str = "write it as \"64KiB\", \"256MiB\" or \"1GiB\"";
        let read = match &self.item.raw {
            RawValue::Integer(number) => {
                u64::try_from(*number).or_else(|_| invalid("is out of all bounds", FIX))
            }
            raw => self.text(raw, "a size belongs", FIX).and_then(|text| {
                let size = ByteSize::from_str(text.trim());
                size.map(|size| size.0).or_else(|_| invalid(format!("{} is no size", quoted(text)), FIX))
            }),
        };
        let read = read.and_then(|size| match range.contains(&size) {
            true => Ok(size),
            false => invalid(
                format!("is {}, which is out of bounds", ByteSize(size).display().iec()),
                format!("write a size from {} to {}", ByteSize(*range.start()), ByteSize(*range.end())),
            ),
        });
        self.fill(slot, read);
    }

    /// One word out of a few.
    pub(super) fn choice<T: Clone>(&mut self, slot: &mut T, words: &[(&str, T)]) {
        let all = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let fix = format!("write one of {all}");
        let read = self.text(&self.item.raw, "a word belongs", &fix).and_then(|text| {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, value)) => Ok(value.clone()),
                None => invalid(format!("{} is not known here", quoted(text)), &fix),
            }
        });
        self.fill(slot, read);
    }

    /// Text that `parse` understands.
    pub(super) fn parsed<T>(
        &mut self,
        slot: &mut T,
        example: &str,
        parse: fn(&str) -> Result<T, InvalidValue>,
    ) {
        let fix = format!("write it as {example}");
        let read = self.text(&self.item.raw, "text belongs", &fix).and_then(parse);
        self.fill(slot, read);
    }

    /// A list of texts that `parse` understands, or one such text.
    pub(super) fn list<T>(
        &mut self,
        slot: &mut Vec<T>,
        example: &str,
        parse: fn(&str) -> Result<T, InvalidValue>,
    ) {
        let fix = format!("write it as {example}");
        if let RawValue::Bare(text) = &self.item.raw
            && text.trim().is_empty()
        {
            // so that a variable can empty a list
            *slot = Vec::new();
            return;
        }
        let one = std::slice::from_ref(self.item);
        let items = if let RawValue::List(items) = &self.item.raw { items.as_slice() } else { one };
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            let read = self.text(&item.raw, "text belongs", &fix).and_then(parse);
            match (read, &item.raw) {
                (Ok(value), _) => values.push(value),
                (Err(_), RawValue::Bare(text)) if text.starts_with('[') => {
                    let what = "begins like a list, but is none".to_owned();
                    let fix = "write it as [\"a\", \"b\"], each text in quotes".to_owned();
                    self.fault(item.source.clone(), InvalidValue { problem: what, hint: fix });
                }
                (Err(wrong), _) => self.fault(item.source.clone(), wrong),
            }
        }
        *slot = values;
    }

    /// A secret: itself, `env:NAME` or `file:PATH`.
    pub(super) fn secret(&mut self, slot: &mut Option<Secret>) {
        const FIX: &str = "write \"env:NAME\", \"file:PATH\" or the text itself";
        let read = self.text(&self.item.raw, "a secret belongs", FIX).and_then(|text| secret(text, self.env));
        self.fill(slot, read.map(Some));
    }

    /// Notes a fault of this key.
    pub(super) fn fault(&mut self, place: Source, InvalidValue { problem: what, hint: fix }: InvalidValue) {
        self.faults.push(ConfigError { source: place, key: self.key.clone(), problem: what, hint: fix });
    }

    fn text<'r>(&self, raw: &'r RawValue, belongs: &str, fix: &str) -> Result<&'r str, InvalidValue> {
        match raw {
            RawValue::Text(text) | RawValue::Bare(text) => Ok(text),
            other => invalid(format!("is {} where {belongs}", other.kind()), fix),
        }
    }

    fn fill<T>(&mut self, slot: &mut T, read: Result<T, InvalidValue>) {
        match read {
            Ok(value) => *slot = value,
            Err(wrong) => self.fault(self.item.source.clone(), wrong),
        }
    }
}

/// A text as a fault repeats it: in quotes, without surprises, not without end.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{:?}...", &text[..at]),
        None => format!("{text:?}"),
    }
}

fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, InvalidValue> {
    let text = text.trim();
    let fix = "write it as \"500ms\", \"10s\", \"2m\" or \"1h 30m\"";
    let duration = match humantime::parse_duration(text) {
        // humantime lets a bare 0 pass; a unit is asked for everywhere alike
        Ok(_) | Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            return invalid(
                format!("{} has no unit, so it is no duration", quoted(text)),
                format!("write \"{text}s\" for seconds, or use ms, m, h or d"),
            );
        }
        Ok(duration) => duration,
        Err(_) => return invalid(format!("{} is no duration", quoted(text)), fix),
    };
    if range.contains(&duration) {
        return Ok(duration);
    }
    let form = humantime::format_duration;
    invalid(
        format!("is {}, which is out of bounds", form(duration)),
        format!("write a duration from {} to {}", form(*range.start()), form(*range.end())),
    )
}

/// A secret: itself, `env:NAME` out of this environment, or `file:PATH`. It must be able to stand in a header, after
/// `Bearer `.
pub fn secret(text: &str, env: &BTreeMap<String, String>) -> Result<Secret, InvalidValue> {
    let (source, text) = if let Some(name) = text.strip_prefix("env:") {
        // whoever wrote the key itself after `env:` must not find it in a log
        let shown = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let shown = if shown && !name.is_empty() { name } else { "that it names" };
        let Some(text) = env.get(name) else {
            return invalid(
                format!("the environment variable {shown} is not set"),
                "set it, or name another; after `env:` stands a variable's name, not the secret",
            );
        };
        (format!("the environment variable {shown}"), text.clone())
    } else if let Some(path) = text.strip_prefix("file:") {
        let shown = if path.starts_with(['/', '.']) { path } else { "that it names" };
        let text = secret_file(path).or_else(|error| {
            invalid(
                format!("the file {shown} cannot be read: {error}"),
                "mend it, or name another; after `file:` stands a path, not the secret",
            )
        })?;
        (format!("the file {shown}"), text.trim_end_matches(['\r', '\n']).to_owned())
    } else {
        ("the secret".to_owned(), text.to_owned())
    };
    if text.is_empty() {
        return invalid(format!("{source} is empty"), "put the secret in, or take the key out");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return invalid(
            format!("{source} has a space, a line break or another character that no key has"),
            "give the key alone, without \"Bearer \" and on one line",
        );
    }
    Ok(Secret::new(text))
}

fn secret_file(path: &str) -> std::io::Result<String> {
    const MOST: u64 = 64 << 10;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

impl FromStr for Listen {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        // the longest that the systems' socket addresses hold, the closing zero included, is 104 bytes
        const MOST: usize = 103;
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => invalid("\"unix:\" names no path", "write it as \"unix:/run/clipgate.sock\""),
                1..=MOST if !path.contains('\0') => Ok(Listen::Unix(PathBuf::from(path))),
                _ => invalid(
                    "the socket's path is too long or has a zero byte",
                    format!("keep it to {MOST} bytes"),
                ),
            };
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Listen::Tcp(addr));
        }
        let fix = match text.rsplit_once(':').map_or(("", text), |split| split) {
            (_, port) if port.parse::<u16>().is_err() => {
                "write an IP address and a port, \"127.0.0.1:8080\", or \"unix:PATH\"".to_owned()
            }
            ("localhost", port) => format!("write \"127.0.0.1:{port}\", or \"[::1]:{port}\""),
            (host, port) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                format!("write \"[{host}]:{port}\"")
            }
            (_, port) => format!(
                "write an IP address before the port: \"127.0.0.1:{port}\" for this machine alone, \
                 \"0.0.0.0:{port}\" for all"
            ),
        };
        invalid(format!("{} is no address to listen on", quoted(text)), fix)
    }
}

/// The API's address: `http` or `https`, an authority without userinfo, perhaps a path prefix.
pub fn base_url(text: &str) -> Result<Uri, InvalidValue> {
    let text = text.trim();
    let example = "write it as \"https://api.aimlapi.com\", a path after it is fine";
    if text.contains('@') {
        return invalid(
            "a name or password stands in the URL",
            "take it out; the key belongs in upstream.api_key",
        );
    }
    if let Some((before, _)) = text.split_once(['?', '#']) {
        return invalid("has a query or a fragment", format!("write {} alone", quoted(before)));
    }
    let url = text.trim_end_matches('/').parse::<Uri>().ok();
    let Some(url) = url.filter(|url| matches!(url.scheme_str(), Some("http" | "https"))) else {
        return invalid(format!("{} is no http:// or https:// URL", quoted(text)), example);
    };
    let named = url.authority().is_some_and(|authority| {
        let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        let port_is_good = port.is_empty() || authority.port_u16().is_some_and(|port| port > 0);
        !authority.host().is_empty() && port_is_good
    });
    if named {
        Ok(url)
    } else {
        invalid(format!("{} has no host, or a port that is none", quoted(text)), example)
    }
}

/// An OTLP collector's address, as one of the API's is written; nothing for none.
pub(super) fn collector(text: &str) -> Result<Option<Uri>, InvalidValue> {
    const FIX: &str = "write it as \"http://127.0.0.1:4318\", a path after it is fine; a token for the collector \
        belongs in the environment variable OTEL_EXPORTER_OTLP_HEADERS";
    if text.is_empty() {
        return Ok(None);
    }
    base_url(text)
        .map(Some)
        .map_err(|InvalidValue { problem: what, .. }| InvalidValue { problem: what, hint: FIX.to_owned() })
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, InvalidValue> {
    let address = |_| text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(address).or_else(|_| {
        invalid(
            format!("{} is no network", quoted(text)),
            "write it as \"10.0.0.0/8\", \"192.0.2.7\" or \"fd00::/8\"",
        )
    })
}

/// A file that is opened later.
pub(super) fn path(text: &str) -> Result<Option<PathBuf>, InvalidValue> {
    if text.is_empty() || text.contains('\0') {
        return invalid("names no file", "write a path, or take the key out");
    }
    Ok(Some(PathBuf::from(text)))
}

/// A SHA-256 in hexadecimal.
pub(super) fn sha256(text: &str) -> Result<[u8; 32], InvalidValue> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| d.try_into().ok())).collect();
    let bytes: Option<Vec<u8>> =
        digits.map(|digits| digits.chunks(2).map(|d| d.iter().fold(0, |n, d| n << 4 | d)).collect());
    match bytes.filter(|_| text.len() == 64).and_then(|bytes| bytes.try_into().ok()) {
        Some(hash) => Ok(hash),
        // it may be the token itself, so it is not repeated
        None => invalid(
            "is not the SHA-256 of a token, which has 64 hexadecimal digits",
            "write what `printf %s TOKEN | sha256sum` prints; the token itself stays with the member",
        ),
    }
}
