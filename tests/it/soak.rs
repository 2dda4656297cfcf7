//! Some seconds of the long run in examples/soak, with all of its checks but those on the whole process.

use std::time::Duration;

#[path = "../../examples/soak/run/mod.rs"]
mod run;

use self::run::Setting;

#[tokio::test(flavor = "multi_thread")]
async fn in_all_weathers_each_client_is_told_what_it_would_be_told_alone() {
    let setting = Setting {
        // A calm and a storm.
        length: Duration::from_secs(10),
        rate: 60,
        seed: 1,
        hold: Duration::from_secs(2),
        heap: None,
    };
    let report = run::soak(setting).await.unwrap();
    assert!(report.is_good(), "{report}");
}
