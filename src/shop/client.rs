//! The client library of the shop: calls of dialect 1 over one connection, which is reconnected with the same session
//! when it is lost. It is unknown then whether a call that was sent was executed: an idempotent one is sent again, any
//! other fails with [`ClientError::Lost`].

use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::apis::is_idempotent;
use super::ops::{ErrorCode, Refusal};
use crate::model::{Token, debug_fields};
use crate::net::budget::Reservation;
use crate::net::conn::{Conn, ConnError, ConnReader, ConnWriter};
use crate::net::frames::{Framing, MessageReader};
use crate::net::lines::{LineError, LineLimits};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A response must have begun by then. A purchase may have to wait for another of the same buyer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(75);
/// A response that has begun must have arrived by then.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// The characters shown of a response in an unknown format.
const FOREIGN_TEXT_MAX: usize = 200;
/// The protocol has no limit; this one protects memory.
const RESPONSE_BYTES_MAX: usize = 256 << 20;

/// Where the server is and how to connect to it.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `HOST:PORT`, resolved again for each connection.
    pub server: String,
    pub framing: Framing,
    /// Without it, TLS is not used.
    pub tls: Option<CertificateTrust>,
}

impl ClientConfig {
    /// Length-prefixed frames, without TLS.
    pub fn plain(server: impl Into<String>) -> ClientConfig {
        ClientConfig { server: server.into(), framing: Framing::Frames, tls: None }
    }
}

/// Which certificates of the server are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateTrust {
    /// The one with this fingerprint (64 hex digits).
    Pinned(String),
    /// Any: the user is asked to confirm the [`fingerprint`](Client::fingerprint) before the first call.
    Any,
}

/// Why a call failed; `server` is the address as it was configured, `api` what was called.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("cannot reach {server}: {error}")]
    Unreachable { server: String, error: ConnError },
    /// The connection broke after the call was sent.
    #[error("the connection was lost: it is not known whether {api} was done ({why})")]
    Lost { api: String, why: String },
    #[error("the server gave no proper answer to {api}")]
    InvalidResponse { api: String },
    /// A text or an error in a format that is not this protocol's, shortened.
    #[error("the server at {server} answers {api} with {text:?}")]
    ForeignResponse { server: String, api: String, text: String },
}

impl ClientError {
    /// The error code, if the server refused the call.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

/// A client of the buyers' or the sellers' frontend.
pub struct Client {
    config: ClientConfig,
    session_id: Option<String>,
    connection: Option<OpenConnection>,
    fingerprint: Option<String>,
}

/// The first byte of the first response tells the server's framing: a BUSY that is sent before anything was read comes
/// as a line, whatever framing the client uses.
struct OpenConnection {
    writer: ConnWriter,
    /// Until the first response.
    unread: Option<ConnReader>,
    responses: Option<MessageReader<ConnReader>>,
}

#[derive(Serialize)]
struct RequestMessage<'a> {
    r#type: &'a str,
    api: &'a str,
    session_id: Option<&'a str>,
    payload: &'a Value,
}

#[derive(Deserialize)]
struct ResponseMessage {
    payload: Option<Value>,
    error: Option<Refusal>,
}

/// For a retry it matters whether a request without a response may have reached the server.
enum ExchangeError {
    BeforeSend(ClientError),
    AfterSend(String),
}

impl ExchangeError {
    fn into_client_error(self, api: &str) -> ClientError {
        match self {
            ExchangeError::BeforeSend(error) => error,
            ExchangeError::AfterSend(why) => ClientError::Lost { api: api.to_owned(), why },
        }
    }
}

impl Client {
    /// Connects with its first call.
    pub fn new(config: ClientConfig) -> Client {
        Client { config, session_id: None, connection: None, fingerprint: None }
    }

    /// A program may store it and restore it with [`set_session_id`](Client::set_session_id).
    pub fn session_id(&self) -> Option<&str> {
        self.session_id.as_deref()
    }

    /// Resumes a stored session.
    pub fn set_session_id(&mut self, session_id: Option<String>) {
        self.session_id = session_id;
    }

