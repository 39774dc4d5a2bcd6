//! Double-entry bookkeeping in the database of the room that pays. See `docs/spec/general.md`, "Bank".
//!
//! Each step of a purchase is one posting whose entries sum to zero: authorise moves the price from the buyer's card
//! into escrow, then either void moves it back or capture moves it on to the sellers and the house. So the ledger as a
//! whole sums to zero, and escrow holds what is authorised but not yet captured or voided.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::{Cents, Millis, Name, Total};
use crate::storage::{Reader, ReaderExt, Row, StoreError, Tx};

/// The table, for the migrations of the room that has a ledger.
pub const MIGRATION: &str = "
    CREATE TABLE ledger_entry (
        charge_key TEXT NOT NULL,      -- the purchase's idempotency key
        step INTEGER NOT NULL,         -- 1 authorise, 2 void, 3 capture
        account TEXT NOT NULL,         -- card:NAME, escrow, payout:NAME, fee
        cents BIGINT NOT NULL CHECK (cents <> 0),
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (charge_key, step, account)
    );
    CREATE INDEX ledger_entry_by_time ON ledger_entry (at_ms, charge_key, step, account);
    CREATE INDEX ledger_entry_by_account ON ledger_entry (account, cents)";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// A buyer's card; its balance is negative by what was charged.
    Card(Name),
    /// What is authorised but not yet captured or voided: never below zero.
    Escrow,
    /// What a seller has earned.
    Payout(Name),
    /// What the house has earned.
    Fee,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PostingStep {
    Authorise = 1,
    Void = 2,
    /// Moves escrow to payouts and fee.
    Capture = 3,
}

/// The posting of one step of one purchase. The constructors make sure that the entries fit the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    key: String,
    step: PostingStep,
    at: Millis,
    /// There is one entry per account, none of them zero.
    entries: BTreeMap<Account, Cents>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    /// The purchase's idempotency key.
    pub key: String,
    pub step: PostingStep,
    pub at: Millis,
    pub account: Account,
    /// What is added to the account; negative if taken from it.
    pub amount: Cents,
}

impl Posting {
    /// Reserves a price, which must be above zero, on a buyer's card.
    pub fn authorise(key: &str, at: Millis, buyer: &Name, price: Cents) -> Result<Posting, StoreError> {
        let price = positive(price)?;
        let entries = [(Account::Card(buyer.clone()), Cents(-price.0)), (Account::Escrow, price)];
        Ok(Posting { key: key.to_owned(), step: PostingStep::Authorise, at, entries: entries.into() })
    }

    /// Gives a reserved price back.
    pub fn void(key: &str, at: Millis, buyer: &Name, price: Cents) -> Result<Posting, StoreError> {
        let price = positive(price)?;
        let entries = [(Account::Card(buyer.clone()), price), (Account::Escrow, Cents(-price.0))];
        Ok(Posting { key: key.to_owned(), step: PostingStep::Void, at, entries: entries.into() })
    }

    /// Distributes a reserved price. A seller may be named several times; shares of zero are left out. No share may be
    /// below zero, and their sum must be above it.
    pub fn capture<'n>(
        key: &str,
        at: Millis,
        payouts: impl IntoIterator<Item = (&'n Name, Cents)>,
        fee: Cents,
    ) -> Result<Posting, StoreError> {
        let shares = payouts.into_iter().map(|(seller, share)| (Account::Payout(seller.clone()), share));
        let mut entries: BTreeMap<Account, Cents> = BTreeMap::new();
        let mut sum = 0i64;
        for (account, share) in shares.chain([(Account::Fee, fee)]) {
            if share.0 < 0 {
                return Err(StoreError::Rejected(format!("a share of {share} in purchase {key}")));
            }
            sum = sum.checked_add(share.0).ok_or_else(too_large)?;
            if share.0 > 0 {
                entries.entry(account).or_default().0 += share.0; // at most `sum`
            }
        }
        entries.insert(Account::Escrow, Cents(-positive(Cents(sum))?.0));
        Ok(Posting { key: key.to_owned(), step: PostingStep::Capture, at, entries })
    }
}

