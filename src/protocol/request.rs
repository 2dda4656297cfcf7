//! What is known of a request before its key is: its id, where it comes from, since when.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use http::HeaderValue;

pub use super::forwarded::ForwardedChain;
use crate::protocol::headers;

/// The longest request id that is taken over from a client, in bytes.
const MAX_ID_BYTES: usize = 128;

/// The name of one request, the same in its answer, its log line and at the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's own `X-Request-Id`, if it is 1 to 128 visible ASCII characters, else a new one.
    pub fn new(of_client: Option<&HeaderValue>) -> Self {
        let fits = |value: &&HeaderValue| {
            (1..=MAX_ID_BYTES).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        match of_client.filter(fits) {
            Some(value) => Self(headers::copy_value(value)),
            None => Self::random(),
        }
    }

    fn random() -> Self {
        let (mut random, mut text) = ([0; 16], [0; 32]);
        fastrand::fill(&mut random);
        hex::encode_to_slice(random, &mut text).expect("two digits a byte");
        Self(HeaderValue::from_bytes(&text).expect("hex digits are a header value"))
    }

    /// The id as a header field's value.
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("only visible ASCII is taken")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The other end of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// By address and port.
    Tcp(SocketAddr),
    /// A unix socket, which has no address.
    Unix,
}

impl Peer {
    /// Its address, for people: `unix` where it has none.
    pub fn address(self) -> Cow<'static, str> {
        match self.ip() {
            Some(ip) => Cow::Owned(shown(ip)),
            None => Cow::Borrowed("unix"),
        }
    }

    /// Its address, if it has one; one of IPv4 as that.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip().to_canonical()),
            Peer::Unix => None,
        }
    }

    /// Its port.
    pub fn port(self) -> Option<u16> {
        match self {
            Peer::Tcp(address) => Some(address.port()),
            Peer::Unix => None,
        }
    }
}

/// An address as a text.
pub(crate) fn shown(ip: IpAddr) -> String {
    let mut text = String::with_capacity("255.255.255.255".len());
    push_address(&mut text, ip);
    text
}

/// What its `Display` writes. That is slow, and each request has several.
pub(super) fn push_address(text: &mut String, ip: IpAddr) {
    let IpAddr::V4(ip) = ip else { return text.push_str(&ip.to_string()) };
    let mut digits = itoa::Buffer::new();
    for (n, octet) in ip.octets().into_iter().enumerate() {
        if n > 0 {
            text.push('.');
        }
        text.push_str(digits.format(octet));
    }
}

/// What every step of a request may know.
#[derive(Clone, Debug)]
pub struct RequestCtx {
    /// Its id.
    pub id: RequestId,
    /// Where it comes from.
    pub trail: ForwardedChain,
    /// Whether the client's connection is TLS.
    pub is_tls: bool,
    /// When its head was read.
    pub arrived: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_taken_over_only_if_it_cannot_harm_a_log() {
        let taken = |text: &[u8]| {
            let value = HeaderValue::from_bytes(text).unwrap();
            RequestId::new(Some(&value)).as_str().as_bytes() == text
        };
        assert!(taken(b"req-1"));
        assert!(taken(&[b'x'; 128]));
        for bad in [&b""[..], b"a b", b"a\tb", b"\xc3\xa9", &[b'x'; 129]] {
            assert!(!taken(bad), "{bad:?}");
        }
        assert_ne!(RequestId::new(None), RequestId::new(None));
    }
}
