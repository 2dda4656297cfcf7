//! The start-up text for a person at a terminal: addresses, mode, and commands to try.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::cli::error::CommandError;
use crate::config::{AuthMode, Config, Listen};
use crate::core::route::SunoEndpoints;
use crate::printable::escape;

/// Contents of the banner.
pub(super) struct BannerInfo<'a> {
    pub(super) config: &'a Config,
    pub(super) file: Option<&'a Path>,
    pub(super) listen: &'a [Listen],
    pub(super) admin: Option<&'a Listen>,
    /// Speed of the simulated upstream.
    pub(super) simulated: Option<f64>,
    /// Name by which the command was started.
    pub(super) program: &'a str,
    pub(super) is_colored: bool,
}

/// Address of a gateway without `--url`.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

pub(super) fn format(info: &BannerInfo<'_>) -> Result<String, CommandError> {
    let config = info.config;
    let (bold, faint, reset) = match info.is_colored {
        true => ("\x1b[1m", "\x1b[2m", "\x1b[0m"),
        false => ("", "", ""),
    };
    let mut text = format!("\n  {bold}clipgate {}{reset}\n\n", env!("CARGO_PKG_VERSION"));
    let mut row = |label: &str, value: &str, note: &str| {
        writeln!(
            text,
            "  {label:<10} {}{faint}{}{}{reset}",
            escape(value),
            if note.is_empty() { "" } else { "  " },
            escape(note)
        )
    };
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    for listen in info.listen {
        row("API", &url(listen, scheme), all_interfaces(listen))?;
    }
    if let Some(admin) = info.admin {
        let password = config.admin.token.as_ref().map_or("", |_| "with admin.token as the password");
        row("Dashboard", &url(admin, "http"), password)?;
    }
    match info.simulated {
        Some(1.0) => row("Upstream", "simulated, as fast as life", "any key works")?,
        Some(speed) => {
            row("Upstream", &format!("simulated, {speed} times as fast as life"), "any key works")?
        }
        None => row("Upstream", &config.upstream.base_url.to_string(), "")?,
    }
    let (mode, note) = match &config.auth.mode {
        AuthMode::Passthrough => ("passthrough".to_owned(), "clients send their own API keys"),
        AuthMode::Sidecar => ("sidecar".to_owned(), "clients need no key and spend that of the gateway"),
        AuthMode::Team(members) => (format!("team of {}", members.len()), "clients send tokens"),
        AuthMode::Open => ("open".to_owned(), "the API needs no key"),
    };
    row("Mode", &mode, note)?;
    match info.file {
        Some(file) => row("Config", &file.display().to_string(), "")?,
        None => row("Config", "none, the defaults apply", "`clipgate config` prints them")?,
    }
    let base = info.listen.iter().find_map(|listen| match listen {
        Listen::Tcp(_) => Some(url(listen, scheme)),
        Listen::Unix(_) => None,
    });
    if let Some(base) = base {
        let follow = if info.simulated.is_some() { "--new \"night drive\"" } else { "ID" };
        let key = if info.simulated.is_some() { "AIMLAPI_KEY=demo " } else { "" };
        let url = if base == DEFAULT_URL { String::new() } else { format!(" --url {base}") };
        row("Follow", &format!("{key}{} watch {follow}{url}", info.program), "")?;
        if let Some(speed) = info.simulated {
            text += &samples(config, &base, speed);
        }
    }
    text.push('\n');
    Ok(text)
}

/// Returns the URL by which this machine reaches a listener.
pub(super) fn url(listen: &Listen, scheme: &str) -> String {
    match listen {
        Listen::Tcp(address) => {
            let mut address = *address;
            if address.ip() == Ipv4Addr::UNSPECIFIED {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            } else if address.ip() == Ipv6Addr::UNSPECIFIED {
                address.set_ip(Ipv6Addr::LOCALHOST.into());
            }
            format!("{scheme}://{address}")
        }
        Listen::Unix(_) => listen.to_string(),
    }
}

fn all_interfaces(listen: &Listen) -> &'static str {
    match listen {
        Listen::Tcp(address) if address.ip().is_unspecified() => "and on all other addresses of this machine",
        Listen::Tcp(_) | Listen::Unix(_) => "",
    }
}

/// Longest time in which a simulated clip can be heard, and in which one is done, in seconds.
const AUDIBLE_SECONDS: f64 = 35.0;
const DONE_SECONDS: f64 = 120.0;

/// Returns commands that show ten waits merged, with each kind of simulated job that the gateway has a route for.
fn samples(config: &Config, base: &str, speed: f64) -> String {
    let routes = config.routes();
    let mut text = String::new();
    if routes.iter().any(|(_, route)| route.is_built_in) {
        text += &clip_commands(base, speed);
    }
    if routes.endpoint(&format!("{PREDICTIONS}/ID")).is_some() {
        text += &prediction_commands(base);
    }
    text
}