fn positive(amount: Cents) -> Result<Cents, StoreError> {
    if amount.0 > 0 { Ok(amount) } else { Err(StoreError::Rejected(format!("an amount of {amount}"))) }
}

fn too_large() -> StoreError {
    StoreError::Rejected("a sum too large to count".to_owned())
}

/// Writes a posting, once: the same key and step again, with the same entries, changes nothing.
/// [`StoreError::Rejected`] if it contradicts earlier ones: the same step with other entries, a void or capture of what
/// was not authorised or was already decided otherwise, or one of another amount or card.
pub fn post(tx: &mut dyn Tx, posting: &Posting) -> Result<(), StoreError> {
    let refused = |why: &str| Err(StoreError::Rejected(format!("{} of purchase {}: {why}", posting.step, posting.key)));
    // The constructors guarantee it; nothing that breaks the rule of double entry may be written.
    let sum: i128 = posting.entries.values().map(|cents| i128::from(cents.0)).sum();
    if sum != 0 {
        return refused("its entries do not sum to zero");
    }
    let mut booked: BTreeMap<PostingStep, BTreeMap<Account, Cents>> = BTreeMap::new();
    tx.query(
        "SELECT step, account, cents FROM ledger_entry WHERE charge_key = $1",
        &[posting.key.as_str().into()],
        &mut |row| {
            booked
                .entry(PostingStep::from_stored(row.int(0)?)?)
                .or_default()
                .insert(read_account(row, 1)?, row.cents(2)?);
            Ok(())
        },
    )?;
    if let Some(entries) = booked.get(&posting.step) {
        return if *entries == posting.entries { Ok(()) } else { refused("it was booked with other amounts") };
    }
    if posting.step != PostingStep::Authorise {
        let Some(authorised) = booked.get(&PostingStep::Authorise) else { return refused("nothing was authorised") };
        if booked.contains_key(&PostingStep::Void) {
            return refused("it was voided");
        }
        if booked.contains_key(&PostingStep::Capture) {
            return refused("it was captured");
        }
        // Exactly what came into escrow leaves it: so escrow never goes below zero, and a voided price goes back to its
        // card.
        let goes_back =
            |(account, cents): (&Account, &Cents)| posting.entries.get(account).is_some_and(|back| back.0 == -cents.0);
        let escrow_empties = authorised.get(&Account::Escrow).is_some_and(|cents| goes_back((&Account::Escrow, cents)));
        if !escrow_empties {
            return refused("its amount is not the one authorised");
        }
        if posting.step == PostingStep::Void && !authorised.iter().all(goes_back) {
            return refused("the card is not the one authorised");
        }
    }
    for (account, cents) in &posting.entries {
        tx.execute(
            "INSERT INTO ledger_entry (charge_key, step, account, cents, at_ms) VALUES ($1, $2, $3, $4, $5)",
            &[
                posting.key.as_str().into(),
                (posting.step as i64).into(),
                account.to_string().as_str().into(),
                (*cents).into(),
                posting.at.into(),
            ],
        )?;
    }
    Ok(())
}

/// The balances of all accounts that were ever used, ordered by their text.
pub fn balances(reader: &dyn Reader) -> Result<Vec<(Account, Total)>, StoreError> {
    let sql = format!("SELECT account, {SUM_OF_CENTS} FROM ledger_entry GROUP BY account ORDER BY account");
    reader.all(&sql, &[], |row| Ok((read_account(row, 0)?, read_sum(row, 1)?)))
}

/// The sum of `cents` as two columns, because a database's own sum overflows after some thousands of the largest
/// amounts: one of the bits above the lower 32, and one of the lower 32. Each entry adds less than 2^32 to either, so
/// 2^31 entries fit.
const SUM_OF_CENTS: &str =
    "CAST(SUM(cents / 4294967296) AS BIGINT), CAST(SUM(cents - cents / 4294967296 * 4294967296) AS BIGINT)";

