//! What comes in: datagrams, lines on connections, and the requests that both hold.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{DATAGRAMS_IN_HAND_MAX, Ex, LEAVING_MAX, LINE_MAX, MESSAGE_TIMEOUT, Shared};
use crate::model::Name;
use crate::net::counters::Counter;
use crate::net::ended::Ended;
use crate::net::lines::LineLimits;
use crate::net::listener::{After, MessageConnection, MessageFraming, MessageService, Rejection};
use crate::net::udp::Datagram;
use crate::storage::{CommitHandle, StoreError};
use crate::trade::exchange::{Origin, Outcome, Via};
use crate::trade::wire::{self, Ask, Code, DATAGRAM_MAX, Inbound, Refusal, Reply, Request, encode};

/// Who sent a datagram, and what may be answered to it.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub(super) origin: Origin,
    /// Of the datagram, bytes.
    pub(super) length: usize,
    /// It came from an address that had proved that it hears: its own answer goes there, also where the
    /// request gave up the address.
    pub(super) proved: bool,
    /// When it came.
    pub(super) came_at: Instant,
}

/// A request that is left with the store, as long as it is: they have a bound, as threads have.
struct Place(Arc<Shared>);

impl Place {
    /// Nothing when all are taken; then the request waits on its thread.
    fn take(shared: &Arc<Shared>) -> Option<Place> {
        let one_more = |taken| (taken < DATAGRAMS_IN_HAND_MAX).then_some(taken + 1);
        shared.left_with_store.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Place(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.left_with_store.fetch_sub(1, Relaxed);
    }
}

/// The trade port's connections: BUY, a line each.
pub(super) struct TradeService(pub(super) Arc<Shared>);

impl MessageService for TradeService {
    type Client = ();
    const NAME: &'static str = "trade";
    const FRAMING: MessageFraming = MessageFraming::JsonLines;

    fn limits(&self) -> LineLimits {
        LineLimits::new(LINE_MAX)
    }

    fn rejection(&self, why: Rejection) -> Option<Vec<u8>> {
        let code = if why.is_busy() { Code::Busy } else { Code::BadRequest };
        Some(encode(&Reply::Error { rq: None, code, reason: why.to_string() }))
    }

    fn count_rejected(&self) {
        self.0.counters.errors.add(1);
    }

    fn connections_failed(&self) -> &Counter {
        &self.0.counters.connections_failed
    }

    fn connected(&self, _connection: &MessageConnection) {}

    fn message(&self, (): &mut (), message: Vec<u8>, connection: &mut MessageConnection) -> Result<After, Ended> {
        let shared = &self.0;
        let failed = RefCell::new(None);
        let write = |reply: Reply| {
            if let Err(error) = connection.writer().write_line(encode(&reply), Instant::now() + MESSAGE_TIMEOUT) {
                *failed.borrow_mut() = Some(error);
            }
        };
        let refuse = |rq, refusal: Refusal| {
            shared.counters.errors.add(1);
            write(Reply::Error { rq, code: refusal.code, reason: refusal.reason });
        };
        match wire::read(&message) {
            Inbound::Request(request) if matches!(request.ask, Ask::Buy { .. }) => {
                drop(message);
                shared.counters.requests.add(1);
                let origin = Origin { source: connection.source(), asked: None, via: Via::Tcp };
                shared.run(&origin, &request, &write);
            }
            Inbound::Request(request) => {
                let refusal = Refusal::new(Code::BadRequest, "type: only BUY is taken on a connection");
                refuse(Some(request.rq), refusal);
            }
            Inbound::Refused(rq, refusal) => refuse(rq, refusal),
            Inbound::Ack(_) | Inbound::Ignored => shared.counters.ignored.add(1),
        }
        match failed.into_inner() {
            Some(error) => Err(error.into()),
            None => Ok(After::Continue),
        }
    }
}

impl Shared {
    pub(super) fn datagram(self: &Arc<Self>, datagram: Datagram<'_>) {
        let came_at = Instant::now();
        let source = SocketAddr::new(datagram.source.ip().to_canonical(), datagram.source.port());
        let length = datagram.bytes.len();
        let exchange = self.exchange();
        let caller = Caller {
            origin: Origin { source, asked: self.asked(datagram.to), via: Via::Udp },
            length,
            proved: exchange.came(source, length),
            came_at,
        };
        if datagram.truncated {
            let reason = format!("the datagram is longer than {DATAGRAM_MAX} bytes");
            return self.refuse(&exchange, &caller, None, Refusal::new(Code::BadRequest, reason));
        }
        match wire::read(datagram.bytes) {
            Inbound::Request(request) => {
                self.counters.requests.add(1);
                self.request(&exchange, caller, request);
            }
            Inbound::Ack(ack) => {
                let known = exchange.ack(self.now(), source, &ack);
                if known { &self.counters.acks } else { &self.counters.acks_unknown }.add(1);
            }
            Inbound::Ignored => self.counters.ignored.add(1),
            Inbound::Refused(rq, refusal) => self.refuse(&exchange, &caller, rq, refusal),
        }
    }

    /// Which of this host's addresses a peer speaks to: what the system says, else the one that is bound.
    fn asked(&self, to: Option<IpAddr>) -> Option<IpAddr> {
        let bound = self.config.addr.ip().to_canonical();
        to.map(|to| to.to_canonical()).or((!bound.is_unspecified()).then_some(bound))
    }

