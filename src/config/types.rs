//! The validated configuration: durations are durations, secrets are read, all bounds hold.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Uri};
use ipnet::IpNet;

use super::cluster::ClusterConfig;
use crate::core::route::{Route, Routes};
use crate::protocol::allowed_host::HostPattern;
use crate::secret::{Secret, TokenHash};

/// One struct for each section of `config.toml`. The table in `schema/keys.rs` describes each key.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub upstream: UpstreamConfig,
    /// `[auth]` and `[[team.members]]`.
    pub auth: AuthConfig,
    pub wait: WaitConfig,
    pub cache: CacheConfig,
    pub limits: LimitsConfig,
    /// `None` without `cluster.url`: this is the only replica.
    pub cluster: Option<ClusterConfig>,
    pub log: LogConfig,
    pub telemetry: TelemetryConfig,
    /// `[[routes]]`. Empty: the built-in route.
    pub routes: Vec<Route>,
    /// The routes that have the keys of a preset.
    pub route_presets: Vec<RoutePreset>,
}

/// A route and the preset that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePreset {
    pub route: String,
    pub preset: String,
}

/// Address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `ADDRESS:PORT`
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

#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Never empty.
    pub listen: Vec<Listen>,
    pub drain_timeout: Duration,
    pub max_connections: usize,
    /// Header fields of one request.
    pub max_headers: usize,
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub tls: Option<TlsConfig>,
    /// Origins as browsers send them, or `*`.
    pub cors_origins: Vec<String>,
    pub allowed_hosts: Vec<HostPattern>,
    pub trusted_proxies: Vec<IpNet>,
}

/// Paths of PEM files. Reading the configuration does not open them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    /// `None` disables the admin listener.
    pub listen: Option<Listen>,
    pub token: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// `http` or `https`, an authority without userinfo, an optional path prefix, no query.
    pub base_url: Uri,
    pub api_key: Option<Secret>,
    pub poll_timeout: Duration,
    /// Time for the answer to a poll that is not held.
    pub request_timeout: Duration,
    pub connect_timeout: Duration,
    pub connection_max_age: Duration,
    pub max_jobs: usize,
    pub max_polls: usize,
    /// 0: no limit.
    pub requests_per_second: u32,
    /// 0: no limit.
    pub requests_per_second_per_key: u32,
    pub retries: u32,
    pub retry_for: Duration,
    pub breaker_failures: u32,
    pub breaker_cooldown: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AuthConfig {
    pub mode: AuthMode,
    /// The request fields with a client's key or token. Never empty.
    pub headers: Vec<HeaderName>,
    /// Request fields that go with a key and are none, such as a version.
    pub with_key: Vec<HeaderName>,
    /// Field of a key of the gateway's own.
    pub send: KeyTemplate,
}

/// Origin of the credentials that the upstream receives.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthMode {
    /// The client's own API key.
    Passthrough,
    /// `upstream.api_key`, for every request.
    Sidecar,
    /// The API key of the member whose token the client sends.
    Team(Vec<TeamMember>),
    /// None: the upstream needs no key.
    Open,
}

impl AuthConfig {
    /// Returns the members of a team; none in the other modes.
    pub fn members(&self) -> &[TeamMember] {
        match &self.mode {
            AuthMode::Passthrough | AuthMode::Sidecar | AuthMode::Open => &[],
            AuthMode::Team(members) => members,
        }
    }
}

/// A request field with a placeholder for a key: `NAME: before{key}after`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    pub name: HeaderName,
    pub before: String,
    pub after: String,
}

impl KeyTemplate {
    /// Returns the field with this key. `Debug` does not show its value. `None`: a header cannot have the key.
    pub fn field(&self, key: &Secret) -> Option<(HeaderName, HeaderValue)> {
        let mut value = HeaderValue::try_from([&self.before, key.expose(), &self.after].concat()).ok()?;
        value.set_sensitive(true);
        Some((self.name.clone(), value))
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{{key}}{}", self.name, self.before, self.after)
    }
}

impl Default for KeyTemplate {
    fn default() -> Self {
        Self { name: AUTHORIZATION, before: "Bearer ".to_owned(), after: String::new() }
    }
}

/// One `[[team.members]]`. Quotas that are `None` are those of `[limits]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TeamMember {
    pub name: String,
    pub token_sha256: TokenHash,
    pub upstream_key: Secret,
    pub requests_per_second: Option<u32>,
    pub burst: Option<u32>,
    pub calls_per_second: Option<u32>,
    pub calls_burst: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WaitConfig {
    pub timeout: Duration,
    /// At least `timeout`.
    pub max_timeout: Duration,
    pub linger: Duration,
    /// Zero: no watches.
    pub watch_idle: Duration,
    pub max_jobs: usize,
}

/// Lifetimes of zero disable caching.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheConfig {
    pub max_bytes: u64,
    pub completed_ttl: Duration,
    pub error_ttl: Duration,
    pub live_ttl: Duration,
    /// Zero: no responses from proof.
    pub proven_ttl: Duration,
    pub key_recheck_interval: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LimitsConfig {
    pub requests_per_second: u32,
    pub burst: u32,
    pub calls_per_second: u32,
    pub calls_burst: u32,
    pub max_waits_per_key: usize,
    pub max_waits: usize,
    pub max_passthrough_per_key: usize,
    pub max_passthrough: usize,
    /// In bytes.
    pub max_body: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: tracing::Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// One object per line.
    Json,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// `None` disables traces.
    pub otlp_endpoint: Option<Uri>,
    pub sample_percent: u8,
}

impl Config {
    /// Returns the routes of the gateway: those of `[[routes]]`, or the built-in one.
    pub fn routes(&self) -> Routes {
        match self.routes.as_slice() {
            [] => Route::suno_held_for(self.upstream.poll_timeout).into(),
            routes => Routes::new(routes.to_vec()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            server: ServerConfig {
                listen: vec![Listen::Tcp(([127, 0, 0, 1], 8080).into())],
                drain_timeout: secs(10),
                max_connections: 100_000,
                max_headers: 100,
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
                request_timeout: secs(30),
                connect_timeout: secs(5),
                connection_max_age: secs(300),
                max_jobs: 6,
                max_polls: 512,
                requests_per_second: 0,
                requests_per_second_per_key: 0,
                retries: 4,
                retry_for: secs(30),
                breaker_failures: 8,
                breaker_cooldown: secs(5),
            },
            auth: AuthConfig {
                mode: AuthMode::Passthrough,
                headers: vec![AUTHORIZATION],
                with_key: Vec::new(),
                send: KeyTemplate::default(),
            },
            wait: WaitConfig {
                timeout: secs(120),
                max_timeout: secs(600),
                linger: secs(2),
                watch_idle: secs(20),
                max_jobs: 6,
            },
            cache: CacheConfig {
                max_bytes: 256 << 20,
                completed_ttl: secs(24 * 3600),
                error_ttl: secs(600),
                live_ttl: secs(1),
                proven_ttl: secs(30),
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
            cluster: None,
            log: LogConfig { format: LogFormat::Text, level: tracing::Level::INFO },
            telemetry: TelemetryConfig { otlp_endpoint: None, sample_percent: 100 },
            routes: Vec::new(),
            route_presets: Vec::new(),
        }
    }
}
