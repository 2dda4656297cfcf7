//! Restarts the upstream four times under 200 waits on 200 jobs, and tells what the clients and the upstream saw of it.
//!
//! ```text
//!  200 clients' waits ──▶ clipgate serve ──https, HTTP/2──▶ Upstream (TLS, a port that closes) ──▶ Sim
//!  10 keys, 1/2 HTTP/2    a process, default limits         gone for 0, 1, 5 and 15 s
//! ```
//!
//! `make outages` runs it, for 40 s. The table is on stdout. Exit code 1 if a wait was lost: answered
//! with anything but 200 and the bytes of its finished job.
//!
//! In each outage some jobs finish while the upstream is away, and as many [`AFTER`] it is back. "Told" is how late the
//! last of their waits was answered: after the upstream was back, or after the job was finished where that is later.
//! "Alone" is what the clients would have asked without the gateway: once a wait, and once more after each restart that
//! cut it; connections that are refused while the upstream is away are not counted on either side.

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
use clipgate::core::route::Route;
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
/// Jobs that finish while the upstream is away, and as many that finish [`AFTER`] it is back.
const FINISHED: usize = 10;
/// How long after its return the upstream finishes more jobs: polls may still be backing off.
const AFTER: Duration = Duration::from_millis(500);
/// How long the upstream serves, with all polls held, before it goes away.
const CALM: Duration = Duration::from_secs(3);
/// How long after an outage the last wait may be told for the run to fit into [`WAIT_TIME`].
const LATE: Duration = Duration::from_secs(8);
/// How long the gateway holds a wait by default, and the API.
const WAIT_TIME: Duration = Duration::from_secs(120);
/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(90);

type Failure = Box<dyn Error + Send + Sync>;
type Http = Client<HttpConnector, Empty<Bytes>>;

/// Restarts the upstream under 200 waits
#[derive(Debug, Parser)]
struct Args {
    /// How long the upstream is away, outage by outage, in seconds
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', default_value = "0,1,5,15")]
    away: Vec<f64>,
    /// The gateway to run
    #[arg(long, value_name = "PATH", default_value = "target/release/clipgate")]
    gateway: PathBuf,
    /// Where its log goes [default: nowhere]
    #[arg(long, value_name = "PATH")]
    log: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let args = Args::parse();
    let away = outages(&args)?;
    let directory = tempfile::tempdir()?;
    // Every request is remembered: the table counts them.
    let sim = Sim::new(SimOptions { max_requests: 1_000_000, ..SimOptions::default() });
    let roots = directory.path().join("roots.pem");
    let upstream = Upstream::start(sim.clone(), &roots).await?;
    let gateway = Gateway::start(&args, directory.path(), &roots, upstream.port()).await?;
    let table = Run::new(sim, upstream, gateway).whole(away).await?;
    writeln!(std::io::stdout().lock(), "{table}")?;
    Ok(if table.lost() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the lengths of the outages, if there are jobs and time enough for all of them.
fn outages(args: &Args) -> Result<Vec<Duration>, Failure> {
    let outages: Vec<Duration> =
        args.away.iter().map(|&away| Duration::try_from_secs_f64(away)).collect::<Result<_, _>>()?;
    let time: Duration = outages.iter().map(|away| CALM + *away + AFTER + LATE).sum();
    if time > WAIT_TIME || outages.len() * 2 * FINISHED > WAITS {
        return Err(format!("--away: {time:?} in all is too long for waits of {WAIT_TIME:?}").into());
    }
    Ok(outages)
}

/// The gateway's process, which ends with this.
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
        let mut lines = BufReader::new(child.stdout.take().ok_or("stdout is a pipe")?).lines();
        let mut ready = async |start: &str| -> Result<SocketAddr, Failure> {
            let line = in_time("the start of the gateway", lines.next_line()).await??;
            let line = line.ok_or("the gateway ended before it was ready; --log FILE keeps its log")?;
            Ok(line.strip_prefix(start).ok_or_else(|| format!("unknown ready line: {line}"))?.parse()?)
        };
        let address = ready("clipgate listening on ").await?;
        let admin = ready("clipgate admin listening on ").await?;
        Ok(Self { _child: child, _stdout: lines, address, admin })
    }
}

/// The answer to a wait.
struct Told {
    job: usize,
    at: Instant,
    /// How it differs from the right one.
    wrong: Option<String>,
}

/// The run: what stands, and what has been seen so far.
struct Run {
    sim: Sim,
    upstream: Upstream,
    gateway: Gateway,
    /// One client for each key, and one for the admin listener.
    clients: Vec<Http>,
    admin: Http,
    waits: JoinSet<()>,
    tell: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    answered: usize,
    lost: usize,
    /// Jobs are finished in order: the next one.
    next: usize,
}

impl Run {
    fn new(sim: Sim, upstream: Upstream, gateway: Gateway) -> Self {
        let client =
            |is_http2| -> Http { Client::builder(TokioExecutor::new()).http2_only(is_http2).build_http() };
        let (tell, told) = mpsc::unbounded_channel(); // WAITS at most
        Self {
            sim,
            upstream,
            gateway,
            clients: (0..KEYS).map(|key| client(key % 2 == 1)).collect(),
            admin: client(false),
            waits: JoinSet::new(),
            tell,
            told,
            answered: 0,
            lost: 0,
            next: 0,
        }
    }

