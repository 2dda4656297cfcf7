//! What the operator decides. The real form: durations are durations, secrets are read, all is validated.
//!
//! ```text
//! file, environment, flags ──► raw ──► keys (a row each, read by reader) ──► Config
//!                                └──────────┴──► Faults, all at once
//! ```
//!
//! It knows no other modules but `secret` and `allowed_host`; whoever runs the gateway owns it.

mod error;
mod path;
mod restart;
mod schema;
mod source;
mod team;
#[cfg(test)]
mod tests;
mod value;
mod warnings;
mod web;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;

pub use self::error::{ConfigError, ConfigErrors, Source};
pub use self::path::locate;
pub use self::team::member_name;
pub use self::value::{InvalidValue, base_url, secret};
use crate::protocol::allowed_host::HostPattern;
use crate::secret::{Secret, TokenHash};

/// Everything (contract, section 9).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The clients' side.
    pub server: ServerConfig,
    /// The operator's side.
    pub admin: AdminConfig,
    /// The API's side.
    pub upstream: UpstreamConfig,
    /// Whose key the upstream sees.
    pub auth: AuthConfig,
    /// How long waits wait.
    pub wait: WaitConfig,
    /// What is kept, and how long.
    pub cache: CacheConfig,
    /// What one key may do.
    pub limits: LimitsConfig,
    /// What is written of all that.
    pub log: LogConfig,
    /// Whom else it is told.
    pub telemetry: TelemetryConfig,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `HOST:PORT`
    Tcp(SocketAddr),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(addr) => addr.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `[server]`
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Where clients connect; never empty.
    pub listen: Vec<Listen>,
    /// How long parked waits and running requests have to end after SIGTERM.
    pub drain_timeout: Duration,
    /// Client connections at once.
    pub max_connections: usize,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// How long a connection may be kept without a request.
    pub idle_timeout: Duration,
    /// Certificates, where the listeners speak TLS.
    pub tls: Option<TlsConfig>,
    /// The web origins that CORS is answered for.
    pub cors_origins: Vec<String>,
    /// By which further names a sidecar, and an admin listener without a token, may be reached.
    pub allowed_hosts: Vec<HostPattern>,
    /// Whose `Forwarded` and `X-Forwarded-For` are believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// `server.tls`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Whose client certificates are asked for, PEM.
    pub client_ca: Option<PathBuf>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    /// Where health, metrics and the dashboard are; `None` turns them off.
    pub listen: Option<Listen>,
    /// What the admin routes but the health checks ask for.
    pub token: Option<Secret>,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// `http` or `https`, an authority without userinfo, perhaps a path prefix; no query.
    pub base_url: Uri,
    /// The key of sidecar mode.
    pub api_key: Option<Secret>,
    /// When the upstream answers a poll unreached.
    pub poll_timeout: Duration,
    /// How long a connection, TLS included, may take.
    pub connect_timeout: Duration,
    /// How old a connection may become before it takes no more requests.
    pub connection_max_age: Duration,
    /// Jobs one poll may ask for.
    pub max_jobs: usize,
    /// Polls open at once.
    pub max_polls: usize,
    /// Upstream requests a second; 0 is no limit.
    pub requests_per_second: u32,
    /// Tries in a row after a poll's first.
    pub retries: u32,
    /// How long after its first transport fault a poll is given up.
    pub retry_for: Duration,
    /// Failures in a row that open the breaker.
    pub breaker_failures: u32,
    /// How long an open breaker lets no poll through.
    pub breaker_cooldown: Duration,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq)]
pub enum AuthConfig {
    /// Each client brings its own upstream key.
    Passthrough,
    /// Every request goes with `upstream.api_key`.
    Sidecar,
    /// Clients bring tokens of the gateway's own.
    Team(Vec<TeamMember>),
}

impl AuthConfig {
    /// The team; empty in the other modes.
    pub fn members(&self) -> &[TeamMember] {
        match self {
            AuthConfig::Passthrough | AuthConfig::Sidecar => &[],
            AuthConfig::Team(members) => members,
        }
    }
}

/// `[[team.members]]`
#[derive(Clone, Debug, PartialEq)]
pub struct TeamMember {
    /// What logs and metrics call the member.
    pub name: String,
    /// The SHA-256 of the member's token.
    pub token_sha256: TokenHash,
    /// The upstream key the member's requests go with.
    pub upstream_key: Secret,
    /// The member's own `limits.requests_per_second`.
    pub requests_per_second: Option<u32>,
    /// The member's own `limits.burst`.
    pub burst: Option<u32>,
    /// The member's own `limits.calls_per_second`.
    pub calls_per_second: Option<u32>,
    /// The member's own `limits.calls_burst`.
    pub calls_burst: Option<u32>,
}

/// `[wait]`
#[derive(Clone, Debug, PartialEq)]
pub struct WaitConfig {
    /// How long a wait waits from its own arrival.
    pub timeout: Duration,
    /// The longest that a client may ask for.
    pub max_timeout: Duration,
    /// How long a poll stays open without a wait.
    pub linger: Duration,
    /// Jobs one wait may name.
    pub max_jobs: usize,
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    /// The most the kept jobs may weigh, in bytes.
    pub max_bytes: u64,
    /// How long a completed job is kept.
    pub completed_ttl: Duration,
    /// How long a failed job is kept.
    pub error_ttl: Duration,
    /// How long a state that is not terminal may be answered again; zero: never.
    pub live_ttl: Duration,
    /// How long a key that the upstream accepted is served hits without proof.
    pub key_recheck_interval: Duration,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq)]
