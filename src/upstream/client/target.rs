//! Base URL of the upstream, and the URIs that may be requested there.
//!
//! Every request goes to the configured scheme and authority. If `upstream.base_url` has a path, a target is rejected
//! that any server could read as leading out of it ([`has_dot_segment`]).

use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

use super::BadTarget;

/// Most layers of encoding. A target that has more is rejected.
const MAX_ROUNDS: usize = 8;

/// Parts of `upstream.base_url`.
#[derive(Debug)]
pub(super) struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// `Host` header of HTTP/1.1, without the default port of the scheme.
    host: HeaderValue,
    /// Without a trailing slash; may be empty.
    prefix: String,
}

impl BaseUrl {
    /// Returns `None` unless the URL is `http` or `https`, without userinfo and query.
    pub(super) fn new(url: &Uri) -> Option<Self> {
        let scheme = url.scheme().filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme))?;
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if url.query().is_some() {
            return None;
        }
        let default_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let host = match authority.port_u16() {
            Some(port) if port != default_port => authority.as_str(),
            Some(_) | None => authority.host(),
        };
        Some(Self {
            host: HeaderValue::from_str(host).ok()?,
            scheme: scheme.clone(),
            authority: authority.clone(),
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }

    pub(super) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Returns the name or address to connect to, without the brackets of IPv6.
    pub(super) fn host_name(&self) -> &str {
        self.authority.host().trim_matches(['[', ']'])
    }

    /// Returns scheme and authority as a URI, for the connector.
    pub(super) fn origin(&self) -> Option<Uri> {
        let target = PathAndQuery::from_static("/");
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(target)
            .build()
            .ok()
    }

    /// See [`super::Client::uri`].
    pub(super) fn uri(&self, target: &PathAndQuery) -> Result<Uri, BadTarget> {
        let Self { scheme, authority, prefix, .. } = self;
        if !target.as_str().starts_with('/') {
            return Err(BadTarget::NoPath);
        }
        let target = if prefix.is_empty() {
            target.clone()
        } else if has_dot_segment(target.path()) {
            return Err(BadTarget::DotSegment);
        } else {
            PathAndQuery::try_from(format!("{prefix}{target}")).map_err(|_| BadTarget::TooLong)?
        };
        let mut parts = Parts::default();
        parts.scheme = Some(scheme.clone());
        parts.authority = Some(authority.clone());
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).map_err(|_| BadTarget::TooLong)
    }
}

/// Returns whether some server could read a segment of the path as `.` or `..`.
///
/// Servers decode different things before they resolve dots: percent-encoding, more than once; `%uXXXX`; overlong
/// UTF-8; characters that normalise to a dot or a slash. They also differ in the end of a segment (a backslash) and
/// in the end of a name within it (a semicolon, a question mark, a control character, a space). This function undoes
/// all of these.
fn has_dot_segment(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\');
    if path.bytes().all(is_plain) && !path.contains("/.") {
        return false;
    }
    let mut plain = path.as_bytes().to_vec();
    let mut rounds = 0;
    loop {
        let decoded_again = decoded_once(&plain);
        if decoded_again == plain {
            break;
        }
        if rounds == MAX_ROUNDS {
            return true;
        }
        rounds += 1;
        plain = decoded_again;
    }
    plain.split(|byte| matches!(byte, b'/' | b'\\')).any(is_dot_segment)
}

fn is_dot_segment(segment: &[u8]) -> bool {
    let ends_name = |byte: &u8| matches!(byte, b';' | b'?' | b'#');
    let is_blank = |byte: &u8| byte.is_ascii_control() || *byte == b' ';
    let is_dots = |name: &[u8]| name == b"." || name == b"..";
    // Some servers read `..;x` and `..%00x` as `..`, others `.%09.`.
    let name = segment.split(|byte| ends_name(byte) || is_blank(byte)).find(|name| !name.is_empty());
    let squeezed: Vec<u8> =
        segment.iter().copied().take_while(|byte| !ends_name(byte)).filter(|byte| !is_blank(byte)).collect();
    name.is_some_and(is_dots) || is_dots(&squeezed)
}

