//! Trade's tables. Rows are written as the exchange hands them over, and all are read at the start. Most bodies are
//! JSON, so that a new field needs no migration; values that are searched for have columns.

use super::deal::{Deal, LedgerOperation, SellerSide};
use super::journal::{DepartureRow, ExchangeChange, ExchangeSnapshot, LedgerRow, LogRow, PeerRow};
use crate::bank::ledger::{self, Posting};
use crate::model::{Cents, Clock, Millis, Token};
use crate::storage::{self, Reader, ReaderExt, Row, StoreError, StoredChange, Tx, bigint, from_json, to_json};

pub const MIGRATIONS: &[&str] = &[
    ledger::MIGRATION,
    "CREATE TABLE trade_number (id INTEGER PRIMARY KEY, ceiling BIGINT NOT NULL);
     CREATE TABLE trade_peer (name TEXT PRIMARY KEY, heard_at BIGINT NOT NULL, body TEXT NOT NULL);
     CREATE TABLE trade_farewell (name TEXT NOT NULL, rq BIGINT NOT NULL, at BIGINT NOT NULL, body TEXT NOT NULL,
         PRIMARY KEY (name, rq));
     CREATE TABLE trade_deal (id BIGINT PRIMARY KEY, body TEXT NOT NULL);
     CREATE TABLE trade_seller (deal BIGINT NOT NULL, rq BIGINT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (deal, rq));
     CREATE TABLE trade_log (id INTEGER PRIMARY KEY, at BIGINT NOT NULL, kind TEXT NOT NULL, peer TEXT NOT NULL,
         deal BIGINT, rq BIGINT, item_name TEXT, price BIGINT, detail TEXT NOT NULL);",
    "CREATE TABLE trade_secret (name TEXT PRIMARY KEY, value TEXT NOT NULL);",
];

const MID_KEY: &str = "mid_key";

pub type StoreJournal = storage::StoreJournal<ExchangeChange>;

impl StoredChange for ExchangeChange {
    type Prepared = (SerializedBody, ExchangeChange);

    /// What happened bears the calendar date instead of the exchange's time.
    fn prepare(mut self, clock: &Clock) -> (SerializedBody, ExchangeChange) {
        match &mut self {
            ExchangeChange::Log(LogRow { at, .. })
            | ExchangeChange::Ledger(LedgerRow { at, .. })
            | ExchangeChange::PeerSeen { at, .. } => *at = clock.date_of(*at),
            _ => {}
        }
        (body(&self), self)
    }

    fn write((body, change): &(SerializedBody, ExchangeChange), tx: &mut dyn Tx) -> Result<(), StoreError> {
        write(tx, change, body)
    }
}

/// The row's JSON, for changes that are stored as JSON and do not bring it along.
type SerializedBody = Result<String, StoreError>;

fn body(change: &ExchangeChange) -> SerializedBody {
    match change {
        ExchangeChange::Peer(row) => to_json(row),
        ExchangeChange::Departure(row) => to_json(row),
        _ => Ok(String::new()),
    }
}

