//! A connection to a registry: typed calls, each with a deadline. For a node, and for who measures.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::wire::answers::{Answer, Held};
use super::wire::{
    Changes, FileEntry, FileName, Followed, HostEntry, Hostname, List, Listing, Ping, Publish, Register, Request,
    Seconds, Unpublish, Wanted, requests,
};
use crate::model::Name;
use crate::net::conn::{Conn, ConnError, ConnReader, ConnWriter};
use crate::net::lines::{LineLimits, LineReader};

/// Most bytes of an answer: a page of a list, with room for hosts that have very many files.
const ANSWER_MAX: usize = 256 << 20;

/// Most characters of a server's own words that are passed on, and shown.
const REASON_MAX: usize = 500;

/// The certificate that a registry must present: its SHA-256, 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin(String);

impl Pin {
    /// Checks that it is a fingerprint.
    ///
    /// # Errors
    /// What was expected.
    pub fn new(text: &str) -> Result<Pin, String> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("expected 64 hex digits".to_owned());
        }
        Ok(Pin(text.to_ascii_lowercase()))
    }

    /// The fingerprint.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry says no, and why.
    #[error("{0}")]
    Refused(String),
    /// There is no connection (any more): of a change it is not known whether it was made.
    #[error("no connection to the registry: {0}")]
    Gone(String),
    /// It said something that is no answer to this.
    #[error("the registry gave no proper answer: {0}")]
    Unexpected(String),
}

/// One connection to a registry. Calls of several threads take turns; after an error other than a refusal it is
/// over.
pub struct RegistryClient {
    timeout: Duration,
    local_addr: Option<SocketAddr>,
    open: Mutex<Open>,
    writer: ConnWriter,
    is_over: AtomicBool,
}

struct Open {
    reader: LineReader<ConnReader>,
}

impl RegistryClient {
    /// Connects, with TLS if there is a pin; `timeout` is for that, and for every call.
    ///
    /// # Errors
    /// [`RegistryError::Gone`]: nobody is there, or not the one that it must be.
    pub fn connect(at: SocketAddr, tls: Option<Pin>, timeout: Duration) -> Result<RegistryClient, RegistryError> {
        let gone = |error: ConnError| RegistryError::Gone(format!("{at}: {error}"));
        let deadline = Instant::now() + timeout;
        let stream = TcpStream::connect_timeout(&at, timeout).map_err(|error| gone(error.into()))?;
        stream.set_nodelay(true).map_err(|error| gone(error.into()))?;
        let local_addr = stream.local_addr().ok();
        let conn = match &tls {
            Some(pin) => Conn::tls_client(stream, pin.as_str(), deadline).map_err(gone)?,
            None => Conn::plain(stream),
        };
        let (source, writer) = conn.split();
        let limits = LineLimits { max_bytes: ANSWER_MAX, message_timeout: timeout, idle_timeout: timeout };
        let open = Mutex::new(Open { reader: LineReader::new(source, limits) });
        Ok(RegistryClient { timeout, local_addr, open, writer, is_over: AtomicBool::new(false) })
    }

    /// Our end of it: the address that the registry sees, where no router is between.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Whether it is of no use any more.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Whether the other end has closed it, as far as that has come here. Nothing is asked for that; while a call
    /// is under way the answer is no: that finds out by itself.
    pub fn has_ended(&self) -> bool {
        let Some(_nobody_else) = self.open.try_lock() else { return self.is_over() };
        let stream = self.writer.stream();
        let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
        let is_usable = stream.set_nonblocking(false).is_ok();
        // Nothing is due but answers, and nobody waits for one: what came, were it only a farewell, ends it.
        let is_quiet = looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        if !(is_quiet && is_usable) {
            self.close();
        }
        self.is_over()
    }

    /// Ends it; a call that waits in another thread gets an error.
    pub fn close(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.writer.close();
    }

