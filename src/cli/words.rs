//! How an input line is split into words, and how words are quoted.

/// Splits a line at whitespace. Single or double quotes keep a word together, and an unclosed one is an error; within
/// double quotes a backslash escapes the next character.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(format!("a quote ({c}) is not closed")),
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => word.extend(chars.next()),
                        Some(other) => word.push(other),
                    }
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// The start of the word that is being typed, the words before it, and the part that has been typed.
pub(super) fn current_word(typed: &str) -> (usize, Vec<String>, String) {
    let mut start = 0;
    let mut quote = None;
    for (at, c) in typed.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, c) if c.is_whitespace() => start = at + c.len_utf8(),
            _ => {}
        }
    }
    let partial = typed[start..].trim_matches(['"', '\'']).to_owned();
    (start, split_words(&typed[..start]).unwrap_or_default(), partial)
}

pub(super) fn quote_word(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | '#'));
    if plain { word.to_owned() } else { format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_together_what_is_quoted() {
        for (line, expected) in [
            ("", vec![]),
            ("  find  lamp 20 ", vec!["find", "lamp", "20"]),
            ("sell \"desk lamp\" 20 'brass, old'", vec!["sell", "desk lamp", "20", "brass, old"]),
            (r#"sell "the \"best\" \\" 1"#, vec!["sell", r#"the "best" \"#, "1"]),
            ("a\"b c\"d \"\"", vec!["ab cd", ""]),
        ] {
            assert_eq!(split_words(line).unwrap(), expected, "{line}");
        }
        for line in ["sell \"desk", "it's", "\"a\\"] {
            assert!(split_words(line).unwrap_err().contains("not closed"), "{line}");
        }
        assert_eq!(split_words(&format!("x {}", quote_word("a \"b\" \\c"))).unwrap(), ["x", "a \"b\" \\c"]);
    }

    #[test]
    fn completion_sees_the_words_before() {
        assert_eq!(current_word("fi"), (0, vec![], "fi".to_owned()));
        assert_eq!(current_word("remove \"desk la"), (7, vec!["remove".to_owned()], "desk la".to_owned()));
        assert_eq!(current_word("buy "), (4, vec!["buy".to_owned()], String::new()));
    }
}
