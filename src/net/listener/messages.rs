//! Requests are read one after the other, each handled before the next is read.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{AcceptedConnection, BusyResponse, ConnectionHandler, NegotiatedConnection, Permit};
use crate::model::text;
use crate::net::budget::{ReceiveBudget, Reservation};
use crate::net::conn::{ConnReader, ConnWriter};
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::Counter;
use crate::net::frames::{Framing, MessageReader};
use crate::net::lines::{LineError, LineLimits};
use crate::net::source::SourceKey;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageFraming {
    /// One JSON object per line or per length-prefixed frame, whichever the client's first byte shows.
    JsonLinesOrFrames,
    /// One JSON object per line. Empty lines are skipped, and so is a byte order mark.
    JsonLines,
    /// Lines of any content.
    Lines,
}

/// A connection or message is rejected before the service sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("too many connections; try again")]
    TooManyConnections,
    /// All connections of the process together have received as much as they may.
    #[error("too much is being received at the moment; try again")]
    BudgetExhausted,
    #[error("the message is longer than {max_bytes} bytes")]
    TooLong { max_bytes: usize },
    #[error("the message was not complete {} s after its first byte", timeout.as_secs_f64())]
    Timeout { timeout: Duration },
    #[error("from another host this port wants TLS")]
    TlsRequired,
}

impl Rejection {
    /// The client may succeed a moment later.
    pub fn is_busy(self) -> bool {
        matches!(self, Rejection::TooManyConnections | Rejection::BudgetExhausted)
    }

