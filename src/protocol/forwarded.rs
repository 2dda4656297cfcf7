//! The hops between the client and the gateway, for the gateway itself and for the upstream.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{FORWARDED, HeaderMap};
use http::uri::Authority;
use ipnet::IpNet;

use super::added_fields::AddedFields;
use super::client_ip::{Hop, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, client_hop, trusted_hops};
use super::peer::{AddressText, Peer, short_text};

/// The connection's peer, and the hops before it that a trusted peer reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedChain {
    peer: Peer,
    /// Empty if the peer is not trusted.
    hops: Vec<Hop>,
    client_ip: Option<IpAddr>,
    is_https: Option<bool>,
    host: Option<Authority>,
}

impl ForwardedChain {
    /// Returns a chain without proxies: the peer is the client.
    pub fn from_peer(peer: Peer) -> Self {
        Self { peer, hops: Vec::new(), client_ip: peer.ip(), is_https: None, host: None }
    }

    /// Reads the hops of a request, if its peer is in `trusted` (`server.trusted_proxies`). The peer of a unix socket
    /// counts as 127.0.0.1: both are on this machine, and the socket's mode keeps strangers out.
    pub fn from_headers(headers: &HeaderMap, peer: Peer, trusted: &[IpNet]) -> Self {
        let is_trusted = |ip: IpAddr| trusted.iter().any(|network| network.contains(&ip.to_canonical()));
        let without_proxies = Self::from_peer(peer);
        if !is_trusted(without_proxies.client_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))) {
            return without_proxies;
        }
        let Some(hops) = trusted_hops(headers, &is_trusted) else { return without_proxies };
        match client_hop(&hops, &is_trusted) {
            Some(Hop { address: Some(ip), is_https, host }) => {
                let (client_ip, is_https, host) = (Some(*ip), *is_https, host.clone());
                Self { peer, hops, client_ip, is_https, host }
            }
            Some(Hop { address: None, .. }) | None => without_proxies,
        }
    }

    /// Returns whether no proxy has reported the client: the peer is the client.
    pub(crate) fn is_direct(&self) -> bool {
        self.hops.is_empty()
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Returns the client's address; `None` for a client on a unix socket.
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client_ip
    }

    /// Returns the origin under which the client reaches the gateway, such as `https://gate.example`. `None`: the request
    /// names no host.
    ///
    /// The origin is empty where the scheme is unknown: a proxy that reports none may have ended TLS. A link is then a
    /// path, which a client resolves at the origin that it has used.
    ///
    /// `is_tls` and `host` describe the request on the gateway's own connection; for `is_proxied` see [`is_proxied`].
    pub(crate) fn client_origin(
        &self,
        is_tls: bool,
        is_proxied: bool,
        host: Option<&Authority>,
    ) -> Option<String> {
        let host = self.host.as_ref().or(host)?;
        match self.is_https {
            None if is_proxied && !is_tls => Some(String::new()),
            is_https => Some(format!("{}://{host}", proto(is_https.unwrap_or(is_tls)))),
        }
    }

    /// Writes `Forwarded` (RFC 7239) and `X-Forwarded-For` with the peer as the last hop, and `X-Forwarded-Proto` and
    /// `-Host` of the client. The caller removes the client's own, and all fields that could be taken for such a report.
    ///
    /// `is_tls` and `host` describe the request on the gateway's own connection.
    pub(crate) fn write(&self, fields: &mut AddedFields, is_tls: bool, host: Option<&str>) {
        let peer = Node::of(self.peer.ip());
        fields.push_own("x-forwarded-proto", |value| {
            value.extend_from_slice(proto(self.is_https.unwrap_or(is_tls)).as_bytes());
        });
        fields.push_with("forwarded", |value| {
            for hop in &self.hops {
                let host = hop.host.as_ref().map(Authority::as_str);
                Node::of(hop.address).write_element(hop.is_https, host, value);
                value.extend_from_slice(b", ");
            }
            peer.write_element(Some(is_tls), host, value);
        });
        fields.push_own("x-forwarded-for", |value| {
            for hop in &self.hops {
                value.extend_from_slice(Node::of(hop.address).text.as_bytes());
                value.extend_from_slice(b", ");
            }
            value.extend_from_slice(peer.text.as_bytes());
        });
        if let Some(host) = self.host.as_ref().map(Authority::as_str).or(host) {
            fields.push_with("x-forwarded-host", |value| value.extend_from_slice(host.as_bytes()));
        }
    }
}

/// Returns whether a request has a field that proxies add, whether or not the peer is trusted.
pub(crate) fn is_proxied(headers: &HeaderMap) -> bool {
    const OTHERS: [&str; 4] = ["x-forwarded-ssl", "x-forwarded-scheme", "x-real-ip", "via"];
    let reports = [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];
    reports.iter().any(|name| headers.contains_key(name))
        || OTHERS.iter().any(|name| headers.contains_key(*name))
}

/// A hop as both kinds of fields name it.
struct Node {
    text: AddressText,
    is_ipv6: bool,
}

