//! The dashboard, in a browser: what it shows is what was sent, it follows by itself, and everybody can read it.
//!
//! Needs Chromium, and what drives it: `make tools`. Pictures of the page are left in `target/dashboard/`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use clipgate::sim::{Fault, FaultTarget};
use http::Response;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admin_client::AdminClient;
use crate::harness::browser::{Browser, DESKTOP, Viewport};
use crate::harness::command::{ClipgateProcess, run};
use crate::harness::gateway::{clip_target, clips_target};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target};
use crate::harness::raw_http::CLIP;

const WALL: Viewport = Viewport { width: 1920, height: 1080, is_dark: true };
const PHONE: Viewport = Viewport { width: 360, height: 740, is_dark: false };

/// A gateway of a process of its own with its admin listener, before a simulated upstream that does as it is told.
struct Site {
    ground: TestEnv,
    gateway: GatewayProcess,
    address: SocketAddr,
    page: String,
}

impl Site {
    async fn new(env: &[(&str, &str)]) -> Self {
        let ground = TestEnv::new().await;
        ground.configure("");
        let (gateway, address, page) = start(&ground, "127.0.0.1:0", env).await;
        Self { ground, gateway, address, page }
    }

    /// A wait on a connection of its own, beside the test.
    fn wait(&self, target: &str, key: &str) -> AbortOnDropHandle<Response<Bytes>> {
        let (address, target, key) = (self.address, target.to_owned(), format!("Bearer {key}"));
        let asked = async move {
            let request =
                http::Request::get(target).header("host", "gw.example").header("authorization", key);
            TestClient::connect(address).await.send(request.body(Default::default()).unwrap()).await.unwrap()
        };
        AbortOnDropHandle::new(tokio::spawn(asked))
    }

    async fn get(&self, target: &str) -> Response<Bytes> {
        self.wait(target, "demo").await.unwrap()
    }
}

async fn start(ground: &TestEnv, admin: &str, env: &[(&str, &str)]) -> (GatewayProcess, SocketAddr, String) {
    let mut command = ground.command();
    command.env("CLIPGATE__ADMIN__LISTEN", admin).envs(env.iter().copied());
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let line = gateway.next_line().await;
    let admin = line.strip_prefix("clipgate admin listening on ").unwrap_or_else(|| panic!("{line}"));
    (gateway, address, format!("http://{admin}/"))
}

impl Browser {
    /// Waits for the figure of a tile: 1 waits, 2 polls, 3 clips kept, 4 the API.
    async fn until_tile(&mut self, at: usize, figure: &str) {
        self.wait_until_text(&format!("#tiles > :nth-child({at}) .value"), figure).await;
    }

    /// The figures in a plot's table: a row's name, and how many in all.
    async fn in_all(&mut self, plot: &str) -> Value {
        let rows = format!("[...document.querySelectorAll('#{plot}-table tbody tr')]");
        let pair = "(row) => [row.cells[0].textContent, Number(row.cells[3].textContent)]";
        self.eval(&format!("Object.fromEntries({rows}.map({pair}))")).await
    }

    /// The texts of a table's rows, cell by cell.
    async fn rows(&mut self, table: &str) -> Vec<Vec<String>> {
        let cells = "(row) => [...row.cells].map((cell) => cell.textContent)";
        let rows = format!("[...document.querySelectorAll('#{table} tbody tr')].map({cells})");
        serde_json::from_value(self.eval(&rows).await).unwrap()
    }

