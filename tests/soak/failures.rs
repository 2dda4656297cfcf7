//! Counts panics and log errors of this process. A good run has neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Counts panics, and events of level ERROR.
#[derive(Clone, Default)]
pub(crate) struct FailureCounter {
    panics: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
}

impl FailureCounter {
    /// Installs the panic hook and the subscriber. Panics are still printed to stderr.
    pub(crate) fn install() -> Result<Self, TryInitError> {
        let failures = Self::default();
        let (panics, before) = (Arc::clone(&failures.panics), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            panics.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
        tracing_subscriber::registry().with(failures.clone()).with(LevelFilter::ERROR).try_init()?;
        Ok(failures)
    }

    /// Returns the panics of all threads and tasks.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Returns the errors that the gateway has logged.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for FailureCounter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::ERROR {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
