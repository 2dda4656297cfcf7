//! The Host rule: by which names a request may reach a listener that asks for no credentials of its client.
//!
//! ```text
//!  page of evil.example, whose DNS entry is now 127.0.0.1
//!    fetch("http://evil.example:8080/…")          to the browser: its own origin, nothing to ask for
//!      │  Host: evil.example:8080
//!      ▼
//!  listener on 127.0.0.1:8080                     421, as the name is not one of this machine's
//! ```
//!
//! DNS rebinding needs a name that the attacker's DNS server answers for. Addresses, `localhost` and names without a
//! dot cannot be such a name, so they need no list. Ollama, Vite, webpack-dev-server and Jupyter follow the same rule.

use std::net::IpAddr;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request};

use crate::headers::is_host;

/// An entry of `server.allowed_hosts`. Names are in lower case and without a dot at their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: every name.
    Any,
    /// `clips.example.com`: this name.
    Name(String),
    /// `.example.com`: this name and all below it. Holds the name without its first dot.
    Suffix(String),
}

impl HostPattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Name(own) => name == own,
            HostPattern::Suffix(own) => {
                name.strip_suffix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    }
}

/// Returns whether every host that the request names, in its target (`:authority` in HTTP/2) and in `Host`, is one of
/// this machine's own or `listed`. A request that names none is let in: browsers always name one.
pub(crate) fn is_allowed<B>(request: &Request<B>, listed: &[HostPattern]) -> bool {
    let is_allowed = |authority: &Authority| is_host(authority) && is_allowed_name(authority.host(), listed);
    let is_field_allowed = |field: &HeaderValue| {
        field.is_empty() || Authority::try_from(field.as_bytes()).is_ok_and(|host| is_allowed(&host))
    };
    request.uri().authority().is_none_or(is_allowed)
        && request.headers().get_all(HOST).iter().all(is_field_allowed)
}

fn is_allowed_name(host: &str, listed: &[HostPattern]) -> bool {
    // A dot at the end says that the name is complete; it is the same name.
    let host = host.strip_suffix('.').unwrap_or(host);
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if address.parse::<IpAddr>().is_ok() || !host.contains('.') {
        return true;
    }
    let name = host.to_ascii_lowercase();
    name.ends_with(".localhost") || listed.iter().any(|pattern| pattern.matches(&name))
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    fn listed() -> [HostPattern; 2] {
        [HostPattern::Name("clips.example.com".to_owned()), HostPattern::Suffix("internal".to_owned())]
    }

    fn of_host(host: &str, listed: &[HostPattern]) -> bool {
        is_allowed(&Request::get("/").header(HOST, host).body(()).unwrap(), listed)
    }

    #[test]
    fn only_names_that_no_public_dns_answers_for_need_no_list() {
        let own = [
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.0.0.1.",
            "192.0.2.7",
            "[::1]",
            "[::1]:8080",
            "[2001:db8::1]:1",
            "localhost",
            "LOCALHOST.:80",
            "a.localhost",
            "a.b.LocalHost:1",
            "box",
            "box:8080",
            "box.",
            "",
        ];
        for host in own {
            assert!(of_host(host, &[]), "{host}");
        }
        let foreign = [
            "evil.example",
            "evil.example:8080",
            "evil.example.",
            "127.0.0.1.nip.io",
            "127.1.evil.example",
            "localhost.evil.example",
            "a.notlocalhost",
            "box..",
            "user@127.0.0.1",
            "user@localhost:8080",
            "host.docker.internal",
            "clips.default.svc.cluster.local",
            ":8080",
            "127.0.0.1 ",
            "a/b",
        ];
        for host in foreign {
            assert!(!of_host(host, &[]), "{host}");
        }
    }

    #[test]
    fn listed_names_are_let_in_whatever_their_case_and_port() {
        for host in ["clips.example.com", "CLIPS.example.com.:443", "a.internal", "host.docker.INTERNAL:8080"]
        {
            assert!(of_host(host, &listed()), "{host}");
        }
        for host in [
            "example.com",
            "a.clips.example.com",
            "xclips.example.com",
            "a.notinternal",
            "internal.evil.example",
        ] {
            assert!(!of_host(host, &listed()), "{host}");
        }
        let suffix = [HostPattern::Suffix("example.com".to_owned())];
        assert!(of_host("example.com", &suffix) && of_host("a.b.example.com", &suffix));
        assert!(!of_host("evilexample.com", &suffix));
        assert!(of_host("evil.example", &[HostPattern::Any]));
        assert!(!of_host("user@evil.example", &[HostPattern::Any]), "that is not a host");
    }

    #[test]
    fn each_name_that_a_request_has_is_looked_at() {
        let request = |target: &str, hosts: &[&str]| {
            let mut request = Request::get(target).version(Version::HTTP_2);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            is_allowed(&request.body(()).unwrap(), &[])
        };
        assert!(request("/", &[]), "HTTP/1.0 need not name a host");
        assert!(request("http://localhost:8080/", &[]));
        assert!(request("http://localhost/", &["127.0.0.1"]));
        assert!(!request("http://evil.example/", &[]));
        assert!(!request("http://evil.example/", &["localhost"]));
        assert!(!request("http://localhost/", &["evil.example"]));
        assert!(!request("/", &["localhost", "evil.example"]));
    }
}
