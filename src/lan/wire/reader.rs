//! Reads the lines of a datagram by key. Lines are borrowed from the datagram. Work and memory are bounded for any
//! input: at most [`LINES_MAX`] lines are read.

use super::validation::{self, LINE_SEPARATOR, quoted};
use super::{DATAGRAM_MAX, LINES_MAX, MessageStamp, UserId};

pub struct DatagramReader<'a> {
    lines: [(&'a str, &'a str); LINES_MAX],
    count: usize,
}

impl<'a> DatagramReader<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<DatagramReader<'a>, String> {
        if datagram.len() > DATAGRAM_MAX {
            return Err(format!("datagram: expected at most {DATAGRAM_MAX} bytes, not {}", datagram.len()));
        }
        let text = std::str::from_utf8(datagram).map_err(|_| "datagram: expected UTF-8".to_owned())?;
        // Some editors and libraries start every text with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = DatagramReader { lines: [("", ""); LINES_MAX], count: 0 };
        let mut rest = text;
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.is_empty() {
                if !after.trim_ascii().is_empty() {
                    return Err(format!("line {}: expected nothing behind the empty line", reader.count + 2));
                }
                break;
            }
            reader.add(line)?;
            rest = after;
        }
        Ok(reader)
    }

    fn add(&mut self, line: &'a str) -> Result<(), String> {
        let number = self.count + 1;
        if self.count == LINES_MAX {
            return Err(format!("line {number}: expected at most {LINES_MAX} lines"));
        }
        let (key, value) =
            line.split_once(':').ok_or_else(|| format!("line {number}: expected KEY:VALUE, found no colon"))?;
        if key.is_empty() {
            return Err(format!("line {number}: expected a key before the colon"));
        }
        if self.get(key).is_some() {
            let is_plain = key.len() <= 32 && key.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let key = if is_plain { key.to_owned() } else { quoted(key) };
            return Err(format!("{key}: expected once, found again in line {number}"));
        }
        self.lines[self.count] = (key, value.strip_prefix(' ').unwrap_or(value));
        self.count += 1;
        Ok(())
    }

    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.lines[..self.count].iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    pub fn require(&self, key: &str) -> Result<&'a str, String> {
        self.get(key).ok_or_else(|| missing_key(key))
    }

    pub fn user_id(&self, key: &str) -> Result<UserId, String> {
        UserId::parse(self.require(key)?).map_err(with_key(key))
    }

    /// A text with line breaks decoded; `validate` may forbid them.
    pub fn text(&self, key: &str, validate: impl Fn(&str) -> Result<(), String>) -> Result<String, String> {
        let text = self.require(key)?.replace(LINE_SEPARATOR, "\n");
        validate(&text).map_err(with_key(key))?;
        Ok(text)
    }

    pub fn id(&self, key: &str) -> Result<Option<String>, String> {
        let Some(id) = self.get(key) else { return Ok(None) };
        validation::check_id(id).map_err(with_key(key))?;
        Ok(Some(id.to_owned()))
    }

    pub fn stamp(&self) -> Result<MessageStamp, String> {
        let timestamp = self.get("TIMESTAMP").map(|text| {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let is_fraction = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
            let seconds = parse_digits(whole).filter(|_| is_fraction);
            seconds.ok_or_else(|| format!("TIMESTAMP: expected Unix seconds, not {}", quoted(text)))
        });
        Ok(MessageStamp { timestamp: timestamp.transpose()?, message_id: self.id("MESSAGE_ID")? })
    }
}

/// Parses digits only (`u64::from_str` also accepts a `+`).
pub(super) fn parse_digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

pub(super) fn missing_key(key: &str) -> String {
    format!("{key}: missing")
}

pub(super) fn with_key(key: &str) -> impl Fn(String) -> String + '_ {
    move |problem| format!("{key}: {problem}")
}
