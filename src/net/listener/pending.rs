//! Connections that have not completed a request yet, by the time at which they came.
//!
//! Nobody is turned away for being silent as long as there is room. When it gets short, who has waited longest
//! goes first: so whoever says at once what he wants always gets in. Which of them may go for whom is the
//! limiter's to say ([`super::limiter`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::limiter::ListenerId;
use crate::net::source::Source;

/// A place among the pending ones. A larger one came later.
pub(super) type Place = u64;

/// One of them; `C` closes it.
#[derive(Debug)]
pub(super) struct Pending<C> {
    pub(super) listener: ListenerId,
    pub(super) source: Source,
    pub(super) closer: C,
}

/// All of them, of all listeners.
#[derive(Debug)]
pub(super) struct PendingConnections<C> {
    next: Place,
    all: BTreeMap<Place, Pending<C>>,
    of_listener: HashMap<ListenerId, BTreeSet<Place>>,
    of_source: HashMap<Source, BTreeSet<Place>>,
}

impl<C> Default for PendingConnections<C> {
    fn default() -> Self {
        PendingConnections { next: 0, all: BTreeMap::new(), of_listener: HashMap::new(), of_source: HashMap::new() }
    }
}

impl<C> PendingConnections<C> {
    /// One more, the youngest.
    pub(super) fn add(&mut self, pending: Pending<C>) -> Place {
        let place = self.next;
        self.next += 1;
        self.of_listener.entry(pending.listener).or_default().insert(place);
        self.of_source.entry(pending.source).or_default().insert(place);
        self.all.insert(place, pending);
        place
    }

    /// One less; none if it has been taken already.
    pub(super) fn take(&mut self, place: Place) -> Option<Pending<C>> {
        let pending = self.all.remove(&place)?;
        forget(&mut self.of_listener, &pending.listener, place);
        forget(&mut self.of_source, &pending.source, place);
        Some(pending)
    }

    /// Who has waited longest of one source.
    pub(super) fn oldest_of(&self, source: Source) -> Option<Place> {
        self.of_source.get(&source)?.first().copied()
    }

    /// Who has waited longest at these listeners.
    pub(super) fn oldest_at(&self, listeners: impl Iterator<Item = ListenerId>) -> Option<Place> {
        listeners.filter_map(|listener| self.of_listener.get(&listener)?.first().copied()).min()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

fn forget<K: std::hash::Hash + Eq>(places: &mut HashMap<K, BTreeSet<Place>>, key: &K, place: Place) {
    if let Some(of_key) = places.get_mut(key) {
        of_key.remove(&place);
        if of_key.is_empty() {
            places.remove(key);
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
        let from = |text: &str| source::of(text.parse().unwrap());
        let mut add = |listener, text: &str| {
            let at = Pending { listener: ListenerId(listener), source: from(text), closer: () };
            pending.add(at)
        };
        let (first, second, third) = (add(1, "192.0.2.1"), add(2, "192.0.2.2"), add(1, "192.0.2.2"));
        let at = |listeners: &[u64]| listeners.iter().map(|id| ListenerId(*id)).collect::<Vec<_>>().into_iter();
        assert_eq!(pending.oldest_at(at(&[2, 1])), Some(first));
        assert_eq!(pending.oldest_at(at(&[2])), Some(second));
        assert_eq!(pending.oldest_at(at(&[3])), None);
        assert_eq!(pending.oldest_of(from("192.0.2.2")), Some(second));
        assert_eq!(pending.take(second).unwrap().listener, ListenerId(2));
        assert!(pending.take(second).is_none());
        assert_eq!(pending.oldest_of(from("192.0.2.2")), Some(third));
        assert_eq!(pending.oldest_at(at(&[2])), None);
        assert!(pending.take(first).is_some() && pending.take(third).is_some());
        assert_eq!((pending.len(), pending.of_listener.len(), pending.of_source.len()), (0, 0, 0));
    }
}
