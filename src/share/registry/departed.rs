//! Hostnames without a host that a secret can still get back, in the order in which their hosts were removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::Name;
use crate::net::quotas::SourceQuotas;
use crate::net::source::SourceKey;

/// Limited to the maximum number of hosts, in total and per source. Beyond that the oldest are evicted: those of the
/// same source if that has used up its share, so that a client that leaves repeatedly evicts only its own.
#[derive(Debug)]
pub(super) struct DepartedHostnames {
    limit: usize,
    next_number: u64,
    by_departure: BTreeMap<u64, (Name, SourceKey)>,
    by_source: BTreeSet<(SourceKey, u64)>,
    by_name: HashMap<Name, u64>,
    shares: SourceQuotas,
}

impl DepartedHostnames {
    pub(super) fn new(limit: usize, per_source: usize) -> DepartedHostnames {
        DepartedHostnames {
            limit,
            next_number: 0,
            by_departure: BTreeMap::new(),
            by_source: BTreeSet::new(),
            by_name: HashMap::new(),
            shares: SourceQuotas::new(limit, per_source),
        }
    }

    /// Adds the hostname of a removed host. Returns the hostnames that were evicted for it.
    pub(super) fn add(&mut self, name: Name, source: SourceKey) -> Vec<Name> {
        self.remove(name.as_str());
        let mut evicted = Vec::new();
        while self.shares.check_room(source, 1).is_err()
            && let Some((_, first)) = self.by_source.range((source, 0)..=(source, u64::MAX)).next().copied()
        {
            evicted.extend(self.remove_number(first));
        }
        while self.by_departure.len() >= self.limit
            && let Some(first) = self.by_departure.keys().next().copied()
        {
            evicted.extend(self.remove_number(first));
        }
        self.restore(name, source);
        evicted
    }

    /// Adds a hostname from the store, regardless of the limits.
    pub(super) fn restore(&mut self, name: Name, source: SourceKey) {
        self.by_departure.insert(self.next_number, (name.clone(), source));
        self.by_source.insert((source, self.next_number));
        self.by_name.insert(name, self.next_number);
        self.shares.acquire(source, 1);
        self.next_number += 1;
    }

    /// Forgets a hostname: its host is back, or its last secret is gone.
    pub(super) fn remove(&mut self, name: &str) {
        let name = Name::from_stored(name).ok();
        if let Some(number) = name.and_then(|name| self.by_name.get(&name).copied()) {
            self.remove_number(number);
        }
    }

    fn remove_number(&mut self, number: u64) -> Option<Name> {
        let (name, source) = self.by_departure.remove(&number)?;
        self.by_source.remove(&(source, number));
        self.by_name.remove(&name);
        self.shares.release(source, 1);
        Some(name)
    }

    pub(super) fn len(&self) -> usize {
        self.by_departure.len()
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<Name> {
        self.by_departure.values().map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    #[test]
    fn who_leaves_often_ends_his_own_and_nobody_elses() {
        let mut departed = DepartedHostnames::new(6, 2);
        let at = |text: &str| source::key_of(text.parse().unwrap());
        let name = |text: &str| Name::new(text).unwrap();
        assert!(departed.add(name("old"), at("192.0.2.9")).is_empty());
        for (left, evicted) in [("a", vec![]), ("b", vec![]), ("c", vec!["a"]), ("b", vec![]), ("d", vec!["c"])] {
            let names: Vec<Name> = evicted.into_iter().map(name).collect();
            assert_eq!(departed.add(name(left), at("192.0.2.1")), names, "{left}");
        }
        assert_eq!(departed.names(), ["old", "b", "d"].map(name));
        departed.remove("b");
        assert!(departed.add(name("e"), at("192.0.2.1")).is_empty());
        // The total limit evicts the oldest of all.
        for (n, from) in [(1, "192.0.2.2"), (2, "192.0.2.3"), (3, "192.0.2.4")] {
            assert!(departed.add(name(&format!("n{n}")), at(from)).is_empty());
        }
        assert_eq!(departed.add(name("last"), at("192.0.2.5")), [name("old")]);
        assert_eq!(departed.len(), 6);
    }
}
