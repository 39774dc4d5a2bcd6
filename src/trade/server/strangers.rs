//! How many errors go to addresses that nobody registered: ten a second each.

use std::collections::HashMap;
use std::net::SocketAddr;

use parking_lot::Mutex;

use crate::model::Millis;

/// Errors that one address is told in a second.
const PER_SECOND: u32 = 10;
/// Addresses remembered within a second; more are told nothing, so that a flood of forged sources costs
/// no more memory than this.
const ADDRESSES_MAX: usize = 16_384;

/// Who was told of errors within this second.
#[derive(Default)]
pub struct Strangers {
    second: Mutex<(u64, HashMap<SocketAddr, u32>)>,
}

impl Strangers {
    /// Whether this address may be told of another error, and counts it if so.
    pub fn may_be_told(&self, source: SocketAddr, now: Millis) -> bool {
        let mut guard = self.second.lock();
        let (second, told) = &mut *guard;
        if *second != now.0 / 1000 {
            *second = now.0 / 1000;
            told.clear();
        }
        if told.len() >= ADDRESSES_MAX && !told.contains_key(&source) {
            return false;
        }
        let count = told.entry(source).or_default();
        *count += 1;
        *count <= PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_each_and_bounded_in_all() {
        let strangers = Strangers::default();
        let address = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(0x7f00_0000 + n).into(), 5000);
        let told = |n, now, times: u32| (0..times).filter(|_| strangers.may_be_told(address(n), Millis(now))).count();
        assert_eq!(told(1, 1000, 25), 10);
        assert_eq!(told(2, 1999, 3), 3);
        assert_eq!(told(1, 1999, 1), 0);
        assert_eq!(told(1, 2000, 25), 10);
        let all: usize = (0..20_000).map(|n| told(n, 5000, 1)).sum();
        assert_eq!(all, ADDRESSES_MAX);
    }
}
