//! W3C Trace Context: the fields `traceparent` and `tracestate`, read strictly and written.

use std::str::FromStr as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A place in a trace: what is sent on names it as its cause.
#[derive(Clone, Debug)]
pub struct TraceContext(pub(super) SpanContext);

impl TraceContext {
    /// The beginning of a trace that nobody records.
    pub fn unrecorded() -> Self {
        let trace = TraceId::from((u128::from(fastrand::u64(..)) << 64) | u128::from(fastrand::u64(1..)));
        let span = SpanId::from(fastrand::u64(1..));
        Self(SpanContext::new(trace, span, TraceFlags::default(), false, TraceState::default()))
    }

    /// Whose a request is; `None` where it does not say, or not as Trace Context has it: a trace begins anew then
    /// (§4.3).
    pub fn of(fields: &HeaderMap) -> Option<Self> {
        let mut lines = fields.get_all(TRACEPARENT).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let (trace, span, flags) = parent(line.to_str().ok()?)?;
        Some(Self(SpanContext::new(trace, span, flags, true, state(fields))))
    }

    /// Makes the fields say this, whatever they said before.
    pub fn write(&self, fields: &mut HeaderMap) {
        let Self(context) = self;
        let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let parts = [(3..35, &trace.to_bytes()[..]), (36..52, &span.to_bytes()), (53..55, &[flags])];
        for (digits, bytes) in parts {
            hex::encode_to_slice(bytes, &mut parent[digits]).expect("two digits a byte");
        }
        fields.insert(TRACEPARENT, HeaderValue::from_bytes(&parent).expect("hex digits are a header value"));
        let state = context.trace_state().header();
        match HeaderValue::try_from(state) {
            Ok(state) if !state.is_empty() => drop(fields.insert(TRACESTATE, state)),
            Ok(_) | Err(_) => drop(fields.remove(TRACESTATE)),
        }
    }
}

/// `VERSION-TRACE-PARENT-FLAGS` (§3.2). Versions to come may have more behind; of the flags one is known.
fn parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let is_hex = |part: &&str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let part = |from: usize, to: usize| text.get(from..to).filter(is_hex);
    let (version, trace, span, flags) = (part(0, 2)?, part(3, 35)?, part(36, 52)?, part(53, 55)?);
    let more = text.get(55..)?;
    let is_apart = [2, 35, 52].iter().all(|&at| text.as_bytes()[at] == b'-');
    let is_whole = more.is_empty() || (version != "00" && more.starts_with('-'));
    if version == "ff" || !is_apart || !is_whole {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

/// What other systems have added; nothing where that is no list (§3.3).
fn state(fields: &HeaderMap) -> TraceState {
    let lines: Result<Vec<_>, _> = fields.get_all(TRACESTATE).iter().map(HeaderValue::to_str).collect();
    lines.ok().and_then(|lines| TraceState::from_str(&lines.join(",")).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(parents: &[&str], states: &[&str]) -> Option<TraceContext> {
        let mut fields = HeaderMap::new();
        for parent in parents {
            fields.append(TRACEPARENT, HeaderValue::from_str(parent).unwrap());
        }
        for state in states {
            fields.append(TRACESTATE, HeaderValue::from_str(state).unwrap());
        }
        TraceContext::of(&fields)
    }

    #[test]
    fn what_is_read_is_written_again() {
        let mut fields = HeaderMap::new();
        read(&[GOOD], &["a=1,b=2", "c=3"]).unwrap().write(&mut fields);
        assert_eq!(fields[TRACEPARENT], GOOD);
        assert_eq!(fields[TRACESTATE], "a=1,b=2,c=3");
        read(&[GOOD], &["no list"]).unwrap().write(&mut fields);
        assert_eq!((&fields[TRACEPARENT], fields.get(TRACESTATE)), (&HeaderValue::from_static(GOOD), None));
    }

    #[test]
    fn a_version_to_come_is_read_as_far_as_it_is_known() {
        for (text, flags) in
            [(GOOD.replace("00-0", "42-0"), "01"), (GOOD.replace("00-0", "cc-0") + "-x", "01")]
        {
            let mut fields = HeaderMap::new();
            read(&[&text], &[]).unwrap().write(&mut fields);
            assert_eq!(fields[TRACEPARENT], GOOD[..53].to_owned() + flags, "{text}");
        }
        let mut fields = HeaderMap::new();
        read(&[&GOOD.replace("-01", "-ff")], &[]).unwrap().write(&mut fields);
        assert_eq!(fields[TRACEPARENT], GOOD, "flags that nobody knows are not passed on");
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let bad = [
            String::new(),
            "x".to_owned(),
            GOOD.to_uppercase(),
            GOOD.replace("00-0", "ff-0"),
            GOOD.replace("00-0", "0-0"),
            GOOD.replace("00-0", "+0-0"),
            GOOD.to_owned() + "-x",
            GOOD.replace("-01", "-1"),
            GOOD.replace("-01", "-0\u{e9}"),
            GOOD.replace("-b7", "_b7"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("b7ad6b7169203331", "b7ad6b716920333"),
        ];
        for text in &bad {
            assert!(read(&[text], &[]).is_none(), "{text}");
        }
        assert!(read(&[GOOD, GOOD], &[]).is_none(), "two are none");
        assert!(read(&[], &["a=1"]).is_none());
    }

    #[test]
    fn a_new_trace_is_a_valid_one_and_says_that_nobody_records_it() {
        let mut fields = HeaderMap::new();
        fields.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        TraceContext::unrecorded().write(&mut fields);
        let text = fields[TRACEPARENT].to_str().unwrap();
        assert!(parent(text).is_some() && text.ends_with("-00"), "{text}");
        assert!(!fields.contains_key(TRACESTATE));
        assert_ne!(TraceContext::unrecorded().0, TraceContext::unrecorded().0);
    }
}
