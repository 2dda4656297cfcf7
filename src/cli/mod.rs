//! The command line.

mod api_key;
mod check;
mod completions;
pub(crate) mod error;
mod health;
mod job_client;
mod man;
mod serve;
mod sim;
mod token;
mod watch;

use std::io;
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use self::error::CommandError;

const EXAMPLES: &str = "\
Examples:
  clipgate --sim                         try it: a simulated API, no key, no network
  clipgate                               before https://api.aimlapi.com, on 127.0.0.1:8080
  clipgate --config config.toml          with a file of your own
  clipgate --listen 127.0.0.1:9000       on another port
  clipgate check --config config.toml    say what is wrong with the file, and where
  clipgate watch ID                      follow a job until it is made
  clipgate token alice                   let alice into the team: a token, and the lines that list it
  clipgate health                        is it ready? For containers and probes

Then point the client at http://127.0.0.1:8080 in place of the API.

Every key of the file can be set by an environment variable too: \
CLIPGATE__WAIT__TIMEOUT=60s sets `timeout` under [wait].

Signals: SIGTERM and SIGINT stop it within server.drain_timeout, a second one at once;
SIGHUP reads the configuration and the certificates again.

Exit code: 0 when all went well, 2 for a bad command line or configuration, 1 for any other failure, \
a stop that a second signal cut short included.";

/// A caching reverse proxy that merges identical long-polls of a job API into one.
///
/// Clients wait for a job as they would at the API itself; the gateway holds one long-poll for all that wait
/// for the same, and answers from its cache what is finished. Plain `clipgate` is `clipgate serve`.
#[derive(Debug, Parser)]
#[command(name = "clipgate", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    #[command(flatten)]
    serve: serve::Args,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the gateway (what plain `clipgate` does)
    Serve(serve::Args),
    /// Run the simulated upstream alone
    Sim(sim::Args),
    /// Read the configuration and say what is wrong and where
    Check(check::Args),
    /// Follow jobs in the terminal until they are made
    Watch(watch::Args),
    /// Make a team token and the config lines that list it
    Token(token::Args),
    /// Ask a gateway on this machine whether it is ready
    Health(health::Args),
    /// Write what a shell needs to complete the command line
    Completions(completions::Args),
    /// Write the manual pages
    Man(man::Args),
}

/// Parses the command line, runs the command, prints its error and returns the exit code.
pub fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| error::report(&error))
}

impl Cli {
    fn run(self) -> Result<ExitCode, CommandError> {
        match self.command.unwrap_or(CliCommand::Serve(self.serve)) {
            CliCommand::Serve(args) => block_on(serve::run(args)),
            CliCommand::Sim(args) => block_on(sim::run(args)),
            CliCommand::Check(args) => block_on(check::run(args)),
            CliCommand::Watch(args) => block_on(watch::run(args)),
            CliCommand::Token(args) => token::run(&args),
            CliCommand::Health(args) => block_on(health::run(args)),
            CliCommand::Completions(args) => completions::run(&args, Self::command()),
            CliCommand::Man(args) => man::run(&args, Self::command()),
        }
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode, CommandError>>) -> Result<ExitCode, CommandError> {
    let runtime = runtime(available_parallelism().map_or(1, NonZero::get))?;
    let code = runtime.block_on(command);
    // What still runs is not waited for, a name that is looked up for example.
    runtime.shutdown_background();
    code
}

/// On one core, threads that share the work only cost, and the answers of a large fan-out come last: tokio puts what
/// does not fit into a thread's own queue behind what comes later, such as the hang-ups of who has been answered.
fn runtime(cores: usize) -> io::Result<Runtime> {
    let mut builder = if cores == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn plain_clipgate_takes_what_serve_takes() {
        let flags =
            ["", "--sim", "--sim --speed 20", "--config F", "--listen 127.0.0.1:0 --upstream http://u"];
        for line in flags {
            let plain = parse(&format!("clipgate {line}")).unwrap();
            let Some(CliCommand::Serve(named)) = parse(&format!("clipgate serve {line}")).unwrap().command
            else {
                panic!("serve {line} is not serve");
            };
            assert_eq!(format!("{:?}", plain.serve), format!("{named:?}"), "{line}");
            assert!(plain.command.is_none());
        }
        assert_eq!(flags.len(), 5);
    }

    #[test]
    fn bad_usage_exits_with_2() {
        let lines = [
            "clipgate frobnicate",
            "clipgate --config",
            "clipgate --sim check",
            "clipgate check --sim",
            "clipgate --sim --upstream http://u",
        ];
        for line in lines {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(lines.len(), 5);
    }
}
