//! `[cluster]`: the engine through which replicas share jobs, polls and quotas.

use std::fmt;
use std::time::Duration;

use http::Uri;
use percent_encoding::percent_decode_str;

use super::error::{InvalidValue, invalid};
use crate::secret::Secret;

/// Replicas that share their work. Without `cluster.url` a gateway is the only one.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Never empty. One in the mode `single`, nodes in `cluster`, sentinels in `sentinel`.
    pub urls: Vec<EngineUrl>,
    /// 32 bytes or more, the same at all replicas.
    pub secret: Secret,
    /// Name of the primary at the sentinels.
    pub master: Option<String>,
    /// Distinguishes teams that use one engine.
    pub name: String,
    pub mode: EngineMode,
    pub share: Vec<Share>,
    /// Time for which a new poll waits for the engine.
    pub patience: Duration,
    /// Time without a beat after which a replica counts as dead.
    pub takeover: Duration,
    /// Largest body that is shared, in bytes.
    pub max_body: u64,
    /// Whether a replica without the engine uses its part of each shared quota only.
    pub strict: bool,
    /// Number of replicas; 0: unknown.
    pub expected: usize,
}

/// Form of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineMode {
    Single,
    Cluster,
    Sentinel,
}

/// Work that replicas share. Rejected keys and removed jobs are always shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// States of jobs.
    Jobs,
    /// Open polls.
    Polls,
    /// Counts of requests and upstream requests.
    Quotas,
}

/// Shortest secret, in bytes.
const MIN_SECRET: usize = 32;

impl Default for ClusterConfig {
    /// Returns the defaults without URL and secret, which have none.
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            secret: Secret::new(""),
            master: None,
            name: "clipgate".to_owned(),
            mode: EngineMode::Single,
            share: vec![Share::Jobs, Share::Polls, Share::Quotas],
            patience: Duration::from_millis(50),
            takeover: Duration::from_secs(2),
            max_body: 256 << 10,
            strict: false,
            expected: 0,
        }
    }
}

impl ClusterConfig {
    /// Returns whether replicas share this.
    pub fn shares(&self, what: Share) -> bool {
        self.share.contains(&what)
    }
}

/// Address and credentials of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineUrl {
    pub is_tls: bool,
    /// Without the brackets of IPv6.
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub database: i64,
}

