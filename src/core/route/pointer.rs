//! JSON Pointers (RFC 6901): the places of values in a body.

/// A pointer to a value below the root of a body, with at least one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer(Vec<String>);

impl JsonPointer {
    /// Parses a pointer such as `/data/status`. `None` if the text is not a pointer, or points to the root.
    pub fn parse(text: &str) -> Option<Self> {
        let tokens = text.strip_prefix('/')?.split('/');
        let unescape = |token: &str| {
            let is_escaped = token.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
            is_escaped.then(|| token.replace("~1", "/").replace("~0", "~"))
        };
        tokens.map(unescape).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Returns the tokens, from the root on.
    pub fn tokens(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_a_list_of_tokens() {
        let tokens = |text| JsonPointer::parse(text).map(|pointer| pointer.tokens().to_vec());
        assert_eq!(tokens("/data/status"), Some(vec!["data".to_owned(), "status".to_owned()]));
        assert_eq!(tokens("/a~1b/~0"), Some(vec!["a/b".to_owned(), "~".to_owned()]));
        for bad in ["", "status", "data.status", "/a~", "/a~2"] {
            assert_eq!(tokens(bad), None, "{bad}");
        }
    }
}