/// Undoes one layer of encoding, and replaces characters that stand for a dot or a slash.
fn decoded_once(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(first) = rest.first() {
        let (length, decoded) = percent_encoded(rest)
            .or_else(|| overlong(rest))
            .or_else(|| look_alike(rest))
            .unwrap_or((1, Decoded::Byte(*first)));
        match decoded {
            Decoded::Byte(byte) => plain.push(byte),
            Decoded::Char(char) => plain.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Decoded::Text(text) => plain.extend_from_slice(text.as_bytes()),
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    plain
}

/// Meaning of a sequence of bytes.
enum Decoded {
    Byte(u8),
    Char(char),
    Text(&'static str),
}

/// Decodes `%2e`, and `%u002e` as IIS reads it.
fn percent_encoded(rest: &[u8]) -> Option<(usize, Decoded)> {
    let number = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        u32::from_str_radix(digits, 16).ok()
    };
    match rest {
        [b'%', b'u' | b'U', code @ ..] => {
            let char = char::from_u32(number(code.get(..4)?)?)?;
            Some((6, Decoded::Char(char)))
        }
        [b'%', code @ ..] => Some((3, Decoded::Byte(u8::try_from(number(code.get(..2)?)?).ok()?))),
        _ => None,
    }
}

/// Decodes ASCII in two to six bytes of UTF-8. Lax decoders accept it, and do not check the mark of continuation
/// bytes.
fn overlong(rest: &[u8]) -> Option<(usize, Decoded)> {
    let (length, high) = match *rest.first()? {
        lead @ 0xc0..=0xdf => (2, lead & 0x1f),
        lead @ 0xe0..=0xef => (3, lead & 0x0f),
        lead @ 0xf0..=0xf7 => (4, lead & 0x07),
        lead @ 0xf8..=0xfb => (5, lead & 0x03),
        lead @ 0xfc..=0xfd => (6, lead & 0x01),
        _ => return None,
    };
    let code =
        rest.get(1..length)?.iter().fold(u32::from(high), |code, byte| code << 6 | u32::from(byte & 0x3f));
    let byte = u8::try_from(code).ok().filter(u8::is_ascii)?;
    Some((length, Decoded::Byte(byte)))
}

/// Characters that normalisation (NFKC, IDNA) or a best-fit table turns into dots and slashes.
fn look_alike(rest: &[u8]) -> Option<(usize, Decoded)> {
    const LOOK_ALIKE: [(char, &str); 17] = [
        ('\u{ff0e}', "."),   // fullwidth full stop
        ('\u{2024}', "."),   // one dot leader
        ('\u{fe52}', "."),   // small full stop
        ('\u{3002}', "."),   // ideographic full stop
        ('\u{ff61}', "."),   // halfwidth ideographic full stop
        ('\u{2025}', ".."),  // two dot leader
        ('\u{fe30}', ".."),  // vertical two dot leader
        ('\u{2026}', "..."), // ellipsis
        ('\u{ff0f}', "/"),   // fullwidth solidus
        ('\u{2044}', "/"),   // fraction slash
        ('\u{2215}', "/"),   // division slash
        ('\u{29f8}', "/"),   // big solidus
        ('\u{ff3c}', "\\"),  // fullwidth reverse solidus
        ('\u{2216}', "\\"),  // set minus
        ('\u{29f5}', "\\"),  // reverse solidus operator
        ('\u{29f9}', "\\"),  // big reverse solidus
        ('\u{fe68}', "\\"),  // small reverse solidus
    ];
    if rest.first()?.is_ascii() {
        return None;
    }
    LOOK_ALIKE.iter().find_map(|(char, text)| {
        let mut bytes = [0; 4];
        let bytes = char.encode_utf8(&mut bytes).as_bytes();
        rest.starts_with(bytes).then_some((bytes.len(), Decoded::Text(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(url: &str) -> BaseUrl {
        BaseUrl::new(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_host_header_has_the_port_unless_it_is_the_default_of_the_scheme() {
        for (url, host) in [
            ("http://up.example", "up.example"),
            ("http://up.example:80", "up.example"),
            ("http://up.example:443", "up.example:443"),
            ("https://up.example:443/x", "up.example"),
            ("https://up.example:80", "up.example:80"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert_eq!(base(url).host(), host, "{url}");
        }
        assert_eq!(base("https://[::1]").host_name(), "::1");
    }

    /// Without this check each of them was forwarded to an upstream that reads it as going up.
    #[test]
    fn base_url_rejects_a_dot_segment_in_any_encoding_that_could_leave_the_path_prefix() {
        let base = base("http://up.example/api/v1");
        for climbing in [
            "/..",
            "/a/../../b",
            "/./b",
            "/%2e%2E/b",
            "/a%2f..%2fb",
            "/a/..\\b",
            "/..%5cb",
            "/..;x=y/b",
            // overlong UTF-8 in two to six bytes, also with invalid continuation bytes
            "/%c0%ae%c0%ae/x",
            "/%C0%AE./x",
            "/%e0%80%ae%e0%80%ae/x",
            "/%f0%80%80%ae%f0%80%80%ae/x",
            "/%f8%80%80%80%ae%f8%80%80%80%ae/x",
            "/%fc%80%80%80%80%ae%fc%80%80%80%80%ae/x",
            "/%c0%2e%c0%2e/x",
            "/a%c0%af..%c0%afx",
            "/..%c1%9cx",
            "/..%c1%1cx",
            "/..%e0%80%afx",
            // control characters and spaces, which end a name for some servers and are skipped by others
            "/..%00/x",
            "/..%00x/y",
            "/.%00./x",
            "/..%0d%0a/x",
            "/%09../x",
            "/.%7f./x",
            "/..%20/x",
            "/..%c0%80/x",
            // characters that end a path once they are decoded
            "/..%3fx",
            "/a/..%23x",
            "/..%3bx/y",
            // several layers of encoding
            "/%252e%252e/x",
            "/%25252e%25252e/x",
            "/%2525252525252525252525252e%2e/x",
            "/%%32%65%%32%65/x",
            "/%25%32%65%25%32%65/x",
            "/%252525c0%252525ae./x",
            // UTF-16 as IIS writes it, and characters that normalise to a dot or a slash
            "/%u002e%u002e/x",
            "/%U002E./x",
            "/..%u002fx",
            "/..%u005cx",
            "/%uff0e%uff0e/x",
            "/..%uff0fx",
            "/..%u2215x",
            "/..%u2216x",
            "/%ef%bc%8e%ef%bc%8e/x",
            "/\u{ff0e}\u{ff0e}/x",
            "/..%ef%bc%8fx",
            "/..\u{ff3c}x",
            "/%e2%80%a5/x",
            "/%e2%80%a4%e2%80%a4/x",
            "/%25u002e%25u002e/x",
        ] {
            assert_eq!(base.uri(&climbing.parse().unwrap()), Err(BadTarget::DotSegment), "{climbing}");
        }
    }

    #[test]
    fn base_url_forwards_a_harmless_target_byte_for_byte() {
        let base = base("http://up.example/api/v1");
        for target in [
            "/",
            "/...",
            "/.well-known/x",
            "/a..b/..c/d..",
            "/a%2fb",
            "/100%",
            "/%zz/%u12/%",
            "/%c3%a9t%c3%a9",
            "/\u{fc}/\u{4e2d}\u{6587}/\u{1f600}",
            "/%e0%a4%85%f0%90%80%80",
            "/a%0ab/%20x%20y",
            "/x?a=../..&b=%2e%2e/",
            "/a%252fb",
        ] {
            let uri = base.uri(&target.parse().unwrap()).unwrap();
            assert_eq!(uri.to_string(), format!("http://up.example/api/v1{target}"));
        }
    }
}
