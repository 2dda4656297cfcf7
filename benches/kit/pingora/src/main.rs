//! A Pingora proxy with an in-memory cache and its cache lock, tuned for long-polls.
//!
//! ```text
//! pingora-peer LISTEN UPSTREAM SECONDS      SECONDS: time-out for the lock and for the upstream
//! ```

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pingora_cache::eviction::lru::Manager;
use pingora_cache::key::CacheKey;
use pingora_cache::lock::{CacheKeyLockImpl, CacheLock};
use pingora_cache::{CacheMeta, CacheOptionOverrides, MemCache, NoCacheReason, RespCacheable};
use pingora_core::Result;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::ResponseHeader;
use pingora_proxy::{ProxyHttp, ProxyServiceBuilder, Session};

/// The cache, which lives as long as the process.
struct Storage {
    cache: MemCache,
    eviction: Manager<16>,
    lock: Box<CacheLock>,
}

/// Pingora requires a `'static` cache.
static STORAGE: OnceLock<Storage> = OnceLock::new();

struct Peer {
    upstream: String,
    wait: Duration,
    storage: &'static Storage,
}

#[async_trait]
impl ProxyHttp for Peer {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.upstream.as_str(), false, String::new());
        peer.options.read_timeout = Some(self.wait);
        peer.options.connection_timeout = Some(Duration::from_secs(5));
        Ok(Box::new(peer))
    }

    fn request_cache_filter(&self, session: &mut Session, (): &mut ()) -> Result<()> {
        if session.req_header().uri.path().starts_with("/v2/") {
            let lock: &'static CacheKeyLockImpl = self.storage.lock.as_ref();
            let mut overrides = CacheOptionOverrides::default();
            overrides.wait_timeout = Some(self.wait);
            session.cache.enable(
                &self.storage.cache,
                Some(&self.storage.eviction),
                None,
                Some(lock),
                Some(overrides),
            );
        }
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, (): &mut ()) -> Result<CacheKey> {
        let head = session.req_header();
        let mut key = Vec::with_capacity(192);
        if let Some(authorization) = head.headers.get("authorization") {
            key.extend_from_slice(authorization.as_bytes());
        }
        key.push(0);
        key.extend_from_slice(head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
        Ok(CacheKey::new(key, String::new()))
    }

    fn response_cache_filter(
        &self,
        _: &Session,
        head: &ResponseHeader,
        (): &mut (),
    ) -> Result<RespCacheable> {
        if head.status != 200 {
            // The lock then admits one more request, not all: the best choice for long-polls.
            return Ok(RespCacheable::Uncacheable(NoCacheReason::UpstreamError));
        }
        let now = SystemTime::now();
        let meta = CacheMeta::new(now + Duration::from_secs(600), now, 0, 0, head.clone());
        Ok(RespCacheable::Cacheable(meta))
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, seconds] = &args[..] else {
        panic!("pingora-peer LISTEN UPSTREAM SECONDS");
    };
    let wait = Duration::from_secs(seconds.parse().expect("a number of seconds"));
    let storage = STORAGE.get_or_init(|| Storage {
        cache: MemCache::new(),
        eviction: Manager::with_capacity(256 << 20, 8192),
        lock: CacheLock::new_boxed(wait),
    });
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1024, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    let peer = Peer { upstream: upstream.clone(), wait, storage };
    let mut service =
        ProxyServiceBuilder::new(&server.configuration, peer).name("peer").server_options(options).build();
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}
