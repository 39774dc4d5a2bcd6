//! The ledgers of all rooms that keep one, as one list.

use std::cmp::Reverse;
use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;

use super::{Operator, USUAL, absent, unavailable};
use crate::bank::ledger::{self, Account, Entry, Outline};
use crate::model::{Cents, Total};
use crate::net::http::{Answered, Call, StatusCode, json};
use crate::share::page::Page;
use crate::storage::{Store, StoreError};

/// Entries read at a time while many are passed over.
const READ_AT_ONCE: usize = 1_000;

/// What the ledgers come to, as was found last: to find out, every entry is read.
#[derive(Debug, Default)]
pub(super) struct Books {
    trade: Known,
    shop: Known,
}

/// An outline, and the state of the ledger that it is of. Whoever comes while it is made waits for it.
#[derive(Debug, Default)]
struct Known(Mutex<Option<(Option<i64>, Outline)>>);

impl Known {
    fn outline(&self, store: &Store) -> Result<Outline, StoreError> {
        // Before a reader is taken, of which there are few: whoever waits here keeps none from others.
        let mut known = self.0.lock();
        store.read(|reader| {
            let state = ledger::state(reader)?;
            match &*known {
                Some((its, outline)) if *its == state => Ok(outline.clone()),
                _ => {
                    let outline = ledger::outline(reader)?;
                    *known = Some((state, outline.clone()));
                    Ok(outline)
                }
            }
        })
    }
}

/// A room that keeps a ledger.
struct Room<'r> {
    name: &'static str,
    known: &'r Known,
    store: &'r Store,
}

#[derive(Debug, PartialEq, Serialize)]
struct Balance {
    room: &'static str,
    account: String,
    balance: Total,
}

#[derive(Debug, PartialEq, Serialize)]
struct Line {
    room: &'static str,
    at: u64,
    key: String,
    step: String,
    account: String,
    amount: Cents,
}

/// What accounts of one kind hold together, of all rooms.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Totals {
    card: Total,
    escrow: Total,
    payout: Total,
    fee: Total,
}

#[derive(Serialize)]
struct Ledger {
    success: bool,
    balances: Vec<Balance>,
    balances_total: u64,
    totals: Totals,
    entries: Vec<Line>,
    total: u64,
    sum: Total,
}

pub(super) fn ledger(operator: &Operator, call: &Call<'_>) -> Answered {
    let page = Page::of(call.request, USUAL)?;
    let sight = &operator.sight;
    let trade = sight.trade.as_ref();
    let trade = trade.map(|trade| Room { name: "trade", known: &operator.books.trade, store: trade.store() });
    let shop = sight.shop.as_ref();
    let shop = shop.map(|shop| Room { name: "shop", known: &operator.books.shop, store: shop.customers.store() });
    let rooms: Vec<Room<'_>> = trade.into_iter().chain(shop).collect();
    if rooms.is_empty() {
        return Err(absent("there is no ledger here: neither the service trade nor shop runs"));
    }
    let balances = Page::named(call.request, "balances_", USUAL)?;
    let ledger = read(&rooms, &page, &balances).map_err(|error| unavailable(&error))?;
    Ok(json(StatusCode::OK, &ledger))
}

