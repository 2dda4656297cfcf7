//! `clipgate presets`: the routes of known APIs, to name or to paste into a configuration.

use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;

use super::error::CommandError;
use crate::config::{preset, presets};

const HELP: &str = "\
A preset is a [[routes]] of a known API. Name it in a configuration, with any keys that differ:

  [[routes]]
  preset = \"replicate\"
  completed_ttl = \"20m\"

or paste its lines and edit them. The lines of [upstream] and [auth] go into your sections of that name. The comments say \
when and where the facts were found, and what is uncertain.

Examples:
  clipgate presets                           list all presets
  clipgate presets replicate                 print the lines of one
  clipgate presets fal > config.toml         start a configuration with it";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Preset whose lines are printed; without it all presets are listed
    #[arg(value_name = "NAME", hide_possible_values = true,
        value_parser = PossibleValuesParser::new(presets().iter().map(|preset| preset.name.as_str())))]
    pub name: Option<String>,
}

/// Writes the list, or the lines of one preset, to stdout.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let text = match &args.name {
        Some(name) => preset(name)?.lines(),
        None => list(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a line for each preset: its name, the address of its API, and what it is.
fn list() -> String {
    let width =
        |text: fn(&crate::config::Preset) -> &str| presets().iter().map(|preset| text(preset).len()).max();
    let name_width = width(|preset| &preset.name).unwrap_or_default();
    let url_width = width(|preset| &preset.base_url).unwrap_or_default();
    let line = |preset: &crate::config::Preset| {
        format!("{:name_width$}  {:url_width$}  {}\n", preset.name, preset.base_url, preset.about)
    };
    presets().iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_a_line_for_each_preset() {
        let list = list();
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), presets().len());
        let replicate = lines.iter().find(|line| line.starts_with("replicate ")).unwrap();
        assert!(
            replicate.contains("  https://api.replicate.com ")
                && replicate.ends_with("Replicate: predictions")
        );
    }
}
