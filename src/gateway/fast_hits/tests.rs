//! Kept answers beside those of the ordinary way.

use std::cell::Cell;
use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use http::Version;
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, USER_AGENT, VARY};
use http_body_util::{BodyExt as _, Full};
use prometheus_client::registry::Registry;

use super::*;
use crate::auth::token_sha256;
use crate::clock;
use crate::config::{AuthMode, Config, TeamMember};
use crate::core::job::{JobId, JobState, ResponseHead};
use crate::core::route::{Ladder, PathTemplate, Route, RungSpec};
use crate::protocol::allowed_host::HostPattern;
use crate::protocol::peer::Peer;
use crate::protocol::request::{ForwardedChain, RequestId};
use crate::secret::Secret;
use crate::telemetry::log::logged_requests;
use crate::telemetry::metrics::Metrics;

const SUNO: &str = "/v2/generate/audio/suno-ai/clip";
const TARGET: &str = "/v2/generate/audio/suno-ai/clip?clip_id=a&status=completed";
const KEY: &str = "Bearer one";
const TOKEN: &str = "Bearer team-token";

struct World {
    gateway: Gateway,
    config: Config,
    /// Added to the time of arrival.
    later: Cell<Duration>,
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    /// In their order.
    fields: Vec<(String, String)>,
    body: Bytes,
    /// `r` of each quota in `RateLimit`.
    remaining: Vec<i64>,
}

impl Answer {
    fn field(&self, name: impl AsRef<str>) -> &str {
        let found = self.fields.iter().find(|(known, _)| known == name.as_ref());
        found.map_or("", |(_, value)| value.as_str())
    }

    fn is_hit(&self) -> bool {
        self.field(CACHE_STATUS).starts_with("clipgate; hit; ttl=")
    }
}

impl World {
    fn new(configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.upstream.base_url = "http://127.0.0.1:9/base".parse().unwrap();
        (config.limits.requests_per_second, config.limits.burst) = (1, 1_000_000);
        (config.limits.calls_per_second, config.limits.calls_burst) = (1_000_000, 1_000_000);
        configure(&mut config);
        // Without the hub's task each wait is rejected at once, so all answers are ready at once.
        let (gateway, _) = Gateway::new(&config, Metrics::new(&mut Registry::default())).unwrap();
        Self { gateway, config, later: Cell::new(Duration::ZERO) }
    }

    fn domain(&self, authorization: &str) -> KeyDomain {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        self.gateway.0.access.authenticator.identify(&headers).unwrap().unwrap().domain
    }

    fn store(&self, authorization: &str, id: &str, word: &str) {
        let (now, domain) = (clock::now(), self.domain(authorization));
        self.gateway.0.cache.key_accepted(domain, now);
        self.gateway.0.cache.store(domain, &self.state(id, word), now, now);
    }

    fn state(&self, id: &str, word: &str) -> JobState {
        let (_, route) = self.gateway.0.routes.iter().next().unwrap();
        let field = |name: &str, value: &'static str| (name.into(), Bytes::from_static(value.as_bytes()));
        let shared = vec![
            field("content-type", "application/json"),
            field("access-control-allow-origin", "https://upstream.example"),
            field("content-location", "http://127.0.0.1:9/base/jobs/a"),
        ];
        JobState {
            id: JobId::new(id).unwrap(),
            rung: Some(route.ladder.rung(word).unwrap()),
            body: Bytes::from(format!("{{\"id\":\"{id}\",\"status\":\"{word}\"}}")),
            head: Arc::new(ResponseHead { shared, ..ResponseHead::default() }),
            seen_at: clock::now(),
            as_of: clock::now(),
        }
    }

    fn reload(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config.clone();
        change(&mut config);
        self.gateway.reload(&config).unwrap();
    }

    fn context(&self, is_tls: bool, peer: Peer) -> RequestCtx {
        RequestCtx {
            id: RequestId::new(None),
            forwarded: ForwardedChain::from_peer(peer),
            is_tls,
            arrived: clock::now() + self.later.get(),
        }
    }

