//! `clipgate serve`: the gateway.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use sd_notify::NotifyState;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::reload::Reload;
use self::signals::{SignalEvent, Signals};
use crate::admin::{Admin, AdminContext, Readiness};
use crate::cli::error::CommandError;
use crate::clock;
use crate::config::{self, Config, ConfigErrors, Flag};
use crate::core::route::Route;
use crate::gateway::Gateway;
use crate::server::{Listener, Server, descriptors};
use crate::sim::{Options, Sim};
use crate::socket;
use crate::telemetry::log;
use crate::telemetry::metrics::{self, Metrics};

mod admin;
mod reload;
mod signals;
mod watchdog;

/// How often what is of no use any more is forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// How long the collector has at least, also when the drain has taken all its time.
const FLUSH: Duration = Duration::from_secs(1);

/// How long the start waits for somebody to read the ready lines.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// How `serve` is called.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where clients connect, in place of server.listen (HOST:PORT or unix:PATH)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// The API's address, in place of upstream.base_url
    #[arg(long, value_name = "URL", conflicts_with = "sim")]
    pub upstream: Option<String>,
    /// Put the gateway before a simulated upstream of its own: needs no key and no network
    #[arg(long)]
    pub sim: bool,
    /// How many times faster than life the simulated jobs are made
    #[arg(long, value_name = "X", requires = "sim", default_value_t = 1.0, value_parser = speed)]
    pub speed: f64,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.01..=1000.0).contains(&speed) => Ok(speed),
        _ => Err("give a number from 0.01 to 1000".to_owned()),
    }
}

/// Runs the gateway until it is told to stop. Told again, it ends at once, with exit code 1.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    descriptors::raise_limit();
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let simulated = if args.sim { Some(Simulated::start(&args).await?) } else { None };
    let config = load(&args, simulated.as_ref())?;
    let log = log::init(&config.log)?;
    for warning in config.warnings() {
        warn!("{warning}");
    }

    let listeners = listeners(&config).await?;
    let mut registry = Registry::default();
    metrics::register_dropped_log_lines(&mut registry, log.dropped_lines());
    let (gateway, hub) = Gateway::new(&config, Metrics::new(&mut registry))?;
    let mut hub = tokio::spawn(hub);
    let tidy = tokio::spawn(tidy(gateway.clone()));
    let server = Server::new(gateway.clone(), &within_descriptors(&config), stop.clone())?;
    let readiness = Readiness::default();
    let listen = listeners.iter().map(Listener::address).collect::<Result<Vec<_>, _>>()?;
    let subject = AdminContext {
        gateway: gateway.clone(),
        registry,
        readiness: readiness.clone(),
        example: admin::example(&listen, args.sim),
        listen,
    };
    let admin = admin::start(&config, args.sim, subject).await?;
    readiness.ready();
    announce(ready_lines(&listeners, admin.as_ref(), simulated.as_ref())?).await;
    info!(upstream = %config.upstream.base_url, version = env!("CARGO_PKG_VERSION"), "started");
    report(&[NotifyState::Ready]);
    let watchdog = tokio::spawn(watchdog::watch(gateway.clone()));

    let mut serving = tokio::spawn(server.clone().run(listeners));
    let reload = Reload { running: config, gateway, server, log };
    let code = loop {
        // Cancel safe: a signal stays pending until it is taken, the hub's task goes on.
        tokio::select! {
            told = signals.next() => match told {
                SignalEvent::Stop(signal) => {
                    info!(signal, "stopping");
                    break ExitCode::SUCCESS;
                }
                SignalEvent::Reload => {
                    tell_of_reload();
                    reload.take_over(load(&args, simulated.as_ref()));
                    report(&[NotifyState::Ready]);
                }
            },
            ended = &mut hub => {
                error!(panicked = ended.is_err(), "the hub has ended");
                break ExitCode::FAILURE;
            }
        }
    };
    report(&[NotifyState::Stopping]);
    readiness.draining();
    stop.cancel();
    let until = clock::now() + reload.running.server.drain_timeout;
    tokio::select! {
        ended = &mut serving => ended?,
        signal = signals.stop() => {
            warn!(signal, "told to stop again, connections are cut off");
            return Ok(ExitCode::FAILURE);
        }
    }
    tidy.abort();
    watchdog.abort();
    drop(admin);
    // The log is there until the end.
    let Reload { gateway, server, log: _log, .. } = reload;
    drop(server);
    flush(gateway, hub, until).await?;
    if let Some(simulated) = simulated {
        simulated.stop().await?;
    }
    info!("stopped");
    Ok(code)
}

/// Lets the hub end, and with it the spans of its polls, and has all spans told in what is left of the drain's time.
async fn flush(gateway: Gateway, hub: JoinHandle<()>, until: Instant) -> Result<(), JoinError> {
    let tracer = gateway.tracer().clone();
    if tracer.is_off() {
        return Ok(());
    }
    drop(gateway);
    let left = move || until.saturating_duration_since(clock::now()).max(FLUSH);
    // It does not end where a connection outlives the drain.
    if !hub.is_finished() {
        let _ = tokio::time::timeout(left() / 2, hub).await;
    }
    tokio::task::spawn_blocking(move || tracer.shutdown(left())).await
}

/// What the server is to do, with no more connections than there are descriptors for.
fn within_descriptors(config: &Config) -> config::Server {
    let max_connections = descriptors::client_connections(config);
    if max_connections < config.server.max_connections {
        info!(
            max_connections,
            "the limit of open files (ulimit -n) allows fewer connections than configured"
        );
    }
    config::Server { max_connections, ..config.server.clone() }
}

