//! Our own certificate, and peers identified by the fingerprint of theirs. There is no certificate authority:
//! fingerprints are exchanged over a channel that is trusted already.

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

use crate::model::debug_fields;
use crate::model::secret::hex;

/// The DNS name that is in our certificates and that clients send.
pub const SERVER_NAME: &str = "p2s2";
/// Certificate and key are in one file, so that a crash during its creation leaves both or none.
pub const IDENTITY_FILE: &str = "identity.pem";

#[derive(Debug, thiserror::Error)]
pub enum TlsIdentityError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: {what}", path.display())]
    Content { path: PathBuf, what: String },
    #[error("making a certificate: {0}")]
    Generation(String),
    #[error("cert_sha256 must be 64 hex digits")]
    InvalidPin,
}

#[derive(Clone)]
pub struct TlsIdentity {
    pub(super) server_config: Arc<ServerConfig>,
    fingerprint: String,
}

impl TlsIdentity {
    /// The data directory's own certificate: self-signed, created once, stored in `identity.pem` with mode 600. A
    /// damaged file is an error and never replaced, because peers know its fingerprint.
    pub fn load_or_create(dir: &Path) -> Result<TlsIdentity, TlsIdentityError> {
        TlsIdentity::load_or_create_with_note(dir, "")
    }

    /// A new file begins with the note, which PEM parsers skip.
    pub fn load_or_create_with_note(dir: &Path, note: &str) -> Result<TlsIdentity, TlsIdentityError> {
        let path = dir.join(IDENTITY_FILE);
        let failed = |error| TlsIdentityError::File { path: path.clone(), error };
        let pem = read_or_create_secret(&path, || Ok(format!("{note}{}", generate_pem()?)), failed)?;
        TlsIdentity::from_pem(&path, &pem, &path, &pem)
    }

    /// A certificate (with its chain, leaf first) and key from elsewhere, both PEM.
    pub fn load(certificate: &Path, key: &Path) -> Result<TlsIdentity, TlsIdentityError> {
        TlsIdentity::from_pem(certificate, &read(certificate)?, key, &read(key)?)
    }

    fn from_pem(
        cert_path: &Path,
        cert_pem: &[u8],
        key_path: &Path,
        key_pem: &[u8],
    ) -> Result<TlsIdentity, TlsIdentityError> {
        let wrong = |path: &Path, what: &dyn fmt::Display| TlsIdentityError::Content {
            path: path.into(),
            what: what.to_string(),
        };
        // The parser's text is not shown: it would quote bytes of the file, even of a key.
        let cut = |path| wrong(path, &"it is damaged or cut short: restore a backup");
        let chain =
            CertificateDer::pem_slice_iter(cert_pem).collect::<Result<Vec<_>, _>>().map_err(|_| cut(cert_path))?;
        let leaf = chain.first().ok_or_else(|| wrong(cert_path, &"there is no certificate in it: restore a backup"))?;
        let fingerprint = fingerprint_of(leaf);
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
            pem::Error::NoItemsFound => wrong(key_path, &"there is no private key in it: restore a backup"),
            _ => cut(key_path),
        })?;
        let mut config = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsIdentityError::Generation(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| wrong(key_path, &error))?;
        // Connections are few and long; session tickets would be of no use.
        config.send_tls13_tickets = 0;
        Ok(TlsIdentity { server_config: Arc::new(config), fingerprint })
    }

    /// SHA-256 of the leaf certificate's DER, as 64 lowercase hex digits: `cert_sha256`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

debug_fields!(TlsIdentity, |identity| fingerprint: identity.fingerprint);

pub(super) fn fingerprint_of(certificate: &CertificateDer<'_>) -> String {
    hex(digest(&SHA256, certificate).as_ref())
}

