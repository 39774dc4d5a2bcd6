//! How much may be received and not yet handled, over all connections together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::shares::Shares;
use super::source::Source;

/// What SPEC.md section 2 allows: 256 MiB in all.
pub const RECEIVED_MAX: usize = 256 << 20;

/// Which part more links between components may take, beside what clients may: else clients who send and send could
/// keep from its databases what was received whole.
const LINKS_SHARE: usize = 8;

/// Which part loopback leaves to others. All clients may be on this machine, so it has nearly all.
const SPARE_OF_LOOPBACK: usize = 16;

/// A number of bytes that all connections share: clients at an address other than loopback have half of it at most,
/// as they have of the connections.
#[derive(Debug)]
pub struct Budget {
    max_bytes: usize,
    taken: AtomicUsize,
    /// What of it clients took. Messages of common length take nothing, and so never wait for this.
    of_clients: Mutex<Shares>,
}

impl Budget {
    /// That many in all.
    pub fn new(max_bytes: usize) -> Arc<Budget> {
        let of_loopback = max_bytes - max_bytes / SPARE_OF_LOOPBACK;
        let of_clients = Shares::new(max_bytes, max_bytes / 2).with_loopback(of_loopback);
        Arc::new(Budget { max_bytes, taken: AtomicUsize::new(0), of_clients: Mutex::new(of_clients) })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Takes so many more, if they are there and the client may have them.
    fn take(&self, bytes: usize, whose: Whose) -> bool {
        let Whose::Client(source) = whose else {
            return self.take_up_to(self.max_bytes + self.max_bytes / LINKS_SHARE, bytes);
        };
        let mut of_clients = self.of_clients.lock();
        let is_to_be_had = of_clients.has_room(source, bytes).is_ok() && self.take_up_to(self.max_bytes, bytes);
        if is_to_be_had {
            of_clients.take(source, bytes);
        }
        is_to_be_had
    }

    fn take_up_to(&self, max_bytes: usize, bytes: usize) -> bool {
        let all = |taken: usize| taken.checked_add(bytes).filter(|all| *all <= max_bytes);
        // Relaxed: the number guards no other memory.
        self.taken.fetch_update(Relaxed, Relaxed, all).is_ok()
    }

    fn give_back(&self, bytes: usize, whose: Whose) {
        if let Whose::Client(source) = whose {
            self.of_clients.lock().give_back(source, bytes);
        }
        self.taken.fetch_sub(bytes, Relaxed);
    }
}

/// Whom bytes are counted for.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// A client there.
    Client(Source),
    /// A component of ours.
    Link,
}

/// What one connection has of a budget; given back when dropped.
#[derive(Debug, Default)]
pub struct Share {
    budget: Option<(Arc<Budget>, Whose)>,
    bytes: usize,
}

impl Share {
    /// Nothing yet of that budget, for a client who counts as that source. (A default share is of none, and may grow at
    /// will.)
    pub fn of(budget: Arc<Budget>, source: Source) -> Share {
        Share { budget: Some((budget, Whose::Client(source))), bytes: 0 }
    }

    /// The same for a link between components, which finds some left when clients have taken all of theirs.
    pub fn of_link(budget: Arc<Budget>) -> Share {
        Share { budget: Some((budget, Whose::Link)), bytes: 0 }
    }

    /// Makes it at least so many bytes. False, and unchanged, if they are not to be had.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let Some((budget, whose)) = &self.budget else { return true };
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !budget.take(more, *whose) {
                return false;
            }
            self.bytes += more;
        }
        true
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        if let Some((budget, whose)) = &self.budget
            && self.bytes > 0
        {
            budget.give_back(self.bytes, *whose);
            self.bytes = 0;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::source;

    fn from(budget: &Arc<Budget>, address: &str) -> Share {
        Share::of(Arc::clone(budget), source::of(address.parse().unwrap()))
    }

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (from(&budget, "192.0.2.1"), from(&budget, "127.0.0.1"));
        assert!(one.grow_to(50) && one.grow_to(10) && other.grow_to(50));
        assert!(!other.grow_to(51) && !one.grow_to(usize::MAX));
        assert_eq!(budget.taken(), 100);
        drop(one);
        assert!(other.grow_to(94));
        other.clear();
        assert_eq!(budget.taken(), 0);
        let (mut client, mut another) = (from(&budget, "192.0.2.1"), from(&budget, "192.0.2.2"));
        let mut link = Share::of_link(Arc::clone(&budget));
        assert!(client.grow_to(50) && another.grow_to(50) && link.grow_to(12), "clients leave some to links");
        assert!(!link.grow_to(13) && !from(&budget, "192.0.2.3").grow_to(1));
        assert!(Share::default().grow_to(usize::MAX), "a share of no budget has no bound");
    }

    #[test]
    fn one_source_has_half_of_it_at_most_and_loopback_nearly_all() {
        let budget = Budget::new(160);
        let mut of_one = [from(&budget, "192.0.2.1"), from(&budget, "::ffff:192.0.2.1")];
        assert!(of_one[0].grow_to(50) && of_one[1].grow_to(30) && !of_one[1].grow_to(31));
        let mut other = from(&budget, "192.0.2.2");
        assert!(other.grow_to(80), "what one source holds keeps no other from its own");
        // What was not to be had counts for nobody.
        assert!(!from(&budget, "192.0.2.3").grow_to(1));
        drop(other);
        assert!(from(&budget, "192.0.2.3").grow_to(80));
        of_one[0].clear();
        assert!(of_one[1].grow_to(80) && !of_one[0].grow_to(1));
        drop(of_one);
        assert_eq!((budget.taken(), budget.of_clients.lock().sources()), (0, 0));
        let mut here = from(&budget, "127.0.0.1");
        assert!(here.grow_to(150) && !from(&budget, "::1").grow_to(1) && from(&budget, "192.0.2.1").grow_to(10));
        assert!(Share::of_link(Arc::clone(&budget)).grow_to(30), "a link counts for no source");
    }
}
