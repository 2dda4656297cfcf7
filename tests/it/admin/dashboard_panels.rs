//! The panels of the dashboard in a browser: their places in windows of several sizes, members, replicas, the drawing, an
//! outage and a stop.
//!
//! Needs Chromium and its driver: `make tools`. Screenshots are written to `target/dashboard/`.

use std::fmt::Write as _;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use clipgate::testing::auth::token_sha256;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::dashboard::{Site, busy};
use crate::cli::replicas::{children, kill};
use crate::harness::browser::{Browser, DESKTOP, Viewport};
use crate::harness::command::{ClipgateProcess, run};
use crate::harness::process::completed_target;
use crate::harness::raw_http::CLIP;

const DESK: Viewport = Viewport { width: 1440, height: 900, is_dark: false };
const WALL: Viewport = Viewport { width: 2560, height: 1440, is_dark: true };

/// Returns the configuration of a team with these members, whose tokens are their names.
fn team(names: &[&str]) -> String {
    let mut lines = "[auth]\nmode = \"team\"\n".to_owned();
    for name in names {
        let hash = token_sha256(name.as_bytes()).0.map(|byte| format!("{byte:02x}")).concat();
        writeln!(
            lines,
            "[[team.members]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nupstream_key = \"demo\""
        )
        .unwrap();
    }
    lines
}

const NAMES: [&str; 9] = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan"];

impl Browser {
    /// Returns the panels and tiles that reach beyond the window or hide a part of their content.
    async fn misplaced(&mut self) -> Value {
        const BEYOND: &str = "(() => {
            const bad = [];
            const name = (node) => node.id || node.className || node.textContent;
            for (const panel of document.querySelectorAll('main .panel, .tiles > div')) {
                if (panel.hidden) continue;
                const { top, bottom, left, right, width, height } = panel.getBoundingClientRect();
                const fits = top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;
                if (!fits || width < 80 || height < 60) bad.push(`${name(panel)} at ${top} to ${bottom}`);
                if (panel.scrollHeight > panel.clientHeight + 1) bad.push(`${name(panel)} hides a part`);
            }
            for (const value of document.querySelectorAll('.tiles .value')) {
                const lines = value.getBoundingClientRect().height / parseFloat(getComputedStyle(value).lineHeight);
                if (lines > 1.5 || value.scrollWidth > value.clientWidth) bad.push(`${name(value)} wraps`);
            }
            for (const list of document.querySelectorAll('.scroll')) {
                const { height } = list.getBoundingClientRect();
                if (height && height < 50) bad.push(`${list.ariaLabel} is ${height} high`);
            }
            const { scrollWidth, scrollHeight } = document.documentElement;
            if (scrollWidth > innerWidth || scrollHeight > innerHeight) bad.push(`page ${scrollWidth} x ${scrollHeight}`);
            return bad;
        })()";
        self.eval(BEYOND).await
    }
}

