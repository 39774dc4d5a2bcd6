//! Kept-open request/response connections between the components of one shop.
//!
//! Each end first proves that it has the cluster key, which is never sent:
//!
//! | | a frame of JSON |
//! |---|---|
//! | client → server | `{"type":"LINK","from":"buyer-server","to":"product-db","nonce":…}` |
//! | server → client | `{"type":"LINK","nonce":…,"proof":…}` |
//! | client → server | `{"type":"PROOF","proof":…}` |
//!
//! A proof is the HMAC-SHA256, under the key, of the prover's role, both component names, both nonces and, with TLS,
//! the fingerprint of the server's certificate: a party in the middle cannot relay a proof. After the handshake each
//! frame is a request, and the next frame in the other direction its response; the services define their content.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cluster::ClusterKey;
use super::conn::{Conn, ConnError, ConnReader, ConnWriter};
use super::deadline::DeadlineRead;
use super::frames::{FrameReader, Framing, MessageReader};
use super::lines::{LineError, LineLimits};
use crate::model::secret::random_hex;

/// A message may be as long as the longest response to a client.
pub const LINK_MESSAGE_MAX_BYTES: usize = 256 << 20;
const HANDSHAKE_MESSAGE_MAX_BYTES: usize = 1024;
/// The time for connecting to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for the handshake, TLS included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A link that has been silent for this long is probed whether the other end is alive.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Links have no idle timeout: 30 days stand for "never".
const NO_IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot find the address of {address}: {source}")]
    Address { address: String, source: io::Error },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Conn(#[from] ConnError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Read(#[from] LineError),
    #[error("the connection was closed")]
    Closed,
    /// The other end has no room at the moment.
    #[error("{0}")]
    Busy(String),
    /// The other end has another cluster key or none.
    #[error("{0}")]
    Refused(String),
}

impl LinkError {
    pub fn is_busy(&self) -> bool {
        match self {
            LinkError::Busy(_) | LinkError::Closed | LinkError::Io(_) | LinkError::Conn(ConnError::Io(_)) => true,
            // A rejected client is told BUSY in plaintext, before TLS begins.
            LinkError::Conn(ConnError::Tls(rustls::Error::InvalidMessage(_))) => true,
            LinkError::Read(error) => matches!(error, LineError::Truncated | LineError::Io(_)),
            _ => false,
        }
    }

    /// Whether the request may just have been slow, so that repeating it would only add load.
    pub fn is_timeout(&self) -> bool {
        match self {
            LinkError::Read(LineError::Idle { .. } | LineError::MessageTimeout { .. }) => true,
            LinkError::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Handshake {
    #[serde(rename = "LINK")]
    Hello { from: String, to: String, nonce: String },
    #[serde(rename = "PROOF")]
    Proof { proof: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct HandshakeResponse {
    r#type: String,
    nonce: String,
    proof: String,
}

struct Transcript<'a> {
    from: &'a str,
    to: &'a str,
    client_nonce: &'a str,
    server_nonce: &'a str,
    fingerprint: &'a str,
}

impl Transcript<'_> {
    /// The prover's role is part of it: otherwise a server could send the client's own proof back.
    fn parts<'b>(&'b self, role: &'b str) -> [&'b str; 7] {
        ["p2s2-link-1", role, self.from, self.to, self.client_nonce, self.server_nonce, self.fingerprint]
    }

    fn prove(&self, key: &ClusterKey, role: &str) -> String {
        key.sign(&self.parts(role))
    }

    fn verify(&self, key: &ClusterKey, role: &str, proof: &str) -> bool {
        key.verify(&self.parts(role), proof)
    }
}

const CLIENT_ROLE: &str = "asker";
const SERVER_ROLE: &str = "answerer";

/// Where a link leads, and which component uses it.
#[derive(Debug, Clone)]
pub struct LinkTarget {
    /// `HOST:PORT`, resolved anew for each link.
    pub address: String,
    /// The component that must be there.
    pub server_name: &'static str,
    /// The component that connects.
    pub client_name: &'static str,
    /// The flag by which the operator sets the address; empty if there is none.
    pub address_flag: &'static str,
    /// The server is in this process and has no certificate.
    pub is_plaintext: bool,
    pub key: ClusterKey,
}

#[derive(Debug)]
pub struct Link {
    reader: FrameReader<ConnReader>,
    writer: ConnWriter,
}

impl Link {
    /// Uses TLS unless the server is on loopback or in this process.
    pub fn connect(target: &LinkTarget) -> Result<Link, LinkError> {
        let failed = |source| LinkError::Address { address: target.address.clone(), source };
        let mut outcome = Err(failed(io::ErrorKind::NotFound.into()));
        for address in target.address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => return Link::begin(target, stream, address),
                Err(source) => outcome = Err(LinkError::Connect { address, source }),
            }
        }
        outcome
    }

