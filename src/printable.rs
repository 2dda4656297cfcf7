//! Escapes text of clients and upstreams for a terminal: an id or a message must not move the cursor, change colours or
//! reverse the order of characters.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns whether a terminal may act on the character: controls (C0, DEL, C1), line separators, and changes of the
/// writing direction (Unicode TR 9, "Trojan Source").
pub(crate) fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Escapes hidden characters except line feeds as in Rust, such as `\u{9b}`.
pub(crate) fn escape_lines(text: &str) -> Cow<'_, str> {
    let is_escaped = |character| character != '\n' && is_hidden(character);
    replace(text, is_escaped, |text, character| text.extend(character.escape_unicode()))
}

/// Escapes hidden characters as in Rust, line breaks included.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    replace(text, is_hidden, |text, character| text.extend(character.escape_debug()))
}

/// Escapes the hidden characters of a JSON text as in JSON, such as `\u009b`. They occur in strings only.
pub(crate) fn escape_json(json: &str) -> Cow<'_, str> {
    replace(json, is_hidden, |text, character| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String does not fail.
            let _ = write!(text, "\\u{unit:04x}");
        }
    })
}

fn replace(
    text: &str,
    is_replaced: impl Fn(char) -> bool,
    write: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if !text.contains(&is_replaced) {
        return Cow::Borrowed(text);
    }
    let mut written = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_replaced(character) {
            true => write(&mut written, character),
            false => written.push(character),
        }
    }
    Cow::Owned(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_and_direction_changes_are_escaped_and_nothing_else() {
        let hidden = "\0\u{1b}\u{7f}\u{80}\u{9b}\u{9f}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}";
        for character in hidden.chars() {
            let text = format!("a{character}b");
            let code = u32::from(character);
            assert_eq!(escape_lines(&text), format!("a\\u{{{code:x}}}b"));
            assert!(!escape(&text).contains(character), "{code:x}");
            assert_eq!(escape_json(&text), format!("a\\u{code:04x}b"));
        }
        let plain = "a b~é“日本”\u{200d}🙂\\\"";
        assert_eq!(escape_lines(plain), plain);
        assert_eq!(escape(plain), plain);
        assert_eq!(escape_json(plain), plain);
        assert_eq!(escape_lines("a\nb"), "a\nb");
        assert_eq!(escape("a\nb"), "a\\nb");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let json = serde_json::json!({ "id": "\u{9b}2J\u{202e}\u{7f}" });
        let escaped = escape_json(&json.to_string()).into_owned();
        assert!(escaped.is_ascii(), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), json);
    }
}
