//! W3C Trace Context: strict parser and writer of the headers `traceparent` and `tracestate`.
//!
//! The standard is <https://www.w3.org/TR/trace-context/>.

use std::str::FromStr as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::protocol::added_fields::AddedFields;
use crate::protocol::field_value::write_hex;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Position in a trace, which a forwarded request names as its parent.
#[derive(Clone, Debug)]
pub struct TraceContext(pub(super) SpanContext);

impl TraceContext {
    /// Creates the root of a new trace that is not recorded.
    pub fn unrecorded() -> Self {
        // Not 0. The bounds of a range would cost three times as much.
        let (trace, span) = (fastrand::u128(..).max(1), fastrand::u64(..).max(1));
        let (trace, span) = (TraceId::from(trace), SpanId::from(span));
        Self(SpanContext::new(trace, span, TraceFlags::default(), false, TraceState::default()))
    }

    /// Parses the context of a request. Returns `None` without a valid `traceparent`: the gateway then starts a new
    /// trace (W3C standard, section 4.3).
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let (trace, span, flags) = parse_parent(value.to_str().ok()?)?;
        Some(Self(SpanContext::new(trace, span, flags, true, parse_state(headers))))
    }

    /// Replaces `traceparent` and `tracestate`.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut fields = AddedFields::default();
        Self::remove(headers);
        self.add(&mut fields);
        fields.move_into(headers);
    }

    pub(crate) fn remove(headers: &mut HeaderMap) {
        headers.remove(TRACEPARENT);
        headers.remove(TRACESTATE);
    }

    /// Adds `traceparent` and `tracestate`.
    pub(crate) fn add(&self, fields: &mut AddedFields) {
        let Self(context) = self;
        let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let parts = [(3..35, &trace.to_bytes()[..]), (36..52, &span.to_bytes()), (53..55, &[flags])];
        for (digits, bytes) in parts {
            write_hex(bytes, &mut parent[digits]);
        }
        fields.push_own("traceparent", |value| value.extend_from_slice(&parent));
        if *context.trace_state() != TraceState::NONE {
            let state = context.trace_state().header();
            if !state.is_empty() {
                fields.push_with("tracestate", |value| value.extend_from_slice(state.as_bytes()));
            }
        }
    }
}

/// Parses `VERSION-TRACE-PARENT-FLAGS` (W3C standard, section 3.2). Later versions may append parts. Of the flags only
/// `sampled` is known.
fn parse_parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let is_hex = |part: &&str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let part = |from: usize, to: usize| text.get(from..to).filter(is_hex);
    let (version, trace, span, flags) = (part(0, 2)?, part(3, 35)?, part(36, 52)?, part(53, 55)?);
    let suffix = text.get(55..)?;
    let has_separators = [2, 35, 52].iter().all(|&at| text.as_bytes()[at] == b'-');
    let has_valid_suffix = suffix.is_empty() || (version != "00" && suffix.starts_with('-'));
    if version == "ff" || !has_separators || !has_valid_suffix {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

/// Parses `tracestate`. Returns an empty state for an invalid list (W3C standard, section 3.3).
fn parse_state(headers: &HeaderMap) -> TraceState {
    let values: Result<Vec<_>, _> = headers.get_all(TRACESTATE).iter().map(HeaderValue::to_str).collect();
    values.ok().and_then(|values| TraceState::from_str(&values.join(",")).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(parents: &[&str], states: &[&str]) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACEPARENT, HeaderValue::from_str(parent).unwrap());
        }
        for state in states {
            headers.append(TRACESTATE, HeaderValue::from_str(state).unwrap());
        }
        TraceContext::from_headers(&headers)
    }

    #[test]
    fn a_parsed_context_is_written_unchanged() {
        let mut headers = HeaderMap::new();
        parse(&[VALID], &["a=1,b=2", "c=3"]).unwrap().write(&mut headers);
        assert_eq!(headers[TRACEPARENT], VALID);
        assert_eq!(headers[TRACESTATE], "a=1,b=2,c=3");
        parse(&[VALID], &["not a list"]).unwrap().write(&mut headers);
        assert_eq!(
            (&headers[TRACEPARENT], headers.get(TRACESTATE)),
            (&HeaderValue::from_static(VALID), None)
        );
    }

    #[test]
    fn the_known_part_of_a_later_version_is_parsed() {
        for (text, flags) in
            [(VALID.replace("00-0", "42-0"), "01"), (VALID.replace("00-0", "cc-0") + "-x", "01")]
        {
            let mut headers = HeaderMap::new();
            parse(&[&text], &[]).unwrap().write(&mut headers);
            assert_eq!(headers[TRACEPARENT], VALID[..53].to_owned() + flags, "{text}");
        }
        let mut headers = HeaderMap::new();
        parse(&[&VALID.replace("-01", "-ff")], &[]).unwrap().write(&mut headers);
        assert_eq!(headers[TRACEPARENT], VALID, "unknown flags are not passed on");
    }

    #[test]
    fn an_invalid_traceparent_is_ignored() {
        let invalid = [
            String::new(),
            "x".to_owned(),
            VALID.to_uppercase(),
            VALID.replace("00-0", "ff-0"),
            VALID.replace("00-0", "0-0"),
            VALID.replace("00-0", "+0-0"),
            VALID.to_owned() + "-x",
            VALID.replace("-01", "-1"),
            VALID.replace("-01", "-0\u{e9}"),
            VALID.replace("-b7", "_b7"),
            VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            VALID.replace("b7ad6b7169203331", &"0".repeat(16)),
            VALID.replace("b7ad6b7169203331", "b7ad6b716920333"),
        ];
        for text in &invalid {
            assert!(parse(&[text], &[]).is_none(), "{text}");
        }
        assert!(parse(&[VALID, VALID], &[]).is_none(), "two values are invalid");
        assert!(parse(&[], &["a=1"]).is_none());
    }

    #[test]
    fn a_new_trace_is_valid_and_marked_as_not_recorded() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        TraceContext::unrecorded().write(&mut headers);
        let text = headers[TRACEPARENT].to_str().unwrap();
        assert!(parse_parent(text).is_some() && text.ends_with("-00"), "{text}");
        assert!(!headers.contains_key(TRACESTATE));
        assert_ne!(TraceContext::unrecorded().0, TraceContext::unrecorded().0);
    }
}