impl Node {
    fn of(address: Option<IpAddr>) -> Self {
        let text = address.map_or_else(|| AddressText::from("unknown").unwrap_or_default(), short_text);
        Self { text, is_ipv6: matches!(address, Some(IpAddr::V6(_))) }
    }

    /// Writes an element of `Forwarded`.
    fn write_element(&self, is_https: Option<bool>, host: Option<&str>, value: &mut Vec<u8>) {
        value.extend_from_slice(if self.is_ipv6 { b"for=\"[" } else { b"for=" });
        value.extend_from_slice(self.text.as_bytes());
        if self.is_ipv6 {
            value.extend_from_slice(b"]\"");
        }
        if let Some(is_https) = is_https {
            value.extend_from_slice(b";proto=");
            value.extend_from_slice(proto(is_https).as_bytes());
        }
        if let Some(host) = host {
            value.extend_from_slice(b";host=\"");
            value.extend_from_slice(host.as_bytes()); // a valid host has neither quotes nor backslashes
            value.push(b'"');
        }
    }
}

fn proto(is_https: bool) -> &'static str {
    if is_https { "https" } else { "http" }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::protocol::client_ip::{MAX_HOPS, MAX_HOST_BYTES};
    use crate::protocol::header_map as map;
    use crate::protocol::spoofed_headers::strip_spoofable;

    const PROXY: &str = "10.0.0.1:99";

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    fn chain(peer: Peer, fields: &[(&'static str, &'static str)]) -> ForwardedChain {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        ForwardedChain::from_headers(&map(fields), peer, &trusted)
    }

    #[test]
    fn the_chain_sent_to_the_upstream_is_bounded() {
        let nodes = vec!["192.0.2.7"; MAX_HOPS].join(",");
        let (fits, too_long) = ("h".repeat(MAX_HOST_BYTES), "h".repeat(MAX_HOST_BYTES + 1));
        for (host, is_taken) in [(fits, true), (too_long, false)] {
            let fields = [("x-forwarded-for", &*nodes), ("x-forwarded-host", &*host)];
            let headers = fields.map(|(name, text)| (HeaderName::from_static(name), text.parse().unwrap()));
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let chain = ForwardedChain::from_headers(&HeaderMap::from_iter(headers), tcp(PROXY), &trusted);
            let headers = written(&chain, false, Some("gw"));
            assert_eq!(headers["x-forwarded-host"] == host, is_taken);
            assert!(headers["forwarded"].len() < MAX_HOPS * (MAX_HOST_BYTES + 64));
        }
    }

    fn written(chain: &ForwardedChain, is_tls: bool, host: Option<&'static str>) -> HeaderMap {
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
        strip_spoofable(&mut headers);
        let mut fields = AddedFields::new();
        chain.write(&mut fields, is_tls, host);
        fields.move_into(&mut headers);
        headers
    }

    #[test]
    fn fields_of_an_untrusted_client_are_replaced() {
        let alone = chain(tcp("192.0.2.1:99"), &[("forwarded", "for=1.1.1.1")]);
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
    fn hops_of_a_trusted_proxy_are_passed_on_with_the_proxy_appended() {
        let forwarded =
            [("forwarded", "for=1.1.1.1, for=\"[2001:db8::1]\";proto=https;host=pub.example;x=y")];
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
        assert_eq!(written(&chain(tcp(PROXY), &forwarded), false, Some("gw")), expected);

        let x_forwarded = [
            ("x-forwarded-for", "192.0.2.7, 10.1.1.1"),
            ("x-forwarded-proto", "https, http"),
            ("x-forwarded-host", "pub.example"),
        ];
        let headers = written(&chain(tcp(PROXY), &x_forwarded), false, None);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7, 10.1.1.1, 10.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "pub.example");
        let elements = "for=192.0.2.7;proto=https;host=\"pub.example\", \
            for=10.1.1.1;proto=http;host=\"pub.example\", for=10.0.0.1;proto=http";
        assert_eq!(headers["forwarded"], elements);
    }

    #[test]
    fn invalid_protos_and_hosts_are_not_passed_on() {
        let x_forwarded = [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "user@evil"),
        ];
        let headers = written(&chain(tcp(PROXY), &x_forwarded), false, Some("gw"));
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "gw");
    }

    #[test]
    fn forwarded_quotes_ipv6_and_writes_unknown_for_a_unix_socket() {
        for (peer, node, plain) in [
            (tcp("[2001:db8::1]:99"), "\"[2001:db8::1]\"", "2001:db8::1"),
            (tcp("[::ffff:192.0.2.1]:99"), "192.0.2.1", "192.0.2.1"),
            (Peer::Unix, "unknown", "unknown"),
        ] {
            let headers = written(&chain(peer, &[]), false, None);
            assert_eq!(headers["forwarded"], format!("for={node};proto=http"));
            assert_eq!(headers["x-forwarded-for"], plain);
            assert!(!headers.contains_key("x-forwarded-host"));
        }
    }
}
