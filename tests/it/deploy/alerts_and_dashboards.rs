//! Alerts and dashboards in `deploy/` match the metrics of the gateway. promtool checks both.
//!
//! Needs promtool (`.ci/tools` installs it). The tests fail without it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::admin_client::{AdminClient, MetricsPage};
use crate::harness::gateway::{TestGateway, clip_target};

pub(crate) fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

pub(crate) fn read(name: &str) -> String {
    fs::read_to_string(deploy(name)).unwrap()
}

/// Runs promtool with this input. Returns its output, and fails unless it succeeds.
fn promtool(args: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("`promtool` cannot be run ({error}): run .ci/tools, or see README.md")
        });
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    said
}

/// Returns the metrics of a gateway that has handled a request of each kind.
async fn page() -> MetricsPage {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "completed");
    for target in [
        clip_target("a", "completed"),
        clip_target("a", "completed"),
        "/x".to_owned(),
        clip_target("", "queued"),
    ] {
        gateway.get(&target, &[]).await;
    }
    admin.metrics().await
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("clipgate_") || word.starts_with("process_"))
        .collect()
}

/// Returns all PromQL expressions of the dashboard, with values for its variables.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries.map(|query| query.replace("$__rate_interval", "5m").replace("$__range", "1h")).collect()
}

#[tokio::test]
async fn promtool_accepts_the_metrics() {
    let page = page().await;
    assert_eq!(promtool(&["check", "metrics"], &page.text), "");
}

#[test]
fn promtool_accepts_the_alerts_and_each_fires_only_in_its_case() {
    let rules = deploy("alerts.yml");
    let said = promtool(&["check", "rules", rules.to_str().unwrap()], "");
    assert!(said.contains("SUCCESS: 15 rules found"), "{said}");
    let tests = deploy("alerts.test.yml");
    let said = promtool(&["test", "rules", tests.to_str().unwrap()], "");
    assert!(said.contains("SUCCESS"), "{said}");
    let (rules, tests) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(tests).unwrap());
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts.len(), 15);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} is tested nowhere");
    }
}

#[test]
fn the_dashboard_queries_are_valid_promql() {
    let queries = dashboard_queries();
    assert!(queries.len() > 20, "{}", queries.len());
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, query) in queries.iter().enumerate() {
        assert!(
            query.contains("job=~\"$job\", instance=~\"$instance\""),
            "{query} is not of the instance chosen"
        );
        writeln!(rules, "  - record: q{n}\n    expr: {}", Value::from(query.as_str())).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dashboard.yml");
    fs::write(&path, rules).unwrap();
    let said = promtool(&["check", "rules", path.to_str().unwrap()], "");
    assert!(said.contains(&format!("SUCCESS: {} rules found", queries.len())), "{said}");
}

#[tokio::test]
async fn the_gateway_has_each_metric_of_the_alerts_and_the_dashboard() {
    let page = page().await;
    let texts = [read("alerts.yml"), dashboard_queries().join("\n")];
    let rows = rows(&page_of_docs("observability"), "Metrics");
    let documented: BTreeSet<&str> = rows.iter().flat_map(|row| spans(&row[0])).collect();
    for text in &texts {
        assert!(names(text).len() > 10, "{:?}", names(text));
        for name in names(text) {
            assert!(page.has(name), "there is no {name}");
        }
    }
    for line in page.text.lines().filter_map(|line| line.strip_prefix("# TYPE clipgate_")) {
        let name = line.split(' ').next().unwrap();
        let name = format!("clipgate_{name}");
        assert!(documented.contains(name.as_str()), "docs/observability.md has no row for {name}");
    }
}

#[tokio::test]
async fn the_gateway_has_the_metric_of_the_autoscaler() {
    let page = page().await;
    let adapter = read("kubernetes/prometheus-adapter.yaml");
    let team = read("kubernetes/team.yaml");
    let goes_by = team.lines().find_map(|line| line.trim().strip_prefix("name: clipgate_")).unwrap();
    let name = format!("clipgate_{goes_by}");
    assert!(page.has(&name), "there is no {name}");
    assert!(adapter.contains(&format!("as: {name}\n")), "the adapter does not expose {name}");
    assert!(names(&adapter).into_iter().all(|name| page.has(name)), "{:?}", names(&adapter));
}

/// Reads a page of `docs/`.
fn page_of_docs(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name).with_extension("md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the rows of the Markdown tables under this heading, cell by cell.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split_once(&format!("\n## {heading}\n"));
    let section = section.unwrap_or_else(|| panic!("there is no heading {heading}")).1;
    let lines = section.split("\n## ").next().unwrap().lines();
    let rows = lines.filter_map(|line| line.strip_prefix("| "));
    rows.map(|row| row.split(" | ").map(str::to_owned).collect()).collect()
}

/// Returns the texts of code spans.
fn spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn the_documents_describe_each_alert_and_each_error_of_the_gateway() {
    let rules = read("alerts.yml");
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let alert_rows = rows(&page_of_docs("observability"), "Alerts");
    let documented: BTreeSet<&str> = alert_rows.iter().flat_map(|row| spans(&row[0])).collect();
    assert_eq!(documented, alerts);

    let reasons = |page: &str| -> BTreeSet<String> {
        let rows = rows(&page_of_docs(page), "Errors");
        let of_gateway = rows.iter().filter(|row| row[0].starts_with(|c: char| c.is_ascii_digit()));
        of_gateway.flat_map(|row| spans(&row[1])).map(str::to_owned).collect()
    };
    let for_clients = reasons("http-reference");
    assert!(for_clients.len() > 30, "{for_clients:?}");
    assert_eq!(reasons("operations"), for_clients);
}
