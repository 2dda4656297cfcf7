//! The context of a request that is known before its key: id, origin, time of arrival.

use std::fmt;
use std::time::Instant;

use http::HeaderValue;

use super::field_value::{copy_value, write_hex};
pub use super::forwarded::ForwardedChain;
pub use super::peer::Peer;

/// The longest request id that is taken from a client, in bytes.
const MAX_ID_BYTES: usize = 128;

/// The id of one request, in its response, in its log line and at the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Takes the client's `X-Request-Id` if it is 1 to 128 visible ASCII characters, else creates a random id.
    pub fn new(of_client: Option<&HeaderValue>) -> Self {
        let fits = |value: &&HeaderValue| {
            (1..=MAX_ID_BYTES).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        let mut value = match of_client.filter(fits) {
            Some(value) => copy_value(value),
            None => Self::random(),
        };
        // Not secret, but different in each response: HTTP/2 must not index it.
        value.set_sensitive(true);
        Self(value)
    }

    fn random() -> HeaderValue {
        let mut text = [0; 32];
        write_hex(&fastrand::u128(..).to_ne_bytes(), &mut text);
        HeaderValue::from_bytes(&text).expect("hex digits are a header value")
    }

    pub fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// Returns the value without a copy, and leaves an empty id.
    pub(crate) fn take_value(&mut self) -> HeaderValue {
        std::mem::replace(&mut self.0, HeaderValue::from_static(""))
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("ids are visible ASCII")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The context of a request.
#[derive(Clone, Debug)]
pub struct RequestCtx {
    pub id: RequestId,
    /// The connection's peer and the proxies before it.
    pub forwarded: ForwardedChain,
    /// Whether the client's connection is TLS.
    pub is_tls: bool,
    /// The time when the head was read.
    pub arrived: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_request_id_is_used_only_if_it_is_short_visible_ascii() {
        let is_used = |text: &[u8]| {
            let value = HeaderValue::from_bytes(text).unwrap();
            RequestId::new(Some(&value)).as_str().as_bytes() == text
        };
        assert!(is_used(b"req-1"));
        assert!(is_used(&[b'x'; 128]));
        for bad in [&b""[..], b"a b", b"a\tb", b"\xc3\xa9", &[b'x'; 129]] {
            assert!(!is_used(bad), "{bad:?}");
        }
        assert_ne!(RequestId::new(None), RequestId::new(None));
    }
}
