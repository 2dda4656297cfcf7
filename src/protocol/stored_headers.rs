//! Splits the head of an upstream response for storage with a job, and writes it into a response to a client.
//!
//! ```text
//! upstream ─▶ split_head ─▶ ResponseHead { shared, per_response } ─▶ write_stored ─▶ client
//! ```

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::hop_by_hop::strip_hop_by_hop;
use crate::core::job::ResponseHead;

/// Splits the head of an upstream response.
///
/// - Dropped: hop-by-hop fields; fields that describe the bytes of this message (`Content-Length`, `Trailer`, ranges);
///   fields that the gateway sets itself for jobs (`Age`, `Cache-Control`, `Expires`, `Pragma`, `ETag`, `Via`,
///   `Cache-Status`); `Last-Modified`, as the gateway evaluates no conditions but those on its own `ETag`; and
///   `Alt-Svc`, which would lead clients around the gateway.
/// - Per response, for one client only (P8): fields of one response, identifiers of one request, and CORS fields, as these
///   depend on the `Origin` of the request, unless they allow every origin (`*`).
/// - Shared: the rest. `Vary` too: caches of clients need it.
pub fn split_head(status: StatusCode, headers: &HeaderMap) -> ResponseHead {
    let mut stripped = headers.clone();
    strip_hop_by_hop(&mut stripped);
    let allows_any_origin = stripped
        .get(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        .is_some_and(|value| value.as_bytes().trim_ascii() == b"*");
    // A 200 with `Content-Range` is a mistake or a part. Neither may be stored for a day.
    let is_complete = status == StatusCode::OK && !headers.contains_key(header::CONTENT_RANGE);
    let mut head = ResponseHead { status: status.as_u16(), is_complete, ..ResponseHead::default() };
    for (name, value) in &stripped {
        let fields = match scope(name.as_str(), allows_any_origin) {
            Scope::Shared => &mut head.shared,
            Scope::PerResponse => &mut head.per_response,
            Scope::Dropped => continue,
        };
        fields.push((name.as_str().into(), Bytes::copy_from_slice(value.as_bytes())));
    }
    head
}

/// Appends the fields of a stored head. Per-response fields are written only if `is_own`: the client's own request got
/// this response (P8). Fields that the gateway inserts afterwards replace equal ones.
pub(crate) fn write_stored(head: &ResponseHead, is_own: bool, headers: &mut HeaderMap) {
    let own = if is_own { head.per_response.as_slice() } else { &[] };
    for (name, value) in head.shared.iter().chain(own) {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_maybe_shared(value.clone()))
        {
            headers.append(name, value);
        }
    }
}

enum Scope {
    Shared,
    PerResponse,
    Dropped,
}

fn scope(name: &str, allows_any_origin: bool) -> Scope {
    match name {
        "content-length" | "trailer" | "te" | "accept-ranges" | "content-range" => Scope::Dropped,
        "age" | "cache-control" | "expires" | "pragma" | "etag" | "last-modified" => Scope::Dropped,
        "via" | "cache-status" | "alt-svc" => Scope::Dropped,
        "content-digest" | "repr-digest" | "digest" | "content-md5" => Scope::Dropped,
        "signature" | "signature-input" => Scope::Dropped,
        "date" | "set-cookie" | "set-cookie2" | "retry-after" => Scope::PerResponse,
        "www-authenticate" | "authentication-info" => Scope::PerResponse,
        "x-inference-id" | "x-amz-cf-id" | "x-amz-id-2" | "b3" => Scope::PerResponse,
        "report-to" | "nel" | "reporting-endpoints" => Scope::PerResponse,
        "traceparent" | "tracestate" | "server-timing" | "cf-ray" | "cf-cache-status" => Scope::PerResponse,
        "x-cloud-trace-context" | "x-served-by" | "x-timer" | "x-cache" | "x-cache-hits" => {
            Scope::PerResponse
        }
        "x-runtime" | "x-response-time" => Scope::PerResponse,
        _ if ["x-aimlapi-", "x-b3-", "x-envoy-"].iter().any(|start| name.starts_with(start)) => {
            Scope::PerResponse
        }
        _ if ["ratelimit", "rate-limit"].iter().any(|part| name.contains(part)) => Scope::PerResponse,
        _ if PER_RESPONSE_ENDS.iter().any(|end| name.ends_with(end)) => Scope::PerResponse,
        _ if name.starts_with("access-control-") && !allows_any_origin => Scope::PerResponse,
        _ => Scope::Shared,
    }
}