    async fn assert_no_faults(&mut self) {
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
async fn the_page_agrees_with_what_was_sent_and_follows_without_a_reload() {
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
    browser.eval("window.isTheSame = true").await;

    // The very lines that it shows: they order two clips.
    let ids: Value = serde_json::from_str(&run("bash", "bash", &["-c", &example])).unwrap();
    let id = ids["clip_ids"][0].as_str().unwrap().to_owned();
    browser.wait_until("document.querySelector('#hint').hidden").await;

    let target = format!("{base}{CLIP}?clip_id={id}&status=completed");
    let wait = || {
        let target = target.clone();
        tokio::task::spawn_blocking(move || curl(&["--include", &target]))
    };
    let waits = [wait(), wait(), wait()];
    let mut answers = Vec::new();
    for wait in waits {
        answers.push(wait.await.unwrap());
    }
    let refused = format!("{base}{CLIP}?clip_id=");
    let passed = format!("{base}/v1/models");
    answers.extend([&target, &target, &refused, &passed].map(|target| curl(&["--include", target])));
    // How many of the three waits merged is the clock's business; what the answers say is what the page must say.
    let how =
        |case: &str| answers.iter().filter(|answer| answer.contains(&format!("clipgate; {case}"))).count();
    let (hits, leaned) = (how("hit"), how("fwd=miss; collapsed"));
    let opened = how("fwd=miss; fwd-status");
    assert!(hits >= 2 && hits + leaned + opened == 5 && how("detail=empty-id") == 1, "{answers:#?}");
    let (passed, saved) = (how("fwd=bypass") + 1, hits + leaned);

    browser.wait_until_text("#requests-table tfoot td:last-child", "8").await;
    let requests = json!({
        "From the cache": hits, "Coalesced": leaned, "Opened a poll": opened,
        "Passed through": passed, "Rejected": 1, "Event streams": 0, "Client closed, preflights": 0,
    });
    assert_eq!(browser.in_all("requests").await, requests);
    let calls =
        json!({ "Polls": opened, "Snapshots at a deadline": 0, "Passed through": passed, "Saved": saved });
    assert_eq!(browser.in_all("calls").await, calls);
    assert_eq!(browser.text("#saved-count").await, saved.to_string());
    assert_eq!(browser.text("#made-count").await, (opened + passed).to_string());
    let share = 100.0 * saved as f64 / (saved + opened + passed) as f64;
    assert_eq!(browser.text("#saved-share").await, format!("{share:.0} %"));
    browser.until_tile(1, "0").await;
    browser.until_tile(3, "1").await;
    browser.until_tile(4, "✓ answering").await;
    let summary = browser.eval("document.querySelector('#calls-plot').ariaLabel").await;
    assert!(summary.as_str().unwrap().contains(&format!("saved {saved}")), "{summary}");

    assert_eq!(browser.eval("window.isTheSame").await, true, "it was not loaded again");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn clips_and_keys_have_rows_and_what_comes_from_outside_is_text() {
    const EVIL: &str = "<img src=x onerror=document.title='gotcha'>";
    let encoded: String = EVIL.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let site = Site::new(&[]).await;
    for id in [EVIL, "b"] {
        site.ground.sim.set_status(id, "queued");
    }
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    let _waits =
        [&completed_target(&encoded), &completed_target(&encoded)].map(|target| site.wait(target, "key-1"));
    let _slow = site.wait(&completed_target("b"), "key-2");
    browser.until_tile(1, "3").await;
    browser.until_tile(2, "2").await;
    assert_eq!(browser.eval("document.querySelector('#hint').hidden").await, true, "there are some");
    let _fast = site.wait(&clip_target("b", "streaming"), "key-2");
    browser.until_tile(2, "3").await;
    // A poll that is answered is what tells on which rung the clip is.
    assert_eq!(site.wait(&clip_target(&encoded, "queued"), "key-1").await.unwrap().status(), 200);
    browser.wait_until("document.querySelectorAll('#jobs tbody tr').length === 2").await;
    browser.wait_until("document.querySelector('#jobs').textContent.includes('queued')").await;

    let rows = browser.rows("jobs").await;
    let evil = rows.iter().position(|row| row[0].contains(EVIL)).expect("it is shown as it is");
    assert_eq!(rows[evil][1..4], ["queued", "2", "1"]);
    assert_eq!(rows[1 - evil][1..4], ["not known", "2", "2"]);
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
    assert!(known.len() == 1 && known[0][1].ends_with(" of 400"), "one is proven: {keys:?}");

    site.ground.sim.set_status(EVIL, "complete");
    browser.wait_until("document.querySelectorAll('#jobs tbody tr').length === 1").await;
    browser.until_tile(1, "2").await;
    let requests = browser.in_all("requests").await;
    assert_eq!((&requests["Coalesced"], &requests["Opened a poll"]), (&json!(1), &json!(2)));
    assert_eq!(
        (browser.text("#saved-count").await, browser.text("#made-count").await),
        ("1".into(), "2".into())
    );
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn an_api_that_cannot_be_reached_is_told_of_once_and_in_words() {
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
    let told = "window.told = 0; new MutationObserver(() => window.told++).observe(
        document.querySelector('#notice'), { childList: true, characterData: true, subtree: true }); null";
    browser.eval(told).await;

    site.ground.sim.set_status("kept", "completed");
    assert_eq!(site.get(&completed_target("kept")).await.status(), 200);
    site.ground.sim.set_status("a", "queued");
    site.ground.sim.fault(FaultTarget::Polls, Fault::reset(), 1);
    assert_eq!(site.get(&completed_target("a")).await.status(), 502);
    browser.until_tile(4, "✕ unreachable").await;
    let notice = browser.text("#notice").await;
    assert!(notice.contains("retries are held back"), "{notice}");
    browser.screenshot("unreachable").await;
    // Two more states change nothing that is said.
    browser.until_two_more_states().await;
    assert_eq!(browser.eval("window.told").await, 1);
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.assert_no_faults().await;
}

impl Browser {
    async fn until_two_more_states(&mut self) {
        const AGAIN: &str = "(() => { const states = new EventSource('api/events'); window.states = 0;
            states.addEventListener('state', () => ++window.states === 3 && states.close()); })()";
        self.eval(AGAIN).await;
        self.wait_until("window.states >= 3").await;
    }
}

#[tokio::test]
async fn without_the_gateway_the_page_says_since_when_and_then_goes_on() {
    let mut site = Site::new(&[]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    site.get("/v1/models").await;
    browser.wait_until_text("#made-count", "1").await;
    site.gateway.signal("TERM");
    assert!(site.gateway.wait_for_exit().await.success());
    browser.wait_until("document.body.dataset.link === 'stale'").await;
    let told = browser.text("#link-text").await;
    let time = told.strip_prefix("stale since ").unwrap_or_else(|| panic!("{told}"));
    assert!(time.len() == 8 && time.split(':').count() == 3, "{told}");
    assert_eq!(browser.text("#made-count").await, "1", "what was last known stays");
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.screenshot("stale").await;

    let admin = site.page.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let (_gateway, ..) = start(&site.ground, &admin, &[]).await;
    browser.wait_until_text("#link-text", "live").await;
    browser.wait_until_text("#made-count", "0").await;
    browser.wait_until("!document.querySelector('#hint').hidden").await;
}

#[tokio::test]
async fn everybody_can_read_it() {
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
    let mut grounds = BTreeSet::new();
    for (name, look) in looks {
        browser.set_viewport(look, true).await;
        let wide = browser.eval("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= look.width.into(), "{name}: {wide} px wide");
        let (broken, kept) = browser.accessibility().await;
        assert!(broken.is_empty() && kept > 30, "{name}: {broken:#?}");
        let ground = browser.eval("getComputedStyle(document.body).backgroundColor").await.to_string();
        grounds.insert((look.is_dark, ground));
        let moving = "document.getAnimations().filter((of) => of.playState === 'running').length";
        assert_eq!(browser.eval(moving).await, 0, "{name}: nothing moves for who wants it so");
        browser.screenshot(name).await;
    }
    assert_eq!(grounds.len(), 2, "{grounds:?}");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn landmarks_headings_and_tables_have_names_and_the_keyboard_gets_to_what_scrolls() {
    let site = Site::new(&[]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESKTOP, None).await;
    browser.wait_until("!document.querySelector('#hint').hidden").await;
    let count = |of: &str| format!("document.querySelectorAll('{of}').length");
    for (of, is) in [("header, main, footer", 3), ("h1", 1), ("main section", 7), ("h2", 7), ("table", 4)] {
        assert_eq!(browser.eval(&count(of)).await, is, "{of}");
    }
    let unnamed = "[...document.querySelectorAll('section')].filter((section) => {
        const title = document.getElementById(section.getAttribute('aria-labelledby'));
        return !title?.textContent.trim() || !section.contains(title);
    }).length";
    assert_eq!(browser.eval(unnamed).await, 0);
    let plain = "[...document.querySelectorAll('table')].filter((table) => !table.caption?.textContent.trim()
        || !table.querySelector('th[scope=col]')).length";
    assert_eq!(browser.eval(plain).await, 0);

    let (_waits, _) = busy(&site).await;
    browser.until_tile(1, "14").await;
    let mut reached = Vec::new();
    for _ in 0..12 {
        browser.press("Tab").await;
        let at = "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()";
        reached.push(browser.eval(at).await.as_str().unwrap().to_owned());
        let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle").await;
        assert_eq!(outline, "solid", "{reached:?}");
        if reached.last().is_some_and(|last| last.starts_with("uPlot")) {
            break;
        }
    }
    let links = ["metrics", "state as JSON", "health", "readiness", "uPlot, MIT"];
    assert_eq!(reached, [&["Table of jobs", "Table of keys"][..], &links].concat());

    browser.hover("#requests-plot .u-over").await;
    browser
        .wait_until("/^\\d\\d:\\d\\d:\\d\\d$/.test(document.querySelector('#requests-table th').textContent)")
        .await;
    browser.assert_no_faults().await;
}

/// Hits, waits of two keys, what is passed through and what is refused: the waits, and how many requests have ended.
async fn busy(site: &Site) -> (Vec<AbortOnDropHandle<Response<Bytes>>>, usize) {
    let (sim, uuid) = (&site.ground.sim, |n: u32| format!("18aaba72-1ea9-4e4c-8c22-86c72e27e4{n:02x}"));
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
async fn with_a_token_the_browser_logs_in_and_all_of_the_page_comes() {
    let site = Site::new(&[("CLIPGATE__ADMIN__TOKEN", "s3cret")]).await;
    let operator = AdminClient::at(site.page[7..].trim_end_matches('/').parse().unwrap());
    for path in ["/", "/dashboard/dashboard.js", "/dashboard/uplot/LICENSE"] {
        assert_eq!(operator.get(path).await.status(), 401, "{path}");
    }
    let mut browser = Browser::start();
    assert_eq!(browser.open(&site.page, DESKTOP, Some(["ops", "s3cret"])).await, 200);
    browser.wait_until_text("#link-text", "live").await;
    site.get("/v1/models").await;
    browser.wait_until_text("#made-count", "1").await;
}