    async fn whole(mut self, outages: Vec<Duration>) -> Result<Table, Failure> {
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
            alone: WAITS,
            ..Row::default()
        });
        for away in outages {
            let row = self.outage(away).await?;
            table.add(row);
        }
        table.add(self.rest().await?);
        Ok(table)
    }

    /// Lets each key be accepted by the upstream, as it is long before an outage.
    async fn prove_keys(&self) -> Result<(), Failure> {
        self.sim.set_status("kept", "submitted");
        for (key, client) in self.clients.iter().enumerate() {
            let (status, _) = get(client, self.gateway.address, key, &target("kept", false)).await?;
            if status != StatusCode::OK {
                return Err(format!("the first answer is {status}").into());
            }
        }
        Ok(())
    }

    /// One wait for each job.
    fn park(&mut self) {
        for job in 0..WAITS {
            self.sim.set_status(&name(job), "submitted");
            let (client, address) = (self.clients[job % KEYS].clone(), self.gateway.address);
            let (tell, right) = (self.tell.clone(), self.sim.body(&name(job), "completed"));
            self.waits.spawn(async move {
                let answer = get(&client, address, job % KEYS, &target(&name(job), true)).await;
                let wrong = match answer {
                    Ok((StatusCode::OK, body)) if body == right => None,
                    Ok((status, body)) => Some(format!("{status} {}", String::from_utf8_lossy(&body))),
                    Err(error) => Some(error.to_string()),
                };
                // The run is over if nobody listens.
                let _ = tell.send(Told { job, at: clock::now(), wrong });
            });
        }
    }

    async fn outage(&mut self, away: Duration) -> Result<Row, Failure> {
        tokio::time::sleep(CALM).await;
        let (open, lost, before) = (WAITS - self.answered, self.lost, self.counts().await?);
        self.upstream.go_away().await;
        tokio::time::sleep(away / 2).await;
        let meanwhile = self.finish(FINISHED);
        tokio::time::sleep(away - away / 2).await;
        let back_at = clock::now();
        self.upstream.come_back().await?;
        tokio::time::sleep(AFTER).await;
        let later = self.finish(FINISHED);
        let finished_at = clock::now();
        let told = self.until_told(2 * FINISHED).await?;
        let held_at = self.until_held().await?;
        let last = |jobs: &[usize], since: Instant| {
            jobs.iter().filter_map(|job| told.get(job)).map(|at| at.saturating_duration_since(since)).max()
        };
        Ok(Row {
            name: format!("away {} s", away.as_secs_f64()),
            open,
            answered: told.len(),
            lost: self.lost - lost,
            told_meanwhile: last(&meanwhile, back_at),
            told_later: last(&later, finished_at),
            held_again: Some(held_at.saturating_duration_since(back_at)),
            counts: self.counts().await? - before,
            alone: open,
        })
    }

    /// Finishes the jobs that are left.
    async fn rest(&mut self) -> Result<Row, Failure> {
        let (open, lost, before) = (WAITS - self.answered, self.lost, self.counts().await?);
        let jobs = self.finish(WAITS - self.next);
        let finished_at = clock::now();
        let told = self.until_told(open).await?;
        let last = jobs.iter().filter_map(|job| told.get(job)).max();
        Ok(Row {
            name: "the rest".to_owned(),
            open,
            answered: told.len(),
            lost: self.lost - lost,
            told_later: last.map(|at| at.saturating_duration_since(finished_at)),
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

    /// Takes in answers until there are `count` more; returns when each job was told. Waits that were lost count too.
    async fn until_told(&mut self, count: usize) -> Result<HashMap<usize, Instant>, Failure> {
        let mut all = HashMap::new();
        while all.len() < count {
            let told = in_time("an answer", self.told.recv()).await?.ok_or("the run keeps a sender")?;
            self.answered += 1;
            if let Some(wrong) = told.wrong {
                self.lost += 1;
                writeln!(std::io::stderr().lock(), "{} is lost: {wrong}", name(told.job))?;
            }
            all.insert(told.job, told.at);
        }
        Ok(all)
    }

    /// Waits until the upstream holds a poll for each job that is not finished; returns when the last of them came.
    async fn until_held(&self) -> Result<Instant, Failure> {
        let held = self.sim.wait_until(|seen| seen.open >= WAITS - self.next);
        in_time("all polls to be held", held).await?;
        let requests = self.sim.requests();
        let last = requests.iter().filter(|seen| seen.end == RequestEnd::Open).map(|seen| seen.at).max();
        Ok(last.unwrap_or_else(clock::now))
    }

    async fn counts(&self) -> Result<Counts, Failure> {
        let (status, page) = get(&self.admin, self.gateway.admin, 0, "/metrics").await?;
        let page = String::from_utf8(page.to_vec())?;
        let retries = page.lines().find_map(|line| line.strip_prefix("clipgate_upstream_retries_total "));
        let retries = retries.ok_or_else(|| format!("no count of retries in the metrics ({status})"))?;
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
    let Route { single_path, single_param, status_param, .. } = Route::suno();
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
    tokio::time::timeout(PATIENCE, future)
        .await
        .map_err(|_| format!("waited for {what} for {PATIENCE:?}").into())
}
