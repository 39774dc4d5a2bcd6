//! Texts with limits. Lengths count Unicode scalar values, not bytes.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// Most characters a name may have.
pub const NAME_MAX: usize = 64;
/// Most characters an item's name may have in trade.
pub const ITEM_NAME_MAX: usize = 64;
/// Most characters a description may have.
pub const DESCRIPTION_MAX: usize = 256;

/// The name of a peer or a user: 1–64 characters, none of them a control character.
///
/// Cheap to clone: names are keys of every table in memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks the rule; the error says what was expected.
    pub fn new(text: &str) -> Result<Name, String> {
        check(text, 1, NAME_MAX).map(|()| Name(text.into()))
    }

    /// The name with a number behind it, shortened where that would be too long.
    pub fn numbered(&self, number: usize) -> Name {
        let number = number.to_string();
        let kept = self.0.chars().take(NAME_MAX - number.len());
        Name(kept.chain(number.chars()).collect::<String>().into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks that a text has from `min` to `max` characters.
pub fn check_length(text: &str, min: usize, max: usize) -> Result<(), String> {
    let length = text.chars().count();
    if length < min || length > max {
        return Err(format!("expected {min} to {max} characters, not {length}"));
    }
    Ok(())
}

/// Checks that a text has from `min` to `max` characters, none of them a control character.
pub fn check(text: &str, min: usize, max: usize) -> Result<(), String> {
    check_length(text, min, max)?;
    if text.chars().any(char::is_control) {
        return Err("expected no control characters".to_owned());
    }
    Ok(())
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Name::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_characters_not_bytes() {
        assert!(Name::new(&"ü".repeat(64)).is_ok());
        assert!(Name::new(&"ü".repeat(65)).is_err());
        assert_eq!(Name::new(&"ü".repeat(64)).unwrap().numbered(12).as_str(), format!("{}12", "ü".repeat(62)));
        assert_eq!(Name::new("al").unwrap().numbered(2).as_str(), "al2");
        assert!(Name::new("").is_err());
        assert!(Name::new("a\u{7}b").is_err());
        assert!(serde_json::from_str::<Name>("\"a\\nb\"").is_err());
        assert_eq!(serde_json::from_str::<Name>("\"a\\u00fcb\"").unwrap().as_str(), "aüb");
    }
}
