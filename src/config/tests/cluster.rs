//! The section `[cluster]`.

use std::time::Duration;

use super::*;
use crate::config::{EngineMode, Share};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn cluster(lines: &str) -> Result<Config, ConfigErrors> {
    load(&format!("[cluster]\n{lines}\n"), &[])
}

fn with_url(lines: &str) -> String {
    format!("url = \"redis://127.0.0.1\"\nsecret = \"{SECRET}\"\n{lines}")
}

#[test]
fn without_a_url_a_gateway_is_the_only_replica() {
    assert_eq!(cluster("patience = \"1s\"").unwrap(), Config::default());
    assert_eq!(cluster(&format!("secret = \"{SECRET}\"")).unwrap().cluster, None);
}

#[test]
fn each_key_sets_its_field() {
    let config = cluster(&with_url(
        "name = \"a-team\"\nshare = [\"jobs\", \"quotas\"]\npatience = \"20ms\"\ntakeover = \"5s\"\nmax_body = \"1KiB\"\n\
         strict = true\nexpected = 3",
    ));
    let cluster = config.unwrap().cluster.unwrap();
    assert_eq!((cluster.name.as_str(), &cluster.share[..]), ("a-team", &[Share::Jobs, Share::Quotas][..]));
    assert_eq!((cluster.patience, cluster.takeover), (Duration::from_millis(20), Duration::from_secs(5)));
    assert_eq!((cluster.max_body, cluster.strict, cluster.expected), (1024, true, 3));
    assert_eq!((cluster.mode, cluster.secret.expose()), (EngineMode::Single, SECRET));
    assert!(cluster.shares(Share::Jobs) && !cluster.shares(Share::Polls));
    assert_eq!(cluster.urls[0].to_string(), "redis://127.0.0.1:6379");
}

#[test]
fn variables_set_the_section_too() {
    let env = [
        ("CLIPGATE__CLUSTER__URL", "env:ENGINE"),
        ("ENGINE", "rediss://u:p@h:1"),
        ("CLIPGATE__CLUSTER__SECRET", SECRET),
        ("CLIPGATE__CLUSTER__STRICT", "false"),
    ];
    let cluster = load("", &env).unwrap().cluster.unwrap();
    assert!(!cluster.strict && cluster.urls[0].is_tls && cluster.urls[0].port == 1);
}

#[test]
fn errors_name_the_key_and_what_to_do() {
    let cases: &[(&str, &str, &str)] = &[
        ("url = \"redis://h\"", "cluster.url", "the URL of an engine is set, but no secret"),
        ("url = \"redis://h\"\nsecret = \"short\"", "cluster.secret", "the secret has 5 bytes"),
        (
            &with_url("mode = \"cluster\"\nmaster = \"m\""),
            "cluster.master",
            "cluster.mode is not \"sentinel\"",
        ),
        (&with_url("mode = \"sentinel\""), "cluster.mode", "needs the name of the primary"),
        (&with_url("share = [\"jobs\"]\nstrict = true"), "cluster.strict", "quotas are not shared"),
        (&with_url("master = \"m\""), "cluster.master", "cluster.mode is not \"sentinel\""),
        (&with_url("mode = \"ring\""), "cluster.mode", "not a valid value"),
        (&with_url("share = [\"all\"]"), "cluster.share", "not a valid value"),
        (&with_url("strict = \"true\""), "cluster.strict", "expected true or false"),
        (&with_url("name = \"a b\""), "cluster.name", "not a valid name"),
        ("url = \"http://h\"", "cluster.url", "not a redis://"),
    ];
    for (lines, key, problem) in cases {
        let error = cluster(lines).unwrap_err().to_string();
        assert!(error.contains(&format!("{key}: ")) && error.contains(problem), "{lines}: {error}");
        assert!(!error.contains(SECRET), "{error}");
    }
    let two = format!("url = [\"redis://a\", \"redis://b\"]\nsecret = \"{SECRET}\"");
    let error = cluster(&two).unwrap_err().to_string();
    assert!(error.contains("\"single\" is one server, and the list has more"), "{error}");
}

#[test]
fn a_url_without_tls_to_another_machine_is_warned_of() {
    let warnings = |url: &str| {
        cluster(&format!("url = \"{url}\"\nsecret = \"{SECRET}\"")).unwrap().warnings().join("\n")
    };
    for harmless in ["redis://127.0.0.1", "redis://localhost:6380", "redis://[::1]", "rediss://cache.example"]
    {
        assert_eq!(warnings(harmless), "", "{harmless}");
    }
    let warning = warnings("redis://u:hunter2@cache.example");
    assert!(
        warning.contains("cluster.url is redis://cache.example:6379") && !warning.contains("hunter2"),
        "{warning}"
    );
}

#[test]
fn every_change_of_the_section_needs_a_restart() {
    let running = cluster(&with_url("")).unwrap();
    let changed = cluster(&with_url("patience = \"20ms\"")).unwrap();
    assert!(changed.needs_restart(&running).contains(&"cluster.patience"));
    assert!(running.needs_restart(&Config::default()).contains(&"cluster.url"));
    assert_eq!(running.needs_restart(&running), [""; 0]);
}

#[test]
fn sentinels_are_a_list_with_the_name_of_the_primary() {
    let lines = format!(
        "url = [\"redis://:p@a:26379\", \"redis://:p@b\"]\nsecret = \"{SECRET}\"\nmode = \"sentinel\"\nmaster = \"mymaster\""
    );
    let cluster = cluster(&lines).unwrap().cluster.unwrap();
    assert_eq!((cluster.mode, cluster.urls.len()), (EngineMode::Sentinel, 2));
    assert_eq!(cluster.master.as_deref(), Some("mymaster"));
}

#[test]
fn a_cluster_is_a_list_of_nodes_without_numbers_of_databases() {
    let lines = |url: &str| format!("url = {url}\nsecret = \"{SECRET}\"\nmode = \"cluster\"");
    for (url, count) in [(r#"["redis://a", "redis://b:7001"]"#, 2), (r#""rediss://entry""#, 1)] {
        let cluster = cluster(&lines(url)).unwrap().cluster.unwrap();
        assert_eq!((cluster.mode, cluster.urls.len()), (EngineMode::Cluster, count));
    }
    let error = cluster(&lines(r#"["redis://a", "redis://b/2"]"#)).unwrap_err().to_string();
    assert!(error.contains("a Redis Cluster has no numbered databases"), "{error}");
}
