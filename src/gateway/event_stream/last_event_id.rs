//! The position of a client in its stream, as event ids and `Last-Event-ID` carry it.
//!
//! ```text
//! 5d1c29f0:streaming,queued,-     the rung sent of each job, in the order of the query; `-`: none yet
//! 5d1c29f0:over                   all events are sent
//! ```
//!
//! Other characters in a word of a configured route than letters, digits and `-._~` are percent-encoded, and the words
//! `-` and `over` too.
//!
//! Where the upstream never holds, a job may return to a state: an id then names the last state sent of each job, and a
//! client that reconnects gets any other state. The same id may occur twice in a stream.
//!
//! The digest of jobs and rung comes first, so that ids of other streams are ignored. An id contains nothing that the
//! client does not know, and a forged one changes only the client's own stream.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::core::job::JobId;
use crate::core::route::{Ladder, Route, Rung};

/// Writes and reads the event ids of one request.
#[derive(Clone, Debug)]
pub(super) struct PositionCodec {
    digest: String,
    ladder: Ladder,
    jobs: usize,
}

/// The events that a client has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The highest rung of each job; the last one where jobs may go back.
    Sent(Vec<Option<Rung>>),
    /// All of them.
    Over,
}

impl PositionCodec {
    pub(super) fn new(route: &Route, jobs: &[JobId], goal: Rung) -> Self {
        let (mut hash, ladder) = (blake3::Hasher::new(), &route.ladder);
        if !route.is_built_in {
            // The length separates the name from the word behind it.
            hash.update(&route.name.len().to_le_bytes());
            hash.update(route.name.as_bytes());
        }
        hash.update(ladder.name(goal).as_bytes());
        for job in jobs {
            // The length separates ids, so that different lists have different digests.
            hash.update(&job.as_str().len().to_le_bytes());
            hash.update(job.as_str().as_bytes());
            hash.update(job.rest().as_bytes());
        }
        let digest = hash.finalize().to_hex()[..DIGEST_DIGITS].to_owned();
        Self { digest, ladder: ladder.clone(), jobs: jobs.len() }
    }

    pub(super) fn encode(&self, position: &Position) -> String {
        let rung = |rung: &Option<Rung>| rung.map_or(NONE.into(), |rung| encode_word(self.ladder.name(rung)));
        match position {
            Position::Sent(sent) => {
                format!("{}:{}", self.digest, sent.iter().map(rung).collect::<Vec<_>>().join(","))
            }
            Position::Over => format!("{}:{OVER}", self.digest),
        }
    }

    /// Parses `Last-Event-ID`. `None`: the id is invalid, or belongs to another request.
    pub(super) fn decode(&self, id: &str) -> Option<Position> {
        let rungs = id.trim().strip_prefix(&self.digest)?.strip_prefix(':')?;
        if rungs == OVER {
            return Some(Position::Over);
        }
        let rung = |word| match word {
            NONE => Some(None),
            word => self.ladder.rung(&percent_decode_str(word).decode_utf8().ok()?).map(Some),
        };
        let sent: Vec<_> = rungs.split(',').take(self.jobs + 1).map(rung).collect::<Option<_>>()?;
        (sent.len() == self.jobs).then_some(Position::Sent(sent))
    }
}

/// Encodes a word of the ladder, so that it has no comma, no character that a header field cannot have, and is never the
/// sign for no rung or for the end.
fn encode_word(word: &str) -> Cow<'_, str> {
    match word {
        NONE => "%2D".into(),
        OVER => "%6Fver".into(),
        word => utf8_percent_encode(word, OUTSIDE_WORD).into(),
    }
}

