//! The banned habits of style, each as a pattern over the words of a passage.

use super::passages::{Kind, Passage};

/// A word of a passage, and its position in the sentence.
#[derive(Debug)]
pub(crate) struct Word {
    /// In lower case, without punctuation. Empty for code between backticks.
    text: String,
    pub(crate) line: usize,
    /// The first word of its sentence, heading or table cell.
    is_first: bool,
    is_question: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Habit {
    /// A relative clause used as a noun: `what the hub works with`, `for who asks`. Questions and headings do not count.
    NounClause,
    /// A doc comment whose first word is `where`, `which` or `how`. Models begin with `whether` and `when` too often.
    ClauseFirst,
    /// `told`, `tell`, `tells`, `telling`.
    Told,
    /// `nobody`, `somebody`, `everybody`, `anybody`, `whoever`; `no one`, `someone` and the like.
    Nobody,
    /// `is no X`, unless it is `there is no X` or a comparison.
    IsNo,
    /// `The same, but` or `The same, only`.
    SameBut,
    /// A doc comment whose first word is `it` or `its`.
    ItFirst,
    /// A word for a common thing that only this code uses.
    Private,
}

pub(crate) const HABITS: [(Habit, &str); 8] = [
    (Habit::NounClause, "what is, who has"),
    (Habit::ClauseFirst, "first: where, how"),
    (Habit::Told, "told, tell"),
    (Habit::Nobody, "nobody, whoever"),
    (Habit::IsNo, "is no X"),
    (Habit::SameBut, "the same, but"),
    (Habit::ItFirst, "first: it, its"),
    (Habit::Private, "private words"),
];

/// Words after `what` that make it a plain question word: `what to do`, `what happens`, `what kind of`.
const PLAIN_AFTER_WHAT: [&str; 7] = ["to", "if", "kind", "kinds", "type", "types", "happens"];

/// Words before `who` and `whose` that name no actor, so that the clause is a noun: `for who asks`, `those who ask`.
const NO_ACTOR: [&str; 42] = [
    "about", "after", "all", "and", "as", "at", "be", "before", "but", "by", "decides", "for", "from", "in",
    "is", "know", "knows", "like", "not", "of", "on", "only", "or", "others", "say", "says", "see", "sees",
    "show", "shows", "than", "that", "those", "to", "until", "was", "when", "where", "whether", "while",
    "with", "without",
];

/// Words after `is no` that compare: `is no longer`, `must be no larger than`.
const COMPARATIVES: [&str; 10] =
    ["better", "earlier", "fewer", "greater", "larger", "later", "less", "longer", "more", "smaller"];

const PRIVATE: [&str; 35] = [
    "aids", "besieged", "climb", "climbed", "climbing", "climbs", "garbled", "haste", "keyring", "keyrings",
    "lean", "leanable", "leaned", "leaning", "leans", "mishap", "mishaps", "overdue", "rogue", "rota",
    "rotas", "stray", "strays", "stricken", "trail", "trails", "treason", "treasons", "vouched", "vouches",
    "weather", "wish", "wished", "wishes", "wishing",
];

impl Habit {
    /// Whether the habit shows at this word.
    pub(crate) fn is_at(self, kind: Kind, words: &[Word], at: usize) -> bool {
        let word = &words[at];
        let text = word.text.as_str();
        let near = |offset: isize| {
            at.checked_add_signed(offset).and_then(|at| words.get(at)).map_or("", |word| word.text.as_str())
        };
        let is_opening = kind == Kind::DocComment && at == 0;
        match self {
            Self::NounClause if word.is_question || kind == Kind::Heading => false,
            Self::NounClause => match text {
                "what" if words.get(at + 1).is_none_or(|next| next.is_first) => false,
                "what" => !PLAIN_AFTER_WHAT.contains(&near(1)),
                "what's" | "whatever" | "who's" => true,
                "who" | "whom" | "whose" => word.is_first || NO_ACTOR.contains(&near(-1)),
                _ => false,
            },
            Self::ClauseFirst => is_opening && matches!(text, "where" | "which" | "how"),
            Self::Told => matches!(text, "told" | "tell" | "tells" | "telling"),
            Self::Nobody => {
                let is_everybody = ["no", "some", "every", "any"].iter().any(|start| {
                    text.strip_prefix(start)
                        .is_some_and(|rest| matches!(rest, "body" | "body's" | "one" | "one's"))
                });
                is_everybody
                    || matches!(text, "whoever" | "whomever")
                    || (text == "no" && near(1) == "one" && near(2) != "of")
            }
            Self::IsNo => {
                matches!(text, "is" | "are" | "was" | "were" | "be")
                    && near(1) == "no"
                    && !COMPARATIVES.contains(&near(2))
                    && near(-1) != "there"
                    && near(-2) != "there"
            }
            Self::SameBut => text == "same" && near(-1) == "the" && matches!(near(1), "but" | "only"),
            Self::ItFirst => is_opening && matches!(text, "it" | "its"),
            // "If you wish to" is plain English.
            Self::Private => PRIVATE.contains(&text) && !(text.starts_with("wish") && near(1) == "to"),
        }
    }
}

/// Splits a passage into words. Code between backticks, code blocks and link targets have none.
pub(crate) fn words(passage: &Passage) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut is_first = true;
    let mut sentence = 0;
    let mut is_block = false;
    for (line, text) in &passage.lines {
        let trimmed = text.trim_start();
        if trimmed.starts_with("```") {
            is_block = !is_block;
            continue;
        }
        if is_block {
            continue;
        }
        let is_heading = trimmed.starts_with("# ");
        is_first |= is_heading;
        for piece in pieces(text) {
            let bare = piece.trim_matches(|c: char| !c.is_alphanumeric() && c != '`').to_lowercase();
            if bare.chars().any(|c| c.is_alphabetic() || c == '`') {
                let text = if bare.contains('`') { String::new() } else { bare };
                words.push(Word { text, line: *line, is_first, is_question: false });
                is_first = false;
            }
            let last = piece.trim_end_matches(['"', ')', '*', '_', '”']).chars().last();
            if matches!(last, Some('.' | '?' | '!' | ':' | ';' | '|')) {
                if last == Some('?') {
                    words[sentence..].iter_mut().for_each(|word| word.is_question = true);
                }
                sentence = words.len();
                is_first = true;
            }
        }
        is_first |= is_heading;
    }
    words
}

/// The words of a line as they stand, each span of code as one, link targets left out.
fn pieces(line: &str) -> Vec<String> {
    let mut shown = String::new();
    for (at, part) in line.split('`').enumerate() {
        // Every second part is code, if the backtick is closed.
        let is_code = at % 2 == 1 && line.matches('`').count() > at;
        match (at, is_code) {
            (0, _) => shown.push_str(part),
            (_, true) => shown.push('`'),
            _ => shown.push_str(part),
        }
    }
    while let Some(start) = shown.find("](") {
        let end = shown[start..].find(')').map_or(shown.len(), |end| start + end + 1);
        shown.replace_range(start..end, "");
    }
    let shown = shown.replace('|', " | ").replace(['/', '—', '–', '’'], " ");
    shown.split_whitespace().map(str::to_owned).collect()
}