/// State that the commands of a banner wait for.
pub(super) struct SampleWait {
    pub(super) word: String,
    /// Longest time until a new clip has reached it.
    pub(super) seconds: f64,
    /// Advice for a slow simulation, or nothing.
    pub(super) hint: &'static str,
}

impl SampleWait {
    pub(super) fn at(speed: f64) -> Self {
        let SunoEndpoints { ladder, .. } = SunoEndpoints::default();
        let words: Vec<_> = ladder.askable_words().collect();
        let (&last, before) = words.split_last().expect("a ladder has a state that clients can wait for");
        let audible = before.last().unwrap_or(&last);
        // Within ten seconds, if that is possible: at the speed of life a clip takes two minutes to its end.
        let (word, seconds) =
            if DONE_SECONDS / speed <= 10.0 { (last, DONE_SECONDS) } else { (*audible, AUDIBLE_SECONDS) };
        let hint = if speed < 3.0 { "; --speed 10 is faster" } else { "" };
        Self { word: word.to_owned(), seconds: (seconds / speed).ceil(), hint }
    }
}

fn clip_commands(base: &str, speed: f64) -> String {
    let SunoEndpoints { single_path, single_param, status_param, .. } = SunoEndpoints::default();
    let SampleWait { word, seconds, hint } = SampleWait::at(speed);
    format!(
        r#"
  In another shell, make a clip, and let ten clients wait for it at once. After at most {seconds} s all are answered,
  by one request to the API{hint}:

  URL={base}{single_path} KEY='Authorization: Bearer demo'
  ID=$(curl -s $URL -H "$KEY" -d '{{"prompt":"night drive"}}' | grep -oE '[0-9a-f-]{{36}}' | head -1)
  (for n in 1 2 3 4 5 6 7 8 9 10; do
     curl -si "$URL?{single_param}=$ID&{status_param}={word}" -H "$KEY" | grep -i cache-status &
   done; wait) | sort | uniq -c
"#
    )
}

fn prediction_commands(base: &str) -> String {
    format!(
        r#"
  The same with a prediction, at an API that never holds a request:

  URL={base}{PREDICTIONS} KEY='Authorization: Bearer demo'
  ID=$(curl -s $URL -H "$KEY" -d '{{"input":{{"prompt":"a red door"}}}}' | sed 's/.*"id":"\([^"]*\)".*/\1/')
  (for n in 1 2 3 4 5 6 7 8 9 10; do
     curl -si "$URL/$ID" -H "$KEY" -H 'Prefer: wait=60' | grep -i cache-status &
   done; wait) | sort | uniq -c
"#
    )
}

/// Path of the predictions of the simulated upstream.
const PREDICTIONS: &str = "/v1/predictions";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_has_addresses_mode_file_and_a_command() {
        let config = Config::default();
        let info = BannerInfo {
            config: &config,
            file: None,
            listen: &["0.0.0.0:8080".parse().map(Listen::Tcp).unwrap(), Listen::Unix("/run/gw.sock".into())],
            admin: config.admin.listen.as_ref(),
            simulated: None,
            program: "clipgate",
            is_colored: false,
        };
        let text = format(&info).unwrap();
        for line in [
            "  API        http://127.0.0.1:8080  and on all other addresses of this machine\n",
            "  API        unix:/run/gw.sock\n",
            "  Dashboard  http://127.0.0.1:9090\n",
            "  Upstream   https://api.aimlapi.com/\n",
            "  Mode       passthrough  clients send their own API keys\n",
            "  Config     none, the defaults apply  `clipgate config` prints them\n",
            "  Follow     clipgate watch ID\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("curl") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn the_commands_of_a_simulation_fit_its_speed_and_its_port() {
        let config = Config::default();
        let text = |speed| {
            let info = BannerInfo {
                config: &config,
                file: Some(Path::new("/etc/clipgate/config.toml")),
                listen: &["127.0.0.1:8085".parse().map(Listen::Tcp).unwrap()],
                admin: None,
                simulated: Some(speed),
                program: "./clipgate",
                is_colored: true,
            };
            format(&info).unwrap()
        };
        let fast = text(20.0);
        assert!(
            fast.contains(
                "AIMLAPI_KEY=demo ./clipgate watch --new \"night drive\" --url http://127.0.0.1:8085"
            )
        );
        assert!(fast.contains("status=completed") && fast.contains("After at most 6 s"), "{fast}");
        let slow = text(1.0);
        assert!(slow.contains("status=streaming") && slow.contains("After at most 35 s"), "{slow}");
    }
}