fn write(tx: &mut dyn Tx, change: &ExchangeChange, body: &SerializedBody) -> Result<(), StoreError> {
    let json = body.as_ref().map_err(Clone::clone)?;
    match change {
        ExchangeChange::Ceiling(ceiling) => tx.execute(
            "INSERT INTO trade_number (id, ceiling) VALUES (1, $1)
             ON CONFLICT (id) DO UPDATE SET ceiling = excluded.ceiling",
            &[bigint(*ceiling)?.into()],
        ),
        ExchangeChange::MidKey(key) => tx.execute(
            "INSERT INTO trade_secret (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            &[MID_KEY.into(), key.reveal().into()],
        ),
        ExchangeChange::Peer(row) => tx.execute(
            "INSERT INTO trade_peer (name, heard_at, body) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body",
            &[(&row.name).into(), row.registered_at.into(), json.into()],
        ),
        ExchangeChange::PeerSeen { name, at } => {
            tx.execute("UPDATE trade_peer SET heard_at = $1 WHERE name = $2", &[(*at).into(), name.into()])
        }
        ExchangeChange::DropPeer(name) => tx.execute("DELETE FROM trade_peer WHERE name = $1", &[name.into()]),
        ExchangeChange::Departure(row) => tx.execute(
            "INSERT INTO trade_farewell (name, rq, at, body) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name, rq) DO UPDATE SET at = excluded.at, body = excluded.body",
            &[(&row.name).into(), bigint(row.rq)?.into(), row.at.into(), json.into()],
        ),
        ExchangeChange::DropDeparture { name, rq } => {
            tx.execute("DELETE FROM trade_farewell WHERE name = $1 AND rq = $2", &[name.into(), bigint(*rq)?.into()])
        }
        ExchangeChange::DropDeparturesBefore(before) => {
            tx.execute("DELETE FROM trade_farewell WHERE at <= $1", &[(*before).into()])
        }
        ExchangeChange::Deal { id, body } => tx.execute(
            "INSERT INTO trade_deal (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            &[bigint(*id)?.into(), body.into()],
        ),
        ExchangeChange::Seller { deal, rq, body } => tx.execute(
            "INSERT INTO trade_seller (deal, rq, body) VALUES ($1, $2, $3)
             ON CONFLICT (deal, rq) DO UPDATE SET body = excluded.body",
            &[bigint(*deal)?.into(), bigint(*rq)?.into(), body.into()],
        ),
        ExchangeChange::DropDeal(id) => {
            tx.execute("DELETE FROM trade_seller WHERE deal = $1", &[bigint(*id)?.into()])?;
            tx.execute("DELETE FROM trade_deal WHERE id = $1", &[bigint(*id)?.into()])
        }
        ExchangeChange::Log(row) => tx.execute(
            "INSERT INTO trade_log (at, kind, peer, deal, rq, item_name, price, detail)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                row.at.into(),
                (&row.kind).into(),
                (&row.peer).into(),
                row.deal.map(bigint).transpose()?.into(),
                row.rq.map(bigint).transpose()?.into(),
                row.item_name.as_ref().into(),
                row.price.into(),
                (&row.detail).into(),
            ],
        ),
        ExchangeChange::Ledger(row) => return ledger::post(tx, &posting(row)?),
    }
    .map(|_| ())
}

fn posting(row: &LedgerRow) -> Result<Posting, StoreError> {
    let LedgerRow { key, buyer, seller, price, fee, at, .. } = row;
    match row.operation {
        LedgerOperation::Authorise => Posting::authorise(key, *at, buyer, *price),
        LedgerOperation::Void => Posting::void(key, *at, buyer, *price),
        LedgerOperation::Capture => Posting::capture(key, *at, [(seller, Cents(price.0 - fee.0))], *fee),
    }
}

/// The number from which on none was used, as far as the file knows.
pub fn ceiling(reader: &dyn Reader) -> Result<u64, StoreError> {
    Ok(reader.first("SELECT ceiling FROM trade_number WHERE id = 1", &[], |row| row.uint(0))?.unwrap_or(0))
}

/// Everything in one consistent snapshot.
pub fn load(reader: &dyn Reader) -> Result<ExchangeSnapshot, StoreError> {
    let ceiling = ceiling(reader)?;
    let mid_key = reader
        .first("SELECT value FROM trade_secret WHERE name = $1", &[MID_KEY.into()], |row| Ok(row.text(0)?.to_owned()))?
        .map(Token::from_text);
    let peers = peers(reader)?;
    let departures = reader
        .all("SELECT body FROM trade_farewell", &[], |row| from_json::<DepartureRow>("trade_farewell", row.text(0)?))?;
    let mut deals = deals(reader)?.into_iter().map(|deal| (deal, Vec::new())).collect::<Vec<_>>();
    let mut at = 0;
    reader.query("SELECT deal, rq, body FROM trade_seller ORDER BY deal, rq", &[], &mut |row| {
        let (id, rq) = (row.uint(0)?, row.uint(1)?);
        while deals.get(at).is_some_and(|(deal, _)| deal.id < id) {
            at += 1;
        }
        let Some((deal, sellers)) = deals.get_mut(at).filter(|(deal, _)| deal.id == id) else {
            return Err(StoreError::Invalid(format!("trade_seller: side {rq} belongs to no deal")));
        };
        if rq != deal.first_rq + sellers.len() as u64 {
            return Err(StoreError::Invalid(format!("trade_seller: deal {id} lacks the side before {rq}")));
        }
        sellers.push(from_json::<SellerSide>("trade_seller", row.text(2)?)?);
        Ok(())
    })?;
    Ok(ExchangeSnapshot { ceiling, mid_key, peers, departures, deals })
}

