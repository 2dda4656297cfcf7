//! The dashboard in a browser: figures, updates without a reload, accessibility.
//!
//! Needs Chromium and its driver: `make tools`. Screenshots are written to `target/dashboard/`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clipgate::core::route::{Ladder, PathTemplate, Route, RungSpec};
use clipgate::sim::{Fault, FaultTarget};
use http::Response;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admin_client::AdminClient;
use crate::harness::browser::{Browser, DESKTOP, Viewport};
use crate::harness::command::{ClipgateProcess, run};
use crate::harness::gateway::{TestGateway, clip_target, clips_target};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target};
use crate::harness::raw_http::CLIP;
use crate::harness::scripted_upstream::ScriptedUpstream;

const WALL: Viewport = Viewport { width: 1920, height: 1080, is_dark: true };
const PHONE: Viewport = Viewport { width: 360, height: 740, is_dark: false };

/// A gateway process with an admin listener, in front of a simulated upstream.
pub(super) struct Site {
    pub(super) test_env: TestEnv,
    pub(super) gateway: GatewayProcess,
    pub(super) address: SocketAddr,
    pub(super) page: String,
}

impl Site {
    pub(super) async fn new(env: &[(&str, &str)]) -> Self {
        Self::configured("", env).await
    }

    /// Starts a gateway with these lines of configuration.
    pub(super) async fn configured(lines: &str, env: &[(&str, &str)]) -> Self {
        let test_env = TestEnv::new().await;
        test_env.configure(lines);
        let (gateway, address, page) = start(&test_env, "127.0.0.1:0", env).await;
        Self { test_env, gateway, address, page }
    }

    /// Sends a request on a new connection, in a task.
    pub(super) fn wait(&self, target: &str, key: &str) -> AbortOnDropHandle<Response<Bytes>> {
        let (address, target, key) = (self.address, target.to_owned(), format!("Bearer {key}"));
        let response = async move {
            let request =
                http::Request::get(target).header("host", "gw.example").header("authorization", key);
            TestClient::connect(address).await.send(request.body(Default::default()).unwrap()).await.unwrap()
        };
        AbortOnDropHandle::new(tokio::spawn(response))
    }

    pub(super) async fn get(&self, target: &str) -> Response<Bytes> {
        self.wait(target, "demo").await.unwrap()
    }
}

async fn start(
    test_env: &TestEnv,
    admin: &str,
    env: &[(&str, &str)],
) -> (GatewayProcess, SocketAddr, String) {
    let mut command = test_env.command();
    command.env("CLIPGATE__ADMIN__LISTEN", admin).envs(env.iter().copied());
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let line = gateway.next_line().await;
    let admin = line.strip_prefix("clipgate admin listening on ").unwrap_or_else(|| panic!("{line}"));
    (gateway, address, format!("http://{admin}/"))
}

impl Browser {
    /// Waits for the value of a tile: 1 waits, 2 polls, 3 cached jobs, 4 the API.
    pub(super) async fn until_tile(&mut self, position: usize, value: &str) {
        self.wait_until_text(&format!("#tiles > :nth-child({position}) .value"), value).await;
    }

    /// Returns the table of a plot: the total of each row by name.
    async fn totals(&mut self, plot: &str) -> Value {
        let rows = format!("[...document.querySelectorAll('#{plot}-table tbody tr')]");
        let pair = "(row) => [row.cells[0].textContent, Number(row.cells[3].textContent)]";
        self.eval(&format!("Object.fromEntries({rows}.map({pair}))")).await
    }

    /// Returns the texts of a table, row by row and cell by cell.
    pub(super) async fn rows(&mut self, table: &str) -> Vec<Vec<String>> {
        let cells = "(row) => [...row.cells].map((cell) => cell.textContent)";
        let rows = format!("[...document.querySelectorAll('#{table} tbody tr')].map({cells})");
        serde_json::from_value(self.eval(&rows).await).unwrap()
    }

