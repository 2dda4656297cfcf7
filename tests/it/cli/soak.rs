//! Some seconds of the long run in examples/soak, with all of its checks but those on the whole process.

use std::time::Duration;

#[path = "../../soak/run/mod.rs"]
mod run;

use self::run::{ScenarioKind, Setting};

/// Every scenario comes once, if they fit the length with a calm before and after each.
async fn soak_through(scenarios: &[&str], seconds: u64) {
    let setting = Setting {
        length: Duration::from_secs(seconds),
        rate: 60,
        seed: 1,
        hold: Duration::from_secs(2),
        scenarios: scenarios.iter().map(|name| name.parse::<ScenarioKind>().unwrap()).collect(),
        heap: None,
    };
    let report = run::soak(setting).await.unwrap();
    assert!(report.is_good(), "{report}");
    let text = report.to_string();
    assert!(scenarios.iter().all(|name| text.contains(name)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_random_faults_each_client_is_told_what_it_would_be_told_alone() {
    soak_through(&["mixed"], 13).await;
}

/// P11, P12.
#[tokio::test(flavor = "multi_thread")]
async fn short_outages_fail_nobody_who_has_time_left_and_one_keys_errors_nobody_else() {
    soak_through(&["reset", "away-0.3", "key-errors"], 14).await;
}
