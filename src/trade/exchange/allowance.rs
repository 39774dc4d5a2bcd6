//! No reflector: to an address that has not proved that it hears goes at most three times what came from
//! there (RFC 9000 section 8.1), for its source may be forged.
//!
//! One allowance for all such ports of an IP, since they are one victim. What is forgotten is an allowance,
//! never a debt: whoever drives addresses out of here makes the server say less.

use std::collections::HashMap;
use std::net::IpAddr;

/// How many bytes may go out for each one that came.
const TIMES: u64 = 3;
/// Addresses in each of the two halves.
const ADDRESSES_MAX: usize = 32_768;

/// How many bytes may still be sent to each IP.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    /// Those that something came from lately.
    young: HashMap<IpAddr, u64>,
    /// Those of before; forgotten when the young ones are too many.
    old: HashMap<IpAddr, u64>,
}

impl Allowances {
    /// So many bytes came from there.
    pub(super) fn came(&mut self, ip: IpAddr, bytes: usize) {
        let more = TIMES * bytes as u64;
        if let Some(left) = self.young.get_mut(&ip) {
            *left = left.saturating_add(more);
            return;
        }
        let before = self.old.remove(&ip).unwrap_or_default();
        self.add_young(ip, before.saturating_add(more));
    }

    /// How many bytes may be sent there.
    pub(super) fn left(&self, ip: IpAddr) -> u64 {
        self.young.get(&ip).or_else(|| self.old.get(&ip)).copied().unwrap_or_default()
    }

    /// Takes so many bytes, if there are as many.
    pub(super) fn take(&mut self, ip: IpAddr, bytes: usize) -> bool {
        // Nearly always among the young ones: something has just come from there.
        let Some(left) = self.young.get_mut(&ip).or_else(|| self.old.get_mut(&ip)) else { return bytes == 0 };
        let rest = left.checked_sub(bytes as u64);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    fn add_young(&mut self, ip: IpAddr, left: u64) {
        if self.young.len() >= ADDRESSES_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(ip, left);
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
        let mut all = Allowances::default();
        assert!(!all.take(ip(1), 1));
        all.came(ip(1), 100);
        assert!(!all.take(ip(1), 301) && all.take(ip(1), 200) && !all.take(ip(1), 101) && all.take(ip(1), 100));
        all.came(ip(1), 1);
        assert!(!all.take(ip(2), 1), "each IP has its own");
        assert_eq!((all.left(ip(1)), all.left(ip(2))), (3, 0));
    }

    #[test]
    fn a_flood_of_sources_costs_little_and_gives_nothing() {
        let mut all = Allowances::default();
        all.came(ip(0), 100);
        assert!(all.take(ip(0), 290));
        for n in 1..200_000 {
            all.came(ip(n), 1);
            assert!(all.young.len() + all.old.len() <= 2 * ADDRESSES_MAX);
            if n % 10_000 == 0 {
                assert!(all.left(ip(0)) == 10 || n > 30_000, "it is remembered for a while");
                assert!(!all.take(ip(0), 11), "and never with more than it had");
            }
        }
        assert_eq!(all.left(ip(0)), 0);
    }
}
