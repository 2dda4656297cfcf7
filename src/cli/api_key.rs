//! The API key that `check` and `watch` send as clients.

use std::collections::BTreeMap;

use http::HeaderValue;

use super::error::CommandError;
use crate::config;

/// Variable of the key without `--key`.
const VARIABLE: &str = "AIMLAPI_KEY";

/// Returns the value of `Authorization` with the key that `--key` names (`env:NAME` or `file:PATH`), else with that of
/// `AIMLAPI_KEY`, if the variable is set.
pub(super) fn authorization(source: Option<&str>) -> Result<Option<HeaderValue>, CommandError> {
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
    let secret = config::secret(source, &env).map_err(|error| format!("--key: {error}"))?;
    Ok(Some(bearer(&secret)))
}

/// Returns the value of `Authorization`, which is not shown when headers are printed.
pub(super) fn bearer(secret: &crate::secret::Secret) -> HeaderValue {
    let mut value =
        HeaderValue::try_from(format!("Bearer {}", secret.expose())).expect("secrets are visible ASCII");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_key_is_rejected_and_not_shown() {
        let error = authorization(Some("sk-secret")).unwrap_err().to_string();
        assert!(error.contains("env:NAME") && !error.contains("sk-secret"), "{error}");
    }
}
