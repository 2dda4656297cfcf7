//! File descriptors: as many as the system allows, and shared out so that clients leave some for the upstream.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

use crate::config::Config;

/// Descriptors of the process itself: standard streams, event queues, listeners, files that are read now and then.
const OWN: u64 = 64;

/// Connections of the operator's, at most.
const ADMIN: u64 = 256;

/// Raises the limit of open files to what the process may have: what a shell or a service manager sets as usual dates
/// from programs that could not take more than 1024.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        debug!(%error, "the limit of open files stays as it is");
    }
}

/// How many client connections there may be: `server.max_connections`, or fewer where that leaves the upstream's and
/// the operator's side without descriptors.
pub(crate) fn client_connections(config: &Config) -> usize {
    let rest = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| clients_of(limit, config));
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

/// What is left for clients of so many descriptors. Half of them stay for the upstream's side, or what it can need: a
/// connection for each poll and for each passed-through request.
fn clients_of(limit: u64, config: &Config) -> u64 {
    let own = OWN.min(limit / 4);
    let most = config.upstream.max_polls.saturating_add(config.limits.max_passthrough);
    let upstream = u64::try_from(most).unwrap_or(u64::MAX).min(limit / 2);
    limit.saturating_sub(own + admin_of(limit) + upstream).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_the_upstream_and_for_the_operator() {
        let mut config = Config::default();
        (config.upstream.max_polls, config.limits.max_passthrough) = (512, 4096);
        let rows = [(64, 8), (1024, 1024 - 64 - 128 - 512), (65_536, 65_536 - 64 - 256 - 512 - 4096), (4, 1)];
        for (limit, clients) in rows {
            assert_eq!(clients_of(limit, &config), clients, "{limit}");
        }
        config.upstream.max_polls = usize::MAX;
        assert_eq!(clients_of(u64::MAX, &config), u64::MAX - u64::MAX / 2 - 64 - 256);
    }

    #[test]
    fn every_request_that_may_be_passed_through_has_a_descriptor_beside_those_of_polls_and_clients() {
        let mut config = Config::default();
        for most in [1024, 4096, 20_000] {
            config.limits.max_passthrough = most;
            let upstream = (config.upstream.max_polls + most) as u64;
            assert!(clients_of(65_536, &config) + upstream <= 65_536, "{most}");
        }
    }
}
