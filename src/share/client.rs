//! A client connection to a registry: typed calls, each with a deadline. Used by nodes and by measurements.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::wire::responses::{FileHolder, ResponseHead};
use super::wire::{
    Action, ChangesRequest, ChangesResponse, DiscoverRequest, FileEntry, FileName, FileRequest, HostEntry, ListRequest,
    ListResponse, PingRequest, PublishRequest, RegisterRequest, Seconds, UnpublishRequest, UnregisterRequest, requests,
};
use crate::model::Name;
use crate::net::conn::{Conn, ConnError, ConnReader, ConnWriter};
use crate::net::lines::{LineLimits, LineReader};

/// The longest response is a page of a list: there is room for hosts that have very many files.
const RESPONSE_BYTES_MAX: usize = 256 << 20;

/// No more than this is passed on of a server's text.
const REASON_CHARS_MAX: usize = 500;

/// The certificate that a registry must present: its SHA-256, 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePin(String);

impl CertificatePin {
    /// Parses 64 hex digits.
    pub fn new(text: &str) -> Result<CertificatePin, String> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("expected 64 hex digits".to_owned());
        }
        Ok(CertificatePin(text.to_ascii_lowercase()))
    }

    /// The fingerprint, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host's files by name, and the address of its peer port.
pub type HostFiles = (BTreeMap<FileName, FileEntry>, (IpAddr, u16));

#[derive(Debug, thiserror::Error)]
pub enum RegistryClientError {
    #[error("{0}")]
    Refused(String),
    /// Whether a requested change was made is not known.
    #[error("no connection to the registry: {0}")]
    Disconnected(String),
    #[error("the registry gave no proper answer: {0}")]
    InvalidResponse(String),
}

/// One connection to a registry. Calls of several threads take turns. After any error other than a refusal it is
/// closed.
pub struct RegistryClient {
    timeout: Duration,
    local_addr: Option<SocketAddr>,
    reader: Mutex<LineReader<ConnReader>>,
    writer: ConnWriter,
    is_closed: AtomicBool,
}

impl RegistryClient {
    /// Connects, with TLS if a certificate is pinned; `timeout` applies to that and to every call.
    pub fn connect(
        at: SocketAddr,
        tls: Option<CertificatePin>,
        timeout: Duration,
    ) -> Result<RegistryClient, RegistryClientError> {
        let gone = |error: ConnError| RegistryClientError::Disconnected(format!("{at}: {error}"));
        let deadline = Instant::now() + timeout;
        let stream = TcpStream::connect_timeout(&at, timeout).map_err(|error| gone(error.into()))?;
        stream.set_nodelay(true).map_err(|error| gone(error.into()))?;
        let local_addr = stream.local_addr().ok();
        let conn = match &tls {
            Some(pin) => Conn::tls_client(stream, pin.as_str(), deadline).map_err(gone)?,
            None => Conn::plain(stream),
        };
        let (source, writer) = conn.split();
        let limits = LineLimits { max_bytes: RESPONSE_BYTES_MAX, message_timeout: timeout, idle_timeout: timeout };
        let reader = Mutex::new(LineReader::new(source, limits));
        Ok(RegistryClient { timeout, local_addr, reader, writer, is_closed: AtomicBool::new(false) })
    }

    /// The registry sees the same address if no NAT is in between.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Whether the other end has closed the connection. During a call it does not check: the call finds out by itself.
    pub fn detect_disconnect(&self) -> bool {
        let Some(_nobody_else) = self.reader.try_lock() else { return self.is_closed() };
        let stream = self.writer.stream();
        let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
        let is_usable = stream.set_nonblocking(false).is_ok();
        // No response is outstanding, so any input, even an orderly close, ends the connection.
        let is_quiet = peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        if !(is_quiet && is_usable) {
            self.close();
        }
        self.is_closed()
    }

