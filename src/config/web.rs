//! Reads how web browsers name things: origins (`server.cors_origins`) and hosts (`server.allowed_hosts`).

use std::net::{IpAddr, Ipv6Addr};

use super::value::{InvalidValue, invalid, quoted};
use crate::protocol::allowed_host::HostPattern;

/// The longest name of DNS, in bytes.
const MAX_NAME: usize = 253;

/// The default ports, which browsers leave out of an origin.
const DEFAULT_PORTS: [(&str, u16); 2] = [("http", 80), ("https", 443)];

/// Reads a web origin and writes it as browsers send it (RFC 6454 §6.2): in lower case, without the scheme's default
/// port. Any scheme will do, as desktop programs and browser extensions have schemes of their own. `*` stays.
pub(super) fn origin(text: &str) -> Result<String, InvalidValue> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    match normal_origin(&text.to_ascii_lowercase()) {
        Some(origin) => Ok(origin),
        None => invalid(
            // A password may stand before the `@`.
            format!("{} is not a valid origin", quoted(&text.replace('@', "_"))),
            "write it as \"https://app.example.com\" or \"tauri://localhost\", without a path or a slash at its end",
        ),
    }
}

fn normal_origin(text: &str) -> Option<String> {
    let (scheme, authority) = text.split_once("://")?;
    let is_scheme_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(is_scheme_byte) {
        return None;
    }
    // Colons before the bracket are the address's.
    let (host, port) = match authority.rfind(':') {
        Some(at) if !authority.ends_with(']') => (&authority[..at], &authority[at + 1..]),
        Some(_) | None => (authority, ""),
    };
    let host = match host.strip_prefix('[') {
        // As browsers shorten it.
        Some(rest) => format!("[{}]", rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => Some(host).filter(|host| is_name(host.strip_suffix('.').unwrap_or(host)))?.to_owned(),
    };
    let is_digits = port.bytes().all(|b| b.is_ascii_digit());
    let port = if port.is_empty() { None } else { Some(port.parse::<u16>().ok().filter(|_| is_digits)?) };
    let port = port.filter(|port| !DEFAULT_PORTS.contains(&(scheme, *port)));
    Some(port.map_or_else(|| format!("{scheme}://{host}"), |port| format!("{scheme}://{host}:{port}")))
}

/// Reads the name of a host, `.suffix` for a name and all below it, or `*`.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, InvalidValue> {
    const FIX: &str =
        "write the name alone: \"clips.example.com\", or \".example.com\" for it and all names below it";
    let refuse = |what: &str, fix: &str| invalid(format!("{} {what}", quoted(&text.replace('@', "_"))), fix);
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return Ok(HostPattern::Any);
    }
    if lower.contains("://") {
        return refuse("has a scheme", FIX);
    }
    if lower.contains(['/', '?', '#']) {
        return refuse("has a path", FIX);
    }
    if let Some(rest) = lower.strip_prefix("*.") {
        return refuse("has a wildcard", &format!("write \".{rest}\" for this name and all names below it"));
    }
    // Addresses are let in anyhow; to list one does no harm.
    let address = lower.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&lower);
    if let Ok(address) = address.parse::<IpAddr>() {
        return Ok(HostPattern::Name(address.to_string()));
    }
    if lower.contains(':') {
        return refuse("has a port", FIX);
    }
    if !lower.is_ascii() {
        return refuse(
            "is not ASCII",
            "write the name as browsers send it, each label in Punycode (\"xn--…\")",
        );
    }
    let (is_suffix, name) = lower.strip_prefix('.').map_or((false, lower.as_str()), |rest| (true, rest));
    let name = name.strip_suffix('.').unwrap_or(name);
    match is_name(name) {
        true if is_suffix => Ok(HostPattern::Suffix(name.to_owned())),
        true => Ok(HostPattern::Name(name.to_owned())),
        false => refuse("is not a valid host name", FIX),
    }
}

/// Whether it is labels with dots between them. Underscores occur in names of containers and of extensions.
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
    fn an_origin_is_kept_as_browsers_send_it() {
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
    fn what_no_browser_sends_as_an_origin_is_refused_with_an_example() {
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
            let wrong = origin(text).unwrap_err();
            assert!(
                wrong.problem.contains("is not a valid origin") && wrong.hint.contains("tauri://"),
                "{text}: {wrong}"
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
            ("clips.example.com", name("clips.example.com")),
            ("Clips.Example.COM.", name("clips.example.com")),
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
    fn what_is_more_or_less_than_a_name_is_refused_with_what_to_write() {
        let long = "a.".repeat(127) + "a";
        let rows = [
            ("https://a.example", "has a scheme", "the name alone"),
            ("a.example/x", "has a path", "the name alone"),
            ("a.example:8080", "has a port", "the name alone"),
            ("[::1]:8080", "has a port", "the name alone"),
            ("*.example.com", "has a wildcard", "write \".example.com\""),
            ("a.*.example", "is not a valid host name", "the name alone"),
            ("bücher.example", "is not ASCII", "xn--"),
            ("", "is not a valid host name", "the name alone"),
            (".", "is not a valid host name", "the name alone"),
            ("..example", "is not a valid host name", "the name alone"),
            ("a..example", "is not a valid host name", "the name alone"),
            ("a b", "is not a valid host name", "the name alone"),
            ("user@a", "is not a valid host name", "the name alone"),
            (&long, "is not a valid host name", "the name alone"),
        ];
        for (text, what, fix) in rows {
            let wrong = host_pattern(text).unwrap_err();
            assert!(wrong.problem.contains(what) && wrong.hint.contains(fix), "{text}: {wrong}");
        }
    }
}
