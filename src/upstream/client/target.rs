//! The upstream's address, and the URIs that may be asked for there.
//!
//! Whatever a request's target is, it goes to the configured scheme and authority. Where `upstream.base_url` has a
//! path, a target that some server could read as leading out of it is refused ([`has_dot_segment`]).

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

use super::BadTarget;

/// How often an encoding may be encoded again. A target that is still not plain after so many rounds is refused.
const MAX_ROUNDS: usize = 8;

/// `upstream.base_url`, taken apart.
#[derive(Debug)]
pub(super) struct Base {
    scheme: Scheme,
    authority: Authority,
    /// The `Host` field of HTTP/1.1: without the port where that is the scheme's own.
    host: HeaderValue,
    /// Without a slash at its end; empty for none.
    prefix: String,
}

impl Base {
    /// Returns `None` unless the URL is `http` or `https`, without userinfo and query.
    pub(super) fn new(url: &Uri) -> Option<Self> {
        let scheme = url.scheme().filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme))?;
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if url.query().is_some() {
            return None;
        }
        let usual_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
        let host = match authority.port_u16() {
            Some(port) if port != usual_port => authority.as_str(),
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

    /// The name or address to connect to, without the brackets of IPv6.
    pub(super) fn host_name(&self) -> &str {
        self.authority.host().trim_matches(['[', ']'])
    }

    /// The upstream itself, for a connector.
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
            return Err(BadTarget::Climbs);
        } else {
            PathAndQuery::try_from(format!("{prefix}{target}")).map_err(|_| BadTarget::TooLong)?
        };
        let uri = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query(target);
        uri.build().map_err(|_| BadTarget::TooLong)
    }
}

/// Returns whether some server could read a segment of the path as `.` or `..`.
///
/// Servers differ in what they undo before they look: percent-encoding, more than once; `%uXXXX`; UTF-8 in more
/// bytes than it needs; characters that are normalised to a dot or a slash. They differ in what ends a segment too:
/// a backslash; and what ends a name in it: a semicolon, a question mark, a control character, a space. All of these are undone here.
fn has_dot_segment(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\');
    if path.bytes().all(is_plain) && !path.contains("/.") {
        return false;
    }
    let mut plain = path.as_bytes().to_vec();
    let mut rounds = 0;
    loop {
        let decoded = decoded_once(&plain);
        if decoded == plain {
            break;
        }
        if rounds == MAX_ROUNDS {
            return true;
        }
        rounds += 1;
        plain = decoded;
    }
    plain.split(|byte| matches!(byte, b'/' | b'\\')).any(is_dot_segment)
}

fn is_dot_segment(segment: &[u8]) -> bool {
    let ends_name = |byte: &u8| matches!(byte, b';' | b'?' | b'#');
    let is_blank = |byte: &u8| byte.is_ascii_control() || *byte == b' ';
    let is_dots = |name: &[u8]| name == b"." || name == b"..";
    // `..;x` and `..%00x` are `..` to some, as `.%09.` is to others.
    let name = segment.split(|byte| ends_name(byte) || is_blank(byte)).find(|name| !name.is_empty());
    let squeezed: Vec<u8> =
        segment.iter().copied().take_while(|byte| !ends_name(byte)).filter(|byte| !is_blank(byte)).collect();
    name.is_some_and(is_dots) || is_dots(&squeezed)
}

/// Undoes one layer of encodings, and writes what stands for a dot or a slash as that.
fn decoded_once(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(first) = rest.first() {
        let (length, meant) = percent_encoded(rest)
            .or_else(|| overlong(rest))
            .or_else(|| look_alike(rest))
            .unwrap_or((1, Meant::Byte(*first)));
        match meant {
            Meant::Byte(byte) => plain.push(byte),
            Meant::Char(char) => plain.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Meant::Text(text) => plain.extend_from_slice(text.as_bytes()),
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    plain
}

/// What a sequence of bytes stands for.
enum Meant {
    Byte(u8),
    Char(char),
    Text(&'static str),
}

/// `%2e`, and `%u002e` as IIS reads it.
fn percent_encoded(rest: &[u8]) -> Option<(usize, Meant)> {
    let number = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        u32::from_str_radix(digits, 16).ok()
    };
    match rest {
        [b'%', b'u' | b'U', code @ ..] => {
            let char = char::from_u32(number(code.get(..4)?)?)?;
            Some((6, Meant::Char(char)))
        }
        [b'%', code @ ..] => Some((3, Meant::Byte(u8::try_from(number(code.get(..2)?)?).ok()?))),
        _ => None,
    }
}

/// ASCII written in two to six bytes of UTF-8, as lax decoders read it: they look at no continuation byte's mark.
fn overlong(rest: &[u8]) -> Option<(usize, Meant)> {
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
    Some((length, Meant::Byte(byte)))
}

/// Characters that normalisation (NFKC, IDNA) or a best-fit table turns into dots and slashes.
fn look_alike(rest: &[u8]) -> Option<(usize, Meant)> {
    const LOOK_ALIKE: [(char, &str); 17] = [
        ('\u{ff0e}', "."),   // fullwidth full stop
        ('\u{2024}', "."),   // one dot leader
        ('\u{fe52}', "."),   // small full stop
        ('\u{3002}', "."),   // ideographic full stop
        ('\u{ff61}', "."),   // its halfwidth form
        ('\u{2025}', ".."),  // two dot leader
        ('\u{fe30}', ".."),  // its vertical form
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
        rest.starts_with(bytes).then_some((bytes.len(), Meant::Text(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(url: &str) -> Base {
        Base::new(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_host_field_has_the_port_only_where_it_is_not_the_schemes_own() {
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

    /// Each in turn was sent on to an upstream that would have read it as going up.
    #[test]
    fn a_dot_segment_in_any_disguise_cannot_leave_the_path_prefix() {
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
            // overlong UTF-8, in two to six bytes, and with continuation bytes that are none
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
            // control characters and spaces, which some end a name at and others leave out
            "/..%00/x",
            "/..%00x/y",
            "/.%00./x",
            "/..%0d%0a/x",
            "/%09../x",
            "/.%7f./x",
            "/..%20/x",
            "/..%c0%80/x",
            // what ends a path once it is decoded
            "/..%3fx",
            "/a/..%23x",
            "/..%3bx/y",
            // encoded again and again
            "/%252e%252e/x",
            "/%25252e%25252e/x",
            "/%2525252525252525252525252e%2e/x",
            "/%%32%65%%32%65/x",
            "/%25%32%65%25%32%65/x",
            "/%252525c0%252525ae./x",
            // UTF-16 as IIS writes it, and characters that are normalised to a dot or a slash
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
            assert_eq!(base.uri(&climbing.parse().unwrap()), Err(BadTarget::Climbs), "{climbing}");
        }
    }

    #[test]
    fn what_only_looks_alike_goes_through_as_it_is_written() {
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
