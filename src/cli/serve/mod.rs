//! `clipgate serve`: runs the gateway.
//!
//! # Start
//!
//! Each step needs the ones before it:
//!
//! 1. signal handlers, so that no later signal ends the process by itself
//! 2. the simulated upstream (`--sim`), whose address is part of the configuration
//! 3. configuration, then log
//! 4. client listeners: a taken address ends the start before any task runs
//! 5. gateway, hub task, server
//! 6. admin listener
//! 7. ready lines on stdout, READY for the service manager
//! 8. watchdog, and the server's task, which accepts connections
//!
//! # Ownership
//!
//! [`RunningGateway`] owns all parts. The hub task owns the polls. The server's task owns the client connections and ends when
//! `stop` is cancelled and the last connection is closed. [`Admin`] owns a thread and stops it when it is dropped.
//!
//! # Stop
//!
//! SIGTERM, SIGINT or the end of the hub task cancel `stop`. The server answers parked waits and lets requests end within
//! `server.drain_timeout` (P7). Then the admin listener closes, spans are flushed and the simulated upstream stops. The
//! log is dropped last. A second signal skips all of this: exit code 1.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use sd_notify::NotifyState;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::banner::BannerInfo;
use self::reload::ConfigReloader;
use self::signals::{SignalEvent, Signals};
use self::simulated::Simulated;
use crate::admin::{Admin, AdminContext, Readiness};
use crate::cli::error::{CommandError, UsageError, is_colored};
use crate::cli::start_check::{check_start, start_warnings};
use crate::clock;
use crate::config::{self, AuthMode, Config, ConfigErrors, Flag, Listen};
use crate::gateway::Gateway;
use crate::server::{Listener, Server, descriptors, tcp_address};
use crate::telemetry::log;
use crate::telemetry::metrics::{self, Metrics};

mod admin;
mod banner;
mod crowd;
mod ready_lines;
mod reload;
mod replicas;
mod service_manager;
mod signals;
mod simulated;
mod watchdog;

/// Time between two removals of idle quotas and expired entries.
const PURGE_INTERVAL: Duration = Duration::from_secs(60);

/// Shortest time for the flush of spans, even if the drain took all of its time.
const MIN_FLUSH_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Listener for clients, replaces server.listen (HOST:PORT or unix:PATH)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Address of the API, replaces upstream.base_url
    #[arg(long, value_name = "URL", conflicts_with = "sim")]
    pub upstream: Option<String>,
    /// Use the API key in AIMLAPI_KEY for all clients, which need none; a key of the configuration precedes it
    #[arg(long, conflicts_with = "sim")]
    pub sidecar: bool,
    /// Lowest level of the log, replaces log.level (error, warn, info, debug or trace)
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of the log, replaces log.format (text or json)
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Run a simulated upstream behind the gateway: needs no key and no network
    #[arg(long)]
    pub sim: bool,
    /// Speed of the simulated jobs: 10 is ten times real time
    #[arg(long, value_name = "X", requires = "sim", default_value_t = 1.0, value_parser = speed)]
    pub speed: f64,
    /// Play this many clients of the simulated upstream, so that the dashboard has something to show
    #[arg(long, value_name = "N", requires = "sim", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub crowd: Option<u16>,
    /// Run this many gateways that share their polls, and the Valkey or Redis server that is installed
    #[arg(long, value_name = "N", requires = "sim", value_parser = clap::value_parser!(u16).range(2..=8))]
    pub replicas: Option<u16>,
    /// Use a simulated upstream that runs already
    #[arg(long, value_name = "URL", requires = "sim", conflicts_with_all = ["replicas", "crowd"], hide = true)]
    pub sim_at: Option<String>,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.01..=1000.0).contains(&speed) => Ok(speed),
        _ => Err("use a number from 0.01 to 1000".to_owned()),
    }
}

