//! The keys and the reader of `[[team.members]]`.

use std::collections::BTreeMap;

use super::row::{ConfigKey, ReloadEffect, TableListTexts, read_keys, read_tables};
use crate::config::error::{InvalidValue, Source};
use crate::config::parse::{member_name, token_hash};
use crate::config::types::TeamMember;
use crate::config::value::{AllowedValues, LocatedValue, ValueReader};
use crate::secret::{Secret, TokenHash};

const RATE: AllowedValues = AllowedValues::Number(1..=1_000_000);

/// The keys of one member.
pub(in crate::config) const MEMBER_KEYS: &[ConfigKey<TeamMemberBuilder>] = &[
    ConfigKey {
        name: "name",
        default: None,
        allowed: AllowedValues::Described("a name such as \"alice\""),
        reload: ReloadEffect::Applied,
        read: |b, r| r.parsed(&mut b.name, member_name),
        doc: "required; name in logs and metrics, at most 64 bytes",
    },
    ConfigKey {
        name: "token_sha256",
        default: None,
        allowed: AllowedValues::Described("64 hexadecimal digits"),
        reload: ReloadEffect::Applied,
        read: |b, r| r.parsed(&mut b.token_sha256, token_hash),
        doc: "required; SHA-256 of the token",
    },
    ConfigKey {
        name: "upstream_key",
        default: None,
        allowed: AllowedValues::Secret,
        reload: ReloadEffect::Applied,
        read: |b, r| r.secret(&mut b.upstream_key),
        doc: "required; API key for the member's requests. Members with the same key share polls and cache",
    },
    ConfigKey {
        name: "requests_per_second",
        default: None,
        allowed: RATE,
        reload: ReloadEffect::Applied,
        read: |b, r| optional_number(&mut b.requests_per_second, r),
        doc: "replaces `limits.requests_per_second` for the member",
    },
    ConfigKey {
        name: "burst",
        default: None,
        allowed: RATE,
        reload: ReloadEffect::Applied,
        read: |b, r| optional_number(&mut b.burst, r),
        doc: "replaces `limits.burst`",
    },
    ConfigKey {
        name: "calls_per_second",
        default: None,
        allowed: RATE,
        reload: ReloadEffect::Applied,
        read: |b, r| optional_number(&mut b.calls_per_second, r),
        doc: "replaces `limits.calls_per_second`",
    },
    ConfigKey {
        name: "calls_burst",
        default: None,
        allowed: RATE,
        reload: ReloadEffect::Applied,
        read: |b, r| optional_number(&mut b.calls_burst, r),
        doc: "replaces `limits.calls_burst`",
    },
];

const REQUIRED: [&str; 3] = ["name", "token_sha256", "upstream_key"];

#[derive(Default)]
pub(in crate::config) struct TeamMemberBuilder {
    name: String,
    token_sha256: Option<TokenHash>,
    upstream_key: Option<Secret>,
    requests_per_second: Option<u32>,
    burst: Option<u32>,
    calls_per_second: Option<u32>,
    calls_burst: Option<u32>,
}

/// Reads `team.members`. Errors of the second member have the key `team.members #2`.
pub(super) fn read_members(slot: &mut Vec<TeamMember>, reader: &mut ValueReader<'_>) {
    let texts = TableListTexts {
        list: "a list of members",
        table: "a member",
        hint: "Write [[team.members]] above the name, token_sha256 and upstream_key of each member.",
    };
    read_tables(&texts, usize::MAX, reader, |table, reader| {
        if let Some(member) = read_member(table, reader, slot) {
            slot.push(member);
        }
    });
}

fn read_member(
    table: &BTreeMap<String, LocatedValue>,
    reader: &mut ValueReader<'_>,
    earlier: &[TeamMember],
) -> Option<TeamMember> {
    let errors_before = reader.errors.len();
    let mut builder = TeamMemberBuilder::default();
    let LocatedValue { source: start, .. } = reader.value;
    let source_of = |key: &str| table.get(key).map_or(start, |value| &value.source).clone();
    let values = table.iter().map(|(name, value)| (name.as_str(), value)).collect();
    read_keys(MEMBER_KEYS, &mut builder, &values, reader);
    let mut error = |source: Source, problem: &str, hint: &str| {
        reader.error(source, InvalidValue { problem: problem.to_owned(), hint: hint.to_owned() });
    };
    for name in REQUIRED.iter().filter(|name| !table.contains_key(**name)) {
        error(start.clone(), &format!("{name} is missing"), &format!("Add {name} = \"...\" to this member."));
    }
    if earlier.iter().any(|other| other.name == builder.name) {
        error(source_of("name"), "an earlier member has the same name", "Give each member a different name.");
    }
    if earlier.iter().any(|other| Some(other.token_sha256) == builder.token_sha256) {
        error(
            source_of("token_sha256"),
            "an earlier member has the same token",
            "Give each member a different token.",
        );
    }
    if reader.errors.len() > errors_before {
        return None;
    }
    Some(TeamMember {
        name: builder.name,
        token_sha256: builder.token_sha256?,
        upstream_key: builder.upstream_key?,
        requests_per_second: builder.requests_per_second,
        burst: builder.burst,
        calls_per_second: builder.calls_per_second,
        calls_burst: builder.calls_burst,
    })
}

fn optional_number(slot: &mut Option<u32>, reader: &mut ValueReader<'_>) {
    let mut number = 0;
    reader.number(&mut number);
    *slot = (number > 0).then_some(number);
}
