//! Requests that are repeated until they are answered, and the datagrams of the server.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::{Client, ClientError, ClientHandler, ClientInner};
use crate::trade::wire::{
    self, DATAGRAM_MAX, ErrorCode, RequestBody, Response, ServerMessage, encode_ack, encode_request,
};

pub const REQUESTS_MAX: usize = 4_096;
/// How often the receiving thread checks whether the client is closed.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// After so many datagrams of one request, within a second and a half, the server counts as silent.
const SILENT_AFTER: usize = 3;
/// How long a DE-REGISTER is repeated, since the server answers it only when the settlements in progress are over.
const DEREGISTER_PATIENCE: Duration = Duration::from_secs(60);

type ResponseCallback = Box<dyn FnOnce(Result<Response, ClientError>) + Send>;

pub(super) struct PendingRequest {
    body: RequestBody,
    datagram: Vec<u8>,
    sent: usize,
    begun_at: Instant,
    next_at: Instant,
    /// Returned only if repeating the request does not help either.
    unavailable: Option<Response>,
    pub(super) on_response: ResponseCallback,
}

impl Client {
    /// Sends a request and repeats it until the response comes; an `ERROR` is one. `rq` must be the number of the deal,
    /// or one that was never used.
    pub fn call(&self, rq: u64, body: RequestBody) -> Result<Response, ClientError> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        // The receiver is gone only if this call is, and then nobody needs the result.
        self.post(rq, body, move |result| drop(sender.send(result)));
        receiver.recv().unwrap_or(Err(ClientError::Closed))
    }

    /// Sends a request. `on_response` is called once, on a thread of the client, and must not block. A pending request
    /// with the same number is superseded.
    pub fn post(
        &self,
        rq: u64,
        body: RequestBody,
        on_response: impl FnOnce(Result<Response, ClientError>) + Send + 'static,
    ) {
        let inner = &self.inner;
        let datagram = {
            let token = inner.token.lock();
            // A REGISTER is valid even if it carries a token that the server no longer knows.
            encode_request(rq, &inner.config.name, token.as_ref(), &body)
        };
        if datagram.len() > DATAGRAM_MAX {
            return on_response(Err(ClientError::TooLong));
        }
        if let Some(why) = inner.distrust_reason()
            && !matches!(body, RequestBody::Register { .. } | RequestBody::Login { .. } | RequestBody::DeRegister)
        {
            return on_response(Err(ClientError::Untrusted(why)));
        }
        let now = Instant::now();
        let next_at = now + inner.config.pauses.first().copied().unwrap_or_default();
        let pending = PendingRequest {
            body,
            datagram: datagram.clone(),
            sent: 1,
            begun_at: now,
            next_at,
            unavailable: None,
            on_response: Box::new(on_response),
        };
        let refused = {
            let mut all = inner.pending.lock();
            if inner.is_closed.load(SeqCst) {
                Some((pending.on_response, ClientError::Closed))
            } else if all.len() >= REQUESTS_MAX && !all.contains_key(&rq) {
                Some((pending.on_response, ClientError::Busy))
            } else {
                all.insert(rq, pending).map(|earlier| (earlier.on_response, ClientError::Superseded))
            }
        };
        if let Some((on_response, error)) = refused {
            let goes_on = matches!(error, ClientError::Superseded);
            on_response(Err(error));
            if !goes_on {
                return;
            }
        }
        inner.changed.notify_one();
        inner.send(&datagram);
    }

    /// Acknowledges a notification, so that the server stops repeating it.
    pub fn ack(&self, mid: u64) {
        let datagram = encode_ack(mid, self.inner.token.lock().as_ref());
        self.inner.send(&datagram);
    }
}

impl ClientInner {
    fn send(&self, datagram: &[u8]) {
        self.counters.sent.add(1);
        // Repeats make up for what is lost, and for a server that restarts, whose port is reported as closed.
        if let Err(error) = self.udp.send(datagram) {
            log::debug!("a datagram to {} was not sent: {error}", self.config.server);
        }
    }

