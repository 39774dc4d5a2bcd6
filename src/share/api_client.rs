//! A client of the HTTP APIs: nodes use it for the server's API, the command line for a node's.
//!
//! With TLS the server must present exactly the pinned certificate, whatever names it has: servers here are
//! self-signed. Without a pinned certificate nothing is encrypted, so whoever creates an [`ApiClient`] decides whether
//! that is acceptable.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error, RequestBuilder};

use crate::model::Token;
use crate::net::conn::{Conn, ConnReader, ConnWriter};
use crate::net::deadline::DeadlineRead;

const RESPONSE_BYTES_MAX: u64 = 64 << 20;
/// Used as the timeout where there is none.
const NO_DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq)]
pub struct ApiResponse {
    pub status: u16,
    /// Null if it is not JSON.
    pub body: Value,
}

impl ApiResponse {
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn error(&self) -> String {
        self.body["error"].as_str().map_or_else(|| format!("it answered with status {}", self.status), str::to_owned)
    }
}

/// The API did not respond.
#[derive(Debug, thiserror::Error)]
#[error("{address} does not answer: {reason}")]
pub struct ApiUnreachable {
    /// The API's address as `host:port`.
    pub address: String,
    pub reason: String,
}

/// A client of one API, usable from any thread.
#[derive(Debug, Clone)]
pub struct ApiClient {
    address: String,
    /// If the host is not an IP address: host name and port, resolved for each request.
    name: Option<(String, u16)>,
    agent: Agent,
}

impl ApiClient {
    /// With a certificate's SHA-256, it uses TLS and accepts only that one.
    pub fn new(host: &str, port: u16, cert_sha256: Option<&str>, timeout: Duration) -> ApiClient {
        let name = host.parse::<std::net::IpAddr>().is_err().then(|| (host.to_owned(), port));
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .max_redirects(0)
            .proxy(None)
            .build();
        let agent = match cert_sha256 {
            None => Agent::with_parts(config, DefaultConnector::default(), DefaultResolver::default()),
            Some(pin) => Agent::with_parts(config, PinnedConnector { pin: pin.to_owned() }, DefaultResolver::default()),
        };
        ApiClient { address: format!("{host}:{port}"), name, agent }
    }

    /// The API's address as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The path includes the query.
    pub fn get(&self, path: &str, token: Option<&Token>) -> Result<ApiResponse, ApiUnreachable> {
        self.read(self.with_headers(self.agent.get(self.url(path)), token).call())
    }

    pub fn post(&self, path: &str, token: Option<&Token>, body: &Value) -> Result<ApiResponse, ApiUnreachable> {
        let request = self.agent.post(self.url(path)).content_type("application/json");
        self.read(self.with_headers(request, token).send(body.to_string()))
    }

    fn with_headers<B>(&self, mut request: RequestBuilder<B>, token: Option<&Token>) -> RequestBuilder<B> {
        if let Some(host) = self.host_header() {
            request = request.header("Host", host);
        }
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {}", token.reveal()));
        }
        request
    }

    /// The address that the host name resolves to. A server does not know all names by which it is reached, and rejects
    /// unknown ones (DNS rebinding), but it always accepts its address.
    fn host_header(&self) -> Option<String> {
        let (name, port) = self.name.as_ref()?;
        // If it does not resolve, the request itself fails with that error.
        Some((name.as_str(), *port).to_socket_addrs().ok()?.next()?.to_string())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn read(&self, response: Result<ureq::http::Response<ureq::Body>, Error>) -> Result<ApiResponse, ApiUnreachable> {
        let away = |error: Error| ApiUnreachable { address: self.address.clone(), reason: describe_error(&error) };
        let mut response = response.map_err(away)?;
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(RESPONSE_BYTES_MAX).read_to_vec().map_err(away)?;
        Ok(ApiResponse { status, body: serde_json::from_slice(&bytes).unwrap_or_default() })
    }
}

fn describe_error(error: &Error) -> String {
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        Error::Io(error) => error.to_string(),
        Error::Timeout(_) => "too slow".to_owned(),
        other => other.to_string(),
    }
}

#[derive(Debug)]
struct PinnedConnector {
    pin: String,
}

impl Connector for PinnedConnector {
    type Out = PinnedTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _chained: Option<()>) -> Result<Option<PinnedTransport>, Error> {
        let deadline = deadline(&details.timeout);
        let mut failed = Error::HostNotFound;
        for addr in &details.addrs {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(addr, left) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let conn = Conn::tls_client(stream, &self.pin, deadline)
                        .map_err(|error| Error::Io(io::Error::other(error.to_string())))?;
                    let (reader, writer) = conn.split();
                    let buffers =
                        LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
                    return Ok(Some(PinnedTransport { reader, writer, buffers, is_open: true }));
                }
                Err(error) => failed = Error::Io(error),
            }
        }
        Err(failed)
    }
}