    /// Closes the connection; a call that waits in another thread gets an error.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.writer.close();
    }

    /// REGISTER. Returns the secret that gets the hostname back.
    pub fn register(&self, register: &RegisterRequest) -> Result<String, RegistryClientError> {
        let response = self.call(register)?;
        // An older registry issues none.
        let resume = response.resume.map(|resume| resume.reveal().to_owned()).unwrap_or_default();
        if resume.len() > requests::SECRET_MAX {
            return Err(self.invalid_response(&format!("resume: expected at most {} bytes", requests::SECRET_MAX)));
        }
        Ok(resume)
    }

    /// PUBLISH: adds a file to the host's published files, or replaces it.
    pub fn publish(&self, hostname: &Name, fname: &FileName, entry: &FileEntry) -> Result<(), RegistryClientError> {
        let (hostname, fname, entry) = (hostname.clone(), fname.clone(), entry.clone().into());
        self.call(&PublishRequest { hostname, fname, entry }).map(drop)
    }

    /// UNPUBLISH: stops publishing a file.
    pub fn unpublish(&self, hostname: &Name, fname: &FileName) -> Result<(), RegistryClientError> {
        self.call(&UnpublishRequest { hostname: hostname.clone(), fname: fname.clone() }).map(drop)
    }

    /// REQUEST: the hosts that have a file of that name.
    pub fn request(&self, fname: &FileName) -> Result<Vec<HostEntry>, RegistryClientError> {
        let wanted = FileRequest { fname: fname.clone(), size: None, modified: None };
        Ok(self.request_holders(wanted)?.into_iter().map(|holder| holder.host).collect())
    }

    /// REQUEST with a size: other hosts' files of that name or size, the most similar first; of an older registry, of
    /// that name.
    pub fn similar_files(
        &self,
        fname: &FileName,
        size: u64,
        modified: Option<Seconds>,
    ) -> Result<Vec<(FileName, HostEntry)>, RegistryClientError> {
        let holder = self.request_holders(FileRequest { fname: fname.clone(), size: Some(size), modified })?;
        Ok(holder.into_iter().map(|holder| (holder.fname.unwrap_or_else(|| fname.clone()), holder.host)).collect())
    }

    fn request_holders(&self, wanted: FileRequest) -> Result<Vec<FileHolder>, RegistryClientError> {
        self.call(&wanted)?.hosts.ok_or_else(|| self.invalid_response("REQUEST: hosts are missing"))
    }

    /// DISCOVER: a host's files and address.
    pub fn discover(&self, hostname: &Name) -> Result<HostFiles, RegistryClientError> {
        let response = self.call(&DiscoverRequest { hostname: hostname.clone() })?;
        match (response.files, response.addr) {
            (Some(files), Some(addr)) => Ok((files, addr)),
            _ => Err(self.invalid_response("DISCOVER: files or addr are missing")),
        }
    }

    /// LIST: a page of the hosts by name, or all of them.
    pub fn list(&self, offset: Option<u64>, limit: Option<u64>) -> Result<ListResponse, RegistryClientError> {
        let response = self.call(&ListRequest { offset, limit })?;
        let registry = response.registry.ok_or_else(|| self.invalid_response("LIST: registry is missing"))?;
        // An older registry sends no total and always sends all hosts.
        Ok(ListResponse { total: response.total.unwrap_or(registry.len() as u64), registry })
    }

    /// CHANGES: what has changed since that number, waiting for the first change up to `wait`; without a number, where
    /// to start. Needs a connection of its own: all other calls wait meanwhile. An older registry refuses.
    pub fn changes(&self, since: Option<u64>, wait: Seconds) -> Result<ChangesResponse, RegistryClientError> {
        let response = self.call(&ChangesRequest { since, wait: Some(wait) })?;
        let version = response.version.ok_or_else(|| self.invalid_response("CHANGES: version is missing"))?;
        Ok(ChangesResponse { version, changes: response.changes.filter(|_| !response.reset) })
    }

    /// PING: whether a host is live; also the sender's own heartbeat.
    pub fn ping(&self, hostname: &Name, state: Option<&str>) -> Result<bool, RegistryClientError> {
        let ping = PingRequest { hostname: hostname.clone(), state: state.map(str::to_owned) };
        Ok(self.call(&ping)?.status == "ALIVE")
    }

    /// UNREGISTER: removes the host with its files.
    pub fn unregister(&self, hostname: &Name) -> Result<(), RegistryClientError> {
        self.call(&UnregisterRequest { hostname: hostname.clone() }).map(drop)
    }

    /// Sends the request of any action and reads its response.
    pub fn call<A: Action>(&self, request: &A) -> Result<A::Answer, RegistryClientError> {
        let line = requests::write(request);
        let mut reader = self.reader.lock();
        if self.is_closed() {
            return Err(RegistryClientError::Disconnected("it was closed".to_owned()));
        }
        let deadline = Instant::now() + self.timeout;
        let exchange = self.writer.write_line(&line, deadline).map_err(|error| error.to_string());
        let response = exchange.and_then(|()| match reader.read_line_before(deadline) {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err("the registry closed the connection".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        let response = response.map_err(|why| {
            self.close();
            RegistryClientError::Disconnected(why)
        })?;
        drop(reader);
        let invalid = |error: serde_json::Error| self.invalid_response(&error.to_string());
        if leading_status(&response).is_some_and(|status| A::STATUSES.contains(&status)) {
            return serde_json::from_str(&response).map_err(invalid);
        }
        let ResponseHead { status, reason } = serde_json::from_str(&response).map_err(invalid)?;
        match &*status {
            "ERROR" => {
                let reason = reason.map_or_else(|| "it gave no reason".to_owned(), |reason| truncate_reason(&reason));
                if reason.starts_with("BUSY") {
                    // The registry closes the connection after that.
                    self.close();
                }
                Err(RegistryClientError::Refused(reason))
            }
            status if A::STATUSES.contains(&status) => serde_json::from_str(&response).map_err(invalid),
            status => Err(self.invalid_response(&format!("status {status:?}"))),
        }
    }

    /// After an invalid response, the state of the connection is unknown.
    fn invalid_response(&self, what: &str) -> RegistryClientError {
        self.close();
        RegistryClientError::InvalidResponse(truncate_reason(what))
    }
}

/// The status of a response that begins with it, as ours do: a long list is not read twice for it.
fn leading_status(response: &str) -> Option<&str> {
    response.strip_prefix("{\"status\":\"")?.split('"').next()
}

/// The beginning of a server's text, which may be as long as a whole response.
pub(super) fn truncate_reason(said: &str) -> String {
    match said.char_indices().nth(REASON_CHARS_MAX) {
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
            .field("is_over", &self.is_closed())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// A server that answers each line with the next of these, and then closes.
    fn serve_responses(responses: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(&stream).lines();
            for response in responses {
                if lines.next().is_none() {
                    return;
                }
                (&stream).write_all(response.as_bytes()).unwrap();
            }
            let _ = lines.next();
        });
        addr
    }

    fn connect(responses: &'static [&'static str], timeout_ms: u64) -> RegistryClient {
        RegistryClient::connect(serve_responses(responses), None, Duration::from_millis(timeout_ms)).unwrap()
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
        let register = RegisterRequest { hostname: name.clone(), port: 6001, ip, display_name, files, token, resume };
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
            assert!(matches!(error, RegistryClientError::InvalidResponse(_)), "{wrong:?}: {error}");
            assert!(client.is_closed());
            assert!(matches!(client.discover(&name), Err(RegistryClientError::Disconnected(_))));
        }
    }

    /// A long response with a static lifetime.
    fn long_response(head: &str, tail: &str) -> &'static [&'static str] {
        let line: &'static str = Box::leak(format!("{head}{}{tail}\n", "é".repeat(1 << 20)).into_boxed_str());
        Box::leak(vec![line].into_boxed_slice())
    }

    #[test]
    fn what_the_registry_says_is_never_passed_on_at_any_length() {
        let name = Name::new("ann").unwrap();
        for responses in [
            long_response("{\"status\":\"ERROR\",\"reason\":\"", "\"}"),
            long_response("{\"status\":\"", "\"}"),
            long_response("{\"status\":\"OK\",\"total\":\"", "\"}"),
        ] {
            let error = connect(responses, 20_000).ping(&name, None).unwrap_err();
            assert!(error.to_string().len() < 2_000, "{}", error.to_string().len());
        }
        let (ip, display_name, files, token, resume) = (None, None, None, None, None);
        let register = RegisterRequest { hostname: name, port: 6001, ip, display_name, files, token, resume };
        let client = connect(long_response("{\"status\":\"OK\",\"resume\":\"", "\"}"), 20_000);
        let error = client.register(&register).unwrap_err().to_string();
        assert!(error.contains("resume: expected at most 8192 bytes"), "{error}");
    }

    #[test]
    fn silence_and_an_end_are_told() {
        let name = Name::new("ann").unwrap();
        let closes = connect(&[], 20_000);
        assert!(matches!(closes.ping(&name, None), Err(RegistryClientError::Disconnected(_))));
        assert!(closes.is_closed());
        let silent = connect(&["", "{\"status\":\"ALIVE\"}\n"], 100);
        assert!(matches!(silent.ping(&name, None), Err(RegistryClientError::Disconnected(_))));
        assert!(silent.is_closed(), "an answer that comes later is not taken for another's");
        let refuses = connect(&["{\"status\":\"ERROR\",\"reason\":\"no\"}\n", "{\"status\":\"DEAD\"}\n"], 20_000);
        assert_eq!(refuses.unregister(&name).unwrap_err().to_string(), "no");
        assert!(!refuses.ping(&name, None).unwrap());
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(
            RegistryClient::connect(nobody, None, Duration::from_secs(5)),
            Err(RegistryClientError::Disconnected(_))
        ));
        assert!(CertificatePin::new("ab").is_err() && CertificatePin::new(&"AB".repeat(32)).is_ok());
    }
}
