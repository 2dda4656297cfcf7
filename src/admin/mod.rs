//! The operator's side: health, metrics, the gateway's state and cache, and a dashboard of it.
//!
//! It has a thread and a runtime of its own: a data path that is busy, or stuck, starves no health check. What it
//! shows it reads from counters; only what is under way is asked of the hub, and not waited for long.
//!
//! ```text
//!   serve ── Readiness ─▶ ┌── thread "admin" ─────────────────────────────┐
//!                         │ listener ─▶ connection ─▶ guard ─▶ resource ──┼─▶ Registry, Gateway ─▶ hub
//!                         │ sampler, each second ─▶ history, event streams│
//!                         └───────────────────────────────────────────────┘
//! ```

mod collector;
mod connection;
mod dashboard;
mod error;
mod events;
mod guard;
mod history;
pub(crate) mod probe;
mod routes;
mod seats;
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

/// What the operator looks at.
pub struct AdminContext {
    /// The gateway.
    pub gateway: Gateway,
    /// What it and others count.
    pub registry: Registry,
    /// Whether it is ready.
    pub readiness: Readiness,
    /// Where clients connect to it.
    pub listen: Vec<Listen>,
    /// Commands that make a first request of it.
    pub example: String,
}

/// Whether clients should be sent here. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicU8>);

/// Where a gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does not listen yet.
    Starting,
    /// It takes requests.
    Ready,
    /// It answers what is there, and ends.
    Draining,
}

impl Readiness {
    /// It takes requests now.
    pub fn ready(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// It takes no more.
    pub fn draining(&self) {
        self.0.store(2, Ordering::Relaxed);
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }
}

/// The listener and its thread. Dropping it stops both.
#[derive(Debug)]
pub struct Admin {
    address: Listen,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Listens on the first of these addresses that can be had.
    ///
    /// # Errors
    ///
    /// When none can: why the first cannot.
    pub async fn start(listen: Vec<Listen>, config: &Config, subject: AdminContext) -> io::Result<Self> {
        let panel = AdminService::new(config, subject);
        let stop = CancellationToken::new();
        let (tell, told) = oneshot::channel();
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            if let Err(error) = run(&listen, panel, &stopped, tell) {
                tracing::error!(%error, "the admin thread cannot work");
            }
        })?;
        let address = told.await.unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> &Listen {
        &self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It fails where the thread has panicked, which has been said.
            let _ = thread.join();
        }
    }
}

fn run(
    listen: &[Listen],
    panel: AdminService,
    stop: &CancellationToken,
    tell: oneshot::Sender<io::Result<Listen>>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let bound = bind(listen).await.and_then(|listener| Ok((listener.address()?, listener)));
        let listener = match bound {
            Ok((address, listener)) => {
                // Fails where nobody waits for it any more; then `stop` comes at once.
                let _ = tell.send(Ok(address));
                listener
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        // Cancel safe: what is cut off here ends with the process.
        stop.run_until_cancelled(serve(listener, Arc::new(panel))).await;
    });
    // Connections and event streams end with the runtime.
    Ok(())
}

async fn bind(listen: &[Listen]) -> io::Result<Listener> {
    let mut first = None;
    for address in listen {
        match Listener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

async fn serve(listener: Listener, panel: Arc<AdminService>) -> Infallible {
    tokio::select! {
        // Neither ends.
        never = connection::accept_all(listener, Arc::clone(&panel)) => never,
        never = panel.run_sampler() => never,
    }
}
