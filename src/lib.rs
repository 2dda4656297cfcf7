//! clipgate: a coalescing, caching reverse proxy in front of a job API.
//!
//! `ARCHITECTURE.md` has the path of a request, the layers, and the place of each decision. The two state machines
//! that decide are public: [`core::coalescer::Coalescer`] and [`core::scheduler::PollScheduler`]. So is the simulated
//! upstream: [`sim`].

mod admin;
mod auth;
mod cache;
pub mod cli;
mod clock;
mod cluster;
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
mod tls_roots;
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
        pub mod http1 {
            pub use crate::upstream::client::http1::{
                BodyDecoder, BodyFault, BodyPart, HeadReader, ResponseStart,
            };
        }
        pub mod poll {
            pub use crate::upstream::poll::Poller;
        }
    }
}
