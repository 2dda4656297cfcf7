//! Names: all keys and channels at the engine, derived from `cluster.secret`.
//!
//! ```text
//!   cg1:ID:{NN}:p:POLL        ID  secret, name, base URL and wire version: another one never meets this one
//!       │    │    └ keyed hash NN  shard of the key domain, 00 to 15: all keys of a script are in one slot
//! ```
//!
//! | key | content | lifetime |
//! | --- | --- | --- |
//! | `m` | replicas and their last beats | 1 h |
//! | `d:DOMAIN` | epoch of a key, the one before, and when the upstream accepted and rejected the key and all its jobs changed | 1 h or `cache.key_recheck_interval`; shorter before the upstream has accepted the key |
//! | `c:JOB` | state of a job: a header for the scripts, then sealed bytes | that of the cache, else 120 s |
//! | `p:POLL` | lease of a poll and its guests | the upstream's hold and 30 s |
//! | `q:SUBJECT` | time at which a quota is full again | until then |
//! | `r:DOMAIN` | end of the pause of a key, and its message | the pause |
//! | `x`, `x:JOB` | time of the last removal of all jobs or of one | the longest of the cache |
//! | `l` | log of the last removals | the longest of the cache |
//! | channel `n` | messages of one shard | |
//! | channel `m:REPLICA` | nothing: its subscribers are counted | |

use std::fmt::Write as _;
use std::sync::Arc;

use http::Uri;

use crate::core::job::{JobId, JobSet, KeyDomain, RouteIndex};
use crate::core::route::{Form, Goal, Route, Routes};
use crate::core::siblings::{PollName, ReplicaName};
use crate::secret::Secret;

/// Version of keys, values and messages. Replicas of two versions never meet.
const WIRE: u8 = 1;
/// Number of shards.
pub(super) const SHARDS: u8 = 16;
/// Hash slots of the tags `00` to `15` in a Redis Cluster.
const SLOTS: [u16; SHARDS as usize] =
    [13254, 9191, 4996, 933, 13122, 9059, 4864, 801, 13006, 8943, 247, 4310, 8373, 12436, 115, 4178];

/// A part of the engine: all keys and channels of one shard have the same hash slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShardIndex(u8);

impl ShardIndex {
    /// Returns all shards.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }

    pub(super) fn of_domain(domain: KeyDomain) -> Self {
        Self::of_hash(&domain.0)
    }

    pub(super) fn of_hash(hash: &[u8]) -> Self {
        Self(hash.first().map_or(0, |first| first % SHARDS))
    }

    /// Returns the shard that the name of a poll has in its highest bits.
    pub(super) fn of_poll(PollName(name): PollName) -> Self {
        let [first, ..] = name.to_be_bytes();
        Self(first >> 4)
    }

    pub(super) fn of_quota(QuotaName(name): QuotaName) -> Self {
        Self::of_hash(&name)
    }

    pub(super) fn of_replica(ReplicaName(name): ReplicaName) -> Self {
        let [.., last] = name.to_be_bytes();
        Self(last % SHARDS)
    }

    pub(super) fn number(self) -> u8 {
        self.0
    }

    /// Returns the place of the shard in a set of shards.
    pub(super) fn bit(self) -> u16 {
        1 << self.0
    }

    /// Returns the hash slot of the shard in a Redis Cluster.
    pub(super) fn slot(self) -> u16 {
        SLOTS[usize::from(self.0)]
    }
}

/// Keyed hash of a quota and its subject. Replicas share a quota while its rate and burst are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuotaName([u8; 16]);

/// Keyed hash of a job and its key domain.
pub(super) type JobName = [u8; 16];

type NameKey = [u8; blake3::KEY_LEN];

/// Derives all names.
#[derive(Clone)]
pub(super) struct Names {
    /// `cg1:ID`
    prefix: String,
    id: [u8; 4],
    poll_key: NameKey,
    job_key: NameKey,
    quota_key: NameKey,
    routes: Arc<[Arc<Route>]>,
}

impl Names {
    /// Derives the names of a gateway for this upstream.
    pub(super) fn new(secret: &Secret, name: &str, base_url: &Uri, routes: &Routes) -> Self {
        let secret = secret.expose().as_bytes();
        let mut hasher = blake3::Hasher::new_derive_key("clipgate cluster v1: id");
        let url = normalized(base_url);
        for part in [secret, name.as_bytes(), url.as_bytes(), &[WIRE]] {
            write_part(&mut hasher, part);
        }
        let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
        let id = [a, b, c, d];
        Self {
            prefix: format!("cg1:{}", hex::encode(id)),
            id,
            poll_key: blake3::derive_key("clipgate cluster v1: names of polls", secret),
            job_key: blake3::derive_key("clipgate cluster v1: names of jobs", secret),
            quota_key: blake3::derive_key("clipgate cluster v1: names of quotas", secret),
            routes: routes.iter().map(|(_, route)| Arc::new(route.clone())).collect(),
        }
    }

