//! How much may be received and not yet handled, over all connections together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What SPEC.md section 2 allows: 256 MiB in all.
pub const RECEIVED_MAX: usize = 256 << 20;

/// Which part more links between components may take, beside what clients may: else clients who send and send could
/// keep from its databases what was received whole.
const LINKS_SHARE: usize = 8;

/// A number of bytes that all connections share.
#[derive(Debug)]
pub struct Budget {
    max_bytes: usize,
    taken: AtomicUsize,
}

impl Budget {
    /// That many in all.
    pub fn new(max_bytes: usize) -> Arc<Budget> {
        Arc::new(Budget { max_bytes, taken: AtomicUsize::new(0) })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Takes so many more, if they are there.
    fn take(&self, bytes: usize, is_link: bool) -> bool {
        let max_bytes = self.max_bytes + if is_link { self.max_bytes / LINKS_SHARE } else { 0 };
        let all = |taken: usize| taken.checked_add(bytes).filter(|all| *all <= max_bytes);
        // Relaxed: the number guards no other memory.
        self.taken.fetch_update(Relaxed, Relaxed, all).is_ok()
    }
}

/// What one connection has of a budget; given back when dropped.
#[derive(Debug, Default)]
pub struct Share {
    budget: Option<Arc<Budget>>,
    bytes: usize,
    is_link: bool,
}

impl Share {
    /// Nothing yet of that budget. (A default share is of none, and may grow at will.)
    pub fn of(budget: Arc<Budget>) -> Share {
        Share { budget: Some(budget), bytes: 0, is_link: false }
    }

    /// The same for a link between components, which finds some left when clients have taken all of theirs.
    pub fn of_link(budget: Arc<Budget>) -> Share {
        Share { budget: Some(budget), bytes: 0, is_link: true }
    }

    /// Makes it at least so many bytes. False, and unchanged, if they are not to be had.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let Some(budget) = &self.budget else { return true };
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !budget.take(more, self.is_link) {
                return false;
            }
            self.bytes += more;
        }
        true
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        if let Some(budget) = &self.budget
            && self.bytes > 0
        {
            budget.taken.fetch_sub(self.bytes, Relaxed);
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

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (Share::of(Arc::clone(&budget)), Share::of(Arc::clone(&budget)));
        assert!(one.grow_to(60) && one.grow_to(10) && other.grow_to(40));
        assert!(!other.grow_to(41) && !one.grow_to(usize::MAX));
        assert_eq!(budget.taken(), 100);
        drop(one);
        assert!(other.grow_to(100));
        other.clear();
        assert_eq!(budget.taken(), 0);
        let mut client = Share::of(Arc::clone(&budget));
        let mut link = Share::of_link(Arc::clone(&budget));
        assert!(client.grow_to(100) && link.grow_to(12), "clients leave some to links");
        assert!(!link.grow_to(13) && !Share::of(Arc::clone(&budget)).grow_to(1));
        assert!(Share::default().grow_to(usize::MAX), "a share of no budget has no bound");
    }
}
