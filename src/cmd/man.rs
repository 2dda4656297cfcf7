//! `clipgate man`: the manual pages, made from the command line's definition.

use std::path::PathBuf;
use std::process::ExitCode;

use clap_mangen::Man;

use crate::cmd::CommandError;

const HELP: &str = "\
Examples:
  clipgate man | man -l -                  read it
  clipgate man ~/.local/share/man/man1     install it, with a page for each call

The Debian package brings them.";

/// How `man` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Where a page for the command and one for each call go; without it the command's goes to stdout
    #[arg(value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// Writes a page to stdout, or all of them into the directory, which has to be there.
pub fn run(args: &Args, definition: clap::Command) -> Result<ExitCode, CommandError> {
    // `clipgate help` has no page of its own.
    let definition = definition.disable_help_subcommand(true);
    match &args.directory {
        Some(directory) => clap_mangen::generate_to(definition, directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?,
        None => Man::new(definition).render(&mut std::io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}
