//! `clipgate completions`: what a shell needs to complete the command line, made from its definition.

use std::io::Write as _;
use std::process::ExitCode;

use clap_complete::Shell;

use super::error::CommandError;

const HELP: &str = "\
Examples:
  bash   clipgate completions bash > ~/.local/share/bash-completion/completions/clipgate
  zsh    clipgate completions zsh > ~/.zfunc/_clipgate      with fpath+=~/.zfunc before compinit in ~/.zshrc
  fish   clipgate completions fish > ~/.config/fish/completions/clipgate.fish

The Debian package brings all three.";

/// How `completions` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// The shell
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
