//! Links: kept-open connections between components of one shop, over which one asks and the other answers.
//!
//! Each end proves first that it has the cluster key, which is never sent:
//!
//! | | a frame of JSON |
//! |---|---|
//! | asker → answerer | `{"type":"LINK","from":"buyer-server","to":"product-db","nonce":…}` |
//! | answerer → asker | `{"type":"LINK","nonce":…,"proof":…}` |
//! | asker → answerer | `{"type":"PROOF","proof":…}` |
//!
//! A proof is the HMAC-SHA256, by the key, of who says it, both names, both nonces, and with TLS the
//! fingerprint of the answerer's certificate: nobody between the two can pass a proof on. From then on
//! each frame is a request, and the next one the other way is its answer; what is in them is the rooms'.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cluster::ClusterKey;
use super::conn::{Conn, ConnError, ConnReader, ConnWriter};
use super::deadline::ReadBefore;
use super::frames::{FrameReader, Framing, MessageReader};
use super::lines::{LineError, LineLimits};
use crate::model::secret::random_hex;

/// Most bytes of a request or an answer on a link: answers to clients are as long.
pub const LINK_MESSAGE_MAX: usize = 256 << 20;
/// Most bytes of a message of the handshake.
const HELLO_MAX: usize = 1024;
/// How long connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the handshake may take, TLS included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a link may be silent before the system asks whether the other end still lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Links are never idle for too long.
const NEVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why there is no link, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The name of the host means nothing.
    #[error("cannot find the address of {address}: {source}")]
    Address {
        /// As it was given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS, or the connection.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// Writing failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] LineError),
    /// The other end closed it.
    #[error("the connection was closed")]
    Closed,
    /// The other end has no room at the moment.
    #[error("{0}")]
    Busy(String),
    /// The other end has another key, or none.
    #[error("{0}")]
    Refused(String),
}

impl LinkError {
    /// Whether somebody is there who had no room for a link, and may have some in a moment.
    pub fn is_short_of_room(&self) -> bool {
        match self {
            LinkError::Busy(_) | LinkError::Closed | LinkError::Io(_) | LinkError::Conn(ConnError::Io(_)) => true,
            // Before TLS has begun, BUSY comes as it is.
            LinkError::Conn(ConnError::Tls(rustls::Error::InvalidMessage(_))) => true,
            LinkError::Read(error) => matches!(error, LineError::Truncated | LineError::Io(_)),
            _ => false,
        }
    }

    /// Whether the request may just have been slow, so that asking again would only cost more.
    pub fn is_timeout(&self) -> bool {
        match self {
            LinkError::Read(LineError::Idle { .. } | LineError::MessageTimeout { .. }) => true,
            LinkError::Io(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }
}

/// What begins a link.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Shake {
    #[serde(rename = "LINK")]
    Hello { from: String, to: String, nonce: String },
    #[serde(rename = "PROOF")]
    Proof { proof: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Welcome {
    r#type: String,
    nonce: String,
    proof: String,
}

/// What is proved, by either end.
struct Oath<'a> {
    from: &'a str,
    to: &'a str,
    asker_nonce: &'a str,
    answerer_nonce: &'a str,
    fingerprint: &'a str,
}

impl Oath<'_> {
    /// Who says it is part of it: else an answerer could send the asker's own proof back.
    fn parts<'b>(&'b self, said_by: &'b str) -> [&'b str; 6] {
        ["p2s2-link-1", said_by, self.from, self.to, self.asker_nonce, self.answerer_nonce]
    }

    fn prove(&self, key: &ClusterKey, said_by: &str) -> String {
        key.prove(&[&self.parts(said_by)[..], &[self.fingerprint]].concat())
    }

    fn verify(&self, key: &ClusterKey, said_by: &str, proof: &str) -> bool {
        key.verify(&[&self.parts(said_by)[..], &[self.fingerprint]].concat(), proof)
    }
}

const ASKER: &str = "asker";
const ANSWERER: &str = "answerer";

/// Where a link leads, and who asks.
#[derive(Debug, Clone)]
pub struct Target {
    /// `HOST:PORT`, looked up anew for each link.
    pub address: String,
    /// The component that must be there.
    pub to: &'static str,
    /// The component that asks.
    pub from: &'static str,
    /// Where the operator says the address; empty where nobody has to.
    pub flag: &'static str,
    /// Without TLS wherever it is: the other end is in this process, and has no certificate.
    pub is_plain: bool,
    /// What both have.
    pub key: ClusterKey,
}

