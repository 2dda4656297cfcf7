//! Hints of a success about the next poll of its jobs.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use crate::core::route::Route;
use crate::protocol::retry_after::retry_after;

/// The longest hint that is followed where the upstream never holds.
const MAX_HINT: Duration = Duration::from_secs(60);

/// Returns the pause before the next poll: the longest of all hints.
pub(super) fn pause_after_success(route: &Route, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let retry_after = retry_after(headers, now);
    if !route.never_holds() {
        return retry_after;
    }
    retry_after.max(poll_after(headers)).map(|pause| pause.min(MAX_HINT))
}

/// Returns the hint of OpenAI's API, which is in milliseconds.
fn poll_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(POLL_AFTER)?.to_str().ok()?.trim();
    text.parse().ok().map(Duration::from_millis)
}

const POLL_AFTER: HeaderName = HeaderName::from_static("openai-poll-after-ms");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_hint_counts_up_to_a_minute_where_the_upstream_never_holds() {
        let plain = Route::never_holding();
        let rows: [(&[(&'static str, &'static str)], _, _); 7] = [
            (&[], None, None),
            (&[("retry-after", "5")], Some(5000), Some(5000)),
            (&[("openai-poll-after-ms", "1500")], Some(1500), None),
            (&[("openai-poll-after-ms", "1500"), ("retry-after", "1")], Some(1500), Some(1000)),
            (&[("openai-poll-after-ms", "1500"), ("retry-after", "2")], Some(2000), Some(2000)),
            (&[("retry-after", "300")], Some(60_000), Some(300_000)),
            (&[("openai-poll-after-ms", "soon")], None, None),
        ];
        for (fields, on_plain, on_held) in rows {
            let headers = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let headers: HeaderMap = headers.map(|(name, value): (HeaderName, _)| (name, value)).collect();
            for (route, expected) in [(&plain, on_plain), (&Route::suno(), on_held)] {
                let pause = pause_after_success(route, &headers, SystemTime::now());
                assert_eq!(pause, expected.map(Duration::from_millis), "{fields:?}");
            }
        }
    }
}
