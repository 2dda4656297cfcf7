//! `serve --sim --replicas N`: gateways that share polls on one machine, to look at.
//!
//! ```text
//!   this process: simulated upstream, crowd
//!      ├── child: engine, valkey-server or redis-server
//!      └── children: gateways 1 … N, `serve --sim --sim-at URL`
//! ```
//!
//! # Ownership
//!
//! [`RunningReplicas`] owns all children. A child that dies is logged and not replaced: the others go on, as they would
//! elsewhere. The secret of the replicas and the password of the engine are random and known to the children only.
//!
//! # Stop
//!
//! SIGTERM, SIGINT or the end of the last gateway: the crowd stops, the gateways drain side by side, then the engine and the
//! simulated upstream stop. A second signal kills the children: exit code 1. If this process is killed, the children stop by
//! themselves.

mod child;
mod engine;
mod text;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use self::child::ChildProcess;
use self::engine::{Engine, random_secret};
use super::signals::{SignalEvent, Signals};
use super::simulated::Simulated;
use super::{Args, load, ready_lines, start_crowd};
use crate::cli::error::{CommandError, UsageError, is_colored};
use crate::cli::start_check::check_start;
use crate::config::{Config, Listen};
use crate::telemetry::log;

/// Longest time for the start of a gateway.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that a child gets for its stop beyond the drain.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// A gateway in a process of its own.
struct Replica {
    address: SocketAddr,
    /// Address of the admin listener as the gateway prints it.
    admin: Option<String>,
    process: ChildProcess,
    has_ended: bool,
}

/// Starts engine and gateways, and runs them until a signal stops them.
pub(super) async fn run(args: Args, count: u16, mut signals: Signals) -> Result<ExitCode, CommandError> {
    let simulated = Simulated::start(args.speed).await?;
    let (config, _) = match load(&args, Some(&simulated)) {
        Ok((config, warnings)) => (check_start(Ok(config))?, warnings),
        Err(errors) => (check_start(Err(errors))?, Vec::new()),
    };
    let places = places(&config, count)?;
    let log = log::init(&config.log)?;
    let engine = Engine::start().await?;
    let mut running = RunningReplicas { engine, replicas: Vec::new(), crowd: None, simulated, log };
    // A signal at the start drops the children, which ends these. Cancel safe for that reason.
    tokio::select! {
        started = running.start(&args, &config, &places) => started?,
        _ = signals.stop() => return Ok(ExitCode::SUCCESS),
    }
    let code = running.supervise(&mut signals).await;
    running.shut_down(code, config.server.drain_timeout + STOP_MARGIN, &mut signals).await
}

/// Addresses of a replica for clients and for operators.
struct ReplicaPlace {
    listen: SocketAddr,
    admin: Option<Listen>,
}

/// Returns consecutive ports from those of the configuration on. Port 0 stays: the system chooses.
fn places(config: &Config, count: u16) -> Result<Vec<ReplicaPlace>, CommandError> {
    let tcp = config.server.listen.iter().find_map(|listen| match listen {
        Listen::Tcp(address) => Some(*address),
        Listen::Unix(_) => None,
    });
    let first = tcp.ok_or_else(|| {
        UsageError("--replicas needs a TCP listener: set server.listen or --listen to one.".to_owned())
    })?;
    let admin = match &config.admin.listen {
        Some(Listen::Unix(_)) => {
            let problem = "--replicas needs a TCP address in admin.listen, or \"\" for none.";
            return Err(UsageError(problem.to_owned()).into());
        }
        Some(Listen::Tcp(address)) => Some(*address),
        None => None,
    };
    let place = |number| {
        Ok(ReplicaPlace {
            listen: nth(first, number)?,
            admin: match admin {
                Some(admin) => Some(Listen::Tcp(nth(admin, number)?)),
                None => None,
            },
        })
    };
    (0..count).map(place).collect()
}

fn nth(first: SocketAddr, number: u16) -> Result<SocketAddr, CommandError> {
    if first.port() == 0 {
        return Ok(first);
    }
    let port = first.port().checked_add(number);
    let port =
        port.ok_or_else(|| UsageError(format!("{first} has too few ports after it for --replicas.")))?;
    Ok(SocketAddr::new(first.ip(), port))
}

/// Cause for the supervision to wake up. Ends of processes come with the exit status in words.
enum ReplicasEvent {
    Signal(SignalEvent),
    /// The place of the replica.
    ReplicaEnded(usize, String),
    EngineEnded(String),
}

struct RunningReplicas {
    engine: Engine,
    replicas: Vec<Replica>,
    crowd: Option<JoinSet<()>>,
    simulated: Simulated,
    /// Writes until the end of this.
    log: log::Handle,
}

impl RunningReplicas {
    async fn start(
        &mut self,
        args: &Args,
        config: &Config,
        places: &[ReplicaPlace],
    ) -> Result<(), CommandError> {
        let secret = random_secret()?;
        let mut started = Vec::new();
        for place in places {
            started.push(self.spawn(args, place, places.len(), &secret)?);
        }
        for (number, (place, mut process)) in (1..).zip(places.iter().zip(started)) {
            let ready = wait_until_ready(&mut process, place.admin.is_some());
            let (address, admin) = match tokio::time::timeout(START_TIMEOUT, ready).await {
                Ok(Some(ready)) => ready,
                Ok(None) => return Err(failed_start(number, process.ended().await?)),
                Err(_) => return Err(format!("replica {number} is not ready after 30 s").into()),
            };
            self.replicas.push(Replica { address, admin, process, has_ended: false });
        }
        let scheme = if config.server.tls.is_some() { "https" } else { "http" };
        let text = match io::stdout().is_terminal() {
            true => {
                let is_colored = is_colored(&io::stdout());
                text::banner(&self.replicas, &self.engine, scheme, args.speed, is_colored)?
            }
            false => text::ready_lines(&self.replicas)?,
        };
        ready_lines::write(text).await;
        info!(replicas = places.len(), engine = self.engine.program, "started");
        if let Some(clients) = args.crowd {
            let addresses: Vec<_> = self.replicas.iter().map(|replica| replica.address).collect();
            self.crowd = Some(start_crowd(clients, config, &addresses, args.speed)?);
        }
        Ok(())
    }

