//! How many errors go to addresses that nobody registered: ten a second each.

use std::collections::HashMap;
use std::net::SocketAddr;

use parking_lot::Mutex;

use crate::model::Millis;

/// Errors that one address is told in a second.
const PER_SECOND: usize = 10;
/// Addresses remembered within a second; more are told nothing, so that a flood of forged sources costs
/// no more memory than this.
const ADDRESSES_MAX: usize = 16_384;

/// When each address was told of errors lately. Exact: no second, wherever it begins, has more than ten.
#[derive(Default)]
pub struct Strangers {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// The last times, each address's in a ring; the place of the oldest.
    by_address: HashMap<SocketAddr, ([Millis; PER_SECOND], u8)>,
    swept_at: Millis,
}

impl Strangers {
    /// Whether this address may be told of another error, and counts it if so.
    pub fn may_be_told(&self, source: SocketAddr, now: Millis) -> bool {
        let mut told = self.told.lock();
        // A clock that was set back must not silence anyone for long.
        let is_past = |at: Millis| at > now || at.until(now).as_millis() >= 1000;
        if told.by_address.len() >= ADDRESSES_MAX && !told.by_address.contains_key(&source) {
            if !is_past(told.swept_at) {
                return false;
            }
            told.swept_at = now;
            told.by_address.retain(|_, (times, _)| !times.iter().all(|at| is_past(*at)));
            if told.by_address.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let (times, oldest) = told.by_address.entry(source).or_default();
        let place = usize::from(*oldest);
        if !is_past(times[place]) {
            return false;
        }
        times[place] = now;
        *oldest = ((place + 1) % PER_SECOND) as u8;
        true
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
        assert_eq!(told(1, 1000, 4), 4);
        assert_eq!(told(1, 1990, 25), 6);
        assert_eq!(told(2, 1999, 3), 3);
        assert_eq!(told(1, 1999, 1), 0);
        assert_eq!(told(1, 2000, 25), 4);
        assert_eq!(told(1, 2990, 25), 6);
        let all: usize = (0..20_000).map(|n| told(n, 5000, 1)).sum();
        assert_eq!(all, ADDRESSES_MAX);
        assert_eq!(told(30_000, 5999, 1), 0);
        assert_eq!(told(30_000, 6000, 1), 1);
    }
}
