use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{LINE_MAX, MESSAGE_TIMEOUT, ServerInner, StoredExchange, WAITING_DEPARTURES_MAX};
use crate::model::Name;
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::Counter;
use crate::net::lines::LineLimits;
use crate::net::listener::{AfterMessage, MessageConnection, MessageFraming, MessageService, Rejection};
use crate::net::udp::Datagram;
use crate::storage::{CommitHandle, StoreError};
use crate::trade::exchange::{ExchangeEffects, RequestOrigin, Transport};
use crate::trade::wire::{
    self, DATAGRAM_MAX, DealRequest, ErrorCode, PeerMessage, Request, RequestBody, RequestError, Response, encode,
};

#[derive(Clone, Copy)]
pub(super) struct ResponseContext {
    pub(super) origin: RequestOrigin,
    pub(super) length: usize,
    /// Whether it was when the datagram arrived. The response is sent there even if the request gives up that address.
    pub(super) is_validated: bool,
    pub(super) received_at: Instant,
}

/// Connections to the trade port carry BUY requests, one a line.
pub(super) struct TradeService(pub(super) Arc<ServerInner>);

impl MessageService for TradeService {
    type Session = ();
    const NAME: &'static str = "trade";
    const FRAMING: MessageFraming = MessageFraming::JsonLines;

    fn limits(&self) -> LineLimits {
        LineLimits::new(LINE_MAX)
    }

    fn rejection_message(&self, why: Rejection) -> Option<Vec<u8>> {
        let code = if why.is_busy() { ErrorCode::Busy } else { ErrorCode::BadRequest };
        Some(encode(&Response::error(None, RequestError::new(code, why.to_string()))))
    }

