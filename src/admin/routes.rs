//! What there is on the operator's side, by path.

use percent_encoding::percent_decode_str;

use super::dashboard::File;
use super::error::AdminError;
use crate::core::job::JobId;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AdminRoute {
    /// The dashboard, or what it is made of.
    Dashboard(File),
    /// Whether the process lives.
    Health,
    /// Whether clients should be sent here.
    Readiness,
    /// What Prometheus reads.
    Metrics,
    /// How all stands now.
    State,
    /// The same, each second.
    Events,
    /// How it stood in the last minutes.
    History,
    /// All that is kept.
    Cache,
    /// What is kept of one job.
    Job(JobId),
}

impl AdminRoute {
    /// What the path of a request names.
    pub(super) fn of(path: &str) -> Result<Self, AdminError> {
        match path {
            "/healthz" => Ok(Self::Health),
            "/readyz" => Ok(Self::Readiness),
            "/metrics" => Ok(Self::Metrics),
            "/api/state" => Ok(Self::State),
            "/api/events" => Ok(Self::Events),
            "/api/history" => Ok(Self::History),
            "/api/cache" => Ok(Self::Cache),
            _ => match path.strip_prefix("/api/cache/") {
                Some(id) => job(id).map(Self::Job).ok_or(AdminError::BadId),
                None => File::at(path).map(Self::Dashboard).ok_or(AdminError::NotFound),
            },
        }
    }

    /// Whether it is for everybody who reaches the listener.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Health | Self::Readiness)
    }

    /// What may be done with it, as `Allow` says it.
    pub(super) fn methods(&self) -> &'static [&'static str] {
        match self {
            Self::Dashboard(_) | Self::Health | Self::Readiness | Self::Metrics => &["GET", "HEAD"],
            Self::State | Self::Events | Self::History => &["GET", "HEAD"],
            Self::Cache | Self::Job(_) => &["DELETE"],
        }
    }
}

fn job(segment: &str) -> Option<JobId> {
    JobId::new(&percent_decode_str(segment).decode_utf8().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_id_is_the_rest_of_the_path_decoded() {
        let id = |path: &str| match AdminRoute::of(path) {
            Ok(AdminRoute::Job(id)) => Some(id.as_str().to_owned()),
            _ => None,
        };
        assert_eq!(id("/api/cache/a-1").as_deref(), Some("a-1"));
        assert_eq!(id("/api/cache/%C3%A9%2Fb").as_deref(), Some("é/b"));
        for bad in ["/api/cache/", "/api/cache/%ff", &format!("/api/cache/{}", "x".repeat(129))] {
            assert_eq!(AdminRoute::of(bad), Err(AdminError::BadId), "{bad}");
        }
        for nothing in ["/index.html", "/dashboard/", "/metrics/", "/api", "/API/state", "/api/caches"] {
            assert_eq!(AdminRoute::of(nothing), Err(AdminError::NotFound), "{nothing}");
        }
    }
}
