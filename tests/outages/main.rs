//! Restarts the upstream four times under 200 waits on 200 jobs, and prints the delays of the clients and the requests at
//! the upstream.
//!
//! ```text
//!  200 clients' waits ──▶ clipgate serve ──https, HTTP/2──▶ Upstream (TLS, a port that closes) ──▶ Sim
//!  10 keys, 1/2 HTTP/2    a process, default limits         gone for 0, 1, 5 and 15 s
//! ```
//!
//! `make outages` runs it, for 40 s. The table is on stdout. Exit code 1 if a wait was lost: answered
//! with anything but 200 and the bytes of its finished job.
//!
//! In each outage some jobs finish while the upstream is away, and as many [`SETTLE_TIME`] after its return. The columns:
//!
//! - "last answer": the delay of the last response to their waits, from the return of the upstream or, if later, from the
//!   end of the job.
//! - "direct": the requests of the same clients without the gateway: one for each wait, and one more after each restart.
//!   Refused connections are not counted.

mod table;
mod upstream;

use std::collections::HashMap;
use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use clipgate::core::route::SunoEndpoints;
use clipgate::sim::{RequestEnd, Sim, SimOptions};
use clipgate::testing::clock;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::table::{Counts, Row, Table};
use crate::upstream::Upstream;

const WAITS: usize = 200;
const KEYS: usize = 10;
/// Jobs that finish while the upstream is away. As many finish after its return.
const JOBS_PER_OUTAGE: usize = 10;
/// Time from the return of the upstream until more jobs finish. Polls may still be backing off.
const SETTLE_TIME: Duration = Duration::from_millis(500);
/// Time before each outage in which the upstream holds all polls.
const CALM: Duration = Duration::from_secs(3);
/// Time reserved for the last response after an outage, so that the run fits into [`WAIT_TIME`].
const MAX_DELAY: Duration = Duration::from_secs(8);
/// Default time of a wait at the gateway and at the API.
const WAIT_TIME: Duration = Duration::from_secs(120);
/// Time-out of each step of the run.
const STEP_TIMEOUT: Duration = Duration::from_secs(90);

type Failure = Box<dyn Error + Send + Sync>;
type Http = Client<HttpConnector, Empty<Bytes>>;

/// Restarts the upstream under 200 waits
#[derive(Debug, Parser)]
struct Args {
    /// Lengths of the outages, in seconds
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', default_value = "0,1,5,15")]
    away: Vec<f64>,
    /// Binary of the gateway
    #[arg(long, value_name = "PATH", default_value = "target/release/clipgate")]
    gateway: PathBuf,
    /// File for the log of the gateway [default: none]
    #[arg(long, value_name = "PATH")]
    log: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let args = Args::parse();
    let away = outages(&args)?;
    let directory = tempfile::tempdir()?;
    // Large enough to record every request: the table counts them.
    let sim = Sim::new(SimOptions { max_requests: 1_000_000, ..SimOptions::default() });
    let roots = directory.path().join("roots.pem");
    let upstream = Upstream::start(sim.clone(), &roots).await?;
    let gateway = Gateway::start(&args, directory.path(), &roots, upstream.port()).await?;
    let table = Run::new(sim, upstream, gateway).execute(away).await?;
    writeln!(std::io::stdout().lock(), "{table}")?;
    Ok(if table.lost() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the lengths of the outages. Fails if there are too few jobs or too little time for them.
fn outages(args: &Args) -> Result<Vec<Duration>, Failure> {
    let outages: Vec<Duration> =
        args.away.iter().map(|&away| Duration::try_from_secs_f64(away)).collect::<Result<_, _>>()?;
    let time: Duration = outages.iter().map(|away| CALM + *away + SETTLE_TIME + MAX_DELAY).sum();
    if time > WAIT_TIME || outages.len() * 2 * JOBS_PER_OUTAGE > WAITS {
        return Err(format!("--away: outages take {time:?}, longer than waits of {WAIT_TIME:?}").into());
    }
    Ok(outages)
}

/// The process of the gateway. Dropping this kills it.
struct Gateway {
    _child: Child,
    _stdout: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    async fn start(args: &Args, directory: &Path, roots: &Path, port: u16) -> Result<Self, Failure> {
        let config = directory.join("config.toml");
        let text = format!(
            "server.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
             upstream.base_url = \"https://localhost:{port}\"\n"
        );
        std::fs::write(&config, text)?;
        let log = match &args.log {
            Some(path) => std::fs::File::create(path)?.into(),
            None => Stdio::null(),
        };
        let mut command = Command::new(&args.gateway);
        command.arg("serve").arg("--config").arg(config).env("SSL_CERT_FILE", roots);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            format!("{}: {error}. Build it with `cargo build --release`.", args.gateway.display())
        })?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("stdout is not a pipe")?).lines();
        let mut ready = async |start: &str| -> Result<SocketAddr, Failure> {
            let line = in_time("ready line", lines.next_line()).await??;
            let line = line.ok_or("the gateway ended before it was ready; --log FILE keeps its log")?;
            Ok(line.strip_prefix(start).ok_or_else(|| format!("unknown ready line: {line}"))?.parse()?)
        };
        let address = ready("clipgate listening on ").await?;
        let admin = ready("clipgate admin listening on ").await?;
        Ok(Self { _child: child, _stdout: lines, address, admin })
    }
}

