//! BLAKE3 digests, on the wire as 64 lowercase hex digits.

use std::fmt;

use super::{secret, serde_as_text};

/// The BLAKE3 digest of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Parses 64 lowercase hex digits.
    pub fn parse(text: &str) -> Result<Digest, String> {
        secret::from_hex(text).map(Digest).ok_or_else(|| "expected 64 lowercase hex digits".to_owned())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&secret::hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

serde_as_text!(Digest, Digest::parse, |digest, serializer| serializer.collect_str(digest));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_lowercase_hex_digits_both_ways() {
        let text = format!("{}{}", "09af".repeat(8), "f".repeat(32));
        let digest = Digest::parse(&text).unwrap();
        assert_eq!(digest.to_string(), text);
        assert_eq!((digest.0[0], digest.0[1], digest.0[31]), (0x09, 0xaf, 0xff));
        assert_eq!(serde_json::from_value::<Digest>(serde_json::json!(text)).unwrap(), digest);
        for wrong in [text[1..].to_owned(), text.to_uppercase(), format!("{text}0"), "é".repeat(32)] {
            assert!(Digest::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
