//! The cluster key: a secret that the components of one shop share. It is never sent: both ends of a link prove that
//! they have it (HMAC-SHA256 over nonces that both have just made), see [`super::link`].

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::hmac;

use super::tls::read_or_create_secret;
use crate::model::secret;

pub const FILE_NAME: &str = "cluster.key";
/// Random bytes of a key; the file has twice as many hex digits.
const KEY_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum ClusterKeyError {
    #[error("the cluster key {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the cluster key {}: expected 64 hex digits", path.display())]
    Malformed { path: PathBuf },
}

/// `Debug` does not show it.
#[derive(Clone)]
pub struct ClusterKey(Arc<hmac::Key>);

impl ClusterKey {
    /// The key in that file, which the first component that needs it creates, with mode 600. A file that holds
    /// something else is an error and never replaced, because other components have the key.
    pub fn load_or_create(path: &Path) -> Result<ClusterKey, ClusterKeyError> {
        let failed = |source| ClusterKeyError::File { path: path.into(), source };
        let content = read_or_create_secret(path, || Ok(format!("{}\n", random_key_hex())), failed)?;
        let text = std::str::from_utf8(&content).unwrap_or_default();
        let bytes = key_from_hex(text.trim()).ok_or_else(|| ClusterKeyError::Malformed { path: path.into() })?;
        Ok(ClusterKey(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes))))
    }

    #[cfg(test)]
    pub fn random() -> ClusterKey {
        ClusterKey(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, random_key_hex().as_bytes())))
    }

    /// The proof (hex) that its author has the key, bound to these parts.
    pub(super) fn sign(&self, parts: &[&str]) -> String {
        secret::hex(hmac::sign(&self.0, &encode_parts(parts)).as_ref())
    }

    /// Whether the proof of these parts was made with this key; in constant time.
    pub(super) fn verify(&self, parts: &[&str], proof: &str) -> bool {
        key_from_hex(proof).is_some_and(|proof| hmac::verify(&self.0, &encode_parts(parts), &proof).is_ok())
    }
}

/// Each part behind its length, so that no two lists of parts have the same encoding.
fn encode_parts(parts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

fn random_key_hex() -> String {
    secret::random_hex::<KEY_BYTES>()
}

/// The digits may be of either case.
fn key_from_hex(text: &str) -> Option<[u8; KEY_BYTES]> {
    secret::from_hex(&text.to_ascii_lowercase())
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn whoever_comes_first_makes_the_key_and_all_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let made = ClusterKey::load_or_create(&path).unwrap();
        let loaded = ClusterKey::load_or_create(&path).unwrap();
        let proof = made.sign(&["a", "b"]);
        assert!(loaded.verify(&["a", "b"], &proof));
        assert!(!loaded.verify(&["ab", ""], &proof) && !loaded.verify(&["a"], &proof));
        for wrong in ["", "x", &"0".repeat(64), &"g".repeat(64), &"ü".repeat(32)] {
            assert!(!loaded.verify(&["a", "b"], wrong));
        }
        assert!(!ClusterKey::random().verify(&["a", "b"], &proof));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(!format!("{made:?}").contains(text.trim()));
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for content in [&b"abc"[..], b"", b"\xff\xfe"] {
            fs::write(&path, content).unwrap();
            let error = ClusterKey::load_or_create(&path).unwrap_err();
            assert!(error.to_string().ends_with("cluster.key: expected 64 hex digits"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        let absent = dir.path().join("no").join("key");
        assert!(matches!(ClusterKey::load_or_create(&absent), Err(ClusterKeyError::File { .. })));
    }
}
