use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::{ListenerContext, Permit};
use crate::net::budget::Reservation;
use crate::net::conn::{Conn, ConnError};

/// Nothing has been read of it yet. The listener keeps a `Weak` of the stream, by which it shuts the stream down.
pub struct AcceptedConnection {
    stream: Arc<TcpStream>,
    source: SocketAddr,
    context: Arc<ListenerContext>,
    is_stopping: Arc<AtomicBool>,
    /// Declared last, so that the descriptor is closed before the permit is returned.
    permit: Permit,
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
    /// `source` must be in canonical form.
    pub(in crate::net) fn new(
        stream: Arc<TcpStream>,
        source: SocketAddr,
        permit: Permit,
        context: Arc<ListenerContext>,
        is_stopping: Arc<AtomicBool>,
    ) -> AcceptedConnection {
        AcceptedConnection { stream, source, context, is_stopping, permit }
    }

    #[cfg(test)]
    pub(in crate::net) fn with_source(
        stream: TcpStream,
        source: SocketAddr,
        allows_remote_plaintext: bool,
    ) -> AcceptedConnection {
        use super::ConnectionLimiter;
        use crate::net::budget::ReceiveBudget;
        use crate::net::threads::Executor;
        let limiter = ConnectionLimiter::new(1);
        let (executor, budget) = (Executor::new("test", 1), ReceiveBudget::new(1 << 20));
        let stream = Arc::new(stream);
        let permit = limiter.add_listener(0).admit(source.ip(), &stream).unwrap();
        let context = ListenerContext { executor, limiter, budget, identity: None, allows_remote_plaintext };
        AcceptedConnection::new(stream, source, permit, Arc::new(context), Arc::default())
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
