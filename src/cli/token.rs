//! `clipgate token`: a team token, and the configuration lines that let its owner in.

use std::io::Write as _;
use std::process::ExitCode;

use super::error::CommandError;
use crate::auth::token_sha256;
use crate::config::member_name;

/// Bytes of chance in a token.
const RANDOM_BYTES: usize = 32;

/// What a token begins with, so that people and scanners for leaked secrets know it for one.
const PREFIX: &str = "cg_";

const HELP: &str = "\
The token goes to stderr and is shown this once: hand it to its owner, who sends it to the gateway as \
`Authorization: Bearer TOKEN` in place of the API's key. The lines for the configuration go to stdout; they hold \
the token's SHA-256 only, which nobody can turn back into the token.

Examples:
  clipgate token alice                     show both
  clipgate token alice >> config.toml      list alice in the file at once; the token is still shown
  clipgate token alice 2> alice.token      keep what is said of the token in a file

The configuration needs `mode = \"team\"` under [auth]. In the new lines, name the API key that the member's \
requests are to go with: \"env:NAME\" is an environment variable, \"file:PATH\" a file. Members with the same API \
key share what is cached and the long-polls that run. To take a token back, take its lines out.

Exit code: 0 when all went well, 2 for a bad name, 1 for any other failure.";

/// How `token` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Who it is for: what logs and metrics call the member, 64 bytes at most
    #[arg(value_name = "NAME", value_parser = member_name_of_line)]
    pub name: String,
}

fn member_name_of_line(text: &str) -> Result<String, String> {
    member_name(text).map_err(|wrong| wrong.to_string())
}

/// Writes the token to stderr and the lines to stdout.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| format!("the system has no random bytes: {error}"))?;
    let token = token(&random);
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    // The lines first: a token that cannot be listed is better not shown.
    out.write_all(lines(&args.name, &token).as_bytes())?;
    out.flush()?;
    writeln!(
        err,
        "\nThe token of {}, shown this once; it is sent as `Authorization: Bearer TOKEN`:\n\n  {token}\n",
        args.name
    )?;
    Ok(ExitCode::SUCCESS)
}

fn token(random: &[u8; RANDOM_BYTES]) -> String {
    format!("{PREFIX}{}", hex::encode(random))
}

fn lines(name: &str, token: &str) -> String {
    // JSON's escapes are TOML's too.
    let name = serde_json::Value::from(name);
    let hash = hex::encode(token_sha256(token.as_bytes()).0);
    format!(
        "\n[[team.members]]\nname = {name}\ntoken_sha256 = \"{hash}\"\nupstream_key = \"env:AIMLAPI_KEY\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthConfig, Config};

    #[test]
    fn the_lines_are_read_back_as_the_member_of_that_token_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let names = ["alice", "O'Neill \"Shaq\"", "a\\b", "Ål ice", "#1", "'''"];
        let mut text = "[auth]\nmode = \"team\"\n".to_owned();
        for (n, name) in (0..).zip(names) {
            text.push_str(&lines(name, &token(&[n; 32])));
        }
        std::fs::write(&path, &text).unwrap();
        let key = ("AIMLAPI_KEY".to_owned(), "sk-1".to_owned());
        let AuthConfig::Team(members) = Config::load(Some(&path), [key]).unwrap().auth else {
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
    fn a_token_says_what_it_is_and_all_its_random_bytes() {
        assert_eq!(token(&[0xab; 32]), format!("cg_{}", "ab".repeat(32)));
    }

    #[test]
    fn the_lines_do_not_tell_the_token() {
        let token = token(&[7; 32]);
        assert!(!lines("alice", &token).contains(&token[PREFIX.len()..]));
    }
}
