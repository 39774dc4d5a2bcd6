//! One limiter counts the open connections of all listeners of a process. Its rules (`docs/spec/general.md`):
//!
//! - A source other than loopback has at most half of the bound, so that no single client locks out all others.
//! - Each listener is guaranteed a sixteenth of the bound, which others never use up. So connections at one port, idle
//!   or busy, block no other, and links to a database find room however many clients are connected elsewhere.
//! - A connection that has not completed a request yet is pending. When room is short, the oldest pending ones are
//!   evicted: for a source that has reached its limit its own, otherwise those of listeners that exceed their
//!   guarantee.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::pending::{ListenerId, PendingConnection, PendingConnections, PendingId};
use crate::net::counters::{Counter, counters};
use crate::net::source::{self, SourceKey};

/// A listener is guaranteed 1/16 of the bound.
const GUARANTEE_DIVISOR: usize = 16;
/// All guarantees together are at most this many quarters of the bound; the rest is shared by all listeners.
const GUARANTEED_QUARTERS_MAX: usize = 3;
/// 1/16 of the bound is kept free for newcomers where that is at least one connection, because an evicted connection
/// takes a moment to end.
const SPARE_DIVISOR: usize = 16;
/// How long a new connection waits for an evicted one to end.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct ConnectionLimiter {
    max_connections: usize,
    state: Mutex<LimiterState>,
    connection_ended: Condvar,
    counters: LimiterCounters,
}

#[derive(Debug, Default)]
struct LimiterState {
    total: usize,
    /// Pending connections that were shut down and have not ended yet; part of `total`.
    evicting: usize,
    by_source: HashMap<SourceKey, SourceUsage>,
    by_listener: BTreeMap<ListenerId, ListenerUsage>,
    next_listener: u64,
    pending: PendingConnections<Weak<TcpStream>>,
}

#[derive(Debug, Default)]
struct SourceUsage {
    open: usize,
    evicting: usize,
}

#[derive(Debug)]
struct ListenerUsage {
    open: usize,
    /// What the listener asked for.
    min_guaranteed: usize,
    guaranteed: usize,
    evicted: Arc<Counter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Less than the bound may be open: some are guaranteed to other listeners.
    #[error("{open} of {max_connections} connections are open already")]
    Full { open: usize, max_connections: usize },
    #[error("{whose} has {max} connections open already")]
    SourceFull { whose: SourceKey, max: usize },
}

counters! {
    pub struct LimiterCounters {
        admitted = "let_in",
        /// Connections refused because of the bound in all.
        refused_full,
        /// Connections refused because of the bound for one source.
        refused_source = "refused_address",
    }
}

impl ConnectionLimiter {
    pub fn new(max_connections: usize) -> Arc<ConnectionLimiter> {
        Arc::new(ConnectionLimiter {
            max_connections,
            state: Mutex::default(),
            connection_ended: Condvar::new(),
            counters: LimiterCounters::default(),
        })
    }

    /// The listener is guaranteed a sixteenth of the bound, or `min_guaranteed` connections if that is more and the
    /// bound is large enough.
    pub(super) fn add_listener(self: &Arc<Self>, min_guaranteed: usize) -> Arc<ListenerQuota> {
        let mut state = self.state.lock();
        let id = ListenerId(state.next_listener);
        state.next_listener += 1;
        let evicted = Arc::new(Counter::default());
        state
            .by_listener
            .insert(id, ListenerUsage { open: 0, min_guaranteed, guaranteed: 0, evicted: Arc::clone(&evicted) });
        state.distribute_guarantees(self.max_connections);
        drop(state);
        Arc::new(ListenerQuota { limiter: Arc::clone(self), id, evicted })
    }

    fn max_for_source(&self, source: SourceKey) -> usize {
        if source.is_loopback() { self.max_connections } else { (self.max_connections / 2).max(1) }
    }

    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    pub fn open_connections(&self) -> usize {
        self.state.lock().total
    }

    /// Open connections that have not completed a request.
    pub fn pending_connections(&self) -> usize {
        self.state.lock().pending.len()
    }

    pub fn counters(&self) -> &LimiterCounters {
        &self.counters
    }
}

