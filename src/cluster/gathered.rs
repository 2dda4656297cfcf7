//! Answers to a call of several scripts, one for each shard, as one answer.

use std::time::Duration;

use super::calls::ScriptCall;
use crate::core::siblings::{EngineAnswer, EngineTime};

/// A call of several scripts, whose answers are counted.
pub(super) struct Gathered {
    left: u8,
    has_failed: bool,
    /// Script that comes after these answers.
    last: Option<ScriptCall>,
    is_flushed: bool,
    time: EngineTime,
}

impl Gathered {
    pub(super) fn new(left: u8, last: Option<ScriptCall>) -> Self {
        Self { left, has_failed: false, last, is_flushed: false, time: EngineTime(Duration::ZERO) }
    }

    /// Takes in the answer of a shard, `None` for a failure. Returns whether it is the last one.
    pub(super) fn take_in(&mut self, answer: Option<EngineAnswer>) -> bool {
        self.left -= 1;
        match answer {
            Some(EngineAnswer::Done(time)) => self.time = self.time.max(time),
            Some(_) => self.is_flushed = true,
            None => self.has_failed = true,
        }
        self.left == 0
    }

    /// Returns the script that comes next, also after a failure: siblings must not wait for a full node of the cluster. The
    /// call fails nevertheless, and is made again.
    pub(super) fn next_script(&mut self) -> Option<ScriptCall> {
        let last = self.last.take()?;
        self.left = 1;
        Some(last)
    }

    /// Returns the answer of all shards, `None` for a failure. A loss of memory counts more: the adoptions after it are
    /// urgent, and the next call finds the failure again.
    pub(super) fn into_answer(self) -> Option<EngineAnswer> {
        match (self.has_failed, self.is_flushed) {
            (_, true) => Some(EngineAnswer::Flushed),
            (true, false) => None,
            (false, false) => Some(EngineAnswer::Done(self.time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::scripts::EngineScript;

    fn done(seconds: u64) -> Option<EngineAnswer> {
        Some(EngineAnswer::Done(EngineTime(Duration::from_secs(seconds))))
    }

    #[test]
    fn siblings_hear_of_a_removal_of_which_a_shard_has_no_mark() {
        let script = ScriptCall { script: EngineScript::Remove, keys: Vec::new(), args: Vec::new() };
        let mut removal = Gathered::new(2, Some(script));
        assert!(!removal.take_in(None));
        assert!(removal.take_in(done(1)));
        assert!(removal.next_script().is_some());
        assert!(removal.take_in(done(1)));
        assert!(removal.next_script().is_none());
        assert!(removal.into_answer().is_none(), "the call is made again");
    }

    #[test]
    fn the_answer_of_all_shards_is_a_loss_of_memory_then_a_failure_then_the_latest_time() {
        let answer = |answers: [Option<EngineAnswer>; 3]| {
            let mut gathered = Gathered::new(3, None);
            let is_last = answers.map(|answer| gathered.take_in(answer));
            assert_eq!(is_last, [false, false, true]);
            gathered.into_answer()
        };
        let flushed = || Some(EngineAnswer::Flushed);
        assert!(matches!(answer([None, flushed(), done(1)]), Some(EngineAnswer::Flushed)));
        assert!(matches!(answer([flushed(), done(1), None]), Some(EngineAnswer::Flushed)));
        assert!(answer([done(1), None, done(2)]).is_none());
        let latest = EngineTime(Duration::from_secs(3));
        assert!(
            matches!(answer([done(1), done(3), done(2)]), Some(EngineAnswer::Done(time)) if time == latest)
        );
    }
}
