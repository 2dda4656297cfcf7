//! `clipgate completions`: completion scripts, generated from the definition of the command line.

use std::io::Write as _;
use std::process::ExitCode;

use clap_complete::Shell;

use super::error::CommandError;

const HELP: &str = "\
Examples:
  bash   clipgate completions bash > ~/.local/share/bash-completion/completions/clipgate
  zsh    clipgate completions zsh > ~/.zfunc/_clipgate      with fpath+=~/.zfunc before compinit in ~/.zshrc
  fish   clipgate completions fish > ~/.config/fish/completions/clipgate.fish

The Debian package installs all three.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Writes the script to stdout.
pub(super) fn run(args: &Args, mut definition: clap::Command) -> Result<ExitCode, CommandError> {
    let name = definition.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition, name, &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