    fn of(error: &LineError) -> Option<Rejection> {
        match error {
            LineError::Busy => Some(Rejection::BudgetExhausted),
            LineError::TooLong { max_bytes } => Some(Rejection::TooLong { max_bytes: *max_bytes }),
            LineError::MessageTimeout { timeout } => Some(Rejection::Timeout { timeout: *timeout }),
            LineError::Idle { .. } | LineError::Truncated | LineError::NotUtf8 | LineError::Io(_) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterMessage {
    Continue,
    /// Nothing more is written, but the client can still read what was.
    Close,
    Closed,
}

pub trait MessageService: Send + Sync + 'static {
    /// The state of one connection.
    type Session;

    /// The service's name in the log.
    const NAME: &'static str;
    const FRAMING: MessageFraming;

    fn limits(&self) -> LineLimits;

    /// The message is in the service's own format; `None`: the connection is closed silently.
    fn rejection_message(&self, why: Rejection) -> Option<Vec<u8>>;

    /// Called for each rejection that was sent.
    fn count_rejected(&self) {}

    /// The counter of connections that failed or were closed for an error.
    fn connections_failed(&self) -> &Counter;

    fn on_connect(&self, connection: &MessageConnection) -> Self::Session;

    /// After its first request a connection is not evicted any more.
    fn is_request(&self, _message: &[u8]) -> bool {
        true
    }

    /// Handles a message and writes the response.
    fn handle(
        &self,
        client: &mut Self::Session,
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd>;

    /// Whether the connection may be evicted until its next message, because nothing is lost by that.
    fn is_evictable(&self, _client: &Self::Session) -> bool {
        false
    }

    /// After this long without a message, [`on_idle`](MessageService::on_idle) is called once.
    fn idle_notice_after(&self, _client: &Self::Session) -> Option<Duration> {
        None
    }

    /// The time of [`idle_notice_after`](MessageService::idle_notice_after) has passed, which is then asked for anew.
    fn on_idle(&self, _client: &mut Self::Session) {}
}

pub struct MessageHandler<S>(pub S);

impl<S: MessageService> ConnectionHandler for MessageHandler<S> {
    fn busy_response(&self) -> BusyResponse {
        match self.0.rejection_message(Rejection::TooManyConnections) {
            Some(message) if S::FRAMING == MessageFraming::JsonLinesOrFrames => {
                BusyResponse::in_client_framing(&message)
            }
            Some(message) => BusyResponse::from([&message[..], b"\n"].concat()),
            None => BusyResponse::from(Vec::new()),
        }
    }

    fn serve(&self, accepted: AcceptedConnection) {
        let source = accepted.source();
        match serve(&self.0, accepted) {
            Ok(()) | Err(ConnectionEnd::Idle) => {}
            Err(ConnectionEnd::Failed(why)) => {
                self.0.connections_failed().add(1);
                log::debug!("{}: connection from {source}: {why}", S::NAME);
            }
        }
    }
}

#[derive(Debug)]
pub struct MessageConnection {
    reader: MessageReader<ConnReader>,
    writer: ConnWriter,
    source: SocketAddr,
    is_tls: bool,
    /// Declared last, so that the descriptor is closed before the permit is returned.
    permit: Permit,
}

impl MessageConnection {
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Whether no third party can read along: it uses TLS or does not leave this host.
    pub fn is_private(&self) -> bool {
        self.is_tls || super::is_local_client(self.stream(), self.source.ip())
    }

    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub fn stream(&self) -> &Arc<TcpStream> {
        self.writer.stream()
    }

    pub fn writer(&self) -> &ConnWriter {
        &self.writer
    }

    /// Both halves, for a service that reads further messages itself.
    pub fn halves(&mut self) -> (&mut MessageReader<ConnReader>, &ConnWriter) {
        (&mut self.reader, &self.writer)
    }

    /// Writes in the client's framing. A long message has more time.
    pub fn write(&self, message: &[u8]) -> io::Result<()> {
        self.reader.framing().write(&self.writer, message)
    }

    /// The connection is not evicted any more. False if it was evicted already.
    #[must_use]
    pub fn mark_request_completed(&mut self) -> bool {
        self.permit.mark_request_completed()
    }

    /// How many connections this port is guaranteed.
    pub fn guaranteed_connections(&self) -> usize {
        self.permit.guaranteed()
    }

    /// See [`Permit::source`].
    pub fn source_key(&self) -> SourceKey {
        self.permit.source()
    }

    /// What is received from now on counts as a link's in the receive budget.
    pub fn count_as_link(&mut self, budget: &Arc<ReceiveBudget>) {
        self.reader.set_reservation(Reservation::for_link(Arc::clone(budget)));
    }

    fn mark_pending(&mut self) {
        let stream = Arc::clone(self.writer.stream());
        self.permit.mark_pending(&stream);
    }

    fn reject<S: MessageService>(mut self, service: &S, why: Rejection) -> io::Result<()> {
        if let Some(message) = service.rejection_message(why) {
            service.count_rejected();
            self.write(&message)?;
            self.linger();
        }
        Ok(())
    }

    /// Lets the client read our last message: see [`MessageReader::linger`]. Meanwhile it may be evicted.
    fn linger(&mut self) {
        self.mark_pending();
        self.reader.linger(&self.writer);
    }
}

fn serve<S: MessageService>(service: &S, accepted: AcceptedConnection) -> Result<(), ConnectionEnd> {
    let limits = service.limits();
    let NegotiatedConnection { conn, source, is_transport_allowed: may_speak, reservation, is_stopping, permit } =
        accepted.negotiate(limits.idle_timeout, HANDSHAKE_TIMEOUT)?;
    let is_tls = conn.is_tls();
    let (incoming, writer) = conn.split();
    let reader = match S::FRAMING {
        MessageFraming::JsonLinesOrFrames => {
            let Some(reader) = MessageReader::detect_framing(incoming, limits, reservation)? else { return Ok(()) };
            reader
        }
        MessageFraming::JsonLines | MessageFraming::Lines => MessageReader::lines(incoming, limits, reservation),
    };
    let reader = reader.accepting_unterminated_line(is_stopping);
    let mut connection = MessageConnection { reader, writer, source, is_tls, permit };
    let mut client = service.on_connect(&connection);
    loop {
        let pause = service.idle_notice_after(&client);
        let idle = pause.map_or(limits.idle_timeout, |pause| pause.min(limits.idle_timeout));
        let mut message = match connection.reader.read_before(Instant::now() + idle) {
            Ok(Some(message)) => message,
            Ok(None) => {
                connection.writer.shut_down_write();
                return Ok(());
            }
            Err(LineError::Idle { .. }) if pause.is_some() => {
                service.on_idle(&mut client);
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
            if connection.reader.framing() == Framing::Lines && message.trim_ascii().is_empty() {
                continue;
            }
        }
        if !may_speak {
            connection.reject(service, Rejection::TlsRequired)?;
            return Ok(());
        }
        if service.is_request(&message) && !connection.mark_request_completed() {
            return Ok(());
        }
        match service.handle(&mut client, message, &mut connection)? {
            AfterMessage::Continue => {}
            AfterMessage::Close => {
                connection.linger();
                return Ok(());
            }
            AfterMessage::Closed => return Ok(()),
        }
        if service.is_evictable(&client) {
            connection.mark_pending();
        }
    }
}
