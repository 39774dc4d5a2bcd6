//! TLS identities: our own certificate, and a peer known by the fingerprint of its.
//!
//! No certificate authority: the fingerprint was told over a channel that is trusted already.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, ServerConfig, SignatureScheme};

use crate::model::secret::hex;

/// The name that our certificates bear and that clients ask for.
pub const SERVER_NAME: &str = "p2s2";

/// Certificate and key in one file: so a crash while it is made leaves both or none.
pub const IDENTITY_FILE: &str = "identity.pem";

/// Why there is no identity, or no pin.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file that could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file that holds something else.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The certificate could not be made.
    #[error("making a certificate: {0}")]
    Making(String),
    /// Not a fingerprint.
    #[error("cert_sha256 must be 64 hex digits")]
    BadPin,
}

/// A certificate with its key, ready to be presented.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    fingerprint: String,
}

impl Identity {
    /// The data dir's own certificate: self-signed, made once, kept in `identity.pem` with mode 600.
    ///
    /// # Errors
    /// [`IdentityError`] when the file cannot be read or written, or holds something else: a damaged
    /// one is never replaced, because peers know its fingerprint.
    pub fn load_or_create(dir: &Path) -> Result<Identity, IdentityError> {
        Identity::load_or_create_noted(dir, "")
    }

    /// The same; a new one's file begins with a note, which readers of PEM skip.
    ///
    /// # Errors
    /// As [`load_or_create`](Identity::load_or_create).
    pub fn load_or_create_noted(dir: &Path, note: &str) -> Result<Identity, IdentityError> {
        let path = dir.join(IDENTITY_FILE);
        match fs::read(&path) {
            Ok(pem) => {
                warn_if_others_may_read(&path);
                Identity::from_pem(&path, &pem, &path, &pem)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let pem = format!("{note}{}", make_pem()?);
                store_once(&path, &pem).map_err(|error| IdentityError::File { path: path.clone(), error })?;
                // Read again: another process may have been quicker, and then its is ours.
                let pem = read(&path)?;
                Identity::from_pem(&path, &pem, &path, &pem)
            }
            Err(error) => Err(IdentityError::File { path, error }),
        }
    }

    /// A certificate (with its chain, leaf first) and key from elsewhere, both PEM.
    ///
    /// # Errors
    /// [`IdentityError`] when a file cannot be read, or holds something else.
    pub fn load(certificate: &Path, key: &Path) -> Result<Identity, IdentityError> {
        Identity::from_pem(certificate, &read(certificate)?, key, &read(key)?)
    }

    fn from_pem(cert_path: &Path, cert_pem: &[u8], key_path: &Path, key_pem: &[u8]) -> Result<Identity, IdentityError> {
        let wrong =
            |path: &Path, what: &dyn fmt::Display| IdentityError::Content { path: path.into(), what: what.to_string() };
        // What the parser says would quote bytes of the file, and of a key's at that.
        let cut = |path| wrong(path, &"it is damaged or cut short: restore a backup");
        let chain =
            CertificateDer::pem_slice_iter(cert_pem).collect::<Result<Vec<_>, _>>().map_err(|_| cut(cert_path))?;
        let leaf = chain.first().ok_or_else(|| wrong(cert_path, &"there is no certificate in it: restore a backup"))?;
        let fingerprint = fingerprint_of(leaf);
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
            pem::Error::NoItemsFound => wrong(key_path, &"there is no private key in it: restore a backup"),
            _ => cut(key_path),
        })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| IdentityError::Making(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| wrong(key_path, &error))?;
        // Connections are few and long; tickets would be bytes that nobody asks for.
        config.send_tls13_tickets = 0;
        Ok(Identity { config: Arc::new(config), fingerprint })
    }

    /// SHA-256 of the leaf certificate's DER, in 64 lowercase hex digits: `cert_sha256`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// For the server's side of a TLS connection.
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate's DER, in 64 lowercase hex digits.
pub(super) fn fingerprint_of(certificate: &CertificateDer<'_>) -> String {
    hex(digest(&SHA256, certificate).as_ref())
}

/// For a client that takes exactly one certificate: the one with that fingerprint.
///
/// # Errors
/// [`IdentityError::BadPin`] unless the pin is 64 hex digits.
pub fn pinned_client_config(pin: &str) -> Result<Arc<ClientConfig>, IdentityError> {
    let is_pin = pin.len() == 64 && pin.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_pin {
        return Err(IdentityError::BadPin);
    }
    client_config(Some(pin.to_ascii_lowercase()))
}