    /// Sends a request the ordinary way, or by way of the kept answers.
    fn send(&self, request: &Request<()>, ctx: &RequestCtx, is_ordinary: bool) -> Option<Answer> {
        let request = request.clone().map(|()| Full::new(Bytes::new()));
        let answered = match is_ordinary {
            true => {
                let endpoint = self.gateway.0.routes.endpoint(request.uri().path());
                let endpoint = endpoint.map(|(index, found)| (index, found.form));
                self.gateway.handle_unknown(request, ctx.clone(), endpoint, None).now_or_never()
            }
            false => self.gateway.handle(request, ctx.clone()).now_or_never(),
        };
        let (head, body) = answered?.response.into_parts();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut fields: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let remaining = head.headers.get("ratelimit").map(text).unwrap_or_default();
        let remaining = remaining
            .split("r=")
            .skip(1)
            .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap());
        fields.iter_mut().filter(|(name, _)| name == "ratelimit").for_each(|(_, value)| {
            value.retain(|character| !character.is_ascii_digit());
        });
        let body = body.collect().now_or_never()?.unwrap().to_bytes();
        Some(Answer { status: head.status, fields, body, remaining: remaining.collect() })
    }

    /// Sends the request until its answer is kept and given again.
    fn warm(&self, request: &Request<()>) {
        let before = served();
        for _ in 0..3 {
            let answer = self.again(request);
            assert!(answer.is_hit(), "{answer:?}");
        }
        assert!(served() > before, "kept at the second request, or at the first one after another gateway's");
    }

    fn again(&self, request: &Request<()>) -> Answer {
        self.send(request, &self.context(false, tcp()), false).unwrap_or_else(pending)
    }

    /// Returns the counts of requests, those of the members included.
    fn counts(&self) -> BTreeMap<String, u64> {
        let metrics = &self.gateway.0.metrics;
        let mut counts = BTreeMap::new();
        let totals = serde_json::to_value((metrics.totals(), metrics.members.usage())).unwrap();
        put_counts("", &totals, &mut counts);
        counts
    }
}

/// Stands for a request that is passed through.
fn pending() -> Answer {
    Answer { status: StatusCode::PROCESSING, fields: Vec::new(), body: Bytes::new(), remaining: Vec::new() }
}

fn put_counts(name: &str, value: &serde_json::Value, counts: &mut BTreeMap<String, u64>) {
    match value {
        serde_json::Value::Array(values) => {
            values.iter().zip(0..).for_each(|(value, n)| put_counts(&format!("{name}.{n}"), value, counts));
        }
        serde_json::Value::Object(values) => {
            values.iter().for_each(|(key, value)| put_counts(&format!("{name}.{key}"), value, counts));
        }
        value => counts.extend(value.as_u64().map(|count| (name.to_owned(), count))),
    }
}

fn tcp() -> Peer {
    Peer::Tcp(([127, 0, 0, 1], 4000).into())
}

