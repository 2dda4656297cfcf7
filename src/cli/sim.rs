//! `clipgate sim`: the simulated upstream alone.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::error::CommandError;
use crate::core::route::Route;
use crate::server::descriptors;
use crate::sim::{FaultSpec, ListFormat, Sim, SimOptions};
use crate::socket;

/// How `sim` is called.
#[derive(Debug, clap::Args)]
#[command(after_long_help = try_it())]
pub(super) struct Args {
    /// Where it listens; port 0 takes any that is free
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// How many times faster than life clips are made and polls run out
    ///
    /// In life a clip can be heard after about 30 s and is done after 60 to 120 s.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_speed)]
    pub speed: f64,
    /// How long a poll is held before it is answered unreached; divided by the speed
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_time)]
    pub hold: Duration,
    /// What ids, lifetimes and chance come from: the same seed gives the same [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The part of the clips that ends in error: 0 to 1, or as 2%
    #[arg(long, value_name = "P", default_value = "2%", value_parser = parse_share)]
    pub error_rate: f64,
    /// How answers for several clips look
    #[arg(long, value_enum, default_value_t = ListFormat::Array)]
    pub shape: ListFormat,
    /// A fault and how often: FAULT:5% of all requests, or FAULT:3 for the next three; may be repeated
    ///
    /// refuse        the connection is closed as soon as it is accepted
    /// reset         the connection is reset (TCP RST) at once
    /// reset=10s     or so long after the request, if it is unanswered by then
    /// hang          the request is never answered
    /// cut           the answer breaks off in the middle
    /// html          a page of HTML comes as 200
    /// 429, 429=3s   429 with Retry-After, 1 s or as said; 503=3s and so on too
    /// 500           any status from 400 to 599, with the documented JSON
    /// 502=html      the same with a page of HTML
    /// 504=empty     or with no body
    ///
    /// Times in faults are as written, whatever the speed.
    #[arg(long = "fault", value_name = "FAULT:OFTEN", verbatim_doc_comment)]
    pub faults: Vec<FaultSpec>,
}

/// What `--help` ends with.
fn try_it() -> String {
    let route = Route::suno();
    let (path, id, status) = (&route.single_path, &route.single_param, &route.status_param);
    let last = route.ladder.askable_words().last().unwrap_or_default();
    format!(
        "Try it:
  clipgate sim --speed 10 --fault reset:5% --fault 429=2s:1% &
  curl -H 'Authorization: Bearer any' -d '{{}}' \\
    localhost:8081{path}
  curl -H 'Authorization: Bearer any' \\
    'localhost:8081{path}?{id}=ID&{status}={last}'

Beside the real API there are aids under /sim/:
  echo, mirror, stream?n=10&every=100ms, upgrade, status/CODE"
    )
}

/// Runs the simulated upstream until it is told to stop.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    descriptors::raise_limit();
    let listener =
        socket::listen(args.listen).map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let sim = Sim::new(SimOptions {
        hold: args.hold,
        speed: args.speed,
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        list_format: args.shape,
        error_rate: args.error_rate,
        // Nobody can ask for the record here.
        max_requests: 0,
        ..SimOptions::default()
    });
    for fault in args.faults {
        sim.inject(fault);
    }
    // Nobody has to read it.
    let _ = writeln!(std::io::stdout(), "clipgate sim listening on {}", listener.local_addr()?);
    let told_to_stop = async {
        // Cancel safe: a signal that is lost with this future has no one to stop.
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    sim.serve(listener, told_to_stop).await;
    Ok(ExitCode::SUCCESS)
}

fn parse_speed(text: &str) -> Result<f64, &'static str> {
    let speed = text.parse().ok().filter(|speed: &f64| (0.001..=1_000_000.0).contains(speed));
    speed.ok_or("write how many times faster than life, 0.001 to 1000000, as in 10")
}

fn parse_time(text: &str) -> Result<Duration, &'static str> {
    let time = humantime::parse_duration(text).ok().filter(|time| *time <= Duration::from_secs(86_400));
    time.ok_or("write a time up to a day, as in 120s or 2min")
}

fn parse_share(text: &str) -> Result<f64, &'static str> {
    let (number, whole) = text.strip_suffix('%').map_or((text, 1.0), |percent| (percent, 100.0));
    let share = number.parse().ok().map(|number: f64| number / whole);
    share.filter(|share| (0.0..=1.0).contains(share)).ok_or("write a part, 0 to 1, or as in 2%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, String> {
        let line = Line::try_parse_from(["sim"].iter().chain(line));
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_line_says_what_the_upstream_is_like() {
        let line = ["--speed", "20", "--hold", "2min", "--error-rate", "0.5", "--shape", "map", "--fault"];
        let args = parse(&[&line[..], &["reset:5%", "--fault", "429=3s:2"]].concat()).unwrap();
        assert_eq!(args.hold, Duration::from_secs(120));
        assert!((args.speed - 20.0).abs() < f64::EPSILON && (args.error_rate - 0.5).abs() < f64::EPSILON);
        assert_eq!((args.shape, args.faults.len()), (ListFormat::Map, 2));
        let plain = parse(&[]).unwrap();
        assert!((plain.error_rate - 0.02).abs() < f64::EPSILON && plain.faults.is_empty());
    }

    #[test]
    fn a_wrong_value_is_told_what_would_be_right() {
        let cases = [
            (["--speed", "0"], "0.001 to 1000000"),
            (["--speed", "NaN"], "how many times faster"),
            (["--hold", "120"], "as in 120s"),
            (["--hold", "100years"], "up to a day"),
            (["--error-rate", "2"], "0 to 1"),
            (["--fault", "rest:1%"], "use refuse, reset"),
            (["--fault", "reset"], "the frequency is missing"),
            (["--shape", "list"], "array"),
        ];
        for (line, hint) in cases {
            let message = parse(&line).unwrap_err();
            assert!(message.contains(hint), "{line:?}: {message}");
        }
    }
}
