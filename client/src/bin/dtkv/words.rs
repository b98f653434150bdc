//! Splits a line into words, quoted as in a shell.

/// The words of a line; empty for a blank line or a comment.
///
/// Single quotes take everything as it is; in double quotes and outside, a backslash takes the next
/// character as it is, and `\n`, `\t` in double quotes are the control characters.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_none() => break,
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => quoted(&mut chars, '\'', word.get_or_insert_default())?,
            '"' => quoted(&mut chars, '"', word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("the line ends with a backslash")?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(chars: &mut std::str::Chars<'_>, end: char, word: &mut String) -> Result<(), String> {
    loop {
        match chars.next().ok_or_else(|| format!("a {end} is never closed"))? {
            c if c == end => return Ok(()),
            '\\' if end == '"' => word.push(match chars.next().ok_or("the line ends with a backslash")? {
                'n' => '\n',
                't' => '\t',
                c => c,
            }),
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_in_a_shell() {
        let cases: [(&str, &[&str]); 8] = [
            ("put a b", &["put", "a", "b"]),
            ("  put\ta  ", &["put", "a"]),
            ("put k 'two words'", &["put", "k", "two words"]),
            (r#"put k "a \"b\"\n""#, &["put", "k", "a \"b\"\n"]),
            (r"put k a\ b", &["put", "k", "a b"]),
            ("put k ''", &["put", "k", ""]),
            ("rm a # comment", &["rm", "a"]),
            ("# only", &[]),
        ];
        for (line, words) in cases {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        assert_eq!(split("put k a#b").unwrap(), ["put", "k", "a#b"]);
    }

    #[test]
    fn open_quotes_are_refused() {
        for line in ["put 'a", "put \"a", "put a\\", "put \"a\\"] {
            assert!(split(line).is_err(), "{line}");
        }
    }
}
