//! Connections that have not completed a request yet, in the order in which they came. None is refused for being idle
//! as long as there is room. When room gets short, the one that has waited longest is evicted first, so a client that
//! sends its request at once always gets in. Which may be evicted for whom is decided by the limiter.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::net::source::SourceKey;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ListenerId(pub(super) u64);

/// A connection with a larger id came later.
pub(super) type PendingId = u64;

/// `handle` is what the limiter needs to close it.
#[derive(Debug)]
pub(super) struct PendingConnection<C> {
    pub(super) listener: ListenerId,
    pub(super) source: SourceKey,
    pub(super) handle: C,
}

#[derive(Debug, Default)]
pub(super) struct PendingConnections<C> {
    next_id: PendingId,
    all: BTreeMap<PendingId, PendingConnection<C>>,
    by_listener: HashMap<ListenerId, BTreeSet<PendingId>>,
    by_source: HashMap<SourceKey, BTreeSet<PendingId>>,
}

impl<C> PendingConnections<C> {
    pub(super) fn add(&mut self, pending: PendingConnection<C>) -> PendingId {
        let id = self.next_id;
        self.next_id += 1;
        self.by_listener.entry(pending.listener).or_default().insert(id);
        self.by_source.entry(pending.source).or_default().insert(id);
        self.all.insert(id, pending);
        id
    }

    /// `None` if it was removed already.
    pub(super) fn remove(&mut self, id: PendingId) -> Option<PendingConnection<C>> {
        let pending = self.all.remove(&id)?;
        remove_id(&mut self.by_listener, &pending.listener, id);
        remove_id(&mut self.by_source, &pending.source, id);
        Some(pending)
    }

    pub(super) fn oldest_from(&self, source: SourceKey) -> Option<PendingId> {
        self.by_source.get(&source)?.first().copied()
    }

    pub(super) fn oldest_at(&self, listeners: impl Iterator<Item = ListenerId>) -> Option<PendingId> {
        listeners.filter_map(|listener| self.by_listener.get(&listener)?.first().copied()).min()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

fn remove_id<K: std::hash::Hash + Eq>(ids: &mut HashMap<K, BTreeSet<PendingId>>, key: &K, id: PendingId) {
    if let Some(of_key) = ids.get_mut(key) {
        of_key.remove(&id);
        if of_key.is_empty() {
            ids.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    #[test]
    fn the_oldest_is_found_by_listener_and_by_source_and_nothing_is_left_behind() {
        let mut pending = PendingConnections::default();
        let from = |text: &str| source::key_of(text.parse().unwrap());
        let mut add = |listener, text: &str| {
            let at = PendingConnection { listener: ListenerId(listener), source: from(text), handle: () };
            pending.add(at)
        };
        let (first, second, third) = (add(1, "192.0.2.1"), add(2, "192.0.2.2"), add(1, "192.0.2.2"));
        let at = |listeners: &[u64]| listeners.iter().map(|id| ListenerId(*id)).collect::<Vec<_>>().into_iter();
        assert_eq!(pending.oldest_at(at(&[2, 1])), Some(first));
        assert_eq!(pending.oldest_at(at(&[2])), Some(second));
        assert_eq!(pending.oldest_at(at(&[3])), None);
        assert_eq!(pending.oldest_from(from("192.0.2.2")), Some(second));
        assert_eq!(pending.remove(second).unwrap().listener, ListenerId(2));
        assert!(pending.remove(second).is_none());
        assert_eq!(pending.oldest_from(from("192.0.2.2")), Some(third));
        assert_eq!(pending.oldest_at(at(&[2])), None);
        assert!(pending.remove(first).is_some() && pending.remove(third).is_some());
        assert_eq!((pending.len(), pending.by_listener.len(), pending.by_source.len()), (0, 0, 0));
    }
}
