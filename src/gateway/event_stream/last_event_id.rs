//! What a client has been told, as its events' ids say and `Last-Event-ID` gives back.
//!
//! ```text
//! 5d1c29f0:streaming,queued,-     the rung told of each job, in the order asked for; `-`: none yet
//! 5d1c29f0:over                   nothing is left to tell
//! ```
//!
//! First comes a digest of what is asked for: the id of another stream says nothing of this one. All of it is known to
//! the client anyway, and a client that makes one up misleads nobody but itself.

use crate::core::job::JobId;
use crate::core::route::{Ladder, Rung};

/// The ids of one request's events.
#[derive(Clone, Debug)]
pub(super) struct PositionCodec {
    digest: String,
    ladder: Ladder,
    jobs: usize,
}

/// What a client that connects anew has been told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The rung of each job.
    Told(Vec<Option<Rung>>),
    /// That there is no more.
    Over,
}

impl PositionCodec {
    /// For these jobs, in this order, until this rung.
    pub(super) fn new(ladder: &Ladder, jobs: &[JobId], goal: Rung) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(ladder.name(goal).as_bytes());
        for job in jobs {
            // Neither a status word nor an id is empty or can be taken for two.
            hash.update(&job.as_str().len().to_le_bytes());
            hash.update(job.as_str().as_bytes());
        }
        let digest = hash.finalize().to_hex()[..DIGEST_DIGITS].to_owned();
        Self { digest, ladder: ladder.clone(), jobs: jobs.len() }
    }

    /// The id that says so.
    pub(super) fn write(&self, mark: &Position) -> String {
        let rung = |rung: &Option<Rung>| rung.map_or(NONE, |rung| self.ladder.name(rung));
        match mark {
            Position::Told(told) => {
                format!("{}:{}", self.digest, told.iter().map(rung).collect::<Vec<_>>().join(","))
            }
            Position::Over => format!("{}:{OVER}", self.digest),
        }
    }

    /// What `Last-Event-ID` says; `None` if that cannot be read, or is of another request.
    pub(super) fn read(&self, id: &str) -> Option<Position> {
        let told = id.trim().strip_prefix(&self.digest)?.strip_prefix(':')?;
        if told == OVER {
            return Some(Position::Over);
        }
        let rung = |word| match word {
            NONE => Some(None),
            word => self.ladder.rung(word).map(Some),
        };
        let told: Vec<_> = told.split(',').take(self.jobs + 1).map(rung).collect::<Option<_>>()?;
        (told.len() == self.jobs).then_some(Position::Told(told))
    }
}

const DIGEST_DIGITS: usize = 8;
const NONE: &str = "-";
const OVER: &str = "over";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::route::Route;

    fn marks(ids: &[&str], goal: &str) -> PositionCodec {
        let ladder = Route::suno().ladder;
        let jobs: Vec<_> = ids.iter().map(|id| JobId::new(id).unwrap()).collect();
        PositionCodec::new(&ladder, &jobs, ladder.rung(goal).unwrap())
    }

    fn read(marks: &PositionCodec, id: &str) -> Option<Position> {
        marks.read(id)
    }

    #[test]
    fn what_is_written_is_read() {
        let marks = marks(&["a", "b", "c"], "completed");
        let ladder = Route::suno().ladder;
        let told = Position::Told(vec![ladder.rung("streaming"), None, ladder.rung("error")]);
        for mark in [told, Position::Told(vec![None; 3]), Position::Over] {
            let id = marks.write(&mark);
            assert_eq!(read(&marks, &id), Some(mark), "{id}");
        }
        assert_eq!(marks.write(&Position::Told(vec![None; 3]))[DIGEST_DIGITS..], *":-,-,-");
    }

    #[test]
    fn what_cannot_be_read_counts_as_none() {
        let marks = marks(&["a", "b"], "completed");
        let good = marks.write(&Position::Told(vec![None; 2]));
        let digest = &good[..DIGEST_DIGITS];
        let bad =
            ["", "7", digest, ":-,-", &format!("{digest}:"), &format!("{digest}:-"), &format!("{good},-")];
        for id in bad.into_iter().chain([
            &*format!("{digest}:done,-"),
            &format!("{digest}:over,-"),
            "00000000:over",
        ]) {
            assert_eq!(read(&marks, id), None, "{id}");
        }
        assert!(marks.read("\u{ff}").is_none());
        assert!(read(&marks, &good).is_some());
    }

    #[test]
    fn an_id_is_good_for_what_was_asked_for_and_nothing_else() {
        let id = marks(&["a", "b"], "completed").write(&Position::Over);
        assert_eq!(read(&marks(&["a", "b"], "complete"), &id), Some(Position::Over));
        for (ids, goal) in
            [(&["b", "a"][..], "completed"), (&["a", "b"], "streaming"), (&["ab"], "completed")]
        {
            assert_eq!(read(&marks(ids, goal), &id), None, "{ids:?}");
        }
    }
}