/// A client that accepts exactly the certificate with the fingerprint `pin`. Without one it accepts any, and verifies
/// the server in another way: see [`Conn::tls_client_unpinned`](super::conn::Conn::tls_client_unpinned).
pub(super) fn client_config(pin: Option<&str>) -> Result<Arc<ClientConfig>, TlsIdentityError> {
    if pin.is_some_and(|pin| pin.len() != 64 || !pin.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Err(TlsIdentityError::InvalidPin);
    }
    let provider = crypto_provider();
    let verifier = PinVerifier { pin: pin.map(str::to_ascii_lowercase), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsIdentityError::Generation(error.to_string()))?
        .dangerous() // only in that the verifier is ours
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(super) fn pin_verifier(pin: &str) -> Arc<dyn ServerCertVerifier> {
    Arc::new(PinVerifier { pin: Some(pin.to_owned()), provider: crypto_provider() })
}

pub(super) fn server_name() -> ServerName<'static> {
    // Every TLS test proves it: the constant is a valid DNS name.
    ServerName::try_from(SERVER_NAME).expect("a constant that is a valid name")
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's certificate has the fingerprint {got}, not {expected} as expected")]
pub struct PinMismatch {
    pub expected: String,
    pub got: String,
}

/// Checks nothing but that the leaf is the pinned certificate (if there is a pin), and that the other end has its key.
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
        let wrong = PinMismatch { expected: pin.clone(), got };
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

pub(super) fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn generate_pem() -> Result<String, TlsIdentityError> {
    let making = |error: rcgen::Error| TlsIdentityError::Generation(error.to_string());
    let names = [SERVER_NAME, "localhost", "127.0.0.1"].map(str::to_owned).to_vec();
    let made = rcgen::generate_simple_self_signed(names).map_err(making)?;
    Ok(made.cert.pem() + &made.signing_key.serialize_pem())
}

/// The content of a file that is created by the first process that needs it.
pub(crate) fn read_or_create_secret<E>(
    path: &Path,
    make: impl FnOnce() -> Result<String, E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<Vec<u8>, E> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            write_secret_once(path, &make()?).map_err(&failed)?;
            // Read again: another process may have created it first, and then its secret is ours.
            fs::read(path).map_err(failed)
        }
        content => {
            let content = content.map_err(failed)?;
            warn_if_readable_by_others(path);
            Ok(content)
        }
    }
}

/// Creates the file, whole and synced, unless it exists.
fn write_secret_once(path: &Path, content: &str) -> io::Result<()> {
    // Another process may do the same: each writes a temporary file of its own.
    let unfinished = path.with_extension(format!("new-{}", std::process::id()));
    let result = write_secret(&unfinished, content).and_then(|()| rename_if_absent(&unfinished, path));
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

/// Never replaces an existing file, whose fingerprint may be known already.
fn rename_if_absent(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        // The file system has no hard links.
        Err(_) => fs::rename(from, to)?,
    }
    #[cfg(unix)]
    if let Some(dir) = to.parent() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsIdentityError> {
    fs::read(path).map_err(|error| TlsIdentityError::File { path: path.into(), error })
}

fn warn_if_readable_by_others(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        if metadata.permissions().mode() & 0o077 != 0 {
            warn!("{}: others may read this key; it should have mode 600", path.display());
        }
    }
    #[cfg(not(unix))]
    let _ = path; // permissions are those of the folder there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = TlsIdentity::load_or_create(dir.path()).unwrap();
        let loaded = TlsIdentity::load_or_create(dir.path()).unwrap();
        assert_eq!(made.fingerprint(), loaded.fingerprint());
        assert_eq!(made.fingerprint().len(), 64);
        assert!(client_config(Some(made.fingerprint())).is_ok());
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, [IDENTITY_FILE]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join(IDENTITY_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let path = dir.path().join(IDENTITY_FILE);
        assert_eq!(TlsIdentity::load(&path, &path).unwrap().fingerprint(), made.fingerprint());
    }

    #[test]
    fn processes_that_make_one_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        write_secret_once(&path, &generate_pem().unwrap()).unwrap();
        let first = TlsIdentity::load_or_create(dir.path()).unwrap();
        write_secret_once(&path, &generate_pem().unwrap()).unwrap();
        assert_eq!(TlsIdentity::load_or_create(dir.path()).unwrap().fingerprint(), first.fingerprint());
    }

    #[test]
    fn a_damaged_identity_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        fs::write(&path, "nothing").unwrap();
        let error = TlsIdentity::load_or_create(dir.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: there is no certificate in it: restore a backup", path.display()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "nothing");
        let whole = generate_pem().unwrap();
        let key_at = whole.find("-----BEGIN PRIVATE").unwrap();
        for (kept, said) in [
            (key_at / 2, "it is damaged or cut short"),
            (key_at, "there is no private key in it"),
            (key_at + 60, "it is damaged or cut short"),
        ] {
            fs::write(&path, &whole[..kept]).unwrap();
            let error = TlsIdentity::load_or_create(dir.path()).unwrap_err().to_string();
            assert_eq!(error, format!("{}: {said}: restore a backup", path.display()));
        }
        let absent = dir.path().join("absent");
        assert!(matches!(TlsIdentity::load_or_create(&absent), Err(TlsIdentityError::File { .. })));
    }

    #[test]
    fn a_pin_is_64_hex_digits() {
        for bad in ["", "abc", &"g".repeat(64), &"a".repeat(65)] {
            assert!(matches!(client_config(Some(bad)), Err(TlsIdentityError::InvalidPin)));
        }
        assert!(client_config(Some(&"Ab".repeat(32))).is_ok());
    }
}
