//! `clipgate token`: creates a team token and the configuration lines of its member.

use std::io::Write as _;
use std::process::ExitCode;

use super::error::CommandError;
use crate::auth::token_sha256;
use crate::config::member_name;

const RANDOM_BYTES: usize = 32;

/// Prefix by which people and scanners for leaked secrets recognize a token.
const PREFIX: &str = "cg_";

const HELP: &str = "\
The token goes to stderr and cannot be shown again. The member sends it to the gateway as \
`Authorization: Bearer TOKEN` in place of an API key. The configuration lines go to stdout. They contain the SHA-256 of \
the token, from which the token cannot be derived.

Examples:
  clipgate token alice                     print the token and the lines
  clipgate token alice >> config.toml      append the lines to the file and print the token
  clipgate token alice 2> alice.token      print the lines and write the token to a file

The configuration needs `mode = \"team\"` under [auth]. Set upstream_key in the new lines to the API key for the \
member's requests: \"env:NAME\" is an environment variable, \"file:PATH\" a file. Members with the same API key share \
cache and long-polls. To revoke a token, remove its lines.

Exit code: 0 on success, 2 for an invalid name, 1 for any other failure.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Name of the member in logs and metrics, at most 64 bytes
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: String,
}

fn parse_name(text: &str) -> Result<String, String> {
    member_name(text).map_err(|error| error.to_string())
}

/// Writes the token to stderr and the lines to stdout.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| format!("cannot get random bytes from the system: {error}"))?;
    let token = token(&random);
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    // The lines come first: a token without its lines is useless.
    out.write_all(lines(&args.name, &token).as_bytes())?;
    out.flush()?;
    writeln!(
        err,
        "\nThe token of {}, which cannot be shown again. It is sent as `Authorization: Bearer TOKEN`:\n\n  {token}\n",
        args.name
    )?;
    Ok(ExitCode::SUCCESS)
}

fn token(random: &[u8; RANDOM_BYTES]) -> String {
    format!("{PREFIX}{}", hex::encode(random))
}

fn lines(name: &str, token: &str) -> String {
    // TOML has the escapes of JSON.
    let name = serde_json::Value::from(name);
    let hash = hex::encode(token_sha256(token.as_bytes()).0);
    format!(
        "\n[[team.members]]\nname = {name}\ntoken_sha256 = \"{hash}\"\nupstream_key = \"env:AIMLAPI_KEY\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthMode, Config};

    #[test]
    fn the_lines_configure_the_member_of_the_token_with_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let names = ["alice", "O'Neill \"Shaq\"", "a\\b", "Ål ice", "#1", "'''"];
        let mut text = "[auth]\nmode = \"team\"\n".to_owned();
        for (n, name) in (0..).zip(names) {
            text.push_str(&lines(name, &token(&[n; 32])));
        }
        std::fs::write(&path, &text).unwrap();
        let key = ("AIMLAPI_KEY".to_owned(), "sk-1".to_owned());
        let AuthMode::Team(members) = Config::load(Some(&path), [key]).unwrap().auth.mode else {
            panic!("no team: {text}");
        };
        assert_eq!(members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), names);
        for (n, member) in (0..).zip(&members) {
            assert_eq!(member.token_sha256, token_sha256(token(&[n; 32]).as_bytes()));
            assert_eq!(member.upstream_key.expose(), "sk-1");
        }
        assert_eq!(members.len(), 6);
    }

    #[test]
    fn a_token_is_the_prefix_and_all_random_bytes() {
        assert_eq!(token(&[0xab; 32]), format!("cg_{}", "ab".repeat(32)));
    }

    #[test]
    fn the_lines_do_not_contain_the_token() {
        let token = token(&[7; 32]);
        assert!(!lines("alice", &token).contains(&token[PREFIX.len()..]));
    }
}
