//! The engine of `--replicas`: the Valkey or Redis server that is installed.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::child::ChildProcess;
use crate::cli::error::CommandError;

/// Programs in the order in which they are looked for.
const PROGRAMS: [&str; 2] = ["valkey-server", "redis-server"];

/// Oldest version that can publish to a subscriber of a shard.
const MIN_VERSION: u32 = 7;

/// Longest time until a new server accepts connections, and time between two attempts.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Attempts to start with a free port: another program may take it first.
const MAX_STARTS: usize = 3;

/// A server without persistence on a free port of this machine, with a random password.
pub(super) struct Engine {
    pub(super) program: &'static str,
    pub(super) address: SocketAddr,
    /// URL with the password.
    pub(super) url: String,
    pub(super) process: ChildProcess,
}

impl Engine {
    pub(super) async fn start() -> Result<Self, CommandError> {
        let (program, path) = find().ok_or(
            "--replicas needs an engine, and PATH has neither valkey-server nor redis-server.\n    Install one, for \
             example with `apt-get install valkey-server`, `apt-get install redis-server` or `brew install valkey`. \
             With containers, `docker compose -f deploy/compose/replicas.yml up` needs none.",
        )?;
        check_version(program, &path).await?;
        let mut error = CommandError::from("");
        for _ in 0..MAX_STARTS {
            match Self::try_start(program, &path).await {
                Ok(engine) => return Ok(engine),
                Err(problem) => error = problem,
            }
        }
        Err(format!("{program} does not start: {error}").into())
    }

    async fn try_start(program: &'static str, path: &Path) -> Result<Self, CommandError> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?;
        let password = random_secret()?;
        // Not in the arguments, which other users of this machine can read.
        let config = format!(
            "port {}\nbind 127.0.0.1\nrequirepass {password}\nsave \"\"\nappendonly no\nmaxmemory 64mb\n\
             maxmemory-policy volatile-lru\nloglevel warning\ndir /",
            address.port()
        );
        let variables = [("ENGINE_CONFIG", config)];
        let mut process = ChildProcess::start(path, ["-"], &variables, Stdio::null())?;
        let accepts = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        // Cancel safe: an attempt to connect has no effect, and the process stays.
        tokio::select! {
            accepted = tokio::time::timeout(START_TIMEOUT, accepts) => accepted?,
            status = process.ended() => {
                let mut problem = format!("{}", status?);
                while let Some(line) = process.next_line().await {
                    problem = line;
                }
                return Err(problem.into());
            }
        }
        let url = format!("redis://:{password}@{address}");
        Ok(Self { program, address, url, process })
    }
}

fn find() -> Option<(&'static str, PathBuf)> {
    let path = env::var_os("PATH")?;
    let dirs: Vec<_> = env::split_paths(&path).collect();
    let place = |program: &&'static str| {
        let file = dirs.iter().map(|dir| dir.join(program)).find(|file| file.is_file());
        Some(*program).zip(file)
    };
    PROGRAMS.iter().find_map(place)
}

async fn check_version(program: &str, path: &Path) -> Result<(), CommandError> {
    let output = Command::new(path).arg("--version").output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(version) if version < MIN_VERSION => Err(format!(
            "{program} {} is too old for --replicas. Install Valkey, or Redis {MIN_VERSION} or later.",
            path.display()
        )
        .into()),
        _ => Ok(()),
    }
}

/// Returns the first number of the version in `Redis server v=7.2.4 sha=…`.
fn version(text: &str) -> Option<u32> {
    let (_, after) = text.split_once("v=")?;
    after.split('.').next()?.parse().ok()
}

/// Returns 256 random bits as hexadecimal digits.
pub(super) fn random_secret() -> Result<String, CommandError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system has no random numbers: {error}"))?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_both_servers_are_read_and_other_texts_are_accepted() {
        assert_eq!(version("Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64"), Some(6));
        assert_eq!(version("Valkey server v=8.1.0 sha=00000000:0"), Some(8));
        assert_eq!(version("another server"), None);
    }
}
