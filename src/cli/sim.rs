//! `clipgate sim`: runs the simulated upstream alone.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http::StatusCode;
use tokio::signal::unix::{SignalKind, signal};

use super::error::CommandError;
use crate::core::route::SunoEndpoints;
use crate::server::descriptors;
use crate::sim::{FaultSpec, ListFormat, Sim, SimOptions};
use crate::socket;

#[derive(Debug, clap::Args)]
#[command(after_long_help = try_it())]
pub(super) struct Args {
    /// Listener; with port 0 the system chooses a port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// Speed of clips, jobs and polls: 10 is ten times real time
    ///
    /// In real time a clip can be heard after about 30 s and is done after 60 to 120 s, a job of the other APIs after
    /// 20 to 40 s.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_speed)]
    pub speed: f64,
    /// Longest time that a poll is held, divided by the speed
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_time)]
    pub hold: Duration,
    /// Seed of ids, lifetimes and faults [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Share of the clips and jobs that end in an error: 0 to 1, or a percentage such as 2%
    #[arg(long, value_name = "P", default_value = "2%", value_parser = parse_share)]
    pub error_rate: f64,
    /// Status code of reads of a job before its end, 200 to 299 [default: 202 of fal's jobs, 200 of others]
    ///
    /// For the APIs that never hold a request. Clips have 200.
    #[arg(long, value_name = "CODE", value_parser = parse_pending_code)]
    pub pending_code: Option<StatusCode>,
    /// JSON form of responses for several clips
    #[arg(long, value_enum, default_value_t = ListFormat::Array)]
    pub shape: ListFormat,
    /// Fault and its frequency: FAULT:5% of all requests, or FAULT:3 for the next three; may be repeated
    ///
    /// refuse        close the connection after accepting it
    /// reset         reset the connection (TCP RST) at once
    /// reset=10s     reset it 10 s after a request that has no response yet
    /// slow, slow=3s send the correct response after 1 s or the given time
    /// hang          never respond
    /// cut           end the response in the middle
    /// html          respond with 200 and a page of HTML
    /// 429, 429=3s   429 with Retry-After, 1 s or the given time; also 503=3s and other statuses
    /// 500           any status from 400 to 599, with the documented JSON
    /// 502=html      a status with a page of HTML
    /// 504=empty     a status without a body
    ///
    /// The speed does not change times in faults.
    #[arg(long = "fault", value_name = "FAULT:OFTEN", verbatim_doc_comment)]
    pub faults: Vec<FaultSpec>,
}

fn try_it() -> String {
    let route = SunoEndpoints::default();
    let (path, id, status) = (&route.single_path, &route.single_param, &route.status_param);
    let last = route.ladder.askable_words().last().unwrap_or_default();
    format!(
        "Try it:
  clipgate sim --speed 10 --fault reset:5% --fault 429=2s:1% &
  curl -H 'Authorization: Bearer any' -d '{{}}' \\
    localhost:8081{path}
  curl -H 'Authorization: Bearer any' \\
    'localhost:8081{path}?{id}=ID&{status}={last}'

It also has APIs that never hold a request, where clients poll:
  Replicate  POST /v1/predictions    GET, DELETE /v1/predictions/ID     POST …/ID/cancel
  OpenAI     POST /v1/responses      GET, DELETE /v1/responses/ID       POST …/ID/cancel
  fal        POST /fal-ai/APP        GET /fal-ai/APP/requests/ID/status PUT …/ID/cancel
  RunPod     POST /v2/ENDPOINT/run   GET /v2/ENDPOINT/status/ID         POST …/cancel/ID, …/retry/ID

Besides the API there are debug endpoints under /sim/:
  echo, mirror, stream?n=10&every=100ms, upgrade, status/CODE"
    )
}

/// Runs the simulated upstream until SIGTERM or SIGINT.
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
        pending_code: args.pending_code,
        // The command has no access to the recorded requests.
        max_requests: 0,
        ..SimOptions::default()
    });
    for fault in args.faults {
        sim.inject(fault);
    }
    // A closed stdout does not end the simulation.
    let _ = writeln!(std::io::stdout(), "clipgate sim listening on {}", listener.local_addr()?);
    let stop = async {
        // Cancel safe: the future is dropped only at the end of the process.
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    sim.serve(listener, stop).await;
    Ok(ExitCode::SUCCESS)
}

fn parse_speed(text: &str) -> Result<f64, &'static str> {
    let speed = text.parse().ok().filter(|speed: &f64| (0.001..=1_000_000.0).contains(speed));
    speed.ok_or("use a number from 0.001 to 1000000; 10 is ten times real time")
}

fn parse_time(text: &str) -> Result<Duration, &'static str> {
    let time = humantime::parse_duration(text).ok().filter(|time| *time <= Duration::from_secs(86_400));
    time.ok_or("use a duration up to a day, such as 120s or 2min")
}

fn parse_pending_code(text: &str) -> Result<StatusCode, &'static str> {
    let code = text.parse().ok().filter(StatusCode::is_success);
    code.ok_or("use a status code from 200 to 299, such as 202")
}

fn parse_share(text: &str) -> Result<f64, &'static str> {
    let (number, divisor) = text.strip_suffix('%').map_or((text, 1.0), |percent| (percent, 100.0));
    let share = number.parse().ok().map(|number: f64| number / divisor);
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or("use a share from 0 to 1, or a percentage such as 2%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct SimCommandLine {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, String> {
        let line = SimCommandLine::try_parse_from(["sim"].iter().chain(line));
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_set_the_options_of_the_simulation() {
        let line = ["--speed", "20", "--hold", "2min", "--error-rate", "0.5", "--shape", "map", "--fault"];
        let args = parse(&[&line[..], &["reset:5%", "--fault", "429=3s:2"]].concat()).unwrap();
        assert_eq!(args.hold, Duration::from_secs(120));
        assert!((args.speed - 20.0).abs() < f64::EPSILON && (args.error_rate - 0.5).abs() < f64::EPSILON);
        assert_eq!((args.shape, args.faults.len()), (ListFormat::Map, 2));
        let plain = parse(&[]).unwrap();
        assert!((plain.error_rate - 0.02).abs() < f64::EPSILON && plain.faults.is_empty());
    }

    #[test]
    fn an_invalid_value_is_rejected_with_a_hint() {
        let cases = [
            (["--speed", "0"], "0.001 to 1000000"),
            (["--speed", "NaN"], "ten times real time"),
            (["--hold", "120"], "such as 120s"),
            (["--hold", "100years"], "up to a day"),
            (["--error-rate", "2"], "0 to 1"),
            (["--fault", "rest:1%"], "use refuse, reset"),
            (["--fault", "reset"], "the frequency is missing"),
            (["--shape", "list"], "array"),
            (["--pending-code", "404"], "200 to 299, such as 202"),
        ];
        for (line, hint) in cases {
            let message = parse(&line).unwrap_err();
            assert!(message.contains(hint), "{line:?}: {message}");
        }
    }
}
