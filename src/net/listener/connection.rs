//! A connection between its acceptance and its first message.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::{ListenerContext, Permit};
use crate::net::budget::Share;
use crate::net::conn::{Conn, ConnError};

/// A connection of which nothing was read yet.
///
/// The stream comes in an `Arc` because the listener keeps a `Weak` to shut it down by. Reading and writing work on
/// `&TcpStream`.
pub struct Accepted {
    stream: Arc<TcpStream>,
    source: SocketAddr,
    context: Arc<ListenerContext>,
    is_stopping: Arc<AtomicBool>,
    /// The last to be dropped: its descriptor is free by then.
    permit: Permit,
}

/// A connection of which is known whether it is TLS.
pub struct Connection {
    /// To be read and written.
    pub conn: Conn,
    /// Who it comes from.
    pub source: SocketAddr,
    /// Its client may speak as it does: from other hosts with TLS, unless it was allowed otherwise.
    pub may_speak: bool,
    /// For what is received.
    pub share: Share,
    /// Set before the listener's stop ends what is read: then that is no end of the client's.
    pub is_stopping: Arc<AtomicBool>,
    /// The last to be dropped, likewise.
    pub permit: Permit,
}

impl Accepted {
    /// From `source`, which is in canonical form.
    pub(in crate::net) fn new(
        stream: Arc<TcpStream>,
        source: SocketAddr,
        permit: Permit,
        context: Arc<ListenerContext>,
        is_stopping: Arc<AtomicBool>,
    ) -> Accepted {
        Accepted { stream, source, context, is_stopping, permit }
    }

    /// One that seems to come from there.
    #[cfg(test)]
    pub(in crate::net) fn as_if_from(stream: TcpStream, source: SocketAddr, plain_from_afar: bool) -> Accepted {
        use super::ConnectionLimiter;
        use crate::net::budget::Budget;
        use crate::net::threads::Executor;
        let limiter = ConnectionLimiter::new(1);
        let (executor, budget) = (Executor::new("test", 1), Budget::new(1 << 20));
        let stream = Arc::new(stream);
        let permit = limiter.listener(0).enter(source.ip(), &stream).unwrap();
        let context = ListenerContext { executor, limiter, budget, identity: None, plain_from_afar };
        Accepted::new(stream, source, permit, Arc::new(context), Arc::default())
    }

    /// Who it comes from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// For whoever does not wait for the client to speak first.
    pub fn into_parts(self) -> (Arc<TcpStream>, SocketAddr, Permit) {
        (self.stream, self.source, self.permit)
    }

    /// Waits for the first byte, which tells whether it is TLS, and for the handshake if it is. Where there is no
    /// certificate, everything is taken as it comes.
    ///
    /// # Errors
    /// [`ConnError`]; `Silent` if nothing comes.
    pub fn begin(self, first_byte_within: Duration, handshake_timeout: Duration) -> Result<Connection, ConnError> {
        let Accepted { stream, source, context, is_stopping, permit } = self;
        let conn = match &context.identity {
            Some(identity) => {
                Conn::accept_any(stream, identity, Instant::now() + first_byte_within, handshake_timeout)?
            }
            None => Conn::plain(stream),
        };
        let may_speak = conn.is_tls() || source.ip().is_loopback() || context.plain_from_afar;
        let share = Share::of(Arc::clone(&context.budget), permit.source());
        Ok(Connection { conn, source, may_speak, share, is_stopping, permit })
    }
}
