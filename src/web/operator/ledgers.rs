//! The ledgers of trade and the shop, merged into one list.

use std::cmp::Reverse;
use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;

use super::{DEFAULT_PAGE_LIMIT, OperatorApi, not_running, storage_unavailable};
use crate::bank::ledger::{self, Account, LedgerEntry, LedgerSummary};
use crate::model::{Cents, Total};
use crate::net::http::{HandlerResult, RouteCall, StatusCode, json};
use crate::share::page::PageRequest;
use crate::storage::{Store, StoreError};

const READ_BATCH: usize = 1_000;

/// The summaries of the ledgers as they were computed last: computing one reads every entry.
#[derive(Debug, Default)]
pub(super) struct LedgerCache {
    trade: CachedSummary,
    shop: CachedSummary,
}

/// A summary with the state of the ledger that it was computed for. Concurrent requests wait for one computation.
#[derive(Debug, Default)]
struct CachedSummary(Mutex<Option<(Option<i64>, LedgerSummary)>>);

impl CachedSummary {
    fn summary(&self, store: &Store) -> Result<LedgerSummary, StoreError> {
        // Locked before a reader is acquired, of which there are few: who waits here does not hold one.
        let mut cached_summary = self.0.lock();
        store.read(|reader| {
            let revision = ledger::revision(reader)?;
            match &*cached_summary {
                Some((cached_revision, summary)) if *cached_revision == revision => Ok(summary.clone()),
                _ => {
                    let summary = ledger::summarize(reader)?;
                    *cached_summary = Some((revision, summary.clone()));
                    Ok(summary)
                }
            }
        })
    }
}

struct RoomLedger<'r> {
    name: &'static str,
    cached_summary: &'r CachedSummary,
    store: &'r Store,
}

#[derive(Debug, PartialEq, Serialize)]
struct Balance {
    room: &'static str,
    account: String,
    balance: Total,
}

#[derive(Debug, PartialEq, Serialize)]
struct LedgerRow {
    room: &'static str,
    at: u64,
    key: String,
    step: String,
    account: String,
    amount: Cents,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct BalanceTotals {
    card: Total,
    escrow: Total,
    payout: Total,
    fee: Total,
}

#[derive(Serialize)]
struct LedgerResponse {
    success: bool,
    balances: Vec<Balance>,
    balances_total: u64,
    totals: BalanceTotals,
    entries: Vec<LedgerRow>,
    total: u64,
    sum: Total,
}

pub(super) fn ledger(operator: &OperatorApi, call: &RouteCall<'_>) -> HandlerResult {
    let page = PageRequest::from_request(call.request, DEFAULT_PAGE_LIMIT)?;
    let context = &operator.context;
    let cache = &operator.ledger_cache;
    let trade = context.trade.as_ref().map(|trade| RoomLedger {
        name: "trade",
        cached_summary: &cache.trade,
        store: trade.store(),
    });
    let shop = context.shop.as_ref().map(|shop| {
        let store = shop.customers.store();
        RoomLedger { name: "shop", cached_summary: &cache.shop, store }
    });
    let rooms: Vec<RoomLedger<'_>> = trade.into_iter().chain(shop).collect();
    if rooms.is_empty() {
        return Err(not_running("there is no ledger here: neither the service trade nor shop runs"));
    }
    let balances = PageRequest::from_prefixed(call.request, "balances_", DEFAULT_PAGE_LIMIT)?;
    let ledger = read_ledger(&rooms, &page, &balances).map_err(|error| storage_unavailable(&error))?;
    Ok(json(StatusCode::OK, &ledger))
}

fn read_ledger(rooms: &[RoomLedger<'_>], page: &PageRequest, part: &PageRequest) -> Result<LedgerResponse, StoreError> {
    let (balances, summaries) = balances(rooms, part.offset as u64, part.limit as u64)?;
    let (mut sum, mut totals) = (Total::default(), BalanceTotals::default());
    for summary in &summaries {
        sum += summary.sum;
        totals.card += summary.cards_total;
        totals.payout += summary.payouts_total;
        for (account, balance) in &summary.house_balances {
            match account {
                Account::Escrow => totals.escrow += *balance,
                Account::Fee => totals.fee += *balance,
                Account::Card(_) | Account::Payout(_) => {}
            }
        }
    }
    Ok(LedgerResponse {
        success: true,
        balances,
        balances_total: summaries
            .iter()
            .map(|summary| summary.house_balances.len() as u64 + summary.named_accounts)
            .sum(),
        totals,
        entries: newest_rows(rooms, page.offset, page.limit)?,
        total: summaries.iter().map(|summary| summary.entries).sum(),
        sum,
    })
}

/// One page of the balances, with the house's own accounts of all rooms first; and each room's summary.
fn balances(
    rooms: &[RoomLedger<'_>],
    offset: u64,
    limit: u64,
) -> Result<(Vec<Balance>, Vec<LedgerSummary>), StoreError> {
    let mut summaries = Vec::new();
    for room in rooms {
        summaries.push(room.cached_summary.summary(room.store)?);
    }
    let balance_row = |room: &RoomLedger<'_>, (account, balance): &(Account, Total)| Balance {
        room: room.name,
        account: account.to_string(),
        balance: *balance,
    };
    let house_balances = rooms.iter().zip(&summaries);
    let house_balances: Vec<Balance> = house_balances
        .flat_map(|(room, summary)| summary.house_balances.iter().map(move |balance| balance_row(room, balance)))
        .collect();
    let mut to_skip = offset.saturating_sub(house_balances.len() as u64);
    let mut all: Vec<Balance> =
        house_balances.into_iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(limit as usize).collect();
    for (room, summary) in rooms.iter().zip(&summaries) {
        let left = limit - all.len() as u64;
        if left > 0 && to_skip < summary.named_accounts {
            let named = room.store.read(|reader| ledger::named_balances(reader, to_skip, left))?;
            all.extend(named.iter().map(|balance| balance_row(room, balance)));
        }
        to_skip = to_skip.saturating_sub(summary.named_accounts);
    }
    Ok((all, summaries))
}

/// Iterates a room's entries from the newest on, reading them in batches.
struct EntryCursor<'r> {
    room: &'r RoomLedger<'r>,
    buffered: VecDeque<LedgerEntry>,
    last: Option<LedgerEntry>,
    is_exhausted: bool,
}

impl EntryCursor<'_> {
    fn fill(&mut self) -> Result<(), StoreError> {
        if self.buffered.is_empty() && !self.is_exhausted {
            let last = self.last.as_ref();
            let more = self.room.store.read(|reader| ledger::entries_before(reader, last, READ_BATCH))?;
            self.is_exhausted = more.len() < READ_BATCH;
            self.last = more.last().cloned();
            self.buffered = more.into();
        }
        Ok(())
    }
}

