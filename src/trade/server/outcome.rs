//! What goes out: outcomes made real, each persisted, then sent, then its timers armed; and memory built
//! anew where the disk has failed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::requests::Caller;
use super::{Due, Ex, PUSH_AGAIN, Shared};
use crate::model::Millis;
use crate::net::udp;
use crate::storage::{CommitHandle, StoreError};
use crate::trade::exchange::{Origin, Outcome, Outgoing, Told};
use crate::trade::wire::{DATAGRAM_MAX, Refusal, Reply, encode};

impl Shared {
    /// Persist, then send, then arm timers.
    pub(super) fn make_real(
        self: &Arc<Self>,
        exchange: &Arc<Ex>,
        outcome: Outcome<CommitHandle>,
        answer: &dyn Fn(Reply),
    ) -> Result<(), StoreError> {
        if let Err(error) = outcome.receipt.wait() {
            self.not_stored(exchange, &error);
            return Err(error);
        }
        self.send_all(exchange, outcome, answer);
        Ok(())
    }

    pub(super) fn not_stored(self: &Arc<Self>, exchange: &Arc<Ex>, error: &StoreError) {
        self.counters.unavailable.add(1);
        log::error!("trade: a change could not be stored: {error}");
        self.rebuild(exchange);
    }

    /// What is built on is on disk: sends, then arms timers.
    pub(super) fn send_all(self: &Arc<Self>, exchange: &Arc<Ex>, outcome: Outcome<CommitHandle>, answer: &dyn Fn(Reply)) {
        if let Some(reply) = outcome.answer {
            answer(reply);
        }
        let failed = udp::gather(|| {
            for outgoing in &outcome.once {
                self.send_push(exchange, outgoing);
            }
            for told in &outcome.pushes {
                self.push(exchange, *told, 0);
            }
        });
        self.counters.sends_failed.add(failed);
        self.arm_deadlines(&outcome.deadlines);
        if let Some(deal) = outcome.settle {
            self.begin_settlement(deal);
        }
    }

    fn arm_deadlines(&self, deadlines: &[(Millis, u64)]) {
        let (now, instant) = (self.now(), Instant::now());
        for (at, deal) in deadlines {
            self.arm(instant + now.until(*at), Due::Deal(*deal));
        }
    }

    /// The disk holds less than memory: memory is loaded anew from it, before the next request. While the disk cannot be
    /// read the old one stays: its changes are refused, so every request is answered UNAVAILABLE and tries this again.
    pub(super) fn rebuild(self: &Arc<Self>, failed: &Arc<Ex>) {
        if self.exchange.reload(failed).is_some() {
            self.take_up(None);
        }
    }

    /// Goes on with what was under way in the exchange that was loaded last; waits for settlements until `wait_until`
    /// at most.
    pub(super) fn take_up(self: &Arc<Self>, wait_until: Option<Instant>) {
        let Some(resumed) = self.resumed.lock().take() else { return };
        let exchange = self.exchange();
        for told in resumed.pushes {
            self.push(&exchange, told, 0);
        }
        self.arm_deadlines(&resumed.deadlines);
        let settlements = resumed.settlements.len();
        if settlements > 0 {
            log::info!("trade: {settlements} settlements were interrupted and are brought to their end");
        }
        for (deal, _) in resumed.settlements {
            self.arm(Instant::now(), Due::Recover(deal));
        }
        if let Some(deadline) = wait_until {
            self.wait_for_settlements(&exchange, deadline);
        }
    }

    fn wait_for_settlements(&self, exchange: &Ex, deadline: Instant) {
        let mut waiting = self.settled.0.lock();
        while exchange.settlements() > 0 {
            if self.settled.1.wait_until(&mut waiting, deadline).timed_out() {
                log::warn!("trade: the bank does not answer; interrupted settlements are ended beside the service");
                return;
            }
        }
    }

    pub(super) fn push(&self, exchange: &Ex, told: Told, repeats: usize) {
        let Some(outgoing) = exchange.push(told) else { return };
        if self.send_push(exchange, &outgoing) && repeats > 0 {
            self.counters.pushes_repeated.add(1);
        }
        if let Some(pause) = PUSH_AGAIN.get(repeats) {
            self.arm(Instant::now() + *pause, Due::Push(told, repeats + 1));
        }
    }

    /// False for one that is more than may be sent to an address that has not proved that it hears.
    fn send_push(&self, exchange: &Ex, outgoing: &Outgoing) -> bool {
        let Outgoing { to, from, proved, push } = outgoing;
        let bytes = encode(push);
        if !proved && !exchange.may_send(*to, bytes.len()) {
            self.counters.pushes_withheld.add(1);
            return false;
        }
        self.counters.pushes.add(1);
        self.send(&bytes, *to, *from);
        true
    }

    pub(super) fn refuse(&self, exchange: &Ex, caller: &Caller, rq: Option<u64>, refusal: Refusal) {
        self.answer(exchange, caller, Reply::Error { rq, code: refusal.code, reason: refusal.reason });
    }

    /// Answers a datagram. To an address that has not proved that it hears no more than what came from there
    /// allows, and to one that nobody registered never more than three times the datagram, and ten errors a
    /// second: the source may be forged.
    /// `exchange` is the one that the request met: who builds a new one may be waiting for the writer, which
    /// may be here.
    pub(super) fn answer(&self, exchange: &Ex, caller: &Caller, mut reply: Reply) {
        let Caller { origin: Origin { source, asked, .. }, length, mut proved, came_at } = *caller;
        self.latencies.took(came_at.elapsed());
        let is_error = matches!(reply, Reply::Error { .. });
        if is_error {
            self.counters.errors.add(1);
        }
        let mut max = DATAGRAM_MAX;
        if !proved {
            let standing = exchange.standing(source);
            if !standing.is_registered {
                max = max.min(3 * length);
                if is_error && !self.strangers.may_be_told(source, self.now()) {
                    return self.counters.errors_withheld.add(1);
                }
            }
            proved = standing.is_proved;
        }
        match exchange.fit(&mut reply, source, proved, max) {
            Some(bytes) => self.send(&bytes, source, asked),
            None => self.counters.answers_too_long.add(1),
        }
    }

    fn send(&self, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) {
        if let Err(error) = self.socket.send_to(bytes, to, from) {
            // As good as lost on the way: pushes are repeated, requests are asked again.
            self.counters.sends_failed.add(1);
            log::debug!("cannot send to {to}: {error}");
        }
    }
}