    /// REGISTER; the secret that gives the hostname back.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn register(&self, register: &Register) -> Result<String, RegistryError> {
        let answer = self.ask(&Request::Register(Box::new(register.clone())), &["OK"])?;
        // An older registry gives none.
        let resume = answer.resume.map(|resume| resume.reveal().to_owned()).unwrap_or_default();
        if resume.len() > requests::SECRET_MAX {
            return Err(self.improper(&format!("resume: expected at most {} bytes", requests::SECRET_MAX)));
        }
        Ok(resume)
    }

    /// PUBLISH.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn publish(&self, hostname: &Name, fname: &FileName, entry: &FileEntry) -> Result<(), RegistryError> {
        let (hostname, fname, entry) = (hostname.clone(), fname.clone(), entry.clone().into());
        self.ask(&Request::Publish(Box::new(Publish { hostname, fname, entry })), &["ACK"]).map(drop)
    }

    /// UNPUBLISH.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn unpublish(&self, hostname: &Name, fname: &FileName) -> Result<(), RegistryError> {
        let (hostname, fname) = (hostname.clone(), fname.clone());
        self.ask(&Request::Unpublish(Unpublish { hostname, fname }), &["ACK"]).map(drop)
    }

    /// REQUEST: who has a file of that name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn request(&self, fname: &FileName) -> Result<Vec<HostEntry>, RegistryError> {
        let wanted = Wanted { fname: fname.clone(), size: None, modified: None };
        Ok(self.wanted(wanted)?.into_iter().map(|held| held.host).collect())
    }

    /// REQUEST with a size: some files of others with that name or that size, the most alike first. (An older registry
    /// knows of the name alone.)
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn alike(
        &self,
        fname: &FileName,
        size: u64,
        modified: Option<Seconds>,
    ) -> Result<Vec<(FileName, HostEntry)>, RegistryError> {
        let held = self.wanted(Wanted { fname: fname.clone(), size: Some(size), modified })?;
        Ok(held.into_iter().map(|held| (held.fname.unwrap_or_else(|| fname.clone()), held.host)).collect())
    }

    fn wanted(&self, wanted: Wanted) -> Result<Vec<Held>, RegistryError> {
        let answer = self.ask(&Request::Request(wanted), &["FOUND", "NOTFOUND"])?;
        answer.hosts.ok_or_else(|| self.improper("REQUEST: hosts are missing"))
    }

    /// DISCOVER: a host's files, and where it is.
    ///
    /// # Errors
    /// [`RegistryError`].
    #[allow(clippy::type_complexity, reason = "two things, as the message has them")]
    pub fn discover(&self, hostname: &Name) -> Result<(BTreeMap<FileName, FileEntry>, (IpAddr, u16)), RegistryError> {
        let answer = self.ask(&Request::Discover(Hostname { hostname: hostname.clone() }), &["OK"])?;
        match (answer.files, answer.addr) {
            (Some(files), Some(addr)) => Ok((files, addr)),
            _ => Err(self.improper("DISCOVER: files or addr are missing")),
        }
    }

    /// LIST: a page of the hosts by name, or all.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn list(&self, offset: Option<u64>, limit: Option<u64>) -> Result<Listing, RegistryError> {
        let answer = self.ask(&Request::List(List { offset, limit }), &["OK"])?;
        let registry = answer.registry.ok_or_else(|| self.improper("LIST: registry is missing"))?;
        // An older registry counts none and gives all.
        Ok(Listing { total: answer.total.unwrap_or(registry.len() as u64), registry })
    }

    /// CHANGES: what has changed since that number, waited for so long; without a number, how to begin. On a connection
    /// of its own: all other calls wait meanwhile.
    ///
    /// # Errors
    /// [`RegistryError`]; refused by a registry that does not know how.
    pub fn changes(&self, since: Option<u64>, wait: Seconds) -> Result<Followed, RegistryError> {
        let answer = self.ask(&Request::Changes(Changes { since, wait: Some(wait) }), &["OK"])?;
        let version = answer.version.ok_or_else(|| self.improper("CHANGES: version is missing"))?;
        Ok(Followed { version, changes: answer.changes.filter(|_| !answer.reset) })
    }

    /// PING: whether a host is there; also the sender's own sign of life.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn ping(&self, hostname: &Name, state: Option<&str>) -> Result<bool, RegistryError> {
        let ping = Ping { hostname: hostname.clone(), state: state.map(str::to_owned) };
        Ok(self.ask(&Request::Ping(ping), &["ALIVE", "DEAD"])?.status == "ALIVE")
    }

    /// UNREGISTER.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn unregister(&self, hostname: &Name) -> Result<(), RegistryError> {
        self.ask(&Request::Unregister(Hostname { hostname: hostname.clone() }), &["OK"]).map(drop)
    }

    /// One request there, one answer back.
    fn ask(&self, request: &Request, expected: &[&str]) -> Result<Answer, RegistryError> {
        let line = requests::write(request);
        let mut open = self.open.lock();
        if self.is_over() {
            return Err(RegistryError::Gone("it was closed".to_owned()));
        }
        let deadline = Instant::now() + self.timeout;
        let exchange = self.writer.write_line(&line, deadline).map_err(|error| error.to_string());
        let answer = exchange.and_then(|()| match open.reader.read_line_before(deadline) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the registry closed the connection".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        let answer = answer.map_err(|why| {
            self.close();
            RegistryError::Gone(why)
        })?;
        drop(open);
        let answer: Answer = serde_json::from_str(&answer).map_err(|error| self.improper(&error.to_string()))?;
        match answer.status.as_str() {
            "ERROR" => {
                let reason = answer.reason.map_or_else(|| "it gave no reason".to_owned(), |reason| shortened(&reason));
                if reason.starts_with("BUSY") {
                    // It closes the connection behind that.
                    self.close();
                }
                Err(RegistryError::Refused(reason))
            }
            status if expected.contains(&status) => Ok(answer),
            status => Err(self.improper(&format!("status {status:?}"))),
        }
    }

    /// What comes next is not known then.
    fn improper(&self, what: &str) -> RegistryError {
        self.close();
        RegistryError::Unexpected(shortened(what))
    }
}