const OUTSIDE_WORD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const DIGEST_DIGITS: usize = 8;
const NONE: &str = "-";
const OVER: &str = "over";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::route::RungSpec;

    fn codec(ids: &[&str], goal: &str) -> PositionCodec {
        let route = Route::suno();
        let jobs: Vec<_> = ids.iter().map(|id| JobId::new(id).unwrap()).collect();
        PositionCodec::new(&route, &jobs, route.ladder.rung(goal).unwrap())
    }

    #[test]
    fn an_encoded_position_decodes_to_itself() {
        let codec = codec(&["a", "b", "c"], "completed");
        let ladder = Route::suno().ladder;
        let sent = Position::Sent(vec![ladder.rung("streaming"), None, ladder.rung("error")]);
        for position in [sent, Position::Sent(vec![None; 3]), Position::Over] {
            let id = codec.encode(&position);
            assert_eq!(codec.decode(&id), Some(position), "{id}");
        }
        assert_eq!(codec.encode(&Position::Sent(vec![None; 3]))[DIGEST_DIGITS..], *":-,-,-");
    }

    #[test]
    fn any_word_of_a_ladder_is_written_so_that_it_is_read_again() {
        let words = ["over", "-", "a,b", "a b", "läuft", "%2D", "\n", ":", "TIMED-OUT"];
        let ladder = Ladder::new(words.iter().map(|word| RungSpec::pending(word)).collect());
        let route = Route { ladder: ladder.clone(), ..Route::never_holding() };
        let jobs = ["a", "b"].map(|id| JobId::new(id).unwrap());
        for goal in ladder.rungs() {
            let (one, two) =
                (PositionCodec::new(&route, &jobs[..1], goal), PositionCodec::new(&route, &jobs, goal));
            let id = one.encode(&Position::Sent(vec![Some(goal)]));
            assert!(id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','), "{id}");
            assert_eq!(one.decode(&id), Some(Position::Sent(vec![Some(goal)])), "{id}");
            let sent = Position::Sent(vec![Some(goal), None]);
            assert_eq!(two.decode(&two.encode(&sent)), Some(sent));
        }
        assert!(one_of_words("TIMED-OUT", &route).ends_with(":TIMED-OUT"));
    }

    fn one_of_words(word: &str, route: &Route) -> String {
        let rung = route.ladder.rung(word).unwrap();
        let codec = PositionCodec::new(route, &[JobId::new("a").unwrap()], rung);
        codec.encode(&Position::Sent(vec![Some(rung)]))
    }

    #[test]
    fn the_name_of_a_route_and_the_goal_do_not_run_together() {
        let ladder = Ladder::new(["one", "sone"].map(RungSpec::pending).to_vec());
        let digest = |name: &str, goal| {
            let route = Route { name: name.to_owned(), ladder: ladder.clone(), ..Route::never_holding() };
            one_of_words(goal, &route)[..DIGEST_DIGITS].to_owned()
        };
        assert_ne!(digest("jobs", "one"), digest("job", "sone"));
    }

    #[test]
    fn an_invalid_id_decodes_to_none() {
        let codec = codec(&["a", "b"], "completed");
        let good = codec.encode(&Position::Sent(vec![None; 2]));
        let digest = &good[..DIGEST_DIGITS];
        let bad =
            ["", "7", digest, ":-,-", &format!("{digest}:"), &format!("{digest}:-"), &format!("{good},-")];
        for id in bad.into_iter().chain([
            &*format!("{digest}:done,-"),
            &format!("{digest}:over,-"),
            "00000000:over",
        ]) {
            assert_eq!(codec.decode(id), None, "{id}");
        }
        assert!(codec.decode("\u{ff}").is_none());
        assert!(codec.decode(&good).is_some());
    }

    #[test]
    fn an_id_is_valid_only_for_the_same_jobs_in_the_same_order_and_the_same_rung() {
        let id = codec(&["a", "b"], "completed").encode(&Position::Over);
        assert_eq!(codec(&["a", "b"], "complete").decode(&id), Some(Position::Over));
        for (ids, goal) in
            [(&["b", "a"][..], "completed"), (&["a", "b"], "streaming"), (&["ab"], "completed")]
        {
            assert_eq!(codec(ids, goal).decode(&id), None, "{ids:?}");
        }
    }
}
