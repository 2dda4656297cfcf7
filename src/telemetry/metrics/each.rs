//! A value for each word of a closed set, found without a search.

use std::marker::PhantomData;

use serde::{Serialize, Serializer};

/// A closed set of words.
pub trait Label: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// What logs and metrics call it.
    fn as_str(self) -> &'static str;

    /// Its place in [`Self::ALL`].
    fn place(self) -> usize;
}

/// A `T` for each `W`.
#[derive(Clone, Debug)]
pub struct Each<W, T> {
    values: Box<[T]>,
    words: PhantomData<W>,
}

impl<W: Label, T> Each<W, T> {
    /// What `make` makes of each word.
    pub fn new(make: impl FnMut(W) -> T) -> Self {
        Self { values: W::ALL.iter().copied().map(make).collect(), words: PhantomData }
    }

    /// The word's value.
    pub fn of(&self, word: W) -> &T {
        &self.values[word.place()]
    }

    /// All words with their values.
    pub fn iter(&self) -> impl Iterator<Item = (W, &T)> {
        W::ALL.iter().copied().zip(&self.values)
    }
}

impl<W: Label, T: Serialize> Serialize for Each<W, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(word, value)| (word.as_str(), value)))
    }
}
