use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::{ListenerContext, Permit};
use crate::net::budget::Reservation;
use crate::net::conn::{Conn, ConnError};

/// Nothing has been read of it yet. The listener keeps a `Weak` of the stream, by which it shuts the stream down.
pub struct AcceptedConnection {
    pub(super) stream: Arc<TcpStream>,
    /// In canonical form.
    pub(super) source: SocketAddr,
    pub(super) context: Arc<ListenerContext>,
    pub(super) is_stopping: Arc<AtomicBool>,
    /// Declared last, so that the descriptor is closed before the permit is returned.
    pub(super) permit: Permit,
}

/// It is known whether it uses TLS.
pub struct NegotiatedConnection {
    pub conn: Conn,
    pub source: SocketAddr,
    /// The client uses TLS or loopback, or plaintext from other hosts was allowed.
    pub is_transport_allowed: bool,
    /// The share of the receive budget for what this client sends.
    pub reservation: Reservation,
    /// Set before the listener's stop shuts reading down: an end of input after that is not the client's.
    pub is_stopping: Arc<AtomicBool>,
    /// Declared last, as in [`AcceptedConnection`].
    pub permit: Permit,
}

impl AcceptedConnection {
    #[cfg(test)]
    pub(in crate::net) fn with_source(
        stream: TcpStream,
        source: SocketAddr,
        allows_remote_plaintext: bool,
    ) -> AcceptedConnection {
        let context = ListenerContext { allows_remote_plaintext, ..ListenerContext::for_test(1, 1) };
        let stream = Arc::new(stream);
        let permit = context.limiter.add_listener(0).admit(source.ip(), &stream).unwrap();
        AcceptedConnection { stream, source, context: Arc::new(context), is_stopping: Arc::default(), permit }
    }

    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// The parts, for services that do not wait for the client to speak first.
    pub fn into_parts(self) -> (Arc<TcpStream>, SocketAddr, Permit) {
        (self.stream, self.source, self.permit)
    }

    /// Waits for the first byte (else `FirstByteTimeout`), which shows whether the client uses TLS, and for the
    /// handshake if it does.
    pub fn negotiate(
        self,
        first_byte_within: Duration,
        handshake_timeout: Duration,
    ) -> Result<NegotiatedConnection, ConnError> {
        let AcceptedConnection { stream, source, context, is_stopping, permit } = self;
        let conn = match &context.identity {
            Some(identity) => Conn::accept(stream, identity, Instant::now() + first_byte_within, handshake_timeout)?,
            None => Conn::plain(stream),
        };
        let may_speak = conn.is_tls() || source.ip().is_loopback() || context.allows_remote_plaintext;
        let reservation = Reservation::for_client(Arc::clone(&context.budget), permit.source());
        Ok(NegotiatedConnection { conn, source, is_transport_allowed: may_speak, reservation, is_stopping, permit })
    }
}
