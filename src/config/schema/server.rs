//! The keys of `[server]`, in the order of `config.toml`.

use std::time::Duration;

use super::builder::ConfigBuilder;
use super::row::ConfigKey;
use super::row::ReloadEffect::{Applied, AppliedUnless, Restart};
use crate::config::parse::{network, path};
use crate::config::value::AllowedValues::{Described, Duration as Time, Number};
use crate::config::web::{host_pattern, origin};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

pub(in crate::config) const SERVER_KEYS: &[ConfigKey<ConfigBuilder>] = &[
    ConfigKey {
        name: "server.listen",
        default: Some(r#""127.0.0.1:8080""#),
        allowed: Described("\"ADDRESS:PORT\", \"unix:PATH\", or a list of these"),
        reload: Restart(|old, new| old.server.listen != new.server.listen),
        read: |b, r| r.list(&mut b.config.server.listen, str::parse),
        doc: "listeners for clients. Port 0: the system chooses. A unix socket has mode 0660. Sockets passed by systemd replace these listeners",
    },
    ConfigKey {
        name: "server.drain_timeout",
        default: Some(r#""10s""#),
        allowed: Time(Duration::ZERO..=HOUR),
        reload: Restart(|old, new| old.server.drain_timeout != new.server.drain_timeout),
        read: |b, r| r.duration(&mut b.config.server.drain_timeout),
        doc: "time after SIGTERM in which parked waits are answered and requests may end",
    },
    ConfigKey {
        name: "server.max_connections",
        default: Some("100000"),
        allowed: Number(1..=10_000_000),
        reload: Restart(|old, new| old.server.max_connections != new.server.max_connections),
        read: |b, r| r.number(&mut b.config.server.max_connections),
        doc: "client connections at once, half of them from one address",
    },
    ConfigKey {
        name: "server.max_headers",
        default: Some("100"),
        allowed: Number(16..=1000),
        reload: Restart(|old, new| old.server.max_headers != new.server.max_headers),
        read: |b, r| r.number(&mut b.config.server.max_headers),
        doc: "header fields of one request; more get 431",
    },
    ConfigKey {
        name: "server.header_timeout",
        default: Some(r#""10s""#),
        allowed: Time(MILLISECOND..=HOUR),
        reload: Restart(|old, new| old.server.header_timeout != new.server.header_timeout),
        read: |b, r| r.duration(&mut b.config.server.header_timeout),
        doc: "time for a request head, and for a TLS handshake",
    },
    ConfigKey {
        name: "server.idle_timeout",
        default: Some(r#""200s""#),
        allowed: Time(MILLISECOND..=HOUR),
        reload: Restart(|old, new| old.server.idle_timeout != new.server.idle_timeout),
        read: |b, r| r.duration(&mut b.config.server.idle_timeout),
        doc: "time that a connection may stay open without a request; must be longer than that of a proxy in front",
    },
    ConfigKey {
        name: "server.tls.cert",
        default: None,
        allowed: Described("a path"),
        reload: AppliedUnless(|old, new| old.server.tls.is_some() != new.server.tls.is_some()),
        read: |b, r| r.parsed(&mut b.cert, path),
        doc: "PEM file with the certificate chain of the TCP listeners. Turning TLS on or off needs a restart",
    },
    ConfigKey {
        name: "server.tls.key",
        default: None,
        allowed: Described("a path"),
        reload: Applied,
        read: |b, r| r.parsed(&mut b.cert_key, path),
        doc: "PEM file with the private key",
    },
    ConfigKey {
        name: "server.tls.client_ca",
        default: None,
        allowed: Described("a path"),
        reload: Applied,
        read: |b, r| r.parsed(&mut b.client_ca, path),
        doc: "PEM file; only clients with a certificate from this authority may connect",
    },
    ConfigKey {
        name: "server.cors_origins",
        default: Some("[]"),
        allowed: Described(
            "a list of origins such as \"https://app.example.com\" or \"tauri://localhost\"; \"*\" is any",
        ),
        reload: Applied,
        read: |b, r| r.list(&mut b.config.server.cors_origins, origin),
        doc: "web origins whose pages may read responses and use a sidecar",
    },
    ConfigKey {
        name: "server.allowed_hosts",
        default: Some("[]"),
        allowed: Described("a list of names such as \"jobs.example.com\" or \".example.com\"; \"*\" is any"),
        reload: Applied,
        read: |b, r| r.list(&mut b.config.server.allowed_hosts, host_pattern),
        doc: "further host names for a sidecar without TLS and for an admin listener without a token",
    },
    ConfigKey {
        name: "server.trusted_proxies",
        default: Some("[]"),
        allowed: Described("a list of networks such as \"10.0.0.0/8\""),
        reload: Applied,
        read: |b, r| r.list(&mut b.config.server.trusted_proxies, network),
        doc: "proxies whose `Forwarded` and `X-Forwarded-For` are trusted",
    },
];
