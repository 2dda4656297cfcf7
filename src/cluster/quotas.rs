//! Quotas of all replicas: the engine counts the requests that each replica has let pass.

use std::time::Duration;

use redis::Value;

use super::Cluster;
use super::calls::{ScriptCall, number};
use super::names::{QuotaName, ShardIndex};
use super::scripts::EngineScript;

/// Most quotas in one script. It takes about 0.1 ms.
const PAGE: usize = 64;

/// Requests of one quota that have passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineTake {
    pub(crate) name: QuotaName,
    /// Time in which the quota regains the requests.
    pub(crate) time: Duration,
    /// Greatest time until the quota is full.
    pub(crate) max_time: Duration,
}

impl Cluster {
    /// Returns the name of a quota, the same at all replicas.
    pub(crate) fn quota_name(&self, parts: &[&[u8]]) -> QuotaName {
        self.shared.dialect.names.quota(parts)
    }

    /// Counts requests. Returns for each quota the time until it is full, or `None` without an answer: then no other
    /// replica hears of these requests. Cancel safe: sent requests are counted.
    pub(crate) async fn take(&self, takes: &[EngineTake]) -> Vec<Option<Duration>> {
        let mut answers = vec![None; takes.len()];
        if !self.is_linked() {
            return answers;
        }
        let mut pages = Vec::new();
        for shard in ShardIndex::all() {
            let of_shard = |index: &usize| ShardIndex::of_quota(takes[*index].name) == shard;
            let indexes: Vec<usize> = (0..takes.len()).filter(of_shard).collect();
            for page in indexes.chunks(PAGE) {
                let (page, script) =
                    (page.to_vec(), self.take_script(page.iter().map(|index| &takes[*index])));
                pages.push(async move { (page, self.run_script(script).await) });
            }
        }
        for (page, answer) in futures_util::future::join_all(pages).await {
            let Some(Value::Array(items)) = answer else { continue };
            for (index, item) in page.into_iter().zip(items.into_iter().skip(1)) {
                if let Value::Int(micros) = item {
                    answers[index] = u64::try_from(micros).ok().map(Duration::from_micros);
                }
            }
        }
        answers
    }

    fn take_script<'t>(&self, takes: impl Iterator<Item = &'t EngineTake>) -> ScriptCall {
        let (mut keys, mut args) = (Vec::new(), Vec::new());
        for take in takes {
            keys.push(self.shared.dialect.names.quota_key(take.name));
            args.extend([micros(take.time), micros(take.max_time)]);
        }
        ScriptCall { script: EngineScript::Take, keys, args }
    }
}

/// Returns the time in microseconds with three decimals.
fn micros(time: Duration) -> Vec<u8> {
    let nanos = time.as_nanos().min(1 << 60);
    number(format_args!("{}.{:03}", nanos / 1000, nanos % 1000))
}
