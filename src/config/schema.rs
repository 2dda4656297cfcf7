//! Every key there is and what it means: a row each. The rows fill a draft, which is then looked at as a whole.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

use super::error::ConfigError;
use super::source::RawConfig;
use super::value::{InvalidValue, ValueReader, base_url, collector, network, path};
use super::web::{host_pattern, origin};
use super::{AuthConfig, Config, Listen, LogFormat, TeamMember, TlsConfig, team};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Far more than anyone keeps a job, and still far from where adding to an `Instant` overflows.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const TIB: u64 = 1 << 40;
pub(super) const MILLION: u64 = 1_000_000;

const LISTEN: &str = "\"127.0.0.1:8080\" or \"unix:/run/clipgate.sock\", or a list of such";

/// A configuration in the making.
pub(super) struct ConfigBuilder {
    config: Config,
    mode: AuthModeName,
    members: Vec<TeamMember>,
    cert: Option<PathBuf>,
    cert_key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AuthModeName {
    Passthrough,
    Sidecar,
    Team,
}

/// Fills its slot of `T`.
pub(super) type Read<T> = fn(&mut T, &mut ValueReader<'_>);

/// The keys of the sections, as `config.toml` has them.
const KEYS: &[(&str, Read<ConfigBuilder>)] = &[
    ("server.listen", |d, r| r.list(&mut d.config.server.listen, LISTEN, str::parse)),
    ("server.drain_timeout", |d, r| r.duration(&mut d.config.server.drain_timeout, Duration::ZERO..=HOUR)),
    ("server.max_connections", |d, r| r.number(&mut d.config.server.max_connections, 1..=10 * MILLION)),
    ("server.header_timeout", |d, r| r.duration(&mut d.config.server.header_timeout, MILLISECOND..=HOUR)),
    ("server.idle_timeout", |d, r| r.duration(&mut d.config.server.idle_timeout, MILLISECOND..=HOUR)),
    ("server.tls.cert", |d, r| r.parsed(&mut d.cert, "\"cert.pem\"", path)),
    ("server.tls.key", |d, r| r.parsed(&mut d.cert_key, "\"key.pem\"", path)),
    ("server.tls.client_ca", |d, r| r.parsed(&mut d.client_ca, "\"ca.pem\"", path)),
    ("server.cors_origins", |d, r| {
        r.list(&mut d.config.server.cors_origins, "[\"https://app.example.com\"]", origin)
    }),
    ("server.allowed_hosts", |d, r| {
        r.list(&mut d.config.server.allowed_hosts, "[\"clips.example.com\", \".internal\"]", host_pattern)
    }),
    ("server.trusted_proxies", |d, r| {
        r.list(&mut d.config.server.trusted_proxies, "[\"10.0.0.0/8\"]", network)
    }),
    ("admin.listen", |d, r| {
        r.parsed(&mut d.config.admin.listen, "\"127.0.0.1:9090\", or \"\" for none", maybe_listen)
    }),
    ("admin.token", |d, r| r.secret(&mut d.config.admin.token)),
    ("upstream.base_url", |d, r| {
        r.parsed(&mut d.config.upstream.base_url, "\"https://api.aimlapi.com\"", base_url)
    }),
    ("upstream.api_key", |d, r| r.secret(&mut d.config.upstream.api_key)),
    ("upstream.poll_timeout", |d, r| r.duration(&mut d.config.upstream.poll_timeout, MILLISECOND..=DAY)),
    ("upstream.connect_timeout", |d, r| {
        r.duration(&mut d.config.upstream.connect_timeout, MILLISECOND..=HOUR)
    }),
    ("upstream.connection_max_age", |d, r| {
        r.duration(&mut d.config.upstream.connection_max_age, SECOND..=DAY)
    }),
    ("upstream.max_jobs", |d, r| r.number(&mut d.config.upstream.max_jobs, 1..=100)),
    ("upstream.max_polls", |d, r| r.number(&mut d.config.upstream.max_polls, 1..=MILLION)),
    ("upstream.requests_per_second", |d, r| {
        r.number(&mut d.config.upstream.requests_per_second, 0..=MILLION)
    }),
    ("upstream.retries", |d, r| r.number(&mut d.config.upstream.retries, 0..=100)),
    ("upstream.retry_for", |d, r| r.duration(&mut d.config.upstream.retry_for, Duration::ZERO..=HOUR)),
    ("upstream.breaker_failures", |d, r| r.number(&mut d.config.upstream.breaker_failures, 1..=MILLION)),
    ("upstream.breaker_cooldown", |d, r| {
        r.duration(&mut d.config.upstream.breaker_cooldown, MILLISECOND..=HOUR)
    }),
    ("auth.mode", |d, r| {
        let words = [
            ("passthrough", AuthModeName::Passthrough),
            ("sidecar", AuthModeName::Sidecar),
            ("team", AuthModeName::Team),
        ];
        r.choice(&mut d.mode, &words);
    }),
    ("team.members", |d, r| team::members(&mut d.members, r)),
    ("wait.timeout", |d, r| r.duration(&mut d.config.wait.timeout, MILLISECOND..=DAY)),
    ("wait.max_timeout", |d, r| r.duration(&mut d.config.wait.max_timeout, MILLISECOND..=DAY)),
    ("wait.linger", |d, r| r.duration(&mut d.config.wait.linger, Duration::ZERO..=HOUR)),
    ("wait.max_jobs", |d, r| r.number(&mut d.config.wait.max_jobs, 1..=1000)),
    ("cache.max_bytes", |d, r| r.size(&mut d.config.cache.max_bytes, 0..=TIB)),
    ("cache.completed_ttl", |d, r| r.duration(&mut d.config.cache.completed_ttl, Duration::ZERO..=YEAR)),
    ("cache.error_ttl", |d, r| r.duration(&mut d.config.cache.error_ttl, Duration::ZERO..=YEAR)),
    ("cache.live_ttl", |d, r| r.duration(&mut d.config.cache.live_ttl, Duration::ZERO..=HOUR)),
    ("cache.key_recheck_interval", |d, r| {
        r.duration(&mut d.config.cache.key_recheck_interval, Duration::ZERO..=YEAR)
    }),
    ("limits.requests_per_second", |d, r| r.number(&mut d.config.limits.requests_per_second, 1..=MILLION)),
    ("limits.burst", |d, r| r.number(&mut d.config.limits.burst, 1..=MILLION)),
    ("limits.calls_per_second", |d, r| r.number(&mut d.config.limits.calls_per_second, 1..=MILLION)),
    ("limits.calls_burst", |d, r| r.number(&mut d.config.limits.calls_burst, 1..=MILLION)),
    ("limits.max_waits_per_key", |d, r| r.number(&mut d.config.limits.max_waits_per_key, 1..=10 * MILLION)),
    ("limits.max_waits", |d, r| r.number(&mut d.config.limits.max_waits, 1..=10 * MILLION)),
    ("limits.max_passthrough_per_key", |d, r| {
        r.number(&mut d.config.limits.max_passthrough_per_key, 1..=10 * MILLION)
    }),
    ("limits.max_passthrough", |d, r| r.number(&mut d.config.limits.max_passthrough, 1..=10 * MILLION)),
    ("limits.max_body", |d, r| r.size(&mut d.config.limits.max_body, 1..=TIB)),
    ("log.format", |d, r| {
        r.choice(&mut d.config.log.format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    }),
    ("log.level", |d, r| r.choice(&mut d.config.log.level, LEVELS)),
    ("telemetry.otlp_endpoint", |d, r| {
        r.parsed(
            &mut d.config.telemetry.otlp_endpoint,
            "\"http://127.0.0.1:4318\", or \"\" for none",
            collector,
        )
    }),
    ("telemetry.sample_percent", |d, r| r.number(&mut d.config.telemetry.sample_percent, 0..=100)),
];

const LEVELS: &[(&str, Level)] = &[
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

const SECRETS: &[&str] = &["api_key", "token", "upstream_key", "token_sha256"];

/// All keys of the sections.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(name, _)| *name)
}

/// The key, if there is one of that name.
pub(super) fn find(key: &str) -> Option<&'static str> {
    names().find(|name| *name == key)
}

/// Whether the key is one that holds others.
pub(super) fn is_section(key: &str) -> bool {
    names().any(|name| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// All sections, one for each of their keys.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    names().filter_map(|name| name.rsplit_once('.')).map(|(section, _)| section)
}

/// The first key of a section.
pub(super) fn first_of(section: &str) -> &'static str {
    names().find(|name| name.starts_with(section)).unwrap_or("server.listen")
}

/// Whether a line that sets this key, without its section, may be shown as it is.
pub(super) fn is_harmless(key: &str) -> bool {
    let known = names().filter_map(|name| name.split_once('.')).any(|(_, name)| name == key);
    known && !names_a_secret(key)
}

/// Whether the text has the name of a key that holds a secret in it.
pub(super) fn names_a_secret(text: &str) -> bool {
    SECRETS.iter().any(|secret| text.contains(secret))
}

/// What the entries mean, all in all, over the defaults.
pub(super) fn build(
    entries: &RawConfig,
    env: &BTreeMap<String, String>,
    faults: &mut Vec<ConfigError>,
) -> Config {
    let mut draft = ConfigBuilder {
        config: Config::default(),
        mode: AuthModeName::Passthrough,
        members: Vec::new(),
        cert: None,
        cert_key: None,
        client_ca: None,
    };
    let before = faults.len();
    for (name, read) in KEYS {
        if let Some(item) = entries.get(name) {
            read(&mut draft, &mut ValueReader { key: (*name).to_owned(), item, env, faults });
        }
    }
    // what has a fault already is not blamed for what follows from it
    let bad: HashSet<String> = faults[before..]
        .iter()
        .map(|fault| fault.key.split(" #").next().unwrap_or_default().to_owned())
        .collect();
    let mut as_a_whole = Vec::new();
    draft.cross_check(entries, &mut as_a_whole);
    faults.extend(
        as_a_whole
            .into_iter()
            .filter_map(|(fault, about)| about.iter().all(|key| !bad.contains(*key)).then_some(fault)),
    );
    draft.finish()
}

impl ConfigBuilder {
    /// Faults that no value has alone, each with the keys it follows from.
    fn cross_check(&self, entries: &RawConfig, faults: &mut Vec<(ConfigError, Vec<&'static str>)>) {
        let mut fault = |about: &[&'static str], wrong: &str, fix: &str| {
            let place = entries.place(about);
            let key = about.iter().find(|key| entries.get(key).is_some()).or(about.first()).copied();
            let key = key.unwrap_or_default().to_owned();
            let fault = ConfigError { source: place, key, problem: wrong.to_owned(), hint: fix.to_owned() };
            faults.push((fault, about.to_vec()));
        };
        let config = &self.config;
        let form = humantime::format_duration;

        let listen = &config.server.listen;
        if listen.is_empty() {
            fault(&["server.listen"], "is empty, so no client could connect", "write at least one address");
        }
        if let Some(twice) =
            listen.iter().enumerate().find(|(n, at)| takes_a_port(at) && listen[..*n].contains(at))
        {
            fault(&["server.listen"], &format!("{} is listed twice", twice.1), "take one out");
        }
        if let Some(at) = config.admin.listen.as_ref().filter(|at| takes_a_port(at) && listen.contains(at)) {
            let wrong = format!("{at} is where both clients and the operator would connect");
            fault(
                &["admin.listen", "server.listen"],
                &wrong,
                "give server.listen and admin.listen an address each",
            );
        }
        let (cert, key) = (self.cert.is_some(), self.cert_key.is_some());
        if cert && !key {
            fault(&["server.tls.cert", "server.tls.key"], "has no key beside it", "set server.tls.key too");
        }
        if key && !cert {
            fault(
                &["server.tls.key", "server.tls.cert"],
                "has no certificate beside it",
                "set server.tls.cert too",
            );
        }
        if !cert && !key && self.client_ca.is_some() {
            let about = ["server.tls.client_ca", "server.tls.cert", "server.tls.key"];
            fault(&about, "has no certificate beside it", "set server.tls.cert and server.tls.key too");
        }
        if config.wait.max_timeout < config.wait.timeout {
            let wrong = format!(
                "the longest wait a client may ask for ({}) is shorter than the usual one ({})",
                form(config.wait.max_timeout),
                form(config.wait.timeout)
            );
            fault(
                &["wait.max_timeout", "wait.timeout"],
                &wrong,
                "make wait.max_timeout at least wait.timeout",
            );
        }
        match self.mode {
            AuthModeName::Sidecar if config.upstream.api_key.is_none() => fault(
                &["auth.mode", "upstream.api_key"],
                "\"sidecar\" sends the gateway's own key, and there is none",
                "set upstream.api_key, for example to \"env:AIMLAPI_KEY\"",
            ),
            AuthModeName::Team if self.members.is_empty() => fault(
                &["auth.mode", "team.members"],
                "\"team\" lets in only members, and there is none",
                "add a [[team.members]] with name, token_sha256 and upstream_key",
            ),
            AuthModeName::Passthrough | AuthModeName::Sidecar if !self.members.is_empty() => fault(
                &["team.members", "auth.mode"],
                "members are listed, but auth.mode does not ask for their tokens",
                "set auth.mode to \"team\", or take the members out",
            ),
            AuthModeName::Passthrough | AuthModeName::Sidecar | AuthModeName::Team => {}
        }
    }

    fn finish(self) -> Config {
        let mut config = self.config;
        config.server.tls = match (self.cert, self.cert_key) {
            (Some(cert), Some(key)) => Some(TlsConfig { cert, key, client_ca: self.client_ca }),
            _ => None,
        };
        config.auth = match self.mode {
            AuthModeName::Passthrough => AuthConfig::Passthrough,
            AuthModeName::Sidecar => AuthConfig::Sidecar,
            AuthModeName::Team => AuthConfig::Team(self.members),
        };
        config
    }
}

/// Whether two listeners at this address cannot be: not so where the system chooses the port.
fn takes_a_port(listen: &Listen) -> bool {
    !matches!(listen, Listen::Tcp(addr) if addr.port() == 0)
}

fn maybe_listen(text: &str) -> Result<Option<Listen>, InvalidValue> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}
