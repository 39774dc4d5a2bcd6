//! A bounded number of permits, each returned when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[derive(Debug, Clone)]
pub struct Permits(Arc<PermitCount>);

#[derive(Debug)]
struct PermitCount {
    max: usize,
    in_use: AtomicUsize,
}

/// One permit, returned when dropped: also if the work panics.
#[derive(Debug)]
pub struct WorkPermit(Permits);

impl Permits {
    pub fn new(max: usize) -> Permits {
        Permits(Arc::new(PermitCount { max, in_use: AtomicUsize::new(0) }))
    }

    /// `None` if all are in use; nobody waits for one.
    pub fn try_acquire(&self) -> Option<WorkPermit> {
        // Relaxed: the number guards no other memory.
        let one_more = |in_use| (in_use < self.0.max).then_some(in_use + 1);
        self.0.in_use.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(WorkPermit(self.clone()))
    }

    pub fn in_use(&self) -> usize {
        self.0.in_use.load(Relaxed)
    }

    pub fn max(&self) -> usize {
        self.0.max
    }
}

impl Drop for WorkPermit {
    fn drop(&mut self) {
        self.0.0.in_use.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_each_is_returned() {
        let permits = Permits::new(2);
        let (first, second) = (permits.try_acquire().unwrap(), permits.clone().try_acquire().unwrap());
        assert!(permits.try_acquire().is_none());
        assert_eq!((permits.in_use(), permits.max()), (2, 2), "a failed attempt takes none");
        drop(first);
        let again = permits.try_acquire();
        assert!(again.is_some() && permits.try_acquire().is_none());
        drop((second, again));
        assert_eq!(permits.in_use(), 0);
        assert!(Permits::new(0).try_acquire().is_none());
    }

    #[test]
    fn no_more_than_the_bound_at_once_by_many_threads() {
        let permits = Permits::new(3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let permit = permits.try_acquire();
                        assert!(permits.in_use() <= 3);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(permits.in_use(), 0);
    }

    #[test]
    fn a_panic_returns_the_permit() {
        let permits = Permits::new(1);
        let work = {
            let permit = permits.try_acquire();
            move || {
                let _permit = permit;
                panic!("the work fails");
            }
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
        assert!(permits.try_acquire().is_some());
    }
}
