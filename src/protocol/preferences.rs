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

/// Returns whether `Accept` names server-sent events and gives JSON no higher weight (RFC 9110 §12.5.1). Wildcards
/// alone do not select events.
pub(crate) fn prefers_events(headers: &HeaderMap) -> bool {
    let ranges: Vec<(&str, u16)> = tokens(headers, &ACCEPT).filter_map(media_range).collect();
    let weight = |name: &str| {
        let weights = ranges.iter().filter(|(range, _)| range.eq_ignore_ascii_case(name));
        weights.map(|(_, weight)| *weight).max()
    };
    let json = ["application/json", "application/*", "*/*"].into_iter().find_map(weight);
    weight("text/event-stream").is_some_and(|events| events > 0 && events >= json.unwrap_or(0))
}

/// Returns a media range without parameters, and its weight in thousandths. `None`: the weight is invalid.
fn media_range(text: &str) -> Option<(&str, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next()?;
    let is_weight = |part: &&str| part.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("q="));
    let weight = parts.find(is_weight).map_or(Some(1.0), |part| part[2..].trim().parse::<f32>().ok())?;
    (0.0..=1.0).contains(&weight).then_some((name, (weight * 1000.0) as u16))
}

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
