//! What must never come up in this process: panics, and errors in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Counts them.
#[derive(Clone, Default)]
pub(crate) struct Complaints {
    panics: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
}

impl Complaints {
    /// From now on. Panics are told on stderr as before.
    pub(crate) fn watch() -> Result<Self, TryInitError> {
        let complaints = Self::default();
        let (panics, before) = (Arc::clone(&complaints.panics), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            panics.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
        tracing_subscriber::registry().with(complaints.clone()).with(LevelFilter::ERROR).try_init()?;
        Ok(complaints)
    }

    /// Panics of any thread or task.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// What the gateway has logged as an error.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for Complaints {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::ERROR {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
