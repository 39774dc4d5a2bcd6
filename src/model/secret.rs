//! Secrets: random, compared in constant time, never shown.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// A bearer secret of 128 random bits, on the wire as 32 lowercase hex digits. `Debug` hides it. There is no
/// `PartialEq`: only [`Token::matches`] compares, in constant time.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// A new token from the system's randomness.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn random() -> Token {
        Token(random_hex::<16>())
    }

    /// A token as it was stored or received.
    pub fn from_text(text: impl Into<String>) -> Token {
        Token(text.into())
    }

    /// Compares in a time that does not depend on where the two differ.
    pub fn matches(&self, other: &Token) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// The secret itself, for the wire and the store. It must not be logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// `N` random bytes as lowercase hex.
///
/// # Panics
/// If the operating system has no randomness to give: nothing safe can be done then.
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    hex(&bytes)
}

/// The bytes of `2 * N` lowercase hex digits.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// Bytes as lowercase hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_random_hidden_and_comparable() {
        let (a, b) = (Token::random(), Token::random());
        assert_eq!(a.reveal().len(), 32);
        assert!(a.matches(&a.clone()) && !a.matches(&b));
        assert!(!a.matches(&Token::from_text("")));
        assert!(!format!("{a:?}").contains(a.reveal()));
    }
}
