//! `clipgate man`: manual pages, generated from the definition of the command line.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap::builder::StyledStr;
use clap_mangen::Man;

use super::error::CommandError;

const HELP: &str = "\
Examples:
  clipgate man | man -l -                  show the page of clipgate
  clipgate man ~/.local/share/man/man1     install it and a page for each subcommand

The Debian package installs all pages.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Existing directory for the pages of clipgate and its subcommands; without it clipgate's page goes to stdout
    #[arg(value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// Writes one page to stdout, or all pages into the directory.
pub(super) fn run(args: &Args, definition: Command) -> Result<ExitCode, CommandError> {
    // The subcommand `help` gets no page.
    let mut definition = definition.disable_help_subcommand(true);
    definition.build();
    let Some(directory) = &args.directory else {
        std::io::stdout().write_all(&page(definition)?.1)?;
        return Ok(ExitCode::SUCCESS);
    };
    let subcommands: Vec<_> = definition.get_subcommands().cloned().collect();
    for command in subcommands.into_iter().chain([definition]) {
        let (name, page) = page(command)?;
        let path = directory.join(name);
        std::fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the file name and the page of a command.
fn page(command: Command) -> Result<(String, Vec<u8>), CommandError> {
    let notes = command.get_after_help().map(notes).unwrap_or_default();
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command).source(concat!("clipgate ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    // clap_mangen would join the lines of the examples.
    page.extend_from_slice(notes.as_bytes());
    Ok((man.get_filename(), page))
}

/// Converts the text below the options of the help. Indented lines stay as they are.
fn notes(text: &StyledStr) -> String {
    let (mut roff, mut is_filled) = (".SH NOTES\n".to_owned(), true);
    for line in text.to_string().lines() {
        let is_example = line.starts_with("  ");
        if is_example == is_filled {
            roff.push_str(if is_example { ".nf\n" } else { ".fi\n" });
            is_filled = !is_example;
        }
        match line {
            "" => roff.push_str(".PP\n"),
            _ => writeln!(roff, "\\&{}", line.replace('\\', "\\e").replace('-', "\\-"))
                .expect("writing to a String does not fail"),
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines_and_leading_dots_are_escaped() {
        let text = "Examples:\n  clipgate man | man -l -\n  .x \\n\n\n.Read them.\n";
        let expected = ".SH NOTES\n\\&Examples:\n.nf\n\\&  clipgate man | man \\-l \\-\n\\&  .x \\en\n.fi\n.PP\n\\&.Read them.\n";
        assert_eq!(notes(&StyledStr::from(text)), expected);
    }
}
