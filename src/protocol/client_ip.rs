//! Finds the client's address in `Forwarded` and `X-Forwarded-For`, as far as trusted proxies report it.
//!
//! ```text
//! client ──► proxy ──► proxy ──► gateway        Forwarded: for=client;proto=https;host=…, for=proxy
//!             hops[0]   hops[1]    peer
//! ```
//!
//! Each proxy reports the address that it saw. So hops are read from the right. The first untrusted one is the client;
//! the hops to its left are claims of that client and ignored. If a field cannot be read with certainty, all of it is
//! ignored and the peer is the client.
//!
//! The crates for these fields split at commas inside quotes, where a client can write any text. Hence this parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr as _;

use http::header::{FORWARDED, HeaderMap, HeaderName};
use http::uri::Authority;

/// A client or proxy, as the next proxy reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hop {
    /// `None`: the proxy writes `unknown`, nothing, or a name that only the proxy itself can resolve.
    pub(super) address: Option<IpAddr>,
    pub(super) is_https: Option<bool>,
    pub(super) host: Option<Authority>,
}

/// Returns the hops that the peer reports, the client's end first. `None`: there are none, or a field is invalid. A
/// proxy writes one of the two fields and passes on the other as its client sent it. If both are present, they must
/// agree.
pub(super) fn trusted_hops(headers: &HeaderMap, is_trusted: &impl Fn(IpAddr) -> bool) -> Option<Vec<Hop>> {
    let forwarded = joined_lines(headers, &FORWARDED).map(|line| line.and_then(|line| forwarded_hops(&line)));
    let x_forwarded = joined_lines(headers, &X_FORWARDED_FOR).map(|line| x_forwarded_hops(headers, &line?));
    match (forwarded, x_forwarded) {
        (Some(forwarded), None) => forwarded,
        (None, Some(x_forwarded)) => x_forwarded,
        (Some(forwarded), Some(x_forwarded)) => {
            let (forwarded, x_forwarded) = (forwarded?, x_forwarded?);
            let address = |hops| client_hop(hops, is_trusted).and_then(|hop: &Hop| hop.address);
            (address(&forwarded) == address(&x_forwarded)).then_some(forwarded)
        }
        (None, None) => None,
    }
}

/// Returns the last untrusted hop; the first hop if all are trusted.
pub(super) fn client_hop<'a>(hops: &'a [Hop], is_trusted: &impl Fn(IpAddr) -> bool) -> Option<&'a Hop> {
    hops.iter().rfind(|hop| !hop.address.is_some_and(is_trusted)).or(hops.first())
}

/// Joins all lines of a field; `Some(None)` for a line that is not ASCII text.
fn joined_lines(headers: &HeaderMap, name: &HeaderName) -> Option<Option<String>> {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.into_iter().collect::<Option<Vec<_>>>().map(|lines| lines.join(",")))
}

/// Returns the hops of `X-Forwarded-For` with their `X-Forwarded-Proto` and `-Host`.
fn x_forwarded_hops(headers: &HeaderMap, line: &str) -> Option<Vec<Hop>> {
    if line.split(',').count() > MAX_HOPS {
        return None;
    }
    let hop = |node: &str| Some(Hop { address: address(node.trim())?, ..Hop::default() });
    let mut hops = line.split(',').map(hop).collect::<Option<Vec<_>>>()?;
    let protos = value_of_each_hop(headers, &X_FORWARDED_PROTO, hops.len(), is_https);
    let hosts = value_of_each_hop(headers, &X_FORWARDED_HOST, hops.len(), self::host);
    for (hop, is_https) in hops.iter_mut().zip(protos) {
        hop.is_https = is_https;
    }
    for (hop, host) in hops.iter_mut().zip(hosts) {
        hop.host = host;
    }
    Some(hops)
}

/// Returns the value of each of `count` hops. A single value holds for all hops; any other number of values is ignored.
fn value_of_each_hop<T: Clone>(
    headers: &HeaderMap,
    name: &HeaderName,
    count: usize,
    parse: impl Fn(&str) -> Option<T>,
) -> Vec<Option<T>> {
    let line = joined_lines(headers, name).flatten().unwrap_or_default();
    let values: Vec<&str> = line.split(',').map(str::trim).take(MAX_HOPS + 1).collect();
    match values.as_slice() {
        [single] => vec![parse(single); count],
        values if values.len() == count => values.iter().map(|value| parse(value)).collect(),
        _ => Vec::new(),
    }
}

