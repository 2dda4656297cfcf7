//! Where a request comes from, as far as it can be believed: the connection's other end, and before it what trusted
//! proxies say (`server.trusted_proxies`).
//!
//! ```text
//! client ──► proxy ──► proxy ──► gateway        Forwarded: for=client;proto=https;host=…, for=proxy
//!             hops[0]   hops[1]    peer
//! ```
//!
//! Each proxy vouches for the hop that it saw. So the hops are believed from the right, up to the first that is not
//! trusted: that is the client, whatever it wrote before itself. What nobody vouches for, or cannot be read with
//! certainty, counts for nothing, and the peer is the client.
//!
//! The parser is the gateway's own: the crates that there are split at commas inside of quotes, where a client can
//! put what it likes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr as _;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use ipnet::IpNet;

use super::request::{Peer, push_address};
use crate::protocol::headers;

/// Says where a request comes from, to the gateway itself and to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedChain {
    peer: Peer,
    /// What the peer vouches for; empty where it is not trusted.
    hops: Vec<Hop>,
    client: Option<IpAddr>,
    is_https: Option<bool>,
    host: Option<Authority>,
}

/// What one proxy says of who asked it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hop {
    /// `None`: it does not say, or gives a name that means something to itself alone.
    address: Option<IpAddr>,
    is_https: Option<bool>,
    host: Option<Authority>,
}

impl ForwardedChain {
    /// The trail of a request that only its peer vouches for.
    pub fn of(peer: Peer) -> Self {
        Self { peer, hops: Vec::new(), client: peer.ip(), is_https: None, host: None }
    }

    /// The trail of a request with these fields, from this peer. A unix socket's peer counts as 127.0.0.1: both are on
    /// this machine, and the socket's mode keeps strangers out.
    pub fn read(headers: &HeaderMap, peer: Peer, trusted: &[IpNet]) -> Self {
        let is_trusted = |ip: IpAddr| trusted.iter().any(|network| network.contains(&ip.to_canonical()));
        let alone = Self::of(peer);
        if !is_trusted(alone.client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))) {
            return alone;
        }
        let Some(hops) = trusted_hops(headers, &is_trusted) else { return alone };
        match client(&hops, &is_trusted) {
            Some(Hop { address: Some(ip), is_https, host }) => {
                let (client, is_https, host) = (Some(*ip), *is_https, host.clone());
                Self { peer, hops, client, is_https, host }
            }
            Some(Hop { address: None, .. }) | None => alone,
        }
    }

    /// The connection's other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The client's address; `None` for a unix socket's other end.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// Tells the upstream: `Forwarded` (RFC 7239) and `X-Forwarded-For`, with the peer as the last hop, and
    /// `X-Forwarded-Proto` and `-Host`, which are the client's. All else that the request says of that kind is removed.
    ///
    /// `is_tls` and `host` are the connection's own: what its client speaks, and the host it asks for.
    pub fn write(&self, fields: &mut HeaderMap, is_tls: bool, host: Option<&Authority>) {
        headers::strip_claims(fields);
        let last = Hop { address: self.peer.ip(), is_https: Some(is_tls), host: host.cloned() };
        let (mut standard, mut usual) = (String::with_capacity(96), String::with_capacity(48));
        for hop in self.hops.iter().chain([&last]) {
            if !usual.is_empty() {
                standard.push_str(", ");
                usual.push_str(", ");
            }
            hop.write_element(&mut standard);
            hop.write_node(&mut usual);
        }
        let mut insert = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                fields.insert(name, value);
            }
        };
        insert(FORWARDED, &standard);
        insert(X_FORWARDED_FOR, &usual);
        insert(X_FORWARDED_PROTO, proto(self.is_https.unwrap_or(is_tls)));
        if let Some(host) = self.host.as_ref().or(host) {
            insert(X_FORWARDED_HOST, host.as_str());
        }
    }
}