#[tokio::test]
async fn at_1440_and_2560_all_panels_and_lists_are_in_the_window() {
    let lines = team(&["demo", "other", "alice", "bob", "carol", "dave", "erin", "frank", "grace"]);
    let site = Site::configured(&lines, &[]).await;
    let (_waits, _) = busy(&site).await;
    let ids: Vec<String> = (0..20).map(|n| format!("more-{n:02}")).collect();
    for id in &ids {
        site.test_env.sim.set_status(id, "queued");
    }
    let _more: Vec<_> = ids.iter().map(|id| site.wait(&completed_target(id), "demo")).collect();
    let mut browser = Browser::start();
    browser.open(&site.page, DESK, None).await;
    browser.wait_until_text("#jobs-count", "24").await;
    browser.wait_until("!document.querySelector('#rejections').hidden").await;
    assert_eq!(browser.rows("members").await.len(), 9);
    let looks = [
        ("desk", DESK),
        ("desk-dark", Viewport { is_dark: true, ..DESK }),
        ("desk-1280", DESKTOP),
        ("wall-2560", WALL),
        ("wall-2560-light", Viewport { is_dark: false, ..WALL }),
    ];
    for (name, look) in looks {
        browser.set_viewport(look, false).await;
        browser.until_two_more_states().await;
        assert_eq!(browser.misplaced().await, json!([]), "{name}");
        browser.screenshot(name).await;
    }
    // A list shows its last row after a scroll in its panel.
    const LAST: &str = "(() => {
        const row = document.querySelector('#jobs tbody').lastElementChild;
        row.scrollIntoView({ block: 'end' });
        const list = row.closest('.scroll').getBoundingClientRect();
        return window.scrollY === 0 && row.getBoundingClientRect().bottom <= list.bottom + 1;
    })()";
    browser.set_viewport(DESK, false).await;
    assert_eq!(browser.eval(LAST).await, true);
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn members_have_their_requests_savings_waits_rejections_and_a_filter() {
    let site = Site::configured(&team(&NAMES), &[]).await;
    let sim = &site.test_env.sim;
    sim.set_status("done", "completed");
    sim.set_status("open", "queued");
    let mut browser = Browser::start();
    browser.open(&site.page, DESK, None).await;
    browser.wait_until_text("#members-count", "9").await;
    assert!(browser.rows("members").await.iter().all(|row| row[1..] == ["0", "0", "0", "0", "never"]));

    for _ in 0..3 {
        assert_eq!(site.wait(&completed_target("done"), "alice").await.unwrap().status(), 200);
    }
    assert_eq!(site.wait(&completed_target(""), "bob").await.unwrap().status(), 400);
    let _waits = [(); 2].map(|()| site.wait(&completed_target("open"), "carol"));
    browser.until_tile(1, "2").await;
    // Requests are counted when they end.
    for (name, figures) in [("alice", ["3", "2", "0", "0"]), ("bob", ["1", "0", "0", "1"])] {
        let row = format!(
            "[...document.querySelectorAll('#members tbody tr')].find((row) => row.cells[0].textContent === '{name}')"
        );
        let shown = format!("JSON.stringify([...{row}.cells].slice(1, 5).map((cell) => cell.textContent))");
        browser.wait_until(&format!("{shown} === '{}'", json!(figures))).await;
        let seen = browser.eval(&format!("{row}.cells[5].textContent")).await;
        assert_ne!(seen, "never", "{name}");
    }
    let carol = "[...document.querySelectorAll('#members tbody tr')][2].cells[3].textContent";
    assert_eq!(browser.eval(carol).await, "2", "the waits of carol");
    let filter = "(() => { const box = document.querySelector('#members-filter'); box.value = 'AR';
        box.dispatchEvent(new Event('input')); return box.hidden; })()";
    assert_eq!(browser.eval(filter).await, false);
    assert_eq!(browser.text("#members-count").await, "1 of 9");
    assert_eq!(browser.rows("members").await[0][0], "carol");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn an_outage_has_its_cause_its_length_and_the_time_that_waits_are_still_held() {
    let env = [("CLIPGATE__UPSTREAM__RETRY_FOR", "300s"), ("CLIPGATE__UPSTREAM__BREAKER_FAILURES", "2")];
    let site = Site::new(&env).await;
    // Retries last for `retry_for` once the upstream has answered.
    site.test_env.sim.set_status("done", "completed");
    assert_eq!(site.get(&completed_target("done")).await.status(), 200);
    site.test_env.sim.set_status("a", "queued");
    let mut browser = Browser::start();
    browser.open(&site.page, DESK, None).await;
    browser.wait_until_text("#link-text", "live").await;
    site.test_env.sim.fault(FaultTarget::Polls, Fault::reset(), 1000);
    let _waits = [(); 3].map(|()| site.wait(&completed_target("a"), "demo"));
    browser.until_tile(4, "✕ unreachable").await;
    browser
        .wait_until("/^Out for \\d+ s\\. Waits .* at most .* more\\.$/.test(document.querySelector('#outage').textContent)")
        .await;
    assert_eq!(browser.eval("document.querySelector('#outage').role").await, "timer");
    let cause = browser.text("#notice").await;
    assert!(cause.starts_with("The API is unreachable (") && !cause.contains("()"), "{cause}");
    let tile = browser.text("#tiles > :nth-child(4) .more").await;
    assert!(tile.contains(", for "), "{tile}");
    const LEFT: &str = "(() => { const left = document.querySelector('#outage').textContent.match(/most (?:(\\d+) min )?(\\d+) s/);
        return 60 * Number(left[1] ?? 0) + Number(left[2]); })()";
    let left = browser.eval(LEFT).await.as_u64().unwrap();
    assert!((200..=300).contains(&left), "{left}");
    browser.wait_until(&format!("{LEFT} < {left}")).await;
    assert_eq!(browser.eval("document.querySelector('#flow').dataset.level").await, "bad");
    for (name, look) in [("outage", DESK), ("outage-wall", WALL)] {
        browser.set_viewport(look, false).await;
        browser.until_two_more_states().await;
        assert_eq!(browser.misplaced().await, json!([]), "{name}");
        browser.screenshot(name).await;
    }
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn a_stop_is_announced_while_the_last_request_ends() {
    let site = Site::new(&[("CLIPGATE__SERVER__DRAIN_TIMEOUT", "30s")]).await;
    let mut browser = Browser::start();
    browser.open(&site.page, DESK, None).await;
    browser.wait_until_text("#link-text", "live").await;
    let mut slow = TcpStream::connect(site.address).await.unwrap();
    let half = b"POST /v1/files HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer demo\r\ncontent-length: 10\r\n\r\n12345";
    slow.write_all(half).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    site.gateway.signal("TERM");
    browser.wait_until("document.querySelector('#notices').dataset.level === 'warn'").await;
    let notice = browser.text("#notice").await;
    assert!(notice.starts_with("The gateway is stopping"), "{notice}");
    assert!(browser.text("#about").await.ends_with(", stopping"));
    browser.screenshot("drain").await;
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn the_drawing_shows_waits_on_their_poll_and_lights_up_an_answered_job() {
    let site = Site::new(&[]).await;
    site.test_env.sim.set_status("a", "queued");
    let mut browser = Browser::start();
    browser.open(&site.page, DESK, None).await;
    browser.wait_until_text("#flow", "APINo waits").await;
    let waits = [(); 5].map(|()| site.wait(&completed_target("a"), "demo"));
    browser.wait_until("document.querySelectorAll('#flow .wait').length === 5").await;
    assert_eq!(browser.text("#flow-count").await, "1 job");
    assert_eq!(
        browser.eval("document.querySelector('#flow').ariaLabel").await,
        "5 waits on 1 poll at the API"
    );
    const MOVING: &str = "document.getAnimations().filter((of) => of.animationName === 'run' && of.playState === 'running').length";
    assert_eq!(browser.eval(MOVING).await, 1, "requests move along the poll");
    browser.set_viewport(DESK, true).await;
    assert_eq!(browser.eval(MOVING).await, 0, "not with reduced motion");
    browser.set_viewport(DESK, false).await;

    site.test_env.sim.set_status("a", "completed");
    for wait in waits {
        assert_eq!(wait.await.unwrap().status(), 200);
    }
    browser.wait_until("document.querySelector('#flow g[data-landed=true]') !== null").await;
    assert_eq!(browser.eval("document.querySelectorAll('#flow g[data-landed=true] .wait').length").await, 5);
    browser.screenshot("landed").await;
    browser.wait_until("document.querySelectorAll('#flow .node').length === 0").await;
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn the_keyboard_switches_minutes_and_theme_and_filters_a_list() {
    let site = Site::new(&[]).await;
    let ids: Vec<String> = (0..9).map(|n| format!("job-{n}")).collect();
    for id in &ids {
        site.test_env.sim.set_status(id, "queued");
    }
    let _waits: Vec<_> = ids.iter().map(|id| site.wait(&completed_target(id), "demo")).collect();
    let mut browser = Browser::start();
    browser.open(&site.page, DESK, None).await;
    browser.wait_until_text("#jobs-count", "9").await;
    for key in ["Tab", "Tab", "Enter"] {
        browser.press(key).await;
    }
    browser.wait_until_text("#calls-table thead th:nth-child(3)", "15 min").await;
    for key in ["Tab", "Space"] {
        browser.press(key).await;
    }
    browser.wait_until("document.querySelector('#theme').ariaPressed === 'true'").await;
    for _ in 0..6 {
        browser.press("Tab").await;
        if browser.eval("document.activeElement.id").await == "jobs-filter" {
            break;
        }
    }
    for key in ["j", "o", "b", "-", "7"] {
        browser.press(key).await;
    }
    assert_eq!(browser.text("#jobs-count").await, "1 of 9");
    browser.assert_no_faults().await;
}

#[tokio::test]
async fn labels_of_the_plots_have_their_whole_size_on_screens_with_more_pixels() {
    let site = Site::new(&[]).await;
    site.get("/v1/models").await;
    // Records the fonts of the labels that the plots draw with each state.
    const RECORD: &str = "(() => {
        window.fonts = new Set();
        const { fillText } = CanvasRenderingContext2D.prototype;
        CanvasRenderingContext2D.prototype.fillText = function (...args) {
            window.fonts.add(parseFloat(this.font));
            return fillText.apply(this, args);
        };
    })()";
    const SIZES: &str = "[...window.fonts].filter((size) => size > 0)";
    let mut browser = Browser::start();
    let mut sizes = Vec::new();
    for scale in [1, 2] {
        browser.open_scaled(&site.page, DESK, scale).await;
        browser.wait_until_text("#link-text", "live").await;
        browser.eval(RECORD).await;
        browser.wait_until(&format!("{SIZES}.length > 0")).await;
        let drawn = browser.eval(SIZES).await;
        assert_eq!(drawn.as_array().unwrap().len(), 1, "{drawn}");
        sizes.push(drawn[0].as_f64().unwrap());
        let ratio = "(() => { const canvas = document.querySelector('#calls-plot canvas');
            return Math.round(canvas.width / canvas.getBoundingClientRect().width); })()";
        assert_eq!(browser.eval(ratio).await, scale);
        browser.screenshot(&format!("scale-{scale}")).await;
    }
    assert!(sizes[0] >= 11.0, "{sizes:?}");
    assert_eq!(sizes[1], 2.0 * sizes[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_have_their_link_their_beat_and_the_polls_that_each_makes() {
    let path = std::env::var("PATH").unwrap();
    let env =
        [("PATH", &*path), ("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0"), ("CLIPGATE__CLUSTER__PATIENCE", "2s")];
    let args = ["serve", "--sim", "--replicas", "2", "--listen", "127.0.0.1:0"];
    let mut gateways = ClipgateProcess::start(&args, &env);
    let [first, second] = [(); 2].map(|()| (gateways.ready(), gateways.admin()));
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", second.1), DESK, None).await;
    browser.wait_until_text("#replicas-count", "2").await;
    browser
        .wait_until("document.querySelector('#engine').textContent.startsWith('✓ sharing · group ')")
        .await;

    // The first replica makes the poll, the second one waits for it.
    let create = format!("http://{}{CLIP}", first.0);
    let body = r#"{"prompt":"x"}"#;
    let created = run("curl", "curl", &["-s", &create, "-H", "authorization: Bearer demo", "-d", body]);
    let created: Value = serde_json::from_str(&created).unwrap();
    let id = created["clip_ids"][0].as_str().unwrap().to_owned();
    let wait = |gateway: &str| {
        let target = format!("http://{gateway}{CLIP}?clip_id={id}&status=completed");
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-s", &target, "-H", "authorization: Bearer demo"]).stdout(std::process::Stdio::null());
        curl.kill_on_drop(true).spawn().unwrap()
    };
    let _first = wait(&first.0);
    let first_page = crate::harness::admin_client::AdminClient::at(first.1.parse().unwrap());
    while first_page.state().await["polls"]["open"] == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _second = wait(&second.0);
    browser.wait_until("document.querySelector('#flow g[data-away=true]') !== null").await;
    let state = first_page.state().await;
    let own = &state["cluster"]["members"][0];
    assert_eq!(own["self"], true);
    let short = own["name"].as_str().unwrap()[..8].to_owned();
    assert_eq!(state["jobs"]["items"][0]["replicas"], json!([own["name"]]), "{state}");
    assert_eq!(browser.rows("jobs").await[0][5], short, "the job is polled by the first replica");
    assert_eq!(browser.text("#flow .holder").await, short);
    let rows = browser.rows("replicas").await;
    assert!(rows[0][0].ends_with(" this one") && rows[0][1] == "–", "{rows:?}");
    assert!(rows[1][0] == short && rows[1][1].ends_with(" s ago") && rows[1][2] == "1", "{rows:?}");
    let (broken, _) = browser.accessibility().await;
    assert!(broken.is_empty(), "{broken:#?}");
    assert_eq!(browser.misplaced().await, json!([]));
    browser.screenshot("replicas").await;

    let engine = children(gateways.id()).into_iter().find(|(_, name)| name.contains("-server")).unwrap();
    kill(engine.0);
    browser.wait_until("document.querySelector('#engine').dataset.level === 'warn'").await;
    browser.wait_until("document.querySelector('#engine').textContent.startsWith('✕ no engine')").await;
    browser.screenshot("apart").await;
    browser.assert_no_faults().await;
}
