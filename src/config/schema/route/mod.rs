//! The reader of `[[routes]]`: keys over those of a preset, checks, and the ladder of states.
//!
//! | file | content |
//! | --- | --- |
//! | `keys` | a row for each key, and parsers of values |
//! | `check` | checks between the keys of a route, and between routes |

mod check;
mod keys;

use std::collections::BTreeMap;
use std::time::Duration;

use self::check::RouteErrors;
#[cfg(test)]
pub(in crate::config) use self::keys::LIST_KEYS;
pub(in crate::config) use self::keys::ROUTE_KEYS;
use self::keys::RouteBuilder;
use super::row::{TableListTexts, read_keys, read_tables};
use crate::config::error::{InvalidValue, Source};
use crate::config::presets::{Preset, preset};
use crate::config::value::{AllowedValues, LocatedValue, RawValue, ValueReader};
use crate::core::route::{
    Ladder, Lifetimes, ListEndpoint, MAX_ROUTES, PathTemplate, Route, RungSpec, StatusSource,
};

/// A table of `[[routes]]`, with the parts that are valid.
pub(in crate::config) struct ConfiguredRoute {
    /// Key in errors, such as `routes #1`.
    pub(super) key: String,
    pub(super) name: Option<String>,
    pub(super) preset: Option<&'static Preset>,
    /// Paths of its endpoints.
    pub(super) paths: Vec<PathTemplate>,
    /// Place of `default_wait`.
    pub(super) default_wait: Source,
    /// `None` if the table has an error.
    pub(super) route: Option<Route>,
}

/// Values of a route by key: its own, and those of its preset.
type RouteTable<'a> = BTreeMap<&'a str, &'a LocatedValue>;

/// Reads `routes`. Errors of the second route have the key `routes #2`.
pub(super) fn read_routes(slot: &mut Vec<ConfiguredRoute>, reader: &mut ValueReader<'_>) {
    if let RawValue::List(elements) = &reader.value.raw
        && let Some(first_beyond) = elements.get(MAX_ROUTES)
    {
        let problem = format!("{} routes, but a gateway has at most {MAX_ROUTES}", elements.len());
        let hint = "Remove routes, or run a second gateway for them.".to_owned();
        reader.error(first_beyond.source.clone(), InvalidValue { problem, hint });
    }
    let texts = TableListTexts {
        list: "a list of routes",
        table: "a route",
        hint: "Write [[routes]] above the keys of each route.",
    };
    read_tables(&texts, MAX_ROUTES, reader, |table, reader| {
        let route = read_route(table, reader, slot);
        slot.push(route);
    });
}

fn read_route(
    own: &BTreeMap<String, LocatedValue>,
    reader: &mut ValueReader<'_>,
    earlier: &[ConfiguredRoute],
) -> ConfiguredRoute {
    let errors_before = reader.errors.len();
    let mut values: RouteTable<'_> = own.iter().map(|(name, value)| (name.as_str(), value)).collect();
    if let Some(RawValue::Text(name) | RawValue::Bare(name)) = own.get("preset").map(|value| &value.raw)
        && let Ok(preset) = preset(name)
    {
        values.extend(preset.defaults_for(own));
    }
    let mut builder = RouteBuilder::default();
    read_keys(ROUTE_KEYS, &mut builder, &values, reader);
    if builder.status == StatusSource::HttpStatus && !values.contains_key("id") {
        builder.id = None;
    }
    let mut errors = RouteErrors::new(own, reader, errors_before);
    check::check_route(&builder, &values, &mut errors);
    check::check_against(&builder, earlier, &mut errors);
    let is_valid = reader.errors.len() == errors_before;
    ConfiguredRoute {
        key: reader.key.clone(),
        name: builder.name.clone(),
        preset: builder.preset,
        paths: builder.paths(),
        default_wait: own.get("default_wait").unwrap_or(reader.value).source.clone(),
        route: if is_valid { builder.build() } else { None },
    }
}

/// Returns the route of a preset alone.
pub(in crate::config) fn preset_route(preset: &Preset) -> Option<Route> {
    let (mut builder, mut errors) = (RouteBuilder::default(), Vec::new());
    let values = preset.route.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let value = preset.route.get("path")?;
    let allowed = &AllowedValues::Described("a route");
    let (key, env) = (String::new(), &BTreeMap::new());
    let mut reader = ValueReader { key, value, allowed, env, errors: &mut errors };
    read_keys(ROUTE_KEYS, &mut builder, &values, &mut reader);
    builder.build()
}

impl RouteBuilder {
    fn paths(&self) -> Vec<PathTemplate> {
        let list = self.list.as_ref().and_then(|list| list.path.clone());
        self.path.iter().cloned().chain(list).collect()
    }

    /// Returns the route; `None` without a required key.
    fn build(self) -> Option<Route> {
        let never_holds = self.hold.is_zero();
        let [ladder, without_pending_rungs] =
            [self.ladder(&self.pending)?, self.ladder(&[self.pending.concat()])?];
        let list = match self.list {
            Some(list) => Some(ListEndpoint {
                path: list.path?.as_str().to_owned(),
                param: list.param?,
                form: list.form,
                max: list.max,
            }),
            None => None,
        };
        let pace = self.pace;
        let only_without_hold = |pace| if never_holds { pace } else { Duration::ZERO };
        let mut route = Route {
            name: self.name?,
            path: self.path?,
            id_param: self.id_param,
            params: self.params,
            list,
            id: self.id,
            status: self.status,
            error: self.error,
            ladder,
            hold: self.hold,
            wait_param: self.wait_param,
            hold_param: self.hold_param,
            pace: only_without_hold(pace),
            max_pace: only_without_hold(self.max_pace.unwrap_or(pace)),
            default_wait: self.default_wait,
            lifetimes: Lifetimes {
                success: Some(self.completed_ttl),
                failure: self.error_ttl,
                live: self.live_ttl.or(never_holds.then_some(pace)),
            },
            actions: self.actions,
            is_built_in: true,
        };
        // A held poll that names no state is silent until the end, and proves none of the states before.
        if !never_holds && !route.proves() {
            route.ladder = without_pending_rungs;
        }
        // A route that says the same as the built-in one behaves like it.
        let built_in = Route::suno_held_for(route.hold);
        let built_in = Route { name: route.name.clone(), lifetimes: route.lifetimes, ..built_in };
        route.is_built_in = route == built_in;
        Some(route)
    }

    /// Returns the ladder: a rung for each of these states on the way, one for success, one for failure.
    fn ladder(&self, pending: &[Vec<String>]) -> Option<Ladder> {
        let rung = |words: &[String], of: fn(&str) -> RungSpec| {
            let (name, aliases) = words.split_first()?;
            Some(of(name).with_aliases(aliases))
        };
        let mut rungs: Vec<RungSpec> =
            pending.iter().map(|words| rung(words, RungSpec::pending)).collect::<Option<_>>()?;
        rungs.push(rung(&self.succeeded, RungSpec::succeeded)?);
        rungs.extend(rung(&self.failed, RungSpec::failed));
        Some(Ladder::new(rungs))
    }
}