impl Hop {
    fn write_node(&self, text: &mut String) {
        match self.address {
            Some(ip) => push_address(text, ip),
            None => text.push_str("unknown"),
        }
    }

    /// As `Forwarded` has it.
    fn write_element(&self, text: &mut String) {
        let (before, after) =
            if matches!(self.address, Some(IpAddr::V6(_))) { ("\"[", "]\"") } else { ("", "") };
        text.push_str("for=");
        text.push_str(before);
        self.write_node(text);
        text.push_str(after);
        if let Some(is_https) = self.is_https {
            text.push_str(";proto=");
            text.push_str(proto(is_https));
        }
        if let Some(host) = &self.host {
            text.push_str(";host=\"");
            text.push_str(host.as_str()); // an authority has neither quotes nor backslashes
            text.push('"');
        }
    }
}

fn proto(is_https: bool) -> &'static str {
    if is_https { "https" } else { "http" }
}

/// What the peer says, the client's end first; `None` where it says nothing or nothing certain. A proxy writes one of
/// the two fields and lets the other pass as its client sent it: where both are there, they have to agree.
fn trusted_hops(headers: &HeaderMap, is_trusted: &impl Fn(IpAddr) -> bool) -> Option<Vec<Hop>> {
    let standard = line(headers, &FORWARDED).map(|line| line.and_then(|line| elements(&line)));
    let usual = line(headers, &X_FORWARDED_FOR).map(|line| x_forwarded_hops(headers, &line?));
    match (standard, usual) {
        (Some(standard), None) => standard,
        (None, Some(usual)) => usual,
        (Some(standard), Some(usual)) => {
            let (standard, usual) = (standard?, usual?);
            let address = |hops| client(hops, is_trusted).and_then(|hop: &Hop| hop.address);
            (address(&standard) == address(&usual)).then_some(standard)
        }
        (None, None) => None,
    }
}

/// The last hop that is not trusted; if all are, the first.
fn client<'a>(hops: &'a [Hop], is_trusted: &impl Fn(IpAddr) -> bool) -> Option<&'a Hop> {
    hops.iter().rfind(|hop| !hop.address.is_some_and(is_trusted)).or(hops.first())
}

/// All of a field's lines as one; `Some(None)` where that is no text.
fn line(headers: &HeaderMap, name: &HeaderName) -> Option<Option<String>> {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.into_iter().collect::<Option<Vec<_>>>().map(|lines| lines.join(",")))
}

/// The hops of `X-Forwarded-For`, and what `-Proto` and `-Host` say of them: one value is the client's, several are
/// the hops', one each.
fn x_forwarded_hops(headers: &HeaderMap, line: &str) -> Option<Vec<Hop>> {
    if line.split(',').count() > MAX_HOPS {
        return None;
    }
    let hop = |node: &str| Some(Hop { address: address(node.trim())?, ..Hop::default() });
    let mut hops = line.split(',').map(hop).collect::<Option<Vec<_>>>()?;
    let protos = of_each_hop(headers, &X_FORWARDED_PROTO, hops.len(), is_https);
    let hosts = of_each_hop(headers, &X_FORWARDED_HOST, hops.len(), self::host);
    for (hop, is_https) in hops.iter_mut().zip(protos) {
        hop.is_https = is_https;
    }
    for (hop, host) in hops.iter_mut().zip(hosts) {
        hop.host = host;
    }
    Some(hops)
}

/// Reads a field's value for each of `count` hops. One value counts for all of them; any other number gives nothing.
fn of_each_hop<T: Clone>(
    headers: &HeaderMap,
    name: &HeaderName,
    count: usize,
    read: impl Fn(&str) -> Option<T>,
) -> Vec<Option<T>> {
    let line = self::line(headers, name).flatten().unwrap_or_default();
    let values: Vec<&str> = line.split(',').map(str::trim).take(MAX_HOPS + 1).collect();
    match values.as_slice() {
        [one] => vec![read(one); count],
        values if values.len() == count => values.iter().map(|value| read(value)).collect(),
        _ => Vec::new(),
    }
}

