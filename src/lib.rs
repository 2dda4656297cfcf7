//! clipgate: a caching reverse proxy in front of a long-poll job API.
//!
//! A client's request is a *wait*, a long-poll held at the upstream a *poll*. Many waits lean on few polls; what
//! is no wait goes through untouched. What the words mean to a user is in `README.md`.
//!
//! # The path of a request
//!
//! ```text
//!  client
//!    │ ▲
//!    ▼ │                        a head that is no HTTP: refused here
//!  server ── RequestCtx ──▶ gateway
//!                             │ 1. who is it?        auth         ─▶ Identity: key domain, Authorization; or 401
//!                             │ 2. may it?           limits       ─▶ or 429
//!                             │ 3. what is asked?    model::query ─▶ Wait, Other or Bad
//!                             │
//!               Other ◀───────┤ Wait
//!                 │           │ 4. is it known?      cache        ─▶ a hit: no task, no channel, no lock
//!                 ▼           ▼ 5. join
//!            passthrough     hub ◀── decides: model::coalesce
//!                 │           │ a poll each
//!                 │           ▼
//!                 │     upstream::poll ── tries, backs off, cuts the answer (model::answer) ─▶ cache
//!                 ▼           ▼
//!              upstream::client ─▶ the configured host, and no other
//!
//!  the way back: reply writes what jobs come as, error what the gateway refuses, access the line in the log
//! ```
//!
//! # The layers
//!
//! A file imports its own children and lower layers, never up. Within layer 2 nobody knows another: [`hub`] and
//! [`gateway`] bring them together.
//!
//! | layer | module | what it is |
//! | --- | --- | --- |
//! | 0 | [`model`] | what is decided, pure: no IO, no clock, no HTTP library; time is an argument |
//! | | [`model::route`] | one endpoint as data: paths, parameters, and the ladder of states |
//! | | [`model::job`] | ids, sets of ids, states |
//! | | [`model::query`] | a request's target, read in every spelling and written in one |
//! | | [`model::answer`] | bodies cut into jobs by id, and put together byte for byte |
//! | | [`model::coalesce`] | who leans on which poll, what to open and abort, whom to answer and when |
//! | | [`model::backoff`] | the pause before another try |
//! | 1 | [`clock`] | the one clock |
//! | | [`secret`] | a text that is not to be seen |
//! | | [`config`] | what the operator decides, read and checked |
//! | | [`allowed_host`] | by which names a listener that asks for no credentials may be reached
//! | | [`headers`] | which fields are hop-by-hop, which belong to one answer, which are added |
//! | | [`request`] | a request's id, where it comes from, its arrival |
//! | | [`cors`] | which web origins may read answers |
//! | | `printable` | text of others, safe for a terminal |
//! | | [`body`] | bytes at hand, or a stream |
//! | | [`metrics`] | what is counted, in closed sets of words |
//! | | [`telemetry`] | the log |
//! | | [`trace`] | what caused what, across the gateway, told to a collector |
//! | | [`wish`] | how a client wants to be served: `Prefer`, `Cache-Control`, `Accept` |
//! | 2 | [`auth`] | who asks, with which key the upstream is asked |
//! | | [`limits`] | how often one may |
//! | | [`cache`] | what is known, to whom it may be told |
//! | | [`upstream`] | the way to the upstream: its client, and one poll to its final outcome |
//! | | [`sim`] | the upstream, simulated, faults included |
//! | 3 | [`hub`] | the one task that runs the Coalescer and owns the polls |
//! | 4 | [`passthrough`] | what is no wait |
//! | | [`reply`] | the answer to a wait, and what every answer carries |
//! | | [`error`] | the one place where a fault becomes a status |
//! | | [`access`] | one line in the log for each request |
//! | | [`sse`] | a wait that is told each state as it is reached, as server-sent events |
//! | | [`gateway`] | the path above, on one screen |
//! | 5 | [`server`] | listeners, TLS and connections |
//! | | [`admin`] | the operator's side: health, metrics, state, dashboard, on a thread of its own |
//! | | [`cli`], [`cmd`] | the command line, a file for each call |
//!
//! # Who owns what
//!
//! The [`hub`] owns the polls, [`server`] the clients' connections, [`admin`] its thread and the operator's,
//! [`cmd::serve`] those three. A client owns nothing but its wait: dropping it leaves, and nobody else notices.

mod admin;
mod auth;
mod cache;
pub mod cli;
mod clock;
mod config;
pub mod core;
mod gateway;
mod hub;
mod limits;
mod printable;
mod protocol;
mod secret;
mod server;
pub mod sim;
mod socket;
mod telemetry;
mod upstream;

/// Parts of the gateway for its own tests and benches. Not an interface: anything here may change at any time.
#[doc(hidden)]
pub mod testing {
    pub mod admin {
        pub use crate::admin::{Admin, AdminContext, Readiness};
    }
    pub mod auth {
        pub use crate::auth::{Authenticator, Identity, token_sha256};
    }
    pub mod cache {
        pub use crate::cache::Cache;
    }
    pub mod clock {
        pub use crate::clock::now;
    }
    pub mod config {
        pub use crate::config::*;
    }
    pub mod gateway {
        pub use crate::gateway::Gateway;
    }
    pub mod hub {
        pub use crate::hub::{Hub, HubDeps, WaitHandle, WaitRequest};
    }
    pub mod limits {
        pub use crate::limits::{Limits, Subject};
    }
    pub mod protocol {
        pub mod allowed_host {
            pub use crate::protocol::allowed_host::HostPattern;
        }
        pub mod request {
            pub use crate::protocol::request::{ForwardedChain, Peer, RequestCtx, RequestId};
        }
        pub mod stored_headers {
            pub use crate::protocol::stored_headers::split_head;
        }
    }
    pub mod secret {
        pub use crate::secret::Secret;
    }
    pub mod server {
        pub use crate::server::{Listener, Server, TlsError, tcp_address};
    }
    pub mod socket {
        pub use crate::socket::listen;
    }
    pub mod telemetry {
        pub mod log {
            pub use crate::telemetry::log::*;
        }
        pub mod metrics {
            pub use crate::telemetry::metrics::Metrics;
        }
        pub mod trace {
            pub use crate::telemetry::trace::{Links, Tracer};
        }
    }
    pub mod upstream {
        pub mod client {
            pub use crate::upstream::client::Client;
        }
        pub mod poll {
            pub use crate::upstream::poll::Poller;
        }
    }
}
