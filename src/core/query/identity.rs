//! Identity of the jobs in a target: the id, the variables of the path, and the parameters that belong to it.

use percent_encoding::utf8_percent_encode;

use super::{AMBIGUOUS, DecodeError, Param, ParamError, RESERVED, decode};
use crate::core::job::{JobId, MAX_ID_BYTES, RouteIndex};
use crate::core::route::{Form, ID, PathMatch, PathTemplate, Route, Routes, decode_segment};

/// Parts of a job's identity in a path.
pub(super) struct PathIdentity {
    /// The decoded id, if the path has it.
    pub(super) id: Option<String>,
    /// The other variables in their canonical encoding.
    pub(super) rest: String,
}

/// Returns the identity in a path; `None` if servers disagree about one of its variables.
pub(super) fn path_identity(route: &Route, found: &PathMatch<'_>) -> Option<PathIdentity> {
    if found.captures.is_empty() {
        return Some(PathIdentity { id: None, rest: String::new() });
    }
    let raw_id = route.path.variables().zip(&found.captures).find(|(name, _)| *name == ID);
    let id = match raw_id {
        Some((_, raw)) => Some(decode_segment(raw)?.into_owned()),
        None => None,
    };
    Some(PathIdentity { id, rest: route.other_variables(&found.captures)? })
}

/// Longest encoding of the parameters that belong to one job's identity, in bytes.
const MAX_PARAMS_BYTES: usize = 2048;

/// Collects the parameters that belong to the identity of a job. Their order in the query does not matter; the values of
/// a repeated parameter keep theirs.
pub(super) struct IdentityParams<'r> {
    route: &'r Route,
    values: Vec<(usize, String)>,
}

impl<'r> IdentityParams<'r> {
    pub(super) fn new(route: &'r Route) -> Self {
        Self { route, values: Vec::new() }
    }

    /// Adds a value of the parameter at this position of [`Route::params`].
    pub(super) fn push(&mut self, at: usize, value: &str) -> Result<(), ParamError> {
        let value = decode(value, MAX_ID_BYTES).map_err(|_: DecodeError| ParamError::Unknown)?;
        let length: usize = self.values.iter().map(|(_, value)| value.len()).sum();
        if value.bytes().any(|byte| AMBIGUOUS.contains(&byte)) || length + value.len() > MAX_PARAMS_BYTES {
            return Err(ParamError::Unknown);
        }
        self.values.push((at, value.into_owned()));
        Ok(())
    }

    /// Returns the rest of a job's identity: the variables of its path, then these parameters.
    pub(super) fn append_to(mut self, mut rest: String) -> String {
        self.values.sort_by_key(|(at, _)| *at); // a stable sort
        for (n, (at, value)) in self.values.iter().enumerate() {
            rest.push(if n == 0 { '?' } else { '&' });
            rest.extend(utf8_percent_encode(&self.route.params[*at], RESERVED));
            rest.push('=');
            rest.extend(utf8_percent_encode(value, RESERVED));
        }
        rest
    }
}

/// Returns all jobs that a target names, also where the request is passed through; at most 1000, and none on other paths.
/// Parameters that belong to their identity are left out.
pub fn named(routes: &Routes, path: &str, query: Option<&str>) -> Vec<JobId> {
    match routes.endpoint(path) {
        Some((index, found)) => named_at(routes, index, &found, query),
        None => Vec::new(),
    }
}

fn named_at(routes: &Routes, index: RouteIndex, found: &PathMatch<'_>, query: Option<&str>) -> Vec<JobId> {
    let (route, form) = (routes.get(index), found.form);
    let Some(identity) = path_identity(route, found) else { return Vec::new() };
    let job = |id: &str| JobId::with_rest(index, id, &identity.rest).ok();
    if let Some(id) = &identity.id {
        return job(id).into_iter().collect();
    }
    let parameters = query.unwrap_or_default().split('&').filter_map(|parameter| parameter.split_once('='));
    let values = parameters
        .filter(|(name, _)| matches!(Param::parse(route, form, name), Ok(Param::Id(_))))
        // An upstream may parse `a,b` as one id or as two: both readings count.
        .flat_map(|(_, value)| {
            std::iter::once(value).chain(value.split([',', ';']).skip_while(move |id| *id == value))
        });
    values.filter_map(|value| job(&decode(value, MAX_ID_BYTES).ok()?)).take(MAX_NAMED).collect()
}

/// The largest `wait.max_jobs` that the configuration accepts.
pub(super) const MAX_NAMED: usize = 1000;

/// Returns the jobs that a request with an unsafe method may change (RFC 9111 section 4.4): those of a path, of a path
/// below it or continued by a colon, and those of the route's actions. Parameters that belong to the identity of a job
/// are left out: the action changes the job for all of them.
pub fn acted_on(routes: &Routes, path: &str, query: Option<&str>) -> Vec<JobId> {
    let mut jobs = Vec::new();
    for (index, route) in routes.iter() {
        if route.id_param.is_some() {
            if let Some(found) = route.endpoint(path) {
                jobs.extend(named_at(routes, index, &found, query));
            }
        } else if let Some((captures, below)) = route.path.captures_prefix(path) {
            // `a:cancel` may be a job or an action on the job `a`.
            let with_verb = PathMatch { form: Form::Single, captures: captures.clone() };
            jobs.extend(named_at(routes, index, &with_verb, query));
            let before_verb =
                captures.last().and_then(|last| last.rsplit_once(':')).filter(|_| below.is_empty());
            if let Some((id, _)) = before_verb {
                let mut captures = captures;
                if let Some(last) = captures.last_mut() {
                    *last = id;
                }
                jobs.extend(named_at(routes, index, &PathMatch { form: Form::Single, captures }, query));
            }
        }
        jobs.extend(route.actions.iter().filter_map(|action| job_of_action(index, route, action, path)));
    }
    jobs.sort();
    jobs.dedup();
    jobs
}

/// Returns the job that a request to this path changes, if the path is that of the action.
fn job_of_action(index: RouteIndex, route: &Route, action: &PathTemplate, path: &str) -> Option<JobId> {
    let captures = action.captures(path)?;
    let value = |name| action.variables().position(|other| other == name).map(|at| captures[at]);
    let id = decode_segment(value(ID)?)?;
    let of_route: Vec<&str> = route.path.variables().map(value).collect::<Option<_>>()?;
    JobId::with_rest(index, &id, &route.other_variables(&of_route)?).ok()
}
