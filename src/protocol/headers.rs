//! Header fields: which are hop-by-hop, which belong to one answer, which the gateway adds.
//!
//! Functions over `http::HeaderMap` and nothing else; it must never know who sends or receives a message.
//!
//! ```text
//! request:   strip_hop_by_hop → Trail::write (strip_claims) → append_via → upstream
//! answer:    upstream → strip_hop_by_hop → append_via → client          (passed through)
//!            upstream → head → Head { shared, own } → write → client    (a job's, now or from the cache)
//! ```

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};

pub(crate) use super::claims::{strip_claims, strip_set_cookie, strip_upload_trailers};
use crate::core::job::Head;

/// What the gateway calls itself in `Via` and `Cache-Status`.
pub(crate) const PSEUDONYM: &str = "clipgate";

/// The longest [`retry_after`] that is believed.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Removes what holds for one connection only: `Connection`, all it lists, and the fields that are
/// hop-by-hop without being listed (RFC 9110 §7.6.1). `TE` comes down to `trailers`, which the gateway
/// can keep, if it was said (and which HTTP/2 allows, RFC 9113 §8.2.2). `Trailer` stays unless listed: it
/// is end-to-end (RFC 9110 §6.6.2), and hyper sends only the HTTP/1 trailers that it announces.
///
/// Strip before adding: a sender may list any field, so one that is added first can be listed away.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let takes_trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let listed: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

pub(super) static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// The same value in memory of its own. A field as it was read keeps the whole head in memory that it was read from.
pub(crate) fn copy_value(value: &HeaderValue) -> HeaderValue {
    let mut own = HeaderValue::from_bytes(value.as_bytes()).expect("it is a value already");
    own.set_sensitive(value.is_sensitive());
    own
}

/// The comma-separated members of all of a field's lines, trimmed, empty ones left out.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// The head of an upstream answer, as jobs keep it.
///
/// - Left out: hop-by-hop fields; what describes this message's bytes (`Content-Length`, `Trailer`,
///   ranges); what the gateway says itself of jobs (`Age`, `Cache-Control`, `Expires`, `Pragma`, `ETag`,
///   `Last-Modified`, since it answers no other conditions than its own `ETag`; `Via`, `Cache-Status`); and
///   `Alt-Svc`, which would lead clients around the gateway.
/// - Own: what belongs to one answer (contract, section 1), traces of one request, and CORS fields, which
///   depend on the asking request's `Origin`, unless they let everybody in (`*`).
/// - Shared: the rest. `Vary` too: a client's own cache needs it.
pub fn split_head(status: StatusCode, headers: &HeaderMap) -> Head {
    let mut stripped = headers.clone();
    strip_hop_by_hop(&mut stripped);
    let for_any_origin = stripped
        .get(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        .is_some_and(|value| value.as_bytes().trim_ascii() == b"*");
    // With `Content-Range` a 200 is either a mistake or a part; neither can be relied on for a day.
    let is_whole = status == StatusCode::OK && !headers.contains_key(header::CONTENT_RANGE);
    let mut head = Head { status: status.as_u16(), is_whole, ..Head::default() };
    for (name, value) in &stripped {
        let fields = match kind(name.as_str(), for_any_origin) {
            Scope::Shared => &mut head.shared,
            Scope::PerResponse => &mut head.own,
            Scope::Dropped => continue,
        };
        fields.push((name.as_str().into(), Bytes::copy_from_slice(value.as_bytes())));
    }
    head
}

/// Appends a kept head's fields; those of its own only to who caused the answer. What the gateway sets
/// itself (`X-Request-Id`, `Cache-Control`…) is inserted afterwards, and so wins.
pub(crate) fn write_stored(head: &Head, direct: bool, headers: &mut HeaderMap) {
    let own = if direct { head.own.as_slice() } else { &[] };
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

fn kind(name: &str, for_any_origin: bool) -> Scope {
    match name {
        "content-length" | "trailer" | "te" | "accept-ranges" | "content-range" => Scope::Dropped,
        "age" | "cache-control" | "expires" | "pragma" | "etag" | "last-modified" => Scope::Dropped,
        "via" | "cache-status" | "alt-svc" => Scope::Dropped,
        "content-digest" | "repr-digest" | "digest" | "content-md5" => Scope::Dropped,
        "signature" | "signature-input" => Scope::Dropped,
        "date" | "set-cookie" | "set-cookie2" | "retry-after" => Scope::PerResponse,
        "www-authenticate" | "authentication-info" => Scope::PerResponse,
        "x-request-id" | "x-inference-id" | "x-correlation-id" | "x-trace-id" => Scope::PerResponse,
        "x-amzn-requestid" | "x-amzn-trace-id" | "x-amz-cf-id" | "request-id" | "b3" => Scope::PerResponse,
        "report-to" | "nel" => Scope::PerResponse,
        "traceparent" | "tracestate" | "server-timing" | "cf-ray" | "cf-cache-status" => Scope::PerResponse,
        _ if ["x-aimlapi-", "ratelimit", "x-ratelimit"].iter().any(|start| name.starts_with(start)) => {
            Scope::PerResponse
        }
        _ if name.starts_with("access-control-") && !for_any_origin => Scope::PerResponse,
        _ => Scope::Shared,
    }
}

/// Says that the message, which was received in this version, came through here (RFC 9110 §7.6.3).
pub(crate) fn append_via(headers: &mut HeaderMap, received: Version) {
    headers.append(header::VIA, HeaderValue::from_static(via(received)));
}

/// The member of `Via` for a message that was received in this version.
pub(crate) fn via(received: Version) -> &'static str {
    match received {
        Version::HTTP_10 => "1.0 clipgate",
        Version::HTTP_2 => "2.0 clipgate",
        Version::HTTP_3 => "3.0 clipgate",
        _ => "1.1 clipgate",
    }
}

/// Whether `Via` names this gateway as a recipient: the request goes in a circle (508). To be asked
/// before [`strip_hop_by_hop`].
pub(crate) fn is_loop(headers: &HeaderMap) -> bool {
    headers.get_all(header::VIA).into_iter().any(|line| {
        without_comments(line.as_bytes())
            .split(|byte| *byte == b',')
            .filter_map(|member| {
                member.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()).nth(1) // after the received protocol
            })
            .any(|by| by.eq_ignore_ascii_case(PSEUDONYM.as_bytes()))
    })
}

