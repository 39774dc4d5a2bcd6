//! How many connections may be open: in all, at each listener, and from one source.
//!
//! One limiter counts the connections of all listeners of a process. Its rules (SPEC.md section 2):
//!
//! - At most half of the bound goes to one source other than loopback, so that no single stranger locks out all
//!   others.
//! - Each listener is sure of a sixteenth of the bound: what the others have open never reaches into that. So
//!   neither silence nor work at one port shuts another, and the links that come in at a database's port find room
//!   however many clients there are elsewhere.
//! - A connection that has not completed a request yet is pending. When room is short the oldest pending ones give
//!   way: for a source whose half is full its own, else those of listeners that have more than they are sure of.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::pending::{Pending, PendingConnections, Place};
use crate::net::counters::Counter;
use crate::net::source::{self, Source};

/// Which part of the bound a listener is sure of.
const SURE_SHARE: usize = 16;

/// Of the bound, listeners together are sure of that much at most, in quarters: the rest is for whoever comes.
const SURE_QUARTERS_MAX: usize = 3;

/// Which part of the bound is kept free for those who come next, where that is one connection at least: those that are
/// closed take a moment to be gone.
const SPARE_SHARE: usize = 16;

/// How long a newcomer waits for the place of one that is being closed for it.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(1);

/// Counts the connections of all listeners that share it.
#[derive(Debug)]
pub struct ConnectionLimiter {
    max_connections: usize,
    open: Mutex<Open>,
    /// Told when a connection has ended.
    freed: Condvar,
    counters: LimiterCounters,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    /// Of these, the pending ones that were told to go.
    closing: usize,
    by_source: HashMap<Source, OfSource>,
    by_listener: BTreeMap<ListenerId, OfListener>,
    next_listener: u64,
    pending: PendingConnections<Weak<TcpStream>>,
}

/// A listener among those of a limiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ListenerId(pub(super) u64);

#[derive(Debug, Default)]
struct OfSource {
    open: usize,
    closing: usize,
}

#[derive(Debug)]
struct OfListener {
    open: usize,
    /// What it asked to be sure of at least.
    at_least: usize,
    /// What it is sure of.
    sure: usize,
    closed: Arc<Counter>,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bound in all, less what other listeners are sure of.
    #[error("{open} of {max_connections} connections are open already")]
    Full {
        /// How many are open.
        open: usize,
        /// The bound.
        max_connections: usize,
    },
    /// The bound for one source.
    #[error("{whose} has {max} connections open already")]
    SourceFull {
        /// Whose connections they are.
        whose: Source,
        /// The bound for one source.
        max: usize,
    },
}

/// What a limiter did so far.
#[derive(Debug, Default)]
pub struct LimiterCounters {
    /// Connections let in.
    pub let_in: Counter,
    /// Connections refused because of the bound in all.
    pub refused_full: Counter,
    /// Connections refused because of the bound for one source.
    pub refused_source: Counter,
}

impl LimiterCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("let_in", self.let_in.get()),
            ("refused_full", self.refused_full.get()),
            ("refused_address", self.refused_source.get()),
        ]
    }
}

impl ConnectionLimiter {
    /// Lets in that many at a time.
    pub fn new(max_connections: usize) -> Arc<ConnectionLimiter> {
        Arc::new(ConnectionLimiter {
            max_connections,
            open: Mutex::default(),
            freed: Condvar::new(),
            counters: LimiterCounters::default(),
        })
    }

    /// One more listener, with its share of the bound: a sixteenth, or so many connections if that is more and the
    /// bound is not too small for it.
    pub(super) fn listener(self: &Arc<Self>, at_least: usize) -> Arc<ListenerShare> {
        let mut open = self.open.lock();
        let id = ListenerId(open.next_listener);
        open.next_listener += 1;
        let closed = Arc::new(Counter::default());
        open.by_listener.insert(id, OfListener { open: 0, at_least, sure: 0, closed: Arc::clone(&closed) });
        open.share_out(self.max_connections);
        drop(open);
        Arc::new(ListenerShare { limiter: Arc::clone(self), id, closed })
    }

    fn max_of(&self, source: Source) -> usize {
        if source.is_loopback() { self.max_connections } else { (self.max_connections / 2).max(1) }
    }

