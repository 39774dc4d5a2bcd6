//! The servers that a user has confirmed once, for all programs that they run: a small JSON file of mode 600.
//!
//! A server is identified by its certificate: a known certificate at another address is the same server, another
//! certificate is another server. A server without a certificate is identified by its address alone. Nothing is cached
//! in memory, so that what one program learns holds for the others at once. The file is replaced as a whole, under a
//! lock; one that cannot be read is never replaced.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::Millis;
use crate::storage::{create_private_dir, files};

const FILE_NAME: &str = "known-servers.json";
/// A later format is refused.
const FORMAT: u64 = 1;
/// These are more than anybody confirms by hand.
pub const KNOWN_SERVERS_MAX: usize = 1_000;
/// Limits of the services of one server, and of the characters of an address or a service's name.
const SERVICES_MAX: usize = 64;
const TEXT_CHARS_MAX: usize = 300;
/// A larger file was not written by this program.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Another program holds the lock only while a small file is written.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// After an error, the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum KnownServersError {
    #[error("{path} is damaged ({detail}): move it away, and confirm your servers again")]
    Damaged { path: PathBuf, detail: String },
    /// A later version of this program has written it.
    #[error("{path} was written by a newer version of this program (format {found}): use that version")]
    NewerFormat { path: PathBuf, found: u64 },
    #[error("{path} holds {KNOWN_SERVERS_MAX} servers already: remove some")]
    Full { path: PathBuf },
    #[error("{path} stayed locked by another program: try again when that has ended")]
    Locked { path: PathBuf },
    #[error("{0}")]
    Invalid(String),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownServer {
    /// SHA-256 of its certificate, 64 lower-case hex digits; `None` for a server without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_sha256: Option<String>,
    /// Where it was reached last, as the user would write it: `host` or `host:port`.
    pub address: String,
    /// Its services, by name and port.
    #[serde(default)]
    pub serves: Vec<(String, u16)>,
    /// When it was confirmed, or reached at another address.
    pub at: Millis,
}

