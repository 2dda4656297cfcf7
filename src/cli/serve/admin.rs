//! The admin listener of `serve`.

use super::bind_error;
use crate::admin::{Admin, AdminContext};
use crate::cli::error::CommandError;
use crate::config::{Config, Listen};
use crate::core::route::SunoEndpoints;

const OTHER_ADDRESS: &str = "set admin.listen to another address, or to \"\" for none";

/// Starts the admin listener, if the configuration has one. With a simulated upstream, any free port replaces the default
/// address if that is taken: Prometheus does not scrape a demonstration.
pub(super) async fn start(
    config: &Config,
    is_simulated: bool,
    context: AdminContext,
) -> Result<Option<Admin>, CommandError> {
    let Some(listen) = &config.admin.listen else { return Ok(None) };
    let mut choices = vec![listen.clone()];
    if is_simulated && Config::default().admin.listen.as_ref() == Some(listen) {
        choices.push(Listen::Tcp(([127, 0, 0, 1], 0).into()));
    }
    match Admin::start(choices, config, context).await {
        Ok(admin) => Ok(Some(admin)),
        Err(error) => Err(bind_error(listen, &error, OTHER_ADDRESS).into()),
    }
}

/// Returns a command for a first request, for the dashboard.
pub(super) fn example(listen: &[Listen], is_simulated: bool) -> String {
    let SunoEndpoints { single_path, single_param, status_param, ladder, .. } = SunoEndpoints::default();
    let tcp = listen.iter().find_map(|listen| match listen {
        Listen::Tcp(address) => Some(format!("http://{address}")),
        Listen::Unix(_) => None,
    });
    let unix = listen.iter().find_map(|listen| match listen {
        Listen::Tcp(_) => None,
        Listen::Unix(path) => Some(format!("--unix-socket {} http://localhost", path.display())),
    });
    let base = tcp.or(unix).unwrap_or_default();
    let last = ladder.askable_words().last().unwrap_or_default();
    match is_simulated {
        true => format!(
            "curl -s {base}{single_path} -H 'Authorization: Bearer demo' \\\n     \
             -H 'Content-Type: application/json' -d '{{\"prompt\":\"night drive\"}}'"
        ),
        false => format!(
            "curl -sg {base}{single_path}'?{single_param}=ID&{status_param}={last}' \\\n     \
             -H \"Authorization: Bearer $AIMLAPI_KEY\""
        ),
    }
}