impl fmt::Display for EngineUrl {
    /// Writes the URL without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const URL_HINT: &str = "Use a URL such as \"redis://127.0.0.1:6379\" or \"rediss://USER:PASSWORD@HOST:6379\". With a \
    password, \"file:PATH\" or \"env:NAME\" keeps it out of the file.";

/// Parses a URL of an engine. Errors do not show it: it may have a password.
pub(super) fn engine_url(text: &str) -> Result<EngineUrl, InvalidValue> {
    let bad = |problem: &str| invalid(problem, URL_HINT);
    let (is_tls, rest) = match text.trim().split_once("://") {
        Some(("redis" | "valkey", rest)) => (false, rest),
        Some(("rediss" | "valkeys", rest)) => (true, rest),
        _ => return bad("not a redis:// or rediss:// URL"),
    };
    if rest.contains(['?', '#']) {
        return bad("the URL has a query or a fragment");
    }
    let (userinfo, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
    let Some(authority) = format!("http://{place}").parse::<Uri>().ok().filter(|uri| uri.host().is_some())
    else {
        return bad("the URL has no host or an invalid port");
    };
    let host = authority.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let has_port = authority.authority().is_some_and(|at| at.as_str().len() > at.host().len());
    let port = authority.port_u16();
    if host.is_empty() || (has_port && port.is_none_or(|port| port == 0)) {
        return bad("the URL has no host or an invalid port");
    }
    let database = match authority.path().trim_matches('/') {
        "" => 0,
        number => match number.parse::<u16>() {
            Ok(number) => i64::from(number),
            Err(_) => return bad("the path of the URL is not the number of a database"),
        },
    };
    let decoded = |part: &str| percent_decode_str(part).decode_utf8().ok().map(|part| part.into_owned());
    let (user, password) = match userinfo.map(|info| info.split_once(':').unwrap_or((info, ""))) {
        None => (None, None),
        Some((user, password)) => match (decoded(user), decoded(password)) {
            (Some(user), Some(password)) => (Some(user), Some(password)),
            _ => {
                return bad(
                    "the user or the password of the URL is not valid UTF-8 behind its percent signs",
                );
            }
        },
    };
    let user = user.filter(|user| !user.is_empty());
    let password = password.filter(|password| !password.is_empty()).map(Secret::new);
    Ok(EngineUrl { is_tls, host, port: port.unwrap_or(6379), user, password, database })
}

/// An error between keys of the section: the keys that cause it, the problem, and a hint.
pub(super) type ClusterError = (&'static [&'static str], String, &'static str);

/// Returns the first error between the keys of the section.
pub(super) fn check_cluster(cluster: &ClusterConfig, secret: Option<&Secret>) -> Option<ClusterError> {
    const SECRET_HINT: &str = "Set cluster.secret to 32 bytes or more, the same at all replicas, for example to \
        \"file:/run/secrets/clipgate\". `openssl rand -hex 32` makes one.";
    let len = secret.map(|secret| secret.expose().len());
    if let Some(len) = len.filter(|len| *len < MIN_SECRET) {
        return Some((&["cluster.secret"], format!("the secret has {len} bytes"), SECRET_HINT));
    }
    if cluster.urls.is_empty() {
        return None;
    }
    if len.is_none() {
        let problem = "the URL of an engine is set, but no secret".to_owned();
        return Some((&["cluster.url", "cluster.secret"], problem, SECRET_HINT));
    }
    if cluster.strict && !cluster.shares(Share::Quotas) {
        let problem = "cluster.strict is set, but quotas are not shared".to_owned();
        let hint = "Add \"quotas\" to cluster.share, or remove cluster.strict.";
        return Some((&["cluster.strict", "cluster.share"], problem, hint));
    }
    let error = |keys: &'static [&'static str], problem: &str, hint| Some((keys, problem.to_owned(), hint));
    match (cluster.mode, &cluster.master, cluster.urls.len()) {
        (EngineMode::Single | EngineMode::Cluster, Some(_), _) => error(
            &["cluster.master", "cluster.mode"],
            "cluster.master is set, but cluster.mode is not \"sentinel\"",
            "Set cluster.mode to \"sentinel\" or remove cluster.master.",
        ),
        (EngineMode::Single, None, 2..) => error(
            &["cluster.url", "cluster.mode"],
            "\"single\" is one server, and the list has more",
            "Set one URL, or cluster.mode to \"cluster\" if the servers are nodes of a Redis Cluster.",
        ),
        (EngineMode::Cluster, None, _) if cluster.urls.iter().any(|url| url.database != 0) => error(
            &["cluster.url", "cluster.mode"],
            "a Redis Cluster has no numbered databases",
            "Remove the number at the end of the URL.",
        ),
        (EngineMode::Sentinel, None, _) => error(
            &["cluster.mode", "cluster.master"],
            "\"sentinel\" needs the name of the primary",
            "Set cluster.master, for example to \"mymaster\".",
        ),
        (EngineMode::Single | EngineMode::Cluster, None, _) | (EngineMode::Sentinel, Some(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_perhaps_a_port_a_database_and_credentials() {
        let url = engine_url("rediss://team:p%40ss@cache.example:6380/2").unwrap();
        assert!(url.is_tls && url.port == 6380 && url.database == 2 && url.host == "cache.example");
        assert_eq!((url.user.as_deref(), url.password), (Some("team"), Some(Secret::new("p@ss"))));
        let plain = engine_url("redis://[::1]").unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.user.clone()), ("::1", 6379, None));
        assert_eq!(plain.to_string(), "redis://[::1]:6379");
        let only_password = engine_url("redis://:word@h").unwrap();
        assert_eq!((only_password.user, only_password.password), (None, Some(Secret::new("word"))));
    }

    #[test]
    fn an_error_of_a_url_does_not_show_its_password() {
        for text in [
            "http://u:hunter2@h",
            "redis://u:hunter2@",
            "redis://u:hunter2@h:0",
            "redis://u:hunter2@h/x",
            "u:hunter2@h",
        ] {
            let error = engine_url(text).unwrap_err();
            assert!(!error.problem.contains("hunter2") && !error.hint.contains("hunter2"), "{error:?}");
        }
        let shown = format!("{:?}", engine_url("redis://u:hunter2@h").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