    pub(super) fn receive(&self, handler: &dyn ClientHandler) {
        let mut buffer = [0; DATAGRAM_MAX + 1];
        while !self.is_closed.load(SeqCst) {
            let len = match self.udp.recv(&mut buffer) {
                Ok(len) => len,
                Err(error) => {
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        self.is_port_closed.store(true, SeqCst);
                    }
                    let idle = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    if !idle && error.kind() != io::ErrorKind::Interrupted {
                        // The port is closed or the network is down; both may come back.
                        log::debug!("receiving from {}: {error}", self.config.server);
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    continue;
                }
            };
            self.counters.received.add(1);
            for told in [&self.is_silent, &self.is_port_closed] {
                told.store(false, SeqCst);
            }
            match wire::parse_server_message(&buffer[..len]) {
                Ok(ServerMessage::Notification(notification)) if self.distrust_reason().is_none() => {
                    handler.notification(notification)
                }
                Ok(ServerMessage::Notification(_)) => self.counters.ignored.add(1),
                Ok(ServerMessage::Response(response)) => self.handle_response(response),
                Err(wrong) => {
                    self.counters.ignored.add(1);
                    log::warn!("a datagram of the server at {} was ignored: {wrong}", self.config.server);
                }
            }
        }
    }

    fn handle_response(&self, response: Response) {
        let mut all = self.pending.lock();
        let rq = response.rq();
        let Some(pending) = rq.and_then(|rq| all.get_mut(&rq)).filter(|pending| pending.body.is_answered_by(&response))
        else {
            drop(all);
            self.counters.ignored.add(1);
            if let Response::Error { rq: None, code, reason } = response {
                log::warn!("the server at {} says {code:?}: {reason}", self.config.server);
            }
            return;
        };
        if matches!(response, Response::Error { code: ErrorCode::Unavailable, .. }) {
            pending.unavailable = Some(response);
            return;
        }
        let on_response = rq.and_then(|rq| all.remove(&rq)).map(|pending| pending.on_response);
        drop(all);
        if let Some(on_response) = on_response {
            on_response(Ok(response));
        }
    }

    /// Repeats requests that are due and fails those whose last pause is over.
    pub(super) fn resend_pending(&self, handler: &dyn ClientHandler) {
        let mut all = self.pending.lock();
        while !self.is_closed.load(SeqCst) {
            let now = Instant::now();
            let due: Vec<u64> = all.iter().filter(|(_, it)| it.next_at <= now).map(|(rq, _)| *rq).collect();
            let mut resend = Vec::new();
            let mut is_silent = false;
            let mut given_up = Vec::new();
            for rq in due {
                let Some(pending) = all.get_mut(&rq) else { continue };
                if let Some(pause) = self.pause_after(pending, now) {
                    pending.sent += 1;
                    is_silent |= pending.sent == SILENT_AFTER;
                    pending.next_at = now + pause;
                    resend.push(pending.datagram.clone());
                } else if let Some(pending) = all.remove(&rq) {
                    given_up.push(pending);
                }
            }
            if resend.is_empty() && given_up.is_empty() {
                match all.values().map(|pending| pending.next_at).min() {
                    // Checks again, whether it was notified or the time is up.
                    Some(next_at) => drop(self.changed.wait_until(&mut all, next_at)),
                    None => self.changed.wait(&mut all),
                }
                continue;
            }
            drop(all);
            if is_silent && !self.is_silent.swap(true, SeqCst) {
                handler.server_silent(self.is_port_closed.load(SeqCst));
            }
            for datagram in resend {
                self.counters.repeated.add(1);
                self.send(&datagram);
            }
            for PendingRequest { body, sent, begun_at, unavailable, on_response, .. } in given_up {
                let (server, kind) = (self.config.server, body.type_name());
                let waited = Duration::from_millis(begun_at.elapsed().as_millis() as u64);
                on_response(unavailable.ok_or(ClientError::Unanswered { server, kind, sent, waited }));
            }
            all = self.pending.lock();
        }
    }

    /// The pause after sending a request once more; `None` if it was sent the last time.
    fn pause_after(&self, pending: &PendingRequest, now: Instant) -> Option<Duration> {
        let pauses = &self.config.pauses;
        pauses.get(pending.sent).copied().or_else(|| {
            let patient =
                matches!(pending.body, RequestBody::DeRegister) && now - pending.begun_at < DEREGISTER_PATIENCE;
            pauses.last().copied().filter(|_| patient)
        })
    }
}