/// What a server said, which may be as long as an answer: its beginning.
pub(super) fn shortened(said: &str) -> String {
    match said.char_indices().nth(REASON_MAX) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said.to_owned(),
    }
}

impl Drop for RegistryClient {
    fn drop(&mut self) {
        self.writer.close();
    }
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient")
            .field("local_addr", &self.local_addr)
            .field("is_over", &self.is_over())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// Who answers each line with the next of these, and then closes.
    fn answering(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).lines();
            for answer in answers {
                if lines.next().is_none() {
                    return;
                }
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
            let _ = lines.next();
        });
        addr
    }

    fn connect(answers: &'static [&'static str], timeout_ms: u64) -> RegistryClient {
        RegistryClient::connect(answering(answers), None, Duration::from_millis(timeout_ms)).unwrap()
    }

    #[test]
    fn an_older_registry_is_understood() {
        let name = Name::new("ann").unwrap();
        let client = connect(
            &[
                "{\"status\":\"OK\"}\n",
                "{\"status\":\"OK\",\"registry\":{\"ann\":{\"addr\":[\"192.0.2.1\",6001],\"files\":{\"a\":{\"size\":1,\"modified\":2}}}}}\n",
                "{\"status\":\"FOUND\",\"hosts\":[{\"hostname\":\"ann\",\"ip\":\"192.0.2.1\",\"port\":6001,\"size\":1,\"modified\":2}]}\n",
            ],
            20_000,
        );
        let (ip, display_name, files, token, resume) = (None, None, None, None, None);
        let register = Register { hostname: name.clone(), port: 6001, ip, display_name, files, token, resume };
        assert_eq!(client.register(&register).unwrap(), "");
        let listing = client.list(None, None).unwrap();
        assert_eq!((listing.total, listing.registry[&name].files.len()), (1, 1));
        let hosts = client.request(&FileName::new("a").unwrap()).unwrap();
        assert_eq!((&*hosts[0].display_name, hosts[0].file.is_published), ("ann", true));
    }

    #[test]
    fn what_is_no_answer_ends_it() {
        let name = Name::new("ann").unwrap();
        for wrong in [
            &["HELLO\n"][..],
            &["{\"status\":\"ACK\"}\n"],
            &["{\"reason\":\"x\"}\n"],
            &["{\"status\":\"OK\",\"addr\":[\"x\",1],\"files\":{}}\n"],
            &["{\"status\":\"OK\",\"addr\":[\"192.0.2.1\",6001]}\n"],
        ] {
            let client = connect(wrong, 20_000);
            let error = client.discover(&name).unwrap_err();
            assert!(matches!(error, RegistryError::Unexpected(_)), "{wrong:?}: {error}");
            assert!(client.is_over());
            assert!(matches!(client.discover(&name), Err(RegistryError::Gone(_))));
        }
    }

    /// An answer that outlives the test.
    fn long(head: &str, tail: &str) -> &'static [&'static str] {
        let line: &'static str = Box::leak(format!("{head}{}{tail}\n", "é".repeat(1 << 20)).into_boxed_str());
        Box::leak(vec![line].into_boxed_slice())
    }

    #[test]
    fn what_the_registry_says_is_never_passed_on_at_any_length() {
        let name = Name::new("ann").unwrap();
        for answers in [
            long("{\"status\":\"ERROR\",\"reason\":\"", "\"}"),
            long("{\"status\":\"", "\"}"),
            long("{\"status\":\"OK\",\"total\":\"", "\"}"),
        ] {
            let error = connect(answers, 20_000).ping(&name, None).unwrap_err();
            assert!(error.to_string().len() < 2_000, "{}", error.to_string().len());
        }
        let (ip, display_name, files, token, resume) = (None, None, None, None, None);
        let register = Register { hostname: name, port: 6001, ip, display_name, files, token, resume };
        let client = connect(long("{\"status\":\"OK\",\"resume\":\"", "\"}"), 20_000);
        let error = client.register(&register).unwrap_err().to_string();
        assert!(error.contains("resume: expected at most 8192 bytes"), "{error}");
    }

    #[test]
    fn silence_and_an_end_are_told() {
        let name = Name::new("ann").unwrap();
        let closes = connect(&[], 20_000);
        assert!(matches!(closes.ping(&name, None), Err(RegistryError::Gone(_))));
        assert!(closes.is_over());
        let silent = connect(&["", "{\"status\":\"ALIVE\"}\n"], 100);
        assert!(matches!(silent.ping(&name, None), Err(RegistryError::Gone(_))));
        assert!(silent.is_over(), "an answer that comes later is not taken for another's");
        let refuses = connect(&["{\"status\":\"ERROR\",\"reason\":\"no\"}\n", "{\"status\":\"DEAD\"}\n"], 20_000);
        assert_eq!(refuses.unregister(&name).unwrap_err().to_string(), "no");
        assert!(!refuses.ping(&name, None).unwrap());
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(RegistryClient::connect(nobody, None, Duration::from_secs(5)), Err(RegistryError::Gone(_))));
        assert!(Pin::new("ab").is_err() && Pin::new(&"AB".repeat(32)).is_ok());
    }
}