    /// Returns the identity of these replicas in hex, for logs and the dashboard.
    pub(super) fn id(&self) -> &str {
        self.prefix.trim_start_matches("cg1:")
    }

    pub(super) fn id_bytes(&self) -> &[u8] {
        &self.id
    }

    /// Returns the name of a poll: a keyed hash, after the shard of its key domain.
    pub(super) fn poll(
        &self,
        route: &Route,
        domain: KeyDomain,
        jobs: &JobSet,
        form: Form,
        goal: Goal,
    ) -> PollName {
        let mut hasher = blake3::Hasher::new_keyed(&self.poll_key);
        write_route(&mut hasher, route);
        hasher.update(&domain.0);
        hasher.update(&[matches!(form, Form::Multi).into()]);
        hasher.update(&match goal {
            Goal::Now => [0, 0],
            Goal::Rung(rung) => [1, rung.position()],
            Goal::Not(rung) => [2, rung.position()],
        });
        for job in jobs {
            write_job(&mut hasher, job);
        }
        let mut name = first_half(&hasher.finalize());
        name[0] = (name[0] & 0x0f) | (ShardIndex::of_domain(domain).number() << 4);
        PollName(u128::from_be_bytes(name))
    }

    /// Returns the name of a job.
    pub(super) fn job(&self, route: &Route, domain: KeyDomain, job: &JobId) -> JobName {
        let mut hasher = blake3::Hasher::new_keyed(&self.job_key);
        write_route(&mut hasher, route);
        hasher.update(&domain.0);
        write_job(&mut hasher, job);
        first_half(&hasher.finalize())
    }

    /// Returns the name of a quota.
    pub(super) fn quota(&self, parts: &[&[u8]]) -> QuotaName {
        let mut hasher = blake3::Hasher::new_keyed(&self.quota_key);
        parts.iter().for_each(|part| write_part(&mut hasher, part));
        QuotaName(first_half(&hasher.finalize()))
    }

    /// Returns the route with this index, if there is one.
    pub(super) fn route(&self, RouteIndex(index): RouteIndex) -> Option<&Arc<Route>> {
        self.routes.get(usize::from(index))
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(|route| &**route)
    }

    /// Returns a mark that means the same route at all replicas, in any order of their routes.
    pub(super) fn route_mark(&self, index: RouteIndex) -> Option<[u8; 16]> {
        let mut hasher = blake3::Hasher::new_keyed(&self.job_key);
        write_route(&mut hasher, self.route(index)?);
        Some(first_half(&hasher.finalize()))
    }

    pub(super) fn route_of_mark(&self, mark: [u8; 16]) -> Option<RouteIndex> {
        let indexes = (0..=u8::MAX).map(RouteIndex).take(self.routes.len());
        indexes.into_iter().find(|index| self.route_mark(*index) == Some(mark))
    }

    /// Returns the key of the mark of a removal of all jobs.
    pub(super) fn removal_key(&self, shard: ShardIndex) -> String {
        self.name(shard, "x")
    }

    /// Returns the key of the mark of a removal of all jobs with an id.
    pub(super) fn removed_id_key(&self, shard: ShardIndex, job: &JobId) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.job_key);
        write_part(&mut hasher, job.as_str().as_bytes());
        self.name(shard, &format!("x:{}", hex::encode(first_half(&hasher.finalize()))))
    }

    /// Returns the key of the mark of a change of a job and all its variants.
    pub(super) fn changed_job_key(&self, domain: KeyDomain, route: &Route, job: &JobId) -> String {
        let name = self.job(route, domain, &job.without_params());
        self.name(ShardIndex::of_domain(domain), &format!("x:{}", hex::encode(name)))
    }

    /// Returns the key of the log of removals.
    pub(super) fn removals_key(&self, shard: ShardIndex) -> String {
        self.name(shard, "l")
    }

    pub(super) fn quota_key(&self, quota: QuotaName) -> String {
        self.name(ShardIndex::of_quota(quota), &format!("q:{}", hex::encode(quota.0)))
    }

    pub(super) fn pause_key(&self, domain: KeyDomain) -> String {
        self.name(ShardIndex::of_domain(domain), &format!("r:{}", hex::encode(domain.0)))
    }

    pub(super) fn members_key(&self, shard: ShardIndex) -> String {
        self.name(shard, "m")
    }

    pub(super) fn domain_key(&self, domain: KeyDomain) -> String {
        self.name(ShardIndex::of_domain(domain), &format!("d:{}", hex::encode(domain.0)))
    }

    pub(super) fn job_key(&self, shard: ShardIndex, job: &JobName) -> String {
        self.name(shard, &format!("c:{}", hex::encode(job)))
    }

    pub(super) fn poll_key(&self, poll: PollName) -> String {
        self.name(ShardIndex::of_poll(poll), &format!("p:{:032x}", poll.0))
    }

    /// Returns the channel for the messages of a shard.
    pub(super) fn channel(&self, shard: ShardIndex) -> String {
        self.name(shard, "n")
    }

    /// Returns the shard of a key or a channel.
    pub(super) fn shard_of(&self, name: &[u8]) -> Option<ShardIndex> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b":{")?;
        let number: u8 = std::str::from_utf8(rest.get(..2)?).ok()?.parse().ok()?;
        ShardIndex::all().find(|shard| shard.number() == number)
    }

    /// Returns the channel to which only this replica listens.
    pub(super) fn own_channel(&self, replica: ReplicaName) -> String {
        self.name(ShardIndex::of_replica(replica), &format!("m:{}", member(replica)))
    }

    fn name(&self, ShardIndex(shard): ShardIndex, rest: &str) -> String {
        let mut name = String::with_capacity(self.prefix.len() + 6 + rest.len());
        let _ = write!(name, "{}:{{{shard:02}}}:{rest}", self.prefix);
        name
    }
}

