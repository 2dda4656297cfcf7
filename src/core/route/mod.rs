//! A route: one asynchronous upstream API as data, with its paths, parameters and ladder of states.
//!
//! | file | content |
//! | --- | --- |
//! | `ladder` | the states of a job in their order |
//! | `template` | paths with variables |
//! | `pointer` | places of values in a body |
//! | `suno` | the built-in route |
//!
//! No other file spells a status word or a path of the built-in upstream; `tests/it/architecture.rs` checks that.

mod ladder;
mod pointer;
mod suno;
mod template;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

pub use self::ladder::{Ladder, Rung, RungSpec};
pub use self::pointer::JsonPointer;
pub use self::suno::SunoEndpoints;
pub(crate) use self::template::has_broken_escape;
pub use self::template::{BadTemplate, ID, PathTemplate, decode_segment, encode_segment};
pub use crate::core::job::RouteIndex;

/// The state that ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// The current state, at once: the request has no status parameter.
    Now,
    /// This rung or a higher one.
    Rung(Rung),
    /// Any state but this one. Only on routes whose upstream never holds: their polls name no goal, and a job may return to
    /// an earlier state.
    Not(Rung),
}

impl Goal {
    /// Returns whether a job on this rung ends the wait.
    pub fn is_reached_by(self, rung: Rung) -> bool {
        match self {
            Self::Now => true,
            Self::Rung(asked) => rung >= asked,
            Self::Not(left) => rung != left,
        }
    }
}

/// One of the two endpoints of a route: one job a request, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// One job; the body is one object.
    Single,
    /// Several jobs; the body is a list.
    Multi,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Single => "single",
            Form::Multi => "multi",
        })
    }
}

/// An upstream API for one kind of job: how the state of a job is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name in logs, metrics and on the dashboard.
    pub name: String,
    /// Path of the GET that reads one job.
    pub path: PathTemplate,
    /// Query parameter with the id, where the path does not have it.
    pub id_param: Option<String>,
    /// Other query parameters that belong to the identity of a job.
    pub params: Vec<String>,
    /// Endpoint for several jobs.
    pub list: Option<ListEndpoint>,
    /// Place of the id in the body of a job; `None` if the body does not have it.
    pub id: Option<JsonPointer>,
    /// Place of the state of a job.
    pub status: StatusSource,
    /// Place of an error: where it is present and not null, a successful job counts as failed.
    pub error: Option<JsonPointer>,
    /// States of a job, first to last.
    pub ladder: Ladder,
    /// Longest time for which the upstream holds a request. Zero: it answers each at once.
    pub hold: Duration,
    /// Query parameter for the rung to wait for. Sent to an upstream that holds requests only.
    pub wait_param: Option<String>,
    /// Query parameter for the seconds for which the upstream holds the request.
    pub hold_param: Option<String>,
    /// Shortest time between two polls of a job, where the upstream never holds.
    pub pace: Duration,
    /// Longest time between two polls of a job.
    pub max_pace: Duration,
    /// Time for which a plain GET is held for the next state.
    pub default_wait: Duration,
    /// Lifetimes of cached states; `None`: those of `[cache]`.
    pub lifetimes: Lifetimes,
    /// Paths of other requests that change a job.
    pub actions: Vec<PathTemplate>,
    /// Whether this is the route that needs no configuration.
    pub is_built_in: bool,
}

/// The endpoint of a route for several jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEndpoint {
    /// Path without variables.
    pub path: String,
    /// Query parameter for the ids, without brackets.
    pub param: String,
    /// Spelling of several ids in the query.
    pub form: ListForm,
    /// Most jobs in one request.
    pub max: usize,
}

/// Spelling of several ids in a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListForm {
    /// `ids[]=a&ids[]=b`
    Brackets,
    /// `ids=a&ids=b`
    Repeat,
    /// `ids=a,b`
    Comma,
}

/// Place of a job's state in a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusSource {
    /// A value of the body. Booleans and numbers count as their JSON text, an absent value and null as an empty word.
    Body(JsonPointer),
    /// The HTTP status. The body can be anything.
    HttpStatus,
}

/// Lifetimes of cached states; `None`: the lifetime of `[cache]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a successful job.
    pub success: Option<Duration>,
    /// Of a failed job.
    pub failure: Option<Duration>,
    /// Of an unfinished job.
    pub live: Option<Duration>,
}

/// A path that belongs to a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMatch<'p> {
    /// Endpoint of the path.
    pub form: Form,
    /// Raw values of the path's variables, in its order.
    pub captures: Vec<&'p str>,
}

impl Route {
    /// Returns the built-in route: AIMLAPI's Suno clips. The upstream holds a request for `hold`.
    pub fn suno_held_for(hold: Duration) -> Self {
        suno::route(hold)
    }

    /// Returns the built-in route with the upstream's documented hold.
    pub fn suno() -> Self {
        suno::route(suno::HOLD)
    }

