//! The cache allocates at most `cache.max_bytes`. A separate test program, because its allocator counts bytes.

use std::sync::Arc;

use bytes::Bytes;
use cap::Cap;
use clipgate::core::job::{JobId, JobState, KeyDomain, ResponseHead};
use clipgate::core::job_body::{ListShape, MAX_NAME_BYTES};
use clipgate::core::route::{Route, RouteIndex};
use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::cache::Cache;
use clipgate::testing::clock;
use clipgate::testing::config::Config;
use clipgate::testing::protocol::stored_headers::split_head;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tikv_jemallocator::Jemalloc;

/// The allocator of the `clipgate` program, with a counter.
#[global_allocator]
static ALLOCATOR: Cap<Jemalloc> = Cap::new(Jemalloc, usize::MAX);

/// Serialises the tests, which share the counter.
static COUNTING: Mutex<()> = Mutex::new(());

const MAX_BYTES: u64 = 40 << 20;
const KEY: KeyDomain = KeyDomain([7; 16]);

/// Headers of a response that passed a CDN.
const FIELDS: [(&str, &str); 14] = [
    ("content-type", "application/json; charset=utf-8"),
    ("vary", "Origin, Accept-Encoding"),
    ("x-powered-by", "Express"),
    ("access-control-allow-origin", "*"),
    ("strict-transport-security", "max-age=15552000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "SAMEORIGIN"),
    ("referrer-policy", "no-referrer"),
    ("server", "cloudflare"),
    ("date", "Tue, 24 Nov 2026 20:46:15 GMT"),
    ("cf-ray", "8e7a5d3f2b1c4a6e-FRA"),
    ("x-request-id", "0f4a2c71-9d53-4f0e-8a55-0a4f3e1b2c3d"),
    ("content-length", "2048"),
    ("connection", "keep-alive"),
];

/// A kind of cached clips.
struct Case {
    name: &'static str,
    /// Length of the nth clip's body in bytes.
    body: fn(usize) -> usize,
    /// Number of clips in each response.
    listed: usize,
    /// Whether each response has different headers.
    is_head_own: bool,
}

/// Returns a completed clip of the simulated API, about 2 kB.
fn template() -> String {
    let sim = Sim::new(SimOptions::default());
    sim.set_status("ID", "completed");
    String::from_utf8(sim.body("ID", "completed").to_vec()).expect("JSON is text")
}

fn id(n: usize) -> String {
    format!("9d1f3c52-4a55-4c1e-a6f0-{n:012x}")
}

/// Returns the usual head. With a trace, the head is different from all others.
fn head(trace: Option<&str>) -> ResponseHead {
    let fields = FIELDS.into_iter().chain(trace.map(|trace| ("x-backend-trace", trace)));
    let fields: HeaderMap = fields
        .map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("the value is text"))
        })
        .collect();
    split_head(StatusCode::OK, &fields)
}

fn clips(case: &Case, template: &str, usual: &Arc<ResponseHead>, n: usize) -> Vec<JobState> {
    let texts: Vec<String> = (0..case.listed)
        .map(|k| {
            let mut text = template.replace("ID", &id(n + k));
            text.truncate((case.body)(n + k));
            text.extend(std::iter::repeat_n('x', (case.body)(n + k) - text.len()));
            text
        })
        .collect();
    let answer = Bytes::from(texts.join(","));
    let head = match case.is_head_own {
        true => Arc::new(head(Some(&id(n)))),
        false => Arc::clone(usual),
    };
    let mut at = 0;
    let state = |(k, text): (usize, &String)| {
        let body = answer.slice(at..at + text.len());
        at += text.len() + 1;
        JobState {
            id: JobId::new(&id(n + k)).expect("the id is short"),
            rung: Route::suno().ladder.rung("completed"),
            body,
            head: Arc::clone(&head),
            seen_at: clock::now(),
            as_of: clock::now(),
        }
    };
    texts.iter().enumerate().map(state).collect()
}

