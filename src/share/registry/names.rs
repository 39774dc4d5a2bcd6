//! An ordered list of names in which the n-th is found quickly, so that a page can begin anywhere in a long list.

use crate::model::Name;
use crate::model::text::nfc;

/// Maximum number of names in a chunk. Insertion moves at most half of one; finding the n-th name adds up chunk sizes.
const CHUNK_MAX: usize = 512;

/// A sorted list in chunks, none of which is empty.
#[derive(Debug, Default)]
pub(super) struct OrderedNames<V> {
    chunks: Vec<Vec<(Name, V)>>,
    len: usize,
}

impl<V: Copy> OrderedNames<V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Inserts a name, or replaces the value of one that exists.
    pub(super) fn insert(&mut self, name: Name, value: V) {
        let at = self.chunk_of(name.key());
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(vec![(name, value)]);
            self.len += 1;
            return;
        };
        match chunk.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(place) => chunk[place].1 = value,
            Err(place) => {
                chunk.insert(place, (name, value));
                self.len += 1;
                if chunk.len() > CHUNK_MAX {
                    let upper = chunk.split_off(CHUNK_MAX / 2);
                    self.chunks.insert(at + 1, upper);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> bool {
        let name = &*nfc(name);
        let at = self.chunk_of(name);
        let Some(chunk) = self.chunks.get_mut(at) else { return false };
        let Ok(place) = chunk.binary_search_by(|(known, _)| known.key().cmp(name)) else { return false };
        chunk.remove(place);
        self.len -= 1;
        let left = chunk.len();
        if left == 0 {
            self.chunks.remove(at);
        } else if left < CHUNK_MAX / 4 {
            // Merge small chunks; otherwise there could be as many chunks as names.
            let fits = |at: usize| self.chunks.get(at).is_some_and(|other| left + other.len() <= CHUNK_MAX / 2);
            let lower = if fits(at + 1) { Some(at) } else { at.checked_sub(1).filter(|before| fits(*before)) };
            if let Some(lower) = lower {
                let upper = self.chunks.remove(lower + 1);
                self.chunks[lower].extend(upper);
            }
        }
        true
    }

    /// The names from the n-th on, counting from 0.
    pub(super) fn starting_at(&self, mut offset: usize) -> impl Iterator<Item = &(Name, V)> {
        let mut at = 0;
        while let Some(chunk) = self.chunks.get(at)
            && chunk.len() <= offset
        {
            offset -= chunk.len();
            at += 1;
        }
        self.chunks[at..].iter().flatten().skip(offset)
    }

    /// The names after this one, which need not exist.
    pub(super) fn after(&self, name: &str) -> impl Iterator<Item = &(Name, V)> {
        let name = &*nfc(name);
        let at = self.chunk_of(name);
        let passed = self.chunks.get(at).map_or(0, |chunk| chunk.partition_point(|(known, _)| known.key() <= name));
        self.chunks[at.min(self.chunks.len())..].iter().flatten().skip(passed)
    }

    /// Index of the chunk that holds the name (in the form used for comparison), or into which it would be inserted.
    fn chunk_of(&self, name: &str) -> usize {
        self.chunks.partition_point(|chunk| chunk[0].0.key() <= name).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn name(number: u32) -> Name {
        Name::new(&format!("host-{number}")).unwrap()
    }

    fn compare(names: &OrderedNames<u32>, model: &BTreeMap<Name, u32>, offset: usize, after: &Name) {
        assert_eq!(names.len(), model.len());
        assert!(names.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
        let all: Vec<_> = model.iter().map(|(name, value)| (name.clone(), *value)).collect();
        assert_eq!(names.starting_at(0).cloned().collect::<Vec<_>>(), all);
        assert_eq!(names.starting_at(offset).cloned().collect::<Vec<_>>(), all[offset.min(all.len())..]);
        let behind: Vec<_> = all.iter().filter(|(name, _)| name > after).cloned().collect();
        assert_eq!(names.after(after.as_str()).cloned().collect::<Vec<_>>(), behind);
    }

    #[test]
    fn many_names_stay_in_order_while_they_come_and_go() {
        let (mut names, mut model) = (OrderedNames::default(), BTreeMap::new());
        compare(&names, &model, 3, &name(1));
        for number in (0..5000).map(|number| number * 7919 % 5000) {
            names.insert(name(number), number);
            model.insert(name(number), number);
        }
        compare(&names, &model, 1234, &name(77));
        for number in (0..5000).filter(|number| number % 50 != 0) {
            assert!(names.remove(name(number).as_str()));
            assert!(!names.remove(name(number).as_str()));
            model.remove(&name(number));
        }
        compare(&names, &model, 50, &name(3));
        assert!(names.chunks.len() <= 5, "{names:?}: chunks that are nearly empty come together");
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(
            steps in prop::collection::vec((any::<bool>(), 0..40_u32, any::<u32>()), 0..200),
            offset in 0..50_usize,
            after in 0..45_u32,
        ) {
            let (mut names, mut model) = (OrderedNames::default(), BTreeMap::new());
            for (insert, number, value) in steps {
                if insert {
                    names.insert(name(number), value);
                    model.insert(name(number), value);
                } else {
                    prop_assert_eq!(names.remove(name(number).as_str()), model.remove(&name(number)).is_some());
                }
            }
            compare(&names, &model, offset, &name(after));
        }
    }
}
