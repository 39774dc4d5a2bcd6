//! Ports that speak in messages: one after the other, each answered before the next is read.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Accepted, Busy, Connection, Permit, Protocol};
use crate::model::text;
use crate::net::budget::{Budget, Share};
use crate::net::conn::{ConnReader, ConnWriter};
use crate::net::counters::Counter;
use crate::net::ended::Ended;
use crate::net::frames::MessageReader;
use crate::net::lines::{LineError, LineLimits};
use crate::net::source::Source;

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a port tells messages from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageFraming {
    /// A JSON object a line, or one behind its length, as the first byte tells.
    JsonLinesOrFrames,
    /// A JSON object a line. Empty lines are none, and a byte order mark before it is skipped.
    JsonLines,
    /// Lines as they are.
    Lines,
}

/// Why something is refused before the room has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Too many connections are open.
    #[error("too many connections; try again")]
    Connections,
    /// All connections of the process together have received as much as they may.
    #[error("too much is being received at the moment; try again")]
    Bytes,
    /// The message is longer than allowed.
    #[error("the message is longer than {max_bytes} bytes")]
    TooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// The message was not complete in time.
    #[error("the message was not complete {} s after its first byte", timeout.as_secs_f64())]
    Late {
        /// The limit.
        timeout: Duration,
    },
    /// The client is on another host and speaks without TLS.
    #[error("from another host this port wants TLS")]
    WantsTls,
}

impl Rejection {
    /// Whether the same may be taken a moment later.
    pub fn is_busy(self) -> bool {
        matches!(self, Rejection::Connections | Rejection::Bytes)
    }

    fn of(error: &LineError) -> Option<Rejection> {
        match error {
            LineError::Busy => Some(Rejection::Bytes),
            LineError::TooLong { max_bytes } => Some(Rejection::TooLong { max_bytes: *max_bytes }),
            LineError::MessageTimeout { timeout } => Some(Rejection::Late { timeout: *timeout }),
            LineError::Idle { .. } | LineError::Truncated | LineError::NotUtf8 | LineError::Io(_) => None,
        }
    }
}

/// What becomes of a connection after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next message.
    Continue,
    /// We say nothing more; the client may still read what was said.
    Close,
    /// Both ends are done.
    Over,
}

/// What a room brings to a port of messages.
pub trait MessageService: Send + Sync + 'static {
    /// What it remembers of a connection.
    type Client;

    /// Its name, for the log.
    const NAME: &'static str;
    /// How messages are told from each other.
    const FRAMING: MessageFraming;

    /// How long a message may be, and how long it may take.
    fn limits(&self) -> LineLimits;

    /// What a client is told whose message, or who himself, is refused here: one message, in the room's own words.
    /// None: it is closed without a word.
    fn rejection(&self, why: Rejection) -> Option<Vec<u8>>;

    /// Counts what was refused here.
    fn count_rejected(&self) {}

    /// Counts connections that failed, or were closed for what came.
    fn connections_failed(&self) -> &Counter;

    /// A connection has begun.
    fn connected(&self, connection: &MessageConnection) -> Self::Client;

    /// Whether a message is a request, so that who sent it gives way to no other any more.
    fn is_request(&self, _message: &[u8]) -> bool {
        true
    }

    /// Does what a message asks for, and answers.
    ///
    /// # Errors
    /// [`Ended`]: the connection is of no use any more.
    fn message(
        &self,
        client: &mut Self::Client,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<After, Ended>;

    /// Whether the connection gives way again until its next message, because nothing is lost by that.
    fn gives_way(&self, _client: &Self::Client) -> bool {
        false
    }

    /// After so long without a message [`paused`](MessageService::paused) is called, once.
    fn pause(&self, _client: &Self::Client) -> Option<Duration> {
        None
    }

    /// Nothing came for the time of [`pause`](MessageService::pause), which is asked for anew.
    fn paused(&self, _client: &mut Self::Client) {}
}

/// A room's port of messages, as the listener serves it.
pub struct Messages<S>(pub S);

impl<S: MessageService> Protocol for Messages<S> {
    fn busy(&self) -> Busy {
        match self.0.rejection(Rejection::Connections) {
            Some(message) if S::FRAMING == MessageFraming::JsonLinesOrFrames => Busy::in_either_framing(&message),
            Some(message) => Busy::from([&message[..], b"\n"].concat()),
            None => Busy::from(Vec::new()),
        }
    }

    fn serve(&self, accepted: Accepted) {
        let source = accepted.source();
        match serve(&self.0, accepted) {
            // Who says nothing more is no failure.
            Ok(()) | Err(Ended::Silent) => {}
            Err(Ended::Failed(why)) => {
                self.0.connections_failed().add(1);
                log::debug!("{}: connection from {source}: {why}", S::NAME);
            }
        }
    }
}