/// The peers by name, each with the time of its last request.
pub fn peers(reader: &dyn Reader) -> Result<Vec<(PeerRow, Millis)>, StoreError> {
    reader.all("SELECT body, heard_at FROM trade_peer ORDER BY name", &[], |row| {
        Ok((from_json("trade_peer", row.text(0)?)?, row.millis(1)?))
    })
}

/// The deals by id, without their sellers.
pub fn deals(reader: &dyn Reader) -> Result<Vec<Deal>, StoreError> {
    reader.all("SELECT body FROM trade_deal ORDER BY id", &[], |row| from_json("trade_deal", row.text(0)?))
}

/// They are in the order of their numbers.
pub fn sellers(reader: &dyn Reader, deal: u64) -> Result<Vec<SellerSide>, StoreError> {
    let parameters = [bigint(deal)?.into()];
    reader.all("SELECT body FROM trade_seller WHERE deal = $1 ORDER BY rq", &parameters, |row| {
        from_json("trade_seller", row.text(0)?)
    })
}

/// Calls `each` with the lines since a time, oldest first; only those of one peer if a name is given. There is no index
/// for this: every line would pay for it, and the log is read rarely, by a person.
pub fn log(
    reader: &dyn Reader,
    peer: Option<&str>,
    since: Millis,
    each: &mut dyn FnMut(LogRow),
) -> Result<(), StoreError> {
    let sql = "SELECT at, kind, peer, deal, rq, item_name, price, detail FROM trade_log
               WHERE at >= $1 AND ($2 IS NULL OR peer = $2) ORDER BY id";
    reader.query(sql, &[since.into(), peer.into()], &mut |row| {
        each(log_row(row)?);
        Ok(())
    })
}

/// `limit` lines after the first `offset`, newest first; and the total number.
pub fn newest_log(reader: &dyn Reader, offset: u64, limit: u64) -> Result<(Vec<LogRow>, u64), StoreError> {
    // Ids are consecutive and lines are never removed.
    let ends =
        reader.first("SELECT min(id), max(id) FROM trade_log", &[], |row| Ok((row.opt_int(0)?, row.opt_int(1)?)))?;
    let Some((Some(oldest), Some(newest))) = ends else { return Ok((Vec::new(), 0)) };
    let total = u64::try_from(newest - oldest + 1).unwrap_or(0);
    let last = newest.saturating_sub(i64::try_from(offset).unwrap_or(i64::MAX));
    let sql = "SELECT at, kind, peer, deal, rq, item_name, price, detail FROM trade_log
               WHERE id <= $1 ORDER BY id DESC LIMIT $2";
    Ok((reader.all(sql, &[last.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()], log_row)?, total))
}

fn log_row(row: &Row<'_>) -> Result<LogRow, StoreError> {
    Ok(LogRow {
        at: row.millis(0)?,
        kind: row.text(1)?.to_owned(),
        peer: row.name(2)?,
        deal: row.opt_int(3)?.and_then(|deal| u64::try_from(deal).ok()),
        rq: row.opt_int(4)?.and_then(|rq| u64::try_from(rq).ok()),
        item_name: row.opt_text(5)?.map(str::to_owned),
        price: row.opt_int(6)?.map(Cents),
        detail: row.text(7)?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Name;
    use crate::storage::{Appender, Journal, Store};
    use std::time::Duration;

    #[test]
    fn what_happened_bears_the_date_though_the_clock_started_ten_years_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("trade.db"), MIGRATIONS).unwrap());
        let clock = Clock::behind(Duration::from_secs(10 * 365 * 24 * 3600));
        let journal = StoreJournal::new(Appender::begin(Arc::clone(&store)), clock);
        let row = LogRow {
            at: clock.now(),
            kind: "search".to_owned(),
            peer: Name::new("alice").unwrap(),
            deal: None,
            rq: None,
            item_name: None,
            price: None,
            detail: String::new(),
        };
        journal.append(vec![ExchangeChange::Log(row)]).wait().unwrap();
        let at =
            store.read(|reader| reader.first("SELECT at FROM trade_log", &[], |row| row.millis(0))).unwrap().unwrap();
        assert!(at.0.abs_diff(Clock::wall().0) < 60_000, "{at:?}");
    }
}
