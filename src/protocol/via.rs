//! `Via` and `Max-Forwards`: which gateways a message passed, and how many more it may pass (RFC 9110 §7.6).

use http::Version;
use http::header::{self, HeaderMap, HeaderValue};

use super::field_value::{is_digits, single_value};

/// The gateway's name in `Via` and `Cache-Status`.
pub(crate) const PSEUDONYM: &str = "clipgate";

/// Adds this gateway to `Via`, with the version in which the message was received (RFC 9110 §7.6.3).
pub(crate) fn append_via(headers: &mut HeaderMap, received: Version) {
    // The usual value is a constant: a new one would be checked byte by byte.
    static HTTP_11: HeaderValue = HeaderValue::from_static(via_member(Version::HTTP_11));
    let value = match received {
        Version::HTTP_11 => HTTP_11.clone(),
        other => HeaderValue::from_static(via_member(other)),
    };
    headers.append(header::VIA, value);
}

/// Returns the member of `Via` for a message that was received in this version.
#[inline]
pub(crate) const fn via_member(received: Version) -> &'static str {
    match received {
        Version::HTTP_10 => "1.0 clipgate",
        Version::HTTP_2 => "2.0 clipgate",
        Version::HTTP_3 => "3.0 clipgate",
        _ => "1.1 clipgate",
    }
}

/// Returns whether `Via` names this gateway: the request is a loop (508). Call it before
/// [`strip_hop_by_hop`](super::hop_by_hop::strip_hop_by_hop).
pub(crate) fn is_loop(headers: &HeaderMap) -> bool {
    headers.get_all(header::VIA).into_iter().any(|line| {
        without_comments(line.as_bytes())
            .split(|byte| *byte == b',')
            .filter_map(|member| {
                member.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()).nth(1) // after the received protocol
            })
            .any(|pseudonym| pseudonym.eq_ignore_ascii_case(PSEUDONYM.as_bytes()))
    })
}

/// Removes comments, which may nest and contain commas and quoted pairs (RFC 9110 §5.6.5).
fn without_comments(line: &[u8]) -> Vec<u8> {
    let mut depth = 0_usize;
    let mut bytes = line.iter();
    let mut kept = Vec::with_capacity(line.len());
    while let Some(&byte) = bytes.next() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'\\' if depth > 0 => drop(bytes.next()),
            _ if depth == 0 => kept.push(byte),
            _ => {}
        }
    }
    kept
}

/// Returns how often a request may still be forwarded (RFC 9110 §7.6.2). `None`: the field is missing, repeated or not
/// a number.
pub(crate) fn max_forwards(headers: &HeaderMap) -> Option<u64> {
    let text = single_value(headers, &header::MAX_FORWARDS)?.to_str().ok()?.trim();
    is_digits(text).then(|| text.parse().unwrap_or(u64::MAX))
}

/// Decrements `Max-Forwards`, if it is a number.
pub(crate) fn decrement_max_forwards(headers: &mut HeaderMap) {
    if let Some(left) = max_forwards(headers) {
        headers.insert(header::MAX_FORWARDS, left.saturating_sub(1).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;

    #[test]
    fn via_is_appended_in_the_received_version() {
        let mut headers = map(&[("via", "1.0 fred")]);
        append_via(&mut headers, Version::HTTP_2);
        append_via(&mut headers, Version::HTTP_11);
        assert_eq!(headers, map(&[("via", "1.0 fred"), ("via", "2.0 clipgate"), ("via", "1.1 clipgate")]));
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert!(via_member(version).ends_with(PSEUDONYM));
        }
    }

    #[test]
    fn a_loop_is_found_in_any_line_of_via_but_not_in_comments() {
        for (line, expected) in [
            ("1.1 clipgate", true),
            ("1.0 fred, HTTP/1.1 ClipGate (v1)", true),
            ("1.1 a (x, (y) z), 2.0\tclipgate", true),
            ("1.1 fred", false),
            ("1.1 clipgate.example", false),
            ("1.1 fred (1.1 clipgate, 1.1 clipgate)", false),
            ("1.1 fred (\\), 1.1 clipgate", false),
            ("clipgate", false),
            ("", false),
        ] {
            assert_eq!(is_loop(&map(&[("via", "1.1 edge"), ("via", line)])), expected, "{line}");
        }
    }
}