/// A comment may nest, and hold commas and whatever else a sender likes (RFC 9110 §5.6.5).
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

/// The host a request asks for: its target's, else its one `Host` field's. `None` if it names none, or
/// nothing that can be a host, or several.
pub(crate) fn asked_host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    if let Some(authority) = uri.authority() {
        return is_host(authority).then(|| authority.clone());
    }
    let mut fields = headers.get_all(header::HOST).into_iter();
    let authority = Authority::try_from(fields.next()?.as_bytes()).ok()?;
    (fields.next().is_none() && is_host(&authority)).then_some(authority)
}

/// Whether the fields name one host in a readable way, or none where none has to be named: RFC 9112 §3.2 has all other
/// requests refused. An empty field names none.
pub(crate) fn has_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(header::HOST).into_iter();
    match (fields.next(), fields.next()) {
        (None, _) => version != Version::HTTP_11,
        (Some(field), None) => {
            field.is_empty()
                || Authority::try_from(field.as_bytes()).is_ok_and(|host| !host.as_str().contains('@'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// Whether the authority can stand in `Host`: it has a host, and no user.
pub(crate) fn is_host(authority: &Authority) -> bool {
    !authority.as_str().contains(['@', '"', '\\']) && !authority.host().is_empty()
}

/// Whether a page of another origin caused the request, or may have (Fetch Metadata; for browsers without, RFC 6454).
/// That includes frames and links, and what is fetched ahead of its use: a page may order that, and a browser then says
/// that it was nobody.
pub(crate) fn is_cross_origin<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let mut sites = headers.get_all(SEC_FETCH_SITE).into_iter();
    let mut origins = headers.get_all(header::ORIGIN).into_iter();
    let is_foreign = match (sites.next(), origins.next()) {
        (Some(site), _) => !["same-origin", "none"].iter().any(|own| site == own),
        (None, Some(origin)) => !is_asked(origin, request),
        (None, None) => false,
    };
    is_foreign || sites.next().is_some() || origins.next().is_some() || headers.contains_key(SEC_PURPOSE)
}

/// Whether the origin is the host that the request asks, whose scheme it alone tells.
fn is_asked<B>(origin: &HeaderValue, request: &Request<B>) -> bool {
    let Ok(origin) = Uri::try_from(origin.as_bytes()) else { return false };
    let Some(scheme) = origin.scheme().filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme)) else {
        return false;
    };
    let asked = asked_host(request.uri(), request.headers());
    origin.authority().zip(asked).is_some_and(|(origin, asked)| is_same_host_port(scheme, origin, &asked))
}

/// Whether both are one host and port where this scheme is spoken, the other being a plain one, without a user.
pub(crate) fn is_same_host_port(scheme: &Scheme, one: &Authority, other: &Authority) -> bool {
    let default = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    one.host().eq_ignore_ascii_case(other.host())
        && one.port_u16().unwrap_or(default) == other.port_u16().unwrap_or(default)
        && !other.as_str().contains('@')
}

/// Whether it is to be shown as a page of its own, by a link or a script: whoever sees the answer is not a page.
pub(crate) fn is_top_level_navigation<B>(request: &Request<B>) -> bool {
    let said = |name, value: &str| request.headers().get(name).is_some_and(|said| said == value);
    request.method() == Method::GET && said(SEC_FETCH_MODE, "navigate") && said(SEC_FETCH_DEST, "document")
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");

/// How long `Retry-After` asks to wait, [`MAX_RETRY_AFTER`] at most; zero if its date has passed, `None`
/// if it is missing or is neither seconds nor a date (RFC 9110 §10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs) // too many digits are too many seconds
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

/// How long the client asks to be waited for: `Prefer: wait=SECONDS` (RFC 7240 §4.3). The first one counts;
/// one that is no number of seconds is no preference.
pub(crate) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    tokens(headers, &PREFER).find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let is_wait = name.trim().eq_ignore_ascii_case("wait") && value.bytes().all(|b| b.is_ascii_digit());
        is_wait.then(|| value.parse().ok().map(Duration::from_secs)).flatten()
    })
}

