//! Reads and copies the values of header fields.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Returns the comma-separated members of all lines of a field, trimmed, without the empty ones.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Returns the value of a field with exactly one line.
pub(crate) fn single_value<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    // Nearly all heads have each field once.
    if headers.len() == headers.keys_len() {
        return headers.get(name);
    }
    let mut values = headers.get_all(name).into_iter();
    values.next().filter(|_| values.next().is_none())
}

/// Copies a value into memory of its own. A value as hyper read it keeps the buffer of the whole head alive.
pub(crate) fn copy_value(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).expect("bytes of a valid value");
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// Writes two digits a byte, at a third of the cost of the crate `hex`: a passed-through request has up to 41 of these bytes.
pub(crate) fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    let digit = |value: u8| value + if value < 10 { b'0' } else { b'a' - 10 };
    for (byte, pair) in bytes.iter().zip(digits.as_chunks_mut().0) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
}

/// Returns whether the text is a number in decimal digits, as HTTP writes integers: without sign or fraction.
pub(crate) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