/// Runs the gateway until a signal stops it, or the hub ends.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    descriptors::raise_limit();
    let mut signals = Signals::listen()?;
    if let Some(count) = args.replicas {
        return replicas::run(args, count, signals).await;
    }
    let simulated = match &args.sim_at {
        Some(url) => Some(Simulated::at(url.clone(), args.speed, None)),
        None if args.sim => Some(Simulated::start(args.speed).await?),
        None => None,
    };
    let loaded = load(&args, simulated.as_ref());
    let (config, warnings) = match loaded {
        Ok((config, warnings)) => (check_start(Ok(config))?, warnings),
        Err(errors) => (check_start(Err(errors))?, Vec::new()),
    };
    let log = log::init(&config.log)?;
    for warning in warnings {
        warn!("{warning}");
    }
    let mut running = RunningGateway::start(args, config, log, simulated).await?;
    let code = running.supervise(&mut signals).await;
    running.shut_down(code, &mut signals).await
}

/// The parts of a gateway that accepts connections.
struct RunningGateway {
    args: Args,
    stop: CancellationToken,
    readiness: Readiness,
    reloader: ConfigReloader,
    hub: JoinHandle<()>,
    server_task: JoinHandle<()>,
    admin: Option<Admin>,
    purge: JoinHandle<()>,
    watchdog: JoinHandle<std::convert::Infallible>,
    simulated: Option<Simulated>,
    crowd: Option<JoinSet<()>>,
}

impl RunningGateway {
    async fn start(
        args: Args,
        config: Config,
        log: log::Handle,
        simulated: Option<Simulated>,
    ) -> Result<Self, CommandError> {
        let listeners = bind_listeners(&config).await?;
        let mut registry = Registry::default();
        metrics::register_dropped_log_lines(&mut registry, log.dropped_lines());
        let (gateway, hub) = Gateway::new(&config, Metrics::new(&mut registry))?;
        let hub = tokio::spawn(hub);
        let purge = tokio::spawn(purge(gateway.clone()));
        let stop = CancellationToken::new();
        let server_config = within_descriptor_limit(&config);
        let server = Server::new(gateway.clone(), &server_config, stop.clone())?;
        let readiness = Readiness::default();
        let listen = listeners.iter().map(Listener::address).collect::<Result<Vec<_>, _>>()?;
        let context = AdminContext {
            gateway: gateway.clone(),
            registry,
            readiness: readiness.clone(),
            example: admin::example(&listen, args.sim),
            listen: listen.clone(),
        };
        let admin = admin::start(&config, args.sim, context).await?;
        readiness.ready();
        let file = config::locate(args.config.as_deref(), config::environment());
        let program = std::env::args().next();
        ready_lines::announce(&BannerInfo {
            config: &config,
            file: file.as_deref(),
            listen: &listen,
            admin: admin.as_ref().map(Admin::address),
            simulated: args.sim.then_some(args.speed),
            program: program.as_deref().unwrap_or("clipgate"),
            is_colored: is_colored(&io::stdout()),
        })
        .await?;
        // Below the banner, which is the first text of a start.
        report_descriptor_limit(&config.server, &server_config);
        info!(upstream = %config.upstream.base_url, version = env!("CARGO_PKG_VERSION"), "started");
        service_manager::notify(&[NotifyState::Ready]);
        let watchdog = tokio::spawn(watchdog::run(gateway.clone()));
        let crowd = match args.crowd {
            Some(clients) => {
                let address: Vec<_> = listeners.iter().find_map(tcp_address).into_iter().collect();
                Some(start_crowd(clients, &config, &address, args.speed)?)
            }
            None => None,
        };
        let server_task = tokio::spawn(server.clone().run(listeners));
        let reloader = ConfigReloader { running: config, gateway, server, log };
        Ok(Self {
            args,
            stop,
            readiness,
            reloader,
            hub,
            server_task,
            admin,
            purge,
            watchdog,
            simulated,
            crowd,
        })
    }

