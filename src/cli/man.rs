//! `clipgate man`: the manual pages, made from the command line's definition.

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
  clipgate man | man -l -                  read it
  clipgate man ~/.local/share/man/man1     install it, with a page for each call

The Debian package brings them.";

/// How `man` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Where a page for the command and one for each call go; without it the command's goes to stdout
    #[arg(value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// Writes a page to stdout, or all of them into the directory, which has to be there.
pub(super) fn run(args: &Args, definition: Command) -> Result<ExitCode, CommandError> {
    // `clipgate help` has no page of its own.
    let mut definition = definition.disable_help_subcommand(true);
    definition.build();
    let Some(directory) = &args.directory else {
        std::io::stdout().write_all(&page(definition)?.1)?;
        return Ok(ExitCode::SUCCESS);
    };
    let calls: Vec<_> = definition.get_subcommands().cloned().collect();
    for command in calls.into_iter().chain([definition]) {
        let (name, page) = page(command)?;
        let path = directory.join(name);
        std::fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The page of a command, and what its file is called.
fn page(command: Command) -> Result<(String, Vec<u8>), CommandError> {
    let notes = command.get_after_help().map(notes).unwrap_or_default();
    let has_calls = command.has_subcommands();
    let man = Man::new(command).source(concat!("clipgate ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_calls {
        man.render_subcommands_section(&mut page)?;
    }
    // The library would fill the examples' lines like any other text.
    page.extend_from_slice(notes.as_bytes());
    Ok((man.get_filename(), page))
}

/// What stands below the options in the help, with lines that are indented left as they are.
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
                .expect("a String takes all that is written"),
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines_and_no_line_is_taken_for_a_command() {
        let text = "Examples:\n  clipgate man | man -l -\n  .x \\n\n\n.Read them.\n";
        let expected = ".SH NOTES\n\\&Examples:\n.nf\n\\&  clipgate man | man \\-l \\-\n\\&  .x \\en\n.fi\n.PP\n\\&.Read them.\n";
        assert_eq!(notes(&StyledStr::from(text)), expected);
    }
}