/// The two columns of [`SUM_OF_CENTS`] begin at `column`; zero if there were no rows.
fn read_sum(row: &Row<'_>, column: usize) -> Result<Total, StoreError> {
    let half = |column| Ok::<_, StoreError>(i128::from(row.opt_int(column)?.unwrap_or(0)));
    Ok(Total((half(column)? << 32) + half(column + 1)?))
}

/// Up to `limit` entries in the order of time, from position `offset` on: a long ledger is never in memory as a whole.
pub fn entries(
    reader: &dyn Reader,
    offset: u32,
    limit: u32,
    each: &mut dyn FnMut(LedgerEntry) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let sql = format!("{SELECT_ENTRIES} ORDER BY at_ms, charge_key, step, account LIMIT $1 OFFSET $2");
    reader.query(&sql, &[limit.into(), offset.into()], &mut |row| each(entry_from_row(row)?))
}

/// Up to `limit` entries, newest first: those before the given one, or the newest of all.
pub fn entries_before(
    reader: &dyn Reader,
    before: Option<&LedgerEntry>,
    limit: usize,
) -> Result<Vec<LedgerEntry>, StoreError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let order = "ORDER BY at_ms DESC, charge_key DESC, step DESC, account DESC";
    let Some(LedgerEntry { key, step, at, account, .. }) = before else {
        return reader.all(&format!("{SELECT_ENTRIES} {order} LIMIT $1"), &[limit.into()], entry_from_row);
    };
    let sql = format!("{SELECT_ENTRIES} WHERE (at_ms, charge_key, step, account) < ($1, $2, $3, $4) {order} LIMIT $5");
    let account = account.to_string();
    let parameters = [(*at).into(), key.into(), (*step as i64).into(), (&account).into(), limit.into()];
    reader.all(&sql, &parameters, entry_from_row)
}

const SELECT_ENTRIES: &str = "SELECT charge_key, step, at_ms, account, cents FROM ledger_entry";

