//! Reads `Prefer` and `Accept`.

use std::time::Duration;

use http::header::{ACCEPT, HeaderMap, HeaderName};

use super::field_value::tokens;

/// Returns the time of `Prefer: wait=SECONDS` (RFC 7240 §4.3). The first valid one counts; other values are ignored.
pub(crate) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    tokens(headers, &PREFER).find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let is_wait = name.trim().eq_ignore_ascii_case("wait") && value.bytes().all(|b| b.is_ascii_digit());
        is_wait.then(|| value.parse().ok().map(Duration::from_secs)).flatten()
    })
}

/// Returns whether `Prefer` has this preference without a value.
pub(crate) fn has_preference(headers: &HeaderMap, name: &str) -> bool {
    tokens(headers, &PREFER).any(|preference| {
        let preference = preference.split(';').next().unwrap_or_default();
        preference.trim().eq_ignore_ascii_case(name)
    })
}

/// Returns whether `Accept` takes JSON: an absent or empty field takes everything (RFC 9110 §12.5.1).
pub(crate) fn accepts_json(headers: &HeaderMap) -> bool {
    let mut ranges = tokens(headers, &ACCEPT).peekable();
    if ranges.peek().is_none() {
        return true;
    }
    let ranges: Vec<(&str, u16)> = ranges.filter_map(media_range).collect();
    let has_json_suffix = |(name, weight): &(&str, u16)| {
        let suffix = name.len().checked_sub(JSON_SUFFIX.len()).and_then(|at| name.get(at..));
        *weight > 0 && suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(JSON_SUFFIX))
    };
    json_weight(&ranges).is_some_and(|weight| weight > 0) || ranges.iter().any(has_json_suffix)
}

/// Returns whether `Accept` is absent, or takes all types alike.
pub(crate) fn accepts_everything(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(ACCEPT).iter();
    fields.into_iter().all(|field| matches!(field.as_bytes().trim_ascii(), b"" | b"*/*"))
}

/// Returns whether `Accept` names server-sent events and gives JSON no higher weight (RFC 9110 §12.5.1). Wildcards
/// alone do not select events.
pub(crate) fn prefers_events(headers: &HeaderMap) -> bool {
    let ranges: Vec<(&str, u16)> = tokens(headers, &ACCEPT).filter_map(media_range).collect();
    let events = weight(&ranges, "text/event-stream");
    events.is_some_and(|events| events > 0 && events >= json_weight(&ranges).unwrap_or(0))
}

/// Returns the weight of JSON: that of the most specific range with it.
fn json_weight(ranges: &[(&str, u16)]) -> Option<u16> {
    ["application/json", "application/*", "*/*"].into_iter().find_map(|name| weight(ranges, name))
}

fn weight(ranges: &[(&str, u16)], name: &str) -> Option<u16> {
    let weights = ranges.iter().filter(|(range, _)| range.eq_ignore_ascii_case(name));
    weights.map(|(_, weight)| *weight).max()
}

/// Returns a media range without parameters, and its weight in thousandths. `None`: the weight is invalid.
fn media_range(text: &str) -> Option<(&str, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next()?;
    let is_weight = |part: &&str| part.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("q="));
    let weight = parts.find(is_weight).map_or(Some(1.0), |part| part[2..].trim().parse::<f32>().ok())?;
    (0.0..=1.0).contains(&weight).then_some((name, (weight * 1000.0) as u16))
}

const JSON_SUFFIX: &str = "+json";
/// Missing in the `http` crate.
const PREFER: HeaderName = HeaderName::from_static("prefer");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;

    #[test]
    fn prefer_wait_is_a_number_of_seconds() {
        let rows = [
            ("wait=10", Some(10)),
            ("respond-async, Wait = \"7\"; x=y, wait=9", Some(7)),
            ("wait=0", Some(0)),
            ("wait=ten", None),
            ("wait=-1", None),
            ("wait=", None),
            ("waiting=1", None),
            ("wait=99999999999999999999", None),
        ];
        for (text, seconds) in rows {
            assert_eq!(preferred_wait(&map(&[("prefer", text)])), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(preferred_wait(&HeaderMap::new()), None);
        assert_eq!(rows.len(), 8);
    }

    #[test]
    fn a_preference_without_a_value_is_found_by_its_name() {
        let rows = [
            ("wait", true),
            ("respond-async, Wait", true),
            ("wait; x=y", true),
            ("wait=5", false),
            ("waiting", false),
            ("", false),
        ];
        for (text, expected) in rows {
            assert_eq!(has_preference(&map(&[("prefer", text)]), "wait"), expected, "{text}");
        }
    }

    #[test]
    fn json_is_accepted_unless_other_types_only_are_named() {
        let rows = [
            ("", true),
            ("*/*", true),
            ("application/json", true),
            ("application/*;q=0.1", true),
            ("application/problem+JSON", true),
            ("text/html, */*;q=0.8", true),
            ("text/html", false),
            ("application/json;q=0, */*", false),
            ("text/event-stream", false),
            ("image/png, text/*", false),
            ("json", false),
        ];
        for (accept, expected) in rows {
            assert_eq!(accepts_json(&map(&[("accept", accept)])), expected, "{accept}");
        }
        assert!(accepts_json(&HeaderMap::new()));
    }

    #[test]
    fn events_are_preferred_if_named_and_json_has_no_higher_weight() {
        let rows = [
            ("text/event-stream", true),
            ("Text/Event-Stream;charset=utf-8", true),
            ("text/event-stream, */*;q=0.1", true),
            ("application/json, text/event-stream", true),
            ("application/json;q=0.8, text/event-stream; Q=0.9", true),
            ("*/*, application/json;q=0.5, text/event-stream;q=0.5", true),
            ("application/json, text/event-stream;q=0.9", false),
            ("text/event-stream;q=0.9, */*", false),
            ("text/event-stream;q=0", false),
            ("text/event-stream;q=much", false),
            ("text/event-stream;q=2", false),
            ("text/*", false),
            ("*/*", false),
            ("application/json", false),
            ("", false),
        ];
        for (accept, expected) in rows {
            assert_eq!(prefers_events(&map(&[("accept", accept)])), expected, "{accept}");
        }
        assert_eq!(rows.len(), 15);
        assert!(!prefers_events(&HeaderMap::new()));
        assert!(prefers_events(&map(&[("accept", "application/json"), ("accept", "text/event-stream")])));
    }
}
