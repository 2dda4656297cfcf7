//! File descriptors: raises the limit of the process, and reserves a part for the upstream and the operator.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

use crate::config::Config;

/// Descriptors of the process itself: standard streams, event queues, listeners, files that are read now and then.
const OWN_DESCRIPTORS: u64 = 64;

/// Most connections of operators.
const MAX_ADMIN_CONNECTIONS: u64 = 256;

/// Raises the limit of open files to the hard limit. The usual soft limit of 1024 is for programs that use `select`.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        debug!(%error, "could not raise the limit of open files");
    }
}

/// Returns the limit of client connections: `server.max_connections`, or fewer if the upstream and the operator would
/// have no descriptors left.
pub(crate) fn client_connections(config: &Config) -> usize {
    let rest = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| client_share(limit, config));
    config.server.max_connections.min(usize::try_from(rest).unwrap_or(usize::MAX))
}

/// Returns the limit of operator connections.
pub(crate) fn admin_connections() -> usize {
    let connections = getrlimit(Resource::Nofile).current.map_or(MAX_ADMIN_CONNECTIONS, admin_share);
    usize::try_from(connections).expect("at most 256")
}

fn admin_share(limit: u64) -> u64 {
    (limit / 8).clamp(2, MAX_ADMIN_CONNECTIONS)
}

/// Returns the share of clients in this many descriptors. The upstream gets one for each poll and each passed-through
/// request, but at most half of all.
fn client_share(limit: u64, config: &Config) -> u64 {
    let own = OWN_DESCRIPTORS.min(limit / 4);
    let wanted = config.upstream.max_polls.saturating_add(config.limits.max_passthrough);
    let upstream = u64::try_from(wanted).unwrap_or(u64::MAX).min(limit / 2);
    limit.saturating_sub(own + admin_share(limit) + upstream).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_connections_leave_descriptors_for_the_upstream_and_the_operator() {
        let mut config = Config::default();
        (config.upstream.max_polls, config.limits.max_passthrough) = (512, 4096);
        let rows = [(64, 8), (1024, 1024 - 64 - 128 - 512), (65_536, 65_536 - 64 - 256 - 512 - 4096), (4, 1)];
        for (limit, clients) in rows {
            assert_eq!(client_share(limit, &config), clients, "{limit}");
        }
        config.upstream.max_polls = usize::MAX;
        assert_eq!(client_share(u64::MAX, &config), u64::MAX - u64::MAX / 2 - 64 - 256);
    }

    #[test]
    fn every_passed_through_request_has_a_descriptor_beside_those_of_polls_and_clients() {
        let mut config = Config::default();
        for most in [1024, 4096, 20_000] {
            config.limits.max_passthrough = most;
            let upstream = (config.upstream.max_polls + most) as u64;
            assert!(client_share(65_536, &config) + upstream <= 65_536, "{most}");
        }
    }
}
