//! Writes the lines of a datagram.

use std::borrow::Cow;

use super::reader::with_key;
use super::validation::{self, LINE_SEPARATOR};
use super::{DATAGRAM_MAX, MessageStamp, UserId, check_name};

/// Encoding applies the same rules as decoding.
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

    /// The value must not contain line breaks.
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
        validate(value).map_err(with_key(key))?;
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
        check_user_id(id).map_err(with_key(key))?;
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
    Cow::Owned(text.replace("\r\n", "\n").replace(['\r', '\n'], &LINE_SEPARATOR.to_string()))
}

/// Stricter than [`Name`](crate::model::Name): a line separator is not allowed in a USER_ID.
pub(super) fn check_user_id(id: &UserId) -> Result<(), String> {
    check_name(id.name.as_str()).map_err(with_key("name"))
}
