//! Parsers of the request fields that have keys: `auth.headers` and `auth.send`.

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::error::{InvalidValue, invalid};
use super::types::KeyTemplate;
use crate::protocol::spoofed_headers::is_own_or_spoofable;

const PLACEHOLDER: &str = "{key}";

/// Fields with a meaning for the gateway, for caches or for browsers. One of them as a key would split the shared polls
/// of one account, or share those of several.
const NO_KEYS: [&str; 14] = [
    "cache-control",
    "cookie",
    "cookie2",
    "date",
    "expect",
    "last-event-id",
    "origin",
    "pragma",
    "prefer",
    "range",
    "referer",
    "set-cookie",
    "trailer",
    "user-agent",
];
const NO_KEY_PREFIXES: [&str; 5] = ["accept", "access-control-", "content-", "if-", "sec-"];

/// Parses the name of a request field that has a key, in any case.
pub(super) fn key_field(text: &str) -> Result<HeaderName, InvalidValue> {
    let Ok(name) = HeaderName::try_from(text) else {
        return invalid(
            // The text may have a key by mistake.
            "not a valid field name",
            "Use the name alone, such as \"authorization\" or \"x-api-key\".",
        );
    };
    let text = name.as_str();
    let is_reserved = NO_KEYS.contains(&text)
        || NO_KEY_PREFIXES.iter().any(|start| text.starts_with(start))
        || (name != AUTHORIZATION && is_own_or_spoofable(text));
    if is_reserved {
        return invalid(
            format!("{name} is a field of the connection, of browsers or of proxies, which cannot be a key"),
            "Use the field in which the API expects its key, such as \"authorization\" or \"x-api-key\".",
        );
    }
    Ok(name)
}

/// Parses `NAME: TEXT` with exactly one `{key}` in the text. Errors do not repeat it, as it may be a key by mistake.
pub(super) fn key_template(text: &str) -> Result<KeyTemplate, InvalidValue> {
    const HINT: &str = "Use a form such as \"authorization: Bearer {key}\" or \"x-api-key: {key}\".";
    let Some((name, value)) = text.split_once(':') else {
        return invalid("the field has no `:` after its name", HINT);
    };
    let name = match HeaderName::try_from(name) {
        Ok(_) => key_field(name)?,
        Err(_) => return invalid("the field has no valid name before the `:`", HINT),
    };
    let value = value.trim();
    if value.matches(PLACEHOLDER).count() != 1 {
        return invalid(
            "the field does not have exactly one {key}",
            "Write {key} where the key belongs, once. The key itself is upstream.api_key or a member's upstream_key.",
        );
    }
    if !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return invalid("the field has characters other than visible ASCII and spaces", HINT);
    }
    let (before, after) = value.split_once(PLACEHOLDER).unwrap_or_default();
    let scheme = before.trim();
    if name == AUTHORIZATION && ["ntlm", "negotiate"].iter().any(|other| scheme.eq_ignore_ascii_case(other)) {
        return invalid(
            "the scheme authenticates a connection, and the connections are shared",
            "Use a scheme that authenticates each request, such as Bearer or Basic.",
        );
    }
    Ok(KeyTemplate { name, before: before.to_owned(), after: after.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_key_field_is_a_field_name_that_nothing_else_uses() {
        for (text, name) in [
            ("authorization", "authorization"),
            ("Authorization", "authorization"),
            ("X-Key", "x-key"),
            ("xi-api-key", "xi-api-key"),
            ("anthropic-version", "anthropic-version"),
            ("api_key", "api_key"),
        ] {
            assert_eq!(key_field(text).unwrap(), name);
        }
        for text in ["", "x key", "x-key:", "authorization: Bearer x", "ä", " x-key"] {
            assert!(key_field(text).unwrap_err().problem == "not a valid field name", "{text:?}");
        }
        let reserved = [
            "accept",
            "Accept-Language",
            "access-control-request-method",
            "cache-control",
            "connection",
            "content-type",
            "cookie",
            "forwarded",
            "host",
            "http2-settings",
            "if-none-match",
            "keep-alive",
            "last-event-id",
            "max-forwards",
            "origin",
            "prefer",
            "proxy-authorization",
            "range",
            "sec-fetch-site",
            "set-cookie",
            "te",
            "traceparent",
            "transfer-encoding",
            "upgrade",
            "user-agent",
            "via",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-real-ip",
            "x-request-id",
        ];
        for text in reserved {
            assert!(key_field(text).unwrap_err().problem.contains("cannot be a key"), "{text}");
        }
        assert_eq!(reserved.len(), 30);
    }

    #[test]
    fn a_template_has_a_name_and_one_placeholder() {
        let field = |text: &str| {
            let (name, value) = key_template(text).unwrap().field(&Secret::new("k")).unwrap();
            assert!(value.is_sensitive());
            format!("{name}: {}", value.to_str().unwrap())
        };
        assert_eq!(key_template("authorization: Bearer {key}"), Ok(KeyTemplate::default()));
        assert_eq!(field("X-Key:{key}"), "x-key: k");
        assert_eq!(field("authorization: Key {key}"), "authorization: Key k");
        assert_eq!(field("authorization: {key}"), "authorization: k");
        assert_eq!(
            field("authorization:  Token token=\"{key}\", v=1 "),
            "authorization: Token token=\"k\", v=1"
        );
        for (text, problem) in [
            ("", "the field has no `:`"),
            ("x-key {key}", "the field has no `:`"),
            (": {key}", "the field has no valid name"),
            ("x key: {key}", "the field has no valid name"),
            ("cookie: {key}", "cookie is a field of the connection"),
            ("x-key: sk-1", "the field does not have exactly one {key}"),
            ("x-key: {key}{key}", "the field does not have exactly one {key}"),
            ("x-key: {KEY}", "the field does not have exactly one {key}"),
            ("x-key: {key}\tx", "the field has characters"),
            ("x-key: ä{key}", "the field has characters"),
            ("authorization: ntlm {key}", "the scheme authenticates a connection"),
            ("authorization: Negotiate {key}", "the scheme authenticates a connection"),
        ] {
            let error = key_template(text).unwrap_err();
            assert!(error.problem.starts_with(problem), "{text:?}: {}", error.problem);
            assert!(!error.problem.contains("sk-1") && !error.hint.contains("sk-1"), "{text:?}");
        }
    }
}
