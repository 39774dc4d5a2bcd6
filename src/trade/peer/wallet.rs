//! Payment details and postal address. They are read when needed and never stored.

use std::path::Path;

use serde_json::Value;

use crate::model::{CardNumber, Expiry, debug_fields, text};
use crate::trade::wire::ADDRESS_MAX;

/// Its `Debug` output shows neither card nor address.
#[derive(Clone)]
pub struct Wallet {
    pub cc_number: CardNumber,
    pub cc_exp: Expiry,
    /// Where goods go to, or come from.
    pub address: String,
}

debug_fields!(Wallet, |wallet| cc_number: wallet.cc_number);

impl Wallet {
    /// A JSON object with `cc_number`, `cc_exp` ("MM/YY") and `address`. Errors quote no value.
    pub fn read(path: &Path) -> Result<Wallet, String> {
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|error| format!("wallet {shown}: {error}"))?;
        let text =
            std::str::from_utf8(text::without_bom(&bytes)).map_err(|_| format!("wallet {shown}: expected UTF-8"))?;
        Wallet::parse(text).map_err(|wrong| format!("wallet {shown}: {wrong}"))
    }

    fn parse(text: &str) -> Result<Wallet, String> {
        let wallet: Value = serde_json::from_str(text).map_err(|error| {
            format!("expected a JSON object; line {}, column {} is none", error.line(), error.column())
        })?;
        let field = |name: &str| match wallet.get(name) {
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(Value::Null) | None => Err(format!("{name}: missing")),
            Some(_) => Err(format!("{name}: expected a text")),
        };
        let address = field("address")?;
        let length = address.chars().count();
        if length == 0 || length > ADDRESS_MAX {
            return Err(format!("address: expected 1 to {ADDRESS_MAX} characters, not {length}"));
        }
        Ok(Wallet {
            cc_number: CardNumber::new(field("cc_number")?).map_err(|wrong| format!("cc_number: {wrong}"))?,
            cc_exp: Expiry::parse(field("cc_exp")?).map_err(|wrong| format!("cc_exp: {wrong}"))?,
            address: address.to_owned(),
        })
    }
}

/// A warning if the file can be read by others.
pub fn warning(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        if mode & 0o077 != 0 {
            let path = path.display();
            return Some(format!("wallet {path} can be read by other users of this machine: chmod 600 {path}"));
        }
    }
    #[cfg(not(unix))]
    let _ = path; // permissions are not told in bits there
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_named_and_none_is_quoted() {
        let whole = r#"{"cc_number":"4111 1111 1111 1111","cc_exp":"12/39","address":"1 Elm St"}"#;
        let wallet = Wallet::parse(whole).unwrap();
        assert!(wallet.cc_number.passes_luhn());
        assert!(!format!("{wallet:?}").contains("4111") && !format!("{wallet:?}").contains("Elm"));
        for (text, said) in [
            ("", "expected a JSON object"),
            ("{}", "address: missing"),
            (r#"{"address":"","cc_number":"4111111111111111","cc_exp":"12/39"}"#, "address: expected 1 to"),
            (r#"{"address":"a","cc_exp":"12/39"}"#, "cc_number: missing"),
            (r#"{"address":"a","cc_number":4111111111111111,"cc_exp":"12/39"}"#, "cc_number: expected a text"),
            (r#"{"address":"a","cc_number":"4111x11111111111","cc_exp":"12/39"}"#, "cc_number: expected a card"),
            (r#"{"address":"a","cc_number":"4111111111111111","cc_exp":"2039"}"#, "cc_exp: expected"),
        ] {
            let error = Wallet::parse(text).unwrap_err();
            assert!(error.contains(said) && !error.contains("4111"), "{text}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_wallet_that_others_can_read_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, warns) in [(0o600, false), (0o644, true), (0o640, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(warning(file.path()).is_some(), warns, "{mode:o}");
        }
        assert!(Wallet::read(Path::new("/nowhere/wallet.json")).unwrap_err().contains("/nowhere/wallet.json"));
    }
}