impl LimiterState {
    fn distribute_guarantees(&mut self, max_connections: usize) {
        let most = max_connections * GUARANTEED_QUARTERS_MAX / 4;
        let listeners = self.by_listener.len();
        let wanted = |listener: &ListenerUsage| (max_connections / GUARANTEE_DIVISOR).max(listener.min_guaranteed);
        let fits = self.by_listener.values().map(wanted).sum::<usize>() <= most;
        for listener in self.by_listener.values_mut() {
            listener.guaranteed = if fits { wanted(listener) } else { most / listeners };
        }
    }

    /// What this listener may have in addition, without using up what is guaranteed to others.
    fn room_for(&self, listener: ListenerId, max_connections: usize) -> usize {
        let others = self.by_listener.iter().filter(|(id, _)| **id != listener);
        let reserved_for_others: usize = others.map(|(_, other)| other.guaranteed.saturating_sub(other.open)).sum();
        max_connections.saturating_sub(self.total + reserved_for_others)
    }

    /// The connection to evict for a new one at `listener`: the oldest at listeners that exceed their guarantee. If
    /// there is none and `or_own` is set, the oldest of this listener.
    fn eviction_candidate(&self, listener: ListenerId, or_own: bool) -> Option<PendingId> {
        let over = self.by_listener.iter().filter(|(_, of)| of.open > of.guaranteed).map(|(id, _)| *id);
        let oldest = self.pending.oldest_at(over);
        if or_own { oldest.or_else(|| self.pending.oldest_at([listener].into_iter())) } else { oldest }
    }

    /// The caller shuts the returned stream down after releasing the lock.
    fn begin_eviction(&mut self, pending_id: PendingId) -> Option<Arc<TcpStream>> {
        let PendingConnection { listener, source, handle } = self.pending.remove(pending_id)?;
        self.evicting += 1;
        self.by_source.entry(source).or_default().evicting += 1;
        if let Some(listener) = self.by_listener.get(&listener) {
            listener.evicted.add(1);
        }
        handle.upgrade()
    }
}

fn shut_down(stream: Option<Arc<TcpStream>>) {
    if let Some(stream) = stream
        && let Err(error) = stream.shutdown(Shutdown::Both)
    {
        // The connection has ended by itself meanwhile.
        log::debug!("closing a pending connection: {error}");
    }
}

#[derive(Debug)]
pub(super) struct ListenerQuota {
    limiter: Arc<ConnectionLimiter>,
    id: ListenerId,
    evicted: Arc<Counter>,
}