/// Returns the hops of `Forwarded` (RFC 7239 §4). `None`: the line is invalid, or over a limit.
fn forwarded_hops(line: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let (mut hop, mut seen) = (Hop::default(), Vec::new());
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let (name, after) = rest.split_at(rest.find(|c| !is_token(c))?);
        let name = name.to_ascii_lowercase();
        let (value, after) = token_or_quoted(after.strip_prefix('=')?)?;
        if name.is_empty() || seen.len() == MAX_PARAMETERS || seen.contains(&name) {
            return None;
        }
        match name.as_str() {
            "for" => hop.address = address(&value)?,
            "proto" => hop.is_https = is_https(&value),
            "host" => hop.host = host(&value),
            _ => {}
        }
        seen.push(name);
        rest = after.trim_start_matches([' ', '\t']);
        match rest.chars().next() {
            Some(';') => {}
            Some(',') => {
                hops.push(std::mem::take(&mut hop));
                if hops.len() == MAX_HOPS {
                    return None;
                }
                seen.clear();
            }
            Some(_) => return None,
            None => {
                hops.push(hop);
                return Some(hops);
            }
        }
        rest = &rest[1..];
    }
}

/// Splits off a token or a quoted string.
fn token_or_quoted(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, rest) = text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()));
        return (!token.is_empty()).then(|| (token.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

/// Returns whether a token may contain the character (RFC 9110 §5.6.2). Allows the characters of addresses without
/// quotes: many proxies write `for=[::1]:80`.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:[]".contains(c)
}

/// Parses an address with or without a port; `Some(None)` for `unknown` and for names.
fn address(node: &str) -> Option<Option<IpAddr>> {
    if node.eq_ignore_ascii_case("unknown") || (node.len() > 1 && node.starts_with('_')) {
        return Some(None);
    }
    let is_port = |port: &str| {
        port.strip_prefix(':').is_some_and(|port| {
            !port.is_empty() && port.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    let ip = if let Some(bracketed) = node.strip_prefix('[') {
        let (ip, port) = bracketed.split_once(']')?;
        Ipv6Addr::from_str(ip).ok().filter(|_| port.is_empty() || is_port(port)).map(IpAddr::V6)
    } else if let Ok(ip) = IpAddr::from_str(node) {
        Some(ip)
    } else {
        let (ip, port) = node.split_at(node.find(':')?);
        Ipv4Addr::from_str(ip).ok().filter(|_| is_port(port)).map(IpAddr::V4)
    };
    ip.map(|ip| Some(ip.to_canonical()))
}

fn is_https(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("https") => Some(true),
        _ if text.eq_ignore_ascii_case("http") => Some(false),
        _ => None,
    }
}

fn host(text: &str) -> Option<Authority> {
    let authority = Authority::from_str(text).ok().filter(|_| text.len() <= MAX_HOST_BYTES)?;
    (!authority.host().is_empty() && !text.contains(['@', '"', '\\'])).then_some(authority)
}

/// The maximal number of hops. A longer chain is invalid: a client can write any number of hops in front of those that
/// proxies add, and the gateway would send all of them to the upstream.
pub(super) const MAX_HOPS: usize = 64;
/// The maximal number of parameters of one element of `Forwarded`. RFC 7239 has four.
const MAX_PARAMETERS: usize = 16;
/// The longest host that is passed on: a DNS name, a colon and a port.
pub(super) const MAX_HOST_BYTES: usize = 253 + ":65535".len();
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::forwarded::ForwardedChain;
    use crate::protocol::header_map as map;
    use crate::protocol::peer::Peer;

    const PROXY: &str = "10.0.0.1:99";

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    fn chain(peer: Peer, fields: &[(&'static str, &'static str)]) -> ForwardedChain {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        ForwardedChain::from_headers(&map(fields), peer, &trusted)
    }

    fn client(fields: &[(&'static str, &'static str)]) -> String {
        chain(tcp(PROXY), fields).client_ip().unwrap().to_string()
    }

    #[test]
    fn the_client_is_the_last_untrusted_hop() {
        let rows = [
            ("x-forwarded-for", "192.0.2.7", "192.0.2.7"),
            ("x-forwarded-for", "1.1.1.1, 192.0.2.7", "192.0.2.7"),
            ("x-forwarded-for", "1.1.1.1, 192.0.2.7, 10.9.9.9", "192.0.2.7"),
            ("x-forwarded-for", "10.2.2.2, 10.3.3.3", "10.2.2.2"),
            ("x-forwarded-for", "192.0.2.7:4711", "192.0.2.7"),
            ("x-forwarded-for", "2001:db8::1", "2001:db8::1"),
            ("x-forwarded-for", "[2001:db8::1]:80, fd00::2", "2001:db8::1"),
            ("x-forwarded-for", "::ffff:192.0.2.7, ::ffff:10.1.1.1", "192.0.2.7"),
            ("forwarded", "for=192.0.2.7", "192.0.2.7"),
            ("forwarded", "For=1.1.1.1, for=192.0.2.7;proto=https;by=10.1.1.1 , FOR=10.2.2.2", "192.0.2.7"),
            ("forwarded", "for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("forwarded", "for=[2001:db8::1]", "2001:db8::1"),
            ("forwarded", "for=\"192.0.2.7:_port\"", "192.0.2.7"),
            ("forwarded", "for=192.0.2.7;host=\"a,for=6.6.6.6\"", "192.0.2.7"),
            ("forwarded", "for=192.0.2.7;secret=\"\\\", for=6.6.6.6\"", "192.0.2.7"),
        ];
        for (name, text, expected) in rows {
            assert_eq!(client(&[(name, text)]), expected, "{name}: {text}");
        }
        assert_eq!(rows.len(), 15);
        assert_eq!(client(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "192.0.2.7")]), "192.0.2.7");
    }

    #[test]
    fn an_invalid_field_makes_the_peer_the_client() {
        let rows = [
            ("x-forwarded-for", ""),
            ("x-forwarded-for", "192.0.2.7,"),
            ("x-forwarded-for", "evil, 192.0.2.7"),
            ("x-forwarded-for", "192.0.2.7, 300.1.1.1"),
            ("x-forwarded-for", "192.0.2.7:"),
            ("x-forwarded-for", "unknown"),
            ("x-forwarded-for", "192.0.2.7, unknown"),
            ("x-forwarded-for", "[2001:db8::1"),
            ("forwarded", ""),
            ("forwarded", "for"),
            ("forwarded", "for="),
            ("forwarded", "for=_gazonk"),
            ("forwarded", "for=192.0.2.7;"),
            ("forwarded", "for=192.0.2.7, , for=10.1.1.1"),
            ("forwarded", "for=192.0.2.7;for=192.0.2.8"),
            ("forwarded", "for=\"192.0.2.7"),
            ("forwarded", "for=\", for=192.0.2.7"),
            ("forwarded", "for=192.0.2.7 x"),
            ("forwarded", "proto=https"),
        ];
        for (name, text) in rows {
            let left = chain(tcp(PROXY), &[(name, text)]);
            assert_eq!(left, chain(tcp(PROXY), &[]), "{name}: {text}");
            assert_eq!(left.client_ip().unwrap().to_string(), "10.0.0.1", "{name}: {text}");
        }
        assert_eq!(rows.len(), 19);
    }

    #[test]
    fn forwarded_and_x_forwarded_for_must_agree() {
        let x_forwarded = ("x-forwarded-for", "1.1.1.1, 192.0.2.7");
        assert_eq!(client(&[x_forwarded, ("forwarded", "for=192.0.2.7")]), "192.0.2.7");
        assert_eq!(client(&[x_forwarded, ("forwarded", "for=6.6.6.6")]), "10.0.0.1");
        assert_eq!(client(&[x_forwarded, ("forwarded", "nonsense")]), "10.0.0.1");
    }

    #[test]
    fn an_untrusted_peers_fields_are_ignored() {
        let fields = [("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-for", "1.1.1.1")];
        assert_eq!(chain(tcp("192.0.2.1:99"), &fields), chain(tcp("192.0.2.1:99"), &[]));
    }

    #[test]
    fn a_unix_socket_is_trusted_if_127_0_0_1_is() {
        let fields = map(&[("x-forwarded-for", "192.0.2.7")]);
        let read = |trusted: &str| {
            ForwardedChain::from_headers(&fields, Peer::Unix, &[trusted.parse().unwrap()]).client_ip()
        };
        assert_eq!(read("127.0.0.0/8"), Some("192.0.2.7".parse().unwrap()));
        assert_eq!(read("10.0.0.0/8"), None);
    }

    #[test]
    fn a_chain_or_element_over_its_limit_is_ignored() {
        let read = |name: &'static str, text: &str| {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), text.parse().unwrap())]);
            ForwardedChain::from_headers(&headers, tcp(PROXY), &trusted).client_ip().unwrap().to_string()
        };
        let elements = |count| vec!["for=192.0.2.7"; count].join(", ");
        let nodes = |count| vec!["192.0.2.7"; count].join(", ");
        let parameters = |count| {
            let more = (1..count).map(|n| format!(";p{n}=x")).collect::<String>();
            format!("for=192.0.2.7{more}")
        };
        for (name, text, expected) in [
            ("forwarded", elements(MAX_HOPS), "192.0.2.7"),
            ("forwarded", elements(MAX_HOPS + 1), "10.0.0.1"),
            ("forwarded", elements(5000), "10.0.0.1"),
            ("forwarded", parameters(MAX_PARAMETERS), "192.0.2.7"),
            ("forwarded", parameters(MAX_PARAMETERS + 1), "10.0.0.1"),
            ("forwarded", parameters(14_000), "10.0.0.1"),
            ("x-forwarded-for", nodes(MAX_HOPS), "192.0.2.7"),
            ("x-forwarded-for", nodes(MAX_HOPS + 1), "10.0.0.1"),
        ] {
            assert_eq!(read(name, &text), expected, "{} bytes of {name}", text.len());
        }
    }
}
