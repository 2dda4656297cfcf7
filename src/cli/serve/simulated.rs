//! The simulated upstream of `--sim`.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::cli::error::CommandError;
use crate::config::{self, Config, ConfigErrors};
use crate::core::route::Route;
use crate::sim::{self, Sim, SimOptions};
use crate::socket;

/// A running simulated upstream. It has its own stop: the gateway needs its upstream until the end of the drain.
pub(super) struct Simulated {
    pub(super) url: String,
    /// Time for which it holds a poll, as a duration of the configuration.
    pub(super) hold: String,
    speed: f64,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Simulated {
    pub(super) async fn start(speed: f64) -> Result<Self, CommandError> {
        let listener = socket::listen(([127, 0, 0, 1], 0).into())?;
        let url = format!("http://{}", listener.local_addr()?);
        // A random seed: ids must differ from those of an earlier run, which a client may have kept.
        let options = SimOptions { speed, seed: fastrand::u64(..), max_requests: 0, ..SimOptions::default() };
        let hold = Duration::from_millis((options.hold.as_secs_f64() * 1000.0 / speed) as u64);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Sim::new(options).serve(listener, stop.clone().cancelled_owned()));
        Ok(Self { url, hold: humantime::format_duration(hold).to_string(), speed, stop, task })
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
        self.stop.cancel();
        self.task.await
    }
}
