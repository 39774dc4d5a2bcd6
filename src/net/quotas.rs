//! How much of a limited resource each source uses, so that no single client uses what others need. This only counts:
//! what to do when the bound in all is reached is its owner's affair.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::source::SourceKey;

/// By default a source other than loopback may use a fixed quota, and loopback as a whole half of the bound
/// (`docs/spec/general.md`). A source is remembered only while it uses something, so there are never more entries
/// than the resource has units.
#[derive(Debug, Clone)]
pub struct SourceQuotas {
    per_source: usize,
    loopback: usize,
    used: HashMap<SourceKey, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{source_key} holds {quota} already, as much as one source may")]
pub struct QuotaExceeded {
    pub source_key: SourceKey,
    pub quota: usize,
}

impl SourceQuotas {
    /// Of `bound` in all, half is for loopback, `per_source` for every other source.
    pub fn new(bound: usize, per_source: usize) -> SourceQuotas {
        SourceQuotas { per_source, loopback: (bound / 2).max(1), used: HashMap::new() }
    }

    #[must_use]
    pub fn with_loopback_quota(self, loopback: usize) -> SourceQuotas {
        SourceQuotas { loopback, ..self }
    }

    pub fn quota_of(&self, source: SourceKey) -> usize {
        if source.is_loopback() { self.loopback } else { self.per_source }
    }

    pub fn used_by(&self, source: SourceKey) -> usize {
        self.used.get(&source).copied().unwrap_or_default()
    }

    /// Checks a source's quota without counting.
    pub fn check_room(&self, source: SourceKey, more: usize) -> Result<(), QuotaExceeded> {
        let quota = self.quota_of(source);
        // A source above its quota (from before there was one) may still do what uses nothing more.
        if more == 0 || self.used_by(source).saturating_add(more) <= quota {
            return Ok(());
        }
        Err(QuotaExceeded { source_key: source, quota })
    }

    /// Counts without checking the quota: what was loaded from disk is counted, too.
    pub fn acquire(&mut self, source: SourceKey, more: usize) {
        if more > 0 {
            *self.used.entry(source).or_default() += more;
        }
    }

    pub fn release(&mut self, source: SourceKey, less: usize) {
        let Entry::Occupied(mut used) = self.used.entry(source) else {
            debug_assert_eq!(less, 0, "given back what was never taken");
            return;
        };
        debug_assert!(less <= *used.get(), "given back what was never taken");
        *used.get_mut() = used.get().saturating_sub(less);
        if *used.get() == 0 {
            used.remove();
        }
    }

    #[cfg(test)]
    pub fn source_count(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::net::source;

    fn at(text: &str) -> SourceKey {
        source::key_of(text.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_share_and_loopback_half_of_the_bound() {
        let mut quotas = SourceQuotas::new(10, 3);
        let (one, other) = (at("192.0.2.1"), at("2001:db8::1"));
        quotas.acquire(one, 3);
        assert_eq!(quotas.check_room(one, 1), Err(QuotaExceeded { source_key: one, quota: 3 }));
        assert_eq!(
            quotas.check_room(one, 1).unwrap_err().to_string(),
            "192.0.2.1 holds 3 already, as much as one source may"
        );
        assert_eq!(quotas.check_room(one, 0), Ok(()));
        assert_eq!((quotas.check_room(other, 3), quotas.check_room(other, 4).is_err()), (Ok(()), true));
        quotas.acquire(other, 2);
        assert_eq!(quotas.used_by(at("2001:db8::2")), 2, "one network is one source");
        // All of loopback is one machine.
        quotas.acquire(at("127.0.0.1"), 4);
        quotas.acquire(at("::1"), 1);
        assert!(quotas.check_room(at("127.0.0.2"), 1).is_err());
        assert_eq!(quotas.quota_of(at("127.0.0.2")), 5);
        // What is given back is free at once.
        quotas.release(one, 1);
        assert_eq!(quotas.check_room(one, 1), Ok(()));
        quotas.release(at("127.0.0.2"), 1);
        assert_eq!(quotas.check_room(at("::1"), 1), Ok(()));
        assert_eq!(quotas.source_count(), 3);
        quotas.release(one, 2);
        assert_eq!((quotas.source_count(), quotas.used_by(one)), (2, 0), "who holds nothing is not remembered");
    }

    #[test]
    fn who_holds_more_than_a_share_gets_no_more_until_he_is_below_it() {
        let mut quotas = SourceQuotas::new(10, 3);
        let one = at("192.0.2.1");
        quotas.acquire(one, 7);
        assert_eq!(quotas.check_room(one, 0), Ok(()));
        assert!(quotas.check_room(one, 1).is_err());
        quotas.release(one, 4);
        assert!(quotas.check_room(one, 1).is_err());
        quotas.release(one, 1);
        assert_eq!(quotas.check_room(one, 1), Ok(()));
        assert!(quotas.check_room(one, usize::MAX).is_err());
    }

    proptest! {
        #[test]
        fn it_counts_as_a_plain_map_does(steps in prop::collection::vec((0..5_u8, 0..4_usize, any::<bool>()), 0..200)) {
            let (mut quotas, mut model) = (SourceQuotas::new(6, 4), BTreeMap::<SourceKey, usize>::new());
            // 127.0.0.1 to 127.0.0.3 are one, whatever they are called.
            let of = |n: u8| at(&if n < 3 { format!("127.0.0.{}", n + 1) } else { format!("192.0.2.{n}") });
            let key = |n: u8| of(n.max(2));
            for (n, count, takes) in steps {
                let used = model.entry(key(n)).or_default();
                if takes {
                    let quota = if n < 3 { 3 } else { 4 };
                    let fits = count == 0 || *used + count <= quota;
                    prop_assert_eq!(quotas.check_room(of(n), count).is_ok(), fits);
                    if fits {
                        quotas.acquire(of(n), count);
                        *used += count;
                    }
                } else {
                    let count = count.min(*used);
                    quotas.release(of(n), count);
                    *used -= count;
                }
                for n in 0..5 {
                    prop_assert_eq!(quotas.used_by(of(n)), model.get(&key(n)).copied().unwrap_or_default());
                }
                prop_assert_eq!(quotas.source_count(), model.values().filter(|used| **used > 0).count());
            }
        }
    }
}
