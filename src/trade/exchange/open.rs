//! The deals that are open, for the operator.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Exchange;
use crate::model::Millis;
use crate::trade::deal::DealLine;
use crate::trade::journal::Journal;

/// How many are passed over while others wait.
const STEP: usize = 4_096;

/// Most deals that are remembered as changed.
const TOUCHED_MAX: usize = 4_096;

/// Which deals have changed, while somebody wants to know.
#[derive(Debug, Default)]
pub(super) struct Touched {
    is_wanted: AtomicBool,
    deals: Mutex<BTreeSet<u64>>,
}

impl Touched {
    /// While nobody wants to know this is all that it costs.
    pub(super) fn note(&self, deal: u64) {
        if self.is_wanted.load(Ordering::Relaxed) {
            let mut deals = self.deals.lock();
            // One more than are told of: then there were too many.
            if deals.len() <= TOUCHED_MAX {
                deals.insert(deal);
            }
        }
    }
}

impl<J: Journal> Exchange<J> {
    /// The deals that have changed since this was asked last, and remembers those that change from now on: until it
    /// `is_wanted` no more. None: which they are is not known, there were too many, or nobody had asked.
    pub fn take_touched(&self, is_wanted: bool) -> Option<BTreeSet<u64>> {
        let was_wanted = self.touched.is_wanted.swap(is_wanted, Ordering::Relaxed);
        let deals = std::mem::take(&mut *self.touched.deals.lock());
        Some(deals).filter(|deals| was_wanted && deals.len() <= TOUCHED_MAX)
    }

    /// How many deals are open.
    pub fn open_deals_len(&self) -> usize {
        self.open.lock().len()
    }

    /// A page of them, newest first; how many there are; and what that is built on.
    pub fn open_deals(&self, now: Millis, offset: usize, limit: usize) -> (Vec<DealLine>, usize, J::Receipt) {
        let total = self.open_deals_len();
        let (mut lines, mut receipt) = (Vec::new(), J::Receipt::default());
        let mut to_pass = offset;
        let mut before = Bound::Unbounded;
        while lines.len() < limit {
            let ids: Vec<u64> = self.open.lock().range((Bound::Unbounded, before)).rev().take(STEP).copied().collect();
            let Some(last) = ids.last() else { break };
            before = Bound::Excluded(*last);
            let passed = to_pass.min(ids.len());
            to_pass -= passed;
            for id in &ids[passed..] {
                if lines.len() == limit {
                    break;
                }
                let Some(cell) = self.deal(*id) else { continue };
                let state = cell.state.lock();
                receipt = J::later(receipt, state.last.clone());
                // It may have ended since.
                lines.extend(Some(&state.deal).filter(|deal| deal.ended_at().is_none()).map(|deal| deal.line(now)));
            }
        }
        (lines, total, receipt)
    }

    /// A deal as it is now; nothing if it has ended, or is not known. And what that is built on.
    pub fn open_deal(&self, now: Millis, id: u64) -> (Option<DealLine>, J::Receipt) {
        let Some(cell) = self.deal(id) else { return (None, J::Receipt::default()) };
        let state = cell.state.lock();
        let line = Some(&state.deal).filter(|deal| deal.ended_at().is_none()).map(|deal| deal.line(now));
        (line, state.last.clone())
    }
}