impl KnownServer {
    fn is_same_server(&self, other: &KnownServer) -> bool {
        match (&self.cert_sha256, &other.cert_sha256) {
            (Some(own), Some(others)) => own == others,
            (None, None) => self.address == other.address,
            _ => false,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct KnownServersFile {
    format: u64,
    servers: Vec<KnownServer>,
}

/// The part of the file that is parsed first.
#[derive(Deserialize)]
struct FormatVersion {
    format: u64,
}

/// The known servers of one user. Nothing is read or created before a method is called.
#[derive(Debug, Clone)]
pub struct KnownServers {
    dir: PathBuf,
}

impl KnownServers {
    pub fn in_dir(folder: impl Into<PathBuf>) -> KnownServers {
        KnownServers { dir: folder.into() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// The hex digits may be of either case. If the file cannot be read, no server may be taken as confirmed.
    pub fn is_confirmed(&self, cert_sha256: &str) -> Result<bool, KnownServersError> {
        Ok(self.find(cert_sha256)?.is_some())
    }

    pub fn find(&self, cert_sha256: &str) -> Result<Option<KnownServer>, KnownServersError> {
        let servers = self.all()?;
        let has_certificate = |of: &String| of.eq_ignore_ascii_case(cert_sha256);
        Ok(servers.into_iter().find(|server| server.cert_sha256.as_ref().is_some_and(has_certificate)))
    }

    /// All confirmed servers, in the order in which they were first confirmed.
    pub fn all(&self) -> Result<Vec<KnownServer>, KnownServersError> {
        let path = self.path();
        let failed = |error| KnownServersError::Io { path: path.clone(), error };
        let damaged = |detail: String| KnownServersError::Damaged { path: path.clone(), detail };
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(damaged(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        // The place is reported, not the content: that may be anything.
        let unread =
            |error: serde_json::Error| damaged(format!("see line {}, column {}", error.line(), error.column()));
        let FormatVersion { format } = serde_json::from_slice(&bytes).map_err(unread)?;
        if format > FORMAT {
            return Err(KnownServersError::NewerFormat { path, found: format });
        }
        let KnownServersFile { servers, .. } = serde_json::from_slice(&bytes).map_err(unread)?;
        for (place, server) in servers.iter().enumerate() {
            validate(server).map_err(|wrong| damaged(format!("server {}: {wrong}", place + 1)))?;
            if servers[..place].iter().any(|before| before.is_same_server(server)) {
                let what = if server.cert_sha256.is_some() { "certificate" } else { "address" };
                return Err(damaged(format!("server {}: its {what} was there before", place + 1)));
            }
        }
        Ok(servers)
    }

    /// Stores a server as confirmed; a known one gets the new address and services. An entry without a certificate is
    /// dropped once a server with a certificate has its address: going back needs a new confirmation. On disk when this
    /// returns; after an error the file is as it was.
    pub fn confirm(&self, server: KnownServer) -> Result<(), KnownServersError> {
        validate(&server).map_err(KnownServersError::Invalid)?;
        let _lock = self.lock()?;
        let mut servers = self.all()?;
        if server.cert_sha256.is_some() {
            servers.retain(|known| known.cert_sha256.is_some() || known.address != server.address);
        }
        match servers.iter().position(|known| known.is_same_server(&server)) {
            Some(place) if servers[place] == server => return Ok(()),
            Some(place) => servers[place] = server,
            None if servers.len() >= KNOWN_SERVERS_MAX => return Err(KnownServersError::Full { path: self.path() }),
            None => servers.push(server),
        }
        self.replace(&KnownServersFile { format: FORMAT, servers })
    }

    /// Locks the file while it is read and replaced: programs of one user may run side by side.
    fn lock(&self) -> Result<File, KnownServersError> {
        let path = self.dir.join(format!("{FILE_NAME}.lock"));
        let failed = |error| KnownServersError::Io { path: path.clone(), error };
        create_private_dir(&self.dir).map_err(failed)?;
        let file = files::private_file_options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_TIMEOUT => {
                    std::thread::sleep(LOCK_RETRY_INTERVAL)
                }
                Err(std::fs::TryLockError::WouldBlock) => return Err(KnownServersError::Locked { path }),
                Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    /// Writes a temporary file first: a reader always sees a complete file, even after a power cut.
    fn replace(&self, contents: &KnownServersFile) -> Result<(), KnownServersError> {
        let (path, temporary) = (self.path(), self.dir.join(format!("{FILE_NAME}.tmp")));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| KnownServersError::Io { path, error }
        };
        let mut text = serde_json::to_string_pretty(contents)
            .map_err(|error| KnownServersError::Invalid(format!("the servers cannot be written: {error}")))?;
        text.push('\n');
        // Left by a program that was killed; nobody else has it, because we hold the lock.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&temporary)(error)),
            _ => {}
        }
        let written = files::private_file_options()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(at(&temporary))?;
        std::fs::rename(&temporary, &path).map_err(at(&path))?;
        files::sync_dir(&self.dir).map_err(at(&self.dir))
    }
}

fn validate(server: &KnownServer) -> Result<(), String> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if server.cert_sha256.as_ref().is_some_and(|cert| cert.len() != 64 || !cert.bytes().all(is_hex)) {
        return Err("cert_sha256: expected 64 lower-case hex digits".to_owned());
    }
    let text = |text: &str| crate::model::text::check(text, 1, TEXT_CHARS_MAX);
    text(&server.address).map_err(|wrong| format!("address: {wrong}"))?;
    if server.serves.len() > SERVICES_MAX {
        return Err(format!("serves: expected at most {SERVICES_MAX} services, not {}", server.serves.len()));
    }
    server.serves.iter().try_for_each(|(name, _)| text(name).map_err(|wrong| format!("serves: {wrong}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cert(number: u32) -> String {
        format!("{number:064x}")
    }

    fn server(number: u32) -> KnownServer {
        KnownServer {
            cert_sha256: Some(cert(number)),
            address: format!("10.0.0.{number}"),
            serves: vec![("trade".to_owned(), 7001), ("registry".to_owned(), 9000)],
            at: Millis(5),
        }
    }

    #[test]
    fn confirmed_once_is_confirmed_for_all() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("config/p2s2");
        let known = KnownServers::in_dir(&folder);
        assert!(!known.is_confirmed(&cert(1)).unwrap());
        assert!(known.all().unwrap().is_empty() && !folder.exists());
        known.confirm(server(1)).unwrap();
        known.confirm(server(10)).unwrap();
        // Another program, or the same one started again.
        let other = KnownServers::in_dir(&folder);
        assert!(other.is_confirmed(&cert(1)).unwrap());
        assert!(other.is_confirmed(&cert(10).to_uppercase()).unwrap());
        assert!(!other.is_confirmed(&cert(2)).unwrap());
        assert!(!other.is_confirmed("").unwrap());
        assert_eq!(other.all().unwrap(), [server(1), server(10)]);
        // Its address may change; its position in the list does not.
        let moved = KnownServer { address: "example.org:7001".to_owned(), at: Millis(9), ..server(1) };
        other.confirm(moved.clone()).unwrap();
        other.confirm(moved.clone()).unwrap();
        assert_eq!(known.all().unwrap(), [moved.clone(), server(10)]);
        assert_eq!(known.find(&cert(1)).unwrap(), Some(moved));
        assert_eq!(known.find(&cert(3)).unwrap(), None);
    }

    #[test]
    fn a_server_without_a_certificate_is_its_address() {
        let home = tempfile::tempdir().unwrap();
        let known = KnownServers::in_dir(home.path());
        let at = |address: &str| KnownServer { cert_sha256: None, address: address.to_owned(), ..server(1) };
        known.confirm(at("10.0.0.1:8002")).unwrap();
        known.confirm(at("10.0.0.2:8002")).unwrap();
        known.confirm(KnownServer { at: Millis(9), ..at("10.0.0.2:8002") }).unwrap();
        assert_eq!(known.all().unwrap().len(), 2);
        assert!(!known.is_confirmed("").unwrap());
        // With a certificate it is another server, and the one without a certificate is no longer accepted in its
        // place.
        let with = KnownServer { address: "10.0.0.1:8002".to_owned(), ..server(1) };
        known.confirm(with.clone()).unwrap();
        assert_eq!(known.all().unwrap(), [KnownServer { at: Millis(9), ..at("10.0.0.2:8002") }, with]);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let known = KnownServers::in_dir(home.path());
        known.confirm(server(1)).unwrap();
        // A group's or others' right to read does not outlive the next change, nor does a killed program's file matter.
        std::fs::set_permissions(known.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let temporary = home.path().join("known-servers.json.tmp");
        std::fs::write(&temporary, "{\"form").unwrap();
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o666)).unwrap();
        known.confirm(server(2)).unwrap();
        let mode = std::fs::metadata(known.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
        assert_eq!(known.all().unwrap(), [server(1), server(2)]);
        assert!(!temporary.exists());
    }

    #[test]
    fn a_damaged_file_is_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let known = KnownServers::in_dir(home.path());
        let one = serde_json::to_string(&server(1)).unwrap();
        let upper = one.replace("000001", "00000A");
        for (text, cause) in [
            (String::new(), "is damaged (see line 1, column 0): move it away, and confirm your servers again"),
            ("{\"format\":1,\"servers\":[".to_owned(), "is damaged (see line 1, column 23)"),
            ("[]".to_owned(), "is damaged (see line 1"),
            ("{}".to_owned(), "is damaged (see line 1"),
            ("{\"format\":1}".to_owned(), "is damaged (see line 1"),
            ("{\"format\":1,\"servers\":[{}]}".to_owned(), "is damaged (see line 1"),
            ("\u{0}\u{0}\u{0}".to_owned(), "is damaged (see line 1"),
            (
                format!("{{\"format\":1,\"servers\":[{one},{one}]}}"),
                "is damaged (server 2: its certificate was there before)",
            ),
            (
                format!("{{\"format\":1,\"servers\":[{upper}]}}"),
                "is damaged (server 1: cert_sha256: expected 64 lower-case hex digits)",
            ),
            ("{\"format\":2,\"servers\":7}".to_owned(), "was written by a newer version of this program (format 2)"),
        ] {
            std::fs::write(known.path(), &text).unwrap();
            let path = known.path().display().to_string();
            for refused in [
                known.is_confirmed(&cert(1)).unwrap_err(),
                known.all().unwrap_err(),
                known.confirm(server(2)).unwrap_err(),
            ] {
                let refused = refused.to_string();
                assert!(refused.contains(cause) && refused.starts_with(&path), "{text:?}: {refused}");
            }
            assert_eq!(std::fs::read_to_string(known.path()).unwrap(), text);
        }
        // Unknown fields of a compatible later version are no damage.
        let text = format!("{{\"format\":1,\"x\":[],\"servers\":[{}]}}", one.replacen('{', "{\"y\":1,", 1));
        std::fs::write(known.path(), text).unwrap();
        assert_eq!(known.all().unwrap(), [server(1)]);
    }

    #[test]
    fn only_what_can_be_read_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let known = KnownServers::in_dir(home.path());
        for (wrong, cause) in [
            (KnownServer { cert_sha256: Some("AB".repeat(32)), ..server(1) }, "cert_sha256: expected 64"),
            (KnownServer { cert_sha256: Some(String::new()), ..server(1) }, "cert_sha256: expected 64"),
            (KnownServer { address: String::new(), ..server(1) }, "address: expected 1 to 300 characters"),
            (KnownServer { address: "a\nb".to_owned(), ..server(1) }, "address: expected no control characters"),
            (KnownServer { serves: vec![(String::new(), 1)], ..server(1) }, "serves: expected 1 to 300"),
            (
                KnownServer { serves: vec![("x".to_owned(), 1); 65], ..server(1) },
                "serves: expected at most 64 services, not 65",
            ),
        ] {
            let refused = known.confirm(wrong).unwrap_err().to_string();
            assert!(refused.starts_with(cause), "{refused}");
        }
        assert!(!known.path().exists());
    }

    #[test]
    fn there_is_a_bound() {
        let home = tempfile::tempdir().unwrap();
        let known = KnownServers::in_dir(home.path());
        let servers: Vec<KnownServer> = (0..KNOWN_SERVERS_MAX as u32).map(server).collect();
        known.replace(&KnownServersFile { format: FORMAT, servers }).unwrap();
        let refused = known.confirm(server(KNOWN_SERVERS_MAX as u32)).unwrap_err();
        assert!(matches!(refused, KnownServersError::Full { .. }), "{refused}");
        // A server that is already listed can still be updated.
        known.confirm(KnownServer { address: "there".to_owned(), ..server(3) }).unwrap();
        assert_eq!(known.all().unwrap().len(), KNOWN_SERVERS_MAX);
    }

    #[test]
    fn programs_side_by_side_lose_nothing() {
        let home = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let known = KnownServers::in_dir(home.path());
                scope.spawn(move || (0..5).for_each(|n| known.confirm(server(thread * 10 + n)).unwrap()));
            }
        });
        let known = KnownServers::in_dir(home.path()).all().unwrap();
        assert_eq!(known.len(), 40);
    }
}
