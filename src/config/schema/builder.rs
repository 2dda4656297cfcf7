//! The configuration while its keys are read, and the checks between keys.

use std::path::PathBuf;

use http::HeaderName;
use http::header::AUTHORIZATION;

use super::route::ConfiguredRoute;
use crate::config::cluster::{ClusterConfig, check_cluster};
use crate::config::error::ConfigError;
use crate::config::source::RawConfig;
use crate::config::types::{AuthMode, Config, Listen, RoutePreset, TeamMember, TlsConfig};
use crate::secret::Secret;

pub(in crate::config) struct ConfigBuilder {
    pub(super) config: Config,
    pub(super) mode: AuthModeName,
    pub(super) members: Vec<TeamMember>,
    pub(super) routes: Vec<ConfiguredRoute>,
    pub(super) cert: Option<PathBuf>,
    pub(super) cert_key: Option<PathBuf>,
    pub(super) client_ca: Option<PathBuf>,
    /// Its secret is `cluster_secret`.
    pub(super) cluster: ClusterConfig,
    pub(super) cluster_secret: Option<Secret>,
}

/// Value of `auth.mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthModeName {
    Passthrough,
    Sidecar,
    Team,
    Open,
}

pub(super) const AUTH_MODES: &[(&str, AuthModeName)] = &[
    ("passthrough", AuthModeName::Passthrough),
    ("sidecar", AuthModeName::Sidecar),
    ("team", AuthModeName::Team),
    ("open", AuthModeName::Open),
];

/// Each field of a request is looked up, so the number is small.
const MAX_KEY_FIELDS: usize = 8;

/// An error between keys, with the keys that cause it.
type CrossError = (ConfigError, &'static [&'static str]);

impl ConfigBuilder {
    pub(super) fn new() -> Self {
        Self {
            config: Config::default(),
            mode: AuthModeName::Passthrough,
            members: Vec::new(),
            routes: Vec::new(),
            cert: None,
            cert_key: None,
            client_ca: None,
            cluster: ClusterConfig::default(),
            cluster_secret: None,
        }
    }

    pub(super) fn cross_check(&self, raw: &RawConfig) -> Vec<CrossError> {
        let mut errors = Vec::new();
        let mut error = |keys: &'static [&'static str], problem: &str, hint: &str| {
            let source = raw.source(keys);
            let key = keys.iter().find(|key| raw.get(key).is_some()).or(keys.first()).copied();
            let key = key.unwrap_or_default().to_owned();
            errors.push((
                ConfigError { source, key, problem: problem.to_owned(), hint: hint.to_owned() },
                keys,
            ));
        };
        let config = &self.config;
        let time = humantime::format_duration;

