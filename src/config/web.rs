//! Parsers of names as web browsers send them: origins (`server.cors_origins`) and hosts (`server.allowed_hosts`).

use std::net::{IpAddr, Ipv6Addr};

use super::error::{InvalidValue, invalid};
use super::parse::quoted;
use crate::protocol::allowed_host::HostPattern;

/// The longest name of DNS, in bytes.
const MAX_NAME: usize = 253;

/// The default ports, which browsers leave out of an origin.
const DEFAULT_PORTS: [(&str, u16); 2] = [("http", 80), ("https", 443)];

/// Parses a web origin and normalizes it to the form that browsers send (RFC 6454 section 6.2): in lower case, without
/// the default port of the scheme. Any scheme is accepted, because desktop programs and browser extensions have their
/// own. `*` stays.
pub(super) fn origin(text: &str) -> Result<String, InvalidValue> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    match normal_origin(&text.to_ascii_lowercase()) {
        Some(origin) => Ok(origin),
        None => invalid(
            // A password may stand before the `@`.
            format!("not a valid origin: {}", quoted(&text.replace('@', "_"))),
            "Use the form \"https://app.example.com\" or \"tauri://localhost\", without a path or a final slash.",
        ),
    }
}

fn normal_origin(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://")?;
    let is_scheme_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(is_scheme_byte) {
        return None;
    }
    // Colons inside the brackets belong to an IPv6 address.
    let (host, port) = match authority.rfind(':') {
        Some(at) if !authority.ends_with(']') => (&authority[..at], &authority[at + 1..]),
        Some(_) | None => (authority, ""),
    };
    let host = match host.strip_prefix('[') {
        // Browsers send the shortest form.
        Some(rest) => format!("[{}]", rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => Some(host).filter(|host| is_name(host.strip_suffix('.').unwrap_or(host)))?.to_owned(),
    };
    let is_digits = port.bytes().all(|b| b.is_ascii_digit());
    let port = if port.is_empty() { None } else { Some(port.parse::<u16>().ok().filter(|_| is_digits)?) };
    let port = port.filter(|port| !DEFAULT_PORTS.contains(&(scheme, *port)));
    Some(port.map_or_else(|| format!("{scheme}://{host}"), |port| format!("{scheme}://{host}:{port}")))
}

/// Parses the name of a host, `.suffix` for a name and its subdomains, or `*`.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, InvalidValue> {
    const HINT: &str =
        "Use the name alone: \"jobs.example.com\", or \".example.com\" for a name and its subdomains.";
    let reject =
        |problem: &str, hint: &str| invalid(format!("{problem}: {}", quoted(&text.replace('@', "_"))), hint);
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return Ok(HostPattern::Any);
    }
    if lower.contains("://") {
        return reject("the host name has a scheme", HINT);
    }
    if lower.contains(['/', '?', '#']) {
        return reject("the host name has a path", HINT);
    }
    if let Some(rest) = lower.strip_prefix("*.") {
        return reject(
            "the host name has a wildcard",
            &format!("Use \".{rest}\" for a name and its subdomains."),
        );
    }
    // Addresses are always accepted, so an entry with one changes nothing.
    let address = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&lower);
    if let Ok(address) = address.parse::<IpAddr>() {
        return Ok(HostPattern::Name(address.to_string()));
    }
    if lower.contains(':') {
        return reject("the host name has a port", HINT);
    }
    if !lower.is_ascii() {
        return reject(
            "the host name is not ASCII",
            "Use the name as browsers send it, with each label in Punycode (\"xn--…\").",
        );
    }
    let (is_suffix, name) = lower.strip_prefix('.').map_or((false, lower.as_str()), |rest| (true, rest));
    let name = name.strip_suffix('.').unwrap_or(name);
    match is_name(name) {
        true if is_suffix => Ok(HostPattern::Suffix(name.to_owned())),
        true => Ok(HostPattern::Name(name.to_owned())),
        false => reject("not a valid host name", HINT),
    }
}