impl ListenerQuota {
    /// Admits a connection, as a pending one. Where room is short, an older pending connection is evicted; where
    /// there is none, the caller waits up to a second for the evicted one to end.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, stream: &Arc<TcpStream>) -> Result<Permit, AdmissionError> {
        self.admit_with(address, stream, &shut_down)
    }

    /// Tests choose what shuts an evicted stream down.
    fn admit_with(
        self: &Arc<Self>,
        address: IpAddr,
        stream: &Arc<TcpStream>,
        evict: &dyn Fn(Option<Arc<TcpStream>>),
    ) -> Result<Permit, AdmissionError> {
        let (limiter, source) = (&*self.limiter, source::key_of(address));
        let (max_connections, max_of_source) = (limiter.max_connections, limiter.max_for_source(source));
        let mut give_up_at = None;
        let mut state = limiter.state.lock();
        loop {
            let open_from_source = state.by_source.get(&source).map_or(0, |of| of.open);
            let is_source_full = open_from_source >= max_of_source;
            if !is_source_full && state.room_for(self.id, max_connections) > 0 {
                break;
            }
            let (refusal, is_eviction_pending, oldest) = if is_source_full {
                let is_eviction_pending = state.by_source.get(&source).is_some_and(|of| of.evicting > 0);
                let refusal = AdmissionError::SourceFull { whose: source, max: max_of_source };
                (refusal, is_eviction_pending, state.pending.oldest_from(source))
            } else {
                let refusal = AdmissionError::Full { open: state.total, max_connections };
                (refusal, state.evicting > 0, state.eviction_candidate(self.id, true))
            };
            let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + EVICTION_TIMEOUT);
            if !is_eviction_pending && oldest.is_none() || Instant::now() >= give_up_at {
                drop(state);
                let counters = &limiter.counters;
                if is_source_full { &counters.refused_source } else { &counters.refused_full }.add(1);
                return Err(refusal);
            }
            if !is_eviction_pending && let Some(oldest) = oldest {
                let stream = state.begin_eviction(oldest);
                MutexGuard::unlocked(&mut state, || evict(stream));
                // It may have ended already, which is not notified again: so room is checked first.
                continue;
            }
            limiter.connection_ended.wait_until(&mut state, give_up_at);
        }
        state.total += 1;
        let open_from_source = {
            let usage = state.by_source.entry(source).or_default();
            usage.open += 1;
            usage.open
        };
        let is_within_guarantee = state.by_listener.get_mut(&self.id).is_none_or(|own| {
            own.open += 1;
            own.open <= own.guaranteed
        });
        // Evict ahead of time, so that the next connection need not wait.
        let spare = max_connections / SPARE_DIVISOR;
        let room = state.room_for(self.id, max_connections);
        let oldest = if max_of_source - open_from_source < spare && !source.is_loopback() {
            state.pending.oldest_from(source)
        } else if room < spare {
            state.eviction_candidate(self.id, !is_within_guarantee || room == 0)
        } else {
            None
        };
        let evicted = oldest.and_then(|oldest| state.begin_eviction(oldest));
        let pending_id =
            state.pending.add(PendingConnection { listener: self.id, source, handle: Arc::downgrade(stream) });
        drop(state);
        evict(evicted);
        limiter.counters.admitted.add(1);
        Ok(Permit { quota: Arc::clone(self), source, pending_id: Some(pending_id), is_evicted: false })
    }

    /// All connections are guaranteed while this is the only listener.
    pub(super) fn guaranteed(&self) -> usize {
        let state = self.limiter.state.lock();
        match state.by_listener.get(&self.id) {
            Some(own) if state.by_listener.len() > 1 => own.guaranteed,
            _ => self.limiter.max_connections,
        }
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.get()
    }
}

impl Drop for ListenerQuota {
    fn drop(&mut self) {
        let mut state = self.limiter.state.lock();
        state.by_listener.remove(&self.id);
        state.distribute_guarantees(self.limiter.max_connections);
    }
}

/// The right to one open connection, returned when dropped.
#[derive(Debug)]
pub struct Permit {
    quota: Arc<ListenerQuota>,
    source: SourceKey,
    /// Set while the connection is pending.
    pending_id: Option<PendingId>,
    is_evicted: bool,
}

impl Permit {
    /// The connection is not evicted any more. False if it was evicted already; the request must then not be begun.
    #[must_use]
    pub fn mark_request_completed(&mut self) -> bool {
        if let Some(pending_id) = self.pending_id.take() {
            self.is_evicted = self.quota.limiter.state.lock().pending.remove(pending_id).is_none();
        }
        !self.is_evicted
    }

    /// See [`ListenerQuota::guaranteed`].
    pub fn guaranteed(&self) -> usize {
        self.quota.guaranteed()
    }

    /// Connections from this host count as loopback, whatever their address.
    pub fn source(&self) -> SourceKey {
        self.source
    }

    /// Makes the connection pending again, as the youngest: for the time between requests, when eviction loses nothing.
    pub fn mark_pending(&mut self, stream: &Arc<TcpStream>) {
        if self.pending_id.is_none() && !self.is_evicted {
            let pending =
                PendingConnection { listener: self.quota.id, source: self.source, handle: Arc::downgrade(stream) };
            self.pending_id = Some(self.quota.limiter.state.lock().pending.add(pending));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let limiter = &self.quota.limiter;
        let mut state = limiter.state.lock();
        if let Some(pending_id) = self.pending_id.take() {
            self.is_evicted = state.pending.remove(pending_id).is_none();
        }
        state.total -= 1;
        state.evicting -= usize::from(self.is_evicted);
        if let Some(usage) = state.by_source.get_mut(&self.source) {
            usage.open -= 1;
            usage.evicting -= usize::from(self.is_evicted);
            if usage.open == 0 {
                state.by_source.remove(&self.source);
            }
        }
        if let Some(listener_usage) = state.by_listener.get_mut(&self.quota.id) {
            listener_usage.open -= 1;
        }
        drop(state);
        limiter.connection_ended.notify_all();
    }
}

#[cfg(test)]
mod tests;
