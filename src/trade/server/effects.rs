//! Applies effects: waits for the commit, sends messages, then arms timers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::requests::ResponseContext;
use super::{RESEND_PAUSES, ServerInner, StoredExchange, TimerEvent};
use crate::model::Millis;
use crate::net::udp;
use crate::storage::{CommitHandle, StoreError};
use crate::trade::exchange::{ExchangeEffects, NotificationId, OutgoingNotification, RequestOrigin};
use crate::trade::wire::{DATAGRAM_MAX, Response, encode};

impl ServerInner {
    /// If the changes could not be stored, the exchange has been rebuilt.
    pub(super) fn apply_effects(
        self: &Arc<Self>,
        exchange: &Arc<StoredExchange>,
        effects: ExchangeEffects<CommitHandle>,
        respond: &dyn Fn(Response),
    ) -> Result<(), StoreError> {
        if let Err(error) = effects.commit.wait() {
            self.handle_store_failure(exchange, &error);
            return Err(error);
        }
        self.send_effects(exchange, effects, respond);
        Ok(())
    }

    pub(super) fn handle_store_failure(self: &Arc<Self>, exchange: &Arc<StoredExchange>, error: &StoreError) {
        self.counters.unavailable.add(1);
        log::error!("trade: a change could not be stored: {error}");
        self.rebuild(exchange);
    }

    /// The effects must be committed.
    pub(super) fn send_effects(
        self: &Arc<Self>,
        exchange: &Arc<StoredExchange>,
        effects: ExchangeEffects<CommitHandle>,
        respond: &dyn Fn(Response),
    ) {
        if let Some(response) = effects.response {
            respond(response);
        }
        let failed = udp::batch_sends(|| {
            for outgoing in &effects.notify_once {
                self.send_outgoing(exchange, outgoing);
            }
            for id in &effects.notifications {
                self.send_notification(exchange, *id, 0);
            }
        });
        self.counters.sends_failed.add(failed);
        self.arm_deadlines(&effects.deadlines);
        if let Some(deal) = effects.settlement {
            self.begin_settlement(deal);
        }
    }

    fn arm_deadlines(&self, deadlines: &[(Millis, u64)]) {
        let (now, instant) = (self.now(), Instant::now());
        for (at, deal) in deadlines {
            self.arm(instant + now.until(*at), TimerEvent::Deal(*deal));
        }
    }

    /// Loads the exchange anew, before the next request, after its changes could not be stored. While the disk cannot
    /// be read the old one stays: its changes are refused, so every request is answered UNAVAILABLE and tries this
    /// again.
    pub(super) fn rebuild(self: &Arc<Self>, failed: &Arc<StoredExchange>) {
        if self.exchange.reload(failed).is_some() {
            self.resume(None);
        }
    }

    /// Resumes the work of the exchange that was loaded last; waits for its settlements until `wait_until`.
    pub(super) fn resume(self: &Arc<Self>, wait_until: Option<Instant>) {
        let Some(resumed) = self.resumed_work.lock().take() else { return };
        let exchange = self.exchange();
        for id in resumed.notifications {
            self.send_notification(&exchange, id, 0);
        }
        self.arm_deadlines(&resumed.deadlines);
        let settlements = resumed.settlements.len();
        if settlements > 0 {
            log::info!("trade: {settlements} settlements were interrupted and are brought to their end");
        }
        for (deal, _) in resumed.settlements {
            self.arm(Instant::now(), TimerEvent::Recover(deal));
        }
        if let Some(deadline) = wait_until {
            self.wait_for_settlements(&exchange, deadline);
        }
    }

    fn wait_for_settlements(&self, exchange: &StoredExchange, deadline: Instant) {
        let mut waiting = self.settlement_ended.0.lock();
        while exchange.settlement_count() > 0 {
            if self.settlement_ended.1.wait_until(&mut waiting, deadline).timed_out() {
                log::warn!("trade: the bank does not answer; interrupted settlements are ended beside the service");
                return;
            }
        }
    }

    pub(super) fn send_notification(&self, exchange: &StoredExchange, id: NotificationId, repeats: usize) {
        let Some(outgoing) = exchange.outgoing_notification(id) else { return };
        if self.send_outgoing(exchange, &outgoing) && repeats > 0 {
            self.counters.pushes_repeated.add(1);
        }
        if let Some(pause) = RESEND_PAUSES.get(repeats) {
            self.arm(Instant::now() + *pause, TimerEvent::Notification(id, repeats + 1));
        }
    }

    /// False if the amplification limit withholds it.
    fn send_outgoing(&self, exchange: &StoredExchange, outgoing: &OutgoingNotification) -> bool {
        let OutgoingNotification { to, from, is_validated, notification } = outgoing;
        let bytes = encode(notification);
        if !is_validated && !exchange.may_send(*to, bytes.len()) {
            self.counters.pushes_withheld.add(1);
            return false;
        }
        self.counters.pushes.add(1);
        self.send(&bytes, *to, *from);
        true
    }

    /// Responds to a datagram, within limits because its source may be forged: to an address that is not validated, the
    /// amplification limit; to one that is not registered, also three times the datagram's length and ten errors a
    /// second.
    ///
    /// `exchange` must be the one that handled the request: [`Self::rebuild`] holds the lock on the current one while
    /// it may wait for the store's writer, on whose thread this may run.
    pub(super) fn respond(
        &self,
        exchange: &StoredExchange,
        response_context: &ResponseContext,
        mut response: Response,
    ) {
        let ResponseContext { origin: RequestOrigin { source, local_ip, .. }, length, mut is_validated, received_at } =
            *response_context;
        self.latencies.record(received_at.elapsed());
        let is_error = matches!(response, Response::Error { .. });
        if is_error {
            self.counters.errors.add(1);
        }
        let mut max = DATAGRAM_MAX;
        if !is_validated {
            let status = exchange.address_status(source);
            if !status.is_registered {
                max = max.min(3 * length);
                if is_error && !self.error_limiter.allow(source, self.now()) {
                    return self.counters.errors_withheld.add(1);
                }
            }
            is_validated = status.is_validated;
        }
        match exchange.fit_response(&mut response, source, is_validated, max) {
            Some(bytes) => self.send(&bytes, source, local_ip),
            None => self.counters.answers_too_long.add(1),
        }
    }

    fn send(&self, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) {
        if let Err(error) = self.socket.send_to(bytes, to, from) {
            // It is as if it were lost on the way: notifications and requests are repeated.
            self.counters.sends_failed.add(1);
            log::debug!("cannot send to {to}: {error}");
        }
    }
}