fn newest_rows(rooms: &[RoomLedger<'_>], offset: usize, limit: usize) -> Result<Vec<LedgerRow>, StoreError> {
    let begin = |room| EntryCursor { room, buffered: VecDeque::new(), last: None, is_exhausted: false };
    let mut all: Vec<EntryCursor<'_>> = rooms.iter().map(begin).collect();
    let (mut skipped, mut rows) = (0, Vec::new());
    while rows.len() < limit {
        all.iter_mut().try_for_each(EntryCursor::fill)?;
        // Of equal times, the first room comes first.
        let next = all.iter_mut().filter(|room| !room.buffered.is_empty());
        let next = next.min_by_key(|room| Reverse(room.buffered.front().map(|entry| entry.at)));
        let Some((name, entry)) = next.and_then(|next| Some((next.room.name, next.buffered.pop_front()?))) else {
            break;
        };
        if skipped < offset {
            skipped += 1;
            continue;
        }
        let (step, account) = (entry.step.to_string(), entry.account.to_string());
        rows.push(LedgerRow { room: name, at: entry.at.0 / 1000, key: entry.key, step, account, amount: entry.amount });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::ledger::{MIGRATION, Posting, post};
    use crate::model::text::TextFilter;
    use crate::model::{Millis, Name};

    const AT: Millis = Millis(1_795_253_400_000);

    fn store(dir: &tempfile::TempDir, name: &str) -> Store {
        Store::open(&dir.path().join(name), &[MIGRATION]).unwrap()
    }

    fn buy(store: &Store, key: &str, s: u64, cents: i64) {
        let (ann, bob, at) = (Name::new("ann").unwrap(), Name::new("bob").unwrap(), AT.plus_ms(s * 1000));
        let authorise = Posting::authorise(key, at, &ann, Cents(cents)).unwrap();
        let capture = Posting::capture(key, at.plus_ms(1), [(&bob, Cents(cents - 1))], Cents(1)).unwrap();
        store.write(move |tx| post(tx, &authorise).and_then(|()| post(tx, &capture))).unwrap();
    }

    #[test]
    fn rooms_are_one_ledger_newest_first_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let (trade, shop) = (store(&dir, "trade.db"), store(&dir, "shop.db"));
        for nth in 0..7 {
            buy(&trade, &format!("trade-{nth}"), 2 * nth, 500);
            buy(&shop, &format!("shop-{nth}"), 2 * nth + 1, 1250);
        }
        let books = LedgerCache::default();
        let rooms = [
            RoomLedger { name: "trade", cached_summary: &books.trade, store: &trade },
            RoomLedger { name: "shop", cached_summary: &books.shop, store: &shop },
        ];
        let page = |offset, limit| {
            let page = PageRequest { query: TextFilter::default(), offset, limit };
            read_ledger(&rooms, &page, &page).unwrap()
        };
        let all = page(0, 1000);
        assert_eq!((all.total, all.entries.len(), all.balances_total), (70, 70, 8));
        assert_eq!(all.sum, Total(0));
        let totals = BalanceTotals { card: Total(-12_250), escrow: Total(0), payout: Total(12_236), fee: Total(14) };
        assert_eq!(all.totals, totals);
        let balances: Vec<String> = all
            .balances
            .iter()
            .map(|balance| format!("{} {} {}", balance.room, balance.account, balance.balance))
            .collect();
        assert_eq!(
            balances,
            [
                "trade escrow 0.00",
                "trade fee 0.07",
                "shop escrow 0.00",
                "shop fee 0.07",
                "trade card:ann -35.00",
                "trade payout:bob 34.93",
                "shop card:ann -87.50",
                "shop payout:bob 87.43",
            ]
        );
        let first = &all.entries[0];
        assert_eq!((first.room, first.key.as_str(), first.step.as_str()), ("shop", "shop-6", "capture"));
        assert_eq!((all.entries[5].room, all.entries[69].key.as_str()), ("trade", "trade-0"));
        // Pages of any size add up to the same list.
        for size in [1, 3, 5, 64] {
            let (mut rows, mut accounts) = (Vec::new(), Vec::new());
            for nth in 0..=70 / size {
                let part = page(nth * size, size);
                assert!(part.entries.len() <= size && part.balances.len() <= size && part.total == 70);
                rows.extend(part.entries);
                accounts.extend(part.balances);
            }
            assert_eq!((rows, accounts), (page(0, 1000).entries, page(0, 1000).balances), "{size} at a time");
        }
        // The cache notices later entries.
        buy(&shop, "later", 100, 300);
        let later = page(0, 1);
        assert_eq!((later.total, later.entries[0].key.as_str()), (75, "later"));
    }
}