/// The asker's end.
pub struct Link {
    reader: FrameReader<ConnReader>,
    writer: ConnWriter,
}

impl Link {
    /// Connects, with TLS unless the other end is on loopback or in this process, and proves the key.
    ///
    /// # Errors
    /// [`LinkError`]: nobody is there, or somebody else.
    pub fn connect(target: &Target) -> Result<Link, LinkError> {
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

    fn begin(target: &Target, stream: TcpStream, address: SocketAddr) -> Result<Link, LinkError> {
        stream.set_nodelay(true)?;
        keep_alive(&stream);
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let conn = if target.is_plain || address.ip().to_canonical().is_loopback() {
            Conn::plain(stream)
        } else {
            Conn::tls_client_unpinned(stream, deadline)?
        };
        let fingerprint = conn.peer_fingerprint().unwrap_or_default();
        let (source, writer) = conn.split();
        let limits = LineLimits { max_bytes: HELLO_MAX, message_timeout: HANDSHAKE_TIMEOUT, idle_timeout: NEVER };
        let mut reader = FrameReader::new(source, limits);
        let nonce = random_hex::<32>();
        let hello = Shake::Hello { from: target.from.to_owned(), to: target.to.to_owned(), nonce: nonce.clone() };
        Framing::Frames.write(&writer, &json(&hello))?;
        let welcome = reader.read_frame_before(deadline)?.ok_or(LinkError::Closed)?;
        let welcome: Welcome =
            serde_json::from_slice(&welcome).map_err(|_| refusal(&welcome, &target.address, target.to))?;
        let oath = Oath {
            from: target.from,
            to: target.to,
            asker_nonce: &nonce,
            answerer_nonce: &welcome.nonce,
            fingerprint: &fingerprint,
        };
        if !oath.verify(&target.key, ANSWERER, &welcome.proof) {
            return Err(LinkError::Refused(format!(
                "{} does not have the same cluster key: give both components the same --cluster-key",
                target.address
            )));
        }
        Framing::Frames.write(&writer, &json(&Shake::Proof { proof: oath.prove(&target.key, ASKER) }))?;
        reader.set_limits(LineLimits { max_bytes: LINK_MESSAGE_MAX, ..limits });
        reader.keep_buffer();
        Ok(Link { reader, writer })
    }

    /// Sends a request. The next answer is its.
    ///
    /// # Errors
    /// [`LinkError`], after which the link is of no use.
    pub fn ask(&mut self, request: &[u8]) -> Result<(), LinkError> {
        Ok(Framing::Frames.write(&self.writer, request)?)
    }

    /// The answer to the request that was sent, which must begin by then.
    ///
    /// # Errors
    /// [`LinkError`], after which the link is of no use.
    pub fn answer(&mut self, deadline: Instant) -> Result<Vec<u8>, LinkError> {
        self.reader.read_frame_before(deadline)?.ok_or(LinkError::Closed)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("writer", &self.writer).finish_non_exhaustive()
    }
}

/// Whether a first message wants to begin a link.
pub fn is_hello(message: &[u8]) -> bool {
    message.len() <= HELLO_MAX && matches!(serde_json::from_slice(message), Ok(Shake::Hello { .. }))
}

/// The answerer's end, from the first message on: true once the other end has proved the key.
///
/// `own_fingerprint` is that of our certificate if the connection is TLS, else empty. False if it did not
/// prove it; it may then be told so, and the connection is to be closed.
///
/// # Errors
/// [`LinkError`]: it fell silent, or said something else.
pub fn welcome<R: ReadBefore>(
    hello: &[u8],
    reader: &mut MessageReader<R>,
    writer: &ConnWriter,
    (own_name, key, own_fingerprint): (&str, &ClusterKey, &str),
) -> Result<bool, LinkError> {
    let nonsense = |_| LinkError::Refused("the handshake of a link is wrong".to_owned());
    let MessageReader::Frames(reader) = reader else { return Ok(false) };
    let Shake::Hello { from, to, nonce } = serde_json::from_slice(hello).map_err(nonsense)? else {
        return Ok(false);
    };
    if to != own_name {
        return Ok(false);
    }
    let own_nonce = random_hex::<32>();
    let oath =
        Oath { from: &from, to: &to, asker_nonce: &nonce, answerer_nonce: &own_nonce, fingerprint: own_fingerprint };
    let proof = oath.prove(key, ANSWERER);
    let welcome = Welcome { r#type: "LINK".to_owned(), nonce: own_nonce.clone(), proof };
    Framing::Frames.write(writer, &json(&welcome))?;
    let answer = reader.read_frame_before(Instant::now() + HANDSHAKE_TIMEOUT)?.ok_or(LinkError::Closed)?;
    if answer.len() > HELLO_MAX {
        return Ok(false);
    }
    let Shake::Proof { proof } = serde_json::from_slice(&answer).map_err(nonsense)? else { return Ok(false) };
    Ok(oath.verify(key, ASKER, &proof))
}

/// Answers requests until the asker closes the link.
///
/// # Errors
/// [`LinkError`]: the connection failed.
pub fn serve<R: ReadBefore>(
    reader: &mut MessageReader<R>,
    writer: &ConnWriter,
    mut answer: impl FnMut(&[u8]) -> Vec<u8>,
) -> Result<(), LinkError> {
    let MessageReader::Frames(reader) = reader else { return Ok(()) };
    reader.set_limits(LineLimits { idle_timeout: NEVER, ..LineLimits::new(LINK_MESSAGE_MAX) });
    reader.keep_buffer();
    while let Some(request) = reader.read_frame()? {
        Framing::Frames.write(writer, &answer(&request))?;
    }
    Ok(())
}

/// Has the system find out when the other end has vanished without a word.
pub fn keep_alive(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        // Then a host that vanished costs a thread until the process ends, nothing worse.
        log::debug!("TCP keepalive: {error}");
    }
}

fn json(message: &impl Serialize) -> Vec<u8> {
    // Texts alone: writing them to memory cannot fail.
    serde_json::to_vec(message).unwrap_or_default()
}

/// What the other end said instead of welcoming us, if it is an error of ours.
fn refusal(answer: &[u8], address: &str, to: &str) -> LinkError {
    #[derive(Deserialize)]
    struct Said {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        message: String,
    }
    match serde_json::from_slice::<Said>(answer) {
        Ok(Said { error }) => {
            let text = format!("{address} refuses the link: {}", error.message);
            if error.code == "BUSY" { LinkError::Busy(text) } else { LinkError::Refused(text) }
        }
        Err(_) => LinkError::Refused(format!("{address} is no {to}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::budget::{Budget, Share};
    use crate::net::listener::{Accepted, Busy, ConnectionLimiter, Listener, ListenerContext, Protocol, listen};
    use crate::net::threads::Executor;
    use crate::net::tls::Identity;
    use std::sync::Arc;

    /// Answers with what it was asked, if it was asked over a link; "close" closes, "silent" never answers.
    struct Echo {
        key: ClusterKey,
        identity: Option<Arc<Identity>>,
    }

    impl Protocol for Echo {
        fn busy(&self) -> Busy {
            Vec::new().into()
        }

        fn serve(&self, accepted: Accepted) {
            let (stream, _, _permit) = accepted.into_parts();
            let soon = Instant::now() + HANDSHAKE_TIMEOUT;
            let (conn, fingerprint) = match &self.identity {
                Some(own) => (Conn::tls_server(stream, own, soon).unwrap(), own.fingerprint().to_owned()),
                None => (Conn::plain(stream), String::new()),
            };
            let (source, writer) = conn.split();
            let limits = LineLimits::new(1 << 20);
            let Ok(Some(mut reader)) = MessageReader::begin(source, limits, Share::default()) else { return };
            let Ok(Some(hello)) = reader.read_before(soon) else { return };
            assert!(is_hello(&hello));
            if !matches!(welcome(&hello, &mut reader, &writer, ("echo", &self.key, &fingerprint)), Ok(true)) {
                return;
            }
            let closer = writer.clone();
            // A link that was closed from either side.
            let _ = serve(&mut reader, &writer, |request| {
                match request {
                    b"close" => closer.close(),
                    b"silent" => std::thread::sleep(Duration::from_secs(3)),
                    _ => {}
                }
                request.to_vec()
            });
        }
    }

    pub(in crate::net) fn echo(key: &ClusterKey, identity: Option<Arc<Identity>>) -> Listener {
        echo_at(listen("127.0.0.1:0".parse().unwrap()).unwrap(), key, identity)
    }

    pub(in crate::net) fn echo_at(
        socket: std::net::TcpListener,
        key: &ClusterKey,
        identity: Option<Arc<Identity>>,
    ) -> Listener {
        let context = ListenerContext {
            executor: Executor::new("test-link", 100),
            limiter: ConnectionLimiter::new(100),
            budget: Budget::new(1 << 20),
            identity: None,
            plain_from_afar: true,
        };
        Listener::start(socket, context, Arc::new(Echo { key: key.clone(), identity })).unwrap()
    }

    pub(in crate::net) fn target(server: &Listener, key: &ClusterKey) -> Target {
        target_at(&server.local_addr().to_string(), key)
    }

    fn target_at(address: &str, key: &ClusterKey) -> Target {
        Target {
            address: address.to_owned(),
            to: "echo",
            from: "test",
            flag: "--echo",
            is_plain: false,
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
            link.ask(request).unwrap();
            assert_eq!(link.answer(soon()).unwrap(), request);
        }
        link.ask(b"close").unwrap();
        assert!(link.answer(soon()).is_err());
    }

    #[test]
    fn another_key_is_noticed_by_both_ends() {
        let key = ClusterKey::random();
        let server = echo(&key, None);
        let error = Link::connect(&target(&server, &ClusterKey::random())).unwrap_err();
        assert!(error.to_string().contains("does not have the same cluster key"), "{error}");
        let mut wrong = target(&server, &key);
        wrong.to = "another";
        assert!(Link::connect(&wrong).is_err(), "each component answers to its own name alone");
        // One that does not look at the answerer's proof still gets nothing.
        let (source, writer) = Conn::plain(TcpStream::connect(server.local_addr()).unwrap()).split();
        let mut reader = FrameReader::new(source, LineLimits::new(HELLO_MAX));
        let hello = Shake::Hello { from: "test".into(), to: "echo".into(), nonce: "00".into() };
        Framing::Frames.write(&writer, &json(&hello)).unwrap();
        let welcome: Welcome = serde_json::from_slice(&reader.read_frame().unwrap().unwrap()).unwrap();
        // Its own proof, sent back.
        Framing::Frames.write(&writer, &json(&Shake::Proof { proof: welcome.proof })).unwrap();
        let _ = Framing::Frames.write(&writer, b"hello"); // may be closed already
        assert!(!matches!(reader.read_frame(), Ok(Some(_))));
    }

    #[test]
    fn with_tls_a_proof_is_of_no_use_to_one_in_between() {
        let dir = || tempfile::tempdir().unwrap();
        let (one, other) = (dir(), dir());
        let identities = [&one, &other].map(|dir| Arc::new(Identity::load_or_create(dir.path()).unwrap()));
        let key = ClusterKey::random();
        let server = echo(&key, Some(Arc::clone(&identities[0])));
        let connect = |fingerprint: &str| {
            let stream = TcpStream::connect(server.local_addr()).unwrap();
            let conn = Conn::tls_client_unpinned(stream, soon()).unwrap();
            assert_eq!(conn.peer_fingerprint().as_deref(), Some(identities[0].fingerprint()));
            let (source, writer) = conn.split();
            let mut reader = FrameReader::new(source, LineLimits::new(HELLO_MAX));
            let hello = Shake::Hello { from: "test".into(), to: "echo".into(), nonce: "00".into() };
            Framing::Frames.write(&writer, &json(&hello)).unwrap();
            let welcome: Welcome = serde_json::from_slice(&reader.read_frame().unwrap().unwrap()).unwrap();
            let oath =
                Oath { from: "test", to: "echo", asker_nonce: "00", answerer_nonce: &welcome.nonce, fingerprint };
            let is_answerer = oath.verify(&key, ANSWERER, &welcome.proof);
            Framing::Frames.write(&writer, &json(&Shake::Proof { proof: oath.prove(&key, ASKER) })).unwrap();
            let _ = Framing::Frames.write(&writer, b"hello"); // may be closed already
            (is_answerer, matches!(reader.read_frame(), Ok(Some(_))))
        };
        assert_eq!(connect(identities[0].fingerprint()), (true, true));
        // What one would prove who sees the certificate of somebody in between.
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
        let nowhere = Target { address: "no such host".to_owned(), ..target };
        assert!(matches!(Link::connect(&nowhere), Err(LinkError::Address { .. })));
    }
}
