//! The library of a program that shops: calls of dialect 1 over one connection that is kept open and made
//! anew when it is lost, with the same session.
//!
//! A call whose connection broke after it was sent may have been done or not. Where doing it twice is the
//! same as once, it is repeated; else [`ClientError::Lost`] says so.

use std::fmt;
use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ops::{Code, Refusal};
use crate::model::Token;
use crate::net::budget::Share;
use crate::net::conn::{Conn, ConnError, ConnReader, ConnWriter};
use crate::net::frames::{Framing, MessageReader};
use crate::net::lines::{LineError, LineLimits};

/// How long connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin: a purchase may wait for another one of the same buyer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);
/// How long it may take to come.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most characters that are shown of what a server says in words of its own.
const SAID_MAX: usize = 200;
/// Answers have no bound of their own; this is what memory allows.
const ANSWER_MAX: usize = 256 << 20;

/// Where the server is and how to speak with it.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT`, looked up anew for each connection.
    pub server: String,
    /// How messages are framed.
    pub framing: Framing,
    /// Whom to trust with TLS; without it, none is used.
    pub tls: Option<Trust>,
}

impl Config {
    /// Frames, without TLS.
    pub fn plain(server: impl Into<String>) -> Config {
        Config { server: server.into(), framing: Framing::Frames, tls: None }
    }
}

/// Whose certificate is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The one with this fingerprint (64 hex digits).
    Pinned(String),
    /// Any: to look at its [`fingerprint`](Client::fingerprint) and ask somebody, before anything is called.
    Anyone,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refuses.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// Nobody is there.
    #[error("cannot reach {server}: {error}")]
    Unreachable {
        /// As it was given.
        server: String,
        /// Why.
        error: ConnError,
    },
    /// The connection broke after the call was sent.
    #[error("the connection was lost: it is not known whether {api} was done ({why})")]
    Lost {
        /// Which call.
        api: String,
        /// What broke it.
        why: String,
    },
    /// The server said something that is no answer.
    #[error("the server gave no proper answer to {api}")]
    Improper {
        /// To which call.
        api: String,
    },
    /// The server refuses, or says whatever else, in words of its own.
    #[error("the server at {server} answers {api} with {said:?}")]
    Foreign {
        /// As it was given.
        server: String,
        /// To which call.
        api: String,
        /// What it said, shortened.
        said: String,
    },
}

impl ClientError {
    /// The refusal's code, if the server refused.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

/// A client of the buyers' or the sellers' frontend.
pub struct Client {
    config: Config,
    session_id: Option<String>,
    open: Option<Open>,
    fingerprint: Option<String>,
}

/// A connection. What the server frames with is told by its first byte: BUSY comes as a line, because it
/// comes before anything was said.
struct Open {
    writer: ConnWriter,
    incoming: Incoming,
}

enum Incoming {
    Unknown(Option<ConnReader>),
    Known(MessageReader<ConnReader>),
}

#[derive(Serialize)]
struct Request<'a> {
    r#type: &'a str,
    api: &'a str,
    session_id: Option<&'a str>,
    payload: &'a Value,
}

#[derive(Deserialize)]
struct Response {
    payload: Option<Value>,
    error: Option<Refusal>,
}

/// Why an exchange failed: before the request was out, or after.
enum Broken {
    Before(ClientError),
    After(String),
}

impl Broken {
    fn of(self, api: &str) -> ClientError {
        match self {
            Broken::Before(error) => error,
            Broken::After(why) => ClientError::Lost { api: api.to_owned(), why },
        }
    }
}

impl Client {
    /// A client that connects with its first call.
    pub fn new(config: Config) -> Client {
        Client { config, session_id: None, open: None, fingerprint: None }
    }

    /// The session, to be kept for the next time.
    pub fn session_id(&self) -> Option<&str> {
        self.session_id.as_deref()
    }

    /// Goes on with a session that was kept.
    pub fn set_session_id(&mut self, session_id: Option<String>) {
        self.session_id = session_id;
    }

