//! How much of a bounded thing each source holds, so that no stranger fills what others need.
//!
//! Pure: who is counted, when, and what the bound in all is about to give way to is the owner's to know.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::source::Source;

/// What each source holds of one bounded thing. SPEC.md section 2: an address other than loopback at most so much,
/// all of loopback together half of the bound, unless it is told otherwise.
///
/// It remembers a source only while that holds something, so it never has more entries than there are things.
#[derive(Debug, Clone)]
pub struct Shares {
    of_an_address: usize,
    of_loopback: usize,
    held: HashMap<Source, usize>,
}

/// A source holds as much as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{source_of_it} holds {share} already, as much as one source may")]
pub struct ShareIsFull {
    /// Whose share it is.
    pub source_of_it: Source,
    /// How much that is.
    pub share: usize,
}

impl Shares {
    /// Of a thing of which there are `bound` at most, `of_an_address` for each address other than loopback.
    pub fn new(bound: usize, of_an_address: usize) -> Shares {
        Shares { of_an_address, of_loopback: (bound / 2).max(1), held: HashMap::new() }
    }

    /// The same with so much for all of loopback together.
    #[must_use]
    pub fn with_loopback(self, of_loopback: usize) -> Shares {
        Shares { of_loopback, ..self }
    }

    /// How much a source may hold.
    pub fn share_of(&self, source: Source) -> usize {
        if source.is_loopback() { self.of_loopback } else { self.of_an_address }
    }

    /// How much it holds.
    pub fn held_by(&self, source: Source) -> usize {
        self.held.get(&source).copied().unwrap_or_default()
    }

    /// Whether it may hold so many more.
    ///
    /// # Errors
    /// It may not. Nothing was counted.
    pub fn has_room(&self, source: Source, more: usize) -> Result<(), ShareIsFull> {
        let share = self.share_of(source);
        // Who holds more than his share (he came before there was one) may still do what takes nothing.
        if more == 0 || self.held_by(source).saturating_add(more) <= share {
            return Ok(());
        }
        Err(ShareIsFull { source_of_it: source, share })
    }

    /// Counts what it holds from now on. What was on disk before is counted without having been asked about.
    pub fn take(&mut self, source: Source, more: usize) {
        if more > 0 {
            *self.held.entry(source).or_default() += more;
        }
    }

    /// Counts what it holds no more: its room is free at once.
    pub fn give_back(&mut self, source: Source, less: usize) {
        let Entry::Occupied(mut held) = self.held.entry(source) else {
            debug_assert_eq!(less, 0, "given back what was never taken");
            return;
        };
        debug_assert!(less <= *held.get(), "given back what was never taken");
        *held.get_mut() = held.get().saturating_sub(less);
        if *held.get() == 0 {
            held.remove();
        }
    }

    /// How many sources hold something.
    pub fn sources(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::net::source;

    fn at(text: &str) -> Source {
        source::of(text.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_share_and_loopback_half_of_the_bound() {
        let mut shares = Shares::new(10, 3);
        let (one, other) = (at("192.0.2.1"), at("2001:db8::1"));
        shares.take(one, 3);
        assert_eq!(shares.has_room(one, 1), Err(ShareIsFull { source_of_it: one, share: 3 }));
        assert_eq!(
            shares.has_room(one, 1).unwrap_err().to_string(),
            "192.0.2.1 holds 3 already, as much as one source may"
        );
        assert_eq!(shares.has_room(one, 0), Ok(()));
        assert_eq!((shares.has_room(other, 3), shares.has_room(other, 4).is_err()), (Ok(()), true));
        shares.take(other, 2);
        assert_eq!(shares.held_by(at("2001:db8::2")), 2, "one network is one source");
        // All of loopback is one machine.
        shares.take(at("127.0.0.1"), 4);
        shares.take(at("::1"), 1);
        assert!(shares.has_room(at("127.0.0.2"), 1).is_err());
        assert_eq!(shares.share_of(at("127.0.0.2")), 5);
        // What is given back is free at once.
        shares.give_back(one, 1);
        assert_eq!(shares.has_room(one, 1), Ok(()));
        shares.give_back(at("127.0.0.2"), 1);
        assert_eq!(shares.has_room(at("::1"), 1), Ok(()));
        assert_eq!(shares.sources(), 3);
        shares.give_back(one, 2);
        assert_eq!((shares.sources(), shares.held_by(one)), (2, 0), "who holds nothing is not remembered");
    }

    #[test]
    fn who_holds_more_than_a_share_gets_no_more_until_he_is_below_it() {
        let mut shares = Shares::new(10, 3);
        let one = at("192.0.2.1");
        shares.take(one, 7);
        assert_eq!(shares.has_room(one, 0), Ok(()));
        assert!(shares.has_room(one, 1).is_err());
        shares.give_back(one, 4);
        assert!(shares.has_room(one, 1).is_err());
        shares.give_back(one, 1);
        assert_eq!(shares.has_room(one, 1), Ok(()));
        assert!(shares.has_room(one, usize::MAX).is_err());
    }

    proptest! {
        #[test]
        fn it_counts_as_a_plain_map_does(steps in prop::collection::vec((0..5_u8, 0..4_usize, any::<bool>()), 0..200)) {
            let (mut shares, mut model) = (Shares::new(6, 4), BTreeMap::<Source, usize>::new());
            // 127.0.0.1 to 127.0.0.3 are one, whatever they are called.
            let of = |n: u8| at(&if n < 3 { format!("127.0.0.{}", n + 1) } else { format!("192.0.2.{n}") });
            let key = |n: u8| of(n.max(2));
            for (n, count, takes) in steps {
                let held = model.entry(key(n)).or_default();
                if takes {
                    let share = if n < 3 { 3 } else { 4 };
                    let fits = count == 0 || *held + count <= share;
                    prop_assert_eq!(shares.has_room(of(n), count).is_ok(), fits);
                    if fits {
                        shares.take(of(n), count);
                        *held += count;
                    }
                } else {
                    let count = count.min(*held);
                    shares.give_back(of(n), count);
                    *held -= count;
                }
                for n in 0..5 {
                    prop_assert_eq!(shares.held_by(of(n)), model.get(&key(n)).copied().unwrap_or_default());
                }
                prop_assert_eq!(shares.sources(), model.values().filter(|held| **held > 0).count());
            }
        }
    }
}
