//! The key that a command sends as a client.

use std::collections::BTreeMap;

use http::HeaderValue;

use super::error::CommandError;
use crate::config;

/// Where it is looked for when no place is named.
const VARIABLE: &str = "AIMLAPI_KEY";

/// What `--key` names (`env:NAME` or `file:PATH`), else the environment's `AIMLAPI_KEY` if it is set, as the header
/// field that carries it.
pub(super) fn authorization(source: Option<&str>) -> Result<Option<HeaderValue>, CommandError> {
    let usual = format!("env:{VARIABLE}");
    let source = match source {
        Some(source) if source.starts_with("env:") || source.starts_with("file:") => source,
        Some(_) => {
            return Err(
                "--key: whoever is on this machine sees a command line: write env:NAME or file:PATH".into()
            );
        }
        None if std::env::var_os(VARIABLE).is_some_and(|key| !key.is_empty()) => &usual,
        None => return Ok(None),
    };
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let env: BTreeMap<String, String> = std::env::vars_os().filter_map(text).collect();
    let secret = config::secret(source, &env).map_err(|wrong| format!("--key: {wrong}"))?;
    Ok(Some(bearer(&secret)))
}

/// The field's value; it is not shown where fields are printed.
pub(super) fn bearer(secret: &crate::secret::Secret) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Bearer {}", secret.expose()))
        .expect("a secret's letters are checked when it is read");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_on_the_command_line_is_refused_unseen() {
        let error = authorization(Some("sk-secret")).unwrap_err().to_string();
        assert!(error.contains("env:NAME") && !error.contains("sk-secret"), "{error}");
    }
}
