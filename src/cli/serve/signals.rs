//! Signals of the operator.

use std::io::{self, IsTerminal as _};

use tokio::signal::unix::{Signal, SignalKind, signal};

const HANGUP: &str = "SIGHUP";

/// Handlers of SIGTERM, SIGINT and SIGHUP. A signal stays pending until it is received.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether SIGHUP stops the gateway: its terminal was closed.
    stops_at_hangup: bool,
}

pub(super) enum SignalEvent {
    /// Stop, with the name of the signal.
    Stop(&'static str),
    /// Read the configuration again.
    Reload,
}

impl Signals {
    /// Installs the handlers. From now on none of the signals ends the process by itself. SIGHUP means a stop where
    /// stdin or stderr is a terminal, and a reload elsewhere.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            stops_at_hangup: io::stdin().is_terminal() || io::stderr().is_terminal(),
        })
    }

    /// Receives the next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> SignalEvent {
        tokio::select! {
            _ = self.terminate.recv() => SignalEvent::Stop("SIGTERM"),
            _ = self.interrupt.recv() => SignalEvent::Stop("SIGINT"),
            _ = self.hangup.recv() => match self.stops_at_hangup {
                true => SignalEvent::Stop(HANGUP),
                false => SignalEvent::Reload,
            },
        }
    }

    /// Receives the next SIGTERM or SIGINT and ignores SIGHUP. Cancel safe.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                // The kernel and the shell may both send SIGHUP when a terminal is closed.
                SignalEvent::Stop(HANGUP) | SignalEvent::Reload => {}
                SignalEvent::Stop(signal) => return signal,
            }
        }
    }
}