/// Returns the resident memory in bytes. 0 if the system does not report it.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Prints the figures of `docs/deployment.md` with `--nocapture`.
#[test]
fn the_cache_allocates_at_most_max_bytes() {
    let real = |n: usize| 1500 + n * 37 % 1000;
    let cases = [
        Case { name: "clips of 2 kB", body: real, listed: 1, is_head_own: false },
        Case { name: "slices of lists", body: real, listed: 6, is_head_own: false },
        Case { name: "each with a head of its own", body: real, listed: 1, is_head_own: true },
        Case { name: "tiny clips", body: |_| 40, listed: 1, is_head_own: false },
        Case { name: "clips of 100 kB", body: |_| 100_000, listed: 1, is_head_own: false },
    ];
    let _guard = COUNTING.lock();
    let (template, usual) = (template(), Arc::new(head(None)));
    println!("{} bytes a clip of the simulated API", template.len());
    let mut count = 0;
    for case in &cases {
        let config = Config::default().cache;
        let config = clipgate::testing::config::CacheConfig { max_bytes: MAX_BYTES, ..config };
        let (before, resident_before) = (ALLOCATOR.allocated(), resident());
        let cache = Cache::new(config, Arc::new(Route::suno().into()));
        let now = clock::now();
        cache.key_accepted(KEY, now);
        // Stores more than fits.
        let (mut n, mut stored) = (0, 0);
        while stored < MAX_BYTES + MAX_BYTES / 4 {
            for state in clips(case, &template, &usual, n) {
                stored += 700 + state.body.len() as u64;
                cache.store(KEY, &state, now, now);
                // Reads each once, because the first clone of `Bytes` allocates.
                let hit = cache.get(KEY, &state.id, now);
                drop(hit.map(|hit| (hit.entry.state.clone(), hit.entry.etag.clone())));
                n += 1;
            }
        }
        // Each call of `size` evicts a part.
        let size = loop {
            let size = cache.size();
            if size.bytes <= MAX_BYTES && size == cache.size() {
                break size;
            }
        };
        let allocated = (ALLOCATOR.allocated() - before) as u64;
        let resident = resident().saturating_sub(resident_before);
        println!(
            "{}: {} clips, weighed {}, allocated {allocated}, resident {resident}: {:.2} and {:.2} of max_bytes; {} bytes each",
            case.name,
            size.entries,
            size.bytes,
            allocated as f64 / MAX_BYTES as f64,
            resident as f64 / MAX_BYTES as f64,
            allocated / size.entries,
        );
        assert!(size.bytes > MAX_BYTES - MAX_BYTES / 20, "{}: the cache is not full: {size:?}", case.name);
        assert!(allocated <= MAX_BYTES + MAX_BYTES / 10, "{}: allocated {allocated}", case.name);
        assert!(allocated >= MAX_BYTES * 3 / 4, "{}: allocated only {allocated}", case.name);
        count += 1;
        drop(cache);
    }
    assert_eq!(count, 5);
}

#[test]
fn the_memory_of_keys_is_bounded() {
    let _guard = COUNTING.lock();
    for (name, shape, limit) in [
        ("keys", ListShape::Array, 30 << 20),
        ("keys with lists in the longest name", ListShape::Wrapped("n".repeat(MAX_NAME_BYTES)), 80 << 20),
    ] {
        let before = ALLOCATOR.allocated();
        let cache = Cache::new(Config::default().cache, Arc::new(Route::suno().into()));
        let now = clock::now();
        for n in 0..150_000_u128 {
            cache.key_accepted(KeyDomain(n.to_le_bytes()), now);
            cache.set_list_shape(KeyDomain(n.to_le_bytes()), RouteIndex::default(), &shape);
        }
        let allocated = ALLOCATOR.allocated() - before;
        println!("100 000 {name}: {allocated} allocated");
        assert!((10 << 20..limit).contains(&allocated), "{name}: {allocated}");
    }
}
