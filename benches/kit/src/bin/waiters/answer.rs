//! What a client is told, and when an HTTP/1.1 answer is whole.

/// One client's answer.
pub(crate) struct Told {
    pub(crate) asked_ns: u128,
    pub(crate) answered_ns: u128,
    /// The HTTP status; 0 where the connection broke.
    pub(crate) status: u16,
    /// The clip's own; `-` where there is none.
    pub(crate) word: String,
}

impl Told {
    pub(crate) fn new(asked_ns: u128, status: u16, body: &[u8]) -> Self {
        Self { asked_ns, answered_ns: crate::now_ns(), status, word: word(body) }
    }
}

/// The clip's status, out of its JSON.
fn word(body: &[u8]) -> String {
    const FIELD: &[u8] = br#""status":""#;
    let at = body.windows(FIELD.len()).position(|window| window == FIELD);
    let word = at.and_then(|at| body[at + FIELD.len()..].split(|byte| *byte == b'"').next());
    word.map_or_else(|| "-".to_owned(), |word| String::from_utf8_lossy(word).into_owned())
}

/// Where the body begins and, once that is known, ends.
pub(crate) enum Extent {
    Unknown,
    Until(usize),
    /// In pieces, until the empty one.
    Chunked,
}

impl Extent {
    /// Of what has been read so far.
    pub(crate) fn of(answer: &[u8]) -> Self {
        let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Self::Unknown;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        match length.and_then(|length| length.trim().parse::<usize>().ok()) {
            Some(length) => Self::Until(end + 4 + length),
            None => Self::Chunked,
        }
    }

    pub(crate) fn is_whole(&self, answer: &[u8]) -> bool {
        match self {
            Self::Unknown => false,
            Self::Until(end) => answer.len() >= *end,
            Self::Chunked => answer.ends_with(b"0\r\n\r\n"),
        }
    }
}

/// The status of an HTTP/1.1 answer.
pub(crate) fn status(answer: &[u8]) -> u16 {
    answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}
