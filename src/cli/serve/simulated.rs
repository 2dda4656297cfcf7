//! The simulated upstream of `--sim`: one that this process runs, or that of the process that started this one.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::cli::error::CommandError;
use crate::config::{self, Config, ConfigErrors};
use crate::core::route::Route;
use crate::sim::{self, Sim, SimOptions};
use crate::socket;

/// A running simulated upstream.
pub(super) struct Simulated {
    pub(super) url: String,
    /// Time for which it holds a poll, as a duration of the configuration.
    pub(super) hold: String,
    /// `wait.max_timeout`, where its default is too short for this hold.
    pub(super) max_timeout: Option<String>,
    speed: f64,
    /// `None`: another process runs it.
    server: Option<SimulatedServer>,
}

/// The task of the simulation, with a stop of its own: the gateway needs its upstream until the end of the drain.
pub(super) struct SimulatedServer {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Simulated {
    pub(super) async fn start(speed: f64) -> Result<Self, CommandError> {
        let listener = socket::listen(([127, 0, 0, 1], 0).into())?;
        let url = format!("http://{}", listener.local_addr()?);
        // A random seed: ids must differ from those of an earlier run, which a client may have kept.
        let options = SimOptions { speed, seed: fastrand::u64(..), max_requests: 0, ..SimOptions::default() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(Sim::new(options).serve(listener, stop.clone().cancelled_owned()));
        Ok(Self::at(url, speed, Some(SimulatedServer { stop, task })))
    }

    /// Returns the simulated upstream at this URL, which has this speed.
    pub(super) fn at(url: String, speed: f64, server: Option<SimulatedServer>) -> Self {
        let hold = SimOptions::default().hold.as_secs_f64();
        let hold = Duration::from_millis((hold * 1000.0 / speed) as u64);
        let text = humantime::format_duration(hold).to_string();
        let max_timeout = (hold > Config::default().wait.max_timeout).then(|| text.clone());
        Self { url, hold: text, max_timeout, speed, server }
    }

    /// Gives a configuration without `[[routes]]` both kinds of routes that the simulated upstream serves, as fast as its
    /// jobs are. Built-in routes get its hold.
    pub(super) fn adapt_routes(&self, config: &mut Config) -> Result<(), ConfigErrors> {
        if config.routes.is_empty() {
            config.routes = config::parse_routes(sim::ROUTES)?;
            for route in &mut config.routes {
                if route.is_built_in {
                    *route = Route::suno(); // with the lifetimes of `[cache]`, as without `[[routes]]`
                }
                (route.pace, route.max_pace) =
                    (route.pace.div_f64(self.speed), route.max_pace.div_f64(self.speed));
                route.lifetimes.live = route.lifetimes.live.map(|live| live.div_f64(self.speed));
            }
        }
        let built_in = config.routes.iter_mut().filter(|route| route.is_built_in);
        built_in.for_each(|route| route.hold = config.upstream.poll_timeout);
        Ok(())
    }

    /// Closes its connections and waits for the end of its task.
    pub(super) async fn stop(self) -> Result<(), JoinError> {
        let Some(server) = self.server else { return Ok(()) };
        server.stop.cancel();
        server.task.await
    }
}