/// Returns the name of a replica among the members.
pub(super) fn member(ReplicaName(name): ReplicaName) -> String {
    format!("{name:016x}")
}

/// Returns the URL without differences that do not change the upstream: case, default port, trailing slash.
fn normalized(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    format!("{scheme}://{host}:{port}{}", url.path().trim_end_matches('/'))
}

/// Writes the parts of a route that give the state of a job its meaning: name, path and ladder.
fn write_route(hasher: &mut blake3::Hasher, route: &Route) {
    write_part(hasher, route.name.as_bytes());
    write_part(hasher, route.path.as_str().as_bytes());
    for rung in route.ladder.rungs() {
        write_part(hasher, route.ladder.name(rung).as_bytes());
    }
    write_part(hasher, &[]);
}

fn write_job(hasher: &mut blake3::Hasher, job: &JobId) {
    write_part(hasher, job.as_str().as_bytes());
    write_part(hasher, job.rest().as_bytes());
}

fn write_part(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(secret: &str, name: &str, url: &str) -> Names {
        Names::new(&Secret::new(secret), name, &url.parse().unwrap(), &Route::suno().into())
    }

    fn jobs(ids: &[&str]) -> JobSet {
        JobSet::new(ids.iter().map(|id| JobId::new(id).unwrap()))
    }

    #[test]
    fn an_id_differs_by_secret_name_and_upstream() {
        let id = |secret, name, url| names(secret, name, url).id().to_owned();
        let one = id("s", "n", "https://api.example");
        for same in ["https://API.example:443", "HTTPS://api.example/", "https://api.example"] {
            assert_eq!(id("s", "n", same), one, "{same}");
        }
        let others = [
            id("t", "n", "https://api.example"),
            id("s", "m", "https://api.example"),
            id("s", "n", "http://api.example"),
            id("s", "n", "https://api.example/v2"),
            id("s", "n", "https://api.example:444"),
        ];
        assert!(!others.contains(&one));
        assert_eq!(one.len(), 8);
    }

    #[test]
    fn the_name_of_a_poll_has_the_shard_of_its_domain_and_everything_else_in_a_hash() {
        let names = names("s", "n", "https://api.example");
        let (route, domain) = (Route::suno(), KeyDomain([0x2b; 16]));
        let lowest = route.ladder.lowest();
        let poll = |domain, ids: &[&str], form, goal| names.poll(&route, domain, &jobs(ids), form, goal);
        let one = poll(domain, &["a", "b"], Form::Multi, Goal::Rung(lowest));
        assert_eq!(one, poll(domain, &["b", "a"], Form::Multi, Goal::Rung(lowest)));
        assert_eq!(ShardIndex::of_poll(one), ShardIndex::of_domain(domain));
        assert!(names.poll_key(one).contains(":{11}:p:b"), "{}", names.poll_key(one));
        let mut others = vec![
            poll(KeyDomain([1; 16]), &["a", "b"], Form::Multi, Goal::Rung(lowest)),
            poll(domain, &["a"], Form::Multi, Goal::Rung(lowest)),
            poll(domain, &["a", "b"], Form::Single, Goal::Rung(lowest)),
            poll(domain, &["a", "b"], Form::Multi, Goal::Now),
            poll(domain, &["a", "b"], Form::Multi, Goal::Not(lowest)),
        ];
        let renamed = Route { name: "other".to_owned(), ..Route::suno() };
        others.push(names.poll(&renamed, domain, &jobs(&["a", "b"]), Form::Multi, Goal::Rung(lowest)));
        assert!(!others.contains(&one));
        assert_eq!(ShardIndex::all().count(), 16);
    }
}