    pub(super) async fn assert_no_faults(&mut self) {
        let faults = self.errors().await;
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

fn curl(args: &[&str]) -> String {
    const ALL: [&str; 5] =
        ["--silent", "--show-error", "--globoff", "--header", "Authorization: Bearer demo"];
    run("curl", "curl", &[&ALL[..], args].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_requests_that_were_sent_without_a_reload() {
    let args = ["serve", "--sim", "--speed", "40", "--listen", "127.0.0.1:0"];
    let mut gateway = ClipgateProcess::start(&args, &[("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0")]);
    let base = format!("http://{}", gateway.ready());
    let admin = gateway.next_line();
    let page = format!("http://{}/", admin.strip_prefix("clipgate admin listening on ").unwrap());
    let mut browser = Browser::start();
    assert_eq!(browser.open(&page, DESKTOP, None).await, 200);
    browser.wait_until_text("#link-text", "live").await;
    assert_eq!(browser.text("#hint-title").await, "No request yet");
    let example = browser.text("#hint-code").await;
    assert!(example.starts_with("curl ") && example.contains(&base), "{example}");
    assert_eq!(browser.text("#saved-share").await, "Nothing yet");
    browser.screenshot("empty").await;
    browser.eval("window.isSamePage = true").await;

    // Runs the commands that the page shows: they create two clips.
    let ids: Value = serde_json::from_str(&run("bash", "bash", &["-c", &example])).unwrap();
    let id = ids["clip_ids"][0].as_str().unwrap().to_owned();
    browser.wait_until("document.querySelector('#hint').hidden").await;

    let target = format!("{base}{CLIP}?clip_id={id}&status=completed");
    let wait = || {
        let target = target.clone();
        tokio::task::spawn_blocking(move || curl(&["--include", &target]))
    };
    let waits = [wait(), wait(), wait()];
    let mut responses = Vec::new();
    for wait in waits {
        responses.push(wait.await.unwrap());
    }
    let rejected = format!("{base}{CLIP}?clip_id=");
    let passed = format!("{base}/v1/models");
    responses.extend([&target, &target, &rejected, &passed].map(|target| curl(&["--include", target])));
    // The number of coalesced waits depends on timing: the responses say how many the page must show.
    let count = |case: &str| {
        responses.iter().filter(|response| response.contains(&format!("clipgate; {case}"))).count()
    };
    let (hits, coalesced) = (count("hit"), count("fwd=miss; collapsed"));
    let opened = count("fwd=miss; fwd-status");
    assert!(hits >= 2 && hits + coalesced + opened == 5 && count("detail=empty-id") == 1, "{responses:#?}");
    let (passed, saved) = (count("fwd=bypass") + 1, hits + coalesced);

    browser.wait_until_text("#requests-table tfoot td:last-child", "8").await;
    let requests = json!({
        "From the cache": hits, "Answered from proof": 0, "Coalesced": coalesced, "Opened a poll": opened,
        "Passed through": passed, "Rejected": 1, "Event streams": 0, "Client closed, preflights": 0,
    });
    assert_eq!(browser.totals("requests").await, requests);
    let calls = json!({ "Polls": opened, "Snapshots": 0, "Passed through": passed, "Saved": saved });
    assert_eq!(browser.totals("calls").await, calls);
    let causes = browser.rows("causes").await;
    assert_eq!(causes, [["Wait for a job", &*opened.to_string()], ["Passed through", &*passed.to_string()]]);
    assert_eq!(browser.text("#saved-count").await, saved.to_string());
    assert_eq!(browser.text("#made-count").await, (opened + passed).to_string());
    let share = 100.0 * saved as f64 / (saved + opened + passed) as f64;
    assert_eq!(browser.text("#saved-share").await, format!("{share:.0} %"));
    browser.until_tile(1, "0").await;
    browser.until_tile(3, "1").await;
    browser.until_tile(4, "✓ answering").await;
    browser.until_tile(5, "100 %").await;
    let fanout = browser.text("#tiles > :nth-child(6) .value").await;
    assert!(fanout.contains(" / "), "{fanout}");
    assert_eq!(browser.rows("rejections").await, [["empty-id", "1"]]);
    assert_eq!(browser.text("#today-calls").await, saved.to_string());
    assert!(browser.text("#today-held").await.ends_with(" h"));
    assert_eq!(browser.eval("document.querySelector('#members-panel').hidden").await, true);
    let summary = browser.eval("document.querySelector('#calls-plot').ariaLabel").await;
    assert!(summary.as_str().unwrap().contains(&format!("saved {saved}")), "{summary}");

    assert_eq!(browser.eval("window.isSamePage").await, true, "the page was not reloaded");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn jobs_and_keys_have_rows_and_ids_are_shown_as_text() {
    const EVIL: &str = "<img src=x onerror=document.title='gotcha'>";
    let encoded: String = EVIL.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let site = Site::new(&[]).await;
    for id in [EVIL, "b"] {
        site.test_env.sim.set_status(id, "queued");
    }
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    let _waits =
        [&completed_target(&encoded), &completed_target(&encoded)].map(|target| site.wait(target, "key-1"));
    let _slow = site.wait(&completed_target("b"), "key-2");
    browser.until_tile(1, "3").await;
    browser.until_tile(2, "2").await;
    assert_eq!(browser.eval("document.querySelector('#hint').hidden").await, true, "there are requests");
    let _fast = site.wait(&clip_target("b", "streaming"), "key-2");
    browser.until_tile(2, "3").await;
    // The rung of a job is known from the first response of a poll.
    assert_eq!(site.wait(&clip_target(&encoded, "queued"), "key-1").await.unwrap().status(), 200);
    browser.wait_until("document.querySelectorAll('#jobs tbody tr').length === 2").await;
    browser.wait_until("document.querySelector('#jobs').textContent.includes('queued')").await;

    let rows = browser.rows("jobs").await;
    let evil = rows.iter().position(|row| row[0].contains(EVIL)).expect("the id is shown as text");
    assert_eq!(rows[evil][1..4], ["queued", "2", "1"]);
    assert_eq!(rows[1 - evil][1..4], ["unknown", "2", "2"]);
    let steps = "(row) => [...row.querySelectorAll('.ladder > *')].map((step) => step.dataset.step)";
    let steps = browser.eval(&format!("[...document.querySelectorAll('#jobs tbody tr')].map({steps})")).await;
    assert_eq!(steps[evil], json!(["reached", "reached", "ahead", "asked"]));
    assert_eq!(steps[1 - evil], json!(["ahead", "ahead", "asked", "asked"]));
    assert_eq!(browser.eval("document.querySelectorAll('main img').length").await, 0);
    assert_ne!(browser.eval("document.title").await, "gotcha");
    assert_eq!(browser.text("#jobs-count").await, "2");

    let keys = browser.rows("keys").await;
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(|row| row[3] == "2" && !row[0].contains("key-")), "{keys:?}");
    let known: Vec<_> = keys.iter().filter(|row| row[1] != "–").collect();
    assert!(known.len() == 1 && known[0][1].ends_with(" of 400"), "one key is proven: {keys:?}");

    site.test_env.sim.set_status(EVIL, "complete");
    browser.wait_until("document.querySelectorAll('#jobs tbody tr').length === 1").await;
    browser.until_tile(1, "2").await;
    let requests = browser.totals("requests").await;
    assert_eq!((&requests["Coalesced"], &requests["Opened a poll"]), (&json!(1), &json!(2)));
    assert_eq!(
        (browser.text("#saved-count").await, browser.text("#made-count").await),
        ("1".into(), "2".into())
    );
    browser.assert_no_faults().await;
}

/// Returns a route of an API that never holds.
fn route(name: &str, path: &str) -> Route {
    Route {
        name: name.to_owned(),
        path: PathTemplate::parse(path).unwrap(),
        id_param: None,
        list: None,
        ladder: Ladder::new(vec![
            RungSpec::pending("starting"),
            RungSpec::pending("processing"),
            RungSpec::succeeded("succeeded"),
            RungSpec::failed("failed"),
        ]),
        hold: Duration::ZERO,
        pace: Duration::from_millis(500),
        max_pace: Duration::from_secs(5),
        is_built_in: false,
        ..Route::suno()
    }
}

#[tokio::test]
async fn jobs_of_several_routes_have_the_name_of_theirs_and_the_routes_their_pace() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 32\r\n\r\n\
        {\"id\":\"x\",\"status\":\"processing\"}";
    let upstream = ScriptedUpstream::answering(ANSWER).await;
    let mut gateway = TestGateway::with(|config, _| {
        config.upstream.base_url = upstream.url.clone();
        config.wait.timeout = Duration::from_secs(60);
        config.routes = vec![
            route("predictions", "/v1/predictions/{id}"),
            Route {
                pace: Duration::from_secs(3),
                max_pace: Duration::from_secs(3),
                ..route("renders", "/v1/{project}/renders/{id}")
            },
        ];
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", admin.address), DESKTOP, None).await;
    browser.wait_until_text("#link-text", "live").await;
    // Two jobs with one id on one route are two jobs.
    let targets = ["/v1/predictions/x", "/v1/p/renders/x", "/v1/q/renders/x"];
    let _waits = targets.map(|path| gateway.spawn_get(&format!("{path}?status=succeeded"), &[]));
    browser.until_tile(1, "3").await;
    browser.wait_until("document.querySelectorAll('#jobs tbody tr').length === 3").await;
    let known =
        "[...document.querySelectorAll('#jobs .rung .name')].filter((of) => of.textContent === 'processing')";
    browser.wait_until(&format!("{known}.length === 3")).await;
    let mut heads: Vec<String> = browser.rows("jobs").await.into_iter().map(|row| row[0].clone()).collect();
    heads.sort_unstable();
    assert!(heads[0].starts_with("xpredictions · "), "{heads:?}");
    assert!(heads[1..].iter().all(|head| head.starts_with("xrenders · ")), "{heads:?}");
    assert_eq!(
        browser.text("#routes").await,
        "predictions never holds: polled every 0.5 to 5 s · renders never holds: polled every 3 s"
    );
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.screenshot("routes").await;
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn an_unreachable_api_is_announced_once() {
    let env = [
        ("CLIPGATE__UPSTREAM__BREAKER_FAILURES", "1"),
        ("CLIPGATE__UPSTREAM__BREAKER_COOLDOWN", "600s"),
        ("CLIPGATE__UPSTREAM__RETRY_FOR", "0s"),
    ];
    let site = Site::new(&env).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    browser.wait_until_text("#link-text", "live").await;
    assert_eq!(browser.text("#notice").await, "");
    assert_eq!(browser.eval("document.querySelector('#notice').role").await, "status");
    let observe = "window.announcements = 0; new MutationObserver(() => window.announcements++).observe(
        document.querySelector('#notice'), { childList: true, characterData: true, subtree: true }); null";
    browser.eval(observe).await;

    site.test_env.sim.set_status("cached", "completed");
    assert_eq!(site.get(&completed_target("cached")).await.status(), 200);
    site.test_env.sim.set_status("a", "queued");
    site.test_env.sim.fault(FaultTarget::Polls, Fault::reset(), 1);
    assert_eq!(site.get(&completed_target("a")).await.status(), 502);
    browser.until_tile(4, "✕ unreachable").await;
    let notice = browser.text("#notice").await;
    assert!(notice.contains("retries are delayed"), "{notice}");
    browser.screenshot("unreachable").await;
    // Two more states do not change the notice.
    browser.until_two_more_states().await;
    assert_eq!(browser.eval("window.announcements").await, 1);
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.assert_no_faults().await;
}

impl Browser {
    pub(super) async fn until_two_more_states(&mut self) {
        const AGAIN: &str = "(() => { const states = new EventSource('api/events'); window.states = 0;
            states.addEventListener('state', () => ++window.states === 3 && states.close()); })()";
        self.eval(AGAIN).await;
        self.wait_until("window.states >= 3").await;
    }
}

#[tokio::test]
async fn without_the_gateway_the_page_is_stale_until_a_new_gateway_starts() {
    let mut site = Site::new(&[]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    site.get("/v1/models").await;
    browser.wait_until_text("#made-count", "1").await;
    site.gateway.signal("TERM");
    assert!(site.gateway.wait_for_exit().await.success());
    browser.wait_until("document.body.dataset.link === 'stale'").await;
    let link = browser.text("#link-text").await;
    let time = link.strip_prefix("stale since ").unwrap_or_else(|| panic!("{link}"));
    assert!(time.len() == 8 && time.split(':').count() == 3, "{link}");
    assert_eq!(browser.text("#made-count").await, "1", "the last values stay");
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.screenshot("stale").await;

    let admin = site.page.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let (_gateway, ..) = start(&site.test_env, &admin, &[]).await;
    browser.wait_until_text("#link-text", "live").await;
    browser.wait_until_text("#made-count", "0").await;
    browser.wait_until("!document.querySelector('#hint').hidden").await;
}

#[tokio::test]
async fn the_page_is_accessible_in_all_sizes_and_colour_schemes() {
    let site = Site::new(&[]).await;
    let (_waits, done) = busy(&site).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    browser.until_tile(1, "14").await;
    browser.wait_until_text("#requests-table tfoot td:last-child", &done.to_string()).await;
    let looks = [
        ("light", DESKTOP),
        ("dark", Viewport { is_dark: true, ..DESKTOP }),
        ("phone", PHONE),
        ("phone-dark", Viewport { is_dark: true, ..PHONE }),
        ("wall", WALL),
        ("wall-light", Viewport { is_dark: false, ..WALL }),
    ];
    let mut backgrounds = BTreeSet::new();
    for (name, look) in looks {
        browser.set_viewport(look, true).await;
        let wide = browser.eval("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= look.width.into(), "{name}: {wide} px wide");
        let (broken, kept) = browser.accessibility().await;
        assert!(broken.is_empty() && kept > 30, "{name}: {broken:#?}");
        let background = browser.eval("getComputedStyle(document.body).backgroundColor").await.to_string();
        backgrounds.insert((look.is_dark, background));
        let moving = "document.getAnimations().filter((of) => of.playState === 'running').length";
        assert_eq!(browser.eval(moving).await, 0, "{name}: no animation with reduced motion");
        browser.screenshot(name).await;
    }
    assert_eq!(backgrounds.len(), 2, "{backgrounds:?}");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn landmarks_and_tables_have_names_and_the_keyboard_reaches_scrolling_regions() {
    let site = Site::new(&[]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    browser.wait_until("!document.querySelector('#hint').hidden").await;
    let count = |of: &str| format!("document.querySelectorAll('{of}').length");
    for (of, is) in [("header, main, footer", 3), ("h1", 1), ("main section", 11), ("h2", 11), ("table", 8)] {
        assert_eq!(browser.eval(&count(of)).await, is, "{of}");
    }
    let unnamed = "[...document.querySelectorAll('section')].filter((section) => {
        const title = document.getElementById(section.getAttribute('aria-labelledby'));
        return !title?.textContent.trim() || !section.contains(title);
    }).length";
    assert_eq!(browser.eval(unnamed).await, 0);
    let unlabelled =
        "[...document.querySelectorAll('table')].filter((table) => !table.caption?.textContent.trim()
        || !table.querySelector('th[scope=col]')).length";
    assert_eq!(browser.eval(unlabelled).await, 0);

    let (_waits, _) = busy(&site).await;
    browser.until_tile(1, "14").await;
    let mut reached = Vec::new();
    for _ in 0..12 {
        browser.press("Tab").await;
        let label = "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()";
        reached.push(browser.eval(label).await.as_str().unwrap().to_owned());
        let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle").await;
        assert_eq!(outline, "solid", "{reached:?}");
        if reached.last().is_some_and(|last| last.starts_with("uPlot")) {
            break;
        }
    }
    let links = ["metrics", "state as JSON", "health", "readiness", "uPlot, MIT"];
    let switches = ["5 min", "15 min", "Dark"];
    assert_eq!(
        reached,
        [&switches[..], &["Tables of causes and reasons", "Table of jobs", "Table of keys"], &links].concat()
    );

    browser.hover("#requests-plot .u-over").await;
    browser
        .wait_until("/^\\d\\d:\\d\\d:\\d\\d$/.test(document.querySelector('#requests-table th').textContent)")
        .await;
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn a_long_list_has_a_filter_that_shows_the_number_of_its_rows() {
    let site = Site::new(&[]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    let ids: Vec<String> = (0..20).map(|n| format!("job-{n:02}")).collect();
    for id in &ids {
        site.test_env.sim.set_status(id, "queued");
    }
    let _waits: Vec<_> = ids.iter().map(|id| site.wait(&completed_target(id), "demo")).collect();
    browser.wait_until_text("#jobs-count", "20").await;
    let drawn = "document.querySelectorAll('#flow .node').length";
    browser
        .wait_until(&format!(
            "document.querySelector('#flow-count').textContent === `${{{drawn}}} of 20 jobs` && {drawn} >= 6"
        ))
        .await;
    let filter = "(() => { const box = document.querySelector('#jobs-filter'); box.value = 'JOB-07';
        box.dispatchEvent(new Event('input')); return box.hidden; })()";
    assert_eq!(browser.eval(filter).await, false);
    assert_eq!(browser.text("#jobs-count").await, "1 of 20");
    assert_eq!(browser.rows("jobs").await.len(), 1);
    browser.until_two_more_states().await;
    assert_eq!(browser.text("#jobs-count").await, "1 of 20", "the filter stays");
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn the_chosen_theme_is_kept_and_the_plots_cover_5_or_15_minutes() {
    let site = Site::new(&[]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    browser.wait_until_text("#link-text", "live").await;
    const GROUND: &str = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(GROUND).await;
    browser.eval("document.querySelector('#theme').click()").await;
    browser.wait_until("document.querySelector('#theme').ariaPressed === 'true'").await;
    let dark = browser.eval(GROUND).await;
    assert_ne!(light, dark);
    assert_eq!(browser.eval("localStorage.getItem('clipgate-theme')").await, "dark");

    browser.wait_until_text("#link-text", "live").await;
    browser.wait_until_text("#requests-table thead th:nth-child(3)", "5 min").await;
    browser.eval("document.querySelector('[data-minutes=\"15\"]').click()").await;
    browser.wait_until_text("#requests-table thead th:nth-child(3)", "15 min").await;
    let summary = browser.eval("document.querySelector('#calls-plot').ariaLabel").await;
    assert!(summary.as_str().unwrap().contains("last 15 minutes"), "{summary}");
    browser.assert_no_faults().await;
}

/// Sends hits, waits of two keys, passed-through requests and a rejected one. Returns the waits, and the number of
/// ended requests.
pub(super) async fn busy(site: &Site) -> (Vec<AbortOnDropHandle<Response<Bytes>>>, usize) {
    let (sim, uuid) = (&site.test_env.sim, |n: u32| format!("18aaba72-1ea9-4e4c-8c22-86c72e27e4{n:02x}"));
    let mut ended = 0;
    for n in 0..4 {
        sim.set_status(&uuid(n), "complete");
        for _ in 0..=3 * n {
            assert_eq!(site.get(&completed_target(&uuid(n))).await.status(), 200);
            ended += 1;
        }
    }
    for target in ["/v1/models", "/v1/models", &completed_target("")] {
        site.get(target).await;
        ended += 1;
    }
    let mut waits = Vec::new();
    for (n, (word, waiting)) in (0..).zip([("submitted", 1), ("queued", 4), ("streaming", 2), ("queued", 3)])
    {
        let (id, key) = (uuid(0x10 + n), if n % 2 == 0 { "demo" } else { "other" });
        sim.set_status(&id, word);
        waits.extend((0..waiting).map(|_| site.wait(&completed_target(&id), key)));
        assert_eq!(site.wait(&clip_target(&id, word), key).await.unwrap().status(), 200);
        ended += 1;
    }
    let pair = [uuid(0x10), uuid(0x12)];
    let pair = clips_target(&[&pair[0], &pair[1]], "completed");
    waits.extend((0..4).map(|_| site.wait(&pair, "demo")));
    (waits, ended)
}

#[tokio::test]
async fn with_a_token_the_browser_logs_in_and_loads_the_whole_page() {
    let site = Site::new(&[("CLIPGATE__ADMIN__TOKEN", "s3cret")]).await;
    let admin = AdminClient::at(site.page[7..].trim_end_matches('/').parse().unwrap());
    for path in ["/", "/dashboard/dashboard.js", "/dashboard/uplot/LICENSE"] {
        assert_eq!(admin.get(path).await.status(), 401, "{path}");
    }
    let mut browser = Browser::start();
    assert_eq!(browser.open(&site.page, DESKTOP, Some(["ops", "s3cret"])).await, 200);
    browser.wait_until_text("#link-text", "live").await;
    site.get("/v1/models").await;
    browser.wait_until_text("#made-count", "1").await;
}
