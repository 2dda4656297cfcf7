//! The first minute with a simulated upstream: clients that play, a page in the browser, new clips, and the dashboard in
//! a terminal.

use std::time::Duration;

use crate::harness::admin_client::AdminClient;
use crate::harness::command::{ClipgateProcess, run, try_run};
use crate::harness::process::within_timeout;

/// Starts a simulated gateway. Returns it with the addresses of its listeners.
fn start(args: &[&str]) -> (ClipgateProcess, String, String) {
    let args = [&["serve", "--sim", "--listen", "127.0.0.1:0"], args].concat();
    let mut gateway = ClipgateProcess::start(&args, &[("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0")]);
    let (listen, admin) = (gateway.ready(), gateway.admin());
    (gateway, listen, admin)
}

fn clipgate(args: &[&str]) -> String {
    run(env!("CARGO_BIN_EXE_clipgate"), "clipgate", args)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_waits_merges_and_hits_the_cache_and_top_shows_it() {
    let (gateway, _, admin) = start(&["--speed", "40", "--crowd", "30"]);
    let client = AdminClient::at(admin.parse().unwrap());
    let busy = async {
        loop {
            let totals = &client.state().await["totals"]["requests"];
            let has = |outcome: &str| totals[outcome].as_u64().is_some_and(|count| count > 0);
            if ["opened", "coalesced", "hit", "passthrough"].into_iter().all(has) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within_timeout("requests of each kind", busy).await;
    let screen = clipgate(&["top", "--admin", &admin]);
    for part in
        ["clipgate ", " ready, up ", "Saved calls", "Waits parked", "Jobs in flight", "Calls by cause"]
    {
        assert!(screen.contains(part), "{part} in\n{screen}");
    }
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_slow_simulation_starts() {
    let (gateway, ..) = start(&["--speed", "0.01"]);
    assert_eq!(gateway.stop().0, Some(0));
}

#[test]
fn new_clips_are_followed_to_their_title_and_address() {
    let (_gateway, listen, _) = start(&["--speed", "200"]);
    let url = format!("http://{listen}");
    let key = std::env::temp_dir().join(format!("clipgate-key-{}", std::process::id()));
    std::fs::write(&key, "demo").unwrap();
    let source = format!("file:{}", key.display());
    // One clip of fifty fails, which is exit code 3.
    let lines = (0..5).find_map(|_| {
        let args = ["watch", "--new", "night drive", "--url", &url, "--key", &source];
        let output = try_run(env!("CARGO_BIN_EXE_clipgate"), "clipgate", &args);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    std::fs::remove_file(&key).unwrap();
    let lines = lines.expect("one of five attempts makes two clips");
    let done: Vec<&str> = lines.lines().filter(|line| line.contains("  completed  ")).collect();
    assert_eq!(done.len(), 2, "{lines}");
    for line in done {
        assert!(line.contains("https://cdn1.suno.ai/") && line.contains(':'), "{line}");
    }
}

#[test]
fn a_browser_at_the_root_gets_a_page_and_a_program_the_apis_error() {
    let (_gateway, listen, _) = start(&[]);
    let url = format!("http://{listen}/");
    let program = run("curl", "curl", &["--silent", "--include", &url]);
    assert!(program.starts_with("HTTP/1.1 404") && program.contains("application/json"), "{program}");
    let browser = ["--header", "Sec-Fetch-Mode: navigate", "--header", "Sec-Fetch-Dest: document"];
    let page = run("curl", "curl", &[&["--silent", "--include", &url], &browser[..]].concat());
    assert!(page.starts_with("HTTP/1.1 404") && page.contains("<h1>This is clipgate</h1>"), "{page}");
    assert!(!page.contains("Cannot GET"), "{page}");
}

#[test]
fn a_terminal_shows_the_banner_first_and_local_times() {
    let env = [
        ("NO_COLOR", "1"),
        ("TZ", "HALF-5:30"),
        // More than any limit of open files allows, which is reported.
        ("CLIPGATE__SERVER__MAX_CONNECTIONS", "10000000"),
    ];
    let mut gateway =
        ClipgateProcess::start_at_terminal(&["serve", "--sim", "--listen", "127.0.0.1:0"], &env);
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains(" started ")) {
        lines.push(gateway.next_line());
    }
    let first = lines.iter().find(|line| !line.trim().is_empty()).unwrap();
    assert_eq!(first.trim(), concat!("clipgate ", env!("CARGO_PKG_VERSION")), "{lines:#?}");
    let place = |text: &str| lines.iter().position(|line| line.contains(text)).expect(text);
    assert!(
        place("Upstream") < place("(ulimit -n)") && place("(ulimit -n)") < place(" started "),
        "{lines:#?}"
    );
    let [hours, minutes] = [0, 3].map(|at| lines.last().unwrap()[at..at + 2].parse::<u64>().unwrap());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 60 + 5 * 60 + 30;
    let behind = (now + 24 * 60 - (hours * 60 + minutes)) % (24 * 60);
    assert!(behind <= 2, "{behind} minutes behind: {lines:#?}");
}
