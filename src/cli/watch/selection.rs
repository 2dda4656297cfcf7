//! The route and the jobs that the arguments name.

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

use crate::cli::error::UsageError;
use crate::config::{self, Config, base_url};
use crate::core::job::JobId;
use crate::core::query::{self, Query};
use crate::core::route::{ID, Route, Routes, Rung};

/// Most jobs in one path.
const MAX_JOBS_IN_PATH: usize = 100;

/// A job as an argument.
#[derive(Clone, Debug)]
pub(super) enum JobArg {
    Id(String),
    /// The path of a GET for the job, and the server if the argument is a URL.
    Target(PathAndQuery, Option<Uri>),
}

/// Jobs of one route.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) route: Route,
    pub(super) jobs: Vec<JobId>,
    /// Server of the first job that is a URL.
    pub(super) server: Option<Uri>,
}

/// Parses a job: its id, the path of a GET for its state, or the URL.
pub(super) fn job_arg(text: &str) -> Result<JobArg, String> {
    let target = |text: &str| PathAndQuery::try_from(text).map_err(|_| "the path is not valid".to_owned());
    if text.starts_with('/') {
        return Ok(JobArg::Target(target(text)?, None));
    }
    if !text.contains("://") {
        return JobId::new(text)
            .map(|id| JobArg::Id(id.as_str().to_owned()))
            .map_err(|error| error.to_string());
    }
    let uri: Uri = text.parse().map_err(|_| "the URL is not valid".to_owned())?;
    let server = |scheme: &Scheme, authority: &Authority| base_url(&format!("{scheme}://{authority}"));
    match (uri.scheme(), uri.authority()) {
        (Some(scheme), Some(authority)) => {
            let server = server(scheme, authority).map_err(|error| error.to_string())?;
            Ok(JobArg::Target(
                uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
                Some(server),
            ))
        }
        _ => Err("the URL is not valid".to_owned()),
    }
}

/// Selects the route by its name, else by the path of the first job, and reads all jobs as jobs of this route.
pub(super) fn select(
    args: &[JobArg],
    name: Option<&str>,
    config: Option<&Config>,
) -> Result<Selection, UsageError> {
    let configured = config.map(|config| config.routes.as_slice()).unwrap_or_default();
    let route = match name {
        Some(name) => named(name, configured)?,
        None => unnamed(args, configured)?,
    };
    let routes = Routes::from(route.clone());
    let (mut jobs, mut server) = (Vec::new(), None);
    for arg in args {
        match arg {
            JobArg::Id(id) => jobs.push(by_id(&route, id)?),
            JobArg::Target(target, host) => {
                jobs.extend(by_target(&routes, target)?);
                server = server.or_else(|| host.clone());
            }
        }
    }
    Ok(Selection { route, jobs: without_duplicates(jobs), server })
}

/// Returns the rung of this status word, else the last one that a client can wait for.
pub(super) fn goal(route: &Route, word: Option<&str>) -> Result<Rung, UsageError> {
    let ladder = &route.ladder;
    let Some(word) = word else { return Ok(ladder.highest_askable()) };
    ladder.rung(word).filter(|rung| ladder.is_askable(*rung)).ok_or_else(|| {
        let words = ladder.askable_words().collect::<Vec<_>>().join(", ");
        UsageError(format!("--until: a job of the route `{}` can be followed to one of {words}", route.name))
    })
}

/// Returns the built-in route, and those of the presets.
fn presets() -> Vec<Route> {
    let others = config::preset_routes().filter(|route| route.name != Route::suno().name);
    std::iter::once(Route::suno()).chain(others).collect()
}

fn named(name: &str, configured: &[Route]) -> Result<Route, UsageError> {
    let presets = presets();
    let known = || configured.iter().chain(&presets);
    known().find(|route| route.name == name).cloned().ok_or_else(|| {
        let names: Vec<&str> = known().map(|route| route.name.as_str()).collect();
        UsageError(format!("--route: `{name}` is not a route; use one of {}", names.join(", ")))
    })
}

fn unnamed(args: &[JobArg], configured: &[Route]) -> Result<Route, UsageError> {
    let target = args.iter().find_map(|arg| match arg {
        JobArg::Target(target, _) => Some(target),
        JobArg::Id(_) => None,
    });
    if let Some(target) = target {
        let presets = presets();
        let mut known = configured.iter().chain(&presets);
        let found = known.find(|route| by_target(&Routes::from((*route).clone()), target).is_ok());
        return found
            .cloned()
            .ok_or_else(|| UsageError(format!("{}: no route has this path; use --route", target.path())));
    }
    match configured {
        [] => Ok(Route::suno()),
        [route] => Ok(route.clone()),
        several => {
            let names: Vec<&str> = several.iter().map(|route| route.name.as_str()).collect();
            Err(UsageError(format!(
                "the configuration has several routes; use --route with one of {}",
                names.join(", ")
            )))
        }
    }
}

fn by_id(route: &Route, id: &str) -> Result<JobId, UsageError> {
    if route.path.variables().any(|name| name != ID) {
        let path = route.path.as_str();
        return Err(UsageError(format!(
            "{id}: a job of the route `{}` needs its path, as in {path}",
            route.name
        )));
    }
    JobId::new(id).map_err(|error| UsageError(format!("{id}: {error}")))
}

fn by_target(routes: &Routes, target: &PathAndQuery) -> Result<Vec<JobId>, UsageError> {
    match query::parse(routes, target.path(), target.query(), MAX_JOBS_IN_PATH) {
        Query::Wait(query) => Ok(query.asked),
        Query::Bad(error) => Err(UsageError(format!("{}: {error}", target.path()))),
        Query::Other => {
            let paths: Vec<&str> = routes.iter().map(|(_, route)| route.path.as_str()).collect();
            Err(UsageError(format!("{target}: not a job of the route, whose path is {}", paths.join(" or "))))
        }
    }
}

fn without_duplicates(ids: Vec<JobId>) -> Vec<JobId> {
    let mut unique: Vec<JobId> = Vec::with_capacity(ids.len());
    for id in ids {
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    unique
}
