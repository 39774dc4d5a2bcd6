//! An index from a key (a file name, a content digest) to its holders.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Bound;

/// Nearly every key has one holder, which needs no tree.
#[derive(Debug)]
enum Holders<H> {
    Single(H),
    Many(BTreeSet<H>),
}

/// An index in which every key has at least one holder.
#[derive(Debug)]
pub(super) struct HolderIndex<K, H> {
    by_key: HashMap<K, Holders<H>>,
}

impl<K, H> Default for HolderIndex<K, H> {
    fn default() -> HolderIndex<K, H> {
        HolderIndex { by_key: HashMap::new() }
    }
}

impl<K: Hash + Eq, H: Ord + Clone> HolderIndex<K, H> {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn insert(&mut self, key: K, holder: H) {
        use std::collections::hash_map::Entry;
        match self.by_key.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Holders::Single(holder));
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Holders::Single(only) if *only == holder => {}
                Holders::Single(only) => {
                    let both = BTreeSet::from([only.clone(), holder]);
                    occupied.insert(Holders::Many(both));
                }
                Holders::Many(many) => {
                    many.insert(holder);
                }
            },
        }
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, holder: &H)
    where
        K: std::borrow::Borrow<Q>,
    {
        let is_empty = match self.by_key.get_mut(key) {
            None => false,
            Some(Holders::Single(only)) => only == holder,
            Some(Holders::Many(many)) => {
                many.remove(holder);
                many.is_empty()
            }
        };
        if is_empty {
            self.by_key.remove(key);
        }
    }

    /// Up to `at_most` holders of a key after `after`, in order.
    pub(super) fn page<Q: Hash + Eq + ?Sized>(&self, key: &Q, after: Option<&H>, at_most: usize) -> Vec<H>
    where
        K: std::borrow::Borrow<Q>,
    {
        match self.by_key.get(key) {
            None => Vec::new(),
            Some(Holders::Single(only)) => {
                let is_next = after.is_none_or(|after| only > after);
                if is_next { vec![only.clone()] } else { Vec::new() }
            }
            Some(Holders::Many(many)) => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                many.range((from, Bound::Unbounded)).take(at_most).cloned().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_pairs(
            steps in prop::collection::vec((any::<bool>(), 0..4_u8, 0..6_u8), 0..100),
            after in prop::option::of(0..6_u8),
            at_most in 1..4_usize,
        ) {
            let (mut index, mut model) = (HolderIndex::default(), BTreeSet::new());
            for (insert, key, holder) in steps {
                if insert {
                    index.insert(key, holder);
                    model.insert((key, holder));
                } else {
                    index.remove(&key, &holder);
                    model.remove(&(key, holder));
                }
            }
            let keys: BTreeSet<u8> = model.iter().map(|(key, _)| *key).collect();
            prop_assert_eq!(index.len(), keys.len());
            for key in 0..4 {
                let expected: Vec<u8> = model
                    .iter()
                    .filter(|(of, holder)| *of == key && after.is_none_or(|after| *holder > after))
                    .map(|(_, holder)| *holder)
                    .take(at_most)
                    .collect();
                prop_assert_eq!(index.page(&key, after.as_ref(), at_most), expected);
            }
        }
    }
}
