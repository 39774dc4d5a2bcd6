//! Unicast announcements that wait to be sent: answers, and those to addresses learnt from peer lists.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;

use super::rate_limits::{RateLimit, TokenBucket};
use crate::model::Millis;

pub(super) const QUEUE_MAX: usize = 10_000;
/// One broadcast must never cause a storm of answers.
const SEND_RATE: RateLimit = RateLimit { burst: 100, per_s: 500 };

#[derive(Debug, Clone, Copy)]
struct QueuedAnnouncement {
    due: Millis,
    seq: u64,
    /// If it answers a broadcast: when that was sent. The answer is cancelled if the peer turns out to know us.
    broadcast_at: Option<Millis>,
}

/// It holds one announcement per address.
#[derive(Debug)]
pub(super) struct AnnouncementQueue {
    by_addr: HashMap<SocketAddrV4, QueuedAnnouncement>,
    by_due: BTreeMap<(Millis, u64), SocketAddrV4>,
    next_seq: u64,
    tokens: TokenBucket,
}

impl AnnouncementQueue {
    pub fn new() -> AnnouncementQueue {
        let tokens = TokenBucket::full(SEND_RATE);
        AnnouncementQueue { by_addr: HashMap::new(), by_due: BTreeMap::new(), next_seq: 0, tokens }
    }

    /// Returns whether there was room.
    pub fn enqueue(&mut self, due: Millis, to: SocketAddrV4, broadcast_at: Option<Millis>) -> bool {
        let mut queued = QueuedAnnouncement { due, seq: self.next_seq, broadcast_at };
        if let Some(existing) = self.by_addr.get(&to) {
            queued.due = due.min(existing.due);
            queued.broadcast_at = broadcast_at.and(existing.broadcast_at);
            self.by_due.remove(&(existing.due, existing.seq));
        } else if self.by_addr.len() >= QUEUE_MAX {
            return false;
        }
        self.next_seq += 1;
        self.by_due.insert((queued.due, queued.seq), to);
        self.by_addr.insert(to, queued);
        true
    }

    /// When the broadcast was sent that the queued announcement answers.
    pub fn broadcast_at(&self, to: SocketAddrV4) -> Option<Millis> {
        self.by_addr.get(&to).and_then(|queued| queued.broadcast_at)
    }

    /// Removes the announcement to a peer that knows us already. Returns whether there was one.
    pub fn cancel(&mut self, to: SocketAddrV4) -> bool {
        let Some(queued) = self.by_addr.remove(&to) else { return false };
        self.by_due.remove(&(queued.due, queued.seq));
        true
    }

    pub fn pop_due(&mut self, now: Millis) -> Option<SocketAddrV4> {
        let entry = self.by_due.first_entry().filter(|entry| entry.key().0 <= now)?;
        if !self.tokens.take(now) {
            return None;
        }
        let to = entry.remove();
        self.by_addr.remove(&to);
        Some(to)
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.by_due.first_key_value().map(|((due, _), _)| (*due).max(self.tokens.ready_at()))
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.by_addr.len(), self.by_due.len());
        self.by_addr.len()
    }
}