/// The response to a wait.
struct Response {
    job: usize,
    at: Instant,
    /// The difference to the expected response.
    error: Option<String>,
}

/// The processes and clients of a run, and its progress.
struct Run {
    sim: Sim,
    upstream: Upstream,
    gateway: Gateway,
    /// One client for each key, and one for the admin listener.
    clients: Vec<Http>,
    admin: Http,
    waits: JoinSet<()>,
    sender: mpsc::UnboundedSender<Response>,
    responses: mpsc::UnboundedReceiver<Response>,
    answered: usize,
    lost: usize,
    /// The next job to finish. Jobs finish in order.
    next: usize,
}

impl Run {
    fn new(sim: Sim, upstream: Upstream, gateway: Gateway) -> Self {
        let client =
            |is_http2| -> Http { Client::builder(TokioExecutor::new()).http2_only(is_http2).build_http() };
        let (sender, responses) = mpsc::unbounded_channel(); // at most WAITS messages
        Self {
            sim,
            upstream,
            gateway,
            clients: (0..KEYS).map(|key| client(key % 2 == 1)).collect(),
            admin: client(false),
            waits: JoinSet::new(),
            sender,
            responses,
            answered: 0,
            lost: 0,
            next: 0,
        }
    }

    async fn execute(mut self, outages: Vec<Duration>) -> Result<Table, Failure> {
        self.prove_keys().await?;
        let mut table = Table::default();
        let (began, before) = (clock::now(), self.counts().await?);
        self.park();
        let held_at = self.until_held().await?;
        table.add(Row {
            name: "all parked".to_owned(),
            open: WAITS,
            held_again: Some(held_at.saturating_duration_since(began)),
            counts: self.counts().await? - before,
            direct: WAITS,
            ..Row::default()
        });
        for away in outages {
            let row = self.outage(away).await?;
            table.add(row);
        }
        table.add(self.rest().await?);
        Ok(table)
    }

    /// Sends one request with each key, so that the upstream has accepted all keys before the first outage.
    async fn prove_keys(&self) -> Result<(), Failure> {
        self.sim.set_status("kept", "submitted");
        for (key, client) in self.clients.iter().enumerate() {
            let (status, _) = get(client, self.gateway.address, key, &target("kept", false)).await?;
            if status != StatusCode::OK {
                return Err(format!("the first response is {status}").into());
            }
        }
        Ok(())
    }

    /// Starts one wait for each job.
    fn park(&mut self) {
        for job in 0..WAITS {
            self.sim.set_status(&name(job), "submitted");
            let (client, address) = (self.clients[job % KEYS].clone(), self.gateway.address);
            let (sender, expected) = (self.sender.clone(), self.sim.body(&name(job), "completed"));
            self.waits.spawn(async move {
                let response = get(&client, address, job % KEYS, &target(&name(job), true)).await;
                let error = match response {
                    Ok((StatusCode::OK, body)) if body == expected => None,
                    Ok((status, body)) => Some(format!("{status} {}", String::from_utf8_lossy(&body))),
                    Err(error) => Some(error.to_string()),
                };
                // Fails only at the end of the run.
                let _ = sender.send(Response { job, at: clock::now(), error });
            });
        }
    }