struct PinnedTransport {
    reader: ConnReader,
    writer: ConnWriter,
    buffers: LazyBuffers,
    is_open: bool,
}

impl fmt::Debug for PinnedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTransport").finish_non_exhaustive()
    }
}

impl Transport for PinnedTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = &self.buffers.output()[..amount];
        self.writer.write_all(output, deadline(&timeout)).map_err(|error| to_ureq_error(error, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let input = self.buffers.input_append_buf();
        let amount =
            self.reader.read_before(input, deadline(&timeout)).map_err(|error| to_ureq_error(error, &timeout))?;
        self.buffers.input_appended(amount);
        self.is_open = amount > 0;
        Ok(amount > 0)
    }

    /// Connections are not reused: whether the other end has closed one could only be found out by reading.
    fn is_open(&mut self) -> bool {
        false
    }
}

fn deadline(timeout: &NextTimeout) -> Instant {
    Instant::now() + timeout.not_zero().map_or(NO_DEADLINE, |left| *left)
}

fn to_ureq_error(error: io::Error, timeout: &NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::TlsIdentity;
    use serde_json::json;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Answers one request, and returns its text.
    fn answer_one(mut read: impl FnMut(&mut [u8]) -> usize, mut write: impl FnMut(&[u8]), answer: &str) -> String {
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains("\r\n\r\n") || said.ends_with(b"\r\n\r\n") && said[0] == b'P' {
            let mut bytes = [0; 1024];
            let len = read(&mut bytes);
            said.extend_from_slice(&bytes[..len]);
        }
        let head = format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n", answer.len());
        write(format!("{head}{answer}").as_bytes());
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn a_status_is_an_answer_and_the_token_goes_into_the_header() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            answer_one(
                |bytes| (&stream).read(bytes).unwrap(),
                |bytes| (&stream).write_all(bytes).unwrap(),
                r#"{"success":false,"error":"no"}"#,
            )
        });
        let api = ApiClient::new("127.0.0.1", port, None, TIMEOUT);
        let answer = api.post("/x", Some(&Token::from_text("abc")), &json!({"a": 1})).unwrap();
        assert_eq!((answer.status, &*answer.error(), answer.is_ok()), (401, "no", false));
        let said = served.join().unwrap().to_lowercase();
        assert!(said.starts_with("post /x http/1.1\r\n") && said.contains("authorization: bearer abc\r\n"), "{said}");
        assert!(said.contains("content-type: application/json") && said.ends_with("{\"a\":1}"), "{said}");
    }

    #[test]
    fn who_is_reached_by_name_is_asked_by_its_address() {
        for (host, expected) in [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let served = std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                answer_one(|bytes| (&stream).read(bytes).unwrap(), |bytes| (&stream).write_all(bytes).unwrap(), "{}")
            });
            let api = ApiClient::new(host, port, None, TIMEOUT);
            assert_eq!(api.address(), format!("{host}:{port}"), "people are told the name");
            api.post("/x", None, &json!({})).unwrap();
            let said = served.join().unwrap().to_lowercase();
            let hosts: Vec<&str> = said.lines().filter(|line| line.starts_with("host:")).collect();
            let at = |ip: &str| vec![format!("host: {ip}:{port}")];
            assert!(hosts == at(expected) || hosts == at("[::1]"), "{said}");
        }
    }

    #[test]
    fn nobody_there_is_told_as_that() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let away = ApiClient::new("127.0.0.1", port, None, TIMEOUT).get("/", None).unwrap_err();
        assert_eq!(away.to_string(), format!("127.0.0.1:{port} does not answer: nobody listens there"));
    }

    #[test]
    fn over_tls_the_one_certificate_counts_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let identity = TlsIdentity::load_or_create(dir.path()).unwrap();
        let pin = identity.fingerprint().to_owned();
        for (shown, is_right) in [(pin.clone(), true), ("0".repeat(64), false)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (stream, _) = listener.accept().unwrap();
                    let deadline = Instant::now() + TIMEOUT;
                    let Ok(conn) = Conn::tls_server(stream, &identity, deadline) else { return };
                    let (mut reader, writer) = conn.split();
                    if !is_right {
                        return;
                    }
                    answer_one(
                        |bytes| reader.read_before(bytes, deadline).unwrap(),
                        |bytes| writer.write_all(bytes, deadline).unwrap(),
                        r#"{"success":false}"#,
                    );
                });
                let answer = ApiClient::new("127.0.0.1", port, Some(&shown), TIMEOUT).get("/", None);
                assert_eq!(answer.is_ok(), is_right, "{answer:?}");
            });
        }
    }
}
