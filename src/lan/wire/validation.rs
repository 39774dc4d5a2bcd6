//! The rules for values, applied both in decoding and in encoding.

use super::ID_MAX;
use crate::model::text;

/// The encoding of a line break inside a value.
pub(super) const LINE_SEPARATOR: char = '\u{2028}';
pub(super) const QUOTED_MAX: usize = 40;

/// A received value for an error text: shortened and without control characters.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

pub(super) fn check_printable(text: &str, min: usize, max: usize) -> Result<(), String> {
    text::check(text, min, max)?;
    if text.contains(LINE_SEPARATOR) {
        return Err("expected no line breaks".to_owned());
    }
    Ok(())
}

pub(super) fn check_id(text: &str) -> Result<(), String> {
    check_printable(text, 1, ID_MAX)
}
