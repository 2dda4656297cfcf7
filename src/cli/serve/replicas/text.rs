//! Output of a start with `--replicas`: ready lines, or a banner with commands at a terminal.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::Replica;
use super::engine::Engine;
use crate::cli::error::CommandError;
use crate::cli::serve::banner::{SampleWait, url};
use crate::config::Listen;
use crate::core::route::SunoEndpoints;
use crate::printable::escape;

/// Waits at each replica in the commands of the banner.
const WAITS: usize = 4;

/// Returns the ready lines of each replica, one replica after the other.
pub(super) fn ready_lines(replicas: &[Replica]) -> Result<String, CommandError> {
    let mut text = String::new();
    for replica in replicas {
        writeln!(text, "clipgate listening on {}", replica.address)?;
        if let Some(admin) = &replica.admin {
            writeln!(text, "clipgate admin listening on {admin}")?;
        }
    }
    Ok(text)
}

pub(super) fn banner(
    replicas: &[Replica],
    engine: &Engine,
    scheme: &str,
    speed: f64,
    is_colored: bool,
) -> Result<String, CommandError> {
    let (bold, faint, reset) = match is_colored {
        true => ("\x1b[1m", "\x1b[2m", "\x1b[0m"),
        false => ("", "", ""),
    };
    let mut text =
        format!("\n  {bold}clipgate {}, {} replicas{reset}\n\n", env!("CARGO_PKG_VERSION"), replicas.len());
    for (number, replica) in (1..).zip(replicas) {
        let api = url(&Listen::Tcp(replica.address), scheme);
        write!(text, "  {:<10} {api}", format!("API {number}"))?;
        if let Some(admin) = &replica.admin {
            write!(text, "   Dashboard {}", escape(&format!("http://{admin}")))?;
        }
        if let Some(id) = replica.process.id() {
            write!(text, "   {faint}process {id}{reset}")?;
        }
        text.push('\n');
    }
    writeln!(
        text,
        "  {:<10} simulated, {speed} times as fast as life  {faint}any key works{reset}",
        "Upstream"
    )?;
    writeln!(
        text,
        "  {:<10} {} on {}  {faint}without persistence, ends with this command{reset}",
        "Engine", engine.program, engine.address
    )?;
    text += &samples(replicas, scheme, speed);
    Ok(text)
}

/// Returns commands whose waits, at all replicas, cost the API one request.
fn samples(replicas: &[Replica], scheme: &str, speed: f64) -> String {
    let SunoEndpoints { single_path, single_param, status_param, .. } = SunoEndpoints::default();
    let SampleWait { word, seconds, hint } = SampleWait::at(speed);
    let reached = |address: SocketAddr| url(&Listen::Tcp(address), scheme);
    let bases: Vec<_> = replicas.iter().map(|replica| reached(replica.address)).collect();
    let numbers: Vec<_> = (1..=WAITS).map(|number| number.to_string()).collect();
    let kill = replicas.first().and_then(|replica| replica.process.id());
    let kill = kill.map_or(String::new(), |id| {
        format!("\n  Lose a replica: kill -9 {id}. The others go on with its polls.\n")
    });
    format!(
        r#"
  In another shell, make a clip, and let {WAITS} clients wait for it at each replica. After at most {seconds} s all are
  answered, by one request to the API{hint}:

  URLS='{urls}'
  CLIP={single_path} KEY='Authorization: Bearer demo'
  ID=$(curl -s {first}$CLIP -H "$KEY" -d '{{"prompt":"night drive"}}' | grep -oE '[0-9a-f-]{{36}}' | head -1)
  (for url in $URLS; do for n in {numbers}; do
     curl -si "$url$CLIP?{single_param}=$ID&{status_param}={word}" -H "$KEY" | grep -i cache-status &
   done; done; wait) | sort | uniq -c
{kill}
"#,
        urls = bases.join(" "),
        first = bases.first().map_or("", String::as_str),
        numbers = numbers.join(" "),
    )
}
