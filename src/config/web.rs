//! Reads how web browsers name things: origins (`server.cors_origins`) and hosts (`server.allowed_hosts`).

use std::net::IpAddr;

use http::Uri;

use super::reader::{Wrong, quoted, wrong};
use crate::allowed_host::HostPattern;

/// The longest name of DNS, in bytes.
const MAX_NAME: usize = 253;

/// A web origin: scheme, host, port where it is not the scheme's own, and nothing after it; or `*`.
pub(super) fn origin(text: &str) -> Result<String, Wrong> {
    let lower = text.to_ascii_lowercase();
    let host = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"));
    let url = lower.parse::<Uri>().ok();
    match host {
        _ if text == "*" => Ok(lower),
        Some(host) if !host.contains(['/', '@', '?', '#']) && url.is_some() => Ok(lower),
        _ => wrong(
            format!("{} is no origin", quoted(&text.replace('@', "_"))),
            "write it as \"https://app.example.com\", without a path or a slash at its end",
        ),
    }
}

/// Reads the name of a host, `.suffix` for a name and all below it, or `*`.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, Wrong> {
    const FIX: &str =
        "write the name alone: \"clips.example.com\", or \".example.com\" for it and all names below it";
    let refuse = |what: &str, fix: &str| wrong(format!("{} {what}", quoted(&text.replace('@', "_"))), fix);
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
            assert!(wrong.what.contains(what) && wrong.fix.contains(fix), "{text}: {wrong}");
        }
    }
}
