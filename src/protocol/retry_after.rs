//! Reads `Retry-After` (RFC 9110 §10.2.3).

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, RETRY_AFTER};

use super::field_value::is_digits;

/// The longest pause that [`retry_after`] returns.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Returns the pause that `Retry-After` asks for, at most [`MAX_RETRY_AFTER`], zero for a date in the past. `None`: the
/// field is missing, or neither a number of seconds nor a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if is_digits(text) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs) // more digits than a u64 has
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(pause.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date_and_bounded() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 20:46:15 GMT").unwrap();
        let pause = |text| retry_after(&map(&[("retry-after", text)]), now).map(|pause| pause.as_secs());
        assert_eq!(pause("0"), Some(0));
        assert_eq!(pause(" 120 "), Some(120));
        assert_eq!(pause("7200"), Some(3600));
        assert_eq!(pause("99999999999999999999999999"), Some(3600));
        assert_eq!(pause("Tue, 24 Nov 2026 20:46:25 GMT"), Some(10));
        assert_eq!(pause("Tue, 24 Nov 2026 20:00:00 GMT"), Some(0));
        assert_eq!(pause("Tue, 24 Nov 2099 20:00:00 GMT"), Some(3600));
        for bad in ["", "-1", "1.5", "+3", "soon"] {
            assert_eq!(pause(bad), None, "{bad}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
