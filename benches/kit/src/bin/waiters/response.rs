//! Responses, and the end of an HTTP/1.1 response.

/// The response to one client.
pub(crate) struct Response {
    pub(crate) sent_ns: u128,
    pub(crate) answered_ns: u128,
    /// The HTTP status; 0 if the connection broke.
    pub(crate) status: u16,
    /// The status of the clip; `-` if the body has none.
    pub(crate) word: String,
}

impl Response {
    pub(crate) fn new(sent_ns: u128, status: u16, body: &[u8]) -> Self {
        Self { sent_ns, answered_ns: crate::now_ns(), status, word: word(body) }
    }
}

/// Returns the status of the clip from its JSON.
fn word(body: &[u8]) -> String {
    const FIELD: &[u8] = br#""status":""#;
    let at = body.windows(FIELD.len()).position(|window| window == FIELD);
    let word = at.and_then(|at| body[at + FIELD.len()..].split(|byte| *byte == b'"').next());
    word.map_or_else(|| "-".to_owned(), |word| String::from_utf8_lossy(word).into_owned())
}

/// The end of the response, as far as known.
pub(crate) enum Extent {
    Unknown,
    Until(usize),
    Chunked,
}

impl Extent {
    /// Returns the end that the bytes read so far announce.
    pub(crate) fn of(response: &[u8]) -> Self {
        let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Self::Unknown;
        };
        let head = String::from_utf8_lossy(&response[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        match length.and_then(|length| length.trim().parse::<usize>().ok()) {
            Some(length) => Self::Until(end + 4 + length),
            None => Self::Chunked,
        }
    }

    pub(crate) fn is_complete(&self, response: &[u8]) -> bool {
        match self {
            Self::Unknown => false,
            Self::Until(end) => response.len() >= *end,
            Self::Chunked => response.ends_with(b"0\r\n\r\n"),
        }
    }
}

/// Returns the status of an HTTP/1.1 response.
pub(crate) fn status(response: &[u8]) -> u16 {
    response.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}
