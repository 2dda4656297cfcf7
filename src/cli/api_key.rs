//! The API key that `check` and `watch` send as clients.

use std::collections::BTreeMap;

use super::error::CommandError;
use crate::config;
use crate::secret::Secret;

/// Variable of the key without `--key`.
const VARIABLE: &str = "AIMLAPI_KEY";

/// Returns the key that `--key` names (`env:NAME` or `file:PATH`), else that of `AIMLAPI_KEY`, if the variable is set.
pub(super) fn client_key(source: Option<&str>) -> Result<Option<Secret>, CommandError> {
    let default = format!("env:{VARIABLE}");
    let source = match source {
        Some(source) if source.starts_with("env:") || source.starts_with("file:") => source,
        Some(_) => {
            return Err(
                "--key: every user of this machine can read the command line. Use env:NAME or file:PATH."
                    .into(),
            );
        }
        None if std::env::var_os(VARIABLE).is_some_and(|key| !key.is_empty()) => &default,
        None => return Ok(None),
    };
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let env: BTreeMap<String, String> = std::env::vars_os().filter_map(text).collect();
    Ok(Some(config::secret(source, &env).map_err(|error| format!("--key: {error}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_key_is_rejected_and_not_shown() {
        let error = client_key(Some("sk-secret")).unwrap_err().to_string();
        assert!(error.contains("env:NAME") && !error.contains("sk-secret"), "{error}");
    }
}