    fn begin(target: &LinkTarget, stream: TcpStream, address: SocketAddr) -> Result<Link, LinkError> {
        stream.set_nodelay(true)?;
        enable_keepalive(&stream);
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let conn = if target.is_plaintext || address.ip().to_canonical().is_loopback() {
            Conn::plain(stream)
        } else {
            Conn::tls_client_unpinned(stream, deadline)?
        };
        let fingerprint = conn.peer_fingerprint().unwrap_or_default();
        let (source, writer) = conn.split();
        let limits = LineLimits {
            max_bytes: HANDSHAKE_MESSAGE_MAX_BYTES,
            message_timeout: HANDSHAKE_TIMEOUT,
            idle_timeout: NO_IDLE_TIMEOUT,
        };
        let mut reader = FrameReader::new(source, limits);
        let nonce = random_hex::<32>();
        let hello = Handshake::Hello {
            from: target.client_name.to_owned(),
            to: target.server_name.to_owned(),
            nonce: nonce.clone(),
        };
        Framing::Frames.write(&writer, &json(&hello))?;
        let response = reader.read_frame_before(deadline)?.ok_or(LinkError::Closed)?;
        let response: HandshakeResponse = serde_json::from_slice(&response)
            .map_err(|_| parse_refusal(&response, &target.address, target.server_name))?;
        let transcript = Transcript {
            from: target.client_name,
            to: target.server_name,
            client_nonce: &nonce,
            server_nonce: &response.nonce,
            fingerprint: &fingerprint,
        };
        if !transcript.verify(&target.key, SERVER_ROLE, &response.proof) {
            return Err(LinkError::Refused(format!(
                "{} does not have the same cluster key: give both components the same --cluster-key",
                target.address
            )));
        }
        Framing::Frames
            .write(&writer, &json(&Handshake::Proof { proof: transcript.prove(&target.key, CLIENT_ROLE) }))?;
        reader.set_limits(LineLimits { max_bytes: LINK_MESSAGE_MAX_BYTES, ..limits });
        reader.retain_buffer();
        Ok(Link { reader, writer })
    }

    /// The next response belongs to it. After an error the link must not be used.
    pub fn send_request(&mut self, request: &[u8]) -> Result<(), LinkError> {
        Ok(Framing::Frames.write(&self.writer, request)?)
    }

    /// The first byte must come before the deadline. After an error the link must not be used.
    pub fn read_response(&mut self, deadline: Instant) -> Result<Vec<u8>, LinkError> {
        self.reader.read_frame_before(deadline)?.ok_or(LinkError::Closed)
    }
}

pub fn is_hello(message: &[u8]) -> bool {
    message.len() <= HANDSHAKE_MESSAGE_MAX_BYTES
        && matches!(serde_json::from_slice(message), Ok(Handshake::Hello { .. }))
}

/// The server's side of the handshake, from the client's first message on. True once the client has proved that it has
/// the key; else it may be sent an error, and the connection is to be closed. `own_fingerprint` is that of our
/// certificate if the connection uses TLS, else empty.
pub fn accept_handshake<R: DeadlineRead>(
    hello: &[u8],
    reader: &mut MessageReader<R>,
    writer: &ConnWriter,
    (own_name, key, own_fingerprint): (&str, &ClusterKey, &str),
) -> Result<bool, LinkError> {
    let nonsense = |_| LinkError::Refused("the handshake of a link is wrong".to_owned());
    let MessageReader::Frames(reader) = reader else { return Ok(false) };
    let Handshake::Hello { from, to, nonce } = serde_json::from_slice(hello).map_err(nonsense)? else {
        return Ok(false);
    };
    if to != own_name {
        return Ok(false);
    }
    let own_nonce = random_hex::<32>();
    let transcript = Transcript {
        from: &from,
        to: &to,
        client_nonce: &nonce,
        server_nonce: &own_nonce,
        fingerprint: own_fingerprint,
    };
    let proof = transcript.prove(key, SERVER_ROLE);
    let response = HandshakeResponse { r#type: "LINK".to_owned(), nonce: own_nonce.clone(), proof };
    Framing::Frames.write(writer, &json(&response))?;
    let proof_frame = reader.read_frame_before(Instant::now() + HANDSHAKE_TIMEOUT)?.ok_or(LinkError::Closed)?;
    if proof_frame.len() > HANDSHAKE_MESSAGE_MAX_BYTES {
        return Ok(false);
    }
    let Handshake::Proof { proof } = serde_json::from_slice(&proof_frame).map_err(nonsense)? else { return Ok(false) };
    Ok(transcript.verify(key, CLIENT_ROLE, &proof))
}

/// Responds to requests until the client closes the link.
pub fn serve_requests<R: DeadlineRead>(
    reader: &mut MessageReader<R>,
    writer: &ConnWriter,
    mut handle: impl FnMut(&[u8]) -> Vec<u8>,
) -> Result<(), LinkError> {
    let MessageReader::Frames(reader) = reader else { return Ok(()) };
    reader.set_limits(LineLimits { idle_timeout: NO_IDLE_TIMEOUT, ..LineLimits::new(LINK_MESSAGE_MAX_BYTES) });
    reader.retain_buffer();
    while let Some(request) = reader.read_frame()? {
        Framing::Frames.write(writer, &handle(&request))?;
    }
    Ok(())
}

/// TCP keepalive notices a peer that vanished without closing the connection.
pub fn enable_keepalive(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        // Without it, a host that vanished occupies a thread until the process ends, nothing worse.
        log::debug!("TCP keepalive: {error}");
    }
}

