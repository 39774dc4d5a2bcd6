//! How many connections may be open: in all, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::counters::Counter;
use super::source::{self, Source};

/// Counts the connections of all listeners that share it.
///
/// At most half of the bound goes to one address other than loopback, so that no single stranger
/// locks out all others.
#[derive(Debug)]
pub struct Gate {
    max_connections: usize,
    open: Mutex<Open>,
    counters: GateCounters,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_source: HashMap<Source, usize>,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bound in all.
    #[error("{max_connections} connections are open already")]
    Full {
        /// The bound.
        max_connections: usize,
    },
    /// The bound for one address.
    #[error("{whose} has {max} connections open already")]
    AddressFull {
        /// Whose connections they are.
        whose: Source,
        /// The bound for one address.
        max: usize,
    },
}

/// What a gate did so far.
#[derive(Debug, Default)]
pub struct GateCounters {
    /// Connections let in.
    pub let_in: Counter,
    /// Connections refused because of the bound in all.
    pub refused_full: Counter,
    /// Connections refused because of the bound for one address.
    pub refused_address: Counter,
}

impl GateCounters {
    /// Every counter with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("let_in", self.let_in.get()),
            ("refused_full", self.refused_full.get()),
            ("refused_address", self.refused_address.get()),
        ]
    }
}

/// The right to one open connection, given back when dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    source: Source,
}

impl Gate {
    /// Lets in that many at a time.
    pub fn new(max_connections: usize) -> Arc<Gate> {
        Arc::new(Gate { max_connections, open: Mutex::default(), counters: GateCounters::default() })
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// [`Refusal`] past either bound.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Refusal> {
        let source = source::of(address);
        let max_of_one = self.max_of_one(source);
        let mut open = self.open.lock();
        if open.total >= self.max_connections {
            drop(open);
            self.counters.refused_full.add(1);
            return Err(Refusal::Full { max_connections: self.max_connections });
        }
        let of_this = open.by_source.entry(source).or_default();
        if *of_this >= max_of_one {
            drop(open);
            self.counters.refused_address.add(1);
            return Err(Refusal::AddressFull { whose: source, max: max_of_one });
        }
        *of_this += 1;
        open.total += 1;
        drop(open);
        self.counters.let_in.add(1);
        Ok(Pass { gate: Arc::clone(self), source })
    }

    fn max_of_one(&self, source: Source) -> usize {
        if source.is_loopback() { self.max_connections } else { (self.max_connections / 2).max(1) }
    }

    /// How many more it lets in: in all, and from this address.
    pub fn left(&self, address: IpAddr) -> (usize, usize) {
        let source = source::of(address);
        let open = self.open.lock();
        let of_this = open.by_source.get(&source).copied().unwrap_or_default();
        let in_all = self.max_connections.saturating_sub(open.total);
        (in_all, in_all.min(self.max_of_one(source).saturating_sub(of_this)))
    }

    /// How many it lets in.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.lock().total
    }

    /// What was counted so far.
    pub fn counters(&self) -> &GateCounters {
        &self.counters
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock();
        open.total -= 1;
        if let Some(of_this) = open.by_source.get_mut(&self.source) {
            *of_this -= 1;
            if *of_this == 0 {
                open.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_gets_half_loopback_all() {
        let gate = Gate::new(5);
        let mut passes: Vec<Pass> = (0..2).map(|_| gate.enter(ip("192.0.2.1")).unwrap()).collect();
        let refused = gate.enter(ip("192.0.2.1")).unwrap_err();
        assert_eq!(refused, Refusal::AddressFull { whose: source::of(ip("192.0.2.1")), max: 2 });
        assert_eq!(gate.enter(ip("::ffff:192.0.2.1")).unwrap_err(), refused);
        passes.push(gate.enter(ip("192.0.2.2")).unwrap());
        passes.pop();
        passes.pop();
        passes.push(gate.enter(ip("192.0.2.1")).unwrap());
        drop(passes);
        assert_eq!(gate.open(), 0);
        assert!(gate.open.lock().by_source.is_empty());

        let passes: Vec<Pass> = (0..5).map(|_| gate.enter(ip("127.0.0.1")).unwrap()).collect();
        let refused = gate.enter(ip("192.0.2.2")).unwrap_err();
        assert_eq!(refused, Refusal::Full { max_connections: 5 });
        assert_eq!(refused.to_string(), "5 connections are open already");
        drop(passes);
        assert_eq!(gate.counters().refused_full.get(), 1);
        assert_eq!(gate.counters().refused_address.get(), 2);
    }

    #[test]
    fn the_addresses_of_one_network_of_ipv6_share_its_half() {
        let gate = Gate::new(4);
        let _passes: Vec<Pass> = (1..3).map(|host| gate.enter(ip(&format!("2001:db8::{host}"))).unwrap()).collect();
        let refused = gate.enter(ip("2001:db8::9")).unwrap_err();
        assert_eq!(refused.to_string(), "2001:db8::/64 has 2 connections open already");
        assert_eq!(gate.left(ip("2001:db8::9")), (2, 0));
        assert!(gate.enter(ip("2001:db8:0:1::9")).is_ok());
    }

    #[test]
    fn a_stranger_gets_one_even_of_one() {
        let gate = Gate::new(1);
        assert!(gate.enter(ip("192.0.2.1")).is_ok());
        assert!(Gate::new(0).enter(ip("127.0.0.1")).is_err());
    }
}