    async fn outage(&mut self, away: Duration) -> Result<Row, Failure> {
        tokio::time::sleep(CALM).await;
        let (open, lost, before) = (WAITS - self.answered, self.lost, self.counts().await?);
        self.upstream.close().await;
        tokio::time::sleep(away / 2).await;
        let meanwhile = self.finish(JOBS_PER_OUTAGE);
        tokio::time::sleep(away - away / 2).await;
        let back_at = clock::now();
        self.upstream.reopen().await?;
        tokio::time::sleep(SETTLE_TIME).await;
        let later = self.finish(JOBS_PER_OUTAGE);
        let finished_at = clock::now();
        let answered = self.until_answered(2 * JOBS_PER_OUTAGE).await?;
        let held_at = self.until_held().await?;
        let last = |jobs: &[usize], since: Instant| {
            jobs.iter()
                .filter_map(|job| answered.get(job))
                .map(|at| at.saturating_duration_since(since))
                .max()
        };
        Ok(Row {
            name: format!("away {} s", away.as_secs_f64()),
            open,
            answered: answered.len(),
            lost: self.lost - lost,
            answered_during: last(&meanwhile, back_at),
            answered_later: last(&later, finished_at),
            held_again: Some(held_at.saturating_duration_since(back_at)),
            counts: self.counts().await? - before,
            direct: open,
        })
    }

    /// Finishes the remaining jobs.
    async fn rest(&mut self) -> Result<Row, Failure> {
        let (open, lost, before) = (WAITS - self.answered, self.lost, self.counts().await?);
        let jobs = self.finish(WAITS - self.next);
        let finished_at = clock::now();
        let answered = self.until_answered(open).await?;
        let last = jobs.iter().filter_map(|job| answered.get(job)).max();
        Ok(Row {
            name: "remaining".to_owned(),
            open,
            answered: answered.len(),
            lost: self.lost - lost,
            answered_later: last.map(|at| at.saturating_duration_since(finished_at)),
            counts: self.counts().await? - before,
            ..Row::default()
        })
    }

    fn finish(&mut self, count: usize) -> Vec<usize> {
        let jobs: Vec<usize> = (self.next..self.next + count).collect();
        jobs.iter().for_each(|&job| self.sim.set_status(&name(job), "completed"));
        self.next += count;
        jobs
    }

    /// Receives `count` responses, and returns the time of each by job. Lost waits count as well.
    async fn until_answered(&mut self, count: usize) -> Result<HashMap<usize, Instant>, Failure> {
        let mut all = HashMap::new();
        while all.len() < count {
            let response = in_time("a response", self.responses.recv()).await?.ok_or("no sender is left")?;
            self.answered += 1;
            if let Some(error) = response.error {
                self.lost += 1;
                writeln!(std::io::stderr().lock(), "{} is lost: {error}", name(response.job))?;
            }
            all.insert(response.job, response.at);
        }
        Ok(all)
    }

    /// Waits until the upstream holds a poll for each unfinished job. Returns the time of the last of these polls.
    async fn until_held(&self) -> Result<Instant, Failure> {
        let held = self.sim.wait_until(|seen| seen.open >= WAITS - self.next);
        in_time("held poll for each job", held).await?;
        let requests = self.sim.requests();
        let last = requests.iter().filter(|seen| seen.end == RequestEnd::Open).map(|seen| seen.at).max();
        Ok(last.unwrap_or_else(clock::now))
    }

    async fn counts(&self) -> Result<Counts, Failure> {
        let (status, page) = get(&self.admin, self.gateway.admin, 0, "/metrics").await?;
        let page = String::from_utf8(page.to_vec())?;
        let retries = page.lines().find_map(|line| line.strip_prefix("clipgate_upstream_retries_total "));
        let retries = retries.ok_or_else(|| format!("no retry counter in the metrics ({status})"))?;
        Ok(Counts {
            calls: self.sim.requests().len(),
            connections: self.upstream.accepted(),
            retries: retries.trim().parse()?,
        })
    }
}

fn name(job: usize) -> String {
    format!("job-{job}")
}

fn target(job: &str, is_wait: bool) -> String {
    let SunoEndpoints { single_path, single_param, status_param, .. } = SunoEndpoints::default();
    let status = if is_wait { format!("&{status_param}=completed") } else { String::new() };
    format!("{single_path}?{single_param}={job}{status}")
}

async fn get(
    client: &Http,
    address: SocketAddr,
    key: usize,
    target: &str,
) -> Result<(StatusCode, Bytes), Failure> {
    let request = Request::get(format!("http://{address}{target}"))
        .header("authorization", format!("Bearer key-{key}"))
        .body(Empty::new())?;
    let (head, body) = client.request(request).await?.into_parts();
    Ok((head.status, body.collect().await?.to_bytes()))
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(STEP_TIMEOUT, future)
        .await
        .map_err(|_| format!("no {what} within {STEP_TIMEOUT:?}").into())
}
