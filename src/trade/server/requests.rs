//! What comes in: datagrams, lines on connections, and the requests that both hold.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{DATAGRAMS_IN_HAND_MAX, Ex, LEAVING_MAX, LINE_MAX, MESSAGE_TIMEOUT, Shared};
use crate::model::Name;
use crate::net::conn::{Conn, ConnError};
use crate::net::lines::{LineLimits, LineReader};
use crate::net::udp::Datagram;
use crate::storage::StoreError;
use crate::trade::exchange::{Outcome, Via};
use crate::trade::store::Receipt;
use crate::trade::wire::{self, Ask, Code, DATAGRAM_MAX, Inbound, Refusal, Reply, Request, encode};

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

impl Shared {
    pub(super) fn datagram(self: &Arc<Self>, datagram: Datagram<'_>) {
        let source = SocketAddr::new(datagram.source.ip().to_canonical(), datagram.source.port());
        let length = datagram.bytes.len();
        if datagram.truncated {
            let reason = format!("the datagram is longer than {DATAGRAM_MAX} bytes");
            return self.refuse(source, length, None, Refusal::new(Code::BadRequest, reason));
        }
        match wire::read(datagram.bytes) {
            Inbound::Request(request) => {
                self.counters.requests.add(1);
                self.request(source, length, request);
            }
            Inbound::Ack(ack) => {
                let known = self.exchange().ack(self.now(), source, &ack);
                if known { &self.counters.acks } else { &self.counters.acks_unknown }.add(1);
            }
            Inbound::Ignored => self.counters.ignored.add(1),
            Inbound::Refused(rq, refusal) => self.refuse(source, length, rq, refusal),
        }
    }

    pub(super) fn connection(self: &Arc<Self>, stream: Arc<TcpStream>, source: SocketAddr) {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let limits = LineLimits::new(LINE_MAX);
        let first_byte_by = Instant::now() + limits.idle_timeout;
        let conn = match Conn::accept_any(stream, &self.floor.identity, first_byte_by, MESSAGE_TIMEOUT) {
            Ok(conn) => conn,
            Err(ConnError::Silent) => return,
            Err(error) => {
                self.counters.connections_failed.add(1);
                return log::debug!("connection from {source}: {error}");
            }
        };
        let (reader, writer) = conn.split();
        let mut lines = LineReader::new(reader, limits);
        let write = |reply: &Reply| {
            if let Err(error) = writer.write_line(encode(reply), Instant::now() + MESSAGE_TIMEOUT) {
                self.counters.connections_failed.add(1);
                log::debug!("connection from {source}: cannot answer: {error}");
            }
        };
        let error = |rq, refusal: Refusal| {
            self.counters.errors.add(1);
            write(&Reply::Error { rq, code: refusal.code, reason: refusal.reason });
        };
        loop {
            match lines.read_line() {
                Ok(Some(line)) if line.trim().is_empty() => {}
                Ok(Some(line)) => match wire::read(line.as_bytes()) {
                    Inbound::Request(request) if matches!(request.ask, Ask::Buy { .. }) => {
                        self.counters.requests.add(1);
                        self.run(source, Via::Tcp, &request, &|reply| write(&reply));
                    }
                    Inbound::Request(request) => {
                        error(
                            Some(request.rq),
                            Refusal::new(Code::BadRequest, "type: only BUY is taken on a connection"),
                        );
                    }
                    Inbound::Refused(rq, refusal) => error(rq, refusal),
                    Inbound::Ack(_) | Inbound::Ignored => self.counters.ignored.add(1),
                },
                Ok(None) => break,
                Err(wrong) => {
                    error(None, Refusal::new(Code::BadRequest, wrong.to_string()));
                    break;
                }
            }
        }
        writer.finish();
    }

    /// A request in a datagram. Once nothing is left of it but to wait for the disk and then to send a few
    /// datagrams, that is left with the store, and the thread is free for the next: it would sleep twice,
    /// for the commit and for the next datagram, which is more work than all the rest.
    fn request(self: &Arc<Self>, source: SocketAddr, length: usize, request: Request) {
        let exchange = self.exchange();
        let outcome = exchange.request(self.now(), source, Via::Udp, &request);
        let place = (outcome.is_brief() && outcome.receipt.is_pending()).then(|| Place::take(self)).flatten();
        let Some(place) = place else {
            let answer = |reply| self.answer(&exchange, source, length, reply);
            if let Err(error) = self.carry_out(&exchange, outcome, source, &request, &answer) {
                self.once_more(error, source, Via::Udp, &request, &answer);
            }
            return;
        };
        let receipt = outcome.receipt.clone();
        receipt.then(move |stored| match stored {
            Ok(()) => place.0.send_all(&exchange, outcome, &|reply| place.0.answer(&exchange, source, length, reply)),
            // Rebuilding and asking again take a while: that needs a thread of its own again.
            Err(error) => {
                let (shared, failed, rq, cause) =
                    (Arc::clone(&place.0), Arc::clone(&exchange), request.rq, error.clone());
                let retry = move || {
                    place.0.not_stored(&exchange, &cause);
                    let answer = |reply| place.0.answer(&place.0.exchange(), source, length, reply);
                    place.0.once_more(cause, source, Via::Udp, &request, &answer);
                };
                if shared.floor.executor.execute(retry).is_err() {
                    shared.answer(&failed, source, length, unavailable(rq, &error));
                }
            }
        });
    }

    fn run(self: &Arc<Self>, source: SocketAddr, via: Via, request: &Request, answer: &dyn Fn(Reply)) {
        let exchange = self.exchange();
        let outcome = exchange.request(self.now(), source, via, request);
        if let Err(error) = self.carry_out(&exchange, outcome, source, request, answer) {
            self.once_more(error, source, via, request, answer);
        }
    }

    /// A request whose change was not stored. It may have failed for something earlier that nobody waits
    /// for (an ACK), on a disk that works by now. Memory has been built anew: nothing of this request is
    /// left in it.
    fn once_more(
        self: &Arc<Self>,
        error: StoreError,
        source: SocketAddr,
        via: Via,
        request: &Request,
        answer: &dyn Fn(Reply),
    ) {
        let outcome = |exchange: &Ex| exchange.request(self.now(), source, via, request);
        let result = match error {
            StoreError::Unavailable(_) => {
                let exchange = self.exchange();
                self.carry_out(&exchange, outcome(&exchange), source, request, answer)
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
        outcome: Outcome<Receipt>,
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
