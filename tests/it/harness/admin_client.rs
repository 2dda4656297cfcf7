//! A client of a gateway's admin listener, and a parser of its metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use clipgate::testing::admin::{Admin, Readiness};
use clipgate::testing::config::Listen;
use http::{Request, Response};
use http_body_util::Empty;
use serde_json::Value;

use crate::harness::gateway::TestGateway;
use crate::harness::process::TestClient;

pub(crate) struct AdminClient {
    pub(crate) address: SocketAddr,
    pub(crate) readiness: Readiness,
    _admin: Option<Admin>,
}

impl AdminClient {
    /// Opens the admin listener of a test gateway.
    pub(crate) async fn open(gateway: &mut TestGateway) -> Self {
        let readiness = Readiness::default();
        readiness.ready();
        let admin = gateway.open_admin(&readiness).await;
        let Listen::Tcp(address) = *admin.address() else { panic!("{admin:?}") };
        Self { address, readiness, _admin: Some(admin) }
    }

    /// Uses an admin listener that is open already.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, readiness: Readiness::default(), _admin: None }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Response<Bytes> {
        let mut request = Request::builder().method(method).uri(path);
        if !fields.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        TestClient::connect(self.address).await.send(request.body(Empty::new()).unwrap()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Bytes> {
        self.send("GET", path, &[]).await
    }

    pub(crate) async fn state(&self) -> Value {
        json(&self.get("/api/state").await)
    }

    /// Reads `/metrics`.
    pub(crate) async fn metrics(&self) -> MetricsPage {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status(), 200);
        MetricsPage::read(text(&answer))
    }

    /// Waits until the gateway has counted this many rejected requests, and asserts that it has not counted more. A
    /// malformed head is counted a moment after its response is written.
    pub(crate) async fn assert_rejected(&self, count: usize) {
        let rejected =
            async || self.metrics().await.sum("clipgate_requests_total", &[("outcome", "rejected")]) as usize;
        let counted = async {
            while rejected().await < count {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        super::gateway::within_secs(10, counted).await;
        assert_eq!(rejected().await, count);
    }
}

/// The samples of one scrape.
pub(crate) struct MetricsPage {
    pub(crate) text: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl MetricsPage {
    fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}")));
        Self { samples: samples.collect(), text: text.to_owned() }
    }

    /// Returns the sum of the metric's samples with these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &BTreeMap<String, String>| {
            labels.iter().all(|(name, value)| sample.get(*name).is_some_and(|actual| actual == value))
        };
        let found: Vec<f64> = self
            .samples
            .iter()
            .filter(|(sample, labels, _)| sample == name && has(labels))
            .map(|(_, _, value)| *value)
            .collect();
        assert!(!found.is_empty(), "{name} {labels:?} is not in\n{}", self.text);
        found.iter().sum()
    }

    /// Returns whether there is a sample with this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(sample, _, _)| sample == name)
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (left, value) = line.rsplit_once(' ')?;
    let (name, labels) = match left.split_once('{') {
        None => (left, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
    };
    // The gateway's label values contain no commas.
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
    };
    let labels = labels.split(',').filter(|label| !label.is_empty()).map(pair).collect::<Option<_>>()?;
    Some((name.to_owned(), labels, value.parse().ok()?))
}

pub(crate) fn text(answer: &Response<Bytes>) -> &str {
    std::str::from_utf8(answer.body()).unwrap()
}

pub(crate) fn json(answer: &Response<Bytes>) -> Value {
    serde_json::from_slice(answer.body()).unwrap_or_else(|error| panic!("{error} in {}", text(answer)))
}

pub(crate) fn field<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}
