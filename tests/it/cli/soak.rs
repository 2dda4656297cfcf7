//! Some seconds of the long run in tests/soak, with all of its checks except those on the whole process.

use std::time::Duration;

#[path = "../../soak/run/mod.rs"]
mod run;

use self::run::{ScenarioKind, Settings};

/// Runs each scenario once. The length must have room for all of them, with a calm period before and after each.
async fn soak(scenarios: &[&str], seconds: u64) {
    let settings = Settings {
        length: Duration::from_secs(seconds),
        // High enough that each kind of request has each usual outcome, which the run checks.
        rate: 90,
        seed: 1,
        hold: Duration::from_secs(2),
        scenarios: scenarios.iter().map(|name| name.parse::<ScenarioKind>().unwrap()).collect(),
        heap: None,
    };
    let report = run::soak(settings).await.unwrap();
    assert!(report.is_good(), "{report}");
    let text = report.to_string();
    assert!(scenarios.iter().all(|name| text.contains(name)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_random_faults_each_client_gets_the_response_that_it_would_get_alone() {
    soak(&["mixed"], 13).await;
}

/// P11, P12.
#[tokio::test(flavor = "multi_thread")]
async fn short_outages_fail_no_wait_that_has_time_left_and_errors_of_one_key_fail_no_other_key() {
    soak(&["reset", "away-0.3", "key-errors"], 14).await;
}