/// A connection in the middle of its messages.
pub struct MessageConnection {
    reader: MessageReader<ConnReader>,
    writer: ConnWriter,
    source: SocketAddr,
    is_tls: bool,
    /// The last to be dropped: the descriptor is free by then.
    permit: Permit,
}

impl MessageConnection {
    /// Who it is that speaks.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Whether nobody between the two can listen: it is TLS, or does not leave this host.
    pub fn is_private(&self) -> bool {
        self.is_tls || super::is_from_here(self.stream(), self.source.ip())
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The stream beneath.
    pub fn stream(&self) -> &Arc<TcpStream> {
        self.writer.stream()
    }

    /// What is written goes there.
    pub fn writer(&self) -> &ConnWriter {
        &self.writer
    }

    /// Both halves, for who reads on by himself.
    pub fn halves(&mut self) -> (&mut MessageReader<ConnReader>, &ConnWriter) {
        (&mut self.reader, &self.writer)
    }

    /// Writes one message, framed as the client does it; a long one has the more time.
    ///
    /// # Errors
    /// As [`ConnWriter::write_all`].
    pub fn write(&self, message: &[u8]) -> io::Result<()> {
        self.reader.framing().write(&self.writer, message)
    }

    /// It gives way to no other any more. False if it had to already.
    #[must_use]
    pub fn settle(&mut self) -> bool {
        self.permit.request_completed()
    }

    /// How many connections this port is sure of.
    pub fn sure(&self) -> usize {
        self.permit.sure()
    }

    /// Whose it is where connections are counted: see [`Permit::source`].
    pub fn counts_for(&self) -> Source {
        self.permit.source()
    }

    /// What is received from now on counts for a component, not for a client.
    pub fn becomes_link(&mut self, budget: &Arc<Budget>) {
        self.reader.set_share(Share::of_link(Arc::clone(budget)));
    }

    fn give_way(&mut self) {
        let stream = Arc::clone(self.writer.stream());
        self.permit.await_request(&stream);
    }

    /// Refuses in the room's words, and lets the client read that.
    fn reject<S: MessageService>(mut self, service: &S, why: Rejection) -> io::Result<()> {
        if let Some(message) = service.rejection(why) {
            service.count_rejected();
            self.write(&message)?;
            self.linger();
        }
        Ok(())
    }

    /// Closing at once would reset the connection if more has come, and the other end might never read our last
    /// word. Meanwhile it gives way.
    fn linger(&mut self) {
        self.give_way();
        self.reader.linger(&self.writer);
    }
}

impl fmt::Debug for MessageConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageConnection")
            .field("source", &self.source)
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

fn serve<S: MessageService>(service: &S, accepted: Accepted) -> Result<(), Ended> {
    let limits = service.limits();
    let Connection { conn, source, may_speak, share, is_stopping, permit } =
        accepted.begin(limits.idle_timeout, HANDSHAKE_TIMEOUT)?;
    let is_tls = conn.is_tls();
    let (incoming, writer) = conn.split();
    let reader = match S::FRAMING {
        MessageFraming::JsonLinesOrFrames => {
            let Some(reader) = MessageReader::begin(incoming, limits, share)? else { return Ok(()) };
            reader
        }
        MessageFraming::JsonLines | MessageFraming::Lines => MessageReader::lines(incoming, limits, share),
    };
    let reader = reader.taking_last_line(is_stopping);
    let mut connection = MessageConnection { reader, writer, source, is_tls, permit };
    let mut client = service.connected(&connection);
    loop {
        let pause = service.pause(&client);
        let idle = pause.map_or(limits.idle_timeout, |pause| pause.min(limits.idle_timeout));
        let mut message = match connection.reader.read_before(Instant::now() + idle) {
            Ok(Some(message)) => message,
            Ok(None) => {
                connection.writer.finish();
                return Ok(());
            }
            Err(LineError::Idle { .. }) if pause.is_some() => {
                service.paused(&mut client);
                continue;
            }
            Err(error) => {
                if let Some(why) = Rejection::of(&error) {
                    connection.reject(service, why)?;
                }
                return Err(error.into());
            }
        };
        if S::FRAMING != MessageFraming::Lines {
            let mark = message.len() - text::without_bom(&message).len();
            if mark > 0 {
                message.drain(..mark);
            }
            if connection.reader.is_of_lines() && message.trim_ascii().is_empty() {
                continue;
            }
        }
        if !may_speak {
            connection.reject(service, Rejection::WantsTls)?;
            return Ok(());
        }
        if service.is_request(&message) && !connection.settle() {
            return Ok(());
        }
        match service.message(&mut client, message, &mut connection)? {
            After::Continue => {}
            After::Close => {
                connection.linger();
                return Ok(());
            }
            After::Over => return Ok(()),
        }
        if service.gives_way(&client) {
            connection.give_way();
        }
    }
}