        let listen = &config.server.listen;
        if listen.is_empty() {
            error(
                &["server.listen"],
                "the list is empty, so no client can connect",
                "Set at least one address.",
            );
        }
        if let Some(duplicate) =
            listen.iter().enumerate().find(|(n, at)| is_exclusive(at) && listen[..*n].contains(at))
        {
            error(&["server.listen"], &format!("{} is listed twice", duplicate.1), "Remove one of them.");
        }
        if let Some(at) = config.admin.listen.as_ref().filter(|at| is_exclusive(at) && listen.contains(at)) {
            error(
                &["admin.listen", "server.listen"],
                &format!("{at} is the address of both server.listen and admin.listen"),
                "Use different addresses for server.listen and admin.listen.",
            );
        }
        match (&self.cert, &self.cert_key, &self.client_ca) {
            (Some(_), None, _) => error(
                &["server.tls.cert", "server.tls.key"],
                "the certificate has no private key",
                "Set server.tls.key too.",
            ),
            (None, Some(_), _) => error(
                &["server.tls.key", "server.tls.cert"],
                "the private key has no certificate",
                "Set server.tls.cert too.",
            ),
            (None, None, Some(_)) => error(
                &["server.tls.client_ca", "server.tls.cert", "server.tls.key"],
                "client certificates need TLS",
                "Set server.tls.cert and server.tls.key too.",
            ),
            (Some(_), Some(_), _) | (None, None, None) => {}
        }
        if config.wait.max_timeout < config.wait.timeout {
            let problem = format!(
                "the longest wait ({}) is shorter than the default wait ({})",
                time(config.wait.max_timeout),
                time(config.wait.timeout)
            );
            error(
                &["wait.max_timeout", "wait.timeout"],
                &problem,
                "Set wait.max_timeout to at least wait.timeout.",
            );
        }
        match self.mode {
            AuthModeName::Sidecar if config.upstream.api_key.is_none() => error(
                &["auth.mode", "upstream.api_key"],
                "\"sidecar\" needs an API key for the upstream",
                "Set upstream.api_key, for example to \"env:AIMLAPI_KEY\".",
            ),
            AuthModeName::Team if self.members.is_empty() => error(
                &["auth.mode", "team.members"],
                "\"team\" needs at least one member",
                "Add a [[team.members]] with name, token_sha256 and upstream_key.",
            ),
            AuthModeName::Passthrough | AuthModeName::Sidecar | AuthModeName::Open
                if !self.members.is_empty() =>
            {
                error(
                    &["team.members", "auth.mode"],
                    "members are listed, but auth.mode is not \"team\"",
                    "Set auth.mode to \"team\" or remove the members.",
                )
            }
            AuthModeName::Passthrough | AuthModeName::Sidecar | AuthModeName::Team | AuthModeName::Open => {}
        }
        let fields = &config.auth.headers;
        if fields.is_empty() {
            error(
                &["auth.headers"],
                "the list is empty, so no request has a key",
                "Name at least one field. For an upstream without keys set auth.mode to \"open\".",
            );
        }
        if fields.len() > MAX_KEY_FIELDS {
            let problem = format!("the list has {} fields", fields.len());
            error(&["auth.headers"], &problem, &format!("Name at most {MAX_KEY_FIELDS} fields."));
        }
        if let Some((_, twice)) = fields.iter().enumerate().find(|(n, name)| fields[..*n].contains(name)) {
            error(&["auth.headers"], &format!("{twice} is listed twice"), "Remove one of them.");
        }
        let beside = &config.auth.with_key;
        if beside.len() > MAX_KEY_FIELDS {
            let problem = format!("the list has {} fields", beside.len());
            error(&["auth.with_key"], &problem, &format!("Name at most {MAX_KEY_FIELDS} fields."));
        }
        let is_key = |name: &HeaderName| {
            fields.contains(name) || *name == AUTHORIZATION || *name == config.auth.send.name
        };
        if let Some(name) = beside.iter().find(|name| is_key(name)) {
            error(
                &["auth.with_key"],
                &format!("{name} is a field for keys"),
                "List it in auth.headers alone. Fields of auth.with_key are not secret.",
            );
        }
        if let Some((_, twice)) = beside.iter().enumerate().find(|(n, name)| beside[..*n].contains(name)) {
            error(&["auth.with_key"], &format!("{twice} is listed twice"), "Remove one of them.");
        }
        if let Some((keys, problem, hint)) = check_cluster(&self.cluster, self.cluster_secret.as_ref()) {
            error(keys, &problem, hint);
        }
        errors.extend(self.routes.iter().filter_map(|route| self.check_default_wait(route)));
        errors
    }

    fn check_default_wait(&self, configured: &ConfiguredRoute) -> Option<CrossError> {
        let default_wait = configured.route.as_ref()?.default_wait;
        let longest = self.config.wait.max_timeout;
        let time = humantime::format_duration;
        let error = ConfigError {
            source: configured.default_wait.clone(),
            key: format!("{} default_wait", configured.key),
            problem: format!(
                "default_wait ({}) is longer than wait.max_timeout ({})",
                time(default_wait),
                time(longest)
            ),
            hint: "Set default_wait to at most wait.max_timeout.".to_owned(),
        };
        (default_wait > longest).then_some((error, &["wait.max_timeout"]))
    }

    pub(super) fn finish(self) -> Config {
        let mut config = self.config;
        config.server.tls = match (self.cert, self.cert_key) {
            (Some(cert), Some(key)) => Some(TlsConfig { cert, key, client_ca: self.client_ca }),
            _ => None,
        };
        config.auth.mode = match self.mode {
            AuthModeName::Passthrough => AuthMode::Passthrough,
            AuthModeName::Sidecar => AuthMode::Sidecar,
            AuthModeName::Team => AuthMode::Team(self.members),
            AuthModeName::Open => AuthMode::Open,
        };
        config.cluster = self
            .cluster_secret
            .filter(|_| !self.cluster.urls.is_empty())
            .map(|secret| ClusterConfig { secret, ..self.cluster });
        for ConfiguredRoute { route, preset, .. } in self.routes {
            let Some(route) = route else { continue };
            let of_preset =
                preset.map(|preset| RoutePreset { route: route.name.clone(), preset: preset.name.clone() });
            config.route_presets.extend(of_preset);
            config.routes.push(route);
        }
        config
    }
}

/// Returns whether only one listener can have this address. Port 0 is another port each time.
fn is_exclusive(listen: &Listen) -> bool {
    !matches!(listen, Listen::Tcp(addr) if addr.port() == 0)
}
