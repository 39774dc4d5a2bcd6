//! A bound on the bytes that were received and not yet handled, over all connections together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::quotas::SourceQuotas;
use super::source::SourceKey;

/// The budget of a process (`docs/spec/general.md`): 256 MiB.
pub const RECEIVE_BUDGET_BYTES: usize = 256 << 20;
/// Links may use 1/8 more than the budget of clients: else clients that keep sending could prevent requests that were
/// received whole from reaching the databases.
const LINK_EXTRA_DIVISOR: usize = 8;
/// Loopback leaves 1/16 to other sources: all clients may be on this host.
const LOOPBACK_SPARE_DIVISOR: usize = 16;

/// A source other than loopback has at most half of the bytes, as it has of the connections.
#[derive(Debug)]
pub struct ReceiveBudget {
    max_bytes: usize,
    used_bytes: AtomicUsize,
    /// Messages of common length need no budget, so they never wait for this lock.
    client_quotas: Mutex<SourceQuotas>,
}

impl ReceiveBudget {
    pub fn new(max_bytes: usize) -> Arc<ReceiveBudget> {
        let loopback_quota = max_bytes - max_bytes / LOOPBACK_SPARE_DIVISOR;
        let client_quotas = SourceQuotas::new(max_bytes, max_bytes / 2).with_loopback_quota(loopback_quota);
        Arc::new(ReceiveBudget { max_bytes, used_bytes: AtomicUsize::new(0), client_quotas: Mutex::new(client_quotas) })
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Relaxed)
    }

    fn try_acquire(&self, bytes: usize, holder: Holder) -> bool {
        let Holder::Client(source) = holder else {
            return self.try_add(self.max_bytes + self.max_bytes / LINK_EXTRA_DIVISOR, bytes);
        };
        let mut client_quotas = self.client_quotas.lock();
        let is_to_be_had = client_quotas.check_room(source, bytes).is_ok() && self.try_add(self.max_bytes, bytes);
        if is_to_be_had {
            client_quotas.acquire(source, bytes);
        }
        is_to_be_had
    }

    fn try_add(&self, max_bytes: usize, bytes: usize) -> bool {
        let all = |taken: usize| taken.checked_add(bytes).filter(|all| *all <= max_bytes);
        // Relaxed: the number guards no other memory.
        self.used_bytes.fetch_update(Relaxed, Relaxed, all).is_ok()
    }

    fn release(&self, bytes: usize, holder: Holder) {
        if let Holder::Client(source) = holder {
            self.client_quotas.lock().release(source, bytes);
        }
        self.used_bytes.fetch_sub(bytes, Relaxed);
    }
}

#[derive(Debug, Clone, Copy)]
enum Holder {
    Client(SourceKey),
    /// Another component of the shop.
    Link,
}

/// What one connection uses of the budget; released when dropped. The default one belongs to no budget and may grow
/// without bound.
#[derive(Debug, Default)]
pub struct Reservation {
    budget: Option<(Arc<ReceiveBudget>, Holder)>,
    bytes: usize,
}

impl Reservation {
    pub fn for_client(budget: Arc<ReceiveBudget>, source: SourceKey) -> Reservation {
        Reservation { budget: Some((budget, Holder::Client(source))), bytes: 0 }
    }

    pub fn for_link(budget: Arc<ReceiveBudget>) -> Reservation {
        Reservation { budget: Some((budget, Holder::Link)), bytes: 0 }
    }

    /// Returns false, without a change, if the bytes are not available.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let Some((budget, holder)) = &self.budget else { return true };
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !budget.try_acquire(more, *holder) {
                return false;
            }
            self.bytes += more;
        }
        true
    }

    pub fn release(&mut self) {
        if let Some((budget, holder)) = &self.budget
            && self.bytes > 0
        {
            budget.release(self.bytes, *holder);
            self.bytes = 0;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    fn from(budget: &Arc<ReceiveBudget>, address: &str) -> Reservation {
        Reservation::for_client(Arc::clone(budget), source::key_of(address.parse().unwrap()))
    }

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let budget = ReceiveBudget::new(100);
        let (mut one, mut other) = (from(&budget, "192.0.2.1"), from(&budget, "127.0.0.1"));
        assert!(one.grow_to(50) && one.grow_to(10) && other.grow_to(50));
        assert!(!other.grow_to(51) && !one.grow_to(usize::MAX));
        assert_eq!(budget.used_bytes(), 100);
        drop(one);
        assert!(other.grow_to(94));
        other.release();
        assert_eq!(budget.used_bytes(), 0);
        let (mut client, mut another) = (from(&budget, "192.0.2.1"), from(&budget, "192.0.2.2"));
        let mut link = Reservation::for_link(Arc::clone(&budget));
        assert!(client.grow_to(50) && another.grow_to(50) && link.grow_to(12), "clients leave some to links");
        assert!(!link.grow_to(13) && !from(&budget, "192.0.2.3").grow_to(1));
        assert!(Reservation::default().grow_to(usize::MAX), "a share of no budget has no bound");
    }

    #[test]
    fn one_source_has_half_of_it_at_most_and_loopback_nearly_all() {
        let budget = ReceiveBudget::new(160);
        let mut of_one = [from(&budget, "192.0.2.1"), from(&budget, "::ffff:192.0.2.1")];
        assert!(of_one[0].grow_to(50) && of_one[1].grow_to(30) && !of_one[1].grow_to(31));
        let mut other = from(&budget, "192.0.2.2");
        assert!(other.grow_to(80), "what one source holds keeps no other from its own");
        // A failed reservation is not counted.
        assert!(!from(&budget, "192.0.2.3").grow_to(1));
        drop(other);
        assert!(from(&budget, "192.0.2.3").grow_to(80));
        of_one[0].release();
        assert!(of_one[1].grow_to(80) && !of_one[0].grow_to(1));
        drop(of_one);
        assert_eq!((budget.used_bytes(), budget.client_quotas.lock().source_count()), (0, 0));
        let mut here = from(&budget, "127.0.0.1");
        assert!(here.grow_to(150) && !from(&budget, "::1").grow_to(1) && from(&budget, "192.0.2.1").grow_to(10));
        assert!(Reservation::for_link(Arc::clone(&budget)).grow_to(30), "a link counts for no source");
    }
}
