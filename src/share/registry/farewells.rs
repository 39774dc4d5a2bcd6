//! Hostnames of which a secret is all that is left, in the order in which their hosts went.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::Name;
use crate::net::shares::Shares;
use crate::net::source::Source;

/// As many as there may be hosts, and of one source as many as that may have. Past that the first ones give way:
/// those of the same source where that has its share, so that who leaves again and again ends nobody else's.
#[derive(Debug)]
pub(super) struct Farewells {
    bound: usize,
    next: u64,
    in_order: BTreeMap<u64, (Name, Source)>,
    of_source: BTreeSet<(Source, u64)>,
    by_name: HashMap<Name, u64>,
    shares: Shares,
}

impl Farewells {
    pub(super) fn new(bound: usize, of_one: usize) -> Farewells {
        Farewells {
            bound,
            next: 0,
            in_order: BTreeMap::new(),
            of_source: BTreeSet::new(),
            by_name: HashMap::new(),
            shares: Shares::new(bound, of_one),
        }
    }

    /// A host has gone; the names that give way to it.
    pub(super) fn add(&mut self, name: Name, source: Source) -> Vec<Name> {
        self.remove(name.as_str());
        let mut gone = Vec::new();
        while self.shares.has_room(source, 1).is_err()
            && let Some((_, first)) = self.of_source.range((source, 0)..=(source, u64::MAX)).next().copied()
        {
            gone.extend(self.take_out(first));
        }
        while self.in_order.len() >= self.bound
            && let Some(first) = self.in_order.keys().next().copied()
        {
            gone.extend(self.take_out(first));
        }
        self.restore(name, source);
        gone
    }

    /// One that was there before, whatever the bounds say.
    pub(super) fn restore(&mut self, name: Name, source: Source) {
        self.in_order.insert(self.next, (name.clone(), source));
        self.of_source.insert((source, self.next));
        self.by_name.insert(name, self.next);
        self.shares.take(source, 1);
        self.next += 1;
    }

    /// Its host is back, or there is no secret any more.
    pub(super) fn remove(&mut self, name: &str) {
        let name = Name::kept(name).ok();
        if let Some(number) = name.and_then(|name| self.by_name.get(&name).copied()) {
            self.take_out(number);
        }
    }

    fn take_out(&mut self, number: u64) -> Option<Name> {
        let (name, source) = self.in_order.remove(&number)?;
        self.of_source.remove(&(source, number));
        self.by_name.remove(&name);
        self.shares.give_back(source, 1);
        Some(name)
    }

    pub(super) fn len(&self) -> usize {
        self.in_order.len()
    }

    /// In their order.
    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<Name> {
        self.in_order.values().map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    #[test]
    fn who_leaves_often_ends_his_own_and_nobody_elses() {
        let mut farewells = Farewells::new(6, 2);
        let at = |text: &str| source::of(text.parse().unwrap());
        let name = |text: &str| Name::new(text).unwrap();
        assert!(farewells.add(name("old"), at("192.0.2.9")).is_empty());
        for (left, gone) in [("a", vec![]), ("b", vec![]), ("c", vec!["a"]), ("b", vec![]), ("d", vec!["c"])] {
            let names: Vec<Name> = gone.into_iter().map(name).collect();
            assert_eq!(farewells.add(name(left), at("192.0.2.1")), names, "{left}");
        }
        assert_eq!(farewells.names(), ["old", "b", "d"].map(name));
        farewells.remove("b");
        assert!(farewells.add(name("e"), at("192.0.2.1")).is_empty());
        // The bound of all: the first of all.
        for (n, from) in [(1, "192.0.2.2"), (2, "192.0.2.3"), (3, "192.0.2.4")] {
            assert!(farewells.add(name(&format!("n{n}")), at(from)).is_empty());
        }
        assert_eq!(farewells.add(name("last"), at("192.0.2.5")), [name("old")]);
        assert_eq!(farewells.len(), 6);
    }
}
