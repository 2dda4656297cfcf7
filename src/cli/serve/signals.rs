//! Signals of the operator.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Handlers of SIGTERM, SIGINT and SIGHUP. A signal stays pending until it is received.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

pub(super) enum SignalEvent {
    /// Stop, with the name of the signal.
    Stop(&'static str),
    /// Read the configuration again.
    Reload,
}

impl Signals {
    /// Installs the handlers. From now on none of the signals ends the process by itself.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Receives the next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> SignalEvent {
        tokio::select! {
            _ = self.terminate.recv() => SignalEvent::Stop("SIGTERM"),
            _ = self.interrupt.recv() => SignalEvent::Stop("SIGINT"),
            _ = self.hangup.recv() => SignalEvent::Reload,
        }
    }

    /// Receives the next SIGTERM or SIGINT and ignores SIGHUP. Cancel safe.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            if let SignalEvent::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }
}
