//! Several gateways behind one engine.
//!
//! | file | content |
//! | --- | --- |
//! | `engine` | a Redis server, and a proxy in front of it that delays and cuts |
//! | `replica` | gateways that share it |
//! | `sharing` | identical waits share one poll; keys and secrets never meet |
//! | `losses` | the loss of a replica |
//! | `engine_faults` | the loss, the restart and the silence of the engine |
//! | `quotas` | quotas of all replicas together, and apart |
//! | `revocation` | rejected keys, pauses, removed and changed states |

mod engine;
mod engine_faults;
mod losses;
mod quotas;
mod replica;
mod revocation;
mod sharing;
