//! Announcements to one address that are about to go: answers, and what is asked of addresses heard of.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;

use super::rates::{Rate, Tokens};
use crate::model::Millis;

/// Most that wait.
pub(super) const ANSWERS_MAX: usize = 10_000;
/// How fast they go, whatever is announced: one announcement never makes a storm.
const RATE: Rate = Rate { burst: 100, per_s: 500 };

#[derive(Debug, Clone, Copy)]
struct Waiting {
    due: Millis,
    place: u64,
    /// It answers what was broadcast then: if the other turns out to know us, it need not go.
    broadcast_at: Option<Millis>,
}

/// What waits, one for each address.
#[derive(Debug)]
pub(super) struct Answers {
    by_addr: HashMap<SocketAddrV4, Waiting>,
    by_due: BTreeMap<(Millis, u64), SocketAddrV4>,
    next: u64,
    tokens: Tokens,
}

impl Answers {
    pub fn new() -> Answers {
        Answers { by_addr: HashMap::new(), by_due: BTreeMap::new(), next: 0, tokens: Tokens::full(RATE) }
    }

    /// To go at that time. Whether there was room.
    pub fn add(&mut self, due: Millis, to: SocketAddrV4, broadcast_at: Option<Millis>) -> bool {
        let mut waiting = Waiting { due, place: self.next, broadcast_at };
        if let Some(before) = self.by_addr.get(&to) {
            waiting.due = due.min(before.due);
            waiting.broadcast_at = broadcast_at.and(before.broadcast_at);
            self.by_due.remove(&(before.due, before.place));
        } else if self.by_addr.len() >= ANSWERS_MAX {
            return false;
        }
        self.next += 1;
        self.by_due.insert((waiting.due, waiting.place), to);
        self.by_addr.insert(to, waiting);
        true
    }

    /// When it broadcast what an answer waits for.
    pub fn broadcast_at(&self, to: SocketAddrV4) -> Option<Millis> {
        self.by_addr.get(&to).and_then(|waiting| waiting.broadcast_at)
    }

    /// It knows us already.
    pub fn not_needed(&mut self, to: SocketAddrV4) -> bool {
        let Some(waiting) = self.by_addr.get(&to).copied() else { return false };
        self.by_addr.remove(&to);
        self.by_due.remove(&(waiting.due, waiting.place));
        true
    }

    /// The next that may go now.
    pub fn next_due(&mut self, now: Millis) -> Option<SocketAddrV4> {
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
