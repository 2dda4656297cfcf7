//! Merges the lines of several threads in order of time.

/// Bytes at the start of a line that order it: the time as RFC 3339, after the constant start of a JSON line. The times
/// have the same length, so their order is that of their bytes.
const KEY_LEN: usize = "{\"timestamp\":\"1970-01-01T00:00:00.000000Z".len();

/// Appends the lines of all sources to `lines`. The lines of one source keep their order.
pub(super) fn merge_lines(sources: &[&[u8]], lines: &mut Vec<u8>) {
    let mut sources: Vec<&[u8]> = sources.iter().copied().filter(|source| !source.is_empty()).collect();
    while sources.len() > 1 {
        let first = (0..sources.len()).min_by_key(|index| key(sources[*index])).unwrap_or_default();
        let (line, rest) = split_line(sources[first]);
        lines.extend_from_slice(line);
        sources[first] = rest;
        if rest.is_empty() {
            sources.remove(first);
        }
    }
    sources.iter().for_each(|source| lines.extend_from_slice(source));
}

fn key(source: &[u8]) -> &[u8] {
    &source[..source.len().min(KEY_LEN)]
}

/// Splits after the first line end.
fn split_line(source: &[u8]) -> (&[u8], &[u8]) {
    let length = source.iter().position(|byte| *byte == b'\n').map_or(source.len(), |end| end + 1);
    source.split_at(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(sources: &[&str]) -> String {
        let sources: Vec<&[u8]> = sources.iter().map(|source| source.as_bytes()).collect();
        let mut lines = b"before\n".to_vec();
        merge_lines(&sources, &mut lines);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn lines_are_in_order_of_time_and_those_of_one_thread_keep_their_order() {
        assert_eq!(merged(&["1 a\n4 b\n", "", "2 c\n3 d\n5 e\n"]), "before\n1 a\n2 c\n3 d\n4 b\n5 e\n");
        assert_eq!(merged(&["9 a\n1 b\n", "2 c\n"]), "before\n2 c\n9 a\n1 b\n", "the clock was set back");
        assert_eq!(merged(&["1 a\n"]), "before\n1 a\n");
        assert_eq!(merged(&[]), "before\n");
    }
}