    /// Reloads the configuration on SIGHUP. Returns the exit code once the gateway has to stop.
    async fn supervise(&mut self, signals: &mut Signals) -> ExitCode {
        loop {
            // Cancel safe: a signal stays pending until it is received, and the hub task goes on.
            tokio::select! {
                event = signals.next() => match event {
                    SignalEvent::Stop(signal) => {
                        info!(signal, "stopping");
                        return ExitCode::SUCCESS;
                    }
                    SignalEvent::Reload => {
                        service_manager::notify_reload();
                        self.reloader.reload(load(&self.args, self.simulated.as_ref()));
                        service_manager::notify(&[NotifyState::Ready]);
                    }
                },
                ended = &mut self.hub => {
                    error!(panicked = ended.is_err(), "the hub has ended");
                    return ExitCode::FAILURE;
                }
            }
        }
    }

    /// Drains the connections and ends all parts. Returns the exit code: the given one, or that of a second signal.
    async fn shut_down(mut self, code: ExitCode, signals: &mut Signals) -> Result<ExitCode, CommandError> {
        service_manager::notify(&[NotifyState::Stopping]);
        self.readiness.draining();
        self.crowd.take();
        self.stop.cancel();
        let drained_by = clock::now() + self.reloader.running.server.drain_timeout;
        let gateway = self.reloader.gateway.clone();
        let server_task = &mut self.server_task;
        let ended = async move {
            let ended = server_task.await;
            // Siblings take over the polls that they wait for.
            let _ = tokio::time::timeout_at(drained_by.into(), gateway.handed_over()).await;
            ended
        };
        // Cancel safe: after a second signal the process ends.
        tokio::select! {
            ended = ended => ended?,
            signal = signals.stop() => {
                warn!(signal, "second stop signal, connections are cut off");
                return Ok(ExitCode::FAILURE);
            }
        }
        self.purge.abort();
        self.watchdog.abort();
        drop(self.admin);
        // The log writes until this function returns.
        let ConfigReloader { gateway, server, log: _log, .. } = self.reloader;
        drop(server);
        flush_spans(gateway, self.hub, drained_by).await?;
        if let Some(simulated) = self.simulated {
            simulated.stop().await?;
        }
        info!("stopped");
        Ok(code)
    }
}

/// Waits for the end of the hub and of the spans of its polls, then sends all spans in the rest of the drain's time.
async fn flush_spans(gateway: Gateway, hub: JoinHandle<()>, drained_by: Instant) -> Result<(), JoinError> {
    let tracer = gateway.tracer().clone();
    if tracer.is_off() {
        return Ok(());
    }
    drop(gateway);
    let remaining = move || drained_by.saturating_duration_since(clock::now()).max(MIN_FLUSH_TIME);
    // The hub does not end if a connection outlives the drain.
    if !hub.is_finished() {
        let _ = tokio::time::timeout(remaining() / 2, hub).await;
    }
    tokio::task::spawn_blocking(move || tracer.shutdown(remaining())).await
}

/// Returns the configuration of the server, with at most as many connections as file descriptors allow.
fn within_descriptor_limit(config: &Config) -> config::ServerConfig {
    config::ServerConfig { max_connections: descriptors::client_connections(config), ..config.server.clone() }
}

fn report_descriptor_limit(configured: &config::ServerConfig, possible: &config::ServerConfig) {
    let max_connections = possible.max_connections;
    if max_connections < configured.max_connections {
        info!(
            max_connections,
            "the limit of open files (ulimit -n) allows fewer connections than configured"
        );
    }
}