    /// A request in a datagram. Once nothing is left of it but to wait for the disk and then to send a few
    /// datagrams, that is left with the store, and the thread is free for the next: it would sleep twice,
    /// for the commit and for the next datagram, which is more work than all the rest.
    fn request(self: &Arc<Self>, exchange: &Arc<Ex>, caller: Caller, request: Request) {
        let outcome = exchange.request(self.now(), &caller.origin, &request);
        let place = (outcome.is_brief() && !outcome.receipt.is_settled()).then(|| Place::take(self)).flatten();
        let Some(place) = place else {
            let answer = |reply| self.answer(exchange, &caller, reply);
            if let Err(error) = self.carry_out(exchange, outcome, caller.origin.source, &request, &answer) {
                self.once_more(error, &caller.origin, &request, &answer);
            }
            return;
        };
        let (receipt, exchange) = (outcome.receipt.clone(), Arc::clone(exchange));
        receipt.then(move |stored| match stored {
            Ok(()) => place.0.send_all(&exchange, outcome, &|reply| place.0.answer(&exchange, &caller, reply)),
            // Rebuilding and asking again take a while: that needs a thread of its own again.
            Err(error) => {
                let (shared, failed, rq, cause) =
                    (Arc::clone(&place.0), Arc::clone(&exchange), request.rq, error.clone());
                let retry = move || {
                    place.0.not_stored(&exchange, &cause);
                    let answer = |reply| place.0.answer(&place.0.exchange(), &caller, reply);
                    place.0.once_more(cause, &caller.origin, &request, &answer);
                };
                if shared.floor.executor.execute(retry).is_err() {
                    shared.answer(&failed, &caller, unavailable(rq, &error));
                }
            }
        });
    }

    fn run(self: &Arc<Self>, origin: &Origin, request: &Request, answer: &dyn Fn(Reply)) {
        let exchange = self.exchange();
        let outcome = exchange.request(self.now(), origin, request);
        if let Err(error) = self.carry_out(&exchange, outcome, origin.source, request, answer) {
            self.once_more(error, origin, request, answer);
        }
    }

    /// A request whose change was not stored. It may have failed for something earlier that nobody waits
    /// for (an ACK), on a disk that works by now. Memory has been built anew: nothing of this request is
    /// left in it.
    fn once_more(self: &Arc<Self>, error: StoreError, origin: &Origin, request: &Request, answer: &dyn Fn(Reply)) {
        let outcome = |exchange: &Ex| exchange.request(self.now(), origin, request);
        let result = match error {
            StoreError::Unavailable(_) => {
                let exchange = self.exchange();
                self.carry_out(&exchange, outcome(&exchange), origin.source, request, answer)
            }
            error => Err(error),
        };
        if let Err(error) = result {
            answer(unavailable(request.rq, &error));
        }
    }

    /// Makes a request's outcome real, and waits for what a DE-REGISTER has to wait for.
    fn carry_out(
        self: &Arc<Self>,
        exchange: &Arc<Ex>,
        outcome: Outcome<CommitHandle>,
        source: SocketAddr,
        request: &Request,
        answer: &dyn Fn(Reply),
    ) -> Result<(), StoreError> {
        let leaving = outcome.leaving;
        self.make_real(exchange, outcome, answer)?;
        if let Some(since) = leaving {
            self.leave(source, request.rq, &request.name, since, answer);
        }
        Ok(())
    }

    /// A DE-REGISTER waits here until the peer's settlements are over.
    fn leave(self: &Arc<Self>, source: SocketAddr, rq: u64, name: &Name, since: u64, answer: &dyn Fn(Reply)) {
        // Connecting, TLS, two answers and two visits to the bank: no settlement takes longer unless the
        // bank is away.
        let deadline = Instant::now() + 6 * self.config.settle_timeout + MESSAGE_TIMEOUT;
        let busy = || Reply::Error {
            rq: Some(rq),
            code: Code::Busy,
            reason: "a settlement is under way; try again".to_owned(),
        };
        {
            let mut waiting = self.settled.0.lock();
            if *waiting >= LEAVING_MAX {
                drop(waiting);
                return answer(busy());
            }
            *waiting += 1;
        }
        loop {
            let exchange = self.exchange();
            let outcome = exchange.leave(self.now(), source, rq, name, since);
            let leaving = outcome.leaving.is_some();
            if let Err(error) = self.make_real(&exchange, outcome, answer) {
                answer(unavailable(rq, &error));
                break;
            }
            if !leaving {
                break;
            }
            let mut waiting = self.settled.0.lock();
            // A settlement may have ended between the look and the lock.
            let look_again_at = deadline.min(Instant::now() + Duration::from_secs(1));
            let _ = self.settled.1.wait_until(&mut waiting, look_again_at);
            drop(waiting);
            if Instant::now() >= deadline || self.is_over() {
                exchange.stay(name, since);
                answer(busy());
                break;
            }
        }
        *self.settled.0.lock() -= 1;
    }
}

fn unavailable(rq: u64, error: &StoreError) -> Reply {
    Reply::Error { rq: Some(rq), code: Code::Unavailable, reason: format!("nothing changed, try again: {error}") }
}