pub struct LimitsConfig {
    /// The `requests` quota's rate, per key.
    pub requests_per_second: u32,
    /// The `requests` quota's burst.
    pub burst: u32,
    /// The `calls` quota's rate, per key.
    pub calls_per_second: u32,
    /// The `calls` quota's burst.
    pub calls_burst: u32,
    /// Parked waits of one key.
    pub max_waits_per_key: usize,
    /// Parked waits of all.
    pub max_waits: usize,
    /// Passed-through requests of one key, member or address at once.
    pub max_passthrough_per_key: usize,
    /// Passed-through requests of all at once.
    pub max_passthrough: usize,
    /// The largest request body, in bytes.
    pub max_body: u64,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe lines that are written: `error`, `warn`, `info`, `debug` or `trace`.
    pub level: tracing::Level,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// The collector that spans are sent to, over OTLP; `None`: there are no spans.
    pub otlp_endpoint: Option<Uri>,
    /// How many of a hundred traces that begin here are recorded.
    pub sample_percent: u8,
}

/// What a flag of the command line says of a key; it outdoes the environment, which outdoes the file.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag, as faults name it: `--listen`.
    pub flag: &'static str,
    /// The key it stands for: `server.listen`.
    pub key: &'static str,
    /// What it was given.
    pub value: String,
}

impl Config {
    /// The defaults, over them the file if there is one, over that each `CLIPGATE__SECTION__KEY` of the
    /// environment, which `env:NAME` secrets come from too.
    ///
    /// A value from the environment is text as it stands (`120s`, `6`, `team`). A list is written as in TOML,
    /// `["10.0.0.0/8", "::1"]`, or is the one text; empty text is the empty list.
    ///
    /// # Errors
    ///
    /// Everything that is wrong. Only if the file is no TOML at all, that alone.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        Self::load_with(path, env, [])
    }

    /// As [`Config::load`], and flags over all.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_with(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = Flag>,
    ) -> Result<Self, ConfigErrors> {
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let mut faults = Vec::new();
        let mut entries = source::RawConfig::default();
        if let Some(path) = path {
            entries.file(path, &mut faults).map_err(ConfigErrors::new)?;
        }
        entries.environment(&env, &mut faults);
        for Flag { flag, key, value } in flags {
            entries.flag(flag, key, &value, &mut faults);
        }
        let config = schema::build(&entries, &env, &mut faults);
        if faults.is_empty() { Ok(config) } else { Err(ConfigErrors::new(faults)) }
    }
}

/// The process's environment as [`Config::load`] takes it. A value that is not Unicode is left out, unless it
/// sets a key: then it comes with replacement characters, which the key refuses.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        match value.into_string() {
            Ok(value) => Some((name, value)),
            Err(value) if name.starts_with(source::PREFIX) => {
                Some((name, value.to_string_lossy().into_owned()))
            }
            Err(_) => None,
        }
    })
}

impl Default for Config {
    /// The values of `config.toml`, which a test holds to these.
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            server: ServerConfig {
                listen: vec![Listen::Tcp(([127, 0, 0, 1], 8080).into())],
                drain_timeout: secs(10),
                max_connections: 100_000,
                header_timeout: secs(10),
                idle_timeout: secs(200),
                tls: None,
                cors_origins: Vec::new(),
                allowed_hosts: Vec::new(),
                trusted_proxies: Vec::new(),
            },
            admin: AdminConfig { listen: Some(Listen::Tcp(([127, 0, 0, 1], 9090).into())), token: None },
            upstream: UpstreamConfig {
                base_url: Uri::from_static("https://api.aimlapi.com"),
                api_key: None,
                poll_timeout: secs(120),
                connect_timeout: secs(5),
                connection_max_age: secs(300),
                max_jobs: 6,
                max_polls: 512,
                requests_per_second: 0,
                retries: 4,
                retry_for: secs(30),
                breaker_failures: 8,
                breaker_cooldown: secs(5),
            },
            auth: AuthConfig::Passthrough,
            wait: WaitConfig { timeout: secs(120), max_timeout: secs(600), linger: secs(2), max_jobs: 6 },
            cache: CacheConfig {
                max_bytes: 256 << 20,
                completed_ttl: secs(24 * 3600),
                error_ttl: secs(600),
                live_ttl: secs(1),
                key_recheck_interval: secs(600),
            },
            limits: LimitsConfig {
                requests_per_second: 200,
                burst: 400,
                calls_per_second: 20,
                calls_burst: 40,
                max_waits_per_key: 1000,
                max_waits: 100_000,
                max_passthrough_per_key: 256,
                max_passthrough: 4096,
                max_body: 32 << 20,
            },
            log: LogConfig { format: LogFormat::Text, level: tracing::Level::INFO },
            telemetry: TelemetryConfig { otlp_endpoint: None, sample_percent: 100 },
        }
    }
}