fn get(target: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get(target).version(Version::HTTP_11);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn plain() -> Request<()> {
    get(TARGET, &[("host", "gateway"), ("authorization", KEY)])
}

fn member(name: &str, token: &str) -> TeamMember {
    TeamMember {
        name: name.to_owned(),
        token_sha256: token_sha256(token.as_bytes()),
        upstream_key: Secret::new("upstream-key"),
        requests_per_second: None,
        burst: None,
        calls_per_second: None,
        calls_burst: None,
    }
}

fn jobs_route() -> Route {
    Route {
        name: "jobs".to_owned(),
        path: PathTemplate::parse("/jobs/{id}").unwrap(),
        id_param: None,
        list: None,
        ladder: Ladder::new(vec![RungSpec::pending("waiting"), RungSpec::succeeded("completed")]),
        ..Route::never_holding()
    }
}

/// The configurations under which random requests are sent, with the words of their jobs.
fn worlds() -> Vec<World> {
    let team = || AuthMode::Team(vec![member("ann", "team-token")]);
    let sidecar = |config: &mut Config| {
        config.auth.mode = AuthMode::Sidecar;
        config.upstream.api_key = Some(Secret::new("own"));
    };
    let world = |configure: &dyn Fn(&mut Config)| World::new(configure);
    vec![
        world(&|_| {}),
        world(&|config| config.server.cors_origins = vec!["https://page.example".to_owned()]),
        world(&|config| config.auth.mode = team()),
        world(&sidecar),
        world(&|config| config.auth.mode = AuthMode::Open),
        world(&|config| config.auth.headers = vec![AUTHORIZATION, "x-api-key".parse().unwrap()]),
        world(&|config| config.auth.with_key = vec![USER_AGENT]),
        world(&|config| config.limits.requests_per_second = 0),
        world(&|config| config.routes = vec![jobs_route()]),
        world(&|config| config.routes = vec![Route { default_wait: Duration::from_secs(8), ..jobs_route() }]),
    ]
}

/// Returns a random request. Most are plain hits, with one or two of the fields that could change them.
fn random_request(rng: &mut fastrand::Rng) -> Request<()> {
    let suno = |query: &str| format!("{SUNO}{query}");
    let targets = [
        TARGET.to_owned(),
        TARGET.to_owned(),
        suno("?clip_id=a"),
        suno("?status=completed&clip_id=a"),
        suno("?clip_id=a&status=streaming"),
        suno("?clip_id=b&status=completed"),
        suno("?clip_id=none&status=completed"),
        suno("?clip_id=%61&status=completed"),
        suno("?"),
        suno(""),
        format!("{SUNO}s?clip_ids[]=a&clip_ids[]=b&status=completed"),
        format!("{SUNO}s?clip_ids[]=a&status=completed"),
        "/jobs/a".to_owned(),
        "/jobs/a?".to_owned(),
        "/jobs/b".to_owned(),
        "/".to_owned(),
    ];
    let fields = [
        ("accept", "*/*"),
        ("accept", "application/json"),
        ("accept", "text/html"),
        ("accept", "text/event-stream"),
        ("prefer", "wait=5"),
        ("prefer", "respond-async"),
        ("if-none-match", "*"),
        ("if-none-match", "\"other\""),
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=0"),
        ("cache-control", "only-if-cached"),
        ("origin", "https://page.example"),
        ("origin", "https://other.example"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("x-forwarded-host", "other.example"),
        ("x-forwarded-proto", "https"),
        ("via", "1.1 clipgate"),
        ("via", "1.1 other"),
        ("range", "bytes=0-1"),
        ("transfer-encoding", "gzip"),
        ("authorization", "Bearer two"),
        ("x-api-key", "k"),
        ("host", "other"),
        ("host", "evil.example"),
        ("user-agent", "one"),
        ("user-agent", "t\u{e9}st"),
        ("accept-encoding", "gzip"),
        ("accept-language", "de"),
        ("content-type", "application/json"),
        ("connection", "keep-alive"),
        ("x-request-id", "mine"),
        ("content-length", "0"),
        ("max-forwards", "0"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("last-event-id", "1"),
        ("cookie", "a=b"),
        ("te", "trailers"),
    ];
    let one = |rng: &mut fastrand::Rng, count: u32| rng.u32(0..count) == 0;
    let mut target = rng.choice(&targets).unwrap().clone();
    let version = *rng
        .choice([Version::HTTP_11, Version::HTTP_11, Version::HTTP_2, Version::HTTP_10].as_slice())
        .unwrap();
    if one(rng, if version == Version::HTTP_2 { 2 } else { 20 }) {
        target.insert_str(0, rng.choice(["http://gateway", "http://evil.example"]).unwrap());
    }
    let method = if one(rng, 20) { ["HEAD", "POST", "OPTIONS", "TRACE"][rng.usize(0..4)] } else { "GET" };
    let mut request = Request::builder().method(method).uri(target).version(version);
    if !one(rng, 20) {
        request =
            request.header(HOST, ["gateway", "gateway", "127.0.0.1:8080", "evil.example"][rng.usize(0..4)]);
    }
    if !one(rng, 20) {
        request =
            request.header(AUTHORIZATION, [KEY, KEY, TOKEN, "Bearer two", "Bearer unknown"][rng.usize(0..5)]);
    }
    for _ in 0..rng.usize(0..3) {
        let (name, value) = rng.choice(&fields).unwrap();
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// An answer, its access line, and the counts of the metrics that it raised.
type Observed = (Option<Answer>, Vec<String>, BTreeMap<String, u64>);

/// Sends random requests both ways, in all configurations. Compares all bytes but `r` of the quotas, which counts down,
/// the access lines but their durations, and the counts of the metrics.
#[tokio::test(start_paused = true)]
async fn a_kept_answer_is_that_of_the_ordinary_way() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    for (number, world) in worlds().into_iter().enumerate() {
        for key in [KEY, TOKEN, "Bearer two"] {
            if world.gateway.0.access.authenticator.identify(plain().headers()).is_ok() || key == TOKEN {
                world.store(key, "a", "completed");
                world.store(key, "b", "completed");
            }
        }
        let (before, mut hits) = (served(), 0);
        for turn in 0..300 {
            let request = random_request(&mut rng);
            let peer = if rng.u32(0..10) == 0 { Peer::Unix } else { tcp() };
            let mut ctx = world.context(rng.u32(0..5) == 0, peer);
            ctx.arrived += Duration::from_secs(rng.u64(0..100));
            ctx.id = RequestId::new(request.headers().get(X_REQUEST_ID));
            let mut seen: Vec<Observed> = Vec::new();
            for way in 0..4 {
                let (counts, _) = (world.counts(), logged_requests());
                let answer = world.send(&request, &ctx, way == 0);
                let mut added = world.counts();
                added.iter_mut().for_each(|(name, count)| *count -= counts.get(name).unwrap_or(&0));
                added.retain(|_, count| *count > 0);
                seen.push((answer, logged_requests(), added));
            }
            let (ordinary, kept) = seen.split_first().unwrap();
            let mut left = ordinary.0.as_ref().map(|answer| answer.remaining.clone()).unwrap_or_default();
            hits += u32::from(ordinary.0.as_ref().is_some_and(Answer::is_hit));
            for (answer, line, counts) in kept {
                let context = format!("seed {seed}, world {number}, turn {turn}: {request:?} {ctx:?}");
                assert_eq!((line, counts), (&ordinary.1, &ordinary.2), "{context}");
                match (&ordinary.0, answer) {
                    (Some(ordinary), Some(answer)) => {
                        assert_eq!(
                            (ordinary.status, &ordinary.fields),
                            (answer.status, &answer.fields),
                            "{context}"
                        );
                        // Errors have a time in their body.
                        if !ordinary.status.is_client_error() && !ordinary.status.is_server_error() {
                            assert_eq!(ordinary.body, answer.body, "{context}");
                        }
                        let used =
                            left.first().zip(answer.remaining.first()).map_or(0, |(left, now)| left - now);
                        assert!(left.len() == answer.remaining.len() && (0..=1).contains(&used), "{context}");
                        left.clone_from(&answer.remaining);
                    }
                    (ordinary, answer) => assert_eq!(ordinary, answer, "{context}"),
                }
            }
        }
        // Requests that are held for a change of the job are not answered at once.
        let holds = world.gateway.0.routes.iter().any(|(_, route)| !route.default_wait.is_zero());
        let keeps = world.gateway.0.access.authenticator.reads_authorization_only() && !holds;
        assert_eq!(served() > before, keeps, "seed {seed}, world {number}");
        assert!(hits > 10, "seed {seed}, world {number}: {hits} hits");
    }
}

/// A change of something that an answer depends on, and the next answer.
struct Change {
    name: &'static str,
    configure: fn(&mut Config),
    change: fn(&World),
    is_right: fn(&Answer) -> bool,
}

fn team_of_two(config: &mut Config) {
    config.auth.mode = AuthMode::Team(vec![member("ann", "one"), member("bob", "two")]);
}

fn sidecar(config: &mut Config) {
    config.auth.mode = AuthMode::Sidecar;
    config.upstream.api_key = Some(Secret::new("own"));
}

const CHANGES: [Change; 25] = {
    const fn row(name: &'static str, change: fn(&World), is_right: fn(&Answer) -> bool) -> Change {
        Change { name, configure: |_| {}, change, is_right }
    }
    const fn in_config(
        name: &'static str,
        configure: fn(&mut Config),
        change: fn(&World),
        is_right: fn(&Answer) -> bool,
    ) -> Change {
        Change { name, configure, change, is_right }
    }
    const NO_HIT: fn(&Answer) -> bool = |answer| !answer.is_hit();
    [
        row(
            "an operator removes the job",
            |world| _ = world.gateway.remove_cached(Some(&JobId::new("a").unwrap())),
            NO_HIT,
        ),
        row("an operator removes all jobs", |world| _ = world.gateway.remove_cached(None), NO_HIT),
        row("a 401", |world| world.gateway.0.cache.key_rejected(world.domain(KEY), clock::now()), NO_HIT),
        row(
            "a 403 to another job",
            |world| world.gateway.0.cache.key_forbidden(world.domain(KEY), &[], clock::now()),
            NO_HIT,
        ),
        row(
            "an action on the job",
            |world| {
                world.gateway.0.cache.job_changed(world.domain(KEY), &JobId::new("a").unwrap(), clock::now())
            },
            NO_HIT,
        ),
        row(
            "another state is stored",
            |world| world.store(KEY, "a", "error"),
            |answer| answer.is_hit() && answer.body.ends_with(b"\"error\"}"),
        ),
        row(
            "a sibling's state is stored",
            |world| {
                let state = world.state("a", "error");
                world.gateway.0.cache.store_shared(world.domain(KEY), &state, true, clock::now());
            },
            |answer| answer.is_hit() && answer.field(CACHE_STATUS).ends_with("; detail=sibling"),
        ),
        row(
            "a read contradicts the state",
            |world| world.gateway.0.cache.contradict(world.domain(KEY), &world.state("a", "queued")),
            NO_HIT,
        ),
        row("the state expires", |world| world.later.set(world.config.cache.completed_ttl), NO_HIT),
        row(
            "the key must be proven again",
            |world| world.later.set(world.config.cache.key_recheck_interval),
            NO_HIT,
        ),
        row(
            "the state gets older",
            |world| world.later.set(Duration::from_secs(100)),
            |answer| answer.is_hit() && answer.field(AGE) == "100",
        ),
        row(
            "a reload changes the lifetime",
            |world| world.reload(|config| config.cache.completed_ttl = Duration::from_secs(77)),
            |answer| answer.is_hit() && answer.field(CACHE_CONTROL) == "private, max-age=77",
        ),
        row(
            "a reload changes the interval of proofs",
            |world| world.reload(|config| config.cache.key_recheck_interval = Duration::ZERO),
            NO_HIT,
        ),
        row(
            "a reload allows origins",
            |world| world.reload(|config| config.server.cors_origins = vec!["*".to_owned()]),
            |answer| answer.fields.iter().any(|(name, value)| *name == VARY.as_str() && value == "Origin"),
        ),
        row(
            "a reload changes a quota",
            |world| world.reload(|config| config.limits.burst = 9),
            |answer| answer.field("ratelimit-policy").contains("q=9;") && answer.remaining[0] == 8,
        ),
        row(
            "a reload disables the quotas",
            |world| {
                world.reload(|config| {
                    (config.limits.requests_per_second, config.limits.calls_per_second) = (0, 0);
                });
            },
            |answer| answer.is_hit() && answer.field("ratelimit-policy").is_empty(),
        ),
        row(
            "another replica takes its part of the quotas",
            |world| world.gateway.0.limits.set_replicas(2, true),
            |answer| answer.is_hit() && answer.field("ratelimit-policy").contains("q=500000;"),
        ),
        row("a reload changes the mode", |world| world.reload(team_of_two), NO_HIT),
        row(
            "a reload reads another field for keys",
            |world| world.reload(|config| config.auth.headers = vec!["x-api-key".parse().unwrap()]),
            NO_HIT,
        ),
        in_config(
            "a reload removes the member",
            team_of_two,
            |world| world.reload(|config| config.auth.mode = AuthMode::Team(vec![member("bob", "two")])),
            |answer| answer.status == StatusCode::UNAUTHORIZED,
        ),
        in_config(
            "a reload changes the key of the gateway",
            sidecar,
            |world| world.reload(|config| config.upstream.api_key = Some(Secret::new("new"))),
            NO_HIT,
        ),
        in_config(
            "a reload removes the name of the gateway",
            sidecar,
            |world| world.reload(|config| config.server.allowed_hosts.clear()),
            |answer| answer.status == StatusCode::MISDIRECTED_REQUEST,
        ),
        in_config(
            "the quota is used up",
            |config| config.limits.burst = 3,
            |_| {},
            |answer| answer.status == StatusCode::TOO_MANY_REQUESTS,
        ),
        in_config(
            "the address has used up its quota",
            |config| {
                config.auth.mode = AuthMode::Open;
                config.limits.burst = 3;
            },
            |_| {},
            |answer| answer.status == StatusCode::TOO_MANY_REQUESTS,
        ),
        in_config(
            "other jobs take the room of this one",
            |config| config.cache.max_bytes = 100_000,
            |world| {
                for number in 0..2000 {
                    for _ in 0..2 {
                        world.store(KEY, &number.to_string(), "completed");
                    }
                    let id = JobId::new(&number.to_string()).unwrap();
                    (0..20).for_each(|_| _ = world.gateway.0.cache.get(world.domain(KEY), &id, clock::now()));
                }
                world.gateway.0.cache.size();
                let id = JobId::new("a").unwrap();
                assert!(world.gateway.0.cache.get(world.domain(KEY), &id, clock::now()).is_none());
                world.later.set(TOUCH_INTERVAL);
            },
            NO_HIT,
        ),
    ]
};

#[tokio::test(start_paused = true)]
async fn after_a_change_of_anything_that_it_depends_on_the_next_answer_is_right() {
    for Change { name, configure, change, is_right } in &CHANGES {
        let world = World::new(|config| {
            config.server.allowed_hosts = vec![HostPattern::Name("gate.example".to_owned())];
            configure(config);
        });
        world.store(KEY, "a", "completed");
        let request = get(TARGET, &[("host", "gate.example"), ("authorization", KEY)]);
        world.warm(&request);
        change(&world);
        let ctx = world.context(false, tcp());
        let answer = world.send(&request, &ctx, false).unwrap_or_else(pending);
        assert!(is_right(&answer), "{name}: {answer:?}");
        // The ordinary way says the same.
        let ordinary = world.send(&request, &ctx, true).unwrap_or_else(pending);
        assert_eq!(answer.status, ordinary.status, "{name}");
        let is_news = answer.field(CACHE_STATUS).ends_with("sibling");
        assert!(answer.fields == ordinary.fields || is_news || answer.status.is_client_error(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn changes_of_other_keys_and_jobs_leave_an_answer() {
    let world = World::new(|_| {});
    world.store(KEY, "a", "completed");
    world.store("Bearer two", "a", "completed");
    world.warm(&plain());
    let (cache, two) = (&world.gateway.0.cache, world.domain("Bearer two"));
    // Few enough that counters are seldom shared.
    world.store(KEY, "b", "completed");
    cache.key_rejected(two, clock::now());
    cache.key_accepted(world.domain(KEY), clock::now());
    let before = served();
    assert!(world.again(&plain()).is_hit());
    let (a, b) = (JobId::new("a").unwrap(), JobId::new("b").unwrap());
    let is_shared = cache.shares_counters([world.domain(KEY), two], [&a, &b]);
    assert!(served() > before || is_shared, "the answer is still kept");
}

#[tokio::test(start_paused = true)]
async fn repeated_fields_that_are_not_read_still_count_for_max_headers() {
    let world = World::new(|config| config.server.max_headers = 16);
    world.store(KEY, "a", "completed");
    world.warm(&plain());
    let mut request = plain();
    for _ in request.headers().len()..17 {
        request.headers_mut().append("accept-encoding", HeaderValue::from_static("x"));
    }
    let ctx = world.context(false, Peer::Tcp(([127, 0, 0, 1], 1).into()));
    let answer = world.send(&request, &ctx, false).unwrap();
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

// P11
#[tokio::test(start_paused = true)]
async fn each_key_gets_its_own_answer_and_an_unknown_one_none() {
    let world = World::new(|_| {});
    let with = |key| get(TARGET, &[("host", "gateway"), ("authorization", key)]);
    world.store(KEY, "a", "completed");
    world.warm(&with(KEY));
    assert!(!world.again(&with("Bearer two")).is_hit());
    assert!(!world.again(&with("Bearer onE")).is_hit());
    world.store("Bearer two", "a", "error");
    for _ in 0..4 {
        assert!(world.again(&with(KEY)).body.ends_with(b"\"completed\"}"));
        assert!(world.again(&with("Bearer two")).body.ends_with(b"\"error\"}"));
    }
}

#[tokio::test(start_paused = true)]
async fn any_request_after_a_change_frees_kept_keys_and_bodies() {
    let world = World::new(|_| {});
    world.store(KEY, "a", "completed");
    let kept = || TABLE.with_borrow(|table| (table.entries.len(), table.bytes));
    let models = get("/v1/models", &[("host", "gateway"), ("authorization", KEY)]);
    let changes: [fn(&World); 2] =
        [|world| world.reload(|_| {}), |world| _ = world.gateway.0.cache.remove_all()];
    for change in changes {
        world.store(KEY, "a", "completed");
        world.warm(&plain());
        let before = kept();
        // Passed through, so without an answer at once.
        let answer = world.send(&models, &world.context(false, tcp()), false);
        assert_eq!((answer, kept()), (None, before));
        change(&world);
        world.send(&models, &world.context(false, tcp()), false);
        assert_eq!(kept(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn gateways_in_one_process_do_not_share_answers() {
    let (one, two) = (World::new(|_| {}), World::new(|_| {}));
    one.store(KEY, "a", "completed");
    one.warm(&plain());
    assert!(!two.again(&plain()).is_hit());
    one.warm(&plain());
}

#[tokio::test(start_paused = true)]
async fn a_full_table_keeps_most_answers_to_requests_that_come_in_turn() {
    let world = World::new(|_| {});
    world.store(KEY, "a", "completed");
    let requests: Vec<_> = (0..MAX_ENTRIES + MAX_ENTRIES / 2)
        .map(|number| get(TARGET, &[("host", &format!("h{number}")), ("authorization", KEY)]))
        .collect();
    let rounds = [(); 4].map(|()| {
        let before = served();
        requests.iter().for_each(|request| _ = world.again(request));
        served() - before
    });
    assert!(rounds[3] > MAX_ENTRIES as u64 / 2, "{rounds:?}");
}

#[tokio::test(start_paused = true)]
async fn the_number_and_the_bytes_of_kept_answers_are_bounded() {
    let world = World::new(|_| {});
    world.store(KEY, "a", "completed");
    for number in 0..3 * MAX_ENTRIES {
        let request =
            get(&format!("{TARGET}&lastEventId={number}"), &[("host", "gateway"), ("authorization", KEY)]);
        let request = match number % 2 {
            0 => request,
            _ => get(TARGET, &[("host", &format!("h{number}")), ("authorization", KEY)]),
        };
        (0..2).for_each(|_| _ = world.send(&request, &world.context(false, tcp()), false));
    }
    TABLE.with_borrow(|table| {
        assert!((1..=MAX_ENTRIES).contains(&table.entries.len()));
        let bytes: usize = table.entries.iter().map(|(key, kept)| weight(key, kept)).sum();
        assert_eq!(table.bytes, bytes);
        assert!(bytes <= MAX_BYTES);
    });
}