    /// The fingerprint of the server's certificate, once the client has connected with TLS.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Connects, unless the client is connected.
    pub fn connect(&mut self) -> Result<(), ClientError> {
        if self.connection.is_none() {
            let connection = connect(&self.config);
            let (connection, fingerprint) =
                connection.map_err(|error| ClientError::Unreachable { server: self.config.server.clone(), error })?;
            (self.connection, self.fingerprint) = (Some(connection), fingerprint);
        }
        Ok(())
    }

    /// Opens a session, which later calls use, and returns the buyer's or seller's id.
    pub fn login(&mut self, username: &str, password: &str) -> Result<u64, ClientError> {
        let payload = self.call("Login", json!({"username": username, "password": password}))?;
        let improper = || ClientError::InvalidResponse { api: "Login".to_owned() };
        let session_id = payload["session_id"].as_str().ok_or_else(improper)?;
        self.session_id = Some(session_id.to_owned());
        payload["buyer_id"].as_u64().or(payload["seller_id"].as_u64()).ok_or_else(improper)
    }

    /// Ends the session. The client forgets it when the server has responded, even if with a refusal.
    pub fn logout(&mut self) -> Result<(), ClientError> {
        let result = self.call("Logout", json!({}));
        if matches!(&result, Ok(_) | Err(ClientError::Refused(_))) {
            self.session_id = None;
        }
        result.map(drop)
    }

    /// Calls an api with a payload and returns the payload of the response. A MakePurchase without an idempotency key
    /// is given one, so that it can be retried.
    pub fn call(&mut self, api: &str, mut payload: Value) -> Result<Value, ClientError> {
        if api == "MakePurchase"
            && let Value::Object(fields) = &mut payload
            && fields.get("idempotency_key").is_none_or(Value::is_null)
        {
            fields.insert("idempotency_key".to_owned(), Token::random().reveal().into());
        }
        let session_id = self.session_id.as_deref();
        let request = RequestMessage { r#type: "request", api, session_id, payload: &payload };
        // Serialising strings and numbers to memory cannot fail.
        let request = serde_json::to_vec(&request).unwrap_or_default();
        let response = match self.exchange(&request) {
            Err(ExchangeError::AfterSend(_)) if is_idempotent(api) => self.exchange(&request),
            result => result,
        };
        let response = response.map_err(|error| error.into_client_error(api))?;
        match serde_json::from_slice(&response) {
            Ok(ResponseMessage { error: Some(refusal), .. }) => Err(ClientError::Refused(refusal)),
            Ok(ResponseMessage { payload: Some(payload), .. }) => Ok(payload),
            _ => Err(match foreign_error_text(&response) {
                Some(text) => {
                    ClientError::ForeignResponse { server: self.config.server.clone(), api: api.to_owned(), text }
                }
                None => ClientError::InvalidResponse { api: api.to_owned() },
            }),
        }
    }

    /// Sends a message as it is, in either dialect, and returns the response as it came. Never retries. For
    /// measurements and for tests with malformed messages.
    pub fn exchange_raw(&mut self, message: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.exchange(message).map_err(|error| error.into_client_error("the message"))
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        if self.connection.as_ref().is_some_and(OpenConnection::is_closed_by_server) {
            self.connection = None;
        }
        self.connect().map_err(ExchangeError::BeforeSend)?;
        let framing = self.config.framing;
        // Put back only if the exchange succeeds.
        let Some(mut connection) = self.connection.take() else {
            return Err(ExchangeError::AfterSend("no connection".to_owned()));
        };
        // A server that rejected the connection may have closed it; its response can still be read.
        let written = framing.write(&connection.writer, request);
        match connection.read() {
            Ok(Some(response)) => {
                if written.is_ok() {
                    self.connection = Some(connection);
                }
                Ok(response)
            }
            Ok(None) => Err(ExchangeError::AfterSend("the server closed it".to_owned())),
            Err(error) => {
                Err(ExchangeError::AfterSend(written.err().map_or(error.to_string(), |error| error.to_string())))
            }
        }
    }
}

impl OpenConnection {
    fn read(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        if let Some(reader) = self.unread.take() {
            let limits = LineLimits {
                max_bytes: RESPONSE_BYTES_MAX,
                message_timeout: MESSAGE_TIMEOUT,
                idle_timeout: RESPONSE_TIMEOUT,
            };
            self.responses = MessageReader::detect_response_framing(reader, limits, Reservation::default())?;
        }
        self.responses.as_mut().map_or(Ok(None), |reader| reader.read_before(Instant::now() + RESPONSE_TIMEOUT))
    }

