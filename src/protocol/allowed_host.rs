//! Protection against DNS rebinding: the host names under which a listener without client credentials may be reached.
//!
//! ```text
//!  page of evil.example, whose DNS entry is now 127.0.0.1
//!    fetch("http://evil.example:8080/…")          for the browser the page's own origin, so no CORS
//!      │  Host: evil.example:8080
//!      ▼
//!  listener on 127.0.0.1:8080                     421: the name does not belong to this machine
//! ```
//!
//! The attack needs a name that the attacker's DNS server resolves. Addresses, `localhost` and names without a dot are
//! never such names, so they need no list. Ollama, Vite, webpack-dev-server and Jupyter follow the same rule.

use std::net::IpAddr;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request};

use super::host::is_host;

/// An entry of `server.allowed_hosts`. Names are in lower case and without a final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: every name.
    Any,
    /// `jobs.example.com`: this name.
    Name(String),
    /// `.example.com`: this name and all below it. Stored without the first dot.
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

/// The part of a rejected host that is logged, in bytes: a DNS name and a port.
const MAX_LOGGED: usize = 260;

/// Returns the first host of the target (`:authority` in HTTP/2) or of `Host` that is neither a name of this machine
/// nor in `listed`. `None`: the request may be answered. A request without a host may too: browsers always send one.
pub(crate) fn foreign_host<B>(request: &Request<B>, listed: &[HostPattern]) -> Option<String> {
    let is_foreign = |host: &Authority| !is_host(host) || !is_allowed_name(host.host(), listed);
    let is_field_foreign = |field: &&HeaderValue| {
        !field.is_empty() && Authority::try_from(field.as_bytes()).map_or(true, |host| is_foreign(&host))
    };
    let in_target =
        request.uri().authority().filter(|host| is_foreign(host)).map(|host| host.as_str().as_bytes());
    let in_field =
        || request.headers().get_all(HOST).into_iter().find(is_field_foreign).map(HeaderValue::as_bytes);
    // Text before an `@` may be a password.
    let host = in_target.or_else(in_field)?.rsplit(|byte| *byte == b'@').next()?;
    Some(String::from_utf8_lossy(&host[..host.len().min(MAX_LOGGED)]).into_owned())
}

fn is_allowed_name(host: &str, listed: &[HostPattern]) -> bool {
    // A final dot marks an absolute name; the name is the same.
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

    fn is_allowed(host: &str, listed: &[HostPattern]) -> bool {
        foreign_host(&Request::get("/").header(HOST, host).body(()).unwrap(), listed).is_none()
    }

    #[test]
    fn only_names_that_public_dns_cannot_resolve_need_no_list() {
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
            assert!(is_allowed(host, &[]), "{host}");
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
            assert!(!is_allowed(host, &[]), "{host}");
        }
    }

    #[test]
    fn listed_names_are_allowed_in_any_case_and_with_any_port() {
        for host in ["clips.example.com", "CLIPS.example.com.:443", "a.internal", "host.docker.INTERNAL:8080"]
        {
            assert!(is_allowed(host, &listed()), "{host}");
        }
        for host in [
            "example.com",
            "a.clips.example.com",
            "xclips.example.com",
            "a.notinternal",
            "internal.evil.example",
        ] {
            assert!(!is_allowed(host, &listed()), "{host}");
        }
        let suffix = [HostPattern::Suffix("example.com".to_owned())];
        assert!(is_allowed("example.com", &suffix) && is_allowed("a.b.example.com", &suffix));
        assert!(!is_allowed("evilexample.com", &suffix));
        assert!(is_allowed("evil.example", &[HostPattern::Any]));
        assert!(!is_allowed("user@evil.example", &[HostPattern::Any]), "a host has no user");
    }

    #[test]
    fn every_host_of_a_request_is_checked() {
        let foreign = |target: &str, hosts: &[&str]| {
            let mut request = Request::get(target).version(Version::HTTP_2);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            foreign_host(&request.body(()).unwrap(), &[])
        };
        let is_evil = |host: Option<String>| host.as_deref() == Some("evil.example");
        assert_eq!(foreign("/", &[]), None, "HTTP/1.0 need not name a host");
        assert_eq!(foreign("http://localhost:8080/", &[]), None);
        assert_eq!(foreign("http://localhost/", &["127.0.0.1"]), None);
        assert!(is_evil(foreign("http://evil.example/", &[])));
        assert!(is_evil(foreign("http://evil.example/", &["localhost"])));
        assert!(is_evil(foreign("http://localhost/", &["evil.example"])));
        assert!(is_evil(foreign("/", &["localhost", "evil.example"])));
        assert!(is_evil(foreign("http://hush@evil.example/", &[])), "the password is not returned");
        let long = format!("{}.example", "a".repeat(1000));
        assert_eq!(foreign("/", &[&long]).unwrap().len(), MAX_LOGGED);
    }
}