fn json(message: &impl Serialize) -> Vec<u8> {
    // Strings only: serializing them to memory cannot fail.
    serde_json::to_vec(message).unwrap_or_default()
}

/// The error that the other end sent instead of its handshake message, if it is one of ours.
fn parse_refusal(response: &[u8], address: &str, to: &str) -> LinkError {
    #[derive(Deserialize)]
    struct ErrorResponse {
        error: ErrorBody,
    }
    #[derive(Deserialize)]
    struct ErrorBody {
        code: String,
        message: String,
    }
    match serde_json::from_slice::<ErrorResponse>(response) {
        Ok(ErrorResponse { error }) => {
            let text = format!("{address} refuses the link: {}", error.message);
            if error.code == "BUSY" { LinkError::Busy(text) } else { LinkError::Refused(text) }
        }
        Err(_) => LinkError::Refused(format!("{address} is no {to}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::budget::Reservation;
    use crate::net::listener::{
        AcceptedConnection, BusyResponse, ConnectionHandler, Listener, ListenerContext, listen,
    };
    use crate::net::tls::TlsIdentity;
    use std::sync::Arc;

    /// Answers with what it was asked, if it was asked over a link; "close" closes, "silent" never answers.
    struct Echo {
        key: ClusterKey,
        identity: Option<Arc<TlsIdentity>>,
    }

    impl ConnectionHandler for Echo {
        fn busy_response(&self) -> BusyResponse {
            Vec::new().into()
        }

        fn serve(&self, accepted: AcceptedConnection) {
            let (stream, _, _permit) = accepted.into_parts();
            let soon = Instant::now() + HANDSHAKE_TIMEOUT;
            let (conn, fingerprint) = match &self.identity {
                Some(own) => (Conn::tls_server(stream, own, soon).unwrap(), own.fingerprint().to_owned()),
                None => (Conn::plain(stream), String::new()),
            };
            let (source, writer) = conn.split();
            let limits = LineLimits::new(1 << 20);
            let Ok(Some(mut reader)) = MessageReader::detect_framing(source, limits, Reservation::default()) else {
                return;
            };
            let Ok(Some(hello)) = reader.read_before(soon) else { return };
            assert!(is_hello(&hello));
            if !matches!(accept_handshake(&hello, &mut reader, &writer, ("echo", &self.key, &fingerprint)), Ok(true)) {
                return;
            }
            let closer = writer.clone();
            // A link that was closed from either side.
            let _ = serve_requests(&mut reader, &writer, |request| {
                match request {
                    b"close" => closer.close(),
                    b"silent" => std::thread::sleep(Duration::from_secs(3)),
                    _ => {}
                }
                request.to_vec()
            });
        }
    }

    pub(in crate::net) fn echo(key: &ClusterKey, identity: Option<Arc<TlsIdentity>>) -> Listener {
        echo_at(listen("127.0.0.1:0".parse().unwrap()).unwrap(), key, identity)
    }

    pub(in crate::net) fn echo_at(
        socket: std::net::TcpListener,
        key: &ClusterKey,
        identity: Option<Arc<TlsIdentity>>,
    ) -> Listener {
        let context = ListenerContext { allows_remote_plaintext: true, ..ListenerContext::for_test(100, 100) };
        Listener::start(socket, context, Arc::new(Echo { key: key.clone(), identity })).unwrap()
    }

    pub(in crate::net) fn target(server: &Listener, key: &ClusterKey) -> LinkTarget {
        target_at(&server.local_addr().to_string(), key)
    }

    fn target_at(address: &str, key: &ClusterKey) -> LinkTarget {
        LinkTarget {
            address: address.to_owned(),
            server_name: "echo",
            client_name: "test",
            address_flag: "--echo",
            is_plaintext: false,
            key: key.clone(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_link_carries_requests_and_answers() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let mut link = Link::connect(&target(&server, &key)).unwrap();
        for request in [&b"hello"[..], &[7; 300_000], b""] {
            link.send_request(request).unwrap();
            assert_eq!(link.read_response(soon()).unwrap(), request);
        }
        link.send_request(b"close").unwrap();
        assert!(link.read_response(soon()).is_err());
    }

    #[test]
    fn another_key_is_noticed_by_both_ends() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let error = Link::connect(&target(&server, &ClusterKey::random())).unwrap_err();
        assert!(error.to_string().contains("does not have the same cluster key"), "{error}");
        let mut wrong = target(&server, &key);
        wrong.server_name = "another";
        assert!(Link::connect(&wrong).is_err(), "each component answers to its own name alone");
        // A client that does not verify the server's proof still gets nothing.
        let (source, writer) = Conn::plain(TcpStream::connect(server.local_addr()).unwrap()).split();
        let mut reader = FrameReader::new(source, LineLimits::new(HANDSHAKE_MESSAGE_MAX_BYTES));
        let hello = Handshake::Hello { from: "test".into(), to: "echo".into(), nonce: "00".into() };
        Framing::Frames.write(&writer, &json(&hello)).unwrap();
        let response: HandshakeResponse = serde_json::from_slice(&reader.read_frame().unwrap().unwrap()).unwrap();
        // Its own proof, sent back.
        Framing::Frames.write(&writer, &json(&Handshake::Proof { proof: response.proof })).unwrap();
        let _ = Framing::Frames.write(&writer, b"hello"); // may be closed already
        assert!(!matches!(reader.read_frame(), Ok(Some(_))));
    }

    #[test]
    fn with_tls_a_proof_is_of_no_use_to_one_in_between() {
        let dir = || tempfile::tempdir().unwrap();
        let (one, other) = (dir(), dir());
        let identities = [&one, &other].map(|dir| Arc::new(TlsIdentity::load_or_create(dir.path()).unwrap()));
        let key = ClusterKey::random();
        let server = echo(&key, Some(Arc::clone(&identities[0])));
        let connect = |fingerprint: &str| {
            let stream = TcpStream::connect(server.local_addr()).unwrap();
            let conn = Conn::tls_client_unpinned(stream, soon()).unwrap();
            assert_eq!(conn.peer_fingerprint().as_deref(), Some(identities[0].fingerprint()));
            let (source, writer) = conn.split();
            let mut reader = FrameReader::new(source, LineLimits::new(HANDSHAKE_MESSAGE_MAX_BYTES));
            let hello = Handshake::Hello { from: "test".into(), to: "echo".into(), nonce: "00".into() };
            Framing::Frames.write(&writer, &json(&hello)).unwrap();
            let response: HandshakeResponse = serde_json::from_slice(&reader.read_frame().unwrap().unwrap()).unwrap();
            let transcript =
                Transcript { from: "test", to: "echo", client_nonce: "00", server_nonce: &response.nonce, fingerprint };
            let is_answerer = transcript.verify(&key, SERVER_ROLE, &response.proof);
            Framing::Frames
                .write(&writer, &json(&Handshake::Proof { proof: transcript.prove(&key, CLIENT_ROLE) }))
                .unwrap();
            let _ = Framing::Frames.write(&writer, b"hello"); // may be closed already
            (is_answerer, matches!(reader.read_frame(), Ok(Some(_))))
        };
        assert_eq!(connect(identities[0].fingerprint()), (true, true));
        // The proof of a client that sees the certificate of a party in the middle.
        assert_eq!(connect(identities[1].fingerprint()), (false, false));
        assert_eq!(connect(""), (false, false));
    }

    #[test]
    fn nobody_there_is_told_at_once() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let target = target_at(&address.to_string(), &ClusterKey::random());
        assert!(matches!(Link::connect(&target), Err(LinkError::Connect { .. })));
        let nowhere = LinkTarget { address: "no such host".to_owned(), ..target };
        assert!(matches!(Link::connect(&nowhere), Err(LinkError::Address { .. })));
    }
}
