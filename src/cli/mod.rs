//! The command line: a file or folder for each subcommand.

mod admin_config;
mod api_key;
mod check;
mod completions;
mod config;
pub(crate) mod error;
mod health;
mod job_client;
mod man;
mod presets;
mod serve;
mod sim;
mod start_check;
mod token;
mod top;
mod watch;

use std::io::{self, Write as _};
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use self::error::CommandError;

const EXAMPLES: &str = "\
Examples:
  clipgate --sim --speed 10 --crowd 50   a simulated API and clients: needs no key and no network
  clipgate --sim --replicas 3            three gateways that share polls, with the installed Valkey or Redis
  clipgate                               in front of https://api.aimlapi.com, on 127.0.0.1:8080
  clipgate --config config.toml          with a configuration file
  clipgate --listen 127.0.0.1:9000       on another port
  clipgate check --config config.toml    report the errors of a configuration file
  clipgate config --effective            print the value of each key and the place where it was set
  clipgate presets                       list the APIs with a built-in route
  clipgate watch ID                      follow a job until it is done
  clipgate top                           show the dashboard in the terminal
  clipgate token alice                   create a team token for alice and its configuration lines
  clipgate health                        check if the gateway is ready, for containers and probes

Clients use http://127.0.0.1:8080 as their base URL in place of the API.

Environment variables set the keys of the configuration too: CLIPGATE__WAIT__TIMEOUT=60s sets `timeout` under [wait].

Signals: SIGTERM and SIGINT stop the gateway within server.drain_timeout, a second one at once. SIGHUP reads the \
configuration and the certificates again; where stdin or stderr is a terminal, it stops the gateway.

Exit code: 0 after a stop, 2 for an invalid command line or configuration, 1 for any other failure and after a second \
stop signal.";

/// A caching reverse proxy that coalesces identical long-polls of a job API into one
///
/// Clients send the same requests as to the API. The gateway holds one long-poll for all clients that wait for the same
/// job, and answers requests for finished jobs from its cache. `clipgate` without a subcommand is `clipgate serve`.
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
    /// Run the gateway (the default)
    Serve(serve::Args),
    /// Run the simulated upstream alone
    Sim(sim::Args),
    /// Check the configuration and report its errors
    Check(check::Args),
    /// Print the commented defaults, or the values in force
    Config(config::Args),
    /// List the built-in routes of known APIs, or print one
    Presets(presets::Args),
    /// Follow jobs in the terminal until they are done
    Watch(watch::Args),
    /// Show the dashboard of a gateway in the terminal
    Top(top::Args),
    /// Create a team token and its configuration lines
    Token(token::Args),
    /// Check if a gateway on this machine is ready
    Health(health::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Print or write the manual pages
    Man(man::Args),
    /// Print the version
    Version,
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
            CliCommand::Config(args) => config::run(&args),
            CliCommand::Presets(args) => presets::run(&args),
            CliCommand::Watch(args) => block_on(watch::run(args)),
            CliCommand::Top(args) => block_on(top::run(args)),
            CliCommand::Token(args) => token::run(&args),
            CliCommand::Health(args) => block_on(health::run(args)),
            CliCommand::Completions(args) => completions::run(&args, Self::command()),
            CliCommand::Man(args) => man::run(&args, Self::command()),
            CliCommand::Version => {
                writeln!(io::stdout(), "{}", Self::command().render_version().trim_end())?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode, CommandError>>) -> Result<ExitCode, CommandError> {
    let runtime = runtime(available_parallelism().map_or(1, NonZero::get))?;
    let code = runtime.block_on(command);
    // A name lookup blocks its thread. The process must not wait for it.
    runtime.shutdown_background();
    code
}

/// Builds the runtime. On one core it has no worker threads: they would cost time, and would delay the responses of a
/// large fan-out. tokio puts tasks that do not fit into a worker's own queue behind later ones, such as the disconnects of
/// clients that have their response.
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
    fn the_command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn clipgate_without_a_subcommand_has_the_flags_of_serve() {
        let flags =
            ["", "--sim", "--sim --speed 20", "--config F", "--listen 127.0.0.1:0 --upstream http://u"];
        for line in flags {
            let plain = parse(&format!("clipgate {line}")).unwrap();
            let Some(CliCommand::Serve(named)) = parse(&format!("clipgate serve {line}")).unwrap().command
            else {
                panic!("serve {line} is parsed as another command");
            };
            assert_eq!(format!("{:?}", plain.serve), format!("{named:?}"), "{line}");
            assert!(plain.command.is_none());
        }
        assert_eq!(flags.len(), 5);
    }

    #[test]
    fn an_invalid_command_line_exits_with_2() {
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