fn read(rooms: &[Room<'_>], page: &Page, part: &Page) -> Result<Ledger, StoreError> {
    let (balances, outlines) = balances(rooms, part.offset as u64, part.limit as u64)?;
    let (mut sum, mut totals) = (Total::default(), Totals::default());
    for outline in &outlines {
        sum += outline.sum;
        totals.card += outline.cards;
        totals.payout += outline.payouts;
        for (account, balance) in &outline.house {
            match account {
                Account::Escrow => totals.escrow += *balance,
                Account::Fee => totals.fee += *balance,
                Account::Card(_) | Account::Payout(_) => {}
            }
        }
    }
    Ok(Ledger {
        success: true,
        balances,
        balances_total: outlines.iter().map(|outline| outline.house.len() as u64 + outline.named).sum(),
        totals,
        entries: newest(rooms, page.offset, page.limit)?,
        total: outlines.iter().map(|outline| outline.entries).sum(),
        sum,
    })
}

/// A part of all balances, the house's own of all rooms first; and what each room's ledger comes to.
fn balances(rooms: &[Room<'_>], offset: u64, limit: u64) -> Result<(Vec<Balance>, Vec<Outline>), StoreError> {
    let mut outlines = Vec::new();
    for room in rooms {
        outlines.push(room.known.outline(room.store)?);
    }
    let shown = |room: &Room<'_>, (account, balance): &(Account, Total)| Balance {
        room: room.name,
        account: account.to_string(),
        balance: *balance,
    };
    let houses = rooms.iter().zip(&outlines);
    let houses: Vec<Balance> =
        houses.flat_map(|(room, outline)| outline.house.iter().map(move |line| shown(room, line))).collect();
    let mut to_pass = offset.saturating_sub(houses.len() as u64);
    let mut all: Vec<Balance> =
        houses.into_iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(limit as usize).collect();
    for (room, outline) in rooms.iter().zip(&outlines) {
        let left = limit - all.len() as u64;
        if left > 0 && to_pass < outline.named {
            let named = room.store.read(|reader| ledger::named_balances(reader, to_pass, left))?;
            all.extend(named.iter().map(|line| shown(room, line)));
        }
        to_pass = to_pass.saturating_sub(outline.named);
    }
    Ok((all, outlines))
}

/// A room's entries from the newest on, read some at a time.
struct Backwards<'r> {
    room: &'r Room<'r>,
    read: VecDeque<Entry>,
    last: Option<Entry>,
    is_over: bool,
}

impl Backwards<'_> {
    fn fill(&mut self) -> Result<(), StoreError> {
        if self.read.is_empty() && !self.is_over {
            let last = self.last.as_ref();
            let more = self.room.store.read(|reader| ledger::newest(reader, last, READ_AT_ONCE))?;
            self.is_over = more.len() < READ_AT_ONCE;
            self.last = more.last().cloned();
            self.read = more.into();
        }
        Ok(())
    }
}

/// The newest entries of all rooms behind the first `offset`.
fn newest(rooms: &[Room<'_>], offset: usize, limit: usize) -> Result<Vec<Line>, StoreError> {
    let begin = |room| Backwards { room, read: VecDeque::new(), last: None, is_over: false };
    let mut all: Vec<Backwards<'_>> = rooms.iter().map(begin).collect();
    let (mut passed, mut lines) = (0, Vec::new());
    while lines.len() < limit {
        all.iter_mut().try_for_each(Backwards::fill)?;
        // Of equal ones that of the first room.
        let next = all.iter_mut().filter(|room| !room.read.is_empty());
        let next = next.min_by_key(|room| Reverse(room.read.front().map(|entry| entry.at)));
        let Some((name, entry)) = next.and_then(|next| Some((next.room.name, next.read.pop_front()?))) else { break };
        if passed < offset {
            passed += 1;
            continue;
        }
        let (step, account) = (entry.step.to_string(), entry.account.to_string());
        lines.push(Line { room: name, at: entry.at.0 / 1000, key: entry.key, step, account, amount: entry.cents });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::ledger::{MIGRATION, Posting, post};
    use crate::model::text::Sought;
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
        let books = Books::default();
        let rooms = [
            Room { name: "trade", known: &books.trade, store: &trade },
            Room { name: "shop", known: &books.shop, store: &shop },
        ];
        let page = |offset, limit| {
            let page = Page { sought: Sought::default(), offset, limit };
            read(&rooms, &page, &page).unwrap()
        };
        let all = page(0, 1000);
        assert_eq!((all.total, all.entries.len(), all.balances_total), (70, 70, 8));
        assert_eq!(all.sum, Total(0));
        let totals = Totals { card: Total(-12_250), escrow: Total(0), payout: Total(12_236), fee: Total(14) };
        assert_eq!(all.totals, totals);
        let balances: Vec<String> =
            all.balances.iter().map(|line| format!("{} {} {}", line.room, line.account, line.balance)).collect();
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
        // In parts it is the same.
        for size in [1, 3, 5, 64] {
            let (mut lines, mut accounts) = (Vec::new(), Vec::new());
            for nth in 0..=70 / size {
                let part = page(nth * size, size);
                assert!(part.entries.len() <= size && part.balances.len() <= size && part.total == 70);
                lines.extend(part.entries);
                accounts.extend(part.balances);
            }
            assert_eq!((lines, accounts), (page(0, 1000).entries, page(0, 1000).balances), "{size} at a time");
        }
        // What is booked since is in it.
        buy(&shop, "later", 100, 300);
        let later = page(0, 1);
        assert_eq!((later.total, later.entries[0].key.as_str()), (75, "later"));
    }
}
