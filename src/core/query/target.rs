//! Targets of polls, in the upstream's documented spelling.

use percent_encoding::utf8_percent_encode;

use super::RESERVED;
use super::identity::ENCODED_COLONS;
use crate::core::job::JobSet;
use crate::core::route::{Form, Goal, ListForm, Route};

/// Builds the path and query of a poll in the upstream's documented spelling. Without a rung as its goal, or at an
/// upstream that never holds, it has no status parameter.
///
/// The brackets of the repeated parameter are percent-encoded, as browsers' `URLSearchParams` and common clients send
/// them. Every parser decodes that to the same name. RFC 3986 section 3.4 does not allow a bare `[` in a query: lenient
/// parsers accept it, strict servers answer 400.
///
/// With [`Form::Single`], `jobs` has exactly one id.
pub fn build_target(route: &Route, form: Form, jobs: &JobSet, goal: Goal) -> String {
    debug_assert!(form == Form::Multi || jobs.len() == 1, "a poll at the single endpoint has one job");
    let mut target = String::with_capacity(64 + jobs.len() * 64);
    let parameter = |target: &mut String, name: &str, brackets: &str, value: &str| {
        target.push(if target.contains('?') { '&' } else { '?' }); // no path has a question mark
        target.extend(utf8_percent_encode(name, RESERVED));
        target.push_str(brackets);
        target.push('=');
        target.extend(utf8_percent_encode(value, RESERVED));
    };
    match (form, &route.list) {
        (Form::Multi, Some(list)) => {
            target.push_str(&list.path);
            match list.form {
                ListForm::Brackets => {
                    jobs.iter().for_each(|id| parameter(&mut target, &list.param, BRACKETS, id.as_str()));
                }
                ListForm::Repeat => {
                    jobs.iter().for_each(|id| parameter(&mut target, &list.param, "", id.as_str()));
                }
                ListForm::Comma => {
                    parameter(&mut target, &list.param, "", "");
                    for (n, id) in jobs.iter().enumerate() {
                        target.push_str(if n > 0 { "," } else { "" });
                        target.extend(utf8_percent_encode(id.as_str(), RESERVED));
                    }
                }
            }
        }
        (Form::Single | Form::Multi, _) => {
            for id in jobs.iter().take(1) {
                let (others, params) = id.rest().split_once('?').unwrap_or((id.rest(), ""));
                let (params, has_encoded_colons) = match params.strip_suffix(ENCODED_COLONS) {
                    Some(params) => (params, true),
                    None => (params, false),
                };
                route.write_path(&mut target, id.as_str(), has_encoded_colons, others);
                if let Some(param) = &route.id_param {
                    parameter(&mut target, param, "", id.as_str());
                }
                if !params.is_empty() {
                    target.push(if target.contains('?') { '&' } else { '?' });
                    target.push_str(params); // encoded already
                }
            }
        }
    }
    let is_held = matches!(goal, Goal::Rung(_)) && !route.never_holds();
    if let (Goal::Rung(rung), Some(param), true) = (goal, &route.wait_param, is_held) {
        parameter(&mut target, param, "", route.ladder.name(rung));
    }
    // A request for the lowest rung is answered at once.
    let is_long = goal > Goal::Rung(route.ladder.lowest());
    if let (Some(param), true) = (&route.hold_param, is_held && is_long) {
        parameter(&mut target, param, "", &route.hold.as_secs().max(1).to_string());
    }
    target
}

/// `[]`, percent-encoded.
const BRACKETS: &str = "%5B%5D";
