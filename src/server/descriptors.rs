//! File descriptors: as many as the system allows, and shared out so that clients leave some for the upstream.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

use crate::config::Config;

/// Descriptors of the process itself: standard streams, event queues, listeners, files that are read now and then.
const OWN: u64 = 64;

/// Connections of the operator's, at most.
const ADMIN: u64 = 256;

/// Connections to the upstream beside polls: passed-through requests and tunnels.
const PASSED_THROUGH: u64 = 1024;

/// Raises the limit of open files to what the process may have: what a shell or a service manager sets as usual dates
/// from programs that could not take more than 1024.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        debug!(%error, "the limit of open files stays as it is");
    }
}

/// How many client connections there may be: `server.max_connections`, or fewer where that leaves the upstream's and
/// the operator's side without descriptors.
pub fn client_connections(config: &Config) -> usize {
    let polls = u64::try_from(config.upstream.max_polls).unwrap_or(u64::MAX);
    let rest = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| clients_of(limit, polls));
    config.server.max_connections.min(usize::try_from(rest).unwrap_or(usize::MAX))
}

/// How many operator's connections there may be.
pub(crate) fn admin_connections() -> usize {
    let most = getrlimit(Resource::Nofile).current.map_or(ADMIN, admin_of);
    usize::try_from(most).expect("it is small")
}

fn admin_of(limit: u64) -> u64 {
    (limit / 8).clamp(2, ADMIN)
}

/// What is left for clients of so many descriptors. Half of them stay for the upstream's side, or what it can need.
fn clients_of(limit: u64, polls: u64) -> u64 {
    let own = OWN.min(limit / 4);
    let upstream = polls.saturating_add(PASSED_THROUGH).min(limit / 2);
    limit.saturating_sub(own + admin_of(limit) + upstream).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_the_upstream_and_for_the_operator() {
        let rows = [(64, 8), (1024, 1024 - 64 - 128 - 512), (65_536, 65_536 - 64 - 256 - 1536), (4, 1)];
        for (limit, clients) in rows {
            assert_eq!(clients_of(limit, 512), clients, "{limit}");
        }
        assert_eq!(clients_of(u64::MAX, u64::MAX), u64::MAX - u64::MAX / 2 - 64 - 256);
    }
}
