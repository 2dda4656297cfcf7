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

use crate::protocol::headers::is_host;

/// An entry of `server.allowed_hosts`. Names are in lower case and without a dot at their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: every name.
    Any,
    /// `jobs.example.com`: this name.
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

/// The longest part of a refused host that is repeated, in bytes: a name of DNS and a port.
const MAX_SHOWN: usize = 260;

/// Returns the first host that the request names, in its target (`:authority` in HTTP/2) or in `Host`, and that is neither
/// one of this machine's own nor `listed`; `None` where the request may be answered. A request that names no host may be:
/// browsers always name one.
pub(crate) fn foreign_host<B>(request: &Request<B>, listed: &[HostPattern]) -> Option<String> {
    let is_foreign = |host: &Authority| !is_host(host) || !is_allowed_name(host.host(), listed);
    let is_field_foreign = |field: &&HeaderValue| {
        !field.is_empty() && Authority::try_from(field.as_bytes()).map_or(true, |host| is_foreign(&host))
    };
    let of_target =
        request.uri().authority().filter(|host| is_foreign(host)).map(|host| host.as_str().as_bytes());
    let of_field =
        || request.headers().get_all(HOST).into_iter().find(is_field_foreign).map(HeaderValue::as_bytes);
    // A secret may stand before an `@`.
    let host = of_target.or_else(of_field)?.rsplit(|byte| *byte == b'@').next()?;
    Some(String::from_utf8_lossy(&host[..host.len().min(MAX_SHOWN)]).into_owned())
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
        foreign_host(&Request::get("/").header(HOST, host).body(()).unwrap(), listed).is_none()
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
        let foreign = |target: &str, hosts: &[&str]| {
            let mut request = Request::get(target).version(Version::HTTP_2);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            foreign_host(&request.body(()).unwrap(), &[])
        };
        let evil = |told: Option<String>| told.as_deref() == Some("evil.example");
        assert_eq!(foreign("/", &[]), None, "HTTP/1.0 need not name a host");
        assert_eq!(foreign("http://localhost:8080/", &[]), None);
        assert_eq!(foreign("http://localhost/", &["127.0.0.1"]), None);
        assert!(evil(foreign("http://evil.example/", &[])));
        assert!(evil(foreign("http://evil.example/", &["localhost"])));
        assert!(evil(foreign("http://localhost/", &["evil.example"])));
        assert!(evil(foreign("/", &["localhost", "evil.example"])));
        assert!(evil(foreign("http://hush@evil.example/", &[])), "no secret is told");
        let long = format!("{}.example", "a".repeat(1000));
        assert_eq!(foreign("/", &[&long]).unwrap().len(), MAX_SHOWN);
    }
}
