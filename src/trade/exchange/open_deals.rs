//! The open deals, for the operator.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Exchange;
use crate::model::Millis;
use crate::trade::deal::DealSummary;
use crate::trade::journal::Journal;

/// How many deals are read under one lock, so that others do not wait for long.
const BATCH_LEN: usize = 4_096;

const CHANGED_DEALS_MAX: usize = 4_096;

/// Recorded while someone is interested.
#[derive(Debug, Default)]
pub(super) struct ChangedDeals {
    keep_tracking: AtomicBool,
    deals: Mutex<BTreeSet<u64>>,
}

impl ChangedDeals {
    /// While tracking is off, this check is the only cost.
    pub(super) fn record(&self, deal: u64) {
        if self.keep_tracking.load(Ordering::Relaxed) {
            let mut deals = self.deals.lock();
            // One more than the limit tells that there were too many.
            if deals.len() <= CHANGED_DEALS_MAX {
                deals.insert(deal);
            }
        }
    }
}

impl<J: Journal> Exchange<J> {
    /// What has changed since the last call; `None` if that was too much, or tracking was off. `keep_tracking` tells
    /// whether changes are recorded from now on.
    pub fn take_changed_deals(&self, keep_tracking: bool) -> Option<BTreeSet<u64>> {
        let was_wanted = self.changed_deals.keep_tracking.swap(keep_tracking, Ordering::Relaxed);
        let deals = std::mem::take(&mut *self.changed_deals.deals.lock());
        Some(deals).filter(|deals| was_wanted && deals.len() <= CHANGED_DEALS_MAX)
    }

    pub fn open_deals_len(&self) -> usize {
        self.open_deals.lock().len()
    }

    /// A page, newest first; the total number; and the commit that the page depends on.
    pub fn open_deals(&self, now: Millis, offset: usize, limit: usize) -> (Vec<DealSummary>, usize, J::Commit) {
        let total = self.open_deals_len();
        let (mut lines, mut commit) = (Vec::new(), J::Commit::default());
        let mut to_pass = offset;
        let mut before = Bound::Unbounded;
        while lines.len() < limit {
            let ids: Vec<u64> =
                self.open_deals.lock().range((Bound::Unbounded, before)).rev().take(BATCH_LEN).copied().collect();
            let Some(last) = ids.last() else { break };
            before = Bound::Excluded(*last);
            let passed = to_pass.min(ids.len());
            to_pass -= passed;
            for id in &ids[passed..] {
                if lines.len() == limit {
                    break;
                }
                let Some(tracked) = self.deal(*id) else { continue };
                let state = tracked.state.lock();
                commit = J::latest(commit, state.last_commit.clone());
                // The deal may have ended since.
                lines.extend(Some(&state.deal).filter(|deal| deal.ended_at().is_none()).map(|deal| deal.summary(now)));
            }
        }
        (lines, total, commit)
    }

    /// `None` if the deal has ended or is unknown; and the commit that this depends on.
    pub fn open_deal(&self, now: Millis, id: u64) -> (Option<DealSummary>, J::Commit) {
        let Some(tracked) = self.deal(id) else { return (None, J::Commit::default()) };
        let state = tracked.state.lock();
        let line = Some(&state.deal).filter(|deal| deal.ended_at().is_none()).map(|deal| deal.summary(now));
        (line, state.last_commit.clone())
    }
}
