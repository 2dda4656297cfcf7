//! Several gateways behind one engine.
//!
//! | file | content |
//! | --- | --- |
//! | `engine`, `engine_cluster` | a server, a proxy in front of it that delays, cuts and mutes; a Redis Cluster |
//! | `replica` | gateways that share it |
//! | `sharing` | identical waits share one poll; keys and secrets never meet |
//! | `losses` | the loss of a replica |
//! | `egress` | a replica that cannot reach the upstream |
//! | `engine_faults` | the loss, the restart and the silence of the engine |
//! | `modes` | clusters and sentinels: nodes lost, stopped and moved |
//! | `quotas` | quotas of all replicas together, and apart |
//! | `revocation` | rejected keys, pauses, removed and changed states |
//! | `soak` | random waits and a fault every few seconds |
//! | `tls`, `valkey` | TLS to the engine; Valkey in place of Redis |

mod egress;
mod engine;
mod engine_cluster;
mod engine_faults;
mod losses;
mod modes;
mod quotas;
mod replica;
mod revocation;
mod sharing;
mod soak;
mod tls;
mod valkey;