    /// How many it lets in.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.lock().total
    }

    /// How many of those have not completed a request.
    pub fn pending(&self) -> usize {
        self.open.lock().pending.len()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &LimiterCounters {
        &self.counters
    }
}

impl Open {
    /// What each listener is sure of, now that there are so many.
    fn share_out(&mut self, max_connections: usize) {
        let most = max_connections * SURE_QUARTERS_MAX / 4;
        let listeners = self.by_listener.len();
        let wanted = |listener: &OfListener| (max_connections / SURE_SHARE).max(listener.at_least);
        let fits = self.by_listener.values().map(wanted).sum::<usize>() <= most;
        for listener in self.by_listener.values_mut() {
            listener.sure = if fits { wanted(listener) } else { most / listeners };
        }
    }

    /// How many more this listener may have without reaching into what others are sure of.
    fn room(&self, listener: ListenerId, max_connections: usize) -> usize {
        let others = self.by_listener.iter().filter(|(id, _)| **id != listener);
        let kept_for_others: usize = others.map(|(_, other)| other.sure.saturating_sub(other.open)).sum();
        max_connections.saturating_sub(self.total + kept_for_others)
    }

    /// Of the pending ones, who goes next for a connection to this listener: the oldest at those that have more
    /// than they are sure of. None of them pending: of this listener's own, if it must be.
    fn oldest_for(&self, listener: ListenerId, or_own: bool) -> Option<Place> {
        let over = self.by_listener.iter().filter(|(_, of)| of.open > of.sure).map(|(id, _)| *id);
        let oldest = self.pending.oldest_at(over);
        if or_own { oldest.or_else(|| self.pending.oldest_at([listener].into_iter())) } else { oldest }
    }

    /// Takes it out of the pending ones, to be closed without the lock.
    fn begin_closing(&mut self, place: Place) -> Option<Arc<TcpStream>> {
        let Pending { listener, source, closer } = self.pending.take(place)?;
        self.closing += 1;
        self.by_source.entry(source).or_default().closing += 1;
        if let Some(listener) = self.by_listener.get(&listener) {
            listener.closed.add(1);
        }
        closer.upgrade()
    }
}

fn close(stream: Option<Arc<TcpStream>>) {
    if let Some(stream) = stream
        && let Err(error) = stream.shutdown(Shutdown::Both)
    {
        // It has ended by itself meanwhile.
        log::debug!("closing a pending connection: {error}");
    }
}

/// A listener's share of the limiter's connections.
#[derive(Debug)]
pub(super) struct ListenerShare {
    limiter: Arc<ConnectionLimiter>,
    id: ListenerId,
    closed: Arc<Counter>,
}

