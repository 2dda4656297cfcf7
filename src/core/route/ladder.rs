//! The ladder of a route: the states of a job in their order.

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

impl RungSpec {
    /// Returns a state on the way, for which clients may wait.
    pub fn pending(name: &str) -> Self {
        Self { name: name.to_owned(), aliases: Vec::new(), terminal: false, askable: true }
    }

    /// Returns the successful end, for which clients may wait.
    pub fn succeeded(name: &str) -> Self {
        Self { terminal: true, ..Self::pending(name) }
    }

    /// Returns the failed end.
    pub fn failed(name: &str) -> Self {
        Self { askable: false, ..Self::succeeded(name) }
    }

    /// Adds other words for the rung.
    pub fn with_aliases<S: AsRef<str>>(mut self, aliases: &[S]) -> Self {
        self.aliases.extend(aliases.iter().map(|alias| alias.as_ref().to_owned()));
        self
    }
}

/// The states of a job in the order in which jobs reach them. A job may skip rungs, but never returns to a lower one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    rungs: Vec<RungSpec>,
}

impl Rung {
    /// Returns the position on the ladder.
    pub fn position(self) -> u8 {
        self.0
    }
}

impl Ladder {
    /// Returns the rung at this position.
    pub fn at(&self, position: u8) -> Option<Rung> {
        (usize::from(position) < self.rungs.len()).then_some(Rung(position))
    }

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

#[cfg(test)]
mod tests {
    use crate::core::route::Route;

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
}