/// Ends of names that vendors give to identifiers and times of one request, such as `openai-processing-ms`,
/// `apim-request-id`, `x-fal-request-id` and `x-amzn-trace-id`.
const PER_RESPONSE_ENDS: [&str; 6] =
    ["request-id", "requestid", "correlation-id", "trace-id", "-ms", "-duration"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;

    fn head(headers: &HeaderMap) -> ResponseHead {
        split_head(StatusCode::OK, headers)
    }

    fn names(fields: &[(Box<str>, Bytes)]) -> Vec<&str> {
        let mut names: Vec<_> = fields.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names
    }

    // P8
    #[test]
    fn a_head_is_split_into_shared_and_per_response_fields() {
        let head = head(&map(&[
            ("content-type", "application/json"),
            ("vary", "accept-encoding"),
            ("x-powered-by", "x"),
            ("date", "Tue, 24 Nov 2026 20:46:15 GMT"),
            ("x-request-id", "r"),
            ("x-inference-id", "i"),
            ("x-aimlapi-cost", "1"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("ratelimit", "\"calls\";r=0"),
            ("ratelimit-policy", "\"calls\";q=9"),
            ("x-ratelimit-remaining", "0"),
            ("retry-after", "3"),
            ("www-authenticate", "Bearer"),
            ("cf-ray", "1"),
            ("content-length", "2"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("age", "1"),
            ("etag", "\"e\""),
            ("cache-control", "public"),
            ("expires", "0"),
            ("pragma", "no-cache"),
            ("last-modified", "Tue, 24 Nov 2026 20:46:15 GMT"),
            ("cache-status", "cdn; hit"),
            ("via", "1.1 cdn"),
            ("alt-svc", "h3=\":443\""),
        ]));
        assert_eq!(names(&head.shared), ["content-type", "vary", "x-powered-by"]);
        let own = [
            "cf-ray",
            "date",
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "set-cookie",
            "set-cookie",
            "www-authenticate",
            "x-aimlapi-cost",
            "x-inference-id",
            "x-ratelimit-remaining",
            "x-request-id",
        ];
        assert_eq!(names(&head.per_response), own);
    }

    // P8
    #[test]
    fn the_per_response_fields_of_vendors_are_not_shared() {
        let rows = [
            "anthropic-ratelimit-requests-remaining",
            "apim-request-id",
            "cf-ray",
            "openai-poll-after-ms",
            "openai-processing-ms",
            "request-id",
            "retry-after-ms",
            "server-timing",
            "x-amzn-trace-id",
            "x-aimlapi-cost",
            "x-app-rate-limit-count",
            "x-b3-traceid",
            "x-cloud-trace-context",
            "x-correlation-id",
            "x-envoy-upstream-service-time",
            "x-fal-request-id",
            "x-goog-request-id",
            "x-ms-client-request-id",
            "x-ms-request-id",
            "x-ms-correlation-request-id",
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset",
            "x-request-duration",
            "x-request-id",
            "x-runtime",
            "x-should-retry-after-ms",
            "x-trace-id",
        ];
        for name in rows {
            let head = head(&map(&[(name, "1")]));
            assert_eq!((names(&head.shared), names(&head.per_response)), (vec![], vec![name]));
        }
        assert_eq!(rows.len(), 28);
        for name in ["content-type", "x-ms-version", "x-job-id", "openai-version", "x-terms", "x-fal-queue"] {
            assert_eq!(names(&head(&map(&[(name, "1")])).shared), [name]);
        }
    }

    #[test]
    fn only_a_200_without_content_range_is_complete() {
        let is_complete = |status, fields: &[_]| {
            split_head(StatusCode::from_u16(status).unwrap(), &map(fields)).is_complete
        };
        assert!(is_complete(200, &[]));
        assert!(!is_complete(200, &[("content-range", "bytes 0-1/2")]));
        for status in [201, 202, 203, 204, 205, 206, 207, 208, 226, 299] {
            assert!(!is_complete(status, &[]), "{status}");
        }
    }

    #[test]
    fn cors_fields_are_shared_only_if_they_allow_every_origin() {
        let methods = ("access-control-allow-methods", "GET");
        let to_all = head(&map(&[("access-control-allow-origin", "*"), methods]));
        assert_eq!((to_all.shared.len(), to_all.per_response.len()), (2, 0));
        let to_one = head(&map(&[("access-control-allow-origin", "https://a.example"), methods]));
        assert_eq!((to_one.shared.len(), to_one.per_response.len()), (0, 2));
    }

    // P8
    #[test]
    fn per_response_fields_are_written_only_for_the_client_whose_request_got_them() {
        let head = head(&map(&[("content-type", "a/b"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]));
        let mut own = HeaderMap::new();
        write_stored(&head, true, &mut own);
        assert_eq!(own, map(&[("content-type", "a/b"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]));
        let mut other = HeaderMap::new();
        write_stored(&head, false, &mut other);
        assert_eq!(other, map(&[("content-type", "a/b")]));
    }
}