    /// The fingerprint of the server's certificate, once connected with TLS.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Connects, unless that is done.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(&mut self) -> Result<(), ClientError> {
        if self.open.is_none() {
            let open = connect(&self.config);
            let (open, fingerprint) =
                open.map_err(|error| ClientError::Unreachable { server: self.config.server.clone(), error })?;
            (self.open, self.fingerprint) = (Some(open), fingerprint);
        }
        Ok(())
    }

    /// Opens a session, which the calls from then on bear. The buyer's or seller's id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn login(&mut self, username: &str, password: &str) -> Result<u64, ClientError> {
        let payload = self.call("Login", json!({"username": username, "password": password}))?;
        let improper = || ClientError::Improper { api: "Login".to_owned() };
        let session_id = payload["session_id"].as_str().ok_or_else(improper)?;
        self.session_id = Some(session_id.to_owned());
        payload["buyer_id"].as_u64().or(payload["seller_id"].as_u64()).ok_or_else(improper)
    }

    /// Ends the session.
    ///
    /// # Errors
    /// [`ClientError`]; the session is forgotten here in any case but a broken connection.
    pub fn logout(&mut self) -> Result<(), ClientError> {
        let result = self.call("Logout", json!({}));
        if matches!(&result, Ok(_) | Err(ClientError::Refused(_))) {
            self.session_id = None;
        }
        result.map(drop)
    }

    /// Calls an api with its payload; the payload of the answer.
    ///
    /// A MakePurchase without idempotency key gets one, so that it may be repeated.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(&mut self, api: &str, mut payload: Value) -> Result<Value, ClientError> {
        if api == "MakePurchase"
            && let Value::Object(fields) = &mut payload
            && fields.get("idempotency_key").is_none_or(Value::is_null)
        {
            fields.insert("idempotency_key".to_owned(), Token::random().reveal().into());
        }
        let session_id = self.session_id.as_deref();
        let request = Request { r#type: "request", api, session_id, payload: &payload };
        // Texts and numbers alone: writing them to memory cannot fail.
        let request = serde_json::to_vec(&request).unwrap_or_default();
        let answer = match self.exchange(&request) {
            Err(Broken::After(_)) if may_be_repeated(api) => self.exchange(&request),
            result => result,
        };
        let answer = answer.map_err(|broken| broken.of(api))?;
        match serde_json::from_slice(&answer) {
            Ok(Response { error: Some(refusal), .. }) => Err(ClientError::Refused(refusal)),
            Ok(Response { payload: Some(payload), .. }) => Ok(payload),
            _ => Err(match in_other_words(&answer) {
                Some(said) => ClientError::Foreign { server: self.config.server.clone(), api: api.to_owned(), said },
                None => ClientError::Improper { api: api.to_owned() },
            }),
        }
    }

    /// Sends a message as it is and gives the answer as it came, in either dialect; never repeated. For who
    /// measures, or tries what no proper client says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exchange_raw(&mut self, message: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.exchange(message).map_err(|broken| broken.of("the message"))
    }

    /// One message there, one back.
    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, Broken> {
        if self.open.as_ref().is_some_and(Open::is_dead) {
            self.open = None;
        }
        self.connect().map_err(Broken::Before)?;
        let framing = self.config.framing;
        // Put back only if all went well.
        let Some(mut open) = self.open.take() else {
            return Err(Broken::After("no connection".to_owned()));
        };
        // A server that turned us away may have closed before we wrote: what it said is still to be read.
        let written = framing.write(&open.writer, request);
        match open.read() {
            Ok(Some(answer)) => {
                if written.is_ok() {
                    self.open = Some(open);
                }
                Ok(answer)
            }
            Ok(None) => Err(Broken::After("the server closed it".to_owned())),
            Err(error) => Err(Broken::After(written.err().map_or(error.to_string(), |error| error.to_string()))),
        }
    }
}

impl Open {
    fn read(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        if let Incoming::Unknown(reader) = &mut self.incoming {
            let limits =
                LineLimits { max_bytes: ANSWER_MAX, message_timeout: MESSAGE_TIMEOUT, idle_timeout: ANSWER_TIMEOUT };
            let Some(reader) = reader.take() else { return Ok(None) };
            let Some(known) = MessageReader::begin_answer(reader, limits, Share::default())? else { return Ok(None) };
            self.incoming = Incoming::Known(known);
        }
        match &mut self.incoming {
            Incoming::Known(reader) => reader.read_before(Instant::now() + ANSWER_TIMEOUT),
            Incoming::Unknown(_) => Ok(None),
        }
    }

    /// Whether the server has closed it meanwhile, as it may for being idle.
    fn is_dead(&self) -> bool {
        let stream = self.writer.stream();
        if stream.set_nonblocking(true).is_err() {
            return true;
        }
        let peeked = stream.peek(&mut [0]);
        let is_open = matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock);
        // Bytes that nobody asked for: whatever they are, they are no answer.
        !is_open || stream.set_nonblocking(false).is_err()
    }
}

fn connect(config: &Config) -> Result<(Open, Option<String>), ConnError> {
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
        Some(Trust::Pinned(pin)) => Conn::tls_client(stream, pin, deadline)?,
        Some(Trust::Anyone) => Conn::tls_client_unpinned(stream, deadline)?,
    };
    let fingerprint = conn.peer_fingerprint();
    let (reader, writer) = conn.split();
    Ok((Open { writer, incoming: Incoming::Unknown(Some(reader)) }, fingerprint))
}

/// What a server means that speaks otherwise than ours: an object with a text for its error, as the documents have it,
/// or no JSON at all.
fn in_other_words(answer: &[u8]) -> Option<String> {
    let text = match serde_json::from_slice::<Value>(answer) {
        Ok(said) => {
            let texts =
                [&said["error"], &said["error"]["message"], &said["error"]["code"], &said["message"], &said["reason"]];
            texts.into_iter().find_map(Value::as_str).map(str::to_owned)?
        }
        Err(_) => std::str::from_utf8(answer).ok()?.trim().to_owned(),
    };
    let shown: String = text.chars().filter(|c| !c.is_control()).take(SAID_MAX).collect();
    (!shown.is_empty()).then_some(shown)
}

/// Whether doing it twice is the same as doing it once (a login's first session just ends by itself).
fn may_be_repeated(api: &str) -> bool {
    !matches!(
        api,
        "CreateAccount"
            | "Logout"
            | "RegisterItemForSale"
            | "UpdateUnitsForSale"
            | "AddItemToCart"
            | "RemoveItemFromCart"
    )
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the session.
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_other_words_are_told() {
        for (answer, said) in [
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
            assert_eq!(in_other_words(answer.as_bytes()).as_deref(), said, "{answer}");
        }
        assert_eq!(in_other_words(&[0xff, 0xfe]), None);
        assert_eq!(in_other_words("x".repeat(9_000).as_bytes()).unwrap().len(), SAID_MAX);
    }
}