    fn count_rejected(&self) {
        self.0.counters.errors.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn on_connect(&self, _connection: &MessageConnection) {}

    fn handle(
        &self,
        (): &mut (),
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd> {
        let inner = &self.0;
        let failed = RefCell::new(None);
        let write = |response: Response| {
            if let Err(error) = connection.writer().write_line(encode(&response), Instant::now() + MESSAGE_TIMEOUT) {
                *failed.borrow_mut() = Some(error);
            }
        };
        let respond_error = |rq, error: RequestError| {
            inner.counters.errors.add(1);
            write(Response::error(rq, error));
        };
        match wire::parse_message(&message) {
            PeerMessage::Request(request)
                if matches!(request.body, RequestBody::Deal { request: DealRequest::Buy { .. }, .. }) =>
            {
                drop(message);
                inner.counters.requests.add(1);
                let origin = RequestOrigin { source: connection.source(), local_ip: None, transport: Transport::Tcp };
                inner.serve_request(&origin, &request, &write);
            }
            PeerMessage::Request(request) => {
                let error = RequestError::new(ErrorCode::BadRequest, "type: only BUY is taken on a connection");
                respond_error(Some(request.rq), error);
            }
            PeerMessage::Invalid(rq, error) => respond_error(rq, error),
            PeerMessage::Ack(_) | PeerMessage::Ignored => inner.counters.ignored.add(1),
        }
        match failed.into_inner() {
            Some(error) => Err(error.into()),
            None => Ok(AfterMessage::Continue),
        }
    }
}

impl ServerInner {
    pub(super) fn handle_datagram(self: &Arc<Self>, datagram: Datagram<&[u8]>) {
        let received_at = Instant::now();
        let source = SocketAddr::new(datagram.source.ip().to_canonical(), datagram.source.port());
        let length = datagram.bytes.len();
        let exchange = self.exchange();
        let response_context = ResponseContext {
            origin: RequestOrigin { source, local_ip: self.local_ip(datagram.to), transport: Transport::Udp },
            length,
            is_validated: exchange.datagram_received(source, length),
            received_at,
        };
        if datagram.is_truncated {
            let reason = format!("the datagram is longer than {DATAGRAM_MAX} bytes");
            let error = RequestError::new(ErrorCode::BadRequest, reason);
            return self.respond(&exchange, &response_context, Response::error(None, error));
        }
        match wire::parse_message(datagram.bytes) {
            PeerMessage::Request(request) => {
                self.counters.requests.add(1);
                self.handle_request(&exchange, response_context, request);
            }
            PeerMessage::Ack(ack) => {
                let known = exchange.acknowledge(self.now(), source, &ack);
                if known { &self.counters.acks } else { &self.counters.acks_unknown }.add(1);
            }
            PeerMessage::Ignored => self.counters.ignored.add(1),
            PeerMessage::Invalid(rq, error) => self.respond(&exchange, &response_context, Response::error(rq, error)),
        }
    }

    /// The address that the system tells the datagram was sent to, else the one that is bound.
    fn local_ip(&self, to: Option<IpAddr>) -> Option<IpAddr> {
        let bound = self.config.addr.ip().to_canonical();
        to.map(|to| to.to_canonical()).or((!bound.is_unspecified()).then_some(bound))
    }

    /// If all that remains is to wait for the commit and to send a few datagrams, a callback of the store does so and
    /// the thread is free. Otherwise it would sleep twice, for the commit and for the next datagram, which costs more
    /// than all the rest.
    fn handle_request(
        self: &Arc<Self>,
        exchange: &Arc<StoredExchange>,
        response_context: ResponseContext,
        request: Request,
    ) {
        let effects = exchange.handle_request(self.now(), &response_context.origin, &request);
        let permit = (effects.is_brief() && !effects.commit.has_run_callbacks())
            .then(|| self.pending_commits.try_acquire())
            .flatten();
        let Some(permit) = permit else {
            let respond = |response| self.respond(exchange, &response_context, response);
            if let Err(error) =
                self.apply_request_effects(exchange, effects, response_context.origin.source, &request, &respond)
            {
                self.retry(error, &response_context.origin, &request, &respond);
            }
            return;
        };
        let (commit, inner, exchange) = (effects.commit.clone(), Arc::clone(self), Arc::clone(exchange));
        commit.on_commit(move |stored| match stored {
            Ok(()) => {
                inner.send_effects(&exchange, effects, &|response| {
                    inner.respond(&exchange, &response_context, response)
                });
                drop(permit);
            }
            // Rebuilding and retrying take a while.
            Err(error) => {
                let (waiting, failed, rq, cause) =
                    (Arc::clone(&inner), Arc::clone(&exchange), request.rq, error.clone());
                let retry = move || {
                    inner.handle_store_failure(&exchange, &cause);
                    let respond = |response| inner.respond(&inner.exchange(), &response_context, response);
                    inner.retry(cause, &response_context.origin, &request, &respond);
                    drop(permit);
                };
                if waiting.context.executor.execute(retry).is_err() {
                    waiting.respond(&failed, &response_context, unavailable(rq, &error));
                }
            }
        });
    }

    fn serve_request(self: &Arc<Self>, origin: &RequestOrigin, request: &Request, respond: &dyn Fn(Response)) {
        let exchange = self.exchange();
        let effects = exchange.handle_request(self.now(), origin, request);
        if let Err(error) = self.apply_request_effects(&exchange, effects, origin.source, request, respond) {
            self.retry(error, origin, request, respond);
        }
    }

    /// Handles a request again whose changes were not stored. The cause may be an earlier change that nobody waited for
    /// (an ACK), and the disk may work again. The rebuilt exchange holds nothing of this request.
    fn retry(
        self: &Arc<Self>,
        error: StoreError,
        origin: &RequestOrigin,
        request: &Request,
        respond: &dyn Fn(Response),
    ) {
        let effects = |exchange: &StoredExchange| exchange.handle_request(self.now(), origin, request);
        let result = match error {
            StoreError::Unavailable(_) => {
                let exchange = self.exchange();
                self.apply_request_effects(&exchange, effects(&exchange), origin.source, request, respond)
            }
            error => Err(error),
        };
        if let Err(error) = result {
            respond(unavailable(request.rq, &error));
        }
    }

    /// A DE-REGISTER then waits for the peer's settlements.
    fn apply_request_effects(
        self: &Arc<Self>,
        exchange: &Arc<StoredExchange>,
        effects: ExchangeEffects<CommitHandle>,
        source: SocketAddr,
        request: &Request,
        respond: &dyn Fn(Response),
    ) -> Result<(), StoreError> {
        let departing = effects.departing;
        self.apply_effects(exchange, effects, respond)?;
        if let Some(registration_id) = departing {
            self.await_departure(source, request.rq, &request.name, registration_id, respond);
        }
        Ok(())
    }

    fn await_departure(
        self: &Arc<Self>,
        source: SocketAddr,
        rq: u64,
        name: &Name,
        registration_id: u64,
        respond: &dyn Fn(Response),
    ) {
        // Enough for connecting, TLS, two answers and two calls to the bank: only a bank that does not answer takes
        // longer.
        let deadline = Instant::now() + 6 * self.config.settle_timeout + MESSAGE_TIMEOUT;
        let reason = "a settlement is under way; try again";
        let busy = || Response::error(Some(rq), RequestError::new(ErrorCode::Busy, reason));
        {
            let mut waiting = self.settlement_ended.0.lock();
            if *waiting >= WAITING_DEPARTURES_MAX {
                drop(waiting);
                return respond(busy());
            }
            *waiting += 1;
        }
        loop {
            let exchange = self.exchange();
            let effects = exchange.resume_departure(self.now(), source, rq, name, registration_id);
            let departing = effects.departing.is_some();
            if let Err(error) = self.apply_effects(&exchange, effects, respond) {
                respond(unavailable(rq, &error));
                break;
            }
            if !departing {
                break;
            }
            let mut waiting = self.settlement_ended.0.lock();
            // A settlement may have ended between the check and the lock.
            let recheck_at = deadline.min(Instant::now() + Duration::from_secs(1));
            let _ = self.settlement_ended.1.wait_until(&mut waiting, recheck_at);
            drop(waiting);
            if Instant::now() >= deadline || self.is_past_stop() {
                exchange.cancel_departure(name, registration_id);
                respond(busy());
                break;
            }
        }
        *self.settlement_ended.0.lock() -= 1;
    }
}

fn unavailable(rq: u64, error: &StoreError) -> Response {
    let reason = format!("nothing changed, try again: {error}");
    Response::error(Some(rq), RequestError::new(ErrorCode::Unavailable, reason))
}
