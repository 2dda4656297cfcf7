//! A route: one asynchronous upstream API as data, with its paths, parameters and ladder of states.
//!
//! No other file spells a status word or a path of the upstream; `tests/it/architecture.rs` checks that.

use std::fmt;

/// A state on a [`Ladder`]. A later state compares greater. The name of a rung comes from the ladder that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung(u8);

/// Names and properties of one rung.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RungSpec {
    /// Status word in queries and on the dashboard.
    pub name: String,
    /// Other words for the same rung, in queries and bodies.
    pub aliases: Vec<String>,
    /// A job on this rung never changes again.
    pub terminal: bool,
    /// A client may wait for this rung.
    pub askable: bool,
}

/// The states of a job in the order in which jobs reach them. A job may skip rungs, but never returns to a lower one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    rungs: Vec<RungSpec>,
}

impl Ladder {
    /// Creates a ladder from its rungs, first state first.
    ///
    /// # Panics
    /// Panics if there are no rungs or more than 256.
    pub fn new(rungs: Vec<RungSpec>) -> Self {
        assert!((1..=256).contains(&rungs.len()), "a ladder has 1 to 256 rungs");
        Self { rungs }
    }

    /// Returns the rung with this name or alias. The comparison is case-sensitive.
    pub fn rung(&self, word: &str) -> Option<Rung> {
        let position =
            self.rungs.iter().position(|r| r.name == word || r.aliases.iter().any(|a| a == word))?;
        u8::try_from(position).ok().map(Rung)
    }

    /// Returns the first rung. Every job with a known state has reached it.
    pub fn lowest(&self) -> Rung {
        Rung(0)
    }

    /// Returns the rung after this one.
    pub fn next(&self, rung: Rung) -> Option<Rung> {
        (usize::from(rung.0) + 1 < self.rungs.len()).then(|| Rung(rung.0 + 1))
    }

    /// Returns the status word that a poll for this rung sends.
    pub fn name(&self, rung: Rung) -> &str {
        &self.rungs[usize::from(rung.0)].name
    }

    /// Returns the status word in the upstream's bodies: the first alias, if there is one.
    pub fn body_word(&self, rung: Rung) -> &str {
        let spec = &self.rungs[usize::from(rung.0)];
        spec.aliases.first().unwrap_or(&spec.name)
    }

    /// Returns whether a job on this rung never changes again.
    pub fn is_terminal(&self, rung: Rung) -> bool {
        self.rungs[usize::from(rung.0)].terminal
    }

    /// Returns whether a client may wait for this rung.
    pub fn is_askable(&self, rung: Rung) -> bool {
        self.rungs[usize::from(rung.0)].askable
    }

    /// Returns the highest rung that a client may wait for.
    pub fn highest_askable(&self) -> Rung {
        self.rungs().filter(|&rung| self.is_askable(rung)).max().unwrap_or(self.lowest())
    }

    /// Returns whether a job on this rung has failed: the rung is terminal, and no client may wait for it.
    pub fn is_failure(&self, rung: Rung) -> bool {
        self.is_terminal(rung) && !self.is_askable(rung)
    }

    /// Iterates over the status words that a client may send, first state first, for error messages.
    pub fn askable_words(&self) -> impl Iterator<Item = &str> {
        self.rungs.iter().filter(|r| r.askable).map(|r| r.name.as_str())
    }

    /// Iterates over all rungs, first state first.
    pub fn rungs(&self) -> impl Iterator<Item = Rung> {
        (0..=u8::MAX).take(self.rungs.len()).map(Rung)
    }
}

/// The state that ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// The current state, at once: the request has no status parameter.
    Now,
    /// This rung or a higher one.
    Rung(Rung),
    /// Any state but this one. Only on routes whose upstream never holds: their polls name no goal, and a job may return to
    /// an earlier state.
    Not(Rung),
}

/// One of the two endpoints of a route: one job a request, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// One job; the body is one object.
    Single,
    /// Several jobs; the body is a list.
    Multi,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Single => "single",
            Form::Multi => "multi",
        })
    }
}

/// An upstream API for one kind of job: its two endpoints, their parameters, and the fields of its bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name in logs and metric labels.
    pub name: String,
    /// Path for the state of one job.
    pub single_path: String,
    /// Path for the states of several jobs.
    pub multi_path: String,
    /// Query parameter for the one id.
    pub single_param: String,
    /// Repeated query parameter for the ids, without brackets.
    pub multi_param: String,
    /// Query parameter for the rung to wait for.
    pub status_param: String,
    /// Member of a job's body that has its id.
    pub id_field: String,
    /// Member of a job's body that has its status word.
    pub status_field: String,
    /// States of a job, first to last.
    pub ladder: Ladder,
}

impl Route {
    /// Returns the built-in route: AIMLAPI's Suno clips.
    pub fn suno() -> Self {
        let rung = |name: &str, aliases: &[&str], terminal, askable| RungSpec {
            name: name.to_owned(),
            aliases: aliases.iter().map(|&a| a.to_owned()).collect(),
            terminal,
            askable,
        };
        Self {
            name: "suno".to_owned(),
            single_path: "/v2/generate/audio/suno-ai/clip".to_owned(),
            multi_path: "/v2/generate/audio/suno-ai/clips".to_owned(),
            single_param: "clip_id".to_owned(),
            multi_param: "clip_ids".to_owned(),
            status_param: "status".to_owned(),
            id_field: "id".to_owned(),
            status_field: "status".to_owned(),
            ladder: Ladder::new(vec![
                rung("submitted", &[], false, true),
                rung("queued", &[], false, true),
                rung("streaming", &[], false, true),
                rung("completed", &["complete"], true, true),
                rung("error", &[], true, false),
            ]),
        }
    }

    /// Returns the endpoint that has this path, if it belongs to the route.
    pub fn form(&self, path: &str) -> Option<Form> {
        if path == self.single_path {
            Some(Form::Single)
        } else if path == self.multi_path {
            Some(Form::Multi)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_orders_status_words_and_accepts_the_alias() {
        let ladder = Route::suno().ladder;
        let words = ["submitted", "queued", "streaming", "completed", "error"];
        let rungs: Vec<_> = words.iter().map(|w| ladder.rung(w).expect("a word of the ladder")).collect();
        assert!(rungs.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(ladder.rung("complete"), ladder.rung("completed"));
        assert_eq!((ladder.name(rungs[3]), ladder.body_word(rungs[3])), ("completed", "complete"));
        assert_eq!(ladder.body_word(rungs[2]), ladder.name(rungs[2]));
        assert_eq!(ladder.rung("Completed"), None);
        assert_eq!(ladder.next(rungs[2]), Some(rungs[3]));
        assert_eq!(ladder.next(rungs[4]), None);
        assert_eq!(ladder.lowest(), rungs[0]);
        assert!(
            ladder.is_terminal(rungs[3]) && ladder.is_terminal(rungs[4]) && !ladder.is_terminal(rungs[2])
        );
        assert!(!ladder.is_askable(rungs[4]));
        assert_eq!(ladder.highest_askable(), rungs[3]);
    }

    #[test]
    fn a_route_has_two_paths_compared_letter_for_letter() {
        let route = Route::suno();
        assert_eq!(route.form("/v2/generate/audio/suno-ai/clip"), Some(Form::Single));
        assert_eq!(route.form("/v2/generate/audio/suno-ai/clips"), Some(Form::Multi));
        for other in ["/v2/generate/audio/suno-ai/clip/", "/v2/generate/audio/suno-ai/Clip", "/", ""] {
            assert_eq!(route.form(other), None, "{other}");
        }
    }
}