impl ListenerShare {
    /// Counts a connection in, as a pending one. Where room is short, another pending one gives way; where there is
    /// none, the newcomer waits a moment for it to be gone.
    ///
    /// # Errors
    /// [`Refusal`] past either bound, when nobody gives way.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, stream: &Arc<TcpStream>) -> Result<Permit, Refusal> {
        self.enter_closing(address, stream, &close)
    }

    /// The same, with how a pending one is told to go.
    fn enter_closing(
        self: &Arc<Self>,
        address: IpAddr,
        stream: &Arc<TcpStream>,
        close: &dyn Fn(Option<Arc<TcpStream>>),
    ) -> Result<Permit, Refusal> {
        let (limiter, source) = (&*self.limiter, source::of(address));
        let (max_connections, max_of_source) = (limiter.max_connections, limiter.max_of(source));
        let mut give_up_at = None;
        let mut open = limiter.open.lock();
        loop {
            let of_source = open.by_source.get(&source).map_or(0, |of| of.open);
            let is_source_full = of_source >= max_of_source;
            if !is_source_full && open.room(self.id, max_connections) > 0 {
                break;
            }
            let (refusal, is_one_closing, oldest) = if is_source_full {
                let is_one_closing = open.by_source.get(&source).is_some_and(|of| of.closing > 0);
                let refusal = Refusal::SourceFull { whose: source, max: max_of_source };
                (refusal, is_one_closing, open.pending.oldest_of(source))
            } else {
                let refusal = Refusal::Full { open: open.total, max_connections };
                (refusal, open.closing > 0, open.oldest_for(self.id, true))
            };
            let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + WAIT_FOR_PLACE);
            if !is_one_closing && oldest.is_none() || Instant::now() >= give_up_at {
                drop(open);
                let counters = &limiter.counters;
                if is_source_full { &counters.refused_source } else { &counters.refused_full }.add(1);
                return Err(refusal);
            }
            if !is_one_closing && let Some(oldest) = oldest {
                let stream = open.begin_closing(oldest);
                MutexGuard::unlocked(&mut open, || close(stream));
                // It may be gone by now, and nobody tells of that again: first it is looked whether there is room.
                continue;
            }
            limiter.freed.wait_until(&mut open, give_up_at);
        }
        open.total += 1;
        let of_source = {
            let of_source = open.by_source.entry(source).or_default();
            of_source.open += 1;
            of_source.open
        };
        let is_within_share = open.by_listener.get_mut(&self.id).is_none_or(|own| {
            own.open += 1;
            own.open <= own.sure
        });
        // For the next one, so that it need not wait.
        let spare = max_connections / SPARE_SHARE;
        let room = open.room(self.id, max_connections);
        let oldest = if max_of_source - of_source < spare && !source.is_loopback() {
            open.pending.oldest_of(source)
        } else if room < spare {
            open.oldest_for(self.id, !is_within_share || room == 0)
        } else {
            None
        };
        let gives_way = oldest.and_then(|oldest| open.begin_closing(oldest));
        let place = open.pending.add(Pending { listener: self.id, source, closer: Arc::downgrade(stream) });
        drop(open);
        close(gives_way);
        limiter.counters.let_in.add(1);
        Ok(Permit { share: Arc::clone(self), source, place: Some(place), is_closing: false })
    }

    /// How many connections this listener is sure of: all, while there is no other.
    pub(super) fn sure(&self) -> usize {
        let open = self.limiter.open.lock();
        match open.by_listener.get(&self.id) {
            Some(own) if open.by_listener.len() > 1 => own.sure,
            _ => self.limiter.max_connections,
        }
    }

    /// How many of its pending connections were closed to make room.
    pub(super) fn closed(&self) -> u64 {
        self.closed.get()
    }
}

impl Drop for ListenerShare {
    fn drop(&mut self) {
        let mut open = self.limiter.open.lock();
        open.by_listener.remove(&self.id);
        open.share_out(self.limiter.max_connections);
    }
}

/// The right to one open connection, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    share: Arc<ListenerShare>,
    source: Source,
    /// Among the pending ones.
    place: Option<Place>,
    /// It was told to go.
    is_closing: bool,
}

impl Permit {
    /// A request is complete: the connection gives way to no other any more. False if it had to do so already: it is
    /// being closed, and what it asked for is not to be begun.
    #[must_use]
    pub fn request_completed(&mut self) -> bool {
        if let Some(place) = self.place.take() {
            self.is_closing = self.share.limiter.open.lock().pending.take(place).is_none();
        }
        !self.is_closing
    }

    /// How many connections its listener is sure of: all, while it is the only one.
    pub fn sure(&self) -> usize {
        self.share.sure()
    }

    /// Whose connection it counts as: what comes from this machine is loopback's, whatever its address.
    pub fn source(&self) -> Source {
        self.source
    }

    /// It gives way again, as the youngest: between requests, where nothing is lost by that.
    pub fn await_request(&mut self, stream: &Arc<TcpStream>) {
        if self.place.is_none() && !self.is_closing {
            let pending = Pending { listener: self.share.id, source: self.source, closer: Arc::downgrade(stream) };
            self.place = Some(self.share.limiter.open.lock().pending.add(pending));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let limiter = &self.share.limiter;
        let mut open = limiter.open.lock();
        if let Some(place) = self.place.take() {
            self.is_closing = open.pending.take(place).is_none();
        }
        open.total -= 1;
        open.closing -= usize::from(self.is_closing);
        if let Some(of_source) = open.by_source.get_mut(&self.source) {
            of_source.open -= 1;
            of_source.closing -= usize::from(self.is_closing);
            if of_source.open == 0 {
                open.by_source.remove(&self.source);
            }
        }
        if let Some(of_listener) = open.by_listener.get_mut(&self.share.id) {
            of_listener.open -= 1;
        }
        drop(open);
        limiter.freed.notify_all();
    }
}

#[cfg(test)]
mod tests;
