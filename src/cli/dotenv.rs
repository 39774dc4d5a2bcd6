//! Parser for `.env` files: one `NAME=VALUE` per line. Text between single or double quotes is taken whole; an unquoted
//! value ends before whitespace followed by `#`. Nothing is expanded, because a secret may contain `$` or a backslash.

/// Each item is a setting, or the 1-based number of a line that cannot be parsed; items are in file order.
pub(super) fn parse(file: &[u8]) -> Vec<Result<(String, String), usize>> {
    let lines = crate::model::text::without_bom(file).split(|byte| *byte == b'\n');
    (1..).zip(lines).filter_map(|(number, text)| parse_line(text).map_err(|()| number).transpose()).collect()
}

/// Parses one line. Blank lines and comments give `None`.
fn parse_line(line: &[u8]) -> Result<Option<(String, String)>, ()> {
    let line = std::str::from_utf8(line).map_err(|_| ())?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let unexported = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    let (name, value) = unexported.unwrap_or(line).split_once('=').ok_or(())?;
    let name = name.trim();
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    // No environment variable can have such a name or value.
    if !is_name || value.contains('\0') {
        return Err(());
    }
    let value = match value.trim_start() {
        quoted if quoted.starts_with(['"', '\'']) => between_quotes(quoted)?,
        // Only a `#` at the beginning of a word starts a comment; inside a word it is part of the value.
        _ => {
            let remark = value.char_indices().zip(value.chars().skip(1));
            let end = remark.into_iter().find(|((_, before), c)| before.is_whitespace() && *c == '#');
            let end = end.map_or(value.len(), |((at, _), _)| at);
            value[..end].trim()
        }
    };
    Ok(Some((name.to_owned(), value.to_owned())))
}

/// The text between a quote and the next quote of the same kind. Only a comment may follow.
fn between_quotes(text: &str) -> Result<&str, ()> {
    let quote = text.chars().next().ok_or(())?;
    let (value, rest) = text[1..].split_once(quote).ok_or(())?;
    let is_remark = rest.trim_start().starts_with('#') && rest.starts_with(char::is_whitespace);
    if rest.trim().is_empty() || is_remark { Ok(value) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_literal_but_for_quotes() {
        for (text, read) in [
            ("", None),
            ("  # SECRET=1", None),
            ("A=1", Some(("A", "1"))),
            ("export A = 1 # one\r", Some(("A", "1"))),
            ("A=", Some(("A", ""))),
            ("A= # nothing", Some(("A", ""))),
            ("A=#1", Some(("A", "#1"))),
            ("A=\"two words\"", Some(("A", "two words"))),
            ("A='it is $5'", Some(("A", "it is $5"))),
            ("A=two words", Some(("A", "two words"))),
            ("A=two words # and more", Some(("A", "two words"))),
            ("A=two words\t#and more", Some(("A", "two words"))),
            ("A=x#y", Some(("A", "x#y"))),
            ("A=x #y", Some(("A", "x"))),
            ("export A=/a path/b", Some(("A", "/a path/b"))),
            ("export=5", Some(("export", "5"))),
            ("A=it's late", Some(("A", "it's late"))),
            (r"A=C:\dir\", Some(("A", r"C:\dir\"))),
            ("A=$ecret", Some(("A", "$ecret"))),
            ("A=${HOME}-1", Some(("A", "${HOME}-1"))),
            (r#"A="a\n$b #c\" # a remark"#, Some(("A", r"a\n$b #c\"))),
            (r#"A='a "b"'"#, Some(("A", r#"a "b""#))),
            ("A=\" x \"", Some(("A", " x "))),
            ("A=a=b", Some(("A", "a=b"))),
        ] {
            let read = read.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(parse_line(text.as_bytes()), Ok(read), "{text}");
        }
        for text in ["word", "two words=1", "A=\"open", "A='open", "A='a' b", "A='a'#b", "1A=two words", "=x", "A=\0"] {
            assert_eq!(parse_line(text.as_bytes()), Err(()), "{text}");
        }
        assert_eq!(parse_line(b"A=\xff"), Err(()));
    }

    #[test]
    fn lines_that_cannot_be_read_are_told_by_their_number() {
        let read = parse(b"\xef\xbb\xbfA=1\r\n\r\nnonsense\r\nB='2'");
        let is = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(read, [is("A", "1"), Err(3), is("B", "2")]);
    }

    proptest! {
        #[test]
        fn whatever_is_between_quotes_is_the_value(value in "[^'\r\n\0]*") {
            let text = format!("A='{value}'");
            prop_assert_eq!(parse_line(text.as_bytes()), Ok(Some(("A".to_owned(), value))));
        }

        #[test]
        fn a_word_is_its_own_value(value in "[!-~&&[^'\"#]][!-~]{0,20}") {
            prop_assert_eq!(parse_line(format!("A={value}").as_bytes()), Ok(Some(("A".to_owned(), value))));
        }
    }
}
