//! One asynchronous endpoint as data: its paths, its parameters and the ladder its states climb.
//!
//! Nothing outside this file spells a status word or a path of the upstream.

use std::fmt;

/// A step of a [`Ladder`]; the higher one is the later state. Only the ladder that made it can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung(u8);

/// What one rung is called and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RungSpec {
    /// The word of the query, and the one shown to people.
    pub name: String,
    /// Other words that mean the same rung, in queries and in bodies.
    pub aliases: Vec<String>,
    /// A state here never changes again.
    pub terminal: bool,
    /// A client may ask to wait for it.
    pub askable: bool,
}

/// The states of a clip in the order they are reached. Rungs may be skipped, never revisited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    rungs: Vec<RungSpec>,
}

impl Ladder {
    /// A ladder of these rungs, the first state first.
    ///
    /// # Panics
    /// When there are no rungs or more than 256.
    pub fn new(rungs: Vec<RungSpec>) -> Self {
        assert!((1..=256).contains(&rungs.len()), "a ladder has 1 to 256 rungs");
        Self { rungs }
    }

    /// The rung of a status word, by name or alias, letter for letter.
    pub fn rung(&self, word: &str) -> Option<Rung> {
        let at = self.rungs.iter().position(|r| r.name == word || r.aliases.iter().any(|a| a == word))?;
        u8::try_from(at).ok().map(Rung)
    }

    /// The first rung, which every known state has reached.
    pub fn lowest(&self) -> Rung {
        Rung(0)
    }

    /// The rung after this one.
    pub fn next(&self, rung: Rung) -> Option<Rung> {
        (usize::from(rung.0) + 1 < self.rungs.len()).then(|| Rung(rung.0 + 1))
    }

    /// The word that asks the upstream for this rung.
    pub fn name(&self, rung: Rung) -> &str {
        &self.rungs[usize::from(rung.0)].name
    }

    /// The word that the upstream's own bodies say for this rung: the first alias, where there is one.
    pub fn body_word(&self, rung: Rung) -> &str {
        let spec = &self.rungs[usize::from(rung.0)];
        spec.aliases.first().unwrap_or(&spec.name)
    }

    /// Whether a clip on this rung never changes again.
    pub fn is_terminal(&self, rung: Rung) -> bool {
        self.rungs[usize::from(rung.0)].terminal
    }

    /// Whether a client may ask to wait for this rung.
    pub fn is_askable(&self, rung: Rung) -> bool {
        self.rungs[usize::from(rung.0)].askable
    }

    /// What there is to wait for: the highest rung that may be asked for.
    pub fn highest_askable(&self) -> Rung {
        self.rungs().filter(|&rung| self.is_askable(rung)).max().unwrap_or(self.lowest())
    }

    /// Whether a clip on this rung has failed: it ends there, and nobody waits for it.
    pub fn is_failure(&self, rung: Rung) -> bool {
        self.is_terminal(rung) && !self.is_askable(rung)
    }

    /// The words a client may ask for, the first state first, for messages.
    pub fn askable_words(&self) -> impl Iterator<Item = &str> {
        self.rungs.iter().filter(|r| r.askable).map(|r| r.name.as_str())
    }

    /// All rungs, the first state first.
    pub fn rungs(&self) -> impl Iterator<Item = Rung> {
        (0..=u8::MAX).take(self.rungs.len()).map(Rung)
    }
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// The state as it is, at once: the request names no status.
    Now,
    /// This rung or a higher one.
    Rung(Rung),
}

/// Which of a route's two endpoints: one clip a request, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// One clip, answered as one object.
    Single,
    /// Several clips, answered together.
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

/// Where the states of one kind of job are read, and in which words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The route's name in logs and metric labels.
    pub name: String,
    /// The path that tells one clip's state.
    pub single_path: String,
    /// The path that tells several clips' states.
    pub multi_path: String,
    /// The query parameter with the one id.
    pub single_param: String,
    /// The query parameter, repeated, with the ids, without brackets.
    pub multi_param: String,
    /// The query parameter with the rung to wait for.
    pub status_param: String,
    /// The member of a clip's body with its id.
    pub id_field: String,
    /// The member of a clip's body with its status word.
    pub status_field: String,
    /// The states.
    pub ladder: Ladder,
}

impl Route {
    /// AIMLAPI's Suno clips (contract, section 1).
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

    /// Which endpoint a path is, if it is one of this route's.
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
    fn the_ladder_orders_its_words_and_knows_the_alias() {
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
    fn only_the_two_paths_are_the_routes() {
        let route = Route::suno();
        assert_eq!(route.form("/v2/generate/audio/suno-ai/clip"), Some(Form::Single));
        assert_eq!(route.form("/v2/generate/audio/suno-ai/clips"), Some(Form::Multi));
        for other in ["/v2/generate/audio/suno-ai/clip/", "/v2/generate/audio/suno-ai/Clip", "/", ""] {
            assert_eq!(route.form(other), None, "{other}");
        }
    }
}