/// Returns whether the text is labels with dots between them. Names of containers and extensions have underscores.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= MAX_NAME && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_normalized_to_the_form_of_browsers() {
        let rows = [
            ("*", "*"),
            ("https://app.example.com", "https://app.example.com"),
            ("HTTPS://App.Example.com", "https://app.example.com"),
            ("https://a:443", "https://a"),
            ("http://a:80", "http://a"),
            ("http://a:0080", "http://a"),
            ("https://a:", "https://a"),
            ("https://a:80", "https://a:80"),
            ("http://a:443", "http://a:443"),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("https://[0:0:0:0:0:0:0:1]:443", "https://[::1]"),
            ("tauri://localhost", "tauri://localhost"),
            ("app://obsidian.md", "app://obsidian.md"),
            ("app://a:443", "app://a:443"),
            (
                "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
                "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
            ),
        ];
        for (text, kept) in rows {
            assert_eq!(origin(text).as_deref(), Ok(kept), "{text}");
        }
        assert_eq!(rows.len(), 16);
    }

    #[test]
    fn an_origin_that_no_browser_sends_is_rejected_with_an_example() {
        let bad = [
            "",
            "a.example",
            "null",
            "https://",
            "file://",
            "https://a/",
            "https://a/path",
            "https://a?x",
            "https://a#x",
            "https://user@a",
            "https://a:65536",
            "https://a:+1",
            "https://a:b",
            "https://a b",
            "https://*.example.com",
            "https://[::1",
            "https://[::g]",
            "https://bücher.example",
            "://a",
            "1a://a",
            "a_b://a",
        ];
        for text in bad {
            let error = origin(text).unwrap_err();
            assert!(
                error.problem.starts_with("not a valid origin: ") && error.hint.contains("tauri://"),
                "{text}: {error}"
            );
        }
        assert!(!origin("https://user:hush@a").unwrap_err().to_string().contains('@'));
    }

    #[test]
    fn a_host_is_a_name_a_suffix_or_any() {
        let name = |name: &str| HostPattern::Name(name.to_owned());
        let suffix = |name: &str| HostPattern::Suffix(name.to_owned());
        let rows = [
            ("*", HostPattern::Any),
            ("jobs.example.com", name("jobs.example.com")),
            ("Jobs.Example.COM.", name("jobs.example.com")),
            ("box", name("box")),
            ("a_b.internal", name("a_b.internal")),
            (".example.com", suffix("example.com")),
            (".Internal.", suffix("internal")),
            ("192.0.2.7", name("192.0.2.7")),
            ("[::1]", name("::1")),
            ("::1", name("::1")),
        ];
        for (text, pattern) in rows {
            assert_eq!(host_pattern(text), Ok(pattern), "{text}");
        }
    }

    #[test]
    fn an_invalid_host_is_rejected_with_its_problem_and_a_hint() {
        let long = "a.".repeat(127) + "a";
        let rows = [
            ("https://a.example", "has a scheme", "the name alone"),
            ("a.example/x", "has a path", "the name alone"),
            ("a.example:8080", "has a port", "the name alone"),
            ("[::1]:8080", "has a port", "the name alone"),
            ("*.example.com", "has a wildcard", "Use \".example.com\""),
            ("a.*.example", "not a valid host name", "the name alone"),
            ("bücher.example", "is not ASCII", "xn--"),
            ("", "not a valid host name", "the name alone"),
            (".", "not a valid host name", "the name alone"),
            ("..example", "not a valid host name", "the name alone"),
            ("a..example", "not a valid host name", "the name alone"),
            ("a b", "not a valid host name", "the name alone"),
            ("user@a", "not a valid host name", "the name alone"),
            (&long, "not a valid host name", "the name alone"),
        ];
        for (text, problem, hint) in rows {
            let error = host_pattern(text).unwrap_err();
            assert!(error.problem.contains(problem) && error.hint.contains(hint), "{text}: {error}");
        }
    }
}
