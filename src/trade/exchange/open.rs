//! The deals that are open, for the operator.

use std::ops::Bound;

use super::Exchange;
use crate::model::Millis;
use crate::trade::deal::DealLine;
use crate::trade::journal::Journal;

/// How many are passed over while others wait.
const STEP: usize = 4_096;

impl<J: Journal> Exchange<J> {
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
            let ids: Vec<u64> =
                self.open.lock().range((Bound::Unbounded, before)).rev().take(STEP).copied().collect();
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
