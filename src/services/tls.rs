//! How a process guards its listeners: which certificate they present, and when they may do without one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::net::tls::TlsIdentity;
use crate::storage::create_private_dir;

/// First line of a certificate file that was created where trade has not run. Such a file is no sign that trade's
/// database is missing.
pub const CREATED_WITHOUT_TRADE: &str = "Made before trade was ever served here.\n";

/// How listeners beyond loopback are guarded.
#[derive(Debug, Clone, Default)]
pub struct TlsConfig {
    /// Present the data dir's own certificate unless `files` names another.
    pub own_certificate: bool,
    /// A certificate and its private key, PEM.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Allow connections from other hosts without TLS.
    pub insecure: bool,
}

impl TlsConfig {
    /// Whether a certificate is configured, be it the data dir's own.
    pub fn has_certificate(&self) -> bool {
        self.own_certificate || self.files.is_some()
    }

    /// Whether listeners beyond loopback are allowed: with TLS, or without on explicit request.
    pub fn is_guarded(&self) -> bool {
        self.has_certificate() || self.insecure
    }

    /// The certificate to present, if any. Beyond loopback one is required unless the configuration is `insecure`.
    pub fn identity(&self, bind: IpAddr, data_dir: &Path) -> anyhow::Result<Option<Arc<TlsIdentity>>> {
        if let Some((cert, key)) = &self.files {
            return Ok(Some(Arc::new(TlsIdentity::load(cert, key)?)));
        }
        if self.own_certificate {
            // A component that runs alone on a new machine has no data dir yet.
            create_private_dir(data_dir).with_context(|| format!("cannot make the folder {}", data_dir.display()))?;
            return Ok(Some(Arc::new(TlsIdentity::load_or_create_with_note(data_dir, CREATED_WITHOUT_TRADE)?)));
        }
        if !bind.is_loopback() && !self.insecure {
            bail!(
                "--bind {bind} is open to other hosts: say --tls (with the data dir's own certificate) or --insecure"
            );
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_where_there_is_no_folder_yet() {
        let dir = tempfile::tempdir().unwrap();
        let tls = TlsConfig { own_certificate: true, ..TlsConfig::default() };
        let (loopback, fresh) = ("127.0.0.1".parse().unwrap(), dir.path().join("data/state"));
        let made = tls.identity(loopback, &fresh).unwrap().unwrap();
        assert_eq!(tls.identity(loopback, &fresh).unwrap().unwrap().fingerprint(), made.fingerprint());
    }

    #[test]
    fn beyond_loopback_there_is_tls_or_a_word_of_the_operator() {
        let dir = tempfile::tempdir().unwrap();
        let none = TlsConfig::default();
        let everywhere = "0.0.0.0".parse().unwrap();
        assert!(none.identity("127.0.0.1".parse().unwrap(), dir.path()).unwrap().is_none());
        let refused = none.identity(everywhere, dir.path()).err().unwrap().to_string();
        assert!(refused.contains("--tls") && refused.contains("--insecure"), "{refused}");
        assert!(TlsConfig { insecure: true, ..none.clone() }.identity(everywhere, dir.path()).unwrap().is_none());
        assert!(TlsConfig { own_certificate: true, ..none }.identity(everywhere, dir.path()).unwrap().is_some());
    }
}
