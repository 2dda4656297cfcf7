//! Parsers of single values: from text to an address, a URL, a network, a secret.
//!
//! Errors never repeat a secret, nor text that may be one by mistake.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use ipnet::IpNet;

use super::error::{InvalidValue, invalid};
use super::types::Listen;
use crate::secret::{Secret, TokenHash};

/// Quotes a text for an error: escaped, at most 60 characters.
pub(super) fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        Some((at, _)) => format!("{:?}...", &text[..at]),
        None => format!("{text:?}"),
    }
}

/// Parses a secret: the text itself, `env:NAME` from this environment, or `file:PATH`. The secret must be valid in a
/// header after `Bearer `.
pub fn secret(text: &str, env: &BTreeMap<String, String>) -> Result<Secret, InvalidValue> {
    let (source, text) = if let Some(name) = text.strip_prefix("env:") {
        // An operator may have written the key itself after `env:`. It must not reach a log.
        let is_shown = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let variable = if is_shown {
            format!("environment variable {name}")
        } else {
            "the variable after \"env:\"".to_owned()
        };
        let Some(text) = env.get(name) else {
            return invalid(
                format!("{variable} is not set"),
                "Set the variable or name another one. \"env:\" is followed by the name of a variable, not by the \
                 secret.",
            );
        };
        (variable, text.clone())
    } else if let Some(path) = text.strip_prefix("file:") {
        let is_shown = path.starts_with(['/', '.']);
        let file = if is_shown { format!("file {path}") } else { "the file after \"file:\"".to_owned() };
        let text = secret_file(path).or_else(|error| {
            invalid(
                format!("cannot read {file}: {error}"),
                "Correct the file or name another one. \"file:\" is followed by a path, not by the secret.",
            )
        })?;
        (file, text.trim_end_matches(['\r', '\n']).to_owned())
    } else {
        ("the secret".to_owned(), text.to_owned())
    };
    if text.is_empty() {
        return invalid(format!("{source} is empty"), "Set the secret or remove the key.");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return invalid(
            format!("{source} has a space, a line break or another character that is not visible ASCII"),
            "Use the secret alone, on one line and without \"Bearer \".",
        );
    }
    Ok(Secret::new(text))
}

fn secret_file(path: &str) -> std::io::Result<String> {
    const MAX_BYTES: u64 = 64 << 10;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

impl FromStr for Listen {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        // A socket address holds at least 104 bytes on every system, with the final zero byte.
        const MAX_PATH: usize = 103;
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => invalid("\"unix:\" has no path", "Use a path, as in \"unix:/run/clipgate.sock\"."),
                1..=MAX_PATH if !path.contains('\0') => Ok(Listen::Unix(PathBuf::from(path))),
                _ => invalid(
                    "the path of the socket is too long or has a zero byte",
                    format!("Use at most {MAX_PATH} bytes."),
                ),
            };
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Listen::Tcp(addr));
        }
        // A port without an address is not open to other machines.
        let port = text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text);
        if let Some(port) = port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit())) {
            return Ok(Listen::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        let hint = match text.rsplit_once(':').unwrap_or(("", text)) {
            (_, port) if port.parse::<u16>().is_err() => {
                "Use an IP address and a port, as in \"127.0.0.1:8080\", or \"unix:PATH\".".to_owned()
            }
            (host, port) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                format!("Use \"[{host}]:{port}\".")
            }
            (_, port) => format!(
                "Use an IP address before the port: \"127.0.0.1:{port}\" for this machine only, \"0.0.0.0:{port}\" \
                 for all interfaces."
            ),
        };
        invalid(format!("not a valid listen address: {}", quoted(text)), hint)
    }
}

pub(super) fn optional_listen(text: &str) -> Result<Option<Listen>, InvalidValue> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// Parses the address of an API: `http` or `https`, an authority without userinfo, an optional path prefix.
pub fn base_url(text: &str) -> Result<Uri, InvalidValue> {
    const HINT: &str = "Use a URL such as \"https://api.aimlapi.com\". A path is allowed.";
    let text = text.trim();
    if text.contains('@') {
        return invalid(
            "the URL has a user name or a password",
            "Remove it. The API key belongs in upstream.api_key.",
        );
    }
    if let Some((before, _)) = text.split_once(['?', '#']) {
        return invalid("the URL has a query or a fragment", format!("Use {} alone.", quoted(before)));
    }
    let url = text.trim_end_matches('/').parse::<Uri>().ok();
    let Some(url) = url.filter(|url| matches!(url.scheme_str(), Some("http" | "https"))) else {
        return invalid(format!("not a valid http:// or https:// URL: {}", quoted(text)), HINT);
    };
    let has_host = url.authority().is_some_and(|authority| {
        let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        let is_valid_port = port.is_empty() || authority.port_u16().is_some_and(|port| port > 0);
        !authority.host().is_empty() && is_valid_port
    });
    if has_host {
        Ok(url)
    } else {
        invalid(format!("the URL has no host or an invalid port: {}", quoted(text)), HINT)
    }
}

/// Parses the address of an OTLP collector, with the syntax of [`base_url`]; `None` for an empty text.
pub(super) fn collector(text: &str) -> Result<Option<Uri>, InvalidValue> {
    const HINT: &str = "Use a URL such as \"http://127.0.0.1:4318\". A path is allowed. A token for the collector \
        belongs in the environment variable OTEL_EXPORTER_OTLP_HEADERS.";
    if text.is_empty() {
        return Ok(None);
    }
    base_url(text).map(Some).map_err(|error| InvalidValue { hint: HINT.to_owned(), ..error })
}

/// Parses a network, or a single address as a network of one.
pub(super) fn network(text: &str) -> Result<IpNet, InvalidValue> {
    let address = |_| text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(address).or_else(|_| {
        invalid(
            format!("not a valid network: {}", quoted(text)),
            "Use a network such as \"10.0.0.0/8\", \"192.0.2.7\" or \"fd00::/8\".",
        )
    })
}

/// Parses the path of a file that is opened later.
pub(super) fn path(text: &str) -> Result<Option<PathBuf>, InvalidValue> {
    if text.is_empty() || text.contains('\0') {
        return invalid("the path is empty or has a zero byte", "Use a path, or remove the key.");
    }
    Ok(Some(PathBuf::from(text)))
}

pub(super) fn token_hash(text: &str) -> Result<Option<TokenHash>, InvalidValue> {
    let mut hash = [0; 32];
    match hex::decode_to_slice(text, &mut hash) {
        Ok(()) => Ok(Some(TokenHash(hash))),
        // The text may be the token itself.
        Err(_) => invalid(
            "not a SHA-256 of a token, which has 64 hexadecimal digits",
            "Use the output of `printf %s TOKEN | sha256sum`. The token itself stays with the member.",
        ),
    }
}

/// Parses the name of a member of a team.
pub fn member_name(text: &str) -> Result<String, InvalidValue> {
    if text.trim().is_empty() || text.len() > 64 || text.chars().any(char::is_control) {
        return invalid(
            "not a valid name: empty, longer than 64 bytes or with control characters",
            "Use a name such as \"alice\".",
        );
    }
    Ok(text.to_owned())
}
