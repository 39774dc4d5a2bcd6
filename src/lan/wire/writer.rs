//! Writes the lines of a datagram.

use std::borrow::Cow;

use super::validation::{self, LINE_SEPARATOR};
use super::{DATAGRAM_MAX, MessageStamp, UserId};

/// The text of a datagram, line by line. Encoding applies the same rules as decoding.
pub struct DatagramWriter {
    text: String,
    /// Key and length of the longest value, to be named if the datagram is too large.
    longest: (&'static str, usize),
}

impl DatagramWriter {
    pub fn begin(type_name: &str) -> DatagramWriter {
        let mut writer = DatagramWriter { text: String::with_capacity(256), longest: ("TYPE", 0) };
        writer.line("TYPE", type_name);
        writer
    }

    /// Writes a line. The value must not contain line breaks.
    pub fn line(&mut self, key: &'static str, value: &str) {
        if value.len() > self.longest.1 {
            self.longest = (key, value.len());
        }
        self.text.push_str(key);
        self.text.push(':');
        // Decoding drops one space after the colon: this one instead of the value's own.
        if value.starts_with(' ') {
            self.text.push(' ');
        }
        self.text.push_str(value);
        self.text.push('\n');
    }

    pub fn checked(
        &mut self,
        key: &'static str,
        value: &str,
        validate: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        validate(value).map_err(|problem| format!("{key}: {problem}"))?;
        self.line(key, value);
        Ok(())
    }

    /// Writes a text with its line breaks encoded; `validate` may forbid them.
    pub fn text(
        &mut self,
        key: &'static str,
        value: &str,
        validate: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        self.checked(key, &with_line_separators(value), validate)
    }

    pub fn user_id(&mut self, key: &'static str, id: &UserId) -> Result<(), String> {
        check_user_id(id).map_err(|problem| format!("{key}: {problem}"))?;
        self.line(key, &id.to_string());
        Ok(())
    }

    pub fn stamp(&mut self, stamp: &MessageStamp) -> Result<(), String> {
        if let Some(timestamp) = stamp.timestamp {
            self.line("TIMESTAMP", &timestamp.to_string());
        }
        stamp.message_id.as_ref().map_or(Ok(()), |id| self.checked("MESSAGE_ID", id, validation::check_id))
    }

    pub fn finish(mut self) -> Result<Vec<u8>, String> {
        self.text.push('\n');
        if self.text.len() > DATAGRAM_MAX {
            let (key, length) = (self.longest.0, self.text.len());
            return Err(format!("{key}: too long: the message has {length} bytes, expected at most {DATAGRAM_MAX}"));
        }
        Ok(self.text.into_bytes())
    }
}

/// Replaces line breaks (CR LF, CR or LF) by U+2028.
fn with_line_separators(text: &str) -> Cow<'_, str> {
    if !text.contains(['\r', '\n']) {
        return Cow::Borrowed(text);
    }
    let mut with_line_separators = String::with_capacity(text.len() + 16);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\r' | '\n' => {
                if c == '\r' {
                    characters.next_if_eq(&'\n');
                }
                with_line_separators.push(LINE_SEPARATOR);
            }
            other => with_line_separators.push(other),
        }
    }
    Cow::Owned(with_line_separators)
}

/// Stricter than [`Name`](crate::model::Name): a line separator is not allowed in a USER_ID.
pub(super) fn check_user_id(id: &UserId) -> Result<(), String> {
    validation::check_printable(id.name.as_str(), 1, crate::model::text::NAME_MAX)
        .map_err(|problem| format!("name: {problem}"))
}