fn client_config(pin: Option<String>) -> Result<Arc<ClientConfig>, IdentityError> {
    let provider = provider();
    let verifier = PinVerifier { pin, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| IdentityError::Making(error.to_string()))?
        .dangerous() // only in that the verifier is ours
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a client that takes any certificate, and has another way to find out whose it is: see
/// [`Conn::tls_client_unpinned`](super::conn::Conn::tls_client_unpinned).
pub(super) fn unpinned_client_config() -> Result<Arc<ClientConfig>, IdentityError> {
    client_config(None)
}

/// The verifier alone, for tests that set up the rest otherwise.
#[cfg(test)]
pub(super) fn pin_verifier(pin: &str) -> Arc<dyn ServerCertVerifier> {
    Arc::new(PinVerifier { pin: Some(pin.to_owned()), provider: provider() })
}

/// The name that clients ask for.
pub(super) fn server_name() -> ServerName<'static> {
    // Proved by every TLS test: the constant is a valid DNS name.
    ServerName::try_from(SERVER_NAME).expect("a constant that is a valid name")
}

/// The other end is not who it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's certificate has the fingerprint {got}, not {expected} as expected")]
pub struct WrongPin {
    /// The fingerprint that was told.
    pub expected: String,
    /// The one presented.
    pub got: String,
}

/// Checks one thing, that the leaf is the one certificate (if there is a pin); and that the other end has
/// its key.
#[derive(Debug)]
struct PinVerifier {
    pin: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(pin) = &self.pin else { return Ok(ServerCertVerified::assertion()) };
        let got = fingerprint_of(end_entity);
        if got == *pin {
            return Ok(ServerCertVerified::assertion());
        }
        let wrong = WrongPin { expected: pin.clone(), got };
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(wrong)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn make_pem() -> Result<String, IdentityError> {
    let making = |error: rcgen::Error| IdentityError::Making(error.to_string());
    let names = [SERVER_NAME, "localhost", "127.0.0.1"].map(str::to_owned).to_vec();
    let made = rcgen::generate_simple_self_signed(names).map_err(making)?;
    Ok(made.cert.pem() + &made.signing_key.serialize_pem())
}

/// Puts the file there whole and synced, unless there is one.
pub(crate) fn store_once(path: &Path, content: &str) -> io::Result<()> {
    // Another process may be at it too: each writes its own.
    let unfinished = path.with_extension(format!("new-{}", std::process::id()));
    let result = write_secret(&unfinished, content).and_then(|()| put_in_place(&unfinished, path));
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != ErrorKind::NotFound
    {
        warn!("{}: {error}", unfinished.display());
    }
    result
}

fn write_secret(path: &Path, content: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// Renames, but never over a file that is there: that one's fingerprint may be known already.
fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        // A file system without links.
        Err(_) => fs::rename(from, to)?,
    }
    #[cfg(unix)]
    if let Some(dir) = to.parent() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|error| IdentityError::File { path: path.into(), error })
}

pub(crate) fn warn_if_others_may_read(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        if metadata.permissions().mode() & 0o077 != 0 {
            warn!("{}: others may read this key; it should have mode 600", path.display());
        }
    }
    #[cfg(not(unix))]
    let _ = path; // permissions are the folder's there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::load_or_create(dir.path()).unwrap();
        let loaded = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(made.fingerprint(), loaded.fingerprint());
        assert_eq!(made.fingerprint().len(), 64);
        assert!(pinned_client_config(made.fingerprint()).is_ok());
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, [IDENTITY_FILE]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join(IDENTITY_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let path = dir.path().join(IDENTITY_FILE);
        assert_eq!(Identity::load(&path, &path).unwrap().fingerprint(), made.fingerprint());
    }

    #[test]
    fn processes_that_make_one_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        store_once(&path, &make_pem().unwrap()).unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        store_once(&path, &make_pem().unwrap()).unwrap();
        assert_eq!(Identity::load_or_create(dir.path()).unwrap().fingerprint(), first.fingerprint());
    }

    #[test]
    fn a_damaged_identity_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        fs::write(&path, "nothing").unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: there is no certificate in it: restore a backup", path.display()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "nothing");
        let whole = make_pem().unwrap();
        let key_at = whole.find("-----BEGIN PRIVATE").unwrap();
        for (kept, said) in [
            (key_at / 2, "it is damaged or cut short"),
            (key_at, "there is no private key in it"),
            (key_at + 60, "it is damaged or cut short"),
        ] {
            fs::write(&path, &whole[..kept]).unwrap();
            let error = Identity::load_or_create(dir.path()).unwrap_err().to_string();
            assert_eq!(error, format!("{}: {said}: restore a backup", path.display()));
        }
        let absent = dir.path().join("absent");
        assert!(matches!(Identity::load_or_create(&absent), Err(IdentityError::File { .. })));
    }

    #[test]
    fn a_pin_is_64_hex_digits() {
        for bad in ["", "abc", &"g".repeat(64), &"a".repeat(65)] {
            assert!(matches!(pinned_client_config(bad), Err(IdentityError::BadPin)));
        }
        assert!(pinned_client_config(&"Ab".repeat(32)).is_ok());
    }
}