/// Those that the service manager hands over, else those of the configuration.
async fn listeners(config: &Config) -> Result<Vec<Listener>, CommandError> {
    let activated = Listener::activated()
        .map_err(|error| format!("cannot listen on the sockets of LISTEN_FDS: {error}"))?;
    if !activated.is_empty() {
        info!(sockets = activated.len(), "sockets were handed over, server.listen is not used");
        return Ok(activated);
    }
    let mut listeners = Vec::new();
    for listen in &config.server.listen {
        let bound =
            Listener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        listeners.push(bound);
    }
    Ok(listeners)
}

/// Tells the service manager, if there is one.
fn report(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        warn!(%error, "the service manager could not be told");
    }
}

/// With the time, which `Type=notify-reload` asks for.
fn tell_of_reload() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => report(&[NotifyState::Reloading, now]),
        Err(_) => report(&[NotifyState::Reloading]),
    }
}

fn load(args: &Args, simulated: Option<&Simulated>) -> Result<Config, ConfigErrors> {
    let env: Vec<_> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let mut flags = Vec::new();
    let mut set = |flag, key, value: &str| flags.push(Flag { flag, key, value: value.to_owned() });
    if let Some(listen) = &args.listen {
        set("--listen", "server.listen", listen);
    }
    if let Some(upstream) = &args.upstream {
        set("--upstream", "upstream.base_url", upstream);
    }
    if let Some(simulated) = simulated {
        set("--sim", "upstream.base_url", &simulated.url);
        set("--speed", "upstream.poll_timeout", &simulated.hold);
        set("--speed", "wait.timeout", &simulated.hold);
    }
    Config::load_with(path.as_deref(), env, flags)
}

/// The upstream of `--sim`. It has a stop of its own: the gateway needs its upstream to the end of the drain.
struct Simulated {
    url: String,
    /// Its hold, as the configuration spells times.
    hold: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Simulated {
    async fn start(args: &Args) -> Result<Self, CommandError> {
        let socket = socket::listen(([127, 0, 0, 1], 0).into())?;
        let url = format!("http://{}", socket.local_addr()?);
        // A new seed, so that a client that kept jobs of an earlier run does not meet their ids again.
        let options =
            Options { speed: args.speed, seed: fastrand::u64(..), keep_requests: 0, ..Options::default() };
        let hold = Duration::from_millis((options.hold.as_secs_f64() * 1000.0 / args.speed) as u64);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Sim::new(options).serve(socket, stop.clone().cancelled_owned()));
        Ok(Self { url, hold: humantime::format_duration(hold).to_string(), stop, task })
    }

    /// Closes its connections and waits for the end of its task.
    async fn stop(self) -> Result<(), JoinError> {
        self.stop.cancel();
        self.task.await
    }
}

/// The ready lines, and with `--sim` what to try.
fn ready_lines(
    listeners: &[Listener],
    admin: Option<&Admin>,
    simulated: Option<&Simulated>,
) -> Result<String, CommandError> {
    let mut lines = String::new();
    for listener in listeners {
        lines += &format!("clipgate listening on {}\n", listener.address()?);
    }
    if let Some(admin) = admin {
        lines += &format!("clipgate admin listening on {}\n", admin.address());
    }
    if simulated.is_some()
        && let Some(address) = listeners.iter().find_map(crate::server::tcp_address)
    {
        lines += &sample_commands(&address.to_string());
    }
    Ok(lines)
}

/// Writes to stdout. Clients are served whether somebody reads that or not, so no failure ends the gateway, and a pipe
/// that takes nothing holds it up for [`ANNOUNCE_TIMEOUT`].
async fn announce(lines: String) {
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        out.write_all(lines.as_bytes()).and_then(|()| out.flush())
    });
    match tokio::time::timeout(ANNOUNCE_TIMEOUT, writing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => warn!(%error, "the ready lines could not be written to stdout"),
        Ok(Err(error)) => warn!(%error, "the ready lines were not written to stdout"),
        Err(_) => warn!("nobody reads stdout, the ready lines wait"),
    }
}

fn sample_commands(address: &str) -> String {
    let Route { single_path, multi_path, single_param, multi_param, status_param, ladder, .. } =
        Route::suno();
    let words: Vec<_> = ladder.askable_words().collect();
    let (&last, before) = words.split_last().expect("there is something to wait for");
    let first = before.last().unwrap_or(&last);
    let auth = "-H 'Authorization: Bearer demo'";
    format!(
        r#"
The upstream is simulated: no key, no network, any text is a key. Try, in another shell:

  # make two clips; the answer names their ids
  curl -s http://{address}{single_path} {auth} \
       -H 'Content-Type: application/json' -d '{{"prompt":"night drive"}}' | tee clips.json
  ID1=$(grep -oE '[0-9a-f-]{{36}}' clips.json | sed -n 1p)
  ID2=$(grep -oE '[0-9a-f-]{{36}}' clips.json | sed -n 2p)

  # wait until the first one can be heard, then until it is done
  curl -si "http://{address}{single_path}?{single_param}=$ID1&{status_param}={first}" {auth}
  curl -si "http://{address}{single_path}?{single_param}=$ID1&{status_param}={last}" {auth}

  # wait for both at once; run it in several shells: the upstream sees one request
  curl -sig "http://{address}{multi_path}?{multi_param}[]=$ID1&{multi_param}[]=$ID2&{status_param}={last}" \
       {auth}

"#
    )
}

async fn tidy(gateway: Gateway) {
    let mut every = tokio::time::interval(TIDY_EVERY);
    loop {
        every.tick().await;
        gateway.purge_idle();
    }
}
