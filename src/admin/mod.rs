//! Admin listener: health, metrics, state, cache and the dashboard.
//!
//! It has a thread and a runtime of its own, so health checks are answered while the data path is busy or stuck. Most
//! figures are counters; only the lists of jobs and keys come from the hub, with a timeout.
//!
//! ```text
//!   serve ── Readiness ─▶ ┌── thread "admin" ─────────────────────────────┐
//!                         │ listener ─▶ connection ─▶ guard ─▶ service ───┼─▶ Registry, Gateway ─▶ hub
//!                         │ sampler, each second ─▶ history, event streams│
//!                         └───────────────────────────────────────────────┘
//! ```

mod collector;
mod connection;
mod connection_limit;
mod dashboard;
mod error;
mod events;
mod guard;
mod history;
pub(crate) mod probe;
mod routes;
mod saved_today;
mod service;
mod state;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};

use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::service::AdminService;
use crate::config::{Config, Listen};
use crate::gateway::Gateway;
use crate::server::Listener;

/// Dependencies of the admin listener.
pub struct AdminContext {
    pub gateway: Gateway,
    pub registry: Registry,
    pub readiness: Readiness,
    /// Addresses for clients.
    pub listen: Vec<Listen>,
    /// Commands for a first request, shown on the dashboard.
    pub example: String,
}

/// Readiness of the gateway for clients; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicU8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadinessPhase {
    /// The gateway does not listen yet.
    Starting,
    Ready,
    /// The gateway answers the requests that it has, and stops.
    Draining,
}

impl Readiness {
    pub fn ready(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    pub fn draining(&self) {
        self.0.store(2, Ordering::Relaxed);
    }

    pub fn phase(&self) -> ReadinessPhase {
        match self.0.load(Ordering::Relaxed) {
            0 => ReadinessPhase::Starting,
            1 => ReadinessPhase::Ready,
            _ => ReadinessPhase::Draining,
        }
    }
}

/// The running admin listener. Its drop closes the listener and joins the thread.
#[derive(Debug)]
pub struct Admin {
    address: Listen,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Listens on the first of these addresses that is free.
    ///
    /// # Errors
    ///
    /// If none is free: the error of the first.
    pub async fn start(listen: Vec<Listen>, config: &Config, context: AdminContext) -> io::Result<Self> {
        let service = AdminService::new(config, context);
        let stop = CancellationToken::new();
        let (send_address, address) = oneshot::channel();
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            if let Err(error) = run(&listen, service, &stopped, send_address) {
                tracing::error!(%error, "admin thread failed");
            }
        })?;
        let address = address.await.unwrap_or_else(|_| Err(io::Error::other("the admin thread failed")))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Returns the address of the listener, with the port that the system chose.
    pub fn address(&self) -> &Listen {
        &self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Fails if the thread panicked, which is in the log.
            let _ = thread.join();
        }
    }
}

fn run(
    listen: &[Listen],
    service: AdminService,
    stop: &CancellationToken,
    send_address: oneshot::Sender<io::Result<Listen>>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let bound = bind(listen).await.and_then(|listener| Ok((listener.address()?, listener)));
        let listener = match bound {
            Ok((address, listener)) => {
                // Fails if the start was cancelled; then `stop` follows.
                let _ = send_address.send(Ok(address));
                listener
            }
            Err(error) => {
                let _ = send_address.send(Err(error));
                return;
            }
        };
        // Cancel safe: no request of the admin listener has to complete.
        stop.run_until_cancelled(serve(listener, Arc::new(service))).await;
    });
    // The drop of the runtime ends connections and event streams.
    Ok(())
}

async fn bind(listen: &[Listen]) -> io::Result<Listener> {
    let mut first_error = None;
    for address in listen {
        match Listener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

async fn serve(listener: Listener, service: Arc<AdminService>) -> Infallible {
    tokio::select! {
        // Cancel safe: neither future ends.
        never = connection::accept_all(listener, Arc::clone(&service)) => never,
        never = service.run_sampler() => never,
    }
}
