//! What a running gateway cannot take over from a configuration that is read again.

use super::Config;

/// A key, or a section where all of it is meant, and whether two configurations differ in it.
type Row = (&'static str, fn(&Config, &Config) -> bool);

const RESTART: &[Row] = &[
    ("server.listen", |a, b| a.server.listen != b.server.listen),
    ("server.drain_timeout", |a, b| a.server.drain_timeout != b.server.drain_timeout),
    ("server.max_connections", |a, b| a.server.max_connections != b.server.max_connections),
    ("server.header_timeout", |a, b| a.server.header_timeout != b.server.header_timeout),
    ("server.idle_timeout", |a, b| a.server.idle_timeout != b.server.idle_timeout),
    // With certificates before and after, new ones are taken over.
    ("server.tls", |a, b| a.server.tls.is_some() != b.server.tls.is_some()),
    ("admin", |a, b| a.admin != b.admin),
    ("upstream.base_url", |a, b| a.upstream.base_url != b.upstream.base_url),
    ("upstream.poll_timeout", |a, b| a.upstream.poll_timeout != b.upstream.poll_timeout),
    ("upstream.connect_timeout", |a, b| a.upstream.connect_timeout != b.upstream.connect_timeout),
    ("upstream.connection_max_age", |a, b| a.upstream.connection_max_age != b.upstream.connection_max_age),
    ("upstream.max_jobs", |a, b| a.upstream.max_jobs != b.upstream.max_jobs),
    ("upstream.max_polls", |a, b| a.upstream.max_polls != b.upstream.max_polls),
    ("upstream.requests_per_second", |a, b| a.upstream.requests_per_second != b.upstream.requests_per_second),
    ("upstream.retries", |a, b| a.upstream.retries != b.upstream.retries),
    ("upstream.retry_for", |a, b| a.upstream.retry_for != b.upstream.retry_for),
    ("upstream.breaker_failures", |a, b| a.upstream.breaker_failures != b.upstream.breaker_failures),
    ("upstream.breaker_cooldown", |a, b| a.upstream.breaker_cooldown != b.upstream.breaker_cooldown),
    ("wait.linger", |a, b| a.wait.linger != b.wait.linger),
    ("cache.max_bytes", |a, b| a.cache.max_bytes != b.cache.max_bytes),
    ("limits.max_waits_per_key", |a, b| a.limits.max_waits_per_key != b.limits.max_waits_per_key),
    ("limits.max_waits", |a, b| a.limits.max_waits != b.limits.max_waits),
    ("limits.max_passthrough_per_key", |a, b| {
        a.limits.max_passthrough_per_key != b.limits.max_passthrough_per_key
    }),
    ("limits.max_passthrough", |a, b| a.limits.max_passthrough != b.limits.max_passthrough),
    ("limits.max_body", |a, b| a.limits.max_body != b.limits.max_body),
    ("log.format", |a, b| a.log.format != b.log.format),
    ("telemetry", |a, b| a.telemetry != b.telemetry),
];

impl Config {
    /// What differs from the configuration that the gateway was started with and takes a restart.
    pub fn needs_restart(&self, running: &Self) -> Vec<&'static str> {
        RESTART.iter().filter(|(_, differ)| differ(self, running)).map(|(key, _)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    /// What is taken over while the gateway runs.
    const LIVE: [&str; 21] = [
        "server.tls.cert",
        "server.tls.key",
        "server.tls.client_ca",
        "server.cors_origins",
        "server.allowed_hosts",
        "server.trusted_proxies",
        "upstream.api_key",
        "auth.mode",
        "team.members",
        "wait.timeout",
        "wait.max_timeout",
        "wait.max_jobs",
        "cache.completed_ttl",
        "cache.error_ttl",
        "cache.live_ttl",
        "cache.key_recheck_interval",
        "limits.requests_per_second",
        "limits.burst",
        "limits.calls_per_second",
        "limits.calls_burst",
        "log.level",
    ];

    #[test]
    fn each_key_is_either_taken_over_or_named() {
        let named = |name: &str| {
            let of = |key: &str| {
                name.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            RESTART.iter().any(|(key, _)| *key != "server.tls" && of(key))
        };
        for name in schema::names() {
            assert_ne!(named(name), LIVE.contains(&name), "{name}");
        }
    }

    #[test]
    fn only_what_differs_is_named() {
        let running = Config::default();
        assert_eq!(running.needs_restart(&running), [""; 0]);
        let mut changed = running.clone();
        changed.server.max_connections = 1;
        changed.server.cors_origins.push("*".to_owned());
        changed.upstream.retries = 0;
        changed.wait.max_jobs = 7;
        assert_eq!(changed.needs_restart(&running), ["server.max_connections", "upstream.retries"]);
    }
}