/// The hops of `Forwarded`, RFC 7239 §4; `None` where the line does not follow it, or is longer than any real one.
fn elements(line: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let (mut hop, mut seen) = (Hop::default(), Vec::new());
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let (name, after) = rest.split_at(rest.find(|c| !is_token(c))?);
        let name = name.to_ascii_lowercase();
        let (value, after) = value(after.strip_prefix('=')?)?;
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

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
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

/// RFC 9110 §5.6.2. Addresses are let be without their quotes: many write `for=[::1]:80`.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:[]".contains(c)
}

/// An address with or without a port; `Some(None)` where the node has a name in its place.
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

/// The most hops of a chain. A longer one counts as unreadable: all of it would be sent to the upstream again, and a
/// client can write as many hops as it likes before those that proxies add.
const MAX_HOPS: usize = 64;
/// The most parameters of one element of `Forwarded`; RFC 7239 has four.
const MAX_PARAMETERS: usize = 16;
/// The longest host that is taken over: a DNS name, a colon and a port.
const MAX_HOST_BYTES: usize = 253 + ":65535".len();
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1:99";

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = fields.iter();
        pairs.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    fn trail(peer: Peer, fields: &[(&'static str, &'static str)]) -> ForwardedChain {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        ForwardedChain::read(&map(fields), peer, &trusted)
    }

    fn client(fields: &[(&'static str, &'static str)]) -> String {
        trail(tcp(PROXY), fields).client().unwrap().to_string()
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_trusted() {
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
    fn what_is_not_certain_leaves_the_peer() {
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
            let left = trail(tcp(PROXY), &[(name, text)]);
            assert_eq!(left, trail(tcp(PROXY), &[]), "{name}: {text}");
            assert_eq!(left.client().unwrap().to_string(), "10.0.0.1", "{name}: {text}");
        }
        assert_eq!(rows.len(), 19);
    }

    #[test]
    fn two_fields_have_to_agree_for_a_proxy_writes_but_one() {
        let usual = ("x-forwarded-for", "1.1.1.1, 192.0.2.7");
        assert_eq!(client(&[usual, ("forwarded", "for=192.0.2.7")]), "192.0.2.7");
        assert_eq!(client(&[usual, ("forwarded", "for=6.6.6.6")]), "10.0.0.1");
        assert_eq!(client(&[usual, ("forwarded", "nonsense")]), "10.0.0.1");
    }

    #[test]
    fn a_stranger_is_believed_nothing() {
        let claims = [("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-for", "1.1.1.1")];
        assert_eq!(trail(tcp("192.0.2.1:99"), &claims), trail(tcp("192.0.2.1:99"), &[]));
    }

    #[test]
    fn a_unix_socket_is_trusted_where_127_0_0_1_is() {
        let claims = map(&[("x-forwarded-for", "192.0.2.7")]);
        let read =
            |trusted: &str| ForwardedChain::read(&claims, Peer::Unix, &[trusted.parse().unwrap()]).client();
        assert_eq!(read("127.0.0.0/8"), Some("192.0.2.7".parse().unwrap()));
        assert_eq!(read("10.0.0.0/8"), None);
    }

    #[test]
    fn a_chain_or_an_element_that_is_longer_than_any_real_one_is_read_as_nothing() {
        let read = |name: &'static str, text: &str| {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), text.parse().unwrap())]);
            ForwardedChain::read(&headers, tcp(PROXY), &trusted).client().unwrap().to_string()
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

    #[test]
    fn what_goes_up_of_a_chain_is_bounded_however_long_its_host_is() {
        let nodes = vec!["192.0.2.7"; MAX_HOPS].join(",");
        let (fits, too_long) = ("h".repeat(MAX_HOST_BYTES), "h".repeat(MAX_HOST_BYTES + 1));
        for (host, is_taken) in [(fits, true), (too_long, false)] {
            let fields = [("x-forwarded-for", &*nodes), ("x-forwarded-host", &*host)];
            let headers = fields.map(|(name, text)| (HeaderName::from_static(name), text.parse().unwrap()));
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let trail = ForwardedChain::read(&HeaderMap::from_iter(headers), tcp(PROXY), &trusted);
            let headers = written(&trail, false, Some("gw"));
            assert_eq!(headers["x-forwarded-host"] == host, is_taken);
            assert!(headers["forwarded"].len() < MAX_HOPS * (MAX_HOST_BYTES + 64));
        }
    }

    fn written(trail: &ForwardedChain, is_tls: bool, host: Option<&'static str>) -> HeaderMap {
        let mut headers = map(&[
            ("accept", "*/*"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-proto", "gopher"),
            ("x-real-ip", "1.1.1.1"),
            ("true-client-ip", "1.1.1.1"),
        ]);
        trail.write(&mut headers, is_tls, host.map(Authority::from_static).as_ref());
        headers
    }

    #[test]
    fn what_a_client_claims_of_itself_is_replaced() {
        let alone = trail(tcp("192.0.2.1:99"), &[("forwarded", "for=1.1.1.1")]);
        let expected = map(&[
            ("accept", "*/*"),
            ("forwarded", "for=192.0.2.1;proto=https;host=\"gw.example:8080\""),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "gw.example:8080"),
        ]);
        assert_eq!(written(&alone, true, Some("gw.example:8080")), expected);
    }

    #[test]
    fn what_a_trusted_proxy_says_is_passed_on_and_the_proxy_appended() {
        let standard = [("forwarded", "for=1.1.1.1, for=\"[2001:db8::1]\";proto=https;host=pub.example;x=y")];
        let expected = map(&[
            ("accept", "*/*"),
            (
                "forwarded",
                "for=1.1.1.1, for=\"[2001:db8::1]\";proto=https;host=\"pub.example\", \
                 for=10.0.0.1;proto=http;host=\"gw\"",
            ),
            ("x-forwarded-for", "1.1.1.1, 2001:db8::1, 10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "pub.example"),
        ]);
        assert_eq!(written(&trail(tcp(PROXY), &standard), false, Some("gw")), expected);

        let usual = [
            ("x-forwarded-for", "192.0.2.7, 10.1.1.1"),
            ("x-forwarded-proto", "https, http"),
            ("x-forwarded-host", "pub.example"),
        ];
        let headers = written(&trail(tcp(PROXY), &usual), false, None);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7, 10.1.1.1, 10.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "pub.example");
        let elements = "for=192.0.2.7;proto=https;host=\"pub.example\", \
            for=10.1.1.1;proto=http;host=\"pub.example\", for=10.0.0.1;proto=http";
        assert_eq!(headers["forwarded"], elements);
    }

    #[test]
    fn odd_protos_and_hosts_are_not_passed_on() {
        let usual = [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "user@evil"),
        ];
        let headers = written(&trail(tcp(PROXY), &usual), false, Some("gw"));
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "gw");
    }

    #[test]
    fn forwarded_quotes_ipv6_and_knows_no_address_of_a_unix_socket() {
        for (peer, node, plain) in [
            (tcp("[2001:db8::1]:99"), "\"[2001:db8::1]\"", "2001:db8::1"),
            (tcp("[::ffff:192.0.2.1]:99"), "192.0.2.1", "192.0.2.1"),
            (Peer::Unix, "unknown", "unknown"),
        ] {
            let headers = written(&trail(peer, &[]), false, None);
            assert_eq!(headers["forwarded"], format!("for={node};proto=http"));
            assert_eq!(headers["x-forwarded-for"], plain);
            assert!(!headers.contains_key("x-forwarded-host"));
        }
    }
}