    /// The server closes a connection that is idle, for instance.
    fn is_closed_by_server(&self) -> bool {
        let stream = self.writer.stream();
        if stream.set_nonblocking(true).is_err() {
            return true;
        }
        let peeked = stream.peek(&mut [0]);
        let is_open = matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock);
        // Unsolicited bytes cannot be a response, so such a connection is not used either.
        !is_open || stream.set_nonblocking(false).is_err()
    }
}

fn connect(config: &ClientConfig) -> Result<(OpenConnection, Option<String>), ConnError> {
    let mut outcome = Err(ConnError::Io(ErrorKind::NotFound.into()));
    for address in config.server.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                outcome = Ok(stream);
                break;
            }
            Err(error) => outcome = Err(error.into()),
        }
    }
    let stream: TcpStream = outcome?;
    stream.set_nodelay(true)?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let conn = match &config.tls {
        None => Conn::plain(stream),
        Some(CertificateTrust::Pinned(pin)) => Conn::tls_client(stream, pin, deadline)?,
        Some(CertificateTrust::Any) => Conn::tls_client_unpinned(stream, deadline)?,
    };
    let fingerprint = conn.peer_fingerprint();
    let (reader, writer) = conn.split();
    Ok((OpenConnection { writer, unread: Some(reader), responses: None }, fingerprint))
}

/// The error text in a response of another implementation: of an object with a string as its error, as in the project
/// documents, or of one that is not JSON.
fn foreign_error_text(response: &[u8]) -> Option<String> {
    let text = match serde_json::from_slice::<Value>(response) {
        Ok(object) => {
            let texts = [
                &object["error"],
                &object["error"]["message"],
                &object["error"]["code"],
                &object["message"],
                &object["reason"],
            ];
            texts.into_iter().find_map(Value::as_str).map(str::to_owned)?
        }
        Err(_) => std::str::from_utf8(response).ok()?.trim().to_owned(),
    };
    let shown: String = text.chars().filter(|c| !c.is_control()).take(FOREIGN_TEXT_MAX).collect();
    (!shown.is_empty()).then_some(shown)
}

// The session id is a secret.
debug_fields!(Client, |client| config: client.config);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_other_words_are_told() {
        for (response, text) in [
            (r#"{"status":"ERR","error":"Invalid credentials"}"#, Some("Invalid credentials")),
            (r#"{"status":"ERR","error":{"code":"E17","message":"no such item"}}"#, Some("no such item")),
            (r#"{"status":"ERR","error":{"code":"E17"}}"#, Some("E17")),
            (r#"{"status":"error","message":"cart is empty"}"#, Some("cart is empty")),
            (r#"{"reason":"not now"}"#, Some("not now")),
            ("HTTP/1.1 400 Bad Request\r", Some("HTTP/1.1 400 Bad Request")),
            ("ERROR\u{1b}[2J unknown", Some("ERROR[2J unknown")),
            (r#"{"status":"OK","items":[]}"#, None),
            ("[1,2]", None),
            ("", None),
        ] {
            assert_eq!(foreign_error_text(response.as_bytes()).as_deref(), text, "{response}");
        }
        assert_eq!(foreign_error_text(&[0xff, 0xfe]), None);
        assert_eq!(foreign_error_text("x".repeat(9_000).as_bytes()).unwrap().len(), FOREIGN_TEXT_MAX);
    }
}