    /// Returns whether the upstream answers every request at once.
    pub fn never_holds(&self) -> bool {
        self.hold.is_zero()
    }

    /// Returns whether a held poll names the state that ends it, so that its silence proves the state of the job. An upstream
    /// that holds a request until the end of the job proves nothing about the states before.
    pub fn proves(&self) -> bool {
        !self.never_holds() && self.wait_param.is_some()
    }

    /// Returns the endpoint of this path, if it belongs to the route.
    pub fn endpoint<'p>(&self, path: &'p str) -> Option<PathMatch<'p>> {
        if let Some(captures) = self.path.captures(path) {
            return Some(PathMatch { form: Form::Single, captures });
        }
        let is_list = self.list.as_ref().is_some_and(|list| list.path == path);
        is_list.then(|| PathMatch { form: Form::Multi, captures: Vec::new() })
    }

    /// Returns the match of a path that is known to be that of this endpoint. A path without variables is not read again.
    pub(crate) fn endpoint_of_form<'p>(&self, form: Form, path: &'p str) -> Option<PathMatch<'p>> {
        match form {
            Form::Single if self.path.variables().next().is_some() => self.endpoint(path),
            Form::Single | Form::Multi => Some(PathMatch { form, captures: Vec::new() }),
        }
    }

    /// Returns the template of the endpoint, for labels and spans.
    pub fn template(&self, form: Form) -> &str {
        match (form, &self.list) {
            (Form::Multi, Some(list)) => &list.path,
            (Form::Single | Form::Multi, _) => self.path.as_str(),
        }
    }
}

/// All routes of a gateway: 1 to [`MAX_ROUTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes(Vec<Route>);

/// The most routes of one gateway.
pub const MAX_ROUTES: usize = 32;

impl Routes {
    /// Creates the routes of a gateway. No path may belong to two of them.
    ///
    /// # Panics
    /// Panics if the list is empty or has more than [`MAX_ROUTES`].
    pub fn new(routes: Vec<Route>) -> Self {
        assert!((1..=MAX_ROUTES).contains(&routes.len()), "a gateway has 1 to 32 routes");
        Self(routes)
    }

    /// Returns the route of a job.
    ///
    /// # Panics
    /// Panics if the index comes from other routes.
    pub fn get(&self, index: RouteIndex) -> &Route {
        &self.0[usize::from(index.0)]
    }

    /// Iterates over the routes and their indexes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (RouteIndex, &Route)> {
        self.0.iter().enumerate().map(|(n, route)| (RouteIndex(u8::try_from(n).unwrap_or(u8::MAX)), route))
    }

    /// Returns the number of routes.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the route and the endpoint of a path.
    pub fn endpoint<'p>(&self, path: &'p str) -> Option<(RouteIndex, PathMatch<'p>)> {
        self.iter().find_map(|(index, route)| Some((index, route.endpoint(path)?)))
    }
}

impl From<Route> for Routes {
    fn from(route: Route) -> Self {
        Self::new(vec![route])
    }
}

impl Route {
    /// Returns the canonical encoding of a path's variables other than the id, joined by slashes. `None` if servers
    /// disagree about a value.
    pub(crate) fn other_variables(&self, captures: &[&str]) -> Option<String> {
        let others = self.path.variables().zip(captures).filter(|(name, _)| *name != ID);
        let values = others.map(|(_, raw)| Some(encode_segment(&decode_segment(raw)?).into_owned()));
        Some(values.collect::<Option<Vec<String>>>()?.join("/"))
    }

    /// Writes the path of a job at the single endpoint: its id, with or without encoded colons, and its other variables,
    /// which are encoded already.
    pub(crate) fn write_path(&self, out: &mut String, id: &str, encodes_colons: bool, other_variables: &str) {
        let mut others = other_variables.split('/');
        self.path.write(out, |name| match name {
            ID if encodes_colons => Cow::Owned(encode_segment(id).replace(':', "%3A")),
            ID => encode_segment(id),
            _ => Cow::Borrowed(others.next().unwrap_or_default()),
        });
    }
}

#[cfg(test)]
impl Route {
    /// Returns a configured route with the paths and states of the built-in one, whose upstream never holds.
    pub(crate) fn never_holding() -> Self {
        Self { hold: Duration::ZERO, is_built_in: false, ..Self::suno() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_two_paths_compared_letter_for_letter() {
        let route = Route::suno();
        let form = |path| route.endpoint(path).map(|found| found.form);
        assert_eq!(form("/v2/generate/audio/suno-ai/clip"), Some(Form::Single));
        assert_eq!(form("/v2/generate/audio/suno-ai/clips"), Some(Form::Multi));
        for other in ["/v2/generate/audio/suno-ai/clip/", "/v2/generate/audio/suno-ai/Clip", "/", ""] {
            assert_eq!(form(other), None, "{other}");
        }
    }
}