/// Returns how often a request may still be forwarded (RFC 9110 §7.6.2); `None` if the field is missing, repeated or
/// not a number.
pub(crate) fn max_forwards(headers: &HeaderMap) -> Option<u64> {
    let mut fields = headers.get_all(header::MAX_FORWARDS).into_iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let text = field.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Decrements `Max-Forwards` where it is a number.
pub(crate) fn count_max_forwards_down(headers: &mut HeaderMap) {
    if let Some(left) = max_forwards(headers) {
        headers.insert(header::MAX_FORWARDS, left.saturating_sub(1).into());
    }
}

/// `Prefer`, which the `http` crate has no name for.
const PREFER: HeaderName = HeaderName::from_static("prefer");

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn head(headers: &HeaderMap) -> Head {
        super::split_head(StatusCode::OK, headers)
    }

    fn names(fields: &[(Box<str>, Bytes)]) -> Vec<&str> {
        let mut names: Vec<_> = fields.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hop_by_hop_fields_and_what_connection_lists_are_stripped() {
        let mut headers = map(&[
            ("connection", "close, X-Hop , ,upgrade"),
            ("connection", "x-other"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("http2-settings", "AAMAAABk"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("trailer", "x-sum"),
            ("x-end", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("trailer", "x-sum"), ("x-end", "1")]));
    }

    #[test]
    fn a_wait_is_preferred_in_seconds() {
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
    fn te_comes_down_to_trailers() {
        for (sent, kept) in
            [("trailers", true), ("gzip;q=0.5, Trailers", true), ("gzip", false), ("trailers-not", false)]
        {
            let mut headers = map(&[("te", sent), ("connection", "te")]);
            strip_hop_by_hop(&mut headers);
            assert_eq!(
                headers.get("te").map(HeaderValue::as_bytes),
                kept.then_some(&b"trailers"[..]),
                "{sent}"
            );
        }
    }

    #[test]
    fn a_connection_field_cannot_list_away_what_is_added_after_it() {
        let mut headers = map(&[
            (
                "connection",
                "authorization, host, content-length, x-forwarded-for, forwarded, via, x-request-id",
            ),
            ("authorization", "Bearer client"),
        ]);
        strip_hop_by_hop(&mut headers);
        headers.insert("authorization", HeaderValue::from_static("Bearer gateway"));
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        headers.insert(header::FORWARDED, HeaderValue::from_static("for=192.0.2.1"));
        append_via(&mut headers, Version::HTTP_11);
        strip_hop_by_hop(&mut headers);
        for name in ["authorization", "x-forwarded-for", "forwarded", "via"] {
            assert!(headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_head_is_split_into_what_all_may_see_and_what_one_answer_owns() {
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
        assert_eq!(names(&head.own), own);
    }

    #[test]
    fn only_a_200_without_a_range_is_the_whole() {
        let is_whole = |status, fields: &[_]| {
            super::split_head(StatusCode::from_u16(status).unwrap(), &map(fields)).is_whole
        };
        assert!(is_whole(200, &[]));
        assert!(!is_whole(200, &[("content-range", "bytes 0-1/2")]));
        for status in [201, 202, 203, 204, 205, 206, 207, 208, 226, 299] {
            assert!(!is_whole(status, &[]), "{status}");
        }
    }

    #[test]
    fn cors_fields_are_shared_only_if_they_let_everybody_in() {
        let methods = ("access-control-allow-methods", "GET");
        let to_all = head(&map(&[("access-control-allow-origin", "*"), methods]));
        assert_eq!((to_all.shared.len(), to_all.own.len()), (2, 0));
        let to_one = head(&map(&[("access-control-allow-origin", "https://a.example"), methods]));
        assert_eq!((to_one.shared.len(), to_one.own.len()), (0, 2));
    }

    #[test]
    fn a_head_is_written_whole_only_to_who_caused_it() {
        let head = head(&map(&[("content-type", "a/b"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]));
        let mut direct = HeaderMap::new();
        write_stored(&head, true, &mut direct);
        assert_eq!(direct, map(&[("content-type", "a/b"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]));
        let mut other = HeaderMap::new();
        write_stored(&head, false, &mut other);
        assert_eq!(other, map(&[("content-type", "a/b")]));
    }

    #[test]
    fn via_is_appended_in_the_version_received() {
        let mut headers = map(&[("via", "1.0 fred")]);
        append_via(&mut headers, Version::HTTP_2);
        append_via(&mut headers, Version::HTTP_11);
        assert_eq!(headers, map(&[("via", "1.0 fred"), ("via", "2.0 clipgate"), ("via", "1.1 clipgate")]));
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert!(via(version).ends_with(PSEUDONYM));
        }
    }

    #[test]
    fn a_loop_is_seen_in_any_line_of_via_but_not_in_its_comments() {
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

    #[test]
    fn the_host_asked_for_is_the_targets_or_the_one_host_fields() {
        let asked = |uri: &'static str, fields: &[_]| {
            asked_host(&Uri::from_static(uri), &map(fields)).map(|host| host.to_string())
        };
        assert_eq!(asked("/x", &[("host", "a:1")]).as_deref(), Some("a:1"));
        assert_eq!(asked("http://b/x", &[("host", "a:1")]).as_deref(), Some("b"));
        assert_eq!(asked("/x", &[]), None);
        assert_eq!(asked("/x", &[("host", "a"), ("host", "b")]), None);
        assert_eq!(asked("/x", &[("host", "user@a")]), None);
        assert_eq!(asked("/x", &[("host", "a\";for=b")]), None);
        assert_eq!(asked("/x", &[("host", "")]), None);
    }

    #[test]
    fn a_request_names_one_host_and_only_one_of_http_1_1_has_to() {
        let fits = |version, fields: &[(&'static str, &'static str)]| has_one_host(version, &map(fields));
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            for good in ["a", "a:80", "[::1]:80", "127.0.0.1", ""] {
                assert!(fits(version, &[("host", good)]), "{good}");
            }
            for bad in ["a b", "user@a", "a/b", "a, b", "http://a", "[::1"] {
                assert!(!fits(version, &[("host", bad)]), "{bad}");
            }
            assert!(!fits(version, &[("host", "a"), ("host", "a")]));
            assert_eq!(fits(version, &[]), version != Version::HTTP_11);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_an_end() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 20:46:15 GMT").unwrap();
        let asked = |text| retry_after(&map(&[("retry-after", text)]), now).map(|wait| wait.as_secs());
        assert_eq!(asked("0"), Some(0));
        assert_eq!(asked(" 120 "), Some(120));
        assert_eq!(asked("7200"), Some(3600));
        assert_eq!(asked("99999999999999999999999999"), Some(3600));
        assert_eq!(asked("Tue, 24 Nov 2026 20:46:25 GMT"), Some(10));
        assert_eq!(asked("Tue, 24 Nov 2026 20:00:00 GMT"), Some(0));
        assert_eq!(asked("Tue, 24 Nov 2099 20:00:00 GMT"), Some(3600));
        for bad in ["", "-1", "1.5", "+3", "soon"] {
            assert_eq!(asked(bad), None, "{bad}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
