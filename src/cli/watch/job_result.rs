//! Result of a finished job: title, duration and address, from the places where APIs put them.

use serde_json::Value;

use crate::printable::escape;

/// Parts of a finished job, each safe for a terminal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct JobResult {
    pub(super) title: Option<String>,
    /// As minutes and seconds.
    pub(super) duration: Option<String>,
    pub(super) url: Option<String>,
}

impl JobResult {
    pub(super) fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |value: &Value| {
            value.as_str().filter(|text| !text.is_empty()).map(|text| escape(text).into_owned())
        };
        let urls = ["/audio_url", "/video_url", "/image_url", "/url", "/output/url", "/output", "/output/0"];
        let is_url = |url: &String| url.starts_with("https://") || url.starts_with("http://");
        let seconds =
            ["/metadata/duration", "/duration"].into_iter().find_map(|at| body.pointer(at)?.as_f64());
        Self {
            title: text(&body["title"]),
            duration: seconds.map(|seconds| {
                let seconds = seconds.max(0.0).round() as u64;
                format!("{}:{:02}", seconds / 60, seconds % 60)
            }),
            url: urls.into_iter().filter_map(|at| text(body.pointer(at)?)).find(is_url),
        }
    }

    /// Returns title and duration in one text.
    pub(super) fn name(&self) -> String {
        [&self.title, &self.duration].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("  ")
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn title_duration_and_address_are_read_where_apis_put_them() {
        let rows = [
            (
                r#"{"title":"Night drive","audio_url":"https://a/x.mp3","metadata":{"duration":161.4}}"#,
                ["Night drive", "2:41", "https://a/x.mp3"],
            ),
            (r#"{"output":["https://r/out-0.png"]}"#, ["", "", "https://r/out-0.png"]),
            (r#"{"output":"a text","duration":59.6}"#, ["", "1:00", ""]),
            (r#"{"title":"","audio_url":"","status":"queued"}"#, ["", "", ""]),
            ("{\"title\":\"a\\u001b[2J\"}", ["a\\u{1b}[2J", "", ""]),
            ("PNG", ["", "", ""]),
        ];
        for (body, expected) in rows {
            let JobResult { title, duration, url } = JobResult::read(body.as_bytes());
            assert_eq!([title, duration, url].map(Option::unwrap_or_default), expected, "{body}");
        }
        assert_eq!(rows.len(), 6);
    }
}