/// Returns the listeners that the service manager passes, else those of the configuration.
async fn bind_listeners(config: &Config) -> Result<Vec<Listener>, CommandError> {
    let activated = Listener::activated()
        .map_err(|error| format!("cannot listen on the sockets of LISTEN_FDS: {error}"))?;
    if !activated.is_empty() {
        info!(
            sockets = activated.len(),
            "listening on the sockets of the service manager instead of server.listen"
        );
        return Ok(activated);
    }
    let mut listeners = Vec::new();
    for listen in &config.server.listen {
        let listener = Listener::bind(listen).await.map_err(|error| {
            bind_error(listen, &error, "set server.listen or --listen to another address")
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Describes why an address is not available, and what to do: correct the cause, or follow `otherwise`.
fn bind_error(listen: &Listen, error: &io::Error, otherwise: &str) -> String {
    let advice = match (error.kind(), listen) {
        (ErrorKind::AddrInUse, _) => {
            "another program uses it, perhaps a gateway. Stop that program".to_owned()
        }
        (ErrorKind::NotFound, Listen::Unix(path)) => {
            let dir = path.parent().unwrap_or(path).display();
            format!("the directory {dir} does not exist. Create it")
        }
        (ErrorKind::PermissionDenied, Listen::Tcp(addr)) if addr.port() < 1024 => {
            "ports below 1024 need a privilege. Grant CAP_NET_BIND_SERVICE".to_owned()
        }
        (ErrorKind::PermissionDenied, _) => {
            "the user of the gateway may not. Change the permissions".to_owned()
        }
        (ErrorKind::AddrNotAvailable, _) => {
            "no interface of this machine has the address. Correct it".to_owned()
        }
        _ => "Correct the cause".to_owned(),
    };
    format!("cannot listen on {listen}: {error}\n    {advice}, or {otherwise}.")
}

/// Starts the clients of `--crowd`. They have API keys, no tokens, and speak plain HTTP.
fn start_crowd(
    clients: u16,
    config: &Config,
    gateways: &[SocketAddr],
    speed: f64,
) -> Result<JoinSet<()>, CommandError> {
    match (gateways, &config.auth.mode, &config.server.tls) {
        ([_, ..], AuthMode::Passthrough | AuthMode::Sidecar | AuthMode::Open, None) => {
            crowd::start(clients.into(), gateways, speed)
        }
        _ => {
            let problem =
                "--crowd needs a TCP listener without TLS, and another auth.mode than team".to_owned();
            Err(UsageError(problem).into())
        }
    }
}

/// Returns the configuration and its warnings, which do not concern the routes that a simulated upstream adds.
fn load(args: &Args, simulated: Option<&Simulated>) -> Result<(Config, Vec<String>), ConfigErrors> {
    let env: Vec<_> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let mut flags = Vec::new();
    let mut set = |flag, key, value: &str| {
        flags.push(Flag { flag, key, value: value.to_owned(), is_fallback: false });
    };
    if let Some(listen) = &args.listen {
        set("--listen", "server.listen", listen);
    }
    if let Some(upstream) = &args.upstream {
        set("--upstream", "upstream.base_url", upstream);
    }
    if let Some(level) = &args.log_level {
        set("--log-level", "log.level", level);
    }
    if let Some(format) = &args.log_format {
        set("--log-format", "log.format", format);
    }
    if let Some(simulated) = simulated {
        set("--sim", "upstream.base_url", &simulated.url);
        set("--speed", "upstream.poll_timeout", &simulated.hold);
        set("--speed", "wait.timeout", &simulated.hold);
        if let Some(longest) = &simulated.max_timeout {
            set("--speed", "wait.max_timeout", longest);
        }
    }
    if args.sidecar {
        set("--sidecar", "auth.mode", "sidecar");
        let value = "env:AIMLAPI_KEY".to_owned();
        flags.push(Flag { flag: "--sidecar", key: "upstream.api_key", value, is_fallback: true });
    }
    let mut config = Config::load_with(path.as_deref(), env.iter().cloned(), flags)?;
    let warnings = start_warnings(&config, path.as_deref(), &env);
    if let Some(simulated) = simulated {
        simulated.adapt_routes(&mut config)?;
    }
    Ok((config, warnings))
}

async fn purge(gateway: Gateway) {
    let mut ticks = tokio::time::interval(PURGE_INTERVAL);
    loop {
        ticks.tick().await;
        gateway.purge_idle();
    }
}