fn entry_from_row(row: &Row<'_>) -> Result<LedgerEntry, StoreError> {
    Ok(LedgerEntry {
        key: row.text(0)?.to_owned(),
        step: PostingStep::from_stored(row.int(1)?)?,
        at: row.millis(2)?,
        account: read_account(row, 3)?,
        amount: row.cents(4)?,
    })
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LedgerSummary {
    pub entries: u64,
    /// Accounts that bear a user's name: see [`named_balances`].
    pub named_accounts: u64,
    /// The balances of the accounts without a name that were ever used: escrow, fee.
    pub house_balances: Vec<(Account, Total)>,
    /// What all cards together were charged (below zero).
    pub cards_total: Total,
    /// What all sellers together have earned.
    pub payouts_total: Total,
    /// The sum of all entries: zero unless the ledger is corrupt.
    pub sum: Total,
}

/// Every entry is read for the totals, which are not cached.
pub fn summarize(reader: &dyn Reader) -> Result<LedgerSummary, StoreError> {
    let mut summary = LedgerSummary::default();
    let sql = format!("SELECT account, COUNT(*), {SUM_OF_CENTS} FROM ledger_entry GROUP BY account ORDER BY account");
    reader.query(&sql, &[], &mut |row| {
        let (account, balance) = (read_account(row, 0)?, read_sum(row, 2)?);
        summary.entries += row.uint(1)?;
        summary.sum += balance;
        match account {
            Account::Card(_) => summary.cards_total += balance,
            Account::Payout(_) => summary.payouts_total += balance,
            Account::Escrow | Account::Fee => {
                summary.house_balances.push((account, balance));
                return Ok(());
            }
        }
        summary.named_accounts += 1;
        Ok(())
    })?;
    Ok(summary)
}

/// While the revision is the same, nothing was posted.
pub fn revision(reader: &dyn Reader) -> Result<Option<i64>, StoreError> {
    // Row ids ascend, and no row is ever deleted.
    Ok(reader.first("SELECT max(rowid) FROM ledger_entry", &[], |row| row.opt_int(0))?.flatten())
}

/// The balances of up to `limit` accounts that bear a user's name, ordered by their text, from position `offset` on.
pub fn named_balances(reader: &dyn Reader, offset: u64, limit: u64) -> Result<Vec<(Account, Total)>, StoreError> {
    let sql = format!(
        "SELECT account, {SUM_OF_CENTS} FROM ledger_entry WHERE account NOT IN ('escrow', 'fee')
         GROUP BY account ORDER BY account LIMIT $1 OFFSET $2"
    );
    let [limit, offset] = [limit, offset].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    reader.all(&sql, &[limit.into(), offset.into()], |row| Ok((read_account(row, 0)?, read_sum(row, 1)?)))
}

/// The sum of all entries: zero unless the ledger is corrupt.
pub fn sum(reader: &dyn Reader) -> Result<Total, StoreError> {
    let sum = reader.first(&format!("SELECT {SUM_OF_CENTS} FROM ledger_entry"), &[], |row| read_sum(row, 0));
    Ok(sum?.unwrap_or_default())
}

fn read_account(row: &Row<'_>, column: usize) -> Result<Account, StoreError> {
    let text = row.text(column)?;
    Account::parse(text).ok_or_else(|| StoreError::Invalid(format!("the ledger names the unknown account {text:?}")))
}

impl Account {
    /// Parses `card:alice`, `escrow`, `payout:bob` or `fee`.
    pub fn parse(text: &str) -> Option<Account> {
        match text.split_once(':') {
            None if text == "escrow" => Some(Account::Escrow),
            None if text == "fee" => Some(Account::Fee),
            Some(("card", name)) => Name::from_stored(name).ok().map(Account::Card),
            Some(("payout", name)) => Name::from_stored(name).ok().map(Account::Payout),
            _ => None,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Card(name) => write!(f, "card:{name}"),
            Account::Escrow => f.write_str("escrow"),
            Account::Payout(name) => write!(f, "payout:{name}"),
            Account::Fee => f.write_str("fee"),
        }
    }
}

impl PostingStep {
    fn from_stored(number: i64) -> Result<PostingStep, StoreError> {
        [PostingStep::Authorise, PostingStep::Void, PostingStep::Capture]
            .into_iter()
            .find(|step| *step as i64 == number)
            .ok_or_else(|| StoreError::Invalid(format!("the ledger holds the unknown step {number}")))
    }
}

impl fmt::Display for PostingStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PostingStep::Authorise => "authorise",
            PostingStep::Void => "void",
            PostingStep::Capture => "capture",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::Store;

    const AT: Millis = Millis(1_795_253_400_000);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn book(store: &Store, posting: Result<Posting, StoreError>) -> Result<(), StoreError> {
        let posting = posting?;
        store.write(move |tx| post(tx, &posting))
    }

    fn shown(store: &Store) -> Vec<String> {
        let balances = store.read(balances).unwrap();
        balances.iter().map(|(account, cents)| format!("{account} {cents}")).collect()
    }

    #[test]
    fn a_purchase_goes_through_escrow() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("shop.db"), &[MIGRATION]).unwrap();
        let (alice, bob, carol) = (name("alice"), name("bob"), name("carol:x"));
        assert_eq!(store.read(sum), Ok(Total(0)));
        book(&store, Posting::authorise("p1", AT, &alice, Cents(1000))).unwrap();
        assert_eq!(shown(&store), ["card:alice -10.00", "escrow 10.00"]);
        let shares = [(&bob, Cents(300)), (&carol, Cents(500)), (&bob, Cents(100))];
        let capture = Posting::capture("p1", AT.plus_ms(5), shares, Cents(100));
        for _repeat in 0..2 {
            book(&store, capture.clone()).unwrap();
        }
        assert_eq!(
            shown(&store),
            ["card:alice -10.00", "escrow 0.00", "fee 1.00", "payout:bob 4.00", "payout:carol:x 5.00"]
        );
        assert_eq!(store.read(sum), Ok(Total(0)));
        let mut lines = Vec::new();
        store
            .read(|reader| {
                entries(reader, 1, 3, &mut |entry| {
                    lines.push(format!("{} {} {} {}", entry.key, entry.step, entry.account, entry.amount));
                    Ok(())
                })
            })
            .unwrap();
        assert_eq!(lines, ["p1 authorise escrow 10.00", "p1 capture escrow -10.00", "p1 capture fee 1.00"]);
        // The same entries, read backwards in pages.
        let (mut back, mut before) = (Vec::new(), None);
        loop {
            let part = store.read(|reader| entries_before(reader, before.as_ref(), 2)).unwrap();
            let Some(last) = part.last() else { break };
            before = Some(last.clone());
            back.extend(part);
        }
        let mut all = Vec::new();
        let each = &mut |entry| {
            all.push(entry);
            Ok(())
        };
        store.read(|reader| entries(reader, 0, 99, each)).unwrap();
        all.reverse();
        assert_eq!(back, all);
        let house = vec![(Account::Escrow, Total(0)), (Account::Fee, Total(100))];
        let whole = LedgerSummary {
            entries: 6,
            named_accounts: 3,
            house_balances: house,
            cards_total: Total(-1000),
            payouts_total: Total(900),
            sum: Total(0),
        };
        assert_eq!(store.read(summarize), Ok(whole));
        let named = |offset, limit| store.read(|reader| named_balances(reader, offset, limit)).unwrap();
        let of = |account: &str, cents| (Account::parse(account).unwrap(), Total(cents));
        assert_eq!(named(0, 2), [of("card:alice", -1000), of("payout:bob", 400)]);
        assert_eq!(named(2, 2), [of("payout:carol:x", 500)]);
        let before = store.read(revision).unwrap();
        assert_eq!(store.read(revision).unwrap(), before);
        book(&store, Posting::authorise("p2", AT, &alice, Cents(1))).unwrap();
        assert_ne!(store.read(revision).unwrap(), before);
    }

    #[test]
    fn balances_and_sum_are_exact_past_what_64_bits_hold() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("shop.db"), &[MIGRATION]).unwrap();
        let (alice, bob) = (name("alice"), name("bob"));
        // 92,233,720,368,547,758.07 each: the sum of two exceeds 64 bits.
        for nth in 0..5 {
            let key = format!("p{nth}");
            book(&store, Posting::authorise(&key, AT, &alice, Cents(i64::MAX))).unwrap();
            let shares = [(&bob, Cents(i64::MAX - 3))];
            book(&store, Posting::capture(&key, AT, shares, Cents(3))).unwrap();
        }
        let sums = ["card:alice -461168601842738790.35", "escrow 0.00", "fee 0.15", "payout:bob 461168601842738790.20"];
        assert_eq!(shown(&store), sums);
        assert_eq!(store.read(sum), Ok(Total(0)));
        // An imbalance is reported to the cent.
        let extra = |tx: &mut dyn Tx| {
            tx.execute("INSERT INTO ledger_entry VALUES ('x', 1, 'fee', $1, 0)", &[Cents(i64::MAX).into()])?;
            tx.execute("INSERT INTO ledger_entry VALUES ('y', 1, 'fee', $1, 0)", &[Cents(i64::MAX).into()])
        };
        store.write(extra).unwrap();
        assert_eq!(store.read(sum), Ok(Total(i128::from(i64::MAX) * 2)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("shop.db"), &[MIGRATION]).unwrap();
        let (alice, bob) = (name("alice"), name("bob"));
        let refused = |posting| {
            let before = shown(&store);
            let result = book(&store, posting);
            assert!(matches!(result, Err(StoreError::Rejected(_))), "{result:?}");
            assert_eq!(shown(&store), before);
        };
        let capture = |key: &str, cents| Posting::capture(key, AT, [(&bob, Cents(cents))], Cents(0));
        refused(Posting::void("p", AT, &alice, Cents(100)));
        refused(capture("p", 100));
        refused(Posting::authorise("p", AT, &alice, Cents(0)));
        refused(Posting::authorise("p", AT, &alice, Cents(-1)));
        refused(Posting::capture("p", AT, [(&bob, Cents(-1))], Cents(101)));
        refused(Posting::capture("p", AT, [(&bob, Cents(i64::MAX))], Cents(1)));
        refused(Posting::capture("p", AT, [], Cents(0)));

        book(&store, Posting::authorise("p", AT, &alice, Cents(100))).unwrap();
        book(&store, Posting::authorise("p", AT.plus_ms(9), &alice, Cents(100))).unwrap();
        refused(Posting::authorise("p", AT, &alice, Cents(101)));
        refused(Posting::authorise("p", AT, &bob, Cents(100)));
        refused(capture("p", 99));
        refused(Posting::void("p", AT, &alice, Cents(101)));
        refused(Posting::void("p", AT, &bob, Cents(100)));
        book(&store, Posting::void("p", AT, &alice, Cents(100))).unwrap();
        refused(capture("p", 100));

        book(&store, Posting::authorise("q", AT, &alice, Cents(100))).unwrap();
        book(&store, capture("q", 100)).unwrap();
        refused(Posting::void("q", AT, &alice, Cents(100)));
        refused(capture("q", 101));
        let lopsided = Posting { entries: [(Account::Fee, Cents(1))].into(), ..capture("q", 100).unwrap() };
        refused(Ok(lopsided));
        assert_eq!(shown(&store), ["card:alice -1.00", "escrow 0.00", "payout:bob 1.00"]);
    }

    #[test]
    fn accounts_read_as_they_are_written() {
        for account in [Account::Card(name("a:b")), Account::Escrow, Account::Payout(name("fee")), Account::Fee] {
            assert_eq!(Account::parse(&account.to_string()), Some(account));
        }
        for text in ["", "card", "card:", "escrow:x", "Fee", "bank:x"] {
            assert_eq!(Account::parse(text), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_order_of_postings_balances(steps in prop::collection::vec((0..4u8, 0..3u8, 1..4i64, 0..2i64), 0..60)) {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("shop.db"), &[MIGRATION]).unwrap();
            let (alice, bob) = (name("alice"), name("bob"));
            // The authorised amount, and how the purchase ended.
            let mut model: BTreeMap<u8, (i64, Option<(u8, i64)>)> = BTreeMap::new();
            for (key, step, cents, fee) in steps {
                let text = key.to_string();
                let posting = match step {
                    0 => Posting::authorise(&text, AT, &alice, Cents(cents)),
                    1 => Posting::void(&text, AT, &alice, Cents(cents)),
                    _ => Posting::capture(&text, AT, [(&bob, Cents(cents - fee))], Cents(fee)),
                };
                let allowed = match (step, model.get_mut(&key)) {
                    (0, None) => {
                        model.insert(key, (cents, None));
                        true
                    }
                    (0, Some((authorised, _))) => *authorised == cents,
                    (_, Some((authorised, end @ None))) if *authorised == cents => {
                        *end = Some((step, fee));
                        true
                    }
                    (1, Some((authorised, Some((1, _))))) => *authorised == cents,
                    (2, Some((authorised, Some((2, was))))) => *authorised == cents && *was == fee,
                    _ => false,
                };
                prop_assert_eq!(book(&store, posting).is_ok(), allowed);
                prop_assert_eq!(store.read(sum), Ok(Total(0)));
                let in_escrow: i64 = model.values().filter(|(_, end)| end.is_none()).map(|(cents, _)| cents).sum();
                let found = store.read(balances).unwrap();
                let escrow = found.iter().find(|(account, _)| *account == Account::Escrow);
                prop_assert_eq!(escrow.map_or(0, |(_, cents)| cents.0), i128::from(in_escrow));
            }
        }
    }
}
