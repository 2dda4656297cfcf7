//! Identity of the jobs in a target: the id, the variables of the path, and the parameters that belong to it.

use std::borrow::Cow;

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
    pub(super) colons: Colons,
}

/// Spelling of the colons in a path. Some servers read a colon as the start of a verb, unless it is percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colons {
    /// None, or as they are.
    Plain,
    /// Those of the id are percent-encoded, and no others.
    EncodedInId,
    /// A poll could not have the same spelling.
    Mixed,
}

impl Colons {
    fn of(id: Option<&str>, mut others: impl Iterator<Item = bool>) -> Self {
        let is_encoded = id.is_some_and(has_encoded_colon);
        if others.any(|is_encoded| is_encoded) || (is_encoded && id.is_some_and(|id| id.contains(':'))) {
            Self::Mixed
        } else if is_encoded {
            Self::EncodedInId
        } else {
            Self::Plain
        }
    }
}

fn has_encoded_colon(raw: &str) -> bool {
    raw.as_bytes().windows(3).any(|escape| escape.eq_ignore_ascii_case(b"%3a"))
}

/// End of the parameters in the rest of a job whose colons in the id are percent-encoded: a variant of the job.
pub(super) const ENCODED_COLONS: char = '#';

/// Returns the identity in a path; `None` if servers disagree about one of its variables.
pub(super) fn path_identity(route: &Route, found: &PathMatch<'_>) -> Option<PathIdentity> {
    if found.captures.is_empty() {
        return Some(PathIdentity { id: None, rest: String::new(), colons: Colons::Plain });
    }
    let variables = || route.path.variables().zip(found.captures.iter().copied());
    let raw_id = variables().find(|(name, _)| *name == ID).map(|(_, raw)| raw);
    let id = match raw_id {
        Some(raw) => Some(decode_segment(raw)?.into_owned()),
        None => None,
    };
    let others = variables().filter(|(name, _)| *name != ID).map(|(_, raw)| has_encoded_colon(raw));
    let colons = Colons::of(raw_id, others);
    Some(PathIdentity { id, rest: route.other_variables(&found.captures)?, colons })
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

    /// Returns the rest of a job's identity: the variables of its path, then these parameters, then the spelling of its
    /// colons.
    pub(super) fn append_to(mut self, mut rest: String, colons: Colons) -> String {
        self.values.sort_by_key(|(at, _)| *at); // a stable sort
        for (n, (at, value)) in self.values.iter().enumerate() {
            rest.push(if n == 0 { '?' } else { '&' });
            rest.extend(utf8_percent_encode(&self.route.params[*at], RESERVED));
            rest.push('=');
            rest.extend(utf8_percent_encode(value, RESERVED));
        }
        if colons == Colons::EncodedInId {
            rest.push_str(if self.values.is_empty() { "?" } else { "" });
            rest.push(ENCODED_COLONS);
        }
        rest
    }
}

/// Returns all jobs that a target names, also where the request is passed through; at most 1000 for each reading of the
/// path, and none on other paths. Parameters that belong to their identity are left out. The two paths of the built-in
/// route have one reading.
pub fn named(routes: &Routes, path: &str, query: Option<&str>) -> Vec<JobId> {
    let lenient = lenient_path(path);
    let is_configured = |(index, _): &(RouteIndex, PathMatch<'_>)| !routes.get(*index).is_built_in;
    let lenient = lenient.as_deref().and_then(|path| routes.endpoint(path)).filter(is_configured);
    let found = routes.endpoint(path).into_iter().chain(lenient);
    found.flat_map(|(index, found)| named_at(routes, index, &found, query)).collect()
}

/// Returns the path as lenient servers may read it, if that is another one: without empty segments, dot segments and path
/// parameters, and with the escapes of slashes, colons, semicolons and unreserved characters decoded.
fn lenient_path(path: &str) -> Option<String> {
    let mut segments: Vec<&str> = Vec::new();
    let decoded = decode_plain_escapes(path);
    for segment in decoded.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let lenient: String = segments.iter().flat_map(|segment| ["/", segment]).collect();
    (lenient != path).then_some(lenient)
}

/// Decodes the escapes of letters, digits and `-._~/\:;`.
fn decode_plain_escapes(path: &str) -> String {
    let mut pieces = path.split('%');
    let mut decoded = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let byte = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~/\\:;".contains(byte)) {
            Some(byte) => {
                decoded.push(char::from(byte));
                decoded.push_str(&piece[2..]);
            }
            None => {
                decoded.push('%');
                decoded.push_str(piece);
            }
        }
    }
    decoded
}

fn named_at(routes: &Routes, index: RouteIndex, found: &PathMatch<'_>, query: Option<&str>) -> Vec<JobId> {
    let (route, form) = (routes.get(index), found.form);
    let Some(identity) = path_identity(route, found) else { return Vec::new() };
    let job = |id: &str| JobId::with_rest(index, id, &identity.rest).ok();
    if let Some(id) = &identity.id {
        return job(id).into_iter().collect();
    }
    let parameters = query.unwrap_or_default().split('&').filter_map(|parameter| parameter.split_once('='));
    let ids = parameters.filter(|(name, _)| matches!(Param::parse(route, form, name), Ok(Param::Id(_))));
    ids.flat_map(|(_, value)| readings(value)).filter_map(|id| job(&id)).take(MAX_NAMED).collect()
}

/// Returns the ids that an upstream may read in a value. It may parse `a,b` and `a%2Cb` as one id or as two.
fn readings(value: &str) -> Vec<String> {
    const SEPARATORS: [char; 2] = [',', ';'];
    let Ok(whole) = decode(value, MAX_ID_BYTES) else {
        let parts = value.split(SEPARATORS).filter_map(|part| decode(part, MAX_ID_BYTES).ok());
        return parts.map(Cow::into_owned).collect();
    };
    let parts = whole.split(SEPARATORS).filter(|part| *part != whole).map(str::to_owned);
    std::iter::once(whole.clone().into_owned()).chain(parts).collect()
}

/// The largest `wait.max_jobs` that the configuration accepts.
pub(super) const MAX_NAMED: usize = 1000;

/// Returns the jobs that a request with an unsafe method may change (RFC 9111 section 4.4): those of a path, of a path
/// below it or continued by a colon, and those of the route's actions. Parameters that belong to the identity of a job
/// are left out: the action changes the job for all of them. A path that servers may read in two ways counts as both.
pub fn acted_on(routes: &Routes, path: &str, query: Option<&str>) -> Vec<JobId> {
    let mut jobs = acted_on_at(routes, path, query);
    if let Some(lenient) = lenient_path(path) {
        jobs.extend(acted_on_at(routes, &lenient, query));
    }
    jobs.sort();
    jobs.dedup();
    jobs
}

fn acted_on_at(routes: &Routes, path: &str, query: Option<&str>) -> Vec<JobId> {
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
