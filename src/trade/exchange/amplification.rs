//! The anti-amplification limit of RFC 9000, section 8.1: since a source may be forged, an address that is not
//! validated is sent at most three times the bytes received from it. All ports of an IP address share one budget, since
//! they are one victim. Evicting an entry loses a budget and never a debt: an attacker that fills the table only makes
//! the server send less.

use std::collections::HashMap;
use std::net::IpAddr;

const AMPLIFICATION_MAX: u64 = 3;
/// The addresses in each of the two generations.
const ADDRESSES_MAX: usize = 32_768;

/// The bytes that may still be sent to each IP address. `previous` is dropped when `recent` is full.
#[derive(Debug, Default)]
pub(super) struct AmplificationLimiter {
    recent: HashMap<IpAddr, u64>,
    previous: HashMap<IpAddr, u64>,
}

impl AmplificationLimiter {
    pub(super) fn credit(&mut self, ip: IpAddr, bytes: usize) {
        let more = AMPLIFICATION_MAX * bytes as u64;
        if let Some(left) = self.recent.get_mut(&ip) {
            *left = left.saturating_add(more);
            return;
        }
        let before = self.previous.remove(&ip).unwrap_or_default();
        self.insert_recent(ip, before.saturating_add(more));
    }

    pub(super) fn remaining(&self, ip: IpAddr) -> u64 {
        self.recent.get(&ip).or_else(|| self.previous.get(&ip)).copied().unwrap_or_default()
    }

    /// False if the budget is too small.
    pub(super) fn try_spend(&mut self, ip: IpAddr, bytes: usize) -> bool {
        // Nearly always a recent address, since a datagram has just come from it.
        let Some(left) = self.recent.get_mut(&ip).or_else(|| self.previous.get_mut(&ip)) else { return bytes == 0 };
        let rest = left.checked_sub(bytes as u64);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    fn insert_recent(&mut self, ip: IpAddr, left: u64) {
        if self.recent.len() >= ADDRESSES_MAX {
            self.previous = std::mem::take(&mut self.recent);
        }
        self.recent.insert(ip, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn three_times_what_came_and_no_byte_more() {
        let mut all = AmplificationLimiter::default();
        assert!(!all.try_spend(ip(1), 1));
        all.credit(ip(1), 100);
        assert!(
            !all.try_spend(ip(1), 301)
                && all.try_spend(ip(1), 200)
                && !all.try_spend(ip(1), 101)
                && all.try_spend(ip(1), 100)
        );
        all.credit(ip(1), 1);
        assert!(!all.try_spend(ip(2), 1), "each IP has its own");
        assert_eq!((all.remaining(ip(1)), all.remaining(ip(2))), (3, 0));
    }

    #[test]
    fn a_flood_of_sources_costs_little_and_gives_nothing() {
        let mut all = AmplificationLimiter::default();
        all.credit(ip(0), 100);
        assert!(all.try_spend(ip(0), 290));
        for n in 1..200_000 {
            all.credit(ip(n), 1);
            assert!(all.recent.len() + all.previous.len() <= 2 * ADDRESSES_MAX);
            if n % 10_000 == 0 {
                assert!(all.remaining(ip(0)) == 10 || n > 30_000, "it is remembered for a while");
                assert!(!all.try_spend(ip(0), 11), "and never with more than it had");
            }
        }
        assert_eq!(all.remaining(ip(0)), 0);
    }
}
