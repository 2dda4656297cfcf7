//! Routes of the admin listener.

use percent_encoding::percent_decode_str;

use super::dashboard::DashboardFile;
use super::error::AdminError;
use crate::core::job::JobId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AdminRoute {
    /// A file of the dashboard.
    Dashboard(DashboardFile),
    Health,
    Readiness,
    Metrics,
    State,
    Events,
    History,
    /// All cached jobs.
    Cache,
    /// One cached job.
    CachedJob(JobId),
}

impl AdminRoute {
    pub(super) fn from_path(path: &str) -> Result<Self, AdminError> {
        match path {
            "/healthz" => Ok(Self::Health),
            "/readyz" => Ok(Self::Readiness),
            "/metrics" => Ok(Self::Metrics),
            "/api/state" => Ok(Self::State),
            "/api/events" => Ok(Self::Events),
            "/api/history" => Ok(Self::History),
            "/api/cache" => Ok(Self::Cache),
            _ => match path.strip_prefix("/api/cache/") {
                Some(id) => decode_id(id).map(Self::CachedJob).ok_or(AdminError::InvalidId),
                None => DashboardFile::at(path).map(Self::Dashboard).ok_or(AdminError::NotFound),
            },
        }
    }

    /// Returns whether the route needs neither a token nor an allowed host.
    pub(super) fn is_public(&self) -> bool {
        matches!(self, Self::Health | Self::Readiness)
    }

    /// Returns the methods of the route, for `Allow`.
    pub(super) fn methods(&self) -> &'static [&'static str] {
        match self {
            Self::Dashboard(_) | Self::Health | Self::Readiness | Self::Metrics => &["GET", "HEAD"],
            Self::State | Self::Events | Self::History => &["GET", "HEAD"],
            Self::Cache | Self::CachedJob(_) => &["DELETE"],
        }
    }
}

fn decode_id(segment: &str) -> Option<JobId> {
    JobId::new(&percent_decode_str(segment).decode_utf8().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_id_is_the_decoded_rest_of_the_path() {
        let id = |path: &str| match AdminRoute::from_path(path) {
            Ok(AdminRoute::CachedJob(id)) => Some(id.as_str().to_owned()),
            _ => None,
        };
        assert_eq!(id("/api/cache/a-1").as_deref(), Some("a-1"));
        assert_eq!(id("/api/cache/%C3%A9%2Fb").as_deref(), Some("é/b"));
        for invalid in ["/api/cache/", "/api/cache/%ff", &format!("/api/cache/{}", "x".repeat(513))] {
            assert_eq!(AdminRoute::from_path(invalid), Err(AdminError::InvalidId), "{invalid}");
        }
        for unknown in ["/index.html", "/dashboard/", "/metrics/", "/api", "/API/state", "/api/caches"] {
            assert_eq!(AdminRoute::from_path(unknown), Err(AdminError::NotFound), "{unknown}");
        }
    }
}