    fn spawn(
        &self,
        args: &Args,
        place: &ReplicaPlace,
        count: usize,
        secret: &str,
    ) -> Result<ChildProcess, CommandError> {
        let mut line: Vec<OsString> =
            ["serve", "--sim", "--sim-at", &self.simulated.url].map(Into::into).into();
        let mut option = |name: &str, value: OsString| line.extend([name.into(), value]);
        option("--speed", args.speed.to_string().into());
        option("--listen", place.listen.to_string().into());
        if let Some(config) = &args.config {
            option("--config", config.into());
        }
        if let Some(level) = &args.log_level {
            option("--log-level", level.into());
        }
        if let Some(format) = &args.log_format {
            option("--log-format", format.into());
        }
        let admin = place.admin.as_ref().map_or(String::new(), ToString::to_string);
        let variables = [
            ("CLIPGATE__ADMIN__LISTEN", admin),
            ("CLIPGATE__CLUSTER__URL", self.engine.url.clone()),
            ("CLIPGATE__CLUSTER__MODE", "single".to_owned()),
            ("CLIPGATE__CLUSTER__SECRET", secret.to_owned()),
            ("CLIPGATE__CLUSTER__EXPECTED", count.to_string()),
        ];
        Ok(ChildProcess::start(&std::env::current_exe()?, line, &variables, Stdio::inherit())?)
    }

    /// Logs children that end. Returns the exit code once all have to stop.
    async fn supervise(&mut self, signals: &mut Signals) -> ExitCode {
        let mut has_engine = true;
        loop {
            let running = self.replicas.iter_mut().enumerate().filter(|(_, replica)| !replica.has_ended);
            let ends: Vec<_> = running
                .map(|(at, replica)| Box::pin(async move { (at, replica.process.ended().await) }))
                .collect();
            if ends.is_empty() {
                error!("no replica is left");
                return ExitCode::FAILURE;
            }
            // Cancel safe: a signal stays pending, and the end of a process stays known.
            let event = tokio::select! {
                event = signals.next() => ReplicasEvent::Signal(event),
                ((at, status), ..) = select_all(ends) => ReplicasEvent::ReplicaEnded(at, in_words(status)),
                status = self.engine.process.ended(), if has_engine => ReplicasEvent::EngineEnded(in_words(status)),
            };
            match event {
                ReplicasEvent::Signal(SignalEvent::Stop(signal)) => {
                    info!(signal, "stopping");
                    return ExitCode::SUCCESS;
                }
                ReplicasEvent::Signal(SignalEvent::Reload) => {
                    warn!("replicas of a simulation do not reload their configuration");
                }
                ReplicasEvent::ReplicaEnded(at, status) => {
                    let replica = &mut self.replicas[at];
                    replica.has_ended = true;
                    error!(replica = at + 1, address = %replica.address, status, "a replica has ended");
                }
                ReplicasEvent::EngineEnded(status) => {
                    has_engine = false;
                    let engine = self.engine.program;
                    error!(engine, status, "the engine has ended, each replica works alone");
                }
            }
        }
    }

    async fn shut_down(
        mut self,
        code: ExitCode,
        longest: Duration,
        signals: &mut Signals,
    ) -> Result<ExitCode, CommandError> {
        self.crowd.take();
        self.replicas.iter_mut().for_each(|replica| replica.process.stop());
        let drained = async {
            for (number, replica) in (1..).zip(&mut self.replicas) {
                let status = replica.process.ended().await;
                if !replica.has_ended && status.as_ref().is_ok_and(|status| !status.success()) {
                    warn!(replica = number, status = in_words(status), "a replica did not stop cleanly");
                }
            }
        };
        // Cancel safe: the end of a process stays known. Children that are left are killed when they are dropped.
        tokio::select! {
            ended = tokio::time::timeout(longest, drained) => if ended.is_err() {
                warn!("replicas did not stop in time, killing them");
            },
            signal = signals.stop() => {
                warn!(signal, "second stop signal, replicas are killed");
                return Ok(ExitCode::FAILURE);
            }
        }
        self.engine.process.stop();
        // The engine has nothing to lose: it is killed when it is dropped.
        let _ = tokio::time::timeout(STOP_MARGIN, self.engine.process.ended()).await;
        self.simulated.stop().await?;
        info!("stopped");
        drop(self.log);
        Ok(code)
    }
}

/// Reads the ready lines of a gateway. `None`: it has ended.
async fn wait_until_ready(
    process: &mut ChildProcess,
    has_admin: bool,
) -> Option<(SocketAddr, Option<String>)> {
    let address = process.next_line().await?.strip_prefix("clipgate listening on ")?.parse().ok()?;
    let admin = match has_admin {
        true => Some(process.next_line().await?.strip_prefix("clipgate admin listening on ")?.to_owned()),
        false => None,
    };
    Some((address, admin))
}

/// Describes a gateway that did not start. It has printed the cause.
fn failed_start(number: usize, status: ExitStatus) -> CommandError {
    let problem = format!("replica {number} did not start ({status})");
    if status.code() == Some(2) { UsageError(problem).into() } else { problem.into() }
}

fn in_words(status: io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
