//! ERROR responses to addresses that are not registered: ten a second for each.

use std::collections::HashMap;
use std::net::SocketAddr;

use parking_lot::Mutex;

use crate::model::Millis;

const PER_SECOND: usize = 10;
/// Addresses tracked. Further ones get no errors within the second, so that a flood of forged sources needs no more
/// memory.
const ADDRESSES_MAX: usize = 16_384;

/// The limit is exact: no interval of a second, wherever it begins, has more than ten.
#[derive(Default)]
pub struct ErrorRateLimiter {
    recent: Mutex<RecentErrors>,
}

#[derive(Default)]
struct RecentErrors {
    /// The last times, as a ring buffer with the index of the oldest.
    by_address: HashMap<SocketAddr, ([Millis; PER_SECOND], u8)>,
    swept_at: Millis,
}

impl ErrorRateLimiter {
    /// Counts the error that may be sent.
    pub fn allow(&self, source: SocketAddr, now: Millis) -> bool {
        let mut recent = self.recent.lock();
        // A clock that was set back must not silence an address for long.
        let is_past = |at: Millis| at > now || at.until(now).as_millis() >= 1000;
        if recent.by_address.len() >= ADDRESSES_MAX && !recent.by_address.contains_key(&source) {
            if !is_past(recent.swept_at) {
                return false;
            }
            recent.swept_at = now;
            recent.by_address.retain(|_, (times, _)| !times.iter().all(|at| is_past(*at)));
            if recent.by_address.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let (times, oldest) = recent.by_address.entry(source).or_default();
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
        let error_limiter = ErrorRateLimiter::default();
        let address = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(0x7f00_0000 + n).into(), 5000);
        let recent = |n, now, times: u32| (0..times).filter(|_| error_limiter.allow(address(n), Millis(now))).count();
        assert_eq!(recent(1, 1000, 4), 4);
        assert_eq!(recent(1, 1990, 25), 6);
        assert_eq!(recent(2, 1999, 3), 3);
        assert_eq!(recent(1, 1999, 1), 0);
        assert_eq!(recent(1, 2000, 25), 4);
        assert_eq!(recent(1, 2990, 25), 6);
        let all: usize = (0..20_000).map(|n| recent(n, 5000, 1)).sum();
        assert_eq!(all, ADDRESSES_MAX);
        assert_eq!(recent(30_000, 5999, 1), 0);
        assert_eq!(recent(30_000, 6000, 1), 1);
    }
}
