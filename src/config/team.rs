//! The members of a team as the file lists them.

use std::collections::BTreeMap;

use super::TeamMember;
use super::error::Source;
use super::schema::{MILLION, Read};
use super::source::{LocatedValue, RawValue, unknown};
use super::value::{InvalidValue, ValueReader, sha256};
use crate::secret::{Secret, TokenHash};

/// The keys of one `[[team.members]]`.
const MEMBER_KEYS: &[(&str, Read<TeamMemberBuilder>)] = &[
    ("name", |m, r| r.parsed(&mut m.name, "\"alice\"", member_name)),
    ("token_sha256", |m, r| {
        r.parsed(&mut m.token_sha256, "64 hexadecimal digits", |text| sha256(text).map(TokenHash).map(Some))
    }),
    ("upstream_key", |m, r| r.secret(&mut m.upstream_key)),
    ("requests_per_second", |m, r| some_rate(&mut m.requests_per_second, r)),
    ("burst", |m, r| some_rate(&mut m.burst, r)),
    ("calls_per_second", |m, r| some_rate(&mut m.calls_per_second, r)),
    ("calls_burst", |m, r| some_rate(&mut m.calls_burst, r)),
];

/// All keys of a member.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    MEMBER_KEYS.iter().map(|(name, _)| *name)
}

#[derive(Default)]
struct TeamMemberBuilder {
    name: String,
    token_sha256: Option<TokenHash>,
    upstream_key: Option<Secret>,
    requests_per_second: Option<u32>,
    burst: Option<u32>,
    calls_per_second: Option<u32>,
    calls_burst: Option<u32>,
}

/// Reads `[[team.members]]`; the second one's faults stand under `team.members #2`.
pub(super) fn members(slot: &mut Vec<TeamMember>, reader: &mut ValueReader<'_>) {
    const FIX: &str = "write [[team.members]] above each member's name, token_sha256 and upstream_key";
    let wrong = |what: String| InvalidValue { problem: what, hint: FIX.to_owned() };
    let RawValue::List(items) = &reader.item.raw else {
        let what = format!("is {} where a list of members belongs", reader.item.raw.kind());
        return reader.fault(reader.item.source.clone(), wrong(what));
    };
    for (n, item) in items.iter().enumerate() {
        let mut reader = ValueReader {
            key: format!("team.members #{}", n + 1),
            item,
            env: reader.env,
            faults: &mut *reader.faults,
        };
        let RawValue::Table(table) = &item.raw else {
            reader
                .fault(item.source.clone(), wrong(format!("is {} where a member belongs", item.raw.kind())));
            continue;
        };
        if let Some(member) = member(table, item, &mut reader, slot) {
            slot.push(member);
        }
    }
}

fn member(
    table: &BTreeMap<String, LocatedValue>,
    whole: &LocatedValue,
    reader: &mut ValueReader<'_>,
    others: &[TeamMember],
) -> Option<TeamMember> {
    let before = reader.faults.len();
    let mut draft = TeamMemberBuilder::default();
    let place_of = |key: &str| table.get(key).map_or(&whole.source, |item| &item.source).clone();
    for key in table.keys().filter(|key| MEMBER_KEYS.iter().all(|(name, _)| name != key)) {
        let mut fault = unknown(place_of(key), key.clone(), MEMBER_KEYS.iter().map(|(name, _)| *name));
        fault.key = format!("{} {key}", reader.key);
        reader.faults.push(fault);
    }
    for (name, read) in MEMBER_KEYS {
        if let Some(item) = table.get(*name) {
            let key = format!("{} {name}", reader.key);
            read(&mut draft, &mut ValueReader { key, item, env: reader.env, faults: &mut *reader.faults });
        }
    }
    let mut fault = |place: Source, what: &str, fix: &str| {
        reader.fault(place, InvalidValue { problem: what.to_owned(), hint: fix.to_owned() });
    };
    for name in ["name", "token_sha256", "upstream_key"].iter().filter(|name| !table.contains_key(**name)) {
        fault(whole.source.clone(), &format!("has no {name}"), &format!("add {name} = \"...\" below it"));
    }
    if others.iter().any(|other| other.name == draft.name) {
        fault(place_of("name"), "has the name of a member above", "give each member a name of its own");
    }
    if others.iter().any(|other| Some(other.token_sha256) == draft.token_sha256) {
        fault(
            place_of("token_sha256"),
            "has the token of a member above",
            "give each member a token of its own",
        );
    }
    if reader.faults.len() > before {
        return None;
    }
    Some(TeamMember {
        name: draft.name,
        token_sha256: draft.token_sha256?,
        upstream_key: draft.upstream_key?,
        requests_per_second: draft.requests_per_second,
        burst: draft.burst,
        calls_per_second: draft.calls_per_second,
        calls_burst: draft.calls_burst,
    })
}

fn some_rate(slot: &mut Option<u32>, reader: &mut ValueReader<'_>) {
    let mut rate = 0;
    reader.number(&mut rate, 1..=MILLION);
    *slot = (rate > 0).then_some(rate);
}

/// A member's name as the configuration takes it.
pub fn member_name(text: &str) -> Result<String, InvalidValue> {
    if text.trim().is_empty() || text.len() > 64 || text.chars().any(char::is_control) {
        let what = "is no name: empty, longer than 64 bytes or with control characters".to_owned();
        return Err(InvalidValue { problem: what, hint: "write it as \"alice\"".to_owned() });
    }
    Ok(text.to_owned())
}
