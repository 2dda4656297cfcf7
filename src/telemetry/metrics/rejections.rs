//! Errors that the gateway itself answered, by reason, and all responses of 500 and above.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::register;

/// Reasons of rejections below 500: the client's own doing, or a limit of its account.
const CLIENT_REASONS: [&str; 30] = [
    "bad-request",
    "bad-target",
    "body-incomplete",
    "body-stalled",
    "body-too-large",
    "broken-escape",
    "calls",
    "connection-auth",
    "cross-origin",
    "empty-id",
    "foreign-host",
    "headers-too-large",
    "id-not-utf8",
    "key-rate-limited",
    "long-id",
    "method-not-allowed",
    "misdirected",
    "multiple-authorization",
    "no-id",
    "no-token",
    "requests",
    "status-not-askable",
    "too-many-ids",
    "too-many-passthrough-per-key",
    "too-many-waits-per-address",
    "too-many-waits-per-key",
    "unknown-token",
    "upstream-error",
    "uri-too-long",
    OTHER_REASON,
];

/// Reasons of rejections of 500 and above.
const SERVER_REASONS: [&str; 16] = [
    "connect",
    "connect-timeout",
    "connect-unsupported",
    "invalid-upstream-response",
    "local-resources",
    "loop",
    "not-cached",
    "shutting-down",
    "tls",
    "too-many-passthrough",
    "too-many-waits",
    "unreachable",
    "upstream-error",
    "upstream-reset",
    "upstream-timeout",
    OTHER_REASON,
];

/// Label of a reason that the two lists lack: the label stays a closed set.
const OTHER_REASON: &str = "other";

/// Counters of rejected requests. All exist from the start, so counting takes no lock.
#[derive(Debug)]
pub(crate) struct RejectionMetrics {
    by_reason: BTreeMap<(StatusClass, &'static str), Counter>,
    failed: Counter,
}

/// Label `class`: the first digit of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StatusClass {
    Client,
    Server,
}

impl StatusClass {
    fn of(status: u16) -> Self {
        if status < 500 { Self::Client } else { Self::Server }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Client => "4xx",
            Self::Server => "5xx",
        }
    }
}

impl RejectionMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let counts = Family::<[(&str, &str); 2], Counter>::default();
        let help = "Requests that the gateway answered with an error of its own";
        register(registry, "clipgate_rejections_total", help, counts.clone());
        let failed = Counter::default();
        let failed_help = "Responses with a status of 500 or above, those of the upstream included";
        register(registry, "clipgate_server_errors_total", failed_help, failed.clone());
        let reasons = CLIENT_REASONS.map(|reason| (StatusClass::Client, reason));
        let reasons = reasons.into_iter().chain(SERVER_REASONS.map(|reason| (StatusClass::Server, reason)));
        let counter = |(class, reason): (StatusClass, &'static str)| {
            let counter = counts.get_or_create_owned(&[("reason", reason), ("class", class.label())]);
            ((class, reason), counter)
        };
        Self { by_reason: reasons.map(counter).collect(), failed }
    }

    /// Records the status of a response, and the reason if the gateway rejected the request.
    pub(crate) fn record(&self, status: u16, reason: Option<&'static str>) {
        let class = StatusClass::of(status);
        if class == StatusClass::Server {
            self.failed.inc();
        }
        if let Some(reason) = reason {
            let counter = self.by_reason.get(&(class, reason));
            if let Some(counter) = counter.or_else(|| self.by_reason.get(&(class, OTHER_REASON))) {
                counter.inc();
            }
        }
    }

    /// Returns the counts above zero by reason.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for ((_, reason), counter) in &self.by_reason {
            if counter.get() > 0 {
                *counts.entry(*reason).or_default() += counter.get();
            }
        }
        counts
    }

    /// Returns the number of responses of 500 and above.
    pub(super) fn failed(&self) -> u64 {
        self.failed.get()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_documented_reason_has_a_count_and_no_other_reason_has_one() {
        let page = include_str!("../../../docs/http-reference.md");
        let errors = page.split_once("\n## Errors\n").unwrap().1.split("\n## ").next().unwrap();
        let rows = errors.lines().filter_map(|line| line.strip_prefix("| "));
        let documented: BTreeSet<(bool, &str)> = rows
            .filter_map(|row| {
                let (status, rest) = row.split_once(" | ")?;
                let status: u16 = status.parse().ok()?;
                Some((status, rest.split(" | ").next()?))
            })
            .flat_map(|(status, cell)| {
                cell.split('`').skip(1).step_by(2).map(move |word| (status >= 500, word))
            })
            .collect();
        let is_undocumented = |reason: &&str| !matches!(*reason, "upstream-error" | OTHER_REASON);
        let client = CLIENT_REASONS.iter().copied().filter(is_undocumented).map(|reason| (false, reason));
        let server = SERVER_REASONS.iter().copied().filter(is_undocumented).map(|reason| (true, reason));
        assert_eq!(client.chain(server).collect::<BTreeSet<_>>(), documented);
    }

    #[test]
    fn an_unknown_reason_is_counted_as_other() {
        let rejections = RejectionMetrics::new(&mut Registry::default());
        rejections.record(401, Some("no-token"));
        rejections.record(503, Some("invented"));
        rejections.record(502, None);
        rejections.record(200, None);
        assert_eq!(rejections.counts(), BTreeMap::from([("no-token", 1), (OTHER_REASON, 1)]));
        assert_eq!(rejections.failed(), 2);
    }
}
